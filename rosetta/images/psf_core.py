# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The core of an undersampled PSF as a continuous function: diffraction by a telescope, blurred, and a square pixel.

What undersamples its PSF is a telescope in space. Its aperture passes no frequency beyond a cutoff, and the pixels
fold what lies between Nyquist's frequency and that cutoff onto the rest. The same pixels, shifted, are predicted
from the few numbers that describe the aperture's transform and the blur.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import fft
from scipy.optimize import least_squares

from .cache import cached_by_pixels

__all__ = ["OversampledCore", "PsfCore", "psf_core"]

ALIASED = 0.02  # transform at the Nyquist frequency, relative to the sum, above which a PSF is undersampled
HALF = 6  # pixels about the centre that are fitted
GRID = 32  # pixels of the image that the model is evaluated on
FOLDS = 2  # whole frequencies that the pixels fold back, to either side

# ln of the cutoff (cycles per pixel) and of three blurs (pixels), distortion (2), centre (2); and how far each may go.
START = np.array([np.log(0.8), np.log(0.3), np.log(0.8), np.log(2.2), 0.0, 0.0, 0.0, 0.0])
REACH = np.array([0.9, 1.0, 0.7, 0.5, 0.4, 0.4, 0.5, 0.5])


@dataclass(frozen=True, eq=False)
class PsfCore:
    """A sum of four terms: diffraction with two blurs, and two blurs without it.

    Attributes
    ----------
    weight : (4,) array
    shape : (8,) array
        As `START`.
    """

    weight: np.ndarray
    shape: np.ndarray

    def transform(self, fy, fx):
        """Fourier transform at frequencies (cycles per pixel), (len(fy), len(fx)) complex."""
        return np.tensordot(self.weight, _terms(self.shape, fy, fx), axes=1)


@dataclass(frozen=True, eq=False)
class OversampledCore:
    """A PSF that is known on a grid finer than the pixels.

    Attributes
    ----------
    samples : (k, l) array
        What a pixel sees of a source whose place in it varies; the middle one is for a source on the pixel's centre.
    oversampling : int
        Samples per pixel and axis.
    """

    samples: np.ndarray
    oversampling: int

    def transform(self, fy, fx):
        """Fourier transform at frequencies (cycles per pixel), (len(fy), len(fx)) complex."""
        waves = [
            np.exp(-2j * np.pi * np.outer(f, (np.arange(n) - n // 2) / self.oversampling))
            for f, n in zip((fy, fx), self.samples.shape, strict=True)
        ]
        return waves[0] @ self.samples @ waves[1].T / self.oversampling**2


@cached_by_pixels
def psf_core(psf, near=None):
    """Fit the core of a PSF.

    Parameters
    ----------
    psf : (k, l) array
        Odd, pixel response included.
    near : tuple of float, optional
        ``shape`` of a core that is nearly the same: a few steps from there are enough.

    Returns
    -------
    `PsfCore` or None
        None where the pixels sample the PSF well enough to shift it as it is.
    """
    nyquist = [abs((psf.sum(axis=k) * (-1.0) ** np.arange(psf.shape[1 - k])).sum()) for k in (0, 1)]
    if max(nyquist) < ALIASED * psf.sum():
        return None
    half = min(HALF, *(k // 2 for k in psf.shape))
    cy, cx = (k // 2 for k in psf.shape)
    data = psf[cy - half : cy + half + 1, cx - half : cx + half + 1].ravel()

    def weights(matrix):
        return np.linalg.lstsq(matrix, data, rcond=1e-6)[0]

    def misfit(p):
        matrix = _images(p, half)
        return (matrix @ weights(matrix) - data) / data.max()

    start, steps = (START, 40) if near is None else (np.array(near), 6)
    found = least_squares(misfit, start, bounds=(START - REACH, START + REACH), max_nfev=steps).x
    return PsfCore(weights(_images(found, half)), found)


def _terms(shape, fy, fx):
    """Fourier transforms of the terms, (4, len(fy), len(fx)) complex."""
    (cutoff, *blurs), (e1, e2, x, y) = np.exp(shape[:4]), shape[4:]
    fy, fx = fy[:, None], fx[None, :]
    square = (1.0 + e1) * fx**2 + 2.0 * e2 * fx * fy + (1.0 - e1) * fy**2
    ratio = np.minimum(np.sqrt(square) / cutoff, 1.0)
    aperture = (np.arccos(ratio) - ratio * np.sqrt(1.0 - ratio**2)) * 2.0 / np.pi  # of a filled circle
    core, middle, halo = (np.exp(-2.0 * np.pi**2 * blur**2 * square) for blur in blurs)
    pixel = np.sinc(fx) * np.sinc(fy) * np.exp(-2j * np.pi * (fx * x + fy * y))
    return np.stack([aperture * core, aperture * middle, middle, halo]) * pixel


def _images(shape, half):
    """The terms as pixels see them, within ``half`` of the centre: (n_pixel, 4)."""
    fy, fx, n = np.fft.fftfreq(GRID), np.fft.rfftfreq(GRID), 2 * half + 1
    whole = range(-FOLDS, FOLDS + 1)
    folded = sum(_terms(shape, fy + my, fx + mx) for my, mx in product(whole, whole))
    images = fft.irfft2(folded, s=(GRID, GRID), axes=(1, 2))
    return np.roll(images, (half, half), axis=(1, 2))[:, :n, :n].reshape(len(images), -1).T
