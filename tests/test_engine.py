# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Rendering of mixtures and the linear solve."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosetta.deblending import band_fit, merging, shapes
from rosetta.deblending.chance_neighbours import log_odds
from rosetta.deblending.config import MergingConfig
from rosetta.deblending.engine import fluxes, rendering, shape_fit
from rosetta.deblending.engine.config import EngineConfig
from rosetta.deblending.engine.design import Design
from rosetta.deblending.engine.engine import SparseEngine
from rosetta.deblending.engine.fluxes import WhiteNoise
from rosetta.deblending.engine.placement import Placement
from rosetta.deblending.sky_plane import SkyPlane
from rosetta.detection.watershed import persistent_watershed
from rosetta.images.cache import cached_by_pixels
from rosetta.images.moments import adaptive_moments
from rosetta.images.psf import PSF
from rosetta.images.psf_core import psf_core
from rosetta.simulate.mixtures import sersic_mixture


def gaussian_psf(sigma, half=20):
    y, x = np.indices((2 * half + 1, 2 * half + 1)) - half
    psf = np.exp(-0.5 * (x**2 + y**2) / sigma**2)
    return psf / psf.sum()


def disc(scale, ratio=0.5, angle=0.3):
    """Three Gaussians of one ellipticity."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = turn @ np.diag([1.0, ratio**2]) @ turn.T
    out = np.zeros((3, 6))
    out[:, 0] = 0.3, 0.5, 0.2
    for row, width in zip(out, (0.5, 1.0, 1.8), strict=True):
        row[3:] = (scale * width) ** 2 * shape[[0, 0, 1], [0, 1, 1]]
    return out


def grid_jacobian(scale, angle, flip):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag([-1.0 if flip else 1.0, 1.0]) / scale


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0, 2 * np.pi), st.booleans(), st.floats(0.05, 0.4),
    st.floats(-0.2, 0.2),
)
def test_render_is_the_analytic_gaussian(dx, dy, angle, flip, width, shift):
    sigma = 1.6  # pixels: a well-sampled PSF
    light = np.array([[[1.0, shift, -shift, width**2, 0.3 * width**2, 0.6 * width**2]]])
    jacobian = grid_jacobian(0.2, angle, flip)
    xy = np.array([[30 + dx, 40 + dy]])
    (group,) = rendering.render(light, xy, jacobian[None], PSF(gaussian_psf(sigma)), sizes=np.array([63]))
    covariance = jacobian @ np.array([[1, 0.3], [0.3, 0.6]]) @ jacobian.T * width**2 + np.eye(2) * sigma**2
    centre = xy[0] + jacobian @ [shift, -shift]
    y, x = np.indices((63, 63))
    d = np.stack([x + group.corner[0, 0] - centre[0], y + group.corner[0, 1] - centre[1]], -1)
    expected = np.exp(-0.5 * np.einsum("yxi,ij,yxj->yx", d, np.linalg.inv(covariance), d))
    expected /= 2 * np.pi * np.sqrt(np.linalg.det(covariance))
    np.testing.assert_allclose(group.values[0], expected, atol=2e-3 * expected.max())


@pytest.mark.parametrize("scale", [0.02, 0.3, 2.0])
def test_stamps_conserve_flux(scale):
    psf = PSF(gaussian_psf(2.0))
    (group,) = rendering.render(disc(scale)[None], np.array([[50.3, 49.6]]), grid_jacobian(0.1, 0, True)[None], psf)
    assert group.values.sum() == pytest.approx(1.0, abs=1e-4)
    edge = np.abs(group.values[0][[0, -1]]).max()
    assert edge < 2e-3 * group.values.max()  # the stamp is large enough


def test_two_grids_see_the_same_flux_and_place():
    light, psf = disc(0.25)[None], gaussian_psf(1.8)
    for scale in (0.1, 0.2):
        jacobian = grid_jacobian(scale, 0, True)
        (group,) = rendering.render(light, np.array([[20.25, 31.5]]), jacobian[None], PSF(psf))
        y, x = np.indices(group.values.shape[1:])
        centre = [(group.values[0] * v).sum() for v in (x + group.corner[0, 0], y + group.corner[0, 1])]
        np.testing.assert_allclose(centre, [20.25, 31.5], atol=2e-3)


def test_derivatives_of_stamps_are_those_of_finite_differences():
    """Centre, size, shear and weights, under a PSF that the pixels undersample and one that they do not."""
    parameters = shapes.base_parameters(np.array([0.1, 0.4]), np.array([0.3, 0.6]), np.array([0.4, 2.0]))
    xy, jacobian = np.array([[30.2, 40.4], [33.7, 28.1]]), np.tile(grid_jacobian(0.1, 0.2, True), (2, 1, 1))
    light, sizes = shapes.mixture(parameters), np.array([63, 63])
    for sigma in (0.7, 1.8):
        psf, step = PSF(gaussian_psf(sigma)), 1e-3
        slopes = {}
        for stamps in rendering.draw(light, shapes.tangents(parameters, light), xy, jacobian, psf, sizes):
            slopes |= dict(zip(stamps.index, stamps.slopes, strict=True))
        for d, row in enumerate(shapes.DIRECTIONS):
            more, less = (
                rendering.render(shapes.mixture(parameters + s * row), xy, jacobian, psf, sizes=sizes)
                for s in (step, -step)
            )
            expected = (more[0].values - less[0].values).astype(float) / (2 * step)
            for i, difference in zip(more[0].index, expected, strict=True):
                scale = np.abs(difference).max()
                np.testing.assert_allclose(slopes[i][d], difference, atol=0.06 * scale + 2e-4)


def test_evaluate_is_a_template():
    image = rendering.evaluate(disc(0.3))
    assert image.sum() == pytest.approx(1.0) and image.min() >= 0 and image.shape[0] % 2 == 1


def test_evaluate_has_north_up_and_east_left():
    light = np.array([[1.0, 0.5, 0.25, 1e-4, 0, 1e-4]])  # east and north of the source
    image = rendering.evaluate(light, size=41)
    y, x = np.unravel_index(image.argmax(), image.shape)
    assert (x - 20, y - 20) == (-10, 5)


def test_half_light_radius_of_a_gaussian():
    light = np.array([[[1.0, 0, 0, 0.04, 0, 0.04]]])
    assert rendering.half_light_radius(light)[0] == pytest.approx(0.2 * np.sqrt(2 * np.log(2)), rel=1e-4)


def pixel_psf(sigma, dx, dy, half=12, fine=11):
    """A round Gaussian averaged over square pixels, centred at (dx, dy) from the central pixel."""
    axis = (np.arange((2 * half + 1) * fine) - ((2 * half + 1) * fine - 1) / 2) / fine
    x, y = (np.exp(-0.5 * ((axis - d) / sigma) ** 2).reshape(-1, fine).mean(1) for d in (dx, dy))
    return np.outer(y, x) / (2 * np.pi * sigma**2)


@pytest.mark.parametrize(("dx", "dy"), [(0.0, 0.0), (0.5, 0.5), (0.3, -0.4)])
def test_undersampled_psf_moves_by_part_of_a_pixel(dx, dy):
    sigma = 0.55  # of the light before the pixel: FWHM 1.5 pixels with it
    star = np.array([[[1.0, 0, 0, 0, 0, 0]]])
    (group,) = rendering.render(
        star, np.array([[30 + dx, 30 + dy]]), np.eye(2)[None] * 10, PSF(pixel_psf(sigma, 0, 0)), sizes=np.array([25])
    )
    x0, y0 = 30 - group.corner[0]
    expected = pixel_psf(sigma, dx, dy)[12 - 5 : 12 + 6, 12 - 5 : 12 + 6]
    found = group.values[0][y0 - 5 : y0 + 6, x0 - 5 : x0 + 6]
    np.testing.assert_allclose(found, expected, atol=0.005 * expected.max())
    assert group.values.sum() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_star_seen_by_a_diffracting_telescope(seed):
    """Anywhere in a pixel, against GalSim: Euclid's diffraction limit and jitter with a lean and an ellipticity."""
    galsim = pytest.importorskip("galsim", reason="the simulator needs the extra 'sim'")
    from rosetta.simulate.psf import draw_psf

    rng = np.random.default_rng(seed)
    airy = galsim.Airy(lam_over_diam=0.123, obscuration=0.4)
    blurred = galsim.Convolve(airy, galsim.Gaussian(sigma=0.045))
    turn, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.06)
    leaning = (1 - share) * blurred + share * blurred.shift(0.064 * np.cos(turn), 0.064 * np.sin(turn))
    optics = leaning.shear(**dict(zip(("g1", "g2"), rng.normal(scale=0.015, size=2))))
    for _ in range(4):
        psf = draw_psf(optics, 3.0, 0.1)
        x, y = adaptive_moments(psf)[0] - psf.shape[0] // 2
        optics = optics.shift(0.1 * x, -0.1 * y)  # east is -x
    psf, star = draw_psf(optics, 3.0, 0.1), np.array([[[1.0, 0, 0, 0, 0, 0]]])
    drawn = optics.drawImage(nx=psf.shape[1], ny=psf.shape[0], scale=0.1, dtype=float).array[:, ::-1]
    light = drawn[psf > 0].sum()  # within the circle that the PSF holds
    for dx, dy in ((0.5, 0.5), (-0.3, 0.4), (0.1, -0.5)):
        profile = optics.shift(-0.1 * dx, 0.1 * dy)
        expected = profile.drawImage(nx=21, ny=21, scale=0.1).array[:, ::-1] / light
        place = np.array([[30 + dx, 30 + dy]])
        (group,) = rendering.render(star, place, np.eye(2)[None] * 10, PSF(psf), sizes=np.array([63]))
        x0, y0 = 30 - group.corner[0]
        found = group.values[0][y0 - 10 : y0 + 11, x0 - 10 : x0 + 11]
        np.testing.assert_allclose(found, expected, atol=0.008 * expected.max())
        flux = (found * expected).sum() / (found * found).sum()
        assert flux == pytest.approx(1.0, abs=0.002)
        assert group.values.min() >= 0  # as the PSF
        assert group.values.sum() == pytest.approx(1.0, abs=1e-4)


