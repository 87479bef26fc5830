# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A smooth field of offsets as numbers: a polynomial mean of order 0 to 3 with flat priors, plus, for a Gaussian
process, a squared-exponential covariance (Rasmussen & Williams 2006, section 2.7).

A fitted model is a plain ``dict`` of numbers and lists: it can be written as JSON and evaluated anywhere.
Positions are (east, north) in arcsec about a stated centre; offsets are (east, north) in mas.
"""

import numpy as np
from scipy import linalg

__all__ = ["MODELS", "Solved", "basis", "constant", "distance2", "evaluate", "summed", "widened", "with_scatter"]

# Name -> (order of the polynomial mean, whether a Gaussian process rides on it), simplest first.
MODELS = {
    "shift": (0, False),
    "affine": (1, False),
    "polynomial2": (2, False),
    "polynomial3": (3, False),
    "gp": (0, True),
    "affine+gp": (1, True),
}


def basis(xy, order, scale):
    """Polynomial terms of (east, north) up to an order: (n, n_term)."""
    x, y = (xy / scale).T
    return np.stack([x**i * y**j for i in range(order + 1) for j in range(order + 1 - i)], -1)


def two_axes(terms):
    """(n, m) for one axis -> (2n, 2m) for (east, north) interleaved per source."""
    n, m = terms.shape
    out = np.zeros((n, 2, m, 2))
    out[:, 0, :, 0] = out[:, 1, :, 1] = terms
    return out.reshape(2 * n, 2 * m)


def distance2(a, b):
    return ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)


def with_scatter(cov, scatter, size):
    """Covariances with the scatter of n sources, (n, n_component) shapes of (n_component,) sizes, added."""
    return cov + (scatter**2 @ np.asarray(size) ** 2)[:, None, None] * np.eye(2)


class Solved:
    """One model with all its numbers fixed, conditioned on the data (all in mas and arcsec).

    Without a Gaussian process the covariance is 2x2 blocks, and is never written out.
    """

    def __init__(self, xy, offset, noise, order, scale, amplitude, length, *, squares=None):
        n = len(xy)
        self.xy, self.order, self.scale = xy, order, scale
        self.amplitude, self.length = amplitude, length
        if amplitude:
            squares = distance2(xy, xy) if squares is None else squares
            se = amplitude**2 * np.exp(-0.5 * squares / length**2)
            k = np.zeros((n, 2, n, 2))
            k[:, 0, :, 0] = k[:, 1, :, 1] = se
            k[np.arange(n), :, np.arange(n), :] += noise
            self.factor = linalg.cho_factor(k.reshape(2 * n, 2 * n), lower=True, check_finite=False, overwrite_a=True)
            self.log_det = 2 * np.log(np.diag(self.factor[0])).sum()
        else:
            self.blocks = np.linalg.inv(noise)
            self.log_det = np.log(np.linalg.det(noise)).sum()
        self.y = offset.ravel()
        self.h = two_axes(basis(xy, order, scale))  # (2n, 2m)
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
        mean = basis(xy, self.order, self.scale) @ self.beta.reshape(-1, 2)
        if self.amplitude:
            near = self.amplitude**2 * np.exp(-0.5 * distance2(xy, self.xy) / self.length**2)
            mean = mean + near @ self.alpha.reshape(-1, 2)
        return mean

    def predict(self, xy):
        """Offset (m, 2) and covariance (m, 2, 2) of the field, without the sources' scatter."""
        m = len(xy)
        h = two_axes(basis(xy, self.order, self.scale))  # (2m, 2k)
        mean = h @ self.beta
        cov = np.zeros((m, 2, 2))
        rest = h
        if self.amplitude:
            near = np.exp(-0.5 * distance2(xy, self.xy) / self.length**2)
            cross = self.amplitude**2 * np.kron(near, np.eye(2))
            mean = mean + cross @ self.alpha
            half = linalg.solve_triangular(self.factor[0], cross.T, lower=True, check_finite=False)
            half = half.reshape(-1, m, 2)
            cov += self.amplitude**2 * np.eye(2) - np.einsum("kmi,kmj->mij", half, half)
            rest = h - cross @ self.kh
        half = linalg.solve_triangular(self.hkh_factor[0], rest.T, lower=True).reshape(-1, m, 2)
        cov += np.einsum("kmi,kmj->mij", half, half)
        return mean.reshape(m, 2), cov


def constant(offset, sigma):
    """The field (a model) of one offset everywhere, (east, north) mas, known to ``sigma`` mas per axis."""
    return {
        "version": 1, "kind": "coarse", "order": 0, "scale": 1.0, "coefficients": [np.asarray(offset).tolist()],
        "coefficient_covariance": (sigma**2 * np.eye(2)).tolist(), "floor": [], "score": None, "n_source": 0,
    }


def summed(model, added):
    """One field (a model) plus another, under the first one's name."""
    kept = ("version", "kind", "floor", "score", "n_source", "borrowed")
    return {**{key: model[key] for key in kept if key in model}, "base": model, "added": added}


def widened(model, sigma):
    """The same field (a model), its error enlarged by ``sigma`` mas per axis that is common to all places."""
    return summed(model, constant((0.0, 0.0), sigma))


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
        terms = basis(xy, model["order"], model["scale"])
        h = two_axes(terms).reshape(len(xy), 2, 2 * terms.shape[1])
        cov = np.array(model["coefficient_covariance"])
        return terms @ beta, np.einsum("nik,kl,njl->nij", h, cov, h) if covariance else None
    points = {key: np.array(value) for key, value in model["points"].items()}
    weights, means, covs = [], [], []
    for weight, size, amplitude, length in model["samples"]:
        noise = with_scatter(points["cov"], points["scatter"], size)
        solved = Solved(points["xy"], points["offset"], noise, model["order"], model["scale"], amplitude, length)
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
