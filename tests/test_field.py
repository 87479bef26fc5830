# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The offset field: the right model, honest errors, robust to outliers."""

import json

import numpy as np
import pytest

from rosetta.astrometry.band_fields import band_fields
from rosetta.astrometry.field import evaluate
from rosetta.astrometry.field_fit import FieldConfig, fit_field, on_top_of, predict_held_out
from rosetta.astrometry.measurement import BandOffsets


def sources(seed, n=80, sigma=(0.3, 5.0)):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-50, 50, (n, 2))
    s = np.exp(rng.uniform(*np.log(sigma), (n, 2)))
    rho = rng.uniform(-0.5, 0.5, n)
    cov = np.zeros((n, 2, 2))
    cov[:, 0, 0], cov[:, 1, 1] = s.T**2
    cov[:, 0, 1] = cov[:, 1, 0] = rho * s[:, 0] * s[:, 1]
    noise = np.einsum("nij,nj->ni", np.linalg.cholesky(cov), rng.normal(size=(n, 2)))
    return xy, noise, cov


def smooth(xy, seed, rms=20.0, length=25.0):
    """A random field with a squared-exponential covariance (random Fourier features)."""
    rng = np.random.default_rng(1000 + seed)
    k, phase = rng.normal(size=(2, 200, 2)) / length, rng.uniform(0, 2 * np.pi, (2, 200))
    return rms * np.sqrt(2 / 200) * np.cos(np.einsum("ni,ami->nam", xy, k) + phase).sum(-1)


GRID = np.stack(np.meshgrid(np.linspace(-45, 45, 9), np.linspace(-45, 45, 9)), -1).reshape(-1, 2)
TRUE = {
    "shift": lambda xy: np.tile([63.0, -47.0], (len(xy), 1)),
    "affine": lambda xy: [63.0, -47.0] + xy @ np.array([[0.1, 0.2], [-0.2, 0.1]]),
    "polynomial2": lambda xy: np.stack([0.01 * xy[:, 0] ** 2, -0.01 * xy[:, 0] * xy[:, 1]], -1),
}


@pytest.mark.parametrize("kind", TRUE)
def test_model_is_chosen_and_recovered(kind):
    xy, noise, cov = sources(3)
    found = fit_field(xy, TRUE[kind](xy) + noise, cov)
    assert found.model["kind"] == kind
    offset, spread = evaluate(found.model, GRID)
    pull = (offset - TRUE[kind](GRID)) / np.sqrt(spread[:, [0, 1], [0, 1]])
    assert np.abs(pull).max() < 4
    assert np.sqrt(spread[:, 0, 0].max()) < 1.0


def test_gaussian_process_is_calibrated():
    pulls, errors = [], []
    for seed in range(6):
        xy, noise, cov = sources(seed, n=60)
        found = fit_field(xy, smooth(xy, seed) + [60.0, -40.0] + noise, cov)
        assert has_process(found.model)
        offset, spread = evaluate(found.model, GRID)
        error = offset - smooth(GRID, seed) - [60.0, -40.0]
        errors.append(error)
        pulls.append(error / np.sqrt(spread[:, [0, 1], [0, 1]]))
    nmad = 1.4826 * np.median(np.abs(np.concatenate(pulls)))
    assert 0.8 < nmad < 1.25
    assert np.sqrt(np.mean(np.square(errors))) < 10.0  # half of the field's own 20 mas


def has_process(model):
    return model["amplitude"] > 0 and "points" in model


def test_outliers_are_flagged_and_move_nothing():
    xy, noise, cov = sources(5)
    offset = TRUE["shift"](xy) + noise
    clean = evaluate(fit_field(xy, offset, cov).model, GRID)[0]
    offset[:4] += 300.0
    cov[:4] *= 0.01  # and they claim to be very good
    found = fit_field(xy, offset, cov)
    assert found.outlier[:4].all() and found.outlier[4:].sum() == 0
    moved, spread = evaluate(found.model, GRID)
    assert np.abs(moved - clean).max() < 3 * np.sqrt(spread[:, 0, 0]).max()


