# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Amplitudes of all overlapping sources of one image at once, by weighted linear least squares.

The one solver behind the deblender's models and the photometry's fluxes: the image is a sum of
unit-flux stamps times fluxes, and the covariance of the fluxes is what the pixels' variances make of the
linear estimator, whatever its weights. Everything is sparse, so memory grows with the number of stamps' pixels,
never with the square of the number of sources.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

__all__ = ["Solution", "amplitudes", "design", "solve"]

# Two templates whose correlation under the weights exceeds this cannot be told apart by any image.
DEGENERATE = 1.0 - 1e-6
RIDGE = 1e-9
DENSE_LIMIT = 2000
COUPLING_CUT = 1e-3


@dataclass(frozen=True)
class Solution:
    """Fluxes of one image.

    Attributes
    ----------
    flux : (n,) float64 array
        In the image's unit; NaN where the image has no usable pixel of the source.
    covariance : (n, n) sparse CSC array
        From the pixels' variances; empty rows where the flux is NaN.
    measured : (n,) bool array
        Whether the source has usable pixels.
    degenerate : (n,) bool array
        Whether another source has the same template: only the sum of their fluxes is known.
    coverage : (n,) float64 array
        Share of the source's light that falls on valid pixels.
    """

    flux: np.ndarray
    covariance: sparse.csc_array
    measured: np.ndarray
    degenerate: np.ndarray
    coverage: np.ndarray


def design(stamps, shape, n_source):
    """Put stamps into one sparse matrix, a column per source and a row per pixel.

    Parameters
    ----------
    stamps : list of `~rosetta.core.mixture.Stamps`
    shape : tuple of int
        Image shape (ny, nx); what falls outside is left out.
    n_source : int

    Returns
    -------
    (ny * nx, n_source) sparse CSC array of float32
    """
    ny, nx = shape
    counts = np.zeros(n_source, dtype=np.int64)
    parts = []
    for group in stamps:
        size = group.values.shape[1]
        x = group.corner[:, 0, None] + np.arange(size)  # (n, size)
        y = group.corner[:, 1, None] + np.arange(size)
        keep = ((y >= 0) & (y < ny))[:, :, None] & ((x >= 0) & (x < nx))[:, None, :]
        pixel = y[:, :, None] * nx + x[:, None, :]
        counts[group.index] = keep.reshape(len(keep), -1).sum(axis=1)
        parts.append((group, keep, pixel))
    start = np.concatenate([[0], np.cumsum(counts)])
    rows, values = np.empty(start[-1], dtype=np.int32), np.empty(start[-1], dtype=np.float32)
    for group, keep, pixel in parts:
        for i, source in enumerate(group.index):
            span = slice(start[source], start[source + 1])
            rows[span], values[span] = pixel[i][keep[i]], group.values[i][keep[i]]
    return sparse.csc_array((values, rows, start), shape=(ny * nx, n_source))


def solve(matrix, data, variance, weight=None):
    """Fluxes and their covariance.

    Parameters
    ----------
    matrix : (n_pixel, n_source) sparse CSC array
        Unit-flux templates; see `design`.
    data : (n_pixel,) array
    variance : (n_pixel,) array
        Infinite where a pixel must not be used.
    weight : (n_pixel,) array, optional
        Of the pixels, 0 where one must not be used. None: the inverse variance, which is optimal where the
        templates are exact. Otherwise the covariance is the sandwich (A'WA)^-1 A'WVWA (A'WA)^-1.

    Returns
    -------
    `Solution`
        Sources that coincide share their common flux equally, with errors as large as their
        indistinguishability asks for.
    """
    n_source = matrix.shape[1]
    usable = np.isfinite(variance) & (variance > 0)
    optimal = weight is None
    weight = np.where(usable, 1.0 / variance if optimal else weight, 0.0)
    equations = _Equations(matrix)
    normal, right, measured = equations.normal(data, weight)
    coverage = matrix.T @ (weight > 0).astype(np.float64)
    live = np.flatnonzero(measured)
    flux = np.full(n_source, np.nan)
    degenerate = np.zeros(n_source, dtype=bool)
    if len(live) == 0:
        return Solution(flux, sparse.csc_array((n_source, n_source)), measured, degenerate, coverage)
    meat = None if optimal else equations.gram(weight**2 * np.where(usable, variance, 0.0))

    unit = 1.0 / np.sqrt(normal.diagonal()[live])
    scale = sparse.diags_array(unit)
    correlation = sparse.coo_array(scale @ normal[live][:, live] @ scale)  # unit diagonal
    twin = (correlation.row != correlation.col) & (correlation.data > DEGENERATE)
    degenerate[live[correlation.row[twin]]] = True
    correlation = sparse.csc_array(correlation)
    correlation.setdiag(1.0 + RIDGE)

    if meat is not None:
        meat = sparse.csc_array(scale @ meat[live][:, live] @ scale)
    solution, inverse = _solve_unit_diagonal(correlation, unit * right[live], meat)
    flux[live] = unit * solution
    inverse = sparse.coo_array(inverse)
    covariance = sparse.csc_array(
        (inverse.data * unit[inverse.row] * unit[inverse.col], (live[inverse.row], live[inverse.col])),
        shape=(n_source, n_source),
    )
    return Solution(flux, covariance, measured, degenerate, coverage)


