# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Publishing a survey: catalogues that lsdb reads, maps of the sky that was looked at, and random positions in it."""

import hashlib
import json
import shutil
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..pipeline.output import check_output, replaced
from . import sky_maps
from .borders import resolve
from .collections import write_collection
from .merged import Merged
from .store import Store
from .survey import read, write_rows

__all__ = ["DENSITY", "publish"]

DENSITY = 50.0  # random positions per square arcmin
PRODUCTS = ("objects", "windows", "randoms", "maps", "inputs.parquet", "provenance.json")
BLOCKS = 128  # nside of the blocks in which maps are kept and read: 27 arcmin


def publish(folder, directory, *, density=DENSITY, workers=1):
    """Publish what a survey has measured: all of it, or nothing.

    Parameters
    ----------
    folder : path-like
        Of the survey. Cells that are not done are left out, and counted.
    directory : path-like
        Where it goes; it must not exist, or be empty.
    density : float, optional
        Random positions per square arcmin.
    workers : int, optional
        Processes; with 1, all is done in this one.

    Yields
    ------
    str
        Lines on what was written.

    Raises
    ------
    ValueError
        If no cell is done, or the directory cannot be used.
    ImportError
        If a package of the extra ``hats`` is missing.
    """
    import hats_import  # noqa: F401
    import healsparse  # noqa: F401

    check_output(directory, False, PRODUCTS)
    survey, store = read(folder), Store(folder)
    records = {index: record for index in survey.indices if (record := store.record(index))}
    indices = [index for index, record in records.items() if record["state"] == "done"]
    if not indices:
        raise ValueError(f"{folder}: no cell is done: run the survey first")
    borders = resolve(survey, store, indices)
    merged = Merged(survey, store, indices, borders)
    told = _provenance(survey, [records[index] for index in indices], merged.bands, borders)
    meta = {b"rosetta": json.dumps(told).encode()}
    yield (
        f"{len(indices)} of {len(survey.indices)} cells; {len(records) - len(indices)} are empty, "
        f"{len(survey.indices) - len(records)} are not done"
    )
    with replaced(directory, PRODUCTS) as new, _client(workers) as client:
        (new / "provenance.json").write_text(json.dumps(told, indent=1) + "\n")
        write_rows(survey.inputs, new / "inputs.parquet", meta)
        parts = new / "parts"
        for name, column in (("objects", "object_id"), ("windows", "window_id")):
            (parts / name).mkdir(parents=True)
            files, n_rows = merged.write(name, parts / name, meta)
            write_collection(new, name, files, n_rows, client, index=column)
            yield f"{n_rows} {name}"
        twice, never = told["borders"].values()
        yield f"on borders: {twice} sources in two cells, of which one row is kept; {never} in none, which are added"
        area = _write_maps(new / "maps", store, records, indices, merged.bands, told)
        yield f"{area:.4g} deg2 in maps of {', '.join(merged.bands)}"
        n_rows = _write_randoms(parts / "randoms.parquet", new / "maps", merged.bands, density, survey.hash, meta)
        write_collection(new, "randoms", [parts / "randoms.parquet"], n_rows, client)
        yield f"{n_rows} random positions"
        shutil.rmtree(parts)


@contextmanager
def _client(workers):
    """Dask workers of our own."""
    from distributed import Client

    with Client(n_workers=workers, threads_per_worker=1, processes=workers > 1, dashboard_address=None) as client:
        yield client


def _provenance(survey, records, bands, borders):
    """What stands in every file."""
    versions = sorted({json.dumps(record["versions"], sort_keys=True) for record in records})
    files = json.dumps(survey.inputs, sort_keys=True).encode()
    return {
        "survey": survey.hash,
        "settings": survey.config.settings,
        "bands": bands,
        "cells": {"planned": len(survey.rows), "published": len(records)},
        "borders": {name: sum(getattr(borders, name).values()) for name in ("duplicates", "orphans")},
        "versions": [json.loads(text) for text in versions],
        "inputs": {"table": "inputs.parquet", "n": len(survey.inputs), "sha256": hashlib.sha256(files).hexdigest()},
    }


# ---------------------------------------------------------------------------- maps
def _write_maps(folder, store, records, indices, bands, told):
    """Write the maps, one at a time in memory; the area in square degrees."""
    folder.mkdir()
    meta = {"ROSETTA": json.dumps(told)}
    pixel, (n,) = _summed(store, indices, ["n"])
    area = n * sky_maps.PLACE**2 / sky_maps.healpix().pixel_area.to_value("arcsec2")
    _write_map(folder / "area.hsp", pixel, np.minimum(area, 1.0), meta)
    for band in bands:
        having = [index for index in indices if band in records[index]["bands"]]
        names = [f"{name}_{band}" for name in ("valid", "masked", "weight")]
        seen, (valid, masked, weight) = _summed(store, having, names)
        place = np.searchsorted(pixel, seen)
        coverage, mask, depth = np.zeros(len(pixel)), np.zeros(len(pixel)), np.full(len(pixel), np.nan)
        coverage[place], mask[place] = valid / n[place], masked / n[place]
        deep = valid > 0
        depth[place[deep]] = sky_maps.depth(weight[deep] / valid[deep])
        for name, values in (("coverage", coverage), ("mask", mask), ("depth", depth)):
            _write_map(folder / f"{name}_{band}.hsp", pixel, values, meta)
    return float(n.sum()) * (sky_maps.PLACE / 3600) ** 2


def _summed(store, indices, names):
    """Counts of all cells: the pixels, sorted, and the sums of each column."""
    tables = [store.table(index, "maps", ["pixel", *names]) for index in indices]
    pixel, place = np.unique(np.concatenate([table["pixel"].to_numpy() for table in tables]), return_inverse=True)
    return pixel, [np.bincount(place, np.concatenate([table[name].to_numpy() for table in tables])) for name in names]


def _write_map(path, pixel, values, meta):
    """A map; NaN is no value, but its pixels are in the file, so that every map has the same blocks."""
    import healsparse

    made = healsparse.HealSparseMap.make_empty(BLOCKS, 2**sky_maps.ORDER, np.float32)
    made.update_values_pix(pixel, np.where(np.isnan(values), made.sentinel, values).astype(np.float32))
    made.metadata = meta
    made.write(str(path))


def _write_randoms(path, folder, bands, density, seed, meta):
    """Write random positions with what the maps say there, block by block; their number."""
    import healsparse

    random = np.random.default_rng(int(seed, 16))
    area = healsparse.HealSparseMap.read(str(folder / "area.hsp"))
    names = [f"{name}_{band}" for band in bands for name in ("coverage", "depth")]
    schema = pa.schema(
        [("ra", pa.float64()), ("dec", pa.float64()), *((name, pa.float32()) for name in names)], metadata=meta
    )
    total = 0
    with parquet.ParquetWriter(path, schema) as file:
        for block in np.flatnonzero(area.coverage_mask):
            pixels = area.valid_pixels_single_covpix(block)
            sky = sky_maps.random_positions(pixels, area[pixels], density, random)
            columns = {"ra": sky.ra.deg, "dec": sky.dec.deg}
            for name in names:
                values = _block(folder / f"{name}.hsp", block).get_values_pos(sky.ra.deg, sky.dec.deg)
                columns[name] = np.where(values == area.sentinel, np.float32(np.nan), values)
            file.write_table(pa.table(columns, schema))
            total += len(sky)
    return total


def _block(path, block):
    """A block of a map."""
    import healsparse

    return healsparse.HealSparseMap.read(str(path), pixels=[block])
