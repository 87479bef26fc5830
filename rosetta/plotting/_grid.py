# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The sky grid of a picture: offsets in arcsec from its centre, north up and east left."""

import astropy.units as u
import numpy as np
from scipy.ndimage import map_coordinates

from ..images.positions import tangent

_MAX_GRID = 600  # pixels a side of a picture


def offsets_of(coord, center):
    """(east, north) in arcsec about ``center``."""
    return tangent(coord, center).T


def field_of(image):
    """Centre and half side (arcsec) of a square that holds an image."""
    ny, nx = image.data.shape
    center = image.wcs.pixel_to_world((nx - 1) / 2, (ny - 1) / 2).icrs
    corners = image.wcs.pixel_to_world(np.array([0, nx - 1, 0, nx - 1]), np.array([0, 0, ny - 1, ny - 1]))
    east, north = offsets_of(corners, center)
    return center, float(max(np.abs(east).max(), np.abs(north).max()))


class _Grid:
    """A north-up grid of n x n points."""

    def __init__(self, center, half, n):
        self.shape, self.extent = (n, n), (half, -half, -half, half)
        self._center, self._known = center.icrs, None

    def _sky(self, nodes):
        """Sky positions of the grid's points ``nodes`` (fractional indices) along both axes."""
        half = self.extent[0]
        axis = (nodes + 0.5) / self.shape[0] * 2 * half - half
        north, east = np.meshgrid(axis, -axis, indexing="ij")
        return self._center.spherical_offsets_by(east.ravel() * u.arcsec, north.ravel() * u.arcsec)

    def pixels(self, wcs):
        """Pixel positions (y, x) of all points: the WCS is evaluated at about every sixteenth, once per image."""
        if self._known is None or self._known[0] is not wcs:
            n = self.shape[0]
            nodes = np.linspace(0, n - 1, max(2, n // 16 + 1))
            x, y = (np.reshape(v, (len(nodes), -1)) for v in wcs.world_to_pixel(self._sky(nodes)))
            at = np.arange(n) / (n - 1) * (len(nodes) - 1)
            at = np.stack(np.meshgrid(at, at, indexing="ij")).reshape(2, -1)
            self._known = wcs, np.stack([map_coordinates(v, at, order=1, mode="nearest") for v in (y, x)])
        return self._known[1]

    def read(self, array, wcs):
        """Linear interpolation; NaN off the image."""
        return self._read(array, wcs, 1)

    def nearest(self, array, wcs):
        """The nearest pixels, whose noise is that of the image all over the picture; NaN off the image."""
        return self._read(array, wcs, 0)

    def _read(self, array, wcs, order):
        return map_coordinates(array, self.pixels(wcs), order=order, cval=np.nan).reshape(self.shape)


def grid_of(image, center=None, half=None):
    """A grid as fine as the image's pixels, about its centre if none is given."""
    if center is None:
        center, half = field_of(image)
    scale = np.sqrt(np.abs(np.linalg.det(_matrix(image)))) * 3600
    return _Grid(center, half, int(np.clip(np.ceil(2 * half / scale), 16, _MAX_GRID)))


def _matrix(image):
    """d(sky, degrees) / d(pixel) at the image centre, (2, 2), for any WCS."""
    ny, nx = image.data.shape
    x, y = (nx - 1) / 2, (ny - 1) / 2
    sky = image.wcs.pixel_to_world(np.array([x, x + 1, x]), np.array([y, y, y + 1])).icrs
    east, north = offsets_of(sky[1:], sky[0])
    return np.stack([east, north]) / 3600


def sky_axes(ax, extent, title):
    """East to the left, north up, one scale."""
    ax.set_xlim(extent[0], extent[1])
    ax.set_ylim(extent[2], extent[3])
    ax.set_aspect("equal")
    ax.set_xlabel("east offset (arcsec)")
    ax.set_ylabel("north offset (arcsec)")
    ax.set_title(title)
    return ax
