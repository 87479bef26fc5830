# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Galactic reddening of sources, from a map that the user has."""

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData
from astropy.table import Table
from scipy.ndimage import map_coordinates

from ..images.positions import given_positions

__all__ = ["ebv"]


def ebv(catalog, dust_map):
    """E(B-V) at the positions of a catalogue.

    No map is part of this package. Fluxes are not changed: how much a band loses depends on the map, on the extinction
    curve and on the spectrum of the source.

    Parameters
    ----------
    catalog : table or `~astropy.coordinates.SkyCoord`
        With ``sky_centroid``.
    dust_map : `~astropy.nddata.NDData` or callable
        A two-dimensional image of E(B-V) in mag with a celestial WCS, interpolated linearly between the centres of its
        pixels. Or ``dust_map(positions)``, which gives an array, such as a query of the package dustmaps.

    Returns
    -------
    `~astropy.units.Quantity`, shape (n,)
        mag; NaN outside the map and beside masked pixels. ``catalog["ebv"] = ebv(catalog, dust_map)`` keeps it.

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be used; the message says what to do.
    """
    place = catalog["sky_centroid"] if isinstance(catalog, Table) and "sky_centroid" in catalog.colnames else catalog
    if not isinstance(place, SkyCoord):
        raise TypeError(f"catalog must be a table with sky_centroid or a SkyCoord, got {type(catalog).__name__}")
    place = given_positions(place, "catalog")
    if isinstance(dust_map, NDData):
        return _described(_interpolated(dust_map, place))
    if not callable(dust_map):
        raise TypeError(f"dust_map must be an NDData image or a function, got {type(dust_map).__name__}")
    values = np.asarray(u.Quantity(dust_map(place), u.mag).value, float)
    if values.shape != place.shape:
        raise ValueError(f"dust_map gives an array of shape {values.shape} for {len(place)} positions: give one each")
    return _described(values)


def _described(values):
    """As a Quantity that keeps its description as a column."""
    values = values * u.mag
    values.info.description = "E(B-V) of the dust in the Milky Way"
    return values


def _interpolated(image, place):
    """Values of an image (n,) at positions."""
    kinds = () if image.wcs is None else image.wcs.low_level_wcs.world_axis_physical_types
    if np.ndim(image.data) != 2 or len(kinds) != 2 or not all(str(kind).startswith("pos.") for kind in kinds):
        raise ValueError("dust_map must be a two-dimensional image with a celestial WCS: give NDData(data, wcs=...)")
    if image.unit not in (None, u.mag, u.dimensionless_unscaled):
        raise ValueError(f"dust_map is in {image.unit}: give E(B-V) in mag")
    data = np.array(image.data, float)
    if image.mask is not None:
        data[np.broadcast_to(image.mask, data.shape)] = np.nan
    at = np.stack(image.wcs.world_to_pixel(place)[::-1])  # (y, x)
    last = np.array(data.shape)[:, None] - 1.0
    inside = ((at >= -0.5) & (at <= last + 0.5)).all(axis=0)
    at = np.where(inside, np.clip(at, 0.0, last), 0.0)
    return np.where(inside, map_coordinates(data, at, order=1), np.nan)
