# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Unrecognised blends: what the blend probability knows, beside what S/N knows, on the ground alone and on both sides.

The fields of benchmarks/photometry.py, whole, on the frame of their headers. A true source belongs to the found source
nearest to it within an arcsecond; a found source is a blend where its second true source has a fifth of the flux (i) of
its first.

Run: python benchmarks/unrecognised.py FOLDER [--fields 12] [--first-seed 8101] [--heads FOLDER] [--tables FOLDER]

FOLDER keeps the fields, which those of benchmarks/photometry.py may be, and what was measured on each (after a change
of models or code, remove FOLDER/blends).
"""

from pathlib import Path

import astropy.units as u
import numpy as np
from _tables import Tables, parser_of_fields
from photometry import Models, field, hidden_share, with_interval

from rosetta import SkyPair
from rosetta.deblending.deblender import HIDDEN, _occupants
from rosetta.matching import match

LIMIT = 26  # i, of the brightest true source
BINS = (0, 6, 8, 11, 15, 22, 30, 60, np.inf)  # of S/N
TABLE = (0, 0.02, 0.05, 0.1, 0.2, 0.35, 1.0001)  # of probability


def record(scene, truth):
    """Per found source: probability, S/N, whether a blend and of which magnitude; these two also if it must match."""
    table, flux = scene.to_table(), truth["flux_i"].to_value(u.nJy)
    seen = truth["sky_centroid"].icrs
    if scene.embedding.pair.space is None:  # found where the ground's headers say
        seen = seen.spherical_offsets_by(-truth["d_ra_cosdec"], -truth["d_dec"])
    first, second = _occupants(table["sky_centroid"], seen, flux)
    rows, true = match(table, truth, "i")
    hidden, matched = np.zeros(len(table)), np.zeros(len(table))
    hidden[rows], matched[rows] = hidden_share(truth, true)[true], flux[true]
    return {
        "probability": np.asarray(table["blend_probability"]), "snr": np.asarray(table["snr"]),
        "blend": second > HIDDEN * first, "mag": _magnitude(first),
        "blend_matched": hidden > HIDDEN, "mag_matched": _magnitude(matched),
    }  # fmt: skip


def _magnitude(flux):
    """AB, infinite where there is no source."""
    with np.errstate(divide="ignore"):
        return 31.4 - 2.5 * np.log10(flux)


def area(score, blend):
    """Area under the ROC: the chance that a blend scores higher than a single source."""
    one, many = np.sort(score[~blend]), score[blend]
    if len(one) == 0 or len(many) == 0:
        return np.nan
    return np.mean(np.searchsorted(one, many) + np.searchsorted(one, many, side="right")) / (2 * len(one))


def area_within(score, blend, snr):
    """Mean area among sources of like S/N, by the number of blends."""
    of = [(snr >= low) & (snr < high) for low, high in zip(BINS[:-1], BINS[1:], strict=True)]
    areas = np.array([area(score[k], blend[k]) for k in of])
    weight = np.array([blend[k].sum() for k in of]) * np.isfinite(areas)
    return np.sum(np.nan_to_num(areas) * weight) / weight.sum()


def show(tables, parts):
    """Both tables."""
    lines, reliability = [], []
    for name, records in parts.items():
        at = np.concatenate([np.full(len(r["snr"]), k) for k, r in enumerate(records)])
        everything = {c: np.concatenate([r[c] for r in records]) for c in records[0]}
        for which, column in (("", ""), (", matched within 0.3\"", "_matched")):
            of = (everything["mag" + column] < LIMIT) & np.isfinite(everything["probability"])
            p, snr, blend = (everything[c][of] for c in ("probability", "snr", "blend" + column))
            values = np.stack([p, snr, blend], -1)
            statistics = (
                lambda v: area(v[:, 0], v[:, 2] > 0), lambda v: area(-v[:, 1], v[:, 2] > 0),
                lambda v: area_within(v[:, 0], v[:, 2] > 0, v[:, 1]),
            )  # fmt: skip
            cells = [with_interval(s, values, at[of]) for s in statistics]
            bright = snr > 15
            cells.append(with_interval(statistics[0], values[bright], at[of][bright]))
            lines.append([name + which, len(p), int(blend.sum()), *cells])
        p, blend = everything["probability"], everything["blend"].astype(float)
        for low, high in zip(TABLE[:-1], TABLE[1:], strict=True):
            k = (p >= low) & (p < high) & np.isfinite(everything["mag"])
            share = with_interval(np.mean, blend[k], at[k])
            reliability.append([f"{name}, {low}-{min(high, 1)}", int(k.sum()), f"{p[k].mean():.3f}", share])
    known = "probability", "1 / (S/N)", "probability, like S/N", "probability, S/N > 15"
    header = ("Input", "sources", "blends", *known)
    tables.show("unrecognised_area", f"Area under the ROC, i < {LIMIT}", header, lines)
    header = ("Input, probability", "n", "mean probability", "blends among them")
    title = "Reliability: all sources that are true, by their probability"
    tables.show("unrecognised_reliability", title, header, reliability)


def main():
    parser = parser_of_fields(__doc__, 12, 8101)
    parser.add_argument("--heads", type=Path)
    options = parser.parse_args()
    kept = options.folder / "blends"
    kept.mkdir(parents=True, exist_ok=True)
    test, parts = Models(options.heads), {"ground alone": [], "both sides": []}
    for seed in range(options.first_seed, options.first_seed + options.fields):
        for name, found in parts.items():
            path = kept / f"{name.replace(' ', '_')}-{seed}.npz"
            if not path.exists():
                pair, truth = field(seed, options.folder)
                if name == "ground alone":
                    pair = SkyPair(dict(pair.ground), None, surveys=pair.surveys)
                np.savez(path, **record(test.deblender(test.encoder(pair)), truth))
            found.append(dict(np.load(path)))
    show(Tables(options.tables), parts)


if __name__ == "__main__":
    main()
