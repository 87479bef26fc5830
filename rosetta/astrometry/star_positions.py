# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Positions of stars on one image, by fitting its PSF: no other image is needed."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import fft

from ..images.psf_core import OversampledCore
from .registration import stamp_radius
from .splines import spline_filter, value_and_slopes

__all__ = ["StarFit", "fit_stars"]

STEP, PERIOD = 4, 40  # samples of the PSF per pixel, and pixels of its image
ITERATIONS, CLOSE = 15, 1e-4  # of the fit; pixels


@dataclass(frozen=True)
class StarFit:
    """Per-star result of `fit_stars`; NaN where a star could not be fitted.

    Attributes
    ----------
    xy : numpy.ndarray, shape (n, 2)
        Position, 0-based pixel (x, y).
    cov : numpy.ndarray, shape (n, 2, 2)
        Its covariance from pixel noise and the error of the PSF in every pixel, pixel^2.
    amplitude, snr : numpy.ndarray, shape (n,)
        Flux in units of the PSF's sum, nJy, and its significance.
    chi2 : numpy.ndarray, shape (n,)
        Reduced chi-square of the stamp.
    misfit : numpy.ndarray, shape (n,)
        Mean absolute residual in the core over the model there; noise is taken off.
    missing : numpy.ndarray, shape (n,)
        Share of the star's light on unusable pixels.
    """

    xy: np.ndarray
    cov: np.ndarray
    amplitude: np.ndarray
    snr: np.ndarray
    chi2: np.ndarray
    misfit: np.ndarray
    missing: np.ndarray


def fit_stars(image, start, psf_error):
    """Weighted least squares of (flux, position, background), one star at a time.

    Parameters
    ----------
    image : `~rosetta.images.image.BandImage`
    start : numpy.ndarray, shape (n, 2)
        Pixel (x, y), good to about a FWHM; NaN: no star there.
    psf_error : float
        Of each pixel's model, relative.

    Returns
    -------
    StarFit
    """
    n = len(start)
    out = StarFit(*(np.full(shape, np.nan) for shape in [(n, 2), (n, 2, 2), n, n, n, n, n]))
    fwhm = image.fwhm / image.pixel_scale
    radius = stamp_radius(fwhm)
    cells = image.psf.once("fine", lambda: _fine_cells(image.psf))
    ny, nx = image.shape
    for k in np.flatnonzero(np.isfinite(start).all(1)):
        if not ((start[k] >= 0) & (start[k] <= (nx - 1, ny - 1))).all():
            continue
        spline = np.tensordot(image.psf.weights(*start[k])[0], cells, axes=1)
        found = _fit_star(image, spline, start[k], radius, fwhm, psf_error)
        if found is not None:
            for name, value in found.items():
                getattr(out, name)[k] = value
    return out


def _fine_cells(psf):
    """Spline coefficients of every cell of a PSF on a grid of 1 / `STEP` pixel: (n_cell, m, m), centre at m // 2."""
    cores = psf.cores or [None] * len(psf.cells)
    cores = cores if len(cores) == len(psf.cells) else cores * len(psf.cells)
    return np.stack([_fine(cell, core) for cell, core in zip(psf.cells, cores, strict=True)])


def _fine(cell, core):
    """What a pixel sees of a star at any distance, from the star's image on pixels and what is known between them."""
    m = STEP * PERIOD
    f = np.fft.fftfreq(m, 1 / STEP)  # cycles per pixel
    inner = np.flatnonzero(np.abs(f) < 0.5)
    seen = OversampledCore(cell, 1).transform(f[inner], f[inner])
    transform = np.zeros((m, m), complex)
    if core is not None:
        transform = core.transform(f, f).astype(complex)
        seen = seen - sum(core.transform(f[inner] + a, f[inner] + b) for a, b in product((-1, 0, 1), repeat=2))
    transform[np.ix_(inner, inner)] += seen
    fine = np.fft.fftshift(np.fft.ifft2(transform).real) * STEP**2
    return fft.irfft2(fft.rfft2(fine) * spline_filter(m), (m, m))


def _fit_star(image, spline, xy, radius, fwhm, psf_error):
    """The numbers of a `StarFit` of one star; None where there is none."""
    ny, nx = image.shape
    side = np.arange(-radius, radius + 1)
    start, flux = xy, None
    for step in range(ITERATIONS):
        center = np.rint(xy).astype(int)
        rows, columns = center[1] + side, center[0] + side
        rows, columns = rows[(rows >= 0) & (rows < ny)], columns[(columns >= 0) & (columns < nx)]
        cut = np.ix_(rows, columns)
        dx, dy = np.broadcast_arrays(columns - xy[0], (rows - xy[1])[:, None])
        middle = STEP * PERIOD // 2
        value, gx, gy = value_and_slopes(spline, middle + STEP * dx, middle + STEP * dy)
        data, variance, use = image.data[cut], image.variance[cut], image.valid[cut]
        core = np.hypot(dx, dy) < fwhm
        light = np.maximum(value, 0.0)
        missing = 1.0 - (light * (use & core)).sum() / max((spline_light := light[core].sum()), 1e-30)
        if use.sum() < 20 or missing > 0.5 or spline_light <= 0:
            return None
        design = np.stack([value, -STEP * gx, -STEP * gy, np.ones_like(value)], -1)[use]  # (n_pixel, 4)
        noise = variance[use] + (0.0 if flux is None else (psf_error * flux * value[use]) ** 2)
        weighted = design / noise[:, None]
        normal = design.T @ weighted
        flux_, *slopes, _ = p = np.linalg.lstsq(normal, weighted.T @ data[use], rcond=None)[0]
        if not flux_ > 0:
            return None
        flux = flux_
        move = np.clip(np.array(slopes) / flux, -0.5, 0.5)
        if step and np.abs(move).max() < CLOSE:
            break
        xy = xy + move
        if np.hypot(*(xy - start)) > fwhm:
            return None
    cov = np.linalg.inv(normal)
    residual = data[use] - design @ p
    inside = core[use]
    expected = np.sqrt(2 / np.pi) * np.sqrt(variance[use][inside]).sum()
    misfit = max(np.abs(residual[inside]).sum() - expected, 0.0) / (flux * value[use][inside].sum())
    chi2 = (residual**2 / noise).sum() / (len(residual) - 4)
    return {
        "xy": xy + move, "cov": cov[1:3, 1:3] / flux**2, "amplitude": flux, "snr": flux / np.sqrt(cov[0, 0]),
        "chi2": chi2, "misfit": misfit, "missing": missing,
    }
