# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Catalogues as files: ECSV, FITS, Parquet and VOTable, read back as they were."""

from os import PathLike
from pathlib import Path

import numpy as np
from astropy.io import fits, votable
from astropy.table import Column, QTable, Table

from ..files import atomic_write
from ._fits import open_fits
from ._flat import flat, restored
from ._store import content_of, document, document_hdu, new_path, text_of

__all__ = ["ENDINGS", "read_catalogue", "write_catalogue"]

META, COLUMNS = "CATALOGUE_META", "CATALOGUE_COLUMNS"  # as JSON: the meta, and what a format does not know of columns
ECSV, TEXTS, ROWS = "ascii.ecsv", "CATALOGUE_TEXTS", "CATALOGUE_ROWS"


def write_catalogue(catalog, path, *, overwrite=False):
    """Write a table to a file from which `read_catalogue` makes the same table again.

    In ECSV the table is as astropy writes it, with its number of rows as ``CATALOGUE_ROWS`` in the meta, so that a file
    that was cut is noticed. In the others it is flat: ``sky_centroid`` is ``ra`` and ``dec`` (deg,
    ICRS; ``sky_centroid_ra`` and ``sky_centroid_dec`` if the table has columns called so), any other position
    ``<name>_ra`` and ``<name>_dec``, a time ``<name>_jd1`` and ``<name>_jd2``, and what is missing in a masked column
    is True in ``<name>_masked``. ``flux_cov`` is an array in each row. Units and descriptions are those of the format.
    Its ``meta``, and what the format does not know of columns, are JSON, as ``CATALOGUE_META`` and
    ``CATALOGUE_COLUMNS``: two extensions in FITS, two ``INFO`` elements in a VOTable, two entries of the file's
    metadata in Parquet. Tuples in ``meta`` become lists there, and what JSON does not know its text.

    Parameters
    ----------
    catalog : `~astropy.table.QTable`
        Or any table.
    path : path-like
        Ends in ".ecsv", ".fits", ".parquet" (needs pyarrow) or ".vot".
    overwrite : bool, optional
        Whether to replace the file if it exists: whole, or not at all.

    Raises
    ------
    TypeError, ValueError
        If the table or the path cannot be used; the message says what to do.
    FileExistsError
        If the file exists and ``overwrite`` is False.
    ImportError
        If pyarrow is needed and missing.
    """
    if not isinstance(catalog, Table):
        raise TypeError(f"catalog must be a table, got {type(catalog).__name__}")
    write, _ = _format_of(path)
    path = new_path(path, overwrite)
    with atomic_write(path) as temporary:
        write(catalog, temporary)


def read_catalogue(path):
    """Read a catalogue written by `write_catalogue`.

    Parameters
    ----------
    path : path-like
        Ends in ".ecsv", ".fits", ".parquet" (needs pyarrow) or ".vot".

    Returns
    -------
    `~astropy.table.QTable`

    Raises
    ------
    ValueError
        If the file is damaged or of another kind; the message names it.
    ImportError
        If pyarrow is needed and missing.
    """
    _, read = _format_of(path)
    path = Path(path)
    try:
        return read(path)
    except (OSError, ImportError):
        raise
    except Exception as error:  # readers of tables raise many types for a damaged one
        raise ValueError(
            f"{str(path)!r} cannot be read as a catalogue ({error}): write it again with write_catalogue"
        ) from error


def _format_of(path):
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path must be the path of a file, got {type(path).__name__}")
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise ValueError(f"path is {path.name!r}: let it end in one of {', '.join(ENDINGS)}")
    return ENDINGS[path.suffix]


# ---------------------------------------------------------------------------- ECSV
def _write_ecsv(catalog, path):
    written, meta = catalog.copy(copy_data=False), text_of(dict(catalog.meta))
    written.meta[ROWS] = len(catalog)
    if r"\n" in meta:  # which ECSV makes a space of
        written.meta[META] = meta
    if len(catalog) == 0:  # ECSV cannot be read back with an empty column of arrays
        written.remove_columns([name for name in catalog.colnames if len(catalog[name].shape) > 1])
        written.meta[COLUMNS] = text_of({"columns": flat(catalog)[1]})
    elif texts := {name: catalog[name].dtype.str for name in catalog.colnames if _is_text(catalog[name])}:
        written.meta[TEXTS] = texts  # ECSV takes an empty text for a missing one
    written.write(path, format=ECSV)


def _is_text(column):
    return type(column) is Column and column.dtype.kind == "U" and column.ndim == 1


