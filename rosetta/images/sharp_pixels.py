# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Pixels that are sharper than the PSF allows: cosmic rays and hot pixels that a survey has not masked.

The idea is that of L.A.Cosmic (van Dokkum 2001), with the PSF of the image in place of a Laplacian. Light that came
through the optics is a sum of PSFs with positive weights: a bound that holds for the PSF at every sub-pixel place holds
for every star and galaxy, however sharp the image.
"""

from itertools import product

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve

from .filtering import nmad
from .moments import half_maximum_width

__all__ = ["sharp_pixels"]

THRESHOLD = 5.0  # sigma by which the bound is broken,
TOLERANCE = 0.1  # beyond the share of the light by which the PSF may be wrong
GROWTH = 2.0  # sigma down to which the pixels of a track are followed
BRIGHT = 10.0  # sigma of the peaks that tell how sharp the sources of an image are
REACH = 1.0, 5.0  # arcsec within which a pixel
LEAST_SHARE = 0.05, 0.001  # must have this share of the brightest one: the wings of a star have structure of their own
SHARPEST = 0.6  # pixels, one sigma: no camera has a sharper PSF, pixel response included
LENGTH = 3  # pixels of the short lines that tracks are made of
ON_LINE = 0.3  # of the most light that a line can have of a source: with less, the source is not on it


def sharp_pixels(data, variance, psf, pixel_scale):
    """Pixels that no sum of PSFs can explain.

    Each pixel, and each short line of pixels (horizontal, vertical, diagonal), is compared with the light around it.
    With h the pixel or line, p the PSF and d any positive sky seen through it, (h * p) d is at least k h d, where k is
    the least ratio of the two over all places of a point source.

    A PSF that is given too broad would turn every star into an artefact. So the sources of the image are asked too: k
    is lowered until it holds for three quarters of the bright peaks, but not below that of the sharpest PSF there is.

    Parameters
    ----------
    data, variance : (ny, nx) array
        The variance is infinite where a pixel is invalid, the data are 0 there.
    psf : (k, l) array
    pixel_scale : float
        arcsec.

    Returns
    -------
    (ny, nx) bool array
        Sharp pixels and those next to them. Those beside the border or an invalid pixel are not judged.
    """
    nothing = np.zeros(data.shape, bool)
    valid = np.isfinite(variance)
    if min(data.shape) < 2 * LENGTH or not valid.any():
        return nothing
    core = _core(psf)
    sigma = np.sqrt(np.where(valid, variance, 1.0))
    judged = valid & (data > GROWTH * sigma)
    for reach, share in zip(REACH, LEAST_SHARE, strict=True):
        judged &= data > share * ndimage.maximum_filter(data, 2 * int(np.ceil(reach / pixel_scale)) + 1)
    judged &= fftconvolve(valid.astype(np.float32), (core / core.sum()).astype(np.float32), mode="same") > 0.95
    seeds, track, slack = nothing.copy(), nothing.copy(), None
    for line in _lines():
        broad = fftconvolve(line, core)  # h * p
        light = ndimage.convolve(data, line, mode="constant")
        around = fftconvolve(data, broad[::-1, ::-1].astype(np.float32), mode="same")
        bound = _least_ratio(line, broad, core)
        if slack is None:  # of the single pixel, which comes first
            matched = np.where(valid, around / sigma, 0.0)
            peaks = judged & (matched > BRIGHT * max(_scatter(matched), 0.3 * np.sqrt((core**2).sum())))
            peaks &= around == ndimage.maximum_filter(around, 3)
            slack = _slack(around[peaks] / light[peaks], bound, _least_ratio(line, broad, _sharpest(core.shape)))
        bound *= slack
        noise = sigma * _norm(line, broad, bound)
        excess = bound * light - around
        scale = max(_scatter(np.where(valid, excess / noise, 0.0)), 0.3)  # correlated noise changes it
        excess = np.where(judged, (excess - TOLERANCE * bound * light) / noise, 0.0) / scale
        seeds |= ndimage.binary_dilation(excess > THRESHOLD, line > 0)
        track |= ndimage.binary_dilation(excess > GROWTH, line > 0)
    seeds, track = seeds & judged, track & judged
    if not seeds.any():
        return nothing
    around_it = np.ones((3, 3))
    return ndimage.binary_dilation(ndimage.binary_propagation(seeds, around_it, mask=track), around_it)


def _lines():
    """A pixel, and short lines in four directions: arrays with odd sides and unit sum."""
    diagonal, level = np.eye(LENGTH) / LENGTH, np.zeros((LENGTH, LENGTH))
    level[LENGTH // 2] = 1.0 / LENGTH
    return np.ones((1, 1)), level, level.T, diagonal, diagonal[::-1]


def _core(psf):
    """The PSF out to twice its width, with odd sides."""
    half = [min(n // 2, int(np.ceil(2 * half_maximum_width(psf)))) for n in psf.shape]
    rows, columns = (slice(n // 2 - h, n // 2 + h + 1) for n, h in zip(psf.shape, half, strict=True))
    return np.maximum(psf[rows, columns], 0.0)


def _sharpest(shape):
    """The sharpest PSF there is, on a stamp with odd sides."""
    y, x = (np.arange(n) - n // 2 for n in shape)
    return np.exp(-0.5 * (y[:, None] ** 2 + x**2) / SHARPEST**2)


def _least_ratio(line, broad, psf):
    """Least ratio of the light in ``broad`` to that in ``line``, over the places of a point source on the line."""
    ratios = []
    for place in product((0.0, 0.5), repeat=2):  # within a pixel
        source = np.maximum(ndimage.shift(_framed(psf, np.add(broad.shape, 4)), place, order=3), 0.0)
        light = fftconvolve(source, line[::-1, ::-1], mode="same")
        around = fftconvolve(source, broad[::-1, ::-1], mode="same")
        on = light > ON_LINE * light.max()
        ratios.append((around[on] / light[on]).min())
    return min(ratios)


def _slack(ratios, bound, lowest):
    """How far the bound must be lowered for the bright peaks of an image; artefacts beyond doubt are left out."""
    ratios = ratios[ratios > lowest]
    usual = np.quantile(ratios, 0.25) if len(ratios) else bound
    return max(min(bound, usual), lowest) / bound


def _scatter(values):
    """Robust, of one pixel in nine."""
    return nmad(values[::3, ::3])


def _norm(line, broad, bound):
    """Root of the sum of squares of the filter ``bound * line - broad``."""
    cross = (line * _framed(broad, line.shape)).sum()
    return np.sqrt(bound**2 * (line**2).sum() - 2 * bound * cross + (broad**2).sum())


def _framed(array, shape):
    """An array with odd sides, cut or padded with zeros about its middle."""
    array = np.pad(array, [(max(0, (n - k) // 2),) * 2 for n, k in zip(shape, array.shape, strict=True)])
    y, x = ((k - n) // 2 for n, k in zip(shape, array.shape, strict=True))
    return array[y : y + shape[0], x : x + shape[1]]
