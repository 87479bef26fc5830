# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Offsets from a catalogue of stars: measured on the stars themselves, or by way of the reference image."""

from dataclasses import replace

import astropy.units as u
import numpy as np
from astropy.table import vstack

from ..flags import Flag
from ..images.positions import tangent
from . import catalogue_tie
from .field import evaluate, summed
from .offsets_table import offsets_table
from .solution import FLAGS, AstrometricSolution, as_solution
from .verdict import judged

__all__ = ["stars_among", "table_from_stars", "tied"]

COLUMNS = "d_ra_cosdec", "d_dec"
VERDICTS = list(FLAGS)  # from good to bad


def tied(offsets, tie, band):
    """Offsets of all bands from the catalogue.

    Parameters
    ----------
    offsets : `~astropy.table.QTable`
        Of all other bands from the reference image.
    tie : `~astropy.table.QTable`
        Of the reference image from the catalogue.
    band : str
        The reference image's.

    Returns
    -------
    `~astropy.table.QTable`
    """
    relative, absolute = as_solution(offsets), as_solution(tie)
    verdict = max(relative.verdict, absolute.verdict, key=VERDICTS.index)
    reasons = [absolute.reason and f"{band} and the catalogue: {absolute.reason}", relative.reason]
    fields, own = {}, tie[tie["band"] == band]
    rows = offsets.copy()
    if verdict != "abstain":
        base = absolute.fields[band]
        borrowed = {name: {**base, "borrowed": band} for name in set(rows["band"])}  # a space band without a field
        fields = borrowed | {name: summed(model, base) for name, model in relative.fields.items()} | {band: base}
        moved, added = evaluate(base, tangent(rows["sky_centroid"], relative.center))
        _set(rows, *_numbers(rows, moved, added))
    else:
        for table in (rows, own):
            nothing = np.full((len(table), 2), np.nan)
            _set(table, nothing, nothing, nothing[:, 0])
            table["weight"] = 0.0
            table["flags"] |= int(Flag.UNALIGNED)
    if absolute.verdict == "coarse":
        rows["flags"] |= int(Flag.COARSE_ALIGNMENT)
    out = vstack([rows, own], metadata_conflicts="silent")
    solution = AstrometricSolution(
        verdict, "; ".join(filter(None, reasons)), relative.center, relative.box, fields, band
    )
    out.meta = {**offsets.meta, **solution.to_meta()}
    if band in tie.meta["score"]:
        out.meta["score"] = {**offsets.meta["score"], band: tie.meta["score"][band]}
    return out


def _numbers(rows, moved, added):
    """Offsets (n, 2), errors (n, 2) and their correlation, after a field and its covariance were added."""
    offset, error = (
        np.stack([rows[name + end].to_value(u.mas) for name in COLUMNS], -1) for end in ("", "_err")
    )
    cross = np.asarray(rows["corr"]) * error.prod(1) + added[:, 0, 1]
    error = np.sqrt(error**2 + added[:, [0, 1], [0, 1]])
    return offset + moved, error, cross / error.prod(1)


def _set(rows, offset, error, corr):
    for axis, name in enumerate(COLUMNS):
        rows[name], rows[f"{name}_err"] = offset[:, axis] * u.mas, error[:, axis] * u.mas
    rows["corr"] = corr


def table_from_stars(images, sources, stars, bands, model, meta, config):
    """The offsets of bands from a catalogue, measured on its stars."""
    sources = replace(sources, point=np.zeros_like(sources.point))  # no star moves by more than the catalogue says
    star, seen = stars_among(stars, sources, config)
    parts = [catalogue_tie.star_offsets(images[band], sources, stars, star, config.tie) for band in bands]
    found = judged(images, sources, bands, parts, config)
    if found.verdict == "abstain":
        most = max(int(p.usable.sum()) for p in parts)
        used = f"{most} of {seen} stars of the reference on the image {'are' if most != 1 else 'is'} of use"
        found.reason = f"{used}, and two are needed" if most < 2 else f"{used}: {found.reason}"
    return offsets_table(images, sources, found, {}, model, meta, config, scene_frame="joint")


def stars_among(stars, sources, config):
    """`~rosetta.astrometry.catalogue_tie.matched_stars` with the settings of an `AlignerConfig`."""
    return catalogue_tie.matched_stars(stars, sources, config.tie, config.measurement.agree_share)
