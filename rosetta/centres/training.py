# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Training of the learned detector."""

import json
import logging

import numpy as np
import safetensors.torch
import torch
from torch import nn

from ..encoding.training_tiles import training_tiles
from ..files import atomic_write
from ..images.image import band_images
from ..training.loop import seeded
from .heat_map import loss_of
from .network import CentreNet
from .presentations import BANDS, TrueSources, presented

__all__ = ["fitted", "true_sources"]

log = logging.getLogger("rosetta")

RATE, DECAY, CLIP = 1.5e-3, 1e-4, 5.0  # AdamW
WARM, FALLING = 100, 0.5  # steps up to the peak rate; share of the steps in which it falls to zero
EVERY = 500  # steps between states that are kept


def true_sources(pair, truth):
    """The `TrueSources` of a noise-free pair; raises `ValueError` where the table lacks a column."""
    needed = ("sky_centroid", "half_light_radius", *(f"flux_{band.name}" for band in BANDS))
    if missing := [name for name in needed if name not in truth.colnames]:
        raise ValueError(f"truth has a table without {', '.join(missing)}: use tables as rosetta.simulate makes them")
    plane = next(iter(band_images(pair).values())).tangent_plane
    flux = np.stack([truth[f"flux_{band.name}"].to_value("nJy") for band in BANDS], -1)
    place = plane.east_north(truth["sky_centroid"])
    return TrueSources(place, flux, truth["half_light_radius"].to_value("arcsec"))


def fitted(pairs, truth, config, steps, seed, state=None, progress=None):
    """Train a network.

    Parameters
    ----------
    pairs, truth : sequence
        Noise-free pairs and their truth tables.
    config : `~rosetta.centres.network.CentreConfig`
    steps, seed : int
    state : `~pathlib.Path`, optional
        File to go on from, and to keep what an interrupted training has done.
    progress : callable, optional
        Called as ``progress(step, steps, loss)``.

    Returns
    -------
    network : `~rosetta.centres.network.CentreNet`
    report : dict
    """
    tiles, sources = [], []
    for index in range(len(pairs)):
        pair = pairs[index]
        tiles += training_tiles([pair])
        sources.append(true_sources(pair, truth[index]))
    with seeded(seed):
        network = CentreNet(config)
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    owner, first, losses = f"{seed} {steps} {config}", 0, []
    if state is not None and state.exists():
        first, losses = _restore(state, owner, network, optimizer)
    for step in range(first, steps):
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / WARM, (steps - step) / (FALLING * steps), 1.0)
        shown = presented(tiles, sources, config, seed, step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(shown.channels)
        loss = loss_of(logits, shown.heat, shown.weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, steps, losses[-1])
        if state is not None and (step + 1) % EVERY == 0:
            _keep(state, owner, network, optimizer, step + 1, losses)
    report = {"steps": steps, "n_pair": len(tiles), "loss": float(np.mean(losses[-1000:]))}
    log.info("detector trained: %s", report)
    return network.eval(), report


def _keep(path, owner, network, optimizer, step, losses):
    tensors = {f"network.{name}": value.contiguous() for name, value in network.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in moments.items()}
    tensors["losses"] = torch.tensor(losses)
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, {"owner": owner, "step": json.dumps(step)}))


def _restore(path, owner, network, optimizer):
    try:
        with safetensors.safe_open(path, "pt") as file:
            meta = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"checkpoint {path} is no training state ({error}): remove it to start anew") from error
    if (meta or {}).get("owner") != owner:
        raise ValueError(f"checkpoint {path} belongs to another training: give another file, or delete it")
    network.load_state_dict({n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")})
    known = optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            known["state"].setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict(known)
    return json.loads(meta["step"]), tensors["losses"].tolist()
