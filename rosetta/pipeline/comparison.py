# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Comparison of a run with a known truth."""

import astropy.units as u
import numpy as np

from ..astrometry.solution import as_solution
from ..flags import Flag
from ..matching import match

__all__ = ["compare"]

MAG_EDGES = (0, 22, 23, 24, 25, 26, 27)  # AB, for completeness


def compare(result, truth):
    """The numbers that say how good a run is.

    Parameters
    ----------
    result : Result
    truth : `~astropy.table.QTable`
        As from `rosetta.simulate.simulate_pair`.

    Returns
    -------
    dict
        ``n_detected``, ``n_matched``; ``completeness``: rows (brighter than, fainter than, true, found) by
        magnitude in the reference band; ``offset``: the joint field against the truth, in mas (absent
        without one); ``flux``: rows of band, kind ("isolated" or "blended"), n, median bias and NMAD of
        flux / truth - 1 where the S/N exceeds 10, and ``coverage``, the share of all measured sources
        whose true flux lies within one standard error.
    """
    catalog, band = result.catalog, result.scene.meta["reference_band"]
    rows, true = match(catalog, truth, band)
    mag = truth[f"flux_{band}"].to_value(u.ABmag)
    found = np.isin(np.arange(len(truth)), true)
    completeness = []
    for low, high in zip(MAG_EDGES[:-1], MAG_EDGES[1:], strict=True):
        of = (mag >= low) & (mag < high)
        completeness.append((low, high, int(of.sum()), int((of & found).sum())))
    numbers = {
        "n_detected": len(catalog),
        "n_matched": len(rows),
        "reference_band": band,
        "completeness": completeness,
        "flux": [],
    }
    blended = (np.asarray(catalog["flags"])[rows] & int(Flag.BLENDED)) != 0
    for name in result.scene.bands:
        for kind, of in (("isolated", ~blended), ("blended", blended)):
            found_of = _flux_numbers(catalog[rows][of], truth[true][of], name)
            numbers["flux"].append({"band": name, "kind": kind, **found_of})
    solution = None if result.offsets is None else as_solution(result.offsets)
    if solution is not None and solution.bands:
        numbers["offset"] = _offset_numbers(solution, truth)
    return numbers


def _flux_numbers(catalog, truth, band):
    flux, error = (catalog[f"{name}_{band}"].to_value(u.nJy) for name in ("flux", "flux_err"))
    known = truth[f"flux_{band}"].to_value(u.nJy)
    good = np.isfinite(flux) & (error > 0)
    bright = good & (flux > 10 * error)
    ratio = flux[bright] / known[bright] - 1
    bias = float(np.median(ratio)) if bright.any() else np.nan
    return {
        "n": int(bright.sum()),
        "bias": bias,
        "nmad": float(1.4826 * np.median(np.abs(ratio - bias))) if bright.any() else np.nan,
        "n_measured": int(good.sum()),
        "coverage": float(np.mean(np.abs(flux - known)[good] < error[good])) if good.any() else np.nan,
    }


def _offset_numbers(solution, truth):
    """The joint field at the field centre, and its error over the true sources."""
    known = np.stack([truth[name].to_value(u.mas) for name in ("d_ra_cosdec", "d_dec")], -1)
    value = solution.offset_at(truth["sky_centroid"])
    error = solution.sigma_at(truth["sky_centroid"])  # (n, 2)
    return {
        "value": value.mean(0).tolist(),
        "error": np.median(error, axis=0).tolist(),
        "truth": known.mean(0).tolist(),
        "rms": float(np.sqrt(np.mean((value - known) ** 2))),
        "model": solution.kind(),
    }
