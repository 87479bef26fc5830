# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Simulated stars and galaxies injected into real images, by `rosetta.recover`: are the quoted errors right there?

HSC blends and LSSTCam stamps (ground alone, the latter in one band each) and Euclid Q1 fields (with DES or UNIONS). No
model was trained on any of them. At most 6 sources per square arcminute are added at a time, so most images take one:
they do not change how crowded the sky is.
The injected sources have the PSFs and the noise of the images; errors of PSFs and zero points are not seen. Intervals
are 68 %, from drawing images again.

Run: python benchmarks/injection.py DATA OUT [--blends 100] [--stamps 64] [--rounds 20] [--workers 2] [--tables FOLDER]

DATA holds the files that benchmarks/kit/real.py names. OUT keeps finished rounds; the same call goes on from there.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from zlib import crc32

import astropy.units as u
import numpy as np
from kit.models import HEADS, trained
from kit.real import Q1, euclid_q1, hsc_blend, lsstcam_stamps
from kit.statistics import covered, interval, nmad, shown
from kit.tables import Tables, add_option

from rosetta import CrossSurveyEncoder, recover

SEED = 7  # plus a number of the image: each has sources of its own
MAGNITUDE = {"HSC blends": (20.0, 25.5), "LSSTCam stamps": (18.5, 22.5), "Euclid Q1": (20.0, 25.5)}
KINDS = {"HSC blends": "grizy", "LSSTCam stamps": "giz", "Euclid Q1": ("g", "r", "i", "z", "VIS", "Y_E", "J_E", "H_E")}
FAR = 25  # per cent
NEAR = 1.2  # arcsec from a source that was there: its light and that of the injected one are hard to tell apart
MAG_BINS = ((18.5, 20), (20, 22), (22, 23), (23, 24), (24, 25.5))


@lru_cache(maxsize=1)
def models():
    encoder = CrossSurveyEncoder.from_pretrained(device="cpu")
    return {"encoder": encoder, **trained(encoder, *HEADS)}


def kind_of(name):
    return "Euclid Q1" if name in Q1 else "HSC blends" if name.endswith(".npz") else "LSSTCam stamps"


def image(data, name):
    """A pair, by a key of ``Q1``, the file name of a blend, or ``stamp_NN``."""
    kind = kind_of(name)
    if kind == "LSSTCam stamps":
        return list(lsstcam_stamps(data))[int(name.removeprefix("stamp_"))][0]
    return euclid_q1(data, name) if kind == "Euclid Q1" else hsc_blend(data / name)[0]


def injected(name, data, out, rounds):
    """The kind of an image, and arrays of what was injected into it (dict)."""
    kind = kind_of(name)
    folder = out / name.replace("/", "_").replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    seed = SEED + crc32(name.encode())
    test = recover(image(data, name), seed=seed, rounds=rounds, magnitude=MAGNITUDE[kind], directory=folder, **models())
    table, there = test.injected, test.existing
    apart = np.full(len(table), np.inf)
    if len(there):
        apart = table["true_sky_centroid"].match_to_catalog_sky(there["sky_centroid"])[1].to_value(u.arcsec)
    columns = {"apart": apart, "found": np.asarray(table["found"]), "star": np.asarray(table["type"]) == "star"}
    for what, prefix in (("flux", "flux_"), ("error", "flux_err_"), ("true", "true_flux_")):
        names = [prefix + band for band in KINDS[kind]]
        missing = np.full(len(table), np.nan)
        columns[what] = np.stack([table[n].to_value(u.nJy) if n in table.colnames else missing for n in names], -1)
    return kind, columns


def lines(parts, bands):
    """A row for each band and for all of them together: (images' columns, dict each) -> cells."""
    group = np.repeat(np.arange(len(parts)), [len(part["found"]) for part in parts])
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    relative, pull = whole["flux"] / whole["true"] - 1, (whole["flux"] - whole["true"]) / whole["error"]
    pull[~whole["found"]] = np.nan
    snr = whole["true"] / whole["error"]

    def cells(title, use):
        """``use`` (n, n_band): the fluxes that count."""
        use = use & np.isfinite(pull)
        bright = use & (snr > 10)
        if use.sum() < 10 or bright.sum() < 10:
            return None
        of, bright_of = (np.repeat(group[:, None], len(bands), 1)[some] for some in (use, bright))

        def cell(statistic, values, groups, digits=3):
            return shown(*interval(statistic, values, groups if len(np.unique(groups)) > 5 else None), digits)

        return [
            title, int(use.any(1).sum()), cell(covered, pull[use], of, 2), cell(nmad, pull[use], of, 2),
            cell(np.median, relative[bright], bright_of), cell(nmad, relative[bright], bright_of),
            cell(lambda r: np.mean(np.abs(r) > FAR / 100), relative[bright], bright_of),
        ]  # fmt: skip

    number = np.arange(len(bands))
    in_i = whole["true"][:, bands.index("i")]
    mag = 31.4 - 2.5 * np.log10(np.where(np.isnan(in_i), np.nanmax(whole["true"], axis=1), in_i))  # stamps: any band
    everything = np.ones(pull.shape, bool)
    yield cells("all bands", everything)
    for k, band in enumerate(bands):
        yield cells(band, everything & (number == k))
    yield cells("all bands, stars", everything & whole["star"][:, None])
    yield cells("all bands, galaxies", everything & ~whole["star"][:, None])
    near = whole["apart"] < NEAR
    yield cells(f'all bands, on a source (within {NEAR:g}")', everything & near[:, None])
    yield cells("all bands, others", everything & ~near[:, None])
    for low, high in MAG_BINS:
        yield cells(f"all bands, i = {low:g}-{high:g}", everything & ((mag >= low) & (mag < high))[:, None])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--blends", type=int, default=100)
    parser.add_argument("--stamps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    add_option(parser)
    options = parser.parse_args()
    blends = [f"{path.parent.name}/{path.name}" for folder in ("hsc_blends", "hsc_blends_more")
              for path in sorted((options.data / folder).glob("*.npz"))][: options.blends]  # fmt: skip
    stamps = [f"stamp_{k:02d}" for k in range(options.stamps)]
    names = [*Q1, *blends, *stamps]
    found = {kind: [] for kind in KINDS}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        work = partial(injected, data=options.data, out=options.out, rounds=options.rounds)
        for kind, part in pool.map(work, names):
            found[kind].append(part)
    tables = Tables(options.tables)
    header = ("Fluxes", "sources", "1 sigma", "pull NMAD", "bias", "NMAD", f"> {FAR} % off")
    for kind, parts in found.items():
        done = np.concatenate([part["found"] for part in parts])
        title = f"Injected into {len(parts)} {kind}: {done.sum()} of {len(done)} found; bias to > 25 % off: S/N > 10"
        rows = [line for line in lines(parts, list(KINDS[kind])) if line is not None]
        tables.show(f"injection_{kind.split()[0].lower()}", title, header, rows)


if __name__ == "__main__":
    main()
