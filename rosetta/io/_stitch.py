# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Images of one pixel grid, put together by whole pixels, and the PSFs of their cells.

Boxes are (y0, y1, x0, x1): first pixels and those after the last, on the common grid.
"""

import numpy as np

from ..images.psf import PSF

__all__ = ["check_one_grid", "overlap", "psf_of_cells", "stitch", "union"]

# What two files of one processing may differ by: rounding, and the step of lossy compression (sigma/16).
_ROUNDING = 1e-5
_SIGMAS = 0.1


def union(boxes):
    """The smallest box that holds all boxes."""
    y0, y1, x0, x1 = zip(*boxes, strict=True)
    return min(y0), max(y1), min(x0), max(x1)


def overlap(box, other):
    """The box that two boxes share, or None."""
    y0, x0 = max(box[0], other[0]), max(box[2], other[2])
    y1, x1 = min(box[1], other[1]), min(box[3], other[3])
    return (y0, y1, x0, x1) if y1 > y0 and x1 > x0 else None


def check_one_grid(files):
    """Refuse files of one band that do not lie on one pixel grid, or cover the same pixels.

    Parameters
    ----------
    files : list of `RubinFile`

    Raises
    ------
    ValueError
        Naming two of them.
    """
    first, *others = files
    boxes = {first.box: first}
    for other in others:
        y0, y1, x0, x1 = other.box
        x, y = np.array([0, x1 - x0, 0, x1 - x0]), np.array([0, 0, y1 - y0, y1 - y0])
        there = first.wcs(other.box).world_to_pixel(other.wcs(other.box).pixel_to_world(x, y))
        apart = np.hypot(there[0] - x, there[1] - y).max()
        tracts = {file.tract for file in (first, other)} - {None}
        if not apart < 1e-3 or len(tracts) > 1:
            numbers = f" (tracts {first.tract} and {other.tract})" if len(tracts) > 1 else ""
            raise ValueError(
                f"{first.argument}: {first.name} and {other.name} both hold band {first.band!r} but lie on different "
                f"pixel grids{numbers}: give patches of one tract, and make a pair of each tract"
            )
        if other.box in boxes:
            raise ValueError(
                f"{first.argument}: {boxes[other.box].name} and {other.name} both hold band {first.band!r} of the same "
                "pixels: give each patch once"
            )
        boxes[other.box] = other


def stitch(pieces, box, argument):
    """One image from several.

    Where pieces overlap, the first one with a good pixel gives it. Where there is no piece, pixels are masked, with
    infinite variance and without a value (NaN).

    Parameters
    ----------
    pieces : iterable of (str, tuple, array, array, array)
        Name, box, data, variance and mask of each piece; used one at a time.
    box : tuple of int
        Of the image.
    argument : str
        What error messages call the list of files.

    Returns
    -------
    data, variance : (ny, nx) float32 array
    mask : (ny, nx) bool array

    Raises
    ------
    ValueError
        If two pieces differ on pixels that are good in both, by more than rounding and a tenth of sigma.
    """
    shape = box[1] - box[0], box[3] - box[2]
    data, variance = np.full(shape, np.nan, np.float32), np.full(shape, np.inf, np.float32)
    mask, giver, names = np.ones(shape, bool), np.full(shape, -1, np.int16), []
    for name, (y0, y1, x0, x1), *new in pieces:
        window = slice(y0 - box[0], y1 - box[0]), slice(x0 - box[2], x1 - box[2])
        old = data[window], variance[window], mask[window]
        differ = _differ(*old, *new)
        if differ.any():
            other = names[giver[window][differ][0]]
            raise ValueError(
                f"{argument}: {other} and {name} differ on {differ.sum()} pixels of their overlap: "
                "give files of one processing, or one of the two"
            )
        take = old[2] & (~new[2] | (giver[window] < 0))
        for array, values in zip(old, new, strict=True):
            array[take] = values[take]
        giver[window][take] = len(names)
        names.append(name)
    return data, variance, mask


def _differ(data, variance, mask, new_data, new_variance, new_mask):
    """Where two images are both good and do not agree."""
    both = ~(mask | new_mask)
    with np.errstate(invalid="ignore"):
        limit = _ROUNDING * np.maximum(abs(data), abs(new_data)) + _SIGMAS * np.sqrt(np.minimum(variance, new_variance))
        return both & (abs(data - new_data) > limit)


def psf_of_cells(parts, box):
    """The PSF of an image whose cells each have their own.

    A cell without one gets that of the nearest cell that has one.

    Parameters
    ----------
    parts : list of (`RubinFile`, tuple, array)
        First pixel (y, x) of the first cell, and stamps (n_y, n_x, k, l) of the cells of each file that touch the box,
        NaN for those without data. Where cells of files coincide, the first file that has it gives the stamp.
    box : tuple of int
        Of the image.

    Returns
    -------
    `~rosetta.PSF` or None
        On pixels of the image; None if no cell has a PSF.

    Raises
    ------
    ValueError
        If the cells of the files do not lie on one grid, or differ in size.
    """
    file, first, stamps = parts[0]
    step, argument = file.cells.step, file.argument
    for other, start, more in parts[1:]:
        off = any((b - a) % n for a, b, n in zip(first, start, step, strict=True))
        if off or other.cells.step != step or more.shape[2:] != stamps.shape[2:]:
            raise ValueError(
                f"{argument}: the PSF cells of {file.name} and {other.name} do not lie on one grid, or differ in size: "
                "give files of one processing"
            )
    corner, number = [], []  # of the cells that reach over the image and all the cells given
    for axis in (0, 1):
        low = min(box[2 * axis], *(start[axis] for _, start, _ in parts))
        high = max(box[2 * axis + 1], *(start[axis] + step[axis] * more.shape[axis] for _, start, more in parts))
        corner.append(first[axis] + (low - first[axis]) // step[axis] * step[axis])
        number.append(-(-(high - corner[axis]) // step[axis]))
    cells = np.full((*number, *stamps.shape[2:]), np.nan)
    for _, start, stamps in parts:
        y, x = ((s - c) // n for s, c, n in zip(start, corner, step, strict=True))
        into = cells[y : y + len(stamps), x : x + stamps.shape[1]]
        empty = np.isnan(into).any((2, 3))
        into[empty] = stamps[empty]
    here = ~np.isnan(cells).any((2, 3))
    if not here.any():
        return None
    _fill(cells, here)
    y, x = (
        low + n * np.arange(count) + (n - 1) / 2 - origin
        for low, n, count, origin in zip(corner, step, number, box[::2], strict=True)
    )
    return PSF.on_grid(cells, x, y, smooth=False, name=f"{argument}: the PSF of {file.name}")


def _fill(cells, here):
    """Give every empty cell the stamp of the nearest one."""
    given = np.argwhere(here)
    for i, j in np.argwhere(~here):
        cells[i, j] = cells[tuple(given[np.argmin(((given - (i, j)) ** 2).sum(1))])]
