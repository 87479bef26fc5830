# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Where and how deep a survey looked, as HEALPix maps, and random positions in them.

A cell counts positions of a lattice in its core. The counts of all cells add up to maps, without any image.
"""

import numpy as np
from astropy.table import Table

from .cells import owner

__all__ = ["ORDER", "PLACE", "counts", "depth", "healpix", "random_positions"]

ORDER = 15  # of the pixels (nested): 6.4 arcsec
STEP = 4  # pixels of the tract between the positions of the lattice, 0.8 arcsec: every core is a multiple of it
DEEPEST = 29
PLACE = 0.2 * STEP  # arcsec: side of the square that a position of the lattice stands for


def healpix(order=ORDER):
    """The pixels (`~astropy_healpix.HEALPix`)."""
    from astropy_healpix import HEALPix

    return HEALPix(2**order, order="nested", frame="icrs")


def counts(images, noise_factor, cell):
    """What the images of a cell hold, pixel by pixel of the sky.

    Parameters
    ----------
    images : mapping of str to `~rosetta.images.image.BandImage`
    noise_factor : mapping of str to float
        By which fluxes scatter more than the variances say, by band.
    cell : Cell

    Returns
    -------
    `~astropy.table.Table`
        A row per HEALPix pixel: ``pixel``; ``n``, positions of the lattice that the core owns there; and, of these,
        ``valid_<band>``, on pixels that may be used, ``masked_<band>``, on others of the image, and
        ``weight_<band>``, the sum over the valid ones of the inverse variance of a point source's flux (nJy^-2).
    """
    y0, y1, x0, x1 = cell.core
    half = (STEP - 1) / 2
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(x0, x1, STEP) + half, np.arange(y0, y1, STEP) + half))
    sky = cell.tracts[0].wcs.pixel_to_world(x, y).icrs
    if len(cell.tracts) > 1:
        sky = sky[owner(sky, list(cell.tracts)) == cell.tract]
    pixel, place = np.unique(healpix().skycoord_to_healpix(sky), return_inverse=True)
    table = Table({"pixel": pixel, "n": _sums(place, np.ones(len(place)), len(pixel)).astype(np.int32)})
    for band, image in images.items():
        x, y = (np.rint(axis).astype(int) for axis in image.sky_to_pixel(sky))
        ny, nx = image.shape
        inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
        x, y = np.clip(x, 0, nx - 1), np.clip(y, 0, ny - 1)
        valid = inside & image.valid[y, x]
        weight = image.sky_weight[y, x] * (image.mean_psf**2).sum() / noise_factor[band] ** 2
        for name, values in (("valid", valid), ("masked", inside & ~valid)):
            table[f"{name}_{band}"] = _sums(place, values, len(pixel)).astype(np.int32)
        table[f"weight_{band}"] = _sums(place, np.where(valid, weight, 0.0), len(pixel))
    return table


def _sums(place, values, n):
    return np.bincount(place, values, minlength=n)


def depth(weight):
    """5-sigma point-source depth (AB) at inverse variances of a point source's flux, nJy^-2."""
    return 31.4 - 2.5 * np.log10(5 / np.sqrt(weight))


def random_positions(pixels, share, density, random):
    """Positions drawn uniformly in pixels of the sky.

    Parameters
    ----------
    pixels : (n,) int array
        Nested, of order `ORDER`.
    share : (n,) array
        Of the area of each that was looked at.
    density : float
        Positions per square arcmin.
    random : `numpy.random.Generator`

    Returns
    -------
    `~astropy.coordinates.SkyCoord`, shape (m,)
    """
    area = healpix().pixel_area.to_value("arcmin2")
    of = np.repeat(pixels.astype(np.int64), random.poisson(density * area * np.minimum(share, 1.0)))
    finer = 4 ** (DEEPEST - ORDER)  # pixels of HEALPix are equal in area, and 0.4 mas wide at the deepest order
    return healpix(DEEPEST).healpix_to_skycoord(of * finer + random.integers(finer, size=len(of)))
