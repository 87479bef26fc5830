# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What a file written by ``lsst-images`` (Data Preview 2 and later) says beside its pixels: the JSON tree."""

import json
import re
from dataclasses import dataclass

__all__ = ["CellGrid", "CellTable", "Tree", "read_tree"]

# The newest version of each schema whose files were read; a new major version may move anything.
_KNOWN = {
    "cell_coadd": "1.0.0", "visit_image": "1.1.0", "image": "1.0.0", "mask": "1.0.0", "cell_psf": "1.0.0",
}  # fmt: skip
_IMAGES = ("cell_coadd", "visit_image")
_EXTENSION = re.compile(r"fits:(?P<name>[\w/\-]+)(,(?P<version>\d+))?(\[\d+\])?")


@dataclass(frozen=True)
class CellGrid:
    """The cells of a coadd, each with a PSF of its own.

    Parameters
    ----------
    extension : tuple of (str, int)
        Name and version of the extension that holds the PSFs, (n_y, n_x, k, l).
    start : tuple of int
        First pixel (y, x) of the first of these cells, in the tract.
    step : tuple of int
        Sides (y, x) of a cell, pixels.
    missing : tuple of (int, int)
        Row and column, among these cells, of those without data.
    """

    extension: tuple
    start: tuple
    step: tuple
    missing: tuple


@dataclass(frozen=True)
class CellTable:
    """A table with a row per cell, in which cells are counted from the corner of their grid.

    Parameters
    ----------
    extension : tuple of (str, int)
        Name and version of the extension.
    corner : tuple of int
        First pixel (y, x) of the grid, in the tract.
    step : tuple of int
        Sides (y, x) of a cell, pixels.
    """

    extension: tuple
    corner: tuple
    step: tuple


@dataclass(frozen=True)
class Tree:
    """The part of the tree that is used.

    Parameters
    ----------
    schema : str
        Such as "cell_coadd-1.0.0".
    band, filter : str or None
    tract, patch : int or None
    skymap : str or None
    planes : tuple of (str or None)
        Names of the mask planes by bit.
    cells : CellGrid or None
    corrections : CellTable or None
        Aperture corrections.
    noise : tuple of (str, int)
        Extensions that hold realisations of the noise.
    extensions : frozenset of str
        Names of all extensions that the tree refers to, in capitals.
    """

    schema: str
    band: str | None
    filter: str | None
    tract: int | None
    patch: int | None
    skymap: str | None
    planes: tuple
    cells: CellGrid | None
    corrections: CellTable | None
    noise: tuple
    extensions: frozenset


def read_tree(hdus, where):
    """The tree of an opened file, or None if the file has none.

    Parameters
    ----------
    hdus : `~astropy.io.fits.HDUList`
    where : str
        What error messages call the file.

    Returns
    -------
    Tree or None

    Raises
    ------
    ValueError
        If the tree cannot be read, or is of an unknown schema or a newer major version of a known one.
    """
    if "JSON" not in hdus:
        return None
    try:
        text = hdus["JSON"].data["JSON"][0].tobytes()
        tree = json.loads(text)
        schema = _schema(tree, where)
        if schema.rpartition("-")[0] not in _IMAGES:
            raise _Refused(f"{where}: it holds a {schema}: give a {' or a '.join(_IMAGES)}")
        for part in (tree["image"], tree["mask"]):
            _schema(part, where)
        psf = tree.get("psf") or {}
        cells = _cells(psf) if str(psf.get("schema_url", "")).rpartition("/")[2].startswith("cell_psf-") else None
        if cells:
            _schema(psf, where)
        frame = tree["sky_projection"]["pixel_to_sky"]["frames"][0]
        return Tree(
            schema=schema,
            band=tree.get("band"),
            filter=_filter(tree),
            tract=frame.get("tract"),
            patch=(tree.get("patch") or {}).get("id"),
            skymap=frame.get("skymap"),
            planes=tuple(plane and plane["name"] for plane in tree["mask"]["planes"]),
            cells=cells,
            corrections=_corrections(tree.get("aperture_corrections")),
            noise=tuple(_extension(image["data"]) for image in tree.get("noise_realizations") or ()),
            extensions=frozenset(found["name"].upper() for found in _EXTENSION.finditer(text.decode())),
        )
    except _Refused as error:
        raise ValueError(str(error)) from None
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: its JSON tree cannot be read ({type(error).__name__}: {error}); download or write the file again"
        ) from error


class _Refused(ValueError):
    """The tree is whole, but not of a kind that is read here."""


def _schema(tree, where):
    """Name and version of a tree, checked."""
    schema = tree["schema_url"].rpartition("/")[2]
    name, _, version = schema.rpartition("-")
    if name not in _KNOWN:
        raise _Refused(f"{where}: its schema {schema!r} is not known: give a {' or a '.join(_IMAGES)}")
    newest = _KNOWN[name]
    majors = [int(v.partition(".")[0]) for v in (version, str(tree["schema_version"]), newest)]
    if max(*majors[:2], int(tree.get("min_read_version", 1))) > majors[2]:
        version = version if majors[0] > majors[2] else tree["schema_version"]
        raise _Refused(
            f"{where}: its schema is {name}-{version}, the newest that can be read is {name}-{newest}: update rosetta"
        )
    return schema


def _extension(array):
    """Name and version of the extension that an array of the tree refers to."""
    match = _EXTENSION.fullmatch(array.get("value", array)["source"])
    return match["name"], int(match["version"] or 1)


def _cells(psf):
    bounds = psf["bounds"]
    grid, box = bounds["grid"], bounds["bbox"]
    step = tuple(int(grid["cell_shape"][axis]) for axis in "yx")
    start = tuple(int(box[axis]["start"]) for axis in "yx")
    first = [(s - int(grid["bbox"][axis]["start"])) // n for s, n, axis in zip(start, step, "yx", strict=True)]
    if min(step) < 1:
        raise ValueError(f"cells of {step[1]} x {step[0]} pixels")
    missing = tuple((cell["i"] - first[0], cell["j"] - first[1]) for cell in bounds.get("missing", ()))
    return CellGrid(_extension(psf["array"]), start, step, missing)


def _corrections(found):
    """The table of aperture corrections; None if there is none, or if it is not one per cell, as of visit images."""
    if not found or "cell_aperture_correction_map-" not in str(found.get("schema_url", "")):
        return None
    grid = found["bounds"]["grid"]
    corner, step = (tuple(int(value) for value in axes) for axes in (
        (grid["bbox"][axis]["start"] for axis in "yx"), (grid["cell_shape"][axis] for axis in "yx")))  # fmt: skip
    if min(step) < 1:
        raise ValueError(f"cells of {step[1]} x {step[0]} pixels")
    return CellTable(_extension(found["table"]["columns"][0]["data"]), corner, step)


def _filter(tree):
    """The physical filter, such as r_57, where one filter made the image."""
    for part in ("provenance", "obs_info"):
        name = (tree.get(part) or {}).get("physical_filter")
        if isinstance(name, str):
            return name
    return None
