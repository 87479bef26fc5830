# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The encoder's machinery: views, losses, augmentation and the training loop, on tiny networks."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rosetta.encoding import observing, training_windows
from rosetta.encoding.losses import Objective, cosine_gap, nt_xent, rank_me, same_sky
from rosetta.encoding.network import Encoder, EncoderConfig, Predictor, View, conditions, spectrum, wave_vectors
from rosetta.encoding.novelty import Novelty
from rosetta.encoding.pretraining import TrainConfig, TrainingError, evaluate, train
from rosetta.encoding.training_windows import TrainingTile, TrainingTileSide, Windows
from rosetta.surveys import CONDITIONS

TINY = EncoderConfig(
    dim=32, depth=2, heads=2, proj_dim=16, predictor_dim=16, predictor_depth=1, predictor_heads=2
)

# No dropped bands: an easier task for a tiny network.
ALL_BANDS = {side: replace(one, drop=(0.0,) * len(one.drop)) for side, one in CONDITIONS.items()}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_tile(seed, *, sources=None, size=38.4):
    """Sources at random or given (east, north) on two grids with their own sub-pixel phases.

    Number, brightness and colour belong to the tile.
    """
    rng = np.random.default_rng(seed)
    brightness, colour = 30 * np.exp(rng.uniform(-1.5, 1.5)), rng.uniform(-1.5, 1.5)
    points = sources
    if points is None:
        points = rng.uniform(-size / 2, size / 2, (rng.integers(20, 60), 2))
    sides = []
    for conditions_ in CONDITIONS.values():
        n_band, scale = len(conditions_.depth), conditions_.pixel_scale
        n = round(size / scale)
        phase = (n - 1) / 2 + rng.uniform(-0.5, 0.5, 2)
        affine = np.array([[-1 / scale, 0, phase[0]], [0, 1 / scale, phase[1]]])
        y, x = np.mgrid[:n, :n]
        image = np.zeros((n_band, n, n), np.float32)
        spectrum = brightness * np.exp(colour * np.linspace(-1, 1, n_band))
        for px, py in np.asarray(points, float) @ affine[:, :2].T + affine[:, 2]:
            spot = np.exp(-0.5 * ((x - px) ** 2 + (y - py) ** 2) / 1.5**2)
            image += spot * spectrum[:, None, None]
        sides.append(TrainingTileSide(torch.from_numpy(image).half(), torch.full((n_band,), 5.0), affine))
    return TrainingTile(*sides)


