# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A `~rosetta.SkyPair` in one multi-extension FITS file, and back."""

from dataclasses import asdict

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import NDData, VarianceUncertainty

from .. import surveys as _surveys
from ..arithmetic import plain_arithmetic
from ..flags import Flag
from ..frozen_image import frozen_image
from ..images.psf import PSF
from ..images.wcs import cards_of, is_fits_wcs
from ..pair import SIDES, SkyPair
from ._fits import as_path, celestial_wcs, native
from ._store import check_format, document, document_hdu, extensions, new_path, save

__all__ = ["check_pair", "hdus_of", "pair_of", "read", "write"]

# 1 held no FLAGS and no meta, and left out variances that were measured on the image; 2 held no checksum, no list of
# what it holds and only the names of the surveys, and CELLS was called PSF_PARTS.
FORMAT = 3
_KNOWN = {s.name: s for s in vars(_surveys).values() if isinstance(s, _surveys.Survey)}


@plain_arithmetic
def write(pair, path, *, overwrite=False):
    """Write a pair to one FITS file, without loss.

    The primary header names the surveys and holds the number of extensions and a checksum of the file (card
    ``SHA256``: of all bytes, with 64 zeros in place of its value). The table ``CONTENTS`` lists the extensions, the
    table ``SURVEYS`` holds the two surveys as JSON, so that they need not be among those of `rosetta`. Per band there
    are the extensions ``SCI_<band>`` (nJy; card ``FLAGS``: what had to be assumed), ``VAR_<band>`` (nJy^2),
    ``MASK_<band>`` (1: do not use) and ``PSF_<band>`` (absent where none was given; of a PSF that varies a cell per
    plane, with the places of the cells as JSON in ``CELLS_<band>``). ``EXTVER`` is 1 on the ground and 2 in space,
    because FITS readers do not tell ``y`` from ``Y``. The table ``PAIR_META`` holds the ``meta`` of all images as
    JSON; times, quantities and positions in it keep their type. Times in a WCS (``DATE-OBS``, ``MJD-OBS``, ``MJD-AVG``
    and the like) stand in the header of ``SCI_<band>``.

    Parameters
    ----------
    pair : `~rosetta.SkyPair`
    path : str or path-like
        Compressed as a whole if it ends in ``.gz``.
    overwrite : bool, optional
        Whether to replace the file if it exists: whole, or not at all.

    Raises
    ------
    TypeError
        If ``pair`` is not a pair.
    FileExistsError
        If the file exists and ``overwrite`` is False.
    ValueError
        If a WCS cannot be described in such a file.
    OSError
        If the file cannot be written, for instance because the disk is full.
    """
    if not isinstance(pair, SkyPair):
        raise TypeError(f"pair must be a SkyPair, got {type(pair).__name__}")
    path = new_path(path, overwrite)
    save(hdus_of(pair), path)


def hdus_of(pair):
    """The HDUs of a pair file, also for files that hold more than a pair.

    Parameters
    ----------
    pair : `~rosetta.SkyPair`

    Returns
    -------
    list of HDUs
        The primary one first.
    """
    primary = fits.PrimaryHDU()
    primary.header["RSTFMT"] = (FORMAT, "rosetta pair file, format version")
    for side, survey in zip(SIDES, pair.surveys, strict=True):
        primary.header[side.upper()] = (survey.name, f"survey of the {side} side")
    hdus = [primary]
    for side, band, image in pair.images():
        hdus.extend(_extensions(side, band, image, pair.flags[band]))
    hdus.append(document_hdu("PAIR_META", {band: dict(image.meta) for _, band, image in pair.images()}))
    hdus.append(document_hdu("SURVEYS", dict(zip(SIDES, map(asdict, pair.surveys), strict=True))))
    return hdus