def test_a_sampled_psf_is_shifted_as_it_is():
    assert psf_core(gaussian_psf(1.6)) is None and psf_core(pixel_psf(0.55, 0, 0)) is not None


# ------------------------------------------------------------------------------------------- any engine
@pytest.fixture(params=[SparseEngine])
def engine(request):
    """Every engine must pass the tests that take this."""
    return request.param()


def image_of(data, psf, variance=None):
    """An image for an engine, of white noise."""
    variance = np.ones_like(data) if variance is None else variance
    return SimpleNamespace(data=data, variance=variance, sky_weight=1.0 / variance, psf=psf)


def two_galaxies(rng, flux=(900.0, 400.0)):
    """An image of two that overlap, their mixtures and how they lie on it."""
    parameters = shapes.base_parameters(np.array([0.3, 0.5]), np.array([0.3, 0.1]), np.array([0.4, 2.0]))
    xy, jacobian = np.array([[30.2, 40.4], [36.7, 38.1]]), np.tile(grid_jacobian(0.2, 0.2, True), (2, 1, 1))
    psf, sigma = PSF(gaussian_psf(1.8)), 0.7
    mixtures = shapes.mixture(parameters)
    light = Design(rendering.render(mixtures, xy, jacobian, psf), (80, 70), 2).image(flux)
    image = image_of(light + rng.normal(0, sigma, light.shape), psf, np.full(light.shape, sigma**2))
    return image, parameters, mixtures, Placement(image, xy, jacobian, np.full(2, 1e-4))


