# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Matched filters: where on an image there is light, and how significant it is."""

import numpy as np
from scipy import ndimage

__all__ = ["filter_sigma", "filtered", "nmad"]



def filter_sigma(image, size):
    """Width (one sigma, arcsec) of the filter that finds sources whose FWHM before the PSF is ``size`` arcsec."""
    return float(np.hypot(image.fwhm, size) / 2.3548)


def filtered(image, width):
    """Smoothed flux and its significance per pixel, for sources about as large as the filter.

    Parameters
    ----------
    image : `~rosetta.images.image.BandImage`
    width : float
        One sigma of the Gaussian filter, arcsec.

    Returns
    -------
    flux, significance : (ny, nx) float64 array
        The best-fitting flux of a filter-shaped source at each pixel, and that over its error.
    """
    sigma = width / image.pixel_scale
    weight = image.sky_weight
    half = int(np.ceil(3.5 * sigma))
    axis = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    axis /= axis.sum()

    def convolve(array, kernel):
        return ndimage.convolve1d(
            ndimage.convolve1d(array, kernel, axis=0, mode="constant"), kernel, axis=1, mode="constant"
        )

    top = convolve(weight * image.data, axis)
    bottom = convolve(weight, axis**2)
    seen = bottom > 0.3 * np.median(bottom[bottom > 0]) if (bottom > 0).any() else bottom > 0
    flux = np.divide(top, bottom, out=np.zeros_like(top), where=seen)
    significance = np.divide(top, np.sqrt(bottom), out=np.zeros_like(top), where=seen)
    return flux, significance


def nmad(values):
    """Scatter of an image's pixels that are not 0, from the median absolute deviation."""
    values = values[values != 0]
    return 1.4826 * np.median(np.abs(values - np.median(values))) if len(values) else 1.0
