# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Images of any instrument: one band from any FITS file, with planes for uncertainty, mask and PSF."""

import re
from contextlib import contextmanager, nullcontext
from math import prod
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.nddata import CCDData, VarianceUncertainty

from ..arithmetic import plain_arithmetic
from ..images.psf import checked_array
from ..surveys import Survey
from ._fits import image_hdu, native, open_fits, source_name
from ._photometric_unit import parsed_unit, photometric_unit
from ._wcs import celestial_wcs, check_place, pixel_areas, region

__all__ = ["UNCERTAINTY_TYPES", "read_image"]

UNCERTAINTY_TYPES = ("std", "var", "ivar")
NO_WEIGHT = 1e12  # times the variance of good pixels: brighter than any star
FILTERS = ("FILTER", "FILTER1", "FILTER2", "BAND")  # cards that name the band
BLOCK = 2**24  # pixels that are held in double precision at a time
# Names of planes that go with an image and are none themselves.
_BESIDE = re.compile(
    r"(.*_)?(ERR(OR)?S?|RMS|STD(DEV)?|SIGMA|UNC(ERT(AINTY)?)?|VAR(IANCE)?|INV?VAR|IVAR|IVM|WHT|WEIGHTS?|DQ|QUALITY|MASK"
    r"|FLAGS?|PSF|CTX|CON|B(AC)?KG(ROUND)?|SEG(MENTATION|MAP)?)\d*"
)


