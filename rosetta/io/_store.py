# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""FITS files of the library's own results: arrays, tables and JSON, read back bit for bit. Nothing is pickled."""

import gzip
import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.time import Time
from scipy import sparse

from ..files import atomic_write
from ._fits import as_path, open_fits

__all__ = [
    "check_format", "content_of", "document", "document_hdu", "extensions", "new_path", "record", "record_hdus", "save",
    "text_of",
]  # fmt: skip

CONTENTS, CHECKSUM = "CONTENTS", "SHA256"
UNSUMMED = "0" * 64
CARD = f"{CHECKSUM:8}= '".encode()
HEAD = 1 << 16  # bytes, in which the primary header ends
SUMMED = 3  # first format of pair files with a checksum


# ---------------------------------------------------------------------------- files
def new_path(path, overwrite):
    """The path of a file to write, before any work is done.

    Raises
    ------
    TypeError
        If it is no path.
    FileExistsError
        If there is such a file and ``overwrite`` is False.
    """
    path = as_path(path, "path")
    if path.exists() and not overwrite:
        raise FileExistsError(f"path: {str(path)!r} exists: choose another name, or give overwrite=True")
    return path


def save(hdus, path):
    """Write HDUs to a file, whole or not at all, with a list of its extensions and a checksum.

    Parameters
    ----------
    hdus : list of HDUs
        The primary one first; no two with the same name and version.
    path : `~pathlib.Path`
        Replaced if it exists; compressed if it ends in ".gz".
    """
    names = [_name_of(hdu) for hdu in hdus[1:]]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"extensions {_listed(twice)} would be written twice: rename a band of one of the surveys")
    columns = {
        "name": np.array([name for name, _ in names]), "version": np.array([version for _, version in names]),
        "kind": np.array(["image" if hdu.is_image else "table" for hdu in hdus[1:]]),
    }
    hdus = [*hdus, _table(CONTENTS, columns, len(names), 1)]
    hdus[0].header["NUMEXT"] = (len(hdus) - 1, "extensions in this file, CONTENTS lists them")
    hdus[0].header[CHECKSUM] = UNSUMMED
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as file:
            fits.HDUList(hdus).writeto(file)
        digest, place = _summed(temporary)
        with open(temporary, "rb+") as file:
            file.seek(place)
            file.write(digest.encode())
        if path.suffix == ".gz":
            content = temporary.read_bytes()
            with gzip.open(temporary, "wb") as file:
                file.write(content)


def _name_of(hdu):
    return hdu.name.upper(), hdu.ver


def _listed(names):
    return ", ".join(sorted(name if version == 1 else f"{name} {version}" for name, version in names))


