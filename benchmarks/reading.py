# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What reading a region of a survey's large files, or a whole patch, costs: seconds, bytes read, memory.

The files have their true sizes. Euclid mosaics are nearly all holes (sparse), so that they take little disk. Each
reading is done in a process of its own, with no file in the page cache; the first one is not counted (it loads the
libraries).

Run: python benchmarks/reading.py [--layout NAME ...] [--tables FOLDER]
"""

import argparse
import ctypes
import io
import json
import mmap
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from kit.tables import Tables, add_option

SIDE = 112 * u.arcsec
CELLS, STEP, STAMP = 23, 150, 41  # of a Rubin patch
PLANES = ("NO_DATA", "INTERPOLATED", "COSMIC_RAY", "SATURATED", "DETECTION_EDGE", "CLIPPED", "REJECTED", "DETECTED")


def sparse(path, header, shape, dtype):
    """Begin a FITS file: an image of zeros that takes no disk. Returns a writeable view of its pixels."""
    header = fits.Header(
        [("SIMPLE", True), ("BITPIX", {"f4": -32, "i4": 32}[dtype]), ("NAXIS", 2), ("NAXIS1", shape[1]),
         ("NAXIS2", shape[0])]
    ) + header  # fmt: skip
    return extended(path, header.tostring().encode(), shape, dtype)


def extended(path, head, shape, dtype):
    """Append a header and an image of zeros to a file."""
    with open(path, "ab") as file:
        file.write(head)
        start = file.tell()
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    os.truncate(path, start + -(-size // 2880) * 2880)
    return np.memmap(path, f">{dtype}", "r+", offset=start, shape=shape)


def tan(shape, scale):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [53.1, -28.1]
    wcs.wcs.crpix, wcs.wcs.cd = [shape[1] / 2, shape[0] / 2], np.diag([-scale, scale]) / 3600
    return wcs


# ---------------------------------------------------------------------------- layouts
def euclid_mosaic(folder):
    """A MER tile in VIS: science, RMS and FLAG of 19200 x 19440 pixels, and GRID-PSF every 120 pixels."""
    from rosetta.io import euclid

    shape, rng = (19440, 19200), np.random.default_rng(0)
    wcs, tile = tan(shape, 0.1), "TILE102018211-AB_1.fits"
    header = wcs.to_header()
    header["FILTER"], header["MAGZERO"] = "VIS", 24.6
    where = (slice(9000, 10400), slice(12000, 13400))
    files = []
    for kind, dtype in (("BGSUB-MOSAIC-VIS", "f4"), ("MOSAIC-VIS-RMS", "f4"), ("MOSAIC-VIS-FLAG", "i4")):
        files.append(folder / f"EUC_MER_{kind}_{tile}")
        pixels = sparse(files[-1], header, shape, dtype)
        pixels[where] = rng.normal(0, 1, (1400, 1400)) if "BGSUB" in kind else "RMS" in kind
        pixels.flush()
    files.append(folder / f"EUC_MER_GRID-PSF-VIS_{tile}")
    fits.PrimaryHDU().writeto(files[-1])
    head = fits.ImageHDU(np.zeros((1, 1), "f4"), wcs.to_header()).header
    head["NAXIS1"], head["NAXIS2"], head["STMPSIZE"] = shape[1], shape[0], 21
    image = extended(files[-1], head.tostring().encode(), shape, "f4")
    x, y = (v.ravel() for v in np.meshgrid(np.arange(60, shape[1], 120), np.arange(60, shape[0], 120)))
    axis = (np.arange(21) - 10) ** 2
    for column, row in zip(x, y, strict=True):
        if where[1].start < column < where[1].stop and where[0].start < row < where[0].stop:
            image[row - 10 : row + 11, column - 10 : column + 11] = np.exp(-np.add.outer(axis, axis) / 3)
    image.flush()
    table = fits.BinTableHDU(Table({"x": x + 1.0, "y": y + 1.0, "FWHM": 0.16 + 0.0 * x}))
    whole = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(whole)
    with open(files[-1], "ab") as file:
        file.write(whole.getvalue()[2880:])
    center = wcs.pixel_to_world(12700, 9700)

    def read(n_file):
        image = euclid.read_bands(files[:n_file], center=center, size=SIDE)["VIS"]
        assert image.shape == (1120, 1120) and (n_file < 4 or len(image.psf_anywhere.cells) > 4)

    return {
        "Euclid MER mosaic, region, science + RMS + FLAG": lambda: read(3),
        "Euclid MER mosaic, region, with GRID-PSF": lambda: read(4),
    }  # fmt: skip


def rubin_patch(folder):
    """A coadd in the layout of Data Preview 2: 23 x 23 cells of 150 pixels, planes in lossless tiles of one cell."""
    from rosetta.io import rubin

    rng, side = np.random.default_rng(0), CELLS * STEP
    wcs = tan((side, side), 0.2)
    wcs.wcs.radesys = "ICRS"
    header = wcs.to_header()
    header["BUNIT"] = "nJy"
    for axis in "12":
        header[f"CTYPE{axis}A"], header[f"CRPIX{axis}A"], header[f"CRVAL{axis}A"] = "LINEAR", 1.0, 3000.0
    mask_header = header.copy()
    for n, name in enumerate(PLANES):
        mask_header[f"MSKN{n:04d}"], mask_header[f"MSKM{n:04d}"] = name, 1 << n

    def plane(array, name, header=header, tile=(STEP, STEP)):
        lossless = {"compression_type": "GZIP_2", "quantize_level": 0.0}
        return fits.CompImageHDU(array, header, name=name, tile_shape=tile, **lossless)

    def noise():
        return rng.normal(0, 10, (side, side)).astype(np.float32)

    y, x = np.mgrid[:STAMP, :STAMP] - STAMP // 2
    width = rng.uniform(1.6, 2.0, (CELLS, CELLS, 1, 1))
    stamps = np.exp(-0.5 * (x**2 + y**2) / width**2) / (2 * np.pi * width**2)
    bits = (1 << rng.integers(0, len(PLANES), (side, side))).astype(np.int32) * (rng.uniform(size=(side, side)) < 0.2)
    box = {axis: {"start": 3000, "stop": 3000 + side} for axis in "yx"}
    tree = {
        "schema_version": "1.0.0", "schema_url": "schemas/cell_coadd-1.0.0", "band": "r",
        "image": {"schema_version": "1.0.0", "schema_url": "schemas/image-1.0.0"},
        "mask": {"schema_version": "1.0.0", "schema_url": "schemas/mask-1.0.0", "planes": []},
        "sky_projection": {"pixel_to_sky": {"frames": [{"tract": 1, "skymap": "cells"}]}},
        "mask_fractions": {"rejected": {"data": {"source": "fits:MASK_FRACTIONS/REJECTED"}}},
        "noise_realizations": [{"data": {"source": f"fits:NOISE_REALIZATIONS/{n}"}} for n in range(2)],
        "psf": {
            "schema_version": "1.0.0", "schema_url": "schemas/cell_psf-1.0.0", "array": {"source": "fits:PSF"},
            "bounds": {"bbox": box, "grid": {"bbox": box, "cell_shape": {"y": STEP, "x": STEP}}, "missing": []},
        },
    }  # fmt: skip
    text = np.empty(1, object)
    text[0] = np.frombuffer(json.dumps(tree).encode(), np.uint8)
    hdus = [
        fits.PrimaryHDU(),
        plane(noise(), "IMAGE"),
        plane(bits, "MASK", mask_header),
        plane(100 + 0.1 * noise(), "VARIANCE"),
        plane(noise() / 100, "MASK_FRACTIONS/REJECTED"),
        *(plane(noise(), f"NOISE_REALIZATIONS/{n}") for n in range(2)),
        plane(stamps, "PSF", None, (1, 1, STAMP, STAMP)),
        fits.BinTableHDU.from_columns([fits.Column("JSON", "PB()", array=text)], name="JSON"),
    ]
    fits.HDUList(hdus).writeto(folder / "patch.fits")
    center = wcs.pixel_to_world(side / 2, side / 2)

    def read(shape, **options):
        image = rubin.read(folder / "patch.fits", **options)
        assert image.shape == shape and len(image.psf_anywhere.cells) > 1

    return {
        "Rubin DP2 patch, region": lambda: read((560, 560), center=center, size=SIDE),
        "Rubin DP2 patch, whole": lambda: read((side, side)),
    }


LAYOUTS = {"euclid": euclid_mosaic, "rubin": rubin_patch}


# ---------------------------------------------------------------------------- measuring
def resident(folder):
    """Bytes of the files in a folder that are in the page cache (mincore, as in ``man 2 mincore``)."""
    libc, total = ctypes.CDLL(None, use_errno=True), 0
    for path in folder.iterdir():
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            pages = -(-len(view) // mmap.PAGESIZE)
            found, start = (ctypes.c_ubyte * pages)(), ctypes.c_char.from_buffer(view)
            if libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(view)), found):
                raise OSError(ctypes.get_errno(), "mincore")
            total += int((np.frombuffer(found, np.uint8) & 1).sum()) * mmap.PAGESIZE
            del start
    return total


def forget(folder):
    """Take the files out of the page cache."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(read, folder, pipe):
    """Send seconds, CPU seconds, and bytes: of read calls, taken from the files, of memory above that of the start."""
    read()
    forget(folder)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # reset the peak of resident memory
    before, start, cpu = status(), time.perf_counter(), time.process_time()
    read()
    seconds, after = (time.perf_counter() - start, time.process_time() - cpu), status()
    pipe.send((*seconds, after["rchar"] - before["rchar"], resident(folder), after["VmHWM"] - before["VmRSS"]))


