# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The offset field that suits per-source offsets: shift, affine, polynomial or Gaussian process.

Every model is the same object: the field of `rosetta.astrometry.field` plus per-source 2x2 covariances and isotropic
scatter beyond them, in components of given shape and fitted size. Hyper-parameters maximise the restricted marginal
likelihood, outliers are down-weighted, and the simplest model whose leave-one-out log-likelihood is as good as the best
one's is kept. The hyper-parameters of a Gaussian process are then integrated over by importance sampling: at their best
point its errors are too small.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize

from .field import MODELS, Solved, basis, distance2, evaluate, with_scatter
from .scatter import Scatter

__all__ = ["FieldConfig", "FieldFit", "fit_field", "on_top_of", "predict_held_out"]

# Importance samples of the hyper-parameters, and how many of them are kept in the model.
_DRAWS, _KEPT = 64, 12


@dataclass(frozen=True)
class FieldConfig:
    """What decides which field is fitted.

    Attributes
    ----------
    margin : float
        Nats of leave-one-out likelihood by which a model must beat a simpler one.
    robust, outlier : float
        Residuals beyond ``robust`` sigma lose weight as 1 / r^2; beyond ``outlier`` they are flagged.
    floor_evidence : float
        Nats by which a component of the scatter must be likelier than none: a chance floor wastes the best sources.
    most_points : int
        More points are averaged in cells.
    min_affine : int
        Sources that a single band must have for an affine field of its own.
    apart, apart_significance : float
        mas, and sigma, by which the shift of a band differs from the others' for them to disagree: many sigma, as
        refraction moves bands by a few mas.
    """

    margin: float = 3.0
    robust: float = 3.0
    outlier: float = 5.0
    floor_evidence: float = 2.0
    most_points: int = 400
    min_affine: int = 12
    apart: float = 10.0
    apart_significance: float = 10.0


@dataclass(frozen=True)
class FieldFit:
    """Result of `fit_field`.

    Attributes
    ----------
    model : dict
        For `~rosetta.astrometry.field.evaluate`.
    weight : numpy.ndarray, shape (n,)
        Robust weight of each source, 1 for a good one, 0 for one that was not used.
    outlier : numpy.ndarray of bool, shape (n,)
    score : float
        Leave-one-out log-likelihood per source.
    floor : numpy.ndarray, shape (n_component,)
        Fitted size of each component of the sources' scatter beyond their covariances, mas per axis.
    """

    model: dict
    weight: np.ndarray
    outlier: np.ndarray
    score: float
    floor: np.ndarray


def _gaussian_score(residual, cov):
    """Log-density of residuals (n, 2) under covariances (n, 2, 2)."""
    chi2 = np.einsum("ni,ni->n", residual, np.linalg.solve(cov, residual[..., None])[..., 0])
    return -0.5 * (chi2 + np.log(np.linalg.det(cov)) + 2 * np.log(2 * np.pi)), chi2


def _no_floor(cov):
    """A noise floor (mas) too small to matter."""
    return float(np.sqrt(np.min(np.linalg.eigvalsh(cov)[:, 0]))) * 1e-2 + 1e-6


