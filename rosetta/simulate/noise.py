# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Noise that makes a band as deep as it should be."""

import astropy.units as u
import numpy as np
from scipy.signal import fftconvolve

from ..surveys import EUCLID, RUBIN

__all__ = ["equivalent_sigma", "sky_noise", "source_variance"]


def equivalent_sigma(psf, depth):
    """White noise per pixel at which a matched filter reaches a 5-sigma point-source depth.

    Parameters
    ----------
    psf : `~numpy.ndarray`
        Unit sum.
    depth : float
        AB magnitude at S/N 5.

    Returns
    -------
    float
        nJy per pixel.
    """
    return 10 ** (0.4 * (31.4 - depth)) / 5 * np.sqrt(np.sum(psf**2))


def sky_noise(rng, shape, psf, depth, resampling=1):
    """A realisation of background noise of the given depth.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
    shape : tuple of int
    psf : `~numpy.ndarray`
        The matched filter of the depth.
    depth : float
        5-sigma point-source depth, AB.
    resampling : int
        Native pixels are this many delivered pixels wide; above 1 the noise is correlated as by linear
        interpolation from the native grid.

    Returns
    -------
    `~numpy.ndarray`
        nJy. Correlated noise is scaled so that the matched filter has the stated depth; its scatter
        per pixel is then smaller than `equivalent_sigma`.
    """
    sigma = equivalent_sigma(psf, depth)
    if resampling == 1:
        return rng.normal(scale=sigma, size=shape)
    pad = resampling
    ramp = resampling - np.abs(np.arange(-pad + 1, pad))
    kernel = np.outer(ramp, ramp).astype(float)
    seen = fftconvolve(psf, kernel)  # the filter as the white noise underneath meets it
    amplitude = sigma * np.sqrt(np.sum(psf**2) / np.sum(seen**2))
    white = rng.normal(size=(shape[0] + 2 * pad - 2, shape[1] + 2 * pad - 2))
    return amplitude * fftconvolve(white, kernel, mode="valid")


def source_variance(image, sigma, pixel_scale, wavelength, ground):
    """Photon noise of the sources, from the gain at which the sky alone gives ``sigma``.

    Parameters
    ----------
    image : `~numpy.ndarray`
        Noise-free flux, nJy per pixel.
    sigma : float
        Background noise, nJy per pixel.
    pixel_scale, wavelength : float
        Arcsec; nm.
    ground : bool
        Night sky if True, else zodiacal light.

    Returns
    -------
    `~numpy.ndarray`
        nJy^2 per pixel.
    """
    bands = (RUBIN if ground else EUCLID).bands
    mag = np.interp(wavelength, [band.pivot.to_value(u.nm) for band in bands], [band.sky for band in bands])
    sky = 10 ** (0.4 * (31.4 - mag)) * pixel_scale**2
    return np.maximum(image, 0.0) * sigma**2 / sky
