# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Euclid MER mosaics: science, RMS and FLAG are separate files, one band and tile each."""

import logging
import re
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.nddata import CCDData, VarianceUncertainty

from ..surveys import EUCLID, RUBIN
from ._fits import as_path, celestial_wcs, image_hdu, native, open_fits
from ._wcs import region

__all__ = ["read", "read_bands"]

log = logging.getLogger("rosetta")

# MER also delivers the ground images of its area, resampled to the grid of VIS.
_GROUND_FILTER = re.compile(r"(DECAM|DES|LSST|MEGACAM|HSC|PANSTARRS)[_-]([ugrizy])", re.IGNORECASE)
# The product names of MER, e.g. EUC_MER_MOSAIC-NIR-Y-RMS_TILE102018211-...fits
_PRODUCT = re.compile(r"EUC_MER_(BGSUB-)?MOSAIC-([A-Z]+(?:-[A-Z])?)(?:-(RMS|FLAG))?_(TILE\d+)", re.IGNORECASE)
# Bit 0 of the VIS and NIR flag maps, INVALID, gathers every condition under which a pixel must not
# be used (Euclid data product description, "VIS flag map"); the other bits differ by instrument.
_INVALID = 1
_NO_RMS = 1e10


def read(science, rms=None, flag=None, psf=None, *, center=None, size=None):
    """Read one band of a Euclid MER mosaic, or a region of it.

    Only the region leaves the disk, so a cutout of a 1.5 GB mosaic costs no more than its own
    pixels. Fluxes are ``data * 10**((31.4 - MAGZERO) / 2.5)`` nJy with the zero point of the header,
    which differs by band and release. The mosaics are resampled: noise is correlated between
    neighbouring pixels, and the RMS map does not say so.

    Parameters
    ----------
    science : str or path-like
        The background-subtracted mosaic, ``EUC_MER_BGSUB-MOSAIC-*.fits``.
    rms : str or path-like, optional
        ``EUC_MER_MOSAIC-*-RMS_*.fits``, in the unit of ``science``. Values above 1e10, not positive
        or not finite mean no data: those pixels are masked. Without it there is no uncertainty and
        nothing says where the mosaic is empty.
    flag : str or path-like, optional
        ``EUC_MER_MOSAIC-*-FLAG_*.fits``; pixels with bit 0 (INVALID) are masked.
    psf : str, path-like or `~numpy.ndarray`, optional
        Point-spread function at this place: two-dimensional, on the pixel grid of ``science``.
    center : `~astropy.coordinates.SkyCoord`, optional
        Centre of the region to read; needs ``size``.
    size : `~astropy.units.Quantity`, optional
        Angular size of the region: one for both sides, or (ny, nx). What falls off the mosaic is
        left out.

    Returns
    -------
    `~astropy.nddata.CCDData`
        Data of shape (ny, nx) in nJy, float32; `~astropy.nddata.VarianceUncertainty`, infinite
        where there are no data, or None; boolean mask (True: do not use); WCS of the region.
        ``meta`` holds ``band``, ``survey``, ``filter``, ``file``, ``magzero``, ``ORIGINX`` and
        ``ORIGINY`` (of the first pixel in the mosaic, 0-based).

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a file is truncated or not FITS, lacks ``MAGZERO``, a known ``FILTER`` or a celestial
        WCS, if the shapes differ, or if the region misses the mosaic.
    """
    return _read((science, None), _with(rms), _with(flag), _with(psf), center, size)


def read_bands(paths, *, center=None, size=None):
    """Read several Euclid bands of one tile: MER product files, or multi-extension cutouts.

    Files named like MER products are grouped by band and tile, and RMS and FLAG maps go to their
    science image. In a file with extensions ``<FILTER>_BGSUB``, every such extension is a band, with
    ``<FILTER>_RMS``, ``<FILTER>_FLAG`` and ``<FILTER>_PSF`` beside it where they exist. Any other
    file must be a science image. Which band an image shows is always read from its header. MER files
    of other kinds (catalogues, background models) are skipped with a log message.

    Parameters
    ----------
    paths : iterable of str or path-like
        The files, in any order.
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
    ValueError
        If a band comes twice, an RMS or FLAG map has no science image, and whenever `read` raises.
    """
    found = {}
    for parts in _group(paths):
        image = _read(*(parts.get(role) for role in ("SCIENCE", "RMS", "FLAG", "PSF")), center, size)
        band = image.meta["band"]
        if band in found:
            raise ValueError(
                f"paths: {found[band].meta['file']} and {image.meta['file']} both hold band {band!r}; "
                "give one tile, one file per band"
            )
        found[band] = image
    order = EUCLID.band_names + RUBIN.band_names
    return {band: found[band] for band in order if band in found}


def _with(path):
    return None if path is None else (path, None)


