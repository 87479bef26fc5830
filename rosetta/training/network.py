# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the trainer asks of a network, and the network that reads features of fits."""

import torch
from torch import nn

__all__ = ["FeatureNetwork", "HeadNetwork"]


class HeadNetwork(nn.Module):
    """A small network that knows how good its answers are."""

    def prepare(self, rows):
        """Adapt to the training rows (dict of tensors) before the first step."""

    def loss(self, rows):
        """Mean negative log-likelihood of rows (dict of tensors), up to a constant: a tensor of one number."""
        raise NotImplementedError


class FeatureNetwork(HeadNetwork):
    """Two hidden layers on normalised features.

    Parameters
    ----------
    n_feature, width, n_out : int
        Features, hidden units in each layer, and outputs.
    dropout : float
        Share of the hidden units that is left out in training.
    clip : float
        Features farther than this many standard deviations from their mean count as that far: beyond all that was
        seen in training nothing is known.
    """

    def __init__(self, n_feature, width, n_out, dropout, clip):
        super().__init__()
        self.clip = clip
        self.trunk = nn.Sequential(
            nn.Linear(n_feature, width), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, n_out),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(n_feature))
        self.register_buffer("spread", torch.ones(n_feature))

    def prepare(self, rows):
        """Measure mean and scatter of the features, (n, n_feature)."""
        features = rows["features"]
        self.mean.copy_(features.mean(dim=0))
        self.spread.copy_(features.std(dim=0, correction=0) + 1e-3)  # a constant feature has no scatter

    def forward(self, features):
        """(..., n_feature) -> (..., n_out)"""
        return self.trunk(((features - self.mean) / self.spread).clamp(-self.clip, self.clip))