def make_view(side, n=2, window=12.8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    conditions_ = CONDITIONS[side]
    n_band, size = len(conditions_.depth), round(window / conditions_.pixel_scale)
    return View(
        pixels=torch.randn(n, n_band, size, size, generator=generator),
        valid=torch.rand(n, n_band, size, size, generator=generator) < 0.9,
        positions=6 * torch.randn(n, (size // 16) ** 2, 2, generator=generator),
        mix=torch.eye(n_band),
        fwhm=torch.full((n, n_band), 0.5),
        depth=torch.full((n, n_band), 25.0),
    )


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(TINY).eval()


# ---------------------------------------------------------------------------- encoder
@pytest.mark.parametrize("side, n_token", [("ground", 16), ("space", 64)])
def test_shapes(encoder, side, n_token):
    tokens, cls, embedding = encoder(side, make_view(side))
    assert tokens.shape == (2, n_token, 32) and cls.shape == (2, 32) and embedding.shape == (2, 16)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2))
    # Tokens are O(1) and depend on the image at initialisation.
    assert 0.5 < tokens.std() < 2 and (cls[0] - cls[1]).abs().max() > 1e-3


def test_predictor_shapes(encoder):
    torch.manual_seed(1)
    ground, space = make_view("ground"), make_view("space", window=16.0)
    tokens, cls, _ = encoder("ground", ground)
    predicted, predicted_cls = Predictor(TINY)(
        tokens, cls, ground.positions, "space", space.positions, conditions(space)
    )
    assert predicted.shape == (2, 100, 32) and predicted_cls.shape == (2, 32)


def test_default_size_fits_the_bundle():
    config = EncoderConfig()
    n = sum(p.numel() for m in (Encoder(config), Predictor(config)) for p in m.parameters())
    assert 10e6 < n < 14.5e6


@pytest.mark.parametrize("garbage", [1e6, math.nan, math.inf])
def test_invalid_pixels_never_matter(encoder, garbage):
    view = make_view("ground")
    expected = encoder("ground", view)
    changed = replace(view, pixels=torch.where(view.valid, view.pixels, garbage))
    for a, b in zip(expected, encoder("ground", changed), strict=True):
        assert torch.equal(a, b)
    flipped = replace(view, pixels=torch.where(view.valid, -view.pixels, view.pixels))
    assert not torch.equal(expected[0], encoder("ground", flipped)[0])


def test_missing_band_brings_nothing(encoder):
    view = make_view("space")
    valid = view.valid.clone()
    valid[:, 2] = False
    fwhm, depth = view.fwhm.clone(), view.depth.clone()
    fwhm[:, 2], depth[:, 2] = math.nan, math.nan
    absent = replace(view, valid=valid, fwhm=fwhm, depth=depth)
    keep = [0, 1, 3]
    left_out = View(
        view.pixels[:, keep],
        view.valid[:, keep],
        view.positions,
        view.mix[keep],
        view.fwhm[:, keep],
        view.depth[:, keep],
    )
    for a, b in zip(encoder("space", absent), encoder("space", left_out), strict=True):
        torch.testing.assert_close(a, b)
    # and its absence is seen
    assert (encoder("space", view)[0] - encoder("space", absent)[0]).abs().max() > 1e-2


def test_bands_on_one_knot_are_averaged(encoder):
    view = make_view("ground")
    twice = [0, 1, 2, 3, 4, 5, 5]
    doubled = View(
        view.pixels[:, twice],
        view.valid[:, twice],
        view.positions,
        view.mix[twice],
        view.fwhm[:, twice],
        view.depth[:, twice],
    )
    for a, b in zip(encoder("ground", view), encoder("ground", doubled), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", CONDITIONS)
@pytest.mark.parametrize("place", [(0.0, 0.0), (3.07, -1.94), (-5.2, 4.4)])
def test_spectrum_tells_the_place_of_a_source(side, place):
    """Before any training, the window's waves have the phases of a Fourier transform in sky coordinates."""
    encoder_, scale = Encoder(TINY), CONDITIONS[side].pixel_scale
    n_band, size = len(CONDITIONS[side].depth), round(12.8 / scale)
    axis = (torch.arange(size) - (size - 1) / 2) * scale
    east, north = -axis[None, :], axis[:, None]
    spot = torch.exp(-0.5 * ((east - place[0]) ** 2 + (north - place[1]) ** 2) / 0.3**2)
    at = axis.view(-1, 16).mean(1)
    positions = torch.stack(torch.broadcast_tensors(-at[None, :], at[:, None]), -1).reshape(1, -1, 2)
    view = replace(
        make_view(side, n=1), pixels=spot.expand(1, n_band, -1, -1), valid=torch.ones(1, n_band, size, size).bool(),
        positions=positions,
    )
    with torch.no_grad():
        blank = encoder_.stem[side](replace(view, pixels=torch.zeros_like(view.pixels)))[0]
        tokens = encoder_.stem[side](view)[0] - blank
        _, real, imaginary = spectrum(tokens, positions)[0].split((16, 8, 8))
    phase = wave_vectors(8) @ torch.tensor(place)
    turned_back = torch.complex(real, imaginary) * torch.exp(-1j * phase)
    assert (turned_back.real > 0).all()
    assert turned_back.angle().abs().max() < 1e-3


def _shuffle(images, order):
    """Reorder the 4 x 4 patches of a batch of images."""
    n, n_band = images.shape[:2]
    cells = (
        images.reshape(n, n_band, 4, 16, 4, 16).transpose(3, 4).reshape(n, n_band, 16, 16, 16)[:, :, order]
    )
    return cells.reshape(n, n_band, 4, 4, 16, 16).transpose(3, 4).reshape(n, n_band, 64, 64)


def test_positions_enter_in_arcsec(encoder):
    view = make_view("ground")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    tokens, _, embedding = encoder("ground", view)
    # Where a token is counts, and in which order tokens come does not.
    moved = replace(view, positions=view.positions[:, order])
    assert (encoder("ground", moved)[2] - embedding).abs().max() > 1e-4
    shuffled = View(
        pixels=_shuffle(view.pixels, order),
        valid=_shuffle(view.valid, order),
        positions=view.positions[:, order],
        mix=view.mix,
        fwhm=view.fwhm,
        depth=view.depth,
    )
    torch.testing.assert_close(encoder("ground", shuffled)[0], tokens[:, order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "bad, message", [({"dim": 30}, "dim=30 must be divisible"), ({"patch": 10}, "patch=10 must be divisible")]
)
def test_config_errors(bad, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **bad)


# ---------------------------------------------------------------------------- losses
def test_nt_xent_by_hand():
    rng = np.random.default_rng(0)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 3, 5)))
    same = np.eye(3, dtype=bool)
    same[0, 1] = same[1, 0] = True
    logits = 7.0 * a @ b.T
    expected = 0.0
    for matrix in (logits, logits.T):
        for i in range(3):
            rivals = [j for j in range(3) if j == i or not same[i, j]]
            expected += (np.log(np.exp(matrix[i, rivals]).sum()) - matrix[i, i]) / 6
    got = nt_xent(torch.tensor(a), torch.tensor(b), torch.tensor(math.log(7.0)), torch.tensor(same))
    assert float(got) == pytest.approx(expected, abs=1e-7)


