# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Gaussian mixtures: the light of a source before any PSF, and how it lands on native pixels.

A mixture is an array ``(n_component, 6)`` of ``[weight, east, north, Sxx, Sxy, Syy]``: weights that
sum to one, component centres relative to the source (arcsec, east and north), and covariances
(arcsec^2, east and north). The Fourier transform of a mixture is known in closed form, so a stamp is
one product with the transform of the PSF and one inverse FFT: sub-pixel centres are exact phases,
rotation and flips are a 2x2 matrix, and nothing is interpolated. Where the pixels undersample the PSF, the
frequencies they fold are those of a sum of Gaussians fitted to its core.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft

from .psfcore import psf_core

__all__ = ["REFERENCE_FWHM", "REFERENCE_SCALE", "Stamps", "evaluate", "half_light_radius", "render", "stamp_sizes"]

#: FWHM (arcsec) and grid step (arcsec) at which templates are shown.
REFERENCE_FWHM = 0.12
REFERENCE_SCALE = 0.05

FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))

# Odd (so that no Nyquist mode breaks a sub-pixel shift) and quick to transform.
SIZES = np.array([21, 27, 35, 45, 55, 63, 81, 105, 135, 175, 225, 315, 405, 525, 675, 945, 1215])

# Share of a source's light that may be folded back into its stamp.
SHARE = 1e-3

CORE = 21  # pixels: what folded frequencies add to a stamp is within this

# Fourier samples held at once; bounds the memory of a crowded field.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Stamps:
    """Stamps of one size, for some of the sources.

    Attributes
    ----------
    index : (n,) int array
        Which source each stamp belongs to.
    corner : (n, 2) int array
        Image pixel (x, y) of the first pixel of each stamp; may lie off the image.
    values : (n, size, size) float32 array
        The light of each source, axis order [y, x].
    """

    index: np.ndarray
    corner: np.ndarray
    values: np.ndarray


def light_radius(mixtures, share):
    """Radius (arcsec) beyond which less than ``share`` (n,) of the light lies, (n,) array.

    An upper bound: each component counts with its major axis plus the offset of its centre.
    """
    weight, east, north, sxx, sxy, syy = np.moveaxis(np.asarray(mixtures, dtype=float), -1, 0)
    major = 0.5 * (sxx + syy) + np.sqrt(0.25 * (sxx - syy) ** 2 + sxy**2)  # (n, K)
    offset = np.hypot(east, north)
    low, high = np.zeros(len(weight)), np.max(offset + 5.0 * np.sqrt(major) + 1e-6, axis=1, initial=0.0)
    for _ in range(20):
        middle = 0.5 * (low + high)
        reach = np.clip(middle[:, None] - offset, 0.0, None)
        outside = (weight * np.exp(-0.5 * reach**2 / np.maximum(major, 1e-12))).sum(axis=1)
        low = np.where(outside > share, middle, low)
        high = np.where(outside > share, high, middle)
    return high