class _Posterior:
    """Restricted likelihood of one model's hyper-parameters, as logs: sizes of the scatter, then amplitude, length.

    With a process there is a weak prior as well, without which its integral does not exist: sizes and amplitude s
    as exp(-s / spread) / (s + 0.05 spread) with the spread of the offsets, the logarithm of the length normal about
    half the field with a scatter of 1.
    """

    def __init__(self, xy, offset, cov, scatter, name, scale, evidence):
        self.evidence = evidence  # that a component of the scatter must have, nats
        self.data, self.scatter, self.scale = (xy, offset, cov), scatter, scale
        self.order, self.process = MODELS[name]
        self.spread = float(np.sqrt(np.median((offset - np.median(offset, 0)) ** 2)) * 1.48 + 1e-3)
        self.tiny = _no_floor(cov)
        n = scatter.shape[1]
        self.low = np.log([*n * [self.tiny], self.tiny, max(scale / 30, 1e-3)])
        self.high = np.log([*n * [30 * self.spread + 100 * self.tiny], 1e3 * self.spread + 1, 4 * scale])
        if not self.process:
            self.low, self.high = self.low[:n], self.high[:n]
        self.squares = distance2(xy, xy) if self.process else None

    def split(self, p):
        """Sizes, amplitude, length."""
        n = self.scatter.shape[1]
        return np.exp(p[:n]), *(np.exp(p[n:]) if self.process else (0.0, 1.0))

    def solved(self, p):
        xy, offset, cov = self.data
        size, amplitude, length = self.split(p)
        noise = with_scatter(cov, self.scatter, size)
        return Solved(xy, offset, noise, self.order, self.scale, amplitude, length, squares=self.squares)

    def loss(self, p):
        p = np.asarray(p)
        if (p < self.low - 1e-9).any() or (p > self.high).any():
            return np.inf
        try:
            value = -self.solved(p).log_likelihood()
        except linalg.LinAlgError:
            return np.inf
        if self.process:
            size = np.exp(p[:-1]) / self.spread
            value += 0.5 * (p[-1] - np.log(0.5 * self.scale)) ** 2 + (size - np.log(size / (size + 0.05))).sum()
        return value

    def best(self, start=None):
        """The logs of highest posterior density, or None; ``start``: those of an earlier fit to much the same data."""
        if not self.process:
            flat = Scatter(*self.data, self.scatter, self.order, self.scale)
            return flat.without_chance(flat.best(self.low, self.high), self.low, self.evidence)
        n = self.scatter.shape[1]
        tries, steps = (80 if start is None else 30), 0.3
        if start is None:
            floor = np.log(np.full(n, max(0.1 * self.spread, 2 * self.tiny)))
            steps = 0.7
            corners = [(a * self.spread, f * self.scale) for a in (0.4, 1.0) for f in (0.15, 0.4, 1.0)]
            start = min((np.concatenate([floor, np.log(c)]) for c in corners), key=self.loss)
        simplex = np.asarray(start) + np.vstack([np.zeros(len(start)), steps * np.eye(len(start))])
        simplex[1 : n + 1] -= 3 * steps * np.eye(len(start))[:n]  # the scatter may well be none
        simplex = np.clip(simplex, self.low, self.high)
        found = optimize.minimize(
            self.loss, simplex[0], method="Nelder-Mead",
            options={"xatol": 0.05, "fatol": 0.05, "maxfev": tries, "initial_simplex": simplex},
        ).x
        return found if np.isfinite(self.loss(found)) else None

    def without_chance(self, p):
        """The same without those components of the scatter for which the data give too little evidence."""
        for k in range(self.scatter.shape[1]):
            without = np.array(p)
            without[k] = self.low[k]
            if self.solved(without).log_likelihood() > self.solved(p).log_likelihood() - self.evidence:
                p = without
        return p

    def samples(self, best):
        """Hyper-parameters drawn from the posterior: (weight, p) of `_KEPT` draws at most.

        A multivariate t about the best point, as wide as the curvature says, then importance weights.
        """
        d, dof, h = len(best), 5, 0.2
        step = h * np.eye(d)
        middle = self.loss(best)
        hessian = np.empty((d, d))
        up, down = ([self.loss(np.clip(best + s * e, self.low, self.high)) for e in step] for s in (1, -1))
        for i in range(d):
            hessian[i, i] = (up[i] + down[i] - 2 * middle) / h**2
            for j in range(i):
                both = self.loss(np.clip(best + step[i] + step[j], self.low, self.high))
                hessian[i, j] = hessian[j, i] = (both - up[i] - up[j] + middle) / h**2
        value, vector = np.linalg.eigh(np.nan_to_num(hessian, nan=1.0, posinf=100.0, neginf=1.0))
        width = vector / np.sqrt(np.clip(value, 0.5, 100.0))  # standard deviations from 0.1 to 1.4
        rng = np.random.default_rng(0)
        unit = rng.normal(size=(_DRAWS, d)) / np.sqrt(rng.chisquare(dof, (_DRAWS, 1)) / dof)
        draws = best + unit @ width.T
        log_weight = np.array([-self.loss(p) for p in draws])
        log_weight += 0.5 * (dof + d) * np.log1p((unit**2).sum(1) / dof)
        weight = np.exp(log_weight - log_weight.max())
        # Systematic resampling keeps the shape of the posterior in few samples.
        edges = (np.arange(_KEPT) + 0.5) / _KEPT
        chosen, count = np.unique(np.searchsorted(np.cumsum(weight) / weight.sum(), edges), return_counts=True)
        return list(zip(count / _KEPT, draws[chosen], strict=True))


def _best(xy, offset, cov, scatter, name, scale, config, start=None):
    """The named model at its best hyper-parameters: solved, the posterior and those logs; None if it cannot be."""
    if len(xy) <= basis(xy[:1], MODELS[name][0], scale).shape[1]:
        return None
    posterior = _Posterior(xy, offset, cov, scatter, name, scale, config.floor_evidence)
    best = posterior.best(start)
    return None if best is None else (posterior.solved(best), posterior, best)