def test_overlapping_windows_are_no_negatives():
    tile = torch.tensor([0, 0, 0, 1])
    centers = torch.tensor([[0.0, 0.0], [12.7, -3.0], [12.9, 0.0], [0.0, 0.0]])
    same = same_sky(tile, centers, 12.8)
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[1, 2] = expected[2, 1] = True
    assert torch.equal(same, expected)


def test_rank_gauge():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(500, 8, generator=generator)
    assert float(rank_me(flat)) == pytest.approx(8, rel=0.05)
    assert float(rank_me(flat[:, :1] @ torch.ones(1, 8))) == pytest.approx(1, rel=0.05)


# ---------------------------------------------------------------------------- windows
@pytest.mark.parametrize("turn", list(product([False, True], repeat=3)))
def test_a_source_lands_in_the_token_of_its_position(turn):
    source = np.array([3.1, -2.3])
    tile = make_tile(5, sources=[source], size=25.6)
    center = np.array([[1.234, 0.567]])
    turned = source - center[0]
    if turn[0]:
        turned = turned * (-1, 1)
    if turn[1]:
        turned = turned * (1, -1)
    if turn[2]:
        turned = -turned[::-1]  # east is left: a transposed array swaps the axes and both signs
    for side in ("ground", "space"):
        size = round(12.8 / CONDITIONS[side].pixel_scale)
        images, positions = training_windows.cut(
            [tile.side(side).pixels], np.zeros(1, int), tile.side(side).affine[None], center, np.array([turn]), size
        )
        image = images[0, 0, observing.PAD : -observing.PAD, observing.PAD : -observing.PAD].double()
        n = size // 16
        token = positions[0].double().numpy()
        light = image.reshape(n, 16, n, 16).sum((1, 3)).flatten()
        assert np.hypot(*(token - turned).T).argmin() == int(light.argmax())
        # The recorded positions are exact: the centroid of the light falls on the source.
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        column, row = (float((axis * image).sum() / image.sum()) for axis in (x, y))
        step_x = (token[1] - token[0]) / 16
        step_y = (token[n] - token[0]) / 16
        found = token[0] + (column - 7.5) * step_x + (row - 7.5) * step_y
        np.testing.assert_allclose(found, turned, atol=0.01 * CONDITIONS[side].pixel_scale)
        # and the crop is centred within half a pixel
        assert np.abs(token.mean(0)).max() <= 0.5 * CONDITIONS[side].pixel_scale + 1e-6


