# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What detectors, satellites and optics add to an image, and how much of it a survey flags."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation

from .saturation import saturate

__all__ = ["MASKED", "REAL", "ArtefactRates", "add"]

# Thickness of the silicon over the pixel, times the native pixel: arcsec of track per unit tangent of the incidence.
_TRACK = {"ground": 10 * 0.2, "space": 40 / 12 * 0.1}
_LONGEST = 60  # pixels
_FWHM = {"ground": 0.8, "space": 0.18}  # arcsec; typical


@dataclass(frozen=True)
class ArtefactRates:
    """Mean numbers of artefacts in one band of one field.

    Parameters
    ----------
    cosmic_rays, hot_pixels : float
        Per square arcminute. On coadds these are what rejection has left.
    trails : float
        Satellites and aircraft per arcminute of the field's width.
    dead_columns : float
        Per arcminute of the field's width.
    holes : float
        Blocks without data, per square arcminute.
    gap, edge : float
        Probability of a chip gap through the field, and of a side that lies beyond the image.
    ghosts : float
        Out-of-focus images of bright stars, per square arcminute.
    flagged : float
        Probability that the survey flags one cosmic ray, hot pixel, trail, column or ghost. Saturated pixels are
        always flagged; pixels without data are nan, and flagged with this probability.
    """

    cosmic_rays: float = 3.0
    hot_pixels: float = 2.0
    trails: float = 0.05
    dead_columns: float = 0.1
    holes: float = 0.1
    gap: float = 0.04
    edge: float = 0.04
    ghosts: float = 0.01
    flagged: float = 0.7


#: Artefacts of survey images, part of them not flagged.
REAL = ArtefactRates()
#: Blemishes of detectors, all of them flagged.
MASKED = ArtefactRates(
    cosmic_rays=4.0, hot_pixels=4.0, trails=0.0, dead_columns=0.1, holes=0.0, gap=0.0, edge=0.0, ghosts=0.0, flagged=1.0
)


def add(rng, image, *, pixel_scale, saturation_level, sky_sigma, side, rates=REAL, psf_fwhm=None, bleeds=True):
    """Saturate an image and add artefacts to it.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
    image : `~numpy.ndarray`, shape (ny, nx)
        Changed in place. Pixels without data become nan.
    pixel_scale : float
        Arcsec.
    saturation_level, sky_sigma : float
        Full well and background noise, in the units of the image.
    side : {"ground", "space"}
        Kind of detector: it sets the lengths of tracks, and the width of trails where ``psf_fwhm`` is not given.
    rates : ArtefactRates
    psf_fwhm : float, optional
        Arcsec; width of trails.
    bleeds : bool
        Whether saturated columns bleed (CCDs do, infrared detectors do not).

    Returns
    -------
    mask : `~numpy.ndarray` of bool
        What a survey would flag.
    affected : `~numpy.ndarray` of bool
        Every pixel that an artefact changed, and every one without data.
    """
    scale, sigma = pixel_scale, sky_sigma
    ny, nx = image.shape
    width, height = nx * scale / 60, ny * scale / 60  # arcmin
    fwhm = _FWHM[side] if psf_fwhm is None else psf_fwhm
    # A stream per kind: the number of one does not change the others.
    *streams, last = rng.spawn(len(_DRAW) + 1)
    expected = {
        "cosmic_rays": rates.cosmic_rays * width * height,
        "hot_pixels": rates.hot_pixels * width * height,
        "trails": rates.trails * max(width, height),
        "dead_columns": rates.dead_columns * width,
        "ghosts": rates.ghosts * width * height,
    }
    full = saturate(image, saturation_level, bleeds=bleeds)
    mask = binary_dilation(full)
    affected = full.copy()
    for (kind, draw), stream in zip(_DRAW.items(), streams):
        for _ in range(stream.poisson(expected[kind])):
            where, light = draw(stream, image, scale, sigma, side, fwhm)  # slices of the image, and what is added
            changed = np.abs(light) > 0.1 * sigma  # what is fainter matters to nobody, and is left out
            image[where] += light * changed
            affected[where] |= changed
            if stream.uniform() < rates.flagged:
                mask[where] |= changed
    np.minimum(image, saturation_level, out=image)
    missing = _missing(last, image.shape, scale, rates, width * height)
    image[missing] = np.nan
    if last.uniform() < rates.flagged:
        mask |= missing
    return mask, affected | missing


