# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""`BandImage`: the image of one band as plain arrays; here NDData, WCS and units become numbers.

Positions of sources are (east, north) in arcsec about the field's centre, in double precision: the methods ask the WCS
what they are in pixels.
"""

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import astropy.units as u
import numpy as np
from astropy.nddata import NDData, VarianceUncertainty

from ..flags import Flag
from ..readonly import ReadOnlyDict
from ..surveys import PSF_WINGS
from .artefacts import artefact_pixels
from .cache import once_per_pair
from .moments import half_maximum_width
from .positions import TangentPlane, offset_coord, plain_icrs
from .psf import PSF, moffat
from .psf_core import PsfCore
from .psf_wings import known_radius, psf_wings
from .sky import sky_weight
from .wcs import packed, slice_wcs, unpacked

__all__ = ["BandImage", "band_images", "extent", "width_error"]

FAR = 1e6  # pixels
WIDEST = 30  # pixels, at most, by which wings extend a PSF
BETWEEN = 0.0025  # error of fluxes where an undersampled PSF is known on native pixels only, relative
BEYOND = 0.2  # error of the light beyond a stamp, relative to that light
CORELESS = 0.6  # error of fluxes where a stamp does not hold the PSF's core, relative: as much light may be outside
DEPTH_PIXELS = 2**20  # a depth is measured on at most about as many


@dataclass(frozen=True, eq=False)
class BandImage:
    """One band of a pair, as arrays; its WCS is asked only through the methods.

    Attributes
    ----------
    band, side : str
        ``side`` is "ground" or "space".
    pixels : `~astropy.nddata.NDData`
        Flux (nJy), variance and mask.
    psf : `~rosetta.PSF`
        Every cell's adaptive-moment centroid is its central pixel.
    wcs : APE-14 WCS
    tangent_plane : `~rosetta.images.positions.TangentPlane`
        Of the positions, the same for all images of a pair.
    wavelength : float
        Pivot of the band, nm.
    flags : `~rosetta.Flag`
        What had to be assumed.
    psf_reach : float
        Pixels from the centre of a source to which its PSF is known; what lies beyond is estimated.
    psf_beyond : float
        Share of a source's light that lies beyond.
    nominal_fwhm : float
        Of the survey's PSF in this band, arcsec.
    corner : tuple of int
        The first pixel (x, y) in the image that it was cut from.
    """

    band: str
    side: str
    pixels: NDData
    psf: PSF
    wcs: object
    tangent_plane: TangentPlane
    wavelength: float
    flags: Flag
    psf_reach: float = np.inf
    psf_beyond: float = 0.0
    nominal_fwhm: float = np.nan
    corner: tuple = (0, 0)

    @property
    def shape(self):
        """(ny, nx)."""
        return self.pixels.data.shape

    @cached_property
    def valid(self):
        """(ny, nx) bool: pixels that may be used."""
        return ~self.pixels.mask

    @cached_property
    def data(self):
        """Flux in nJy, (ny, nx) float32; 0 where invalid."""
        return np.where(self.pixels.mask, np.float32(0), self.pixels.data)

    @cached_property
    def variance(self):
        """In nJy^2, (ny, nx) float32; infinite where invalid."""
        return np.where(self.pixels.mask, np.float32(np.inf), self.pixels.uncertainty.array)

    @cached_property
    def sky_weight(self):
        """Inverse variance of the sky alone, (ny, nx) float64; 0 where invalid. See `rosetta.images.sky`."""
        return sky_weight(self.data, self.variance, self.pixel_scale)

    def cut(self, bounds):
        """The image on the pixels ``(y0, y1, x0, x1)``, with ``depth``, ``fwhm`` and ``pixel_scale`` of the whole."""
        y0, y1, x0, x1 = bounds
        window = (slice(y0, y1), slice(x0, x1))
        noise = VarianceUncertainty(self.pixels.uncertainty.array[window], copy=False)
        pixels = NDData(self.pixels.data[window], uncertainty=noise, mask=self.pixels.mask[window])
        corner = (self.corner[0] + int(x0), self.corner[1] + int(y0))
        piece = replace(self, pixels=pixels, psf=self.psf.cut(x0, y0), wcs=slice_wcs(self.wcs, window), corner=corner)
        piece.__dict__.update(depth=self.depth, fwhm=self.fwhm, pixel_scale=self.pixel_scale)
        return piece

    def __copy__(self):
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self):
        return {**self.__dict__, "wcs": packed(self.wcs)}

    def __setstate__(self, state):
        self.__dict__.update(state, wcs=unpacked(state["wcs"]))

    @property
    def trimmed(self):
        """The image without the rows and columns of its rim that have no valid pixel; itself where there are none."""
        return self if self._without_rim is None else self._without_rim

    @cached_property
    def _without_rim(self):
        # None where there is no rim: an image that holds itself would keep its memory until the next collection.
        rows, columns = (np.flatnonzero(self.valid.any(axis=axis)) for axis in (1, 0))
        ny, nx = self.shape
        if len(rows) == 0 or (rows[0], rows[-1], columns[0], columns[-1]) == (0, ny - 1, 0, nx - 1):
            return None
        return self.cut((rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))

    def with_pixels(self, data, variance, **known):
        """The image with other pixels on the same grid, and what is ``known`` of them (``sky_weight``, ``fwhm``)."""
        other = copy.copy(self)
        other.__dict__.pop("sky_weight", None)
        other.__dict__.update(data=data, variance=variance, valid=np.isfinite(variance), **known)
        return other

    @property
    def of_sky(self):
        """The image with the variance of its sky alone, as `sky_weight` has it."""
        with np.errstate(divide="ignore"):
            variance = (1.0 / self.sky_weight).astype(np.float32)
        noise = VarianceUncertainty(variance, copy=False)
        other = _as_before(self, replace(self, pixels=NDData(self.data, uncertainty=noise, mask=~self.valid)))
        other.__dict__.update(depth=self.depth, fwhm=self.fwhm, pixel_scale=self.pixel_scale)
        return other

    def without(self, light, **known):
        """The image less some light (ny, nx), nJy; ``sky_weight`` stays, if it is not among what is ``known``."""
        data = np.where(self.valid, self.data - light, 0.0).astype(np.float32)
        return self.with_pixels(data, self.variance, **{"sky_weight": self.sky_weight, **known})

    # ------------------------------------------------------------------ positions
    def sky_to_pixel(self, coord):
        """0-based pixel positions (x, y), float64 arrays of shape (n,)."""
        x, y = self.wcs.world_to_pixel(coord)
        return np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))

    def pixel_to_sky(self, x, y):
        """ICRS positions of 0-based pixels, of the shape of ``x``."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        return plain_icrs(self.wcs.pixel_to_world(x, y)).reshape(x.shape)

    def east_north(self, x, y):
        """Positions (n, 2) in the tangent plane of 0-based pixels."""
        return self.tangent_plane.east_north(self.pixel_to_sky(x, y))

    def xy(self, east_north):
        """0-based pixel positions (n, 2) of positions (n, 2) in the tangent plane."""
        return np.stack(self.sky_to_pixel(self.tangent_plane.sky(east_north)), -1)

    def jacobian(self, east_north):
        """d(x, y) / d(east, north) in pixel per arcsec at each position (n, 2): (n, 2, 2) float64."""
        return self._around(self.tangent_plane.sky(east_north))[1]

    def place(self, east_north, moved=(0.0, 0.0)):
        """Pixel positions (n, 2) and `jacobian` of sources; one that the WCS cannot place is put far away.

        Parameters
        ----------
        east_north : (n, 2) array
            Positions in the tangent plane, arcsec.
        moved : (2,) array
            By how much all sources are displaced from there (east, north), arcsec on the sky.
        """
        sky = self.tangent_plane.sky(east_north)
        xy, jacobian = self._around(offset_coord(sky, *moved) if np.any(moved) else sky)
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
        return _middle(self.wcs, self.shape)

    @cached_property
    def central_jacobian(self):
        """`jacobian` at the image centre: (2, 2)."""
        return self._around(self.center)[1][0]

    # ------------------------------------------------------------------ scales
    @cached_property
    def pixel_scale(self):
        """Side of a pixel in arcsec at the image centre."""
        return float(abs(np.linalg.det(self.central_jacobian)) ** -0.5)

    @cached_property
    def mean_psf(self):
        """The mean PSF over the image, (k, l) float64."""
        return self.psf.mean_over(self.shape)

    @cached_property
    def fwhm(self):
        """Full width at half maximum of the mean PSF in arcsec, pixel response included."""
        return float(half_maximum_width(self.mean_psf) * self.pixel_scale)

    @cached_property
    def psf_flux_error(self):
        """Relative error of fluxes, because the PSF is not known beyond its stamp and between its pixels."""
        between = BETWEEN if any(isinstance(core, PsfCore) for core in self.psf.cores or ()) else 0.0
        return float(np.hypot(between, BEYOND * self.psf_beyond))

    @cached_property
    def psf_suspect_error(self):
        """Relative error of fluxes, because the given PSF cannot be the survey's; 0 without ``PSF_SUSPECT``."""
        if Flag.PSF_SUSPECT not in self.flags:
            return 0.0
        coreless = Flag.PSF_TRUNCATED in self.flags and self.psf_beyond == 0.0
        return CORELESS if coreless else width_error(self.fwhm / self.nominal_fwhm)

    @cached_property
    def depth(self):
        """5-sigma point-source depth, AB: matched filter with the PSF and the median pixel noise."""
        step = max(1, int(np.sqrt(self.pixels.data.size / DEPTH_PIXELS)))
        variance, mask = (a[::step, ::step] for a in (self.pixels.uncertainty.array, self.pixels.mask))
        sigma = np.sqrt(np.median(variance[~mask]))
        return float(31.4 - 2.5 * np.log10(5 * sigma / np.sqrt((self.mean_psf**2).sum())))


