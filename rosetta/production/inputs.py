# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The files of a survey: found, and described by their headers."""

import os
import re
from pathlib import Path

import numpy as np

from ..images.wcs import cards_of
from ..io._euclid_names import band_of, contents, product
from ..io._fits import celestial_wcs, image_hdu, open_fits, source_name
from ..io._rubin_file import look
from ..surveys import EUCLID

__all__ = ["check_unchanged", "describe_euclid", "describe_rubin", "find", "tract_cards"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_FITS = re.compile(r"\.fits?(\.(gz|fz|bz2|xz))?$", re.IGNORECASE)


def find(places, option):
    """Paths and URLs of the FITS files that an option names.

    Parameters
    ----------
    places : list of str
        Folders (searched with the folders in them), URLs of such, FITS files, or text files with a path or URL per
        line, relative to the text file.
    option : str
        What names them, for messages.

    Returns
    -------
    list of str
        Absolute, each once, in order.

    Raises
    ------
    ValueError
        If a place does not exist or nothing is found.
    """
    found = []
    for place in map(str, places):
        if _URL.match(place):
            found += [place] if _FITS.search(place) else _of_server(place)
        elif os.path.isdir(place):
            found += [str(path) for path in sorted(Path(place).absolute().rglob("*")) if _FITS.search(path.name)]
        elif _FITS.search(place):
            found.append(os.path.abspath(place))
        elif os.path.isfile(place):
            lines = Path(place).read_text().split("\n")
            home = Path(place).absolute().parent
            names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
            found += [name if _URL.match(name) else os.path.normpath(home / name) for name in names]
        else:
            raise ValueError(f"{option} {place}: there is no such folder, list or FITS file")
    found = list(dict.fromkeys(found))
    if not found:
        raise ValueError(f"{option} {' '.join(map(str, places))}: no FITS files there")
    return found


def _of_server(url):
    """The FITS files below a URL."""
    system, path = _server(url)
    return [system.unstrip_protocol(name) for name in sorted(system.find(path)) if _FITS.search(name)]


def _server(url):
    """File system and path of a URL."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImportError(f"reading {url} needs the extra 'remote': pip install 'astro-rosetta[remote]'") from error
    return url_to_fs(url)


# ---------------------------------------------------------------------------- the state of a file
def _state(path):
    """Size in bytes, and what changes with the content: time of the last change, or what the server calls a version."""
    if not _URL.match(path):
        found = os.stat(path)
        return found.st_size, str(found.st_mtime_ns)
    system, name = _server(path)
    info = system.info(name)
    keys = ("ETag", "etag", "LastModified", "mtime", "created")
    return int(info.get("size") or -1), str(next((info[key] for key in keys if info.get(key)), ""))


def check_unchanged(files):
    """Refuse files that are not those of the plan.

    Parameters
    ----------
    files : iterable of (str, int, str)
        Path, size and version of each.

    Raises
    ------
    ValueError
        Naming the first one that is missing or differs.
    """
    for path, *state in files:
        try:
            same = list(_state(path)) == state
        except FileNotFoundError as error:
            raise ValueError(f"{path} is not there any more: put it back, or plan again into a new folder") from error
        if not same:
            raise ValueError(f"{path} has changed since the plan: put it back, or plan again into a new folder")


# ---------------------------------------------------------------------------- what the headers say
def _row(path, **known):
    size, version = _state(path)
    row = {"path": path, "size": size, "version": version, "survey": "", "band": "", "tract": -1, "patch": -1,
           "tile": "", "y0": 0, "y1": 0, "x0": 0, "x1": 0}  # fmt: skip
    return row | known


def describe_rubin(path):
    """What is needed of a Rubin coadd.

    Returns
    -------
    row : dict
        A row of the table of inputs.
    file : RubinFile

    Raises
    ------
    ValueError
        If the file cannot be read, or does not say which tract it belongs to.
    """
    file = look(path, "--rubin")
    if file.tract is None or not 0 <= file.tract < 2**15:
        raise ValueError(
            f"--rubin: {path} names no tract from 0 to 32767 (it says {file.tract}): take a file as released, "
            "or set the card 'LSST BUTLER DATAID TRACT' in its first header"
        )
    box = dict(zip(("y0", "y1", "x0", "x1"), file.box, strict=True))
    patch = file.patch if isinstance(file.patch, int) else -1
    return _row(path, survey="rubin", band=file.band, tract=file.tract, patch=patch, **box), file


def tract_cards(file):
    """The WCS of the pixel grid of a Rubin file's tract, as FITS cards (str)."""
    return cards_of(file.wcs((0, file.box[1], 0, file.box[3]))).tostring()


def describe_euclid(path):
    """What is needed of a Euclid file.

    Returns
    -------
    row : dict or None
        A row of the table of inputs; None for a file that is not measured on (catalogues, background models, and the
        ground images that MER resampled).
    footprint : (ra, dec) or None
        Corners in degrees, two (4,) arrays; None for a file that is no science image.

    Raises
    ------
    ValueError
        If the file cannot be read.
    """
    known = product(path)
    if known is None:
        with open_fits(path, "--euclid") as hdus:
            bands, _ = contents(hdus, "--euclid")
            names = {token: (band_of(token) or ("", EUCLID.name)) for token in bands}
            tokens = [token for token, (_, survey) in names.items() if survey == EUCLID.name]
            if not tokens:
                return None, None
            shown = " ".join(names[token][0] for token in tokens)
            row = _row(path, survey="euclid", band=shown, tile=source_name(path))
            return row, _footprint(hdus, bands[tokens[0]]["SCIENCE"])
    role, token, tile = known
    band, survey = band_of(token) or ("", "")
    if role is None or survey != EUCLID.name:
        return None, None
    row = _row(path, survey="euclid", band=band, tile=tile.removeprefix("TILE"))
    return row, _footprint(path, None) if role == "SCIENCE" else None


def _footprint(source, extension):
    with open_fits(source, "--euclid") as hdus:
        hdu = image_hdu(hdus, "--euclid", extension)
        wcs = celestial_wcs(hdu.header, f"--euclid: {source_name(hdus)}", shape=hdu.shape[-2:])
    ny, nx = hdu.shape[-2:]
    corners = wcs.pixel_to_world(np.array([-0.5, nx - 0.5, nx - 0.5, -0.5]), np.array([-0.5, -0.5, ny - 0.5, ny - 0.5]))
    return corners.icrs.ra.deg, corners.icrs.dec.deg
