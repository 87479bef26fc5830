# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The encoder's training loop: one code path on CPU and CUDA, resumed exactly where it stopped."""

import hashlib
import json
import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ..files import atomic_write
from ..surveys import CONDITIONS
from .losses import Objective, cosine_gap, rank_me, retrieval, same_sky
from .network import SIDES
from .training_windows import Windows

__all__ = ["TrainConfig", "TrainResult", "TrainingError", "train", "evaluate"]

log = logging.getLogger("rosetta")

STATE_FORMAT = 1
_ADAM = ("exp_avg", "exp_avg_sq")


class TrainingError(RuntimeError):
    """Training ran into non-finite losses or collapsed embeddings."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Parameters
    ----------
    steps : int or None
        Number of optimiser steps.
    max_minutes : float or None
        Wall-clock limit; the schedule follows whichever of the two is further on. At least one is given.
    phases : tuple of (float, float, int)
        (share of the training, window in arcsec, windows per step), in order.
    lr : float
        Peak learning rate.
    weight_decay : float
        On matrices only.
    warmup : float
        Share of the training in which the learning rate rises linearly; then it falls as a cosine.
    clip : float
        Largest norm of the gradient.
    seed : int
    bf16 : bool or None
        Autocast to bfloat16. None: where the device multiplies it faster than float32.
    weights : dict
        Weight of each term of `~rosetta.encoding.losses.Objective`.
    keep : float
        Share of the tokens that the trunk sees, drawn anew for each window; fewer make a step cheaper.
    log_every, save_every : int
        Steps between calls of the callback and between checkpoints.
    """

    steps: int | None = None
    max_minutes: float | None = None
    phases: tuple = ((0.65, 12.8, 96), (0.35, 38.4, 16))
    lr: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0
    bf16: bool | None = None
    weights: dict = field(default_factory=lambda: {"match": 1.0, "own": 1.0, "cross": 1.0, "latent": 0.5})
    keep: float = 0.5
    log_every: int = 20
    save_every: int = 200

    def __post_init__(self):
        if self.steps is None and self.max_minutes is None:
            raise ValueError("steps and max_minutes are both None: give at least one of them")
        for name in ("steps", "max_minutes", "log_every", "save_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}: it must be positive")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep}: it is a share of the tokens, above 0 and at most 1")
        object.__setattr__(self, "phases", tuple(tuple(phase) for phase in self.phases))
        if not self.phases or abs(sum(share for share, _, _ in self.phases) - 1) > 1e-6:
            raise ValueError(f"phases is {self.phases}: the shares must sum to 1")
        for _share, window, batch in self.phases:
            if window < 12.8 - 1e-6 or abs(window / 3.2 - round(window / 3.2)) > 1e-6:
                raise ValueError(
                    f"phases has a window of {window} arcsec: use a multiple of 3.2, at least 12.8"
                )
            if batch < 2:
                raise ValueError(f"phases has a batch of {batch}: a contrast needs at least 2 windows")

    def progress(self, step, elapsed):
        """Share of the training that is done.

        Parameters
        ----------
        step : int
        elapsed : float
            Seconds.

        Returns
        -------
        float
            0 to 1: by steps or by time, whichever is further on.
        """
        by_step = step / self.steps if self.steps else 0.0
        by_time = elapsed / (60 * self.max_minutes) if self.max_minutes else 0.0
        return min(1.0, max(by_step, by_time))

    def phase(self, progress):
        """What a step reads.

        Parameters
        ----------
        progress : float

        Returns
        -------
        window : float
            Arcsec.
        batch : int
            Windows per step.
        """
        ends = np.cumsum([share for share, _, _ in self.phases])
        # Rounding must not bring a phase forward or leave the last one without an end.
        index = min(int(np.searchsorted(ends, progress + 1e-9, side="right")), len(self.phases) - 1)
        return self.phases[index][1:]

    def rate(self, progress):
        """Learning rate.

        Parameters
        ----------
        progress : float

        Returns
        -------
        float
        """
        if progress < self.warmup:
            return self.lr * max(progress / self.warmup, 1e-3)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


@dataclass(frozen=True)
class TrainResult:
    """What a training did: steps, seconds of wall clock, pairs of windows seen, and the metrics of the callback."""

    steps: int
    elapsed: float
    pairs: int
    metrics: tuple


