# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The error network: what noise and the fitted shape leave unexplained, learned from known truth."""

from dataclasses import dataclass

import numpy as np
import torch

from ..training.network import FeatureNetwork

__all__ = ["N_FEATURE", "ErrorConfig", "ErrorNet", "calibrate", "log_score", "predict", "usable"]

N_FEATURE = 55


@dataclass(frozen=True)
class ErrorConfig:
    """Sizes and limits of an `ErrorNet`.

    Attributes
    ----------
    n_feature : int
        Features of a flux.
    width : int
        Hidden units.
    dropout : float
        Share of the hidden units that is left out in training: with some thousand sources a network overfits.
    clip : float
        Features farther than this many standard deviations from their mean count as that far.
    widen, extra : tuple of float
        Least and largest natural logarithm of the factor on a formal error, and of the relative error that is added.
    """

    n_feature: int = N_FEATURE
    width: int = 64
    dropout: float = 0.2
    clip: float = 5.0
    widen: tuple = (-1.0, 4.0)
    extra: tuple = (-9.0, 2.0)


class ErrorNet(FeatureNetwork):
    """How many times larger a flux error is than the formal one, and the relative error on top of that.

    Parameters
    ----------
    config : `ErrorConfig`
    """

    def __init__(self, config):
        super().__init__(config.n_feature, config.width, 2, config.dropout, config.clip)
        self.limits = config.widen, config.extra
        torch.nn.init.zeros_(self.trunk[-1].weight)
        with torch.no_grad():
            self.trunk[-1].bias.copy_(torch.tensor([0.0, -3.0]))
        self.register_buffer("scale", torch.ones(()))  # set by `calibrate`

    def forward(self, features):
        """ln of the factor on the formal error, and ln of the relative error that is added, before calibration.

        Parameters
        ----------
        features : (..., n_feature) tensor

        Returns
        -------
        widen, extra : (...) tensor
        """
        out = super().forward(features).unbind(-1)
        return tuple(value.clamp(*limits) for value, limits in zip(out, self.limits, strict=True))

    def loss(self, rows):
        """Of residuals: a row per flux with ``features`` (n, n_feature), ``flux``, ``error``, ``true`` (n,) in nJy.

        Student's t with 4 degrees of freedom: a few wrong matches with the truth must not set the errors of all.
        """
        widen, extra = self(rows["features"])
        variance = (widen.exp() * rows["error"]) ** 2 + (extra.exp() * rows["flux"]) ** 2
        pull2 = (rows["flux"] - rows["true"]) ** 2 / variance
        return (0.5 * torch.log(variance) + 2.5 * torch.log1p(pull2 / 4.0)).mean()


def usable(rows):
    """The rows of fluxes that were measured, with an error and a truth."""
    good = np.isfinite(rows["flux"] - rows["true"]) & np.isfinite(rows["error"]) & (rows["error"] > 0)
    return {name: np.asarray(values)[good] for name, values in rows.items()}


def predict(network, features):
    """Factors on the formal errors, and relative errors to be added to them in quadrature: two arrays of one shape."""
    with torch.inference_mode():
        values = network(torch.from_numpy(np.asarray(features, np.float32)).to(network.scale.device))
        return tuple((network.scale * v.exp()).cpu().numpy().astype(float) for v in values)


def calibrate(network, held_out):
    """Scale a network's errors so that the true flux lies within one sigma for 68 % of held-out rows.

    Split conformal prediction (Lei et al. 2018).

    Returns
    -------
    dict
        ``coverage_before`` and ``coverage`` (share of true fluxes within one sigma, of the formal errors and of the
        calibrated ones), ``scale``, and ``log_score`` (of the held-out residuals, minus that of the formal errors
        times the best constant).
    """
    network.scale.fill_(1.0)
    widen, extra = predict(network, held_out["features"])
    flux, error, true = (np.asarray(held_out[name], float) for name in ("flux", "error", "true"))
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
    }


def log_score(residual, sigma):
    """Mean Gaussian log likelihood; no pull counts for more than ten sigma."""
    return float(np.mean(-0.5 * np.clip(residual / sigma, -10.0, 10.0) ** 2 - np.log(sigma)))
