# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Amplitudes of all overlapping sources of one image at once, by weighted linear least squares.

The one solver behind the deblender's models and the photometry's fluxes: the image is a sum of
unit-flux stamps times fluxes, and the covariance of the fluxes is what the pixels' variances make of the
linear estimator, whatever its weights. Matrices are sparse, so memory never grows with the square of the number of
sources.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

__all__ = ["Solution", "WhiteNoise", "amplitudes", "solve"]

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
    covariance : (n, n) sparse CSC array or None
        From the pixels' variances; empty rows where the flux is NaN. None where no errors were asked for.
    measured : (n,) bool array
        Whether the source has usable pixels.
    degenerate : (n,) bool array
        Whether another source has the same template: only the sum of their fluxes is known.
    coverage : (n,) float64 array
        Share of the source's light that falls on valid pixels.
    sky : (k,) float64 array or None
        Coefficients of the local sky; its covariance with the fluxes is in theirs.
    sky_covariance : (k, k) float64 array or None
        None also where no errors were asked for.
    """

    flux: np.ndarray
    covariance: sparse.csc_array | None
    measured: np.ndarray
    degenerate: np.ndarray
    coverage: np.ndarray
    sky: np.ndarray | None = None
    sky_covariance: np.ndarray | None = None


class WhiteNoise:
    """Noise that is not correlated between pixels.

    What `solve` asks of any noise: which pixels are usable, and its covariance as seen through a design.

    Parameters
    ----------
    variance : (ny, nx) array
        Infinite where a pixel must not be used.
    """

    def __init__(self, variance):
        self.variance = variance
        self.usable = np.isfinite(variance) & (variance > 0)

    def seen_by(self, design, weight):
        """A'WCWA for the design A, pixel weights W and this noise's covariance C: sparse (n, n)."""
        return design.gram(weight**2 * np.where(self.usable, self.variance, 0.0))


def solve(design, data, noise, weight=None, sky=None, *, errors=True):
    """Fluxes and their covariance.

    Parameters
    ----------
    design : `~rosetta.deblending.engine.design.Design`
        Unit-flux templates.
    data : (ny, nx) array
    noise : `WhiteNoise`
        Or another class with its attributes and method.
    weight : (ny, nx) array, optional
        Of the pixels, 0 where one must not be used. None: the inverse variance, which is optimal where the
        templates are exact. Otherwise the covariance is the sandwich (A'WA)^-1 A'WVWA (A'WA)^-1.
    sky : `~rosetta.deblending.sky_plane.SkyPlane`, optional
        Columns that are solved for with the fluxes, each with a Gaussian prior.
    errors : bool, optional
        Whether covariances are worked out; they take most of the time.

    Returns
    -------
    `Solution`
        Sources that coincide share their common flux equally. Their errors are large, because the data
        constrain only the sum.
    """
    n_source = len(design)
    optimal = weight is None
    weight = np.where(noise.usable, 1.0 / noise.variance if optimal else weight, 0.0)
    normal, right, measured = _equations(design, data, weight)
    coverage = design.project(weight > 0)
    live = np.flatnonzero(measured)
    flux = np.full(n_source, np.nan)
    degenerate = np.zeros(n_source, dtype=bool)
    sky_equations = None if sky is None else _SkyEquations(sky, design, data, weight)
    if len(live) == 0:
        found, nothing = (), np.zeros((0, 0 if sky is None else len(sky.sigma)))
        if sky is not None:
            found, inverse = sky_equations.solve(np.zeros(0), nothing, live)
            found = found, sky_equations.covariance(inverse, nothing, live, noise) if errors else None
        return Solution(flux, sparse.csc_array((n_source, n_source)), measured, degenerate, coverage, *found)
    meat = noise.seen_by(design, weight) if errors and not optimal else None

    unit = 1.0 / np.sqrt(normal.diagonal()[live])
    scale = sparse.diags_array(unit)
    correlation = sparse.coo_array(scale @ normal[live][:, live] @ scale)  # unit diagonal
    twin = (correlation.row != correlation.col) & (correlation.data > DEGENERATE)
    degenerate[live[correlation.row[twin]]] = True
    correlation = sparse.csc_array(correlation)
    correlation.setdiag(1.0 + RIDGE)

    if meat is not None:
        meat = sparse.csc_array(scale @ meat[live][:, live] @ scale)
        meat.setdiag(meat.diagonal() + RIDGE)  # what nothing tells apart has a variance of 1 / RIDGE in either form
    right = right[live, None] if sky is None else np.column_stack([right, sky_equations.cross])[live]
    if errors:
        solution, inverse = _solve_unit_diagonal(correlation, unit[:, None] * right, meat)
    else:
        solution = _lu(correlation).solve(unit[:, None] * right)
    solution *= unit[:, None]
    flux[live], level, level_inverse = solution[:, 0], None, None
    if sky is not None:
        taken = solution[:, 1:]  # the flux that a source loses for a sky of 1
        level, level_inverse = sky_equations.solve(flux[live], taken, live)
        flux[live] -= taken @ level
    if not errors:
        return Solution(flux, None, measured, degenerate, coverage, level)
    inverse, found = sparse.coo_array(inverse), ()
    row, column = inverse.row, inverse.col
    covariance = inverse.data * unit[row] * unit[column]
    if sky is not None:
        found = level, sky_equations.covariance(level_inverse, taken, live, noise)
        covariance += np.where(row == column, ((taken @ found[1])[row] * taken[column]).sum(axis=1), 0.0)
    covariance = sparse.csc_array((covariance, (live[row], live[column])), shape=(n_source, n_source))
    return Solution(flux, covariance, measured, degenerate, coverage, *found)


class _SkyEquations:
    """A sky's rows of the normal equations, from which the fluxes are eliminated.

    The sky touches all sources. Its part of their variances is kept. That between sources is left out: it is small, and
    would fill the covariance.
    """

    def __init__(self, sky, design, data, weight):
        self.sky, self.design, self.weight = sky, design, weight
        weighted = weight * sky.columns  # (k, ny, nx)
        self.cross = np.stack([design.project(one) for one in weighted], axis=1)  # (n, k)
        self.own = np.einsum("iyx,jyx->ij", weighted, sky.columns) + np.diag(sky.sigma**-2.0)
        self.right = np.einsum("iyx,yx->i", weighted, np.where(weight > 0, data, 0.0)) - sky.subtracted / sky.sigma**2

    def solve(self, flux, taken, live):
        """Coefficients, and inverse normal matrix, from fluxes (n,) without a sky and what it takes of them (n, k)."""
        cross = self.cross[live]
        inverse = np.linalg.inv(self.own - cross.T @ taken)
        return inverse @ (self.right - cross.T @ flux), inverse

    def covariance(self, inverse, taken, live, noise):
        """Of the coefficients, (k, k)."""
        some = self.design.of(live)
        left = self.weight * (self.sky.columns - np.array([some.image(one) for one in taken.T]))
        variance = np.where(noise.usable, noise.variance, 0.0)
        meat = np.einsum("iyx,jyx->ij", variance * left, left) + np.diag(self.sky.sigma**-2.0)
        return inverse @ meat @ inverse


def amplitudes(design, data, weight):
    """Fluxes as `solve` gives them, without their covariance.

    Parameters
    ----------
    design, data, weight
        As for `solve`.

    Returns
    -------
    flux : (n_source,) array
        0 where the image has no usable pixel of the source.
    snr : (n_source,) array
        Over the error that the source alone would have, if the weights are inverse variances.
    """
    normal, right, measured = _equations(design, data, weight)
    flux, live = np.zeros(len(design)), np.flatnonzero(measured)
    if len(live):
        unit = 1.0 / np.sqrt(normal.diagonal()[live])
        scale = sparse.diags_array(unit)
        correlation = sparse.csc_array(scale @ normal[live][:, live] @ scale)
        correlation.setdiag(1.0 + RIDGE)
        flux[live] = unit * _lu(correlation).solve(unit * right[live])
    return flux, flux * np.sqrt(normal.diagonal())


def _lu(matrix):
    """Factors of a symmetric sparse matrix."""
    return splu(matrix, permc_spec="MMD_AT_PLUS_A")


def _equations(design, data, weight):
    """A'WA, A'Wd, and which sources have usable pixels."""
    normal = design.gram(weight)
    good = (weight > 0).astype(float)
    power, power_valid = design.squares(), design.squares(good)
    # A few pixels in the far wing are no measurement of a source whose core is masked.
    measured = (normal.diagonal() > 0) & (power_valid > 1e-3 * np.where(power > 0, power, 1.0))
    return normal, design.project(weight * np.where(weight > 0, data, 0.0)), measured


def _solve_unit_diagonal(matrix, right, meat=None):
    """Solutions (n, m) and (block-wise) covariance for a sparse positive-definite matrix of unit diagonal.

    The covariance is the inverse, or inverse @ meat @ inverse.
    """
    n = matrix.shape[0]
    solution = np.empty(right.shape)
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
