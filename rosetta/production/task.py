# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Measuring one cell. Every engine calls the same function."""

import os
import platform
import sys
import time
import warnings

import astropy.units as u
import numpy as np

from ..columns import describe
from ..io import euclid, rubin
from ..pair import SkyPair
from ..surveys import EUCLID
from . import sky_maps
from .cells import owner, within_core
from .inputs import check_unchanged
from .metrics import metrics
from .models import loaded
from .store import TRIES, Store

__all__ = ["AGAIN", "DONE", "FAILED", "BadInput", "attempt", "run_cell"]

DONE, AGAIN, FAILED = "done", "again", "failed"
CELL_BITS, ROW_BITS = 16, 32  # of object_id


class BadInput(Exception):
    """The files of a cell cannot be used: to try again would not help."""


def attempt(cell, config, limit):
    """Measure a cell, unless it is done; errors are noted, not raised, unless that is impossible.

    Bad input is final. After any other error the cell is to be tried again, three times in all; a process that was
    killed counts as a try.

    Parameters
    ----------
    cell : Cell
    config : Config
    limit : float
        Seconds after which a try is given up. It is looked at between steps, and within the longer ones.

    Returns
    -------
    str
        `DONE`, `AGAIN` or `FAILED`.

    Raises
    ------
    OSError
        If the survey's disk is full or cannot be written to.
    """
    store = Store(config.folder)
    if store.is_done(cell.index):
        return DONE
    if store.failure(cell.index):
        return FAILED
    tries = store.tries(cell.index, limit)
    if len(tries) >= TRIES:
        return _given_up(store, cell, tries)
    try:
        with store.trying(cell.index):
            run_cell(cell, config, limit=limit)
    except BadInput as error:
        store.fail(cell.index, str(error), len(tries) + 1)
        return FAILED
    except Exception:
        if store.is_done(cell.index):  # by another runner
            return DONE
        before, tries = tries, store.tries(cell.index, limit)
        if len(tries) <= len(before):  # it could not be noted: without end, all cells would be tried again
            raise
        return AGAIN if len(tries) < TRIES else _given_up(store, cell, tries)
    return DONE


def _given_up(store, cell, tries):
    last = tries[-1]
    message = last.get("message", "the process was killed: out of memory, or stopped from outside")
    store.fail(cell.index, message, len(tries), last.get("traceback", ""))
    return FAILED


