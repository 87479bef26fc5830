# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""When an image was taken, as far as its WCS tells, and how far stars move until another one is."""

import numpy as np

__all__ = ["MOTION", "epoch"]

MOTION = 7.0  # mas per year and axis: rms proper motion of a star at high galactic latitude
DAYS = 365.25  # of a Julian year


def epoch(wcs):
    """Epoch of an image.

    Parameters
    ----------
    wcs : APE-14 WCS
        Of a FITS WCS the cards ``MJD-AVG``, ``MJD-OBS``, ``DATE-AVG`` and ``DATE-OBS`` are read, in this order.

    Returns
    -------
    float
        Julian year; NaN where the WCS does not tell.
    """
    cards = getattr(wcs, "wcs", None)
    for name in ("mjdavg", "mjdobs"):
        day = getattr(cards, name, np.nan)
        if np.isfinite(day):
            return 2000.0 + (day - 51544.5) / DAYS
    for name in ("dateavg", "dateobs"):
        date = getattr(cards, name, "")
        if date:
            since = np.datetime64(date.rstrip("Z"), "s") - np.datetime64("2000-01-01T12:00:00")
            return 2000.0 + float(since / np.timedelta64(86400, "s")) / DAYS
    return np.nan