def test_an_engine_solves_for_fluxes_with_their_errors(engine):
    pulls = []
    for seed in range(40):
        image, _, mixtures, placed = two_galaxies(np.random.default_rng(seed))
        design = engine.render(mixtures, placed)
        found = engine.solve(design, image)
        np.testing.assert_allclose(engine.fluxes(design, image)[0], found.flux, rtol=1e-6)
        pulls.append((found.flux - [900.0, 400.0]) / np.sqrt(found.covariance.diagonal()))
    assert np.std(pulls) == pytest.approx(1.0, abs=0.2) and abs(np.mean(pulls)) < 0.3
    assert found.covariance[0, 1] < 0  # what one has the other lacks


def test_an_engine_knows_how_fluxes_follow_shapes(engine):
    """The flux that a slightly wrong template gives, against the slope along every direction."""
    image, parameters, mixtures, placed = two_galaxies(np.random.default_rng(0), flux=(1e5, 0.0))
    placed, alone = placed.of([0]), parameters[:1]
    slope = engine.slopes(alone, placed)[0]
    flux = engine.fluxes(engine.render(mixtures[:1], placed), image)[0][0]
    for k, direction in enumerate(shapes.DIRECTIONS):
        wrong = engine.render(shapes.mixture(alone + 0.01 * direction), placed)
        change = engine.fluxes(wrong, image)[0][0] / flux - 1
        assert change == pytest.approx(0.01 * slope[k], abs=2e-4), k


def test_an_engine_sees_how_broad_sources_are(engine):
    """An image whose PSF is broader than given."""
    image, _, mixtures, placed = two_galaxies(np.random.default_rng(1), flux=(9000.0, 7000.0))
    placed = replace(placed, image=image_of(image.data, PSF(gaussian_psf(1.7)), image.variance), psf_blur=0.01)
    breadth, error, design = engine.fit_breadths(mixtures, placed)
    assert (breadth > 0.5).all() and (error > 0).all()
    sharp, broad = (engine.solve(one, image).flux for one in (engine.render(mixtures, placed), design))
    assert np.abs(broad / [9000, 7000] - 1).max() < np.abs(sharp / [9000, 7000] - 1).max()


def wide_sky(shape, sigma):
    """A `SkyPlane` whose prior is ``sigma`` wide."""
    y, x = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])
    columns = np.stack(np.broadcast_arrays(1.0, x, y)).astype(np.float32)
    return SkyPlane(columns, np.full(3, sigma), np.zeros(3), None, max(shape) / 2)


def test_a_local_sky_is_solved_for_with_the_fluxes(engine):
    """A pedestal biases fluxes, unless it is solved for with them."""
    image, _, mixtures, placed = two_galaxies(np.random.default_rng(2))
    raised = image_of(image.data + 0.5, image.psf, image.variance)
    design, sky = engine.render(mixtures, placed), wide_sky((80, 70), 1.0)
    biased, freed = engine.solve(design, raised), engine.solve(design, raised, sky)
    error = np.sqrt(freed.covariance.diagonal())
    assert ((biased.flux - [900.0, 400.0]) / error).max() > 4
    assert (np.abs(freed.flux - [900.0, 400.0]) < 4 * error).all()
    assert (np.abs(freed.sky - [0.5, 0.0, 0.0]) < 4 * np.sqrt(freed.sky_covariance.diagonal())).all()
    narrow = engine.solve(design, raised, wide_sky((80, 70), 1e-6))
    np.testing.assert_allclose(narrow.flux, biased.flux, rtol=1e-4)  # the prior holds it


# ------------------------------------------------------------------------------------------- shapes
def mean_profile():
    """What makes an exponential disc the mean of the prior."""
    config = EngineConfig()
    return config.profile_mean @ shapes.DIRECTIONS[len(config.prior_sigma) :]


