# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A PSF corrected on the residuals of the brightest sources, after a fit with the sharp image brought to this PSF.

The correction is a sum of Gauss-Hermite functions (Refregier 2003), common to all sources; each source's own
amplitude, shift and background, and its neighbours' colour, are projected out. How large the coefficients may be is
chosen by their marginal likelihood (MacKay 1992), so that a right PSF stays as it is. Where a lopsided correction
puts the PSF is a convention: its adaptive-moment centroid stays at the central pixel.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import fft, linalg

from ..images.moments import adaptive_moments, fourier_shift, half_maximum_width
from . import registration, splines
from .template import blurred

__all__ = ["PsfCorrectionConfig", "corrected_psf"]

_ORDER = 6  # of the Gauss-Hermite functions
_POWERS = [(p, q) for q in range(_ORDER + 1) for p in range(_ORDER + 1 - q)]
_WIDTHS = 10.0 ** np.arange(-4.0, 0.1, 0.5)  # prior widths that are tried, in units of the PSF's peak


@dataclass(frozen=True)
class PsfCorrectionConfig:
    """Which sources a PSF is corrected on.

    Attributes
    ----------
    most_sources, min_sources : int
        The brightest ones, and how many there must be.
    min_snr : float
    color : float
        Share of its light by which a source may differ from its template for reasons of its own.
    """

    most_sources: int = 30
    min_sources: int = 3
    min_snr: float = 30.0
    color: float = 0.01


