# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""PSFs of simulated bands: not round, a little lopsided, varying over the field."""

from functools import lru_cache

import astropy.units as u
import galsim
import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.optimize import brentq

from ..images.moments import adaptive_moments

__all__ = ["FieldPSF", "draw_psf"]

_MOFFAT_BETA = 3.5
_APERTURE = 1.2e9  # nm; the 1.2 m mirror of Euclid
_OBSCURATION = 0.4
#: Native pixel (arcsec) of bands that are delivered on a finer grid.
_FINE = 0.02  # arcsec between samples of space PSFs
_PARAMS = galsim.GSParams(folding_threshold=5e-3, maxk_threshold=1e-3, kvalue_accuracy=1e-5)


@lru_cache(maxsize=64)
def _space_core(wavelength, native, fwhm, pixel_scale, radius):
    """Airy pattern, native pixel and a Gaussian that brings the delivered width to ``fwhm`` (arcsec).

    An array of samples ``_FINE`` arcsec apart, without the delivered pixel.
    """
    lam_over_diam = min(wavelength / _APERTURE * 206265, 0.75 * fwhm)
    airy = galsim.Airy(lam_over_diam=lam_over_diam, obscuration=_OBSCURATION)
    fixed = _samples(airy, radius, _FINE)
    if native is not None:
        fixed = uniform_filter(fixed, round(native / _FINE), mode="constant")

    def excess(sigma):
        smooth = gaussian_filter(fixed, sigma / _FINE, mode="constant")
        smooth = uniform_filter(smooth, round(pixel_scale / _FINE), mode="constant")
        row = smooth[smooth.shape[0] // 2]
        right = row[row.size // 2 :] / row.max()
        edge = np.argmax(right < 0.5)
        crossing = edge - 1 + (right[edge - 1] - 0.5) / (right[edge - 1] - right[edge])
        return 2 * crossing * _FINE - fwhm

    smallest, largest = 0.05 * fwhm, fwhm
    sigma = brentq(excess, smallest, largest, xtol=1e-4) if excess(smallest) < 0 else smallest
    return gaussian_filter(fixed, sigma / _FINE, mode="constant")


def _samples(profile, radius, scale):
    half = int(np.ceil(radius / scale)) + 2
    return profile.drawImage(nx=2 * half + 1, ny=2 * half + 1, scale=scale, method="no_pixel", dtype=float).array


class FieldPSF:
    """The PSF of one band over one field, of compact support so that stamps hold all of its light.

    Its origin is the adaptive-moment centroid of its image on the native pixel grid.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
        Draws its ellipticity, lopsidedness and gradients.
    survey : `~rosetta.surveys.Survey`
    band : `~rosetta.surveys.Band`
    ground : bool
        Moffat profile (beta 3.5) if True; else Airy pattern, native pixel and Gaussian.
    fwhm : float
        Arcsec; of the ground profile itself, and of the delivered pixels in space.
    half_size : float
        Half the width of the field (arcsec), over which the PSF varies by a few per cent.
    """

    def __init__(self, rng, survey, band, ground, fwhm, half_size):
        self.pixel_scale = survey.pixel_scale.to_value(u.arcsec)
        self.half_size = half_size
        self.radius = 4.5 * fwhm if ground else max(3.0, 5 * fwhm)
        self._shear = rng.normal(scale=0.03 if ground else 0.015, size=2)
        self._gradient = rng.normal(scale=0.01, size=(2, 3))  # of (size, g1, g2) east and north
        turn, lopsided = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.06)
        if ground:
            scale = fwhm / 12
            core = _samples(galsim.Moffat(_MOFFAT_BETA, fwhm=fwhm), self.radius, scale)
        else:
            scale = _FINE
            wavelength = band.pivot.to_value(u.nm)
            native = None if band.native_pixel is None else band.native_pixel.to_value(u.arcsec)
            core = _space_core(wavelength, native, fwhm, self.pixel_scale, self.radius)
        step = np.round(0.4 * fwhm / scale * np.array([np.cos(turn), np.sin(turn)])).astype(int)
        lean = (1 - lopsided) * core + lopsided * np.roll(core, step, axis=(0, 1))
        self._profile = _compact(lean, scale, self.radius)
        self._profile = self._centred(self._profile)

    def _centred(self, profile):
        for _ in range(4):
            image = draw_psf(profile, self.radius, self.pixel_scale)
            (x, y), _ = adaptive_moments(image)
            middle = image.shape[0] // 2
            # Columns run west: east is -x.
            profile = profile.shift((x - middle) * self.pixel_scale, -(y - middle) * self.pixel_scale)
        return profile

    def at(self, east, north):
        """The PSF at a position of the field.

        Parameters
        ----------
        east, north : float
            Arcsec from the field centre.

        Returns
        -------
        `galsim.GSObject`
            In (east, north) arcsec, without the delivered pixel, unit flux.
        """
        size, g1, g2 = self._gradient.T @ (np.array([east, north]) / self.half_size)
        g1, g2 = np.clip(self._shear + (g1, g2), -0.3, 0.3)
        return self._profile.dilate(1 + np.clip(size, -0.1, 0.1)).shear(g1=g1, g2=g2)

    def image(self):
        """The PSF at the field centre on the native grid: pixel response included, odd, unit sum."""
        return draw_psf(self.at(0.0, 0.0), self.radius, self.pixel_scale)


def _compact(samples, scale, radius):
    """The sampled profile, faded out to zero at ``radius``."""
    half = samples.shape[0] // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * scale
    fade = np.clip((radius - np.hypot(x, y)) / (0.25 * radius), 0.0, 1.0)
    array = np.maximum(samples, 0.0) * np.sin(0.5 * np.pi * fade) ** 2
    image = galsim.Image(array / array.sum(), scale=scale)
    return galsim.InterpolatedImage(image, x_interpolant="lanczos5", flux=1.0, gsparams=_PARAMS)


def draw_psf(profile, radius, pixel_scale):
    """A point source on the central pixel of an odd stamp, rows north, columns west.

    Parameters
    ----------
    profile : `galsim.GSObject`
    radius, pixel_scale : float
        Arcsec.

    Returns
    -------
    `~numpy.ndarray`, float64
        Unit sum; its outermost two pixels are empty.
    """
    half = int(np.ceil(1.1 * radius / pixel_scale)) + 2
    local = galsim.JacobianWCS(-pixel_scale, 0.0, 0.0, pixel_scale)
    image = profile.drawImage(nx=2 * half + 1, ny=2 * half + 1, wcs=local, dtype=float).array
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    image = np.where(np.hypot(x, y) * pixel_scale < 1.1 * radius, np.maximum(image, 0.0), 0.0)
    return image / image.sum()
