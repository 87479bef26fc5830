# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How noise is correlated between pixels, measured on residuals."""

import numpy as np
from scipy import fft
from scipy.signal import fftconvolve

__all__ = ["DISTANCES", "noise_factor", "overlap", "psf_overlap", "significance", "sky_products"]

REACH = 8  # pixels: the noise of resampled images is not correlated over more
OUTLIER = 5.0  # in units of the scatter: larger residuals are no noise
FEWEST = 4000  # pixels that tell the noise: the error of a large source is then known to 15 %
SMALLEST = 0.1  # of the variance of a pixel: what is left of it in a sum, at least

_Y, _X = np.mgrid[-REACH : REACH + 1, : REACH + 1]
_DISTANCE = np.round(2.0 * np.hypot(_Y, _X)) / 2.0
#: Between two pixels, in steps of half a pixel.
DISTANCES = np.unique(_DISTANCE[_DISTANCE <= REACH])
_RING = np.minimum(np.searchsorted(DISTANCES, _DISTANCE), len(DISTANCES) - 1)
_TWICE = np.where(_X > 0, 2.0, 1.0) * (_DISTANCE <= REACH)  # the other half of the plane is the same


def significance(residual, valid, psf):
    """Fluxes of point sources everywhere on a residual image, in units of the error that uncorrelated pixels give.

    Parameters
    ----------
    residual : (ny, nx) array
        Residual over its standard deviation; 0 where invalid.
    valid : (ny, nx) bool array
    psf : (k, l) array

    Returns
    -------
    (ny, nx) float32 array
        Output of the matched filter over its expectation; NaN where much of the filter falls on no pixel.
    """
    kernel = _filter(psf)
    top = fftconvolve(np.where(valid, residual, 0.0).astype(np.float32), kernel, mode="same")
    bottom = fftconvolve(valid.astype(np.float32), kernel**2, mode="same")
    good = bottom > 0.9 * (kernel**2).sum()
    return np.divide(top, np.sqrt(np.where(good, bottom, 1.0)), out=np.full_like(top, np.nan), where=good)


def sky_products(residual, valid):
    """Products of the residuals of two pixels, summed by how far these are apart.

    Parameters
    ----------
    residual : (ny, nx) array
        Residual over its standard deviation.
    valid : (ny, nx) bool array
        Pixels of the sky, without those that sources light.

    Returns
    -------
    (2, n_distance) array
        Sums of products, and numbers of pairs; those of several images add up. Outliers are cut at `OUTLIER` times the
        scatter. The mean is not subtracted: what is left of the sky is an error of fluxes as well.
    """
    ny, nx = residual.shape
    if not valid.any():
        return np.zeros((2, len(DISTANCES)))
    highest = OUTLIER * 1.4826 * np.median(np.abs(residual[valid]))
    cut = np.where(valid, np.clip(residual, -highest, highest), 0.0)
    return np.stack([_by_distance(_lags(image)) for image in (cut, valid.astype(float))])


def overlap(template):
    """Products of a template's pixels, summed by how far these are apart.

    Parameters
    ----------
    template : (k, l) array
        What the estimator of a flux multiplies residuals over their standard deviation with.

    Returns
    -------
    (n_distance,) array
        Over the sum of its squares; 1 at distance 0.
    """
    sums = _by_distance(_lags(template))
    return sums / sums[0] if sums[0] > 0 else np.eye(1, len(DISTANCES))[0]


def noise_factor(products, overlaps):
    """How much more fluxes scatter than uncorrelated pixels of the given variances would let them.

    A flux is a sum of pixels with weights t, so its variance is t'Ct, with C the covariance of the pixels; that of
    uncorrelated pixels is t't. C depends on the distance of two pixels only.

    Parameters
    ----------
    products : (2, n_distance) array
        Of `sky_products`.
    overlaps : (n, n_distance) array
        Of `overlap`.

    Returns
    -------
    (n,) array
        1 where there are too few pixels to tell.
    """
    total, pairs = products
    if pairs[0] < FEWEST:
        return np.ones(len(overlaps))
    covariance = np.divide(total, pairs, out=np.zeros_like(total), where=pairs > 0)
    return np.sqrt(np.maximum(overlaps @ covariance, SMALLEST * covariance[0]))


def _lags(image):
    """Sums of products of an image with itself, shifted by up to `REACH` pixels: (2 * REACH + 1, REACH + 1)."""
    shape = [fft.next_fast_len(max(n, REACH + 1) + REACH, real=True) for n in image.shape]
    power = np.abs(fft.rfft2(image, s=shape)) ** 2
    return fft.irfft2(power, s=shape)[np.arange(-REACH, REACH + 1), : REACH + 1]


def _by_distance(lags):
    """Lags summed over all directions, (n_distance,)."""
    return np.bincount(_RING.ravel(), (_TWICE * lags).ravel(), minlength=len(DISTANCES))


def psf_overlap(psf):
    """`overlap` of the filter of `significance`."""
    return overlap(_filter(psf))


def _filter(psf):
    half = [max(3, min(k // 2, 10)) for k in psf.shape]
    cy, cx = psf.shape[0] // 2, psf.shape[1] // 2
    rows, columns = (slice(max(c - h, 0), c + h + 1) for c, h in zip((cy, cx), half, strict=True))
    return psf[rows, columns][::-1, ::-1].astype(np.float32)
