# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The main job over an area, on a small survey of two patches and two MER tiles that do not line up."""

import errno
import json
import operator
import os
import shutil
import subprocess
import sys
import time
import tomllib
import warnings
from functools import partial
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st

from rosetta import AstrometricSolution
from rosetta.checkpoint import bundled
from rosetta.cli import main
from rosetta.files import machine
from rosetta.io import euclid, read_catalogue, rubin
from rosetta.production import engines, sky_maps, task
from rosetta.production import store as store_module
from rosetta.production.cells import Tract, clipped, core_box, depth_in, numbers_in, owner, polygon_area, within_core
from rosetta.production.store import Store
from rosetta.registry import KINDS

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

from rosetta.production.plan import make_plan  # noqa: E402
from rosetta.production.status import status  # noqa: E402
from rosetta.production.survey import read  # noqa: E402

SIZES = {"core": 12.8, "margin": 4.0, "window": 12.8}
CORE = 64  # pixels of the tract
AREA = (64, 128)  # ny, nx: two cells
TRACT = 9
SIGMA = {"r": 3.0, "VIS": 3.0}


def tract_wcs(origin=(0, 0), crval=(53.1, -28.1)):
    """WCS of a part of the tract that begins at pixel (y, x)."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.radesys = ["RA---TAN", "DEC--TAN"], crval, "ICRS"
    wcs.wcs.cd, wcs.wcs.crpix = np.diag([-0.2, 0.2]) / 3600, [400.5 - origin[1], -300.25 - origin[0]]
    return wcs


def gaussian(fwhm, scale, side=21):
    axis = np.arange(side) - side // 2
    psf = np.exp(-np.add.outer(axis**2, axis**2) / (2 * (fwhm / 2.3548 / scale) ** 2))
    return psf / psf.sum()


def draw(wcs, shape, sky, flux, fwhm, scale, sigma, seed):
    """Stars on noise, float32."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    width = fwhm / 2.3548 / scale
    image = np.random.default_rng(seed).normal(0, sigma, shape)
    for xs, ys, f in zip(*wcs.world_to_pixel(sky), flux, strict=True):
        image += f * np.exp(-((x - xs) ** 2 + (y - ys) ** 2) / (2 * width**2)) / (2 * np.pi * width**2)
    return image.astype(np.float32)


def write_patch(path, data, box, *, patch, tract=TRACT, band="r", wcs=tract_wcs):
    """A coadd in the layout of Data Preview 1 that covers a box of a tract."""
    y0, y1, x0, x1 = box
    header = wcs((y0, x0)).to_header()
    header["LTV1"], header["LTV2"], header["BUNIT"], header["FILTER"] = -float(x0), -float(y0), "nJy", f"{band}_03"
    mask_header = header.copy()
    for bit, name in enumerate(("BAD", "SAT", "NO_DATA")):
        mask_header[f"HIERARCH MP_{name}"] = bit
    primary = fits.PrimaryHDU()
    for name, value in (("TRACT", tract), ("PATCH", patch)):
        if value is not None:
            primary.header[f"HIERARCH LSST BUTLER DATAID {name}"] = value
    fits.HDUList([
        primary,
        fits.ImageHDU(data[y0:y1, x0:x1], header, name="IMAGE"),
        fits.ImageHDU(np.zeros((y1 - y0, x1 - x0), np.int32), mask_header, name="MASK"),
        fits.ImageHDU(np.full((y1 - y0, x1 - x0), SIGMA["r"] ** 2, np.float32), header, name="VARIANCE"),
        fits.ImageHDU(gaussian(0.8, 0.2).astype(np.float32), name="PSF"),
    ]).writeto(path, overwrite=True)  # fmt: skip