def test_window_must_fit():
    with pytest.raises(ValueError, match="window is 38.4 arcsec, too large"):
        Windows([make_tile(0)]).batch(38.4, 2, 0, 0)


def test_batches_follow_seed_and_step():
    windows = Windows([make_tile(0, size=25.6)])
    first, again, other = (windows.batch(12.8, 3, 1, step) for step in (4, 4, 5))
    assert torch.equal(first.views["space"].pixels, again.views["space"].pixels)
    assert not torch.equal(first.views["space"].pixels, other.views["space"].pixels)
    # The two sides are masked independently, and never lose all their bands.
    assert first.views["ground"].valid.flatten(1).any(1).all()
    assert not first.views["ground"].pixels[~first.views["ground"].valid].any()


def _point(side, n, fwhm):
    """A point source under the base PSF, carried to ``fwhm``, and its transfer function."""
    conditions_ = CONDITIONS[side]
    n_band = len(conditions_.depth)
    padded = n + 2 * observing.PAD
    base = observing.base_transfer(padded, conditions_, torch.device("cpu"))
    image = torch.fft.fftshift(torch.fft.irfft2(base + 0j, s=(padded, padded)))
    fwhm = torch.full((1, n_band), fwhm)
    shear = torch.zeros(1, n_band, 2)
    psf = observing.convolve(image.expand(1, n_band, -1, -1), fwhm, shear, conditions_)[0]
    return psf, observing.transfer(fwhm, shear, conditions_)


@pytest.mark.parametrize("side, fwhm", [("ground", 0.6), ("ground", 0.8), ("ground", 1.2), ("space", 0.45)])
def test_target_seeing_is_delivered(side, fwhm):
    conditions_ = CONDITIONS[side]
    scale = conditions_.pixel_scale
    psf, otf = _point(side, 96, fwhm)
    # Area above half maximum on an 8 times finer, band-limited grid.
    spectrum = torch.fft.fftshift(torch.fft.fft2(psf[-1]))
    fine = torch.fft.ifft2(torch.fft.ifftshift(torch.nn.functional.pad(spectrum, (336,) * 4))).real
    width = 2 * math.sqrt(float((fine > fine.max() / 2).sum()) / math.pi) / 8 * scale
    # The pixel adds scale^2 / 12 to the variance; the diffraction PSF has a FWHM of 0.133".
    added = 8 * math.log(2) * scale**2 / 12 + (0.133**2 if side == "space" else 0)
    assert width == pytest.approx(math.sqrt(fwhm**2 + added), rel=0.08 if side == "space" else 0.02)
    # What the encoder is told is what is there.
    assert float(observing.image_fwhm(otf, conditions_)[0, -1]) == pytest.approx(width, rel=0.01)
    assert float(observing.noise_area(otf)[0, -1]) == pytest.approx(
        1 / float(psf[-1].square().sum()), rel=0.005
    )
    assert float(psf.sum((-2, -1))[-1]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("side", ["ground", "space"])
def test_noise_reaches_the_requested_depth(side):
    conditions_ = CONDITIONS[side]
    psf, otf = _point(side, 96, 0.7 if side == "ground" else 0.45)
    depth = torch.tensor([conditions_.depth])
    sigma = (observing.pixel_sigma(depth, otf) * observing.noise_rms(otf, conditions_))[0]
    random = torch.Generator().manual_seed(7)
    sky = observing.noise((4, len(sigma), 256, 256), conditions_, random, "cpu") * sigma[:, None, None]
    matched = torch.fft.rfft2(psf, s=(256, 256)).conj() / psf.square().sum((-2, -1))[:, None, None]
    fluxes = torch.fft.irfft2(torch.fft.rfft2(sky) * matched, s=(256, 256))
    measured = 31.4 - 2.5 * torch.log10(5 * fluxes.std((0, 2, 3)))
    np.testing.assert_allclose(measured, depth[0], atol=0.05)
    # Interpolated noise is smoother from pixel to pixel than the white noise of the same depth.
    smooth = observing.noise_rms(otf, conditions_)[0]
    assert ((smooth < 0.35) == torch.tensor(conditions_.correlated)).all()


# ---------------------------------------------------------------------------- training
def _models():
    torch.manual_seed(0)
    return Encoder(TINY), Predictor(TINY)


CONFIG = TrainConfig(steps=6, phases=((1.0, 12.8, 4),), bf16=False, log_every=1, save_every=2, lr=1e-3)


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_resumed_training_is_the_same_bit_for_bit(tmp_path, keep):
    tiles, config = [make_tile(i, size=25.6) for i in range(2)], replace(CONFIG, keep=keep)
    whole = _models()
    train(*whole, tiles, config)

    class Killed(Exception):
        pass

    def kill(step, metrics):
        if step == 5:
            raise Killed

    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train(*_models(), tiles, config, checkpoint=state, callback=kill)
    steps = []
    torch.manual_seed(99)  # the resumed process starts from other weights
    resumed = Encoder(TINY), Predictor(TINY)
    train(*resumed, tiles, config, checkpoint=state, callback=lambda step, metrics: steps.append(step))
    assert steps == [5, 6]
    for a, b in zip(whole, resumed, strict=True):
        for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q), name
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    with pytest.raises(ValueError, match="belongs to another training .*lr"):
        train(*_models(), tiles, replace(config, lr=2e-3), checkpoint=state)


