# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A survey of one's own in a TOML file: what `Survey` holds, and how its FITS files are laid out."""

import tomllib
from dataclasses import dataclass

import astropy.units as u
import numpy as np

from ..pair import SIDES
from ..surveys import Band, Survey
from ._fits import as_path
from .image import UNCERTAINTY_TYPES, read_image

__all__ = ["SurveyFile", "read_survey", "read_survey_file"]


def _number(value):
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError("must be a number")
    return float(value)


def _positive(unit):
    def quantity(value):
        if not _number(value) > 0:
            raise ValueError(f"must be a positive number ({unit})")
        return value * unit

    return quantity


def _text(value):
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be text")
    return value


def _texts(value):
    if not isinstance(value, list):
        raise ValueError('must be a list of texts, like ["BAD", "SAT"]')
    return tuple(_text(item) for item in value)


def _whole(value):
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number")
    return value


def _one_of(*words):
    def word(value):
        if value not in words:
            raise ValueError(f"must be one of {', '.join(map(repr, words))}")
        return value

    return word


def _extension(value):
    return value if isinstance(value, int) and not isinstance(value, bool) else _text(value)


# Key -> how its value is read; the first ones, as many as stated, are required.
_SURVEY = (3, {
    "name": _text, "side": _one_of(*SIDES), "pixel_scale": _positive(u.arcsec), "bad_planes": _texts,
    "saturation": _number,
})  # fmt: skip
_BAND = (5, {
    "name": _text, "pivot": _positive(u.nm), "width": _positive(u.nm), "psf_fwhm": _positive(u.arcsec),
    "depth": _number, "aliases": _texts, "sky": _number, "native_pixel": _positive(u.arcsec), "zeropoint": _number,
})  # fmt: skip
_FILES = (0, {
    "ext": _extension, "plane": _whole, "unit": _text, "uncertainty": _extension,
    "uncertainty_type": _one_of(*UNCERTAINTY_TYPES), "mask": _extension, "mask_bits": _whole, "psf": _extension,
})  # fmt: skip


@dataclass(frozen=True)
class SurveyFile:
    """What a survey file holds.

    Parameters
    ----------
    survey : `~rosetta.Survey`
    side : {"ground", "space"}
    zeropoints : dict of str to float
        AB magnitude of one unit of the images, for bands that have one.
    files : dict
        How the FITS files are laid out: arguments of `~rosetta.io.read_image`.
    """

    survey: Survey
    side: str
    zeropoints: dict
    files: dict

    def read(self, source, band, *, center=None, size=None):
        """One band, as `~rosetta.io.read_image` reads it with what this file says.

        Parameters
        ----------
        source : str, path-like, bytes or `~astropy.io.fits.HDUList`
        band : str
        center : `~astropy.coordinates.SkyCoord`, optional
        size : `~astropy.units.Quantity`, optional

        Returns
        -------
        `~astropy.nddata.CCDData`
        """
        zeropoint = self.zeropoints.get(self.survey[band].name, "header")
        return read_image(
            source, band=band, survey=self.survey, zeropoint=zeropoint, center=center, size=size, **self.files
        )


def read_survey(path):
    """Read a survey from a TOML file.

    .. code-block:: toml

        name = "MyCam"
        side = "ground"            # or "space"
        pixel_scale = 0.263        # arcsec
        bad_planes = ["BAD"]       # optional, like saturation (AB magnitude)

        [[bands]]
        name = "g"
        pivot = 473                # nm
        width = 150                # nm
        psf_fwhm = 1.1             # arcsec
        depth = 24.7               # AB magnitude, 5 sigma, point source
        aliases = ["DECam_g"]      # optional, like sky (AB per square arcsec), native_pixel (arcsec)
        zeropoint = 30.0           # optional: AB magnitude of one unit of the images

        [files]                    # optional: how ``rosetta run`` reads the FITS files, see `read_image`
        ext = "SCI"
        uncertainty = "ERR"
        uncertainty_type = "std"
        mask = "DQ"
        mask_bits = 1

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    `~rosetta.Survey`
        Bands in order of pivot wavelength.

    Raises
    ------
    ValueError
        If the file is not TOML, a key is missing, unknown or has a value that cannot be; the message names the file,
        the key and the remedy.
    """
    return read_survey_file(path).survey


def read_survey_file(path):
    """Read a survey with the side it is on and the layout of its files, as `read_survey` describes.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    `SurveyFile`
    """
    path = as_path(path, "path")
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not a TOML file: {error}") from error
    rows, files = content.pop("bands", None), content.pop("files", {})
    values = _checked(content, _SURVEY, path.name, "", also=("bands", "files"))
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path.name} has no bands: add a table [[bands]] for each")
    if not isinstance(files, dict):
        raise ValueError(f"{path.name}: files must be a table: write [files]")
    rows = [_checked(row, _BAND, path.name, f"band {row.get('name', k + 1)!r}: ") for k, row in enumerate(rows)]
    files = _checked(files, _FILES, path.name, "files: ")
    for one, other in (("uncertainty", "uncertainty_type"), ("uncertainty_type", "uncertainty"), ("mask_bits", "mask")):
        if one in files and other not in files:
            raise ValueError(f"{path.name}: files: {one} needs {other}: add it")
    zeropoints = {row["name"]: row.pop("zeropoint") for row in rows if "zeropoint" in row}
    if zeropoints and "unit" in files:
        raise ValueError(f"{path.name}: files: unit and the zeropoint of a band say the same: remove one")
    side = values.pop("side")
    try:
        bands = tuple(sorted((Band(**row) for row in rows), key=lambda band: band.pivot))
        survey = Survey(bands=bands, **values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    names = [name for band in survey.bands for name in (band.name, *band.aliases)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path.name}: {twice[0]!r} names two bands or is given twice: rename one")
    return SurveyFile(survey, side, zeropoints, files)


def _checked(table, known, file, where, also=()):
    """The values of a table, read key by key."""
    n_required, readers = known
    unknown = sorted(set(table) - set(readers))
    if unknown:
        keys = ", ".join([*readers, *also])
        raise ValueError(f"{file}: {where}unknown key {unknown[0]!r}: use {keys}")
    missing = [key for key in list(readers)[:n_required] if key not in table]
    if missing:
        raise ValueError(f"{file}: {where}{missing[0]} is missing: add it")
    values = {}
    for key, value in table.items():
        try:
            values[key] = readers[key](value)
        except ValueError as error:
            raise ValueError(f"{file}: {where}{key} = {value!r} {error}") from error
    return values
