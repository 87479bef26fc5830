# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Shapes of sources fitted to native pixels: damped Gauss-Newton steps around a proposed shape.

Each step solves the fluxes of all sources together, then the linearised problem of all fluxes and shapes
together, with the proposals as Gaussian priors, by conjugate gradients. Where the pixels say little the
answer is the proposal; its covariance (Laplace) is the uncertainty of the template.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg

from . import templates
from .mixture import Stamps, render, stamp_sizes
from .solve import design, solve

__all__ = ["DIRECTIONS", "Image", "flux_slopes", "fluxes", "mixtures_of", "refine"]

def _directions():
    """Directions in shape space: centre, size, shears, and weights of groups of Gaussians, core to wings."""
    groups = [[0, 1], [2, 3], [4], [6], [7]]  # the sixth Gaussian is what the others are relative to
    rows = np.zeros((5 + len(groups), templates.N_PARAMETER))
    rows[range(5), range(5)] = 1.0
    for row, group in zip(rows[5:], groups, strict=True):
        row[[templates.LOGITS.start + k for k in group]] = 1.0
    return rows


DIRECTIONS = _directions()
PRIOR_SIGMA = np.array([0.05, 0.05, 0.4, 0.45, 0.45, 1.5, 0.8, 0.5, 0.5, 1.5])
STEP = np.array([0.01, 0.01, 0.02, 0.02, 0.02, 0.05, 0.05, 0.05, 0.05, 0.05])
LARGEST = np.array([0.2, 0.2, 1.0, 0.8, 0.8, 3.0, 2.0, 2.0, 2.0, 3.0])
# Pixels of bright sources are not known better than the PSF is.
MODEL_ERROR = 0.01


@dataclass(frozen=True)
class Image:
    """One image as the fit sees it.

    Attributes
    ----------
    data, variance : (ny, nx) array
        nJy and nJy^2; the variance is infinite where a pixel must not be used.
    weight : (ny, nx) array
        Weights of the pixels in the fit of fluxes, 0 where a pixel must not be used.
    psf : (k, k) array
    xy : (n, 2) array
        Source positions in this image, pixels.
    jacobian : (n, 2, 2) array
        Pixel per arcsec.
    share : (n,) array
        Share of each source's light that its stamp may leave out.
    """

    data: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    psf: np.ndarray
    xy: np.ndarray
    jacobian: np.ndarray
    share: np.ndarray


def mixtures_of(parameters):
    """`templates.mixture` for float64 arrays."""
    return templates.mixture(torch.from_numpy(np.ascontiguousarray(parameters))).numpy()


def directional_derivatives(parameters, image):
    """Stamps of all sources and their derivatives along `DIRECTIONS`.

    Parameters
    ----------
    parameters : (n, N_PARAMETER) array
    image : `Image`

    Returns
    -------
    list of (`~rosetta.core.mixture.Stamps`, (n, n_shape, size, size) array)
    """
    mixtures = mixtures_of(parameters)
    sizes = stamp_sizes(mixtures, image.jacobian, image.psf, image.share)
    copies = len(DIRECTIONS) + 1
    moved = [mixtures_of(parameters + step * row) for step, row in zip(STEP, DIRECTIONS, strict=True)]
    groups = render(
        np.concatenate([mixtures, *moved]), np.tile(image.xy, (copies, 1)), np.tile(image.jacobian, (copies, 1, 1)),
        image.psf, sizes=np.tile(sizes, copies),
    )
    parts = []
    for group in groups:
        m = len(group.index) // copies
        values = group.values.reshape(copies, m, *group.values.shape[1:])
        slopes = (values[1:] - values[0]) / STEP[:, None, None, None].astype(np.float32)
        parts.append((Stamps(group.index[:m], group.corner[:m], values[0]), np.swapaxes(slopes, 0, 1)))
    return parts


