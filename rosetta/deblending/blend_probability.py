# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The blend network: how likely a fitted source is a blend, from the features of its fit, learned from known truth."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..training.network import FeatureNetwork

__all__ = ["N_FEATURE", "BlendConfig", "BlendNet", "predict", "report"]

N_FEATURE = 40


@dataclass(frozen=True)
class BlendConfig:
    """What a blend is, and the sizes of a `BlendNet`.

    Attributes
    ----------
    n_feature : int
        Features of a source.
    width : int
        Hidden units.
    dropout : float
        Share of the hidden units that is left out in training: with some thousand sources a network overfits.
    clip : float
        Features farther than this many standard deviations from their mean count as that far.
    hidden : float
        Share of a source's flux that another true source must have to make it a blend.
    reach : float
        Arcsec within which a true source belongs to the position nearest to it.
    """

    n_feature: int = N_FEATURE
    width: int = 32
    dropout: float = 0.3
    clip: float = 5.0
    hidden: float = 0.2
    reach: float = 1.0


class BlendNet(FeatureNetwork):
    """Logit of the probability that a source is a blend.

    Classes are not balanced: the mean probability is the rate of blends on the sky that it learned from.

    Parameters
    ----------
    config : `BlendConfig`
    """

    def __init__(self, config):
        super().__init__(config.n_feature, config.width, 1, config.dropout, config.clip)

    def forward(self, features):
        """Logits (n,) of features (n, n_feature)."""
        return super().forward(features)[:, 0]

    def loss(self, rows):
        """Cross entropy of ``is_blend`` (n,), 1 where a source is a blend, given its ``features`` (n, n_feature)."""
        return nn.functional.binary_cross_entropy_with_logits(self(rows["features"]), rows["is_blend"])


def predict(network, features):
    """Probabilities that sources are blends, (n,) float64 array, from their features (n, n_feature)."""
    with torch.inference_mode():
        logit = network(torch.from_numpy(np.asarray(features, np.float32)).to(network.mean.device))
    return logit.sigmoid().cpu().numpy().astype(float)


def report(network, data, held_out):
    """What a trained network knows of held-out sources.

    Returns
    -------
    dict
        ``blend_rate``, ``blend_mean`` (mean probability) and ``blend_gain`` (mean log-likelihood minus that of the
        rate on the training sky).
    """
    true, found = np.asarray(held_out["is_blend"], float), predict(network, held_out["features"])
    rate = np.full(len(true), np.clip(np.mean(data["is_blend"]), 1e-3, 1.0 - 1e-3))
    return {
        "blend_rate": float(true.mean()), "blend_mean": float(found.mean()),
        "blend_gain": _log_likelihood(true, found) - _log_likelihood(true, rate),
    }  # fmt: skip


def _log_likelihood(true, probability):
    return float(np.mean(np.log(np.where(true > 0, probability, 1.0 - probability) + 1e-9)))