def _cells(xy, offset, cov, scatter, size):
    """Inverse-covariance means of the sources in square cells, to bound the cost of a fit."""
    key = np.floor(xy / size).astype(int)
    _, label = np.unique(key, axis=0, return_inverse=True)
    label = label.ravel()
    n = label.max() + 1
    inverse = np.linalg.inv(cov)
    total = np.zeros((n, 2, 2))
    np.add.at(total, label, inverse)
    moment = np.zeros((n, 2))
    np.add.at(moment, label, np.einsum("nij,nj->ni", inverse, offset))
    where = np.zeros((n, 2))
    weight = np.trace(inverse, axis1=1, axis2=2)
    np.add.at(where, label, weight[:, None] * xy)
    where /= np.bincount(label, weight)[:, None]
    mean_cov = np.linalg.inv(total)
    squares = np.stack([np.bincount(label, weight * s) / np.bincount(label, weight) for s in scatter.T**2], -1)
    return where, np.einsum("nij,nj->ni", mean_cov, moment), mean_cov, np.sqrt(squares)


def _thin(xy, offset, cov, scatter, most):
    if len(xy) <= most:
        return xy, offset, cov, scatter
    area = np.prod(np.ptp(xy, axis=0)) + 1e-9
    size = np.sqrt(area / most)
    out = _cells(xy, offset, cov, scatter, size)
    while len(out[0]) > most:
        size *= 1.1
        out = _cells(xy, offset, cov, scatter, size)
    return out


def _robust_start(offset, cov):
    """Weighted median of the offsets, per axis."""
    out = np.empty(2)
    for axis in (0, 1):
        order = np.argsort(offset[:, axis])
        weight = 1.0 / np.sqrt(cov[order, axis, axis])
        total = np.cumsum(weight)
        out[axis] = offset[order, axis][np.searchsorted(total, 0.5 * total[-1])]
    return out


def _reweight(residual, cov, total, robust):
    """Robust weights, the covariances that they leave, and the pulls; ``total``: what the residuals should scatter by;
    ``robust``: how many sigma keep their weight.

    A weight widens all of a source's variance, its share of the scatter included: a discrepant source must not
    keep a small error just because its own was tiny.
    """
    _, chi2 = _gaussian_score(residual, total)
    weight = np.minimum(1.0, robust**2 / np.maximum(chi2, 1e-12))
    return weight, cov + (1.0 / weight - 1.0)[:, None, None] * total, np.sqrt(chi2)


