# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The border: the only place where NDData, WCS and units become plain arrays and tensors, and back.

Sky positions stay float64 and leave here as offsets in arcsec from a stated centre, never as coordinates.
"""

import copy
import logging
from dataclasses import dataclass, replace
from functools import cached_property

import astropy.units as u
import numpy as np
from astropy.nddata import NDData, VarianceUncertainty

from ..flags import Flag
from ..pair import slice_wcs
from .moments import half_maximum_width
from .positions import offset_coord, plain_icrs, tangent
from .psf import centred, nominal_psf

__all__ = ["BandImage", "band_images", "extent"]

log = logging.getLogger("rosetta")

FAR = 1e6  # pixels
DEPTH_PIXELS = 2**20  # a depth is measured on at most about as many


# ---------------------------------------------------------------------------- one image
@dataclass(frozen=True, eq=False)
class BandImage:
    """One band, stripped to arrays when they are asked for; the WCS is asked only through the methods.

    ``data`` and ``variance`` are float32 (ny, nx) in nJy and nJy^2; invalid pixels hold 0 and infinity.
    ``psf`` is float64, centred on its adaptive-moment centroid.
    """

    band: str
    side: str
    image: object  # NDData of a SkyPair
    psf: np.ndarray
    wcs: object
    wavelength: float  # nm
    flags: Flag

    @property
    def shape(self):
        """(ny, nx)."""
        return self.image.data.shape

    @cached_property
    def valid(self):
        """(ny, nx) bool."""
        return ~self.image.mask

    @cached_property
    def data(self):
        """(ny, nx) float32."""
        return np.where(self.image.mask, np.float32(0), self.image.data)

    @cached_property
    def variance(self):
        """(ny, nx) float32."""
        return np.where(self.image.mask, np.float32(np.inf), self.image.uncertainty.array)

    def cut(self, bounds):
        """The plane on the pixels ``(y0, y1, x0, x1)`` of the image.

        It keeps the figures of the whole image: ``depth``, ``fwhm`` and ``pixel_scale``.
        """
        y0, y1, x0, x1 = bounds
        window = (slice(y0, y1), slice(x0, x1))
        noise = VarianceUncertainty(self.image.uncertainty.array[window], copy=False)
        image = NDData(self.image.data[window], uncertainty=noise, mask=self.image.mask[window])
        piece = replace(self, image=image, wcs=slice_wcs(self.wcs, window))
        piece.__dict__.update(depth=self.depth, fwhm=self.fwhm, pixel_scale=self.pixel_scale)
        return piece

    def with_pixels(self, data, variance):
        """The plane with other pixels on the same grid."""
        other = copy.copy(self)
        other.__dict__.update(data=data, variance=variance, valid=np.isfinite(variance))
        return other

    def sky_to_pixel(self, coord):
        """0-based pixel positions (x, y), float64 arrays of shape (n,)."""
        x, y = self.wcs.world_to_pixel(coord)
        return np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))

    def pixel_to_sky(self, x, y):
        """ICRS positions of 0-based pixels, of the shape of ``x``."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        return plain_icrs(self.wcs.pixel_to_world(x, y)).reshape(x.shape)

    def jacobian(self, coord):
        """d(x, y) / d(east, north) in pixel per arcsec at each position: (n, 2, 2) float64."""
        return self._around(coord)[1]

    def place(self, coord):
        """Pixel positions (n, 2) and `jacobian` of sources; one that the WCS cannot place is put far away."""
        xy, jacobian = self._around(coord)
        lost = ~(np.isfinite(xy).all(axis=1) & np.isfinite(jacobian).all(axis=(1, 2)) & (np.abs(xy) < FAR).all(axis=1))
        xy[lost], jacobian[lost] = -FAR, np.eye(2)
        return xy, jacobian

    def _around(self, coord):
        """Pixel positions (n, 2), and their derivatives (n, 2, 2), from one call of the WCS."""
        step = 0.5 * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])  # arcsec (east, north)
        at = offset_coord(coord.reshape(-1, 1), *step.T)  # (n, 5)
        middle, east, west, north, south = np.moveaxis(np.stack(self.wcs.world_to_pixel(at), -1), 1, 0)
        return middle, np.stack([east - west, north - south], -1)  # per arcsec: they are one apart

    @cached_property
    def center(self):
        """Sky position of the image centre."""
        ny, nx = self.shape
        return self.pixel_to_sky((nx - 1) / 2, (ny - 1) / 2)

    @cached_property
    def central_jacobian(self):
        """`jacobian` at the image centre: (2, 2)."""
        return self.jacobian(self.center)[0]

    @cached_property
    def pixel_scale(self):
        """Side of a pixel in arcsec at the image centre."""
        return float(abs(np.linalg.det(self.central_jacobian)) ** -0.5)

    @cached_property
    def fwhm(self):
        """Full width at half maximum of the PSF in arcsec, pixel response included."""
        return float(half_maximum_width(self.psf) * self.pixel_scale)

    @cached_property
    def depth(self):
        """5-sigma point-source depth, AB: matched filter with the PSF and the median pixel noise."""
        step = max(1, int(np.sqrt(self.image.data.size / DEPTH_PIXELS)))
        variance, mask = (a[::step, ::step] for a in (self.image.uncertainty.array, self.image.mask))
        sigma = np.sqrt(np.median(variance[~mask]))
        return float(31.4 - 2.5 * np.log10(5 * sigma / np.sqrt((self.psf**2).sum())))


def band_images(pair):
    """``dict[band, BandImage]`` of a `~rosetta.SkyPair`, ground bands first."""
    result = {}
    for side, name, image in pair.images():
        band = pair.survey(side)[name]
        flags = pair.flags[name]
        psf = image.psf
        if psf is None:
            flags |= Flag.PSF_NOMINAL
        plane = BandImage(
            band=name,
            side=side,
            image=image,
            psf=np.empty(0),
            wcs=image.wcs,
            wavelength=band.pivot.to_value(u.nm),
            flags=flags,
        )
        psf = nominal_psf(band, plane.pixel_scale) if psf is None else centred(psf)
        object.__setattr__(plane, "psf", psf)
        result[name] = plane
    return result






# ---------------------------------------------------------------------------- windows for the encoder
def extent(plane_list):
    """Tangent point, and the lowest and highest (east, north) offsets in arcsec of all images: (2,) each."""
    center = plane_list[-1].center  # the space side comes last: its frame is the reference
    edges = []
    for plane in plane_list:
        ny, nx = plane.shape
        x, y = np.meshgrid(np.linspace(-0.5, nx - 0.5, 9), np.linspace(-0.5, ny - 0.5, 9))
        edges.append(tangent(plane.pixel_to_sky(x.ravel(), y.ravel()), center))
    edges = np.concatenate(edges)
    return center, edges.min(0), edges.max(0)






























# ---------------------------------------------------------------------------- what the encoder is told




# ---------------------------------------------------------------------------- tiles for training




