# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""SkyPair: what it accepts, what it refuses and how, and that it never touches its inputs."""

import copy

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.nddata import CCDData, InverseVariance, NDData, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.wcs import WCS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rosetta import EUCLID, HSC, HST_ACS, RUBIN, Flag, SkyPair, Survey
from rosetta.surveys import Band


@pytest.fixture
def pair(make_image):
    return SkyPair({"r": make_image(64, 0.2)}, {"VIS": make_image(128, 0.1, seed=1)})


def test_flags_are_named_from_a_column():
    flags = np.array([int(Flag.LOW_SNR | Flag.BLENDED), 0])
    assert str(Flag(flags[0])) == "LOW_SNR | BLENDED" and str(Flag(flags[1])) == "none"


def test_order_is_by_wavelength_and_aliases_become_canonical(make_image):
    images = {name: make_image(64, 0.1) for name in ("H", "VIS", "Y")}
    assert SkyPair(None, images).bands == ("VIS", "Y_E", "H_E")


@pytest.mark.parametrize("unit", [u.uJy, u.Jy, u.erg / u.s / u.cm**2 / u.Hz])
def test_flux_and_error_follow_the_unit(make_image, unit):
    image = make_image(64, 0.2)
    factor = (1 * u.nJy).to_value(unit)
    other = NDData(
        image.data.astype(float) * factor,
        uncertainty=StdDevUncertainty(image.uncertainty.array.astype(float) * factor),
        wcs=image.wcs,
        unit=unit,
    )
    one, two = (SkyPair({"r": i}, None).ground["r"] for i in (image, other))
    np.testing.assert_allclose(one.data, two.data, rtol=1e-5)
    np.testing.assert_allclose(one.uncertainty.array, two.uncertainty.array, rtol=1e-5)
    assert two.unit == u.nJy


