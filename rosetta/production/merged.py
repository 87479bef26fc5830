# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The tables of all cells as tables with one set of columns: each source once, each window once."""

import numpy as np
import pyarrow as pa
from astropy.coordinates import SkyCoord
from pyarrow import parquet

from ..flags import Flag
from ..surveys import EUCLID, RUBIN
from .cells import owner

__all__ = ["Merged"]

CELLS = 100  # in a file
POSITION = {"sky_center_ra": "ra", "sky_center_dec": "dec"}  # of windows; objects call it that already
HIDDEN = ("is_primary", "cls")


class Merged:
    """The tables of a survey's cells, put together.

    A band that a cell has not got is NaN there, with the flag ``NO_DATA``. Columns that are not published are
    ``is_primary``, which is true of every row, and ``cls`` of the windows. Embeddings are float16.

    Parameters
    ----------
    survey : Survey
    store : Store
    indices : list of tuple
        The cells that have tables.
    borders : Borders
    """

    def __init__(self, survey, store, indices, borders):
        self._survey, self._store, self._indices, self._borders = survey, store, indices, borders
        self._bands = {index: store.record(index)["bands"] for index in indices}
        known = [*RUBIN.band_names, *EUCLID.band_names]
        self.bands = sorted(set().union(*self._bands.values()), key=known.index)

    def write(self, name, folder, meta):
        """Write a table of all cells.

        Parameters
        ----------
        name : str
            "objects" or "windows".
        folder : path-like
            Where files ``0000.parquet`` and so on go; it must exist.
        meta : dict of bytes
            Metadata of every file.

        Returns
        -------
        paths : list of `~pathlib.Path`
        n_rows : int
        """
        schema = self.schema(name, meta)
        paths, n_rows = [], 0
        for first in range(0, len(self._indices), CELLS):
            paths.append(folder / f"{first // CELLS:04d}.parquet")
            with parquet.ParquetWriter(paths[-1], schema) as file:
                for cell in self._survey.cells(self._indices[first : first + CELLS]):
                    table = self._of_cell(name, cell, schema)
                    file.write_table(table)
                    n_rows += len(table)
        return paths, n_rows

    def schema(self, name, meta):
        """The columns of a table of all cells (`pyarrow.Schema`): those of the cell with most bands, and all others."""
        schemas = {}
        for index in sorted(self._indices, key=lambda index: -len(self._bands[index])):
            found = self._store.schema(index, name)
            schemas.setdefault(tuple(found.names), found)
        fields = {}
        for field in (field for found in schemas.values() for field in found):
            fields.setdefault(field.name, field.type)
        if "flux_cov" in fields:
            fields["flux_cov"] = pa.list_(pa.float32(), len(self.bands) ** 2)
        if "embedding" in fields:
            fields["embedding"] = pa.list_(pa.float16(), fields["embedding"].list_size)
            fields = {"window_id": pa.int64(), **fields}
        named = {POSITION.get(name, name): kind for name, kind in fields.items() if name not in HIDDEN}
        return pa.schema(named.items(), metadata=meta)

    def _of_cell(self, name, cell, schema):
        table = self._store.table(cell.index, name)
        table = table.rename_columns([POSITION.get(column, column) for column in table.column_names])
        columns = {column: table[column] for column in table.column_names}
        columns, rows = (self._objects if name == "objects" else self._windows)(columns, cell)
        n = len(table)
        for field in schema:
            if field.name not in columns:  # of a band that the cell has not got
                missing = np.nan if pa.types.is_floating(field.type) else int(Flag.NO_DATA)
                columns[field.name] = np.full(n, missing)
        arrays = [pa.chunked_array([columns[field.name]]) if isinstance(columns[field.name], np.ndarray)
                  else columns[field.name] for field in schema]  # fmt: skip
        return pa.table([array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema).filter(
            pa.array(rows)
        )

    def _objects(self, columns, cell):
        """The columns of a cell's objects, and which rows are published."""
        number = columns["object_id"].to_numpy()
        borders = self._borders
        rows = columns["is_primary"].to_numpy() & ~np.isin(number, borders.dropped) | np.isin(number, borders.added)
        at_border = np.isin(number, borders.kept) | np.isin(number, borders.added)
        flags = columns["flags"].to_numpy() | np.where(at_border, int(Flag.BORDER), 0)
        if len(self._bands[cell.index]) < len(self.bands):
            flags = flags | int(Flag.NO_DATA)
        columns["flags"] = flags
        if "flux_cov" in columns:
            columns["flux_cov"] = self._covariance(columns["flux_cov"], cell)
        return columns, rows

    def _covariance(self, column, cell):
        """Covariances of a cell's bands as those of all bands, NaN elsewhere."""
        own, n = self._bands[cell.index], len(self.bands)
        place = [self.bands.index(band) for band in own]
        given = column.combine_chunks().flatten().to_numpy().reshape(-1, len(own), len(own))
        full = np.full((len(given), n, n), np.nan, np.float32)
        full[:, np.array(place)[:, None], place] = given
        return _lists(full.reshape(-1, n * n))

    def _windows(self, columns, cell):
        """The columns of a cell's windows, and which rows are published: those whose centre the tract owns."""
        n = len(columns["ra"])
        columns["window_id"] = ((cell.tract << 16 | cell.number) << 32) + np.arange(n)
        embedding = columns["embedding"]
        columns["embedding"] = _lists(
            embedding.combine_chunks().flatten().to_numpy().reshape(n, embedding.type.list_size).astype(np.float16)
        )
        rows = columns["coverage"].to_numpy() > 0
        if len(cell.tracts) > 1:
            sky = SkyCoord(columns["ra"].to_numpy(), columns["dec"].to_numpy(), unit="deg")
            rows = rows & (owner(sky, list(cell.tracts)) == cell.tract)
        return columns, rows


def _lists(values):
    """The rows of a two-dimensional array as lists in a column."""
    return pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])])
