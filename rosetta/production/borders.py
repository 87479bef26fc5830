# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Sources on the borders of cells that are primary in two cells, or in none.

Two cells place a source some milliarcseconds apart. On a border each of them can take it for its own, or for the
other's.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from astropy.coordinates import SkyCoord
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from ..surveys import PIXEL_SCALE
from .cells import owner, within_core

__all__ = ["RADIUS", "Borders", "resolve"]

RADIUS = 0.1  # arcsec within which rows of two cells are one source
COLUMNS = ["object_id", "is_primary", "snr", "ra", "dec"]
CELL = 32  # bits of object_id after those that name tract and cell


@dataclass(frozen=True)
class Borders:
    """What becomes of the rows on borders.

    Parameters
    ----------
    dropped, kept, added : (n,) int array
        Sorted ``object_id``: primary rows that another cell's row replaces, the rows that replace them, and rows that
        were primary in no cell.
    duplicates, orphans : mapping of (int, int) to int
        Sources that were primary twice and never, by the (tract, cell) of the row that stays.
    """

    dropped: np.ndarray
    kept: np.ndarray
    added: np.ndarray
    duplicates: Counter
    orphans: Counter


def resolve(survey, store, indices):
    """Find the sources that are primary in more than one cell or in none; the row of highest S/N is to stay.

    Parameters
    ----------
    survey : Survey
    store : Store
    indices : list of tuple
        The cells that have tables.

    Returns
    -------
    Borders
    """
    if not indices:
        return Borders(*[np.zeros(0, np.int64)] * 3, Counter(), Counter())
    parts = [_near_border(store.table(cell.index, "objects", COLUMNS), cell, survey.config)
             for cell in survey.cells(indices)]  # fmt: skip
    number, primary, snr, ra, dec = (np.concatenate([part[name] for part in parts]) for name in COLUMNS)
    group = _groups(number >> CELL, ra, dec)
    # The best row of each group comes first.
    order = np.lexsort((number, -np.nan_to_num(snr), group))
    number, primary, group = number[order], primary[order].astype(bool), group[order]
    n_row, n_primary = np.bincount(group), np.bincount(group, primary)
    first = np.append(True, group[1:] != group[:-1])[: len(group)]
    best = np.full(len(n_row), -1)
    best[group[primary][::-1]] = np.flatnonzero(primary)[::-1]  # the first primary row of each
    twice = n_primary[group] > 1
    kept = twice & (np.arange(len(group)) == best[group])
    added = first & (n_primary[group] == 0) & (n_row[group] > 1)
    return Borders(
        np.sort(number[twice & primary & ~kept]), np.sort(number[kept]), np.sort(number[added]),
        _by_cell(number[kept]), _by_cell(number[added]),
    )  # fmt: skip


def _by_cell(number):
    return Counter((int(n >> 48), int(n >> CELL & 0xFFFF)) for n in number)


def _near_border(table, cell, config):
    """The rows of a cell from which the border of what it owns is not farther than `RADIUS`; arrays by column."""
    columns = {name: table[name].to_numpy() for name in COLUMNS}
    sky = SkyCoord(columns["ra"], columns["dec"], unit="deg")
    x, y = cell.tracts[0].pixels(sky)
    step = RADIUS / PIXEL_SCALE["ground"]
    sides = [_owned(x + dx * step, y + dy * step, cell, config) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    near = np.any(sides, axis=0) & ~np.all(sides, axis=0)
    return {name: values[near] for name, values in columns.items()}


def _owned(x, y, cell, config):
    """Whether a cell owns positions (pixels of its tract)."""
    owned = within_core(x, y, cell.number, config.pixels("core"))
    if len(cell.tracts) > 1 and len(x):
        owned &= owner(cell.tracts[0].wcs.pixel_to_world(x, y), list(cell.tracts)) == cell.tract
    return owned


def _groups(cell, ra, dec):
    """Number of the group of each row: rows of different cells that are each other's nearest within `RADIUS`."""
    if not len(cell):
        return np.zeros(0, int)
    place = SkyCoord(ra, dec, unit="deg").cartesian.xyz.value.T
    pairs = KDTree(place).query_pairs(np.radians(RADIUS / 3600), output_type="ndarray")
    one, two = np.concatenate([pairs, pairs[:, ::-1]]).T  # each pair from both sides
    other = cell[one] != cell[two]
    one, two = one[other], two[other]
    order = np.argsort(np.sum((place[one] - place[two]) ** 2, 1), kind="stable")
    one, two = one[order], two[order]
    _, nearest = np.unique(np.stack([one, cell[two]]), axis=1, return_index=True)
    links = coo_array((np.ones(len(nearest)), (one[nearest], two[nearest])), shape=(len(cell), len(cell))).tocsr()
    return connected_components(links.multiply(links.T), directed=False)[1]