def write_tile(folder, number, x, sky, flux, band="VIS"):
    """Science, RMS and PSF-free FLAG files of a MER tile that spans pixels ``x`` of the tract, and all its rows."""
    center = tract_wcs().pixel_to_world(np.mean(x), (AREA[0] - 1) / 2)
    shape = 2 * (AREA[0] + 30), 2 * (x[1] - x[0])
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [center.ra.deg + 0.3, center.dec.deg]
    wcs.wcs.cd, wcs.wcs.crpix = np.diag([-0.1, 0.1]) / 3600, [0, 0]
    wcs.wcs.crpix = (np.array(shape[::-1]) + 1) / 2 - np.array(wcs.world_to_pixel(center)) - 1
    header = wcs.to_header()
    header["FILTER"], header["MAGZERO"] = band, 31.4
    data = draw(wcs, shape, sky, flux, 0.2, 0.1, SIGMA["VIS"], number)
    end = f"TILE{number}-AB_20241018T142710.276Z_00.00.fits"
    planes = {
        f"EUC_MER_BGSUB-MOSAIC-{band}_{end}": data,
        f"EUC_MER_MOSAIC-{band}-RMS_{end}": np.full(shape, SIGMA["VIS"], np.float32),
        f"EUC_MER_MOSAIC-{band}-FLAG_{end}": np.zeros(shape, np.int32),
    }
    for name, array in planes.items():
        fits.PrimaryHDU(array, header).writeto(folder / name)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a model of each kind: the bundled ones."""
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        shutil.copy(bundled(kind), folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folders of the Rubin and the Euclid files, and where the stars are."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(3)
    x, y = np.meshgrid(np.arange(8, 128, 16.0), np.arange(8, 64, 16.0))
    x, y = (axis.ravel() + rng.uniform(-4, 4, axis.size) for axis in (x, y))
    sky, flux = tract_wcs().pixel_to_world(x, y), rng.uniform(3000, 9000, len(x))
    for name in ("rubin", "euclid"):
        (folder / name).mkdir()
    data = draw(tract_wcs(), AREA, sky, flux, 0.8, 0.2, SIGMA["r"], 1)
    for patch, x_range in ((4, (0, 80)), (5, (48, 128))):
        write_patch(folder / "rubin" / f"r_{patch}.fits", data, (0, AREA[0], *x_range), patch=patch)
    write_tile(folder / "euclid", 101, (-20, 90), sky, flux)
    write_tile(folder / "euclid", 102, (50, 150), sky, flux)
    return folder, sky


def plan(files, models, folder, **options):
    found = make_plan(folder, [files / "rubin"], [files / "euclid"], models=models, **{**SIZES, **options})
    from rosetta.production.survey import write

    write(found)
    return found


def rows_of(folder, index, name="objects"):
    return parquet.read_table(Store(folder).place(index) / f"{name}.parquet", partitioning=None)


@pytest.fixture(scope="module")
def done(files, models, tmp_path_factory):
    """A survey that was planned and run in this process, from the command line."""
    folder = tmp_path_factory.mktemp("survey") / "mini"
    places = ["--rubin", str(files[0] / "rubin"), "--euclid", str(files[0] / "euclid")]
    sizes = [text for name, value in SIZES.items() for text in (f"--{name}", str(value))]
    assert main(["survey", "plan", *places, *sizes, "--models", str(models), "-o", str(folder)]) == 0
    assert main(["survey", "run", str(folder), "--serial"]) == 0
    return folder


# ---------------------------------------------------------------------------- cells
@given(st.floats(-0.5, 1e4), st.floats(-0.5, 1e4), st.integers(50, 2000))
def test_every_position_has_one_owner(x, y, core):
    """Positions on an edge belong to one cell too."""
    i, j = int((y + 0.5) // core), int((x + 0.5) // core)
    around = [256 * a + b for a in range(max(i - 1, 0), i + 2) for b in range(max(j - 1, 0), min(j + 2, 256))]
    owners = [number for number in around if within_core(x, y, number, core)]
    assert owners == [256 * i + j]
    y0, y1, x0, x1 = core_box(owners[0], core)
    assert x0 - 0.5 <= x < x1 - 0.5 and y0 - 0.5 <= y < y1 - 0.5


def test_numbers_of_a_box():
    assert numbers_in([(0, 64, 0, 128)], 64) == [0, 1]
    assert numbers_in([(0, 65, 63, 64), (64, 65, 0, 1)], 64) == [0, 256]
    with pytest.raises(ValueError, match="choose a larger core"):
        numbers_in([(0, 64 * 256 + 1, 0, 1)], 64)


def test_tracts_share_the_sky_without_gap_or_overlap():
    """Where two tracts overlap, the nearer centre owns; where one has no patch, the other does."""
    left, right = (
        Tract(number, tract_wcs(crval=(ra, -28.1)).to_header().tostring(), ((0, 800, 0, 800),))
        for number, ra in ((3, 53.1), (7, 53.13))
    )
    x, y = np.meshgrid(np.linspace(-100, 900, 41), np.linspace(-100, 900, 41))
    sky = left.wcs.pixel_to_world(x.ravel(), y.ravel())
    owners = owner(sky, [right, left])
    either = left.holds(sky) | right.holds(sky)
    assert ((owners >= 0) == either).all()
    assert {3, 7} <= set(owners)
    both = left.holds(sky) & right.holds(sky)
    nearer = np.where(sky.separation(left.center) <= sky.separation(right.center), 3, 7)
    assert (owners[both] == nearer[both]).all()


@given(st.floats(0, 6.3), st.floats(-30, 30), st.floats(-30, 30))
def test_polygon_in_a_box(angle, dx, dy):
    """The clipped area is that of the pixels that are inside both, to the size of a pixel."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    polygon = np.array([[-20, -15], [20, -15], [20, 15], [-20, 15.0]]) @ turn + (dx, dy)
    y, x = np.mgrid[-10:10:0.25, -12:12:0.25] + 0.125
    inside = (depth_in(polygon, x, y) >= 0).sum() / 16
    assert polygon_area(clipped(polygon, (-10, 10, -12, 12))) == pytest.approx(inside, abs=25)


