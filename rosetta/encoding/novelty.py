# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How unlike the training sky a window is: the Mahalanobis distance of a summary of its tokens.

Lee et al. (2018), with a mean for each survey and set of bands, and a shrunk correlation matrix. CLS is no good for
this: it holds where sources are, and that is anywhere. Mean and scatter of the tokens hold what the window is made of.
"""

import torch
from torch import nn

__all__ = ["Novelty", "summary"]

RARE = 20  # windows of a set of bands that say as much of its mean as the linear model of missing bands does


def summary(tokens):
    """Mean and ln(standard deviation) of each channel over the tokens (n, n_token, dim) of a window: (n, 2 * dim)."""
    return torch.cat([tokens.mean(1), tokens.std(1).clamp(min=1e-3).log()], -1)


class Novelty(nn.Module):
    """Scores of windows against a reference set.

    The score is the squared Mahalanobis distance of `summary` per dimension, from the mean of windows that were seen in
    the same bands (a band that is missing moves tokens as far as a strange sky does), divided by its 99th percentile
    for as many bands on sky that was not used to measure mean and covariance: scores above 1 happen for one ordinary
    window in a hundred.
    """

    def __init__(self, dim, n_knot):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2**n_knot, 2 * dim))
        self.register_buffer("whiten", torch.zeros(2 * dim, 2 * dim))  # until fitted every score is 0
        self.register_buffer("limit", torch.ones(n_knot + 1))

    @torch.no_grad()
    def fit(self, reference, held_out):
        """Measure means and covariance on ``reference`` and the 99th percentile on ``held_out``.

        Both are pairs of summaries (n, 2 * dim) and of what was there of each knot (n, n_knot), 0 to 1.
        """
        summaries, present = (array.double() for array in reference)
        bands, dim = _set_of(present), summaries.shape[1]
        every = torch.cartesian_prod(*[torch.arange(2.0)] * present.shape[1]).reshape(-1, present.shape[1])
        every = every.to(summaries)[_set_of(every).argsort()]
        linear = torch.linalg.lstsq(_padded(1 - present), summaries).solution
        own = torch.zeros(len(every), dim).to(summaries)
        own.index_add_(0, bands, summaries - _padded(1 - present) @ linear)
        own /= (torch.bincount(bands, minlength=len(every)) + RARE)[:, None]
        mean = _padded(1 - every) @ linear + own
        away = summaries - mean[bands]
        scatter = away.square().mean(0).sqrt()
        # A number that hardly varies on sky says as much as one that varies much: each is in units of its own scatter.
        values, vectors = torch.linalg.eigh(torch.cov((away / scatter).T))
        # Directions that hardly vary in a finite sample would otherwise dominate the distance.
        values = values.clamp(min=0) + 0.002 * values.mean()
        self.mean.copy_(mean)
        self.whiten.copy_((vectors / values.sqrt() / scatter[:, None]).bfloat16())  # as it is stored
        self.limit.fill_(1.0)
        score, count = self.score(*held_out), _count(held_out[1])
        for k in count.unique().tolist():
            self.limit[k] = torch.quantile(score[count == k], 0.99)
        return self

    def score(self, summaries, present):
        """Scores (n,) of summaries (n, 2 * dim), for the shares (n, n_knot) of each knot that was there.

        Infinite where the score is not a number: such a window is like nothing that was seen.
        """
        away = summaries.float() - self.mean[_set_of(present)]
        score = (away @ self.whiten).square().mean(-1) / self.limit[_count(present)]
        return torch.where(score.isnan(), torch.inf, score)

    def forward(self, tokens, present):
        """Scores (n,) of windows, from their tokens (n, n_token, dim)."""
        return self.score(summary(tokens), present)


def _count(present):
    """How many knots were there, (n,) int."""
    return (present >= 0.5).sum(1)


def _set_of(present):
    """Which knots were there, as the bits of a number: (n,) int."""
    return ((present >= 0.5) * 2 ** torch.arange(present.shape[1], device=present.device)).sum(1)


def _padded(columns):
    return torch.cat([torch.ones_like(columns[:, :1]), columns], 1)