def status():
    """Counters of this process: bytes."""
    lines = Path("/proc/self/io").read_text().splitlines() + Path("/proc/self/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split(":")[1].split() for line in lines}
    return {"rchar": int(fields["rchar"][0])} | {key: 1024 * int(fields[key][0]) for key in ("VmHWM", "VmRSS")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layout", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    add_option(parser)
    options, lines = parser.parse_args(), []
    for name in options.layout:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            for title, read in LAYOUTS[name](folder).items():
                size = sum(path.stat().st_size for path in folder.iterdir())
                pipe, other = multiprocessing.Pipe()
                worker = multiprocessing.get_context("fork").Process(target=measure, args=(read, folder, other))
                worker.start()
                other.close()  # so that a worker that fails is noticed
                seconds, cpu, *volumes = pipe.recv()
                worker.join()
                volumes = [f"{v / 1e6:.1f}" for v in volumes]
                lines.append([title, f"{seconds:.2f}", f"{cpu:.2f}", f"{size / 1e6:.0f}", *volumes])
    header = ["112 arcsec, or whole", "s", "CPU s", "files (MB)", "read calls (MB)", "from files (MB)", "memory (MB)"]
    Tables(options.tables).show("reading", "reading a region", header, lines)


if __name__ == "__main__":
    main()
