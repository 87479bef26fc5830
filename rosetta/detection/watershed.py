# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Cutting an image into peaks by persistence: a peak counts if it stands out from its saddle."""

import numpy as np

__all__ = ["persistent_watershed"]


def persistent_watershed(image, region, *, prominence, contrast):
    """Label the pixels of a region by the significant peak they drain to.

    Pixels are flooded from the highest down. Where two basins meet, the lower one is merged into the
    higher unless its peak stands above the meeting point by ``prominence`` and by ``contrast`` times the
    higher peak (topological persistence; Edelsbrunner et al. 2002).

    Parameters
    ----------
    image : (ny, nx) array
        Larger is brighter.
    region : (ny, nx) bool array
        Pixels to label.
    prominence : float
        In units of ``image``.
    contrast : float
        Dimensionless.

    Returns
    -------
    (ny, nx) int32 array
        0 outside the region; peaks are numbered from 1 in order of decreasing height.
    """
    ny, nx = image.shape
    # A border of zeros spares the bounds checks in the loop.
    padded = np.zeros((ny + 2, nx + 2), dtype=np.int64)
    y, x = np.nonzero(region)
    values = image[y, x].astype(float)
    order = np.argsort(-values, kind="stable")
    width = nx + 2
    where = ((y + 1) * width + x + 1)[order].tolist()
    values = values[order].tolist()
    steps = (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1)
    basin = padded.ravel().tolist()  # 0: not flooded yet
    parent, height, border = [0], [0.0], set()

    def root(k):
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for pixel, value in zip(where, values, strict=True):
        near = {root(basin[pixel + s]) for s in steps if basin[pixel + s]}
        if not near:
            parent.append(len(parent))
            height.append(value)
            basin[pixel] = len(parent) - 1
            continue
        if len(near) == 1:
            basin[pixel] = near.pop()
            continue
        high, *lower = sorted(near)  # basins are numbered from the highest peak down
        basin[pixel] = high
        for low in lower:
            if (low, high) in border:
                continue
            if height[low] - value < max(prominence, contrast * height[high]):
                parent[low] = high
            else:
                border.add((low, high))
    roots = [root(k) for k in range(len(parent))]
    number = np.zeros(len(parent), dtype=np.int32)
    kept = np.unique(roots[1:]) if len(roots) > 1 else np.zeros(0, int)
    number[kept] = np.arange(1, len(kept) + 1)
    table = number[np.array(roots, dtype=int)] if len(roots) > 1 else number
    return table[np.array(basin, dtype=np.int64).reshape(ny + 2, width)][1:-1, 1:-1]