def _cosmic_ray(rng, image, scale, sigma, side, fwhm):
    """A straight track: flat incidence is long. Muons come from above on the ground, from everywhere in space."""
    cosine = rng.uniform(1e-3, 1) ** (0.25 if side == "ground" else 0.5)
    length = min(_TRACK[side] / scale * np.sqrt(1 - cosine**2) / cosine, _LONGEST)
    turn = rng.uniform(0, 2 * np.pi)
    along = np.arange(0, length + 0.25, 0.25)
    x = rng.uniform(0, image.shape[1]) + along * np.cos(turn)
    y = rng.uniform(0, image.shape[0]) + along * np.sin(turn)
    # Charge per pixel of the track; what coaddition leaves of it is faint more often than not.
    charge = sigma * rng.lognormal(np.log(8.0), 1.2) * rng.uniform(0.5, 1.5, along.size) / min(4, along.size)
    # Charge between pixels is shared by the four around it.
    x0, y0 = max(int(x.min()), 0), max(int(y.min()), 0)
    light = np.zeros((max(int(y.max()) + 2 - y0, 0), max(int(x.max()) + 2 - x0, 0)))
    rows, columns = np.indices(light.shape)
    for px, py, q in zip(x - x0, y - y0, charge):
        light += q * np.maximum(1 - np.abs(columns - px), 0) * np.maximum(1 - np.abs(rows - py), 0)
    light = light[: image.shape[0] - y0, : image.shape[1] - x0]
    return np.s_[y0 : y0 + light.shape[0], x0 : x0 + light.shape[1]], light


def _hot_pixel(rng, image, scale, sigma, side, fwhm):
    y, x = rng.integers(image.shape)
    return np.s_[y : y + 1, x : x + 1], np.full((1, 1), sigma * rng.lognormal(np.log(12.0), 1.0))


def _trail(rng, image, scale, sigma, side, fwhm):
    """A straight line across the whole field, as wide as the PSF: its peak is 0.5 to 20 sigma per pixel."""
    ny, nx = image.shape
    turn = rng.uniform(0, np.pi)
    reach = 0.5 * (nx * np.abs(np.sin(turn)) + ny * np.abs(np.cos(turn)))
    apart = rng.uniform(-reach, reach)
    y, x = np.indices(image.shape)
    distance = (y - ny / 2) * np.cos(turn) - (x - nx / 2) * np.sin(turn) - apart
    width = fwhm * rng.uniform(1.0, 1.6) / 2.3548 / scale  # satellites are a little out of focus
    peak = sigma * np.exp(rng.uniform(*np.log([0.5, 20.0])))
    return np.s_[:, :], peak * np.exp(-0.5 * (distance / max(width, 0.5)) ** 2)


def _dead_column(rng, image, scale, sigma, side, fwhm):
    """A column, or its lower or upper part, that lost a share of its light."""
    cut, column = rng.integers(image.shape)
    rows = [slice(None), slice(cut), slice(cut, None)][rng.choice(3, p=[0.6, 0.2, 0.2])]
    where = rows, slice(column, column + 1)
    lost = rng.uniform(0.3, 1.0)
    return where, -lost * (image[where] + sigma * rng.uniform(2.0, 10.0))


def _ghost(rng, image, scale, sigma, side, fwhm):
    """The shadowed pupil of a bright star out of focus: a faint ring with sharp edges."""
    y, x = np.indices(image.shape)
    outer = rng.uniform(6.0, 20.0) / scale
    r = np.hypot(x - rng.uniform(0, image.shape[1]), y - rng.uniform(0, image.shape[0])) / outer
    edge = fwhm / scale / outer
    ring = np.clip((1 - r) / edge + 0.5, 0, 1) * np.clip((r - rng.uniform(0.3, 0.6)) / edge + 0.5, 0, 1)
    return np.s_[:, :], sigma * rng.uniform(0.3, 2.0) * ring


_DRAW = {
    "cosmic_rays": _cosmic_ray,
    "hot_pixels": _hot_pixel,
    "trails": _trail,
    "dead_columns": _dead_column,
    "ghosts": _ghost,
}


def _missing(rng, shape, scale, rates, area):
    """Where the survey has no data: blocks, a chip gap, a side beyond the image."""
    ny, nx = shape
    missing = np.zeros(shape, bool)
    for _ in range(rng.poisson(rates.holes * area)):
        size = np.maximum(np.exp(rng.uniform(*np.log([0.5, 4.0]), 2)) / scale, 1).astype(int)
        y, x = rng.integers(ny), rng.integers(nx)
        missing[y : y + size[0], x : x + size[1]] = True
    if rng.uniform() < rates.gap:
        width = max(int(rng.uniform(1.0, 5.0) / scale), 1)
        start = rng.integers(max(min(shape) - width, 1))
        _lines(missing, rng)[start : start + width] = True
    if rng.uniform() < rates.edge:
        side = _lines(missing, rng)
        beyond = max(int(len(side) * rng.uniform(0.02, 0.2)), 1)
        side[:beyond] = True
    return missing


def _lines(array, rng):
    """A view of the array whose rows are its rows or columns, in either order."""
    return (array, array.T, array[::-1], array.T[::-1])[rng.integers(4)]
