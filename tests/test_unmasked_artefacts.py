# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Artefacts that no survey has masked: what is found, and that stars and galaxies are left alone."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, sparse

from rosetta import Flag, SkyPair
from rosetta.deblending.band_fit import BandFit
from rosetta.deblending.single_band import SingleBandConfig, only_in_reference
from rosetta.images.artefacts import BLOCK, artefact_pixels
from rosetta.images.image import band_images
from rosetta.images.lines import lines
from rosetta.images.sharp_pixels import sharp_pixels

VIS, GROUND = 1.8, 3.8  # full width at half maximum, pixels


def psf_of(fwhm, n=25):
    """A Moffat profile (beta 3) on pixels, unit sum."""
    r = np.hypot(*np.mgrid[-(n // 2) : n // 2 + 1, -(n // 2) : n // 2 + 1])
    width = fwhm / (2 * np.sqrt(2 ** (1 / 3) - 1))
    psf = (1 + (r / width) ** 2) ** -3.0
    return psf / psf.sum()


def stars(rng, shape, fwhm, flux):
    """Point sources at random sub-pixel places."""
    y, x = np.indices(shape)
    image = np.zeros(shape)
    width = fwhm / (2 * np.sqrt(2 ** (1 / 3) - 1))
    norm = 2.0 / (np.pi * width**2)
    for f in flux:
        cx, cy = rng.uniform(15, shape[1] - 15), rng.uniform(15, shape[0] - 15)
        r2 = (x - cx) ** 2 + (y - cy) ** 2
        image += f * norm * (1 + r2 / width**2) ** -3.0
    return image


def sky(rng, shape):
    return rng.normal(size=shape).astype(np.float32), np.ones(shape, np.float32)


@pytest.mark.parametrize("fwhm", [VIS, GROUND])
def test_hot_pixels_and_tracks_are_found_and_stars_are_not(fwhm):
    rng = np.random.default_rng(1)
    noise, variance = sky(rng, (200, 200))
    light = stars(rng, noise.shape, fwhm, np.geomspace(30, 3e4, 25))
    psf, scale = psf_of(fwhm), 0.1 if fwhm == VIS else 0.2
    assert not sharp_pixels(light + noise, variance, psf, scale).any()
    free = np.argwhere(ndimage.maximum_filter(light, 25) < 1.0)
    free = free[((free > 20) & (free < 170)).all(axis=1)]  # at the border the light around a pixel is not known
    hits = free[rng.choice(len(free), 8, replace=False)]
    hot = noise + light
    hot[tuple(hits.T)] += 25.0
    found = sharp_pixels(hot, variance, psf, scale)
    assert found[tuple(hits.T)].all()
    assert found.sum() <= 8 * 12
    track = noise + light
    y, x = free[len(free) // 2]
    along = np.arange(8)
    track[y + along, x + along] += 20.0
    assert sharp_pixels(track, variance, psf, scale)[y + along, x + along].mean() > 0.7


def test_a_psf_that_is_too_broad_costs_no_star():
    rng = np.random.default_rng(2)
    noise, variance = sky(rng, (200, 200))
    image = noise + stars(rng, noise.shape, VIS, np.full(20, 2e3))
    assert not sharp_pixels(image, variance, psf_of(1.5 * VIS), 0.1).any()


def edge_on(shape, length, fwhm, peak):
    """An edge-on galaxy through the middle, as thin as the PSF: exponential along its plane."""
    y, x = np.indices(shape) - np.reshape([n / 2 for n in shape], (2, 1, 1))
    along, across = x * np.cos(0.4) + y * np.sin(0.4), y * np.cos(0.4) - x * np.sin(0.4)
    return peak * np.exp(-np.abs(along) / length - 0.5 * (across / (1.2 * fwhm / 2.3548)) ** 2)


@pytest.mark.parametrize("fwhm", [VIS, GROUND])
def test_an_edge_on_galaxy_is_no_artefact(fwhm):
    noise, variance = sky(np.random.default_rng(3), (300, 300))
    for peak in (3.0, 30.0, 300.0):
        image = noise + edge_on(noise.shape, 20.0, fwhm, peak)
        assert not artefact_pixels(image, variance, variance < 0, psf_of(fwhm), 0.1 if fwhm == VIS else 0.2).any()


def trail(shape, angle, width, peak, apart=10.0):
    y, x = np.indices(shape)
    distance = (y - shape[0] / 2) * np.cos(angle) - (x - shape[1] / 2) * np.sin(angle) - apart
    return peak * np.exp(-0.5 * (distance * 2.3548 / width) ** 2)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.2, 2.0, 2.9])
@pytest.mark.parametrize("peak", [1.0, 20.0])
def test_a_trail_is_found_at_any_angle(angle, peak):
    rng = np.random.default_rng(4)
    noise, variance = sky(rng, (256, 300))
    light = stars(rng, noise.shape, GROUND, np.geomspace(30, 3e3, 15))
    line = trail(noise.shape, angle, 1.3 * GROUND, peak)
    found = lines(noise + light + line, variance, GROUND, 0.2)
    assert found[line > 0.5 * peak].mean() > 0.95
    assert (found & (line < 1e-3)).sum() < 0.5 * found.sum()
    assert not lines(noise + light, variance, GROUND, 0.2).any()


def test_a_large_image_is_searched_in_blocks():
    rng = np.random.default_rng(5)
    noise, variance = sky(rng, (40, BLOCK + 300))
    places = [(20, 50), (20, BLOCK // 2 + 150), (21, BLOCK + 250)]
    for place in places:
        noise[place] += 40.0
    mask = np.zeros(noise.shape, bool)
    mask[places[0]] = True
    found = artefact_pixels(noise, variance, mask, psf_of(GROUND), 0.2)
    assert [bool(found[place]) for place in places] == [False, True, True]


def test_an_artefact_is_masked_in_the_band_image_and_not_in_the_pair(make_image):
    image = make_image(120, 0.1)
    image.data[60, 60] = 60.0
    pair = SkyPair(None, {"VIS": image})
    seen = band_images(pair)["VIS"]
    assert not seen.valid[60, 60] and seen.data[60, 60] == 0 and np.isinf(seen.variance[60, 60])
    assert not pair.space["VIS"].mask.any() and pair.space["VIS"].data[60, 60] == 60


def fit(flux, error):
    """A fit of isolated sources with these fluxes and errors."""
    covariance = sparse.diags_array(np.square(error, dtype=float)).tocsc()
    unseen = BandFit.unseen(len(flux), 1)
    return replace(unseen, covariance=covariance, flux=np.array(flux, float), measured=np.isfinite(flux))


EDGES = {"r": (552, 691), "i": (691, 818), "z": (818, 922), "VIS": (540, 890), "J_E": (1168, 1567)}


def only(fits):
    return only_in_reference(fits, {band: EDGES[band] for band in fits}, "VIS", SingleBandConfig()).tolist()


def test_what_only_the_sharpest_band_shows_is_an_artefact():
    # An artefact, a flat spectrum, a late M dwarf, a dropout, an unmeasured one, and one too faint to tell.
    vis = [100, 100, 100, 100, 100, 12]
    fits = {
        "r": fit([1, 100, 20, 0, np.nan, 0], [4] * 6),
        "i": fit([-3, 100, 90, 70, np.nan, 2], [6] * 6),
        "z": fit([4, 100, 300, 400, np.nan, 0], [10] * 6),
        "VIS": fit(vis, [4] * 6),
    }
    assert only(fits) == [True, False, False, False, False, False]


def test_a_bright_neighbour_hides_what_a_band_would_show():
    noise = np.array([[16.0, 0.5 * 4 * 4], [0.5 * 4 * 4, 16.0]])
    fits = {"i": fit([0, 5000], [4, 4]), "VIS": fit([100, 5000], [4, 4])}
    assert only(fits) == [True, False]
    fits["i"] = replace(fits["i"], covariance=sparse.csc_array(noise))
    assert not any(only(fits))


def test_without_a_band_of_its_range_nothing_is_known():
    alone = {"VIS": fit([100], [1])}
    assert not any(only(alone))
    beside = {"VIS": fit([100, 100], [1, 1]), "J_E": fit([0, 40], [2, 2])}
    assert only(beside) == [True, False]


def test_the_flag_has_its_own_bit():
    assert str(Flag(1 << 20)) == "ARTEFACT"
