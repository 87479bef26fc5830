# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The blend network: how likely a fitted source is a blend, from the features of its fit, learned from known truth."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

__all__ = ["N_FEATURE", "BlendConfig", "BlendNet", "predict", "seeded", "train"]

N_FEATURE = 40
STEPS, BATCH = 1000, 256


@dataclass(frozen=True)
class BlendConfig:
    """Sizes of a `BlendNet`.

    Attributes
    ----------
    n_feature : int
        Features of a source.
    width : int
        Hidden units.
    dropout : float
        Share of the hidden units that is left out in training: some thousand sources are soon known by heart.
    """

    n_feature: int = N_FEATURE
    width: int = 32
    dropout: float = 0.3

    def to_dict(self):
        """The configuration as a JSON-able dict."""
        return asdict(self)


class BlendNet(nn.Module):
    """Logit of the probability that a source is a blend.

    Parameters
    ----------
    config : `BlendConfig`
    """

    def __init__(self, config):
        super().__init__()
        n, width, dropout = config.n_feature, config.width, config.dropout
        self.trunk = nn.Sequential(
            nn.Linear(n, width), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 1),
        )  # fmt: skip
        # Set in training: the features' mean and scatter.
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("spread", torch.ones(n))

    def forward(self, features):
        """Logits (n,) of features (n, N_FEATURE)."""
        # A feature far beyond all that were seen says no more than the farthest of them.
        return self.trunk(((features - self.mean) / self.spread).clamp(-5.0, 5.0))[:, 0]


def seeded(config, seed):
    """An untrained network of a configuration (dict), the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BlendNet(BlendConfig(**config))


def predict(network, features):
    """Probabilities that sources are blends, (n,) float64 array, from their features (n, N_FEATURE)."""
    with torch.inference_mode():
        logit = network(torch.from_numpy(np.asarray(features, np.float32)).to(network.mean.device))
    return logit.sigmoid().cpu().numpy().astype(float)


def train(network, data, held_out, *, seed):
    """Fit the network by the likelihood of what is a blend.

    Classes are not balanced: the mean probability is the rate of blends on the sky that it learned from.

    Parameters
    ----------
    network : `BlendNet`
        Trained in place.
    data, held_out : dict of arrays
        ``features`` (n, N_FEATURE) and ``is_blend`` (n,), 1 where the source is a blend. Held-out rows come from other
        sky.
    seed : int

    Returns
    -------
    dict
        Of the held-out sources: ``blend_rate``, ``blend_mean`` (mean probability) and ``blend_gain`` (mean log
        likelihood less that of the rate of the training sky).
    """
    device = network.mean.device
    arrays = (np.asarray(data[name], np.float32) for name in ("features", "is_blend"))
    features, is_blend = (torch.from_numpy(array).to(device) for array in arrays)
    network.mean.copy_(features.mean(dim=0))
    network.spread.copy_(features.std(dim=0, correction=0) + 1e-3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of what is dropped
        for _ in range(STEPS):
            rows = torch.randint(len(is_blend), (BATCH,), generator=generator).to(device)
            loss = nn.functional.binary_cross_entropy_with_logits(network(features[rows]), is_blend[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    true, found = np.asarray(held_out["is_blend"], float), predict(network, held_out["features"])
    rate = float(np.clip(is_blend.mean().item(), 1e-3, 1.0 - 1e-3))
    return {
        "blend_rate": float(true.mean()), "blend_mean": float(found.mean()),
        "blend_gain": _likelihood(true, found) - _likelihood(true, np.full(len(true), rate)),
    }  # fmt: skip


def _likelihood(true, probability):
    return float(np.mean(np.log(np.where(true > 0, probability, 1.0 - probability) + 1e-9)))
