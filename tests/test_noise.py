# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Errors of fluxes in correlated noise."""

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS
from scipy import ndimage

from rosetta import SkyPair
from rosetta.deblending.band_fit import fit_band
from rosetta.deblending.engine.engine import SparseEngine
from rosetta.deblending.engine.placement import Placement
from rosetta.images import noise
from rosetta.images.image import band_images
from rosetta.images.noise import noise_factor, overlap, psf_overlap, sky_products

SIGMA = 3.0


def gaussian(sigma, half):
    y, x = np.indices((2 * half + 1, 2 * half + 1)) - half
    out = np.exp(-0.5 * (x**2 + y**2) / sigma**2)
    return out / out.sum()


def correlated(rng, shape, width):
    """Noise of variance 1 whose autocorrelation is a Gaussian of sqrt(2) times the width (pixels)."""
    white = ndimage.gaussian_filter(rng.normal(size=shape), width, mode="wrap")
    return white * 2.0 * np.sqrt(np.pi) * width


@pytest.mark.parametrize("template", [1.0, 2.5, 6.0])
def test_the_factor_is_that_of_gaussians(template):
    """Gaussians of widths t in noise of width s: t'Ct / t't = 4 pi s^2 t^2 / (s^2 + t^2)."""
    rng, width = np.random.default_rng(1), 1.3
    shape = 700, 900
    products = sky_products(2.0 * correlated(rng, shape, width), rng.uniform(size=shape) > 0.2)
    (found,) = noise_factor(products, overlap(gaussian(template, 30))[None])
    expected = 4.0 * np.pi * width**2 * template**2 / (width**2 + template**2)
    assert found == pytest.approx(2.0 * np.sqrt(expected), rel=0.03)


def test_outliers_and_masked_pixels_tell_nothing_of_the_noise():
    rng = np.random.default_rng(2)
    image, valid = rng.normal(size=(300, 300)), np.ones((300, 300), bool)
    clean = noise_factor(sky_products(image, valid), psf_overlap(gaussian(1.5, 8))[None])
    image[100:140, 100:140], valid[100:140, 100:140] = 50.0, False
    image.flat[:: 9001] = 1e4
    found = noise_factor(sky_products(image, valid), psf_overlap(gaussian(1.5, 8))[None])
    assert clean == pytest.approx(1.0, abs=0.03) and found == pytest.approx(clean, abs=0.03)


def test_too_few_pixels_tell_nothing():
    assert noise_factor(np.ones((2, len(noise.DISTANCES))), np.eye(2, len(noise.DISTANCES))).tolist() == [1.0, 1.0]
    assert (sky_products(np.ones((9, 9)), np.zeros((9, 9), bool)) == 0).all()
    assert overlap(np.zeros((0, 0)))[0] == 1.0


@pytest.fixture(scope="module")
def scattered():
    """Fluxes of points and of large discs, two by two beside each other, in 250 realisations of correlated noise."""
    rng, n, scale = np.random.default_rng(3), 140, 0.1
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [10.0, -5.0], [n / 2] * 2
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    pixels = NDData(
        np.zeros((n, n)), unit=u.nJy, wcs=wcs, uncertainty=VarianceUncertainty(np.full((n, n), SIGMA**2)),
        psf=gaussian(2.0, 12),
    )  # fmt: skip
    image = band_images(SkyPair(None, {"H_E": pixels}))["H_E"]
    size = np.repeat([0.0, 0.5], 4)
    mixtures = np.zeros((8, 1, 6))
    mixtures[..., 0], mixtures[..., 3], mixtures[..., 5] = 1.0, size[:, None] ** 2, size[:, None] ** 2
    xy = np.array([[25, 25], [29, 25], [110, 25], [114, 25], [30, 90], [38, 90], [100, 90], [108, 90]], float)
    jacobian = np.tile(np.diag([-1.0, 1.0]) / scale, (8, 1, 1))
    engine = SparseEngine()
    engine.fit_breadths = lambda light, placed: (np.zeros(8), np.zeros(8), engine.render(light, placed))
    flux, error, correlation = [], [], []
    for _ in range(250):
        data = (SIGMA * correlated(rng, (n, n), 1.3)).astype(np.float32)
        here = Placement(image.with_pixels(data, image.variance, fwhm=image.fwhm), xy, jacobian, np.full(8, 1e-3))
        fit, overlaps, _ = fit_band(engine, mixtures, here, np.zeros((8, 10)), np.arange(8))
        factor = noise_factor(fit.products, overlaps)
        covariance = factor[:, None] * fit.covariance.toarray() * factor
        sigma = np.sqrt(np.diag(covariance))
        flux.append(fit.flux)
        error.append(sigma)
        correlation.append((covariance / sigma / sigma[:, None])[[0, 2, 4, 6], [1, 3, 5, 7]])
    return np.array(flux), np.array(error), np.array(correlation)


def test_quoted_errors_are_the_scatter_of_fluxes(scattered):
    """Of 1000 fluxes of each kind, whose scatter is known to 3 %; white pixels would give a third of it."""
    flux, error, _ = scattered
    for kind in (slice(0, 4), slice(4, 8)):
        scatter = np.sqrt(np.mean(flux[:, kind] ** 2))
        assert np.sqrt(np.mean(error[:, kind] ** 2)) == pytest.approx(scatter, rel=0.06)
    assert np.median(error[:, 4:]) > 2.0 * np.median(error[:, :4])


def test_neighbours_are_as_correlated_as_quoted(scattered):
    flux, _, correlation = scattered
    for pair, (one, two) in enumerate([(0, 1), (2, 3), (4, 5), (6, 7)]):
        found = np.corrcoef(flux[:, one], flux[:, two])[0, 1]
        assert found == pytest.approx(correlation[:, pair].mean(), abs=0.25)
