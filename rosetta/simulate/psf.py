# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""PSFs of simulated bands: what the telescope, the atmosphere and the detector make of a point.

The light within a few widths of the centre, the core, is drawn source by source at the source's place and colour. The
faint light from there to 10 arcsec, the wings, is smooth: one convolution adds it to the image of a band.
"""

from copy import copy

import astropy.units as u
import galsim
import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.optimize import brentq
from scipy.signal import fftconvolve

from ..images.moments import adaptive_moments
from ..images.psf import PSF
from .optics import Telescope, aureole, seeing_disc

__all__ = ["SLOPES", "WING_RADIUS", "FieldPSF", "draw_psf", "drawn_width"]

WING_RADIUS = 10.0  # arcsec; light beyond is nobody's
#: Slopes d ln f_nu / d ln wavelength of the spectra for which the PSF of a space band is worked out.
SLOPES = (-1.0, 1.0, 3.0, 5.0)
_FLAT = 1  # index of the slope for which a PSF is stated: that of a galaxy
_APERTURE = 1.2e9  # nm; the primary mirror of Euclid
_OBSCURATION = 0.35
_STRUT = 0.012
_WAVEFRONT = 13.0  # nm, each of the Zernike terms
_WAVELENGTHS = 7  # per band
_JITTER = 0.03  # arcsec; least sigma of pointing jitter and diffusion in space, or less for very sharp bands
_VISITS = (0.1, 0.45)  # relative differences between the seeing of the visits of a stack
_FINE = 0.02  # arcsec between samples of space PSFs
_CELL = 30.0  # arcsec; side of the cells of a coadd
#: Scattered light: share, radius of the flat middle (arcsec).
_SCATTERED = {"ground": (0.03, 1.5), "space": (0.035, 0.6)}
_PARAMS = galsim.GSParams(folding_threshold=5e-3, maxk_threshold=1e-3, kvalue_accuracy=1e-5)


class FieldPSF:
    """The PSF of one band over one field.

    Its origin is the adaptive-moment centroid of its image on the native pixel grid. From a space telescope it is
    the diffraction pattern of an obscured aperture with struts and wavefront errors, averaged over the source's
    spectrum in the band, with pointing jitter and diffusion, the native pixel, and the linear interpolation by which
    the survey brings its exposures to one grid. From the ground it is a stack of Kolmogorov seeing discs. Scattered
    light reaches to 10 arcsec in both.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
        Draws ellipticity, wavefront errors and gradients.
    survey : `~rosetta.surveys.Survey`
    band : `~rosetta.surveys.Band`
    ground : bool
        Atmosphere if True, else a telescope in space.
    fwhm : float
        Arcsec; of the ground profile itself, and of the delivered pixels in space (there, a little wider where
        diffraction and pixels do not allow less).
    half_size : float
        Half the width of the field (arcsec), over which the PSF varies by a few per cent: smoothly in space, from
        the ground also in steps between the 30 arcsec cells of a coadd.

    Attributes
    ----------
    radius : float
        Arcsec that the core reaches.
    wings : (k, k) array
        On native pixels: the share of light that the wings hold, and where.
    """

    def __init__(self, rng, survey, band, ground, fwhm, half_size):
        self.pixel_scale = survey.pixel_scale.to_value(u.arcsec)
        self.half_size = half_size
        self.radius = 4.5 * fwhm if ground else max(3.0, 5 * fwhm)
        self.ground = ground
        self._shear = rng.normal(scale=0.03, size=2)
        self._gradient = rng.normal(scale=0.01, size=(2, 3))  # of (size, g1, g2) east and north
        turn, lopsided, struts = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.04), rng.uniform(0, 2 * np.pi)
        wavefront = rng.normal(scale=_WAVEFRONT, size=7)
        visits = round(rng.uniform(*_VISITS), 2)
        self._phase = rng.uniform(-0.5, 0.5, 2)  # of the cells
        n = self._n_cell = int(np.ceil(half_size / _CELL)) + 1
        self._steps = rng.normal(scale=(0.015, 0.007, 0.007), size=(2 * n + 1, 2 * n + 1, 3)) if ground else None
        if ground:
            cores, self.wings = self._atmosphere(fwhm, visits, turn, lopsided)
        else:
            cores, self.wings = self._telescope(band, fwhm, wavefront, struts)
        self._profiles = self._centred(cores)
        self._profile = self.coloured(SLOPES[_FLAT])._profile

    def _atmosphere(self, fwhm, visits, turn, lopsided):
        scale = fwhm / 12
        step = 0.4 * fwhm * np.array([np.cos(turn), np.sin(turn)])
        share, inner = _SCATTERED["ground"]

        def light(x, y):
            disc = (1 - lopsided) * seeing_disc(np.hypot(x, y), fwhm, visits)
            disc += lopsided * seeing_disc(np.hypot(x - step[0], y - step[1]), fwhm, visits)
            return (1 - share) * disc + share * aureole(np.hypot(x, y), inner, WING_RADIUS)

        x, y, fade = _plane(self.radius, scale, self.radius)
        core = light(x, y) * fade * scale**2
        x, y, fade = _plane(WING_RADIUS, self.pixel_scale, self.radius)
        wings = light(x, y) * (1 - fade) * self.pixel_scale**2 * _taper(np.hypot(x, y))
        total = core.sum() + wings.sum()
        return [_interpolated(core, scale)], wings / total

    def _telescope(self, band, fwhm, wavefront, turn):
        pivot, width = band.pivot.to_value(u.nm), band.width.to_value(u.nm)
        native = self.pixel_scale if band.native_pixel is None else band.native_pixel.to_value(u.arcsec)
        diameter = pivot * 1e-9 / min(pivot / _APERTURE, 0.75 * fwhm / 206265)
        telescope = Telescope(diameter, _OBSCURATION, _STRUT, wavefront, turn)
        wavelengths = pivot + width * ((np.arange(_WAVELENGTHS) + 0.5) / _WAVELENGTHS - 0.5)
        photons = (wavelengths / pivot) ** (np.array(SLOPES)[:, None] - 1)
        share, inner = _SCATTERED["space"]
        x, y, fade = _plane(self.radius, _FINE, self.radius)
        optics = (1 - share) * telescope.pattern(wavelengths, photons, x[0])
        optics += share * aureole(np.hypot(x, y), inner, WING_RADIUS)
        cores = optics * fade * _FINE**2  # (n_slope, k, k)
        x, y, fade = _plane(WING_RADIUS, self.pixel_scale, self.radius)
        far = (1 - share) * telescope.pattern(wavelengths, photons[_FLAT : _FLAT + 1], x[0])[0]
        far += share * aureole(np.hypot(x, y), inner, WING_RADIUS)
        wings = far * (1 - fade) * self.pixel_scale**2 * _taper(np.hypot(x, y))
        share = wings.sum() / (wings.sum() + cores[_FLAT].sum())
        cores = [self._detected(core, native) for core in cores]
        sigma = _blur(cores[_FLAT], fwhm, self.pixel_scale)
        smooth = [gaussian_filter(core, sigma / _FINE, mode="constant") for core in cores]
        return [_interpolated(core, _FINE) for core in smooth], wings * share / wings.sum()

    def _detected(self, core, native):
        """What pixels and interpolation make of the profile, short of the delivered pixel."""
        # Of a larger native pixel the delivered one, which is drawn later, is a part.
        pixel = np.sqrt(native**2 - self.pixel_scale**2)
        for side in (pixel, native, native):  # linear interpolation: a pixel twice
            if side > _FINE:
                core = _box(core, side / _FINE)
        return core

    def _centred(self, profiles):
        profile = profiles[_FLAT if len(profiles) > 1 else 0]
        shift = np.zeros(2)
        for _ in range(4):
            image = self.spread(self._drawn(profile.shift(*shift)))
            (x, y), _ = adaptive_moments(image)
            middle = image.shape[0] // 2
            # Columns run west: east is -x.
            shift += (x - middle) * self.pixel_scale, -(y - middle) * self.pixel_scale
        return [profile.shift(*shift) for profile in profiles]

    def coloured(self, slope):
        """The PSF of sources of another colour.

        Parameters
        ----------
        slope : float
            d ln f_nu / d ln wavelength of the sources within the band; the nearest of `SLOPES` is used. From the
            ground the difference, some 0.1 %, is left out.

        Returns
        -------
        `FieldPSF`
        """
        other = copy(self)
        other._profile = self._profiles[int(np.argmin(np.abs(np.array(SLOPES[: len(self._profiles)]) - slope)))]
        return other

    def at(self, east, north):
        """The core of the PSF at a position of the field.

        Parameters
        ----------
        east, north : float
            Arcsec from the field centre.

        Returns
        -------
        `galsim.GSObject`
            In (east, north) arcsec, without the delivered pixel, unit flux: `spread` adds the wings to an image.
        """
        place = np.array([east, north], float)
        scatter = 0.0
        if self._steps is not None:
            cell = np.round(place / _CELL + self._phase).astype(int).clip(-self._n_cell, self._n_cell)
            place = (cell - self._phase) * _CELL  # the PSF of a cell is that of its middle
            scatter = self._steps[tuple(cell + self._n_cell)]
        size, g1, g2 = self._gradient.T @ (place / self.half_size) + scatter
        g1, g2 = np.clip(self._shear + (g1, g2), -0.3, 0.3)
        return self._profile.dilate(1 + np.clip(size, -0.1, 0.1)).shear(g1=g1, g2=g2)

    def spread(self, image):
        """An image that was drawn with the core alone, with the wings of all sources.

        Parameters
        ----------
        image : (ny, nx) array
            Light within 10 arcsec of its border is spread beyond it and is lost.

        Returns
        -------
        (ny, nx) float64 array
        """
        share = self.wings.sum()
        return (1 - share) * image + fftconvolve(image, self.wings, mode="same")

    def image(self, east=0.0, north=0.0):
        """The PSF on the native grid: pixel response and wings included, odd, unit sum.

        Parameters
        ----------
        east, north : float
            Arcsec from the field centre.

        Returns
        -------
        (k, k) float64 array
        """
        psf = np.maximum(self.spread(self._drawn(self.at(east, north))), 0.0)
        return psf / psf.sum()

    def _drawn(self, profile):
        return _draw(profile, self.wings.shape[0] // 2, self.pixel_scale)

    def everywhere(self, to_pixel):
        """The PSF of the whole field.

        Parameters
        ----------
        to_pixel : callable
            ``to_pixel(east, north)`` gives the 0-based pixel (x, y).

        Returns
        -------
        `~rosetta.PSF`
            Of a source of slope 1. In space interpolated between places; from the ground one PSF per cell.
        """
        if self._steps is None:
            east, north = np.linspace(self.half_size, -self.half_size, 3), np.linspace(-1, 1, 3) * self.half_size
        else:
            east, north = (self._middles(phase) for phase in self._phase)
            east = east[::-1]
        cells = np.stack([[self.image(e, n) for e in east] for n in north])
        x, y = (np.asarray(to_pixel(east, 0.0)[0]), np.asarray(to_pixel(0.0, north)[1]))
        return PSF.on_grid(cells, x, y, smooth=self._steps is None)

    def _middles(self, phase):
        """Middles of the cells that the field touches along one axis, arcsec."""
        first, last = (round(sign * self.half_size / _CELL + phase) for sign in (-1, 1))
        return (np.arange(first, last + 1) - phase) * _CELL


def drawn_width(rng, band, ground, factor):
    """Full width at half maximum that a band has in one field, arcsec.

    From the ground it scatters by 5 % about ``factor`` times the nominal one. Stamps of Euclid Q1 are some 10 %
    narrower than the nominal width where the native pixel is larger than the delivered one.
    """
    fwhm = band.psf_fwhm.to_value(u.arcsec) * factor
    scatter = np.clip(1 + 0.05 * rng.normal(), 0.85, 1.15)
    if ground:
        return fwhm * scatter
    return fwhm if band.native_pixel is None else 0.9 * fwhm * scatter


def _plane(radius, scale, core):
    """Offsets x, y (arcsec) of an odd grid, and what of the light there belongs to the core."""
    half = int(np.ceil(radius / scale)) + 2
    axis = np.arange(-half, half + 1) * scale
    x, y = np.meshgrid(axis, axis)
    fade = np.clip((core - np.hypot(x, y)) / (0.25 * core), 0.0, 1.0)
    return x, y, np.sin(0.5 * np.pi * fade) ** 2


def _taper(radius):
    """1 within three quarters of the wings' radius, falling to 0 at their end."""
    return np.sin(0.5 * np.pi * np.clip((WING_RADIUS - radius) / (0.25 * WING_RADIUS), 0.0, 1.0)) ** 2


