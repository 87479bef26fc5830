# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The PSF that a user is given, which is seldom the true one."""

import numpy as np

from ..images.moments import half_maximum_width
from ..images.psf import PSF

__all__ = ["given_psf", "stretched", "with_wings"]

_SIDES = range(21, 48, 2)  # pixels; of the stamps that surveys deliver
_STARS = (3, 30)
_STAR_SNR = (30.0, 1000.0)  # drawn uniformly in the logarithm
_WINGS = (1.5, 2.5)  # full widths at half maximum: where the wings set in, and where they are all there is


def given_psf(rng, truth, shape, delivery):
    """Draw what is given for a PSF.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
    truth : `~rosetta.PSF`
    shape : tuple of int
        (ny, nx) of the image.
    delivery : `~rosetta.simulate.Delivery`

    Returns
    -------
    psf : `~rosetta.PSF`
        Every stamp of it sums to one.
    kind : str
        Which of the PSFs of `Delivery`: exact, cut, stars, constant, width, wings.
    """
    chances = delivery.psf_chances
    kind = str(rng.choice(list(chances), p=list(chances.values())))
    ny, nx = shape
    middle = truth.at((nx - 1) / 2, (ny - 1) / 2)
    if kind == "exact":
        return truth, kind
    if kind == "cut":
        return _each(truth, _cut, int(rng.choice(_SIDES))), kind
    if kind == "constant":
        return PSF(middle), kind
    if kind == "stars":
        return PSF(_from_stars(rng, truth, shape)), kind
    if kind == "width":
        return _each(truth, stretched, 1 + delivery.width_error * rng.normal()), kind
    return _each(truth, with_wings, 1 + delivery.wing_error * rng.choice([-1, 1])), kind


def _each(psf, change, *arguments):
    """A PSF of which every cell is changed by a function."""
    parts = psf.parts()
    parts["samples"] = np.stack([change(cell, *arguments) for cell in parts["samples"]])
    return PSF.of_parts(**parts)


def _cut(psf, side):
    y, x = (n // 2 for n in psf.shape)
    half = min(side // 2, y, x)
    stamp = psf[y - half : y + half + 1, x - half : x + half + 1]
    return stamp / stamp.sum()


def stretched(psf, factor):
    """A PSF made wider by a factor about its central pixel, by band-limited interpolation; unit sum."""
    rows, columns = (np.arange(n) - n // 2 for n in psf.shape)
    out = np.sinc(rows[:, None] / factor - rows) @ psf @ np.sinc(columns[:, None] / factor - columns).T
    return out / out.sum()


def with_wings(psf, factor):
    """A PSF of which the light beyond some two full widths at half maximum is multiplied by a factor; unit sum."""
    half = min(20, *(n // 2 for n in psf.shape))
    fwhm = half_maximum_width(_cut(psf, 2 * half + 1))
    y, x = (np.arange(n) - n // 2 for n in psf.shape)
    radius = np.hypot(y[:, None], x)
    share = np.clip((radius / fwhm - _WINGS[0]) / (_WINGS[1] - _WINGS[0]), 0.0, 1.0)
    out = psf * (1 + (factor - 1) * share)
    return out / out.sum()


def _from_stars(rng, truth, shape):
    """The mean of noisy stars, as wide as stamps are; unit sum."""
    ny, nx = shape
    side = int(rng.choice(_SIDES))
    n = int(rng.integers(_STARS[0], _STARS[1] + 1))
    snr = np.exp(rng.uniform(*np.log(_STAR_SNR), n))
    places = rng.uniform(size=(n, 2)) * (nx - 1, ny - 1)
    share = truth.weights(*places.T)  # (n, n_cell)
    # Of white noise the best mean weighs fluxes by their squares.
    weight = snr**2 / np.sum(snr**2)
    stamp = _cut(np.tensordot(weight @ share, truth.cells, axes=1), side)
    noise = np.sqrt(np.sum(stamp**2)) / np.sqrt(np.sum(snr**2))
    noisy = stamp + rng.normal(scale=noise, size=stamp.shape)
    return noisy / noisy.sum()
