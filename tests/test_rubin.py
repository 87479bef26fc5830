# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Rubin files of every release, on small tracts of the layouts that the pipelines write."""

import json
import sys
import tracemalloc
import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rosetta import PSF, RUBIN, SkyPair
from rosetta.io import _fits, read_pair, rubin
from rosetta.io import pair as pair_io
from rosetta.io._rubin_planes import NEW_NAMES, mask_planes
from rosetta.io._stitch import overlap, stitch, union

TRACT = (130, 160)  # ny, nx
CELL = (20, 25)
SIGMA = 4.0
NEW_PLANES = ("NO_DATA", "INTERPOLATED", "COSMIC_RAY", "SATURATED", "DETECTION_EDGE", "DETECTED", "INEXACT_PSF")
OLD_PLANES = {"BAD": 0, "SAT": 1, "INTRP": 2, "CR": 3, "EDGE": 4, "DETECTED": 5, "NO_DATA": 8, "SENSOR_EDGE": 12}
URL = "https://images.lsst.io/schemas/"


def tract_wcs(origin=(0, 0)):
    """WCS of a part of the tract that begins at pixel (y, x)."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [53.1, -28.1]
    wcs.wcs.cd, wcs.wcs.radesys = np.diag([-0.2, 0.2]) / 3600, "ICRS"
    wcs.wcs.crpix = [900.5 - origin[1], -300.25 - origin[0]]
    return wcs


def tract_data():
    return np.random.default_rng(2).normal(0, SIGMA, TRACT).astype(np.float32)


def cell_psf(i, j):
    """The PSF of the tract's cell (i, j): its widths tell which one it is."""
    y, x = np.mgrid[-5:6, -5:6]
    psf = np.exp(-0.5 * ((y / (1.2 + 0.05 * i)) ** 2 + (x / (1.2 + 0.05 * j)) ** 2))
    return psf / psf.sum()


def compressed(array, header, name, tile=None):
    lossless = {"compression_type": "GZIP_2", "quantize_level": 0.0}
    return fits.CompImageHDU(array, header, name=name, tile_shape=tile, **lossless)


def set_planes(header, names):
    for n, name in enumerate(names):
        header[f"MSKN{n:04d}"], header[f"MSKM{n:04d}"], header[f"MSKD{n:04d}"] = name, 1 << n, f"What {name} means."


def set_old_planes(header, planes):
    for name, bit in planes.items():
        header[f"HIERARCH MP_{name}" if len(name) > 5 else f"MP_{name}"] = bit


