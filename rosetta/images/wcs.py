# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The WCS of a part of an image; and a FITS WCS as header cards and back, to the last bit.

``WCS.to_header`` rounds to 14 digits (and so does ``pickle``), and to 20 characters a SIP coefficient, so that a
position read through the copy differs from the original by some 1e-10 pixels, and everything measured there in its
last digits.
"""

import warnings

from astropy.io import fits
from astropy.wcs import WCS, WCSHDO_P17, FITSFixedWarning, WCSHDO_all
from astropy.wcs.wcsapi import HighLevelWCSWrapper, SlicedLowLevelWCS

__all__ = ["cards_of", "is_fits_wcs", "packed", "slice_wcs", "unpacked", "wcs_of"]


def is_fits_wcs(wcs):
    """Whether header cards can hold the WCS: one of astropy's, without lookup tables, its SIP about its CRPIX."""
    tables = ("cpdis1", "cpdis2", "det2im1", "det2im2")
    if not isinstance(wcs, WCS) or any(getattr(wcs, name) is not None for name in tables):
        return False
    return wcs.sip is None or list(wcs.sip.crpix) == list(wcs.wcs.crpix)


def packed(wcs):
    """What pickle keeps of a WCS without loss: of a FITS WCS its header, as astropy pickles it with 14 digits."""
    return cards_of(wcs).tostring() if is_fits_wcs(wcs) else wcs


def unpacked(wcs):
    """The WCS that `packed` took apart."""
    return wcs_of(fits.Header.fromstring(wcs)) if isinstance(wcs, str) else wcs


def cards_of(wcs):
    """The WCS as a header, every number with 17 digits.

    Parameters
    ----------
    wcs : `~astropy.wcs.WCS`
        One that `is_fits_wcs`.

    Returns
    -------
    `~astropy.io.fits.Header`
    """
    header = wcs.to_header(relax=WCSHDO_all | WCSHDO_P17)
    if wcs.sip is None:
        return header
    for axis, ctype in enumerate(wcs.wcs.ctype, start=1):
        header[f"CTYPE{axis}"] = ctype  # with its "-SIP"
    for name in ("a", "b", "ap", "bp"):
        coefficients = getattr(wcs.sip, name)
        if coefficients is None:
            continue
        header[f"{name.upper()}_ORDER"] = len(coefficients) - 1
        for i, row in enumerate(coefficients):
            for j, value in enumerate(row):
                if value != 0.0:
                    # A card that is made from a number keeps 20 characters of it; FITS allows more.
                    header.append(fits.Card.fromstring(f"{f'{name.upper()}_{i}_{j}':8}= {float(value)!r:>22}".upper()))
    return header


def wcs_of(header):
    """The WCS of header cards.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`

    Returns
    -------
    `~astropy.wcs.WCS`
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)  # obsolete dates; more axes than NAXIS says
        return WCS(header)


def slice_wcs(wcs, window):
    """The WCS of ``image[window]``, for any APE-14 WCS.

    Parameters
    ----------
    wcs : APE-14 WCS
        Of the image; it is not modified.
    window : tuple of slice
        Rows and columns, [y, x].

    Returns
    -------
    APE-14 WCS
    """
    # FITS lookup distortions are indexed by pixel and do not move with CRPIX: slice from outside.
    if isinstance(wcs, WCS) and wcs.cpdis1 is None and wcs.det2im1 is None:
        return wcs[window]
    return HighLevelWCSWrapper(SlicedLowLevelWCS(wcs.low_level_wcs, window))
