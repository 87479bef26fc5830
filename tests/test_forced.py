# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Forced photometry: fluxes at given positions, and that a caller's own settings change none of them."""

import importlib.util
import warnings
from argparse import Namespace
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData, VarianceUncertainty
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from scipy.sparse import csc_array

from rosetta import CrossSurveyEncoder, EmbeddingPhotometry, Flag, LearnedAligner, SkyPair
from rosetta.commands.lists import check_columns, positions_of
from rosetta.deblending.band_fit import BandFit
from rosetta.deblending.flagging import inseparable
from rosetta.deblending.scene import DeblendedScene
from rosetta.deblending.source_list import user_sources
from rosetta.deblending.tiles import Tile
from rosetta.encoding.network import EncoderConfig
from rosetta.images.positions import from_tangent
from rosetta.matching import match
from rosetta.photometry.reddening import ebv
from rosetta.pipeline.run import measure

# Tests are imported one by one, so the scenes shared with the deblender's tests are loaded by path.
_spec = importlib.util.spec_from_file_location("deblender_scenes", Path(__file__).with_name("test_deblender.py"))
scenes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scenes)
CENTER, FLUX, MIXTURES, XY = scenes.CENTER, scenes.FLUX, scenes.MIXTURES, scenes.XY
deblender, make_pair, scene = scenes.deblender, scenes.make_pair, scenes.scene
STAR = 3  # row of XY


@lru_cache
def photometry():
    return EmbeddingPhotometry(deblender=deblender())


@lru_cache
def whole():
    """The whole run."""
    return photometry()(scene().embedding, scene())


def forced(positions, **options):
    return photometry()(scene().embedding, positions, **options)


def pulls(table, rows):
    """Differences from the whole run in its sigmas, (n, n_band)."""
    full = whole()[rows]
    return np.stack([((table[f"flux_{b}"] - full[f"flux_{b}"]) / full[f"flux_err_{b}"]).value for b in scenes.FWHM], -1)


def test_a_position_given_alone_has_the_flux_of_the_whole_run():
    for row in range(len(XY)):
        alone = forced(whole()["sky_centroid"][row : row + 1])
        assert len(alone) == 1 and np.abs(pulls(alone, [row])).max() < 0.05
        assert alone["sky_centroid"][0].separation(whole()["sky_centroid"][row]) < 1e-3 * u.mas


def test_only_listed_sources_are_modelled_if_that_is_wanted():
    rows = scenes.match(whole(), XY[:2])
    alone = forced(whole()["sky_centroid"][rows[1:2]], neighbours="listed")
    assert pulls(alone, rows[1:2])[0, 2] > 20  # the neighbour's light is in it (VIS)
    with pytest.raises(ValueError, match="neighbours is 'all': use one of 'detect', 'listed', 'scene'"):
        forced(whole()["sky_centroid"], neighbours="all")


def test_rows_are_those_of_the_list():
    order = np.array([2, 0])
    table = QTable({"id": ["b", "a"], "sky_centroid": whole()["sky_centroid"][order], "label": [70, 20]})
    table["flux_i"] = 1.0 * u.nJy  # the catalogue has its own
    found = forced(table)
    assert list(found["label"]) == [70, 20] and list(found["id"]) == ["b", "a"]
    assert np.abs(pulls(found, order)).max() < 0.05
    result = deblender()(scene().embedding, table)
    rows = result.to_table()
    assert list(rows["listed"]) == [True, True, False, False] and list(rows["label"][:2]) == [70, 20]
    assert len(np.unique(rows["label"])) == 4 and set(found["neighbor_label"]) <= {-1, *rows["label"]}
    same = photometry()(scene().embedding, result)
    for name in same.colnames:
        if name != "sky_centroid":
            np.testing.assert_array_equal(same[name], found[name])
    with pytest.raises(ValueError, match="neighbours, shape and recentre are for positions"):
        photometry()(scene().embedding, result, recentre=True)


