# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Positions and labels of sources that a user gives."""

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..images.positions import given_positions, table_positions

__all__ = ["NO_LABEL", "coincident", "user_sources"]

COINCIDENT = 0.02  # arcsec: closer positions, and chains of them, are one place
NO_LABEL = -1  # what the photometry calls a missing neighbour


def user_sources(sources):
    """Positions and labels of user-given sources."""
    if isinstance(sources, SkyCoord):
        return given_positions(sources, "sources"), None
    if not isinstance(sources, Table):
        if hasattr(sources, "colnames"):
            raise TypeError("sources is one row of a table: give a table, as table[0:1]")
        raise TypeError(
            "sources must be a SkyCoord, or a table with sky_centroid, or with ra and dec (deg); "
            f"got {type(sources).__name__}: make a table"
        )
    coord = table_positions(sources, "sources")
    return coord, _labels(sources["label"]) if "label" in sources.colnames else None


def _labels(column):
    """User-given labels, (n,) int64."""
    remedy = "give every row its own whole number, or drop the column"
    if np.any(getattr(column, "mask", False)):
        raise ValueError(f"sources has rows without a label: {remedy}")
    label = np.asarray(column)
    if len(label) == 0:
        return np.zeros(0, np.int64)
    if label.dtype.kind not in "iu" or label.ndim != 1:
        raise TypeError(f"sources has labels of type {label.dtype}: {remedy}")
    if label.max() > np.iinfo(np.int64).max:
        raise ValueError(f"sources has labels that do not fit 64 bits with a sign: {remedy}")
    label = label.astype(np.int64)
    if len(np.unique(label)) != len(label):
        raise ValueError(f"sources has duplicate labels: {remedy}")
    if (label == NO_LABEL).any():
        raise ValueError(f"sources has the label {NO_LABEL}, which stands for no source in catalogues: {remedy}")
    return label


def coincident(east_north):
    """The first row at the place of each of the positions (n, 2), arcsec: (n,) int."""
    n = len(east_north)
    if n < 2:
        return np.arange(n)
    one, two = cKDTree(east_north).query_pairs(COINCIDENT, output_type="ndarray").T
    _, place = connected_components(sparse.coo_array((np.ones(len(one)), (one, two)), shape=(n, n)), directed=False)
    _, first = np.unique(place, return_index=True)
    return first[place]
