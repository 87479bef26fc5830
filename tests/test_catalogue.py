# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What a catalogue says beside fluxes: errors of positions, magnitudes and colours, words for columns and flags."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import NDData
from astropy.table import QTable
from astropy.wcs import WCS

import rosetta
from rosetta import EmbeddingPhotometry, Flag, SkyPair, io
from rosetta.images.positions import from_tangent, tangent
from rosetta.io.catalogue import ENDINGS
from rosetta.photometry.catalogue import with_columns_of
from rosetta.pipeline import products
from rosetta.pipeline.output import PRODUCTS

_spec = importlib.util.spec_from_file_location("deblender_scenes", Path(__file__).with_name("test_deblender.py"))
scenes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scenes)
POINT = np.eye(1, 6).repeat(3, 0) / 3


@lru_cache
def forced(recentre):
    """Two stars that were listed, one of them outside, and the galaxy beside them that was not."""
    pair = scenes.make_pair(scenes.XY[[2, 3]], scenes.FLUX[[2, 3]], np.stack([scenes.light(0.4), POINT]))
    pair = SkyPair({"i": pair.ground["i"]}, {"VIS": pair.space["VIS"]})
    places = from_tangent(np.array([[5.0, -5.0], [50.0, 0.0]]), scenes.CENTER)
    listed = QTable({"sky_centroid": places, "own": ["a", "b"], "ra": places.ra, "dec": places.dec})
    scene = scenes.deblender()(pair, listed, recentre=recentre)
    table = with_columns_of(listed, EmbeddingPhotometry(scenes.deblender().encoder)(scene.embedding, scene))
    return rosetta.Result(pair, scene.embedding, None, scene, table, {})


def catalog():
    """Positions that were given, and moved to where the light is, as they are written to files."""
    return products.with_shapes(forced(True), pixel_positions=True)


