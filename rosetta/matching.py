# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The one cross-match: catalogue rows and true sources."""

import numpy as np
from scipy.spatial import cKDTree

from .images.positions import given_positions, tangent

__all__ = ["match"]

MATCH = 0.3  # arcsec: a catalogue row and a true source are one


def match(catalog, truth, band):
    """Pairs of rows of one sky position, true sources served in the order of their brightness.

    Parameters
    ----------
    catalog, truth : `~astropy.table.QTable`
        With ``sky_centroid``; the truth with ``flux_<band>``.
    band : str

    Returns
    -------
    rows, true : ndarray of int
        Rows of the catalogue and of the truth, parallel.

    Raises
    ------
    ValueError
        If a position is masked or not finite; the message names the rows.
    """
    if len(catalog) == 0 or len(truth) == 0:
        return np.zeros(0, int), np.zeros(0, int)
    here = given_positions(catalog["sky_centroid"], "sky_centroid of the catalogue")
    there = given_positions(truth["sky_centroid"], "sky_centroid of the truth")
    xy, place = tangent(here, there[0]), tangent(there, there[0])
    tree = cKDTree(xy)
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
