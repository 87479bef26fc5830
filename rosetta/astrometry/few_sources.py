# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The shift of a small field, which two or more sources in a few bands support.

So few numbers cannot tell how sources and bands scatter beyond their noise. Each offset is the common shift, plus the
scatter of its source (common to all bands), plus that of its band (common to all sources), plus noise. The sizes of
both scatters have broad priors and are integrated over, as is a factor on the noise. The error is half of the 68.3 %
interval of what remains, a mixture with the wide tails of a Student-t distribution (Gelman et al. 2013, Bayesian Data
Analysis, section 5.4).

Whether the sources agree is a ratio of evidences: one shift for all of them, against an offset of its own for each,
anywhere within the reach of the fit.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import optimize, special

__all__ = ["FewSources", "agreed_shift", "expected_scatter"]

SIZE_SCATTER = 0.01  # typical scatter of a galaxy's centroid between bands, relative to its rms size
MOTION = 6.0  # mas per year and axis: typical proper motion of a star at high latitude
UNKNOWN_YEARS = 5.0  # between images without dates
BAND_SCATTER = 3.0  # mas: typical scatter of the frames of bands
REACH2 = 1.0  # arcsec^2 in which an offset is found at all
# Natural logarithms of the sizes relative to the typical ones, with a normal prior of unit scatter; of the noise factor.
_SIZES, _FACTORS, _FACTOR_SCATTER = np.linspace(-2.5, 3.0, 9), np.linspace(-0.5, 1.0, 5), 0.3


@dataclass(frozen=True)
class FewSources:
    """What few sources say.

    Attributes
    ----------
    fields : dict
        Band (or "joint") -> model of its shift, for `rosetta.astrometry.field.evaluate`.
    sigma : float
        Larger error of the joint shift along an axis, mas.
    evidence : float
        Nats by which one shift is likelier than sources that have nothing to do with each other.
    scatter : numpy.ndarray, shape (n,)
        Of each source beyond its noise, mas per axis.
    n_source, n_band : int
        Used.
    """

    fields: dict
    sigma: float
    evidence: float
    scatter: np.ndarray
    n_source: int
    n_band: int


def expected_scatter(point, size, years):
    """Typical scatter of sources beyond their noise: of stars by proper motion, of galaxies by colour gradients.

    Parameters
    ----------
    point : numpy.ndarray of bool, shape (n,)
    size : numpy.ndarray, shape (n,)
        Rms size, arcsec.
    years : float
        Between the images; NaN where unknown.

    Returns
    -------
    numpy.ndarray, shape (n,)
        mas per axis.
    """
    years = abs(years) if np.isfinite(years) else UNKNOWN_YEARS
    return np.maximum(np.where(point, MOTION * years, 1e3 * SIZE_SCATTER * size), 0.5)


