# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The one cross-match: catalogue rows and true sources."""

import numpy as np
from scipy.spatial import cKDTree

from .images.positions import tangent

__all__ = ["match"]

MATCH = 0.3  # arcsec: a catalogue row and a true source are one


def match(catalog, truth, band):
    """Pairs of rows of one sky position, true sources served in the order of their brightness.

    Returns
    -------
    rows, true : ndarray of int
        Rows of the catalogue and of the truth, parallel.
    """
    if len(catalog) == 0 or len(truth) == 0:
        return np.zeros(0, int), np.zeros(0, int)
    center = truth["sky_centroid"][0]
    xy = tangent(catalog["sky_centroid"], center)
    tree = cKDTree(xy)
    place = tangent(truth["sky_centroid"], center)
    free = np.ones(len(catalog), bool)
    rows, true = [], []
    for k in np.argsort(-truth[f"flux_{band}"].value):
        near = [i for i in tree.query_ball_point(place[k], MATCH) if free[i]]
        if near:
            best = min(near, key=lambda i: np.hypot(*(xy[i] - place[k])))
            free[best] = False
            rows.append(best)
            true.append(k)
    return np.array(rows, int), np.array(true, int)
