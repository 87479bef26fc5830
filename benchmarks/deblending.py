# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Blends of two or three galaxies: fluxes and errors beside those of the tools that people use today.

Every blend is a 16" stamp in ten bands (Rubin's ten-year and Euclid's depths, Moffat PSFs, white noise) with galaxies
of i = 21-25, a disc and often a bulge of another colour, 0.6-2.2" apart. All methods see the same pixels, twice: with
their own detection, and at the true positions. Seed 1 gives 80 blends of 196 galaxies.

Run: python benchmarks/deblending.py ROWS [--blends 80] [--seed 1] [--heads FOLDER] [--scarlet2 N]
     [--tables FOLDER]

ROWS (JSON lines) keeps what every method found on every blend; a second run goes on where the first ended and prints
the tables. FOLDER holds encoder.safetensors, deblender.safetensors and photometry.safetensors, in place of the bundled
ones. Needs galsim and sep (extras sim and bench). N (0) is the number of blends that scarlet2 measures too, for which
``pip install scarlet2 optax numpyro`` is needed; the time to compile each of its fits stands under "s encoding".
"""

import argparse
import time
from pathlib import Path

import astropy.units as u
import numpy as np
from kit.blends import BANDS, GROUND, blendedness, blends, pair_of, to_arcsec, to_pixel, wcs_of
from kit.models import models
from kit.peers.blends import (
    forced_aperture,
    matched_aperture,
    photutils_rubin,
    sep_rubin,
    template_fit,
)
from kit.peers.bounds import bound, true_template
from kit.statistics import covered, interval, nmad, shown
from kit.store import Rows
from kit.tables import Tables, add_option
from scipy.optimize import linear_sum_assignment

from rosetta import EmbeddingPhotometry

MATCH = 0.5  # arcsec


def ours(folder=None, *, bands=tuple(BANDS), learned=True):
    """A method made of this library's models; ``learned`` errors, or those of the fit alone."""
    encoder, deblender, photometry = models(folder)
    photometry = photometry if learned else EmbeddingPhotometry(encoder)

    def method(blend, place):
        start = time.process_time()
        embedding = encoder(pair_of(blend, bands), window=16 * u.arcsec)
        encoding = time.process_time() - start
        wcs = wcs_of("VIS")
        sources = None if place is None else wcs.pixel_to_world(*to_pixel(place, "VIS").T)
        start = time.process_time()
        catalog = photometry(embedding, deblender(embedding, sources, neighbours="listed", recentre=True))
        seconds = time.process_time() - start
        at = catalog["sky_centroid"] if place is None else sources
        columns = ("flux", "flux_err")
        found = {b: tuple(catalog[f"{c}_{b}"].to_value(u.nJy) for c in columns) for b in catalog.meta["bands"]}
        xy = np.stack([to_arcsec(v, "VIS") for v in wcs.world_to_pixel(at)], -1)
        return xy, found, seconds, encoding

    return method


# ---------------------------------------------------------------------------- scores
def match(true, found):
    """Rows of true and found positions that are one source (optimal assignment within MATCH)."""
    if len(found) == 0:
        return np.zeros(0, int), np.zeros(0, int)
    distance = np.hypot(*(true[:, None] - found[None]).transpose(2, 0, 1))
    i, j = linear_sum_assignment(np.where(distance > MATCH, 1e3, distance))
    keep = distance[i, j] <= MATCH
    return i[keep], j[keep]


def row_of(blend, xy, fluxes, seconds, encoding):
    """What one method found on one blend, ready for JSON."""
    i, j = match(blend.place, np.asarray(xy).reshape(-1, 2))
    separation = np.hypot(*(blend.place[i] - np.asarray(xy).reshape(-1, 2)[j]).T)
    kept = {b: [np.asarray(v, float)[j].tolist() for v in fluxes[b]] for b in ("g", "i", "VIS") if b in fluxes}
    return {
        "seconds": seconds, "encoding": encoding, "n_found": len(xy), "n_true": len(blend.galaxies),
        "true": i.tolist(), "separation": separation.tolist(), "fluxes": kept,
        "known": {b: blend.flux[b].tolist() for b in kept}, "blendedness": blendedness(blend).tolist(),
        "galaxies": blend.galaxies,
    }  # fmt: skip


