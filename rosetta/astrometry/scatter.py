# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Scatter of sources about a polynomial field beyond their errors: the likelihood of many amplitudes in one call."""

import numpy as np

from .field import basis

__all__ = ["Scatter"]

# Points per axis of the first search for the sizes of one, two and more components; how fine the last one is (ln).
_COARSE, _FINE = (25, 10, 5), 0.03
_AT_ONCE = 20_000  # of these times sources: arrays stay in the processor's cache


class Scatter:
    """Restricted likelihood of the sizes of the scatter about a polynomial, for many sets of sizes in one call."""

    def __init__(self, xy, offset, cov, scatter, order, scale):
        self.basis = basis(xy, order, scale)  # (n, m)
        n, m = self.basis.shape
        self.products = (self.basis[:, :, None] * self.basis[:, None, :]).reshape(n, m * m)
        self.east, self.north = (offset - np.median(offset, 0)).T  # a constant is part of the polynomial
        self.cov, self.shapes2 = cov, scatter.T**2  # (n_component, n)

    def log_likelihood(self, size):
        """Sizes (k, n_component), mas -> restricted log-likelihoods (k,); as `field.Solved` gives one at a time."""
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
