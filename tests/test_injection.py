# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Injected sources: flux, place and shape to the pixel, noise, masks; and what is said of their measurements."""

import json
import sys

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData, StdDevUncertainty, VarianceUncertainty
from astropy.table import QTable
from astropy.wcs import WCS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rosetta
from rosetta import PSF, AstrometricSolution, SkyPair
from rosetta.images.image import band_images
from rosetta.images.moments import adaptive_moments

pytest.importorskip("galsim")
pytest.importorskip("speclite")

from rosetta.injection import recovery  # noqa: E402
from rosetta.injection.gain import photon_noise  # noqa: E402
from rosetta.injection.summary import pull_covariance, summarise  # noqa: E402

CENTER = SkyCoord(53.1, -28.1, unit="deg")
FAINT = 1e-3  # nJy of noise: injected light is seen as it is


def gaussian(sigma, n=41):
    y, x = np.mgrid[:n, :n] - n // 2
    return np.exp(-(x**2 + y**2) / (2 * sigma**2))


def rotated(n, scale, angle, flip=False):
    """TAN WCS turned by an angle (degrees); with ``flip``, mirrored."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [CENTER.ra.deg, CENTER.dec.deg]
    wcs.wcs.crpix = [(n + 1) / 2 + 0.3, (n + 1) / 2 - 0.2]
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag([1 if flip else -1, 1])
    wcs.wcs.cd = matrix * scale / 3600
    return wcs


def images(sigma=FAINT, psf=None, angle=0.0, flip=False, n=120):
    """r at 0.2 arcsec and VIS at 0.1 arcsec, without a source."""
    def image(n, scale, width):
        return NDData(
            np.zeros((n, n)), uncertainty=StdDevUncertainty(np.full((n, n), sigma)), unit=u.nJy,
            wcs=rotated(n, scale, angle, flip), psf=gaussian(width) if psf is None else psf,
        )  # fmt: skip
    return SkyPair({"r": image(n // 2, 0.2, 1.8)}, {"VIS": image(n, 0.1, 1.5)})


def star(east=0.0, north=0.0, flux=1000.0):
    coord = CENTER.spherical_offsets_by(np.atleast_1d(east) * u.arcsec, np.atleast_1d(north) * u.arcsec)
    flux = np.full(len(coord), flux) * u.nJy
    return QTable({"sky_centroid": coord, "flux_r": flux, "flux_VIS": 2 * flux})


def added(new, old, band):
    return band_images(new)[band].data.astype(float) - band_images(old)[band].data


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 360), st.booleans())
def test_star_has_its_flux_and_place(east, north, angle, flip):
    pair = images(angle=angle, flip=flip)
    new, truth = rosetta.inject(pair, star(east, north), seed=1)
    for band, flux in (("r", 1000.0), ("VIS", 2000.0)):
        light, image = added(new, pair, band), band_images(pair)[band]
        assert light.sum() == pytest.approx(flux * image.psf.light[0], rel=1e-3)
        assert truth[f"coverage_{band}"][0] == pytest.approx(1, abs=1e-3)
        place = image.pixel_to_sky(*adaptive_moments(light)[0])
        assert place.separation(truth["sky_centroid"][0]).mas < 1


def test_light_beyond_the_stamp_is_added_as_it_is_modelled():
    y, x = np.mgrid[:31, :31] - 15
    wings = (1 + (x**2 + y**2) / 4.0) ** -2.0
    pair = images(psf=wings)
    assert pair.psf("VIS").light[0] < 0.99
    new, truth = rosetta.inject(pair, star(), seed=1)
    for band, flux in (("r", 1000.0), ("VIS", 2000.0)):
        light = band_images(pair)[band].psf.light[0]
        assert light > pair.psf(band).light[0]
        assert added(new, pair, band).sum() == pytest.approx(flux * light, rel=4e-3)  # the field ends in its wings
        assert truth.meta["injection"]["bands"][band]["light_within_psf_stamp"] == pytest.approx(light)


@pytest.mark.parametrize("sersic, radius", [(0.5, 0.4), (1.0, 0.4), (2.3, 0.3), (4.0, 0.3)])
def test_galaxy_keeps_its_flux(sersic, radius):
    pair, table = images(n=240), star()
    table["half_light_radius"], table["sersic"] = [radius] * u.arcsec, [sersic]
    new, truth = rosetta.inject(pair, table, seed=1)
    assert truth["type"][0] == "galaxy"
    light = added(new, pair, "VIS")
    assert light.sum() == pytest.approx(2000.0, rel=1e-3)
    y, x = np.indices(light.shape)
    image = band_images(pair)["VIS"]
    xy, _ = image.place(image.tangent_plane.east_north(truth["sky_centroid"]))
    inside = np.hypot(x - xy[0, 0], y - xy[0, 1]) * 0.1 < np.hypot(radius, 0.15)
    assert 0.40 < light[inside].sum() / light.sum() < 0.56  # half, but for the PSF


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(0, 360), st.booleans(), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_ellipticity_is_that_on_the_sky(angle, flip, e1, e2):
    """Of a Gaussian galaxy under a round PSF the covariance on the sky is known."""
    pair, table = images(angle=angle, flip=flip), star()
    table["half_light_radius"], table["sersic"], table["e1"], table["e2"] = [0.4] * u.arcsec, [0.5], [e1], [e2]
    new, truth = rosetta.inject(pair, table, seed=1)
    image = band_images(pair)["VIS"]
    _, covariance = adaptive_moments(added(new, pair, "VIS"))
    inverse = np.linalg.inv(image.jacobian(image.tangent_plane.east_north(truth["sky_centroid"]))[0])
    sky = inverse @ covariance @ inverse.T - 0.15**2 * np.eye(2)
    size = 0.4**2 / (2 * np.log(2)) / np.sqrt(1 - e1**2 - e2**2)  # of the same area as the round one
    np.testing.assert_allclose(sky, size * np.array([[1 + e1, e2], [e2, 1 - e1]]), atol=2e-3)


def test_mixture_is_drawn_as_the_galaxy_that_it_is():
    pair, table = images(), star()
    e1, e2, size = 0.3, -0.2, 0.35**2 / (2 * np.log(2))
    area = size / np.sqrt(1 - e1**2 - e2**2)
    shape = star()
    shape["half_light_radius"], shape["sersic"], shape["e1"], shape["e2"] = [0.35] * u.arcsec, [0.5], [e1], [e2]
    table["mixture"] = np.array([[[1.0, 0, 0, area * (1 + e1), area * e2, area * (1 - e1)], [0.0] * 6]])
    one, two = (added(rosetta.inject(pair, t, seed=1)[0], pair, "VIS") for t in (shape, table))
    np.testing.assert_allclose(two, one, atol=2e-5 * one.max())
    table["mixture"] = np.array([[[0.5, 0.4, 0, 0, 0, 0], [0.5, -0.4, 0, 0, 0, 0]]])  # two points, 0.8" apart
    light = added(rosetta.inject(pair, table, seed=1)[0], pair, "VIS")
    image = band_images(pair)["VIS"]
    for east in (-0.4, 0.4):
        x, y = image.sky_to_pixel(star(east)["sky_centroid"])
        row, column = int(np.round(y[0])), int(np.round(x[0]))
        piece = light[row - 3 : row + 4, column - 3 : column + 4]
        assert piece.sum() == pytest.approx(1000 * gaussian(1.5)[17:24, 17:24].sum() / gaussian(1.5).sum(), rel=0.03)


def test_undersampled_star_against_an_exact_one():
    """Of a PSF like that of VIS, known from its native pixels alone and from samples four times as fine."""
    from rosetta.simulate.psf import draw_psf

    galsim = pytest.importorskip("galsim")
    profile = galsim.Convolve(galsim.Airy(lam_over_diam=0.123, obscuration=0.4), galsim.Gaussian(sigma=0.045))
    profile = profile.shear(g1=0.01, g2=-0.02)
    native = draw_psf(profile, 3.0, 0.1)
    fine = galsim.Convolve(profile, galsim.Pixel(0.1)).drawImage(
        nx=8 * (len(native) // 2) + 1, ny=8 * (len(native) // 2) + 1, wcs=galsim.JacobianWCS(-0.025, 0, 0, 0.025),
        method="no_pixel", dtype=float,
    ).array  # fmt: skip
    worst = {}
    for name, psf in (("native", native), ("fine", PSF(fine, oversampling=4))):
        pair = images(psf=psf, n=121)
        image = band_images(pair)["VIS"]
        bias, residual = [], []
        for dx, dy in ((0.5, 0.5), (0.25, -0.4), (-0.1, 0.3), (0.0, 0.5)):
            x, y = 60 + dx, 60 + dy
            table = star()
            table["sky_centroid"] = image.pixel_to_sky([x], [y])
            light = added(rosetta.inject(pair, table, seed=1)[0], pair, "VIS") / 2000.0
            exact = profile.drawImage(nx=121, ny=121, wcs=galsim.JacobianWCS(-0.1, 0, 0, 0.1), offset=(dx, dy)).array
            inside = np.hypot(*(np.indices(exact.shape) - 60)) < 28  # in the stamp; beyond it wings are estimated
            light, exact = light * inside, exact * inside
            exact *= light.sum() / exact.sum()
            bias.append(abs((light * exact).sum() / (exact**2).sum() - 1))
            residual.append(np.abs(light - exact).max() / exact.max())
        worst[name] = max(bias), max(residual)
    assert worst["native"][0] < 3e-3 and worst["native"][1] < 1.2e-2
    assert worst["fine"][0] < 1e-3 and worst["fine"][1] < 3e-3


def test_the_psf_is_that_of_the_place():
    cells = np.stack([gaussian(1.2), gaussian(2.4)])[None] / np.reshape([1.2**2, 2.4**2], (1, 2, 1, 1))
    psf = PSF.on_grid(cells, [20.0, 100.0], [60.0])
    blank = images(n=121)
    pair = SkyPair(None, {"VIS": NDData(
        blank.space["VIS"].data, uncertainty=blank.space["VIS"].uncertainty, wcs=blank.space["VIS"].wcs, unit=u.nJy,
    )}, psf={"VIS": psf})  # fmt: skip
    image = band_images(pair)["VIS"]
    for x, width in ((20.0, 1.2), (100.0, 2.4)):
        table = star()
        table["sky_centroid"] = image.pixel_to_sky([x], [60.0])
        _, covariance = adaptive_moments(added(rosetta.inject(pair, table, seed=1)[0], pair, "VIS"))
        assert covariance[0, 0] ** 0.5 == pytest.approx(width, rel=0.01)


def test_nominal_psf_where_none_is_given():
    data = NDData(np.zeros((121, 121)), uncertainty=StdDevUncertainty(np.full((121, 121), FAINT)), unit=u.nJy,
                  wcs=rotated(121, 0.1, 0))  # fmt: skip
    pair = SkyPair(None, {"VIS": data})
    new, _ = rosetta.inject(pair, star()["sky_centroid", "flux_VIS"], seed=1)
    assert added(new, pair, "VIS").sum() == pytest.approx(2000.0, rel=1e-3)


# ---------------------------------------------------------------------------- noise and masks
def noisy(gain, n=200, level=300.0, in_map=True):
    """A bright blob on a sky of unit noise whose variance map holds ``gain`` times its light."""
    y, x = np.mgrid[:n, :n] - n // 2
    light = level * np.exp(-(x**2 + y**2) / (2 * 8.0**2))
    rng = np.random.default_rng(2)
    variance = 1.0 + gain * light
    data = light + rng.normal(size=light.shape) * np.sqrt(variance)
    noise = VarianceUncertainty(variance if in_map else np.ones_like(light))
    image = NDData(data, uncertainty=noise, unit=u.nJy, wcs=rotated(n, 0.1, 0), psf=gaussian(1.5))
    return SkyPair(None, {"VIS": image})


def test_gain_is_read_off_the_variance_map():
    per_flux, origin, in_variance = photon_noise(band_images(noisy(0.4))["VIS"])
    assert per_flux == pytest.approx(0.4, rel=0.05) and origin == "variance map" and in_variance


def test_a_map_without_photon_noise_stays_without():
    pair = noisy(0.4, in_map=False)
    per_flux, origin, in_variance = photon_noise(band_images(pair)["VIS"])
    assert per_flux > 0 and origin == "sky brightness" and not in_variance
    new, _ = rosetta.inject(pair, star(5, 5)["sky_centroid", "flux_VIS"], seed=1)
    np.testing.assert_array_equal(band_images(new)["VIS"].variance, band_images(pair)["VIS"].variance)


def test_a_sky_without_bright_pixels_tells_the_noise():
    per_flux, origin, in_variance = photon_noise(band_images(images(sigma=1.0))["VIS"])
    sky = 10 ** (0.4 * (31.4 - 22.3)) * 0.1**2  # nJy per pixel
    assert per_flux == pytest.approx(1 / sky, rel=0.1) and origin == "sky brightness" and in_variance


def test_photon_noise_has_the_variance_that_is_recorded():
    pair = noisy(0.4)
    table = star(flux=5e5)["sky_centroid", "flux_VIS"]
    table["half_light_radius"], table["sersic"] = [1.5] * u.arcsec, [0.5]
    one, two = (rosetta.inject(pair, table, seed=seed)[0] for seed in (1, 2))
    before, after = (band_images(p)["VIS"].variance for p in (pair, one))
    noise = (added(one, pair, "VIS") - added(two, pair, "VIS")) / np.sqrt(2 * np.maximum(after - before, 1e-9))
    bright = after - before > 1.0
    assert bright.sum() > 500 and np.std(noise[bright]) == pytest.approx(1, abs=0.1)


def test_masked_pixels_stay_and_the_pair_is_not_changed():
    pair = images(sigma=1.0)
    mask = np.zeros((120, 120), bool)
    mask[:, 60:] = True
    vis = pair.space["VIS"]
    pair = SkyPair(pair.ground, {"VIS": NDData(vis.data, uncertainty=vis.uncertainty, mask=mask, wcs=vis.wcs,
                                               unit=u.nJy, psf=vis.psf)})  # fmt: skip
    before = {band: image.data.copy() for _, band, image in pair.images()}
    table = star()
    table["sky_centroid"] = band_images(pair)["VIS"].pixel_to_sky([59.5], [60.0])
    new, truth = rosetta.inject(pair, table, seed=1)
    assert truth["coverage_VIS"][0] == pytest.approx(0.5, abs=0.01) and truth["coverage_r"][0] > 0.999
    np.testing.assert_array_equal(new.space["VIS"].mask, mask)
    np.testing.assert_array_equal(new.space["VIS"].data[mask], pair.space["VIS"].data[mask])
    for _, band, image in pair.images():
        np.testing.assert_array_equal(image.data, before[band])
    with pytest.raises(ValueError, match="read-only"):
        new.space["VIS"].data[0, 0] = 1


def test_an_image_with_an_artefact_takes_light_and_keeps_its_mask():
    pair = noisy(0.0, level=0.0)
    vis = pair.space["VIS"]
    data = vis.data.copy()
    data[40, 50] = 500.0  # no PSF is as sharp
    noise = vis.uncertainty
    pair = SkyPair(None, {"VIS": NDData(data, uncertainty=noise, wcs=vis.wcs, unit=u.nJy, psf=vis.psf)})
    assert not band_images(pair)["VIS"].valid[40, 50]
    new, truth = rosetta.inject(pair, star(5, 5)["sky_centroid", "flux_VIS"], seed=1)
    assert not new.space["VIS"].mask.any() and new.space["VIS"].data[40, 50] == 500.0
    assert added(new, pair, "VIS").sum() == pytest.approx(2000.0, rel=0.2)


def test_ground_images_follow_the_astrometric_solution():
    model = {"kind": "shift", "order": 0, "scale": 1.0, "coefficients": [[300.0, -200.0]],
             "coefficient_covariance": np.eye(2).tolist()}  # fmt: skip
    solution = AstrometricSolution("ok", "", CENTER, ((-6.0, -6.0), (6.0, 6.0)), {"joint": model})
    pair = images()
    new, truth = rosetta.inject(pair, star(), seed=1, offsets=solution)
    assert truth.meta["injection"]["aligned"]
    for band, (east, north) in (("r", (-300.0, 200.0)), ("VIS", (0.0, 0.0))):  # ground + offset = true
        place = band_images(pair)[band].pixel_to_sky(*adaptive_moments(added(new, pair, band))[0])
        moved = [a.mas for a in truth["sky_centroid"][0].spherical_offsets_to(place.reshape(()))]
        np.testing.assert_allclose(moved, [east, north], atol=1)


# ---------------------------------------------------------------------------- what is drawn, and where
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1))
def test_random_places_are_valid_and_apart(seed):
    pair = images(n=300)
    mask = np.zeros((300, 300), bool)
    mask[:, :150] = True
    vis = pair.space["VIS"]
    pair = SkyPair(pair.ground, {"VIS": NDData(vis.data, uncertainty=vis.uncertainty, mask=mask, wcs=vis.wcs,
                                               unit=u.nJy, psf=vis.psf)})  # fmt: skip
    table = QTable({"flux_r": [10.0] * 4, "flux_VIS": [10.0] * 4})
    _, truth = rosetta.inject(pair, table, seed=seed, density=50 / u.arcmin**2, separation=4 * u.arcsec)
    x, y = vis.wcs.world_to_pixel(truth["sky_centroid"])
    assert not mask[np.round(y).astype(int), np.round(x).astype(int)].any()
    for k in range(4):
        apart = truth["sky_centroid"][k].separation(truth["sky_centroid"]).arcsec
        assert (apart[np.arange(4) != k] > 4).all()


def test_population_is_uniform_in_magnitude_and_repeatable():
    pair = images(n=300)
    given = {"n": 40, "magnitude": (21.0, 25.0), "density": 1e3 / u.arcmin**2, "separation": 0 * u.arcsec}
    _, truth = rosetta.inject(pair, seed=3, band="i", **given)
    _, again = rosetta.inject(pair, seed=3, band="i", **given)
    np.testing.assert_array_equal(truth["flux_VIS"], again["flux_VIS"])
    assert (truth["sky_centroid"].separation(again["sky_centroid"]).mas < 1e-6).all()
    _, other = rosetta.inject(pair, seed=4, **given)
    assert not np.isin(truth["flux_VIS"].value, other["flux_VIS"].value).all()
    magnitude = other["flux_VIS"].to_value(u.ABmag)
    assert magnitude.min() >= 21 and magnitude.max() <= 25
    assert 10 <= (magnitude < 23).sum() <= 30  # published counts would put 9 in 10 beyond
    assert set(truth["type"]) <= {"star", "galaxy"} and (truth["half_light_radius"][truth["type"] == "star"] == 0).all()


def test_the_nearest_source_that_was_there():
    pair = images(sigma=1.0)
    bright, _ = rosetta.inject(pair, star(-2, 0, 5000.0), seed=1)
    _, truth = rosetta.inject(bright, star(), seed=1)
    assert truth["existing_label"][0] == 1
    assert truth["existing_distance"][0].to_value(u.arcsec) == pytest.approx(2, abs=0.05)
    assert truth["existing_flux"][0].to_value(u.nJy) == pytest.approx(10000, rel=0.1)
    assert rosetta.inject(pair, star(), seed=1)[1]["existing_label"][0] == -1


@pytest.mark.parametrize("change, message", [
    ({"n": 200}, "n is 200, but a density of 6 1 / arcmin2 allows 1 here"),
    ({"n": 0}, "n is 0: give 1 or more"),
    ({"density": 3}, "density is 3: give it with a unit"),
    ({"magnitude": (25, 21)}, r"magnitude is \(25, 21\): give \(brightest, faintest\)"),
    ({"magnitude": (2, 3)}, "population has too few such sources"),
    ({"band": "K"}, "band is 'K', which neither survey has"),
    ({"population": "dwarfs"}, "population is 'dwarfs': use one of 'train', 'all', 'irregular'"),
    ({"sources": star(), "n": 1}, "n is of no use with sources"),
    ({"sources": star()["sky_centroid", "flux_r"]}, "sources lacks flux_VIS"),
    ({"sources": star(flux=-1.0)}, "sources has fluxes that are negative"),
    ({"sources": star(np.array([0.0, 1.0]), np.zeros(2))}, "number of sources is 2, but a density of"),
    ({"sources": star(np.array([0.0, 1.0]), np.zeros(2)), "density": 1e3 / u.arcmin**2}, "1.00 arcsec apart, closer"),
])  # fmt: skip
def test_errors_name_argument_and_remedy(change, message):
    with pytest.raises(ValueError, match=message):
        rosetta.inject(images(), seed=1, **change)


def test_without_galsim_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "galsim", None)
    with pytest.raises(ImportError, match=r"injection needs galsim, .* pip install 'astro-rosetta\[sim\]'"):
        rosetta.inject(images(), star(), seed=1)


# ---------------------------------------------------------------------------- recovery
def rows(east, flux, label=None):
    coord = CENTER.spherical_offsets_by(np.array(east) * u.arcsec, np.zeros(len(east)) * u.arcsec)
    label = np.arange(1, len(east) + 1) if label is None else label
    return QTable({"label": label, "sky_centroid": coord, "flux_VIS": np.array(flux, float) * u.nJy})


@pytest.mark.parametrize("measured, flux, row, claimed", [
    ([0.0, 5.05], [100, 50], 1, -1),  # on empty sky
    ([0.0], [100], -1, -1),  # not seen
    ([0.0, 5.2], [100, 70], 1, -1),  # beside a source that keeps a row of its own
])  # fmt: skip
def test_matched_rows(measured, flux, row, claimed):
    found = recovery._matched(rows(measured, flux), rows([5.0], [50]), rows([0.0], [100]), "VIS")
    assert (found[0][0], found[1][0]) == (row, claimed)


@pytest.mark.parametrize("flux, claimed", [(1000.0, 7), (100.0, -1)])
def test_one_row_for_two_sources_is_the_brighter_ones(flux, claimed):
    """An injected source of 300 nJy, 0.2 arcsec from one of ``flux`` that has no other row now."""
    total = flux + 300.0
    row, by = recovery._matched(rows([0.05], [total]), rows([0.2], [300.0]), rows([0.0], [flux], [7]), "VIS")
    assert (row[0], by[0]) == (0, claimed)
    # With two rows each has its own.
    both = rows([0.0, 0.21], [flux, 300.0])
    row, by = recovery._matched(both, rows([0.2], [300.0]), rows([0.0], [flux], [7]), "VIS")
    assert (row[0], by[0]) == (1, -1)


def table_of(n, seed=0, scatter=0.1, found=0.8):
    """Injected sources with unbiased Gaussian errors, in two bands whose errors are correlated by one half."""
    rng = np.random.default_rng(seed)
    out = QTable({"found": rng.uniform(size=n) < found, "type": np.where(rng.uniform(size=n) < 0.5, "star", "galaxy")})
    pull = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], n)
    for k, band in enumerate(("r", "VIS")):
        true = 10 ** rng.uniform(2, 4, n)
        out[f"true_flux_{band}"], out[f"flux_err_{band}"] = true * u.nJy, scatter * true * u.nJy
        out[f"flux_{band}"] = true * (1 + scatter * pull[:, k]) * u.nJy
        out[f"flux_{band}"][~out["found"]] = np.nan
        out[f"coverage_{band}"] = 1.0
    error = np.stack([out[f"flux_err_{band}"].value for band in ("r", "VIS")], -1)
    out["flux_cov"] = error[:, :, None] * error[:, None, :] * np.array([[1, 0.5], [0.5, 1]]) * u.nJy**2
    out["true_half_light_radius"] = rng.uniform(0.1, 0.8, n) * u.arcsec
    return out


def test_summary_of_known_errors():
    table = table_of(4000)
    summary = summarise(table, ("r", "VIS"), "VIS")
    row = summary[(summary["band"] == "VIS") & (summary["by"] == "all")][0]
    assert row["n"] == 4000 and row["n_found"] == table["found"].sum()
    for name, value, width in (
        ("completeness", 0.8, np.sqrt(0.16 / 4000)), ("coverage", 0.683, np.sqrt(0.2165 / 3200)),
        ("nmad", 0.1, 0.1 * 1.17 / np.sqrt(3200)), ("bias", 0.0, 0.1253 / np.sqrt(3200)),
    ):  # fmt: skip
        assert row[name] == pytest.approx(value, abs=4 * width), name
        assert (row[f"{name}_high"] - row[f"{name}_low"]) / 2 == pytest.approx(width, rel=0.25), name
    bins = summary[(summary["band"] == "r") & (summary["by"] == "magnitude")]
    assert bins["n"].sum() == 4000 and (np.diff(bins["low"]) == 1).all()
    assert summary[(summary["band"] == "r") & (summary["by"] == "size")]["n"].sum() == 4000
    kinds = summary[(summary["band"] == "r") & (summary["by"] == "type")]
    assert list(kinds["kind"]) == ["galaxy", "star"] and kinds["n"].sum() == 4000
    pulls = pull_covariance(table, ("r", "VIS"))
    np.testing.assert_allclose(pulls["covariance"], [[1, 0.5], [0.5, 1]], atol=0.1)
    np.testing.assert_allclose(pulls["predicted"], [[1, 0.5], [0.5, 1]], atol=1e-9)


def test_sources_off_valid_sky_do_not_count():
    table = table_of(100)
    table["coverage_VIS"][:30] = 0.2
    summary = summarise(table, ("r", "VIS"), "VIS")
    assert (summary["n"][summary["by"] == "all"] == 70).all()


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    """On a simulated field of 20 arcsec with the bundled models; the command line goes on from Python's rounds."""
    from rosetta.cli import main
    from rosetta.io import pair as pair_io
    from rosetta.simulate import simulate_pair

    pair, _ = simulate_pair(seed=5, size=20 * u.arcsec, bands=["i", "VIS"])
    counts, measure = [], recovery.measure
    monkeypatch.setattr(recovery, "measure", lambda *args, **models: counts.append(1) or measure(*args, **models))
    out = tmp_path / "out"
    what = {"seed": 0, "magnitude": (20.0, 22.0), "device": "cpu"}
    first = rosetta.recover(pair, rounds=1, directory=out, **what)
    assert len(counts) == 2 and len(first.injected) == 1 and len(first.existing) > 3
    both = rosetta.recover(pair, rounds=2, directory=out, **what)
    assert len(counts) == 3 and list(both.injected["round"]) == [0, 1]
    assert both.injected["flux_VIS"][0] == first.injected["flux_VIS"][0]
    found = both.injected[both.injected["found"]]
    assert len(found) >= 1
    ratio = found["flux_VIS"] / found["true_flux_VIS"]
    assert (np.abs(ratio - 1) < 0.25).all() and (found["distance"] < 0.1 * u.arcsec).all()

    pair_io.write(pair, tmp_path / "pair.fits")
    command = ["inject", "--pair", str(tmp_path / "pair.fits"), "-o", str(out), "--mag", "20", "22", "--device", "cpu"]
    assert main([*command, "--measure", "--repeat", "2"]) == 0
    assert len(counts) == 3
    assert {path.name for path in out.iterdir()} == {"rounds", *recovery.PRODUCTS}
    assert len(QTable.read(out / "injected.ecsv")) == 2
    assert json.loads((out / "rounds" / "settings.json").read_text())["seed"] == 0
    with pytest.raises(ValueError, match="holds rounds with another seed"):
        rosetta.recover(pair, rounds=2, directory=out, **{**what, "seed": 1})


def test_the_command_writes_pairs(tmp_path, capsys):
    from rosetta.cli import main
    from rosetta.io import pair as pair_io

    pair = images(sigma=1.0)
    pair_io.write(pair, tmp_path / "pair.fits")
    command = ["inject", "--pair", str(tmp_path / "pair.fits"), "-o", str(tmp_path / "out")]
    assert main([*command, "--repeat", "2"]) == 0
    truth = QTable.read(tmp_path / "out" / "injected_0001_truth.ecsv")
    light = added(pair_io.read(tmp_path / "out" / "injected_0001.fits"), pair, "VIS").sum()
    assert light == pytest.approx((truth["flux_VIS"].value * truth["coverage_VIS"]).sum(), rel=0.1)
    assert main(command) == 2
    assert "is not empty" in capsys.readouterr().err
