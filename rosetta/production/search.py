# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Windows of a survey that look like a given one: those whose embeddings are nearest.

The embeddings of all cells are put together once, in ``search/``, a file for each of Rubin and Euclid.
"""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path

import astropy.units as u
import numpy as np
import pyarrow as pa
from astropy.coordinates import SkyCoord
from astropy.table import QTable
from pyarrow import parquet

from ..images.positions import given_positions
from ..io.catalogue import read_catalogue
from ..pipeline.output import replaced
from ..surveys import EUCLID, RUBIN
from . import vectors
from .cells import owner
from .store import Store
from .survey import read

__all__ = ["EXACT", "search"]

EXACT = 10_000_000  # windows of one survey above which there is an index
NAMES = (EUCLID.name, RUBIN.name)  # the sharper first
POSITION = ("sky_center_ra", "sky_center_dec")
PLACES = pa.schema([
    ("tract", pa.int32()), ("cell", pa.int32()), ("ra", pa.float64()), ("dec", pa.float64()),
    ("coverage", pa.float32()), ("ood_score", pa.float32()),
])  # fmt: skip
PRODUCTS = ("state.json", *(f"{name}.{kind}" for name in NAMES for kind in ("parquet", "float16", "faiss")))


def search(folder, like, n=20):
    """The windows of a survey that are most similar to given ones.

    Parameters
    ----------
    folder : path-like
        Of a survey. Cells that are done are searched; their embeddings are put together first, if that has not been
        done since the last of them was measured.
    like : `~astropy.coordinates.SkyCoord` or path-like
        A position: the window of the survey that it lies in, from Euclid if Euclid looked there. Or a file of
        `rosetta.io.write_catalogue` with the columns ``embedding`` and ``survey``, such as the ``windows.parquet`` of a
        cell; each of its rows is looked for.
    n : int, optional
        Windows for each of these.

    Returns
    -------
    `~astropy.table.QTable`
        ``query`` (row of the file, or 0), ``similarity`` (cosine; the most similar window comes first), ``survey``,
        ``tract``, ``cell``, ``sky_center``, ``coverage`` and ``ood_score``. Only windows of one and the same survey are
        compared.

    Raises
    ------
    ValueError
        If no cell is done, there is no window at the position, or the file was made by another encoder or has no
        embeddings.
    ImportError
        If there are more than 1e7 windows and faiss is missing (extra ``search``).
    """
    if n < 1:
        raise ValueError(f"n is {n}: give 1 or more")
    survey, store = read(folder), Store(folder)
    place = Path(folder) / "search"
    dim = _put_together(survey, store, place)
    found = []
    for name, queries, numbers in _queries(survey, place, dim, like):
        windows = vectors.read_vectors(place / f"{name}.float16", dim)
        index = place / f"{name}.faiss"
        if index.exists():
            rows, similarity = vectors.nearest_by_index(index, windows, queries, n)
        else:
            rows, similarity = vectors.nearest(windows, queries, n)
        found.append(_table(name, place, rows, similarity, numbers))
    merged = {column: np.concatenate([part[column] for part in found]) for column in found[0]}
    order = np.argsort(merged["query"], kind="stable")
    merged = {column: values[order] for column, values in merged.items()}
    sky = SkyCoord(merged.pop("ra"), merged.pop("dec"), unit="deg")
    table = QTable(merged)
    table.add_column(sky, name="sky_center", index=table.colnames.index("cell") + 1)
    table.meta.update(survey=survey.hash, encoder_fingerprint=survey.config.encoder)
    return table


def _table(name, place, rows, similarity, numbers):
    """Columns of the windows in ``rows`` (q, n), by name."""
    n = rows.shape[1]
    columns = parquet.read_table(place / f"{name}.parquet", memory_map=True).take(pa.array(rows.ravel()))
    return {
        "query": np.repeat(numbers, n), "similarity": similarity.ravel(), "survey": np.full(rows.size, name),
        **{column: columns[column].to_numpy() for column in columns.column_names},
    }  # fmt: skip


# ---------------------------------------------------------------------------- what is looked for
def _queries(survey, place, dim, like):
    """Survey, embeddings (q, dim) and numbers (q,) of what is looked for, survey by survey."""
    if isinstance(like, SkyCoord):
        return [_at(survey, place, dim, like)]
    table = read_catalogue(like)
    missing = [name for name in ("embedding", "survey") if name not in table.colnames]
    if missing:
        raise ValueError(f"--like {like}: it has no column {missing[0]!r}: give the table of an embedding")
    made_by = table.meta.get("encoder_fingerprint", survey.config.encoder)
    embedding = np.asarray(table["embedding"], np.float32)
    if made_by != survey.config.encoder or embedding.shape[1:] != (dim,):
        raise ValueError(
            f"--like {like}: made by encoder {made_by}, and the survey by {survey.config.encoder}: embed it by that one"
        )
    embedding /= np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-30)
    names = np.asarray(table["survey"])
    rows = {name: np.flatnonzero(names == name) for name in NAMES if (place / f"{name}.float16").exists()}
    found = [(name, embedding[of], of) for name, of in rows.items() if len(of)]
    if not found:
        raise ValueError(f"--like {like}: none of its windows is of {' or '.join(rows)}, which the survey has")
    return found


def _at(survey, place, dim, coord):
    """The window that a position lies in."""
    coord, reach = given_positions(coord, "like"), survey.config.step * u.arcsec
    for name in NAMES:
        if not (place / f"{name}.parquet").exists():
            continue
        columns = parquet.read_table(place / f"{name}.parquet", columns=["ra", "dec"])
        ra, dec = (columns[axis].to_numpy() for axis in ("ra", "dec"))
        near = np.flatnonzero(np.abs(dec - coord.dec.deg) < reach.to_value(u.deg))
        apart = SkyCoord(ra[near], dec[near], unit="deg").separation(coord)
        if len(near) and apart.min() < reach / np.sqrt(2.0):
            row = near[apart.argmin()]
            window = vectors.read_vectors(place / f"{name}.float16", dim)[row]
            return name, np.asarray(window, np.float32)[None], np.zeros(1, int)
    raise ValueError(
        f"--like {coord.ra.deg[0]:g} {coord.dec.deg[0]:g}: no window of a cell that is done lies there: give a "
        "position in the survey, or a file"
    )


# ---------------------------------------------------------------------------- all windows together
def _put_together(survey, store, place):
    """Write the embeddings of all cells that are done, unless that is so; their number of components."""
    records = {index: store.record(index) for index in survey.indices}
    indices = [index for index, record in records.items() if record and record["state"] == "done"]
    if not indices:
        raise ValueError(f"{survey.config.folder}: no cell is done: run the survey first")
    finished = [[*index, records[index]["finished"]] for index in indices]
    state = {
        "cells": hashlib.sha256(json.dumps(finished).encode()).hexdigest()[:16],
        "dim": store.schema(indices[0], "windows").field("embedding").type.list_size,
    }
    path = place / "state.json"
    if path.is_file() and json.loads(path.read_text()) == state:
        return state["dim"]
    with replaced(place, PRODUCTS) as new:
        with ExitStack() as files:
            writers = {}
            for cell in survey.cells(indices):
                for name, places, embeddings in _windows(store, cell):
                    if name not in writers:
                        writers[name] = (
                            files.enter_context(parquet.ParquetWriter(new / f"{name}.parquet", PLACES)),
                            files.enter_context(open(new / f"{name}.float16", "wb")),
                        )
                    writers[name][0].write_table(places)
                    writers[name][1].write(embeddings.tobytes())
        for name in writers:
            windows = vectors.read_vectors(new / f"{name}.float16", state["dim"])
            if len(windows) > EXACT:
                vectors.build_index(windows, new / f"{name}.faiss")
        (new / "state.json").write_text(json.dumps(state))
    return state["dim"]


def _windows(store, cell):
    """Name, places and embeddings (n, dim) float16 of a cell's windows: those with valid pixels that its tract owns."""
    table = store.table(cell.index, "windows", ["survey", *POSITION, "embedding", "coverage", "ood_score"])
    ra, dec = (table[name].to_numpy() for name in POSITION)
    use = table["coverage"].to_numpy() > 0
    if len(cell.tracts) > 1:
        use &= owner(SkyCoord(ra, dec, unit="deg"), list(cell.tracts)) == cell.tract
    names = np.array(table["survey"].to_pylist())
    embedding = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1).astype(np.float16)
    for name in NAMES:
        rows = np.flatnonzero(use & (names == name))
        if len(rows):
            columns = {
                "tract": np.full(len(rows), cell.tract), "cell": np.full(len(rows), cell.number),
                "ra": ra[rows], "dec": dec[rows],
                **{kind: table[kind].to_numpy()[rows] for kind in ("coverage", "ood_score")},
            }  # fmt: skip
            yield name, pa.table(columns, PLACES), embedding[rows]
