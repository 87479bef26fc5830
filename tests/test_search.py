# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The windows of a survey that look like a given one."""

import importlib.util

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import QTable
from astropy.wcs import WCS

from rosetta.cli import main
from rosetta.io import read_catalogue, write_catalogue
from rosetta.production import vectors

pytest.importorskip("pyarrow")

from rosetta.production import search as search_module  # noqa: E402
from rosetta.production.search import search  # noqa: E402
from rosetta.production.store import Store  # noqa: E402
from rosetta.production.survey import Config, Survey, write  # noqa: E402

TRACT, CORE, DIM = 9, 64, 16
with_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")


def unit_vectors(n, dim=DIM, seed=0, kinds=0):
    """Vectors of length 1; about ``kinds`` directions, if any."""
    random = np.random.default_rng(seed)
    found = random.normal(size=(n, dim))
    if kinds:
        found = random.normal(size=(kinds, dim))[random.integers(kinds, size=n)] + 0.3 * found
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


# ---------------------------------------------------------------------------- vectors
def test_nearest_is_exact(monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK", 37)
    windows, queries = unit_vectors(200).astype(np.float16), unit_vectors(5, seed=1)
    rows, similarity = vectors.nearest(windows, queries, 12)
    all_of_them = queries @ windows.astype(np.float32).T
    np.testing.assert_array_equal(rows, np.argsort(-all_of_them, axis=1)[:, :12])
    np.testing.assert_allclose(similarity, np.take_along_axis(all_of_them, rows, 1), atol=1e-6)
    assert vectors.nearest(windows[:3], queries, 12)[0].shape == (5, 3)


def test_vectors_stay_on_disk(tmp_path):
    windows = unit_vectors(20).astype(np.float16)
    (tmp_path / "v").write_bytes(windows.tobytes())
    found = vectors.read_vectors(tmp_path / "v", DIM)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, windows)


@with_faiss
def test_index_finds_nearly_all(tmp_path):
    """Nine in ten of the nearest, with their exact similarities."""
    windows, queries = unit_vectors(4000, kinds=50).astype(np.float16), unit_vectors(20, seed=1)
    vectors.build_index(windows, tmp_path / "index")
    rows, similarity = vectors.nearest_by_index(tmp_path / "index", windows, queries, 10, probes=16)
    true, _ = vectors.nearest(windows, queries, 10)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(rows, true, strict=True)]) > 9
    expected = np.einsum("qd,qnd->qn", queries, windows[rows].astype(np.float32))
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    assert (np.diff(similarity, axis=1) <= 0).all()


# ---------------------------------------------------------------------------- surveys
def tract_wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.radesys = ["RA---TAN", "DEC--TAN"], (53.1, -28.1), "ICRS"
    wcs.wcs.cd, wcs.wcs.crpix = np.diag([-0.2, 0.2]) / 3600, [400.5, -300.25]
    return wcs


def windows(cell, seed=0):
    """Four windows of each survey in a cell; the last has no valid pixel."""
    x, y = (axis.ravel() for axis in np.meshgrid(CORE * cell + np.array([15.5, 47.5]), np.array([15.5, 47.5])))
    place = tract_wcs().pixel_to_world(np.tile(x, 2), np.tile(y, 2))
    table = QTable({"survey": ["Rubin"] * 4 + ["Euclid"] * 4, "sky_center": place})
    table["embedding"] = unit_vectors(8, seed=10 * seed + cell)
    table["coverage"] = np.tile(np.array([1, 1, 0.5, 0], np.float32), 2)
    table["ood_score"] = np.full(8, 0.5, np.float32)
    table.meta["encoder_fingerprint"] = "a"
    return table


@pytest.fixture
def folder(tmp_path):
    """A survey of two cells, as if it were measured."""
    folder = tmp_path / "s"
    config = Config(str(folder), 12.8, 4.0, 12.8, 6.4, 12.8, "", *"abcde")
    inputs = [{"path": "r.fits", "size": 1, "version": "1", "survey": "rubin", "band": "r", "tract": TRACT, "patch": 4,
               "tile": "", "y0": 0, "y1": CORE, "x0": 0, "x1": 2 * CORE}]  # fmt: skip
    common = {"tract": TRACT, "tile": "", "others": "", "rubin": "0", "euclid": "", "euclid_height": 0.0,
              "euclid_width": 0.0, "ra": 53.1, "dec": -28.1}  # fmt: skip
    cards = {TRACT: tract_wcs().to_header().tostring()}
    survey = Survey(config, inputs, [{**common, "cell": cell} for cell in (0, 1)], cards)
    write(survey)
    for number in (0, 1):
        finish(Store(folder), number)
    return folder


