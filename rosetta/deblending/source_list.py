# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Positions and labels of sources that a user gives."""

import numpy as np
from astropy.coordinates import ConvertError, SkyCoord
from astropy.table import Table
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..images.positions import plain_icrs

__all__ = ["NO_LABEL", "coincident", "user_sources"]

COINCIDENT = 0.02  # arcsec: closer positions, and chains of them, are one place
NO_LABEL = -1  # what the photometry calls a missing neighbour


def user_sources(sources):
    """Positions and labels of user-given sources."""
    label = None
    if not isinstance(sources, SkyCoord):
        if "sky_centroid" not in getattr(sources, "colnames", ()):
            raise TypeError(
                "sources must be a SkyCoord or a table with a column 'sky_centroid', "
                f"got {type(sources).__name__}: make it with SkyCoord(ra, dec, unit='deg')"
            )
        if not isinstance(sources, Table):
            raise TypeError("sources is one row of a table: give a table, as table[0:1]")
        if "label" in sources.colnames:
            label = _labels(sources["label"])
        sources = sources["sky_centroid"]
        if not isinstance(sources, SkyCoord):
            raise TypeError(
                f"sources has a column 'sky_centroid' of type {type(sources).__name__}: make it a SkyCoord"
            )
    if any(np.any(getattr(angle, "mask", False)) for angle in (sources.spherical.lon, sources.spherical.lat)):
        raise ValueError("sources has masked positions: drop those rows")
    try:
        coord = plain_icrs(sources)
    except (AttributeError, ConvertError) as error:
        raise ValueError(f"sources cannot be brought to ICRS: {error}") from error
    bad = ~(np.isfinite(coord.ra.deg) & np.isfinite(coord.dec.deg))
    if bad.any():
        raise ValueError(f"sources has {bad.sum()} positions that are not finite: drop those rows")
    return coord, label


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
