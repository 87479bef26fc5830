# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Euclid MER mosaics: science, RMS, FLAG and PSF are separate files, one band and tile each; and cutouts of them."""

import warnings
from contextlib import ExitStack

import astropy.units as u
import numpy as np
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.utils.exceptions import AstropyUserWarning

from ..arithmetic import plain_arithmetic
from ..images.psf import PSF
from ..surveys import EUCLID, RUBIN
from ._euclid_names import band_of, contents, plane, product
from ._euclid_psf import read_psf
from ._fits import celestial_wcs, image_hdu, native, open_fits, source_name
from ._image import SurveyImage
from ._wcs import check_place, region

__all__ = ["read", "read_bands"]

# Bit 0 of the VIS and NIR flag maps, INVALID, gathers every condition under which a pixel must not
# be used (Euclid data product description, "VIS flag map"); the other bits differ by instrument.
_INVALID = 1
_NO_RMS = 1e10


@plain_arithmetic
def read(science, rms=None, flag=None, psf=None, *, center=None, size=None):
    """Read one band of a Euclid MER mosaic or cutout, or a region of it.

    Only the region leaves the disk, so a cutout of a 1.5 GB mosaic costs no more than its own
    pixels. Fluxes are ``data * 10**((31.4 - MAGZERO) / 2.5)`` nJy with the zero point of the header,
    which differs by band and release. The mosaics are resampled: noise is correlated between
    neighbouring pixels, and the RMS map does not say so.

    Parameters
    ----------
    science : str, path-like, bytes or `~astropy.io.fits.HDUList`
        The background-subtracted mosaic, ``EUC_MER_BGSUB-MOSAIC-*.fits``, or a file with extensions
        of one band as in `read_bands`, whose own planes are used where no others are given. A path, a
        URL (of which only the region is fetched), the content of a file, or open HDUs.
    rms : as ``science``, optional
        ``EUC_MER_MOSAIC-*-RMS_*.fits``, in the unit of ``science``. Values above 1e10, not positive
        or not finite mean no data: those pixels are masked. Without it there is no uncertainty and
        nothing says where the mosaic is empty.
    flag : as ``science``, optional
        ``EUC_MER_MOSAIC-*-FLAG_*.fits``; pixels with bit 0 (INVALID) are masked.
    psf : as ``science``, or `~numpy.ndarray`, optional
        Point-spread function on the pixel grid of ``science``. An image with odd sides: the same
        everywhere. ``EUC_MER_GRID-PSF-*.fits``: at nodes of its grid, at most 256 pixels apart, and
        interpolated between them; a blank stamp is replaced by the nearest. ``EUC_MER_CATALOG-PSF-*.fits``:
        at nodes at most 256 pixels apart, at each the mean of the four nearest stamps, weighted by
        the inverse square of their distance (softened at 32 pixels). Only stamps that are needed
        are read. Their layout was taken from SourceXtractor++ and from public programs that read Q1
        files, not from the files themselves; a file that does not have it is refused.
    center : `~astropy.coordinates.SkyCoord`, optional
        Centre of the region to read; needs ``size``.
    size : `~astropy.units.Quantity`, optional
        Angular size of the region: one for both sides, or (ny, nx). What falls off the mosaic is
        left out.

    Returns
    -------
    `~astropy.nddata.CCDData`
        Data of shape (ny, nx) in nJy, float32; `~astropy.nddata.VarianceUncertainty`, infinite
        where there are no data, or None; boolean mask (True: do not use); WCS of the region. ``psf`` is
        an array or None; of a PSF product the mean over the region, and ``psf_anywhere`` the
        `~rosetta.PSF` of every place, which a `~rosetta.SkyPair` uses.
        ``meta`` holds ``band``, ``survey``, ``filter``, ``file``, ``magzero``, ``ORIGINX`` and
        ``ORIGINY`` (of the first pixel in the mosaic, 0-based).

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a file is truncated or not FITS, lacks ``MAGZERO``, a known ``FILTER`` or a celestial
        WCS; if it holds several bands; if shapes, bands, zero points or places of the files differ;
        or if the region misses the mosaic.

    Warns
    -----
    `~astropy.utils.exceptions.AstropyUserWarning`
        If the science file has extensions that are not read; the message names them.
    """
    with open_fits(science, "science") as hdus:
        bands, unread = contents(hdus, "science")
        if len(bands) > 1:
            raise ValueError(
                f"science: {source_name(hdus)} holds {len(bands)} bands ({', '.join(bands)}): read them all with "
                "rosetta.io.euclid.read_bands([file])"
            )
        (token, names), *_ = bands.items()
        _warn_of(hdus, unread)
        parts = {role: (hdus, name) for role, name in names.items()}
        given = (("RMS", rms), ("FLAG", flag), ("PSF", psf))
        parts |= {role: (value, None) for role, value in given if value is not None}
        return _read(token, parts, center, size)


