# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Which of the fitted sources a user's positions are, and how these take their places.

A position is the fitted source whose light lies there, fragments and all: the peak that was detected may be elsewhere.
"""

from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from .engine.rendering import half_light_radius
from .shapes import EAST, SIZE, centroids
from .source_list import COINCIDENT, coincident

__all__ = ["identity", "placed_where_listed", "with_listed"]


def with_listed(sources, owners, mixtures, listed, config):
    """Sources of which some are what a user listed, and the listed ones beside them.

    A fitted source keeps its template if the listed position agrees with it, or may be recentred, or if the source is a
    galaxy with fragments, which no single template describes. Else the listed position takes its place, and must be
    fitted.

    Parameters
    ----------
    sources : `~rosetta.deblending.sources.Sources`
        That were fitted.
    owners : (n,) int array
        The source that each is a fragment of.
    mixtures : (m, K, 6) array
        Of the sources that are no fragments, with their fragments.
    listed : `~rosetta.deblending.sources.Sources`
    config : `~rosetta.deblending.config.DeblenderConfig`

    Returns
    -------
    sources : `~rosetta.deblending.sources.Sources`
        Those that are kept, then the new ones.
    new : bool
        Whether there are new ones.
    """
    whole = np.flatnonzero(owners == np.arange(len(owners)))
    which, apart = identity(listed.east_north, sources.east_north[whole], mixtures, config)
    known, row = which >= 0, np.append(whole, -1)[which]
    place = coincident(listed.east_north)
    alone = np.bincount(place, minlength=len(place))[place] == 1
    parts = np.append(np.bincount(owners, minlength=len(owners))[whole], 0)[which]
    agrees = listed.free[:, EAST] | (parts > 1) | (apart < COINCIDENT)
    kept = known & alone & listed.free[:, SIZE] & agrees
    index, named = sources.index.copy(), sources.listed.copy()
    index[row[kept]], named[row[kept]] = listed.index[kept], True
    sources = replace(sources, index=index, listed=named)
    if kept.all():
        return sources, False
    more, same = listed.of(~kept), (known & listed.free[:, SIZE])[~kept]
    start, largest, snr = more.start.copy(), more.largest.copy(), more.snr.copy()
    for own, of_all in ((start, sources.start), (largest, sources.largest), (snr, sources.snr)):
        own[same] = of_all[row[~kept][same]]
    more = replace(more, start=start, largest=largest, snr=snr)
    rest = np.flatnonzero(~np.isin(owners, row[known & ~kept]))
    return sources.of(rest).joined(more), True


def placed_where_listed(sources, mixtures, listed):
    """Templates that a listed position agrees with, put there.

    Returns
    -------
    sources : `~rosetta.deblending.sources.Sources`
    mixtures : (n, K, 6) array
        Their light is about the position, unless it may be recentred.
    home : (n, 2) array
        Where each source is counted: listed ones where they are listed.
    """
    rows = np.flatnonzero(sources.listed)
    of = np.searchsorted(listed.index, sources.index[rows])
    home = _replaced(sources.east_north, rows, listed.east_north[of])
    moves = sources.free[rows, EAST] & ~listed.free[of, EAST]
    rows, of = rows[moves], of[moves]
    mixtures = mixtures.copy()
    mixtures[rows, :, 1:3] -= centroids(mixtures[rows])[:, None]
    moved = _replaced(sources.east_north, rows, listed.east_north[of])
    return replace(sources, east_north=moved, _places={}), mixtures, home


def identity(position, of_sources, mixtures, config):
    """The source whose light each position is, -1 where there is none, and how far it is, arcsec; each (n,).

    Parameters
    ----------
    position : (n, 2) array
    of_sources : (m, 2) array
        Positions of sources, in the same tangent plane.
    mixtures : (m, K, 6) array
        Their templates.
    config : `~rosetta.deblending.config.DeblenderConfig`
    """
    n = len(position)
    if n == 0 or len(mixtures) == 0:
        return np.full(n, -1), np.full(n, np.inf)
    light = of_sources + centroids(mixtures)
    reach = np.maximum(config.match, config.uncertain_centre * half_light_radius(mixtures))
    apart, index = cKDTree(light).query(position)
    _, back = cKDTree(position).query(light)
    place = coincident(position)
    return np.where((apart < reach[index]) & (place[back[index]] == place), index, -1), apart


def _replaced(east_north, rows, new):
    """Positions of which some are replaced."""
    east_north = east_north.copy()
    east_north[rows] = new
    return east_north
