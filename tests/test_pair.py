# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""SkyPair: what it accepts, what it refuses and how, and that it never touches its inputs."""

import copy
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import ICRS, SkyCoord
from astropy.nddata import CCDData, InverseVariance, NDData, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.utils.masked import Masked
from astropy.wcs import WCS, Sip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rosetta import EUCLID, HSC, HST_ACS, PSF, RUBIN, Flag, SkyPair, Survey
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
        (lambda make: SkyPair({"VIS": make(64, 0.2)}, None), ValueError,
         "ground has band 'VIS', which is one of Euclid's: give it as space"),
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


# ---------------------------------------------------------------------------- images that cannot be
CGS, SI = u.erg / u.s / u.cm**2 / u.Hz, u.W / u.m**2 / u.Hz


@pytest.mark.parametrize("unit", [u.Jy, CGS, SI])
@pytest.mark.parametrize("kind", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
@pytest.mark.parametrize("own_unit", [True, False])
def test_small_units_lose_nothing(make_image, unit, kind, own_unit):
    """Squares of single-precision numbers in cgs are zero, those of double precision are not."""
    sigma, power = 3.0, {StdDevUncertainty: 1, VarianceUncertainty: 2, InverseVariance: -2}[kind]
    image, factor = make_image(64, 0.2, sigma=sigma), u.nJy.to(unit)
    dtype = np.float32 if kind is StdDevUncertainty else np.float64
    error = kind(np.full((64, 64), (sigma * factor) ** power, dtype), unit=unit**power if own_unit else None)
    other = NDData((image.data * factor).astype(np.float32), uncertainty=error, unit=unit, wcs=image.wcs)
    found = SkyPair({"r": other}).ground["r"]
    np.testing.assert_allclose(found.uncertainty.array, sigma**2, rtol=1e-6)
    np.testing.assert_allclose(found.data, image.data, rtol=1e-6)
    assert not found.mask.any()


def test_variances_that_single_precision_cannot_hold_are_refused(make_image):
    variance = VarianceUncertainty(np.full((64, 64), u.nJy.to(CGS) ** 2, np.float32))
    image = make_image(64, 0.2)
    image = NDData(image.data * u.nJy.to(CGS), uncertainty=variance, unit=CGS, wcs=image.wcs)
    with pytest.raises(ValueError, match="in single precision a variance in cgs or SI units is zero"):
        SkyPair({"r": image})


@pytest.mark.parametrize("masked", [lambda a, m: np.ma.array(a, mask=m), lambda a, m: Masked(a, mask=m)])
def test_masks_of_masked_arrays_count(make_image, masked):
    where = np.zeros((64, 64), bool)
    where[3, 5] = True
    data = np.where(where, 1e20, np.random.default_rng(0).normal(size=(64, 64)))
    unknown = masked(np.zeros((64, 64), bool), where)
    for image in (make_image(64, 0.2, data=masked(data, where)), make_image(64, 0.2, mask=unknown)):
        np.testing.assert_array_equal(SkyPair({"r": image}).ground["r"].mask, where)


@pytest.mark.parametrize("fill", [1e20, -99.0, np.nan, 0.0])
@pytest.mark.parametrize("masked", [lambda a, m: np.ma.array(a, mask=m), lambda a, m: Masked(a, mask=m)])
def test_masked_psf_pixels_are_refused(make_image, masked, fill):
    y, x = np.mgrid[-7:8, -7:8]
    good = np.exp(-(x**2 + y**2) / 8)
    corner = (x == -7) & (y == -7)
    stamp, whole = masked(np.where(corner, fill, good), corner), masked(good, np.zeros((15, 15), bool))
    message = "has masked pixels: fill them, for instance with the PSF mirrored"
    for make in (
        lambda: SkyPair({"r": make_image(64, 0.2, psf=stamp)}),
        lambda: SkyPair({"r": make_image(64, 0.2)}, psf={"r": stamp}),
        lambda: SkyPair({"r": make_image(64, 0.2)}, psf={"r": lambda x, y: stamp if x > 30 else whole}),
        lambda: PSF(stamp),
        lambda: PSF.on_grid([[whole, stamp]], [0, 63], [0]),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    found, expected = (SkyPair({"r": make_image(64, 0.2, psf=psf)}).psf("r").cells for psf in (whole, good))
    np.testing.assert_array_equal(found, expected)


def test_a_psf_object_may_stand_in_an_image(make_image):
    """It is kept for every place: in a cutout, and in a pair made of the images of another."""
    y, x = np.mgrid[-7:8, -7:8]
    cells = [[np.exp(-(x**2 + y**2) / (2 * s**2)) for s in (1.5, 2.5)]]
    psf = PSF.on_grid(cells, [0, 63], [30])
    pair = SkyPair({"r": make_image(64, 0.2, psf=psf)})
    assert not pair.psf("r").constant
    assert pair.ground["r"].psf.shape == (15, 15)
    again = SkyPair(dict(pair.ground))
    np.testing.assert_allclose(again.psf("r").at(50, 3), pair.psf("r").at(50, 3), rtol=1e-12)
    center = pair.ground["r"].wcs.pixel_to_world(40, 40)
    piece = pair.cutout(center, 6 * u.arcsec)
    x0, _ = np.round(pair.ground["r"].wcs.world_to_pixel(piece.ground["r"].wcs.pixel_to_world(0, 0)))
    assert x0 > 20
    np.testing.assert_allclose(piece.psf("r").at(5, 3), pair.psf("r").at(5 + x0, 3), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 0.0049, 5.1, 60.0, 720.0])
def test_pixel_scales_that_cannot_be_are_named(make_image, scale):
    with pytest.raises(ValueError, match=f"a pixel is {scale:.3g} arcsec wide, only 0.005 to 5 can be"):
        SkyPair({"r": make_image(64, scale)})
    for allowed in (0.0051, 4.9):
        assert SkyPair({"r": make_image(64, allowed)}).bands == ("r",)


def _tan(**cards):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53.1, -28.1], [32, 32]
    wcs.wcs.cd = np.diag([-0.2, 0.2]) / 3600
    for name, value in cards.items():
        setattr(wcs.wcs, name, value)
    return wcs