def psf_radius(psf, share):
    """Radius (pixels) of the circle about the central pixel that holds all but ``share`` of a PSF."""
    y, x = np.indices(psf.shape)
    radius = np.hypot(x - psf.shape[1] // 2, y - psf.shape[0] // 2).ravel()
    order = np.argsort(radius)
    grown = np.maximum.accumulate(np.cumsum(psf.ravel()[order]))
    return np.interp((1.0 - share) * grown[-1], grown, radius[order])


def _psf_transform(psf, size):
    """Transform of a PSF centred on pixel (0, 0); what does not fit is folded, so the sum stays."""
    folded = np.zeros((size, size))
    rows, columns = ((np.arange(k) - k // 2) % size for k in psf.shape)
    np.add.at(folded, (rows[:, None], columns[None, :]), psf)
    return fft.rfft2(folded).astype(np.complex64)


def stamp_sizes(mixtures, jacobian, psf, share=SHARE):
    """Stamp size (pixels) for each source: room for all but ``share`` of its light, (n,) int array."""
    share = np.broadcast_to(share, len(mixtures))
    stretch = np.linalg.norm(jacobian, ord=2, axis=(1, 2))  # pixel per arcsec
    need = 2.0 * np.hypot(light_radius(mixtures, share) * stretch, psf_radius(psf, share)) + 3.0
    return SIZES[np.minimum(np.searchsorted(SIZES, need), len(SIZES) - 1)]


def render(mixtures, xy, jacobian, psf, *, sizes=None):
    """Draw unit-flux sources on the native pixels of one image.

    Parameters
    ----------
    mixtures : (n, K, 6) array
        Light before any PSF; see the module's description.
    xy : (n, 2) array
        Source positions, pixel (x, y), 0-based at pixel centres.
    jacobian : (n, 2, 2) array
        d(x, y)/d(east, north) in pixel per arcsec.
    psf : (k, l) array
        Odd, on the image's own pixels (pixel response included).
    sizes : (n,) int array, optional
        Stamp sizes in pixels, odd. By default they follow from the light and the PSF.

    Returns
    -------
    list of `Stamps`
        One entry per stamp size; every stamp sums to the PSF's sum (light that would fall off a
        stamp, about 0.1 %, is folded back into it).
    """
    mixtures, xy = np.asarray(mixtures, dtype=float), np.asarray(xy, dtype=float)
    jacobian = np.asarray(jacobian, dtype=float)
    if sizes is None:
        sizes = stamp_sizes(mixtures, jacobian, psf)
    groups, core = [], psf_core(psf)
    for size in np.unique(sizes):
        index = np.flatnonzero(sizes == size)
        transform = _psf_transform(psf, size)
        corner = np.round(xy[index]).astype(int) - size // 2
        values = np.empty((len(index), size, size), dtype=np.float32)
        step = max(1, CHUNK // (size * (size // 2 + 1)))
        for start in range(0, len(index), step):
            part = slice(start, start + step)
            light = _mixture_transform(
                mixtures[index[part]], xy[index[part]] - corner[part], jacobian[index[part]],
                np.fft.fftfreq(size), np.fft.rfftfreq(size),
            )
            light *= transform
            values[part] = fft.irfft2(light, s=(size, size), axes=(1, 2), overwrite_x=True)
        if core is not None:
            middle = slice(size // 2 - CORE // 2, size // 2 + CORE // 2 + 1)
            first = corner + size // 2 - CORE // 2
            values[:, middle, middle] += _folded(mixtures[index], xy[index] - first, jacobian[index], core)
        groups.append(Stamps(index, corner, values))
    return groups


def _folded(mixtures, center, jacobian, core):
    """What an undersampled PSF's frequencies beyond Nyquist add to stamps, (n, CORE, CORE).

    The sampled PSF holds them folded as they are for a source on a pixel's centre; elsewhere each has the phase
    of its own frequency. That difference is added.
    """
    fy, fx = np.fft.fftfreq(CORE), np.fft.rfftfreq(CORE)
    inner = _mixture_transform(mixtures, center, jacobian, fy, fx)
    total = np.zeros_like(inner)
    for my in (-1, 0, 1):
        for mx in (-1, 0, 1):
            if mx or my:
                light = _mixture_transform(mixtures, center, jacobian, fy + my, fx + mx)
                total += (light - inner) * core.transform(fy + my, fx + mx).astype(np.complex64)
    return fft.irfft2(total, s=(CORE, CORE), axes=(1, 2))


def _mixture_transform(mixtures, center, jacobian, fy, fx):
    """Closed-form Fourier transform at frequencies (cycles per pixel), (n, len(fy), len(fx)) complex64."""
    weight, covariance = mixtures[..., 0], _pixel_covariance(mixtures, jacobian)
    shift = np.einsum("nij,nkj->nki", jacobian, mixtures[..., 1:3]) + center[:, None]  # (n, K, 2)
    total = np.zeros((len(mixtures), len(fy), len(fx)), dtype=np.complex64)
    common = np.ptp(shift, axis=1).max(initial=0.0) < 1e-9
    gaussians = np.zeros(total.shape, dtype=np.float32) if common else None
    half = np.float32(-2.0 * np.pi**2)
    xx = (half * fx**2).astype(np.float32)[None, None, :]
    xy = (2 * half * fy[:, None] * fx[None, :]).astype(np.float32)[None]
    yy = (half * fy**2).astype(np.float32)[None, :, None]
    cov = covariance.astype(np.float32)
    for k in range(mixtures.shape[1]):
        live = np.flatnonzero(weight[:, k] > 0.0)
        if len(live) == 0:
            continue
        every = len(live) == len(weight)
        use = slice(None) if every else live
        exponent = cov[use, k, 0, 0, None, None] * xx + cov[use, k, 0, 1, None, None] * xy
        exponent += cov[use, k, 1, 1, None, None] * yy
        np.exp(exponent, out=exponent)
        exponent *= weight[use, k, None, None].astype(np.float32)
        if common:
            gaussians[use] += exponent
        else:
            total[use] += exponent * _phase(shift[use, k], fx, fy)
    if common:
        total = gaussians * _phase(shift[:, 0], fx, fy)
    return total


def _phase(shift, fx, fy):
    """exp(-2 pi i f.shift) on a grid of frequencies, from two 1-D factors."""
    x = np.exp(-2j * np.pi * shift[:, 0, None] * fx).astype(np.complex64)
    y = np.exp(-2j * np.pi * shift[:, 1, None] * fy).astype(np.complex64)
    return y[:, :, None] * x[:, None, :]


def _pixel_covariance(mixtures, jacobian):
    """Component covariances in pixels, (n, K, 2, 2)."""
    sky = np.stack([mixtures[..., [3, 4]], mixtures[..., [4, 5]]], axis=-2)
    return np.einsum("nij,nkjl,nml->nkim", jacobian, sky, jacobian)


def evaluate(mixture, *, fwhm=REFERENCE_FWHM, scale=REFERENCE_SCALE, size=None):
    """The template of one source at the reference resolution.

    Parameters
    ----------
    mixture : (K, 6) array
        Light before any PSF.
    fwhm : float, optional
        FWHM (arcsec) of the Gaussian that the light is seen through.
    scale : float, optional
        Grid step, arcsec.
    size : int, optional
        Pixels a side, odd; by default large enough for the light.

    Returns
    -------
    (size, size) float64 array
        Non-negative, unit sum, axis order [north, west]: north is up and east to the left, and the
        source position is the centre of the middle pixel.
    """
    mixture = np.asarray(mixture, dtype=float)
    blur = (fwhm / FWHM_PER_SIGMA) ** 2
    if size is None:
        size = 2 * int(np.ceil((light_radius(mixture[None], SHARE)[0] + 2.0 * fwhm) / scale)) + 1
    axis = (np.arange(size) - size // 2) * scale
    north, west = np.meshgrid(axis, axis, indexing="ij")
    image = np.zeros((size, size))
    for weight, east0, north0, sxx, sxy, syy in mixture[mixture[:, 0] > 0.0]:
        sxx, syy = sxx + blur, syy + blur
        det = sxx * syy - sxy**2
        x, y = -west - east0, north - north0
        image += weight / np.sqrt(det) * np.exp(-0.5 * (syy * x**2 - 2 * sxy * x * y + sxx * y**2) / det)
    return image / image.sum()


def half_light_radius(mixtures):
    """Radius (arcsec) of the circle about the mean position that holds half of the light, (n,).

    Elliptical components enter with the circle of equal area, which is exact for round sources.
    """
    mixtures = np.asarray(mixtures, dtype=float)
    weight = mixtures[..., 0]
    variance = np.sqrt(np.maximum(mixtures[..., 3] * mixtures[..., 5] - mixtures[..., 4] ** 2, 0.0))
    centre = (weight[..., None] * mixtures[..., 1:3]).sum(axis=1, keepdims=True)
    variance = variance + 0.5 * ((mixtures[..., 1:3] - centre) ** 2).sum(axis=-1)
    low, high = np.zeros(len(mixtures)), 5.0 * np.sqrt(variance.max(axis=1, initial=0.0)) + 1e-6
    for _ in range(40):
        middle = 0.5 * (low + high)
        inside = (weight * -np.expm1(-0.5 * middle[:, None] ** 2 / np.maximum(variance, 1e-12))).sum(axis=1)
        low, high = np.where(inside < 0.5, middle, low), np.where(inside < 0.5, high, middle)
    return 0.5 * (low + high)
