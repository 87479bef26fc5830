# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""HATS collections: Parquet files in HEALPix pixels of about equal numbers of rows, as lsdb reads them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

__all__ = ["MARGIN", "write_collection"]

MARGIN = 10.0  # arcsec
ROWS = 1_000_000  # of a pixel, at most
CHUNK = 100_000  # rows that are read at a time
INDEX_ROWS = 10_000  # of the index are searched at a time


def write_collection(folder, name, files, n_rows, client, *, index=None):
    """Write a collection: a catalogue, its margin of 10 arcsec and, if it has identifiers, their index.

    Nothing is written if there are no rows.

    Parameters
    ----------
    folder : `~pathlib.Path`
        Where the collection goes, as a folder.
    name : str
    files : list of path-like
        Parquet files with the rows, among their columns ``ra`` and ``dec`` in degrees. The metadata of the first one
        stands in every file of the collection.
    n_rows : int
        In all of them.
    client : `distributed.Client`
        Where the work is done.
    index : str, optional
        Column of the identifiers.
    """
    if not n_rows:
        return
    from hats_import import CollectionArguments, pipeline_with_client
    from hats_import.catalog.file_readers import ParquetPyarrowReader

    arguments = (
        CollectionArguments(output_path=folder, output_artifact_name=name, progress_bar=False)
        .catalog(
            input_file_list=files, file_reader=ParquetPyarrowReader(chunksize=CHUNK), use_schema_file=files[0],
            ra_column="ra", dec_column="dec", pixel_threshold=ROWS, expected_total_rows=n_rows,
        )
        # By its name alone, so that the collection can be moved.
        .add_margin(margin_threshold=MARGIN, is_default=True, addl_hats_properties={"primary_catalog": name})
    )  # fmt: skip
    pipeline_with_client(arguments, client)
    if index is not None:
        _write_index(folder / name, name, index)


def _write_index(collection, name, column):
    """The index of a catalogue: a sorted file for each of its pixels.

    hats-import would sort all identifiers together, which takes a shuffle and, on Python 3.11, an old Dask. Ours begin
    with the tract, so that the few pixels a tract lies in are found from the ranges in the footers.
    """
    from hats import read_hats
    from hats.catalog import TableProperties
    from hats.catalog.dataset.collection_properties import CollectionProperties
    from hats.io import parquet_metadata, paths

    catalog = read_hats(collection / name)
    place = collection / f"{name}_{column}"
    (place / "dataset" / "index").mkdir(parents=True)
    n_rows = 0
    for number, pixel in enumerate(catalog.get_healpix_pixels()):
        file = Path(str(paths.pixel_catalog_file(collection / name, pixel)))
        table = parquet.read_table(file, columns=[column, "_healpix_29"], partitioning=None).sort_by(column)
        for key, value, kind in (("Norder", pixel.order, np.uint8), ("Npix", pixel.pixel, np.uint64)):
            table = table.append_column(key, pa.array(np.full(len(table), value, kind)))
        parquet.write_table(
            table, place / "dataset" / "index" / f"part.{number}.parquet", row_group_size=INDEX_ROWS,
            sorting_columns=parquet.SortingColumn.from_ordering(table.schema, [(column, "ascending")]),
        )  # fmt: skip
        n_rows += len(table)
    properties = {
        "catalog_name": place.name, "catalog_type": "index", "total_rows": n_rows, "primary_catalog": name,
        "indexing_column": column,
    }  # fmt: skip
    TableProperties(**properties).to_properties_file(place)
    parquet_metadata.write_parquet_metadata(place, order_by_healpix=False)
    update = {"all_indexes": {column: place.name}, "default_index": column}
    CollectionProperties.read_from_dir(collection).model_copy(update=update).to_properties_file(collection)
