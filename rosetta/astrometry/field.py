# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A smooth offset field through per-source offsets: shift, affine, polynomial or Gaussian process.

Every model is the same object: a polynomial mean of order 0 to 3 with flat priors, plus, for the
Gaussian process, a squared-exponential covariance (Rasmussen & Williams 2006, section 2.7), plus
per-source 2x2 covariances and isotropic scatter beyond them, in components of given shape and fitted size.
Hyper-parameters maximise the restricted marginal likelihood, outliers are down-weighted, and the simplest
model whose leave-one-out log-likelihood is as good as the best one's is kept. The hyper-parameters of a Gaussian
process are then integrated over by importance sampling: at their best point its errors are too small.

A fitted model is a plain ``dict`` of numbers and lists: it can be written as JSON and evaluated anywhere.
Positions are (east, north) in arcsec about a stated centre; offsets are (east, north) in mas.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize

__all__ = ["MODELS", "FieldConfig", "FieldFit", "constant", "evaluate", "fit_field", "on_top_of", "predict_held_out"]

# Name -> (order of the polynomial mean, whether a Gaussian process rides on it), simplest first.
MODELS = {
    "shift": (0, False),
    "affine": (1, False),
    "polynomial2": (2, False),
    "polynomial3": (3, False),
    "gp": (0, True),
    "affine+gp": (1, True),
}
# Points per axis of the first search for the sizes of one, two and more components; how fine the last one is (ln).
_COARSE, _FINE = (25, 10, 5), 0.03
_AT_ONCE = 20_000  # of these times sources: arrays stay in the processor's cache
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
    """

    margin: float = 3.0
    robust: float = 3.0
    outlier: float = 5.0
    floor_evidence: float = 2.0
    most_points: int = 400
    min_affine: int = 12


@dataclass(frozen=True)
class FieldFit:
    """Result of `fit_field`.

    Attributes
    ----------
    model : dict
        For `evaluate`.
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


def _basis(xy, order, scale):
    """Polynomial terms of (east, north) up to an order: (n, n_term)."""
    x, y = (xy / scale).T
    return np.stack([x**i * y**j for i in range(order + 1) for j in range(order + 1 - i)], -1)


def _two_axes(basis):
    """(n, m) for one axis -> (2n, 2m) for (east, north) interleaved per source."""
    n, m = basis.shape
    out = np.zeros((n, 2, m, 2))
    out[:, 0, :, 0] = out[:, 1, :, 1] = basis
    return out.reshape(2 * n, 2 * m)


def _distance2(a, b):
    return ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)


