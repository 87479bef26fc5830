# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Numbers that tell whether a cell was measured well."""

import numpy as np

from ..flags import Flag
from .sky_maps import PLACE

__all__ = ["LIMITS", "VERDICTS", "limit_of", "metrics", "outside"]

# Lowest and highest value that marks no cell; those of a metric with bands hold for each band.
LIMITS = {
    "rows_per_arcmin2": [1.0, 2000.0],
    "chi2": [0.2, 2.0],
    "noise_factor": [0.5, 2.0],
    "align_verdict": [0.0, 0.0],
    "align_rms_mas": [0.0, 50.0],
    "zeropoint": [-0.03, 0.03],
    "novelty": [0.0, 1.0],
    "share_POOR_FIT": [0.0, 0.2],
    "share_ARTEFACT": [0.0, 0.1],
    "share_PSF_SUSPECT": [0.0, 0.5],
    "duplicates": [0.0, 3.0],
    "orphans": [0.0, 3.0],
}
VERDICTS = ("ok", "coarse", "abstain")  # as numbers from 0
BRIGHT = 5.0  # S/N of the rows whose chi2 counts


def metrics(result, objects, counts):
    """The numbers of one cell.

    Parameters
    ----------
    result : `~rosetta.Result`
    objects : `~astropy.table.QTable`
        Rows of the cell, with ``is_primary``; these count.
    counts : `~astropy.table.Table`
        From `sky_maps.counts`.

    Returns
    -------
    dict of str to float
        ``area_arcmin2`` (of the core, where the band that sees most of it is valid), ``rows_per_arcmin2``; for each
        band ``chi2_<band>`` (median of the rows with S/N > 5), ``noise_factor_<band>``, ``depth_<band>`` (AB);
        ``align_verdict`` (0 ok, 1 coarse, 2 abstain), ``align_rms_mas`` (scatter of single sources about the field,
        1.48 MAD per axis), ``align_east_mas`` and ``align_north_mas`` (the field at the centre); ``novelty`` (median
        ``ood_score`` of the windows); ``share_<flag>`` of the rows. What cannot be told is left out.
    """
    bands = list(result.scene.bands)
    area = max(float(counts[f"valid_{band}"].sum()) for band in bands) * PLACE**2 / 3600
    rows = objects[np.asarray(objects["is_primary"])]
    found = {"area_arcmin2": area, "rows_per_arcmin2": len(rows) / area if area else np.nan}
    bright = np.asarray(rows["snr"], float) > BRIGHT
    for band in bands:
        found[f"chi2_{band}"] = _median(np.asarray(rows[f"chi2_{band}"], float)[bright])
        found[f"noise_factor_{band}"] = float(result.scene.meta["noise_factor"][band])
        found[f"depth_{band}"] = float(result.embedding.meta["inputs"][band]["depth"])
    if result.offsets is not None:
        found |= _alignment(result.offsets)
    found["novelty"] = _median(np.concatenate([side["ood_score"] for side in result.embedding.sides.values()]))
    flags = np.asarray(rows["flags"])
    if len(flags):
        found |= {f"share_{flag.name}": float(np.mean(flags & flag != 0)) for flag in Flag}
    return {name: float(f"{value:.6g}") for name, value in found.items() if np.isfinite(value)}


def _median(values):
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else np.nan


def _alignment(offsets):
    from ..astrometry.solution import as_solution

    solution = as_solution(offsets)
    found = {"align_verdict": VERDICTS.index(solution.verdict)}
    if "joint" in solution.bands:
        rows = offsets[np.asarray(offsets["band"]) == "joint"]
        measured = np.stack([rows[name].to_value("mas") for name in ("d_ra_cosdec", "d_dec")], -1)
        rest = (measured - solution.offset_at(rows["sky_centroid"]))[np.isfinite(measured).all(1)]
        found["align_rms_mas"] = 1.4826 * _median(np.abs(rest).ravel())
        east, north = solution.offset_at(solution.center.reshape(1))[0]
        found |= {"align_east_mas": float(east), "align_north_mas": float(north)}
    return found


def outside(found, limits):
    """Names of the metrics of a cell that lie outside the limits (list of str)."""
    known = {name: limit_of(name, limits) for name in found}
    return [name for name, limit in known.items() if limit and not limit[0] <= found[name] <= limit[1]]


def limit_of(name, limits):
    """Lowest and highest value of a metric that mark no cell: its own or those for all bands; None without any."""
    return next((limits[key] for key in (name, *limits) if name == key in limits or name.startswith(f"{key}_")), None)
