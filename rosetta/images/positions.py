# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Positions on the sky as offsets in arcsec about a stated centre, in double precision, and back."""

import numpy as np
from astropy.coordinates import SkyCoord

__all__ = ["from_tangent", "joined", "offset_coord", "plain_icrs", "tangent"]

ARCSEC = np.pi / 180 / 3600


def plain_icrs(coord):
    """The position in ICRS alone, as an array.

    ``SkyCoord.icrs`` keeps the attributes of the frame it came from (an equinox, say), and positions that differ in
    those refuse to be compared.
    """
    coord = SkyCoord(coord).icrs.reshape(-1)
    return SkyCoord(coord.ra, coord.dec, frame="icrs")


def joined(coords):
    """Several arrays of positions as one, in ICRS."""
    coords = [plain_icrs(coord) for coord in coords]
    ra, dec = (np.concatenate([getattr(coord, name).deg for coord in coords]) for name in ("ra", "dec"))
    return SkyCoord(ra, dec, unit="deg", frame="icrs")


def tangent(coord, center):
    """Gnomonic (east, north) offsets in arcsec of ``coord`` about ``center``, one or one each: (n, 2) float64."""
    coord, center = coord.icrs, center.icrs
    ra, dec = coord.ra.rad.ravel() - center.ra.rad, coord.dec.rad.ravel()
    sin0, cos0 = np.sin(center.dec.rad), np.cos(center.dec.rad)
    depth = sin0 * np.sin(dec) + cos0 * np.cos(dec) * np.cos(ra)
    east = np.cos(dec) * np.sin(ra) / depth
    north = (cos0 * np.sin(dec) - sin0 * np.cos(dec) * np.cos(ra)) / depth
    return np.stack([east, north], -1) / ARCSEC


def from_tangent(offsets, center):
    """The sky positions of gnomonic ``offsets`` (n, 2) [east, north, arcsec] about the scalar ``center``."""
    return offset_coord(center, *np.asarray(offsets, float).reshape(-1, 2).T)


def offset_coord(coord, east, north):
    """``coord`` moved by (east, north) arcsec in the tangent plane of each position."""
    coord = coord.icrs
    east, north = (np.asarray(v, float) * ARCSEC for v in (east, north))
    sin0, cos0 = np.sin(coord.dec.rad), np.cos(coord.dec.rad)
    ra = coord.ra.rad + np.arctan2(east, cos0 - north * sin0)
    dec = np.arctan2(sin0 + north * cos0, np.hypot(east, cos0 - north * sin0))
    return SkyCoord(ra, dec, unit="rad", frame="icrs")
