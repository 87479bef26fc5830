# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Saturated stars: pixels filled to the brim, and the charge that runs along the columns of a CCD."""

import numpy as np

__all__ = ["saturate"]


def saturate(image, level, *, bleeds=True):
    """Clip an image at the full well; the charge beyond it runs both ways along the column.

    Parameters
    ----------
    image : `~numpy.ndarray`, shape (ny, nx)
        Changed in place; columns run along the first axis.
    level : float
        Full well, in the units of the image.
    bleeds : bool
        False clips only, as in infrared detectors.

    Returns
    -------
    changed : `~numpy.ndarray` of bool
        Pixels that were clipped or took up charge.
    """
    before = image.copy()
    excess = np.maximum(image - level, 0.0)
    np.minimum(image, level, out=image)
    if bleeds:
        for x in np.flatnonzero(excess.any(axis=0)):
            spill = excess[:, x]
            rows = np.flatnonzero(spill)
            # Charge of neighbouring full pixels leaves at the two ends of their run.
            for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
                charge = spill[run].sum() / 2
                _pour(image[run[-1] + 1 :, x], charge, level)
                _pour(image[: run[0], x][::-1], charge, level)
    return image != before


def _pour(column, charge, level):
    """Fill the pixels of a column (changed in place) in order, each to the full well, until the charge is used up."""
    room = np.maximum(level - column, 0.0)
    used = np.cumsum(room)
    column += np.clip(charge - (used - room), 0.0, room)