def finish(store, number, seed=0):
    store.write_table((TRACT, number), "windows", windows(number, seed))
    store.finish((TRACT, number), {"state": "done", "finished": float(seed)})


def test_like_a_position(folder):
    """The window there comes first; all others are of the same survey, in the order of their cosines."""
    of_cell = windows(1)
    found = search(folder, of_cell["sky_center"][1].spherical_offsets_by(1 * u.arcsec, -1 * u.arcsec), n=4)
    assert set(found["survey"]) == {"Euclid"} and len(found) == 4
    assert found["cell"][0] == 1 and found["similarity"][0] == pytest.approx(1, abs=1e-3)
    assert found["sky_center"][0].separation(of_cell["sky_center"][5]).arcsec < 0.01
    every = np.concatenate([windows(cell)["embedding"][4:7] for cell in (0, 1)])
    expected = np.sort(every @ of_cell["embedding"][5])[::-1][:4]
    np.testing.assert_allclose(found["similarity"], expected, atol=2e-3)
    with pytest.raises(ValueError, match="no window of a cell that is done lies there"):
        search(folder, SkyCoord(54.0, -28.1, unit="deg"))


def test_like_a_file(folder, tmp_path, capsys):
    """Each row is looked for among the windows of its survey; a table is printed or written."""
    asked = windows(0)[[2, 4]]
    asked["embedding"] *= 3.0
    write_catalogue(asked, tmp_path / "asked.ecsv")
    assert main(["survey", "search", str(folder), "--like", str(tmp_path / "asked.ecsv"), "-n", "2"]) == 0
    assert "similarity" in capsys.readouterr().out
    output = tmp_path / "found.ecsv"
    assert main(["survey", "search", str(folder), "--like", str(tmp_path / "asked.ecsv"), "-o", str(output)]) == 0
    found = read_catalogue(output)
    assert found["query"].tolist() == [0] * 6 + [1] * 6  # all windows that have pixels
    assert [set(found["survey"][found["query"] == k]) for k in (0, 1)] == [{"Rubin"}, {"Euclid"}]
    np.testing.assert_allclose(found["similarity"][[0, 6]], 1, atol=1e-3)
    asked.meta["encoder_fingerprint"] = "z"
    write_catalogue(asked, tmp_path / "other.ecsv")
    with pytest.raises(ValueError, match="made by encoder z, and the survey by a"):
        search(folder, tmp_path / "other.ecsv")
    asked.remove_column("embedding")
    write_catalogue(asked, tmp_path / "none.ecsv")
    with pytest.raises(ValueError, match="no column 'embedding'"):
        search(folder, tmp_path / "none.ecsv")


def test_cells_that_were_measured_since(folder):
    """The embeddings are put together again only when a cell is new or was measured again."""
    place = windows(0)["sky_center"][0]
    first = search(folder, place)
    before = (folder / "search" / "Euclid.float16").stat().st_mtime_ns
    search(folder, place)
    assert (folder / "search" / "Euclid.float16").stat().st_mtime_ns == before
    finish(Store(folder), 1, seed=7)
    assert not np.allclose(search(folder, place)["similarity"], first["similarity"], atol=1e-3)


@with_faiss
def test_an_index_for_many(folder, monkeypatch):
    place = windows(0)["sky_center"][0]
    exact = search(folder, place, n=3)
    monkeypatch.setattr(search_module, "EXACT", 5)
    (folder / "search" / "state.json").unlink()
    found = search(folder, place, n=3)
    assert (folder / "search" / "Euclid.faiss").is_file()
    np.testing.assert_allclose(found["similarity"], exact["similarity"], atol=1e-6)


def test_what_cannot_be_searched(folder, capsys):
    assert main(["survey", "search", str(folder), "--like", "53", "x"]) == 2
    assert "right ascension and declination" in capsys.readouterr().err
    with pytest.raises(ValueError, match="n is 0: give 1 or more"):
        search(folder, windows(0)["sky_center"][0], n=0)
    for number in (0, 1):
        (Store(folder).place((TRACT, number)) / "record.json").unlink()
    with pytest.raises(ValueError, match="no cell is done"):
        search(folder, windows(0)["sky_center"][0])