def write_cells(path, box=(0, *TRACT[:1], 0, *TRACT[1:]), *, band="i", missing=(), tract=9, change=None, **parts):
    """A cell coadd of Data Preview 2 that covers a box of the tract, on cell borders.

    ``missing`` are cells of the tract; ``parts`` replaces ``data`` or ``mask`` (bits of `NEW_PLANES`), both of the box;
    ``change`` may edit the list of HDUs and the tree.
    """
    y0, y1, x0, x1 = box
    first, count = (y0 // CELL[0], x0 // CELL[1]), ((y1 - y0) // CELL[0], (x1 - x0) // CELL[1])
    assert all(edge % step == 0 for edge, step in zip(box, (20, 20, 25, 25), strict=True))
    shape = y1 - y0, x1 - x0
    header = tract_wcs((y0, x0)).to_header(relax=True)
    for axis, low in ((1, x0), (2, y0)):
        header[f"CTYPE{axis}A"], header[f"CRPIX{axis}A"], header[f"CRVAL{axis}A"] = "LINEAR", 1.0, float(low)
    image_header = header.copy()
    image_header["BUNIT"] = "nJy"
    mask_header = header.copy()
    set_planes(mask_header, NEW_PLANES)
    data = parts.get("data", tract_data()[y0:y1, x0:x1])
    mask = parts.get("mask", np.zeros(shape, np.int32))
    cells = np.array([[cell_psf(first[0] + i, first[1] + j) for j in range(count[1])] for i in range(count[0])])
    for i, j in missing:
        cells[i - first[0], j - first[1]] = np.nan
    noise = np.random.default_rng(8).normal(0, SIGMA, (2, *shape)).astype(np.float32)
    stamp = (1, 1, *cells.shape[2:])
    places = [index for index in np.ndindex(count) if (first[0] + index[0], first[1] + index[1]) not in set(missing)]
    rows = {"cell_i": [i for i, _ in places], "cell_j": [j for _, j in places]}
    rows["base_PsfFlux"] = [1 + 0.1 * (first[0] + i) + 0.01 * (first[1] + j) for i, j in places]
    hdus = [
        fits.PrimaryHDU(),
        compressed(data, image_header, "IMAGE", CELL),
        compressed(mask, mask_header, "MASK", CELL),
        compressed(np.full(shape, SIGMA**2, np.float32), header, "VARIANCE", CELL),
        *(compressed(plane, header, f"NOISE_REALIZATIONS/{n}", CELL) for n, plane in enumerate(noise)),
        compressed(cells, None, "PSF", stamp),
    ]
    corrections = fits.BinTableHDU(Table(rows), name="APERTURE_CORRECTIONS/TABLE")

    def versioned(name, **fields):
        return {"schema_version": "1.0.0", "min_read_version": 1, "schema_url": f"{URL}{name}-1.0.0", **fields}

    def span(box):
        return {"y": {"start": box[0], "stop": box[1]}, "x": {"start": box[2], "stop": box[3]}}

    grid = {"bbox": span(box), "cell_shape": {"y": CELL[0], "x": CELL[1]}}
    absent = [{"i": i - first[0], "j": j - first[1]} for i, j in missing]
    frame = {"skymap": "cells", "tract": tract, "bbox": span((0, 30000, 0, 30000))}
    tree = versioned(
        "cell_coadd",
        image=versioned("image", data={"value": {"source": "fits:IMAGE"}, "unit": "nJy"}),
        mask=versioned("mask", data=[{"source": "fits:MASK"}], planes=[{"name": name} for name in NEW_PLANES]),
        sky_projection={"pixel_to_sky": {"frames": [frame, "ICRS"]}},
        noise_realizations=[versioned("image", data={"source": f"fits:NOISE_REALIZATIONS/{n}"}) for n in range(2)],
        band=band,
        psf=versioned(
            "cell_psf",
            array={"source": "fits:PSF"},
            bounds={"grid": grid, "bbox": span(box), "missing": absent},
        ),
        aperture_corrections=versioned(
            "cell_aperture_correction_map",
            table={"columns": [{"data": {"source": "fits:APERTURE_CORRECTIONS/TABLE[1]"}, "name": "cell_i"}]},
            bounds={"grid": grid, "bbox": span(box), "missing": absent},
        ),
        patch={"id": first[0] * 10 + first[1]},
        provenance=None,
    )
    if change:
        change(hdus, tree)
    hdus.append(corrections)
    text = np.frombuffer(json.dumps(tree).encode(), np.uint8)
    column = fits.Column("JSON", "PB()", array=np.array([text, text[:0]], dtype=object)[:1])
    if tree:
        hdus.append(fits.BinTableHDU.from_columns([column], name="JSON"))
    fits.HDUList(hdus).writeto(path)
    return noise


def write_old(path, box, *, band="r", planes=None, **parts):
    """A coadd of Data Preview 1 that covers a box of the tract; it has no tract number and no PSF."""
    y0, y1, x0, x1 = box
    header = parts.get("wcs", tract_wcs((y0, x0))).to_header(relax=True)
    header["LTV1"], header["LTV2"], header["BUNIT"], header["FILTER"] = -float(x0), -float(y0), "nJy", f"{band}_03"
    mask_header = header.copy()
    set_old_planes(mask_header, OLD_PLANES if planes is None else planes)
    data = parts.get("data", tract_data()[y0:y1, x0:x1])
    mask = parts.get("mask", np.zeros(data.shape, np.int32))
    hdus = [
        fits.PrimaryHDU(),
        compressed(data, header, "IMAGE"),
        compressed(mask, mask_header, "MASK"),
        compressed(np.full(data.shape, SIGMA**2, np.float32), header, "VARIANCE"),
    ]
    fits.HDUList(hdus + parts.get("extra", [])).writeto(path)


BOX = (20, 120, 25, 150)


@pytest.fixture(scope="module")
def coadd(tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "i.fits"
    return path, write_cells(path, BOX, missing=[(3, 3)])


def test_cell_coadd(coadd):
    path, noise = coadd
    image = rubin.read(path)
    y0, y1, x0, x1 = BOX
    np.testing.assert_array_equal(image.data, tract_data()[y0:y1, x0:x1])
    absent = np.zeros((y1 - y0, x1 - x0), bool)
    absent[40:60, 50:75] = True
    np.testing.assert_array_equal(image.mask, absent)
    assert np.isinf(image.uncertainty.array[absent]).all()
    assert (image.uncertainty.array[~absent] == SIGMA**2).all()
    assert image.meta == {
        "band": "i", "survey": "Rubin", "filter": "i", "file": "i.fits", "ORIGINX": x0, "ORIGINY": y0, "noise": 2,
        "planes": " ".join(f"{name}={bit}" for bit, name in enumerate(NEW_PLANES)), "schema": "cell_coadd-1.0.0",
        "skymap": "cells", "tract": 9, "patch": "11",
        "unused": "NOISE_REALIZATIONS/0 NOISE_REALIZATIONS/1 APERTURE_CORRECTIONS/TABLE",
    }  # fmt: skip
    np.testing.assert_array_equal(rubin.read_noise(path), noise)
    # The mean PSF goes with the image as an array; where a cell has no PSF, a neighbour's holds.
    np.testing.assert_allclose(image.psf, image.psf_anywhere.mean_over(image.shape))
    here = image.psf_anywhere.at(60.0, 50.0)
    assert any(np.allclose(here, cell_psf(*cell)) for cell in ((2, 3), (4, 3), (3, 2), (3, 4)))


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.floats(1, 98), st.floats(1, 123)),
    st.tuples(st.floats(0.6, 9), st.floats(0.6, 9)),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=3),
)
def test_region_keeps_sky_pixels_and_cells(coadd, place, size, points):
    """What is read at a place of the sky is what the tract holds there, the PSF of its cell included."""
    whole = rubin.read(coadd[0])
    center = whole.wcs.pixel_to_world(*place[::-1])
    part = rubin.read(coadd[0], center=center, size=size * u.arcsec)
    ny, nx = part.shape
    assert part.wcs.pixel_shape == (nx, ny)
    y0, x0 = part.meta["ORIGINY"], part.meta["ORIGINX"]
    np.testing.assert_array_equal(part.data, tract_data()[y0 : y0 + ny, x0 : x0 + nx])
    noise = rubin.read_noise(coadd[0], center=center, size=size * u.arcsec)
    rows, columns = slice(y0 - BOX[0], y0 - BOX[0] + ny), slice(x0 - BOX[2], x0 - BOX[2] + nx)
    np.testing.assert_array_equal(noise, coadd[1][:, rows, columns])
    np.testing.assert_array_equal(part.mask, whole.mask[rows, columns])
    for v, h in points:
        y, x = round(v * (ny - 1)), round(h * (nx - 1))
        sky = part.wcs.pixel_to_world(x, y)
        there = tract_wcs().world_to_pixel(sky)
        np.testing.assert_allclose(there, (x0 + x, y0 + y), atol=1e-6)
        cell = (y0 + y) // CELL[0], (x0 + x) // CELL[1]
        if cell != (3, 3):
            np.testing.assert_allclose(part.psf_anywhere.at(x, y), cell_psf(*cell))