@pytest.mark.parametrize("kind", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
def test_every_uncertainty_class_means_the_same(make_image, kind):
    sigma = np.random.default_rng(2).uniform(0.5, 2, (64, 64))
    uncertainty = StdDevUncertainty(sigma).represent_as(kind)
    image = SkyPair({"r": make_image(64, 0.2, uncertainty=uncertainty)}, None).ground["r"]
    np.testing.assert_allclose(image.uncertainty.array, sigma**2, rtol=1e-5)


@pytest.mark.parametrize("uncertainty", [None, UnknownUncertainty(np.ones((128, 128)))])
def test_missing_uncertainty_is_measured_and_flagged(make_image, uncertainty):
    image = make_image(128, 0.2, sigma=3.0, uncertainty=uncertainty)
    image.data[:20, :20] += 500  # sources must not count as noise
    pair = SkyPair({"r": image}, None)
    assert pair.flags["r"] & Flag.VARIANCE_ESTIMATED
    assert np.sqrt(pair.ground["r"].uncertainty.array[0, 0]) == pytest.approx(3.0, rel=0.05)


def test_inputs_stay_untouched_and_the_pair_is_read_only(make_image):
    image = make_image(64, 0.2, mask=np.zeros((64, 64), bool), psf=np.full((5, 5), 3.0), meta={"key": [1]})
    image.data[3, 3] = np.nan
    before = copy.deepcopy(image)
    pair = SkyPair({"r": image}, None)
    kept = pair.ground["r"]
    np.testing.assert_array_equal(image.data, before.data)
    np.testing.assert_array_equal(image.mask, before.mask)
    np.testing.assert_array_equal(image.psf, before.psf)
    assert kept.mask[3, 3]
    assert kept.psf.sum() == pytest.approx(1, abs=0.05)
    for array in (kept.data, kept.mask, kept.uncertainty.array, kept.psf):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
    with pytest.raises(AttributeError):
        pair.ground = {}
    with pytest.raises(AttributeError, match="read-only"):
        kept.mask = None
    image.wcs.wcs.crval = [10, 10]
    assert kept.wcs.wcs.crval[0] == pytest.approx(53.1)
    kept.meta["key"].append(2)
    assert image.meta == {"key": [1]}


def test_big_endian_ccddata(make_image):
    image = make_image(64, 0.2)
    ccd = CCDData(image.data.astype(">f4"), unit=u.nJy, wcs=image.wcs, uncertainty=image.uncertainty)
    data = SkyPair({"r": ccd}, None).ground["r"].data
    assert data.dtype.isnative
    np.testing.assert_array_equal(data, image.data)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_unusable_variance_becomes_mask(make_image, bad):
    variance = np.ones((64, 64))
    variance[5, 6] = bad
    image = SkyPair({"r": make_image(64, 0.2, uncertainty=VarianceUncertainty(variance))}, None).ground["r"]
    assert image.mask[5, 6]
    assert image.mask.sum() == 1
    with pytest.raises(ValueError, match="no finite positive variance"):
        SkyPair({"r": make_image(64, 0.2, uncertainty=VarianceUncertainty(np.full((64, 64), bad)))}, None)


def test_truncated_psf_is_corrected_and_flagged(make_image):
    y, x = np.mgrid[-30:31, -30:31]
    full = (1 + (x**2 + y**2) / 9.0) ** -2.0
    full /= full.sum() + np.pi * 9.0 / (1 + 30.5**2 / 9.0)  # with the analytic light beyond the stamp
    short = full[20:41, 20:41]
    kept = SkyPair({"r": make_image(64, 0.2, psf=short / short.sum())}, None)
    assert kept.flags["r"] & Flag.PSF_TRUNCATED
    assert kept.ground["r"].psf.sum() == pytest.approx(short.sum(), abs=0.015)


@pytest.mark.parametrize("half", [20, 30, 40])
@pytest.mark.parametrize("kind", ["diffraction", "moffat", "kolmogorov"])
def test_light_beyond_a_psf_stamp(make_image, kind, half):
    """Diffraction rings at the edge of a stamp do not decide how much light is beyond it."""
    galsim = pytest.importorskip("galsim")
    profile, scale, limit = {
        "diffraction": (galsim.Airy(lam_over_diam=0.12, obscuration=0.36), 0.1, 0.007),
        "moffat": (galsim.Moffat(3.0, fwhm=0.8), 0.2, 0.001),
        "kolmogorov": (galsim.Kolmogorov(fwhm=0.8), 0.2, 0.0025),
    }[kind]
    stamp = profile.drawImage(nx=2 * half + 1, ny=2 * half + 1, scale=scale, dtype=float).array
    pair = SkyPair({"r": make_image(96, scale, psf=stamp / stamp.sum())}, None)
    assert pair.ground["r"].psf.sum() == pytest.approx(stamp.sum(), abs=limit)


def _replaced(**parts):
    return lambda make: SkyPair({"r": make(64, 0.2, **parts)}, None)


SPECTRAL = WCS(naxis=2)
SPECTRAL.wcs.ctype = ["WAVE", "DEC--TAN"]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda make: SkyPair(None, None), ValueError, "both None"),
        (lambda make: SkyPair({}, None), ValueError, "empty dict.*pass None"),
        (lambda make: SkyPair([make(64, 0.2)], None), TypeError, "ground must be a dict"),
        (lambda make: SkyPair({"r": np.zeros((4, 4))}, None), TypeError, "must be an astropy NDData"),
        (lambda make: SkyPair({"rr": make(64, 0.2)}, None), ValueError, "unknown band 'rr'.*nearest.*'r'"),
        (lambda make: SkyPair({"VIS": make(64, 0.2)}, None), ValueError, "unknown band 'VIS' for survey Rubin"),
        (lambda make: SkyPair({"R": make(64, 0.2)}, None), ValueError, "unknown band 'R'.*nearest known names are 'r'"),
        (
            lambda make: SkyPair(None, {"Y": make(64, 0.1), "Y_E": make(64, 0.1)}),
            ValueError,
            "'Y_E' twice",
        ),
        (_replaced(wcs=None), ValueError, "has no WCS.*celestial"),
        (_replaced(wcs=SPECTRAL), ValueError, "no celestial WCS"),
        (_replaced(unit=None), ValueError, "has no unit: give"),
        (_replaced(unit=u.adu), ValueError, "does not convert to nJy: apply the photometric zero point"),
        (_replaced(unit=u.ABmag), ValueError, "logarithmic unit"),
        (_replaced(data=np.zeros((2, 64, 64)), uncertainty=None), ValueError, "must be 2-D"),
        (_replaced(uncertainty=StdDevUncertainty(np.ones((3, 3)))), ValueError, r"uncertainty has shape \(3, 3\)"),
        (_replaced(mask=np.zeros((3, 3), bool)), ValueError, r"mask has shape \(3, 3\)"),
        (_replaced(mask=np.ones((64, 64), bool)), ValueError, "every pixel is masked"),
        (_replaced(data=np.full((64, 64), np.nan)), ValueError, "every pixel is masked or not finite"),
        (_replaced(data=np.zeros((64, 64)), uncertainty=None), ValueError, "no measurable noise"),
        (_replaced(psf=np.ones((4, 4))), ValueError, "odd sides"),
        (_replaced(psf=np.full((5, 5), np.nan)), ValueError, "psf has NaN"),
        (_replaced(psf=np.zeros((5, 5))), ValueError, "psf has no positive flux"),
        (_replaced(psf="x"), TypeError, "psf holds <U1, not real numbers"),
        (_replaced(data=np.zeros((64, 64), complex)), TypeError, "holds complex128, not real numbers"),
    ],
)
def test_bad_input_is_named(make_image, build, error, message):
    with pytest.raises(error, match=message):
        build(make_image)