@plain_arithmetic
def read_bands(paths, *, center=None, size=None):
    """Read several Euclid bands of one tile: MER product files, or multi-extension cutouts.

    Files named like MER products are grouped by band and tile, and RMS, FLAG and PSF products go to
    their science image (``GRID-PSF`` before ``CATALOG-PSF``). In a file with extensions
    ``<BAND>_BGSUB`` or ``<BAND>_FLUX``, each of them is a band, with ``<BAND>_RMS``, ``<BAND>_FLAG``
    and ``<BAND>_PSF`` beside it where they exist; if a band has both, ``_BGSUB`` is read. Any other
    file must have a science image first. Which band an image shows is read from its header, and must
    agree with its name.

    Parameters
    ----------
    paths : iterable
        The files, in any order; each as ``science`` of `read`. Bytes and HDUs have no name, so they must have named
        extensions or be a science image.
    center : `~astropy.coordinates.SkyCoord`, optional
        As in `read`.
    size : `~astropy.units.Quantity`, optional
        As in `read`.

    Returns
    -------
    dict
        Band name to `~astropy.nddata.CCDData`: Euclid bands in order of wavelength, then the ground
        bands that MER resampled, which belong to the other side of a `~rosetta.SkyPair`
        (`rosetta.io.read_pair` sorts them).

    Raises
    ------
    TypeError
        If ``paths`` is one path.
    ValueError
        If a band comes twice, an RMS, FLAG or PSF file has no science image, no file holds an image,
        and whenever `read` raises.

    Warns
    -----
    `~astropy.utils.exceptions.AstropyUserWarning`
        Once per file of which something is not read: other MER products (catalogues, background
        models), and extensions that are not understood. The message names them.
    """
    if isinstance(paths, str | bytes) or not hasattr(paths, "__iter__"):
        raise TypeError(f"paths must be a list of files, got {paths!r}: put it in brackets")
    found, paths = {}, list(paths)
    for token, parts in _groups(paths):
        image = _read(token, parts, center, size)
        band = image.meta["band"]
        if band in found:
            raise ValueError(
                f"paths: {found[band].meta['file']} and {image.meta['file']} both hold band {band!r}; "
                "give one tile, one file per band"
            )
        found[band] = image
    if paths and not found:
        raise ValueError(f"paths: none of {', '.join(map(source_name, paths))} holds a Euclid image")
    order = EUCLID.band_names + RUBIN.band_names
    return {band: found[band] for band in order if band in found}


def _warn_of(source, unread, reason="not understood, or not needed"):
    if unread:
        message = f"{source_name(source)}: not read: {', '.join(unread)} ({reason})"
        warnings.warn(message, AstropyUserWarning, stacklevel=3)


def _groups(paths):
    """Yield a band token and a dict of role ("SCIENCE", "RMS", "FLAG", "PSF") to (source, extension) for each image.

    Files are open while their images are yielded, and opened once.
    """
    products = {}
    for source in paths:
        known = product(source)
        if known is None:
            with open_fits(source, "paths") as hdus:
                bands, unread = contents(hdus, "paths")
                _warn_of(hdus, unread)
                for token, names in bands.items():
                    yield token, {role: (hdus, name) for role, name in names.items()}
            continue
        role, token, tile = known
        if role is None:
            _warn_of(source, ["the file"], "a MER product that is not an image, RMS, FLAG or PSF file to measure on")
            continue
        group = products.setdefault((token, tile), {})
        if role in group:
            both = " and ".join(map(source_name, (group[role][0], source)))
            raise ValueError(f"paths: {both} are both the {role} of one band")
        group[role] = (source, None)
    for (token, tile), group in products.items():
        if "SCIENCE" not in group:
            orphan = source_name(next(iter(group.values()))[0])
            raise ValueError(
                f"paths: {orphan} has no science image beside it; add EUC_MER_BGSUB-MOSAIC-{token}_{tile}*.fits"
            )
        second = group.pop("CATALOG PSF", None)
        if second and "PSF" in group:
            _warn_of(second[0], ["the file"], "the GRID-PSF file of this band is used")
        elif second:
            group["PSF"] = second
        with ExitStack() as stack:
            for role, (source, _) in group.items():
                hdus = stack.enter_context(open_fits(source, "paths"))
                if role != "PSF":
                    _warn_of(hdus, contents(hdus, "paths")[1])
                group[role] = (hdus, None)
            yield token, group