def _box(samples, width):
    """Mean over a square of any width (in samples)."""
    low = int((width - 1) // 2) * 2 + 1
    part = (width**2 - low**2) / ((low + 2) ** 2 - low**2)  # so that the second moment is that of the width
    narrow = uniform_filter(samples, low, mode="constant")
    return narrow if part < 1e-6 else (1 - part) * narrow + part * uniform_filter(samples, low + 2, mode="constant")


def _blur(core, fwhm, pixel_scale):
    """Sigma (arcsec) of the Gaussian, jitter and diffusion, that brings the delivered width to ``fwhm``."""

    def excess(sigma):
        smooth = _box(gaussian_filter(core, sigma / _FINE, mode="constant"), pixel_scale / _FINE)
        row = smooth[smooth.shape[0] // 2]
        right = row[row.size // 2 :] / row.max()
        edge = np.argmax(right < 0.5)
        crossing = edge - 1 + (right[edge - 1] - 0.5) / (right[edge - 1] - right[edge])
        return 2 * crossing * _FINE - fwhm

    smallest, largest = min(_JITTER, 0.2 * fwhm), fwhm
    return brentq(excess, smallest, largest, xtol=1e-3) if excess(smallest) < 0 else smallest


def _interpolated(samples, scale):
    image = galsim.Image(samples / samples.sum(), scale=scale)
    return galsim.InterpolatedImage(image, x_interpolant="lanczos5", flux=1.0, gsparams=_PARAMS)


def _draw(profile, half, pixel_scale):
    local = galsim.JacobianWCS(-pixel_scale, 0.0, 0.0, pixel_scale)
    return profile.drawImage(nx=2 * half + 1, ny=2 * half + 1, wcs=local, dtype=float).array


def draw_psf(profile, radius, pixel_scale):
    """A point source on the central pixel of an odd stamp, rows north, columns west.

    Parameters
    ----------
    profile : `galsim.GSObject`
    radius, pixel_scale : float
        Arcsec.

    Returns
    -------
    `~numpy.ndarray`, float64
        Unit sum; its outermost two pixels are empty.
    """
    half = int(np.ceil(1.1 * radius / pixel_scale)) + 2
    image = _draw(profile, half, pixel_scale)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    image = np.where(np.hypot(x, y) * pixel_scale < 1.1 * radius, np.maximum(image, 0.0), 0.0)
    return image / image.sum()
