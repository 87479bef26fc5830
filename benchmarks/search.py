# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The search for similar windows: time, memory and completeness, exact and through an index.

Vectors of 256 components about 2,000 directions, as float16 in a file; 20 of them are looked for, with noise. *Found*
is the share of the 20 nearest of each that are among the 20 that the index gives.

With --tiles (as written by ``rosetta simulate --tiles``), embeddings of simulated windows instead, by the bundled
encoder: their places, PSFs, depths and noise are drawn anew for each. An eighth of the tiles is no part of what is
searched; windows of it are looked for (*new sky*), and as many windows of the other tiles, seen anew (*same sky*).
*Recall@k* is the share of the k nearest that are among the first k of the index. FOLDER keeps the embeddings.

Run: python benchmarks/search.py FOLDER [--vectors 100000 1000000 10000000] [--tables FOLDER]
     python benchmarks/search.py FOLDER --tiles DIR [--most-tiles 40] [--windows ground:38.4:6000 space:12.8:12000]
"""

import argparse
import resource
import time
from functools import partial
from pathlib import Path

import numpy as np
from kit.statistics import interval
from kit.store import arrays
from kit.tables import Tables, add_option
from kit.windows import Where, encode, load, note, views

from rosetta import CrossSurveyEncoder
from rosetta.encoding import training_windows
from rosetta.production import vectors

DIM, DIRECTIONS, SCATTER, QUERIES, NEAREST = 256, 2000, 0.7, 20, 20
BLOCK = 100_000
SEED = 6
ASKED = 256  # windows of new sky, and of the same sky
PROBES = (1, 3, 10, 64)  # lists that are searched
RECALL = (1, 10, 20)


def written(path, n):
    """A file of ``n`` vectors of length 1."""
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(DIRECTIONS, DIM)).astype(np.float32)
    with open(path, "wb") as file:
        for first in range(0, n, BLOCK):
            size = min(BLOCK, n - first)
            block = centers[rng.integers(DIRECTIONS, size=size)]
            block = block + SCATTER * rng.standard_normal((size, DIM), dtype=np.float32)
            file.write((block / np.linalg.norm(block, axis=1, keepdims=True)).astype(np.float16).tobytes())
    return vectors.read_vectors(path, DIM)


def queries(windows):
    rng = np.random.default_rng(2)
    chosen = np.asarray(windows[rng.integers(len(windows), size=QUERIES)], np.float32)
    chosen = chosen + 0.2 / DIM**0.5 * rng.normal(size=chosen.shape)
    return (chosen / np.linalg.norm(chosen, axis=1, keepdims=True)).astype(np.float32)


def timed(function):
    start = time.process_time()
    return function(), time.process_time() - start


# ---------------------------------------------------------------------------- embeddings of simulated windows
def drawn(sky, tiles, n, window, seed):
    """``n`` windows anywhere on some of the tiles."""
    rng = np.random.default_rng(seed)
    tile = rng.choice(tiles, n)
    low, high = np.stack([training_windows.center_range(sky.tiles[k], window) for k in tile], 1)
    return Where(tile, rng.uniform(low, high))


def embedded(sky, side, window, n):
    """Embeddings and tiles (dict) of ``n`` windows that are searched, and of those that are looked for."""
    encoder = CrossSurveyEncoder.from_pretrained(device="cpu").model.encoder
    last = len(sky.tiles) * 7 // 8
    sets = {"searched": (range(last), n), "same": (range(last), ASKED), "new": (range(last, len(sky.tiles)), ASKED)}
    found = {}
    for seed, (name, (tiles, count)) in enumerate(sets.items(), SEED):
        where = drawn(sky, tiles, count, window, seed)
        found[name] = encode(encoder, side, views(sky, side, where, window, seed))[0].numpy().astype(np.float16)
        found[f"{name}_tile"] = where.tile
    return found


def recalls(found, exact, tile):
    """Recall with the interval of another draw of tiles, for each of `RECALL` (list of str)."""
    for k in RECALL:
        share = np.array([len(set(a[:k]) & set(b[:k])) / k for a, b in zip(found, exact, strict=True)])
        yield "{:.3f} ({:.3f}, {:.3f})".format(*interval(np.mean, share, tile))


def of_windows(folder, tiles, most, kinds):
    """Lines about the recall of an index of embeddings."""
    sky = None
    for kind in kinds:
        side, window, n = kind.split(":")
        path = folder / f"embeddings_{side}_{window}_{n}.npz"
        if sky is None and not path.exists():
            sky = load(tiles, most)
        start = time.process_time()
        sets = arrays(path, partial(embedded, sky, side, float(window), int(n)))
        note(f"{kind}: {time.process_time() - start:.0f} CPU-s")
        windows, index = sets["searched"], folder / "vectors.faiss"
        vectors.build_index(windows, index)
        n_list = int(len(windows) ** 0.5)
        for probes in (min(probes, n_list) for probes in PROBES):
            line = [f'{side}, {window}", {len(windows)}', f"{probes} of {n_list}"]
            for name in ("same", "new"):
                asked = sets[name].astype(np.float32)
                exact, _ = vectors.nearest(windows, asked, NEAREST)
                found, _ = vectors.nearest_by_index(index, windows, asked, NEAREST, probes)
                line += recalls(found, exact, sets[f"{name}_tile"])
            yield line
        index.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vectors", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--tiles", type=Path, help="embeddings of windows of these, instead of synthetic vectors")
    parser.add_argument("--most-tiles", type=int, default=40)
    parser.add_argument("--windows", nargs="+", default=["ground:38.4:6000", "space:12.8:12000"])
    add_option(parser)
    options, lines = parser.parse_args(), []
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.tiles:
        header = ["Embeddings", "Lists searched", *(f"{name} sky, @{k}" for name in ("same", "new") for k in RECALL)]
        lines = of_windows(options.folder, options.tiles, options.most_tiles, options.windows)
        Tables(options.tables).show("search_recall", "Recall of an index of embeddings", header, lines)
        return
    for n in options.vectors:
        path, index = options.folder / "vectors.float16", options.folder / "vectors.faiss"
        windows = written(path, n)
        asked = queries(windows)
        (exact, _), seconds = timed(partial(vectors.nearest, windows, asked, NEAREST))
        lines.append([f"{n:.0e}", "exact", "", f"{seconds:.2f}", "1"])
        _, built = timed(partial(vectors.build_index, windows, index))
        (found, _), seconds = timed(partial(vectors.nearest_by_index, index, windows, asked, NEAREST))
        share = np.mean([len(set(a) & set(b)) / NEAREST for a, b in zip(found, exact, strict=True)])
        lines.append([f"{n:.0e}", "index", f"{built:.0f}", f"{seconds:.2f}", f"{share:.3f}"])
        index.unlink()
        path.unlink()
    header = ["Vectors", "Search", "CPU-s to build", f"CPU-s for {QUERIES}", "Found"]
    Tables(options.tables).show("search", "Nearest of many vectors", header, lines)
    print(f"peak memory, files mapped included: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