def _sip(coefficient):
    wcs, a = _tan(ctype=["RA---TAN-SIP", "DEC--TAN-SIP"]), np.zeros((3, 3))
    a[2, 0] = coefficient
    wcs.sip = Sip(a, a.T, None, None, wcs.wcs.crpix)
    return wcs


@pytest.mark.parametrize(
    ("wcs", "message"),
    [
        (_tan(cd=np.array([[-0.2, 0], [0, 2.0]]) / 3600), "pixels from 0.2 to 2 arcsec wide in one image"),
        (_tan(cd=np.array([[-0.2, 0.2], [0.2, -0.2 + 1e-9]]) / 3600), "only 0.005 to 5 can be"),
        (_sip(0.01), "pixels from .* arcsec wide in one image: repair it"),
    ],
)
def test_distorted_pixels_are_refused(make_image, wcs, message):
    with pytest.raises(ValueError, match=rf"ground\['r'\]: its WCS .*{message}"):
        SkyPair({"r": make_image(64, 0.2, wcs=wcs)})
    assert SkyPair({"r": make_image(64, 0.2, wcs=_sip(5e-4))}).bands == ("r",)


def test_a_wcs_without_positions_or_inverse_is_refused(make_image):
    gwcs = pytest.importorskip("gwcs")
    from astropy.modeling import models

    shift = models.Shift(-32) & models.Shift(-32)
    sky = models.Scale(-0.2 / 3600) & models.Scale(0.2 / 3600) | models.Pix2Sky_TAN()
    sky = shift | sky | models.RotateNative2Celestial(53.1, -28.1, 180)
    frames = (
        gwcs.coordinate_frames.Frame2D(name="detector", axes_order=(0, 1), unit=(u.pix, u.pix)),
        gwcs.coordinate_frames.CelestialFrame(reference_frame=ICRS(), unit=(u.deg, u.deg), name="sky"),
    )
    wcs = gwcs.WCS([(frames[0], sky), (frames[1], None)])
    wcs.bounding_box = ((-0.5, 63.5), (-0.5, 63.5))
    assert SkyPair({"r": make_image(64, 0.2, wcs=wcs)}).bands == ("r",)
    wcs.bounding_box = ((9.5, 63.5), (-0.5, 63.5))
    with pytest.raises(ValueError, match="gives no position on 15% of the image, for instance at pixel"):
        SkyPair({"r": make_image(64, 0.2, wcs=wcs)})
    wcs.bounding_box = None
    wcs.world_to_pixel_values = lambda *world: (_ for _ in ()).throw(NotImplementedError("no inverse"))
    with pytest.raises(ValueError, match="does not convert pixels to the sky and back"):
        SkyPair({"r": make_image(64, 0.2, wcs=wcs)})


