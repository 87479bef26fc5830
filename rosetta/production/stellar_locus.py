# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The stellar locus, and the zero points that put stars on it.

Stars lie close to one line in the space of colours. Many of them give the line; then the stars of one field tell by how
much the zero point of each band differs there (stellar locus regression, High et al. 2009, AJ 138, 110; Kelly et al.
2014, MNRAS 439, 28). Brightness and place along the line are free for every star, so that only what is across the line
counts.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["Locus", "fit_locus", "zero_points"]

PER_KNOT = 40  # stars, at least
KNOTS = (4, 25)  # fewest and most
ENDS = 0.02  # of the stars at each end: the line is not bent there
FEWEST = 5  # stars about a knot in a band that has one there
THINNEST = 0.01  # mag; no locus is taken for thinner
STEPS = 30  # of the iteration
PRIOR = 0.05  # mag within which zero points are taken to agree, before stars are looked at


@dataclass(frozen=True)
class Locus:
    """A line in the space of colours.

    Parameters
    ----------
    pair : (int, int)
        The two bands whose colour gives the place along the line; the second one is the reference of all colours.
    knots : (n_knot,) array
        That colour.
    values, slopes : (n_knot, n_band) array
        Colours against the reference there, and their derivatives; NaN where stars do not tell.
    scatter : (n_band,) array
        Of stars about the line, mag.
    """

    pair: tuple
    knots: np.ndarray
    values: np.ndarray
    slopes: np.ndarray
    scatter: np.ndarray

    def at(self, colour):
        """Colours at places along the line, and their derivatives, (n, n_band) each; straight beyond the ends."""
        inside = np.clip(colour, self.knots[0], self.knots[-1])
        values, slopes = (
            np.stack([np.interp(inside, self.knots, column) for column in table.T], -1)
            for table in (self.values, self.slopes)
        )
        return values + slopes * (colour - inside)[:, None], slopes


def fit_locus(magnitude, pair):
    """The line along which stars lie: running medians.

    Parameters
    ----------
    magnitude : (n, n_band) array
        NaN where a star was not measured.
    pair : (int, int)
        The two bands whose colour gives the place along the line.

    Returns
    -------
    Locus or None
        None if there are too few stars.
    """
    colour = magnitude[:, pair[0]] - magnitude[:, pair[1]]
    use = np.isfinite(colour)
    colour, magnitude = colour[use], magnitude[use]
    n_knot = min(len(colour) // PER_KNOT, KNOTS[1])
    if n_knot < KNOTS[0]:
        return None
    relative = magnitude - magnitude[:, pair[1], None]
    edges = np.quantile(colour, np.linspace(ENDS, 1 - ENDS, n_knot + 1))
    part = np.searchsorted(edges, colour) - 1
    knots = np.array([np.median(colour[part == k]) for k in range(n_knot)])
    values = np.array([[_median(column[part == k]) for column in relative.T] for k in range(n_knot)])
    slopes = np.gradient(values, knots, axis=0)
    locus = Locus(pair, knots, values, slopes, np.zeros(magnitude.shape[1]))
    rest = relative - locus.at(colour)[0]
    scatter = np.array([1.4826 * _median(np.abs(column)) for column in rest.T])
    # Those of the pair lie on the line by its making: they are taken to scatter like the others.
    others = [band for band in range(len(scatter)) if band not in pair]
    scatter[list(pair)] = np.nanmedian(scatter[others]) if np.isfinite(scatter[others]).any() else np.nan
    return Locus(pair, knots, values, slopes, np.maximum(scatter, THINNEST))


def _median(values):
    values = values[np.isfinite(values)]
    return np.median(values) if len(values) >= FEWEST else np.nan


def zero_points(locus, magnitude, error):
    """By how much the zero points of some stars differ from those of the locus.

    The magnitude of star i in band b is a_i + L_b(t_i) + z_b: a_i and t_i are projected out (to first order about the
    place that its colour gives), and z is solved for by least squares, in which stars far off the line count less and
    less (weights of Cauchy's distribution). A locus that is nearly straight does not tell errors of all bands that move
    stars along it. So zero points are taken to agree within 0.05 mag (Gaussian) before stars are looked at: what stars
    do not tell comes out too small, with an error that says so.

    Parameters
    ----------
    locus : Locus
    magnitude, error : (n, n_band) array
        NaN where a star was not measured.

    Returns
    -------
    offset : (n_band,) array
        mag by which the stars are too faint; 0 for the reference band, NaN for a band that no star has.
    error : (n_band,) array
        From the scatter of these stars, and of what was taken before.
    n_star : (n_band,) int array
        Stars that count.
    """
    blue, red = locus.pair
    base, slope = locus.at(magnitude[:, blue] - magnitude[:, red])
    rest = magnitude - base
    known = np.isfinite(rest) & np.isfinite(error) & np.isfinite(slope) & np.isfinite(locus.scatter)
    use = known[:, blue] & known[:, red] & (known.sum(1) > 2)  # two bands are used up by brightness and place
    rest, slope, error, known = rest[use], slope[use], error[use], known[use]
    n_star, reference = known.sum(0), np.arange(rest.shape[1]) == red
    fitted = (n_star > 0) & ~reference
    weight = np.where(known, 1 / (error**2 + locus.scatter**2), 0.0)
    rest = np.where(known, rest, 0.0)
    free = np.stack([np.ones_like(rest), np.where(known, slope, 0.0)], -1)  # (n, n_band, 2)
    weighted = weight[..., None] * free
    inner = np.linalg.inv(np.swapaxes(free, 1, 2) @ weighted)
    across = weight[:, :, None] * np.eye(rest.shape[1]) - weighted @ inner @ np.swapaxes(weighted, 1, 2)
    offset, freedom = np.zeros(rest.shape[1]), np.maximum(known.sum(1) - 2, 1)
    prior = np.eye(fitted.sum()) / PRIOR**2
    for _ in range(STEPS):
        pull = np.einsum("nij,nj->ni", across, rest - offset)
        trust = 1 / (1 + np.sum(pull * (rest - offset), 1) / freedom)
        normal = np.einsum("n,nij->ij", trust, across)[np.ix_(fitted, fitted)] + prior
        offset[fitted] += np.linalg.solve(normal, (trust @ pull)[fitted] - prior @ offset[fitted])
    inverse, score = np.linalg.inv(normal), trust[:, None] * pull[:, fitted]
    sigma = np.zeros(len(offset))
    sigma[fitted] = np.sqrt((inverse @ (score.T @ score + prior) @ inverse).diagonal())
    offset[~fitted & ~reference], sigma[~fitted & ~reference] = np.nan, np.nan
    return offset, sigma, n_star