def test_a_damaged_training_state_is_refused(tmp_path):
    """NaN, tensors of other shapes (which would broadcast), missing ones, headers that are no state's."""
    tiles, config = [make_tile(i, size=25.6) for i in range(2)], replace(CONFIG, steps=2)
    state = tmp_path / "s.safetensors"
    train(*_models(), tiles, config, checkpoint=state)
    with safe_open(state, "pt") as file:
        meta, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    name = max((n for n in tensors if tensors[n].ndim == 2), key=len)
    nan = torch.full_like(tensors[name], torch.nan)
    for changed in ({name: nan}, {name: torch.ones(1, 1)}, {"more": torch.ones(3)}):
        save_file({**tensors, **changed}, state, metadata=meta)
        with pytest.raises(ValueError, match="s.safetensors is damaged"):
            train(*_models(), tiles, config, checkpoint=state)
    save_file({n: tensor for n, tensor in tensors.items() if n != name}, state, metadata=meta)
    with pytest.raises(ValueError, match="s.safetensors is damaged"):
        train(*_models(), tiles, config, checkpoint=state)
    for document in ("[" * 200_000, "{}", "[]", "3"):
        save_file(tensors, state, metadata={"rosetta-training": document})
        with pytest.raises(ValueError, match="s.safetensors is not a training state"):
            train(*_models(), tiles, config, checkpoint=state)