def scores(rows, band="i"):
    """Scores of a method over blends, one for each of `COLUMNS`; fluxes in one band."""
    parts = []
    for row in rows:
        true = np.asarray(row["true"], int)
        known = [np.asarray(row["known"][b])[true] for b in ("g", band)]
        blended = np.asarray(row["blendedness"])[true] > 0.2
        parts.append(np.array([row["fluxes"]["g"][0], *row["fluxes"][band], *known, blended], float))
    g, flux, err, known_g, known, blended = np.concatenate(parts, axis=1)
    ratio, pull = flux / known - 1, (flux - known) / err
    colour = -2.5 * np.log10(np.maximum(g, 1e-3) / np.maximum(flux, 1e-3) * known / known_g)
    n_true, n_found = (sum(row[name] for row in rows) for name in ("n_true", "n_found"))
    good = np.isfinite(pull)
    return np.array([
        len(ratio) / n_true, np.median(ratio) if len(ratio) else np.nan, nmad(ratio), nmad(ratio[blended > 0]),
        1 - np.sum(np.abs(ratio) <= 0.25) / n_true, nmad(colour), covered(pull[good]) if good.any() else np.nan,
        len(ratio) / max(1, n_found), *(np.mean([row[name] for row in rows]) for name in ("seconds", "encoding")),
    ])  # fmt: skip


COLUMNS = (
    "recall", "bias", "NMAD", "NMAD, blended", "> 25 % off", "g-i NMAD", "1 sigma", "purity", "s/blend", "s encoding",
)  # fmt: skip
TIMES = 2  # of them, the last ones, are shown without an interval


def table(tables, name, title, methods):
    """Show the scores of every method, with half the 68 % range of resampled blends."""
    lines = []
    for method, rows in methods.items():
        found = list(zip(*interval(scores, np.array(rows, object)), strict=True))
        cells = [shown(*one) if np.isfinite(one[0]) else "" for one in found[:-TIMES]]
        lines.append([method, *cells, *(f"{value:.2f}" for value, _, _ in found[-TIMES:])])
    tables.show(name, title, ("Method", *COLUMNS), lines)


def timed(peer):
    """A method that says how many CPU-seconds it took; nothing is encoded."""

    def method(blend, place):
        start = time.process_time()
        xy, fluxes = peer(blend, place)
        return xy, fluxes, time.process_time() - start, 0.0

    return method


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--blends", type=int, default=80)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--heads", type=Path)
    parser.add_argument("--scarlet2", type=int, default=0, metavar="N")
    add_option(parser)
    options = parser.parse_args()
    tables = Tables(options.tables)

    both, found, placed = ("own detection", "true positions"), ("own detection",), ("true positions",)
    methods = {
        "rosetta": (ours(options.heads), both),
        "rosetta, errors of the fit": (ours(options.heads, learned=False), both),
        "rosetta, ground only": (ours(options.heads, bands=tuple(GROUND)), both),
        "SEP, Rubin riz": (timed(sep_rubin), found),
        "photutils, Rubin riz": (timed(photutils_rubin), found),
        "forced aperture, 1 arcsec": (timed(forced_aperture), both),
        "matched aperture x VIS Kron": (timed(matched_aperture), both),
        "template fit on VIS segments": (timed(template_fit), both),
        "bound, unknown bulge and disc": (timed(bound), placed),
        "true template": (timed(true_template), placed),
    }
    first = {}  # methods that see the first blends only
    if options.scarlet2:
        try:
            from kit.peers.scarlet2 import scarlet2_of
        except ImportError as error:
            parser.error(f"--scarlet2 needs {error.name}: pip install scarlet2 optax numpyro")
        first["scarlet2, VIS and Rubin"] = scarlet2_of(["VIS", *GROUND]), both
        first["scarlet2, ground only"] = scarlet2_of(GROUND), both

    store, rows = Rows(options.rows), []
    for k, blend in enumerate(blends(options.blends, options.seed)):
        here = methods | first if k < options.scarlet2 else methods

        def measure(method, mode, of=blend, here=here, **_):
            return row_of(of, *here[method][0](of, None if mode == "own detection" else of.place))

        names = [(name, mode) for name, (_, modes) in here.items() for mode in modes]
        keys = [{"method": name, "mode": mode, "seed": options.seed, "blend": k} for name, mode in names]
        rows += store.fill(keys, measure)
    for mode in both:
        chosen = {}
        for row in rows:
            if row["mode"] == mode:
                chosen.setdefault(row["method"], []).append(row)
        file = "blends_" + mode.replace(" ", "_")
        table(tables, file, f"i band, {mode}", {name: chosen[name] for name in methods if name in chosen})
        if first:
            n, beside = options.scarlet2, [name for name in methods if name.startswith("rosetta")]
            some = {name: chosen[name][:n] for name in [*first, *beside]}
            table(tables, f"{file}_scarlet2", f"i band, {mode}, first {n} blends", some)


if __name__ == "__main__":
    main()