class _Solved:
    """One model with all its numbers fixed, conditioned on the data (all in mas and arcsec).

    Without a Gaussian process the covariance is 2x2 blocks, and is never written out.
    """

    def __init__(self, xy, offset, noise, order, scale, amplitude, length, *, distance2=None):
        n = len(xy)
        self.xy, self.order, self.scale = xy, order, scale
        self.amplitude, self.length = amplitude, length
        if amplitude:
            distance2 = _distance2(xy, xy) if distance2 is None else distance2
            se = amplitude**2 * np.exp(-0.5 * distance2 / length**2)
            k = np.zeros((n, 2, n, 2))
            k[:, 0, :, 0] = k[:, 1, :, 1] = se
            k[np.arange(n), :, np.arange(n), :] += noise
            self.factor = linalg.cho_factor(k.reshape(2 * n, 2 * n), lower=True, check_finite=False, overwrite_a=True)
            self.log_det = 2 * np.log(np.diag(self.factor[0])).sum()
        else:
            self.blocks = np.linalg.inv(noise)
            self.log_det = np.log(np.linalg.det(noise)).sum()
        self.y = offset.ravel()
        self.h = _two_axes(_basis(xy, order, scale))  # (2n, 2m)
        right = self._solve(np.column_stack([self.h, self.y]))
        self.kh, ky = right[:, :-1], right[:, -1]
        self.hkh = self.h.T @ self.kh
        self.hkh_factor = linalg.cho_factor(self.hkh, lower=True)
        self.beta = linalg.cho_solve(self.hkh_factor, self.h.T @ ky)
        self.alpha = ky - self.kh @ self.beta
        self.chi2 = self.y @ self.alpha

    def _solve(self, right):
        """Inverse covariance times (2n, k)."""
        if self.amplitude:
            return linalg.cho_solve(self.factor, right, check_finite=False)
        return (self.blocks @ right.reshape(len(self.xy), 2, -1)).reshape(right.shape)

    def log_likelihood(self):
        """Restricted log-likelihood: the polynomial coefficients are integrated out."""
        log_det = self.log_det + 2 * np.log(np.diag(self.hkh_factor[0])).sum()
        return -0.5 * (self.chi2 + log_det + (len(self.y) - len(self.beta)) * np.log(2 * np.pi))

    def leave_one_out(self):
        """Residual (n, 2) and covariance (n, 2, 2) of each source predicted from all others."""
        n = len(self.xy)
        if self.amplitude:
            inverse = self._solve(np.eye(2 * n)).reshape(n, 2, n, 2)
            block = inverse[np.arange(n), :, np.arange(n), :]  # (n, 2, 2)
        else:
            block = self.blocks
        kh = self.kh.reshape(n, 2, -1)
        block = block - kh @ np.linalg.inv(self.hkh) @ kh.swapaxes(1, 2)
        cov = np.linalg.inv(block)
        return np.einsum("nij,nj->ni", cov, self.alpha.reshape(n, 2)), cov

    def mean(self, xy):
        """Offset (m, 2) of the field."""
        mean = _basis(xy, self.order, self.scale) @ self.beta.reshape(-1, 2)
        if self.amplitude:
            near = self.amplitude**2 * np.exp(-0.5 * _distance2(xy, self.xy) / self.length**2)
            mean = mean + near @ self.alpha.reshape(-1, 2)
        return mean

    def predict(self, xy):
        """Offset (m, 2) and covariance (m, 2, 2) of the field, without the sources' scatter."""
        m = len(xy)
        h = _two_axes(_basis(xy, self.order, self.scale))  # (2m, 2k)
        mean = h @ self.beta
        cov = np.zeros((m, 2, 2))
        rest = h
        if self.amplitude:
            near = np.exp(-0.5 * _distance2(xy, self.xy) / self.length**2)
            cross = self.amplitude**2 * np.kron(near, np.eye(2))
            mean = mean + cross @ self.alpha
            half = linalg.solve_triangular(self.factor[0], cross.T, lower=True, check_finite=False)
            half = half.reshape(-1, m, 2)
            cov += self.amplitude**2 * np.eye(2) - np.einsum("kmi,kmj->mij", half, half)
            rest = h - cross @ self.kh
        half = linalg.solve_triangular(self.hkh_factor[0], rest.T, lower=True).reshape(-1, m, 2)
        cov += np.einsum("kmi,kmj->mij", half, half)
        return mean.reshape(m, 2), cov


def _gaussian_score(residual, cov):
    """Log-density of residuals (n, 2) under covariances (n, 2, 2)."""
    chi2 = np.einsum("ni,ni->n", residual, np.linalg.solve(cov, residual[..., None])[..., 0])
    return -0.5 * (chi2 + np.log(np.linalg.det(cov)) + 2 * np.log(2 * np.pi)), chi2


def _with_scatter(cov, scatter, size):
    """Covariances with the scatter of n sources, (n, n_component) shapes of (n_component,) sizes, added."""
    return cov + (scatter**2 @ np.asarray(size) ** 2)[:, None, None] * np.eye(2)


def _no_floor(cov):
    """A noise floor (mas) too small to matter."""
    return float(np.sqrt(np.min(np.linalg.eigvalsh(cov)[:, 0]))) * 1e-2 + 1e-6


