# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""One image as it was given: checked, and brought to one form."""

import copy

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData, UnknownUncertainty

from .flags import Flag
from .images.moments import half_maximum_width
from .images.psf import PSF, checked_array
from .images.psf_wings import TRUNCATED, psf_wings

__all__ = ["checked_image"]

NJY = u.nJy
SMALLEST, LARGEST = 0.005, 5.0  # arcsec along a pixel
SHORTEST_SIDE = 5  # pixels
MOST_PIXELS = 2**31
UNLIKELY = 1.65  # ratio of a PSF's width to the survey's: seeing from the ground varies by nearly as much
TOLD = 0.6  # share of light beyond a stamp above which the stamp does not tell how much it is
STRETCH = 3.0  # longest over shortest extent of a pixel; largest over smallest pixel of an image


def checked_image(where, image, psf=None, *, nominal=None, wings=None):
    """The parts of an image in one form, after checks.

    Parameters
    ----------
    where : str
        What error messages call it.
    image : `~astropy.nddata.NDData`
    psf : PSF in any form, optional
        In place of the image's own.
    nominal : float, optional
        Full width at half maximum of the survey's PSF, arcsec.
    wings : tuple of (float, float), optional
        The survey's wings, as in `rosetta.surveys.PSF_WINGS`.

    Returns
    -------
    parts : tuple
        Data (float32, nJy), variance (float32, nJy^2), mask (bool), all (ny, nx) and new; WCS and meta (copies);
        `~rosetta.PSF` or None.
    flags : `~rosetta.Flag`
        What had to be assumed.

    Raises
    ------
    TypeError, ValueError
        If the image cannot be used.
    """
    if not isinstance(image, NDData):
        raise TypeError(f"{where} must be an astropy NDData (or CCDData), got {type(image).__name__}")
    raw, masked = _plain(image.data)
    if raw.dtype.kind not in "fiu":
        raise TypeError(f"{where} holds {raw.dtype}, not real numbers: give an image of fluxes")
    _check_shape(where, raw.shape)
    if image.unit is None:
        raise ValueError(f"{where} has no unit: give NDData(..., unit=u.nJy), or read it with rosetta.io")
    if not isinstance(image.unit, u.UnitBase):
        raise ValueError(f"{where} has the logarithmic unit {image.unit}: convert it with .to(u.nJy) first")
    try:
        scale = image.unit.to(NJY)
    except u.UnitConversionError as error:
        raise ValueError(
            f"{where} has unit {image.unit}, which does not convert to nJy: apply the photometric zero point first"
        ) from error
    pixel = _check_wcs(where, image.wcs, raw.shape)
    flags = Flag(0)
    with np.errstate(invalid="ignore", over="ignore"):
        data = np.multiply(raw, scale, dtype=np.float64).astype(np.float32)
    mask = ~np.isfinite(data) | masked | _given_mask(where, image.mask, data.shape)
    if mask.all():
        raise ValueError(f"{where}: every pixel is masked or not finite: pass None or leave the band out")
    if image.uncertainty is None or isinstance(image.uncertainty, UnknownUncertainty):
        variance = np.full(data.shape, _noise_variance(where, data, mask), np.float32)
        flags |= Flag.VARIANCE_ESTIMATED
    else:
        variance = _variance(where, image, data.shape)
        with np.errstate(invalid="ignore"):
            mask |= ~(np.isfinite(variance) & (variance > 0))
        if mask.all():
            raise ValueError(
                f"{where}: uncertainty has no finite positive variance on any valid pixel: "
                "fix it (in single precision a variance in cgs or SI units is zero), or pass uncertainty=None to have "
                "the noise measured"
            )
    if psf is None:  # that of every place, where the image has one beside the mean
        psf = getattr(image, "psf_anywhere", None)
        psf = image.psf if psf is None else psf
    if psf is not None:
        psf, told = _check_psf(f"{where}: psf", psf, data.shape, pixel, nominal, wings)
        flags |= told
    return (data, variance, mask, copy.deepcopy(image.wcs), copy.deepcopy(dict(image.meta)), psf), flags


def _plain(array):
    """An array without its mask, and the mask (bool, or False): `numpy.asarray` alone would forget it."""
    mask = np.ma.getmaskarray(array) if np.ma.isMaskedArray(array) else getattr(array, "mask", None)
    values = np.asarray(getattr(array, "unmasked", array))
    return values, np.zeros(values.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask), values.shape)