def agreed_shift(parts, expected):
    """The common shift of some bands.

    Parameters
    ----------
    parts : sequence of `~rosetta.astrometry.measurement.BandOffsets`
        With two usable sources or more in all.
    expected : numpy.ndarray, shape (n,)
        `expected_scatter` of all sources.

    Returns
    -------
    FewSources
    """
    band, source = (np.concatenate(a) for a in zip(
        *((np.full(p.usable.sum(), k), np.flatnonzero(p.usable)) for k, p in enumerate(parts)), strict=True
    ))  # (m,) each
    offset = np.concatenate([p.offset[p.usable] for p in parts])  # (m, 2)
    m = len(offset)
    noise = np.zeros((m, 2, m, 2))
    root = np.concatenate([_root(p.cov_reference[p.usable]) for p in parts])  # the reference's noise is one for all bands
    same_source = source[:, None] == source
    noise += np.einsum("aij,bkj,ab->aibk", root, root, same_source)
    noise[np.arange(m), :, np.arange(m), :] += np.concatenate([p.cov_target[p.usable] for p in parts])
    noise = noise.reshape(2 * m, 2 * m)
    eye = np.eye(2)
    of_source = np.kron(same_source * expected[source] ** 2, eye)
    of_band = np.kron(band[:, None] == band, eye) * BAND_SCATTER**2
    y, h = offset.ravel(), np.tile(eye, (m, 1))  # (2m,), (2m, 2)
    apart, columns = _apart(source)

    sizes = np.array(list(product(_SIZES, _SIZES, _FACTORS)))
    log_weight = -0.5 * (sizes[:, :2] ** 2).sum(1) - 0.5 * (sizes[:, 2] / _FACTOR_SCATTER) ** 2
    log_prior = log_weight - special.logsumexp(log_weight)
    together, separate, targets = np.empty(len(sizes)), np.empty(len(sizes)), ["joint", *(p.band for p in parts)]
    mean, cov = np.empty((len(sizes), len(targets), 2)), np.empty((len(sizes), len(targets), 2, 2))
    for k, (a, b, c) in enumerate(np.exp(2 * sizes)):
        inverse = np.linalg.inv(c * noise + a * of_source + b * of_band)
        log_det = -np.linalg.slogdet(inverse)[1]
        together[k], beta, posterior = _solve(inverse, log_det, y, h)
        separate[k] = _solve(inverse, log_det, y, apart)[0]
        mean[k, 0], cov[k, 0] = beta, posterior
        rest = inverse @ (y - h @ beta)
        for j in range(len(parts)):
            pull = np.kron(band == j, eye) * b * BAND_SCATTER**2  # (2, 2m): covariance of the band's frame and the data
            spare = eye - pull @ inverse @ h
            mean[k, 1 + j] = beta + pull @ rest
            cov[k, 1 + j] = b * BAND_SCATTER**2 * eye - pull @ inverse @ pull.T + spare @ posterior @ spare.T
    weight = np.exp(together + log_prior - special.logsumexp(together + log_prior))
    # A flat prior over the reach, in mas^2, for every offset that is free.
    evidence = special.logsumexp(together + log_prior) - special.logsumexp(separate + log_prior)
    evidence += (columns - 1) * np.log(1e6 * REACH2)
    fields, sigma = {}, None
    for j, name in enumerate(targets):
        center = weight @ mean[:, j]
        total = np.einsum("k,kij->ij", weight, cov[:, j])
        total += np.einsum("k,ki,kj->ij", weight, mean[:, j] - center, mean[:, j] - center)
        width = [_half_width(weight, mean[:, j, i] - center[i], np.sqrt(cov[:, j, i, i])) for i in (0, 1)]
        stretch = np.array(width) / np.sqrt(np.diag(total))
        total *= np.outer(stretch, stretch)
        sigma = float(max(width)) if sigma is None else sigma
        fields[name] = {
            "version": 1, "kind": "shift", "order": 0, "scale": 1.0, "coefficients": [center.tolist()],
            "coefficient_covariance": total.tolist(), "floor": [], "score": None, "n_source": columns,
        }
    scatter = expected * float(np.sqrt(weight @ np.exp(2 * sizes[:, 0])))
    return FewSources(fields, sigma, float(evidence), scatter, columns, len(parts))


def _apart(source):
    """Design of a free offset per source, (2m, 2 n_source), and how many sources there are."""
    labels = np.unique(source)
    return np.kron(source[:, None] == labels, np.eye(2)), len(labels)


def _solve(inverse, log_det, y, h):
    """Log of the evidence with flat priors of unit density on the coefficients, the coefficients, their covariance."""
    normal = h.T @ inverse @ h
    posterior = np.linalg.inv(normal)
    beta = posterior @ (h.T @ (inverse @ y))
    rest = y - h @ beta
    free = len(y) - h.shape[1]
    value = -0.5 * (rest @ inverse @ rest + log_det + np.linalg.slogdet(normal)[1] + free * np.log(2 * np.pi))
    return value, beta, posterior


def _half_width(weight, mean, sigma):
    """Half of the interval about 0 that holds 68.27 % of a mixture of normal distributions."""
    inside = special.erf(np.sqrt(0.5))
    reach = float(np.abs(mean).max() + 2 * sigma.max())

    def excess(width):
        return weight @ (special.ndtr((width - mean) / sigma) - special.ndtr((-width - mean) / sigma)) - inside

    return optimize.brentq(excess, 0.0, reach)


def _root(cov):
    """Symmetric square root of (n, 2, 2) covariances."""
    value, vector = np.linalg.eigh(cov)
    return np.einsum("nij,nj,nkj->nik", vector, np.sqrt(np.maximum(value, 0.0)), vector)
