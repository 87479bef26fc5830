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

from .epochs import MOTION

__all__ = ["FewSources", "FewSourcesConfig", "agreed_shift", "expected_scatter"]

# Natural logarithms of the sizes relative to the typical ones, whose prior is normal with unit scatter, and of the
# factor on the noise.
_SIZES, _FACTORS, _FACTOR_SCATTER = np.linspace(-2.5, 6.5, 13), np.linspace(-0.3, 0.9, 4), 0.3


@dataclass(frozen=True)
class FewSourcesConfig:
    """What is expected of few sources, and when they support a shift.

    Attributes
    ----------
    fewer_than : int
        So many sources are few: a shift is all that is fitted.
    evidence : float
        Nats by which they must be likelier to belong together, where the cross-correlation does not say so.
    unknown_years : float
        Between images without dates.
    size_scatter : float
        Typical scatter of a galaxy's centroid between bands, relative to its rms size.
    band_scatter : float
        Typical scatter of the shifts of bands, mas.
    reach2 : float
        arcsec^2 in which an offset is found at all.
    """

    fewer_than: int = 8
    evidence: float = 3.0
    unknown_years: float = 5.0
    size_scatter: float = 0.01
    band_scatter: float = 3.0
    reach2: float = 1.0


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
    scatter : dict
        Band (or "joint") -> scatter of each source beyond its noise, (n,) mas per axis.
    n_source, n_band : int
        Used.
    """

    fields: dict
    sigma: float
    evidence: float
    scatter: np.ndarray
    n_source: int
    n_band: int


def expected_scatter(point, size, years, config):
    """Typical scatter of sources beyond their noise: of stars by proper motion, of galaxies by colour gradients.

    Parameters
    ----------
    point : numpy.ndarray of bool, shape (n,)
    size : numpy.ndarray, shape (n,)
        Rms size, arcsec.
    years : float
        Epoch of the image less that of the reference; NaN where unknown.
    config : FewSourcesConfig

    Returns
    -------
    numpy.ndarray, shape (n,)
        mas per axis, with the sign of ``years``: a star moves to opposite sides before and after.
    """
    motion = MOTION * (years if np.isfinite(years) else config.unknown_years)
    return np.where(point, motion, np.maximum(1e3 * config.size_scatter * size, 0.5))


def agreed_shift(parts, expected, config):
    """The common shift of some bands.

    Parameters
    ----------
    parts : sequence of `~rosetta.astrometry.measurement.BandOffsets`
        With two usable sources or more in all.
    expected : sequence of numpy.ndarray, shape (n,)
        `expected_scatter` of all sources, for each band.
    config : FewSourcesConfig

    Returns
    -------
    FewSources
    """
    band, source = np.nonzero([p.usable for p in parts])  # (m,) each
    offset = np.concatenate([p.offset[p.usable] for p in parts])  # (m, 2)
    m = len(offset)
    noise = np.zeros((m, 2, m, 2))
    root = np.concatenate([_root(p.cov_reference[p.usable]) for p in parts])
    same_source = source[:, None] == source
    # The reference's noise at a source is the same one in all bands.
    noise += np.einsum("aij,bkj,ab->aibk", root, root, same_source)
    noise[np.arange(m), :, np.arange(m), :] += np.concatenate([p.cov_target[p.usable] for p in parts])
    noise = noise.reshape(2 * m, 2 * m)
    eye = np.eye(2)
    typical = np.concatenate([e[p.usable] for p, e in zip(parts, expected, strict=True)])  # (m,)
    of_source = np.kron(same_source * np.outer(typical, typical), eye)
    variance = config.band_scatter**2
    of_band = np.kron(band[:, None] == band, eye) * variance
    y, h = offset.ravel(), np.tile(eye, (m, 1))  # (2m,), (2m, 2)
    apart, columns = _apart(source)

    sizes = np.array(list(product(_SIZES, _SIZES, _FACTORS)))  # (k, 3)
    log_weight = -0.5 * (sizes[:, :2] ** 2).sum(1) - 0.5 * (sizes[:, 2] / _FACTOR_SCATTER) ** 2
    log_prior = log_weight - special.logsumexp(log_weight)
    of_sources, of_bands, factor = np.exp(2 * sizes.T)[:, :, None, None]  # (k, 1, 1) each
    inverse = np.linalg.inv(factor * noise + of_sources * of_source + of_bands * of_band)  # (k, 2m, 2m)
    log_det = -np.linalg.slogdet(inverse)[1]
    together, shift, posterior = _solve(inverse, log_det, y, h)
    separate = _solve(inverse, log_det, y, apart)[0]
    rest = np.einsum("kij,kj->ki", inverse, y - shift @ h.T)
    targets, mean, cov = ["joint"], [shift], [posterior]
    for j, part in enumerate(parts):
        own = of_bands * (np.kron(band == j, eye) * variance)  # (k, 2, 2m): covariance of its shift and the data
        spare = eye - own @ inverse @ h
        targets.append(part.band)
        mean.append(shift + np.einsum("kij,kj->ki", own, rest))
        cov.append(of_bands * variance * eye - own @ inverse @ _turned(own) + spare @ posterior @ _turned(spare))
    weight = np.exp(together + log_prior - special.logsumexp(together + log_prior))
    # A flat prior over the reach, in mas^2, for every offset that is free.
    evidence = special.logsumexp(together + log_prior) - special.logsumexp(separate + log_prior)
    evidence += (columns - 1) * np.log(1e6 * config.reach2)
    fields, widths = {}, []
    for name, value, error in zip(targets, mean, cov, strict=True):
        center = weight @ value
        total = np.einsum("k,kij->ij", weight, error)
        total += np.einsum("k,ki,kj->ij", weight, value - center, value - center)
        widths.append([_half_width(weight, value[:, i] - center[i], np.sqrt(error[:, i, i])) for i in (0, 1)])
        stretch = np.array(widths[-1]) / np.sqrt(np.diag(total))
        fields[name] = {
            "version": 1, "kind": "shift", "order": 0, "scale": 1.0, "coefficients": [center.tolist()],
            "coefficient_covariance": (total * np.outer(stretch, stretch)).tolist(), "floor": [], "score": None,
            "n_source": columns,
        }
    scale = float(np.sqrt(weight @ np.exp(2 * sizes[:, 0])))
    scatter = {p.band: scale * np.abs(e) for p, e in zip(parts, expected, strict=True)}
    scatter["joint"] = np.mean(list(scatter.values()), axis=0)
    return FewSources(fields, float(max(widths[0])), float(evidence), scatter, columns, len(parts))


def _apart(source):
    """Design of a free offset per source, (2m, 2 n_source), and how many sources there are."""
    labels = np.unique(source)
    return np.kron(source[:, None] == labels, np.eye(2)), len(labels)


def _turned(stack):
    """Transposes of a stack of matrices."""
    return stack.swapaxes(1, 2)


def _solve(inverse, log_det, y, h):
    """Log-evidence (k,) with flat priors of unit density on the coefficients, these (k, p), covariances (k, p, p)."""
    normal = h.T @ inverse @ h
    posterior = np.linalg.inv(normal)
    beta = np.einsum("kij,jl,klm,m->ki", posterior, h.T, inverse, y, optimize=True)
    rest = y - beta @ h.T
    chi2 = np.einsum("ki,kij,kj->k", rest, inverse, rest, optimize=True)
    free = len(y) - h.shape[1]
    return -0.5 * (chi2 + log_det + np.linalg.slogdet(normal)[1] + free * np.log(2 * np.pi)), beta, posterior


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
