# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The trained encoder at work: everything a checkpoint holds, and arrays in, arrays out."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .familiar import Familiar, window_sizes
from .network import SIDES, Encoder, Predictor, presence
from .novelty import Novelty
from .pretraining import evaluate, train
from .training_windows import Windows

__all__ = ["Model", "READ_OUT", "disc", "encode", "fit", "look", "moved", "predict", "read_out", "set_novelty"]

STEP = 0.7  # arcsec, between shifts; the finest waves that windows are compared by are 2.9 arcsec long

# Windows about a source, whose middle token is read: five patches, arcsec. Larger ones cost more, and tell no more;
# neither do more tokens in the trunk than the nearest to the middle.
READ_OUT = {"ground": 16.0, "space": 8.0}
NEAREST = 9

# Windows of 12.8 arcsec on which a trained model is measured; fewer of larger ones.
_MEASURED = 512


class Model(nn.Module):
    """Encoder, predictor and the novelty score of each side: what one checkpoint holds.

    Weights are kept on values that bfloat16 can hold, so that a file of half the size is exact.
    """

    def __init__(self, config):
        super().__init__()
        self.encoder = Encoder(config)
        self.predictor = Predictor(config)
        self.novelty = nn.ModuleDict({side: Novelty(config.dim, len(config.knots(side))) for side in SIDES})

    @classmethod
    def seeded(cls, config, seed):
        """An untrained model; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config).round_()

    @torch.no_grad()
    def round_(self):
        """Round the weights to bfloat16 in place."""
        for parameter in self.parameters():
            parameter.copy_(parameter.bfloat16())
        return self

    def packed(self):
        """The state to be stored, in bfloat16; in float32 what was not rounded to it."""
        exact = tuple(f"novelty.{side}.{name}" for side in SIDES for name in ("mean", "limit"))
        return {
            name: tensor if name in exact else tensor.bfloat16()
            for name, tensor in self.state_dict().items()
        }


def _numpy(**tensors):
    return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}


@torch.inference_mode()
def encode(model, side, view):
    """Encode windows of one side.

    Returns
    -------
    dict of ndarray
        ``tokens`` (n, n_token, dim), ``positions`` (n, n_token, 2), ``seen`` (n, n_token) whether a token has a valid
        pixel, ``cls`` (n, dim), ``embedding`` (n, proj_dim), ``coverage`` (n,) fraction of valid pixels, ``ood_score``
        (n,).
    """
    device = next(model.parameters()).device
    view = view.to(device)
    tokens, cls, embedding = model.encoder(side, view)
    valid = view.valid.any(1).float()  # a pixel counts when any band has it
    seen = F.max_pool2d(valid, model.encoder.config.patch).flatten(1) > 0
    return {"seen": seen.cpu().numpy()} | _numpy(
        tokens=tokens,
        positions=view.positions,
        cls=cls,
        embedding=embedding,
        coverage=valid.mean((-2, -1)),
        ood_score=model.novelty[side](tokens, presence(view)),
    )


@torch.inference_mode()
def read_out(encoder, side, view):
    """The token in the middle of windows that are centred on what is asked about.

    Parameters
    ----------
    encoder : `~rosetta.encoding.network.Encoder`
    side : {"ground", "space"}
    view : `~rosetta.encoding.network.View`
        Of windows of `READ_OUT`.

    Returns
    -------
    ndarray, shape (n, dim), float32
        NaN where the middle patch has no valid pixel.
    """
    view, patch = view.to(next(encoder.parameters()).device), encoder.config.patch
    count = view.pixels.shape[-1] // patch
    row, column = torch.meshgrid(*[torch.arange(count) - count // 2] * 2, indexing="ij")
    kept = (row**2 + column**2).flatten().argsort(stable=True)[:NEAREST].to(view.pixels.device)
    tokens = encoder(side, replace(view, kept=kept.expand(len(view.pixels), -1)))[0][:, 0].float()
    middle = slice(patch * (count // 2), patch * (count // 2 + 1))
    there = view.valid[..., middle, middle].flatten(1).any(1)
    return torch.where(there[:, None], tokens, torch.nan).cpu().numpy()


@torch.inference_mode()
def look(encoder, side, view):
    """Where the token in the middle of a window looks.

    Parameters
    ----------
    encoder : `~rosetta.encoding.network.Encoder`
    side : {"ground", "space"}
    view : `~rosetta.encoding.network.View`
        Of windows of an odd number of patches.

    Returns
    -------
    ndarray, shape (n, depth, heads, 1 + n_token), float32
        Attention to CLS and to every token; sums to one.
    """
    view = view.to(next(encoder.parameters()).device)
    middle = torch.tensor([view.positions.shape[1] // 2], device=view.pixels.device)
    return encoder.attention(side, view, middle)[..., 0, :].float().cpu().numpy()


def disc(radius):
    """Shifts (east, north) all over a disc, arcsec, (n, 2): a triangular lattice, finer than plane waves are long."""
    n = int(np.ceil(radius / (STEP * np.sqrt(0.75)))) + 1
    row, column = np.mgrid[-n : n + 1, -n : n + 1]
    shifts = STEP * np.stack([column + 0.5 * (row % 2), row * np.sqrt(0.75)], -1).reshape(-1, 2)
    return shifts[np.hypot(*shifts.T) < radius + 0.5 * STEP]


@torch.inference_mode()
def moved(model, side, view, shifts):
    """Embeddings of windows as if they lay elsewhere.

    Parameters
    ----------
    model : Model
    side : {"ground", "space"}
    view : `~rosetta.encoding.network.View`
    shifts : ndarray, shape (n_shift, 2)
        (east, north), arcsec.

    Returns
    -------
    ndarray, shape (n_shift, n, proj_dim)
    """
    device = next(model.parameters()).device
    view = view.to(device)
    shifts = torch.as_tensor(np.asarray(shifts, np.float32), device=device)
    return torch.stack(
        [model.encoder(side, replace(view, positions=view.positions + shift))[2] for shift in shifts]
    ).float().cpu().numpy()


@torch.inference_mode()
def predict(model, source, target, positions, condition, batch):
    """Predict the tokens and the embedding of side ``target`` from the encoded ``source`` arrays.

    Parameters
    ----------
    model : Model
    source : dict of ndarray
        As returned by `encode` for the other side.
    target : {"ground", "space"}
    positions : ndarray, shape (n_query, 2)
        Where to predict tokens: (east, north) in arcsec from the window centre.
    condition : ndarray, shape (n_knot, 3)
        As made by `rosetta.encoding.network.conditions` for the target side.
    batch : int
        Windows at a time.
    """
    device = next(model.parameters()).device
    n = len(source["cls"])
    positions = torch.as_tensor(np.asarray(positions, np.float32), device=device)
    condition = torch.as_tensor(condition, device=device)
    parts = []
    for start in range(0, n, batch):
        rows = slice(start, start + batch)
        tokens, cls, where = (
            torch.tensor(source[name][rows], device=device) for name in ("tokens", "cls", "positions")
        )
        asked = positions.expand(len(cls), -1, -1)
        tokens, cls = model.predictor(tokens, cls, where, target, asked, condition.expand(len(cls), -1, -1))
        parts.append(
            _numpy(
                tokens=tokens,
                positions=asked,
                cls=cls,
                embedding=model.encoder.project(cls),
            )
        )
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return found | {"ood_score": source["ood_score"]}  # as strange as what it was made from


def fit(model, tiles, held_out, config, *, checkpoint=None, callback=None):
    """Train a model in place, round it, and measure it on held-out tiles.

    Parameters
    ----------
    model : Model
    tiles, held_out : list of `~rosetta.encoding.observing.TrainingTile`
        ``held_out`` may be empty: then novelty stays uncalibrated and nothing is measured.
    config : `~rosetta.encoding.pretraining.TrainConfig`
    checkpoint, callback
        As for `~rosetta.encoding.pretraining.train`.

    Returns
    -------
    dict
        Steps, minutes, pairs seen, and retrieval on the held-out tiles per window.
    """
    result = train(model.encoder, model.predictor, tiles, config, checkpoint=checkpoint, callback=callback)
    model.round_().eval()
    summary = {"steps": result.steps, "minutes": result.elapsed / 60, "pairs_seen": result.pairs}
    if held_out:
        calibrate(model, tiles, held_out, config)
        summary["held_out"] = {
            f"{window} arcsec": {
                "gallery": n, **evaluate(model.encoder, held_out, n, window, config.seed, batch=batch)
            }
            for window, n, batch in _measured_windows(config)
        }
    return summary


def _measured_windows(config):
    """(window, how many, how many at a time) for every size that was trained on."""
    batches = {window: batch for _, window, batch in config.phases}
    return [(window, int(_MEASURED * 12.8 / window), batch) for window, batch in sorted(batches.items())]


@torch.inference_mode()
def calibrate(model, tiles, held_out, config):
    """Fit the novelty score of each side on windows of training tiles and set its limit on held-out ones.

    Windows of all sizes from the smallest that was trained on to a third more than the largest.
    """
    trained = _measured_windows(config)
    smallest, _, batch = trained[0]
    sets, device = [], next(model.parameters()).device
    for chosen, more in ((tiles, 4), (held_out, 2)):  # more windows than a summary has numbers
        windows, found = Windows(chosen, device=device), Familiar(model, config.seed)
        for window in window_sizes(smallest, 4 / 3 * trained[-1][0]):
            share = (smallest / window) ** 2  # as much sky in windows of every size
            at_once = max(int(batch * share), 1)
            for step in range(int(np.ceil(more * _MEASURED * share / at_once))):
                # Beyond any step that training can have reached with this seed: other noise, other places.
                drawn = windows.batch(window, at_once, config.seed, 2**40 + step)
                for side in SIDES:
                    found.add(side, drawn.views[side])
        sets.append(found)
    set_novelty(model, *sets)


def set_novelty(model, reference, held_out):
    """Fit the novelty score of both sides on `~rosetta.encoding.familiar.Familiar` windows, and set its limit."""
    device = next(model.parameters()).device
    for side in SIDES:
        model.novelty[side].cpu().fit(reference.of(side), held_out.of(side)).to(device)
