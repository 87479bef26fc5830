# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The error network: what noise and the fitted shape leave unexplained, learned from known truth."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

__all__ = ["N_FEATURE", "ErrorConfig", "ErrorNet", "log_score", "predict", "seeded", "train"]

N_FEATURE = 55
DROPPED = 0.2  # share of hidden units: some thousand sources are soon known by heart


@dataclass(frozen=True)
class ErrorConfig:
    """Sizes of an `ErrorNet`.

    Attributes
    ----------
    n_feature : int
        Features of a flux.
    width : int
        Hidden units.
    """

    n_feature: int = N_FEATURE
    width: int = 64

    def to_dict(self):
        """The configuration as a JSON-able dict."""
        return asdict(self)


class ErrorNet(nn.Module):
    """How many times larger a flux error is than the formal one, and the relative error on top of that.

    Parameters
    ----------
    config : `ErrorConfig`
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.trunk = nn.Sequential(
            nn.Linear(config.n_feature, config.width), nn.GELU(), nn.Dropout(DROPPED),
            nn.Linear(config.width, config.width), nn.GELU(), nn.Dropout(DROPPED), nn.Linear(config.width, 2),
        )  # fmt: skip
        nn.init.zeros_(self.trunk[-1].weight)
        with torch.no_grad():
            self.trunk[-1].bias.copy_(torch.tensor([0.0, -3.0]))
        # Set in training: the features' mean and scatter, and what makes held-out pulls right.
        self.register_buffer("mean", torch.zeros(config.n_feature))
        self.register_buffer("spread", torch.ones(config.n_feature))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features):
        """ln of the factor on the formal error, and ln of the relative error that is added.

        Parameters
        ----------
        features : (..., n_feature) tensor

        Returns
        -------
        widen, extra : (...) tensor
        """
        # A feature far beyond all that were seen says no more than the farthest of them.
        widen, extra = self.trunk(((features - self.mean) / self.spread).clamp(-5.0, 5.0)).unbind(-1)
        return widen.clamp(-1.0, 4.0), extra.clamp(-9.0, 2.0)


def seeded(config, seed):
    """An untrained network of a configuration (dict), the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ErrorNet(ErrorConfig(**config))


def predict(network, features):
    """Factors on the formal errors, and relative errors to be added to them in quadrature: two arrays of one shape."""
    with torch.inference_mode():
        widen, extra = network(torch.from_numpy(features).to(network.scale.device))
        return tuple((network.scale * v.exp()).cpu().numpy().astype(float) for v in (widen, extra))


STEPS, BATCH, LOOK = 1500, 4096, 100


def train(network, data, held_out, *, seed):
    """Fit the network by the likelihood of flux residuals, then scale it on held-out sky.

    Of what it was after every `LOOK` steps, that is kept which gives the held-out residuals the best likelihood.

    Parameters
    ----------
    network : `ErrorNet`
        Trained in place.
    data, held_out : dict of arrays
        A row per flux: ``features`` (n, n_feature), ``flux``, ``error``, ``true`` (n,) in nJy; a NaN residual counts
        for nothing.
    seed : int

    Returns
    -------
    dict
        ``coverage_before``, ``coverage`` (share of held-out pulls within one sigma, before and after), ``scale``,
        ``log_score`` (of the held-out pulls, less that of the formal errors times the best constant), ``n``.
    """
    generator = torch.Generator().manual_seed(seed)
    part, other = (_tensors(rows, network.scale.device) for rows in (data, held_out))
    seen = part["features"][part["good"]]
    network.mean.copy_(seen.mean(dim=0))
    network.spread.copy_(seen.std(dim=0) + 1e-3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
    least, best = np.inf, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of what is dropped
        for step in range(STEPS):
            network.train()
            rows = torch.randint(len(part["flux"]), (BATCH,), generator=generator).to(network.scale.device)
            loss = _loss(network, {k: v[rows] for k, v in part.items()})
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % LOOK == LOOK - 1:
                network.eval()
                with torch.no_grad():
                    found = float(_loss(network, other))
                if found < least:
                    least, best = found, {name: value.clone() for name, value in network.state_dict().items()}
    if best is None:
        raise ValueError("pairs: the error network did not train to finite errors: check fluxes and truth for outliers")
    network.load_state_dict(best)
    network.eval()
    good = other["good"].cpu().numpy()
    widen, extra = (v[good] for v in predict(network, np.asarray(held_out["features"], np.float32)))
    flux, error, true = (np.asarray(held_out[name], float)[good] for name in ("flux", "error", "true"))
    sigma = np.hypot(widen * error, extra * flux)
    pull = np.abs(flux - true) / sigma
    scale = float(np.quantile(pull, 0.6827))
    network.scale.fill_(scale)
    constant = max(log_score(flux - true, k * error) for k in np.geomspace(0.5, 10.0, 60))
    return {
        "coverage_before": float(np.mean(np.abs(flux - true) < error)),
        "coverage": float(np.mean(pull < scale)),
        "scale": scale,
        "log_score": log_score(flux - true, scale * sigma) - constant,
        "n": int(good.sum()),
    }


def _tensors(rows, device):
    good = np.isfinite(rows["flux"] - rows["true"]) & np.isfinite(rows["error"]) & (rows["error"] > 0)
    # A NaN that is only left out of the sum still has a NaN gradient: none may enter.
    safe = {"features": rows["features"], "error": np.where(good, rows["error"], 1.0)}
    safe |= {name: np.where(good, rows[name], 0.0) for name in ("flux", "true")}
    tensors = {name: torch.from_numpy(np.asarray(v, np.float32)).to(device) for name, v in safe.items()}
    return {**tensors, "good": torch.from_numpy(good).to(device)}


def _loss(network, part):
    widen, extra = network(part["features"])
    variance = (widen.exp() * part["error"]) ** 2 + (extra.exp() * part["flux"]) ** 2
    pull2 = (part["flux"] - part["true"]) ** 2 / variance
    # Student's t (4 degrees): a few swapped identities must not set the errors of all.
    loss = 0.5 * torch.log(variance) + 2.5 * torch.log1p(pull2 / 4.0)
    return (loss * part["good"]).sum() / part["good"].sum().clamp(min=1)


def log_score(residual, sigma):
    """Mean Gaussian log likelihood; no pull counts for more than ten sigma."""
    return float(np.mean(-0.5 * np.clip(residual / sigma, -10.0, 10.0) ** 2 - np.log(sigma)))
