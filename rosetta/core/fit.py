# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Shapes of sources fitted to native pixels: damped Gauss-Newton steps around a proposed shape.

Each step solves the fluxes of all sources of an image together, then moves the shape of every source
on the residual with its neighbours held fixed, its own fluxes eliminated, and the proposal as a
Gaussian prior. Where the pixels say little the answer is the proposal; its covariance (Laplace) is the
uncertainty of the template.
"""

from dataclasses import dataclass

import numpy as np
import torch

from . import templates
from .mixture import render, stamp_sizes
from .solve import design, solve

__all__ = ["DIRECTIONS", "Image", "flux_slopes", "mixtures_of", "refine"]

_LN_WIDTH = np.log(templates.WIDTHS)


def _directions():
    """Seven directions in shape space, their prior sigmas and finite-difference steps."""
    rows = np.zeros((7, templates.N_PARAMETER))
    rows[[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]] = 1.0
    # Concentration: core and wings grow together, as with a Sersic index.
    curve = (_LN_WIDTH - np.log(0.6)) ** 2
    rows[5, templates.LOGITS] = curve / curve.max() * 4.0
    # Core alone: a nucleus or bulge on top.
    rows[6, templates.LOGITS] = 1.0 / (1.0 + (templates.WIDTHS / 0.25) ** 2) * 2.0
    return rows


DIRECTIONS = _directions()
PRIOR_SIGMA = np.array([0.05, 0.05, 0.4, 0.3, 0.3, 0.5, 0.7])
STEP = np.array([0.01, 0.01, 0.02, 0.02, 0.02, 0.02, 0.02])
LARGEST = np.array([0.1, 0.1, 0.5, 0.4, 0.4, 1.0, 1.0])
# Pixels of bright sources are not known better than the PSF is.
MODEL_ERROR = 0.02


@dataclass(frozen=True)
class Image:
    """One image as the fit sees it.

    Attributes
    ----------
    data, variance : (ny, nx) array
        nJy and nJy^2; the variance is infinite where a pixel must not be used.
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
    list of (`~rosetta.core.mixture.Stamps`, (n, 7, size, size) array)
    """
    mixtures = mixtures_of(parameters)
    sizes = stamp_sizes(mixtures, image.jacobian, image.psf, image.share)
    stamps = render(mixtures, image.xy, image.jacobian, image.psf, sizes=sizes)
    slopes = [np.empty((len(s.index), len(DIRECTIONS)) + s.values.shape[1:], np.float32) for s in stamps]
    for j, direction in enumerate(DIRECTIONS):
        moved = mixtures_of(parameters + STEP[j] * direction)
        for k, group in enumerate(render(moved, image.xy, image.jacobian, image.psf, sizes=sizes)):
            slopes[k][:, j] = (group.values - stamps[k].values) / STEP[j]
    return list(zip(stamps, slopes))


def refine(proposal, images, moved=None, *, iterations=3):
    """Fit shapes to images.

    Parameters
    ----------
    proposal : (n, N_PARAMETER) array
        Proposed shapes, the centre of the prior.
    images : list of `Image`
        Each has its own free fluxes.
    moved : (n, 7) array, optional
        Where to start, from the proposal along `DIRECTIONS`.
    iterations : int, optional

    Returns
    -------
    moved : (n, 7) array
        The fitted shapes are ``proposal + moved @ DIRECTIONS``.
    covariance : (n, 7, 7) array
        Of ``moved``, from the noise and the prior.
    """
    n = len(proposal)
    precision = np.diag(1.0 / PRIOR_SIGMA**2)
    moved = np.zeros((n, len(DIRECTIONS))) if moved is None else moved.copy()
    covariance = np.tile(np.diag(PRIOR_SIGMA**2), (n, 1, 1))
    for _ in range(iterations):
        normal, right = np.tile(precision, (n, 1, 1)), -moved @ precision
        for image in images:
            _accumulate(normal, right, proposal + moved @ DIRECTIONS, image)
        covariance = np.linalg.inv(normal)
        step = np.einsum("nij,nj->ni", covariance, right)
        # One overlong coordinate shortens the whole step, so that it keeps its direction.
        step /= np.maximum(np.abs(step / LARGEST).max(axis=1), 1.0)[:, None]
        moved += step
    return moved, covariance


def flux_slopes(parameters, image, weight):
    """How the flux that a template gives depends on its shape.

    Parameters
    ----------
    parameters : (n, N_PARAMETER) array
    image : `Image`
    weight : (ny, nx) array
        Inverse variance of the pixels.

    Returns
    -------
    (n, 7) array
        d ln(flux) / d(coordinate along `DIRECTIONS`) of the weighted fit of an isolated source.
    """
    out = np.zeros((len(parameters), len(DIRECTIONS)))
    for stamps, slopes in directional_derivatives(parameters, image):
        w = _cut(weight.ravel(), stamps, image.data.shape)
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


def _accumulate(normal, right, parameters, image):
    """Add one image's normal matrices, its fluxes eliminated."""
    n = len(parameters)
    parts = directional_derivatives(parameters, image)
    matrix = design([stamps for stamps, _ in parts], image.data.shape, n)
    data, variance = image.data.ravel(), image.variance.ravel()
    flux = np.nan_to_num(solve(matrix, data, variance).flux)
    model = matrix @ flux
    weight = 1.0 / (variance + (MODEL_ERROR * model) ** 2)  # 0 where the variance is infinite
    residual = data - model
    for stamps, slopes in parts:
        w, r = (_cut(values, stamps, image.data.shape) for values in (weight, residual))
        own = stamps.values.reshape(len(w), 1, -1)
        columns = np.concatenate([own, slopes.reshape(len(w), len(DIRECTIONS), -1)], axis=1)  # (n, 8, pixel)
        columns[:, 1:] *= flux[stamps.index, None, None]
        gram = np.matmul(columns * w[:, None], columns.transpose(0, 2, 1)).astype(float)
        project = np.matmul(columns, (w * r)[..., None])[..., 0].astype(float)
        power = np.maximum(gram[:, 0, 0], 1e-30)
        normal[stamps.index] += gram[:, 1:, 1:] - gram[:, 1:, :1] * gram[:, :1, 1:] / power[:, None, None]
        right[stamps.index] += project[:, 1:] - gram[:, 1:, 0] * (project[:, 0] / power)[:, None]
