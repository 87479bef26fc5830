# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Stars of an astrometric catalogue, such as Gaia's, at any epoch."""

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy.time import Time

from ..images.positions import offset_coord, plain_icrs
from .epochs import MOTION

__all__ = ["ReferenceStars", "reference_stars"]

UNKNOWN_YEARS = 5.0  # between the catalogue and an image without a date
PARALLAX_SHARE = 0.7  # rms displacement along an axis over a year, relative to the parallax
ADVICE = "reference must be a table with sky_centroid (or ra, dec) and ref_epoch, or a SkyCoord with obstime"


@dataclass(frozen=True, eq=False)
class ReferenceStars:
    """Positions of n stars at the epochs of their catalogue.

    Attributes
    ----------
    sky : `~astropy.coordinates.SkyCoord`, shape (n,)
    year : numpy.ndarray, shape (n,)
        Epoch of each position, Julian years.
    error : numpy.ndarray, shape (n, 2)
        (east, north), mas; with the parallax, which is not followed.
    motion, motion_error : numpy.ndarray, shape (n, 2)
        mas per year; no motion and that of a typical star where it is not known.
    """

    sky: SkyCoord
    year: np.ndarray
    error: np.ndarray
    motion: np.ndarray
    motion_error: np.ndarray

    def __len__(self):
        return len(self.sky)

    def at(self, year):
        """Positions and their variances at an epoch.

        Parameters
        ----------
        year : float
            Julian year. NaN, where an image has no date: the catalogue's own epoch, and the motion in five years is
            an error.

        Returns
        -------
        sky : `~astropy.coordinates.SkyCoord`, shape (n,)
        variance : numpy.ndarray, shape (n, 2)
            (east, north), mas^2.
        """
        if not np.isfinite(year):
            spread = UNKNOWN_YEARS * np.hypot(self.motion, self.motion_error)
            return self.sky, self.error**2 + spread**2
        years = (year - self.year)[:, None]
        sky = offset_coord(self.sky, *(1e-3 * self.motion * years).T)
        return sky, self.error**2 + (self.motion_error * years) ** 2

    def motion_in(self, years, star):
        """How far sources move.

        Parameters
        ----------
        years : float
        star : numpy.ndarray of int, shape (n_source,)
            The star that each source is; -1: none, which does not move.

        Returns
        -------
        moved, variance : numpy.ndarray, shape (n_source, 2)
            (east, north), mas and mas^2.
        """
        moved, variance = np.zeros((len(star), 2)), np.zeros((len(star), 2))
        known = star >= 0
        moved[known] = years * self.motion[star[known]]
        variance[known] = (years * self.motion_error[star[known]]) ** 2
        return moved, variance


def reference_stars(reference):
    """The stars of a table.

    Parameters
    ----------
    reference : `~astropy.table.Table` or `~astropy.coordinates.SkyCoord`
        A table with ``sky_centroid``, or ``ra`` and ``dec`` (deg where they have no unit); ``ref_epoch`` (Julian
        years) or ``obstime``, if the positions hold no ``obstime`` themselves; where known ``pmra`` (of the great
        circle) and ``pmdec`` (mas / yr), ``ra_error``, ``dec_error``, ``pmra_error``, ``pmdec_error`` and
        ``parallax`` (mas), as Gaia's archive names them. A position with its motion and ``obstime`` is enough.

    Returns
    -------
    ReferenceStars
        Without those whose position or epoch is not finite.

    Raises
    ------
    TypeError
        If it is neither a table nor positions.
    ValueError
        If positions or epochs are missing, or a unit is wrong.
    """
    if isinstance(reference, SkyCoord):
        coord, table = reference, {}
    elif isinstance(reference, Table):
        coord, table = _coord_of(reference), {name.lower(): reference[name] for name in reference.colnames}
    else:
        raise TypeError(f"{ADVICE}; got {type(reference).__name__}")
    coord = coord.reshape(-1)
    n = len(coord)
    sky = plain_icrs(coord)
    year = _years(coord, table, n)
    motion = np.stack([_numbers(table, name, u.mas / u.yr, n) for name in ("pmra", "pmdec")], -1)
    if "s" in coord.data.differentials and "pmra" not in table:
        own = coord.icrs
        motion = np.stack([own.pm_ra_cosdec.to_value(u.mas / u.yr), own.pm_dec.to_value(u.mas / u.yr)], -1)
    motion_error = np.stack([_numbers(table, name, u.mas / u.yr, n) for name in ("pmra_error", "pmdec_error")], -1)
    error = np.stack([_numbers(table, name, u.mas, n) for name in ("ra_error", "dec_error")], -1)
    parallax = np.nan_to_num(_numbers(table, "parallax", u.mas, n))
    known = np.isfinite(motion)
    motion_error = np.where(known, np.nan_to_num(motion_error), MOTION)
    error = np.hypot(np.nan_to_num(error), PARALLAX_SHARE * np.maximum(parallax, 0.0)[:, None])
    good = np.isfinite(sky.ra.deg) & np.isfinite(sky.dec.deg) & np.isfinite(year)
    for name in ("ra", "dec"):  # their masks, which sky_centroid does not have if it was made from them
        good &= ~np.asarray(getattr(table.get(name), "mask", False))
    return ReferenceStars(sky[good], year[good], error[good], np.where(known, motion, 0.0)[good], motion_error[good])


def _coord_of(table):
    names = {name.lower(): name for name in table.colnames}
    if "sky_centroid" in names and isinstance(table[names["sky_centroid"]], SkyCoord):
        return table[names["sky_centroid"]]
    if not {"ra", "dec"} <= set(names):
        raise ValueError(f"{ADVICE}; this table has {', '.join(table.colnames) or 'no column'}")
    ra, dec = (_numbers({name: table[names[name]]}, name, u.deg, len(table)) for name in ("ra", "dec"))
    bad = ~(np.isfinite(ra) & (np.abs(dec) <= 90))  # a latitude of NaN is refused
    ra, dec = np.where(bad, np.nan, ra), np.where(bad, np.nan, dec)
    return SkyCoord(ra, dec, unit="deg", frame="icrs")


def _years(coord, table, n):
    """Epochs of positions, Julian years (n,)."""
    if "ref_epoch" in table:
        return _numbers(table, "ref_epoch", u.yr, n)
    time = table.get("obstime", coord.obstime)
    if time is None:
        raise ValueError(f"{ADVICE}; this one has no epoch: add a column ref_epoch (2016.0 for Gaia DR3)")
    try:
        return np.broadcast_to(Time(time).jyear, n).astype(float)
    except ValueError as error:
        raise ValueError(f"{ADVICE}; its obstime is no time: {error}") from error


def _numbers(table, name, unit, n):
    """A column in a unit, which it has if it names none: (n,) float64, NaN where it is masked or missing."""
    if name not in table:
        return np.full(n, np.nan)
    column = table[name]
    mask = np.ma.getmaskarray(column) if isinstance(column, np.ma.MaskedArray) else getattr(column, "mask", False)
    own = getattr(column, "unit", None)
    try:
        values = np.asarray(getattr(column, "unmasked", getattr(column, "value", column)), float)
        values = values if own is None else u.Quantity(values, own).to_value(unit)
    except (TypeError, ValueError, u.UnitConversionError) as error:
        raise ValueError(f"reference: column {name} must hold numbers in {unit}: {error}") from error
    return np.where(mask, np.nan, values)
