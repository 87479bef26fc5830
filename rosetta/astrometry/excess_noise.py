# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How far a source may stray from its frame beyond its pixel noise, as learnt from the pairs it was trained on.

A small network reads the frozen tokens at the source and a few classical numbers, and gives the extra
scatter (mas, per axis) that is added in quadrature to the measured covariance. It cannot move a source.
Colour gradients and blends stray in any pair; proper motion is known only where training pairs had it.
"""

import numpy as np
import torch
from torch import nn

__all__ = ["N_SCALAR", "ExcessNoise", "excess_noise", "seeded", "train"]

N_SCALAR = 6
_LOW, _HIGH = np.log(0.05), np.log(300.0)  # mas


class ExcessNoise(nn.Module):
    """Tokens (ground, space) and scalars -> ln of the extra scatter in mas.

    Parameters
    ----------
    token_dim, width : int
    """

    def __init__(self, token_dim=384, width=32):
        super().__init__()
        self.tokens = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, width)) for _ in range(2)]
        )
        self.scalars = nn.Linear(N_SCALAR, width)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, 1))
        nn.init.zeros_(self.head[-1].weight)
        nn.init.constant_(self.head[-1].bias, np.log(5.0))

    def forward(self, ground, space, scalars):
        """(n, dim), (n, dim), (n, N_SCALAR) -> (n,)"""
        parts = [layer(t) for layer, t in zip(self.tokens, (ground, space), strict=True)]
        out = self.head(torch.cat([*parts, self.scalars(scalars)], -1))[:, 0]
        return out.clamp(_LOW, _HIGH)


def seeded(config, seed):
    """An untrained network; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ExcessNoise(**config)


def _tensors(arrays, device):
    return [torch.as_tensor(np.asarray(a, np.float32), device=device) for a in arrays]


@torch.no_grad()
def excess_noise(network, ground, space, scalars):
    """Extra scatter of each source: arrays (n, dim), (n, dim), (n, N_SCALAR) -> (n,) mas."""
    device = next(network.parameters()).device
    return network(*_tensors((ground, space, scalars), device)).exp().cpu().numpy().astype(float)


def _loss(log_extra, residual, cov, dof=5.0):
    """Negative log-density of a bivariate Student-t (heavy tails: mismatches must not set the scale)."""
    total = cov + torch.exp(2 * log_extra)[:, None, None] * torch.eye(2, device=cov.device)
    det = total[:, 0, 0] * total[:, 1, 1] - total[:, 0, 1] ** 2
    x, y = residual.T
    chi2 = (total[:, 1, 1] * x**2 - 2 * total[:, 0, 1] * x * y + total[:, 0, 0] * y**2) / det
    # Scaled so that the core of the distribution has the stated covariance.
    return 0.5 * torch.log(det) + 0.5 * (dof + 2) * torch.log1p(chi2 / dof)


def train(network, ground, space, scalars, residual, cov, group, *, seed=0, steps=600):
    """Fit the network to residuals of known offsets.

    Parameters
    ----------
    network : ExcessNoise
    ground, space : numpy.ndarray, shape (n, dim)
        Tokens.
    scalars : numpy.ndarray, shape (n, N_SCALAR)
    residual : numpy.ndarray, shape (n, 2)
        Measured minus true offset, mas.
    cov : numpy.ndarray, shape (n, 2, 2)
        Its covariance from pixel noise, mas^2.
    group : numpy.ndarray of int, shape (n,)
        Which pair a row is from; whole pairs are held out.
    seed : int
    steps : int

    Returns
    -------
    dict
        Held-out loss before and after, and the pull scatter (NMAD) before and after.
    """
    device = next(network.parameters()).device
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.unique(group))
    n_out = max(1, len(names) // 5) if len(names) > 1 else 0
    held = np.isin(group, names[:n_out]) if n_out else rng.random(len(group)) < 0.2
    ground, space, scalars, residual, cov = _tensors((ground, space, scalars, residual, cov), device)
    rows = np.flatnonzero(~held)
    out = torch.as_tensor(np.flatnonzero(held), device=device)

    def held_out():
        network.eval()
        with torch.no_grad():
            log_extra = network(ground[out], space[out], scalars[out])
            return float(_loss(log_extra, residual[out], cov[out]).mean()), log_extra

    def scatter(log_extra):
        var = torch.diagonal(cov[out], dim1=1, dim2=2) + torch.exp(2 * log_extra)[:, None]
        return float(1.4826 * (residual[out] / var.sqrt()).abs().median())

    quiet = torch.full((len(out),), float(_LOW), device=device)
    report = {
        "n_source": len(group),
        "n_pair": len(names),
        "loss_without": float(_loss(quiet, residual[out], cov[out]).mean()),
        "pull_without": scatter(quiet),
    }
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    best = (np.inf, None)
    for step in range(steps):
        network.train()
        pick = torch.as_tensor(rng.choice(rows, min(256, len(rows)), replace=False), device=device)
        loss = _loss(network(ground[pick], space[pick], scalars[pick]), residual[pick], cov[pick]).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 20 == 19 or step == steps - 1:
            now, _ = held_out()
            if now < best[0]:
                best = now, {k: v.detach().clone() for k, v in network.state_dict().items()}
    network.load_state_dict(best[1])
    loss, log_extra = held_out()
    report.update(loss_with=loss, pull_with=scatter(log_extra))
    return report