def test_positions_stay_where_they_are_unless_they_may_move():
    off = from_tangent(XY[[STAR]] + [0.08, 0.0], CENTER)
    fixed, moved = forced(off), forced(off, recentre=True)
    assert fixed["sky_centroid"][0].separation(off[0]) < 1e-3 * u.mas
    assert moved["sky_centroid"][0].separation(from_tangent(XY[[STAR]], CENTER)[0]) < 10 * u.mas
    assert fixed["flux_VIS"][0].value < 0.97 * FLUX[STAR]
    assert abs(moved["flux_VIS"][0].value - FLUX[STAR]) < 3 * moved["flux_err_VIS"][0].value


def test_a_position_without_a_detection_is_a_source_of_its_own():
    """A star in the light of a galaxy, found by nobody, whose place is known."""
    xy, flux = np.array([[0.0, 0.0], [0.55, 0.0]]), np.array([20000.0, 400.0])
    pair = make_pair(xy, flux, MIXTURES[[2, 3]])
    found = photometry()(pair, from_tangent(xy, CENTER)[1:], shape="point")
    assert len(found) == 1
    for band in ("i", "VIS"):
        assert abs(found[f"flux_{band}"][0].value - 400) < 4 * found[f"flux_err_{band}"][0].value


def test_a_galaxy_with_its_knots_is_one_position():
    pair, places = scenes.knotted()
    full = deblender()(pair).to_table()
    result = deblender()(pair, full["sky_centroid"][:1])
    assert len(result) == 2
    assert result.flux("i")[0].value == pytest.approx(39600, rel=0.03)


