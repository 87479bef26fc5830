# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A small survey: serial against two processes, and four cells against the same sky in one piece.

One simulated field is written as four Rubin patches that overlap and two MER tiles whose border is none of the cells'.
It is measured in four cells in this process, in two other processes, of which one is killed on the way, and in one cell
that holds all, with the same tiles. With --faults, a field of three by three cells is measured again and again while
processes are killed, the disk is full, a file is damaged, time runs out, or two runs share the survey. With --load N, a
plan of N cells of full size is driven through the engines with nothing to do, and through the files.

Run: python benchmarks/survey.py FOLDER [--faults] [--seed N] [--core ARCSEC] [--bands BAND ...] [--tables FOLDER]
     python benchmarks/survey.py FOLDER --load N [--parts plan process Dask files]
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from kit import survey_faults, survey_load
from kit.mini_survey import command, identical, one_thread, planned, rows, timed_run, write_files
from kit.tables import Tables, add_option

from rosetta.production.status import status
from rosetta.simulate import simulate_pair


# ---------------------------------------------------------------------------- runs
def killed_run(folder):
    """Two processes, of which one is killed as soon as it has begun a cell."""
    start = time.perf_counter()
    running = subprocess.Popen(command("run", folder, "--workers", "2"))
    while not (tries := list(folder.rglob("try-*.json"))):
        time.sleep(0.05)
    time.sleep(2)
    os.kill(json.loads(tries[0].read_text())["process"], signal.SIGKILL)
    if running.wait():
        raise SystemExit("the run did not go on after one of its processes was killed")
    return time.perf_counter() - start


# ---------------------------------------------------------------------------- comparison
def primary(folder):
    """The primary rows: positions and a dict of columns."""
    columns = {}
    for table in rows(folder):
        keep = np.array(table["is_primary"])
        for name in table.column_names:
            if name != "flux_cov":
                columns.setdefault(name, []).append(np.array(table[name])[keep])
    columns = {name: np.concatenate(parts) for name, parts in columns.items()}
    return SkyCoord(columns["ra"], columns["dec"], unit="deg"), columns


def nmad(values):
    return 1.4826 * np.median(np.abs(values - np.median(values)))


def seams(cells, whole, bands, middle):
    """Lines about the rows of the cells against those of one piece, near the borders of cells and far from them."""
    (sky, found), (sky_whole, reference) = primary(cells), primary(whole)
    other, apart, _ = sky.match_to_catalog_sky(sky_whole)
    back, apart_back, _ = sky_whole.match_to_catalog_sky(sky)
    _, twin, _ = sky.match_to_catalog_sky(sky, nthneighbor=2)
    same = (apart < 0.3 * u.arcsec) & (back[other] == np.arange(len(sky)))
    east, north = (value.to_value(u.arcsec) for value in middle.spherical_offsets_to(sky))
    near = np.minimum(np.abs(east), np.abs(north)) < 5
    east, north = (value.to_value(u.arcsec) for value in middle.spherical_offsets_to(sky_whole))
    near_whole = np.minimum(np.abs(east), np.abs(north)) < 5
    for name, here, there in (("within 5 arcsec of a border", near, near_whole), ("farther", ~near, ~near_whole)):
        use = same & here
        pull = np.concatenate([
            (found[f"flux_{band}"] - reference[f"flux_{band}"][other])[use] / found[f"flux_err_{band}"][use]
            for band in bands
        ])  # fmt: skip
        pull = pull[np.isfinite(pull)]
        yield (
            name, int(here.sum()), int((here & ~same).sum()), int((there & (apart_back > 0.3 * u.arcsec)).sum()),
            int((here & (twin < 0.1 * u.arcsec)).sum()), f"{np.median(apart[use].to_value(u.mas)):.2f}",
            f"{nmad(pull):.4f}", f"{100 * np.mean(np.abs(pull) > 0.5):.1f} %",
            int((found["flags"] != reference["flags"][other])[use].sum()),
        )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", action="store_true", help="what goes wrong, instead of the comparison")
    parser.add_argument("--load", type=int, metavar="N", help="N cells with nothing to do, instead of the comparison")
    parser.add_argument("--parts", nargs="+", default=["plan", "process", "Dask", "files"], help="of --load")
    parser.add_argument("--seed", type=int, default=7501)
    parser.add_argument("--core", type=float, default=25.6, help="arcsec, of one of two by two cells; default: 25.6")
    parser.add_argument("--bands", nargs="+", default=["r", "VIS"])
    add_option(parser)
    options = parser.parse_args()
    one_thread()
    shutil.rmtree(options.folder, ignore_errors=True)
    if options.load:
        head = ("what", "cells", "wall s", "CPU s", "CPU ms a cell")
        found = survey_load.lines(options.folder, options.load, options.parts)
        Tables(options.tables).show("survey_load", "Cells with nothing to do", head, found)
        return
    if options.faults:
        pair, _ = simulate_pair(seed=options.seed, size=survey_faults.SIZE * u.arcsec, bands=options.bands)
        write_files(options.folder / "files", pair)
        head = ("fault", "exit codes", "done", "given up", "done after", "cells as before", "left over")
        Tables(options.tables).show("survey_faults", "What goes wrong", head, survey_faults.lines(options.folder))
        return
    files = options.folder / "files"
    size = 2 * options.core * u.arcsec
    pair, truth = simulate_pair(seed=options.seed, size=size, bands=options.bands)
    write_files(files, pair)
    names = ("serial", "processes", "whole")
    serial, processes, whole = (
        planned(files / "rubin", files / euclid, options.folder / name, factor * options.core, options.core)
        for name, euclid, factor in zip(names, ("euclid", "euclid", "euclid_whole"), (1, 1, 2), strict=True)
    )
    seconds = [timed_run(serial, "--serial"), killed_run(processes), timed_run(whole, "--serial")]
    tables = Tables(options.tables)
    lines = []
    for name, folder, wall in zip(names, (serial, processes, whole), seconds, strict=True):
        found = status(folder)
        lines.append((
            name, found["done"], found["rows"], found["primary"], f"{3600 * found['cpu_hours']:.0f}", f"{wall:.0f}",
            f"{found['peak_memory_gib']:.2f}",
        ))  # fmt: skip
    head = ("run", "cells", "rows", "primary", "CPU s", "wall s", "peak GiB")
    tables.show("survey_runs", "Two by two cells, and the same sky in one cell", head, lines)
    outcome = "identical" if identical(serial, processes) else "different"
    print(f"\nTables of the serial run and of two processes, of which one was killed: {outcome}")
    image = next(iter(pair.ground.values()))
    middle = image.wcs.pixel_to_world(*(np.array(image.data.shape[::-1]) / 2 - 0.5))
    head = ("primary rows", "n", "new", "lost", "twice", "apart, mas", "NMAD, sigma", "> 0.5 sigma", "flags differ")
    tables.show("survey_seams", f"Cells against one piece ({len(truth)} true sources)", head,
                seams(serial, whole, pair.bands, middle))  # fmt: skip


if __name__ == "__main__":
    main()
