# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Simulated PSFs, noise and sky follow their physics, and what is given of them differs as it says."""

from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from scipy.signal import fftconvolve
from scipy.special import j1

pytest.importorskip("galsim", reason="the simulator needs the extra 'sim'")
pytest.importorskip("speclite", reason="the simulator needs the extra 'sim'")

import rosetta.simulate.pair  # noqa: E402
from rosetta import EUCLID, PSF, RUBIN  # noqa: E402
from rosetta.images.moments import adaptive_moments, fourier_shift  # noqa: E402
from rosetta.simulate import IDEAL, REAL, Delivery, simulate_pair  # noqa: E402
from rosetta.simulate.background import sky_residual  # noqa: E402
from rosetta.simulate.given_psf import given_psf, stretched, with_wings  # noqa: E402
from rosetta.simulate.noise import Resampling, white_equivalent  # noqa: E402
from rosetta.simulate.optics import Telescope, aureole, seeing_disc  # noqa: E402
from rosetta.simulate.population import Scene  # noqa: E402
from rosetta.simulate.psf import FieldPSF  # noqa: E402


def field_psf(name, seed=1, fwhm=None):
    survey = RUBIN if name in RUBIN.band_names else EUCLID
    band = survey[name]
    width = band.psf_fwhm.to_value(u.arcsec) if fwhm is None else fwhm
    return FieldPSF(np.random.default_rng(seed), survey, band, survey is RUBIN, width, 50.0)


