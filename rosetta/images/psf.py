# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The point-spread function of an image."""

import astropy.units as u
import numpy as np

from .moments import adaptive_moments, fourier_shift

__all__ = ["centred", "nominal_psf"]


def nominal_psf(band, pixel_scale):
    """A round Moffat (beta = 3.5) of the band's nominal width, averaged over pixels."""
    fwhm = band.psf_fwhm.to_value(u.arcsec) / pixel_scale
    half = int(np.ceil(6 * fwhm))
    sub = 5
    axis = (np.arange((2 * half + 1) * sub) - (half * sub + sub // 2)) / sub
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / 3.5) - 1)
    fine = (1 + (axis[:, None] ** 2 + axis[None, :] ** 2) / alpha2) ** -3.5
    psf = fine.reshape(2 * half + 1, sub, 2 * half + 1, sub).mean((1, 3))
    return psf / psf.sum()


def centred(psf):
    """The PSF moved so that its adaptive-moment centroid is the central pixel."""
    ny, nx = psf.shape
    (x, y), _ = adaptive_moments(psf)
    dx, dy = nx // 2 - x, ny // 2 - y
    return psf if max(abs(dx), abs(dy)) < 1e-4 else fourier_shift(psf, dx, dy)