def amplitudes(matrix, data, weight):
    """Fluxes as `solve` gives them, without their covariance.

    Parameters
    ----------
    matrix, data, weight
        As for `solve`.

    Returns
    -------
    flux : (n_source,) array
        0 where the image has no usable pixel of the source.
    snr : (n_source,) array
        Over the error that the source alone would have, if the weights are inverse variances.
    """
    normal, right, measured = _Equations(matrix).normal(data, weight)
    flux, live = np.zeros(matrix.shape[1]), np.flatnonzero(measured)
    if len(live):
        unit = 1.0 / np.sqrt(normal.diagonal()[live])
        scale = sparse.diags_array(unit)
        correlation = sparse.csc_array(scale @ normal[live][:, live] @ scale)
        correlation.setdiag(1.0 + RIDGE)
        flux[live] = unit * splu(correlation, permc_spec="MMD_AT_PLUS_A").solve(unit * right[live])
    return flux, flux * np.sqrt(normal.diagonal())


class _Equations:
    """Products of a sparse CSC array with itself under several weights, in double precision."""

    def __init__(self, matrix):
        self.columns = matrix.astype(np.float64)
        self.rows = self.columns.tocsr()

    def gram(self, weight):
        """A'WA, sparse."""
        a = self.columns
        return sparse.csr_array((a.data * weight[a.indices], a.indices, a.indptr), shape=a.shape[::-1]) @ self.rows

    def normal(self, data, weight):
        """A'WA, A'Wd, and which sources have usable pixels."""
        a, good = self.columns, (weight > 0).astype(np.float64)
        squares = sparse.csr_array((a.data**2, a.indices, a.indptr), shape=a.shape[::-1])
        power, power_valid = squares @ np.ones_like(good), squares @ good
        normal = self.gram(weight)
        # A few pixels in the far wing are no measurement of a source whose core is masked.
        measured = (normal.diagonal() > 0) & (power_valid > 1e-3 * np.where(power > 0, power, 1.0))
        return normal, a.T @ (weight * np.where(weight > 0, data, 0.0)), measured


def _solve_unit_diagonal(matrix, right, meat=None):
    """Solution and (block-wise) covariance for a sparse positive-definite matrix of unit diagonal.

    The covariance is the inverse, or inverse @ meat @ inverse.
    """
    n = matrix.shape[0]
    solution = np.empty(n)
    blocks = []
    for members in _components(matrix):
        block = matrix[members][:, members] if len(members) < n else matrix
        if len(members) <= DENSE_LIMIT:
            solution[members], inverse = _dense(block.toarray(), right[members])
            blocks.append((members, _sandwich(inverse, meat, members)))
            continue
        solution[members] = splu(block).solve(right[members])
        # Only the error bars are approximated: weak couplings hardly change them.
        for part in _cut(block):
            _, inverse = _dense(block[part][:, part].toarray(), right[members[part]])
            blocks.append((members[part], _sandwich(inverse, meat, members[part])))
    rows = np.concatenate([np.repeat(m, len(m)) for m, _ in blocks])
    cols = np.concatenate([np.tile(m, len(m)) for m, _ in blocks])
    values = np.concatenate([inverse.ravel() for _, inverse in blocks])
    return solution, sparse.coo_array((values, (rows, cols)), shape=(n, n))


def _sandwich(inverse, meat, members):
    return inverse if meat is None else inverse @ meat[members][:, members].toarray() @ inverse


def _components(matrix):
    count, label = connected_components(matrix, directed=False)
    order = np.argsort(label, kind="stable")
    return np.split(order, np.cumsum(np.bincount(label, minlength=count))[:-1])


def _cut(matrix):
    """Groups of at most ``DENSE_LIMIT`` sources, by dropping the weakest couplings."""
    cut = COUPLING_CUT
    while True:
        kept = matrix.copy()
        kept.data[np.abs(kept.data) < cut] = 0.0
        kept.eliminate_zeros()
        groups = _components(kept)
        if max(map(len, groups)) <= DENSE_LIMIT or cut > 1.0:
            return groups
        cut *= 2.0


def _dense(matrix, right):
    factor = cho_factor(matrix, lower=True)
    return cho_solve(factor, right), cho_solve(factor, np.eye(len(matrix)))
