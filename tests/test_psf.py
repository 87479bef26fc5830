# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""PSFs that vary over an image, in whatever form they are given."""

import copy
import pickle

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData
from hypothesis import given, settings
from hypothesis import strategies as st
from photutils.psf import GriddedPSFModel

from rosetta import PSF, Flag, SkyPair
from rosetta.deblending.engine.rendering import render
from rosetta.images.image import band_images
from rosetta.images.psf_wings import known_radius, psf_wings
from rosetta.io import pair as pair_file
from rosetta.surveys import PSF_WINGS


def gaussian(fwhm, half=15, fine=1, x=0.0, y=0.0):
    """A round Gaussian about (x, y); ``fine`` samples per pixel."""
    axis = np.arange(-half * fine, half * fine + 1) / fine
    sigma = fwhm / 2.3548
    image = np.exp(-0.5 * (((axis - y) / sigma)[:, None] ** 2 + ((axis - x) / sigma)[None, :] ** 2))
    return image / image.sum()


def width(psf):
    """One-sigma width (pixels) of a stamp."""
    y, x = np.indices(psf.shape) - np.reshape([n // 2 for n in psf.shape], (2, 1, 1))
    return np.sqrt((psf * (x**2 + y**2)).sum() / psf.sum() / 2)


GRID = np.array([[gaussian(3.0), gaussian(4.0)], [gaussian(5.0), gaussian(6.0)]])  # rows y, columns x


@settings(max_examples=40, deadline=None)
@given(x=st.floats(-200, 400), y=st.floats(-200, 400), smooth=st.booleans())
def test_the_psf_at_a_place_is_a_mean_of_its_cells(x, y, smooth):
    psf = PSF.on_grid(GRID, [0.0, 100.0], [50.0, 150.0], smooth=smooth)
    weights = psf.weights(x, y)
    assert weights.shape == (1, 4) and (weights >= 0).all() and weights.sum() == pytest.approx(1)
    assert psf.at(x, y).sum() == pytest.approx(1)
    assert smooth or np.isin(weights, [0, 1]).all()
    piece = psf.cut(17, 23)
    np.testing.assert_allclose(piece.at(x - 17, y - 23), psf.at(x, y), atol=1e-12)


def test_nodes_have_their_own_psf_and_beyond_them_it_stays():
    psf = PSF.on_grid(GRID, [0.0, 100.0], [50.0, 150.0])
    np.testing.assert_allclose(psf.at(0, 50), GRID[0, 0])
    np.testing.assert_allclose(psf.at(100, 50), GRID[0, 1])  # x is a column
    np.testing.assert_allclose(psf.at(0, 150), GRID[1, 0])
    np.testing.assert_allclose(psf.at(50, 100), GRID.mean((0, 1)))
    np.testing.assert_allclose(psf.at(-70, -70), GRID[0, 0])
    assert PSF(GRID[0, 0]).constant and not psf.constant
    again = pickle.loads(pickle.dumps(psf))
    np.testing.assert_array_equal(again.at(30, 70), psf.at(30, 70))
    with pytest.raises(ValueError, match="read-only"):
        again.cells[0, 0, 0] = 1.0


def test_stamps_are_drawn_with_the_psf_of_their_place():
    psf = PSF.on_grid(GRID, [0.0, 100.0], [50.0, 150.0])
    star, xy = np.tile(np.eye(1, 6), (3, 1, 1)), np.array([[0.0, 50.0], [100.0, 150.0], [50.0, 100.0]])
    (group,) = render(star, xy, np.tile(np.eye(2) * 10, (3, 1, 1)), psf, sizes=np.full(3, 45))
    for index, stamp in zip(group.index, group.values, strict=True):
        np.testing.assert_allclose(stamp[7:38, 7:38], psf.at(*xy[index]), atol=2e-5)


def test_an_oversampled_psf_knows_what_pixels_fold():
    """A star of 1.2 pixels, between pixels: from its samples the stamp is exact, from native pixels alone it is not."""
    star, jacobian, fine = np.eye(1, 6)[None], np.eye(2)[None] * 10, 5
    samples = gaussian(1.2, fine=fine) * fine**2
    psf = PSF(samples, oversampling=fine)
    np.testing.assert_allclose(psf.cells[0], samples[::fine, ::fine])
    assert psf.light == pytest.approx(1)
    for x, y in ((0.0, 0.0), (0.5, 0.5), (0.3, -0.2)):
        (group,) = render(star, np.array([[30 + x, 30 + y]]), jacobian, psf, sizes=np.array([35]))
        x0, y0 = 30 - group.corner[0]
        sigma, axis = 1.2 / 2.3548, np.arange(-6, 7)
        expected = np.exp(-0.5 * ((axis - y)[:, None] ** 2 + (axis - x)[None, :] ** 2) / sigma**2)
        expected /= 2 * np.pi * sigma**2
        found = group.values[0][y0 - 6 : y0 + 7, x0 - 6 : x0 + 7]
        np.testing.assert_allclose(found, expected, atol=2e-3 * expected.max())


def photutils_model(cells=GRID, x=(0, 90), y=(10, 80), oversampling=1):
    places = [(column, row) for row in y for column in x]
    data = NDData(cells.reshape(-1, *cells.shape[2:]), meta={"grid_xypos": places, "oversampling": oversampling})
    return GriddedPSFModel(data)


FORMS = {
    "photutils": photutils_model(),
    "PSF": PSF.on_grid(GRID, [0, 90], [10, 80]),
    "function": lambda x, y: gaussian(3.0 + np.clip(x / 90, 0, 1) + 2 * np.clip((y - 10) / 70, 0, 1)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_takes_psfs_in_every_form(form, make_image):
    pair = SkyPair({"r": make_image(96, 0.2)}, None, psf={"r": FORMS[form]})
    psf = pair.psf("r")
    assert width(psf.at(0, 0)) == pytest.approx(width(GRID[0, 0]), rel=0.02)
    assert width(psf.at(95, 95)) == pytest.approx(width(GRID[1, 1]), rel=0.02)
    assert width(pair.ground["r"].psf) == pytest.approx(width(psf.at(45, 45)), rel=0.03)  # the mean, as an array
    image = band_images(pair)["r"]
    assert Flag.PSF_NOMINAL not in image.flags and 0.2 * 3.0 < image.fwhm < 0.2 * 6.0
    cut = pair.cutout(SkyCoord(53.1, -28.1, unit="deg"), 6 * u.arcsec)  # 30 pixels about the middle, and a border
    x0 = (96 - cut.ground["r"].data.shape[1]) // 2
    assert width(cut.psf("r").at(3, 5)) == pytest.approx(width(psf.at(x0 + 3, x0 + 5)), rel=1e-6)


def test_a_gridded_model_is_read_as_photutils_reads_it():
    model, psf = photutils_model(), SkyPair({"r": blank()}, None, psf={"r": photutils_model()}).psf("r")
    y, x = np.mgrid[-15:16, -15:16]
    for x0, y0 in ((20, 30), (70, 75)):
        theirs = model.evaluate(x + x0, y + y0, 1.0, x0, y0)
        np.testing.assert_allclose(psf.at(x0, y0), theirs / theirs.sum(), atol=3e-4 * theirs.max())


@pytest.mark.parametrize("form", [*FORMS, "oversampled"])
def test_psfs_travel_with_their_pair(form, tmp_path):
    psf = PSF(gaussian(3.0, fine=3), oversampling=3) if form == "oversampled" else FORMS[form]
    pair = SkyPair({"r": blank()}, psf={"r": psf})
    pair_file.write(pair, tmp_path / "pair.fits")
    for again in (pair_file.read(tmp_path / "pair.fits"), pickle.loads(pickle.dumps(pair)), copy.deepcopy(pair)):
        for x, y in ((0, 0), (40, 70), (95, 3)):
            np.testing.assert_array_equal(again.psf("r").at(x, y), pair.psf("r").at(x, y))
        np.testing.assert_array_equal(again.ground["r"].psf, pair.ground["r"].psf)
        assert again.flags == pair.flags and (again.psf("r").cores is None) == (pair.psf("r").cores is None)


def blank(n=96):
    from astropy.nddata import StdDevUncertainty
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [10.0, -5.0], [n / 2] * 2
    wcs.wcs.cdelt = [-0.2 / 3600, 0.2 / 3600]
    noise = np.random.default_rng(0).normal(0, 1, (n, n))
    return NDData(noise, wcs=wcs, unit=u.nJy, uncertainty=StdDevUncertainty(np.ones((n, n))))


BAD = [
    ({"r": lambda x, y: np.full((5, 5), np.nan)}, r"ground\['r'\]: psf\(0, 0\) has NaN"),
    ({"r": lambda x, y: np.ones(5)}, r"psf\(0, 0\) must be 2-D with odd sides, got shape \(5,\)"),
    ({"r": lambda x, y: np.ones((5 + 2 * (x > 9), 5))}, r"psf\(95, 0\) has shape \(7, 5\), elsewhere \(5, 5\)"),
    ({"r": PSF.on_grid(GRID, [0, 20], [0, 95])}, "does not cover the image of 96 x 96 pixels"),
    ({"q": gaussian(3.0)}, r"psf has unknown bands \['q'\]"),
    ({"i": gaussian(3.0)}, r"psf has bands \['i'\] without an image"),
    ({"r": np.ma.masked_less(gaussian(3.0), 1e-9)}, r"ground\['r'\]: psf has masked pixels"),
]


@pytest.mark.parametrize(("psf", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_a_psf_that_cannot_be_used_is_refused(psf, message):
    with pytest.raises(ValueError, match=message):
        SkyPair({"r": blank()}, None, psf=psf)


def test_psf_arguments_are_checked():
    with pytest.raises(TypeError, match="psf must be a dict of band name to PSF, got ndarray"):
        SkyPair({"r": blank()}, None, psf=gaussian(3.0))
    with pytest.raises(ValueError, match="oversampling is 0"):
        PSF(gaussian(3.0), oversampling=0)
    with pytest.raises(ValueError, match="x and y must increase"):
        PSF.on_grid(GRID, [9, 0], [0, 95])
    with pytest.raises(ValueError, match=r"cells has shape \(2, 2, 31, 31\): give \(2, 3, k, l\)"):
        PSF.on_grid(GRID, [0, 5, 9], [0, 95])
    with pytest.raises(ValueError, match="band 'i' is not in this pair"):
        SkyPair({"r": blank()}, None).psf("i")


@pytest.mark.parametrize(("half", "lost"), [(2, 0.253), (3, 0.072), (4, 0.014)])
def test_a_stamp_that_ends_inside_its_core_is_flagged(half, lost):
    pair = SkyPair({"r": blank()}, psf={"r": gaussian(1.7 * 2.3548, half=half)})
    assert pair.flags["r"] & Flag.PSF_TRUNCATED
    assert pair.ground["r"].psf.sum() == pytest.approx(1 - lost, abs=0.01)
    larger = band_images(pair)["r"].psf
    assert larger.light[0] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("fwhm", "suspect"), [(0.81, False), (1.2, False), (1.62, True), (0.4, True)])
def test_a_width_that_cannot_be_the_surveys_is_flagged(fwhm, suspect):
    pair = SkyPair({"r": blank()}, psf={"r": gaussian(fwhm / 0.2)})
    assert bool(pair.flags["r"] & Flag.PSF_SUSPECT) == suspect


def test_shifted_stamps_of_an_undersampled_psf_do_not_ring():
    galsim = pytest.importorskip("galsim")
    optics = galsim.Convolve(galsim.OpticalPSF(lam=715, diam=1.2, obscuration=0.35), galsim.Gaussian(sigma=0.03))
    psf = PSF(optics.drawImage(nx=151, ny=151, scale=0.1, dtype=float).array)
    (group,) = render(np.eye(1, 6)[None], np.array([[90.5, 90.5]]), np.eye(2)[None] * 10, psf, sizes=np.array([175]))
    assert group.values.min() > -1e-4 * group.values.max()


def test_a_stamp_cut_along_a_circle_has_wings_in_its_corners():
    """As Euclid's are: no light is missing between the circle and the square."""
    y, x = np.indices((141, 141)) - 70
    radius = np.hypot(x, y)
    light = (1.0 + (radius / 1.5) ** 2) ** -1.75
    light /= light.sum()
    whole = light[60:81, 60:81]
    disc = np.where(radius[60:81, 60:81] < 10.5, whole, 0.0)
    assert known_radius(disc, 0.1) == 10.5 and known_radius(whole, 0.1) == np.inf
    found = psf_wings(disc, 0.1)
    assert found.share == pytest.approx(1.0 - disc.sum(), rel=0.3)
    assert found.share > psf_wings(whole, 0.1).share + 0.5 * (whole.sum() - disc.sum())
    psf = PSF(disc).extended(found.at, 20, known=10.5).cells[0]
    corner = np.zeros(psf.shape, bool)
    corner[20:-20, 20:-20] = disc == 0
    np.testing.assert_allclose(psf[corner].sum() * disc.sum(), (whole - disc).sum(), rtol=0.4)


def test_wings_take_the_place_of_what_a_window_cut_off():
    """As Euclid's VIS stamps are: their rim was multiplied by a window that ends at zero."""
    nominal = PSF_WINGS["Euclid"]["VIS"]
    y, x = np.indices((201, 201)) - 100
    radius = np.hypot(x, y)
    beyond = np.exp(np.interp(np.log(np.maximum(radius, 3) * 0.1), *np.log(nominal).T))
    wings = np.maximum(-np.gradient(np.sort(beyond.ravel())[::-1])[np.argsort(np.argsort(radius.ravel()))], 0)
    ring = np.round(radius).astype(int)
    wings = (np.bincount(ring.ravel(), wings) / np.bincount(ring.ravel()))[ring]
    true = 0.8 * np.exp(-0.5 * (radius / 0.7) ** 2) / (2 * np.pi * 0.7**2) + wings
    true /= true.sum()
    whole, inner = true[90:111, 90:111], radius[90:111, 90:111]
    windowed = whole * np.clip((10.5 - inner) / 2.5, 0, 1)
    assert known_radius(whole, 0.1, nominal) == np.inf
    known = known_radius(windowed, 0.1, nominal)
    assert known == pytest.approx(8.25, abs=0.75)
    found = psf_wings(windowed, 0.1, nominal)
    assert found.share == pytest.approx(1 - windowed.sum(), rel=0.15)
    psf = PSF(windowed * (1 - found.share) / windowed.sum()).extended(found.at, 20, known=known).cells[0]
    for low, high in ((7, 9), (9, 10.5), (10.5, 14)):
        of = (radius[70:131, 70:131] >= low) & (radius[70:131, 70:131] < high)
        assert psf[of].sum() == pytest.approx(true[70:131, 70:131][of].sum(), rel=0.2)


def test_a_gaussian_without_wings_is_not_taken_for_windowed():
    assert known_radius(gaussian(3.0, half=20), 0.1, PSF_WINGS["Euclid"]["VIS"]) == 20.5  # its corners are blank
