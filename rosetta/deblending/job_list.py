# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What a job measures: the detections, or the positions that a user lists and the detections around them."""

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table

from ..images.positions import joined
from . import shapes
from .candidates import candidates
from .source_list import coincident, user_sources

__all__ = ["NEIGHBOURS", "JobList", "given_shapes"]

NEIGHBOURS = ("detect", "listed", "scene")
SMALLEST, LONGEST = 1e-3, 0.98  # arcsec: smaller sources are points; of |e|: no galaxy is longer
PLAIN = 10.0  # of `shapes.INNER`: inner light is as long as the outer
SHAPE_COLUMNS = ("half_light_radius", "e1", "e2")


@dataclass(frozen=True, eq=False)
class JobList:
    """Sources before anything is fitted; those that a user listed come first, in the user's order.

    Attributes
    ----------
    coord : `~astropy.coordinates.SkyCoord`, shape (n,)
        In the space image's frame, as they were given; positions of one place are the first of them.
    east_north : (n, 2) array
        The same in the tangent plane of the images, arcsec.
    label : (n,) int array
    listed : (n,) bool array
        Whether a user gave the position.
    odds : (n,) array
        Logarithm of the learned detector's odds that it is a source; 0 where it is not asked.
    least : (n,) array
        Sigma that all bands together must show of it, else it is no source.
    start : (n, N_PARAMETER) array
        Shapes to start from; NaN: that of the nearest detection.
    free : (n, n_shape) bool array
        What the fit may change of each shape, along `rosetta.deblending.shapes.DIRECTIONS`.
    """

    coord: SkyCoord
    east_north: np.ndarray
    label: np.ndarray
    listed: np.ndarray
    odds: np.ndarray
    least: np.ndarray
    start: np.ndarray
    free: np.ndarray

    @classmethod
    def of_detections(cls, found, advice=None):
        """The detections and what the learned detector adds, all free.

        Parameters
        ----------
        found : `~rosetta.detection.detection.Detections`
        advice : `~rosetta.deblending.candidates.Advice`, optional
            In the same tangent plane.
        """
        return cls._free(found, advice, first=1)

    @classmethod
    def of_positions(cls, sources, found, advice=None, *, neighbours="detect", shape="fit", recentre=False):
        """The positions that a user gives and, if asked for, the detections.

        Parameters
        ----------
        sources, neighbours, shape, recentre
            As for `~rosetta.JEPADeblender`.
        found, advice
            As for `of_detections`.

        Raises
        ------
        TypeError, ValueError
            If an argument cannot be used; the message says what to do.
        """
        if neighbours not in NEIGHBOURS:
            raise ValueError(f"neighbours is {neighbours!r}: use one of {', '.join(map(repr, NEIGHBOURS))}")
        coord, label = user_sources(sources)
        east_north, n = found.image.tangent_plane.east_north(coord), len(coord)
        place = coincident(east_north)
        label = np.arange(1, n + 1) if label is None else label
        start, fixed = given_shapes(shape, n)
        free = np.tile(~fixed, (n, 1))
        free[:, shapes.EAST : shapes.NORTH + 1] = recentre
        named, zero = np.ones(n, bool), np.zeros(n)
        listed = cls(coord[place], east_north[place], label, named, zero, zero, start, free)
        if neighbours != "detect":
            return listed
        return listed._and(cls._free(found, advice, first=label.max(initial=0) + 1))

    @classmethod
    def _free(cls, found, advice, first):
        """All free, with labels from ``first`` on."""
        east_north, odds, least = candidates(found, advice)
        n = len(odds)
        more = found.image.tangent_plane.sky(east_north[len(found) :])
        coord = joined([found.table["sky_centroid"], more])
        start, free = np.full((n, shapes.N_PARAMETER), np.nan), np.ones((n, len(shapes.DIRECTIONS)), bool)
        label, listed = first + np.arange(n), np.zeros(n, bool)
        return cls(coord, east_north, label, listed, odds, least, start, free)

    def _and(self, other):
        rows = (np.concatenate([getattr(one, name) for one in (self, other)])
                for name in ("east_north", "label", "listed", "odds", "least", "start", "free"))  # fmt: skip
        return JobList(joined([self.coord, other.coord]), *rows)


def given_shapes(shape, n):
    """Shapes of n listed sources.

    Parameters
    ----------
    shape : {"fit", "point"} or `~astropy.table.Table`
        As for `~rosetta.JEPADeblender`.
    n : int

    Returns
    -------
    start : (n, N_PARAMETER) array
        NaN where they are fitted.
    fixed : (n_shape,) bool array
        What of them is fixed.

    Raises
    ------
    TypeError, ValueError
        If the shapes cannot be used; the message says what to do.
    """
    fixed = np.zeros(len(shapes.DIRECTIONS), bool)
    if isinstance(shape, str) and shape == "fit":
        return np.full((n, shapes.N_PARAMETER), np.nan), fixed
    fixed[shapes.NORTH + 1 :] = True
    if isinstance(shape, str) and shape == "point":
        return _points(n), fixed
    if not isinstance(shape, Table):
        raise TypeError(
            f"shape is {shape!r}: use 'fit', 'point', or a table with the columns {', '.join(SHAPE_COLUMNS)}"
        )
    return _discs(shape, n), fixed


def _points(n):
    start = shapes.base_parameters(np.ones(n), np.zeros(n), np.zeros(n))
    start[:, shapes.LN_SCALE] = shapes.POINT
    return start


def _discs(table, n):
    """Exponential discs of a table's half-light radii and distortions."""
    if missing := [name for name in SHAPE_COLUMNS if name not in table.colnames]:
        raise ValueError(f"shape has no column {', '.join(missing)}: give {', '.join(SHAPE_COLUMNS)}")
    if len(table) != n:
        raise ValueError(f"shape has {len(table)} rows for {n} positions: give one for each")
    radius, e1, e2 = (table[name] for name in SHAPE_COLUMNS)
    try:
        radius = u.Quantity(radius, getattr(radius, "unit", None) or u.arcsec).to_value(u.arcsec)
    except u.UnitConversionError as error:
        raise ValueError(f"shape has half_light_radius in {radius.unit}: give an angle") from error
    radius, e1, e2 = (np.ma.filled(np.ma.asarray(v, float), np.nan) for v in (radius, e1, e2))
    size = np.hypot(e1, e2)
    bad = ~(np.isfinite(radius) & (radius >= 0) & (size < 1))
    if bad.any():
        raise ValueError(f"shape has {bad.sum()} rows with a negative or missing radius or |e| >= 1: correct those")
    size = np.minimum(size, LONGEST)
    start = shapes.base_parameters(np.maximum(radius, SMALLEST), np.arctanh(size), 0.5 * np.arctan2(e2, e1))
    start[:, shapes.INNER] = PLAIN
    return start