def test_tokens_that_are_left_out_are_left_out_of_the_trunk_only(encoder):
    """Kept in another order, all tokens are what they were; half of them still carry the whole window's spectrum."""
    batch = Windows([make_tile(0, size=25.6)]).batch(12.8, 2, 0, 0, keep=0.5)
    view = batch.views["ground"]
    assert view.kept.shape == (2, 8) and all(len(set(row)) == 8 for row in view.kept.tolist())
    with torch.inference_mode():
        tokens, cls, _ = encoder("ground", replace(view, kept=None))
        order = torch.stack([torch.randperm(16), torch.randperm(16)])
        turned = encoder("ground", replace(view, kept=order))
        torch.testing.assert_close(turned[0], replace(view, kept=order).of_kept(tokens), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(turned[1], cls, atol=1e-5, rtol=1e-5)
        half, whole = (encoder.embed("ground", replace(view, kept=kept)) for kept in (view.kept, None))
    assert half[0].shape[1] == 8
    torch.testing.assert_close(half[1], whole[1])


def test_learning_beats_the_shuffled_null():
    tiles = [make_tile(i, size=25.6) for i in range(40)]
    held_out = [make_tile(100 + i, size=25.6) for i in range(12)]
    encoder_, predictor = _models()
    before = evaluate(encoder_, held_out, 36, 12.8, 5, conditions=ALL_BANDS)
    weights = {"match": 2.0, "own": 1.0, "cross": 1.0, "latent": 0.5}
    config = replace(CONFIG, steps=70, phases=((1.0, 12.8, 12),), lr=4e-3, weights=weights)
    losses = train(encoder_, predictor, tiles, config, conditions=ALL_BANDS).metrics
    # Batches differ in how many of their windows may compete: compare means over ten steps.
    first, last = (
        {k: np.mean([m[k] for m in part]) for k in part[0]} for part in (losses[:10], losses[-10:])
    )
    assert last["own"] < 0.6 * first["own"]
    assert last["cross"] < 0.9 * first["cross"]
    assert last["match"] < first["match"] - 0.2
    after = evaluate(encoder_, held_out, 36, 12.8, 5, conditions=ALL_BANDS)
    assert after["gap"] > before["gap"] + 0.08
    # On sky never trained on, true pairs are closer than under any of 50 shuffles.
    batch = Windows(held_out, ALL_BANDS).batch(12.8, 36, 6, 0)
    with torch.no_grad():
        ground, space = (encoder_(side, batch.views[side])[2] for side in ("ground", "space"))
    alone = torch.eye(36, dtype=torch.bool)
    random = torch.Generator().manual_seed(0)
    null = [float(cosine_gap(ground, space[torch.randperm(36, generator=random)], alone)) for _ in range(50)]
    assert float(cosine_gap(ground, space, alone)) > max(null)


def test_non_finite_loss_keeps_the_checkpoint(tmp_path):
    tiles = [make_tile(0, size=25.6)]
    models = _models()
    state = tmp_path / "state.safetensors"

    def poison(step, metrics):
        if step == 3:
            with torch.no_grad():
                models[0].cls.fill_(math.nan)

    with pytest.raises(TrainingError, match="not finite"):
        train(*models, tiles, CONFIG, checkpoint=state, callback=poison)
    steps = []
    train(*_models(), tiles, CONFIG, checkpoint=state, callback=lambda step, metrics: steps.append(step))
    assert steps == [3, 4, 5, 6]


def test_collapse_is_noticed():
    models = _models()
    with torch.no_grad():
        models[0].projection[2].weight.zero_()
        models[0].projection[2].bias.fill_(1.0)
    config = replace(
        CONFIG, weights={"match": 0.0, "own": 1.0, "cross": 0.0, "latent": 0.0}, weight_decay=0.0
    )
    with pytest.raises(TrainingError, match="collapsed"):
        train(*models, [make_tile(0, size=25.6)], config)


def test_schedule():
    config = TrainConfig(steps=100, max_minutes=1.0, phases=((0.7, 12.8, 8), (0.3, 38.4, 2)), lr=1.0)
    assert (
        config.progress(50, 15.0) == 0.5
        and config.progress(10, 45.0) == 0.75
        and config.progress(10, 99.0) == 1
    )
    assert (
        config.phase(0.69) == (12.8, 8) and config.phase(0.7) == (38.4, 2) and config.phase(1.0) == (38.4, 2)
    )
    assert config.rate(0.025) == pytest.approx(0.5) and config.rate(0.05) == 1 and config.rate(1.0) == 0


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"steps": None}, "steps and max_minutes are both None"),
        ({"steps": 0}, "steps is 0"),
        ({"phases": ((0.5, 12.8, 4),)}, "must sum to 1"),
        ({"phases": ((1.0, 13.0, 4),)}, "multiple of 3.2"),
        ({"phases": ((1.0, 12.8, 1),)}, "at least 2 windows"),
        ({"keep": 0.0}, "keep is 0.0"),
    ],
)
def test_train_config_errors(bad, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **bad)


