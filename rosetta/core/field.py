# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A smooth offset field through per-source offsets: shift, affine, polynomial or Gaussian process.

Every model is the same object: a polynomial mean of order 0 to 3 with flat priors, plus, for the
Gaussian process, a squared-exponential covariance (Rasmussen & Williams 2006, section 2.7), plus
per-source 2x2 covariances and one isotropic noise floor. Hyper-parameters maximise the restricted
marginal likelihood, outliers are down-weighted, and the simplest model whose leave-one-out
log-likelihood is as good as the best one's is kept.

A fitted model is a plain ``dict`` of numbers and lists: it can be written as JSON and evaluated anywhere.
Positions are (east, north) in arcsec about a stated centre; offsets are (east, north) in mas.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize

__all__ = ["MODELS", "FieldFit", "fit_field", "evaluate", "on_top_of", "predict_held_out"]

# Name -> (order of the polynomial mean, whether a Gaussian process rides on it), simplest first.
MODELS = {
    "shift": (0, False),
    "affine": (1, False),
    "polynomial2": (2, False),
    "polynomial3": (3, False),
    "gp": (0, True),
    "affine+gp": (1, True),
}
# A model must beat the simpler one by this much (nats, leave-one-out) to be preferred.
_MARGIN = 3.0
# Residuals beyond this many sigma lose weight as 1/r^2; beyond _OUTLIER they are flagged.
_ROBUST = 3.0
_OUTLIER = 5.0
# A noise floor must be this much likelier than none (nats): a chance floor wastes the best sources.
_FLOOR_EVIDENCE = 2.0
# More points than this are averaged in cells before a Gaussian process is solved.
_MAX_POINTS = 400


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
    """

    model: dict
    weight: np.ndarray
    outlier: np.ndarray
    score: float


def _basis(xy, order, scale):
    """Polynomial terms of (east, north) up to an order: (n, n_term)."""
    x, y = (xy / scale).T
    return np.stack([x**i * y**j for i in range(order + 1) for j in range(order + 1 - i)], -1)


def _two_axes(basis):
    """(n, m) for one axis -> (2n, 2m) for (east, north) interleaved per source."""
    return np.kron(basis, np.eye(2))


def _distance2(a, b):
    return ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)


class _Solved:
    """One model with all its numbers fixed, conditioned on the data (all in mas and arcsec).

    Without a Gaussian process the covariance is 2x2 blocks, and is never written out.
    """

    def __init__(self, xy, offset, cov, order, scale, amplitude, length, floor, *, distance2=None):
        n = len(xy)
        self.xy, self.order, self.scale = xy, order, scale
        self.amplitude, self.length = amplitude, length
        noise = cov + floor**2 * np.eye(2)
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

    def predict(self, xy):
        """Offset (m, 2) and covariance (m, 2, 2) of the field, without the noise floor."""
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


def _no_floor(cov):
    """A noise floor (mas) too small to matter."""
    return float(np.sqrt(np.min(np.linalg.eigvalsh(cov)[:, 0]))) * 1e-2 + 1e-6


def _best(xy, offset, cov, name, scale, start=None):
    """The named model with the hyper-parameters of highest restricted likelihood, or None.

    Returns the solved model, its noise floor and the logs of the hyper-parameters; ``start`` are those of an
    earlier fit to much the same data.
    """
    order, process = MODELS[name]
    if len(xy) <= _basis(xy[:1], order, scale).shape[1]:
        return None
    spread = float(np.sqrt(np.median((offset - np.median(offset, 0)) ** 2)) * 1.48 + 1e-3)
    tiny = _no_floor(cov)
    low = np.log([tiny, tiny, max(scale / 30, 1e-3)])
    high = np.log([30 * spread + 100 * tiny, 1e3 * spread + 1, 4 * scale])
    distance2 = _distance2(xy, xy) if process else None

    def solved(p):
        amplitude, length = (np.exp(p[1]), np.exp(p[2])) if process else (0.0, 1.0)
        return _Solved(xy, offset, cov, order, scale, amplitude, length, np.exp(p[0]), distance2=distance2)

    def loss(p):
        p = np.asarray(p)
        if (p < low[: len(p)]).any() or (p > high[: len(p)]).any():
            return np.inf
        try:
            return -solved(p).log_likelihood()
        except linalg.LinAlgError:
            return np.inf

    if not process:
        found = optimize.minimize_scalar(
            lambda q: loss([q]), bounds=(low[0], high[0]), method="bounded", options={"xatol": 0.05}
        )
        best = np.array([found.x])
    else:
        steps, tries = np.diag([-0.7, 0.3, 0.3]), 40
        if start is None:
            floor = np.log(max(0.1 * spread, 2 * tiny))
            start = min(([floor, np.log(spread), np.log(f * scale)] for f in (0.25, 1.0)), key=loss)
            steps, tries = np.diag([-1.5, 0.7, 0.5]), 80
        simplex = np.clip(np.asarray(start) + np.vstack([np.zeros(3), steps]), low, high)
        found = optimize.minimize(
            loss, simplex[0], method="Nelder-Mead",
            options={"xatol": 0.05, "fatol": 0.05, "maxfev": tries, "initial_simplex": simplex},
        )
        best = found.x
    if not np.isfinite(loss(best)):
        return None
    without = np.concatenate([low[:1], best[1:]])
    if loss(without) < loss(best) + _FLOOR_EVIDENCE:
        best = without
    return solved(best), float(np.exp(best[0])), np.asarray(best)


def _cells(xy, offset, cov, size):
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
    return where, np.einsum("nij,nj->ni", mean_cov, moment), mean_cov


def _thin(xy, offset, cov):
    if len(xy) <= _MAX_POINTS:
        return xy, offset, cov
    area = np.prod(np.ptp(xy, axis=0)) + 1e-9
    size = np.sqrt(area / _MAX_POINTS)
    out = _cells(xy, offset, cov, size)
    while len(out[0]) > _MAX_POINTS:
        size *= 1.1
        out = _cells(xy, offset, cov, size)
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


def _reweight(residual, cov, floor, spare):
    """Robust weights, the covariances that they leave, and the pulls.

    A weight widens all of a source's variance, its share of the floor included: a discrepant source must not
    keep a small error just because its own was tiny.
    """
    total = cov + floor**2 * np.eye(2)
    _, chi2 = _gaussian_score(residual, total + spare)
    weight = np.minimum(1.0, _ROBUST**2 / np.maximum(chi2, 1e-12))
    return weight, cov + (1.0 / weight - 1.0)[:, None, None] * (total + spare), np.sqrt(chi2)


def fit_field(xy, offset, cov, *, model="auto"):
    """Fit a smooth field to per-source offsets.

    Parameters
    ----------
    xy : numpy.ndarray, shape (n, 2)
        Positions (east, north), arcsec.
    offset : numpy.ndarray, shape (n, 2)
        Offsets (east, north), mas.
    cov : numpy.ndarray, shape (n, 2, 2)
        Their covariances, mas^2.
    model : str
        A key of `MODELS`, or "auto" to choose by leave-one-out likelihood.

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
    robust = next(name for name in ("gp", "affine", names[-1]) if name in names)
    start = offset - _robust_start(offset, cov)
    spread = 1.4826 * np.median(np.abs(start))
    weight, wide, _ = _reweight(start, cov, spread, 0.0)
    hyper = None
    for _ in range(3):
        fitted = _best(*_thin(xy, offset, wide), robust, scale, hyper)
        if fitted is None:
            raise ValueError(f"model {robust!r} cannot be fitted to {n} sources: use a simpler one")
        hyper = fitted[2]
        mean, spare = fitted[0].predict(xy)
        weight, wide, _ = _reweight(offset - mean, cov, fitted[1], spare)

    thin = _thin(xy, offset, wide)
    chosen = None
    for name in names:
        fitted = _best(*thin, name, scale, hyper if MODELS[name][1] and MODELS[robust][1] else None)
        if fitted is None:
            continue
        residual, expected = fitted[0].leave_one_out()
        score = float(_gaussian_score(residual, expected)[0].sum())
        margin = _MARGIN
        first = chosen is not None and MODELS[name][1] and not MODELS[chosen[0]][1]  # the first with a process
        if first and chosen[1][1] > 2 * _no_floor(thin[2]):
            margin = -1.0  # scatter that a floor explains may be a field: the wider error is the safer one
        if chosen is None or score > chosen[2] + margin:
            chosen = name, fitted, score
    if chosen is None:
        raise ValueError(f"model {model!r} cannot be fitted to {n} sources: use a simpler one")
    # The flexible model may have bent to an outlier that the chosen one shows: weigh once more about that one.
    name, (solved, floor, hyper), score = chosen
    for _ in range(2):
        mean, spare = solved.predict(xy)
        weight, wide, _ = _reweight(offset - mean, cov, floor, spare)
        thin = _thin(xy, offset, wide)
        solved, floor, hyper = _best(*thin, name, scale, hyper) or (solved, floor, hyper)
    mean, spare = solved.predict(xy)
    _, _, pull = _reweight(offset - mean, cov, floor, spare)
    order, process = MODELS[name]
    result = {
        "version": 1,
        "kind": name,
        "order": order,
        "scale": scale,
        "coefficients": solved.beta.reshape(-1, 2).tolist(),
        "coefficient_covariance": np.linalg.inv(solved.hkh).tolist(),
        "amplitude": float(solved.amplitude),
        "length": float(solved.length) if process else None,
        "floor": floor,
        "score": score / len(thin[0]),
        "n_source": n,
    }
    if process:
        result["points"] = {"xy": thin[0].tolist(), "offset": thin[1].tolist(), "cov": thin[2].tolist()}
    return FieldFit(result, weight, pull > _OUTLIER, result["score"])