def _summed(path):
    """SHA-256 of a file, and the place of its own sum in it.

    Returns
    -------
    digest : str or None
        None where the primary header has no card for it.
    place : int
        First byte of the card's value.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with (gzip.open if packed else open)(path, "rb") as file:
        head = file.read(HEAD)
        place = head.find(CARD) + len(CARD)
        if place < len(CARD):
            return None, 0
        digest.update(head[:place] + UNSUMMED.encode() + head[place + len(UNSUMMED) :])
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest(), place


@contextmanager
def extensions(path, check):
    """The primary header of a file, and its extensions by (EXTNAME, EXTVER).

    Parameters
    ----------
    path : path-like
    check : callable
        ``check(header)`` refuses a file of another kind or of a later format.

    Raises
    ------
    ValueError
        If the file is not FITS, ends before its last extension, or is not as it was written.
    """
    name = Path(path).name
    with open_fits(path, "path") as hdus:
        header = hdus[0].header
        check(header)
        expected = header.get("NUMEXT", len(hdus) - 1)
        if expected != len(hdus) - 1:
            raise ValueError(
                f"path: {name} is not complete: it holds {len(hdus) - 1} of {expected} extensions; "
                "download or write it again"
            )
        found = {_name_of(hdu): hdu for hdu in hdus[1:]}
        _check_sum(path, header, found)
        yield header, found


def _check_sum(path, header, found):
    """Refuse a file with another sum than it was written with; say which extensions are missing, if any are."""
    digest, _ = _summed(path)
    if digest is None and header["RSTFMT"] < SUMMED:
        return
    if digest is not None and header.get(CHECKSUM) == digest:
        return
    detail, listed = "", _listed_in(found)
    if listed:
        if lost := listed - set(found):
            detail += f", {_listed(lost)} is missing"
        if more := set(found) - listed:
            detail += f", {_listed(more)} does not belong to it"
    raise ValueError(
        f"path: {Path(path).name} is damaged or was changed: its checksum is another one{detail}; "
        "download or write it again"
    )


def _listed_in(found):
    """Names and versions of the extensions that a file should hold; empty where the list itself is damaged."""
    try:
        rows = found[CONTENTS, 1].data
        return set(zip(map(str, rows["name"]), map(int, rows["version"]), strict=True)) | {(CONTENTS, 1)}
    except Exception:  # astropy has many types of error for damaged tables
        return set()


def check_format(header, path, card, known, what, advice):
    """Refuse a file that is of another kind, or of a later format than this version can read.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
        Primary header.
    path : path-like
    card : str
        That holds the format's version.
    known : int
        The newest one that can be read.
    what : str
        Kind of file, for the message.
    advice : str
        What to do with another kind of file.

    Returns
    -------
    int
        The file's format.
    """
    name, version = Path(path).name, header.get(card)
    if version is None:
        raise ValueError(f"path: {name} is not a rosetta {what} file (no {card} card): {advice}")
    if not isinstance(version, int):
        raise ValueError(f"path: {name} has {what} format {version!r}: its header is damaged")
    if version > known:
        raise ValueError(f"path: {name} has {what} format {version}, newer than {known}: upgrade astro-rosetta")
    return version


# ---------------------------------------------------------------------------- JSON
def document_hdu(name, content, *, ver=1):
    """A dict as a table with one cell of JSON.

    Positions, quantities and times keep their type, tuples become lists; anything else that JSON does not know is
    kept as its text.
    """
    text = text_of(content)
    return fits.BinTableHDU(np.array([(text,)], dtype=[("json", f"U{len(text)}")]), name=name, ver=ver)


def document(found, name, *, ver=1):
    """The dict that `document_hdu` wrote."""
    try:
        return content_of(str(found[name.upper(), ver].data["json"][0]))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{name} holds no JSON") from error


def text_of(content):
    """A dict as JSON, as in `document_hdu`."""
    try:
        return json.dumps(content, default=_jsonable)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"meta cannot be stored ({error}): use strings as keys, and no deeper nesting") from error


def content_of(text):
    """The dict that `text_of` wrote."""
    return json.loads(text, object_hook=_from_json)


def _jsonable(value):
    if isinstance(value, SkyCoord):
        ra, dec = _angles(value)
        return {"SkyCoord": [ra.value.tolist(), dec.value.tolist(), str(ra.unit)]}
    if isinstance(value, u.Quantity):
        return {"Quantity": [value.value.tolist(), str(value.unit)]}
    if isinstance(value, Time):
        return {"Time": [np.asarray(value.jd1).tolist(), np.asarray(value.jd2).tolist(), value.scale, value.format]}
    if isinstance(value, fits.card.Undefined):
        return None
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _from_json(content):
    kind, parts = next(iter(content.items()), (None, None))
    if len(content) != 1 or kind not in _OF_JSON or not isinstance(parts, list):
        return content
    try:
        return _OF_JSON[kind](*parts)
    except (TypeError, ValueError):  # a note of the user's own that looks like one of ours
        return content


def _time(jd1, jd2, scale, form):
    time = Time(jd1, jd2, format="jd", scale=scale)
    time.format = form
    return time


_OF_JSON = {
    "SkyCoord": lambda ra, dec, unit: SkyCoord(ra, dec, unit=unit, frame="icrs"),
    "Quantity": u.Quantity,
    "Time": _time,
}


# ---------------------------------------------------------------------------- arrays
def _angles(coord):
    """Right ascension and declination in the unit they are kept in: a conversion could change the last bit."""
    sky = coord.icrs.represent_as("unitspherical")
    return sky.lon, sky.lat.to(sky.lon.unit)


def record_hdus(name, fields, n, *, ver=1):
    """Named values as tables.

    Parameters
    ----------
    name : str
        EXTNAME of the table with one row per item.
    fields : mapping of str to object
        Arrays, quantities and positions of ``n`` items are columns of that table. A sparse matrix is a table
        ``<name>_<field>`` of its entries. All else (numbers, strings, arrays of other lengths) stands in the one
        row of the table ``<name>_COMMON``. Fields that are None are listed in the card ``ABSENT``.
    n : int
        Number of items.
    ver : int
        EXTVER.

    Returns
    -------
    list of `~astropy.io.fits.BinTableHDU`
    """
    rows, common, hdus = {}, {}, []
    for field, value in fields.items():
        if value is None:
            continue
        if sparse.issparse(value):
            entries = value.tocoo()
            places = (entries.row.astype(np.int32), entries.col.astype(np.int32))
            columns = {"row": places[0], "column": places[1], "value": entries.data}
            hdus.append(_table(f"{name}_{field}", columns, len(entries.data), ver))
            hdus[-1].header["OWNER"] = (name, "what this matrix belongs to")
            hdus[-1].header["FIELD"] = (field, "which of its fields it is")
            hdus[-1].header["SIDE"] = (value.shape[0], "rows and columns of the matrix; the first is 0")
            continue
        of_items = np.ndim(value) > 0 and np.shape(value)[0] == n
        (rows if of_items else common)[field] = value if of_items else np.asanyarray(value)[None]
    if common:
        hdus.insert(0, _table(f"{name}_COMMON", common, 1, ver))
    hdus.insert(0, _table(name, rows, n, ver))
    absent = [field for field, value in fields.items() if value is None]
    if absent:
        hdus[0].header["ABSENT"] = (" ".join(absent), "fields without a value")
    return hdus


def _table(name, columns, n, ver):
    arrays, units = {}, {}
    for field, value in columns.items():
        if isinstance(value, SkyCoord):
            ra, dec = _angles(value)
            arrays |= {f"{field}.ra": ra.value, f"{field}.dec": dec.value}
            units |= {f"{field}.ra": ra.unit, f"{field}.dec": dec.unit}
            continue
        if isinstance(value, u.Quantity):
            value, units[field] = value.value, value.unit
        arrays[field] = np.asarray(value)
    table = np.empty(n, [(field, array.dtype, array.shape[1:]) for field, array in arrays.items()])
    for field, array in arrays.items():
        table[field] = array
    hdu = fits.BinTableHDU(table, name=name, ver=ver)
    for field, unit in units.items():
        hdu.columns[field].unit = unit.to_string()
    return hdu


def record(found, name, *, ver=1):
    """The fields that `record_hdus` wrote, by name.

    Raises
    ------
    KeyError
        If the table is missing.
    """
    hdu = found[name.upper(), ver]
    fields = dict.fromkeys(hdu.header.get("ABSENT", "").split()) | _columns(hdu)
    common = found.get((f"{name}_COMMON".upper(), ver))
    if common is not None:
        fields |= {field: _item(value) for field, value in _columns(common).items()}
    for (_, extver), hdu in found.items():
        if extver == ver and hdu.header.get("OWNER") == name:
            entries, side = _columns(hdu), hdu.header["SIDE"]
            places = (entries["row"], entries["column"])
            fields[hdu.header["FIELD"]] = sparse.csc_array(sparse.coo_array((entries["value"], places), (side, side)))
    return fields


def _item(value):
    """The one row of a column: a number, a string or an array."""
    item = value[0]
    return item.item() if isinstance(item, np.generic) else item


def _columns(hdu):
    fields = {}
    for column in hdu.columns:
        array = np.asarray(hdu.data[column.name])
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        field, _, axis = column.name.rpartition(".")
        if axis == "dec":
            fields[field] = SkyCoord(fields[field], array, unit=column.unit, frame="icrs")
        elif axis == "ra" and field:
            fields[field] = array
        else:
            fields[column.name] = array if column.unit is None else u.Quantity(array, column.unit, copy=False)
    return fields
