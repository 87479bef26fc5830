# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Training rows of the heads: one pair at a time, kept in a file that an interrupted run resumes from."""

import hashlib
import io
import os
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from ..files import naming
from ..pair import SkyPair
from ..workers import in_order

__all__ = ["RowStore", "held_out_pairs", "joined_rows", "split_by_pair", "training_parts", "views"]

FORMAT = 5
HELD_OUT = 5  # every fifth pair is held out
LENGTH = 8  # bytes before the rows of each pair, which hold their number of bytes


class RowStore:
    """Rows of the pairs that are finished, in order; with a path, in a file that grows by one pair at a time.

    A run that is killed loses the pair it was at.

    Parameters
    ----------
    path : path-like or None
        None: kept in memory only.
    owner : str
        What the rows depend on, one line. A file of another owner is refused.

    Attributes
    ----------
    parts : list of (dict of arrays or None)
        Rows of each finished pair; None for a pair without any.

    Raises
    ------
    ValueError
        If the file is of another owner or damaged, or its folder does not exist.
    OSError
        If the file cannot be written.
    """

    def __init__(self, path, owner):
        self.parts, self._marks = [], []
        self._path = None if path is None else Path(path)
        if self._path is not None:
            self._open(f"rosetta training rows {FORMAT}: {owner}\n".encode())

    def append(self, mark, part):
        """Store the rows of the next pair.

        Parameters
        ----------
        mark : str
            What this pair's rows depend on beside the owner.
        part : dict of arrays or None
            None for a pair without rows.
        """
        if self._path is not None:
            block = io.BytesIO()
            np.savez(block, mark=mark, **(part or {}))
            content = block.getvalue()
            with naming(self._path), open(self._path, "ab") as file:
                file.write(len(content).to_bytes(LENGTH, "little") + content)
                file.flush()
                os.fsync(file.fileno())
        self.parts.append(part)
        self._marks.append(mark)

    def check(self, index, mark):
        """That stored rows of a pair are of this mark; raises `ValueError`."""
        if self._marks[index] != mark:
            raise ValueError(f"checkpoint {self._path.name!r} was made with another truth[{index}]: use a new file")

    def _open(self, head):
        """Read the finished pairs; what a killed run left half written is cut off."""
        path = self._path
        if not path.parent.is_dir():
            raise ValueError(f"checkpoint {str(path)!r}: its folder does not exist, create it first")
        if not path.exists() or path.stat().st_size == 0:
            with naming(path):
                path.write_bytes(head)
            return
        with open(path, "r+b") as file:
            if file.read(len(head)) != head:
                raise ValueError(
                    f"checkpoint {path.name!r} is of another head, encoder, seed or kind of truth, or of other pairs: "
                    "use a new file"
                )
            size = path.stat().st_size
            while True:
                whole = file.tell()
                length = int.from_bytes(file.read(LENGTH), "little")
                if whole + LENGTH + length > size or length == 0:
                    break
                try:
                    with np.load(io.BytesIO(file.read(length)), allow_pickle=False) as arrays:
                        part = {name: arrays[name] for name in arrays.files}
                    mark = str(part.pop("mark"))
                except (zipfile.BadZipFile, ValueError, KeyError) as error:
                    raise ValueError(f"checkpoint {path.name!r} is damaged: delete it and start again") from error
                self.parts.append(part or None)
                self._marks.append(mark)
            file.truncate(whole)


