# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the heads that need truth share when they are trained."""

import numpy as np

__all__ = ["iterate_truth", "split_by_pair"]

HELD_OUT = 5  # every fifth pair is held out


def iterate_truth(pairs, truth, columns):
    """Yield (pair, truth table), one at a time.

    Raises
    ------
    ValueError
        If truth is missing, of another length, or lacks a column.
    """
    if truth is None:
        raise ValueError("truth is None: this head learns from known fluxes, give one truth table per pair")
    if len(truth) != len(pairs):
        raise ValueError(f"truth has {len(truth)} tables for {len(pairs)} pairs: give one per pair")
    if len(pairs) < 2:
        raise ValueError(f"pairs has {len(pairs)} entries: at least 2 are needed, as some are held out")
    for i in range(len(pairs)):
        table = truth[i]
        for name in columns:
            if name not in table.colnames:
                raise ValueError(f"truth[{i}] has no column {name!r}: use tables as rosetta.simulate makes them")
        yield pairs[i], table


def split_by_pair(parts):
    """Concatenate dicts of arrays into training rows and held-out rows, never splitting a pair.

    Raises
    ------
    ValueError
        If no pair has a source with truth.
    """
    kept = [(i, part) for i, part in enumerate(parts) if part is not None]
    held = [part for i, part in kept if i % HELD_OUT == HELD_OUT - 1 or i == len(parts) - 1]
    train = [part for i, part in kept if not (i % HELD_OUT == HELD_OUT - 1 or i == len(parts) - 1)]
    if not train or not held:
        raise ValueError("truth: too few pairs have a source with truth: check that the tables match the pairs")
    return _join(train), _join(held)


def _join(parts):
    out = {}
    for name in parts[0]:
        arrays = [np.asarray(part[name]) for part in parts]
        if name == "true" and arrays[0].ndim == 3:  # mixtures: pad to the longest with weights of zero
            longest = max(a.shape[1] for a in arrays)
            arrays = [np.pad(a, ((0, 0), (0, longest - a.shape[1]), (0, 0))) for a in arrays]
        out[name] = np.concatenate(arrays)
    return out
