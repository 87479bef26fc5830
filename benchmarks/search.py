# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The search for similar windows: time, memory and completeness, exact and through an index.

Vectors of 256 components about 2,000 directions, as float16 in a file; 20 of them are looked for, with noise. *Found*
is the share of the 20 nearest of each that are among the 20 that the index gives.

Run: python benchmarks/search.py FOLDER [--vectors 100000 1000000 10000000] [--tables FOLDER]
"""

import argparse
import resource
import time
from functools import partial
from pathlib import Path

import numpy as np
from kit.tables import Tables, add_option

from rosetta.production import vectors

DIM, DIRECTIONS, SCATTER, QUERIES, NEAREST = 256, 2000, 0.7, 20, 20
BLOCK = 100_000


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vectors", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    add_option(parser)
    options, lines = parser.parse_args(), []
    options.folder.mkdir(parents=True, exist_ok=True)
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
