# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Does a learned view of the scene find more sources, and what of it comes from the encoder?

One small head for centres reads the pixels of ten bands on a grid of 0.2", and beside them 24 channels of features:
none; the tokens of an untrained or of the bundled encoder; a frozen U-Net, untrained or trained to remove the noise; or
a U-Net that is trained with the head on the same labels (end to end). Noise, PSF, depth, masks and orientation are
drawn for every window; ``--steps`` beyond ``--windows`` show windows again. The lists are compared at equal purity, on
the same test fields; the deblender's rows, without and with the bundled detector, with that detector's own list.

Without ``--arms`` names (``--arms --deblended 12``) no head is trained, and only the deblender's rows are compared.

Run: python benchmarks/scene.py FOLDER [--train 40] [--test 20] [--windows 960] [--steps 960] [--seeds 2]
     [--few 240] [--arms ARM ...] [--deblended 12] [--tables FOLDER]

FOLDER keeps tiles, windows, heads and lists; a second run goes on where the first ended. Seeds: 6100 (training tiles,
no irregular galaxies), 6400 (test tiles, a fifth of the galaxies irregular). Needs galsim (extra sim).
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import astropy.units as u
import numpy as np
import torch
from kit.dense_heads import FLOOR, CentreHead, heat, train, train_path
from kit.dense_windows import (
    FAINTEST,
    INNER,
    Centres,
    Field,
    center_of,
    magnitude,
    on_sky,
    presented,
    read_tiles,
    tokens_of,
)
from kit.source_lists import BINS, Lists, judged
from kit.store import arrays
from kit.tables import Tables, add_option
from kit.windows import note
from safetensors.torch import load_file, save_file
from scipy import ndimage

from rosetta import CrossSurveyEncoder, JEPADeblender
from rosetta.centres.heat_map import peaks
from rosetta.detection.detection import DetectionConfig, detected
from rosetta.images.positions import tangent
from rosetta.simulate import ObservedSet, write_training_set

TRAIN_SEED, TEST_SEED, LIGHT_SEED = 6100, 6400, 6199
NOISE_SEED = 6401
CHUNK = 16  # windows in a file
FEW = (3, 10)  # labelled tiles
PURITY = (0.887, 0.94)
N_BOOTSTRAP = 1000
FEWEST = 5  # rows a field of a list that is shown
MAIN, FROZEN = ("end-to-end", "random tokens", "pixels", "tokens"), ("light U-Net", "random U-Net")
STACK, VIS_ALONE = "smoothed stack, local maxima", "today's detection, VIS alone"
ROWS = {"without": "deblender without detector", "with": "deblender with detector"}
NAMES = {
    "pixels": "head on pixels", "random tokens": "+ tokens of an untrained encoder",
    "tokens": "+ tokens of the bundled encoder",
    "random U-Net": "+ untrained U-Net", "light U-Net": "+ U-Net that removes noise, frozen",
    "end-to-end": "+ U-Net, end to end",
}  # fmt: skip
CONTRASTS = (
    ("end-to-end", "random tokens"), ("end-to-end", "random U-Net"), ("end-to-end", "light U-Net"),
    ("end-to-end", "pixels"), ("light U-Net", "random tokens"), ("light U-Net", "random U-Net"),
    ("random U-Net", "random tokens"), ("tokens", "random tokens"), ("random tokens", "pixels"), ("tokens", "pixels"),
)  # fmt: skip
MIDDLE = 51.2  # arcsec: what the deblender measures of a field


def encoders():
    """The bundled encoder and one of the same architecture that was never trained."""
    bundled = CrossSurveyEncoder.from_pretrained(device="cpu")
    random = CrossSurveyEncoder(config=bundled.config, seed=0, device="cpu")
    return {"tokens": bundled.model.encoder.eval(), "random tokens": random.model.encoder.eval()}


