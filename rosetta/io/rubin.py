# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Rubin images: Data Preview 1 ``deep_coadd`` and ``visit_image`` FITS files, one band per file."""

import re
import warnings

import astropy.units as u
import numpy as np
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.utils.exceptions import AstropyUserWarning

from ..surveys import RUBIN
from ._fits import as_path, celestial_wcs, image_hdu, native, open_fits

__all__ = ["read", "read_bands"]

# Rubin's physical filters are a band and a serial number: r_03 (LSSTComCam), r_57 (LSSTCam).
_FILTER = re.compile(r"([ugrizy])(_\d+)?")


def read(path):
    """Read one Rubin image.

    The file holds the extensions ``IMAGE``, ``MASK`` and ``VARIANCE``, tile-compressed or not; the
    archive tables behind them are ignored. Everything is taken from the headers:

    - the band from ``BAND`` or ``FILTER`` (``r`` or a physical filter such as ``r_03``);
    - the unit from ``BUNIT``, converted to nJy (AB zero point 31.4);
    - the mask planes by name from the ``MP_<NAME>`` cards, since their bit numbers differ from file
      to file. A pixel is masked where a plane of ``RUBIN.bad_planes`` is set (``NO_DATA`` pixels may
      hold plausible fluxes), where the image is not finite, or where the variance is not positive;
    - the WCS from the ``IMAGE`` header, which already refers to the pixels of this file. ``LTV1`` and
      ``LTV2`` only say where the file lies in its tract: they go to ``meta`` and move nothing.

    DP1 keeps its PSF model in archive tables that only the Rubin pipelines can evaluate, so ``psf``
    is None unless the file has an image extension named ``PSF``: evaluate the model at your position
    and set ``.psf``, else the survey's nominal PSF is used and flagged.

    Parameters
    ----------
    path : str or path-like
        A FITS file, compressed or not.

    Returns
    -------
    `~astropy.nddata.CCDData`
        Data of shape (ny, nx) in nJy, float32; `~astropy.nddata.VarianceUncertainty`, infinite
        where there is no variance; boolean mask (True: do not use). ``meta`` holds ``band``,
        ``survey``, ``filter``, ``file``, ``ORIGINX`` and ``ORIGINY`` (of the first pixel in the tract) and
        ``planes`` (the bit of each mask plane: "BAD=0 SAT=1 ...").

    Raises
    ------
    TypeError
        If ``path`` is no path.
    ValueError
        If the file is truncated or not FITS, lacks one of the three extensions, the band, the unit,
        the mask-plane cards or a celestial WCS, or if their shapes differ.

    Warns
    -----
    `~astropy.utils.exceptions.AstropyUserWarning`
        If the WCS is TAN-SIP, as in a visit image: there it is an approximation of the full model.
    """
    path = as_path(path, "path")
    with open_fits(path, "path") as hdus:
        image = image_hdu(hdus, "path", "IMAGE")
        mask = image_hdu(hdus, "path", "MASK")
        variance = image_hdu(hdus, "path", "VARIANCE")
        header = hdus[0].header.copy()
        header.extend(image.header, update=True, strip=False)
        filter_name, band = _band(header, path)
        scale = _nanojansky(header, path)
        planes = _mask_planes(mask.header, path)
        wcs = celestial_wcs(image.header, f"path: {path.name}")

        data = native(image, np.float32)
        bits = native(mask, np.int64)
        var = native(variance, np.float32)
        has_psf = any(hdu.is_image and hdu.name == "PSF" for hdu in hdus)
        psf = native(image_hdu(hdus, "path", "PSF"), np.float64) if has_psf else None
    if not data.shape == bits.shape == var.shape:
        raise ValueError(
            f"path: IMAGE {data.shape}, MASK {bits.shape} and VARIANCE {var.shape} of {path.name} "
            "have different shapes; they must describe the same pixels"
        )
    if wcs.sip is not None:
        warnings.warn(
            f"{path.name}: the TAN-SIP WCS of a Rubin visit image approximates the full model; "
            "positions may be off by some milliarcseconds",
            AstropyUserWarning,
            stacklevel=2,
        )

    bad = sum(1 << planes[name] for name in RUBIN.bad_planes if name in planes)
    usable = np.isfinite(var) & (var > 0)
    return CCDData(
        data * np.float32(scale),
        unit=u.nJy,
        uncertainty=VarianceUncertainty(np.where(usable, var * np.float32(scale**2), np.float32(np.inf))),
        mask=(bits & bad != 0) | ~np.isfinite(data) | ~usable,
        wcs=wcs,
        psf=psf,
        meta={
            "band": band,
            "survey": RUBIN.name,
            "filter": filter_name,
            "file": path.name,
            "ORIGINX": -int(header.get("LTV1", 0)),
            "ORIGINY": -int(header.get("LTV2", 0)),
            "planes": " ".join(f"{name}={bit}" for name, bit in planes.items()),
        },
    )


def read_bands(paths):
    """Read several Rubin images of one piece of sky, one file per band.

    Parameters
    ----------
    paths : iterable of str or path-like
        FITS files as accepted by `read`.

    Returns
    -------
    dict
        Band name to `~astropy.nddata.CCDData`, in order of wavelength: the ``ground`` of a
        `~rosetta.SkyPair`.

    Raises
    ------
    ValueError
        If two files hold the same band, and whenever `read` raises.
    """
    found = {}
    for path in paths:
        image = read(path)
        band = image.meta["band"]
        if band in found:
            raise ValueError(
                f"paths: {found[band].meta['file']} and {image.meta['file']} both hold band {band!r}; "
                "give one file per band"
            )
        found[band] = image
    return {band: found[band] for band in RUBIN.band_names if band in found}


def _band(header, path):
    for key in ("BAND", "FILTER"):
        match = _FILTER.fullmatch(str(header.get(key, "")).strip())
        if match:
            return str(header.get("FILTER", match[0])).strip(), match[1]
    raise ValueError(
        f"path: {path.name} names no Rubin band: BAND={header.get('BAND')!r}, "
        f"FILTER={header.get('FILTER')!r}; one of them must be like 'r' or 'r_03'"
    )


def _nanojansky(header, path):
    text = str(header.get("BUNIT", "")).strip()
    if not text:
        raise ValueError(f"path: {path.name} has no BUNIT card; set it to the unit of IMAGE, such as nJy")
    try:
        unit = u.Unit(text)
        if not isinstance(unit, u.UnitBase):
            raise u.UnitConversionError("it is logarithmic")
        return unit.to(u.nJy)
    except (ValueError, u.UnitConversionError) as error:
        raise ValueError(
            f"path: BUNIT {text!r} of {path.name} cannot be converted to nJy; calibrate the image first"
        ) from error


def _mask_planes(header, path):
    # HIERARCH is stripped by astropy: MP_BAD and HIERARCH MP_NO_DATA both read as MP_<NAME>.
    planes = {key[3:]: int(value) for key, value in header.items() if key.startswith("MP_")}
    for name, bit in planes.items():
        if not 0 <= bit < 64:
            raise ValueError(f"path: MP_{name}={bit} in {path.name} is no bit of a mask: repair the header")
    if not planes:
        raise ValueError(
            f"path: the MASK of {path.name} has no MP_<NAME> cards, so its bits have no meaning; "
            "write it with the cards the Rubin pipelines give it"
        )
    return planes