@pytest.mark.parametrize("index", [1.0, 2.5, 4.0])
def test_wings_below_the_noise_follow_from_the_core(engine, index):
    """At S/N 190 a de Vaucouleurs galaxy has all its light, and a disc no more than its own."""
    psf, xy, jacobian = PSF(gaussian_psf(3.0)), np.array([[60.2, 59.7]]), grid_jacobian(0.2, 0, True)[None]
    weight, sigma = sersic_mixture(index)
    light = np.zeros((1, len(weight), 6))
    light[0, :, 0], light[0, :, 3], light[0, :, 5] = weight, (0.6 * sigma) ** 2, (0.6 * sigma) ** 2
    image = 2000.0 * Design(rendering.render(light, xy, jacobian, psf, sizes=np.array([119])), (121, 121), 1).image([1])
    flux, rng = [], np.random.default_rng(3)
    for _ in range(10):
        data = image + rng.normal(0, 1, (121, 121))
        placed = Placement(image_of(data, psf), xy, jacobian, np.array([1e-3]), psf_blur=1e-4)
        guess = shapes.base_parameters(np.array([0.66]), np.array([0.0]), np.array([0.0])) + mean_profile()
        moved, _ = engine.fit_shapes(guess, [placed], np.array([5.0]))
        design = engine.render(shapes.mixture(guess + moved @ shapes.DIRECTIONS), placed)
        flux.append(engine.fluxes(design, placed.image)[0][0])
    assert np.mean(flux) == pytest.approx(2000.0, rel=0.02)


def test_light_that_a_model_misses_is_in_the_error(engine):
    """Ten per cent of a galaxy's light lies in a ring that no profile of the family has."""
    rng = np.random.default_rng(5)
    psf, xy, jacobian = PSF(gaussian_psf(3.0)), np.array([[60.0, 60.0]]), grid_jacobian(0.2, 0, True)[None]
    y, x = np.indices((121, 121)) - 60.0
    ring = np.exp(-0.5 * ((np.hypot(x, y) - 9.0) / 1.5) ** 2)
    source = disc(0.6)[None]
    data = Design(rendering.render(source, xy, jacobian, psf, sizes=np.array([119])), (121, 121), 1).image([9000.0])
    data += 1000.0 * ring / ring.sum() + rng.normal(0, 1, data.shape)
    image = image_of(data, psf)
    image.valid, image.mean_psf, image.fwhm, image.pixel_scale = np.ones(data.shape, bool), gaussian_psf(3.0), 0.6, 0.2
    placed = Placement(image, xy, jacobian, np.array([1e-3]))
    fit, *_ = band_fit.fit_band(engine, source, placed, np.zeros((1, 1)), np.zeros(1, int))
    assert fit.chi2[0] > band_fit.POOR_CHI2
    assert fit.unmodelled[0] == pytest.approx(10000.0 - fit.flux[0], rel=0.25)
    assert fit.unmodelled[0] > 5 * np.sqrt(fit.covariance.diagonal()[0])


@pytest.mark.parametrize("start", [0.2, 1.2, 6.0])
def test_a_shape_that_begins_far_from_the_truth_gets_there(engine, start):
    """A galaxy taken for one of a sixth or of five times its size."""
    truth = shapes.base_parameters(np.array([1.2]), np.array([0.4]), np.array([0.7]))
    psf, xy, jacobian = PSF(gaussian_psf(1.8)), np.array([[80.2, 79.7]]), grid_jacobian(0.1, 0, True)[None]
    stamps = rendering.render(shapes.mixture(truth), xy, jacobian, psf, sizes=np.array([135]))
    data = 20000.0 * Design(stamps, (161, 161), 1).image([1.0]) + np.random.default_rng(0).normal(0, 1, (161, 161))
    placed = Placement(image_of(data, psf), xy, jacobian, np.array([1e-3]), psf_blur=1e-4)
    guess = shapes.base_parameters(np.array([start]), np.array([0.0]), np.array([0.0])) + mean_profile()
    moved, _ = engine.fit_shapes(guess, [placed], np.array([5.0]))
    found = shapes.mixture(guess + moved @ shapes.DIRECTIONS)
    assert rendering.half_light_radius(found)[0] == pytest.approx(1.2, rel=0.05)


def test_a_background_makes_no_galaxy_that_fills_the_image(engine):
    xy, jacobian = np.array([[100.0, 100.0]]), grid_jacobian(0.2, 0, True)[None]
    data = 3.0 + np.random.default_rng(0).normal(0, 1, (201, 201))
    placed = Placement(image_of(data, PSF(gaussian_psf(1.8))), xy, jacobian, np.array([1e-3]))
    guess = shapes.base_parameters(np.array([0.3]), np.array([0.0]), np.array([0.0]))
    moved, _ = engine.fit_shapes(guess, [placed], np.array([5.0]))
    radius = rendering.half_light_radius(shapes.mixture(guess + moved @ shapes.DIRECTIONS))[0]
    assert 2.0 < radius < 5.0 + 1e-6


# ------------------------------------------------------------------------------------------- solve
def random_scene(rng, n=12, shape=(60, 70), twin=None):
    """Sources at random; ``twin`` is there a second time, as the last one."""
    xy = rng.uniform(5, 55, (n, 2))
    light = np.stack([disc(s) for s in rng.uniform(0.1, 0.5, n)])
    if twin is not None:
        xy, light, n = np.append(xy, xy[[twin]], 0), np.append(light, light[[twin]], 0), n + 1
    jacobian = np.tile(grid_jacobian(0.2, 0, True), (n, 1, 1))
    return Design(rendering.render(light, xy, jacobian, PSF(gaussian_psf(1.7))), shape, n)


def columns(design):
    """The design matrix that the textbooks write down, (n_pixel, n_source)."""
    return np.stack([design.image(one).ravel() for one in np.eye(len(design))], axis=1)