class _Scatter:
    """Restricted likelihood of the sizes of the scatter about a polynomial, for many sets of sizes in one call."""

    def __init__(self, xy, offset, cov, scatter, order, scale):
        self.basis = _basis(xy, order, scale)  # (n, m)
        n, m = self.basis.shape
        self.products = (self.basis[:, :, None] * self.basis[:, None, :]).reshape(n, m * m)
        self.east, self.north = (offset - np.median(offset, 0)).T  # a constant is part of the polynomial
        self.cov, self.shapes2 = cov, scatter.T**2  # (n_component, n)

    def log_likelihood(self, size):
        """Sizes (k, n_component), mas -> restricted log-likelihoods (k,); `_Solved.log_likelihood` one at a time."""
        (n, m), k = self.basis.shape, len(size)
        most = max(1, _AT_ONCE // n)
        if k > most:
            return np.concatenate([self.log_likelihood(size[i : i + most]) for i in range(0, k, most)])
        extra = size**2 @ self.shapes2  # (k, n)
        ee, nn, en = self.cov[:, 0, 0] + extra, self.cov[:, 1, 1] + extra, self.cov[:, 0, 1]
        det = ee * nn - en**2
        ee, nn, en = nn / det, ee / det, -en / det  # the inverses
        right = np.stack([ee * self.east + en * self.north, en * self.east + nn * self.north], 1)  # (k, 2, n)
        chi2 = right[:, 0] @ self.east + right[:, 1] @ self.north
        normal = np.empty((k, 2, m, 2, m))
        for i, j, weight in ((0, 0, ee), (0, 1, en), (1, 1, nn)):
            normal[:, i, :, j] = normal[:, j, :, i] = (weight @ self.products).reshape(k, m, m)
        normal, right = normal.reshape(k, 2 * m, 2 * m), (right.reshape(2 * k, n) @ self.basis).reshape(k, 2 * m)
        chi2 -= (right * np.linalg.solve(normal, right[..., None])[..., 0]).sum(1)
        log_det = np.log(det).sum(1) + np.linalg.slogdet(normal)[1]
        return -0.5 * (chi2 + log_det + 2 * (n - m) * np.log(2 * np.pi))

    def best(self, low, high):
        """Logs of the most likely sizes between two bounds (n_component,), the lower of which stands for none."""
        n = len(low)
        axes = [np.linspace(a, b, _COARSE[min(n, len(_COARSE)) - 1]) for a, b in zip(low, high, strict=True)]
        step = np.array([axis[1] - axis[0] for axis in axes])
        tried = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, n)
        about = np.concatenate([np.zeros((1, n)), *(s * np.eye(n) for s in (0.25, 0.5, 1.0, -0.25, -0.5, -1.0))])
        place = tried[np.argmax(self.log_likelihood(np.exp(tried)))]
        while step.max() > _FINE:
            tried = np.clip(place + step * about, low, high)
            best = tried[np.argmax(self.log_likelihood(np.exp(tried)))]
            step = step / (4 if np.array_equal(best, place) else 2)
            place = best
        return place

    def without_chance(self, p, low, evidence):
        """Logs of sizes without those components that are not likelier than none by ``evidence``, nats."""
        for k in range(len(p)):
            without = np.array(p)
            without[k] = low[k]
            less, more = self.log_likelihood(np.exp([without, p]))
            if less > more - evidence:
                p = without
        return p


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
        self.distance2 = _distance2(xy, xy) if self.process else None

    def split(self, p):
        """Sizes, amplitude, length."""
        n = self.scatter.shape[1]
        return np.exp(p[:n]), *(np.exp(p[n:]) if self.process else (0.0, 1.0))

    def solved(self, p):
        xy, offset, cov = self.data
        size, amplitude, length = self.split(p)
        noise = _with_scatter(cov, self.scatter, size)
        return _Solved(xy, offset, noise, self.order, self.scale, amplitude, length, distance2=self.distance2)

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
            flat = _Scatter(*self.data, self.scatter, self.order, self.scale)
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
    if len(xy) <= _basis(xy[:1], MODELS[name][0], scale).shape[1]:
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
        # Scatter that a floor explains may be a field, and a polynomial that bends is no simpler than a process: the
        # wider error is the safer one.
        if first and (MODELS[chosen[0]][0] > 1 or (chosen[1][2] > np.log(2) + chosen[1][1].low).any()):
            margin = -1.0
        if chosen is None or score > chosen[2] + margin:
            chosen = name, fitted, score
    if chosen is None:
        raise ValueError(f"model {model!r} cannot be fitted to {n} sources: use a simpler one")
    # The flexible model may have bent to an outlier that the chosen one shows: weigh once more about that one.
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
    total = _with_scatter(cov, scatter, posterior.split(best)[0]) + spare
    return _reweight(offset - mean, cov, total, config.robust)


