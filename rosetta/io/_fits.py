# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What all readers need from FITS: clear errors, native byte order, a celestial WCS."""

import os
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS, FITSFixedWarning

__all__ = ["as_path", "celestial_wcs", "image_hdu", "native", "open_fits"]


def as_path(value, argument):
    """The file named by an argument, or a TypeError that names the argument."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{argument} must be the path of a FITS file, got {type(value).__name__}")
    return Path(value)


# What astropy raises on damaged files, beside warnings; a card that is missing is a KeyError.
DAMAGE = (OSError, EOFError, KeyError, zlib.error, fits.VerifyError)


def _is_damage(error):
    return isinstance(error, DAMAGE) or type(error).__name__ == "CfitsioException"  # which astropy keeps private


@contextmanager
def open_fits(path, argument):
    """Open a FITS file for reading; whatever is wrong with it becomes a ValueError naming it.

    Only headers are read ahead; pixels leave the disk when a section is asked for. astropy merely
    warns of a truncated file and hands over what is left, so that warning is an error here.
    """
    path = as_path(path, argument)
    advice = f"{argument}: {path.name} is not a complete FITS file; download or write it again"
    with path.open("rb") as file:  # ours, so that it is closed whatever astropy raises
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="File may have been truncated")
                warnings.filterwarnings("error", message="Error validating header")
                hdus = fits.open(file, memmap=True)
                len(hdus)  # walk to the end: a file is found to be too short only on passing its data
        except (*DAMAGE, TypeError, AstropyUserWarning) as error:
            raise ValueError(f"{advice} ({error})") from error
        with hdus:
            try:
                yield hdus
            except Exception as error:
                if not _is_damage(error):  # inside headers that are read late, or compressed data
                    raise
                raise ValueError(f"{advice} ({error})") from error


def image_hdu(hdus, argument, name=None):
    """The two-dimensional image HDU called ``name``, or the first one.

    Raises
    ------
    ValueError
        If there is none; the message lists what the file holds.
    """
    for hdu in hdus:
        if hdu.is_image and hdu.header.get("NAXIS", 0) > 0 and name in (None, hdu.name):
            if hdu.header["NAXIS"] != 2:
                raise ValueError(f"{argument}: {_where(hdus, hdu)} has {hdu.header['NAXIS']} axes, need 2")
            return hdu
    held = ", ".join(hdu.name or "unnamed" for hdu in hdus)
    wanted = f"image extension {name}" if name else "image"
    raise ValueError(f"{argument}: {Path(hdus.filename()).name} holds no {wanted} (it holds {held})")


def _where(hdus, hdu):
    return f"{Path(hdus.filename()).name}[{hdu.name or 0}]"


def native(hdu, dtype, slices=(slice(None), slice(None))):
    """A section of an image HDU as a new array of native byte order (FITS is big-endian)."""
    return np.array(hdu.section[slices], dtype=dtype, order="C")


def celestial_wcs(header, argument, shift=(0, 0), shape=None):
    """The celestial WCS of a header, for an image cut ``shift`` = (x, y) pixels into the file's.

    ``shape`` is (ny, nx) of that image (default: the file's); the WCS remembers it as its ``pixel_shape``.

    Raises
    ------
    ValueError
        If the header holds no two-dimensional celestial WCS.
    """
    header = header.copy()
    for axis, offset in enumerate(shift, start=1):
        # CRPIX is the origin of every FITS distortion too (SIP, TPV), so moving it moves them all.
        header[f"CRPIX{axis}"] = header.get(f"CRPIX{axis}", 0.0) - offset
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)  # obsolete dates and the like
        try:
            wcs = WCS(header)
        except Exception as error:  # wcslib has many types of error
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"{argument}: the header's WCS cannot be read ({reason}): repair it") from error
    if not wcs.has_celestial or wcs.naxis != 2:
        raise ValueError(
            f"{argument}: the header has no two-dimensional celestial WCS "
            f"(CTYPE1={header.get('CTYPE1')!r}, CTYPE2={header.get('CTYPE2')!r})"
        )
    if shape is not None:
        wcs.pixel_shape = shape[::-1]
    return wcs