def test_common_scatter_becomes_the_floor():
    xy, noise, cov = sources(7)
    rng = np.random.default_rng(7)
    found = fit_field(xy, TRUE["shift"](xy) + noise + rng.normal(0, 10.0, xy.shape), cov)
    assert 7.0 < found.model["floor"][0] < 13.0
    np.testing.assert_array_equal(found.floor, found.model["floor"])
    assert found.outlier.sum() <= 1


def test_each_component_of_the_scatter_gets_its_own_size():
    xy, noise, cov = sources(8, n=200)
    stars = np.arange(len(xy)) % 4 == 0
    rng = np.random.default_rng(8)
    offset = TRUE["shift"](xy) + noise + np.where(stars, 12.0, 0.0)[:, None] * rng.normal(size=xy.shape)
    found = fit_field(xy, offset, cov, scatter=np.stack([stars, ~stars], -1))
    assert 9.0 < found.floor[0] < 16.0
    assert found.floor[1] < 0.5
    value, spread = evaluate(found.model, GRID)
    assert (np.abs(value - TRUE["shift"](GRID)) < 4 * np.sqrt(spread[:, [0, 1], [0, 1]])).all()


def test_hyperparameters_are_integrated_over():
    xy, noise, cov = sources(4, n=30)
    model = fit_field(xy, smooth(xy, 4) + noise, cov, model="gp").model
    weights = [sample[0] for sample in model["samples"]]
    assert abs(sum(weights) - 1) < 1e-9 and len(weights) > 5
    mean, cov = evaluate(model, GRID)
    one = [evaluate({**model, "samples": [[1.0, *sample[1:]]]}, GRID) for sample in model["samples"]]
    np.testing.assert_allclose(mean, sum(w * m for w, (m, _) in zip(weights, one, strict=True)))
    within = sum(w * c for w, (_, c) in zip(weights, one, strict=True))
    assert (np.linalg.eigvalsh(cov - within)[:, 0] > -1e-6).all()  # the samples' disagreement only adds
    np.testing.assert_allclose(evaluate(model, GRID, covariance=False)[0], mean)


def test_model_survives_json_and_many_points_are_thinned():
    xy, noise, cov = sources(9, n=900)
    found = fit_field(xy, smooth(xy, 9) + noise, cov, model="gp")
    assert len(found.model["points"]["xy"]) <= 400
    copy = json.loads(json.dumps(found.model))
    np.testing.assert_array_equal(evaluate(copy, GRID)[0], evaluate(found.model, GRID)[0])
    error = evaluate(found.model, GRID)[0] - smooth(GRID, 9)
    assert np.sqrt(np.mean(error**2)) < 2.0


def test_held_out_prediction_does_not_see_the_source():
    xy, noise, cov = sources(11, sigma=(1.0, 1.0))
    offset = TRUE["shift"](xy) + noise
    before = predict_held_out(xy, offset, cov)[0]
    offset[0] += 30.0
    after = predict_held_out(xy, offset, cov)[0]
    assert np.abs(after[0] - before[0]).max() < 1e-9
    assert np.abs(after[1:] - before[1:]).max() > 0


@pytest.mark.parametrize("n, model, message", [(1, "auto", "at least 2 sources"), (5, "spline", "must be 'auto'")])
def test_errors(n, model, message):
    xy, noise, cov = sources(1, n=n)
    with pytest.raises(ValueError, match=message):
        fit_field(xy, noise, cov, model=model)


def part(band, offset, cov, usable):
    """What `band_fields` reads of a measurement: offsets (NaN where unusable), errors, which sources count."""
    nan = np.full(len(offset), np.nan)
    offset = np.where(usable[:, None], offset, np.nan)
    return BandOffsets(band, offset, cov, 0 * cov, nan, nan, nan, usable, np.zeros(len(offset), int), True), cov


