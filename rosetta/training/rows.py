# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Training rows of the heads: one pair at a time, kept in a file that an interrupted run resumes from."""

import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np

from ..pair import SkyPair

__all__ = ["held_out_pairs", "joined_rows", "split_by_pair", "training_parts", "views"]

HELD_OUT = 5  # every fifth pair is held out
LENGTH = 8  # bytes before each pair's rows in a checkpoint that hold their number of bytes


def training_parts(pairs, truth, columns, prepare, *, owner, checkpoint=None):
    """Training rows of every pair; pairs that a checkpoint already holds are neither read nor prepared again.

    Parameters
    ----------
    pairs, truth : sequence
        One truth table per pair; both are read one at a time.
    columns : sequence of str
        That every table must have.
    prepare : callable
        (pair, table) -> dict of arrays, or None for a pair without usable rows.
    owner : str
        What the rows depend on beside the sky, one line: kind, fingerprints, seed.
    checkpoint : path-like, optional
        File of finished pairs, grown by one pair at a time: a killed run loses the pair it was at.

    Returns
    -------
    list of (dict of arrays or None)

    Raises
    ------
    ValueError
        If truth is missing, of another length, or lacks a column, or the checkpoint is of something else.
    """
    if truth is None:
        raise ValueError("truth is None: this head learns from known fluxes, give one truth table per pair")
    if len(truth) != len(pairs):
        raise ValueError(f"truth has {len(truth)} tables for {len(pairs)} pairs: give one per pair")
    if len(pairs) < 2:
        raise ValueError(f"pairs has {len(pairs)} entries: at least 2 are needed, as some are held out")
    path = None if checkpoint is None else Path(checkpoint)
    stored, parts = [] if path is None else _open(path, owner), []
    for i in range(len(pairs)):
        table = truth[i]
        for name in columns:
            if name not in table.colnames:
                raise ValueError(f"truth[{i}] has no column {name!r}: use tables as rosetta.simulate makes them")
        mark = _mark(table)
        if i < len(stored):
            before, part = stored[i]
            if before != mark:
                raise ValueError(f"checkpoint {path.name!r} was made with another truth[{i}]: use a new file")
        else:
            part = prepare(pairs[i], table)
            if path is not None:
                _append(path, mark, part)
        parts.append(part)
    return parts


def _mark(table):
    """Sixteen hex digits that tell one truth table from another by its positions."""
    coord = table["sky_centroid"].icrs
    return hashlib.sha256(np.stack([coord.ra.deg, coord.dec.deg]).tobytes()).hexdigest()[:16]


def _open(path, owner):
    """Finished pairs of a checkpoint, [(mark, part)]; what a killed run left half written is cut off."""
    head = f"rosetta training rows 4: {owner}\n".encode()
    if not path.parent.is_dir():
        raise ValueError(f"checkpoint {str(path)!r}: its folder does not exist, create it first")
    if not path.exists() or path.stat().st_size == 0:
        path.write_bytes(head)
        return []
    found = []
    with open(path, "r+b") as file:
        if file.read(len(head)) != head:
            raise ValueError(
                f"checkpoint {path.name!r} holds no training rows of this head, encoder and seed: use a new file"
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
            found.append((mark, part or None))
        file.truncate(whole)
    return found


def _append(path, mark, part):
    """Add the rows of one pair to a checkpoint."""
    block = io.BytesIO()
    np.savez(block, mark=mark, **(part or {}))
    with open(path, "ab") as file:
        file.write(len(block.getvalue()).to_bytes(LENGTH, "little") + block.getvalue())
        file.flush()
        os.fsync(file.fileno())


def held_out_pairs(parts):
    """Numbers of the pairs with rows that never train: every fifth, and the last."""
    last = len(parts) - 1
    return [i for i, part in enumerate(parts) if part is not None and (i % HELD_OUT == HELD_OUT - 1 or i == last)]


def split_by_pair(parts):
    """Concatenate dicts of arrays into training rows and held-out rows, never splitting a pair.

    Raises
    ------
    ValueError
        If no pair has a source with truth.
    """
    out = held_out_pairs(parts)
    held = [parts[i] for i in out]
    train = [part for i, part in enumerate(parts) if part is not None and i not in out]
    if not train or not held:
        raise ValueError("truth: too few pairs have a source with truth: check that the tables match the pairs")
    return joined_rows(train), joined_rows(held)


def views(embedding, sides):
    """How users may see a pair: as it is, and, where it has both sides, from each of ``sides`` alone."""
    pair = embedding.pair
    if pair.ground is None or pair.space is None:
        return [embedding]
    kept = {"ground": (dict(pair.ground), None), "space": (None, dict(pair.space))}
    return [embedding, *(SkyPair(*kept[side], surveys=pair.surveys) for side in sides)]


def joined_rows(parts):
    """Concatenate dicts of arrays, left out where None; None where all are."""
    parts, out = [part for part in parts if part is not None], {}
    if not parts:
        return None
    for name in parts[0]:
        arrays = [np.asarray(part[name]) for part in parts]
        if name == "true" and arrays[0].ndim == 3:  # mixtures: pad to the longest with weights of zero
            longest = max(a.shape[1] for a in arrays)
            arrays = [np.pad(a, ((0, 0), (0, longest - a.shape[1]), (0, 0))) for a in arrays]
        out[name] = np.concatenate(arrays)
    return out


