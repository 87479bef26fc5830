# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Unrecognised blends: how well the blend probability ranks them, beside S/N, from the ground and from both sides.

The fields of benchmarks/photometry.py, whole, without an alignment. A true source belongs to the nearest found source
within an arcsecond; a found source is a blend if its second-brightest true source has more than a fifth of the flux (i)
of its brightest.

Run: python benchmarks/unrecognised.py FOLDER [--fields 12] [--first-seed 8101] [--heads FOLDER] [--tables FOLDER]

FOLDER keeps the fields, which those of benchmarks/photometry.py may be, and what was measured on each (after a change
of models or code, remove FOLDER/blends).
"""

from pathlib import Path

import astropy.units as u
import numpy as np
from kit.fields import field_number, header_coord, hidden_share, magnitude, survey_like
from kit.models import models
from kit.statistics import area_under_roc, by_field
from kit.store import arrays
from kit.tables import Tables, parser_of_fields

from rosetta import SkyPair
from rosetta.deblending.blend_probability import BlendConfig
from rosetta.deblending.deblender import occupants
from rosetta.matching import match

DEFINITION = BlendConfig()  # of a blend

LIMIT = 26  # i, of the brightest true source
BINS = (0, 6, 8, 11, 15, 22, 30, 60, np.inf)  # of S/N
TABLE = (0, 0.02, 0.05, 0.1, 0.2, 0.35, 1.0001)  # of probability


def record(scene, truth):
    """Per found source: probability, S/N, whether a blend and of which magnitude; these two also if it must match."""
    table, flux = scene.to_table(), truth["flux_i"].to_value(u.nJy)
    ground_only = scene.embedding.pair.space is None
    coord = header_coord(truth) if ground_only else truth["sky_centroid"].icrs
    first, second = occupants(table["sky_centroid"], coord, flux, DEFINITION.reach)
    rows, true = match(table, truth, "i")
    hidden, matched = np.zeros(len(table)), np.zeros(len(table))
    hidden[rows], matched[rows] = hidden_share(truth, true)[true], flux[true]
    return {
        "probability": np.asarray(table["blend_probability"]), "snr": np.asarray(table["snr"]),
        "blend": second > DEFINITION.hidden * first, "mag": magnitude(first),
        "blend_matched": hidden > DEFINITION.hidden, "mag_matched": magnitude(matched),
    }  # fmt: skip


def area_within(score, blend, snr):
    """Area under the ROC among sources of similar S/N: mean over `BINS`, weighted by the number of blends."""
    of = [(snr >= low) & (snr < high) for low, high in zip(BINS[:-1], BINS[1:], strict=True)]
    areas = np.array([area_under_roc(score[k], blend[k]) for k in of])
    weight = np.array([blend[k].sum() for k in of]) * np.isfinite(areas)
    return np.sum(np.nan_to_num(areas) * weight) / weight.sum()


def show(tables, parts):
    """Show both tables."""
    lines, reliability = [], []
    for name, records in parts.items():
        at = field_number([r["snr"] for r in records])
        everything = {c: np.concatenate([r[c] for r in records]) for c in records[0]}
        for which, column in (("", ""), (", matched within 0.3\"", "_matched")):
            of = (everything["mag" + column] < LIMIT) & np.isfinite(everything["probability"])
            p, snr, blend = (everything[c][of] for c in ("probability", "snr", "blend" + column))
            values = np.stack([p, snr, blend], -1)
            statistics = (
                lambda v: area_under_roc(v[:, 0], v[:, 2] > 0), lambda v: area_under_roc(-v[:, 1], v[:, 2] > 0),
                lambda v: area_within(v[:, 0], v[:, 2] > 0, v[:, 1]),
            )  # fmt: skip
            cells = [by_field(s, values, at[of]) for s in statistics]
            bright = snr > 15
            cells.append(by_field(statistics[0], values[bright], at[of][bright]))
            lines.append([name + which, len(p), int(blend.sum()), *cells])
        p, blend = everything["probability"], everything["blend"].astype(float)
        for low, high in zip(TABLE[:-1], TABLE[1:], strict=True):
            k = (p >= low) & (p < high) & np.isfinite(everything["mag"])
            share = by_field(np.mean, blend[k], at[k])
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
    encoder, deblender, _ = models(options.heads)
    parts = {"ground alone": [], "both sides": []}
    for seed in range(options.first_seed, options.first_seed + options.fields):
        for name, found in parts.items():

            def measured(seed=seed, name=name):
                pair, truth = survey_like(seed, options.folder)
                if name == "ground alone":
                    pair = SkyPair(dict(pair.ground), None, surveys=pair.surveys)
                return record(deblender(encoder(pair)), truth)

            path = options.folder / "blends" / f"{name.replace(' ', '_')}-{seed}.npz"
            found.append(arrays(path, measured))
    show(Tables(options.tables), parts)


if __name__ == "__main__":
    main()