# ---------------------------------------------------------------------------- plan
def test_plan(files, models, tmp_path):
    found = plan(files[0], models, tmp_path / "s")
    assert found.indices == [(TRACT, 0), (TRACT, 1)]
    assert [row["tile"] for row in found.rows] == ["101", "102"]
    left, right = found.cells(found.indices)
    assert [Path(path).name for path, *_ in left.rubin] == ["r_4.fits", "r_5.fits"]
    assert len(left.euclid) == len(right.euclid) == 3
    assert left.core == (0, 64, 0, 64) and left.box == (-20, 84, -20, 84)
    assert all(size >= 20.8 for size in left.euclid_size)
    again = read(tmp_path / "s")
    assert again == found and again.hash == found.hash
    assert tomllib.loads((tmp_path / "s" / "config.toml").read_text())["hash"] == found.hash
    plan(files[0], models, tmp_path / "s")  # the same plan is no other one
    with pytest.raises(ValueError, match="holds another plan"):
        plan(files[0], models, tmp_path / "s", margin=5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core": 13.0}, "whole number of windows, 6.4 arcsec each: such as 12.8"),
        ({"window": 13.0}, "multiple of 3.2"),
        ({"margin": 1.0}, "at least 3.2 arcsec"),
        ({"margin": 4.1}, "whole number of pixels"),
        ({"core": 25.6, "tile": 20.0}, "whole number of tiles, of 12.8"),
    ],
)
def test_sizes_that_cannot_be(files, models, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        plan(files[0], models, tmp_path / "s", **options)


def test_a_changed_plan_is_refused(files, models, tmp_path):
    plan(files[0], models, tmp_path / "s")
    config = tmp_path / "s" / "config.toml"
    config.write_text(config.read_text().replace("margin = 4.0", "margin = 5.0"))
    with pytest.raises(ValueError, match="changed after the plan"):
        read(tmp_path / "s")
    with pytest.raises(ValueError, match="holds no plan"):
        read(tmp_path)


def test_files_that_do_not_belong(files, models, tmp_path):
    patches = tmp_path / "patches"
    patches.mkdir()
    data = np.zeros(AREA, np.float32)
    write_patch(patches / "a.fits", data, (0, 64, 0, 64), patch=1, tract=None)
    with pytest.raises(ValueError, match="names no tract"):
        make_plan(tmp_path / "s", [patches], models=models, **SIZES)
    write_patch(patches / "a.fits", data, (0, 64, 0, 64), patch=1)
    elsewhere = {"patch": 2, "wcs": lambda origin: tract_wcs(origin, crval=(53.2, -28.1))}
    write_patch(patches / "b.fits", data, (0, 64, 64, 128), **elsewhere)
    with pytest.raises(ValueError, match="different pixel grids"):
        make_plan(tmp_path / "s", [patches], models=models, **SIZES)
    with pytest.raises(ValueError, match="no such folder, list or FITS file"):
        make_plan(tmp_path / "s", [tmp_path / "none"], models=models, **SIZES)


def test_lists_and_addresses_of_files(files, models, tmp_path):
    folder = files[0]
    listed = tmp_path / "list.txt"
    listed.write_text("# Rubin\n" + "\n".join(str(path) for path in (folder / "rubin").iterdir()))
    pytest.importorskip("fsspec")
    found = make_plan(tmp_path / "s", [listed], [f"file://{folder / 'euclid'}"], models=models, **SIZES)
    assert len(found.inputs) == 8 and len(found.rows) == 2
    one_sided = make_plan(tmp_path / "s", [listed], models=models, **SIZES)
    assert [row["euclid"] for row in one_sided.rows] == ["", ""]


@pytest.mark.parametrize("kind", ["NUNIQ", "RANGE"])
def test_area(files, models, tmp_path, kind):
    """Cells that the coverage map does not touch are left out."""
    healpix = pytest.importorskip("astropy_healpix")
    place = tract_wcs().pixel_to_world(110, 30)  # in the right-hand cell
    order = 18  # 0.8 arcsec
    pixel = healpix.HEALPix(2**order, order="nested", frame="icrs").skycoord_to_healpix(place)
    if kind == "NUNIQ":
        values = [4 * 4**order + pixel]
    else:
        values = [pixel << 2 * (29 - order), (pixel + 1) << 2 * (29 - order)]
    table = fits.BinTableHDU.from_columns([fits.Column("VALUE", "K", array=np.array(values, np.int64))])
    table.header["ORDERING"], table.header["COORDSYS"] = kind, "C"
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "area.fits")
    found = make_plan(
        tmp_path / "s", [files[0] / "rubin"], models=models, moc=tmp_path / "area.fits", **{**SIZES, "core": 12.8}
    )
    assert found.indices == [(TRACT, 1)]