def _extensions(side, band, image, flags):
    wcs = image.wcs
    if not is_fits_wcs(wcs):
        raise ValueError(
            f"pair: the WCS of {side}[{band!r}] is not a plain FITS WCS (TAN, SIP, PV), the only one a pair file "
            "can hold: fit one first, for instance with astropy.wcs.utils.fit_wcs_from_points"
        )
    header = cards_of(wcs)
    header["BUNIT"] = "nJy"
    header["BAND"] = band
    header["FLAGS"] = (int(flags), "rosetta.Flag: what had to be assumed")
    planes = [
        ("SCI", image.data, header), ("VAR", image.uncertainty.array, None), ("MASK", image.mask.astype(np.uint8), None)
    ]
    for name, array, head in planes:
        # GZIP_2 is lossless, floats included.
        hdu = fits.CompImageHDU(array, header=head, name=f"{name}_{band}", compression_type="GZIP_2", quantize_level=0)
        hdu.ver = 1 + SIDES.index(side)
        yield hdu
    psf = image.psf_anywhere
    if psf is not None:
        parts = psf.parts()
        samples = np.asarray(parts.pop("samples"))  # (n_cell, k, l)
        yield fits.ImageHDU(samples[0] if len(samples) == 1 else samples, name=f"PSF_{band}", ver=1 + SIDES.index(side))
        if not psf.constant or parts["oversampling"] > 1:
            yield document_hdu(f"CELLS_{band}", parts, ver=1 + SIDES.index(side))


@plain_arithmetic
def read(path):
    """Read a pair written by `write` or ``rosetta simulate --pair``, or the one in the file of an embedding or scene.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    `~rosetta.SkyPair`

    Raises
    ------
    ValueError
        If the file is truncated, not FITS, not a pair file, of a newer format, or not as it was written.
    """
    path = as_path(path, "path")
    with extensions(path, lambda header: check_pair(header, path)) as (header, found):
        return pair_of(header, found, path)


def check_pair(header, path):
    """Refuse a file that holds no pair, or one of a newer format.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
        Primary header.
    path : `~pathlib.Path`
        For messages.

    Returns
    -------
    int
        The file's format.

    Raises
    ------
    ValueError
        If it is refused.
    """
    advice = "read survey files with rosetta.io.rubin and rosetta.io.euclid"
    return check_format(header, path, "RSTFMT", FORMAT, "pair", advice)


def pair_of(header, found, path):
    """The pair in an open file.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
        Primary header.
    found : dict
        Extensions by (EXTNAME, EXTVER).
    path : `~pathlib.Path`
        For messages.

    Returns
    -------
    `~rosetta.SkyPair`

    Raises
    ------
    ValueError
        If the file does not hold one, or a newer format of it.
    """
    version = check_pair(header, path)
    surveys = _surveys_of(header, found, path, version)
    cells = "CELLS" if version >= 3 else "PSF_PARTS"
    sides = {side: _side(found, 1 + k, cells, path) for k, side in enumerate(SIDES)}
    if version == 1:
        return SkyPair(sides["ground"] or None, sides["space"] or None, surveys=surveys)
    meta, flags = document(found, "PAIR_META"), {}
    for k, side in enumerate(SIDES):
        for band, image in sides[side].items():
            flags[band] = Flag(found[f"SCI_{band}".upper(), 1 + k].header["FLAGS"])
            if image.uncertainty is None or image.mask is None:
                raise ValueError(f"path: {path.name} has no variance or no mask of band {band!r}: write it again")
            arrays = image.data, image.uncertainty.array, image.mask
            usable = np.isfinite(arrays[0]) & np.isfinite(arrays[1]) & (arrays[1] > 0)
            if not (usable | arrays[2]).all():
                raise ValueError(f"path: {path.name} has unusable pixels in band {band!r} that are not masked")
            sides[side][band] = frozen_image(*arrays, image.wcs, meta[band], image.psf)
    return SkyPair._of_checked(sides["ground"], sides["space"], surveys, flags)


def _surveys_of(header, found, path, version):
    """The surveys of both sides: stored whole, or, in older files, by name."""
    if version >= 3:
        return tuple(_survey(**content) for content in map(document(found, "SURVEYS").get, SIDES))
    names = [header.get(side.upper()) for side in SIDES]
    if unknown := [name for name in names if name not in _KNOWN]:
        raise ValueError(f"path: {path.name} names the unknown survey {unknown[0]!r} (known: {', '.join(_KNOWN)})")
    return tuple(_KNOWN[name] for name in names)


def _survey(bands, **fields):
    return _surveys.Survey(bands=tuple(_surveys.Band(**band) for band in bands), **fields)


def _side(found, version, cells, path):
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
            slices = (slice(None),) * parts["PSF"].header["NAXIS"]
            samples = native(parts["PSF"], np.float64, slices)
            psf = PSF(samples) if samples.ndim == 2 else None
            name = name.replace("SCI", cells, 1)
            if (name, ver) in found:
                stamps = samples.reshape(-1, *samples.shape[-2:])
                psf = PSF.of_parts(stamps, **document(found, name, ver=ver))
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