def fit_field(xy, offset, cov, *, scatter=None, model="auto", config=FieldConfig()):
    """Fit a smooth field to per-source offsets.

    Parameters
    ----------
    xy : numpy.ndarray, shape (n, 2)
        Positions (east, north), arcsec.
    offset : numpy.ndarray, shape (n, 2)
        Offsets (east, north), mas.
    cov : numpy.ndarray, shape (n, 2, 2)
        Their covariances, mas^2.
    scatter : numpy.ndarray, shape (n, n_component), optional
        How sources may scatter beyond their covariances: each column is the shape of one component, whose size is
        fitted. Default: a single one, alike for all.
    model : str
        A key of `MODELS`, or "auto" to choose by leave-one-out likelihood.
    config : FieldConfig

    Returns
    -------
    FieldFit

    Raises
    ------
    ValueError
        If the model is unknown or no model can be fitted to so few sources.
    """
    if model != "auto" and model not in MODELS:
        raise ValueError(f"model must be 'auto' or one of {', '.join(MODELS)}; got {model!r}")
    n = len(xy)
    scale = float(max(np.abs(xy).max(initial=0.0), 1.0))
    names = list(MODELS) if model == "auto" else [model]
    if model == "auto":
        limits = {"shift": 2, "affine": 6, "polynomial2": 12, "polynomial3": 20, "gp": 25, "affine+gp": 30}
        names = [name for name in names if n >= limits[name]]
    if not names:
        raise ValueError(f"a field needs at least 2 sources; got {n}")

    # Down-weight outliers with the most flexible model, so that every candidate sees the same weights.
    # The first residuals are about the median, with their own scatter as a floor.
    scatter = np.ones((n, 1)) if scatter is None else np.asarray(scatter, float)
    robust = next(name for name in ("gp", "affine", names[-1]) if name in names)
    start = offset - _robust_start(offset, cov)
    spread = 1.4826 * np.median(np.abs(start))
    weight, wide, _ = _reweight(start, cov, cov + spread**2 * np.eye(2), config.robust)
    best = None
    for _ in range(3):
        fitted = _best(*_thin(xy, offset, wide, scatter, config.most_points), robust, scale, config, best)
        if fitted is None:
            raise ValueError(f"model {robust!r} cannot be fitted to {n} sources: use a simpler one")
        best = fitted[2]
        weight, wide, _ = _about(fitted, xy, offset, cov, scatter, config)

    thin = _thin(xy, offset, wide, scatter, config.most_points)
    chosen = None
    for name in names:
        fitted = _best(*thin, name, scale, config, best if MODELS[name][1] and MODELS[robust][1] else None)
        if fitted is None:
            continue
        residual, expected = fitted[0].leave_one_out()
        score = float(_gaussian_score(residual, expected)[0].sum())
        margin = config.margin
        first = chosen is not None and MODELS[name][1] and not MODELS[chosen[0]][1]  # the first with a process
        # Excess scatter may be unresolved structure of the field, and a curved polynomial is no simpler than a
        # Gaussian process: prefer the process, whose errors are larger.
        if first and (MODELS[chosen[0]][0] > 1 or (chosen[1][2] > np.log(2) + chosen[1][1].low).any()):
            margin = -1.0
        if chosen is None or score > chosen[2] + margin:
            chosen = name, fitted, score
    if chosen is None:
        raise ValueError(f"model {model!r} cannot be fitted to {n} sources: use a simpler one")
    # The flexible model may follow an outlier: compute the robust weights again, about the chosen model.
    name, fitted, score = chosen
    for _ in range(2):
        weight, wide, _ = _about(fitted, xy, offset, cov, scatter, config)
        thin = _thin(xy, offset, wide, scatter, config.most_points)
        fitted = _best(*thin, name, scale, config, fitted[2]) or fitted
    _, _, pull = _about(fitted, xy, offset, cov, scatter, config)
    solved, posterior, best = fitted
    size, amplitude, length = posterior.split(posterior.without_chance(best))
    order, process = MODELS[name]
    result = {
        "version": 1,
        "kind": name,
        "order": order,
        "scale": scale,
        "coefficients": solved.beta.reshape(-1, 2).tolist(),
        "coefficient_covariance": np.linalg.inv(solved.hkh).tolist(),
        "amplitude": float(amplitude),
        "length": float(length) if process else None,
        "floor": size.tolist(),
        "score": score / len(thin[0]),
        "n_source": n,
    }
    if process:
        result["points"] = dict(zip(("xy", "offset", "cov", "scatter"), (a.tolist() for a in thin), strict=True))
        result["samples"] = [
            [float(w), size.tolist(), float(amplitude), float(length)]
            for w, (size, amplitude, length) in ((w, posterior.split(p)) for w, p in posterior.samples(best))
        ]
    return FieldFit(result, weight, pull > config.outlier, result["score"], size)


def _about(fitted, xy, offset, cov, scatter, config):
    """Robust weights, widened covariances and pulls about a fitted model."""
    solved, posterior, best = fitted
    mean, spare = solved.predict(xy)
    total = with_scatter(cov, scatter, posterior.split(best)[0]) + spare
    return _reweight(offset - mean, cov, total, config.robust)


def on_top_of(base, fit):
    """The joint field ``base`` (a model) plus one that a band was fitted with on top of it: a `FieldFit`."""
    model = {
        "version": 1, "kind": f"joint + {fit.model['kind']}", "base": base, "added": fit.model,
        "floor": fit.model["floor"], "score": fit.score, "n_source": fit.model["n_source"],
    }
    return FieldFit(model, fit.weight, fit.outlier, fit.score, fit.floor)


def predict_held_out(xy, offset, cov, *, folds=5, seed=0):
    """The field at each source as the other sources see it (k-fold).

    Parameters
    ----------
    xy, offset, cov : numpy.ndarray
        As for `fit_field`.
    folds, seed : int

    Returns
    -------
    offset : numpy.ndarray, shape (n, 2)
    covariance : numpy.ndarray, shape (n, 2, 2)
        Of the prediction, without the noise floor.
    """
    kind = fit_field(xy, offset, cov).model["kind"]
    fold = np.random.default_rng(seed).permutation(len(xy)) % folds
    mean, spare = np.empty((len(xy), 2)), np.empty((len(xy), 2, 2))
    for k in range(folds):
        rest, mine = fold != k, fold == k
        if mine.any():
            mean[mine], spare[mine] = evaluate(fit_field(xy[rest], offset[rest], cov[rest], model=kind).model, xy[mine])
    return mean, spare
