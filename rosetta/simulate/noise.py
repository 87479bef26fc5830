# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Noise that makes a band as deep as it should be, and the blemishes of real detectors."""

import astropy.units as u
import numpy as np
from scipy.ndimage import binary_dilation
from scipy.signal import fftconvolve

from ..surveys import EUCLID, RUBIN

__all__ = ["add_defects", "equivalent_sigma", "sky_noise", "source_variance"]


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


def add_defects(rng, image, saturation):
    """Clip saturated pixels and add cosmic-ray hits, hot pixels and now and then a dead column.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
    image : `~numpy.ndarray`
        nJy; changed in place.
    saturation : float
        nJy per pixel.

    Returns
    -------
    mask : `~numpy.ndarray` of bool
        True where pixels must not be used.
    """
    ny, nx = image.shape
    mask = binary_dilation(image > saturation, iterations=1)
    np.minimum(image, saturation, out=image)
    bad = np.zeros(image.shape, bool)
    for _ in range(rng.poisson(2e-5 * image.size)):  # cosmic-ray hits: short straight tracks
        x, y, turn = rng.uniform(0, nx), rng.uniform(0, ny), rng.uniform(0, np.pi)
        along = np.arange(rng.integers(2, 12))
        column = np.clip((x + along * np.cos(turn)).astype(int), 0, nx - 1)
        row = np.clip((y + along * np.sin(turn)).astype(int), 0, ny - 1)
        bad[row, column] = True
    bad.ravel()[rng.integers(0, image.size, rng.poisson(2e-5 * image.size))] = True
    image[bad] += saturation * rng.uniform(0.01, 0.5, bad.sum())
    if rng.uniform() < 0.2:
        column = rng.integers(nx)
        bad[:, column] = True
        image[:, column] = 0.0
    return mask | bad