@plain_arithmetic
def read_image(
    source,
    *,
    band=None,
    survey=None,
    ext=None,
    plane=None,
    unit=None,
    zeropoint="header",
    uncertainty=None,
    uncertainty_type=None,
    mask=None,
    mask_bits=None,
    psf=None,
    center=None,
    size=None,
):
    """Read one band of any instrument from FITS, or a region of it.

    The header must say where the pixels are (a celestial WCS) and what they hold; where it does not, or says two
    things, that is an error and not a guess. The unit is, in this order:

    - ``unit``, or ``zeropoint`` if it is a number;
    - ``BUNIT``, if it is a flux density (``nJy``, ``nanomaggy``, ``erg / (s cm2 Hz)``) or a surface brightness
      (``MJy/sr``), which is multiplied by the area of a pixel;
    - an AB zero point of the header: ``MAGZERO``, ``MAGZPT``, ``ZP``, ``ZEROPOINT``, ``PHOTZP`` and the like,
      ``FLUXMAG0``, or ``PHOTFLAM`` with ``PHOTPLAM`` (-2.5 log10 PHOTFLAM - 5 log10 PHOTPLAM - 2.408). It is taken as
      that of one unit of the image. Where ``BUNIT`` says counts and there is an exposure time, the zero point could
      also be that of counts per second: then you must say which.

    Parameters
    ----------
    source : str, path-like, bytes or `~astropy.io.fits.HDUList`
        A FITS file, compressed or not; its path, URL (needs the extra ``remote``), content, or open HDUs.
    band : str, optional
        Name of the band, for ``meta``; with ``survey``, one of its bands or their aliases, and not another one than the
        cards ``FILTER``, ``FILTER1``, ``FILTER2`` and ``BAND`` name.
    survey : `~rosetta.Survey`, optional
        The survey of the image.
    ext : str, int or tuple of (str, int), optional
        EXTNAME, number (0: primary), or EXTNAME and EXTVER of the image. Default: the first image, if it is not called
        like a mask, an uncertainty or a PSF, and no other image has its name.
    plane : int, optional
        Which plane of a cube to read (0-based; the last axis counts fastest), also from companions that are cubes.
    unit : str or `~astropy.units.Unit`, optional
        Unit of the pixels, in place of ``BUNIT``.
    zeropoint : float, "header" or None
        AB magnitude of one unit of the image; None: do not take one from the header.
    uncertainty : source, str, int or tuple, optional
        The plane with the uncertainty, in the unit of the image: an extension of the same file (name or number);
        another source; or a tuple of source and extension. Text that is no extension of the file is a path.
    uncertainty_type : {"std", "var", "ivar"}, optional
        What ``uncertainty`` holds: standard deviation (RMS, ERR), variance, or inverse variance (IVM, some WHT).
        Required with it. Pixels where it is not finite and positive are masked.
    mask : source, str, int or tuple, optional
        A plane of integers that are not 0 where pixels must not be used; given like ``uncertainty``.
    mask_bits : int, optional
        Bits of ``mask`` that count; 1 for the data-quality arrays of JWST. Default: all.
    psf : source, str, int, tuple or array, optional
        Point-spread function: two-dimensional, on the pixel grid of the image; given like ``uncertainty``, or as array.
    center : `~astropy.coordinates.SkyCoord`, optional
        Centre of the region to read; needs ``size``. Only the region leaves the disk or the server.
    size : `~astropy.units.Quantity`, optional
        Angular size of the region: one for both sides, or (ny, nx). What falls off the image is left out.

    Returns
    -------
    `~astropy.nddata.CCDData`
        Data of shape (ny, nx) in nJy, float32; `~astropy.nddata.VarianceUncertainty`, infinite where there are no
        data, or None; boolean mask (True: do not use); WCS of the region. ``meta`` holds ``file``, ``unit`` (where
        the unit comes from), ``ORIGINX`` and ``ORIGINY`` (of the first pixel in the image, 0-based), ``band`` and
        ``survey`` where they are given, and the cards ``TELESCOP`` and ``INSTRUME`` where there are any.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If ``band`` is no band of the survey, or the header names another one; if a file is damaged; if the header has
        no celestial WCS, no unit or two that differ; if a companion does not fit the image; or if the region misses
        the image. The message names the file and the remedy.
    """
    if survey is not None and not isinstance(survey, Survey):
        raise TypeError(f"survey must be a Survey, got {type(survey).__name__}")
    if (uncertainty is None) != (uncertainty_type is None) or uncertainty_type not in (None, *UNCERTAINTY_TYPES):
        raise ValueError(
            f"uncertainty_type must be 'std', 'var' or 'ivar' with an uncertainty and None without, "
            f"got {uncertainty_type!r}"
        )
    if mask_bits is not None and (type(mask_bits) is not int or not 0 < mask_bits < 2**63 or mask is None):
        raise ValueError(f"mask_bits must be a positive integer (63 bits) and needs mask, got {mask_bits!r}")
    band = _checked_band(band, survey)
    meta = {} if band is None else {"band": band}
    meta |= {} if survey is None else {"survey": survey.name}
    with open_fits(source, "source") as hdus:
        name = source_name(source)
        where = f"source: {name}"
        hdu = image_hdu(hdus, "source", ext, plane=plane)
        if ext is None:
            _check_alone(hdu, hdus, where)
        lead = _lead(hdu, plane)
        shape = hdu.shape[-2:]
        whole = celestial_wcs(hdu.header, where, shape=shape)
        slices = region(whole, shape, center, size, where)
        origin = (slices[1].start, slices[0].start)
        wcs = celestial_wcs(hdu.header, where, origin, tuple(part.stop - part.start for part in slices))
        header = hdus[0].header.copy()
        header.extend(hdu.header, update=True, strip=False)  # cards of the primary header hold for its extensions
        _check_filter(header, band, survey, where)
        pixel = photometric_unit(header, where, unit, zeropoint)
        scale = pixel.factor * (pixel_areas(wcs, wcs.pixel_shape[::-1]) if pixel.per_area else 1.0)

        data = _scaled(hdu, lead, slices, lambda values, scale: values * scale, scale)
        bad = ~np.isfinite(data)
        variance = None
        if uncertainty is not None:
            with _companion(uncertainty, "uncertainty", hdus, plane) as (other, lead, _):
                _check_unit(other.header, hdu.header, uncertainty_type, name)
                _check_fits(other, whole, "uncertainty", name)
                variance = _scaled(other, lead, slices, _VARIANCE[uncertainty_type], scale)
            usable = _usable(variance)
            variance[~usable] = np.inf
            bad |= ~usable
            if not usable.any():
                raise ValueError(
                    f"uncertainty: no pixel of {name} has a finite positive {uncertainty_type}: is it of another type?"
                )
        if mask is not None:
            with _companion(mask, "mask", hdus, plane) as (other, lead, _):
                _check_fits(other, whole, "mask", name)
                bits = native(other, np.int64, (*lead, *slices))
            bad |= (bits if mask_bits is None else bits & mask_bits) != 0
        if psf is not None:
            psf = _psf(psf, hdus, plane)
    meta |= {card: str(header[card]) for card in ("TELESCOP", "INSTRUME") if card in header}
    return CCDData(
        data,
        unit=u.nJy,
        uncertainty=None if variance is None else VarianceUncertainty(variance),
        mask=bad,
        wcs=wcs,
        psf=psf,
        meta=meta | {"file": name, "unit": pixel.source, "ORIGINX": origin[0], "ORIGINY": origin[1]},
    )


# Physical values and nJy per unit to nJy^2.
_VARIANCE = {
    "std": lambda values, scale: np.where(values > 0, values * scale, np.nan) ** 2,
    "var": lambda values, scale: values * scale * scale,
    "ivar": lambda values, scale: np.where(values > 0, scale / values * scale, np.nan),
}


def _checked_band(band, survey):
    """The band by the survey's name for it; None if it is not given."""
    if band is None:
        return None
    if not isinstance(band, str):
        raise TypeError(f"band must be a string, got {type(band).__name__}")
    if not band.strip():
        raise ValueError(f"band is {band!r}: name the band, or leave it out")
    if survey is None:
        return band
    try:
        return survey[band].name
    except ValueError as error:
        raise ValueError(f"band: {error}") from error


def _check_filter(header, band, survey, where):
    """Refuse an image whose header names other bands of the survey than the one that is read."""
    if band is None or survey is None:
        return
    said = {card: str(header[card]).strip() for card in FILTERS if card in header}
    named = {card: found for card, text in said.items() if (found := _band_of_filter(text, survey))}
    if named and band not in named.values():
        card, other = next(iter(named.items()))
        raise ValueError(
            f"{where} has {card}={said[card]!r}, which is the band {other!r} of {survey.name}, but band is {band!r}: "
            "give the image of that band, or correct one of the two"
        )


