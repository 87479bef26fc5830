# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Lists of positions with scores against true sources: completeness where lists are cut at the same purity."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

__all__ = ["APART", "BINS", "Judged", "Lists", "judged"]

APART = 0.3  # arcsec: a row and a true source are one
BINS = {"18-24": (18, 24), "24-25": (24, 25), "25-26": (25, 26)}
ODD, BRIGHT, REACH = 23.0, 22.0, 3.0  # i of irregular galaxies, and of hosts of false rows; arcsec


@dataclass(frozen=True)
class Judged:
    """The list of one field.

    Parameters
    ----------
    score : ndarray
        Of every row, from the highest down, (n_row,).
    true : ndarray of int
        The true source of every row, -1: none.
    host : ndarray of int
        The true source in whose light a row without one lies, -1: none within 3".
    mag, family : ndarray
        Of the true sources.
    """

    score: np.ndarray
    true: np.ndarray
    host: np.ndarray
    mag: np.ndarray
    family: np.ndarray


def judged(place, score, truth_place, mag, family):
    """Match a list, one to one within 0.3", row by row from the highest score down.

    A list that is cut at a score so keeps its matches.

    Parameters
    ----------
    place, score : ndarray
        (east, north), arcsec, (n_row, 2), and (n_row,).
    truth_place, mag, family : ndarray
        Of the true sources.

    Returns
    -------
    `Judged`
    """
    order = np.argsort(-score, kind="stable")
    place = place[order]
    near = cKDTree(truth_place).query_ball_point(place, APART)
    free, true = np.ones(len(mag), bool), np.full(len(place), -1)
    for row, sources in enumerate(near):
        sources = [k for k in sources if free[k]]
        if sources:
            true[row] = min(sources, key=lambda k: np.hypot(*(truth_place[k] - place[row])))
            free[true[row]] = False
    apart = np.linalg.norm(place[:, None] - truth_place[None], axis=-1)
    light = np.where(apart < REACH, 10 ** (-0.4 * (mag - 25)) / (APART**2 + apart**2), 0)
    host = np.where((true < 0) & (light.max(1, initial=0) > 0), light.argmax(1), -1)
    return Judged(score[order], true, host, mag, family)


class Lists:
    """Judged lists of many fields, in one order of scores.

    Parameters
    ----------
    fields : sequence of `Judged`
    """

    def __init__(self, fields):
        self.fields = fields
        number = np.concatenate([np.full(len(one.score), k) for k, one in enumerate(fields)])
        score, true, host = (np.concatenate([getattr(f, name) for f in fields]) for name in ("score", "true", "host"))
        order = np.argsort(-score, kind="stable")
        self.score, self.field, self.hit = score[order], number[order], true[order] >= 0
        columns, truths = {}, {}
        for name, of in self.kinds():
            chosen = [of(one) for one in fields]  # of every true source
            truths[name] = np.array([c.sum() for c in chosen])
            columns[name] = np.concatenate([_at(c, f.true) for c, f in zip(chosen, fields, strict=True)])[order]
            columns[f"pieces of {name}"] = np.concatenate(
                [_at(c, f.host) for c, f in zip(chosen, fields, strict=True)]
            )[order]
        self.columns, self.truths = columns, truths

    @staticmethod
    def kinds():
        for name, (low, high) in BINS.items():
            yield name, lambda f, low=low, high=high: (f.mag >= low) & (f.mag < high)
        yield "irregular", lambda f: (f.family == "irregular") & (f.mag < ODD)
        yield "bright", lambda f: (f.family != "star") & (f.mag < BRIGHT)
        yield "star", lambda f: (f.family == "star") & (f.mag < BRIGHT)

    def figures(self, purity, times=None):
        """Figures of the lists cut at one score, where their purity is just ``purity`` (None: whole lists).

        Parameters
        ----------
        purity : float or None
        times : ndarray of int, optional
            How often each field counts (a bootstrap sample), (n_field,).

        Returns
        -------
        dict of float
            ``purity``, ``rows`` a field, completeness by bin, ``irregular`` found, ``rows an irregular`` galaxy, and
            rows without a true source in the light of galaxies and stars of i < 22, a field.
        """
        times = np.ones(len(self.fields)) if times is None else times
        weight = times[self.field]
        rows, hits = np.cumsum(weight), np.cumsum(weight * self.hit)
        last = len(rows) - 1
        if purity is not None:
            pure = np.flatnonzero(hits >= purity * np.maximum(rows, 1e-9))
            last = pure[-1] if len(pure) else 0
        kept, n = weight[: last + 1], times.sum()

        def total(name):
            return (kept * self.columns[name][: last + 1]).sum()

        share = {name: total(name) / max((times * self.truths[name]).sum(), 1) for name in self.truths}
        n_odd = max((times * self.truths["irregular"]).sum(), 1)
        return {
            "purity": hits[last] / max(rows[last], 1e-9),
            "rows": rows[last] / n,
            **{name: share[name] for name in (*BINS, "irregular")},
            "rows an irregular": share["irregular"] + total("pieces of irregular") / n_odd,
            "false near bright galaxies": total("pieces of bright") / n,
            "false near bright stars": total("pieces of star") / n,
            "score": self.score[last],
        }


def _at(values, index):
    """``values[index]``, and False where the index is -1."""
    return np.where(index >= 0, values[np.maximum(index, 0)], False)
