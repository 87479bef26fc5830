# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Errors of the photometric zero points, as a user gives them."""

from numbers import Real

import numpy as np

from ..pair import by_band

__all__ = ["zeropoint_errors"]


def zeropoint_errors(given, surveys):
    """Relative errors of fluxes, common to all sources of a band.

    Parameters
    ----------
    given : mapping of str to float, or None
        By band name or alias; 0.01 is 1 %, nearly 0.01 mag.
    surveys : tuple of `~rosetta.Survey`

    Returns
    -------
    dict of str to float
        By the survey's own band names, of the bands that were given.

    Raises
    ------
    TypeError, ValueError
        If it is no such mapping, names a band that no survey has, or has an error that is negative or not finite.
    """
    errors = by_band("zeropoint_err", "relative error", given, surveys)
    for band, error in errors.items():
        if not isinstance(error, Real) or isinstance(error, bool):
            raise TypeError(f"zeropoint_err[{band!r}] must be a number, the relative error of fluxes, got {error!r}")
        if not 0 <= error < np.inf:
            raise ValueError(f"zeropoint_err[{band!r}] is {error}: it must be finite and not negative")
    return {band: float(error) for band, error in errors.items()}
