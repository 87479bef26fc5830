# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Scatter, coverage and intervals: the same definitions in every table."""

import warnings

import numpy as np

__all__ = ["area_under_roc", "by_field", "covered", "interval", "nmad", "rms", "shown", "wilson"]


def nmad(values):
    """Normalised median absolute deviation from the median, of the finite values; NaN if there are none."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return 1.4826 * np.median(np.abs(values - np.median(values))) if len(values) else np.nan


def rms(values):
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def covered(pull):
    """Share of true values within one sigma, of pulls (error over sigma)."""
    return np.mean(np.abs(pull) < 1)


def interval(statistic, values, group=None, *, n=200):
    """A statistic and its 68 % range from bootstrap: independent groups of rows are drawn again with replacement.

    Parameters
    ----------
    statistic : callable
        Of rows of ``values``; gives a number, or an array of numbers.
    values : array_like, shape (n_row, ...)
    group : ndarray, shape (n_row,), optional
        Rows of one group (a field, a tile) are not independent of each other. None: each row is a group.
    n : int
        Bootstrap samples.

    Returns
    -------
    value, low, high
        Each as ``statistic`` gives it.
    """
    values, rng, drawn = np.asarray(values), np.random.default_rng(0), []
    rows = None if group is None else [np.flatnonzero(group == one) for one in np.unique(group)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a sample without a source gives NaN
        for _ in range(n):
            if rows is None:
                again = rng.integers(len(values), size=len(values))
            else:
                again = np.concatenate([rows[k] for k in rng.integers(len(rows), size=len(rows))])
            drawn.append(statistic(values[again]))
        low, high = np.nanpercentile(drawn, [16, 84], axis=0)
    return statistic(values), low, high


def shown(value, low, high, digits=3):
    """``value ± half of the 68 % range``."""
    return f"{value:.{digits}f} ± {(high - low) / 2:.{digits}f}"


def by_field(statistic, values, field, digits=3):
    """A table's cell: `interval`, fields drawn again if there are six or more, else rows; empty below ten rows."""
    if len(values) < 10:
        return ""
    return shown(*interval(statistic, values, field if len(np.unique(field)) >= 6 else None), digits)


def wilson(k, n, z=1.0):
    """A share k / n and its 68 % interval (Wilson 1927)."""
    middle, half = (k + z**2 / 2) / (n + z**2), z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    return float(k / n), float(middle - half), float(middle + half)


def area_under_roc(score, member):
    """Chance that a member of a class has a higher score than a non-member (ties count half); NaN without both."""
    others, members = np.sort(score[~member]), score[member]
    if len(others) == 0 or len(members) == 0:
        return np.nan
    below = np.searchsorted(others, members) + np.searchsorted(others, members, side="right")
    return np.mean(below) / (2 * len(others))