def test_aperture_corrections(coadd):
    """Each cell has its own, at its own place; of a region those that it touches."""
    whole, image = rubin.read_aperture_corrections(coadd[0]), rubin.read(coadd[0])
    assert len(whole) == 5 * 5 - 1  # one cell has no data
    center = image.wcs.pixel_to_world(30.0, 30.0)
    part = rubin.read_aperture_corrections(coadd[0], center=center, size=1.5 * u.arcsec)
    assert len(part) == 1
    for table in (whole, part):
        np.testing.assert_allclose(
            [row["base_PsfFlux"] for row in table],
            [1 + 0.1 * (y // CELL[0]) + 0.01 * (x // CELL[1])
             for x, y in np.transpose(tract_wcs().world_to_pixel(table["sky_center"]))],
        )  # fmt: skip
    x, y = image.wcs.world_to_pixel(whole["sky_center"])
    np.testing.assert_allclose((x, y), (whole["x"], whole["y"]), atol=1e-6)


def test_files_without_aperture_corrections(tmp_path):
    write_old(tmp_path / "a.fits", (0, 40, 0, 50))
    with pytest.raises(ValueError, match="path: a.fits has no aperture corrections by cell"):
        rubin.read_aperture_corrections(tmp_path / "a.fits")


def shape_of(psf):
    return psf / psf.sum()


def test_pair_keeps_the_cells(coadd, tmp_path):
    """A pair, its cutout, its file and a pair made of its images have the PSF of the right cell at each place."""
    image = rubin.read(coadd[0])
    pair = SkyPair({"i": image})
    cutout = pair.cutout(image.wcs.pixel_to_world(70.3, 55.1), 11 * u.arcsec)
    pair_io.write(cutout, tmp_path / "pair.fits")
    for part in (
        pair,
        cutout,
        pair_io.read(tmp_path / "pair.fits"),
        SkyPair(dict(cutout.ground)),
        SkyPair({"i": image.copy()}),
    ):
        ny, nx = part.ground["i"].data.shape
        for y, x in ((0, 0), (ny - 1, 0), (0, nx - 1), (ny // 2, nx // 2), (ny - 1, nx - 1), (20, 30)):
            tract = tract_wcs().world_to_pixel(part.ground["i"].wcs.pixel_to_world(x, y))
            cell = round(float(tract[1])) // CELL[0], round(float(tract[0])) // CELL[1]
            if cell != (3, 3):
                np.testing.assert_allclose(shape_of(part.psf("i").at(x, y)), cell_psf(*cell), atol=1e-9)
    own = PSF(cell_psf(0, 0))
    image.psf = cell_psf(9, 9)
    assert image.psf_anywhere is None
    np.testing.assert_allclose(shape_of(SkyPair({"i": image}).psf("i").at(0, 0)), cell_psf(9, 9), atol=1e-9)
    image.psf = own
    assert image.psf_anywhere is own


def test_stitched_patches(tmp_path):
    """Three patches with overlaps and a corner that none covers: one image, one WCS, the cells of all."""
    boxes = [(0, 60, 0, 100), (0, 60, 75, 150), (40, 120, 0, 100)]
    edge = np.zeros((60, 100), np.int32)
    edge[:, 85:] = 1 << NEW_PLANES.index("DETECTION_EDGE")  # at the border of the first, inside the second
    for n, box in enumerate(boxes):
        write_cells(
            tmp_path / f"{n}.fits", box, missing=[(5, 0)] if n == 2 else [], **({"mask": edge} if n == 0 else {})
        )
    write_old(tmp_path / "r.fits", (0, 90, 0, 150))
    images = rubin.read_bands(sorted(tmp_path.glob("*.fits")))
    assert list(images) == ["r", "i"]
    image = images["i"]
    expected = tract_data()[:120, :150]
    covered = np.zeros(image.shape, bool)
    for y0, y1, x0, x1 in boxes:
        covered[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(image.data[covered], expected[covered])
    assert np.isnan(image.data[~covered]).all()
    good = covered.copy()
    good[100:120, :25] = False
    np.testing.assert_array_equal(~image.mask, good)
    np.testing.assert_array_equal(np.isinf(image.uncertainty.array), ~good)
    assert image.meta["file"] == "0.fits, 1.fits, 2.fits"
    assert (image.meta["ORIGINX"], image.meta["ORIGINY"]) == (0, 0)
    for y, x in ((3, 4), (59, 99), (30, 80), (10, 149), (119, 90), (65, 3)):
        np.testing.assert_allclose(image.psf_anywhere.at(x, y), cell_psf(y // CELL[0], x // CELL[1]))

    # A region across two of them, and one within one.
    center = tract_wcs().pixel_to_world(88, 30)
    both = rubin.read_bands([tmp_path / f"{n}.fits" for n in range(3)], center=center, size=8 * u.arcsec)["i"]
    y0, x0 = both.meta["ORIGINY"], both.meta["ORIGINX"]
    np.testing.assert_array_equal(both.data, tract_data()[y0 : y0 + 40, x0 : x0 + 40])
    assert not both.mask.any()
    np.testing.assert_allclose(tract_wcs().world_to_pixel(both.wcs.pixel_to_world(7, 11)), (x0 + 7, y0 + 11), atol=1e-6)
    for y, x in ((0, 0), (39, 39), (20, 5), (5, 38)):
        np.testing.assert_allclose(both.psf_anywhere.at(x, y), cell_psf((y0 + y) // CELL[0], (x0 + x) // CELL[1]))
    alone = tract_wcs().pixel_to_world(135, 30)
    ground, _ = read_pair(sorted(tmp_path.glob("*.fits")), center=alone, size=4 * u.arcsec)
    assert ground["i"].meta["file"] == "1.fits" and ground["r"].shape == (20, 20)
    with pytest.raises(ValueError, match="the region lies between the images 0.fits, 1.fits, 2.fits"):
        rubin.read_bands(
            [tmp_path / f"{n}.fits" for n in range(3)], center=tract_wcs().pixel_to_world(140, 110), size=2 * u.arcsec
        )


SPAN = st.tuples(st.integers(0, 30), st.integers(1, 12)).map(lambda span: (span[0], span[0] + span[1]))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.lists(st.tuples(SPAN, SPAN).map(lambda spans: spans[0] + spans[1]), min_size=1, max_size=4), SPAN, SPAN)
def test_stitch_puts_every_pixel_in_its_place(boxes, rows, columns):
    """Any pieces of one image, cut to any region: each pixel that a piece has is the image's, all others are masked."""
    box = rows + columns
    sky = np.arange(50 * 50, dtype=np.float32).reshape(50, 50)
    covered = np.zeros(sky.shape, bool)
    pieces = []
    for name, whole in enumerate(boxes):
        covered[whole[0] : whole[1], whole[2] : whole[3]] = True
        if shared := overlap(whole, box):
            piece = sky[shared[0] : shared[1], shared[2] : shared[3]]
            pieces.append((str(name), shared, piece, np.ones_like(piece), np.zeros(piece.shape, bool)))
    data, variance, mask = stitch(pieces, box, "paths")
    here = slice(*rows), slice(*columns)
    np.testing.assert_array_equal(~mask, covered[here])
    np.testing.assert_array_equal(data, np.where(covered, sky, np.nan)[here])
    np.testing.assert_array_equal(variance, np.where(covered, 1, np.inf)[here])
    y0, y1, x0, x1 = union([*boxes, box])
    assert all(overlap((y0, y1, x0, x1), part) == part for part in [*boxes, box])


def test_patches_of_old_files(tmp_path):
    boxes = {"a": (0, 70, 0, 90), "b": (0, 70, 80, 160)}
    stamps = {name: cell_psf(n, n) for n, name in enumerate(boxes)}
    for name, box in boxes.items():
        write_old(tmp_path / f"{name}.fits", box, extra=[fits.ImageHDU(stamps[name], name="PSF")])
    paths = [tmp_path / f"{name}.fits" for name in boxes]
    image = rubin.read_bands(paths)["r"]
    np.testing.assert_array_equal(image.data, tract_data()[:70])
    for x, name in ((85, "a"), (100, "b")):
        part = rubin.read_bands(paths, center=tract_wcs().pixel_to_world(x, 30), size=8 * u.arcsec)["r"]
        np.testing.assert_array_equal(part.psf, stamps[name])


def test_patches_that_do_not_belong_together(tmp_path):
    left, right = (0, 60, 0, 100), (0, 60, 75, 150)
    write_cells(tmp_path / "left.fits", left)
    write_cells(tmp_path / "again.fits", left)
    changed = tract_data()[0:60, 75:150]
    changed[3, 4] += SIGMA
    write_cells(tmp_path / "changed.fits", right, data=changed)
    write_cells(tmp_path / "tract.fits", right, tract=10)
    write_old(tmp_path / "frame.fits", right, band="i", wcs=tract_wcs((0, 85)))

    def read(*names):
        return rubin.read_bands([tmp_path / f"{name}.fits" for name in names])

    with pytest.raises(ValueError, match="paths: left.fits and changed.fits differ on 1 pixels of their overlap"):
        read("left", "changed")
    with pytest.raises(
        ValueError, match=r"left.fits and tract.fits both hold band 'i' .* \(tracts 9 and 10\): give pat"
    ):
        read("left", "tract")
    with pytest.raises(
        ValueError, match="left.fits and frame.fits both hold band 'i' but lie on different pixel grids"
    ):
        read("left", "frame")
    with pytest.raises(ValueError, match="left.fits and again.fits both hold band 'i' of the same pixels: give each"):
        read("left", "again")
    # What lossy compression may differ by is no disagreement.
    rounded = tract_data()[0:60, 75:150] + np.float32(SIGMA / 16)
    write_cells(tmp_path / "lossy.fits", right, data=rounded)
    assert read("left", "lossy")["i"].shape == (60, 150)


def test_only_the_region_is_allocated(tmp_path):
    """A region of two patches of 1500 x 1500 pixels needs memory for itself and the tiles it touches."""
    size, tile = 1500, (100, 100)
    for name, x0 in (("a", 0), ("b", 1400)):
        header = tract_wcs((0, x0)).to_header()
        header["LTV1"], header["LTV2"], header["BUNIT"], header["FILTER"] = -x0, 0, "nJy", "r"
        mask_header = header.copy()
        mask_header["MP_BAD"] = 0
        flat = np.ones((size, size), np.float32)
        hdus = [compressed(flat, header, "IMAGE", tile), compressed(flat.astype("i4"), mask_header, "MASK", tile)]
        fits.HDUList([fits.PrimaryHDU(), *hdus, compressed(flat, header, "VARIANCE", tile)]).writeto(
            tmp_path / f"{name}.fits"
        )
    center = tract_wcs().pixel_to_world(1450, 700)
    tracemalloc.start()
    image = rubin.read_bands(sorted(tmp_path.glob("*.fits")), center=center, size=40 * u.arcsec)["r"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape == (200, 200) and image.mask.all()  # BAD everywhere
    assert peak < 8e6  # bytes; one plane of one patch is 9e6


@pytest.mark.parametrize("old", RUBIN.bad_planes)
@pytest.mark.parametrize("cards", ["MP_", "MSKN"])
def test_bad_planes_under_both_names(tmp_path, old, cards):
    """A plane that must not be used is found by its old and its new name, whichever cards name it."""
    mask = np.zeros((40, 50), np.int32)
    mask[3, 4] = 1 << 6
    names = {
        name: bit for bit, name in enumerate(("DETECTED", "INTERPOLATED", "INTRP", "REJECTED", "CLIPPED", "SPIKE"))
    }
    mask[5, 6] = 0b111111
    for n, name in enumerate({old, NEW_NAMES.get(old, old)}):

        def change(hdus, tree, name=name):
            hdus[2] = compressed(mask, tract_wcs().to_header(), "MASK")
            if cards == "MSKN":
                set_planes(hdus[2].header, [*names, name])
            else:
                set_old_planes(hdus[2].header, names | {name: 6})

        write_cells(tmp_path / f"{n}.fits", (0, 40, 0, 50), change=change)
        found = rubin.read(tmp_path / f"{n}.fits").mask
        assert np.argwhere(found).tolist() == [[3, 4]]


def test_unknown_planes_are_named_once(tmp_path):
    write_old(tmp_path / "a.fits", (0, 40, 0, 50), planes=OLD_PLANES | {"MOOSE": 20, "ELK": 21})
    with pytest.warns(
        AstropyUserWarning, match="^a.fits: mask planes ELK, MOOSE are not known and mask nothing"
    ) as told:
        image = rubin.read(tmp_path / "a.fits")
    assert len(told) == 1 and not image.mask.any()
    assert "MOOSE=20" in image.meta["planes"]


@pytest.mark.parametrize(("name", "said"), [("XPSF", "XPSF"), ("", "an extension without a name")])
def test_images_that_nothing_accounts_for_are_named(tmp_path, name, said):
    """A PSF whose name was lost; a table with a name may belong to the pipelines."""
    psf, table = fits.ImageHDU(np.ones((3, 3))), fits.BinTableHDU.from_columns([], name="SkyWcs")
    psf.name = name
    write_old(tmp_path / "a.fits", (0, 40, 0, 50), extra=[psf, table])
    with pytest.warns(AstropyUserWarning, match=f"^a.fits: not read, since nothing says what they are: {said}$"):
        assert rubin.read(tmp_path / "a.fits").psf is None


def test_set_bits_without_a_name_are_told(tmp_path):
    """The card of a plane was lost."""
    mask = np.zeros((40, 50), np.int32)
    mask[3, 4] = 1 << 30
    write_old(tmp_path / "a.fits", (0, 40, 0, 50), mask=mask)
    with pytest.warns(AstropyUserWarning, match="^a.fits: bits 30 of its MASK are set, but have no name"):
        rubin.read(tmp_path / "a.fits")


def test_a_plane_with_two_bits():
    hdu = fits.ImageHDU(np.zeros((4, 5), np.int32))
    hdu.header.extend([("MP_BAD", 0), ("MP_SAT", 1), ("MP_BAD", 17)])
    with pytest.raises(ValueError, match="a.fits: its MASK has the card MP_BAD twice, with two values"):
        mask_planes(hdu, "path: a.fits")


def spread(hdus, tree, bits, cards):
    """Put the planes of a cell coadd into bytes along a third axis."""
    hdus[2] = fits.ImageHDU(bits, tract_wcs().to_header(), name="MASK")
    names = [*(f"INJECTED{'_CORE' * (n % 2)}" if n < 2 else None for n in range(9)), "SATURATED", "DETECTED"]
    tree["mask"]["planes"] = [name and {"name": name} for name in names]
    if cards:
        for n, name in enumerate(names):
            if name:
                hdus[2].header[f"MSKN{n:04d}"], hdus[2].header[f"MSKM{n:04d}"] = name, 1 << n


@pytest.mark.parametrize("cards", [True, False])
def test_planes_in_several_bytes(tmp_path, cards):
    bits = np.zeros((2, 40, 50), np.uint8)
    bits[1, 3, 4], bits[0, 5, 6], bits[1, 7, 8] = 0b010, 0b010, 0b100
    write_cells(tmp_path / "a.fits", (0, 40, 0, 50), change=lambda hdus, tree: spread(hdus, tree, bits, cards))
    image = rubin.read(tmp_path / "a.fits")
    assert np.argwhere(image.mask).tolist() == [[3, 4]]  # SATURATED is plane 9: the second bit of the second byte
    assert image.meta["planes"] == "INJECTED=0 INJECTED_CORE=1 SATURATED=1:1 DETECTED=1:2"


def test_planes_in_two_extensions(tmp_path):
    """More planes than an integer holds: the pipelines write a second extension MASK."""

    def change(hdus, tree):
        second = compressed(mask, tract_wcs().to_header(), "MASK")
        second.header["EXTVER"] = 2
        set_planes(second.header, ("HIGH_VARIANCE", "SATURATED"))
        hdus.insert(3, second)

    mask = np.zeros((40, 50), np.int32)
    mask[3, 4], mask[5, 6] = 0b10, 0b01
    write_cells(tmp_path / "a.fits", (0, 40, 0, 50), change=change)
    image = rubin.read(tmp_path / "a.fits")
    assert np.argwhere(image.mask).tolist() == [[3, 4]]
    assert image.meta["planes"].endswith("HIGH_VARIANCE=1:0 SATURATED=1:1")


def test_variance_is_scaled_in_double_precision(tmp_path):
    """In cgs units the variance in a float64 file is 1e-63: too small for single precision until it is in nJy."""
    cgs = u.nJy.to(u.erg / u.s / u.cm**2 / u.Hz)

    def change(hdus, tree):
        hdus[1] = fits.ImageHDU(hdus[1].data * cgs, hdus[1].header, name="IMAGE")
        hdus[1].header["BUNIT"] = "erg s-1 cm-2 Hz-1"
        hdus[3] = fits.ImageHDU(np.full(hdus[3].shape, (SIGMA * cgs) ** 2), name="VARIANCE")

    write_cells(tmp_path / "a.fits", (0, 40, 0, 50), change=change)
    image = rubin.read(tmp_path / "a.fits")
    assert not image.mask.any()
    np.testing.assert_allclose(image.uncertainty.array, SIGMA**2, rtol=1e-6)
    np.testing.assert_allclose(image.data, tract_data()[:40, :50], rtol=1e-6)


def test_pixels_beyond_the_cells_are_masked(tmp_path):
    """The cells may cover less than the image: where there is no cell there are no data."""

    def change(hdus, tree):
        hdus[-1] = compressed(hdus[-1].data[1:, 1:], None, "PSF", (1, 1, 11, 11))
        tree["psf"]["bounds"]["bbox"] = {"y": {"start": 20, "stop": 60}, "x": {"start": 25, "stop": 100}}

    write_cells(tmp_path / "a.fits", (0, 60, 0, 100), change=change)
    image = rubin.read(tmp_path / "a.fits")
    expected = np.ones((60, 100), bool)
    expected[20:, 25:] = False
    np.testing.assert_array_equal(image.mask, expected)
    for y, x in ((20, 25), (59, 99), (30, 60)):
        np.testing.assert_allclose(image.psf_anywhere.at(x, y), cell_psf(y // CELL[0], x // CELL[1]))
    corner = rubin.read(tmp_path / "a.fits", center=tract_wcs().pixel_to_world(6, 5), size=2 * u.arcsec)
    assert corner.mask.all()


def test_any_source(coadd):
    """A path, the content of the file and its HDUs give the same image."""
    center, size = tract_wcs().pixel_to_world(60, 60), 5 * u.arcsec
    images = [
        rubin.read(coadd[0], center=center, size=size),
        rubin.read(coadd[0].read_bytes(), center=center, size=size),
    ]
    with fits.open(coadd[0]) as hdus:
        images.append(rubin.read(hdus, center=center, size=size))
    for image in images:
        np.testing.assert_array_equal(image.data, images[0].data)
        np.testing.assert_array_equal(image.psf_anywhere.cells, images[0].psf_anywhere.cells)
    assert [image.meta["file"] for image in images] == ["i.fits", "bytes", "i.fits"]


def test_damage_anywhere_is_a_value_error(tmp_path):
    write_cells(tmp_path / "a.fits", (0, 40, 0, 50))
    whole, rng = np.fromfile(tmp_path / "a.fits", np.uint8), np.random.default_rng(1)
    kinds = set()
    for _ in range(40):
        broken = whole.copy()
        broken[rng.integers(len(whole), size=20)] = rng.integers(32, 127, size=20)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rubin.read(broken.tobytes())
        except Exception as error:
            kinds.add(type(error))
    assert kinds == {ValueError}


def visit(hdus, tree):
    """A visit image: no cells, no tract, planes and band in the same places."""
    del hdus[-1], tree["patch"], tree["provenance"]
    tree["sky_projection"]["pixel_to_sky"]["frames"][0] = {"instrument": "LSSTCam", "detector": 94}
    tree.update(schema_version="1.1.0", schema_url=f"{URL}visit_image-1.1.0", obs_info={"physical_filter": "i_39"})
    tree["psf"] = {"schema_version": "1.0.0", "schema_url": f"{URL}piff_psf-1.0.0"}


def test_visit_image_of_the_newer_layout(tmp_path):
    write_cells(tmp_path / "a.fits", (0, 40, 0, 50), change=visit)
    image = rubin.read(tmp_path / "a.fits")
    assert image.psf is None and "tract" not in image.meta
    assert (image.meta["band"], image.meta["filter"], image.meta["schema"]) == ("i", "i_39", "visit_image-1.1.0")


def second_image(hdus, tree):
    hdus.append(compressed(np.zeros((40, 50), np.float32), tract_wcs().to_header(), "IMAGE"))


def moved_variance(hdus, tree):
    hdus[3].header["CRVAL1"] = 53.2


def other_band(hdus, tree):
    hdus[0].header["FILTER"] = "r_03"


def half_pixels(hdus, tree):
    hdus[1].header["LTV1"], hdus[1].header["LTV2"] = -100.5, 0.0


def edit(**changes):
    return lambda hdus, tree: tree.update(changes)


def newer(hdus, tree):
    tree.update(schema_version="2.1.0", min_read_version=2, schema_url=f"{URL}cell_coadd-2.1.0")


def newer_psf(hdus, tree):
    tree["psf"].update(schema_version="3.0.0", schema_url=f"{URL}cell_psf-3.0.0")


def no_planes(hdus, tree):
    hdus[2] = compressed(np.zeros((40, 50), np.int32), None, "MASK")


def no_tree(hdus, tree):
    tree.clear()
    hdus[0].header["FILTER"] = "i_39"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            newer,
            "path: bad.fits: its schema is cell_coadd-2.1.0, the newest that can be read is cell_coadd-1.0.0: update",
        ),
        (newer_psf, "bad.fits: its schema is cell_psf-3.0.0, the newest that can be read is cell_psf-1.0.0"),
        (
            edit(schema_url=f"{URL}color_image-1.0.0"),
            "bad.fits: its schema 'color_image-1.0.0' is not known: give a cell",
        ),
        (edit(schema_url=f"{URL}mask-1.0.0"), "bad.fits: it holds a mask-1.0.0: give a cell_coadd or a visit_image"),
        (edit(band=None), "bad.fits names no Rubin band: .*no band in a JSON tree.*: set FILTER in its first header"),
        (edit(mask=None), "bad.fits: its JSON tree cannot be read .*; download or write the file again"),
        (edit(psf={"schema_url": f"{URL}cell_psf-1.0.0"}), "bad.fits: its JSON tree cannot be read"),
        (second_image, "path: bad.fits holds several images called IMAGE: it must hold one"),
        (moved_variance, r"path: bad.fits\[VARIANCE\] lies elsewhere on the sky than IMAGE"),
        (other_band, "path: bad.fits names several bands \\(its JSON tree: i, FILTER: r_03\\): correct its header"),
        (half_pixels, r"path: bad.fits: the cards of its place in the tract .* are no whole pixels"),
        (no_planes, "bad.fits: its MASK has no MP_<NAME> cards and no MSKN<nnnn> cards, so its bits have no meaning"),
    ],
)
def test_errors(tmp_path, change, message):
    write_cells(tmp_path / "bad.fits", (0, 40, 0, 50), change=change)
    with pytest.raises(ValueError, match=message) as raised:
        rubin.read(tmp_path / "bad.fits")
    assert "\n" not in str(raised.value)


def test_a_psf_that_is_none(tmp_path):
    extra = [fits.ImageHDU(np.full((5, 5), np.nan), name="PSF")]
    write_old(tmp_path / "a.fits", (0, 40, 0, 50), extra=extra)
    with pytest.raises(ValueError, match="path: PSF of a.fits has NaN or infinite pixels"):
        rubin.read(tmp_path / "a.fits")


def test_a_tree_without_end(tmp_path):
    column = fits.Column("JSON", "PB()", array=np.array([np.frombuffer(b"[" * 10**5, "u1"), b""], dtype=object)[:1])
    write_old(tmp_path / "a.fits", (0, 40, 0, 50), extra=[fits.BinTableHDU.from_columns([column], name="JSON")])
    with pytest.raises(ValueError, match="path: a.fits: its JSON tree cannot be read"):
        rubin.read(tmp_path / "a.fits")


def test_files_are_opened_once(tmp_path, monkeypatch):
    """Each file of a reading; of several patches those that the region misses are only looked at."""
    opened, real = [], _fits._binary

    def counted(source, argument):
        opened.append(source)
        return real(source, argument)

    monkeypatch.setattr(_fits, "_binary", counted)
    for name, box in (("left", (0, 60, 0, 100)), ("right", (0, 60, 75, 150))):
        write_cells(tmp_path / f"{name}.fits", box)
    paths = sorted(tmp_path.glob("*.fits"))
    rubin.read(paths[0])
    rubin.read_noise(paths[0])
    assert opened == [paths[0]] * 2
    opened.clear()
    rubin.read_bands(paths)
    rubin.read_bands(paths, center=tract_wcs().pixel_to_world(20, 30), size=4 * u.arcsec)
    assert opened == paths * 2


def test_newer_minor_versions_are_read(tmp_path):
    change = edit(schema_version="1.3.0", schema_url=f"{URL}cell_coadd-1.3.0")
    write_cells(tmp_path / "a.fits", (0, 40, 0, 50), change=change)
    assert rubin.read(tmp_path / "a.fits").meta["schema"] == "cell_coadd-1.3.0"


def test_cells_without_a_tree_are_not_guessed(tmp_path):
    """A file cut down to its images does not say where the cells are."""
    write_cells(tmp_path / "cut.fits", (0, 40, 0, 50), change=no_tree)
    with pytest.warns(AstropyUserWarning, match=r"cut.fits: not read.*: .*PSF \(a stamp per cell, but no JSON tree"):
        image = rubin.read(tmp_path / "cut.fits")
    assert image.psf is None and image.meta["filter"] == "i_39"
    assert (image.meta["ORIGINX"], image.meta["ORIGINY"]) == (0, 0)


def test_region_arguments(coadd):
    center = tract_wcs().pixel_to_world(60, 60)
    with pytest.raises(ValueError, match="center and size: give both"):
        rubin.read(coadd[0], center=center)
    with pytest.raises(ValueError, match="center: the region at .* is not on the image"):
        rubin.read(coadd[0], center=tract_wcs().pixel_to_world(900, 60), size=2 * u.arcsec)


@pytest.fixture
def package():
    """The package with which the pipelines write their files."""
    if sys.version_info < (3, 12):
        pytest.skip("lsst-images needs Python 3.12 or newer")
    return pytest.importorskip("lsst.images", reason="lsst-images is not installed: pip install astro-rosetta[rubin]")


def write_with(package, path, box, step, missing=()):
    """A cell coadd that ``lsst-images`` makes and writes; returns it."""
    from lsst.images import cells

    rng = np.random.default_rng(6)
    place = package.Box.factory[box[0] : box[1], box[2] : box[3]]
    grid = cells.CellGrid(bbox=place, cell_shape=package.YX(*step))
    absent = frozenset(cells.CellIJ(*index) for index in missing)
    bounds = cells.CellGridBounds(grid=grid, bbox=place, missing=absent)
    shape, count = place.shape, [n // k for n, k in zip(place.shape, step, strict=True)]
    stamps = np.array([[cell_psf(i, j) for j in range(count[1])] for i in range(count[0])])
    for index in missing:
        stamps[index] = np.nan
    whole = package.Box.from_shape((30000, 30000))
    frame = package.TractFrame(skymap="lsst_cells_v2", tract=9813, bbox=whole)
    sky = package.SkyProjection.from_fits_wcs(
        tract_wcs((box[0], box[2])), frame, pixel_bounds=whole, x0=box[2], y0=box[0]
    )
    image = package.Image(rng.normal(0, SIGMA, shape).astype(np.float32), bbox=place, unit=u.nJy, sky_projection=sky)
    # More planes than one 32-bit integer holds; in memory they are bytes along a third axis.
    names = [*package.get_legacy_deep_coadd_mask_planes().values()]
    names += [package.MaskPlane(f"EXTRA_{n}", "None of the pipelines'.") for n in range(30)]
    mask = package.Mask(0, schema=package.MaskSchema([*names, package.MaskPlane("STREAK", "A trail.")]), bbox=place)
    draw = rng.uniform(size=shape)
    for n, name in enumerate(("NO_DATA", "SATURATED", "COSMIC_RAY", "STREAK", "DETECTED", "REJECTED")):
        mask.set(name, (draw > 0.1 * n) & (draw < 0.1 * n + 0.05))
    coadd = cells.CellCoadd(
        image,
        mask=mask,
        variance=package.Image(np.full(shape, SIGMA**2, np.float32), bbox=place, unit=u.nJy**2),
        noise_realizations=[package.Image(rng.normal(0, SIGMA, shape).astype(np.float32), bbox=place)],
        mask_fractions={"rejected": package.Image(np.zeros(shape, np.float32), bbox=place)},
        band="z",
        psf=cells.CellPointSpreadFunction(stamps, bounds),
        aperture_corrections={
            "base_PsfFlux": cells.CellField(bounds, stamps[:, :, 5, 5] / stamps[0, 0, 5, 5])
        },
        patch=cells.PatchDefinition(id=37, index=package.YX(3, 7), inner_bbox=place, cells=grid),
    )
    coadd.write(str(path))
    return coadd


def test_files_of_the_pipelines_own_package(tmp_path, package):
    """A file that ``lsst-images`` writes has the pixels, sky, planes, cells and noise that the package says it has."""
    box, step = (300, 420, 1000, 1125), (30, 25)
    coadd = write_with(package, tmp_path / "z.fits", box, step, missing=[(1, 2)])
    with pytest.warns(AstropyUserWarning, match="z.fits: mask planes EXTRA_0, EXTRA_1, .* are not known"):
        image = rubin.read(tmp_path / "z.fits")
    np.testing.assert_array_equal(image.data, coadd.image.array)
    absent = np.zeros(image.shape, bool)
    absent[30:60, 50:75] = True
    bad = [coadd.mask.get(name) for name in ("NO_DATA", "SATURATED", "COSMIC_RAY", "STREAK")]
    np.testing.assert_array_equal(image.mask, np.any(bad, axis=0) | absent)
    np.testing.assert_array_equal(rubin.read_noise(tmp_path / "z.fits")[0], coadd.noise_realizations[0].array)
    meta = {"band": "z", "ORIGINX": 1000, "ORIGINY": 300, "tract": 9813, "patch": "37", "skymap": "lsst_cells_v2"}
    assert meta.items() <= image.meta.items()
    unused = "MASK_FRACTIONS/REJECTED NOISE_REALIZATIONS/0 APERTURE_CORRECTIONS/TABLE"
    assert (image.meta["noise"], image.meta["unused"]) == (1, unused)
    corrections = rubin.read_aperture_corrections(tmp_path / "z.fits")
    field = coadd.aperture_corrections["base_PsfFlux"].render().array
    x, y = (np.round(corrections[name]).astype(int) for name in "xy")
    np.testing.assert_array_equal(corrections["base_PsfFlux"], field[y, x])
    assert len(corrections) == 19

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyUserWarning)
        center = image.wcs.pixel_to_world(77, 64)
        part = rubin.read(tmp_path / "z.fits", center=center, size=(9, 7) * u.arcsec)
    x0, y0 = part.meta["ORIGINX"], part.meta["ORIGINY"]
    for y, x in ((0, 0), (5, 30), (44, 34), (44, 3)):
        there = {"x": x0 + x, "y": y0 + y}
        sky = coadd.sky_projection.pixel_to_sky(**there)
        assert part.wcs.pixel_to_world(x, y).separation(sky).to_value(u.mas) < 1e-3
        if coadd.bounds.contains(**there):
            np.testing.assert_array_equal(part.psf_anywhere.at(x, y), coadd.psf.compute_kernel_image(**there).array)