def train(
    encoder, predictor, tiles, config, *,
    checkpoint=None, callback=None, conditions=CONDITIONS, objective=Objective,
):
    """Train the encoder and predictor in place.

    Parameters
    ----------
    encoder : `~rosetta.encoding.network.Encoder`
    predictor : `~rosetta.encoding.network.Predictor`
        On the device of the encoder.
    tiles : sequence of `~rosetta.encoding.observing.TrainingTile`
    config : `TrainConfig`
    checkpoint : path-like, optional
        File of the training state: written as training goes, and continued from where it exists. On the CPU,
        with ``steps``, a resumed training equals an uninterrupted one bit for bit.
    callback : callable, optional
        ``callback(step, metrics)`` every ``config.log_every`` steps and after the last; metrics is a dict of
        floats: loss, match, own, cross, latent, retrieval, gap, rank, std, temperature, lr, pairs_per_second,
        window, progress, elapsed.
    conditions : dict of `~rosetta.encoding.observing.Conditions`
        Per side.
    objective : type
        `~rosetta.encoding.losses.Objective` or a class derived from it.

    Returns
    -------
    `TrainResult`

    Raises
    ------
    TrainingError
        If the loss is not finite or the embeddings collapse; the last checkpoint is kept.
    ValueError
        If the checkpoint belongs to another training.
    """
    device = next(encoder.parameters()).device
    windows = Windows(tiles, conditions, device)
    n_band = {side: len(conditions[side].depth) for side in SIDES}
    with torch.random.fork_rng(devices=[]):  # the readouts follow the seed, and the caller's stream is left alone
        torch.manual_seed(config.seed)
        objective = objective(encoder.config, n_band, config.weights).to(device)
    model = nn.ModuleDict({"encoder": encoder, "predictor": predictor, "objective": objective}).train()
    optimizer = _optimizer(model, config)
    step, elapsed, seen = 0, 0.0, 0
    identity = _identity(model, config, tiles)
    if checkpoint is not None and Path(checkpoint).exists():
        step, elapsed, seen = _load_state(checkpoint, model, optimizer, identity)
        log.info("resumed %s at step %d", checkpoint, step)
    bf16 = fast_bfloat16(device) if config.bf16 is None else config.bf16
    finite = torch.ones((), dtype=torch.bool, device=device)
    start = time.monotonic() - elapsed
    history, since, pairs = [], time.monotonic(), 0
    progress = config.progress(step, elapsed)
    while progress < 1:
        window, n = config.phase(progress)
        batch = windows.batch(window, n, config.seed, step, config.keep)
        for group in optimizer.param_groups:
            group["lr"] = config.rate(progress)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, terms, embeddings = objective(encoder, predictor, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        finite &= torch.isfinite(loss.detach()) & torch.isfinite(norm)  # looked at later: asking would wait for the GPU
        optimizer.step()
        step += 1
        pairs += n
        seen += n
        elapsed = time.monotonic() - start
        lr, progress = config.rate(progress), config.progress(step, elapsed)
        looked = step % config.log_every == 0 or progress >= 1
        saved = checkpoint is not None and (step % config.save_every == 0 or progress >= 1)
        if (looked or saved) and not finite:
            raise TrainingError(
                f"loss {float(loss.detach()):.3g}, gradient norm {float(norm):.3g} at step {step}, or one of these at "
                f"a step before: not finite; lower lr ({config.lr}) and continue from the last checkpoint"
            )
        if looked:
            metrics = {"loss": float(loss.detach()), **{name: float(term) for name, term in terms.items()}}
            metrics |= _gauges(embeddings["ground"], embeddings["space"], batch.same)
            metrics |= {"temperature": objective.temperature(), "lr": lr, "window": window}
            metrics |= {
                "pairs_per_second": pairs / (time.monotonic() - since),
                "progress": progress,
                "elapsed": elapsed,
            }
            since, pairs = time.monotonic(), 0
            if progress > config.warmup and metrics["std"] < 1e-3:
                raise TrainingError(
                    f"embeddings collapsed at step {step} (std {metrics['std']:.1e} of a possible 1): "
                    "lower lr or raise the weight of the match term, and continue from the last checkpoint"
                )
            history.append(metrics)
            if callback is not None:
                try:
                    callback(step, metrics)
                except KeyboardInterrupt:  # a stop between two steps: the next run goes on from here
                    if checkpoint is not None:
                        _save_state(checkpoint, model, optimizer, identity, step, elapsed, seen)
                    raise
        if saved:
            _save_state(checkpoint, model, optimizer, identity, step, elapsed, seen)
    model.eval()
    return TrainResult(step, elapsed, seen, tuple(history))


@torch.no_grad()
def evaluate(encoder, tiles, n, window, seed, *, conditions=CONDITIONS, batch=48, bf16=False):
    """Retrieval on a fixed set of windows, for tiles that were never trained on.

    Parameters
    ----------
    encoder : `~rosetta.encoding.network.Encoder`
    tiles : sequence of `~rosetta.encoding.observing.TrainingTile`
    n : int
        Number of windows.
    window : float
        arcsec.
    seed : int
    conditions : dict of `~rosetta.encoding.observing.Conditions`
    batch : int
        Windows in memory at a time.
    bf16 : bool
        Autocast to bfloat16.

    Returns
    -------
    dict of float
        retrieval (mean of both directions, among ``n`` less those that overlap), gap, rank, std.
    """
    device = next(encoder.parameters()).device
    windows = Windows(tiles, conditions, device)
    was_training = encoder.training
    encoder.eval()
    embeddings = {side: [] for side in SIDES}
    tile, centers = [], []
    for index, first in enumerate(range(0, n, batch)):
        drawn = windows.batch(window, min(batch, n - first), seed, index)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            for side in SIDES:
                embeddings[side].append(encoder(side, drawn.views[side])[2])
        tile.append(drawn.tile)
        centers.append(drawn.centers)
    encoder.train(was_training)
    same = same_sky(torch.cat(tile), torch.cat(centers), window)
    return _gauges(*(torch.cat(embeddings[side]) for side in SIDES), same)


def fast_bfloat16(device):
    """Whether a device multiplies bfloat16 faster than float32: a GPU, or a CPU with AVX512-BF16 or AMX."""
    if device.type != "cpu":
        return True
    known = getattr(torch.cpu, "get_capabilities", dict)()  # before torch 2.9 nothing is known
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _gauges(ground, space, same):
    both = torch.cat([ground, space])
    # 1 is an embedding spread evenly over the sphere, 0 a collapsed one.
    spread = both.std(0).square().sum().sqrt()
    return {
        "retrieval": float(retrieval(ground, space, same)),
        "gap": float(cosine_gap(ground, space, same)),
        "rank": float(rank_me(both)),
        "std": float(spread),
    }


def _optimizer(model, config):
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))