def galaxy(radius, ratio, angle):
    """A disc of three Gaussians whose major axis is ``angle`` from east towards north."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    cov = turn @ np.diag([radius**2, (ratio * radius) ** 2]) @ turn.T
    out = scenes.light(radius)
    out[:, 3:] = np.array([0.4, 0.9, 1.5])[:, None] ** 2 * cov[[0, 0, 1], [0, 1, 1]]
    return out


def field(kind, seed):
    """Errors of the positions of 25 sources that stand apart, in their own sigma, and the correlations."""
    rng = np.random.default_rng(seed)
    axis = np.arange(-7.2, 8.0, 3.6)
    xy = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2) + rng.uniform(-0.3, 0.3, (25, 2))
    angle = rng.uniform(0, np.pi, 25)
    flux, lights = (600.0, np.tile(POINT, (25, 1, 1))) if kind == "star" else (
        2100.0, np.stack([galaxy(0.3, 0.4, a) for a in angle]))  # fmt: skip
    pair = scenes.make_pair(xy, np.full(25, flux), lights, sides=("space",), seed=seed)
    table = scenes.deblender()(SkyPair(None, {"VIS": pair.space["VIS"]})).to_table()
    row = scenes.match(table, xy)
    off = (tangent(table["sky_centroid"][row], scenes.CENTER) - xy) * 1e3
    error = np.stack([table[name][row].to_value(u.mas) for name in ("ra_err", "dec_err")], axis=1)
    return off / error, np.asarray(table["ra_dec_corr"][row]), angle


@pytest.mark.parametrize("kind", ["star", "galaxy"])
def test_errors_of_positions_are_the_scatter_of_realisations(kind):
    """50 sources: the standard deviation of a pull is known to a tenth, the mean of 50 chi2 to 0.28."""
    pull, corr, angle = (np.concatenate(part) for part in zip(*(field(kind, seed) for seed in (1, 2)), strict=True))
    assert np.all(np.abs(pull.std(axis=0) - 1.0) < 0.3)
    assert np.all(np.abs(pull.mean(axis=0)) < 4 / np.sqrt(50))
    chi2 = (pull[:, 0] ** 2 + pull[:, 1] ** 2 - 2 * corr * pull[:, 0] * pull[:, 1]) / (1 - corr**2)
    assert abs(chi2.mean() - 2.0) < 1.0
    if kind == "star":
        assert np.abs(corr).max() < 0.1
    else:  # a galaxy is known worse along its major axis
        assert np.corrcoef(corr, np.sin(2 * angle))[0, 1] > 0.9
        product = pull[:, 0] * pull[:, 1]
        assert (product * np.sign(corr)).mean() == pytest.approx(np.abs(corr).mean(), abs=0.45)


def test_given_positions_have_no_error():
    """What was given is not measured: NaN, not 0, which would say that it is exact."""
    moved, fixed = catalog(), forced(False).catalog
    assert moved["ra_err"].unit == u.mas and 0 < moved["ra_err"][0] < 10 * u.mas
    assert np.isnan(moved["ra_err"][1]) and np.isnan(moved["ra_dec_corr"][1])  # no image
    table = forced(False).scene.to_table()
    for name in ("ra_err", "dec_err", "ra_dec_corr"):
        assert np.isnan(fixed[name]).all()
        np.testing.assert_array_equal(np.isnan(table[name]), table["listed"])
    assert len(table) == 3


def test_every_column_has_a_description_and_a_unit_if_it_has_a_dimension():
    table, own = catalog(), {"own", "ra", "dec"}
    plain = {
        "label", "sky_centroid", "ra_dec_corr", "neighbor_label", "blendedness", "n_pixel", "n_band", "snr", "e1", "e2",
        "blend_probability", "own",
    }  # fmt: skip
    for name in table.colnames:
        assert name in own or table[name].info.description, name
        without = name in plain or name.startswith(("flags", "chi2", "neighbor_corr"))
        assert without or table[name].unit is not None, name
    assert table["flux_VIS"].info.description.startswith("Total flux in VIS")
    assert {"upper_limit_i", "flags_i", "x_VIS", "half_light_radius"} <= set(table.colnames)
    for name, column in forced(True).scene.to_table().columns.items():
        assert column.info.description, name


def test_numbers_are_shown_to_a_tenth_of_their_error():
    table = catalog()
    smallest, form = np.nanmin(table["flux_err_VIS"].value), table["flux_VIS"].info.format
    last = 10.0 ** -int(form[1:-1])
    assert smallest / 100 < last <= smallest / 10
    assert table["flux_err_VIS"].info.format == form


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_catalogue_comes_back(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    table = catalog()
    io.write_catalogue(table, tmp_path / f"c{ending}")
    again = io.read_catalogue(tmp_path / f"c{ending}")
    assert again.colnames == table.colnames
    for name in table.colnames:
        one, two = table[name], again[name]
        assert one.info.unit == two.info.unit and one.info.description == two.info.description
        if name == "sky_centroid":
            np.testing.assert_array_equal(one.ra.deg, two.ra.deg)
            np.testing.assert_array_equal(one.dec.deg, two.dec.deg)
        else:
            np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    np.testing.assert_equal(_listed(dict(again.meta)), _listed(table.meta))


def _listed(content):
    """Meta with lists for tuples."""
    if isinstance(content, dict):
        return {key: _listed(value) for key, value in content.items()}
    return [_listed(value) for value in content] if isinstance(content, list | tuple) else content


# ---------------------------------------------------------------------------- magnitudes and colours
def fluxes():
    table = QTable({"label": [1, 2, 3]})
    table["flux_g"] = [3630.780547701, 100.0, -5.0] * u.nJy
    table["flux_i"] = [7261.561095402, np.nan, 50.0] * u.nJy
    cov = np.tile([[100.0, 60.0], [60.0, 400.0]], (3, 1, 1))
    table["flux_err_g"], table["flux_err_i"] = np.sqrt(cov[:, 0, 0]) * u.nJy, np.sqrt(cov[:, 1, 1]) * u.nJy
    table["flux_cov"] = cov * u.nJy**2
    table.meta["bands"] = ["g", "i"]
    return table


def test_magnitudes():
    found = rosetta.magnitudes(fluxes())
    assert found["mag_g"].unit == u.ABmag and found["mag_err_g"].unit == u.mag
    assert found["mag_g"][0].value == pytest.approx(22.5, abs=1e-9)  # 3631 Jy is 0: 3630.78 nJy is 22.5
    assert found["mag_g"][1].to_value(u.nJy) == pytest.approx(100.0)
    assert found["mag_err_g"][1].value == pytest.approx(1.0857362 * 0.1)
    assert np.isnan(found["mag_g"][2].value) and np.isnan(found["mag_err_g"][2].value)
    assert np.isnan(found["mag_i"][1].value)
    assert found["mag_err_i"].info.description
    jansky = fluxes()
    jansky["flux_g"], jansky["flux_err_g"] = jansky["flux_g"].to(u.Jy), jansky["flux_err_g"].to(u.uJy)
    np.testing.assert_allclose(rosetta.magnitudes(jansky)["mag_g"].value, found["mag_g"].value)


def test_the_error_of_a_colour_knows_the_covariance():
    found = rosetta.colour(fluxes(), "g", "i")
    assert found["colour"][0].to_value(u.mag) == pytest.approx(2.5 * np.log10(2))
    rng, one = np.random.default_rng(3), fluxes()[0]
    drawn = rng.multivariate_normal([one["flux_g"].value, one["flux_i"].value], one["flux_cov"].value, 20000)
    scatter = np.std(-2.5 * np.log10(drawn[:, 0] / drawn[:, 1]))
    assert found["colour_err"][0].value == pytest.approx(scatter, rel=0.03)
    alone = rosetta.magnitudes(fluxes())
    assert found["colour_err"][0] < 0.95 * np.hypot(alone["mag_err_g"][0], alone["mag_err_i"][0])
    assert np.isnan(found["colour"].value[1:]).all()
    back = rosetta.colour(fluxes(), "i", "g")
    np.testing.assert_allclose(back["colour"].value[0], -found["colour"].value[0])
    assert back["colour_err"][0] == found["colour_err"][0]


def test_colours_of_a_catalogue():
    table = catalog()
    found = rosetta.colour(table, "i", "VIS")
    mags = rosetta.magnitudes(table)
    np.testing.assert_allclose(found["colour"][0].value, (mags["mag_i"] - mags["mag_VIS"])[0].value)
    assert found["colour"].info.format == found["colour_err"].info.format == ".4f"
    assert 0 < found["colour_err"][0].value < 0.2 and np.isnan(found["colour"][1].value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rosetta.magnitudes({}), TypeError, "catalog must be a table, got dict"),
        (lambda: rosetta.magnitudes(QTable({"label": [1]})), ValueError, "catalog has no columns flux_<band> and"),
        (lambda: rosetta.magnitudes(QTable({"flux_g": [1.0], "flux_err_g": [1]})), ValueError, "no unit for 'flux_g'"),
        (lambda: rosetta.colour(fluxes(), "g", "z"), ValueError, "second is 'z': use one of g, i"),
        (lambda: rosetta.colour(fluxes()["label", "flux_g", "flux_err_g"], "g", "g"), ValueError, "has no flux_cov"),
    ],
)
def test_what_is_no_catalogue_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_names_of_a_column_of_flags():
    values = np.array([[0, int(Flag.EDGE | Flag.BLENDED)], [int(Flag.EDGE), 0]])
    names = Flag.names(values)
    assert names.tolist() == [["none", "EDGE | BLENDED"], ["EDGE", "none"]]
    assert Flag.names(catalog()["flags"]).tolist() == [str(Flag(value)) for value in catalog()["flags"]]
    with pytest.raises(TypeError, match="values are float64, not whole numbers: give a column of flags"):
        Flag.names(catalog()["flux_i"])
    assert Flag.names([]).shape == (0,) and Flag.names([]).dtype.kind == "U"


# ---------------------------------------------------------------------------- pixels
def test_pixel_positions_are_where_the_sources_are_drawn():
    """With offsets, so that the ground is elsewhere than its header says; against the models' middle."""
    pair = scenes.make_pair(scenes.XY[[2, 3]], scenes.FLUX[[2, 3]], np.stack([scenes.light(0.4), POINT]))
    pair = SkyPair({"i": pair.ground["i"]}, {"VIS": pair.space["VIS"]})
    scene = scenes.deblender()(pair, offsets=scenes.shift_offsets(200.0, -100.0))
    table = scene.pixel_positions()
    for band in ("i", "VIS"):
        for row in table:
            model = scene.model(row["label"], band)
            y, x = np.indices(model.shape)
            weight = model.data * (model.data > 1e-3 * model.data.max())
            middle = [(c * weight).sum() / weight.sum() for c in (x, y)]
            found = row[f"x_{band}"].value - model.meta["ORIGINX"], row[f"y_{band}"].value - model.meta["ORIGINY"]
            np.testing.assert_allclose(found, middle, atol=0.05)
    header = pair.space["VIS"].wcs.world_to_pixel(scene.to_table()["sky_centroid"])
    np.testing.assert_allclose(table["x_VIS"].value, header[0], atol=1e-3)
    np.testing.assert_allclose(table["y_VIS"].value, header[1], atol=1e-3)
    header = pair.ground["i"].wcs.world_to_pixel(scene.to_table()["sky_centroid"])
    np.testing.assert_allclose(np.abs(table["x_i"].value - header[0]), 1.0, atol=0.02)  # 200 mas
    np.testing.assert_allclose(np.abs(table["y_i"].value - header[1]), 0.5, atol=0.02)