def constant(offset, sigma):
    """The field (a model) of one offset everywhere, (east, north) mas, known to ``sigma`` mas per axis."""
    return {
        "version": 1, "kind": "coarse", "order": 0, "scale": 1.0, "coefficients": [np.asarray(offset).tolist()],
        "coefficient_covariance": (sigma**2 * np.eye(2)).tolist(), "floor": [], "score": None, "n_source": 0,
    }


def evaluate(model, east_north, *, covariance=True):
    """The offset field and its covariance at given places.

    Parameters
    ----------
    model : dict
        Of a `FieldFit`.
    east_north : numpy.ndarray, shape (n, 2)
        Tangent-plane position about the field's centre, arcsec.
    covariance : bool
        Whether it is wanted: it takes most of the time.

    Returns
    -------
    offset : numpy.ndarray, shape (n, 2)
        (east, north) in mas, to be added to header positions.
    covariance : numpy.ndarray, shape (n, 2, 2)
        In mas^2; None where it is not wanted.
    """
    xy = np.atleast_2d(np.asarray(east_north, dtype=float))
    if "base" in model:
        (low, low_cov), (own, own_cov) = (evaluate(model[k], xy, covariance=covariance) for k in ("base", "added"))
        return low + own, low_cov + own_cov if covariance else None  # as if independent: the wider error is safer
    beta = np.array(model["coefficients"])
    if "points" not in model:
        basis = _basis(xy, model["order"], model["scale"])
        h = _two_axes(basis).reshape(len(xy), 2, -1)
        cov = np.array(model["coefficient_covariance"])
        return basis @ beta, np.einsum("nik,kl,njl->nij", h, cov, h) if covariance else None
    points = {key: np.array(value) for key, value in model["points"].items()}
    weights, means, covs = [], [], []
    for weight, size, amplitude, length in model["samples"]:
        noise = _with_scatter(points["cov"], points["scatter"], size)
        solved = _Solved(points["xy"], points["offset"], noise, model["order"], model["scale"], amplitude, length)
        weights.append(weight)
        if covariance:
            parts = [solved.predict(chunk) for chunk in np.array_split(xy, max(1, len(xy) // 2000))]
            mean, cov = (np.concatenate(p) for p in zip(*parts, strict=True))
            covs.append(cov)
        means.append(mean if covariance else solved.mean(xy))
    mean = np.einsum("k,kni->ni", weights, means)
    if not covariance:
        return mean, None
    apart = np.array(means) - mean  # the samples' disagreement is part of the error
    return mean, np.einsum("k,knij->nij", weights, covs) + np.einsum("k,kni,knj->nij", weights, apart, apart)


def on_top_of(base, fit):
    """The field of ``base`` (a model) plus one fitted to what it leaves: a `FieldFit`, for `evaluate`."""
    model = {
        "version": 1, "kind": f"{base['kind']}+{fit.model['kind']}", "base": base, "added": fit.model,
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