def corrected_psf(
    psf, template, data, variance, valid, geometry, offset, radius, snr, amplitude, config=PsfCorrectionConfig()
):
    """The PSF of a target image, corrected on its brightest sources.

    Parameters
    ----------
    psf : numpy.ndarray
        As it is known: odd, unit sum, centred, on target pixels.
    template, data, variance, valid, geometry, offset, radius
        As for `~rosetta.astrometry.registration.fit_offsets`; the template was made with ``psf``.
    snr, amplitude : numpy.ndarray, shape (n,)
        Of that fit; NaN where a source could not be fitted.
    config : PsfCorrectionConfig

    Returns
    -------
    numpy.ndarray, of the shape of ``psf``
        ``psf`` itself where the data do not ask for another one.
    """
    bright = np.flatnonzero(np.nan_to_num(snr) > config.min_snr)
    chosen = bright[np.argsort(-snr[bright])][: config.most_sources]
    if len(chosen) < config.min_sources:
        return psf
    sigma = half_maximum_width(psf) / 2.3548
    px, py, x, y, nearest, use, design = registration.stamps(template, data, valid, geometry, offset, radius, chosen)
    a = amplitude[chosen]
    model = a[:, None] * design[..., 0]
    noise = variance[py, px] + a[:, None] ** 2 * template.correlation.max() * template.sharp.variance[nearest]
    noise = np.sqrt(noise + (config.color * model) ** 2)
    # What each function adds to the template, in counts of the target.
    light = a[:, None, None] * psf.max() * _blurred(template, geometry, offset, radius, chosen, sigma, x, y)
    triangles, size = [], []
    for k in range(len(chosen)):
        if use[k].mean() > 0.9:
            whole = np.column_stack([a[k] * design[k], light[k], data[py[k], px[k]]])[use[k]] / noise[k, use[k], None]
            triangles.append(linalg.qr(whole, mode="r", check_finite=False)[0][: whole.shape[1]])
            size.append(len(whole))
    if len(size) < config.min_sources:
        return psf
    coefficient = _solve(np.array(triangles), np.array(size))
    if not coefficient.any():
        return psf
    y, x = (_hermite((np.arange(n) - n // 2) / sigma) for n in psf.shape)
    new = psf + psf.max() * sum(c * np.outer(y[q], x[p]) for c, (p, q) in zip(coefficient, _POWERS, strict=True))
    try:
        (x, y), _ = adaptive_moments(new)
    except ValueError:  # no longer a PSF: the images are not of one sky, or not of stars and galaxies
        return psf
    new /= new.sum()
    return fourier_shift(new, psf.shape[1] // 2 - x, psf.shape[0] // 2 - y)


def _hermite(x):
    """Hermite functions of orders 0 to _ORDER: (order + 1, *x.shape)."""
    rows = [np.exp(-0.5 * x**2), np.sqrt(2.0) * x * np.exp(-0.5 * x**2)]
    for k in range(2, _ORDER + 1):
        rows.append(np.sqrt(2.0 / k) * x * rows[-1] - np.sqrt((k - 1) / k) * rows[-2])
    return np.array(rows)


def _blurred(template, geometry, offset, radius, chosen, sigma, x, y):
    """The reference around each source as every function would blur it: (n, n_pixel, n_function).

    A Hermite function is its own Fourier transform, so that no grid has to hold it.
    """
    matrix = geometry.matrix[chosen[0]]
    reach = np.abs(matrix).sum(1).max() * (radius + 5.0 * sigma)
    n = 2 * fft.next_fast_len(int(np.ceil(reach)) + 4)
    fx, fy = np.fft.rfftfreq(n), np.fft.fftfreq(n)[:, None]
    gx, gy = (matrix[0, i] * fx + matrix[1, i] * fy for i in (0, 1))  # cycles per target pixel
    row_x, row_y = (_hermite(2.0 * np.pi * sigma * g) for g in (gx, gy))
    sharp = template.sharp.sharpener(matrix, n)[:, : n // 2 + 1] * splines.spline_filter(n) * 2 * np.pi * sigma**2
    origin = geometry.reference[chosen] + np.einsum("nij,nj->ni", geometry.sky[chosen], offset[chosen])
    light, corner = template.sharp.cut(origin, n)
    light = fft.rfft2(light)
    kernels = [sharp * (-1j) ** (p + q) * row_x[p] * row_y[q] for p, q in _POWERS]
    stacks = np.stack([blurred(light, kernel) for kernel in kernels], -1)
    x, y = x - corner[:, 0, None] - n // 4, y - corner[:, 1, None] - n // 4
    return splines.values_of_stacks(stacks, x, y)


def _solve(triangles, size):
    """Coefficients from the triangular factors of the sources' whitened stamps [own columns | functions | data].

    The lower right corner is what is left with the own columns projected out. A source that does not fit counts
    less.
    """
    own = triangles.shape[1] - len(_POWERS) - 1
    corner = triangles[:, own:, own:]
    normal = corner.swapaxes(1, 2) @ corner
    weight = np.ones(len(size))
    for _ in range(4):
        coefficient = _shrunken(np.einsum("s,sij->ij", weight, normal), (weight * size).sum())
        vector = np.append(-coefficient, 1.0)
        chi2 = np.einsum("i,sij,j->s", vector, normal, vector) / size
        weight = 1.0 / np.maximum(chi2 / np.median(chi2), 1.0)
    # A source's amplitude was the one under the uncorrected PSF, and it multiplies the coefficients.
    left = triangles[:, :own, own:] @ vector  # (n_source, own)
    again = np.einsum("sk,sk->s", np.linalg.pinv(triangles[:, :own, :own], rcond=1e-9)[:, 0], left)
    return coefficient / np.median(again)


def _shrunken(total, size):
    """Ridge solution with the prior widths of highest marginal likelihood, one for even and one for odd functions.

    Zero where none beats no correction. Odd functions move the centroid, and few PSFs are lopsided: a width of their
    own keeps the noise of the others' out.
    """
    normal, right = total[:-1, :-1], total[:-1, -1]
    odd = np.array([(p + q) % 2 for p, q in _POWERS])
    noise = (total[-1, -1] - right @ linalg.solve(normal + 1e-9 * normal.max() * np.eye(len(right)), right)) / size
    widths = np.array(list(product(_WIDTHS, _WIDTHS)))[:, odd]  # (n_width, n_function)
    precision = noise / widths**2
    matrix = normal + precision[:, :, None] * np.eye(len(right))
    solution = np.linalg.solve(matrix, right[:, None])[..., 0]
    log_det = np.linalg.slogdet(matrix)[1]
    evidence = 0.5 * (solution @ right / noise - log_det + np.log(precision).sum(1))
    best = np.argmax(evidence)
    return solution[best] if evidence[best] > 0 else np.zeros(len(right))
