# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What it costs to read a region of a whole Rubin patch: seconds, bytes from the disk, memory.

Run: python benchmarks/reading_rubin.py [FILE]. Without a file, one of true size is written in the layout of Data
Preview 2: 23 x 23 cells of 150 pixels, every plane in tiles of one cell, compressed without loss (GZIP_2).
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from rosetta.io import rubin

CELLS, STEP, STAMP = 23, 150, 41
SIZE = 112 * u.arcsec
PLANES = ("NO_DATA", "INTERPOLATED", "COSMIC_RAY", "SATURATED", "DETECTION_EDGE", "CLIPPED", "REJECTED", "DETECTED")


def write_patch(path):
    """A coadd of noise, with all the planes that a real one has."""
    rng, side = np.random.default_rng(0), CELLS * STEP
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53.1, -28.1], [side / 2] * 2
    wcs.wcs.cd, wcs.wcs.radesys = np.diag([-0.2, 0.2]) / 3600, "ICRS"
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
    fits.HDUList(hdus).writeto(path)


def of_process(file, key):
    """A number that Linux keeps about this process."""
    return int(next(line for line in Path(f"/proc/self/{file}").read_text().splitlines() if key in line).split()[1])


def measure(path, region):
    """Seconds, bytes read, peak memory (MB; the second one what was in use before) and shape of one read."""
    with fits.open(path) as hdus:
        header = hdus["IMAGE"].header
        center = WCS(header).pixel_to_world(header["NAXIS1"] / 2, header["NAXIS2"] / 2)
    options = {"center": center, "size": SIZE} if region else {}
    before, first = of_process("status", "VmHWM"), of_process("io", "rchar")
    start = time.perf_counter()
    image = rubin.read(path, **options)
    seconds, read = time.perf_counter() - start, of_process("io", "rchar") - first
    return seconds, read / 1e6, of_process("status", "VmHWM") / 1e3, before / 1e3, image.shape


def main(arguments):
    """Measure both reads, each in a process of its own so that its peak memory is its own."""
    if arguments[:1] == ["--one"]:
        print(json.dumps(measure(arguments[2], arguments[1] == "region")))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = arguments[0] if arguments else f"{folder}/patch.fits"
        if not arguments:
            write_patch(path)
        print(f"{Path(path).stat().st_size / 1e6:.0f} MB in the file")
        for what in ("region", "whole"):
            done = subprocess.run(
                [sys.executable, __file__, "--one", what, path], check=True, capture_output=True, text=True
            )
            seconds, read, peak, before, shape = json.loads(done.stdout)
            print(
                f"{what:6s} {shape[1]} x {shape[0]} pixels: {seconds:.2f} s, {read:.1f} MB read, "
                f"peak {peak:.0f} MB of memory ({before:.0f} MB before)"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