@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (0, 64), (4, 4)])
def test_strips_are_refused(make_image, shape):
    image = make_image(64, 0.2, data=np.zeros(shape), uncertainty=None)
    with pytest.raises(ValueError, match=r"has shape \(.*\): give an image of at least 5 pixels along each side"):
        SkyPair({"r": image})


def test_images_of_too_many_pixels_are_refused(make_image):
    """Before anything is allocated: this one takes no memory."""
    image = make_image(64, 0.2, data=np.broadcast_to(np.float32(0), (70000, 70000)), uncertainty=None)
    with pytest.raises(ValueError, match=r"2\*\*31 pixels or more: cut it into parts"):
        SkyPair({"r": image})


# ---------------------------------------------------------------------------- surveys
GOOD = {"name": "X", "pivot": 700 * u.nm, "width": 100 * u.nm, "psf_fwhm": 1 * u.arcsec, "depth": 25.0}


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("name", 3, TypeError, "name of a band must be a string"),
        ("name", "", ValueError, "name of a band is '': use 1 to 40 letters"),
        ("name", "g band", ValueError, "letters, digits and '_'"),
        ("name", "λ", ValueError, "letters, digits and '_'"),
        ("pivot", 700, TypeError, "pivot of band 'X' must be a Quantity"),
        ("pivot", 700 * u.s, ValueError, "pivot of band 'X' has unit s, which does not convert to nm"),
        ("pivot", [700, 800] * u.nm, ValueError, "pivot of band 'X' must be one value"),
        ("width", 0 * u.nm, ValueError, "width of band 'X' is 0.0 nm: it must be positive"),
        ("psf_fwhm", np.nan * u.arcsec, ValueError, "psf_fwhm of band 'X' is nan arcsec"),
        ("psf_fwhm", 3 * u.pix, ValueError, "psf_fwhm of band 'X' has unit pix"),
        ("depth", np.inf, ValueError, "depth of band 'X' is inf: it must be finite"),
        ("depth", 25 * u.ABmag, TypeError, "depth of band 'X' must be a number"),
        ("depth", None, TypeError, "depth of band 'X' must be a number"),
        ("aliases", "Y", TypeError, "aliases of band 'X' must be a tuple of strings"),
        ("aliases", ("",), ValueError, "aliases of band 'X' has an empty string"),
        ("sky", "dark", TypeError, "sky of band 'X' must be a number"),
        ("native_pixel", -1 * u.arcsec, ValueError, "native_pixel of band 'X'"),
    ],
)
def test_bands_are_checked(field, value, error, message):
    with pytest.raises(error, match=message):
        Band(**{**GOOD, field: value})
    assert Band(**GOOD, aliases=["x+"], sky=21, native_pixel=0.1 * u.deg).aliases == ("x+",)