def test_segmentation():
    scene = scenes.scene()
    found = scene.segmentation()
    assert found.meta["band"] == "VIS" and found.data.dtype == np.int32
    assert set(np.unique(found.data)) == {0, *scene.labels}
    at = scene.pixel_positions()
    y, x = (np.rint(at[name].value).astype(int) for name in ("y_VIS", "x_VIS"))
    assert found.data[y, x].tolist() == at["label"].tolist()
    models = {label: scene.model(label, "VIS") for label in scene.labels}
    for label, model in models.items():
        y0, x0 = model.meta["ORIGINY"], model.meta["ORIGINX"]
        own = found.data[y0 : y0 + model.shape[0], x0 : x0 + model.shape[1]] == label
        assert model.data[own].min() > 0.95 * scenes.SIGMA["VIS"]
    assert np.count_nonzero(scene.segmentation(threshold=5.0).data) < np.count_nonzero(found.data)
    assert scene.segmentation("i").shape == scene.residual("i").shape
    with pytest.raises(ValueError, match="threshold is -1: give a positive number"):
        scene.segmentation(threshold=-1)


def test_products_on_request(tmp_path):
    scene = scenes.scene()
    table = EmbeddingPhotometry(scenes.deblender().encoder)(scene.embedding, scene)
    result = rosetta.Result(scene.embedding.pair, scene.embedding, None, scene, table, {})
    products._write_segmentation(scene, tmp_path / "segmentation.fits")
    with fits.open(tmp_path / "segmentation.fits") as file:
        np.testing.assert_array_equal(file["SEGMENTATION"].data, scene.segmentation().data)
        assert file["SEGMENTATION"].header["BAND"] == "VIS"
        place = WCS(file["SEGMENTATION"].header).world_to_pixel(table["sky_centroid"])
    whole = products.with_shapes(result, pixel_positions=True)
    np.testing.assert_allclose(whole["x_VIS"].value, place[0], atol=1e-3)
    assert {"y_g", "half_light_radius"} <= set(whole.colnames) and whole["x_VIS"].info.description
    assert "x_VIS" not in products.with_shapes(result).colnames
    writers = products._writers(result, None, "none", "votable", True, True)
    assert {"catalogue.vot", "segmentation.fits"} <= set(writers) and set(writers) <= set(PRODUCTS)