# ------------------------------------------------------------------------------------- training state
def _identity(model, config, tiles):
    """What must agree between a checkpoint and the training that continues it."""
    digest = hashlib.sha256()
    for tile in tiles:
        for side in (tile.ground, tile.space):
            digest.update(side.affine.tobytes() + side.pixels[:, ::61, ::61].cpu().numpy().tobytes())
    data = {"n_tiles": len(tiles), "digest": digest.hexdigest()[:16]}
    return json.loads(
        json.dumps({"encoder": asdict(model["encoder"].config), "train": asdict(config), "tiles": data})
    )


def _save_state(path, model, optimizer, identity, step, elapsed, seen):
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach()
        # A parameter that no term of the objective reads has no state.
        tensors |= {f"{key}.{name}": optimizer.state[parameter][key] for key in _ADAM if parameter in optimizer.state}
    meta = {"format": STATE_FORMAT, "step": step, "elapsed": elapsed, "seen": seen, **identity}
    content = save(
        {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
        metadata={"rosetta-training": json.dumps(meta)},
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _load_state(path, model, optimizer, identity):
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {})["rosetta-training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        form, step, seen = (int(meta[key]) for key in ("format", "step", "seen"))
        elapsed = float(meta["elapsed"])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"checkpoint {path} is not a training state ({error}): remove it to start anew"
        ) from error
    if form > STATE_FORMAT:
        raise ValueError(f"checkpoint {path} has the newer format {form}: update rosetta")
    for part, wanted in identity.items():
        differ = [key for key in wanted if meta.get(part, {}).get(key) != wanted[key]]
        if differ:
            raise ValueError(
                f"checkpoint {path} belongs to another training ({part}: {', '.join(differ)} differ): "
                "use its settings, or remove it to start anew"
            )
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    moved = {name: shape for name, shape in wanted.items() if f"{_ADAM[0]}.{name}" in shapes}
    wanted |= {f"{key}.{name}": shape for name, shape in moved.items() for key in _ADAM}
    if shapes != wanted or not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError(f"checkpoint {path} is damaged (tensors of other shapes, NaN or infinity): remove it")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
            if f"{_ADAM[0]}.{name}" not in tensors:
                continue
            optimizer.state[parameter] = {"step": torch.tensor(float(step))} | {
                key: tensors[f"{key}.{name}"].to(parameter.device) for key in _ADAM
            }
    return step, elapsed, seen
