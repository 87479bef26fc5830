# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The error network: what noise and the fitted shape leave unexplained, learned from known truth."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

__all__ = ["N_FEATURE", "ErrorConfig", "ErrorNet", "predict", "seeded", "train"]

N_FEATURE = 9


@dataclass(frozen=True)
class ErrorConfig:
    """Sizes of an `ErrorNet`.

    Attributes
    ----------
    token_dim : int
        Width of the frozen tokens.
    width : int
        Hidden units.
    """

    token_dim: int = 384
    width: int = 64

    def to_dict(self):
        """The configuration as a JSON-able dict."""
        return asdict(self)


class ErrorNet(nn.Module):
    """Relative flux error that the formal errors miss, per source and band.

    Parameters
    ----------
    config : `ErrorConfig`
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokens = nn.Sequential(nn.LayerNorm(2 * config.token_dim), nn.Linear(2 * config.token_dim, 16), nn.GELU())
        self.trunk = nn.Sequential(
            nn.Linear(N_FEATURE + 16, config.width), nn.GELU(), nn.Linear(config.width, config.width), nn.GELU(),
            nn.Linear(config.width, 1),
        )
        nn.init.zeros_(self.trunk[-1].weight)
        nn.init.constant_(self.trunk[-1].bias, -3.0)
        # Set from held-out pulls after training.
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features, tokens):
        """ln of the extra relative error.

        Parameters
        ----------
        features : (n, n_band, 9) tensor
        tokens : (n, 2 * token_dim) tensor

        Returns
        -------
        (n, n_band) tensor
        """
        seen = self.tokens(tokens)[:, None].expand(-1, features.shape[1], -1)
        return self.trunk(torch.cat([features, seen], dim=-1))[..., 0].clamp(-9.0, 2.0)


def seeded(config, seed):
    """An untrained network of a configuration (dict), the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ErrorNet(ErrorConfig(**config))


def predict(network, features, tokens):
    """Extra relative errors (n, n_band) and the conformal scale, as arrays."""
    device = network.scale.device
    with torch.inference_mode():
        extra = network(torch.from_numpy(features).to(device), torch.from_numpy(tokens).to(device)).exp()
    return extra.cpu().numpy().astype(float), float(network.scale)


STEPS, BATCH = 1500, 1024


def train(network, data, held_out, *, seed):
    """Fit the network by the Gaussian likelihood of flux residuals, then scale it on held-out sky.

    Parameters
    ----------
    network : `ErrorNet`
        Trained in place.
    data, held_out : dict of arrays
        ``features`` (n, n_band, 9), ``tokens`` (n, 2 * token_dim), ``flux``, ``error``, ``true`` (n, n_band) in
        nJy; a NaN residual counts for nothing.
    seed : int

    Returns
    -------
    dict
        ``coverage_before``, ``coverage`` (share of held-out pulls within one sigma, before and after), ``scale``,
        ``n``.
    """
    generator = torch.Generator().manual_seed(seed)
    device = network.scale.device
    good = np.isfinite(data["flux"] - data["true"]) & np.isfinite(data["error"]) & (data["error"] > 0)
    # A NaN that is only left out of the sum still has a NaN gradient: none may enter.
    safe = {**data, "error": np.where(good, data["error"], 1.0), "good": good}
    safe |= {name: np.where(good, data[name], 0.0) for name in ("flux", "true")}
    tensors = {k: torch.from_numpy(np.asarray(v, np.float32)).to(device) for k, v in safe.items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
    network.train()
    for _ in range(STEPS):
        rows = torch.randint(len(tensors["flux"]), (BATCH,), generator=generator).to(device)
        part = {k: v[rows] for k, v in tensors.items()}
        log_extra = network(part["features"], part["tokens"])
        variance = part["error"] ** 2 + (log_extra.exp() * part["flux"]) ** 2
        pull2 = (part["flux"] - part["true"]) ** 2 / variance
        # Student's t (4 degrees): a few swapped identities must not set the errors of all.
        loss = 0.5 * torch.log(variance) + 2.5 * torch.log1p(pull2 / 4.0)
        loss = (loss * part["good"]).sum() / part["good"].sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()
    extra, _ = predict(network, *(np.asarray(held_out[k], np.float32) for k in ("features", "tokens")))
    residual = np.abs(held_out["flux"] - held_out["true"])
    formal = residual / held_out["error"]
    pull = residual / np.hypot(held_out["error"], extra * np.abs(held_out["flux"]))
    keep = np.isfinite(pull)
    if not np.isfinite(extra).all() or not keep.any():
        raise ValueError("pairs: the error network did not train to finite errors: check fluxes and truth for outliers")
    scale = float(np.quantile(pull[keep], 0.6827))
    network.scale.fill_(scale)
    return {
        "coverage_before": float(np.mean(formal[keep] < 1.0)),
        "coverage": float(np.mean(pull[keep] < scale)),
        "scale": scale,
        "n": int(keep.sum()),
    }