def test_the_predictor_does_not_shape_the_trunk():
    encoder_, predictor = _models()
    objective = Objective(TINY, {"ground": 6, "space": 4}, {"match": 0.0, "cross": 1.0, "latent": 1.0})
    batch = Windows([make_tile(0, size=25.6)]).batch(12.8, 4, 0, 0, keep=0.5)
    objective(encoder_, predictor, batch)[0].backward()
    assert all(not p.grad.any() for p in encoder_.blocks.parameters())
    assert all(p.grad.any() for p in (predictor.memory.weight, predictor.tokens.weight, predictor.cls.weight))


def test_an_untrained_predictor_looks_where_it_is_asked():
    torch.manual_seed(0)
    predictor = Predictor(EncoderConfig()).eval()
    positions = make_view("ground", n=1).positions  # (1, n_token, 2)
    tokens, cls = torch.randn(1, positions.shape[1], 384), torch.randn(1, 384)
    condition = torch.zeros(1, 4, 3)
    with torch.inference_mode():
        before, told = predictor(tokens, cls, positions, "space", positions, condition)
        for k in (0, 5, 10):
            other = tokens.clone()
            other[:, k] = torch.randn(384)
            after, _ = predictor(other, cls, positions, "space", positions, condition)
            assert (after - before).square().sum(-1).argmax() == k
    assert torch.nn.functional.cosine_similarity(told, cls).item() > 0.9  # CLS begins as what was seen


def test_dense_loss_scale():
    """A readout that answers nothing scores the constant guess: 1 or worse, never below."""
    torch.manual_seed(0)
    encoder_, predictor = _models()
    objective = Objective(TINY, {"ground": 6, "space": 4}, CONFIG.weights)
    for layer in objective.own.values():
        torch.nn.init.zeros_(layer.weight)
    batch = Windows([make_tile(0, size=25.6)]).batch(12.8, 4, 0, 0)
    _, terms, _ = objective(encoder_, predictor, batch)
    assert terms["own"] >= 1 - 1e-5 and terms["cross"] >= 1 - 1e-5


# ---------------------------------------------------------------------------- novelty
def test_missing_bands_are_no_strange_sky():
    rng = torch.Generator().manual_seed(0)
    shift, knots = 5 * torch.randn(3, 8, generator=rng), torch.tensor([1, 2, 4])

    def draw(n):
        present = (torch.rand(n, 3, generator=rng) < 0.6).float()
        present[present.sum(1) == 0] = 1
        both = 3 * (1 - present[:, :1]) * (1 - present[:, 1:2])  # what two missing bands do beyond each alone
        return torch.randn(n, 8, generator=rng) + (1 - present) @ shift + both, present

    novelty = Novelty(4, 3).fit(draw(4000), draw(4000))
    summaries, present = draw(8000)
    score = novelty.score(summaries, present)
    for which in range(1, 8):
        of = (present @ knots.float()).long() == which
        assert 0.002 < (score[of] > 1).float().mean() < 0.03
        assert (novelty.score(summaries[of] + 6, present[of]) > 1).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_above_the_limit(bad):
    generator = torch.Generator().manual_seed(0)
    present, summaries = torch.ones(2000, 3), torch.randn(2000, 8, generator=generator)
    novelty = Novelty(4, 3).fit((summaries, present), (summaries, present))
    summaries[3, 5] = bad
    score = novelty.score(summaries, present)
    assert (score > 1)[3]
    assert score[4:].isfinite().all()