def alike(measured, xy):
    """One component of scatter for all sources of every band."""
    return {band: np.ones((len(xy), 1)) for band in measured}


def test_on_top_of_is_the_sum_of_both():
    xy, noise, cov = sources(13)
    base = fit_field(xy, smooth(xy, 13) + noise, cov, model="gp")
    added = fit_field(xy, TRUE["affine"](xy) + noise, cov, model="affine")
    both = on_top_of(base.model, added)
    (low, low_cov), (own, own_cov) = evaluate(base.model, GRID), evaluate(added.model, GRID)
    value, spread = evaluate(json.loads(json.dumps(both.model)), GRID)
    np.testing.assert_allclose(value, low + own)
    np.testing.assert_allclose(spread, low_cov + own_cov)
    assert both.outlier is added.outlier and both.weight is added.weight


def test_bands_share_the_curved_field_and_keep_their_own_shift():
    xy, _, _ = sources(15)
    rng = np.random.default_rng(15)
    true = {"g": [8.0, 0.0], "r": [-4.0, 3.0], "H_E": [1.0, -2.0]}
    sigma = {"g": 6.0, "r": 2.0, "H_E": 1.0, "joint": 1.9}
    seen = {band: rng.random(len(xy)) < 0.8 for band in sigma}
    measured = {}
    for band in sigma:
        offset = rng.normal(0, sigma[band], xy.shape) + true.get(band, [0.0, 0.0])
        offset += 0.0 if band == "H_E" else smooth(xy, 15)
        measured[band] = part(band, offset, np.tile(sigma[band] ** 2 * np.eye(2), (len(xy), 1, 1)), seen[band])
    side = {"g": "ground", "r": "ground", "H_E": "space"}
    fits = band_fields(xy, measured, side, alike(measured, xy), "auto", FieldConfig())
    assert set(fits) == set(measured)
    assert fits["joint"].model["kind"] in ("gp", "affine+gp")
    base = evaluate(fits["joint"].model, GRID)[0]
    for band in ("g", "r"):
        assert fits[band].model["base"] == fits["joint"].model
        value, spread = evaluate(fits[band].model, GRID)
        error = np.sqrt(spread[:, [0, 1], [0, 1]])
        assert (np.abs(value - base - true[band]) < 4 * error).all()
        assert np.abs((value - smooth(GRID, 15) - true[band]) / error).mean() < 1.5
    # A space band is on the reference's own frame: the ground's field is none of its business.
    assert "base" not in fits["H_E"].model
    np.testing.assert_allclose(evaluate(fits["H_E"].model, GRID)[0], np.tile(true["H_E"], (len(GRID), 1)), atol=0.8)
    assert all(len(fit.weight) == seen[band].sum() for band, fit in fits.items())


def test_the_only_ground_band_is_the_joint_frame():
    xy, noise, cov = sources(17)
    every = np.ones(len(xy), bool)
    measured = {band: part(band, smooth(xy, 17) + noise, cov, every) for band in ("r", "joint")}
    fits = band_fields(xy, measured, {"r": "ground"}, alike(measured, xy), "auto", FieldConfig())
    assert fits["r"] is fits["joint"]
    assert np.sqrt(np.mean((evaluate(fits["r"].model, GRID)[0] - smooth(GRID, 17)) ** 2)) < 10.0


def test_affine_only_where_sources_ask_for_it():
    xy, noise, cov = sources(19)
    every = np.ones(len(xy), bool)
    for kind, wanted in (("shift", "shift"), ("affine", "affine")):
        measured = {band: part(band, noise, cov, every) for band in ("g", "r", "joint")}
        measured["H_E"] = part("H_E", TRUE[kind](xy) + noise, cov, every)
        side = {"g": "ground", "r": "ground", "H_E": "space"}
        for model, found in (("auto", wanted), ("shift", "shift")):
            fits = band_fields(xy, measured, side, alike(measured, xy), model, FieldConfig())
            assert fits["H_E"].model["kind"] == found