def _check_shape(where, shape):
    if len(shape) != 2:
        raise ValueError(f"{where} must be 2-D, got shape {shape}: select one image plane")
    if min(shape) < SHORTEST_SIDE:
        raise ValueError(f"{where} has shape {shape}: give an image of at least {SHORTEST_SIDE} pixels along each side")
    if shape[0] * shape[1] >= MOST_PIXELS:
        raise ValueError(f"{where} has shape {shape}, 2**31 pixels or more: cut it into parts")


def _given_mask(where, mask, shape):
    """A mask as bool (ny, nx): True where the pixel is masked, or where the mask itself is."""
    if mask is None:
        return False
    given, unknown = _plain(mask)
    if given.dtype.kind not in "biuf":
        raise TypeError(f"{where}: mask holds {given.dtype}: give bool, True where a pixel must not be used")
    if given.ndim and given.shape != shape:
        raise ValueError(f"{where}: mask has shape {given.shape}, image {shape}: they must agree")
    return given.astype(bool) | unknown


def _check_wcs(where, wcs, shape):
    """Side of a pixel (arcsec); refuse a WCS that is not celestial, or that no image of the sky has."""
    remedy = "give NDData(..., wcs=...) with a 2-D celestial WCS"
    if wcs is None:
        raise ValueError(f"{where} has no WCS: {remedy}")
    low = wcs.low_level_wcs
    types = low.world_axis_physical_types
    celestial = low.pixel_n_dim == 2 and low.world_n_dim == 2 and all(t and t.startswith("pos.") for t in types)
    if not celestial:
        raise ValueError(f"{where} has no celestial WCS (axes: {types}): {remedy}")
    # Pixels next to each other inside the image: some WCS know nothing outside it.
    rows, columns = (np.linspace(0, n - 2, min(n - 1, 33)) for n in shape)
    y, x = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))  # (n,)
    at = np.stack([[x, x + 1, x], [y, y, y + 1]])  # (x or y, 3 pixels, n)
    sky = _converted(where, lambda: wcs.pixel_to_world(*at.reshape(2, -1)))
    if not isinstance(sky, SkyCoord):
        raise ValueError(f"{where} has no celestial WCS (it gives {type(sky).__name__}): {remedy}")
    unit = sky.represent_as("unitspherical").to_cartesian().xyz.to_value(u.one).reshape(3, 3, -1)  # (axis, pixel, n)
    along, up = unit[:, 1] - unit[:, 0], unit[:, 2] - unit[:, 0]
    bad = ~np.isfinite(unit.sum(axis=(0, 1)))
    if bad.any():
        raise ValueError(
            f"{where}: its WCS gives no position on {bad.mean():.0%} of the image, for instance at pixel "
            f"({x[bad][0]:.0f}, {y[bad][0]:.0f}): repair it, or cut the image"
        )
    # Extents of a pixel (arcsec): the square roots of the eigenvalues of this matrix.
    aa, bb, ab = ((p * q).sum(axis=0) * u.rad.to(u.arcsec) ** 2 for p, q in ((along, along), (up, up), (along, up)))
    half = np.hypot(0.5 * (aa - bb), ab)
    longest = np.sqrt(0.5 * (aa + bb) + half)
    shortest = np.sqrt(np.maximum(0.5 * (aa + bb) - half, 0.0))
    if not (shortest.min() >= SMALLEST and longest.max() <= LARGEST):
        size = longest.max() if longest.max() > LARGEST else shortest.min()
        raise ValueError(
            f"{where}: its WCS says that a pixel is {size:.3g} arcsec wide, only {SMALLEST} to {LARGEST:g} can be: "
            "correct its scale (CD or CDELT, in degrees)"
        )
    area = longest * shortest
    if (longest > STRETCH * shortest).any() or area.max() > STRETCH * area.min():
        raise ValueError(
            f"{where}: its WCS has pixels from {shortest.min():.3g} to {longest.max():.3g} arcsec wide in one image: "
            "repair it, or resample the image"
        )
    back = np.stack(_converted(where, lambda: wcs.world_to_pixel(sky)))
    miss = np.abs(back - at.reshape(2, -1)).max()
    if not miss < 0.1:
        raise ValueError(
            f"{where}: its WCS does not convert pixels to the sky and back (it misses by {miss:.3g} pixels): repair it"
        )
    return float(np.sqrt(np.median(area)))