def _read(token, parts, center, size):
    """One band, of files given as role to (source, extension name or None for the first image)."""
    source, extension = parts["SCIENCE"]
    name = source_name(source)
    where = f"science: {name}"
    with open_fits(source, "science") as hdus:
        hdu = image_hdu(hdus, "science", extension)
        header = hdu.header
        filter_name, band, survey = _band(header, token, name)
        magzero = _magzero(header, where)
        whole = celestial_wcs(header, where, shape=hdu.shape[-2:])
        slices = region(whole, hdu.shape[-2:], center, size, where)
        origin = (slices[1].start, slices[0].start)
        data = native(hdu, np.float32, slices)
        wcs = celestial_wcs(header, where, shift=origin, shape=data.shape)

    scale = np.float32(10 ** ((31.4 - magzero) / 2.5))
    beside = _Beside(band, magzero, whole, slices)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        data *= scale
        mask = ~np.isfinite(data)
        uncertainty = None
        if "RMS" in parts:
            sigma = beside.read("rms", *parts["RMS"], np.float32)
            usable = np.isfinite(sigma) & (sigma > 0) & (sigma <= _NO_RMS)
            # Sentinels would overflow when squared.
            variance = np.square(np.where(usable, sigma, np.float32(np.inf)) * scale)
            usable &= (variance > 0) & np.isfinite(variance)
            uncertainty = VarianceUncertainty(np.where(usable, variance, np.float32(np.inf)))
            mask |= ~usable
    if "FLAG" in parts:
        mask |= (beside.read("flag", *parts["FLAG"], np.int64) & _INVALID) != 0
    psf = read_psf(*parts["PSF"], band, wcs, data.shape) if "PSF" in parts else None
    kind = SurveyImage if isinstance(psf, PSF) else CCDData
    image = kind(
        data,
        unit=u.nJy,
        uncertainty=uncertainty,
        mask=mask,
        wcs=wcs,
        meta={
            "band": band,
            "survey": survey,
            "filter": filter_name,
            "file": name,
            "magzero": magzero,
            "ORIGINX": origin[0],
            "ORIGINY": origin[1],
        },
    )
    image.psf = psf
    return image


class _Beside:
    """A region of an RMS or FLAG map, after checks that it belongs to the science image."""

    def __init__(self, band, magzero, wcs, slices):
        self.band, self.magzero, self.wcs, self.slices = band, magzero, wcs, slices

    def read(self, argument, source, extension, dtype):
        """The plane of this name, as an array of the region."""
        with open_fits(source, argument) as hdus:
            hdu = plane(hdus, argument, self.band, extension)
            where = f"{argument}: {source_name(source)}"
            shape = self.wcs.pixel_shape[::-1]
            if hdu.shape[-2:] != shape:
                raise ValueError(
                    f"{where} is {hdu.shape[-2:]}, science is {shape} pixels; "
                    "they must come from the same tile and band"
                )
            if argument == "rms" and _is_number(hdu.header.get("MAGZERO")) and hdu.header["MAGZERO"] != self.magzero:
                raise ValueError(
                    f"{where} has MAGZERO={hdu.header['MAGZERO']}, science {self.magzero}: "
                    "they must come from the same tile and band"
                )
            check_place(self.wcs, hdu.header, where, "science")
            return native(hdu, dtype, self.slices)


def _band(header, token, name):
    text = str(header.get("FILTER", "")).strip()
    found, named = band_of(text), band_of(token)
    if not found:
        raise ValueError(
            f"science: FILTER={header.get('FILTER')!r} of {name} is no band known here; it must be "
            "VIS, NIR_Y, NIR_J, NIR_H, or a ground filter such as DECAM_g"
        )
    if named and named[0] != found[0]:
        raise ValueError(f"science: {name} has FILTER={text!r} in the header but {token} in the name: correct one")
    return text, *found


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _magzero(header, where):
    value = header.get("MAGZERO")
    if not _is_number(value) or not 0 < value < 50:
        raise ValueError(f"{where} has MAGZERO={value!r}: without the AB zero point of the header there are no fluxes")
    text = str(header.get("BUNIT", ""))
    try:
        unit = u.Unit(text).to(u.nJy)
    except (ValueError, TypeError, u.UnitConversionError):  # ADU/s, electrons, none: the zero point tells
        return float(value)
    if abs(unit / 10 ** ((31.4 - value) / 2.5) - 1) > 0.01:
        raise ValueError(f"{where} has BUNIT={text!r} and MAGZERO={value}, which contradict each other: correct one")
    return float(value)