def refine(proposal, images, moved=None, *, iterations=3):
    """Fit shapes to images.

    Parameters
    ----------
    proposal : (n, N_PARAMETER) array
        Proposed shapes, the centre of the prior.
    images : list of `Image`
        Each has its own free fluxes.
    moved : (n, n_shape) array, optional
        Where to start, from the proposal along `DIRECTIONS`.
    iterations : int, optional

    Returns
    -------
    moved : (n, n_shape) array
        The fitted shapes are ``proposal + moved @ DIRECTIONS``.
    covariance : (n, n_shape, n_shape) array
        Of ``moved``, from the noise and the prior.
    """
    n, n_shape = len(proposal), len(DIRECTIONS)
    precision = 1.0 / PRIOR_SIGMA**2
    moved = np.zeros((n, n_shape)) if moved is None else moved.copy()
    covariance = np.tile(np.diag(PRIOR_SIGMA**2), (n, 1, 1))
    for _ in range(iterations if n else 0):
        step, covariance = _joint_step(proposal + moved @ DIRECTIONS, moved, precision, images)
        # One overlong coordinate shortens the whole step, so that it keeps its direction.
        step /= np.maximum(np.abs(step / LARGEST).max(axis=1), 1.0)[:, None]
        moved += step
    return moved, covariance


def _joint_step(parameters, moved, precision, images):
    """The Gauss-Newton step of all shapes, and the covariance of each source's own block."""
    n, n_shape, n_image = len(parameters), len(DIRECTIONS), len(images)
    size = n_shape + n_image  # unknowns of a source: its shape, then its flux in each image
    blocks = np.zeros((n, size, size))
    blocks[:, range(n_shape), range(n_shape)] = precision
    right = np.zeros((n, size))
    right[:, :n_shape] = -moved * precision
    operators = []
    for k, image in enumerate(images):
        columns, model = _columns(parameters, image)  # (pixel, n * (1 + n_shape))
        data, weight = image.data.ravel(), image.weight.ravel()
        # Bright pixels are known no better than the PSF is.
        root = np.sqrt(weight / (1.0 + weight * (MODEL_ERROR * model) ** 2))
        columns.data *= root.astype(np.float32)[columns.indices]
        project = (columns.T @ (root * (data - model))).reshape(n, n_shape + 1)
        where = np.r_[n_shape + k, :n_shape]
        right[:, where] += project
        blocks[:, where[:, None], where[None, :]] += _own_blocks(columns, n, n_shape + 1)
        operators.append((columns, where))
    blocks[:, range(n_shape, size), range(n_shape, size)] += 1e-12 + (right[:, n_shape:] == 0) * 1e-6
    inverse = np.linalg.inv(blocks)

    def normal(vector):
        vector = vector.reshape(n, size)
        out = vector * np.r_[precision, np.zeros(n_image)]
        for columns, where in operators:
            out[:, where] += (columns.T @ (columns @ vector[:, where].ravel())).reshape(n, -1)
        return out.ravel()

    def precondition(vector):
        return np.einsum("nij,nj->ni", inverse, vector.reshape(n, size)).ravel()

    shape = (n * size, n * size)
    solution, _ = cg(
        LinearOperator(shape, normal), right.ravel(), rtol=1e-3, maxiter=30, M=LinearOperator(shape, precondition)
    )
    return solution.reshape(n, size)[:, :n_shape], inverse[:, :n_shape, :n_shape]