def _band_of_filter(text, survey):
    """The band of a survey that a card names, also with more after it (``r_03``, ``r DECam SDSS c0002``), or None."""
    for name in (text, re.split(r"_\d+$| ", text)[0]):
        if name in survey:
            return survey[name].name
    return None


def _psf(psf, hdus, plane):
    """The PSF, checked: an array, or an image in a file."""
    if isinstance(psf, np.ndarray):
        return checked_array(psf, "psf")
    with _companion(psf, "psf", hdus, plane) as (other, lead, name):
        return checked_array(native(other, np.float64, (*lead, slice(None), slice(None))), f"psf: {name}")


def _check_unit(header, image, kind, name):
    """The unit of an uncertainty, where both headers state one: that of the image, or its proper power."""
    own, unit = (parsed_unit(str(cards.get("BUNIT", "")).strip()) for cards in (header, image))
    if own in (None, u.dimensionless_unscaled) or unit in (None, u.dimensionless_unscaled):
        return
    if own not in (unit, unit ** {"std": 1, "var": 2, "ivar": -2}[kind]):
        raise ValueError(
            f"uncertainty: its BUNIT is {header['BUNIT']!r}, that of the image {name} {image['BUNIT']!r}: "
            "they must be in one unit, convert one of them"
        )


def _usable(variance):
    """Pixels with a finite positive variance that is no sentinel, such as the 1e15 or 1e30 of weight maps."""
    usable = np.isfinite(variance) & (variance > 0)
    sample = variance[usable][:: max(1, variance.size // 10**6)]
    return usable & (variance <= NO_WEIGHT * float(np.percentile(sample, 5))) if sample.size else usable


def _scaled(hdu, lead, slices, function, scale):
    """A section as float32, worked out block by block in double precision: squares of cgs units underflow in single."""
    rows, columns = slices
    ny, nx = rows.stop - rows.start, columns.stop - columns.start
    result = np.empty((ny, nx), np.float32)
    step = max(1, BLOCK // nx)
    for first in range(0, ny, step):
        block = slice(first, min(ny, first + step))
        values = native(hdu, np.float64, (*lead, slice(rows.start + block.start, rows.start + block.stop), columns))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            result[block] = function(values, scale if np.ndim(scale) == 0 else scale[block])
    return result


def _lead(hdu, plane):
    """The indices of a plane of a cube along its leading axes."""
    axes = hdu.shape[:-2]
    return (
        tuple(int(index) for index in np.unravel_index(plane, axes)) if plane and prod(axes) > 1 else (0,) * len(axes)
    )


def _check_alone(hdu, hdus, where):
    """Refuse to take the first image of a file whose names do not say that it is the one that is meant."""
    images = [other for other in hdus if other.is_image and other.header.get("NAXIS", 0)]
    held = ", ".join(f"{list(hdus).index(other)}: {other.name or 'unnamed'}" for other in images)
    if _BESIDE.fullmatch(hdu.name):
        raise ValueError(f"{where}: its first image is called {hdu.name}: choose one with ext= ({held})")
    if sum(other.name == hdu.name for other in images) > 1:
        raise ValueError(f"{where} holds several images called {hdu.name or 'nothing'}: choose one with ext= ({held})")


def _check_fits(hdu, wcs, argument, name):
    """Refuse a plane that has other pixels than the image, or says that they lie elsewhere."""
    shape = wcs.pixel_shape[::-1]
    if hdu.shape[-2:] != shape:
        raise ValueError(
            f"{argument}: {hdu.name or 'the plane'} is {hdu.shape[-2:]}, the image {name} is {shape} pixels: "
            "they must describe the same pixels"
        )
    check_place(wcs, hdu.header, f"{argument}: {hdu.name or 'the plane'}", f"the image {name}")


@contextmanager
def _companion(value, argument, hdus, plane):
    """A plane that belongs to the image of ``hdus``, its leading indices, and the name of its file."""
    names = {hdu.name for hdu in hdus}
    here = isinstance(value, int) or (isinstance(value, str) and value.strip().upper() in names)
    if isinstance(value, tuple):
        here = isinstance(value[0], str) and value[0].strip().upper() in names and isinstance(value[1], int)
    if here:
        opened, ext = nullcontext(hdus), value
    else:
        source, ext = value if isinstance(value, tuple) else (value, None)
        if isinstance(source, str) and "://" not in source and not Path(source).exists():
            held = ", ".join(sorted(names))
            raise ValueError(
                f"{argument}: {source!r} is neither a file nor an extension of {source_name(hdus)} (it holds {held})"
            )
        opened = open_fits(source, argument)
    with opened as others:
        hdu = image_hdu(others, argument, ext, plane=0)
        if prod(hdu.shape[:-2]) > 1:  # a cube, of which the plane is that of the image
            hdu = image_hdu(others, argument, ext, plane=plane)
        yield hdu, _lead(hdu, plane), source_name(others)
