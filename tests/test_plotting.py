# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Pictures: the right things in the right places, and nothing shown or kept."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData
from astropy.table import QTable
from astropy.wcs import WCS

from rosetta import EUCLID, RUBIN, Flag, SkyPair

pytest.importorskip("matplotlib")
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import Ellipse  # noqa: E402

from rosetta import plotting

CENTER = SkyCoord(53.1, -28.1, unit="deg")


def catalog(n=6):
    table = QTable({"label": np.arange(1, n + 1)})
    table["sky_centroid"] = CENTER.spherical_offsets_by(np.arange(n) * u.arcsec, np.zeros(n) * u.arcsec)
    for k, band in enumerate(("r", "VIS")):
        table[f"flux_{band}"] = (1000.0 + 100 * k + np.arange(n)) * u.nJy
        table[f"flux_err_{band}"] = np.full(n, 20.0) * u.nJy
    table["flags"] = np.where(np.arange(n) < 2, int(Flag.BLENDED), 0)
    return table


def offsets(n=5, verdict="ok"):
    table = QTable({"label": np.arange(n)})
    table["sky_centroid"] = CENTER.spherical_offsets_by(np.arange(n) * u.arcsec, np.arange(n) * u.arcsec)
    table["band"] = "joint"
    table["d_ra_cosdec"], table["d_dec"] = np.full(n, 40.0) * u.mas, np.full(n, -30.0) * u.mas
    table["d_ra_cosdec_err"], table["d_dec_err"] = np.full(n, 3.0) * u.mas, np.full(n, 6.0) * u.mas
    table["corr"], table["weight"] = 0.0, np.r_[0.0, np.ones(n - 1)]
    model = {
        "kind": "shift", "order": 0, "scale": 1.0, "coefficients": [[40.0, -30.0]],
        "coefficient_covariance": [[4.0, 0.0], [0.0, 9.0]],
    }
    box = [[-20.0, -20.0], [20.0, 20.0]]
    table.meta.update(verdict=verdict, reason="too few", center=CENTER, box=box, model={"bands": {"joint": model}})
    return table