def test_surveys_are_checked(make_image):
    images = {"g": make_image(64, 0.2)}
    for surveys in (("Rubin", "Euclid"), None):
        with pytest.raises(TypeError, match="two Survey objects"):
            SkyPair(images, None, surveys=surveys)
    with pytest.raises(ValueError, match=r"\['g'\] are on both sides"):
        SkyPair(images, images, surveys=(RUBIN, HSC))


def test_no_overlap(make_image, make_wcs):
    far = make_image(64, 0.1, wcs=make_wcs(64, 0.1, center=(60.0, 10.0)))
    near = make_image(64, 0.2)
    with pytest.raises(ValueError, match=r"ground\['r'\] does not overlap the other side"):
        SkyPair({"r": near}, {"VIS": far})
    with pytest.raises(ValueError, match=r"ground\['i'\] does not overlap the other side"):
        SkyPair({"r": near, "i": far}, {"VIS": make_image(64, 0.1)})
    with pytest.raises(ValueError, match="does not overlap the other bands"):
        SkyPair({"r": near, "i": far}, None)


def test_cutout_keeps_pixels_and_sky(pair):
    center = pair.space["VIS"].wcs.pixel_to_world(40, 70)
    piece = pair.cutout(center, 3 * u.arcsec)
    for band, image in {**piece.ground, **piece.space}.items():
        parent = {**pair.ground, **pair.space}[band]
        ny, nx = image.data.shape
        x0, y0 = (int(round(float(v))) for v in parent.wcs.world_to_pixel(image.wcs.pixel_to_world(0, 0)))
        np.testing.assert_array_equal(image.data, parent.data[y0 : y0 + ny, x0 : x0 + nx])
        x, y = image.wcs.world_to_pixel(center)
        assert abs(x - (nx - 1) / 2) <= 1
        assert abs(y - (ny - 1) / 2) <= 1
    for far in (SkyCoord(10, 10, unit="deg"), SkyCoord(233.1, 28.1, unit="deg")):
        with pytest.raises(ValueError, match="no image of this pair covers"):
            pair.cutout(far, 3 * u.arcsec)
    for size in (-3 * u.arcsec, np.nan * u.arcsec, 3 * u.m, "large"):
        with pytest.raises(ValueError, match="size must be"):
            pair.cutout(center, size)
    with pytest.raises(TypeError, match="center must be one SkyCoord"):
        pair.cutout(SkyCoord([10, 20], [10, 20], unit="deg"), 3 * u.arcsec)


def test_footprint_holds_the_field(pair):
    polygon = pair.footprint[0]
    wcs = pair.ground["r"].wcs
    assert polygon.contains(wcs.pixel_to_world(10, 50), wcs)
    assert not polygon.contains(wcs.pixel_to_world(70, 50), wcs)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-5, 5))
def test_masked_pixels_hold_anything(make_image, scale, offset):
    """Whatever a masked pixel holds, the rest of the pair is the same."""
    mask = np.zeros((64, 64), bool)
    mask[10:12, 20:30] = True
    plain, wild = make_image(64, 0.2, mask=mask), make_image(64, 0.2, mask=mask)
    wild.data[mask] = wild.data[mask] * scale + offset
    one, two = (SkyPair({"r": image}, None).ground["r"] for image in (plain, wild))
    np.testing.assert_array_equal(one.data[~mask], two.data[~mask])
    np.testing.assert_array_equal(one.mask, two.mask)


def test_a_new_survey_is_data(make_image):
    mine = Survey("Mine", (Band("w", 600 * u.nm, 300 * u.nm, 0.5 * u.arcsec, 26.0),), 0.15 * u.arcsec)
    pair = SkyPair({"w": make_image(64, 0.15)}, None, surveys=(mine, EUCLID))
    assert pair.bands == ("w",)


@pytest.mark.parametrize("survey", [RUBIN, EUCLID, HSC, HST_ACS])
def test_shipped_surveys_are_sane(survey):
    pivots = [band.pivot.to_value(u.nm) for band in survey.bands]
    assert pivots == sorted(pivots)
    assert all(20 < band.depth < 29 for band in survey.bands)
    assert all(band.psf_fwhm > 0.9 * survey.pixel_scale for band in survey.bands)
