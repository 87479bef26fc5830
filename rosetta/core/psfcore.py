# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The core of an undersampled PSF as a continuous function: Gaussians of one ellipticity, seen by a square pixel."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import least_squares

__all__ = ["PsfCore", "psf_core"]

ALIASED = 0.02  # transform at the Nyquist frequency, relative to the sum, above which a PSF is undersampled
HALF = 6  # pixels about the centre that are fitted
FINE = 7  # points a pixel side over which the model is averaged


@dataclass(frozen=True, eq=False)
class PsfCore:
    """Gaussians, to be averaged over a pixel; unit: pixels.

    Attributes
    ----------
    weight : (K,) array
    covariance : (K, 3) array
        xx, xy, yy.
    centre : (2,) array
        (x, y) from the central pixel.
    """

    weight: np.ndarray
    covariance: np.ndarray
    centre: np.ndarray

    def transform(self, fy, fx):
        """Fourier transform at frequencies (cycles per pixel), (len(fy), len(fx)) complex."""
        fy, fx = fy[:, None], fx[None, :]
        total = np.zeros(np.broadcast_shapes(fy.shape, fx.shape))
        for weight, (xx, xy, yy) in zip(self.weight, self.covariance, strict=True):
            total += weight * np.exp(-2.0 * np.pi**2 * (xx * fx**2 + 2.0 * xy * fx * fy + yy * fy**2))
        phase = np.exp(-2j * np.pi * (fx * self.centre[0] + fy * self.centre[1]))
        return total * np.sinc(fx) * np.sinc(fy) * phase


def psf_core(psf):
    """Fit the core of a PSF.

    Parameters
    ----------
    psf : (k, l) array
        Odd, pixel response included.

    Returns
    -------
    `PsfCore` or None
        None where the pixels sample the PSF well enough to shift it as it is.
    """
    psf = np.ascontiguousarray(psf, dtype=float)
    return _fit(psf.shape, psf.tobytes())


@lru_cache(maxsize=64)
def _fit(shape, raw):
    psf = np.frombuffer(raw).reshape(shape)
    nyquist = [abs((psf.sum(axis=k) * (-1.0) ** np.arange(psf.shape[1 - k])).sum()) for k in (0, 1)]
    if max(nyquist) < ALIASED * psf.sum():
        return None
    half = min(HALF, *(k // 2 for k in shape))
    cy, cx = shape[0] // 2, shape[1] // 2
    data = psf[cy - half : cy + half + 1, cx - half : cx + half + 1]
    n = 2 * half + 1
    axis = (np.arange(n * FINE) - (n * FINE - 1) / 2) / FINE

    def basis(p):
        x, y = axis - p[5], axis[:, None] - p[6]
        columns = []
        for xx, xy, yy in _covariance(p):
            det = xx * yy - xy**2
            image = np.exp(-0.5 * (yy * x**2 - 2.0 * xy * x * y + xx * y**2) / det) / (2.0 * np.pi * np.sqrt(det))
            columns.append(image.reshape(n, FINE, n, FINE).mean(axis=(1, 3)).ravel())
        return np.stack(columns, axis=1)

    def weights(matrix):
        return np.linalg.lstsq(matrix, data.ravel(), rcond=1e-8)[0]

    def misfit(p):
        matrix = basis(p)
        return (matrix @ weights(matrix) - data.ravel()) / data.max()

    start = np.array([np.log(0.45), np.log(0.9), np.log(2.2), 0.0, 0.0, 0.0, 0.0])
    width = np.array([0.5, 0.5, 0.5, 0.4, 0.4, 0.5, 0.5])
    found = least_squares(misfit, start, bounds=(start - width, start + width), max_nfev=30).x
    return PsfCore(weights(basis(found)), _covariance(found), found[5:])


def _covariance(p):
    size, e1, e2 = np.exp(2.0 * p[:3]), p[3], p[4]
    return size[:, None] * np.array([1.0 + e1, e2, 1.0 - e1])