def pieces_of_one():
    parameters = shapes.base_parameters(np.array([1.0, 0.1, 0.15, 0.3]), np.array([0.3, 0.1, 0.0, 0.2]), np.zeros(4))
    place = np.array([[0.0, 0.0], [0.9, 0.53], [-1.7, 0.2], [6.0, 6.0]])
    return shapes.mixture(parameters), place, np.array([100.0, 10.0, 20.0, 50.0])


def test_pieces_are_what_lies_in_light_that_no_model_describes():
    mixtures, place, flux = pieces_of_one()
    place = place.copy()
    place[2] = -0.8, 0.2
    bad, good, config = np.array([1.0, 3.0, 3.0, 3.0]), np.array([3.0, 1.0, 1.0, 1.0]), MergingConfig()
    np.testing.assert_array_equal(merging.fragment_owners(mixtures, place, flux, bad, config), [0, 0, 0, 3])
    # Two galaxies in one line of sight: the models describe them.
    np.testing.assert_array_equal(merging.fragment_owners(mixtures, place, flux, good, config), np.arange(4))
    np.testing.assert_array_equal(merging.fragment_owners(mixtures[:1], place[:1], flux[:1], bad[:1], config), [0])
    assert len(merging.fragment_owners(mixtures[:0], place[:0], flux[:0], bad[:0], config)) == 0


def test_a_faint_piece_is_told_from_another_galaxy_by_its_colours():
    """Both lie at the same place in the light of a galaxy, and smooth models fit both."""
    mixtures, place, flux = pieces_of_one()
    mixtures, place, flux = mixtures[:2], np.array([[0.0, 0.0], [0.5, 0.3]]), np.array([20000.0, 1000.0])
    error, config = np.full((2, 3), 10.0), MergingConfig()

    def owners(*ratios, place=place):
        bands = np.stack([flux, flux * [1.0, ratios[0]], flux * [1.0, ratios[1]]], -1)
        return merging.fragment_owners(mixtures, place, flux, np.ones(2), config, (bands, error)).tolist()

    assert owners(1.1, 0.9) == [0, 0]
    assert owners(3.0, 0.3) == [0, 1]  # a blue galaxy
    assert owners(-0.5, -0.5) == [0, 0]  # no galaxy has a negative flux
    assert owners(1.1, 0.9, place=3.0 * place) == [0, 1]  # where the light of the galaxy has ended
    flux[1] = 12000.0
    assert owners(1.1, 0.9) == [0, 1]  # as bright as that it is no mere part


def test_other_galaxies_are_as_frequent_as_the_counts_say():
    """Of equal light and distance the fainter one is rather a chance neighbour; unseen bands say nothing."""
    flux, error = np.array([[3000.0, 0.0], [300.0, 0.0]]), np.array([[1.0, np.inf], [1.0, np.inf]])
    whole = np.full((2, 2), 1e5), error
    near, far = (log_odds(np.ones(2), np.full(2, r), (flux, error), whole, 0, MergingConfig()) for r in (0.5, 2.0))
    np.testing.assert_allclose(near - far, np.log(16.0))
    assert near[0] - near[1] == pytest.approx(0.8 * np.log(10.0))