@once_per_pair
def band_images(pair):
    """Read-only mapping of band to `BandImage` of a `~rosetta.SkyPair`, ground bands first; made once per pair."""
    of_pair = list(pair.images())
    _, _, last = of_pair[-1]  # the space side comes last: its frame is the reference
    plane = TangentPlane(_middle(last.wcs, last.data.shape))
    return ReadOnlyDict({name: _band_image(pair, plane, side, name, pixels) for side, name, pixels in of_pair})


def _middle(wcs, shape):
    """Sky position of the centre of an image, a scalar."""
    ny, nx = shape
    return plain_icrs(wcs.pixel_to_world((nx - 1) / 2, (ny - 1) / 2))[0]


def _band_image(pair, plane, side, name, pixels):
    band, flags, psf = pair.survey(side)[name], pair.flags[name], pixels.psf_anywhere
    parts = {"wcs": pixels.wcs, "tangent_plane": plane, "wavelength": band.pivot.to_value(u.nm)}
    parts["nominal_fwhm"] = band.psf_fwhm.to_value(u.arcsec)
    if psf is None:
        image = BandImage(name, side, pixels, None, flags=flags | Flag.PSF_NOMINAL, **parts)
        image = replace(image, psf=PSF(moffat(band.psf_fwhm.to_value(u.arcsec) / image.pixel_scale)))
    else:
        image = BandImage(name, side, pixels, psf.centred(), flags=flags, **parts)
        image = image if Flag.PSF_TRUNCATED not in flags else _with_wings(image, pair.survey(side))
    # Of a noise-free image nothing is sharper than the PSF, and the search would take cores of stars for artefacts.
    return image if pixels.meta.get("noise_free") else _without_artefacts(image)


