# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The shift that a few sources support: its error, whether sources agree, and epochs."""

import numpy as np
import pytest
from astropy.wcs import WCS

from rosetta.astrometry import few_sources
from rosetta.astrometry.epochs import epoch
from rosetta.astrometry.field import evaluate
from rosetta.astrometry.measurement import BandOffsets

SHIFT = np.array([80.0, -30.0])
CONFIG = few_sources.FewSourcesConfig()


def bands(seed, n=2, n_band=3, noise=15.0, reference=5.0, moved=None, bias=None):
    """Offsets of n sources in some bands: noise of each, and that of the reference, which is common to all bands."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, reference, (n, 2)) + (0 if moved is None else moved)
    eye, blank = np.tile(np.eye(2), (n, 1, 1)), np.ones(n)
    parts = []
    for k in range(n_band):
        offset = SHIFT + common + rng.normal(0, noise, (n, 2)) + (0 if bias is None else bias[k])
        parts.append(BandOffsets(
            "grizy"[k], offset, noise**2 * eye, reference**2 * eye, blank, 20 * blank, blank, blank > 0,
            np.zeros(n, int), False,
        ))
    return parts


def agreed(parts, expected=3.0):
    return few_sources.agreed_shift(parts, [np.broadcast_to(expected, len(p.usable)) for p in parts], CONFIG)


def shift_of(few, band="joint"):
    value, cov = evaluate(few.fields[band], np.zeros((1, 2)))
    return value[0], np.sqrt(np.diag(cov[0]))


@pytest.mark.parametrize("n", [2, 4])
def test_errors_are_calibrated(n):
    pull = []
    for seed in range(60):
        value, error = shift_of(agreed(bands(seed, n)))
        pull.extend((value - SHIFT) / error)
    assert 0.75 < 1.4826 * np.median(np.abs(pull)) < 1.15 and np.mean(np.abs(pull) < 3) > 0.97


def test_the_error_follows_the_scatter_that_is_seen():
    """Not only the noise, which is 2 mas here: three sources scatter by 3 mas as expected, or by 40."""
    moved = 40.0 * np.array([[1.0, -1.0], [-1.0, 0.5], [0.0, 0.5]])
    calm, wild = (agreed(bands(4, 3, noise=2.0, reference=1.0, moved=m)).sigma for m in (None, moved))
    assert calm < 4 < 0.5 * 40 / np.sqrt(3) < wild


def test_the_evidence_tells_agreement_from_chance():
    assert agreed(bands(1)).evidence > 3
    apart = agreed(bands(1, moved=np.array([[0.0, 0.0], [500.0, 400.0]])))
    assert apart.evidence < 0 and apart.sigma > 100


def test_bands_that_differ_make_the_error_larger_and_keep_their_own_frames():
    bias = np.array([[60.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    same, differ = agreed(bands(2, 3, noise=3.0)), agreed(bands(2, 3, noise=3.0, bias=bias))
    assert differ.sigma > 2 * same.sigma
    value, error = shift_of(differ, "g")
    assert (np.abs(value - SHIFT - bias[0]) < 3 * error).all() and error.max() < differ.sigma


def test_a_star_of_another_epoch_weighs_little():
    expected = few_sources.expected_scatter(np.array([True, False, False]), np.array([0.1, 0.3, 0.3]), 12.0, CONFIG)
    np.testing.assert_allclose(expected, [84.0, 3.0, 3.0])
    moved = np.array([[90.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    blind, aware = (agreed(bands(3, 3, noise=4.0, moved=moved), e) for e in (3.0, expected))
    assert np.abs(shift_of(aware)[0] - SHIFT).max() < 10 < np.abs(shift_of(blind)[0] - SHIFT).max()
    assert aware.sigma < blind.sigma


@pytest.mark.parametrize("date", [{"mjdobs": 57570.125}, {"mjdavg": 57570.125, "mjdobs": 1.0},
                                  {"dateobs": "2016-07-01T03:00:00"}, {"dateobs": "2016-07-01T03:00:00.00Z"}])
def test_epoch_of_a_wcs(date):
    wcs = WCS(naxis=2)
    assert np.isnan(epoch(wcs)) and np.isnan(epoch(object()))
    for name, value in date.items():
        setattr(wcs.wcs, name, value)
    np.testing.assert_allclose(epoch(wcs), 2016.498, atol=1e-3)
