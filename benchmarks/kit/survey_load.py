# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What a survey costs beside the measurements: plan, engines and files, with cells in which nothing is done."""

import shutil
import time
from functools import partial

import numpy as np
from astropy.wcs import WCS

from rosetta.production import engines
from rosetta.production.status import status
from rosetta.production.store import Store
from rosetta.production.survey import Config, Survey, read, write
from rosetta.production.task import AGAIN, DONE

__all__ = ["lines"]

SIDE, PATCHES, CORE = 20, 10, 1536  # cells and patches along a side of a tract; pixels of a cell
BANDS = "ugrizy"
WORKERS = 2


def planned(folder, n):
    """A plan of ``n`` cells in tracts of 400, each with 600 Rubin files, and 24 Rubin and 12 Euclid files to a cell."""
    config = Config(str(folder), 307.2, 10.0, 38.4, 25.6, 102.4, "", *"abcde")
    step = SIDE * CORE // PATCHES
    inputs, rows, cards = [], [], {}
    for tract in range(-(-n // SIDE**2)):
        wcs = WCS(naxis=2)
        wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], (2 * tract % 360, -30 + 2 * (tract // 180))
        wcs.wcs.cd, wcs.wcs.crpix = np.diag([-0.2, 0.2]) / 3600, [SIDE * CORE / 2] * 2
        cards[tract] = wcs.to_header().tostring()
        first = len(inputs)
        inputs += [
            {"path": f"/rubin/{tract}/{patch}/{band}.fits", "size": 10**8, "version": "1", "survey": "rubin",
             "band": band, "tract": tract, "patch": patch, "tile": "", "y0": y * step, "y1": (y + 1) * step,
             "x0": x * step, "x1": (x + 1) * step}
            for patch in range(PATCHES**2) for y, x in [divmod(patch, PATCHES)] for band in BANDS
        ]  # fmt: skip
        space = len(inputs)
        inputs += [
            {"path": f"/euclid/{tract}/{k}.fits", "size": 10**9, "version": "1", "survey": "euclid", "band": "VIS",
             "tract": -1, "patch": -1, "tile": str(tract), "y0": 0, "y1": 1, "x0": 0, "x1": 1}
            for k in range(120)
        ]  # fmt: skip
        for k in range(min(SIDE**2, n - tract * SIDE**2)):
            i, j = divmod(k, SIDE)
            patches = {PATCHES * y + x for y in (i // 2, min((i + 1) // 2, 9)) for x in (j // 2, min((j + 1) // 2, 9))}
            files = [first + len(BANDS) * patch + band for patch in sorted(patches) for band in range(len(BANDS))]
            rows.append({
                "tract": tract, "cell": 256 * i + j, "tile": str(tract), "others": "",
                "rubin": " ".join(map(str, files)),
                "euclid": " ".join(str(space + 12 * (k // 40) + band) for band in range(12)),
                "euclid_height": 330.0, "euclid_width": 330.0, "ra": 2.0 * tract % 360, "dec": -30.0,
            })  # fmt: skip
    return Survey(config, inputs, rows, cards)


def nothing(cell):
    """The work on a cell that is none."""
    return DONE


def drive(survey, engine):
    """Nothing, in all cells; wall and CPU seconds of this process from the first that is finished on."""
    start = None
    with engine as made:
        for _ in engines.drive(survey.cells(survey.indices), nothing, made, again=AGAIN, give_up=nothing):
            start = start or (time.perf_counter(), time.process_time())
        return time.perf_counter() - start[0], time.process_time() - start[1]


def dask(survey):
    """As `drive`; the scheduler is in this process."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster:
        return drive(survey, engines.dask(cluster.scheduler_address))


def recorded(survey):
    """A record for each cell, as a run leaves it."""
    store = Store(survey.config.folder)
    for number, (tract, cell) in enumerate(survey.indices):
        store.finish((tract, cell), {
            "state": "done", "tract": tract, "cell": cell, "finished": float(number), "seconds": 200.0, "n_rows": 1000,
            "n_primary": 900, "cpu_seconds": 200.0, "peak_memory_gib": 2.5, "bands": list(BANDS),
            "inputs": ["a"] * 36, "metrics": {f"metric_{k}": 1.234567 for k in range(60)},
        })  # fmt: skip


def left(survey):
    """Look for the cells that a run would have to do, and put all files of the survey in one list, as it does."""
    store = Store(survey.config.folder)
    assert not [index for index in survey.indices if not store.is_done(index) and not store.failure(index)]
    dict.fromkeys(file for cell in survey.cells(survey.indices) for file in cell.rubin + cell.euclid)


def timed(step):
    """Wall and CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    return step() or (time.perf_counter() - wall, time.process_time() - cpu)


def lines(folder, n, parts):
    """Rows of a table: what is done, cells, wall seconds, CPU seconds of this process, CPU milliseconds for a cell.

    ``parts`` are words of the names of what is done.
    """
    shutil.rmtree(folder, ignore_errors=True)
    survey = planned(folder, n)
    steps = {
        "plan written": partial(write, survey), "plan read": lambda: read(folder) and None,
        "tasks, this process": lambda: drive(survey, engines.here()),
        f"tasks, {WORKERS} processes": lambda: drive(survey, engines.processes(WORKERS)),
        f"tasks, {WORKERS} Dask workers": partial(dask, survey),
        "files: records written": partial(recorded, survey), "files: status": lambda: status(folder) and None,
        "files: cells left": partial(left, survey),
    }  # fmt: skip
    for name, step in steps.items():
        if any(part in name for part in parts):
            wall, cpu = timed(step)
            yield name, n, f"{wall:.1f}", f"{cpu:.1f}", f"{1e3 * cpu / n:.2f}"
