# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Cubic B-splines: images as functions of position (Unser 1999)."""

import numpy as np
from scipy import fft

__all__ = ["spline_filter", "value_and_slopes", "value_at", "values_of_stacks"]


def spline_filter(n):
    """Transfer function (n, n // 2 + 1) that makes cubic B-spline coefficients of the samples of an image."""
    fy, fx = fft.fftfreq(n)[:, None], fft.rfftfreq(n)
    return 9.0 / ((2.0 + np.cos(2 * np.pi * fy)) * (2.0 + np.cos(2 * np.pi * fx)))  # Unser 1999


def _bspline(t):
    """Values and derivatives of the four cubic B-spline weights at fraction t (Unser 1999)."""
    s = 1.0 - t
    value = [s**3 / 6, t * t * (t / 2 - 1) + 2 / 3, s * s * (s / 2 - 1) + 2 / 3, t**3 / 6]
    slope = [-s * s / 2, t * (1.5 * t - 2), s * (2 - 1.5 * s), t * t / 2]
    return value, slope


def _taps(images, x, y):
    """Where the 16 spline coefficients around positions lie in ``images.ravel()``: that of the first one (n, n_pixel),
    the steps to the others (4, 4) [y, x], and the fractions of a pixel; positions are clipped to the images.

    With a stack of images (n, ny, nx), x and y are (n, n_pixel), one row per image.
    """
    ny, nx = images.shape[-2:]
    x, y = np.clip(x, 1.0, nx - 3.0), np.clip(y, 1.0, ny - 3.0)
    ix, iy = np.floor(x).astype(int), np.floor(y).astype(int)
    first = (iy - 1) * nx + ix - 1
    if images.ndim == 3:
        first += ny * nx * np.arange(len(images))[:, None]
    return first, nx * np.arange(4)[:, None] + np.arange(4), x - ix, y - iy


def value_at(spline, x, y):
    """Value of a spline image, or of a stack of them, at positions: see `_taps`."""
    first, step, fx, fy = _taps(spline, x, y)
    (wx, _), (wy, _), flat = _bspline(fx), _bspline(fy), spline.ravel()
    value = 0.0
    for j in range(4):
        value = value + wy[j] * sum(wx[i] * flat.take(first + step[j, i]) for i in range(4))
    return value


def value_and_slopes(spline, x, y):
    """Value and gradient (per reference pixel) of a spline image, or of a stack of them, at positions: see `_taps`."""
    first, step, fx, fy = _taps(spline, x, y)
    (wx, sx), (wy, sy), flat = _bspline(fx), _bspline(fy), spline.ravel()
    value = along_x = along_y = 0.0
    for j in range(4):
        taps = [flat.take(first + step[j, i]) for i in range(4)]
        row, slope = (sum(w[i] * taps[i] for i in range(4)) for w in (wx, sx))
        value, along_y, along_x = value + wy[j] * row, along_y + sy[j] * row, along_x + wy[j] * slope
    return value, along_x, along_y


def values_of_stacks(splines, x, y):
    """Values of stacks of spline images (n, ny, nx, n_function) at x, y (n, n_pixel): (n, n_pixel, n_function)."""
    n, ny, nx, _ = splines.shape
    x, y = np.clip(x, 1.0, nx - 3.0), np.clip(y, 1.0, ny - 3.0)
    ix, iy = np.floor(x).astype(int), np.floor(y).astype(int)
    wx, wy = _bspline(x - ix)[0], _bspline(y - iy)[0]
    image = np.arange(n)[:, None]
    out = 0.0
    for j in range(4):
        for i in range(4):
            out = out + splines[image, iy + j - 1, ix + i - 1] * (wy[j] * wx[i])[..., None]
    return out