def test_plan_and_status_do_not_load_torch(files, models, done, tmp_path):
    code = f"""
import sys
from rosetta.cli import main
assert main(["survey", "plan", "--rubin", {str(files[0] / "rubin")!r}, "--core", "12.8", "--margin", "4",
             "--window", "12.8", "--models", {str(models)!r}, "-o", {str(tmp_path / "s")!r}]) == 0
assert main(["survey", "status", {str(done)!r}]) == 0
assert "torch" not in sys.modules
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


# ---------------------------------------------------------------------------- results
def test_each_star_is_primary_once(done, files):
    """Over the seam, and over the border of the MER tiles."""
    survey, places = read(done), []
    for index in survey.indices:
        table = rows_of(done, index)
        ids = np.array(table["object_id"])
        assert (ids >> 48 == TRACT).all() and (ids >> 32 & 0xFFFF == index[1]).all()
        np.testing.assert_array_equal(ids & 0xFFFFFFFF, np.arange(len(ids)))
        primary = np.array(table["is_primary"])
        assert 0 < primary.sum() < len(primary)  # the margin's rows are kept
        assert set(table["mer_tile"].to_pylist()) == {["101", "102"][index[1]]}
        assert set(table["patch"].to_pylist()) == {4, 5}
        ra, dec = (np.array(table[axis])[primary] for axis in ("ra", "dec"))
        places.append(SkyCoord(ra, dec, unit="deg"))
    found = SkyCoord(np.concatenate([p.ra for p in places]), np.concatenate([p.dec for p in places]))
    near = files[1][:, None].separation(found[None]) < 0.3 * u.arcsec
    assert (near.sum(1) == 1).all()


def test_tables_are_catalogues(done):
    """Units, descriptions, covariances and the solution are read back."""
    place = Store(done).place((TRACT, 0))
    objects = read_catalogue(place / "objects.parquet")
    assert [name for name in objects.colnames if not objects[name].info.description] == []
    assert objects["flux_cov"].shape[1:] == (2, 2) and objects["flux_cov"].unit == u.nJy**2
    assert objects["ra_err"].unit == u.mas and objects.meta["bands"] == ["r", "VIS"]
    windows = read_catalogue(place / "windows.parquet")
    assert windows["embedding"].shape == (len(windows), 256)
    solution = AstrometricSolution.from_table(read_catalogue(place / "offsets.parquet"))
    assert solution.verdict == Store(done).record((TRACT, 0))["verdict"]
    if solution.bands:
        assert np.isfinite(solution.offset_at(objects["sky_centroid"])).all()


def test_maps_of_the_sky(done):
    """All that both cells hold is valid; the two images end where the patches and the tiles do."""
    tables = [rows_of(done, index, "maps") for index in read(done).indices]
    for table in tables:
        assert sum(table["n"].to_pylist()) == sum(table["valid_r"].to_pylist()) == 256
        assert sum(table["masked_r"].to_pylist()) == 0 and sum(table["valid_VIS"].to_pylist()) == 256
    weight = sum(tables[0]["weight_r"].to_pylist()) / 256
    factor = Store(done).record((TRACT, 0))["metrics"]["noise_factor_r"]
    psf = gaussian(0.8, 0.2)
    expected = 31.4 - 2.5 * np.log10(5 * SIGMA["r"] * factor / np.sqrt((psf**2).sum()))
    assert sky_maps.depth(weight) == pytest.approx(expected, abs=0.02)


def test_metrics_of_a_cell(done):
    found = Store(done).record((TRACT, 0))["metrics"]
    primary = np.array(rows_of(done, (TRACT, 0))["is_primary"])
    assert found["area_arcmin2"] == pytest.approx((12.8 / 60) ** 2, rel=1e-5)
    assert found["rows_per_arcmin2"] == pytest.approx(primary.sum() / found["area_arcmin2"], rel=1e-4)
    assert found["align_verdict"] == 0 and found["align_rms_mas"] < 30 and abs(found["align_east_mas"]) < 30
    assert 0.5 < found["chi2_r"] < 1.5 and 0.7 < found["noise_factor_r"] < 1.4


def test_windows_lie_on_the_grid_of_the_tract(done):
    survey = read(done)
    centers = []
    for index in survey.indices:
        table = rows_of(done, index, "windows")
        ra, dec = (np.array(table[f"sky_center_{axis}"]) for axis in ("ra", "dec"))
        x, y = tract_wcs().world_to_pixel(SkyCoord(ra, dec, unit="deg"))
        np.testing.assert_allclose([(x + 0.5) % 32, (y + 0.5) % 32], 16, atol=1e-5)
        assert within_core(x, y, index[1], CORE).all()
        centers += list(zip(np.round(x, 2), np.round(y, 2), np.array(table["survey"]), strict=True))
    assert len(centers) == len(set(centers)) == 2 * 8


def test_tiles_lie_on_the_grid_of_the_tract(files, models, tmp_path):
    """Tiles of two cells and of one cell that holds both meet at the same places."""
    small = plan(files[0], models, tmp_path / "small")
    large = plan(files[0], models, tmp_path / "large", core=25.6, tile=12.8)
    assert (small.config.tile, large.config.tile) == (12.8, 12.8)
    places = []
    for survey in (small, large):
        found = [task._tile_corners(cell, survey.config) for cell in survey.cells(survey.indices)]
        assert {corners.shape for corners in found} == {(2, 2) if survey is small else (3, 3)}
        x, y = np.concatenate([tract_wcs().world_to_pixel(corners.ravel()) for corners in found], axis=1)
        places.append({(round(a, 4), round(b, 4)) for a, b in zip(x + 0.5, y + 0.5, strict=True)})
    assert places[0] == {(64.0 * i, 64.0 * j) for i in range(3) for j in range(2)} < places[1]
    assert make_plan(tmp_path / "s", [files[0] / "rubin"], models=models).config.tile == pytest.approx(102.4)


def test_record_and_status(done, capsys):
    record = Store(done).record((TRACT, 1))
    assert record["state"] == "done" and record["tile"] == "102" and record["bands"] == ["r", "VIS"]
    assert record["n_rows"] == rows_of(done, (TRACT, 1)).num_rows
    assert record["inputs"][:2] == ["r_4.fits", "r_5.fits"] and set(record["steps"]) >= {"encode", "deblend"}
    found = status(done)
    assert (found["total"], found["done"], found["failed"], found["left"]) == (2, 2, 0, 0)
    assert found["per_hour"] > 0 and found["peak_memory_gib"] < 3
    assert main(["survey", "status", str(done), "--watch"]) == 0
    assert "2 of 2 cells done" in capsys.readouterr().out


def copied(done, folder, *undone):
    """A copy of a finished survey in which some cells are not done."""
    shutil.copytree(done, folder)
    for index in undone:
        shutil.rmtree(Store(folder).place(index))
    return folder


def test_run_resumes_and_is_stable(done, tmp_path):
    """Only the missing cell is measured, and its rows are what they were."""
    folder = copied(done, tmp_path / "s", (TRACT, 1))
    before = (Store(folder).place((TRACT, 0)) / "record.json").read_bytes()
    assert main(["survey", "run", str(folder), "--serial", "--shard", "0/2"]) == 0
    assert status(folder)["left"] == 1
    assert main(["survey", "run", str(folder), "--serial", "--shard", "1/2"]) == 0
    assert (Store(folder).place((TRACT, 0)) / "record.json").read_bytes() == before
    for name in ("objects", "offsets", "windows"):
        new, old = (rows_of(where, (TRACT, 1), name).to_pylist() for where in (folder, done))
        assert str(new) == str(old), name  # as text, in which NaN is NaN


def test_part_of_the_cells(done):
    for text in ("2/2", "1", "a/2", "0/0"):
        assert main(["survey", "run", str(done), "--serial", "--shard", text]) == 2


def test_the_region_alone_is_read(done, monkeypatch):
    """Pixels that leave the disk are those of the box, on both sides."""
    sizes = []
    for module in (rubin, euclid):
        bands = module.read_bands

        def seen(*args, bands=bands, **kwargs):
            found = bands(*args, **kwargs)
            sizes.extend(image.shape for image in found.values())
            return found

        monkeypatch.setattr(module, "read_bands", seen)
    cell = next(read(done).cells([(TRACT, 0)]))
    task._pair(cell)
    assert sizes[0] == (64, 84)  # the box is trimmed to the patches
    assert max(sizes[1]) <= 2 * 104 + 8
    assert cell.box == (-20, 84, -20, 84)


# ---------------------------------------------------------------------------- failure
def broken(done, folder, monkeypatch, error, times=99):
    """A copy with one cell to do, whose measuring raises."""
    folder = copied(done, folder, (TRACT, 1))
    measure, left = task._measure, [times]

    def fails(*args):
        if left[0]:
            left[0] -= 1
            raise error
        return measure(*args)

    monkeypatch.setattr(task, "_measure", fails)
    return folder


def test_errors_are_tried_again(done, tmp_path, monkeypatch, capsys):
    folder = broken(done, tmp_path / "s", monkeypatch, RuntimeError("no luck"), times=2)
    assert main(["survey", "run", str(folder), "--serial"]) == 0
    assert not list(folder.rglob("try-*")) and not Store(folder).failure((TRACT, 1))

    folder = broken(done, tmp_path / "t", monkeypatch, RuntimeError("no luck"))
    assert main(["survey", "run", str(folder), "--serial"]) == 3
    assert "tract 9 cell 1: RuntimeError: no luck (3 tries)" in capsys.readouterr().out
    note = Store(folder).failure((TRACT, 1))
    assert note["tries"] == 3 and "in fails" in note["traceback"]
    assert main(["survey", "run", str(folder), "--serial"]) == 3  # it stays given up
    assert status(folder)["failures"] == [note]
    monkeypatch.undo()
    assert main(["survey", "run", str(folder), "--serial", "--retry-failed"]) == 0
    assert status(folder)["done"] == 2


def test_bad_input_is_final(files, models, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(files[0], data)
    with fits.open(data / "rubin" / "r_5.fits", mode="update") as hdus:
        hdus["IMAGE"].data[10, 10:20] += 100  # patches that do not agree
    plan(data, models, tmp_path / "s")
    assert main(["survey", "run", str(tmp_path / "s"), "--serial"]) == 3
    out = capsys.readouterr().out
    assert "0 of 2 cells are done" in out and "r_4.fits and r_5.fits differ on 10 pixels" in out and "tries" not in out
    assert Store(tmp_path / "s").failure((TRACT, 0))["tries"] == 1


def test_changed_files_are_refused(files, models, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(files[0], data)
    plan(data, models, tmp_path / "s")
    os.utime(data / "rubin" / "r_5.fits")
    assert main(["survey", "run", str(tmp_path / "s"), "--serial"]) == 2
    assert "r_5.fits has changed since the plan" in capsys.readouterr().err


def test_time_limit(done, tmp_path, capsys):
    folder = copied(done, tmp_path / "s", (TRACT, 1))
    assert main(["survey", "run", str(folder), "--serial", "--limit", "0"]) == 3
    assert "TimeoutError: not finished after 0 s (in step 'encode') (3 tries)" in capsys.readouterr().out


def test_empty_cells_are_no_failures(files, models, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(files[0], data)
    for path in (data / "rubin").iterdir():
        with fits.open(path, mode="update") as hdus:
            hdus["MASK"].data[:] = 4
    for path in (data / "euclid").glob("*RMS*"):
        with fits.open(path, mode="update") as hdus:
            hdus[0].data[:] = 0
    plan(data, models, tmp_path / "s")
    assert main(["survey", "run", str(tmp_path / "s"), "--serial"]) == 0
    found = status(tmp_path / "s")
    assert (found["done"], found["empty"], found["failed"]) == (2, 2, 0)


def test_a_killed_try_counts(done, tmp_path):
    """One of a process that has ended, or of another machine long ago; not one that may be at work."""
    store, index = Store(copied(done, tmp_path / "s", (TRACT, 1))), (TRACT, 1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    store.place(index).mkdir()

    def note(name, **values):
        values = {"machine": machine(), "process": os.getpid(), "started": time.time(), **values}
        (store.place(index) / f"try-{name}.json").write_text(json.dumps(values))

    note("a", process=dead.pid)
    note("b")
    note("c", machine="elsewhere", started=time.time() - 100)
    assert len(store.tries(index, 1000)) == 1 and len(store.tries(index, 50)) == 2
    assert store.n_running([index], 1000) == 1
    note("d", process=dead.pid)
    note("e", process=dead.pid)
    assert main(["survey", "run", str(store.folder), "--serial"]) == 3
    assert "killed" in store.failure(index)["message"]


def test_two_processes(done, tmp_path):
    """They measure what this process does."""
    folder = copied(done, tmp_path / "s", *read(done).indices)
    assert main(["survey", "run", str(folder), "--workers", "2"]) == 0
    for index in read(done).indices:
        for name in ("objects", "offsets", "windows"):
            new, old = (rows_of(where, index, name).to_pylist() for where in (folder, done))
            assert str(new) == str(old), name
    machines = {Store(folder).record(index)["process"] for index in read(done).indices}
    assert os.getpid() not in machines and len(machines) == 2


def test_a_process_that_dies_takes_no_other_with_it():
    jobs = [partial(os._exit, 1), *(partial(abs, -number) for number in range(5))]
    with engines.processes(2) as made:
        outcomes = dict(engines.drive(jobs, operator.call, made, again="again", give_up=lambda job: "given up"))
    assert [outcomes[job] for job in jobs] == ["given up", 0, 1, 2, 3, 4]


def test_order_of_the_jobs():
    """What must be done again comes after the others; an error that no job can cause ends the run."""
    seen = []

    def work(job):
        seen.append(job)
        if job == "bad":
            raise OSError("disk full")
        return "again" if job == "a" and seen.count("a") < 3 else "done"

    with engines.here() as made:
        outcomes = list(engines.drive("abc", work, made, again="again", give_up=None))
        assert outcomes == [("b", "done"), ("c", "done"), ("a", "done")] and seen == ["a", "b", "c", "a", "a"]
        with pytest.raises(OSError, match="disk full"):
            list(engines.drive(["bad"], work, made, again="again", give_up=None))


def test_dask(done, tmp_path):
    """A cluster in this process; a cell that fails there is tried again there."""
    distributed = pytest.importorskip("distributed")
    folder = copied(done, tmp_path / "s", (TRACT, 1))
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(
            1, processes=False, threads_per_worker=1, dashboard_address=None, memory_limit=None
        ) as cluster,
    ):
        warnings.simplefilter("ignore")
        assert main(["survey", "run", str(folder), "--dask", cluster.scheduler_address]) == 0
    new, old = (rows_of(where, (TRACT, 1)).to_pylist() for where in (folder, done))
    assert str(new) == str(old)


def test_two_runners_of_one_cell(done, tmp_path, monkeypatch):
    """The second one begins while the first is at work; both end, with one result."""
    folder = copied(done, tmp_path / "s", (TRACT, 1))
    measure, outcomes = task._measure, []

    def again(*args):
        monkeypatch.setattr(task, "_measure", measure)
        cell = next(read(folder).cells([(TRACT, 1)]))
        outcomes.append(task.attempt(cell, read(folder).config, 7200))
        return measure(*args)

    monkeypatch.setattr(task, "_measure", again)
    assert main(["survey", "run", str(folder), "--serial"]) == 0
    assert outcomes == [task.DONE] and status(folder)["done"] == 2
    new, old = (rows_of(where, (TRACT, 1)).to_pylist() for where in (folder, done))
    assert str(new) == str(old) and not list(folder.rglob("try-*"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "read-only")])
def test_a_disk_that_takes_no_more_ends_the_run(done, tmp_path, monkeypatch, capsys, error):
    """When a table cannot be written for lack of room, or when not even a try can be noted."""
    folder = copied(done, tmp_path / "s", *read(done).indices)
    name, function = (task, "_measure") if error.errno == errno.ENOSPC else (store_module, "_write")

    def refused(*args):
        raise error

    monkeypatch.setattr(name, function, refused)
    assert main(["survey", "run", str(folder), "--serial"]) == 2
    assert error.strerror in capsys.readouterr().err
    assert not list(folder.rglob("try-*")) and status(folder)["left"] == 2 and not status(folder)["failures"]


def test_an_interruption_is_no_try(done, tmp_path):
    store = Store(copied(done, tmp_path / "s", (TRACT, 1)))
    with pytest.raises(KeyboardInterrupt), store.trying((TRACT, 1)):
        raise KeyboardInterrupt
    assert not store.tries((TRACT, 1), 0)
