# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The vectors that are nearest to others: exactly, block by block of a file, or through an index of faiss."""

import numpy as np

__all__ = ["build_index", "nearest", "nearest_by_index", "read_vectors"]

BLOCK = 65536  # vectors that are in memory at a time
SAMPLE = 40  # vectors per list that an index learns its lists from
PROBES = 64  # lists that are searched
FACTOR = 10  # candidates of an index per vector that is wanted; the best are chosen by their exact similarity


def read_vectors(path, dim):
    """The vectors in a file of float16, (n, dim); they stay on disk."""
    return np.memmap(path, np.float16, "r").reshape(-1, dim)


def nearest(vectors, queries, n):
    """The nearest vectors, by their dot product.

    Parameters
    ----------
    vectors : (m, dim) array
        Of length 1; any kind of float.
    queries : (q, dim) array
    n : int

    Returns
    -------
    rows : (q, k) int array
        The nearest first; k is ``n``, or m if that is less.
    similarity : (q, k) float32 array
    """
    queries = np.asarray(queries, np.float32)
    rows, best = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
    for first in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[first : first + BLOCK], np.float32)
        here = np.broadcast_to(np.arange(first, first + len(block)), (len(queries), len(block)))
        rows, best = _best(np.hstack([rows, here]), np.hstack([best, queries @ block.T]), n)
    return rows, best


def _best(rows, similarity, n):
    """The ``n`` most similar of each line, in order."""
    if n < similarity.shape[1]:
        keep = np.argpartition(-similarity, n - 1, axis=1)[:, :n]
        rows, similarity = (np.take_along_axis(values, keep, axis=1) for values in (rows, similarity))
    order = np.lexsort((rows, -similarity), axis=1)
    return tuple(np.take_along_axis(values, order, axis=1) for values in (rows, similarity))


def build_index(vectors, path):
    """Write an index of vectors: lists about centres (IVF), a byte for each component (SQ8).

    Parameters
    ----------
    vectors : (m, dim) array
    path : path-like

    Raises
    ------
    ImportError
        If faiss is not installed.
    """
    import faiss

    n_list = max(1, int(len(vectors) ** 0.5))
    index = faiss.index_factory(vectors.shape[1], f"IVF{n_list},SQ8", faiss.METRIC_INNER_PRODUCT)
    sample = np.linspace(0, len(vectors) - 1, min(len(vectors), SAMPLE * n_list)).astype(int)
    index.train(np.asarray(vectors[sample], np.float32))
    for first in range(0, len(vectors), BLOCK):
        index.add(np.asarray(vectors[first : first + BLOCK], np.float32))
    faiss.write_index(index, str(path))


def nearest_by_index(path, vectors, queries, n, probes=PROBES):
    """As `nearest`, with an index of the vectors, ``probes`` lists of it; some of the nearest can be missed."""
    import faiss

    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    index.nprobe = probes
    queries = np.asarray(queries, np.float32)
    _, candidates = index.search(queries, min(FACTOR * n, len(vectors)))
    found = []
    for query, rows in zip(queries, candidates, strict=True):
        rows = np.sort(rows[rows >= 0])  # -1: there are not as many in the lists
        found.append(_best(rows[None], (query @ np.asarray(vectors[rows], np.float32).T)[None], n))
    fewest = min(rows.shape[1] for rows, _ in found)
    return tuple(np.concatenate([part[k][:, :fewest] for part in found]) for k in (0, 1))
