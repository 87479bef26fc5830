# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Positions on the sky as offsets in arcsec about a stated centre, in double precision, and back."""

from dataclasses import dataclass

import numpy as np
from astropy.coordinates import SkyCoord

__all__ = ["TangentPlane", "from_tangent", "joined", "offset_coord", "plain_icrs", "tangent"]

ARCSEC = np.pi / 180 / 3600
EDGE = 1.0  # radian from its centre: how far a tangent plane is used


@dataclass(frozen=True, eq=False)
class TangentPlane:
    """The plane in which a pair's sources have their positions: (east, north) in arcsec about the field's centre.

    Sky positions become such pairs of numbers here, and sky positions again where a result is made.

    Attributes
    ----------
    center : `~astropy.coordinates.SkyCoord`
        Scalar.
    """

    center: SkyCoord

    def east_north(self, coord):
        """Positions (n, 2) float64 in the plane.

        What is more than a radian away, where the plane comes to its end, is put beyond all images in the direction
        where it lies: that is no position, and `sky` does not undo it.
        """
        at = tangent(coord, self.center)
        if len(at) == 0:
            return at
        away = np.ravel(self.center.separation(coord).rad)
        far = away > EDGE
        if far.any():
            angle = self.center.position_angle(coord.reshape(-1)[far]).rad
            at[far] = (EDGE + away[far, None]) / ARCSEC * np.stack([np.sin(angle), np.cos(angle)], -1)
        return at

    def sky(self, east_north):
        """Sky positions of positions (n, 2) in the plane."""
        return from_tangent(east_north, self.center)


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