def _converted(where, convert):
    """What a WCS gives; its errors, which are of many types, as one."""
    try:
        with np.errstate(all="ignore"):
            return convert()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{where}: its WCS does not convert pixels to the sky and back ({reason}): repair it"
        ) from error


def _variance(where, image, shape):
    """Variance in nJy^2 from any uncertainty class.

    Squares are taken in double precision and in nJy: those of single-precision numbers in cgs or SI units are zero.
    """
    uncertainty = image.uncertainty
    values, masked = _plain(uncertainty.array)
    if values.shape != shape:
        raise ValueError(f"{where}: uncertainty has shape {values.shape}, image {shape}: they must agree")
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{where}: uncertainty holds {values.dtype}, not real numbers")
    power = {"std": 1, "var": 2, "ivar": -2}.get(uncertainty.uncertainty_type)
    if power is None:
        raise TypeError(
            f"{where}: uncertainty is a {type(uncertainty).__name__}: give StdDevUncertainty, VarianceUncertainty or "
            "InverseVariance"
        )
    unit = uncertainty.unit if uncertainty.unit is not None else image.unit**power
    try:
        scale = unit.to(NJY**power)
    except u.UnitConversionError as error:
        raise ValueError(f"{where}: uncertainty has unit {unit}, which does not convert to {NJY**power}") from error
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        values = np.where(masked, np.nan, np.multiply(values, scale, dtype=np.float64))
        if power == 1:
            # A negative standard deviation is bad input, though its square would be a variance.
            values = np.where(values > 0, values, np.nan) ** 2
        elif power == -2:
            values = 1.0 / values
        return values.astype(np.float32)


def _noise_variance(where, data, mask):
    """Pixel variance from the scatter of the fainter half of the unmasked pixels.

    Sources raise only the bright side of the distribution, so the half below the median is mirrored.
    """
    values = data[~mask].astype(np.float64)
    median = np.median(values)
    below = values[values <= median]
    sigma = 1.4826 * np.median(median - below)
    if not sigma > 0:
        raise ValueError(f"{where}: no uncertainty given and the image has no measurable noise: give one")
    return sigma**2


def _check_psf(where, psf, shape, pixel, nominal, wings):
    """A `PSF` of light 1 including what lies beyond its stamp; and flags: whether that light matters, whether the width
    can be that of the survey."""
    if hasattr(psf, "grid_xypos"):
        psf = _gridded(where, psf)
    elif not isinstance(psf, PSF):
        psf = PSF.sampled(psf, shape, where) if callable(psf) else PSF(checked_array(psf, where))
    if not psf.covers(shape):
        raise ValueError(
            f"{where} is known on a grid of places that does not cover the image of {shape[1]} x {shape[0]} pixels: "
            "give one that does (its outermost places may lie one step inside the border)"
        )
    # One for all cells: rings at the edge of a stamp would change it from place to place.
    mean, flags = psf.scaled(1 / psf.light).cells.mean(axis=0), Flag(0)
    missing = psf_wings(mean, pixel, wings).share
    if missing > TOLD:  # as of a flat stamp
        missing, flags = 0.0, Flag.PSF_TRUNCATED | Flag.PSF_SUSPECT
    if missing > TRUNCATED:
        flags |= Flag.PSF_TRUNCATED
    if nominal is not None and abs(np.log(half_maximum_width(mean) * pixel / nominal)) > np.log(UNLIKELY):
        flags |= Flag.PSF_SUSPECT
    return psf.scaled((1 - missing) / psf.light), flags


def _gridded(where, model):
    """A `PSF` from a photutils ``GriddedPSFModel``."""
    place = np.asarray(model.grid_xypos, float)  # (n, 2): x, y
    x, y = np.unique(place[:, 0]), np.unique(place[:, 1])
    order = np.lexsort((place[:, 0], place[:, 1]))  # row after row
    sampling = np.unique(np.broadcast_to(model.oversampling, 2))
    if len(x) * len(y) != len(place) or len(sampling) != 1:
        raise ValueError(f"{where}: its places must form a rectangular grid, with one oversampling for both axes")
    cells = np.asanyarray(model.data)[order]
    return PSF.on_grid(cells.reshape(len(y), len(x), *cells.shape[1:]), x, y, oversampling=int(sampling[0]), name=where)