def _read(science, rms, flag, psf, center, size):
    """`read`, with each file given as (path, extension name or None for the first image)."""
    path = as_path(science[0], "science")
    with open_fits(path, "science") as hdus:
        hdu = image_hdu(hdus, "science", science[1])
        header = hdu.header
        shape = hdu.shape[-2:]
        filter_name, band, survey = _band(header, path)
        magzero = _magzero(header, path)
        where = f"science: {path.name}"
        slices = region(celestial_wcs(header, where), shape, center, size, where)
        origin = (slices[1].start, slices[0].start)
        data = native(hdu, np.float32, slices)
        wcs = celestial_wcs(header, where, shift=origin, shape=data.shape)

    scale = np.float32(10 ** ((31.4 - magzero) / 2.5))
    mask = ~np.isfinite(data)
    uncertainty = None
    if rms is not None:
        sigma = _plane(rms, "rms", shape, np.float32, slices)
        usable = np.isfinite(sigma) & (sigma > 0) & (sigma <= _NO_RMS)
        mask |= ~usable
        # Sentinels would overflow when squared.
        variance = np.square(np.where(usable, sigma * scale, np.float32(np.inf)))
        uncertainty = VarianceUncertainty(variance)
    if flag is not None:
        mask |= (_plane(flag, "flag", shape, np.int64, slices) & _INVALID) != 0
    return CCDData(
        data * scale,
        unit=u.nJy,
        uncertainty=uncertainty,
        mask=mask,
        wcs=wcs,
        psf=_psf(psf),
        meta={
            "band": band,
            "survey": survey,
            "filter": filter_name,
            "file": path.name,
            "magzero": magzero,
            "ORIGINX": origin[0],
            "ORIGINY": origin[1],
        },
    )


def _group(paths):
    """Yield, per band, a dict of role ("SCIENCE", "RMS", "FLAG", "PSF") to (path, extension)."""
    products = {}
    for value in paths:
        path = as_path(value, "paths")
        match = _PRODUCT.match(path.name)
        if match:
            background_subtracted, token, role, tile = match.groups()
            if not background_subtracted and role is None:
                log.info("skipping %s: the mosaic before background subtraction", path.name)
                continue
            role = (role or "SCIENCE").upper()
            group = products.setdefault((token.upper(), tile.upper()), {})
            if role in group:
                raise ValueError(f"paths: {group[role][0].name} and {path.name} are both the {role} of one band")
            group[role] = (path, None)
        elif path.name.upper().startswith("EUC_MER_"):
            log.info("skipping %s: not a mosaic, RMS or FLAG product", path.name)
        else:
            yield from _extensions(path)
    for (token, tile), group in products.items():
        if "SCIENCE" not in group:
            orphan = next(iter(group.values()))[0].name
            raise ValueError(
                f"paths: {orphan} has no science image beside it; add EUC_MER_BGSUB-MOSAIC-{token}_{tile}*.fits"
            )
        yield group


def _extensions(path):
    with open_fits(path, "paths") as hdus:
        names = [hdu.name for hdu in hdus]
    bands = [name.removesuffix("_BGSUB") for name in names if name.endswith("_BGSUB")]
    if not bands:
        yield {"SCIENCE": (path, None)}
    for band in bands:
        roles = {"SCIENCE": "BGSUB", "RMS": "RMS", "FLAG": "FLAG", "PSF": "PSF"}
        yield {role: (path, f"{band}_{end}") for role, end in roles.items() if f"{band}_{end}" in names}


def _plane(part, argument, shape, dtype, slices):
    path = as_path(part[0], argument)
    with open_fits(path, argument) as hdus:
        hdu = image_hdu(hdus, argument, part[1])
        if hdu.shape[-2:] != shape:
            raise ValueError(
                f"{argument}: {path.name} is {hdu.shape[-2:]}, science is {shape} pixels; "
                "they must come from the same tile and band"
            )
        return native(hdu, dtype, slices)


def _psf(part):
    if part is None:
        return None
    if isinstance(part[0], np.ndarray):
        psf = np.array(part[0], dtype=np.float64)
    else:
        path = as_path(part[0], "psf")
        with open_fits(path, "psf") as hdus:
            psf = native(image_hdu(hdus, "psf", part[1]), np.float64)
    if psf.ndim != 2:
        raise ValueError(f"psf must be a two-dimensional image, got {psf.ndim} dimensions; pick one stamp")
    return psf


def _band(header, path):
    text = str(header.get("FILTER", "")).strip()
    try:
        return text, EUCLID[text].name, EUCLID.name
    except ValueError:
        match = _GROUND_FILTER.fullmatch(text)
        if match:
            return text, match[2].lower(), match[1].upper()
    raise ValueError(
        f"science: FILTER={header.get('FILTER')!r} of {Path(path).name} is no band known here; it must be "
        "VIS, NIR_Y, NIR_J, NIR_H, or a ground filter such as DECAM_g"
    )


def _magzero(header, path):
    value = header.get("MAGZERO")
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(
            f"science: MAGZERO={value!r} in {path.name}; without the AB zero point of the header there are no fluxes"
        )
    return float(value)
