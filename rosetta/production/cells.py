# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Cells: squares of a tract's pixel grid. They are half-open, so that every position has exactly one owner.

Boxes are (y0, y1, x0, x1): first pixels and those after the last, in the tract. Pixel centres are whole numbers.
"""

from dataclasses import dataclass
from functools import cached_property

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io.fits import Header

from ..images.wcs import wcs_of

__all__ = [
    "Tract", "clipped", "core_box", "depth_in", "grown", "numbers_in", "owner", "polygon_area", "sample", "within_core",
]  # fmt: skip

ROW = 256  # cells in a row of a tract: the number of cell (i, j) is ROW * i + j, and fits into 16 bits


def core_box(number, core):
    """The box of a cell's core, for cells ``core`` pixels wide."""
    i, j = divmod(number, ROW)
    return i * core, (i + 1) * core, j * core, (j + 1) * core


def grown(box, margin):
    """A box with a margin (pixels)."""
    y0, y1, x0, x1 = box
    return y0 - margin, y1 + margin, x0 - margin, x1 + margin


def numbers_in(boxes, core):
    """Numbers of all cells whose core shares a pixel with one of the boxes, in order (list of int).

    Raises
    ------
    ValueError
        If there are more than 256 cells in a row or column, or a box lies outside the tract.
    """
    found = set()
    for y0, y1, x0, x1 in boxes:
        if min(y0, x0) < 0 or max(y1, x1) > ROW * core:
            raise ValueError(
                f"a patch reaches over pixels {y0}-{y1}, {x0}-{x1} of its tract, and cells of {core} pixels only over "
                f"0-{ROW * core}: choose a larger core, or take files whose headers say where they lie in the tract"
            )
        rows, columns = range(y0 // core, -(-y1 // core)), range(x0 // core, -(-x1 // core))
        found |= {ROW * i + j for i in rows for j in columns}
    return sorted(found)


def within_core(x, y, number, core):
    """Whether positions (0-based pixels of the tract) belong to the core of a cell; bool array."""
    i, j = divmod(number, ROW)
    return (np.floor((np.asarray(y) + 0.5) / core) == i) & (np.floor((np.asarray(x) + 0.5) / core) == j)


def sample(box, n=17):
    """Positions (x, y) of an n x n grid that spans a box, its corners included: two (n * n,) arrays."""
    y0, y1, x0, x1 = box
    y, x = np.meshgrid(np.linspace(y0 - 0.5, y1 - 0.5, n), np.linspace(x0 - 0.5, x1 - 0.5, n), indexing="ij")
    return x.ravel(), y.ravel()


# ---------------------------------------------------------------------------- tracts
@dataclass(frozen=True)
class Tract:
    """A tract, as far as there are files of it.

    Parameters
    ----------
    number : int
    cards : str
        WCS of the tract's pixel grid, as a FITS header.
    boxes : tuple of tuple
        Boxes of the patches.
    """

    number: int
    cards: str
    boxes: tuple

    def __reduce__(self):
        return Tract, (self.number, self.cards, self.boxes)  # a WCS that is pickled loses its last digits

    @cached_property
    def wcs(self):
        """The WCS (`~astropy.wcs.WCS`)."""
        return wcs_of(Header.fromstring(self.cards))

    @cached_property
    def center(self):
        """The reference point of the projection, where skymaps have the tract's centre."""
        return SkyCoord(*self.wcs.wcs.crval, unit="deg")

    def pixels(self, coord):
        """0-based pixels (x, y); NaN on the far side of the sky, where the projection has none."""
        x, y = self.wcs.world_to_pixel(coord)
        far = coord.separation(self.center) > 80 * u.deg
        return np.where(far, np.nan, x), np.where(far, np.nan, y)

    def holds(self, coord):
        """Whether positions lie on one of the patches; bool array."""
        x, y = self.pixels(coord)
        found = np.zeros(np.shape(x), bool)
        for y0, y1, x0, x1 in self.boxes:
            found |= (x >= x0 - 0.5) & (x < x1 - 0.5) & (y >= y0 - 0.5) & (y < y1 - 0.5)
        return found


def owner(coord, tracts):
    """The tract that owns each position: of those whose patches hold it, the one whose centre is nearest.

    Parameters
    ----------
    coord : `~astropy.coordinates.SkyCoord`, shape (n,)
    tracts : list of Tract

    Returns
    -------
    (n,) int array
        Numbers of tracts, the lower one where two are as near; -1 where there is none.
    """
    tracts = sorted(tracts, key=lambda tract: tract.number)
    distance = np.stack([
        np.where(tract.holds(coord), coord.separation(tract.center).deg, np.inf) for tract in tracts
    ])  # fmt: skip
    numbers = np.array([tract.number for tract in tracts])[distance.argmin(0)]
    return np.where(np.isfinite(distance).any(0), numbers, -1)


# ---------------------------------------------------------------------------- convex polygons
def clipped(polygon, box):
    """The part of a convex polygon, (n, 2) [x, y], that lies in a box: (m, 2), empty if there is none."""
    y0, y1, x0, x1 = box
    for axis, sign, edge in ((0, 1, x0 - 0.5), (0, -1, x1 - 0.5), (1, 1, y0 - 0.5), (1, -1, y1 - 0.5)):
        if not len(polygon):
            break
        inside = sign * (polygon[:, axis] - edge)
        points = []
        for here, there, a, b in zip(polygon, np.roll(polygon, -1, 0), inside, np.roll(inside, -1), strict=True):
            if a >= 0:
                points.append(here)
            if a * b < 0:
                points.append(here + (there - here) * a / (a - b))
        polygon = np.array(points).reshape(-1, 2)
    return polygon


def polygon_area(polygon):
    """Area of a polygon, (n, 2); 0 for one without points."""
    if len(polygon) < 3:
        return 0.0
    x, y = polygon.T
    return abs(0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)))


def depth_in(polygon, x, y):
    """How far inside a convex polygon, (n, 2), positions lie: distance to the nearest edge, negative outside."""
    a, b = polygon, np.roll(polygon, -1, 0)
    edge = b - a
    turn = np.sign(np.sum(a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]))
    x, y = np.asarray(x, float)[..., None], np.asarray(y, float)[..., None]
    across = edge[:, 0] * (y - a[:, 1]) - edge[:, 1] * (x - a[:, 0])
    return np.min(turn * across / np.hypot(*edge.T), axis=-1)
