# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Where things lie in a picture: arcsec about its centre, north up and east left."""

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
    """A north-up grid of n x n points; ``x`` and ``y`` of an image's pixels are asked once per WCS."""

    def __init__(self, center, half, n):
        axis = (np.arange(n) + 0.5) / n * 2 * half - half
        north, east = np.meshgrid(axis, -axis, indexing="ij")
        self.shape, self.extent = (n, n), (half, -half, -half, half)
        self._sky = center.icrs.spherical_offsets_by(east.ravel() * u.arcsec, north.ravel() * u.arcsec)
        self._known = []

    def pixels(self, wcs):
        for known, place in self._known:
            if known is wcs:
                return place
        x, y = wcs.world_to_pixel(self._sky)
        place = np.stack([y, x])
        self._known.append((wcs, place))
        return place

    def read(self, array, wcs):
        """Linear interpolation; NaN off the image."""
        values = map_coordinates(array, self.pixels(wcs), order=1, cval=np.nan)
        return values.reshape(self.shape)


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
