# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Scatter of source positions beyond their pixel noise, predicted by a small network.

The network reads the frozen tokens at the source and a few classical features, and predicts the extra
scatter (mas, per axis) that is added in quadrature to the measured covariance. It cannot move a source.
Colour gradients and blends cause it in any pair; proper motion is predicted only if training pairs had it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..training.network import HeadNetwork

__all__ = ["N_SCALAR", "ExcessNoise", "ExcessNoiseConfig", "excess_noise", "report"]

N_SCALAR = 6


@dataclass(frozen=True)
class ExcessNoiseConfig:
    """Sizes and limits of an `ExcessNoise`.

    Attributes
    ----------
    token_dim : int
        Length of a token.
    n_scalar : int
        Classical numbers of a source.
    width : int
        Hidden units.
    least, most : float
        Limits of the extra scatter, mas.
    """

    token_dim: int = 384
    n_scalar: int = N_SCALAR
    width: int = 32
    least: float = 0.05
    most: float = 300.0


class ExcessNoise(HeadNetwork):
    """Tokens (ground, space) and scalars -> ln of the extra scatter in mas.

    Parameters
    ----------
    config : `ExcessNoiseConfig`
    """

    def __init__(self, config):
        super().__init__()
        width = config.width
        self.limits = float(np.log(config.least)), float(np.log(config.most))
        self.tokens = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(config.token_dim), nn.Linear(config.token_dim, width)) for _ in range(2)]
        )
        self.scalars = nn.Linear(config.n_scalar, width)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, 1))
        nn.init.zeros_(self.head[-1].weight)
        nn.init.constant_(self.head[-1].bias, np.log(5.0))

    def forward(self, ground, space, scalars):
        """(n, dim), (n, dim), (n, N_SCALAR) -> (n,)"""
        parts = [layer(t) for layer, t in zip(self.tokens, (ground, space), strict=True)]
        out = self.head(torch.cat([*parts, self.scalars(scalars)], -1))[:, 0]
        return out.clamp(*self.limits)

    def loss(self, rows):
        """Of residuals of known offsets, a row per source and band.

        ``ground``, ``space`` (n, token_dim) and ``scalars`` (n, n_scalar) are read; ``residual`` (n, 2) is measured
        minus true offset, mas, and ``cov`` (n, 2, 2) its covariance from pixel noise, mas^2.
        """
        return _negative_log_density(self(*(rows[name] for name in _READ)), rows["residual"], rows["cov"]).mean()


_READ = ("ground", "space", "scalars")


@torch.inference_mode()
def excess_noise(network, ground, space, scalars):
    """Extra scatter of each source: arrays (n, dim), (n, dim), (n, n_scalar) -> (n,) mas."""
    device = next(network.parameters()).device
    tensors = (torch.as_tensor(np.asarray(a, np.float32), device=device) for a in (ground, space, scalars))
    return network(*tensors).exp().cpu().numpy().astype(float)


def _negative_log_density(log_extra, residual, cov, dof=5.0):
    """Negative log-density of a bivariate Student-t (heavy tails: mismatches must not set the scale)."""
    total = cov + torch.exp(2 * log_extra)[:, None, None] * torch.eye(2, device=cov.device)
    det = total[:, 0, 0] * total[:, 1, 1] - total[:, 0, 1] ** 2
    x, y = residual.T
    chi2 = (total[:, 1, 1] * x**2 - 2 * total[:, 0, 1] * x * y + total[:, 0, 0] * y**2) / det
    # Scaled so that the core of the distribution has the stated covariance.
    return 0.5 * torch.log(det) + 0.5 * (dof + 2) * torch.log1p(chi2 / dof)


def report(network, held_out):
    """What a trained network knows of held-out rows.

    Returns
    -------
    dict
        ``loss_without`` and ``loss_with`` the extra scatter, and ``pull_without`` and ``pull_with``, the scatter of
        residuals in units of their error (NMAD; 1 is right).
    """
    out = {}
    extra = excess_noise(network, *(held_out[name] for name in _READ))
    residual, cov = (torch.as_tensor(np.asarray(held_out[name], float)) for name in ("residual", "cov"))
    for name, scatter in (("without", np.full_like(extra, np.exp(network.limits[0]))), ("with", extra)):
        log_extra = torch.log(torch.as_tensor(scatter))
        variance = torch.diagonal(cov, dim1=1, dim2=2) + torch.exp(2 * log_extra)[:, None]
        out[f"loss_{name}"] = float(_negative_log_density(log_extra, residual, cov).mean())
        out[f"pull_{name}"] = float(1.4826 * (residual / variance.sqrt()).abs().median())
    return out
