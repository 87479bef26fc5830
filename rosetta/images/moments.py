# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Adaptive moments: the one definition of "where a profile is" used throughout.

A plain first moment follows faint wings; the centroid under a matched Gaussian weight does not.
Bernstein & Jarvis (2002), section 3; Hirata & Seljak (2003).
"""

import numpy as np

from .cache import cached_by_pixels

__all__ = ["adaptive_moments", "fourier_shift", "half_maximum_width"]

# Smallest weight, pixels squared (1.7 pixels full width at half maximum). Under a narrower one the weight of
# an undersampled cusp, such as Euclid's VIS PSF, collapses onto the peak pixel and says nothing of the rest.
_NARROWEST = 0.5


def adaptive_moments(image, *, max_iterations=200, tolerance=1e-9):
    """Centroid and covariance of ``image`` under its own best-matching elliptical Gaussian.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        A compact positive profile, such as a PSF.

    Returns
    -------
    centroid : ndarray, shape (2,)
        (x, y), 0-based pixels.
    covariance : ndarray, shape (2, 2)
        Second moments in pixels squared, axes in the order (x, y).

    Raises
    ------
    ValueError
        If the iteration leaves the image: there is no compact profile to measure.
    """
    ny, nx = image.shape
    y, x = np.mgrid[:ny, :nx]
    peak = np.unravel_index(np.argmax(image), image.shape)
    centroid = np.array([peak[1], peak[0]], float)
    area = max(image.sum() / image.max(), 1.0)  # about 2 pi sigma^2
    covariance = np.eye(2) * max(area / (2 * np.pi), 0.25)
    for _ in range(max_iterations):
        d = np.stack([x - centroid[0], y - centroid[1]])  # (2, ny, nx)
        inverse = np.linalg.inv(covariance)
        weight = np.exp(-0.5 * np.einsum("iyx,ij,jyx->yx", d, inverse, d)) * image
        total = weight.sum()
        if not total > 0:
            raise ValueError("image has no compact positive profile: adaptive moments are undefined")
        step = np.einsum("iyx,yx->i", d, weight) / total
        measured = np.einsum("iyx,jyx,yx->ij", d, d, weight) / total - np.outer(step, step)
        # A Gaussian seen through an equal Gaussian weight has half its covariance and half its offset.
        new_centroid = centroid + 2 * step
        new_covariance = 2 * measured
        smallest = np.linalg.eigvalsh(new_covariance)[0]
        if smallest < _NARROWEST:
            new_covariance += (_NARROWEST - smallest) * np.eye(2)
        if not (-0.5 <= new_centroid[0] <= nx - 0.5 and -0.5 <= new_centroid[1] <= ny - 0.5):
            raise ValueError("image has no compact positive profile: its centroid leaves the image")
        change = np.abs(new_centroid - centroid).max() + np.abs(new_covariance - covariance).max()
        centroid, covariance = new_centroid, new_covariance
        if change < tolerance:
            break
    return centroid, covariance


def fourier_shift(image, dx, dy):
    """``image`` moved by (dx, dy) pixels by band-limited interpolation; the sum is kept."""
    ky = np.fft.fftfreq(image.shape[0])[:, None]
    kx = np.fft.rfftfreq(image.shape[1])[None, :]
    phase = np.exp(-2j * np.pi * (kx * dx + ky * dy))
    return np.fft.irfft2(np.fft.rfft2(image) * phase, s=image.shape)


@cached_by_pixels
def half_maximum_width(psf, oversampling=8):
    """Full width at half maximum in pixels: of the circle with the area above half the peak.

    The profile is interpolated on a grid ``oversampling`` times as fine by padding its Fourier transform.
    """
    (ny, nx), k = psf.shape, oversampling  # odd sides
    padded = np.zeros((ny * k, nx * k), complex)
    spectrum = np.fft.fftshift(np.fft.fft2(psf))
    y0, x0 = ny * k // 2 - ny // 2, nx * k // 2 - nx // 2
    padded[y0 : y0 + ny, x0 : x0 + nx] = spectrum
    fine = np.fft.ifft2(np.fft.ifftshift(padded)).real
    return 2 * np.sqrt((fine > fine.max() / 2).sum() / np.pi) / k
