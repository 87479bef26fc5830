# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Noise that makes a band as deep as it should be, and the blemishes of real detectors."""

import astropy.units as u
import numpy as np
from scipy.ndimage import binary_dilation
from scipy.signal import fftconvolve
from scipy.sparse import csr_matrix

from ..surveys import EUCLID, RUBIN

__all__ = ["Resampling", "add_defects", "equivalent_sigma", "source_variance", "white_equivalent"]


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


class Resampling:
    """How exposures are brought to the grid of the delivered image, and what this does to white noise.

    The exposures have pixels of their own, at sub-pixel phases that differ from exposure to exposure; each delivered
    pixel is interpolated from them, so that the noise of neighbours is correlated (Fruchter & Hook 2002).

    Parameters
    ----------
    rng : `~numpy.random.Generator`
        Draws the phases.
    ratio : float
        Width of a native pixel in delivered pixels.
    kernel : {"none", "linear", "lanczos3"}
        Interpolation; "none" leaves the noise white and needs ``ratio`` 1.
    exposures : int, optional
    """

    def __init__(self, rng, ratio, kernel, exposures=4):
        self.kernel = kernel
        self._ratio = ratio
        self._phases = rng.uniform(size=(exposures, 2)) if kernel != "none" else np.zeros((1, 2))

    def noise(self, rng, shape):
        """Noise of the interpolated exposures, of native pixels of variance 1 in their mean.

        Parameters
        ----------
        rng : `~numpy.random.Generator`
        shape : tuple of int
            (ny, nx).

        Returns
        -------
        (ny, nx) float64 array
        """
        if self.kernel == "none":
            return rng.normal(size=shape)
        total = np.zeros(shape)
        for phase in self._phases:
            rows, columns = (self._matrix(n, p) for n, p in zip(shape, phase, strict=True))
            native = rng.normal(size=(rows.shape[1], columns.shape[1]))
            total += (columns @ (rows @ native).T).T
        return total / np.sqrt(len(self._phases))

    def autocovariance(self, reach):
        """Mean covariance of `noise` between pixels that are some pixels apart.

        Parameters
        ----------
        reach : int
            Largest distance, pixels.

        Returns
        -------
        (2 * reach + 1, 2 * reach + 1) float64 array
            Distance 0 in the middle.
        """
        total = np.zeros((2 * reach + 1, 2 * reach + 1))
        if self.kernel == "none":
            total[reach, reach] = 1.0
            return total
        for phase in self._phases:
            along = []
            for p in phase:
                matrix = self._matrix(30 * round(self._ratio) + 2 * reach, p).toarray()
                n = len(matrix) - 2 * reach
                middle = matrix[reach : reach + n]
                half = [np.mean(np.sum(middle * matrix[reach + k : reach + k + n], axis=1)) for k in range(reach + 1)]
                along.append(np.array(half[:0:-1] + half))
            total += np.outer(*along)
        return total / len(self._phases)

    def _matrix(self, n, phase):
        """Interpolation to ``n`` delivered pixels along one axis, (n, n_native) sparse."""
        pad = 3
        at = np.arange(n) / self._ratio + phase + pad
        taps = np.arange(-pad + 1, pad + 1)
        column = np.floor(at).astype(int)[:, None] + taps
        distance = at[:, None] - column
        if self.kernel == "linear":
            weight = np.clip(1 - np.abs(distance), 0.0, None)
        else:
            weight = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
        weight /= weight.sum(axis=1, keepdims=True)
        row = np.repeat(np.arange(n), len(taps))
        return csr_matrix((weight.ravel(), (row, column.ravel())), shape=(n, column.max() + 1))


def white_equivalent(resampling, psf):
    """Standard deviation of the white noise with which point sources would be measured as well.

    Parameters
    ----------
    resampling : Resampling
    psf : (k, l) array

    Returns
    -------
    float
        For `Resampling.noise` as it is: the scatter of the output of a matched filter, over that for white noise.
    """
    reach = min(min(psf.shape) // 2, 12)
    y, x = (n // 2 for n in psf.shape)
    half = min(x, y, 40)
    core = psf[y - half : y + half + 1, x - half : x + half + 1]
    seen = fftconvolve(core, core[::-1, ::-1], mode="full")  # autocorrelation of the filter
    middle = seen.shape[0] // 2
    seen = seen[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
    return float(np.sqrt(np.sum(seen * resampling.autocovariance(reach)) / np.sum(core**2)))


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