def test_faint_fragments_are_gaussians_of_their_moments():
    mixtures, place, flux = pieces_of_one()
    flux = flux.copy()
    flux[1] = 0.01 * flux[0]
    owners = np.zeros(len(flux), int)
    whole = merging.merged(mixtures, place, flux, owners)[0]
    assert len(whole) == 8 * (len(flux) - 1) + 1
    parts = [np.column_stack([m[:, 0] * f, m[:, 1:3] + at - place[0], m[:, 3:]])
             for m, f, at in zip(mixtures, flux / flux.sum(), place, strict=True)]  # fmt: skip
    for light in (whole, np.concatenate(parts)):
        weight, at = light[:, 0], light[:, 1:3]
        moments = weight @ at, weight @ (light[:, 3:] + np.stack([at[:, 0] ** 2, at.prod(axis=1), at[:, 1] ** 2], -1))
        if light is whole:
            first = moments
    np.testing.assert_allclose(weight.sum(), 1.0)
    for one, other in zip(first, moments, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_a_source_narrower_than_a_noisy_oversampled_psf():
    """The noise of an empirical PSF at frequencies that the pixels fold is not amplified."""
    samples = gaussian_psf(5.6, half=60)
    samples = samples + 3e-3 * samples.max() * np.random.default_rng(2).normal(size=samples.shape)
    psf = PSF(16 * samples / samples.sum(), oversampling=4)
    xy, jacobian = np.array([[40.3, 39.8]]), np.diag([-5.0, 5.0])
    point, narrow = np.zeros((2, 1, 1, 6))
    point[..., 0] = narrow[..., 0] = 1.0
    narrow[..., [3, 5]] = -0.3 / 25  # 0.3 pixel^2
    one, other = (rendering.render(m, xy, jacobian[None], psf)[0].values[0] for m in (point, narrow))
    assert other.sum() == pytest.approx(one.sum(), rel=1e-3)
    assert one.max() < other.max() < 1.4 * one.max()


@pytest.mark.parametrize("chunk", [1, 10**9])
def test_components_in_parts_are_all_components(chunk, monkeypatch):
    mixtures, place, flux = pieces_of_one()
    whole, psf = merging.merged(mixtures, place, flux, np.zeros(len(flux), int)), PSF(gaussian_psf(2.0))
    how = np.array([[50.2, 49.9]]), np.diag([-10.0, 10.0])[None], psf
    expected = rendering.render(whole, *how)[0].values
    monkeypatch.setattr(rendering, "CHUNK", chunk)
    np.testing.assert_allclose(rendering.render(whole, *how)[0].values, expected, atol=1e-7)


def test_a_gathered_template_draws_its_pieces():
    """Seen by an undersampled PSF, where pieces far from the middle need their own folded frequencies."""
    mixtures, place, flux = pieces_of_one()
    whole = merging.merged(mixtures, place, flux, np.array([0, 0, 0, 3]))
    np.testing.assert_allclose(whole[..., 0].sum(axis=1), 1.0)
    y, x = np.indices((61, 61)) - 30
    psf = (1.0 + (x**2 + y**2) / 1.85**2) ** -4.0
    psf, jacobian = PSF(psf / psf.sum()), np.tile(np.diag([-10.0, 10.0]), (4, 1, 1))
    xy = np.array([100.3, 99.8]) + np.einsum("nij,nj->ni", jacobian, place)

    def image(mixtures, xy, flux):
        turn = jacobian[: len(xy)]
        stamps = rendering.render(mixtures, xy, turn, psf, sizes=rendering.stamp_sizes(mixtures, turn, psf, 1e-5))
        return Design(stamps, (200, 200), len(xy)).image(flux)

    apart = image(mixtures, xy, flux)
    together = image(whole, xy[[0, 3]], np.array([130.0, 50.0]))
    assert together.sum() == pytest.approx(apart.sum(), rel=1e-4)
    np.testing.assert_allclose(together, apart, atol=2e-3 * apart.max())


def test_design_is_a_matrix_without_its_zeros():
    rng = np.random.default_rng(8)
    xy = np.concatenate([rng.uniform(-3, 62, (9, 2)), [[-1e6, 1e6]]])  # some over the edge, one nowhere
    light, jacobian = np.stack([disc(0.3)] * 10), np.tile(grid_jacobian(0.2, 0, True), (10, 1, 1))
    stamps = rendering.render(light, xy, jacobian, PSF(gaussian_psf(1.7)))
    design = Design(stamps, (60, 70), 10)
    whole = np.zeros((10, 260, 270))  # the same with room for what falls outside
    for group in stamps:
        for source, (x, y), values in zip(group.index, group.corner, group.values, strict=True):
            if abs(x) < 1e5:
                whole[source, 100 + y :, 100 + x :][: len(values), : len(values)] = values
    dense = whole[:, 100:160, 100:170].reshape(10, -1).T
    flux, image = rng.uniform(1, 9, 10), rng.uniform(0, 2, (60, 70))
    np.testing.assert_allclose(design.image(flux).ravel(), dense @ flux, rtol=1e-6)
    np.testing.assert_allclose(design.project(image), dense.T @ image.ravel(), rtol=1e-6)
    np.testing.assert_allclose(design.squares(image), (dense**2).T @ image.ravel(), rtol=1e-6)
    np.testing.assert_allclose(design.gram(image).toarray(), dense.T @ (image.ravel()[:, None] * dense), rtol=1e-6)
    foot = columns(design.footprint(0.1))
    np.testing.assert_array_equal(foot, dense > 0.1 * dense.max(axis=0))


def test_designs_are_made_of_parts_of_others():
    draw = np.random.default_rng(4)
    stamps = [rendering.Stamps(np.arange(4), np.array([[-2, 3], [5, 5], [6, 1], [9, 9]]), draw.random((4, 5, 5)))]
    design = Design(stamps, (12, 11), 4)
    new = Design([rendering.Stamps(np.arange(2), np.array([[1, 1], [4, 7]]), draw.random((2, 3, 3)))], (12, 11), 2)
    flux = draw.normal(size=4)
    mixed = design.replaced(np.array([3, 1]), new)
    expected = design.of([0, 2]).image(flux[[0, 2]]) + new.image(flux[[3, 1]])
    np.testing.assert_allclose(mixed.image(flux), expected, atol=1e-12)
    np.testing.assert_allclose(mixed.squares(), mixed.squares(np.ones((12, 11))), rtol=1e-12)
    assert design.image(flux).sum() != pytest.approx(mixed.image(flux).sum())  # and the first is as it was


def test_equal_images_are_worked_out_once():
    calls = []

    @cached_by_pixels
    def total(image, times):
        calls.append(image.shape)
        return image.sum() * times

    image = np.arange(6.0).reshape(2, 3)
    assert [total(image, 2), total(image.astype(np.float32), 2), total(image.copy(), 2)] == [30.0] * 3
    assert calls == [(2, 3)]
    assert total(image.reshape(3, 2), 2) == 30.0 and total(image, 3) == 45.0 and total(image + 1, 2) == 42.0
    assert calls == [(2, 3), (3, 2), (2, 3), (2, 3)]


def test_solver_matches_dense_least_squares():
    rng = np.random.default_rng(1)
    design = random_scene(rng)
    variance = rng.uniform(0.5, 2.0, design.shape)
    variance[rng.random(design.shape) < 0.1] = np.inf
    data = design.image(rng.uniform(50, 500, 12)) + rng.normal(0, 1, design.shape)
    found = fluxes.solve(design, data, WhiteNoise(variance))
    root = np.where(np.isfinite(variance), variance, np.inf) ** -0.5
    dense = columns(design) * root.reshape(-1, 1)
    expected, *_ = np.linalg.lstsq(dense, np.where(root > 0, data * root, 0).ravel(), rcond=None)
    np.testing.assert_allclose(found.flux, expected, rtol=1e-5)
    np.testing.assert_allclose(found.covariance.toarray(), np.linalg.inv(dense.T @ dense), rtol=1e-4, atol=1e-9)


def test_amplitudes_are_the_solvers_fluxes():
    rng = np.random.default_rng(12)
    design = random_scene(rng)
    weight = np.where(rng.random(design.shape) < 0.1, 0.0, rng.uniform(0.5, 2.0, design.shape))
    data = design.image(rng.uniform(50, 500, 12)) + rng.normal(0, 1, design.shape)
    flux, snr = fluxes.amplitudes(design, data, weight)
    variance = np.divide(1.0, weight, out=np.full(design.shape, np.inf), where=weight > 0)
    found = fluxes.solve(design, data, WhiteNoise(variance))
    np.testing.assert_allclose(flux, found.flux, rtol=1e-9)
    assert np.all(snr >= found.flux / np.sqrt(found.covariance.diagonal()) * (1 - 1e-9))  # neighbours cost precision


def test_a_faint_source_is_solved_beside_a_bright_one():
    """Conjugate gradients end when every source is right, not when the sum of all is."""
    rng = np.random.default_rng(13)
    blocks = np.stack([m @ m.T + 3 * np.eye(3) for m in rng.normal(size=(20, 3, 3))])
    normal = np.zeros((60, 60))
    for i, block in enumerate(blocks):
        normal[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = block
    couple = 0.05 * rng.normal(size=(60, 60))
    normal += couple + couple.T
    right = rng.normal(size=(20, 3))
    right[0] *= 1e5
    found = shape_fit._conjugate_gradients(normal, np.linalg.inv(blocks), right)
    off = found - np.linalg.solve(normal, right.ravel()).reshape(20, 3)
    assert np.sqrt(np.einsum("ni,nij,nj->n", off, blocks, off).max()) < 2 * shape_fit.PRECISION


def test_covariance_follows_from_any_weights():
    rng = np.random.default_rng(11)
    design = random_scene(rng)
    variance = rng.uniform(0.5, 20.0, design.shape)
    variance[rng.random(design.shape) < 0.1] = np.inf
    weight = rng.uniform(0.5, 1.0, design.shape)
    found = fluxes.solve(design, np.ones(design.shape), WhiteNoise(variance), weight)
    used = np.isfinite(variance)
    dense = columns(design)[used.ravel()]
    estimator = np.linalg.solve(dense.T @ (weight[used, None] * dense), dense.T * weight[used])
    np.testing.assert_allclose(found.flux, estimator.sum(axis=1), rtol=1e-5)
    expected = (estimator * variance[used]) @ estimator.T
    np.testing.assert_allclose(found.covariance.toarray(), expected, rtol=1e-4, atol=1e-9 * expected.max())
    best = fluxes.solve(design, np.ones(design.shape), WhiteNoise(variance), np.where(used, 1 / variance, 0))
    same = fluxes.solve(design, np.ones(design.shape), WhiteNoise(variance))
    np.testing.assert_allclose(best.covariance.toarray(), same.covariance.toarray(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("optimal", [True, False])
def test_a_sky_is_three_more_columns_with_a_prior(optimal):
    rng = np.random.default_rng(12)
    design, sky = random_scene(rng), wide_sky((60, 70), 0.01)
    variance = np.full(design.shape, 2.0)
    variance[rng.random(design.shape) < 0.1] = np.inf
    used = np.isfinite(variance)
    weight = np.where(used, 1 / variance, 0.0)
    data = design.image(np.full(12, 300.0)) + rng.normal(0.1, 1.4, design.shape)
    found = fluxes.solve(design, data, WhiteNoise(variance), None if optimal else weight, sky)
    dense = np.concatenate([columns(design), sky.columns.reshape(3, -1).T], axis=1)[used.ravel()]
    normal = dense.T @ (weight[used, None] * dense) + np.diag(np.r_[np.zeros(12), np.full(3, 0.01**-2)])
    expected = np.linalg.solve(normal, dense.T @ (weight * data)[used])
    np.testing.assert_allclose(np.r_[found.flux, found.sky], expected, rtol=1e-4, atol=1e-6)
    covariance = np.linalg.inv(normal)
    np.testing.assert_allclose(found.sky_covariance, covariance[12:, 12:], rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.covariance.diagonal(), covariance.diagonal()[:12], rtol=1e-4)
    rest = replace(sky, subtracted=found.sky)  # what has been subtracted counts for the prior
    again = fluxes.solve(design, data - np.tensordot(found.sky, sky.columns, 1), WhiteNoise(variance), weight, rest)
    np.testing.assert_allclose(again.flux, found.flux, rtol=1e-6)
    np.testing.assert_allclose(again.sky, 0, atol=1e-6)


def test_values_under_masked_pixels_do_not_matter():
    rng = np.random.default_rng(2)
    design = random_scene(rng)
    variance = np.where(rng.random(design.shape) < 0.2, np.inf, 1.0)
    data = rng.normal(0, 1, design.shape)
    other = np.where(np.isinf(variance), 1e9, data)
    np.testing.assert_array_equal(
        fluxes.solve(design, data, WhiteNoise(variance)).flux, fluxes.solve(design, other, WhiteNoise(variance)).flux
    )


def test_flux_follows_the_unit():
    rng = np.random.default_rng(3)
    design = random_scene(rng)
    data = rng.normal(5, 1, design.shape)
    one = fluxes.solve(design, data, WhiteNoise(np.ones(design.shape)))
    two = fluxes.solve(design, 1e3 * data, WhiteNoise(np.full(design.shape, 1e6)))
    np.testing.assert_allclose(two.flux, 1e3 * one.flux, rtol=1e-9)
    np.testing.assert_allclose(two.covariance.diagonal(), 1e6 * one.covariance.diagonal(), rtol=1e-9)


def test_pulls_of_the_true_templates_are_normal():
    rng = np.random.default_rng(4)
    design = random_scene(rng)
    true = rng.uniform(20, 300, 12)
    pulls = []
    for _ in range(60):
        data = design.image(true) + rng.normal(0, 1.5, design.shape)
        found = fluxes.solve(design, data, WhiteNoise(np.full(design.shape, 2.25)))
        pulls.append((found.flux - true) / np.sqrt(found.covariance.diagonal()))
    assert np.mean(np.abs(pulls) < 1) == pytest.approx(0.683, abs=0.04)


def test_source_without_valid_pixel_is_nan():
    rng = np.random.default_rng(5)
    design = random_scene(rng)
    variance = np.ones(design.shape)
    variance[design.image(np.eye(12)[3]) > 0] = np.inf
    found = fluxes.solve(design, np.ones(design.shape), WhiteNoise(variance))
    assert np.isnan(found.flux[3]) and not found.measured[3]
    assert found.covariance.toarray()[3].sum() == 0


@pytest.mark.parametrize("weight", [None, 0.5])
def test_coincident_sources_share_their_flux(weight):
    rng = np.random.default_rng(6)
    design, twins = random_scene(rng, n=5), random_scene(np.random.default_rng(6), n=5, twin=2)
    data = design.image([100.0, 50, 80, 20, 60])
    weight = None if weight is None else np.full(design.shape, weight)
    found = fluxes.solve(twins, data, WhiteNoise(np.ones(design.shape)), weight)
    assert list(np.flatnonzero(found.degenerate)) == [2, 5]
    np.testing.assert_allclose(found.flux[[2, 5]], 40, rtol=1e-2)
    single = fluxes.solve(design, data, WhiteNoise(np.ones(design.shape)), weight)
    assert found.covariance[2, 2] > 1e4 * single.covariance[2, 2]
    assert found.covariance[2, 5] < -0.999 * found.covariance[2, 2]  # what one has the other lacks


def test_large_group_takes_the_sparse_path(monkeypatch):
    rng = np.random.default_rng(7)
    design = random_scene(rng, n=30)
    data = design.image(rng.uniform(50, 100, 30))
    dense = fluxes.solve(design, data, WhiteNoise(np.ones(design.shape)))
    monkeypatch.setattr(fluxes, "DENSE_LIMIT", 8)
    cut = fluxes.solve(design, data, WhiteNoise(np.ones(design.shape)))
    np.testing.assert_allclose(cut.flux, dense.flux, rtol=1e-6)
    assert np.isfinite(cut.covariance.diagonal()).all()


# --------------------------------------------------------------------------------------- watershed
def test_watershed_keeps_distinct_peaks_only():
    y, x = np.indices((40, 60))
    image = 100 * np.exp(-((x - 20) ** 2 + (y - 20) ** 2) / 18) + 60 * np.exp(-((x - 35) ** 2 + (y - 20) ** 2) / 18)
    image[20, 24] += 1.0  # a bump that is no peak
    labels = persistent_watershed(image, image > 1, prominence=3, contrast=0.02)
    assert labels.max() == 2
    assert labels[20, 20] == 1 and labels[20, 35] == 2
    assert (labels[image <= 1] == 0).all()
    merged = persistent_watershed(image, image > 1, prominence=90, contrast=0.02)
    assert merged.max() == 1


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.05, 1.0), breadth=st.floats(-2.5, 2.5), gradient=st.floats(0.01, 0.3))
def test_breadth_moves_light_between_gaussians_and_keeps_its_sum(scale, breadth, gradient):
    light = disc(scale)[None]
    config, at = EngineConfig(), np.array([breadth])
    placed, sharp = (Placement(*[None] * 4, gradient, blur) for blur in (0.01, 0.0))
    seen = shape_fit.broadened(light, at, placed, config)
    assert seen[0, :, 0].sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(shape_fit.broadened(light, 0 * at, placed, config), light)
    turned = shape_fit.broadened(light, at, sharp, config)
    np.testing.assert_array_equal(turned[..., 1:], light[..., 1:])
    assert (rendering.half_light_radius(turned) - rendering.half_light_radius(light))[0] * breadth >= 0
    step = (shape_fit.broadened(light, np.array([1e-4]), placed, config) - light) / 1e-4
    np.testing.assert_allclose(step, shape_fit._breadth_tangent(light, placed, config)[:, 0], rtol=1e-3, atol=1e-6)