def _without_artefacts(image):
    """An image whose mask holds the cosmic rays, hot pixels and trails found in it."""
    pixels, noise = image.pixels, image.pixels.uncertainty
    found = artefact_pixels(pixels.data, noise.array, pixels.mask, image.mean_psf, image.pixel_scale)
    if not found.any():
        return image
    return _as_before(image, replace(image, pixels=NDData(pixels.data, uncertainty=noise, mask=pixels.mask | found)))


def _with_wings(image, survey):
    """An image whose PSF has larger stamps, with the light that was found to be missing."""
    psf = image.psf
    mean, light = psf.cells.mean(axis=0), psf.light.mean()
    nominal = PSF_WINGS.get(survey.name, {}).get(image.band)
    wings, known = (of(mean, image.pixel_scale, nominal) for of in (psf_wings, known_radius))
    factor, pad = (1.0 - light) / max(wings.share, 1e-9), min(min(mean.shape) - 1, WIDEST)
    larger = psf.extended(lambda radius: factor * wings.at(radius), pad, known=known)
    reach = min(min(mean.shape) / 2, known)
    return _as_before(image, replace(image, psf=larger, psf_reach=reach, psf_beyond=float(1.0 - light)))


def width_error(ratio):
    """Relative error of a point source's flux, fitted with a PSF whose width is off by a factor, or its inverse.

    Of Gaussians, with flat weights: the flux is off by a factor 2 r^2 / (1 + r^2) for a PSF that is r times too wide.
    """
    return float(abs(ratio**2 - 1.0) / (ratio**2 + 1.0))


def _as_before(image, changed):
    """The changed image, for which the WCS is not asked again."""
    changed.__dict__.update(center=image.center, central_jacobian=image.central_jacobian)
    return changed


def extent(images):
    """The lowest and highest (east, north) in the tangent plane that images of a pair reach, arcsec: (2,) each."""
    edges = []
    for image in images:
        ny, nx = image.shape
        x, y = np.meshgrid(np.linspace(-0.5, nx - 0.5, 9), np.linspace(-0.5, ny - 0.5, 9))
        edges.append(image.east_north(x.ravel(), y.ravel()))
    edges = np.concatenate(edges)
    return edges.min(0), edges.max(0)
