# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Positions on the sky as offsets in arcsec about a stated centre, in double precision, and back."""

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import ConvertError, SkyCoord

__all__ = [
    "TangentPlane", "from_tangent", "given_positions", "joined", "offset_coord", "plain_icrs", "table_positions",
    "tangent",
]  # fmt: skip

ARCSEC = np.pi / 180 / 3600
EDGE = 1.0  # radian from its centre: how far a tangent plane is used
MOST_ROWS = 10  # that a message names


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
    coord = _known(SkyCoord(coord), "coord").icrs.reshape(-1)
    return SkyCoord(coord.ra, coord.dec, frame="icrs")


def given_positions(coord, argument):
    """Positions that a user gives, as `plain_icrs` has them.

    Parameters
    ----------
    coord : `~astropy.coordinates.SkyCoord`
    argument : str
        Its name, for messages.

    Raises
    ------
    ValueError
        If a position is masked or not finite, or the frame cannot be brought to ICRS; the message names the rows.
    """
    try:
        plain = plain_icrs(_known(coord, argument))
    except (AttributeError, ConvertError) as error:
        raise ValueError(f"{argument} cannot be brought to ICRS: {error}") from error
    bad = ~(np.isfinite(plain.ra.deg) & np.isfinite(plain.dec.deg))
    _refuse(argument, "not finite", bad.reshape(coord.shape))
    return plain


def table_positions(table, argument):
    """Positions of a table that a user gives: its ``sky_centroid``, or else ``ra`` and ``dec``.

    These are in degrees where they have no unit. Their masks count in either case, because
    ``SkyCoord(table["ra"], table["dec"])`` drops masks without a word.

    Parameters
    ----------
    table : `~astropy.table.Table`
    argument : str
        Its name, for messages.

    Returns
    -------
    `~astropy.coordinates.SkyCoord`, shape (n,)
        As from `given_positions`.

    Raises
    ------
    TypeError
        If there are no such columns, or ``sky_centroid`` is no SkyCoord.
    ValueError
        If a value is masked or not finite, or the columns hold no angles; the message names the rows.
    """
    flat = [name for name in ("ra", "dec") if name in table.colnames]
    for name in flat:
        _refuse(f"{argument}: column {name}", "masked", _mask(table[name]))
    if "sky_centroid" in table.colnames:
        coord = table["sky_centroid"]
        if not isinstance(coord, SkyCoord):
            kind = type(coord).__name__
            raise TypeError(f"{argument} has a column 'sky_centroid' of type {kind}: make it a SkyCoord")
        return given_positions(coord, argument)
    if len(flat) < 2:
        held = ", ".join(table.colnames) or "no column"
        raise TypeError(f"{argument} must have a column sky_centroid, or ra and dec (deg), it has {held}: add them")
    angles = []
    for name in flat:
        column = getattr(table[name], "unmasked", table[name])
        try:
            angles.append(u.Quantity(column, getattr(column, "unit", None) or u.deg).to(u.deg))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{argument}: column {name} holds no angles, give degrees: {error}") from error
        _refuse(f"{argument}: column {name}", "not finite", ~np.isfinite(angles[-1].value))
    try:
        return plain_icrs(SkyCoord(*angles, frame="icrs"))
    except ValueError as error:
        raise ValueError(f"{argument}: ra and dec are no positions in degrees: {error}") from error


def _known(coord, argument):
    """The same, none of which is masked: numbers made of it would not tell."""
    _refuse(argument, "masked", np.any([_mask(angle) for angle in (coord.spherical.lon, coord.spherical.lat)], axis=0))
    return coord


def _mask(values):
    """Where values are masked, (n,) bool."""
    mask = getattr(values, "mask", None)
    return np.zeros(np.shape(values), bool) if mask is None else np.asarray(mask)


def _refuse(argument, what, bad):
    """Refuse values that are bad, and name their rows."""
    rows = np.flatnonzero(bad)
    if not len(rows):
        return
    if np.ndim(bad) == 0:
        raise ValueError(f"{argument} is {what}: give a position")
    more = f" and {len(rows) - MOST_ROWS} more" if len(rows) > MOST_ROWS else ""
    named = ", ".join(map(str, rows[:MOST_ROWS]))
    raise ValueError(f"{argument} is {what} in row{'s' * (len(rows) > 1)} {named}{more} (from 0): drop those rows")


def joined(coords):
    """Several arrays of positions as one, in ICRS."""
    coords = [plain_icrs(coord) for coord in coords]
    ra, dec = (np.concatenate([getattr(coord, name).deg for coord in coords]) for name in ("ra", "dec"))
    return SkyCoord(ra, dec, unit="deg", frame="icrs")


def tangent(coord, center):
    """Gnomonic (east, north) offsets in arcsec of ``coord`` about ``center``, one or one each: (n, 2) float64."""
    coord, center = _known(coord, "coord").icrs, center.icrs
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