def beyond(psf, scale, radius):
    """Light beyond a radius (arcsec) of the central pixel."""
    y, x = (np.arange(n) - n // 2 for n in psf.shape)
    return psf[np.hypot(y[:, None], x) * scale > radius].sum()


def middle(array, side):
    y, x = (n // 2 for n in array.shape)
    return array[y - side // 2 : y + side // 2 + 1, x - side // 2 : x + side // 2 + 1]


# ------------------------------------------------------------------------------------------- true PSFs
def test_diffraction_of_an_annulus():
    """Encircled energy against the analytic pattern of an annular aperture (Born & Wolf, section 8.6.2)."""
    diameter, obscuration, wavelength = 1.2, 0.35, 700.0
    angle = np.arange(-150, 151) * 0.01
    light = Telescope(diameter, obscuration).pattern([wavelength], [[1.0]], angle)[0]
    radius = np.hypot(angle[:, None], angle)
    fine = np.linspace(1e-6, 1.5, 60001)
    x = np.pi * diameter * fine * np.pi / 180 / 3600 / (wavelength * 1e-9)
    amplitude = 2 * j1(x) / x - obscuration**2 * 2 * j1(obscuration * x) / (obscuration * x)
    # Peak per square arcsec: area of the aperture over the square of the wavelength.
    area = np.pi / 4 * diameter**2 * (1 - obscuration**2)
    peak = area / (wavelength * 1e-9) ** 2 * (np.pi / 180 / 3600) ** 2
    profile = peak * (amplitude / (1 - obscuration**2)) ** 2
    energy = np.concatenate([[0], np.cumsum(2 * np.pi * (fine * profile)[1:] * np.diff(fine))])
    for limit in (0.08, 0.15, 0.3, 0.6, 1.2):
        found = light[radius < limit].sum() * 0.01**2
        assert found == pytest.approx(np.interp(limit, fine, energy), abs=0.01), limit
    assert light.max() == pytest.approx(peak, rel=0.01)


def test_struts_make_spikes():
    angle = np.arange(-40, 41) * 0.1
    options = {"wavelengths": np.linspace(550, 880, 12), "weights": np.ones((1, 12)), "angle": angle}
    bare, spiked = (Telescope(1.2, 0.35, strut).pattern(**options)[0] for strut in (0.0, 0.02))
    radius, turn = np.hypot(angle[:, None], angle), np.arctan2(angle[:, None], angle)
    ring = (radius > 2) & (radius < 4)
    sixth = np.cos(6 * turn[ring])  # three struts: six spikes
    across = [abs(np.sum(light[ring] * sixth)) / light[ring].sum() for light in (bare, spiked)]
    assert across[1] > 0.2 > 4 * across[0]


def test_scattered_light_and_seeing_hold_the_light_they_state():
    r = np.linspace(0, 10, 20001)
    assert np.trapezoid(2 * np.pi * r * aureole(r, 1.0, 10.0), r) == pytest.approx(1, abs=1e-3)
    # A power law of slope 2.5 between its two radii.
    slope = np.log(aureole(4.0, 0.2, 1e4) / aureole(2.0, 0.2, 1e4)) / np.log(2)
    assert slope == pytest.approx(-2.5, abs=0.05)
    r = np.geomspace(1e-3, 30, 20001)
    for spread in (0.1, 0.4):
        light = seeing_disc(r, 0.8, spread)
        assert np.trapezoid(2 * np.pi * r * light, r) == pytest.approx(1, abs=5e-3)
        assert light[np.argmin(abs(r - 0.4))] == pytest.approx(light[0] / 2, rel=0.01)


@pytest.mark.parametrize("name, width", [("r", 0.83), ("VIS", 0.18), ("J_E", 0.48)])
def test_psfs_have_wings_and_nothing_is_lost(name, width):
    field = field_psf(name)
    psf, scale = field.image(), field.pixel_scale
    assert psf.sum() == pytest.approx(1)
    assert 0.015 < beyond(psf, scale, 3.0) < 0.04
    assert beyond(psf, scale, 10.2) < 1e-4
    _, covariance = adaptive_moments(middle(psf, 31))
    # Of a Gaussian of the same adaptive moments; real ones are narrower than that by their cusp, or by pixels.
    assert 2.3548 * np.linalg.det(covariance) ** 0.25 * scale == pytest.approx(width, rel=0.15)
    # A point source drawn with the core alone: `spread` moves light and keeps all of it.
    image = np.zeros((301, 301))
    image[150, 150] = 1.0
    assert field.spread(image).sum() == pytest.approx(1, abs=1e-9)


def test_spikes_go_on_in_the_wings():
    """The pattern of the struts has one direction within the core and beyond it."""
    field = field_psf("VIS", seed=4)
    psf = field.image()
    y, x = (np.arange(n) - n // 2 for n in psf.shape)
    radius, turn = np.hypot(y[:, None], x) * 0.1, np.arctan2(y[:, None], x)
    angle = [
        np.angle(np.sum((psf * radius**3 * np.exp(6j * turn))[(radius > low) & (radius < high)])) / 6
        for low, high in ((1.2, 2.2), (3.2, 5.0))
    ]
    apart = (angle[1] - angle[0] + np.pi / 6) % (np.pi / 3) - np.pi / 6
    assert abs(apart) < np.radians(4)


def test_red_sources_are_wider_in_space():
    field = field_psf("VIS")
    size = [np.linalg.det(adaptive_moments(middle(field.coloured(slope).image(), 31))[1]) for slope in (-1.0, 1.0, 5.0)]
    assert size[0] < size[1] < size[2]
    assert 1.01 < (size[2] / size[0]) ** 0.25 < 1.1


def test_ground_psf_changes_in_steps_and_space_psf_smoothly():
    ground, space = field_psf("i"), field_psf("VIS")
    at = np.linspace(-45, 45, 19)
    width = [np.linalg.det(adaptive_moments(middle(ground.image(east, 0.0), 31))[1]) for east in at]
    steps = np.abs(np.diff(width)) > 1e-6 * width[0]
    assert 2 <= steps.sum() <= 4  # borders of 30" cells along 90"
    assert not np.allclose(space.image(0, 0), space.image(5, 0), atol=1e-6)

    def to_pixel(east, north):
        return 250 - east / 0.2, 260 + north / 0.2

    psf = ground.everywhere(to_pixel)
    for east, north in ((-38.0, 21.0), (4.0, 4.0), (40.0, -44.0)):
        np.testing.assert_allclose(psf.at(*to_pixel(east, north)), ground.image(east, north), atol=1e-9)
    psf = space.everywhere(to_pixel)
    for east, north in ((-38.0, 21.0), (4.0, 4.0), (50.0, -50.0)):
        np.testing.assert_allclose(psf.at(*to_pixel(east, north)), space.image(east, north), atol=2e-4)


# ------------------------------------------------------------------------------------------- given PSFs
@pytest.fixture(scope="module")
def truth():
    """The PSF of a field, at nodes 250 pixels apart."""
    field = field_psf("r")
    return field.everywhere(lambda east, north: (250 - east / 0.2, 250 + north / 0.2))


def given(truth, kind, seed=0, **options):
    delivery = replace(REAL, **{f"psf_{name}": float(name == kind) for name in REAL.psf_chances}, **options)
    psf, said = given_psf(np.random.default_rng(seed), truth, (500, 500), delivery)
    assert said == kind
    np.testing.assert_allclose(psf.light, 1.0, atol=1e-9)
    return psf


def test_given_psf_differs_as_stated(truth):
    assert given(truth, "exact") is truth
    cut = given(truth, "cut", seed=3)
    side = cut.cells.shape[1]
    assert 21 <= side <= 47 and side % 2 == 1 and len(cut.cells) == len(truth.cells)
    inside = middle(truth.cells[0], side)
    assert inside.sum() < 0.995
    np.testing.assert_allclose(cut.cells[0] * inside.sum(), inside, atol=1e-12)
    constant = given(truth, "constant")
    np.testing.assert_array_equal(constant.at(0, 0), truth.at(249.5, 249.5))
    assert np.abs(constant.at(0, 0) - truth.at(30, 460)).max() > 1e-4


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_given_width_is_off(truth, factor):
    psf = truth.at(250, 250)
    width = [np.linalg.det(adaptive_moments(middle(p, 41))[1]) ** 0.25 for p in (psf, stretched(psf, factor))]
    assert width[1] / width[0] == pytest.approx(factor, abs=0.002)
    ratio = [
        np.linalg.det(adaptive_moments(middle(given(truth, "width", seed).at(250, 250), 41))[1]) ** 0.25 / width[0]
        for seed in range(12)
    ]
    assert 0.008 < np.std(ratio) < 0.04


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_given_wings_are_off(truth, factor):
    psf = truth.at(250, 250)
    changed = with_wings(psf, factor)
    light = [beyond(p, 0.2, 3.0) / middle(p, 5).sum() for p in (psf, changed)]
    assert light[1] / light[0] == pytest.approx(factor, rel=0.01)


def test_psf_from_stars_is_noisy(truth):
    """Its noise is that of the stars: independent of the truth's shape, the same in every pixel."""
    one, two = given(truth, "stars", seed=1), given(truth, "stars", seed=2)
    side = min(one.cells.shape[1], two.cells.shape[1])
    corner = [middle(psf.cells[0], side)[:4].std() for psf in (one, two)]
    smooth = middle(truth.cells[0], side)[:4].std()
    assert max(corner) > 3 * smooth
    assert np.abs(one.cells.sum(axis=0)).max() < 2 * truth.cells[0].max()
    assert all((psf.cells < 0).any() for psf in (one, two))


# ------------------------------------------------------------------------------------------- noise and sky
@pytest.mark.parametrize("ratio, kernel", [(1, "linear"), (3, "linear"), (1, "lanczos3")])
def test_noise_is_correlated_as_by_its_kernel(ratio, kernel):
    resampling = Resampling(np.random.default_rng(0), ratio, kernel)
    noise = resampling.noise(np.random.default_rng(1), (900, 900))
    spectrum = np.abs(np.fft.rfft2(noise)) ** 2
    found = np.fft.irfft2(spectrum, noise.shape) / noise.size
    expected = resampling.autocovariance(4)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 3)):
        assert found[dy, dx] == pytest.approx(expected[4 + dy, 4 + dx], abs=0.01), (dy, dx)


def test_kernels_have_their_known_correlations():
    # One exposure at half a pixel in both axes: the mean of four, neighbours share two.
    half = Resampling(np.random.default_rng(0), 1, "linear", exposures=1)
    half._phases = np.array([[0.5, 0.5]])
    covariance = half.autocovariance(2)
    assert covariance[2, 2] == pytest.approx(0.25) and covariance[2, 3] == pytest.approx(0.125)
    # From pixels three times as large, over all phases, the triangle's own: a cubic spline.
    many = Resampling(np.random.default_rng(0), 3, "linear", exposures=400).autocovariance(6)
    across = many[6, 6:] / many[6, 6]
    distance = np.arange(7) / 3
    spline = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6) / (
        2 / 3
    )
    np.testing.assert_allclose(across, spline, atol=0.01)


@pytest.mark.parametrize("ratio, kernel", [(1, "none"), (1, "linear"), (3, "linear")])
def test_white_equivalent_is_the_scatter_of_the_matched_filter(ratio, kernel):
    y, x = np.mgrid[-15:16, -15:16]
    psf = np.exp(-0.5 * (x**2 + y**2) / 2.0**2)
    resampling = Resampling(np.random.default_rng(5), ratio, kernel)
    noise = resampling.noise(np.random.default_rng(6), (1500, 1500))
    flux = fftconvolve(noise, psf, mode="valid") / np.sqrt(np.sum(psf**2))
    assert flux.std() == pytest.approx(white_equivalent(resampling, psf / psf.sum()), rel=0.02)


def test_sky_residual_is_a_bowl_around_bright_sources():
    light = np.zeros((400, 400))
    y, x = np.mgrid[:400, :400]
    light += 1e3 * np.exp(-np.hypot(x - 200, y - 150) / 15)
    delivery = replace(IDEAL, bowl=0.25)
    residual = sky_residual(np.random.default_rng(0), light, 2.0, 0.1, delivery)
    assert -0.3 * 2 < residual.min() < -0.05 * 2
    deepest = np.unravel_index(residual.argmin(), residual.shape)
    assert np.hypot(deepest[0] - 150, deepest[1] - 200) < 30
    assert np.abs(residual[:, :20]).max() < 0.2 * abs(residual.min())
    assert not sky_residual(np.random.default_rng(0), light, 2.0, 0.1, IDEAL).any()
    level = [
        sky_residual(np.random.default_rng(s), light, 1.0, 0.1, replace(IDEAL, pedestal=0.05)).mean() for s in range(40)
    ]
    assert np.std(level) == pytest.approx(0.05, rel=0.4)


# ------------------------------------------------------------------------------------------- whole pairs
OPTIONS = {"seed": 6, "size": 16 * u.arcsec, "bands": ("i", "VIS", "H_E"), "return_psf": True}


@pytest.fixture(scope="module")
def ideal():
    return simulate_pair(**OPTIONS, delivery=IDEAL, defects=False)


def test_same_seed_same_sky_whatever_the_delivery(ideal):
    clean = replace(REAL, pedestal=0.0, gradient=0.0, bowl=0.0)
    pair, truth, psf = simulate_pair(**OPTIONS, delivery=clean, defects=False, noise=False)
    again, _, _ = simulate_pair(**OPTIONS, delivery=IDEAL, defects=False, noise=False)
    assert all(np.array_equal(truth[name], ideal[1][name]) for name in ("flux_VIS", "d_dec", "half_light_radius"))
    assert truth.meta["delivery"]["psf_cut"] == REAL.psf_cut
    for _, name, image in pair.images():
        np.testing.assert_array_equal(psf[name].cells, ideal[2][name].cells)
        other = dict((band, image) for _, band, image in again.images())[name]
        np.testing.assert_array_equal(image.data, other.data)
    # The noise is of the same stream: that of H_E, which is resampled in both, is the same.
    noisy, _, _ = simulate_pair(**OPTIONS, delivery=clean, defects=False)
    np.testing.assert_array_equal(noisy.space["H_E"].data, ideal[0].space["H_E"].data)
    assert not np.array_equal(noisy.space["VIS"].data, ideal[0].space["VIS"].data)


def test_ideal_gives_the_true_psf(ideal):
    pair, _, psf = ideal
    for _, name, image in pair.images():
        assert isinstance(psf[name], PSF) and image.meta["psf_given"] == "exact"
        np.testing.assert_allclose(psf[name].light, 1.0, atol=1e-9)
        stated, true = pair.psf(name).at(20, 20), psf[name].at(20, 20)
        # A pair allows for light beyond the stamp; of wings that end within it there is next to none.
        np.testing.assert_allclose(stated, true, atol=2e-3 * true.max(), err_msg=name)


def test_a_matched_filter_with_the_true_psf_recovers_the_flux(monkeypatch):
    """The flux of a star anywhere in the field, wings included, from the PSF that is given for its place."""
    pivot = np.array([band.pivot.to_value(u.nm) for survey in (RUBIN, EUCLID) for band in survey.bands])
    star = Scene(
        east=np.array([9.3]), north=np.array([-6.7]), redshift=np.zeros(1), family=np.array(["star"]),
        motion=np.zeros((1, 2)), owner=np.zeros(1, int), sersic=np.zeros(1), radius=np.zeros(1),
        shape=np.zeros((1, 2)), offset=np.zeros((1, 2)), flux=1e3 * pivot[None],
    )  # fmt: skip
    monkeypatch.setattr(rosetta.simulate.pair, "draw_scene", lambda *args, **options: star)
    pair, truth = simulate_pair(
        seed=21, size=51.2 * u.arcsec, bands=("r", "J_E"), delivery=IDEAL, noise=False, defects=False
    )
    for _, name, image in pair.images():
        x, y = (float(v[0]) for v in image.wcs.world_to_pixel(truth["sky_centroid"]))
        psf = pair.psf(name).at(x, y)
        half = psf.shape[0] // 2
        assert psf.sum() == pytest.approx(1, abs=2e-3)
        psf = fourier_shift(psf, x - round(x), y - round(y))
        data = image.data[round(y) - half : round(y) + half + 1, round(x) - half : round(x) + half + 1].astype(float)
        flux = np.sum(data * psf) / np.sum(psf**2)
        assert flux == pytest.approx(truth[f"flux_{name}"][0].value, rel=2e-3), name
        np.testing.assert_allclose(data / flux, psf, atol=5e-3 * psf.max())


def test_real_images_say_what_was_drawn():
    pair, _ = simulate_pair(seed=8, size=20 * u.arcsec, bands=("g", "r", "VIS", "H_E"), density=0.3)
    assert {image.meta["interpolation"] for _, _, image in pair.images()} == {"lanczos3", "linear"}
    assert {image.meta["psf_given"] for _, _, image in pair.images()} <= set(REAL.psf_chances)
    assert {image.meta["variance_given"] for _, _, image in pair.images()} <= {"pixel scatter", "white equivalent"}


@pytest.mark.parametrize("scatter", [0.0, 1.0])
def test_variance_is_the_stated_one(scatter):
    delivery = replace(IDEAL, correlated=1.0, scatter_variance=scatter, sky_variance=1.0)
    options = {"seed": 2, "size": 25.6 * u.arcsec, "bands": ("VIS", "J_E"), "density": 0.1, "defects": False}
    pair, _ = simulate_pair(**options, delivery=delivery)
    bare, _ = simulate_pair(**options, delivery=delivery, noise=False)
    for _, name, image in pair.images():
        variance = image.uncertainty.array
        assert np.ptp(variance) < 1e-5 * variance.max()  # of the sky alone
        light = bare.space[name].data
        noise = (image.data - light)[light < 0.05 * np.sqrt(variance[0, 0])]
        ratio = noise.std() / np.sqrt(variance[0, 0])
        if scatter:
            assert ratio == pytest.approx(1, abs=0.03), name
        else:
            assert ratio < (0.9 if name == "VIS" else 0.35), name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bowl": -0.1}, "bowl is -0.1: it must be finite and not negative"),
        ({"pedestal": np.nan}, "pedestal is nan"),
        ({"psf_exact": 0.5}, "psf_exact to psf_wings sum to 0.5: they are chances and must sum to 1"),
    ],
)
def test_bad_delivery(options, message):
    with pytest.raises(ValueError, match=message):
        Delivery(**options)