# ---------------------------------------------------------------------------- apertures
def test_fluxes_in_apertures_are_those_of_the_light_inside():
    """Stars under a Gaussian PSF, of which the share in a circle is known; two of them are neighbours."""
    xy = np.array([[0.0, 0.0], [1.0, 0.3], [-5.0, 4.0], [5.0, -5.0]])
    flux = np.array([20000.0, 20000.0, 20000.0, 5000.0])
    pair = scenes.make_pair(xy, flux, np.tile(POINT, (4, 1, 1)), mask=masked_core)
    scene = scenes.deblender()(SkyPair({"i": pair.ground["i"]}, {"VIS": pair.space["VIS"]}))
    table = rosetta.aperture_photometry(scene, [300, 600] * u.mas)
    row = scenes.match(scene.to_table(), xy)
    assert table.meta["radii_arcsec"] == [0.3, 0.6]
    for band in ("i", "VIS"):
        inside = 1 - np.exp(-0.5 * (np.array([0.3, 0.6]) / (scenes.FWHM[band] / 2.3548)) ** 2)
        found, error = (table[f"aper_flux{kind}_{band}"][row].to_value(u.nJy) for kind in ("", "_err"))
        assert found.shape == (4, 2)
        assert np.all(np.abs(found - flux[:, None] * inside) < 4 * error + 0.02 * flux[:, None])
        area = np.pi * np.array([0.3, 0.6]) ** 2 / (0.2 if band == "i" else 0.1) ** 2
        expected = scenes.SIGMA[band] * np.sqrt(area) * scene.meta["noise_factor"][band]
        np.testing.assert_allclose(error[:2], np.tile(expected, (2, 1)), rtol=0.05)
        kron, sigma = (table[f"kron_flux{kind}_{band}"][row].to_value(u.nJy) for kind in ("", "_err"))
        assert np.abs(kron[3] / flux[3] - 1) < 0.1 + 4 * sigma[3] / flux[3]
        assert table[f"kron_flux_{band}"].info.description


