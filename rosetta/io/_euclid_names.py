# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What a Euclid file holds, from its name and the names of its extensions."""

import re

from ..surveys import EUCLID
from ._fits import image_hdu, source_name

__all__ = ["SCIENCE", "band_of", "check_band", "contents", "plane", "product"]

SCIENCE = ("BGSUB", "FLUX", "")  # endings of science extensions; of two for one band the first is read

# MER also delivers the ground images of its area, resampled to the grid of VIS. Headers name the camera (DECAM_g),
# files and extensions the camera or the survey (DES-G, CFIS_U).
_GROUND = re.compile(
    r"(DECAM|DES|LSST|LSSTCAM|MEGACAM|CFIS|HSC|WISHES|PANSTARRS|JPCAM|JEDIS)[_-]([ugrizy])", re.IGNORECASE
)
# For example EUC_MER_MOSAIC-NIR-Y-RMS_TILE102018211-ACBD03_20241018T142710.276Z_00.00.fits
_PRODUCT = re.compile(
    r"EUC_MER_(BGSUB-MOSAIC|MOSAIC|GRID-PSF|CATALOG-PSF)-([A-Z]+(?:-[A-Z])?)(?:-(RMS|FLAG))?_(TILE\d+)", re.IGNORECASE
)
_ROLE = {
    ("BGSUB-MOSAIC", None): "SCIENCE",
    ("MOSAIC", "RMS"): "RMS",
    ("MOSAIC", "FLAG"): "FLAG",
    ("GRID-PSF", None): "PSF",
    ("CATALOG-PSF", None): "CATALOG PSF",
}
_EXTENSION = re.compile(r"(.+?)(?:_(BGSUB|FLUX|RMS|FLAG|PSF))?")


def band_of(text):
    """(band, survey) named by a FILTER card or a part of a file name; None if none known here."""
    text = str(text).strip()
    try:
        return EUCLID[text.replace("-", "_")].name, EUCLID.name
    except ValueError:
        match = _GROUND.fullmatch(text)
        return (match[2].lower(), match[1].upper()) if match else None


def check_band(header, band, where):
    """Refuse a plane whose header names another band than the science image."""
    found = band_of(header.get("FILTER", ""))
    if found and found[0] != band:
        raise ValueError(f"{where} has FILTER={header['FILTER']!r}, science is {band}: give that of the same band")


def plane(hdus, argument, band, extension=None):
    """The RMS, FLAG or PSF image of a band in an open file: the extension called so, else the only image.

    Raises
    ------
    ValueError
        If there are several images and none, or more than one, is named after the band; or if its FILTER is another.
    """
    if extension is None:
        images = [hdu.name for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0)]
        ending = f"_{argument.upper()}"
        named = [n for n in images if n.endswith(ending) and (band_of(n.removesuffix(ending)) or "?")[0] == band]
        if len(images) > 1 and len(named) != 1:
            raise ValueError(
                f"{argument}: {source_name(hdus)} holds {len(images)} images ({', '.join(images)}), not one called "
                f"<BAND>{ending} for {band}: give a file with that alone"
            )
        extension = named[0] if named else None
    hdu = image_hdu(hdus, argument, extension)
    check_band(hdu.header, band, f"{argument}: {source_name(hdus)}")
    return hdu


def product(source):
    """(role, band token, tile) of a MER product, the role None if it is not read; None if it is no product."""
    try:
        name = source_name(source)
    except TypeError:  # open_fits will say so
        return None
    match = _PRODUCT.search(name)
    if match:
        kind, token, plane, tile = (part and part.upper() for part in match.groups())
        return _ROLE.get((kind, plane)), token, tile
    return (None, "", "") if "EUC_MER_" in name.upper() else None


def contents(hdus, argument):
    """The bands in one open file.

    Parameters
    ----------
    hdus : `~astropy.io.fits.HDUList`
        From `open_fits`.
    argument : str
        For messages.

    Returns
    -------
    bands : dict
        Per band token ("" for a file with one unnamed science image) the extension of each role ("SCIENCE", "RMS",
        "FLAG", "PSF"); None for the first image.
    unread : list of str
        The extensions that are not understood, or not needed.

    Raises
    ------
    ValueError
        If nothing in it is understood, or two extensions have one name.
    """
    found, unread = {}, []
    named = [(hdu.name or str(k), hdu) for k, hdu in enumerate(hdus) if k or hdu.header.get("NAXIS", 0)]
    for name, hdu in named:
        token, end = _EXTENSION.fullmatch(name).groups(default="")
        if hdu.is_image and (end or band_of(token)):
            if end in found.setdefault(token, {}):
                raise ValueError(f"{argument}: {source_name(hdus)} holds two extensions {name}: it must hold one")
            found[token][end] = hdu.header.get("FILTER", "")
        else:
            unread.append(name)
    images = [name for name, hdu in named if hdu.is_image]
    bands = {}
    for token, ends in found.items():
        science = [end for end in SCIENCE if end in ends]
        if science and (band_of(token) or band_of(ends[science[0]])):
            use = {"SCIENCE": science[0]} | {role: role for role in ("RMS", "FLAG", "PSF") if role in ends}
            bands[token] = {role: "_".join(filter(None, (token, end))) for role, end in use.items()}
            ends = set(ends) - set(use.values())
        unread += ["_".join(filter(None, (token, end))) for end in ends]
    if bands:
        return bands, unread
    if images and not found:
        return {"": {"SCIENCE": None}}, [name for name in unread if name != images[0]]
    held = ", ".join(name for name, _ in named) or "no extension"
    raise ValueError(
        f"{argument}: {source_name(hdus)} holds no Euclid image that is known here (it holds {held}): "
        "science images are called <BAND>_BGSUB or <BAND>_FLUX, as in VIS_FLUX or NIR_Y_BGSUB"
    )
