# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A `~rosetta.SkyPair` in one multi-extension FITS file, and back."""

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS

from .. import surveys as _surveys
from ..files import atomic_write
from ..flags import Flag
from ..pair import SIDES, SkyPair
from ._fits import as_path, celestial_wcs, native, open_fits

__all__ = ["read", "write"]

FORMAT = 1
_KNOWN = {s.name: s for s in vars(_surveys).values() if isinstance(s, _surveys.Survey)}


def write(pair, path):
    """Write a pair to one FITS file, without loss.

    The primary header names the surveys. Per band there are the extensions ``SCI_<band>`` (nJy),
    ``VAR_<band>`` (nJy^2; absent where the noise was measured on the image, as it is again on reading),
    ``MASK_<band>`` (1: do not use) and ``PSF_<band>`` (absent where none was given). ``EXTVER`` is 1 on the ground and
    2 in space, because FITS readers do not tell ``y`` from ``Y``. ``meta`` of the images is not kept.

    Parameters
    ----------
    pair : `~rosetta.SkyPair`
    path : str or path-like
        Replaced if it exists.

    Raises
    ------
    TypeError
        If ``pair`` is not a pair.
    ValueError
        If a WCS or a survey cannot be described in such a file.
    """
    if not isinstance(pair, SkyPair):
        raise TypeError(f"pair must be a SkyPair, got {type(pair).__name__}")
    path = as_path(path, "path")
    primary = fits.PrimaryHDU()
    primary.header["RSTFMT"] = (FORMAT, "rosetta pair file, format version")
    for side, survey in zip(SIDES, pair.surveys, strict=True):
        if _KNOWN.get(survey.name) != survey:
            raise ValueError(
                f"pair has the {side} survey {survey.name!r}, which does not ship with rosetta: "
                f"a pair file can name only {', '.join(_KNOWN)}"
            )
        primary.header[side.upper()] = (survey.name, f"survey of the {side} side")
    hdus = fits.HDUList([primary])
    for side, band, image in pair.images():
        hdus.extend(_extensions(side, band, image, pair.flags[band]))
    with atomic_write(path) as temporary:
        hdus.writeto(temporary)


def _extensions(side, band, image, flags):
    wcs = image.wcs
    if not isinstance(wcs, WCS) or wcs.cpdis1 is not None or wcs.det2im1 is not None:
        raise ValueError(
            f"pair: the WCS of {side}[{band!r}] is not a plain FITS WCS (TAN, SIP, PV), the only one a pair file "
            "can hold: fit one first, for instance with astropy.wcs.utils.fit_wcs_from_points"
        )
    header = wcs.to_header(relax=True)
    header["BUNIT"] = "nJy"
    header["BAND"] = band
    planes = [("SCI", image.data, header)]
    if not flags & Flag.VARIANCE_ESTIMATED:  # measured again on reading
        planes.append(("VAR", image.uncertainty.array, None))
    planes.append(("MASK", image.mask.astype(np.uint8), None))
    for name, array, head in planes:
        # GZIP_2 is lossless, floats included.
        hdu = fits.CompImageHDU(array, header=head, name=f"{name}_{band}", compression_type="GZIP_2", quantize_level=0)
        hdu.ver = 1 + SIDES.index(side)
        yield hdu
    if image.psf is not None:
        yield fits.ImageHDU(np.asarray(image.psf), name=f"PSF_{band}", ver=1 + SIDES.index(side))


def read(path):
    """Read a pair written by `write` (or by ``rosetta simulate --pair``).

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    `~rosetta.SkyPair`

    Raises
    ------
    ValueError
        If the file is truncated, not FITS, not a pair file, or of a newer format.
    """
    path = as_path(path, "path")
    with open_fits(path, "path") as hdus:
        header = hdus[0].header
        version = header.get("RSTFMT")
        if version is None:
            raise ValueError(
                f"path: {path.name} is not a rosetta pair file (no RSTFMT card): read survey files with "
                "rosetta.io.rubin and rosetta.io.euclid"
            )
        if not isinstance(version, int):
            raise ValueError(f"path: {path.name} has pair format {version!r}: its header is damaged")
        if version > FORMAT:
            raise ValueError(f"path: {path.name} has pair format {version}, newer than {FORMAT}: upgrade astro-rosetta")
        found = {(hdu.name, hdu.ver): hdu for hdu in hdus[1:]}
        sides = {side: _side(found, 1 + k, path) for k, side in enumerate(SIDES)}
        surveys = []
        for side in SIDES:
            name = header.get(side.upper())
            if name not in _KNOWN:
                known = ", ".join(_KNOWN)
                raise ValueError(f"path: {path.name} names the unknown {side} survey {name!r} (known: {known})")
            surveys.append(_KNOWN[name])
        return SkyPair(sides["ground"] or None, sides["space"] or None, surveys=tuple(surveys))


def _side(found, version, path):
    images = {}
    for (name, ver), hdu in found.items():
        if ver != version or not name.startswith("SCI_"):
            continue
        where = f"path: {path.name}[{name}]"
        parts = {part: found.get((name.replace("SCI", part, 1), ver)) for part in ("VAR", "MASK", "PSF")}
        uncertainty, mask, psf = None, None, None
        if parts["VAR"] is not None:
            uncertainty = VarianceUncertainty(native(parts["VAR"], np.float32), unit=u.nJy**2)
        if parts["MASK"] is not None:
            mask = native(parts["MASK"], bool)
        if parts["PSF"] is not None:
            psf = native(parts["PSF"], np.float64)
        images[hdu.header["BAND"]] = NDData(
            native(hdu, np.float32),
            uncertainty=uncertainty,
            mask=mask,
            psf=psf,
            unit=u.nJy,
            wcs=celestial_wcs(hdu.header, where),
            meta={"file": path.name},
        )
    return images
