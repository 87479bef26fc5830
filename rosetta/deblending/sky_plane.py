# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What is left of the sky in an image: a plane for each tile, solved for with the fluxes."""

from dataclasses import dataclass, replace

import numpy as np

__all__ = ["BACKGROUNDS", "FoundSky", "SkyPlane", "painted_sky", "sky_rows"]

BACKGROUNDS = ("plane", None)
# What a survey leaves of the sky, one sigma, in units of the sky noise per pixel: of the level, and of the slope per
# arcsec. Where the pixels cannot tell sky from the wings of a galaxy, the plane is no larger than that.
LEVEL, SLOPE = 0.1, 0.005
NAMES = ("level", "slope_x", "slope_y")


@dataclass(frozen=True, eq=False)
class SkyPlane:
    """The plane of an image, as more columns of a flux fit.

    Attributes
    ----------
    columns : (3, ny, nx) float32 array
        Images of a level of 1, and of slopes along x and y of 1 per ``reach`` pixels.
    sigma : (3,) array
        Width of the prior of each coefficient about 0, nJy.
    subtracted : (3,) array
        Coefficients of what has been subtracted from the image already, nJy.
    place : `~astropy.coordinates.SkyCoord`
        The middle of the image, about which the slopes turn.
    reach : float
        Pixels.
    """

    columns: np.ndarray
    sigma: np.ndarray
    subtracted: np.ndarray
    place: object
    reach: float

    @classmethod
    def of(cls, image):
        """The plane of a `~rosetta.images.image.BandImage`."""
        (ny, nx), used = image.shape, image.sky_weight > 0
        reach, middle = max(ny, nx) / 2, ((nx - 1) / 2, (ny - 1) / 2)
        x, y = (np.arange(nx) - middle[0]) / reach, (np.arange(ny) - middle[1]) / reach
        columns = np.stack(np.broadcast_arrays(1.0, x, y[:, None])).astype(np.float32)
        noise = 1.0 / np.sqrt(np.median(image.sky_weight[used]))
        slope = SLOPE * reach * image.pixel_scale
        sigma = noise * np.array([LEVEL, slope, slope])
        return cls(columns, sigma, np.zeros(3), image.pixel_to_sky(*middle), reach)

    def without(self, image, found):
        """The image less a plane of coefficients ``found`` (3,), and what is then left to be solved for."""
        data = np.where(image.valid, image.data - np.tensordot(found, self.columns, 1), 0.0).astype(np.float32)
        clean = image.with_pixels(data, image.variance, sky_weight=image.sky_weight)
        return clean, replace(self, subtracted=self.subtracted + found)


@dataclass(frozen=True, eq=False)
class FoundSky:
    """The plane that was found in a band of a tile.

    Attributes
    ----------
    place : `~astropy.coordinates.SkyCoord`
        The middle of the tile's image.
    plane : (3,) array
        Level there, nJy per pixel, and its slopes along x and y, nJy per pixel and pixel.
    covariance : (3, 3) array
        Of uncorrelated pixels.
    """

    place: object
    plane: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, sky, solution):
        """From a `SkyPlane` and the `~rosetta.deblending.engine.fluxes.Solution` of an image."""
        unit = 1.0 / np.array([1.0, sky.reach, sky.reach])
        return cls(sky.place, unit * (sky.subtracted + solution.sky), solution.sky_covariance * np.outer(unit, unit))


def sky_rows(found, image, noise):
    """The planes of all tiles of a band as lists that JSON can hold, see `painted_sky`, with their errors.

    Parameters
    ----------
    found : list of `FoundSky`
    image : `~rosetta.images.image.BandImage`
        Of the whole field.
    noise : float
        How much larger the errors are than uncorrelated pixels give.
    """
    rows = {name: [] for name in ("x", "y", *NAMES, *(f"{name}_err" for name in NAMES))}
    for sky in found:
        (x,), (y,) = image.sky_to_pixel(sky.place)
        values = (x, y, *sky.plane, *(noise * np.sqrt(sky.covariance.diagonal())))
        for column, value in zip(rows.values(), values, strict=True):
            column.append(float(value))
    return rows


def painted_sky(rows, shape):
    """The sky on the whole image, (ny, nx) nJy: at each pixel the plane of the nearest tile.

    Parameters
    ----------
    rows : dict of str to list of float
        A value per tile: ``x``, ``y`` (0-based pixels), ``level``, ``slope_x``, ``slope_y``.
    shape : tuple of int
    """
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])
    sky, nearest = np.zeros(shape), np.full(shape, np.inf)
    columns = (rows[name] for name in ("x", "y", *NAMES))
    for x0, y0, level, slope_x, slope_y in zip(*columns, strict=True):
        distance = (x - x0) ** 2 + (y - y0) ** 2
        closer = distance < nearest
        sky[closer] = (level + slope_x * (x - x0) + slope_y * (y - y0))[closer]
        nearest[closer] = distance[closer]
    return sky
