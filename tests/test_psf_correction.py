# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The PSF corrected on the data: right where it was wrong, itself where it was right."""

import numpy as np
import pytest

from rosetta.astrometry import registration
from rosetta.astrometry.psf_correction import corrected_psf
from rosetta.astrometry.template import Sharp, transfer
from rosetta.images.moments import adaptive_moments

N, STEP = 240, 30  # reference pixels; the target's are the same
NOISE = 0.02


def gaussian(x, y, sigma):
    return np.exp(-0.5 * (x**2 + y**2) / sigma**2) / (2 * np.pi * sigma**2)


def stamp(sigma, wing=0.0, n=41):
    """A PSF with a one-sided wing, centred on its adaptive moments by the caller where that matters."""
    y, x = np.mgrid[:n, :n] - n // 2
    return (1 - wing) * gaussian(x, y, sigma) + wing * gaussian(x - 5.0, y, sigma)


def corrected(true, given, seed=0):
    """Stars of both images under a narrow reference PSF and the true one; what is made of ``given``."""
    rng = np.random.default_rng(seed)
    axis = np.arange(STEP, N - STEP + 1, STEP).astype(float)
    xy = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    flux = 10 ** rng.uniform(2.5, 3.5, len(xy))
    y, x = np.mgrid[:N, :N]
    sharp = sum(f * gaussian(x - a, y - b, 1.2) for f, (a, b) in zip(flux, xy, strict=True))
    blurred = np.zeros((N, N))
    for f, (a, b) in zip(flux, xy.astype(int), strict=True):
        blurred[b - 20 : b + 21, a - 20 : a + 21] += f * true
    sharp, blurred = (image + rng.normal(0, NOISE, image.shape) for image in (sharp, blurred))
    valid, variance = np.ones((N, N), bool), np.full((N, N), NOISE**2)
    owner = np.ones((N, N), int)
    own = stamp(1.2)
    reference = Sharp(sharp, variance, valid, owner, own / own.sum())
    template = transfer(reference, given, np.eye(2))
    n = len(xy)
    eye = np.tile(np.eye(2), (n, 1, 1))
    geometry = registration.Geometry(np.ones(n, int), xy.astype(int), xy, eye, eye)
    zero = np.zeros((n, 2))
    fit = registration.fit_offsets(template, blurred, variance, valid, geometry, zero, 9)
    return corrected_psf(
        given, template, blurred, variance, valid, geometry, zero, 9, fit.snr, fit.amplitude
    )


def unit(psf):
    return psf / psf.sum()


def test_a_right_psf_stays_as_it_is():
    true = unit(stamp(3.0))
    assert np.abs(corrected(true, true) - true).max() < 2e-3 * true.max()


@pytest.mark.parametrize("wing", [0.0, 0.05])
def test_a_wrong_width_and_a_missing_wing_are_found(wing):
    true, given = unit(stamp(3.0, wing)), unit(stamp(3.5))
    found = corrected(true, given)
    center, cov = adaptive_moments(found)
    np.testing.assert_allclose(center, 20.0, atol=1e-3)  # the gauge
    expected = adaptive_moments(true)[1]
    np.testing.assert_allclose(cov, expected, atol=0.02 * expected[0, 0])
    np.testing.assert_allclose(found.sum(), 1.0)


def test_too_few_stars_change_nothing():
    given = unit(stamp(3.0))
    blank = Sharp(
        np.zeros((N, N)), np.ones((N, N)), np.ones((N, N), bool), np.ones((N, N), int), unit(stamp(1.2))
    )
    template = transfer(blank, given, np.eye(2))
    faint = np.full(5, 3.0)
    where = np.full((5, 2), 120)
    eye = np.tile(np.eye(2), (5, 1, 1))
    geometry = registration.Geometry(np.ones(5, int), where, where.astype(float), eye, eye)
    args = (np.zeros((N, N)), np.ones((N, N)), np.ones((N, N), bool), geometry, np.zeros((5, 2)), 9)
    assert corrected_psf(given, template, *args, faint, faint) is given
