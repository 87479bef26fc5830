# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What a survey publishes: each source once, maps of the sky that was looked at, and random positions in it."""

import json
import re
import shutil
import warnings
from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import QTable
from astropy.wcs import WCS

from rosetta import Flag
from rosetta.cli import main
from rosetta.production import sky_maps
from rosetta.production.cells import Tract, core_box
from rosetta.production.metrics import outside
from rosetta.production.store import Store

pa = pytest.importorskip("pyarrow")
pytest.importorskip("astropy_healpix")
from pyarrow import parquet  # noqa: E402

from rosetta.production.borders import _owned, resolve  # noqa: E402
from rosetta.production.merged import Merged  # noqa: E402
from rosetta.production.survey import Config, Survey, read, read_limits, write  # noqa: E402

TRACT, CORE = 9, 64  # pixels
BANDS = {0: ["r", "VIS"], 1: ["r"]}  # of the two cells
BORDER = CORE - 0.5  # x of the border between them


def tract_wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.radesys = ["RA---TAN", "DEC--TAN"], (53.1, -28.1), "ICRS"
    wcs.wcs.cd, wcs.wcs.crpix = np.diag([-0.2, 0.2]) / 3600, [400.5, -300.25]
    return wcs


# What each cell sees: name, x, y (pixels), S/N. 0.1 arcsec are half a pixel.
SEEN = {
    0: [
        ("in 0", 20, 20, 50), ("twice", BORDER - 0.1, 10, 30), ("never", BORDER + 0.05, 20, 40),
        ("close 1", BORDER - 2.0, 30, 30), ("close 2", BORDER - 2.3, 30, 25), ("faint", BORDER - 0.1, 40, 3),
        ("over", BORDER + 5, 50, 9), ("pair 1", BORDER - 0.15, 60, 20), ("pair 2", BORDER + 0.15, 60, 20),
    ],
    1: [
        ("in 1", 100, 20, 50), ("twice", BORDER + 0.1, 10, 31), ("never", BORDER - 0.05, 20, 39),
        ("close 1", BORDER - 2.0, 30, 29), ("close 2", BORDER - 2.3, 30, 24), ("over", BORDER + 5, 50, 9),
        ("pair 1", BORDER - 0.15, 60, 20), ("pair 2", BORDER + 0.15, 60, 20),
    ],
}  # fmt: skip


def objects(cell):
    """The catalogue of a cell."""
    names, x, y, snr = (np.array(values) for values in zip(*SEEN[cell], strict=True))
    n, n_band = len(x), len(BANDS[cell])
    covariance = np.tile(np.arange(1.0, 1 + n_band**2), (n, 1))
    table = QTable({
        "object_id": ((TRACT << 16 | cell) << 32) + np.arange(n),
        "is_primary": np.floor((x + 0.5) / CORE) == cell,
        "sky_centroid": tract_wcs().pixel_to_world(x, y),
    })  # fmt: skip
    for band in BANDS[cell]:
        table[f"flux_{band}"] = np.arange(n) * u.nJy
        table[f"flags_{band}"] = np.zeros(n, int)
    table["flux_cov"] = covariance * u.nJy**2
    table["flags"], table["snr"], table["name"] = np.full(n, int(Flag.BLENDED)), snr.astype(float), names
    return table


def windows(cell):
    x, y = CORE * cell + np.array([16.0, 48, 16]), np.array([16.0, 16, 48])
    random = np.random.default_rng(cell)
    return QTable({
        "survey": ["Rubin"] * 3, "sky_center": tract_wcs().pixel_to_world(x, y),
        "embedding": random.normal(size=(3, 8)).astype(np.float32), "cls": np.zeros((3, 4), np.float32),
        "coverage": np.array([1, 0.5, 0], np.float32), "ood_score": np.ones(3, np.float32), "flags": np.zeros(3, int),
    })  # fmt: skip


