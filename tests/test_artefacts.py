# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Saturation, tracks, trails and missing pixels: where they are, how large, and what is flagged."""

from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest

pytest.importorskip("galsim", reason="the simulator needs the extra 'sim'")
pytest.importorskip("speclite", reason="the simulator needs the extra 'sim'")

from rosetta.simulate import artefacts, simulate_pair  # noqa: E402
from rosetta.simulate.artefacts import ArtefactRates  # noqa: E402
from rosetta.simulate.saturation import saturate  # noqa: E402
from rosetta.surveys import RUBIN  # noqa: E402

NONE = ArtefactRates(0, 0, 0, 0, 0, 0, 0, 0, 0)


def add(seed, image, rates, side="space", scale=0.1, level=1e6, **options):
    return artefacts.add(
        np.random.default_rng(seed), image, pixel_scale=scale, saturation_level=level, sky_sigma=2.0, side=side,
        rates=rates, **options,
    )  # fmt: skip


def test_bleeding_conserves_charge_and_follows_the_column():
    image = np.zeros((61, 41))
    image[30, 20], image[30, 21] = 950.0, 150.0
    clipped = image.copy()
    changed = saturate(image, 100.0)
    assert image.sum() == pytest.approx(1100) and image.max() == 100
    assert set(np.flatnonzero(changed.any(axis=0))) == {20, 21}
    assert np.flatnonzero(image[:, 20]).tolist() == list(range(25, 36))
    infrared = saturate(clipped, 100.0, bleeds=False)
    assert clipped.sum() == 200 and infrared.sum() == 2


def test_trail_is_straight_and_as_wide_as_the_psf():
    for seed in range(4):
        image = np.zeros((300, 260))
        rates = replace(NONE, trails=400.0)
        rng = np.random.default_rng(seed)
        where, light = artefacts._trail(rng, image, 0.2, 2.0, "ground", 0.8)
        image[where] += light
        assert 0.98 * 0.5 * 2 < image.max() <= 20 * 2
        y, x = np.nonzero(image > 0.5 * image.max())
        points = np.stack([x - x.mean(), y - y.mean()], axis=1)
        _, size, _ = np.linalg.svd(points / np.sqrt(len(points)))
        # The narrow axis of a bar of width w scatters by w / sqrt(12), on a line across the field.
        assert 0.8 * 0.9 < size[1] * np.sqrt(12) * 0.2 < 1.6 * 0.8 * 1.15
        assert size[0] > 10 * size[1]
    mask, affected = add(1, np.zeros((120, 120)), rates)
    assert affected.any() and not mask.any()


def test_tracks_are_longer_in_thick_detectors():
    image = np.zeros((100, 100))
    length = {}
    for side, scale in (("ground", 0.2), ("space", 0.1)):
        rng = np.random.default_rng(5)
        sizes = [max(artefacts._cosmic_ray(rng, image, scale, 1.0, side, 0.5)[1].shape) for _ in range(300)]
        length[side] = np.median(sizes)
    assert length["ground"] > length["space"] >= 2


def test_truth_holds_every_change_and_the_flags_are_a_part_of_it():
    rates = ArtefactRates(trails=8.0, ghosts=0.5, holes=1.0, gap=1.0, edge=1.0, dead_columns=2.0, flagged=0.5)
    clean = np.random.default_rng(0).normal(scale=2.0, size=(400, 400))
    image = clean.copy()
    image[100, 100] = clean[100, 100] = 500.0
    mask, affected = add(3, image, rates, level=100.0)
    with np.errstate(invalid="ignore"):
        changed = ~(image == clean)
    np.testing.assert_array_equal(changed & ~affected, False)
    assert 0 < np.sum(mask & affected) < affected.sum()
    assert np.isnan(image).any() and mask[100, 100] and affected[100, 100]
    flagged, _ = add(3, clean.copy(), replace(rates, flagged=1.0), level=100.0)
    np.testing.assert_array_equal(affected & ~flagged, False)
    again = clean.copy()
    np.testing.assert_array_equal(add(3, again, rates, level=100.0)[0], mask)
    np.testing.assert_array_equal(again, image)


def test_a_trail_is_in_one_band(monkeypatch):
    """Bands are exposed at different times: the trail of one is not in the others."""
    monkeypatch.setattr(artefacts, "MASKED", replace(NONE, trails=1.5))
    bands = RUBIN.band_names
    options = {"seed": 2, "size": 25.6 * u.arcsec, "bands": bands, "noise": False, "density": 0.01, "star_density": 0.0}
    marred, clean = (simulate_pair(**options, defects=d)[0].ground for d in (True, False))
    trails = [np.abs(marred[b].data - clean[b].data) > 0 for b in bands]
    hit = [t for t in trails if t.any()]
    assert 1 <= len(hit) < len(bands)
    for k, one in enumerate(hit):
        for other in hit[:k]:
            assert np.sum(one & other) < 0.5 * min(one.sum(), other.sum())