def evaluate(model, east_north, *, band="joint"):
    """The offset field and its covariance at given places.

    Parameters
    ----------
    model : dict
        ``offsets.meta["model"]`` (one model per band under "bands"), or the model of one band.
    east_north : numpy.ndarray, shape (n, 2)
        Tangent-plane position about ``offsets.meta["center"]``, arcsec.
    band : str
        Whose field, where ``model`` holds several.

    Returns
    -------
    offset : numpy.ndarray, shape (n, 2)
        (east, north) in mas, to be added to header positions.
    covariance : numpy.ndarray, shape (n, 2, 2)
        In mas^2.

    Raises
    ------
    ValueError
        If the model holds no field for the band.
    """
    if "bands" in model:
        if band not in model["bands"]:
            known = ", ".join(model["bands"]) or "none: the alignment abstained"
            raise ValueError(f"no offset field for band {band!r}; the model has: {known}")
        model = model["bands"][band]
    xy = np.atleast_2d(np.asarray(east_north, dtype=float))
    if "base" in model:
        (low, low_cov), (own, own_cov) = evaluate(model["base"], xy), evaluate(model["added"], xy)
        return low + own, low_cov + own_cov  # as if independent: the wider error is the safer one
    beta = np.array(model["coefficients"])
    if "points" not in model:
        basis = _basis(xy, model["order"], model["scale"])
        h = _two_axes(basis).reshape(len(xy), 2, -1)
        cov = np.array(model["coefficient_covariance"])
        return basis @ beta, np.einsum("nik,kl,njl->nij", h, cov, h)
    points = {key: np.array(value) for key, value in model["points"].items()}
    solved = _Solved(
        points["xy"], points["offset"], points["cov"], model["order"], model["scale"],
        model["amplitude"], model["length"], model["floor"],
    )
    parts = [solved.predict(chunk) for chunk in np.array_split(xy, max(1, len(xy) // 2000))]
    return tuple(np.concatenate(p) for p in zip(*parts, strict=True))


def on_top_of(base, fit):
    """The field of ``base`` (a model) plus one fitted to what it leaves: a `FieldFit`, for `evaluate`."""
    model = {
        "version": 1, "kind": f"{base['kind']}+{fit.model['kind']}", "base": base, "added": fit.model,
        "floor": fit.model["floor"], "score": fit.score, "n_source": fit.model["n_source"],
    }
    return FieldFit(model, fit.weight, fit.outlier, fit.score)


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