U, G = RUBIN.bands[:2]


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("name", None, TypeError, "name of a survey must be a string"),
        ("name", " ", ValueError, "name of a survey is ' '"),
        ("bands", U, TypeError, "bands of survey 'S' must be a tuple of Band"),
        ("bands", ("u", "g"), TypeError, "bands of survey 'S' must be a tuple of Band"),
        ("bands", (), ValueError, "bands of survey 'S' is empty"),
        ("bands", (G, U), ValueError, "not in order of wavelength: put 'u' .* before 'g'"),
        ("bands", (U, U), ValueError, "'u' and 'u' are one name in FITS files"),
        ("bands", (U, replace(G, name="U")), ValueError, "'u' and 'U' are one name in FITS files"),
        ("bands", (U, replace(G, aliases=("u",))), ValueError, "'u' means 'u' and 'g'"),
        ("bands", (replace(U, aliases=("a",)), replace(G, aliases=("a",))), ValueError, "'a' means 'u' and 'g'"),
        ("pixel_scale", 0.2, TypeError, "pixel_scale of survey 'S' must be a Quantity"),
        ("pixel_scale", 0 * u.arcsec, ValueError, "pixel_scale of survey 'S' is 0.0 arcsec"),
        ("bad_planes", "BAD", TypeError, "bad_planes of survey 'S' must be a tuple of strings"),
        ("saturation", np.nan, ValueError, "saturation of survey 'S' is nan"),
    ],
)
def test_a_survey_is_checked(field, value, error, message):
    good = {"name": "S", "bands": (U, G), "pixel_scale": 0.2 * u.arcsec}
    with pytest.raises(error, match=message):
        Survey(**{**good, field: value})
    assert Survey(**{**good, "bands": [U, G]}) == Survey(**good)


def test_some_of_the_bands(make_image):
    ground, space = ({name: make_image(n, 9.6 / n) for name in names} for names, n in (("rg", 48), (("VIS", "Y"), 96)))
    pair = SkyPair(ground, space)
    some = pair.select(["Y", "r"])
    assert some.bands == ("r", "Y_E")
    assert some.ground["r"] is pair.ground["r"]
    assert set(some.flags) == {"r", "Y_E"}
    assert pair.select(["VIS"]).ground is None
    with pytest.raises(ValueError, match="bands: 'u' is not in this pair, which has g, r, VIS, Y_E"):
        pair.select(["u"])
    with pytest.raises(ValueError, match="bands is empty: give at least one of g, r, VIS, Y_E"):
        pair.select([])
    with pytest.raises(TypeError, match="bands must be a sequence of names, got the string 'r'"):
        pair.select("r")


def test_other_psfs(make_image):
    """What was assumed of the noise stays true, the pixels stay the same arrays' values, and others keep their PSF."""
    pair = SkyPair({"r": make_image(48, 0.2, uncertainty=None)}, {"Y": make_image(96, 0.1, psf=np.ones((3, 3)))})
    y, x = np.mgrid[-8:9, -8:9]
    psf = np.exp(-(x**2 + y**2) / 6.0)
    new = pair.with_psf({"r": psf})
    assert pair.flags["r"] == Flag.VARIANCE_ESTIMATED | Flag.PSF_NOMINAL and "PSF_NOMINAL" in pair._repr_html_()
    assert new.flags["r"] == Flag.VARIANCE_ESTIMATED
    np.testing.assert_array_equal(new.ground["r"].data, pair.ground["r"].data)
    np.testing.assert_allclose(new.ground["r"].psf, psf / psf.sum(), rtol=1e-5)  # a little light is beyond the stamp
    assert new.space["Y_E"] is pair.space["Y_E"]
    assert pair.ground["r"].psf is None
    assert new.with_psf({"Y": psf}).space["Y_E"].psf.shape == (17, 17)
    with pytest.raises(ValueError, match="psf: 'g' is not in this pair, which has r, Y_E"):
        pair.with_psf({"g": psf})
    with pytest.raises(ValueError, match=r"ground\['r'\]: psf must be 2-D with odd sides"):
        pair.with_psf({"r": psf[:2]})


def test_images_say_which_survey_they_are_of(make_image):
    """A pair of the default surveys is called what its images say; one that was made with others, what those are."""
    ground = {"g": make_image(48, 0.2, meta={"survey": "DES"}), "r": make_image(48, 0.2, meta={"survey": "HSC"})}
    space = {"VIS": make_image(96, 0.1, meta={"INSTRUME": "VIS"})}
    pair = SkyPair(ground, space)
    assert (pair.survey_name("ground"), pair.survey_name("space")) == ("DES, HSC", "VIS")
    assert repr(pair).startswith("<SkyPair DES, HSC: g 48x48")
    assert SkyPair({"g": make_image(48, 0.2)}).survey_name("ground") == "Rubin"
    assert SkyPair(ground, surveys=(HSC, EUCLID)).survey_name("ground") == "HSC"