# ------------------------------------------------------------------------------------- windows to train on
def write_windows(folder, n_tile, n_window, models):
    """Presentations of the first ``n_tile`` tiles with the tokens of both encoders, in files of `CHUNK` windows."""
    sky = None
    for chunk in range(-(-n_window // CHUNK)):
        path = chunk_path(folder, n_tile, chunk)
        if not path.exists():
            sky = sky or read_tiles(folder / "train", n_tile)
            arrays(path, partial(chunk_of, sky, n_tile, chunk, models))


def chunk_path(folder, n_tile, chunk):
    return folder / f"windows_{n_tile}" / f"{chunk:04d}.npz"


def chunk_of(sky, n_tile, chunk, models):
    drawn = [presented(sky, n_tile, TRAIN_SEED + n_tile, chunk * CHUNK + k) for k in range(CHUNK)]
    found = {name: np.concatenate([tokens_of(model, one.views) for one in drawn]) for name, model in models.items()}
    return {
        "channels": np.stack([one.channels for one in drawn]),
        "xy": np.concatenate([one.centres.xy for one in drawn]),
        "weight": np.concatenate([one.centres.weight for one in drawn]),
        "count": np.array([len(one.centres.weight) for one in drawn]),
        **found,
    }


def stream(folder, n_tile, n_window, arm):
    """The windows of a training set, again and again: (channels, tokens or None, `Centres`)."""
    while True:
        for chunk in range(-(-n_window // CHUNK)):
            with np.load(chunk_path(folder, n_tile, chunk)) as found:
                channels, number, xy, weight = (found[name] for name in ("channels", "count", "xy", "weight"))
                tokens = found[arm] if "tokens" in arm else [None] * len(channels)
            for k, end in enumerate(np.cumsum(number)):
                rows = slice(end - number[k], end)
                yield channels[k], tokens[k], Centres(xy[rows], weight[rows])


# ------------------------------------------------------------------------------------- test fields
def field_arrays(pairs, index, models):
    """What heads read of a test field, its true sources, and the rows of today's detection."""
    pair, truth = pairs[index], pairs.truth[index]
    start = time.process_time()
    rows = detected(pair, DetectionConfig()).table
    seconds = time.process_time() - start
    field = Field(pair)
    place, mag = field.place(truth), magnitude(truth["flux_i"].value)
    of = (mag < FAINTEST) & (np.abs(place) < INNER + 1).all(1)
    return {
        "channels": field.channels(), "positions": field.positions(),
        "truth": place[of], "mag": mag[of], "family": np.asarray(truth["family"][of]).astype(str),
        "place": tangent(rows["sky_centroid"], field.center), "score": np.asarray(rows["snr"], float),
        "seconds": np.array(seconds),
        **{name: tokens_of(model, field.views) for name, model in models.items()},
    }  # fmt: skip


def deblended(pairs, index, deblender):
    """Rows of the deblender on the middle of a field: detection, one pass on the residuals, fragments merged."""
    pair = pairs[index]
    center = center_of(pair)
    part = pair.cutout(center, MIDDLE * u.arcsec)
    start = time.process_time()
    scene = deblender(part).to_table()
    return {
        "place": tangent(scene["sky_centroid"], center), "score": np.asarray(scene["snr"], float),
        "seconds": np.array(time.process_time() - start),
    }  # fmt: skip


def centres(pairs, index, detector):
    """The list of the bundled detector on the same part of a field."""
    pair = pairs[index]
    center = center_of(pair)
    start = time.process_time()
    found = detector(pair.cutout(center, MIDDLE * u.arcsec))
    return {
        "place": tangent(found["sky_centroid"], center), "score": np.asarray(found["score"], float),
        "seconds": np.array(time.process_time() - start),
    }  # fmt: skip


def stack_peaks(channels):
    """Local maxima of the sum of all channels over noise, each smoothed to the size of faint galaxies."""
    signal = np.sinh(channels.astype(np.float32))
    signal[6:10] *= 0.5  # the four phases of VIS are one band
    smooth = ndimage.gaussian_filter(signal.sum(0), 1.5)
    return peaks(smooth / (1.4826 * np.median(np.abs(smooth - np.median(smooth)))), 2.0)


def list_of(field, finder):
    """A finder's list of a test field: ``finder(channels, tokens by name)`` gives the peaks of one window."""
    names = [name for name in field if "tokens" in name]
    found = [
        finder(field["channels"][k], {name: field[name][k] for name in names}) for k in range(len(field["channels"]))
    ]
    place, score = on_sky(found, field["positions"])
    return {"place": place, "score": score}


def judge(field, rows, half=INNER):
    """The rows within ``half`` arcsec of a field's centre along both axes, against the true sources there."""
    inside, of = (np.abs(rows["place"]) < half).all(1), (np.abs(field["truth"]) < half).all(1)
    truth = (field[name][of] for name in ("truth", "mag", "family"))
    return judged(rows["place"][inside], rows["score"][inside], *truth)


# ------------------------------------------------------------------------------------- heads
def trained(folder, arm, n_tile, seed, n_window, n_step):
    """A head, from its file or trained now."""
    path = folder / "heads" / f"{arm.replace(' ', '_')}_{n_tile}_{seed}_{n_step}.safetensors"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        start = time.process_time()
        light = path_of_light(folder, n_tile, n_step) if arm == "light U-Net" else None
        head, losses = train(arm, seed, stream(folder, n_tile, n_window, arm), n_step, light)
        keep(path, head, losses, start)
    head = CentreHead(arm)
    head.load_state_dict(load_file(path))
    return path.stem, head.to(memory_format=torch.channels_last).eval()


def path_of_light(folder, n_tile, n_step):
    """State of a U-Net that was trained to remove the noise of windows of the training tiles, all new."""
    path = folder / "heads" / f"light_{n_tile}_{n_step}.safetensors"
    if not path.exists():
        start = time.process_time()
        sky = read_tiles(folder / "train", n_tile)
        drawn = (presented(sky, n_tile, LIGHT_SEED, step) for step in range(n_step))
        keep(path, *train_path(0, ((one.channels, one.light) for one in drawn), n_step), start)
    return load_file(path)


def keep(path, network, losses, start):
    """Write weights, and what the training took."""
    row = {"network": path.stem, "seconds": time.process_time() - start, "loss": float(np.mean(losses[-100:]))}
    with (path.parents[1] / "training.jsonl").open("a") as out:
        out.write(json.dumps(row) + "\n")
    note(f"{row}")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)


def head_lists(folder, fields, name, head):
    """Lists of a head on all test fields."""

    def finder(channels, tokens):
        return peaks(heat(head, channels, tokens.get(head.arm)), FLOOR)

    return [
        arrays(folder / "lists" / name / f"{k:03d}.npz", lambda f=field: list_of(f, finder))
        for k, field in enumerate(fields)
    ]


def runs(options):
    """(arm, tiles, seed, stored windows, steps) of every head."""
    for seed in range(options.seeds):
        for arm in options.arms:
            if arm in MAIN or seed == 0:
                yield arm, options.train, seed, options.windows, options.steps
    for n_tile in FEW:
        for arm in options.arms if options.few else ():
            yield arm, n_tile, 0, options.few, options.steps


# ------------------------------------------------------------------------------------- tables
SHOWN = (
    "purity", "rows", *BINS, "irregular", "rows an irregular", "false near bright galaxies", "false near bright stars"
)  # fmt: skip


def samples(n_field):
    """How often each field counts: once each, then `N_BOOTSTRAP` draws with replacement."""
    drawn = np.random.default_rng(0).multinomial(n_field, np.full(n_field, 1 / n_field), N_BOOTSTRAP)
    return np.concatenate([np.ones((1, n_field)), drawn])


def figures(seeds, purity, times):
    """Figures of an arm, mean of its training seeds, for all bootstrap samples: (n_sample, n_figure)."""
    each = [[[found[name] for name in SHOWN] for found in (one.figures(purity, t) for t in times)] for one in seeds]
    return np.mean(each, 0)


def cell(values, signed=False):
    low, high = np.percentile(values[1:], [16, 84])
    return f"{values[0]:+.3f} ({low:+.3f} to {high:+.3f})" if signed else f"{values[0]:.3f} ± {(high - low) / 2:.3f}"


def show(tables, name, title, found):
    """A table of figures by arm (dict of arrays as from `figures`); without lists that never are so pure."""
    reached = {arm: values for arm, values in found.items() if values[0, SHOWN.index("rows")] > FEWEST}
    lines = [[arm, *(cell(column) for column in values.T)] for arm, values in reached.items()]
    tables.show(name, title, ("List", *SHOWN), lines)


def against(tables, name, title, found, pairs):
    """A table of paired differences; ``pairs``: (arm, the one that it is compared with)."""
    lines = [
        [f"{arm} minus {other}", *(cell(column, signed=True) for column in (found[arm] - found[other]).T)]
        for arm, other in pairs
        if arm in found and other in found
    ]
    tables.show(name, title, ("Difference", *SHOWN[2:]), [[line[0], *line[3:]] for line in lines])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=40, help="training tiles")
    parser.add_argument("--test", type=int, default=20, help="test tiles")
    parser.add_argument("--windows", type=int, default=960, help="presentations of all training tiles")
    parser.add_argument("--steps", type=int, default=960, help="training steps of a head, of one presentation each")
    parser.add_argument("--arms", nargs="*", choices=NAMES, default=[*MAIN, *FROZEN], help="features of the heads")
    parser.add_argument("--few", type=int, default=240, help="presentations of 3 and of 10 tiles; 0: none")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds")
    parser.add_argument("--deblended", type=int, default=12, help="test tiles that the deblender measures too")
    add_option(parser)
    options = parser.parse_args()
    folder = options.folder
    torch.set_num_threads(1)
    if options.arms:
        write_training_set(folder / "train", options.train, seed=TRAIN_SEED, processes=1, progress=False)
    write_training_set(folder / "test", options.test, seed=TEST_SEED, processes=1, progress=False, families="all")
    models = encoders()
    pairs = ObservedSet(folder / "test", seed=NOISE_SEED, depth=(0.0, 0.0))
    fields = [
        arrays(folder / "fields" / f"{k:03d}.npz", partial(field_arrays, pairs, k, models)) for k in range(options.test)
    ]
    for n_tile, n_window in ((options.train, options.windows), *((few, options.few) for few in FEW)):
        if options.arms:
            write_windows(folder, n_tile, n_window, models)
    deblender = JEPADeblender.from_pretrained(device="cpu")
    finders = {
        "without": partial(deblended, deblender=JEPADeblender(deblender.encoder)),
        "with": partial(deblended, deblender=deblender),
        "list": partial(centres, detector=deblender.detector),
    }
    rows = {
        name: [arrays(folder / name / f"{k:03d}.npz", partial(find, pairs, k)) for k in range(options.deblended)]
        for name, find in finders.items()
    }
    heads = {}  # (arm, tiles, steps) -> lists of every training seed
    for arm, n_tile, seed, n_window, n_step in runs(options):
        name, head = trained(folder, arm, n_tile, seed, n_window, n_step)
        found = head_lists(folder, fields, name, head)
        heads.setdefault((arm, n_tile, n_step), []).append(found)
        note(f"{name}: {brief(fields, found)}")
    tables = Tables(options.tables)
    if heads:
        report(tables, fields, heads, options)
    if options.deblended:
        practical(tables, fields[: options.deblended], rows)


def brief(fields, found):
    """One line on a list: its figures at the first purity."""
    return " ".join(f"{name} {value:.3f}" for name, value in lists(fields, found).figures(PURITY[0]).items())


def lists(fields, found, half=INNER):
    return Lists([judge(field, rows, half) for field, rows in zip(fields, found, strict=False)])


def report(tables, fields, heads, options):
    """The tables of the heads."""
    finders = {
        STACK: [[list_of(field, lambda channels, _: stack_peaks(channels)) for field in fields]],
        **{NAMES[arm]: found for (arm, n, _), found in heads.items() if n == options.train},
    }
    times, main = samples(len(fields)), {}
    for purity in PURITY:
        main = {name: figures([lists(fields, one) for one in seeds], purity, times) for name, seeds in finders.items()}
        vis = [{name: field[name] for name in ("place", "score")} for field in fields]
        shown = {VIS_ALONE: figures([lists(fields, vis)], None, times)} | main
        show(tables, f"scene_{purity}".replace(".", "_"), f"Purity {purity}", shown)
        pairs = [(NAMES[arm], NAMES[other]) for arm, other in CONTRASTS]
        against(tables, f"scene_difference_{purity}".replace(".", "_"), f"Paired, purity {purity}", main, pairs)
    lines = []
    for (arm, n_tile, n_step), seeds in sorted(heads.items(), key=lambda item: item[0][1]):
        found = figures([lists(fields, one) for one in seeds], PURITY[0], times)
        lines.append([NAMES[arm], n_tile, n_step, len(seeds), *(cell(found[:, SHOWN.index(name)]) for name in BINS)])
    header = ("List", "tiles", "steps", "seeds", *BINS)
    tables.show("scene_labels", f"Tiles, steps and training seeds, purity {PURITY[0]}", header, lines)


def practical(tables, fields, rows):
    """The deblender's rows without and with the detector, and the detector's own list, in the middle of the fields."""
    times, half = samples(len(fields)), MIDDLE / 2 - 2  # sources at the edge of the cutout are left out
    found = {ROWS[name]: figures([lists(fields, rows[name], half)], None, times) for name in ROWS}
    for purity in PURITY:
        found[f"detector's list, purity {purity}"] = figures([lists(fields, rows["list"], half)], purity, times)
    show(tables, "scene_rows", f"The deblender's rows, {len(fields)} fields of {2 * half} arcsec", found)
    pairs = [(name, ROWS["without"]) for name in found if name != ROWS["without"]]
    against(tables, "scene_rows_difference", "Paired", found, pairs)
    seconds = {name: np.mean([float(row["seconds"]) for row in each]) for name, each in rows.items()}
    note(f"CPU seconds a field: {seconds}")


if __name__ == "__main__":
    main()