def _columns(parameters, image):
    """Sparse derivatives of the image by flux and shape of every source, and the fluxes.

    A source has ``1 + n_shape`` neighbouring columns that share their rows: the pixels where its model is
    above a tenth of the noise or a fiftieth of its peak.
    """
    n, width = len(parameters), len(DIRECTIONS) + 1
    parts = directional_derivatives(parameters, image)
    matrix = design([stamps for stamps, _ in parts], image.data.shape, n)
    flux = fluxes(matrix, image)
    ny, nx = image.data.shape
    sigma = np.sqrt(np.where(np.isfinite(image.variance), image.variance, 0.0))
    rows, values, counts = [None] * n, [None] * n, np.zeros(n, dtype=np.int64)
    for stamps, slopes in parts:
        size = stamps.values.shape[1]
        for i, source in enumerate(stamps.index):
            x0, y0 = stamps.corner[i]
            cut_y, cut_x = (slice(max(-c, 0), max(min(m - c, size), 0)) for c, m in ((y0, ny), (x0, nx)))
            own = stamps.values[i, cut_y, cut_x]
            noise = sigma[max(y0, 0) : max(y0, 0) + own.shape[0], max(x0, 0) : max(x0, 0) + own.shape[1]]
            keep = (own > 0.02 * stamps.values[i].max()) | (own * abs(flux[source]) > 0.1 * noise)
            y, x = np.nonzero(keep)
            rows[source] = (y + max(y0, 0)) * nx + x + max(x0, 0)
            slope = slopes[i, :, cut_y, cut_x][:, keep]
            values[source] = np.concatenate([own[keep][None], slope * np.float32(flux[source])])
            counts[source] = len(y)
    start = np.concatenate([[0], np.cumsum(np.repeat(counts, width))])
    index = np.concatenate([np.tile(r, width) for r in rows]) if n else np.zeros(0, int)
    data = np.concatenate([v.ravel() for v in values]) if n else np.zeros(0, np.float32)
    columns = (data, index.astype(np.int32), start.astype(np.int32))
    return sparse.csc_array(columns, shape=(ny * nx, n * width)), matrix @ flux


def fluxes(matrix, image):
    """Fluxes of unit-flux columns under the image's weights, 0 where unmeasured; see `rosetta.core.solve`."""
    level = np.full(image.weight.size, np.inf)
    np.divide(1.0, image.weight.ravel(), out=level, where=image.weight.ravel() > 0)
    return np.nan_to_num(solve(matrix, image.data.ravel(), level).flux)


def _own_blocks(columns, n, width):
    """Normal matrices of each source with itself, (n, width, width): its columns share their rows."""
    blocks = np.zeros((n, width, width))
    start = columns.indptr[::width]
    for i in range(n):
        own = columns.data[start[i] : start[i + 1]].reshape(width, -1)
        blocks[i] = own @ own.T
    return blocks


def flux_slopes(parameters, image):
    """How the flux that a template gives depends on its shape.

    Parameters
    ----------
    parameters : (n, N_PARAMETER) array
    image : `Image`

    Returns
    -------
    (n, n_shape) array
        d ln(flux) / d(coordinate along `DIRECTIONS`) of the weighted fit of an isolated source.
    """
    out = np.zeros((len(parameters), len(DIRECTIONS)))
    for stamps, slopes in directional_derivatives(parameters, image):
        w = _cut(image.weight.ravel(), stamps, image.data.shape)
        own = (w * stamps.values.reshape(len(w), -1))[:, None]  # (n, 1, pixel)
        power = np.matmul(own, stamps.values.reshape(len(w), -1, 1))[:, 0]
        project = np.matmul(own, slopes.reshape(len(w), len(DIRECTIONS), -1).transpose(0, 2, 1))[:, 0]
        out[stamps.index] = np.divide(-project, power, out=np.zeros_like(project), where=power > 0)
    return out


def _cut(image, stamps, shape):
    """A flat image at the pixels of stamps, 0 off the image: (n, size * size) float32."""
    ny, nx = shape
    size = stamps.values.shape[1]
    x = stamps.corner[:, 0, None] + np.arange(size)
    y = stamps.corner[:, 1, None] + np.arange(size)
    inside = ((y >= 0) & (y < ny))[:, :, None] & ((x >= 0) & (x < nx))[:, None, :]
    pixel = np.where(inside, y[:, :, None] * nx + x[:, None, :], 0)
    return np.where(inside, image[pixel], 0.0).astype(np.float32).reshape(len(x), -1)
