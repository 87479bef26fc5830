# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The encoder's windows: where they lie, and what the encoder is given of them."""

import astropy.units as u
import numpy as np
import torch
from astropy.wcs import WCS

from ..images.image import band_images, extent
from ..images.positions import from_tangent, tangent
from ..images.resampling import resampled
from ..surveys import PIXEL_SCALE
from .network import View, conditions

__all__ = [
    "band_mix", "fitting_window", "ideal_offsets", "is_extrapolated", "is_native", "native_corner",
    "observing_conditions", "on_images", "patch_wcs", "same_grid", "side_view", "window_grid",
]

PATCH = 16  # native pixels per token side
OVERLAP = 12.8  # arcsec shared by neighbouring windows
STEP = 3.2  # arcsec; windows are multiples of one ground token
RIM = 0.2  # arcsec; a window may hang over by a ground pixel: a cutout holds whole ones
SLACK = 1.6  # arcsec; half a ground token more than a window is not worth another one


def window_grid(images, window):
    """Centres of the windows that cover the images: `~astropy.coordinates.SkyCoord`, shape (n_window,).

    None hangs over an edge, where missing sky would look strange: the outer ones are flush with the edges, and
    neighbours overlap by `OVERLAP` or more, to within `SLACK`.
    """
    lowest, highest = extent(images)
    axes = []
    for low, high in zip(lowest, highest, strict=True):
        spare = max(high - low - window, 0.0)
        n = 1 + int(np.ceil((spare - SLACK) / (window - min(OVERLAP, window / 2))))
        axes.append((low + high) / 2 + (np.linspace(-0.5, 0.5, n) * spare if n > 1 else np.zeros(1)))
    east, north = np.meshgrid(*axes)
    return images[0].tangent_plane.sky(np.stack([east.ravel(), north.ravel()], -1))


def fitting_window(images, largest):
    """The largest allowed window (arcsec) that the images fill, at most ``largest``."""
    lowest, highest = extent(images)
    filled = STEP * np.floor((np.min(highest - lowest) + RIM) / STEP)
    return min(largest, max(12.8, round(filled, 1)))


