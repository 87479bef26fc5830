# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A small survey: serial against two processes, and four cells against the same sky in one piece.

One simulated field is written as four Rubin patches that overlap and two MER tiles whose border is none of the cells'.
It is measured in four cells in this process, in two other processes, of which one is killed on the way, and in one cell
that holds all.

Run: python benchmarks/survey.py FOLDER [--seed N] [--core ARCSEC] [--bands BAND ...] [--tables FOLDER]
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from kit.tables import Tables, add_option
from pyarrow import parquet

from rosetta.production.status import status
from rosetta.production.store import Store
from rosetta.production.survey import read
from rosetta.simulate import simulate_pair

TRACT = 1
NIR = {"Y_E": "NIR_Y", "J_E": "NIR_J", "H_E": "NIR_H"}


# ---------------------------------------------------------------------------- files
def write_files(folder, pair):
    """The images of a pair as patches and tiles, and as one tile."""
    for name in ("rubin", "euclid", "euclid_whole"):
        (folder / name).mkdir(parents=True)
    for band, image in pair.ground.items():
        ny, nx = image.data.shape
        for patch in range(4):
            rows, columns = (slice(0, int(0.6 * n)) if half == 0 else slice(int(0.4 * n), n)
                             for n, half in zip((ny, nx), divmod(patch, 2), strict=True))  # fmt: skip
            write_patch(folder / "rubin" / f"{band}_{patch}.fits", image, (rows, columns), band, patch)
    nx = next(iter(pair.space.values())).data.shape[1]
    tiles = {
        "euclid/tile1": slice(0, int(0.65 * nx)), "euclid/tile2": slice(int(0.25 * nx), nx),
        "euclid_whole/tile": slice(0, nx),
    }  # fmt: skip
    for name, columns in tiles.items():
        hdus = [fits.PrimaryHDU()]
        for band, image in pair.space.items():
            hdus += planes(image, columns, NIR.get(band, band))
        fits.HDUList(hdus).writeto(folder / f"{name}.fits")


def write_patch(path, image, part, band, patch):
    rows, columns = part
    header = image.wcs[part].to_header(relax=True)
    header["LTV1"], header["LTV2"] = -float(columns.start), -float(rows.start)
    header["BUNIT"], header["FILTER"] = "nJy", f"{band}_03"
    mask_header = header.copy()
    mask_header["HIERARCH MP_NO_DATA"] = 0
    primary = fits.PrimaryHDU()
    for name, value in (("TRACT", TRACT), ("PATCH", patch)):
        primary.header[f"HIERARCH LSST BUTLER DATAID {name}"] = value
    fits.HDUList([
        primary,
        fits.ImageHDU(image.data[part], header, name="IMAGE"),
        fits.ImageHDU(image.mask[part].astype(np.int32), mask_header, name="MASK"),
        fits.ImageHDU(image.uncertainty.array[part], header, name="VARIANCE"),
        fits.ImageHDU(np.asarray(image.psf, np.float32), name="PSF"),
    ]).writeto(path)  # fmt: skip


def planes(image, columns, name):
    """The extensions of one band of a tile."""
    part = slice(None), columns
    header = image.wcs[part].to_header(relax=True)
    header["FILTER"], header["MAGZERO"] = name, 31.4
    rms = np.sqrt(image.uncertainty.array[part])
    return [
        fits.ImageHDU(image.data[part], header, name=f"{name}_BGSUB"),
        fits.ImageHDU(np.where(image.mask[part], np.float32(1e20), rms), header, name=f"{name}_RMS"),
        fits.ImageHDU(np.asarray(image.psf, np.float32), name=f"{name}_PSF"),
    ]


# ---------------------------------------------------------------------------- runs
def command(*arguments):
    return [sys.executable, "-m", "rosetta.cli", "survey", *map(str, arguments)]


def planned(rubin, euclid, folder, core):
    subprocess.run(command("plan", "--rubin", rubin, "--euclid", euclid, "--core", core, "-o", folder), check=True)
    return folder


def timed_run(folder, *options):
    start = time.perf_counter()
    subprocess.run(command("run", folder, *options), check=True)
    return time.perf_counter() - start


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
def rows(folder, name="objects"):
    """One of the tables of each cell."""
    return [
        parquet.read_table(Store(folder).place(index) / f"{name}.parquet", partitioning=None)
        for index in read(folder).indices
    ]


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


def identical(one, two):
    """Whether all tables of two runs are the same; as text, in which NaN is NaN."""
    return all(
        str(a.to_pylist()) == str(b.to_pylist())
        for name in ("objects", "offsets", "windows")
        for a, b in zip(rows(one, name), rows(two, name), strict=True)
    )


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
    parser.add_argument("--seed", type=int, default=7501)
    parser.add_argument("--core", type=float, default=25.6, help="arcsec, of one of two by two cells; default: 25.6")
    parser.add_argument("--bands", nargs="+", default=["r", "VIS"])
    add_option(parser)
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    shutil.rmtree(options.folder, ignore_errors=True)
    files = options.folder / "files"
    size = 2 * options.core * u.arcsec
    pair, truth = simulate_pair(seed=options.seed, size=size, bands=options.bands)
    write_files(files, pair)
    names = ("serial", "processes", "whole")
    serial, processes, whole = (
        planned(files / "rubin", files / euclid, options.folder / name, factor * options.core)
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
