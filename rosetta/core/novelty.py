# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How unlike the training sky a window is: the Mahalanobis distance of a summary of its tokens.

Lee et al. (2018), with one Gaussian per survey and a shrunk correlation matrix. CLS is no good for this: it holds where
sources are, and that is anywhere. Mean and scatter of the tokens hold what the window is made of.
"""

import torch
from torch import nn

__all__ = ["Novelty", "summary"]


def summary(tokens):
    """Mean and ln(standard deviation) of each channel over the tokens (n, n_token, dim) of a window: (n, 2 * dim)."""
    return torch.cat([tokens.mean(1), tokens.std(1).clamp(min=1e-3).log()], -1)


class Novelty(nn.Module):
    """Scores of windows against a reference set.

    The score is the squared Mahalanobis distance of `summary` per dimension, divided by its 99th percentile on sky that
    was not used to measure mean and covariance: scores above 1 happen for one ordinary window in a hundred.
    """

    def __init__(self, dim):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * dim))
        self.register_buffer("whiten", torch.zeros(2 * dim, 2 * dim))  # until fitted every score is 0
        self.register_buffer("limit", torch.ones(()))

    @torch.no_grad()
    def fit(self, reference, held_out):
        """Measure the Gaussian on ``reference`` (n, 2 * dim) and the 99th percentile on ``held_out`` (m, 2 * dim)."""
        reference = reference.double()
        mean, scatter = reference.mean(0), reference.std(0)
        # A number that hardly varies on sky says as much as one that varies much: each is in units of its own scatter.
        values, vectors = torch.linalg.eigh(torch.cov(((reference - mean) / scatter).T))
        # Directions that hardly vary in a finite sample would otherwise dominate the distance.
        values = values.clamp(min=0) + 0.002 * values.mean()
        self.mean.copy_(mean)
        self.whiten.copy_((vectors / values.sqrt() / scatter[:, None]).bfloat16())  # as it is stored
        self.limit.fill_(1.0)
        self.limit.copy_(torch.quantile(self.score(held_out.float()), 0.99))
        return self

    def score(self, summaries):
        """Scores (n,) of summaries (n, 2 * dim)."""
        return ((summaries - self.mean) @ self.whiten).square().mean(-1) / self.limit

    def forward(self, tokens):
        """Scores (n,) of windows, from their tokens (n, n_token, dim)."""
        return self.score(summary(tokens))