def _read_ecsv(path):
    catalog = QTable.read(path, format=ECSV)
    columns, texts, meta, rows = (catalog.meta.pop(name, None) for name in (COLUMNS, TEXTS, META, ROWS))
    if rows is not None and not (len(catalog) == rows and path.read_bytes()[-1:] == b"\n"):
        raise ValueError(f"it was cut: it ends in row {len(catalog)} of {rows}")
    for name, dtype in (texts or {}).items():
        column = catalog[name]
        plain = Column(np.ma.filled(column, "").astype(dtype), description=column.description, meta=column.meta)
        catalog[name] = plain
    if columns is not None:
        catalog = restored(lambda _: np.zeros(0), content_of(columns)["columns"], catalog.meta)
    if meta is not None:
        catalog.meta = content_of(meta)
    return catalog


# ---------------------------------------------------------------------------- FITS and VOTable
def _plain_table(columns):
    """A table without anything that astropy would write in a way of its own."""
    table = Table()
    for name, column in columns.items():
        meta = {} if column.ucd is None else {"ucd": column.ucd}
        table[name] = Column(column.values, unit=column.unit, description=column.description, meta=meta)
    return table


def _write_fits(catalog, path):
    columns, known = flat(catalog)
    for name, column in columns.items():
        if column.values.dtype.kind == "U" and not all(t.isascii() and t == t.rstrip() for t in column.values.flat):
            raise ValueError(f"catalog has text in {name!r} that FITS cannot hold: choose ECSV, Parquet or VOTable")
    hdu = fits.table_to_hdu(_plain_table(columns))
    hdu.name = "CATALOGUE"
    for k, column in enumerate(columns.values(), 1):
        for card, text in (("TCOMM", column.description), ("TUCD", column.ucd)):
            if text:  # a header holds ASCII in one line
                hdu.header[f"{card}{k}"] = " ".join(text.encode("ascii", "replace").decode().split())
    documents = document_hdu(META, dict(catalog.meta)), document_hdu(COLUMNS, {"columns": known})
    fits.HDUList([fits.PrimaryHDU(), hdu, *documents]).writeto(path)


def _read_fits(path):
    with open_fits(path, "path") as file:
        found = {(hdu.name, hdu.ver): hdu for hdu in file}
        if (COLUMNS, 1) not in found:
            raise ValueError(f"it has no extension {COLUMNS}, so that write_catalogue has not made it")
        known = document(found, COLUMNS)["columns"]
        return restored(lambda name: file["CATALOGUE"].data[name], known, document(found, META))


def _write_votable(catalog, path):
    columns, known = flat(catalog)
    file = votable.from_table(_plain_table(columns))
    (resource,) = file.resources
    resource.infos.append(votable.tree.Info(name=META, value=text_of(dict(catalog.meta))))
    resource.infos.append(votable.tree.Info(name=COLUMNS, value=text_of({"columns": known})))
    file.to_xml(str(path), tabledata_format="binary2")  # decimal numbers would not be exact


def _read_votable(path):
    (resource,) = votable.parse(str(path)).resources
    texts = {info.name: info.value for info in resource.infos}
    array = resource.tables[0].to_table(use_names_over_ids=True)
    return restored(lambda name: array[name], content_of(texts[COLUMNS])["columns"], content_of(texts[META]))


# ---------------------------------------------------------------------------- Parquet
def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: install it, or choose .ecsv, .fits or .vot") from error
    return pyarrow


def _write_parquet(catalog, path):
    arrow = _pyarrow()
    columns, known = flat(catalog)
    fields, arrays = [], []
    for name, column in columns.items():
        values = column.values.astype(column.values.dtype.newbyteorder("="))
        array = arrow.array(values.ravel().tolist() if values.dtype.kind in "US" else values.ravel())
        if len(values) == 0 and values.dtype.kind in "US":
            array = array.cast(arrow.string() if values.dtype.kind == "U" else arrow.binary())
        if values.ndim > 1:
            array = arrow.FixedSizeListArray.from_arrays(array, int(np.prod(values.shape[1:])))
        told = {"unit": column.unit and column.unit.to_string(), "description": column.description}
        fields.append(arrow.field(name, array.type, metadata={key: text for key, text in told.items() if text}))
        arrays.append(array)
    told = {META: text_of(dict(catalog.meta)), COLUMNS: text_of({"columns": known})}
    arrow.parquet.write_table(arrow.Table.from_arrays(arrays, schema=arrow.schema(fields, metadata=told)), path)


def _read_parquet(path):
    arrow = _pyarrow()
    table = arrow.parquet.read_table(path)
    texts = {key.decode(): text.decode() for key, text in table.schema.metadata.items()}

    def values(name):
        array = table[name].combine_chunks()
        if arrow.types.is_fixed_size_list(array.type):
            array = array.flatten()
        return array.to_numpy(zero_copy_only=False)

    return restored(values, content_of(texts[COLUMNS])["columns"], content_of(texts[META]))


#: How to write and read a file, by its ending.
ENDINGS = {
    ".ecsv": (_write_ecsv, _read_ecsv), ".fits": (_write_fits, _read_fits),
    ".parquet": (_write_parquet, _read_parquet), ".vot": (_write_votable, _read_votable),
}  # fmt: skip
