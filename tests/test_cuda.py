# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What must be the same on a GPU as on the CPU, and that no training step waits for the GPU.

The tests of the first part compare precisions and need no GPU.
"""

import math
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
import torch

from rosetta import CrossSurveyEncoder, SkyPair
from rosetta.encoding.inference import Model, calibrate
from rosetta.encoding.losses import Objective, nt_xent
from rosetta.encoding.network import Encoder, EncoderConfig, Predictor, spectrum
from rosetta.encoding.pretraining import TrainConfig, fast_bfloat16, train
from rosetta.encoding.training_windows import TrainingTile, TrainingTileSide, Windows, cut
from rosetta.surveys import CONDITIONS
from rosetta.training.loop import TrainerConfig
from rosetta.training.loop import train as train_head
from rosetta.training.network import HeadNetwork

SMALL = EncoderConfig(dim=48, depth=2, heads=2, proj_dim=16, predictor_dim=16, predictor_depth=1, predictor_heads=2)
CONFIG = TrainConfig(steps=6, phases=((1.0, 12.8, 4),), bf16=False, log_every=3, save_every=3, lr=1e-3)


def on_gpu(test):
    return pytest.mark.cuda(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")(test))


def tile_of(seed, size=38.4):
    """Noise-free point sources on two grids with their own sub-pixel phases."""
    rng = np.random.default_rng(seed)
    points, sides = rng.uniform(-size / 2, size / 2, (60, 2)), []
    for conditions in CONDITIONS.values():
        scale, n_band = conditions.pixel_scale, len(conditions.depth)
        n = round(size / scale)
        phase = (n - 1) / 2 + rng.uniform(-0.5, 0.5, 2)
        affine = np.array([[-1 / scale, 0, phase[0]], [0, 1 / scale, phase[1]]])
        image = np.zeros((n, n), np.float32)
        for x, y in points @ affine[:, :2].T + affine[:, 2]:
            ax, ay = np.arange(n) - x, np.arange(n) - y
            image += rng.lognormal(3) * np.exp(-0.2 * ax**2) * np.exp(-0.2 * ay[:, None] ** 2)
        colour = np.exp(rng.normal(0, 0.5, n_band)).astype(np.float32)
        pixels = torch.from_numpy(image * colour[:, None, None]).half()
        sides.append(TrainingTileSide(pixels, torch.full((n_band,), 5.0), affine))
    return TrainingTile(*sides)


# ---------------------------------------------------------------------------- on any device
def test_matching_under_autocast_is_that_of_float32():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.nn.functional.normalize(torch.randn(64, 256, generator=generator), dim=-1) for _ in range(2))
    two = torch.nn.functional.normalize(one + 0.5 * two, dim=-1)
    scale, same = torch.tensor(math.log(100.0)), torch.eye(64, dtype=torch.bool)
    exact = nt_xent(one, two, scale, same)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(one, two, scale, same), exact)


def test_phases_under_autocast_are_those_of_float32():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 144, 384, generator=generator)
    positions = 38.4 * (torch.rand(2, 144, 2, generator=generator) - 0.5)
    exact = spectrum(tokens, positions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(spectrum(tokens, positions), exact)


def test_tiles_in_one_array_are_cut_as_each_by_itself():
    tiles, rng = [tile_of(k) for k in range(3)], np.random.default_rng(0)
    tile, turns = rng.integers(3, size=8), rng.random((8, 3)) < 0.5
    sides = [one.ground for one in tiles]
    affine = np.stack([sides[k].affine for k in tile])
    where = affine, rng.uniform(-5, 5, (8, 2)), turns, 64
    alone = cut([side.pixels for side in sides], tile, *where)
    together = cut(torch.stack([side.pixels for side in sides]), tile, *where)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_is_told_before_it_is_saved(tmp_path):
    class Broken(Objective):
        def match(self, ground, space, same):
            return super().match(ground, space, same) * math.inf

    state = tmp_path / "state.safetensors"
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="not finite; lower lr"):
        train(Encoder(SMALL), Predictor(SMALL), [tile_of(0)], CONFIG, checkpoint=state, objective=Broken)
    assert not state.exists()


# ---------------------------------------------------------------------------- on a GPU
@on_gpu
def test_encoding_agrees(tiny_encoder, make_image, tmp_path):
    pair = SkyPair(
        {b: make_image(100, 0.2, seed=i) for i, b in enumerate("gri")},
        {b: make_image(200, 0.1, seed=10 + i) for i, b in enumerate(("VIS", "H_E"))},
    )
    tiny_encoder.save(tmp_path / "encoder.safetensors")
    there = CrossSurveyEncoder.from_pretrained(tmp_path / "encoder.safetensors", device="cuda")
    found, expected = (encoder(pair, window=12.8 * u.arcsec) for encoder in (there, tiny_encoder))
    assert found.fingerprint == expected.fingerprint
    for side in ("ground", "space"):
        for name in ("tokens", "embedding"):
            error = np.linalg.norm(found.sides[side][name] - expected.sides[side][name])
            assert error < 2e-3 * np.linalg.norm(expected.sides[side][name])


@on_gpu
def test_the_bundled_encoder_agrees(make_image):
    pair = SkyPair({b: make_image(192, 0.2, seed=i) for i, b in enumerate("gri")})
    found, expected = (CrossSurveyEncoder.from_pretrained(device=device)(pair) for device in ("cuda", "cpu"))
    one, two = (embedding.sides["ground"]["embedding"] for embedding in (found, expected))
    assert np.linalg.norm(one - two) < 5e-3 * np.linalg.norm(two)


def _models(device, seed=0):
    torch.manual_seed(seed)
    return Encoder(SMALL).to(device), Predictor(SMALL).to(device)


@on_gpu
def test_a_step_in_bfloat16_is_near_one_in_float32():
    assert fast_bfloat16(torch.device("cuda"))
    losses, gradients = [], []
    for bf16 in (False, True):
        models = _models("cuda")
        train(*models, [tile_of(0), tile_of(1)], replace(CONFIG, steps=1, lr=1e-9, bf16=bf16), callback=None)
        objective = Objective(SMALL, {"ground": 6, "space": 4}, {"match": 1.0, "own": 1.0}).to("cuda")
        batch = Windows([tile_of(0), tile_of(1)], device="cuda").batch(12.8, 16, 0, 0)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            loss, _, _ = objective(*models, batch)
        models[0].zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([p.grad.flatten() for p in models[0].parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


@on_gpu
def test_no_step_waits_for_the_gpu():
    models = _models("cuda")
    objective = Objective(SMALL, {"ground": 6, "space": 4}, TrainConfig(steps=1).weights).to("cuda")
    optimizer = torch.optim.AdamW([*models[0].parameters(), *objective.parameters()], lr=1e-4)
    windows = Windows([tile_of(0), tile_of(1)], device="cuda")

    def step(k):
        batch = windows.batch(12.8, 8, 0, k, 0.5)
        with torch.autocast("cuda", torch.bfloat16):
            loss, _, _ = objective(*models, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(models[0].parameters(), 1.0)
        optimizer.step()

    step(0)  # constants reach the device, kernels are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_training_resumes(tmp_path):
    class Killed(Exception):
        pass

    def kill(step, metrics):
        if step == 3:
            raise Killed

    whole, tiles, state = _models("cuda"), [tile_of(0)], tmp_path / "state.safetensors"
    train(*whole, tiles, replace(CONFIG, log_every=1), checkpoint=None)
    config = replace(CONFIG, log_every=1, save_every=2)
    with pytest.raises(Killed):
        train(*_models("cuda"), tiles, config, checkpoint=state, callback=kill)
    resumed = _models("cuda", seed=9)
    result = train(*resumed, tiles, config, checkpoint=state)
    assert result.steps == 6
    for p, q in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-3)


@on_gpu
def test_calibration_agrees(monkeypatch):
    monkeypatch.setattr("rosetta.encoding.inference._MEASURED", 128)
    scores = []
    for device in ("cpu", "cuda"):
        model = Model.seeded(SMALL, 0).to(device).eval()
        calibrate(model, [tile_of(0), tile_of(1)], [tile_of(2)], CONFIG)
        assert model.novelty["space"].mean.device.type == device
        tokens = torch.randn(16, 16, 48, generator=torch.Generator().manual_seed(1)).to(device)
        scores.append(model.novelty["space"](tokens, torch.ones(16, 4, device=device)).cpu())
    # The two devices draw other windows, so that the limits are two estimates of one number.
    assert float((scores[1] / scores[0]).log().mean().abs()) < 0.5


@on_gpu
def test_heads_train_where_they_are_told():
    rng = np.random.default_rng(0)

    class Line(HeadNetwork):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(1, 1)

        def loss(self, rows):
            return (self.line(rows["x"])[:, 0] - rows["y"]).square().mean()

    x = rng.normal(size=(400, 1)).astype(np.float32)
    rows = {"x": x, "y": 2 * x[:, 0] + 1}
    network, state = Line().to("cuda"), torch.cuda.get_rng_state()
    train_head(network, rows, rows, TrainerConfig(steps=400, batch=32, rate=0.1), seed=0)
    assert network.line.weight.is_cuda and torch.equal(state, torch.cuda.get_rng_state())
    assert float(network.line.weight.detach()) == pytest.approx(2, abs=0.01)