def image(band, mask=None):
    """An image of both cells with 5-sigma depth 25."""
    shape = (CORE, 2 * CORE)
    valid = np.ones(shape, bool) if mask is None else ~mask
    weight = np.full(shape, (5 / 10 ** (0.4 * (31.4 - 25.0))) ** 2)  # for a PSF of one pixel
    wcs = tract_wcs()
    return SimpleNamespace(
        band=band, shape=shape, valid=valid, sky_weight=np.where(valid, weight, 0.0), mean_psf=np.ones((1, 1)),
        sky_to_pixel=lambda sky: wcs.world_to_pixel(sky),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A survey of two cells, as if it were measured."""
    folder = tmp_path_factory.mktemp("survey") / "s"
    config = Config(str(folder), 12.8, 4.0, 12.8, 6.4, 12.8, "", *"abcde")
    box = dict(zip(("y0", "y1", "x0", "x1"), (0, CORE, 0, 2 * CORE), strict=True))
    inputs = [{"path": "r.fits", "size": 1, "version": "1", "survey": "rubin", "band": "r", "tract": TRACT, "patch": 4,
               "tile": "", **box}]  # fmt: skip
    common = {"tract": TRACT, "tile": "", "others": "", "rubin": "0", "euclid": "", "euclid_height": 0.0,
              "euclid_width": 0.0, "ra": 53.1, "dec": -28.1}  # fmt: skip
    cards = {TRACT: tract_wcs().to_header().tostring()}
    survey = Survey(config, inputs, [{**common, "cell": cell} for cell in (0, 1)], cards)
    write(survey)
    store = Store(folder)
    mask = np.zeros((CORE, 2 * CORE), bool)
    mask[:32, :32] = True
    for cell in survey.cells(survey.indices):
        images = {band: image(band, mask if band == "VIS" else None) for band in BANDS[cell.number]}
        store.write_table(cell.index, "objects", objects(cell.number))
        store.write_table(cell.index, "windows", windows(cell.number))
        store.write_table(cell.index, "maps", sky_maps.counts(images, dict.fromkeys(images, 2.0), cell))
        store.finish(cell.index, {"state": "done", "tract": TRACT, "cell": cell.number, "bands": BANDS[cell.number],
                                  "versions": {"numpy": "2"}, "metrics": {}})  # fmt: skip
    return folder


def merged(folder, name):
    survey, store = read(folder), Store(folder)
    found = Merged(survey, store, survey.indices, resolve(survey, store, survey.indices))
    files, n_rows = found.write(name, folder.parent, {b"rosetta": b"{}"})
    table = parquet.read_table(files)
    assert len(table) == n_rows
    return table


# ---------------------------------------------------------------------------- borders
def test_each_source_once(folder):
    """Those that two cells take for theirs, and those that none does, keep the row of highest S/N."""
    table = merged(folder, "objects")
    names = table["name"].to_pylist()
    assert sorted(names) == sorted({name for rows in SEEN.values() for name, *_ in rows})
    flags = dict(zip(names, table["flags"].to_pylist(), strict=True))
    assert {name for name in names if flags[name] & Flag.BORDER} == {"twice", "never"}
    assert all(flags[name] & Flag.BLENDED for name in names)
    snr = dict(zip(names, table["snr"].to_pylist(), strict=True))
    assert snr["twice"] == 31 and snr["never"] == 40 and snr["close 1"] == 30


def test_borders_are_counted(folder):
    survey, store = read(folder), Store(folder)
    found = resolve(survey, store, survey.indices)
    assert found.duplicates == {(TRACT, 1): 1} and found.orphans == {(TRACT, 0): 1}
    assert (len(found.dropped), len(found.kept), len(found.added)) == (1, 1, 1)
    assert found.dropped[0] == objects(0)["object_id"][1]
    assert not resolve(survey, store, survey.indices[:1]).duplicates


@pytest.fixture(scope="module")
def two_tracts():
    """The cells of two tracts that overlap, 400 pixels wide."""
    wcs = {3: tract_wcs(), 7: tract_wcs()}
    wcs[7].wcs.crval = (53.13, -28.11)
    tracts = {
        number: Tract(number, one.to_header().tostring(), ((0, 800, 0, 800),)) for number, one in wcs.items()
    }  # fmt: skip
    config = SimpleNamespace(pixels=lambda name: 400)
    cells = [
        SimpleNamespace(number=number, tract=one, core=core_box(number, 400), tracts=(tracts[one], tracts[10 - one]))
        for one in (3, 7) for number in (0, 1, 256, 257)
    ]  # fmt: skip
    return tracts, config, cells


def test_every_position_has_one_owner(two_tracts):
    """Also where tracts overlap."""
    tracts, config, cells = two_tracts
    x, y = np.random.default_rng(1).uniform(-50, 900, (2, 2000))
    sky = tracts[3].wcs.pixel_to_world(x, y)
    owners = np.sum([_owned(*cell.tracts[0].pixels(sky), cell, config) for cell in cells], axis=0)
    held = tracts[3].holds(sky) | tracts[7].holds(sky)
    assert (owners == held).all() and 0 < held.sum() < len(held)
    both = tracts[3].holds(sky) & tracts[7].holds(sky)
    assert both.sum() > 300


def test_maps_count_the_overlap_of_tracts_once(two_tracts):
    tracts, _, cells = two_tracts
    n = sum(int(sky_maps.counts({}, {}, cell)["n"].sum()) for cell in cells)
    x, y = (axis.ravel() + 0.5 for axis in np.mgrid[0:800:2.0, 0:800:2.0])
    overlap = tracts[7].holds(tracts[3].wcs.pixel_to_world(x, y)).mean() * 800**2
    assert n * 16 == pytest.approx(2 * 800**2 - overlap, rel=2e-3)


# ---------------------------------------------------------------------------- columns
def test_a_band_that_a_cell_has_not_got(folder):
    table = merged(folder, "objects")
    cell = table["object_id"].to_numpy() >> 32 & 0xFFFF
    cov = table["flux_cov"].combine_chunks().flatten().to_numpy().reshape(-1, 2, 2)
    assert np.isnan(table["flux_VIS"].to_numpy()[cell == 1]).all()
    assert (table["flags_VIS"].to_numpy()[cell == 1] == Flag.NO_DATA).all()
    no_data = (table["flags"].to_numpy() & Flag.NO_DATA) != 0
    np.testing.assert_array_equal(no_data, cell == 1)
    np.testing.assert_array_equal(cov[cell == 0][0], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(cov[cell == 1][0], [[1, np.nan], [np.nan, np.nan]])
    assert "is_primary" not in table.column_names and table.schema.metadata == {b"rosetta": b"{}"}


def test_windows_in_half_precision(folder):
    table = merged(folder, "windows")
    assert table["embedding"].type == pa.list_(pa.float16(), 8) and "cls" not in table.column_names
    given = np.concatenate([windows(cell)["embedding"][:2] for cell in (0, 1)])  # the third has no valid pixel
    found = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 8)
    np.testing.assert_allclose(found, given, rtol=1e-3)
    assert len(set(table["window_id"].to_pylist())) == 4


# ---------------------------------------------------------------------------- maps
def test_counts_add_up(folder):
    """Every position of the lattice is counted once, on its own pixel."""
    store = Store(folder)
    tables = [store.table((TRACT, cell), "maps") for cell in (0, 1)]
    tables = [{name: table[name].to_numpy() for name in table.column_names} for table in tables]
    places = 2 * CORE**2 // 16
    assert sum(table["n"].sum() for table in tables) == places
    assert tables[0]["masked_VIS"].sum() == 32 * 32 // 16
    assert tables[0]["valid_VIS"].sum() == CORE**2 // 16 - 64
    weight = sum(table["weight_r"].sum() for table in tables)
    # A noise factor of 2 costs 2.5 log10(2) of depth.
    assert sky_maps.depth(weight / places) == pytest.approx(25 - 0.7526, abs=1e-3)


def test_what_lies_outside_an_image_is_not_counted(folder):
    survey = read(folder)
    cell = next(survey.cells(survey.indices[1:]))
    seen = image("r")
    seen.shape = (CORE, CORE + 32)  # half of the cell's core
    table = sky_maps.counts({"r": seen}, {"r": 1.0}, cell)
    assert table["valid_r"].sum() == CORE * 32 // 16 and table["masked_r"].sum() == 0


def test_random_positions_are_uniform():
    random = np.random.default_rng(1)
    first = sky_maps.healpix().skycoord_to_healpix(SkyCoord(53.1, -28.1, unit="deg")) // 4096 * 4096
    pixels = first + np.arange(4096)
    share = np.where(np.arange(4096) < 2048, 1.0, 0.25)
    sky = sky_maps.random_positions(pixels, share, 2000.0, random)
    area = sky_maps.healpix().pixel_area.to_value("arcmin2")
    found = np.bincount(sky_maps.healpix().skycoord_to_healpix(sky) - first, minlength=4096)
    expected = 2000 * area * share
    assert np.sum((found - expected) ** 2 / expected) == pytest.approx(4096, abs=5 * np.sqrt(2 * 4096))
    finer = sky_maps.healpix(sky_maps.ORDER + 1).skycoord_to_healpix(sky) % 4  # and within pixels
    assert np.abs(np.bincount(finer) / len(sky) - 0.25).max() < 5 * np.sqrt(0.19 / len(sky))


# ---------------------------------------------------------------------------- limits
def test_limits_mark_metrics(folder, tmp_path):
    limits = read_limits(folder)
    assert outside({"chi2_Y_E": 3.0, "chi2_r": 1.0, "depth_r": 99.0, "align_verdict": 2}, limits) == [
        "chi2_Y_E", "align_verdict",
    ]  # fmt: skip
    config = folder / "config.toml"
    text = config.read_text()
    try:
        config.write_text(text.replace("chi2 = [0.2, 2.0]", "chi2 = [0.2, 9.0]"))
        assert outside({"chi2_Y_E": 3.0}, read_limits(folder)) == []
        assert read(folder).hash  # limits are no part of the plan
        config.write_text(text.replace("chi2 = [0.2, 2.0]", "chi2 = 3"))
        with pytest.raises(ValueError, match="limits.chi2 must be a list of the lowest and the highest value"):
            read_limits(folder)
    finally:
        config.write_text(text)


# ---------------------------------------------------------------------------- the whole
@pytest.fixture(scope="module")
def published(folder, tmp_path_factory):
    for name in ("hats_import", "healsparse", "distributed"):
        pytest.importorskip(name, reason="needs the extra hats")
    place = tmp_path_factory.mktemp("out") / "published"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["survey", "publish", str(folder), "--hats", str(place), "--randoms", "5000"]) == 0
    return place


@pytest.fixture
def lsdb():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("lsdb")


def test_lsdb_reads_the_objects(published, folder, lsdb):
    catalog = lsdb.open_catalog(published / "objects")
    rows = catalog.compute()
    given = merged(folder, "objects")
    assert sorted(rows["object_id"]) == sorted(given["object_id"].to_pylist())
    ra, dec = rows["ra"].iloc[0], rows["dec"].iloc[0]
    sky = SkyCoord(rows["ra"], rows["dec"], unit="deg")
    near = sky.separation(SkyCoord(ra, dec, unit="deg")) < 5 * u.arcsec
    assert len(catalog.cone_search(ra, dec, 5).compute()) == near.sum()
    twin = catalog.crossmatch(
        catalog, radius_arcsec=0.3, n_neighbors=1, suffixes=("", "_other"), suffix_method="overlapping_columns"
    ).compute()
    assert len(twin) == len(rows) and (twin["object_id"] == twin["object_id_other"]).all()
    assert twin["object_id"].is_unique
    wanted = int(rows["object_id"].iloc[3])
    assert list(catalog.id_search(values={"object_id": wanted}).compute()["object_id"]) == [wanted]


def test_lsdb_reads_windows_and_random_positions(published, lsdb):
    found = lsdb.open_catalog(published / "windows").compute()
    assert np.stack(found["embedding"]).shape == (4, 8)
    randoms = lsdb.open_catalog(published / "randoms").compute()
    area = 2 * (12.8 / 60) ** 2
    assert len(randoms) == pytest.approx(5000 * area, abs=5 * np.sqrt(5000 * area) + 0.05 * 5000 * area)
    assert (randoms["coverage_r"] == 1).mean() > 0.9 and randoms["coverage_VIS"].mean() < 0.5
    assert np.allclose(randoms["depth_r"], 25 - 0.7526, atol=0.01)


def test_published_maps(published):
    healsparse = pytest.importorskip("healsparse")
    read = healsparse.HealSparseMap.read
    maps = {path.stem: read(str(path)) for path in (published / "maps").iterdir()}
    assert set(maps) == {"area"} | {f"{name}_{band}" for name in ("coverage", "mask", "depth") for band in ("r", "VIS")}
    pixels = maps["area"].valid_pixels
    area = maps["area"][pixels] * sky_maps.healpix().pixel_area.to_value("arcsec2")
    assert area.sum() == pytest.approx(2 * 12.8**2, rel=0.03)
    assert (maps["coverage_r"][pixels] == 1).all() and not maps["mask_r"][pixels].any()
    # One of the cells has VIS, but for a corner of 6.4 arcsec, which is masked.
    assert (maps["mask_VIS"][pixels] * area).sum() == pytest.approx(6.4**2, rel=0.05)
    assert (maps["coverage_VIS"][pixels] * area).sum() == pytest.approx(12.8**2 - 6.4**2, rel=0.05)
    assert set(maps["depth_VIS"].valid_pixels) == set(pixels[maps["coverage_VIS"][pixels] > 0])


def test_provenance_is_in_every_file(published, folder):
    told = json.loads((published / "provenance.json").read_text())
    assert told["survey"] == read(folder).hash and told["settings"]["encoder"] == "a" and told["bands"] == ["r", "VIS"]
    assert told["borders"] == {"duplicates": 1, "orphans": 1} and told["cells"] == {"planned": 2, "published": 2}
    files = [*published.rglob("*.parquet")]
    assert len(files) >= 6
    for path in files:
        assert json.loads(parquet.read_schema(path).metadata[b"rosetta"]) == told, path
    healsparse = pytest.importorskip("healsparse")
    for path in published.rglob("*.hsp"):
        assert json.loads(healsparse.HealSparseMap.read(str(path)).metadata["ROSETTA"]) == told
    text = "".join(path.read_text() for path in published.rglob("*properties"))
    assert str(published.parent) not in text and ".rosetta-" not in text  # it can be moved


def test_publish_refuses(folder, tmp_path, capsys):
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "a").touch()
    pytest.importorskip("hats_import", reason="needs the extra hats")
    assert main(["survey", "publish", str(folder), "--hats", str(tmp_path / "file")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["survey", "publish", str(folder), "--hats", str(tmp_path / "new"), "--workers", "0"]) == 2
    assert "--workers 0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------- the page on quality
def test_a_bad_cell_is_marked(folder, tmp_path, capsys):
    """On the page and in the list; what two cells share on a border is a metric of the cell whose row stays."""
    survey = tmp_path / "a & <b>"
    shutil.copytree(folder, survey)
    store = Store(survey)
    for cell, chi2 in ((0, 1.0), (1, 3.5)):
        record = store.record((TRACT, cell)) | {"metrics": {"chi2_r": chi2, "share_BLENDED": 0.2, "share_EDGE": 0.0}}
        store.finish((TRACT, cell), record)
    assert main(["survey", "qa", str(survey)]) == 0
    assert "tract 9 cell 1: chi2_r 3.5" in capsys.readouterr().out
    text = (survey / "quality.html").read_text()
    assert "<title>Quality of a &amp; &lt;b&gt;</title>" in text and "://" not in text
    assert "2 done" in text and "Outside the limits: 1." in text
    data = json.loads(re.search(r'<script type="application/json" id="rows">(.*?)</script>', text)[1])
    assert data["columns"][4:] == ["chi2_r", "share_BLENDED", "duplicates", "orphans", "outside"]
    good, bad = data["rows"]
    assert good[4:] == [1.0, 0.2, 0, 1, 0] and bad[4:-1] == [3.5, 0.2, 1, 0]
    assert [name for bit, name in enumerate(data["flags"]) if bad[-1] >> bit & 1] == ["chi2"]
    assert data["map"]["limits"][4] == [0.2, 2.0] and data["map"]["states"] == [3, 3]
    corners = np.array(data["map"]["corners"]).reshape(2, 4, 2)
    sides = np.hypot(*np.moveaxis(np.roll(corners, -1, 1) - corners, 2, 0)) * 3600
    np.testing.assert_allclose(sides, 12.8, rtol=0.01)
    np.testing.assert_allclose(corners[0, 1:3], corners[1, [0, 3]], atol=1e-6)  # they share a side


def test_page_of_a_survey_that_has_just_begun(folder, tmp_path, capsys):
    survey = tmp_path / "s"
    shutil.copytree(folder, survey)
    store = Store(survey)
    for cell in (0, 1):
        shutil.rmtree(store.place((TRACT, cell)))
    store.fail((TRACT, 0), "no luck", 3)
    assert main(["survey", "qa", str(survey), "-o", str(tmp_path / "page.html")]) == 0
    assert "0 done, 0 empty, 1 failed, 1 not done" in (tmp_path / "page.html").read_text()
    assert main(["survey", "publish", str(survey), "--hats", str(tmp_path / "out")]) == 2