@pytest.mark.parametrize("turn", [0.0, 35.0, 180.0])
def test_north_up_east_left(turn):
    """A source in the north-east is drawn there, however the camera was turned."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53.1, -28.1], [40.5, 40.5]
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) * 0.2 / 3600
    place = CENTER.spherical_offsets_by(3 * u.arcsec, 4 * u.arcsec)
    x, y = wcs.world_to_pixel(place)
    data = np.random.default_rng(0).normal(size=(80, 80))
    data += 500 * np.exp(-((np.arange(80) - x) ** 2 + (np.arange(80)[:, None] - y) ** 2) / 8)
    pair = SkyPair({"r": NDData(data, unit=u.nJy, wcs=wcs)}, None)
    picture, (left, right, bottom, top) = plotting.rgb(pair, "ground", center=CENTER, half_size=6.0)
    assert (left, right, bottom, top) == (6, -6, -6, 6)
    n = len(picture)
    weight = picture.sum(-1) - np.median(picture.sum(-1))
    weight[weight < 0.5 * weight.max()] = 0
    row, column = np.indices((n, n)) + 0.5
    east = left - 12 * (weight * column).sum() / weight.sum() / n
    north = bottom + 12 * (weight * row).sum() / weight.sum() / n
    assert abs(east - 3) < 0.1
    assert abs(north - 4) < 0.1


def test_rgb_one_two_and_many_bands(make_image):
    one = SkyPair({"r": make_image(48, 0.2)}, {"VIS": make_image(96, 0.1), "H": make_image(96, 0.1, seed=5)})
    for side in ("ground", "space"):
        picture, _ = plotting.rgb(one, side)
        assert picture.shape[2] == 3
        assert 0 <= picture.min() <= picture.max() <= 1
    picture, _ = plotting.rgb(one, "ground")
    np.testing.assert_allclose(picture[..., 0], picture[..., 2])  # one band has no colour
    with pytest.raises(ValueError, match="pair has no space side to draw"):
        plotting.rgb(SkyPair({"r": make_image(48, 0.2)}, None), "space")


def test_no_data_is_not_black_sky(make_image):
    data = make_image(48, 0.2).data
    data[:10] = np.nan
    pair = SkyPair({"r": make_image(48, 0.2, data=data)}, None)
    picture, _ = plotting.rgb(pair, "ground")
    assert np.all(picture[2] == 0.35)
    assert not np.all(picture[30] == 0.35)


def test_sources_are_drawn_once_each():
    ax = plotting.plot_sources(catalog(6), center=CENTER)
    isolated, blended = ax.collections
    assert (len(isolated.get_offsets()), len(blended.get_offsets())) == (4, 2)
    np.testing.assert_allclose(blended.get_offsets()[1], [1.0, 0.0], atol=1e-6)


def test_offsets_arrows_and_ellipses():
    ax = plotting.plot_offsets(offsets(5), half_size=10)
    sources, field = ax.collections[:2]
    assert sources.N == 4  # the one of no weight is left out
    assert field.N == 25
    np.testing.assert_allclose([field.U[0], field.V[0]], [40, -30])
    ellipses = [p for p in ax.patches if isinstance(p, Ellipse)]
    assert len(ellipses) == 4
    axes = sorted([ellipses[0].width, ellipses[0].height])
    np.testing.assert_allclose(axes[1] / axes[0], 2)
    assert ax.get_xlim() == (10, -10)  # east left
    assert "+40.0 ± 2.0" in ax.get_title()


def test_offsets_say_why_there_are_none():
    ax = plotting.plot_offsets(offsets(5, verdict="abstain"), half_size=10)
    assert "abstain" in ax.get_title()
    assert [t.get_text() for t in ax.texts] == ["too few"]


def test_residuals_show_what_the_field_leaves():
    table = offsets(5)
    before, after = plotting.plot_residuals(table)[0].lines[:2]
    # The source without weight is not shown; the field of this table is the offset of every source.
    np.testing.assert_allclose(np.c_[before.get_data()], np.tile([40.0, -30.0], (4, 1)))
    np.testing.assert_allclose(np.c_[after.get_data()], 0.0, atol=1e-9)
    truth = QTable({"sky_centroid": table["sky_centroid"], "d_ra_cosdec": np.full(5, 46.0) * u.mas})
    truth["d_dec"] = np.full(5, -30.0) * u.mas
    right = plotting.plot_residuals(table, truth=truth)[1]
    # East is two sigma low, north is right: half of the pulls are within one sigma.
    assert any("50%" in text.get_text() for text in right.get_legend().get_texts())
    assert not plotting.plot_residuals(offsets(5, verdict="abstain"))[0].lines


def test_flux_truth_pulls_and_sed():
    found, truth = catalog(6), catalog(6)
    truth["flux_r"][0] *= 0.5
    ax = plotting.plot_flux_truth(found, truth, bands=["r"])
    points = ax.lines[0].get_ydata()
    assert len(points) == 5  # the sixth is off the scale: a triangle
    np.testing.assert_allclose(points, 0, atol=1e-12)
    assert len(ax.collections[-1].get_offsets()) == 1
    assert isinstance(plotting.plot_pulls(found, truth), Axes)
    assert isinstance(plotting.plot_errors(found), Axes)
    ax = plotting.plot_sed(found, [1, 2], (RUBIN, EUCLID), truth=truth)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # bright is up
    given = plotting.plot_sed(found, [3], (RUBIN, EUCLID), ax=ax)
    assert given is ax
    with pytest.raises(ValueError, match="labels: 99 is not in the catalogue"):
        plotting.plot_sed(found, [99], (RUBIN, EUCLID))
    with pytest.raises(ValueError, match="bands: 'q' is not in the catalogue, which has r, VIS"):
        plotting.plot_errors(found, bands=["q"])
    assert isinstance(plotting.plot_sed(found[:0], [], (RUBIN, EUCLID)), Axes)
    every = plotting.plot_sed(found, found["label"], (RUBIN, EUCLID))
    assert len(every.get_legend().get_texts()) == len(found)


def test_residual_images_are_small_and_in_units_of_their_scatter():
    rng = np.random.default_rng(1)
    images = {"r": rng.normal(0, 3, (450, 300)), "VIS": rng.normal(0, 1, (90, 90)), "J_E": np.full((9, 9), np.nan)}
    images["r"][:100] = np.nan
    figure = plotting.plot_residual_images(images)
    shown = {ax.get_title(): np.ma.filled(ax.images[0].get_array(), np.nan) for ax in figure.axes if ax.images}
    assert shown["r"].shape == (150, 100)
    assert shown["VIS"].shape == (90, 90)
    assert np.isnan(shown["r"][:33]).all() and np.isfinite(shown["r"][34:]).all()
    for band in ("r", "VIS"):
        assert abs(np.nanstd(shown[band]) - 1) < 0.05


def test_attention_is_drawn_where_it_is(make_image):
    """A row per layer, a column per head; the patch to the north-east of the place is drawn there."""
    image = make_image(100, 0.2)
    pair = SkyPair({"r": image}, None)
    weights = np.full((2, 3, 5, 5), 0.02, np.float32)
    weights[1, 2, 3, 1] = 0.5  # one patch north, one east
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crpix, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [3, 3], np.array([-3.2, 3.2]) / 3600
    center = image.wcs.pixel_to_world(49.5, 49.5)
    wcs.wcs.crval = [center.ra.deg, center.dec.deg]
    meta = {"survey": "ground", "cls": np.full((2, 3), 0.5)}
    axes = plotting.plot_attention(pair, NDData(weights, wcs=wcs, meta=meta))
    assert axes.shape == (2, 3)
    (drawn,) = axes[1, 2].images
    left, right, low, high = drawn.get_extent()
    shown = drawn.get_array()
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    east = left + (column + 0.5) / shown.shape[1] * (right - left)
    north = low + (row + 0.5) / shown.shape[0] * (high - low)
    np.testing.assert_allclose([east, north], [3.2, 3.2], atol=1e-6)
    assert shown.max() == 0.5 * 25
