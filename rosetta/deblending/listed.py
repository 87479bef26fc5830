# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Which of the fitted sources a user's positions are, and how these take their places.

A position is the fitted source whose light lies there, fragments and all: the peak that was detected may be elsewhere.
"""

from dataclasses import replace

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord

from ..images.positions import offset_coord
from .engine.rendering import half_light_radius
from .shapes import EAST, SIZE, centroids
from .source_list import COINCIDENT, coincident

__all__ = ["identity", "placed_where_listed", "with_listed"]

PART = 0.5  # of the half-light radius of a large galaxy: its centre is known no better


def with_listed(sources, owners, mixtures, listed, match):
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
    match : float
        arcsec within which a position and a source are one.

    Returns
    -------
    sources : `~rosetta.deblending.sources.Sources`
        Those that are kept, then the new ones.
    new : bool
        Whether there are new ones.
    """
    whole = np.flatnonzero(owners == np.arange(len(owners)))
    which, apart = identity(listed.coord, sources.coord[whole], mixtures, match)
    known, row = which >= 0, np.append(whole, -1)[which]
    place = coincident(listed.coord)
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
    home : `~astropy.coordinates.SkyCoord`, shape (n,)
        Where each source is counted: listed ones where they are listed.
    """
    rows = np.flatnonzero(sources.listed)
    of = np.searchsorted(listed.index, sources.index[rows])
    home = _replaced(sources.coord, rows, listed.coord[of])
    moves = sources.free[rows, EAST] & ~listed.free[of, EAST]
    rows, of = rows[moves], of[moves]
    mixtures = mixtures.copy()
    mixtures[rows, :, 1:3] -= centroids(mixtures[rows])[:, None]
    coord = _replaced(sources.coord, rows, listed.coord[of])
    return replace(sources, coord=coord, _places={}), mixtures, home


def identity(coord, of_sources, mixtures, match):
    """The source whose light each position is, -1 where there is none, and how far it is, arcsec; each (n,).

    Parameters
    ----------
    coord : `~astropy.coordinates.SkyCoord`, shape (n,)
    of_sources : `~astropy.coordinates.SkyCoord`, shape (m,)
    mixtures : (m, K, 6) array
        Their templates.
    match : float
        arcsec within which a position and a source are one.
    """
    n = len(coord)
    if n == 0 or len(mixtures) == 0:
        return np.full(n, -1), np.full(n, np.inf)
    light = offset_coord(of_sources, *centroids(mixtures).T)
    reach = np.maximum(match, PART * half_light_radius(mixtures))
    index, apart, _ = coord.match_to_catalog_sky(light)
    back, _, _ = light.match_to_catalog_sky(coord)
    apart, place = apart.to_value(u.arcsec), coincident(coord)
    return np.where((apart < reach[index]) & (place[back[index]] == place), index, -1), apart


def _replaced(coord, rows, new):
    """Positions of which some are replaced."""
    ra, dec = coord.icrs.ra.deg.copy(), coord.icrs.dec.deg.copy()
    ra[rows], dec[rows] = new.icrs.ra.deg, new.icrs.dec.deg
    return SkyCoord(ra, dec, unit="deg", frame="icrs")