def test_shapes_may_be_given():
    star = from_tangent(XY[[STAR]], CENTER)
    point = deblender()(scene().embedding, star, shape="point").to_table()
    assert point["half_light_radius"][0] < 0.005 * u.arcsec
    given = QTable({"half_light_radius": [0.5] * u.arcsec, "e1": [0.3], "e2": [-0.2]})
    disc = deblender()(scene().embedding, star, shape=given).to_table()
    assert disc["half_light_radius"][0].value == pytest.approx(0.5, rel=0.03)
    assert (disc["e1"][0], disc["e2"][0]) == (pytest.approx(0.3, abs=0.01), pytest.approx(-0.2, abs=0.01))
    for bad, message in (
        ("disc", "shape is 'disc': use 'fit', 'point', or a table with the columns half_light_radius, e1, e2"),
        (given["e1", "e2"], "shape has no column half_light_radius: give half_light_radius, e1, e2"),
        (given[[0, 0]], "shape has 2 rows for 1 positions: give one for each"),
        (_with(given, e1=[1.2]), "shape has 1 rows with a negative or missing"),
        (_with(given, half_light_radius=[1.0] * u.nJy), "shape has half_light_radius in nJy: give an angle"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            forced(star, shape=bad)


def _with(table, **columns):
    table = table.copy()
    for name, values in columns.items():
        table[name] = values
    return table


def test_what_is_not_seen_has_an_upper_limit():
    found = forced(from_tangent(np.array([XY[STAR], [-5.0, -5.0]]), CENTER), shape="point")
    assert np.isnan(found["upper_limit_VIS"][0])
    flux, error = found["flux_VIS"][1], found["flux_err_VIS"][1]
    assert flux < 3 * error and found["upper_limit_VIS"][1] == max(flux, 0 * u.nJy) + 3 * error
    assert "upper_limit_VIS" not in whole().colnames


@pytest.mark.parametrize("options", [{}, {"neighbours": "listed"}, {"neighbours": "scene"}], ids=str)
def test_positions_that_no_band_tells_apart_are_flagged(options):
    """A star that is listed twice, ever farther apart; and both of the rows say so, band by band."""
    given, flagged = scene() if options.get("neighbours") == "scene" else scene().embedding, {}
    alone = whole()[scenes.match(whole(), XY)[STAR]]
    for apart in (0.05, 0.3):
        places = from_tangent(np.array([XY[STAR], XY[STAR] + [apart, 0.0], XY[0]]), CENTER)
        found = photometry()(given, places, shape="point", **options)
        assert found["flags"][2] & int(Flag.DUPLICATE) == 0
        for band in scenes.FWHM:
            twins = (found[f"flags_{band}"] & int(Flag.DUPLICATE)) != 0
            assert twins[0] == twins[1] == (abs(found[f"neighbor_corr_{band}"][0]) > 0.95)
            if twins[0]:
                assert found[f"flux_err_{band}"][:2].min() > 3 * alone[f"flux_err_{band}"]
        assert len(set(found["flags"][:2] & int(Flag.DUPLICATE))) == 1
        flagged[apart] = {band for band in scenes.FWHM if found[f"flags_{band}"][0] & int(Flag.DUPLICATE)}
    assert flagged == {0.05: {"g", "i", "H_E"}, 0.3: set()}  # VIS is sharp enough


def test_sources_that_nobody_listed_are_not_called_duplicates():
    fit, listed = scene().fits["g"], np.zeros(len(scene()), bool)
    near = replace(fit, covariance=csc_array(np.full((len(listed),) * 2, 0.99) + 0.01 * np.eye(len(listed))))
    assert not inseparable(near, listed).any()
    listed[:2] = True
    np.testing.assert_array_equal(inseparable(near, listed), listed)
    listed[1] = False
    assert not inseparable(near, listed).any()


# ---------------------------------------------------------------------------- positions that are none
def flat(**masks):
    """A table of four positions as archives give them, some of them masked."""
    coord = from_tangent(XY, CENTER)
    return Table({
        name: MaskedColumn(getattr(coord, name).deg, mask=masks.get(name, np.zeros(4, bool)))
        for name in ("ra", "dec")
    })  # fmt: skip


def test_a_flat_table_is_a_list():
    table = flat()
    table["id"] = list("abcd")
    coord, label = user_sources(table)
    assert coord.separation(from_tangent(XY, CENTER)).max() < 1e-3 * u.mas and label is None
    table["ra"] = table["ra"] / 15
    table["ra"].unit, table["label"] = "hourangle", [4, 3, 2, 1]
    coord, label = user_sources(QTable(table))
    assert coord.separation(from_tangent(XY, CENTER)).max() < 1e-3 * u.mas and list(label) == [4, 3, 2, 1]
    found = forced(flat()[[STAR]], shape="point")
    assert np.abs(pulls(found, scenes.match(whole(), XY)[[STAR]])).max() < 0.5 and "ra" in found.colnames


@pytest.mark.parametrize("kind", ["flat", "with sky_centroid", "quantities"])
def test_masked_positions_are_refused(kind):
    """``SkyCoord`` of a masked column forgets its mask: the table still has it."""
    table = flat(dec=[False, True, False, True])
    if kind == "with sky_centroid":
        table["sky_centroid"] = SkyCoord(table["ra"], table["dec"], unit="deg")
        assert np.isfinite(table["sky_centroid"].dec.deg).all()
    if kind == "quantities":
        for name in ("ra", "dec"):
            table[name].unit = "deg"
        table = QTable(table)
    with pytest.raises(ValueError, match=r"sources: column dec is masked in rows 1, 3 \(from 0\): drop those rows"):
        forced(table)


def test_positions_that_are_masked_or_not_finite_are_refused_everywhere():
    embedding, pair, good = scene().embedding, scene().embedding.pair, from_tangent(XY, CENTER)
    masked = SkyCoord(Masked(good.ra, mask=[0, 0, 1, 0]), good.dec)
    missing = SkyCoord([*good.ra.deg[:2], np.nan, good.ra.deg[3]], good.dec.deg, unit="deg")
    catalog = QTable({"sky_centroid": good, "flux_i": FLUX * u.nJy})
    dust = NDData(np.ones((9, 9)), wcs=next(pair.images())[2].wcs)
    corners = good.reshape(2, 2)
    for bad, what in ((masked, "masked"), (missing, "not finite")):
        table = QTable({"sky_centroid": bad, "flux_i": FLUX * u.nJy})
        for name, call in (
            ("sources", lambda bad: forced(bad)),
            ("sources", lambda bad, table=table: forced(table)),
            ("coord", lambda bad: deblender().encoder.at(pair, bad, "space")),
            ("coord", lambda bad: embedding.ood_at(bad)),
            ("centers", lambda bad: deblender().encoder(pair, centers=bad)),
            ("sky_centroid of the catalogue", lambda bad, table=table: match(table, catalog, "i")),
            ("sky_centroid of the truth", lambda bad, table=table: match(catalog, table, "i")),
            ("catalog", lambda bad: ebv(bad, dust)),
        ):
            with pytest.raises(ValueError, match=rf"^{name} is {what} in row 2 \(from 0\): drop those rows"):
                call(bad)
        with pytest.raises(ValueError, match=f"^center is {what}: give a position"):
            pair.cutout(bad[2], 5 * u.arcsec)
        with pytest.raises(ValueError, match=f"^tile_corners is {what} in row"):
            deblender()(embedding, tile_corners=bad.reshape(corners.shape))
    for name, values, message in (
        ("ra", [150.0, np.inf], "column ra is not finite in row 1"),
        ("dec", [2.0, 95.0], "ra and dec are no positions in degrees"),
        ("ra", ["10:00", "10:01"], "column ra holds no angles, give degrees"),
    ):
        with pytest.raises(ValueError, match=message):
            user_sources(Table({"ra": [150.0, 150.1], "dec": [2.0, 2.1]} | {name: values}))
    many = Table({"ra": MaskedColumn(np.zeros(40), mask=True), "dec": np.zeros(40)})
    with pytest.raises(ValueError, match="in rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 30 more"):
        user_sources(many)


# ---------------------------------------------------------------------------- the state of the caller
def job():
    """All of it: a pair, its scene, residuals and catalogue."""
    given = scene().embedding.pair
    result = deblender()(SkyPair(dict(given.ground), dict(given.space)))
    return result.residual("i").data, photometry()(result.embedding, result)


@lru_cache
def without():
    """The job without the setting."""
    return job()


@pytest.fixture(params=["dtype", "numpy", "warnings"])
def state(request):
    """A setting of the caller, which must still be there at the end."""
    without()
    if request.param == "dtype":
        torch.set_default_dtype(torch.float64)
        yield
        assert torch.get_default_dtype() == torch.float64
        torch.set_default_dtype(torch.float32)
    elif request.param == "numpy":
        with np.errstate(all="raise"):
            yield
            assert set(np.geterr().values()) == {"raise"}
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield


def test_the_callers_state_changes_nothing(state):
    config = EncoderConfig(dim=16, depth=1, heads=2, proj_dim=8, predictor_dim=12, predictor_depth=1, predictor_heads=2)
    assert CrossSurveyEncoder(config=config, device="cpu").fingerprint == deblender().encoder.fingerprint
    assert LearnedAligner.from_pretrained(device="cpu").fingerprint  # it agrees with its encoder
    (image, table), (known_image, known) = job(), without()
    np.testing.assert_array_equal(image, known_image)
    for band in scenes.FWHM:
        np.testing.assert_array_equal(table[f"flux_{band}"].value, known[f"flux_{band}"].value)
        np.testing.assert_array_equal(table[f"flux_err_{band}"].value, known[f"flux_err_{band}"].value)


def test_masked_pixels_around_a_field_move_no_flux():
    sides = {"ground": {}, "space": {}}
    for side, band, image in make_pair(XY, FLUX, MIXTURES).images():
        (below, above), (left, right) = (7, 60), (40, 12)
        wcs = image.wcs.deepcopy()
        wcs.wcs.crpix, wcs.array_shape = wcs.wcs.crpix + [left, below], None
        data, variance, mask = (
            np.pad(values, ((below, above), (left, right)), constant_values=fill)
            for values, fill in ((image.data, 0.0), (image.uncertainty.array, 1.0), (image.mask, True))
        )
        sides[side][band] = NDData(
            data, uncertainty=VarianceUncertainty(variance), mask=mask, wcs=wcs, unit=u.nJy, psf=np.asarray(image.psf)
        )
    padded = deblender()(SkyPair(sides["ground"], sides["space"]))
    table = photometry()(padded.embedding, padded)
    rows = scenes.match(table, XY)
    assert np.abs(pulls(table[rows], scenes.match(whole(), XY))).max() < 0.05


# ---------------------------------------------------------------------------- on a scene
def on_scene(positions, known=None, **options):
    return photometry()(scene() if known is None else known, positions, neighbours="scene", **options)


def test_a_source_of_the_scene_keeps_its_template():
    order = [2, 0]
    table = QTable({"id": ["b", "a"], "sky_centroid": whole()["sky_centroid"][order], "label": [70, 20]})
    found = on_scene(table)
    assert list(found["label"]) == [70, 20] and list(found["id"]) == ["b", "a"]
    assert np.abs(pulls(found, order)).max() < 0.05
    for band in scenes.FWHM:
        error = whole()[f"flux_err_{band}"][order]
        np.testing.assert_allclose(found[f"flux_err_{band}"].value, error.value, rtol=0.05)
    again = deblender()(scene(), table, neighbours="scene")
    assert len(again) == len(scene())
    rows = again.to_table()
    for name in ("half_light_radius", "e1", "e2"):
        np.testing.assert_allclose(rows[name][:2].value, scene().to_table()[name][order].value, rtol=1e-6)
    np.testing.assert_allclose(rows["ra_err"][:2].value, scene().to_table()["ra_err"][order].value, rtol=0.05)
    assert rows["sky_centroid"][:2].separation(scene().to_table()["sky_centroid"][order]).max() < 1e-3 * u.mas


def lacking(known, row):
    """A scene without one of its sources."""
    rest, templates = np.delete(np.arange(len(known)), row), known.templates
    kept = {name: getattr(templates, name)[rest] for name in ("coord", "mixtures", "truncation")}
    fits = {}
    for band, fit in known.fits.items():
        rows = {name: getattr(fit, name)[rest] for name in BandFit.per_source()}
        fits[band] = replace(fit, covariance=fit.covariance[rest][:, rest], **rows)
    return DeblendedScene(
        embedding=known.embedding, table=known.to_table()[rest], templates=replace(templates, **kept), fits=fits,
        shape_covariance=known.shape_covariance[rest], offsets=known.offsets, meta=known.meta,
    )


def test_a_source_that_the_scene_lacks_has_the_flux_of_the_whole_run():
    for row in range(len(XY)):
        found = on_scene(whole()["sky_centroid"][row : row + 1], lacking(scene(), row))
        assert np.abs(pulls(found, [row])).max() < 0.2


def test_a_faint_source_beside_a_bright_one_of_the_scene():
    xy, flux = np.array([[0.0, 0.0], [1.2, 0.0]]), np.array([20000.0, 400.0])
    known = deblender()(make_pair(xy, flux, MIXTURES[[2, 3]]))
    known = lacking(known, scenes.match(known.to_table(), xy)[1])
    found = on_scene(from_tangent(xy, CENTER)[1:], known, shape="point")
    for band in scenes.FWHM:
        assert abs(found[f"flux_{band}"][0].value - 400) < 3 * found[f"flux_err_{band}"][0].value


def test_parts_of_a_tile_hold_the_positions_that_it_owns():
    core = np.array([[-40.0, -np.inf], [np.inf, np.inf]])  # the western and southern part of the sky is another tile's
    tile = Tile(core, np.array([[-48.0, -60.0], [60.0, 60.0]]))
    xy = np.array([[-50.0, 0.0], [-39.0, 1.0], [-30.0, 3.0], [30.0, 30.0], [33.0, 28.0], [30.0, -40.0], [90.0, 0.0]])
    parts = tile.around(xy)
    owners = np.sum([part.owns(xy) for part in parts], axis=0)
    np.testing.assert_array_equal(owners, [0, 1, 1, 1, 1, 1, 1])
    assert len(parts) > 1 and sum(part.area for part in parts) < 0.5 * tile.area
    for part in parts:
        assert (part.bounds[0] >= tile.bounds[0]).all() and (part.bounds[1] <= tile.bounds[1]).all()
    many = np.stack(np.meshgrid(*2 * [np.arange(-35.0, 60.0, 10.0)]), -1).reshape(-1, 2)
    assert tile.around(many) == [tile] and tile.around(xy[:1]) == []


def test_what_a_scene_cannot_be_asked():
    position = whole()["sky_centroid"][:1]
    other = LearnedAligner(deblender().encoder)(scene().embedding)
    for what, message in (
        (lambda: forced(position, neighbours="scene"), "neighbours is 'scene', but no scene is given: call"),
        (lambda: photometry()(scene(), position), "neighbours is 'detect', but a scene is given: use 'scene'"),
        (lambda: measure(scene().embedding.pair, position, neighbours="scene"), "which measure does not take: call"),
        (lambda: deblender()(scene(), neighbours="scene"), "sources is None: give positions"),
        (lambda: on_scene(position, offsets=other), "offsets differs from what the scene was made with"),
    ):
        with pytest.raises(ValueError, match=message):
            what()


# ---------------------------------------------------------------------------- the main job and the command line
def test_the_main_job_measures_a_list(tmp_path):
    pytest.importorskip("matplotlib")
    pair = scene().embedding.pair
    table = QTable({"id": ["one"], "sky_centroid": whole()["sky_centroid"][2:3]})
    models = {"aligner": LearnedAligner(deblender().encoder), "deblender": deblender(), "photometry": photometry()}
    result = measure(pair, table, **models)
    assert list(result.catalog["id"]) == ["one"] and len(result.scene) == 4
    result.write(tmp_path / "out")
    written = QTable.read(tmp_path / "out" / "catalogue.ecsv")
    assert len(written) == 1 and "half_light_radius" in written.colnames and "listed" not in written.colnames


def test_a_file_of_positions(tmp_path):
    def read(path, **options):
        given = {"sources": None if path is None else str(path), "neighbours": "detect", "shape": "fit"}
        return positions_of(Namespace(**given | {"recentre": False} | options))

    coord = from_tangent(XY, CENTER)
    path = tmp_path / "list.ecsv"
    shapes = {"half_light_radius": np.full(4, 0.3), "e1": np.zeros(4), "e2": np.zeros(4)}
    QTable({"id": [5, 6, 7, 8], "ra": coord.ra, "dec": coord.dec, **shapes}).write(path)
    known = read(path, shape="table")
    assert user_sources(known["sources"])[0].separation(coord).max() < 1e-3 * u.mas
    assert known["shape"] is known["sources"]
    QTable({"ra": coord.ra.deg, "dec": coord.dec.deg}).write(tmp_path / "list.csv")
    assert user_sources(read(tmp_path / "list.csv")["sources"])[0].separation(coord).max() < 1e-3 * u.mas
    assert read(None) == {}
    own = known["sources"].copy()
    for form in ("ecsv", "fits", "votable"):
        check_columns(own, Namespace(sources="list", format=form))
    own["old"] = coord.galactic
    check_columns(own, Namespace(sources="list", format="ecsv"))
    with pytest.raises(ValueError, match="--sources list: catalog has positions with a frame"):
        check_columns(own, Namespace(sources="list", format="fits"))
    QTable({"ra": coord.ra}).write(path, overwrite=True)
    (tmp_path / "list.unknown").write_text("1 2")
    QTable({"ra": coord.ra.deg, "dec": coord.dec.deg, "label": [1, 1, 2, 3]}).write(tmp_path / "twice.csv")
    for what, message in (
        (lambda: read(path), "must have a column sky_centroid, or ra and dec .deg., it has ra: add them"),
        (lambda: read(tmp_path / "none.ecsv"), "there is no such file"),
        (lambda: read(tmp_path / "list.unknown"), "not a kind of table that astropy knows by name"),
        (lambda: read(None, recentre=True), "of no use without --sources"),
        (lambda: read(tmp_path / "twice.csv"), "--sources .*twice.csv: has duplicate labels: give every row its own"),
        (lambda: read(tmp_path / "list.csv", shape="table"), "--shape has no column half_light_radius, e1, e2: give"),
    ):
        with pytest.raises(ValueError, match=message):
            what()