def masked_core(band, n):
    """A masked pixel near the third star."""
    mask = np.zeros((n, n), bool)
    scale = 0.2 if band in "gi" else 0.1
    mask[round((n - 1) / 2 + 4.0 / scale), round((n - 1) / 2 + 5.0 / scale)] = True
    return mask


def test_apertures_that_cannot_be_used_are_named():
    with pytest.raises(TypeError, match="scene must be a DeblendedScene, got QTable: give result.scene"):
        rosetta.aperture_photometry(QTable())
    with pytest.raises(ValueError, match=r"radii is 1.0: give angles, such as \[0.5, 1\] \* u.arcsec"):
        rosetta.aperture_photometry(scenes.scene(), 1.0)
    with pytest.raises(ValueError, match="radii must be positive angles in one row"):
        rosetta.aperture_photometry(scenes.scene(), -1 * u.arcsec)


# ---------------------------------------------------------------------------- reddening
def test_reddening_is_that_of_the_map(make_wcs):
    wcs = make_wcs(20, 60.0)
    y, x = np.indices((20, 20))
    image = NDData(0.01 * x + 0.002 * y, wcs=wcs, unit=u.mag, mask=(x == 15) & (y == 15))
    place = wcs.pixel_to_world([3.25, 0.0, 14.5, 40.0], [7.5, 19.0, 15.0, 5.0])
    table = QTable({"sky_centroid": place})
    found = rosetta.ebv(table, image)
    np.testing.assert_allclose(found[:2].to_value(u.mag), [0.0475, 0.038], atol=1e-9)
    assert np.isnan(found[2:]).all()  # beside a masked pixel, and outside
    np.testing.assert_array_equal(rosetta.ebv(place, image), found)
    assert rosetta.ebv(table, lambda at: at.ra.deg / 1000)[0].to_value(u.mag) == place[0].ra.deg / 1000
    assert rosetta.ebv(table[:0], image).shape == (0,)
    galactic = WCS(naxis=2)
    galactic.wcs.ctype, galactic.wcs.cdelt, galactic.wcs.crpix = ["GLON-CAR", "GLAT-CAR"], [-1.0, 1.0], [180.5, 90.5]
    whole = NDData(np.indices((181, 361))[0] - 89.5, wcs=galactic)  # the galactic latitude
    np.testing.assert_allclose(rosetta.ebv(table, whole).value, place.galactic.b.deg, atol=1e-6)
    with pytest.raises(ValueError, match="dust_map must be a two-dimensional image with a celestial WCS"):
        rosetta.ebv(table, NDData(image.data))
    with pytest.raises(TypeError, match="dust_map must be an NDData image or a function, got float"):
        rosetta.ebv(table, 0.1)
    with pytest.raises(ValueError, match="dust_map is in nJy: give E"):
        rosetta.ebv(table, NDData(image.data, wcs=wcs, unit=u.nJy))
    with pytest.raises(ValueError, match=r"dust_map gives an array of shape \(1,\) for 4 positions"):
        rosetta.ebv(table, lambda _: [0.1])
    with pytest.raises(TypeError, match="catalog must be a table with sky_centroid or a SkyCoord, got list"):
        rosetta.ebv([1], image)
