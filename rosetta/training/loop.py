# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The one trainer of the heads' small networks."""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

__all__ = ["TrainerConfig", "seeded", "train"]


@dataclass(frozen=True)
class TrainerConfig:
    """How a small network is trained: AdamW (Loshchilov & Hutter 2019), one cycle of the learning rate.

    Attributes
    ----------
    steps : int
        Optimiser steps.
    batch : int
        Rows per step, drawn with replacement.
    rate : float
        Peak learning rate.
    weight_decay : float
    clip : float
        Largest norm of the gradient.
    look_every : int
        Steps between measurements of the held-out loss; the weights of the best one are kept.
    """

    steps: int
    batch: int
    rate: float = 2e-3
    weight_decay: float = 1e-2
    clip: float = 1.0
    look_every: int = 50


@contextmanager
def seeded(seed):
    """Draw torch's random numbers from ``seed`` within, and leave the caller's stream as it was."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def train(network, data, held_out, config, *, seed):
    """Train a network on rows; of its states, the one with the least loss on held-out rows is kept.

    Parameters
    ----------
    network : `~rosetta.training.network.HeadNetwork`
        Trained in place, on the device it is on, and left in evaluation mode.
    data, held_out : dict of arrays
        Rows as `~rosetta.training.network.HeadNetwork.loss` reads them, the first axis counting them; held-out rows
        come from other sky.
    config : `TrainerConfig`
    seed : int
        Of the batches and of what dropout leaves out.

    Returns
    -------
    dict
        ``n_row``, ``n_held_out``, ``loss`` (the least on held-out rows) and ``best_step``.

    Raises
    ------
    ValueError
        If the held-out loss was never finite.
    """
    device = next(network.parameters()).device
    data, held_out = _tensors(data, device), _tensors(held_out, device)
    n_row, n_held_out = (len(next(iter(rows.values()))) for rows in (data, held_out))
    network.prepare(data)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.rate, total_steps=config.steps)
    generator = torch.Generator().manual_seed(seed)
    least, best, best_step = np.inf, None, 0
    with seeded(seed):
        for step in range(1, config.steps + 1):
            network.train()
            rows = torch.randint(n_row, (config.batch,), generator=generator).to(device)
            loss = network.loss({name: tensor[rows] for name, tensor in data.items()})
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), config.clip)
            optimizer.step()
            schedule.step()
            if step % config.look_every == 0 or step == config.steps:
                network.eval()
                with torch.no_grad():
                    found = float(network.loss(held_out))
                if found < least:
                    state = {name: value.clone() for name, value in network.state_dict().items()}
                    least, best, best_step = found, state, step
    if best is None:
        raise ValueError("pairs: the network did not train to a finite loss, check images and truth for outliers")
    network.load_state_dict(best)
    network.eval()
    return {"n_row": n_row, "n_held_out": n_held_out, "loss": least, "best_step": best_step}


def _tensors(rows, device):
    return {name: torch.as_tensor(np.asarray(array, np.float32), device=device) for name, array in rows.items()}
