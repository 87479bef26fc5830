# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Pixels that no light of the sky has made, although the survey has not masked them."""

import numpy as np

from .lines import lines
from .moments import half_maximum_width
from .sharp_pixels import sharp_pixels

__all__ = ["artefact_pixels"]

BLOCK = 1024  # pixels along a side: more are searched block by block
MARGIN = 32  # pixels


def artefact_pixels(data, variance, mask, psf, pixel_scale):
    """Cosmic rays, hot pixels and trails, found from the PSF and the noise of the image.

    Parameters
    ----------
    data, variance : (ny, nx) array
    mask : (ny, nx) bool array
        True where a pixel is known to be invalid.
    psf : (k, l) array
        The mean PSF of the image.
    pixel_scale : float
        arcsec.

    Returns
    -------
    (ny, nx) bool array
        Of pixels that are not in ``mask``.
    """
    found = np.zeros(mask.shape, bool)
    fwhm = half_maximum_width(psf)
    for rows, inner_rows in _blocks(mask.shape[0]):
        for columns, inner_columns in _blocks(mask.shape[1]):
            cut = (rows, columns)
            light = np.where(mask[cut], np.float32(0), data[cut])
            noise = np.where(mask[cut], np.float32(np.inf), variance[cut])
            sharp = sharp_pixels(light, noise, psf, pixel_scale)
            light[sharp], noise[sharp] = 0.0, np.inf
            seen = sharp | lines(light, noise, fwhm, pixel_scale)
            found[cut][inner_rows, inner_columns] |= seen[inner_rows, inner_columns]
    return found & ~mask


def _blocks(n):
    """Slices of blocks with margins that cover n pixels, and within them of the blocks without margins."""
    edges = np.linspace(0, n, -(-n // BLOCK) + 1).astype(int)
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        low, high = max(start - MARGIN, 0), min(stop + MARGIN, n)
        yield slice(low, high), slice(start - low, stop - low)