def side_view(images, centers, window, knots):
    """The encoder's input for one side.

    Parameters
    ----------
    images : list of `BandImage`
        All bands of the side.
    centers : `~astropy.coordinates.SkyCoord`, shape (n_window,)
    window : float
        Side length in arcsec.
    knots : sequence of float
        ln(pivot wavelength / nm) at which the encoder holds band-dependent weights.

    Returns
    -------
    `rosetta.encoding.network.View`
        For all windows; flux over noise, compressed by asinh.
    """
    side = images[0].side
    n = int(round(window / PIXEL_SCALE[side]))
    reference = images[0]
    native = is_native(reference, PIXEL_SCALE[side])
    if native:
        corner = native_corner(reference, centers, n)  # (n_window, 2) whole pixels (x, y)
        positions = _token_offsets(reference, corner, centers, n)
    else:
        positions = np.broadcast_to(_ideal_offsets(n, PIXEL_SCALE[side]), (len(centers), (n // PATCH) ** 2, 2))
    pixels = np.zeros((len(centers), len(images), n, n), np.float32)
    valid = np.zeros(pixels.shape, bool)
    for b, image in enumerate(images):
        shared = native and same_grid(image, reference)
        for w in range(len(centers)):
            if shared:
                flux, variance, good = _crop(image, corner[w], n)
            else:
                ideal = (centers[w], n, PIXEL_SCALE[side])
                grid = _native_grid(reference, corner[w], n) if native else _ideal_grid(*ideal)
                flux, variance, good = resampled(image, grid)
            valid[w, b] = good
            pixels[w, b] = np.arcsinh(np.divide(flux, np.sqrt(variance), out=np.zeros_like(flux), where=good))
    wavelengths = np.log([image.wavelength for image in images])
    per_band = {name: [getattr(image, name) for image in images] for name in ("fwhm", "depth")}
    return View(
        pixels=torch.from_numpy(pixels),
        valid=torch.from_numpy(valid),
        positions=torch.from_numpy(positions.astype(np.float32)),
        mix=torch.from_numpy(band_mix(wavelengths, knots)),
        fwhm=torch.tensor(per_band["fwhm"], dtype=torch.float32).expand(len(centers), -1),
        depth=torch.tensor(per_band["depth"], dtype=torch.float32).expand(len(centers), -1),
    )


def on_images(images, coord):
    """Whether any of the images reaches into the patch about each position: (n,) bool."""
    held = []
    for image in images:
        reach = 0.5 * PATCH * PIXEL_SCALE[image.side] / image.pixel_scale + 1
        ny, nx = image.shape
        x, y = image.sky_to_pixel(coord)
        held.append((x > -reach) & (x < nx + reach) & (y > -reach) & (y < ny + reach))  # not where it is NaN
    return np.any(held, axis=0)


def patch_wcs(center, pitch, count):
    """TAN WCS of ``count`` x ``count`` patches of ``pitch`` arcsec about a sky position."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [center.ra.deg, center.dec.deg]
    wcs.wcs.cdelt = [-pitch / 3600, pitch / 3600]
    wcs.wcs.crpix = [(count + 1) / 2] * 2
    return wcs


def band_mix(wavelengths, knots):
    """Linear interpolation weights of bands between knots in ln wavelength: (n_band, n_knot) float32."""
    identity = np.eye(len(knots))
    mix = np.stack([np.interp(wavelengths, knots, row) for row in identity], -1)
    return mix.astype(np.float32)


def is_extrapolated(wavelength, knots):
    """Whether a band lies further than 10 % in wavelength from every band seen in training."""
    return bool(np.min(np.abs(np.log(wavelength) - np.asarray(knots))) > 0.1)


def is_native(image, scale):
    """Scale within 1 %, rotation within 2 degrees, north up and east left."""
    ideal = np.array([[-1, 0], [0, 1]]) / scale
    stretch = image.central_jacobian @ np.linalg.inv(ideal)
    return abs(image.pixel_scale / scale - 1) < 0.01 and np.abs(stretch - np.eye(2)).max() < np.sin(np.deg2rad(2))


def same_grid(image, other):
    if image is other:
        return True
    if image.shape != other.shape:
        return False
    ny, nx = image.shape
    x, y = np.array([0.0, nx - 1, 0, nx - 1]), np.array([0.0, 0, ny - 1, ny - 1])
    xo, yo = image.sky_to_pixel(other.pixel_to_sky(x, y))
    return max(np.abs(xo - x).max(), np.abs(yo - y).max()) < 0.01


def native_corner(image, centers, n):
    """First pixel (x, y) of the whole-pixel crop nearest to each centre: (n_window, 2) int."""
    center = np.stack(image.sky_to_pixel(centers), -1)
    return np.round(center - (n - 1) / 2).astype(int)


def _token_offsets(image, corner, centers, n):
    """(east, north) arcsec of every token centre from its window centre: (n_window, n_token, 2) float64."""
    axis = np.arange(n // PATCH) * PATCH + (PATCH - 1) / 2
    y, x = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    sky = image.pixel_to_sky(*((corner[:, k, None] + at).ravel() for k, at in enumerate((x, y))))
    about = centers[np.repeat(np.arange(len(corner)), len(x))]
    return tangent(sky, about).reshape(len(corner), len(x), 2)


def _ideal_offsets(n, scale):
    """Token offsets of a window resampled north-up about its own centre: (n_token, 2)."""
    axis = (np.arange(n // PATCH) * PATCH + (PATCH - 1) / 2 - (n - 1) / 2) * scale
    north, east = np.meshgrid(axis, -axis, indexing="ij")
    return np.stack([east.ravel(), north.ravel()], -1)


def _ideal_grid(center, n, scale):
    """Sky positions of a coarse grid of pixel positions of the north-up window, and those positions."""
    nodes = np.linspace(-0.5, n - 0.5, 17)
    y, x = np.meshgrid(nodes, nodes, indexing="ij")
    offsets = np.stack([-(x - (n - 1) / 2) * scale, (y - (n - 1) / 2) * scale], -1)
    return n, nodes, from_tangent(offsets.reshape(-1, 2), center), scale


def _native_grid(image, corner, n):
    nodes = np.linspace(-0.5, n - 0.5, 17)
    y, x = np.meshgrid(nodes, nodes, indexing="ij")
    return n, nodes, image.pixel_to_sky(corner[0] + x.ravel(), corner[1] + y.ravel()), image.pixel_scale


def _crop(image, corner, n):
    """Whole-pixel crop; outside the image is invalid."""
    flux, variance = np.zeros((n, n), np.float32), np.full((n, n), np.inf, np.float32)
    good = np.zeros((n, n), bool)
    ny, nx = image.shape
    x0, y0 = corner
    xs, ys = slice(max(x0, 0), min(x0 + n, nx)), slice(max(y0, 0), min(y0 + n, ny))
    if xs.stop > xs.start and ys.stop > ys.start:
        into = (slice(ys.start - y0, ys.stop - y0), slice(xs.start - x0, xs.stop - x0))
        # The arrays alone: to slice a WCS takes longer than to encode a small window.
        seen = ~image.pixels.mask[ys, xs]
        good[into] = seen
        flux[into][seen] = image.pixels.data[ys, xs][seen]
        variance[into][seen] = image.pixels.uncertainty.array[ys, xs][seen]
    return flux, variance, good


def observing_conditions(pair, side, knots):
    """Observing conditions of one side on the knots, (n_knot, 3): the pair's own, or the survey's nominal ones."""
    if getattr(pair, side):
        of_side = [image for image in band_images(pair).values() if image.side == side]
        rows = [(image.wavelength, image.fwhm, image.depth) for image in of_side]
    else:
        rows = [(b.pivot.to_value(u.nm), b.psf_fwhm.to_value(u.arcsec), b.depth) for b in pair.survey(side).bands]
    wavelength, fwhm, depth = np.array(rows).T
    blank = torch.zeros(1, len(rows), 1, 1)
    view = View(
        pixels=blank,
        valid=blank == 0,
        positions=torch.zeros(1, 0, 2),
        mix=torch.from_numpy(band_mix(np.log(wavelength), knots)),
        fwhm=torch.tensor(fwhm[None], dtype=torch.float32),
        depth=torch.tensor(depth[None], dtype=torch.float32),
    )
    return conditions(view)[0].numpy()


def ideal_offsets(side, window):
    """Token offsets (n_token, 2) [east, north, arcsec] of the survey's ideal, centred grid."""
    return _ideal_offsets(int(round(window / PIXEL_SCALE[side])), PIXEL_SCALE[side])