def training_parts(pairs, truth, prepare, *, columns, owner, checkpoint=None, workers=1):
    """Training rows of every pair; pairs that a checkpoint already holds are not prepared again.

    Parameters
    ----------
    pairs : sequence of `~rosetta.SkyPair`
        Read one at a time.
    truth : sequence of tables, or None
        One per pair.
    prepare : callable
        (pair, table or None, index) -> dict of arrays, or None for a pair without usable rows.
    columns : sequence of str
        That every table must have.
    owner : str
        What the rows depend on beside the sky, one line: kind, fingerprints, seed.
    checkpoint : path-like, optional
        File of a `RowStore`. Where there is one, the first pair is read to tell one sky from another.
    workers : int
        Processes that prepare pairs. With more than one, ``pairs``, ``truth`` and ``prepare`` are pickled.

    Returns
    -------
    list of (dict of arrays or None)

    Raises
    ------
    ValueError
        If there are too few pairs, truth is of another length or lacks a column, or the checkpoint is of something
        else.
    """
    if truth is not None and len(truth) != len(pairs):
        raise ValueError(f"truth has {len(truth)} tables for {len(pairs)} pairs: give one per pair")
    if len(pairs) < 2:
        raise ValueError(f"pairs has {len(pairs)} entries: at least 2 are needed, as some are held out")
    if checkpoint is not None:
        owner = f"{owner} {'no ' if truth is None else ''}truth {_grids(pairs[0])}"
    store = RowStore(checkpoint, owner)
    if len(store.parts) > len(pairs):
        raise ValueError(
            f"checkpoint {Path(checkpoint).name!r} is of other pairs: it holds rows of {len(store.parts)}, here are "
            f"{len(pairs)}, use a new file"
        )
    done = len(store.parts)
    for i in range(done):
        store.check(i, _mark(None if truth is None else _checked(truth, i, columns)))
    work = partial(_prepared, pairs, truth, prepare, columns)
    for mark, part in in_order(work, range(done, len(pairs)), workers):
        store.append(mark, part)
    return store.parts


def _prepared(pairs, truth, prepare, columns, index):
    """The mark and the rows of a pair."""
    table = None if truth is None else _checked(truth, index, columns)
    return _mark(table), prepare(pairs[index], table, index)


def _checked(truth, index, columns):
    """A truth table that has the columns."""
    table = truth[index]
    for name in columns:
        if name not in table.colnames:
            raise ValueError(f"truth[{index}] has no column {name!r}: use tables as rosetta.simulate makes them")
    return table


def _mark(table):
    """Sixteen hex digits that tell one truth table from another by its positions."""
    if table is None:
        return ""
    coord = table["sky_centroid"].icrs
    return hashlib.sha256(np.stack([coord.ra.deg, coord.dec.deg]).tobytes()).hexdigest()[:16]


def _grids(pair):
    """Sixteen hex digits that tell one pair from another by its bands and pixel grids."""
    grids = []
    for side, band, image in pair.images():
        ny, nx = image.data.shape
        middle = image.wcs.pixel_to_world((nx - 1) / 2, (ny - 1) / 2).icrs
        grids.append(f"{side} {band} {ny} {nx} {middle.ra.deg:.6f} {middle.dec.deg:.6f}")
    return hashlib.sha256("\n".join(grids).encode()).hexdigest()[:16]


def held_out_pairs(parts):
    """Indices of the pairs that never train: of those with rows, every fifth and the last."""
    filled = [i for i, part in enumerate(parts) if part is not None]
    return [i for k, i in enumerate(filled) if k % HELD_OUT == HELD_OUT - 1 or k == len(filled) - 1]


def split_by_pair(parts):
    """Join the rows of all pairs into training rows and held-out rows, never splitting a pair.

    Raises
    ------
    ValueError
        If fewer than two pairs have rows.
    """
    out = held_out_pairs(parts)
    train = joined_rows([part for i, part in enumerate(parts) if i not in out])
    if train is None:
        raise ValueError(
            f"pairs: {len(out)} of {len(parts)} have a source to learn from, at least 2 are needed: check that truth "
            "and images match, or give more pairs"
        )
    return train, joined_rows([parts[i] for i in out])


def joined_rows(parts):
    """Concatenate dicts of arrays, left out where None; None where all are."""
    parts = [part for part in parts if part is not None]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else None


def views(embedding, sides):
    """How users may see a pair: as it is, and, where it has both sides, from each of ``sides`` alone."""
    pair = embedding.pair
    if pair.ground is None or pair.space is None:
        return [embedding]
    kept = {"ground": (dict(pair.ground), None), "space": (None, dict(pair.space))}
    return [embedding, *(SkyPair(*kept[side], surveys=pair.surveys) for side in sides)]