def run_cell(cell, config, *, limit=np.inf):
    """Read, measure and write one cell.

    Only the core with its margin leaves the disk. The windows of the encoder lie on the tract's grid, each in one core.

    Parameters
    ----------
    cell : Cell
    config : Config
        Names the folder in which tables and record are written.
    limit : float, optional
        Seconds after which a `TimeoutError` is raised.

    Returns
    -------
    dict
        The record: ``state`` ("done"; "empty" where no core pixel is valid), counts, seconds, memory, inputs.

    Raises
    ------
    BadInput
        If the files are not those of the plan or cannot be used.
    TimeoutError
        If it takes too long.
    """
    start, cpu = time.time(), time.process_time()
    store = Store(config.folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pair = _pair(cell)
        record = {"state": "empty", "tract": cell.tract, "cell": cell.number, "tile": cell.tile}
        if pair is not None:
            record["state"] = "done"
            record |= _measure(pair, cell, config, store, _clock(start, limit))
    record |= {
        "inputs": [os.path.basename(path) for path, *_ in cell.rubin + cell.euclid],
        "warnings": list(dict.fromkeys(str(warning.message) for warning in caught)),
        "started": start,
        "seconds": time.time() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_memory_gib": _peak(),
        "host": platform.node(),
        "process": os.getpid(),
        "finished": time.time(),
    }
    store.finish(cell.index, record)
    return record


def _clock(start, limit):
    """A function for progress that raises when the time is over."""

    def progress(step, done, total):
        if time.time() - start > limit:
            raise TimeoutError(f"not finished after {limit:g} s (in step {step!r})")

    return progress


def _peak():
    """The most memory that this process has had, GiB."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


# ---------------------------------------------------------------------------- reading
def _pair(cell):
    """The images of a cell, or None if no pixel of its core is valid."""
    wcs, (y0, y1, x0, x1) = cell.tracts[0].wcs, cell.box
    center = wcs.pixel_to_world((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2)
    scale = np.sqrt(np.abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600
    size = np.array([y1 - y0, x1 - x0]) * scale * u.arcsec
    try:
        check_unchanged(cell.rubin + cell.euclid)
        ground = rubin.read_bands([path for path, *_ in cell.rubin], center=center, size=size)
        space = {}
        if cell.euclid:
            paths = [path for path, *_ in cell.euclid]
            space = euclid.read_bands(paths, center=center, size=cell.euclid_size * u.arcsec)
        sides = [
            {band: image for band, image in side.items() if not image.mask.all()}
            for side in (ground, {band: image for band, image in space.items() if band in EUCLID.band_names})
        ]
        if not any(_has_core(image, cell) for side in sides for image in side.values()):
            return None
        return SkyPair(*(side or None for side in sides))
    except (ValueError, TypeError) as error:
        raise BadInput(str(error)) from error


def _has_core(image, cell):
    """Whether a valid pixel of an image lies in the core of a cell."""
    y, x = np.nonzero(~image.mask)
    some = slice(None, None, max(1, len(y) // 10000))  # enough to see more than a few pixels
    y0, y1, x0, x1 = cell.core
    x, y = cell.tracts[0].pixels(image.wcs.pixel_to_world(x[some], y[some]))
    return bool(np.any((x >= x0 - 0.5) & (x < x1 - 0.5) & (y >= y0 - 0.5) & (y < y1 - 0.5)))


# ---------------------------------------------------------------------------- measuring
def _windows(cell, config):
    """Centres of the encoder's windows: the core, cut into squares of one step."""
    y0, _, x0, _ = cell.core
    step = config.pixels("step")
    places = (np.arange(config.pixels("core") // step) + 0.5) * step - 0.5
    x, y = (axis.ravel() for axis in np.meshgrid(x0 + places, y0 + places))
    return cell.tracts[0].wcs.pixel_to_world(x, y)


def _tile_corners(cell, config):
    """Where the tiles of the core meet: at the same places whatever the cells, so that fits see the same pixels."""
    y0, y1, x0, x1 = cell.core
    n = round(config.core / config.tile) + 1
    x, y = np.meshgrid(np.linspace(x0, x1, n) - 0.5, np.linspace(y0, y1, n) - 0.5)
    return cell.tracts[0].wcs.pixel_to_world(x, y)


def _measure(pair, cell, config, store, progress):
    """Measure a pair and write the tables; what the record says of it."""
    from ..astrometry.solution import as_solution
    from ..checkpoint import versions
    from ..images.image import band_images
    from ..pipeline.run import measure

    result = measure(
        pair, window=config.window * u.arcsec, centers=_windows(cell, config),
        tile_corners=_tile_corners(cell, config), progress=progress, **loaded(config.models),
    )  # fmt: skip
    objects = _objects(result, cell, config)
    windows = result.embedding.to_table()
    store.write_table(cell.index, "objects", objects)
    if result.offsets is not None:
        store.write_table(cell.index, "offsets", result.offsets)
    store.write_table(cell.index, "windows", windows)
    images = {band: band_images(pair)[band] for band in result.scene.bands}
    counts = sky_maps.counts(images, result.scene.meta["noise_factor"], cell)
    store.write_table(cell.index, "maps", counts)
    verdict = None if result.offsets is None else as_solution(result.offsets).verdict
    return {
        "versions": versions(),
        "bands": list(result.scene.bands),
        "n_rows": len(objects),
        "n_primary": int(objects["is_primary"].sum()),
        "n_windows": len(windows),
        "verdict": verdict,
        "metrics": metrics(result, objects, counts),
        "steps": dict(result.seconds),
    }


def _objects(result, cell, config):
    """The catalogue of a cell, with where each row comes from."""
    from ..pipeline.products import with_shapes

    table = with_shapes(result)
    position = table["sky_centroid"]
    tract = cell.tracts[0]
    x, y = tract.pixels(position)
    primary = within_core(x, y, cell.number, config.pixels("core"))
    if len(cell.tracts) > 1 and len(table):
        primary &= owner(position, list(cell.tracts)) == cell.tract
    first = (cell.tract << CELL_BITS | cell.number) << ROW_BITS
    table.add_column(first + np.arange(len(table), dtype=np.int64), name="object_id", index=0)
    table.add_column(primary, name="is_primary", index=1)
    table["patch"] = _patch(x, y, cell.patches)
    table["mer_tile"] = np.full(len(table), cell.tile)
    describe(table, result.scene.bands)
    return table


def _patch(x, y, patches):
    """The patch of each position, that in which it lies deepest: (n,) int32."""
    found, deepest = np.full(len(x), -1, np.int32), np.full(len(x), -np.inf)
    for number, (y0, y1, x0, x1) in patches:
        depth = np.minimum(np.minimum(x - x0, x1 - 1 - x), np.minimum(y - y0, y1 - 1 - y))
        better = depth > deepest
        found[better], deepest[better] = number, depth[better]
    return found
