# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How unlike the training sky a window is: the Mahalanobis distance of its summary vector.

Lee et al. (2018), with one Gaussian per survey and a shrunk covariance.
"""

import torch
from torch import nn

__all__ = ["Novelty"]


class Novelty(nn.Module):
    """Scores of summary vectors against a reference set.

    The score is the squared Mahalanobis distance per dimension, divided by its 99th percentile on sky that was not
    used to measure mean and covariance: scores above 1 happen for one ordinary window in a hundred.
    """

    def __init__(self, dim):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whiten", torch.zeros(dim, dim))  # until fitted every score is 0
        self.register_buffer("limit", torch.ones(()))

    @torch.no_grad()
    def fit(self, reference, held_out):
        """Measure the Gaussian on ``reference`` (n, dim) and the 99th percentile on ``held_out`` (m, dim)."""
        reference = reference.double()
        mean = reference.mean(0)
        covariance = torch.cov((reference - mean).T)
        # Directions that hardly vary in a finite sample would otherwise dominate the distance.
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp(min=0) + 0.05 * values.mean()
        self.mean.copy_(mean)
        self.whiten.copy_(vectors / values.sqrt())
        self.limit.fill_(1.0)
        self.limit.copy_(torch.quantile(self(held_out.float()), 0.99))
        return self

    def forward(self, cls):
        """Scores (n,) of summary vectors (n, dim)."""
        return ((cls - self.mean) @ self.whiten).square().mean(-1) / self.limit
