# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The blend network: how likely a fitted source is several, from the figures of its fit, learned from known truth."""

import numpy as np
import torch
from torch import nn

__all__ = ["N_FIGURE", "BlendNet", "predict", "train"]

N_FIGURE = 40
DROPPED = 0.3  # share of hidden units: some thousand sources are soon known by heart
WIDTH = 32
STEPS, BATCH = 1000, 256


class BlendNet(nn.Module):
    """Logit of the probability that a source is several."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(N_FIGURE, WIDTH), nn.GELU(), nn.Dropout(DROPPED),
            nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(DROPPED), nn.Linear(WIDTH, 1),
        )  # fmt: skip
        # Set in training: the figures' mean and scatter.
        self.register_buffer("mean", torch.zeros(N_FIGURE))
        self.register_buffer("spread", torch.ones(N_FIGURE))

    def forward(self, figures):
        """Logits (n,) of figures (n, N_FIGURE)."""
        # A figure far beyond all that were seen says no more than the farthest of them.
        return self.trunk(((figures - self.mean) / self.spread).clamp(-5.0, 5.0))[:, 0]


def predict(network, figures):
    """Probabilities that sources are several, (n,) float64 array, from their figures (n, N_FIGURE)."""
    with torch.inference_mode():
        logit = network(torch.from_numpy(np.asarray(figures, np.float32)).to(network.mean.device))
    return logit.sigmoid().cpu().numpy().astype(float)


def train(network, data, held_out, *, seed):
    """Fit the network by the likelihood of what is a blend.

    Classes are not balanced: the mean probability is the rate of blends on the sky that it learned from.

    Parameters
    ----------
    network : `BlendNet`
        Trained in place.
    data, held_out : dict of arrays
        ``figures`` (n, N_FIGURE) and ``several`` (n,), 1 where the source is a blend. Held-out rows come from other
        sky.
    seed : int

    Returns
    -------
    dict
        Of the held-out sources: ``blend_rate``, ``blend_mean`` (mean probability) and ``blend_gain`` (mean log
        likelihood less that of the rate of the training sky).
    """
    device = network.mean.device
    figures, several = (torch.from_numpy(np.asarray(data[k], np.float32)).to(device) for k in ("figures", "several"))
    network.mean.copy_(figures.mean(dim=0))
    network.spread.copy_(figures.std(dim=0, correction=0) + 1e-3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of what is dropped
        for _ in range(STEPS):
            rows = torch.randint(len(several), (BATCH,), generator=generator).to(device)
            loss = nn.functional.binary_cross_entropy_with_logits(network(figures[rows]), several[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    true, found = np.asarray(held_out["several"], float), predict(network, held_out["figures"])
    rate = float(np.clip(several.mean().item(), 1e-3, 1.0 - 1e-3))
    return {
        "blend_rate": float(true.mean()), "blend_mean": float(found.mean()),
        "blend_gain": _likelihood(true, found) - _likelihood(true, np.full(len(true), rate)),
    }  # fmt: skip


def _likelihood(true, probability):
    return float(np.mean(np.log(np.where(true > 0, probability, 1.0 - probability) + 1e-9)))
