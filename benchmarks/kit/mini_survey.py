# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A small survey: one simulated field as patches and tiles, and commands that plan and run it."""

import os
import subprocess
import sys
import time

import numpy as np
from astropy.io import fits

from rosetta.production.store import Store
from rosetta.production.survey import read

__all__ = ["TRACT", "command", "identical", "one_thread", "planned", "rows", "timed_run", "write_files"]

TRACT = 1
NIR = {"Y_E": "NIR_Y", "J_E": "NIR_J", "H_E": "NIR_H"}
TABLES = ("objects", "offsets", "windows", "maps")


def one_thread():
    """Let every process that is started from here use one core."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


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


def planned(rubin, euclid, folder, core, tile=None):
    """Plan a survey; ``tile`` None: each cell is one tile."""
    sizes = ("--core", core, "--tile", core if tile is None else tile)
    subprocess.run(command("plan", "--rubin", rubin, "--euclid", euclid, *sizes, "-o", folder), check=True)
    return folder


def timed_run(folder, *options):
    start = time.perf_counter()
    subprocess.run(command("run", folder, *options), check=True)
    return time.perf_counter() - start


# ---------------------------------------------------------------------------- results
def rows(folder, name="objects"):
    """One of the tables of each cell."""
    return [Store(folder).table(index, name) for index in read(folder).indices]


def identical(one, two, indices=None):
    """Whether all tables of two runs are the same, or those of some cells; as text, in which NaN is NaN."""
    stores = Store(one), Store(two)
    return all(
        len({str(store.table(index, name).to_pylist()) for store in stores}) == 1
        for index in (read(one).indices if indices is None else indices) for name in TABLES
    )  # fmt: skip
