# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the encoder is trained for: matching views, and predicting one survey from the other."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .network import SIDES, conditions, patches

__all__ = ["nt_xent", "same_sky", "information", "retrieval", "cosine_gap", "rank_me", "Objective"]

_TARGET_DIM = 64
_TARGET_SEED = 20240229
_SCALE_RANGE = (0.0, math.log(100.0))


def same_sky(tile, centers, window):
    """Which windows of a batch overlap on the sky.

    Parameters
    ----------
    tile : `torch.Tensor`
        Index of the tile of each window, (n_batch,).
    centers : `torch.Tensor`
        (east, north) of the window centres about their tile's centre, arcsec, (n_batch, 2).
    window : float
        Side of a window, arcsec.

    Returns
    -------
    `torch.Tensor` of bool
        (n_batch, n_batch), True on the diagonal.
    """
    apart = (centers[:, None] - centers[None]).abs().amax(-1)
    return (tile[:, None] == tile[None]) & (apart < window)


def nt_xent(first, second, log_scale, same):
    """Normalised temperature-scaled cross entropy, symmetric in the two directions.

    Sohn (2016); Chen et al. (2020), with the other view's batch as negatives.

    Parameters
    ----------
    first, second : `torch.Tensor`
        Unit-length embeddings of the two views, (n_batch, n_dim); equal rows show the same sky.
    log_scale : `torch.Tensor`
        ln(1 / temperature).
    same : `torch.Tensor` of bool
        Pairs whose footprints overlap, (n_batch, n_batch): these are no negatives.

    Returns
    -------
    `torch.Tensor`
        Mean loss, nat.
    """
    # Not under autocast: bfloat16 has steps of 0.06 at a logit of 10, as large as what hard negatives differ by.
    with torch.autocast(first.device.type, enabled=False):
        logits = first.float() @ second.float().T * log_scale.float().exp()
    eye = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(same & ~eye, -math.inf)
    label = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label))


def retrieval(first, second, same):
    """Share of windows whose nearest other-side embedding is its own sky, mean of both directions.

    Overlapping windows do not compete.
    """
    cosine = first @ second.T
    eye = torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
    cosine = cosine.masked_fill(same & ~eye, -math.inf)
    label = torch.arange(len(cosine), device=cosine.device)
    return 0.5 * ((cosine.argmax(1) == label).float().mean() + (cosine.argmax(0) == label).float().mean())


def cosine_gap(first, second, same):
    """Mean cosine of true pairs minus mean cosine of windows that do not overlap."""
    cosine = first @ second.T
    others = cosine[~same]
    if not len(others):
        return cosine.new_tensor(math.nan)
    return cosine.diagonal().mean() - others.mean()


def rank_me(embeddings):
    """Effective rank, exp of the entropy of the normalised singular values (Garrido et al. 2023)."""
    singular = torch.linalg.svdvals(embeddings.float() - embeddings.float().mean(0))
    share = singular / singular.sum().clamp(min=1e-12) + 1e-12
    return torch.exp(-(share * share.log()).sum())


def information(clean):
    """Weight of each patch in the dense losses, from its noise-free signal-to-noise.

    Parameters
    ----------
    clean : `torch.Tensor`
        Noise-free asinh(flux / sigma) in patches, (n_batch, n_token, n_band, n_pixel).

    Returns
    -------
    `torch.Tensor`
        (n_batch, n_token), mean 1: ln(1 + (S/N)^2), on a floor that lets empty sky count a little.
    """
    power = clean.square().flatten(2).sum(-1)
    weight = torch.log1p(power) + 0.1
    return weight / weight.mean()


class Objective(nn.Module):
    """All training losses of the encoder, with the few weights that only they need.

    - match: `nt_xent` between the CLS embeddings of the two sides;
    - own: linear readout of a side's tokens against frozen random projections of its own noise-free patches;
    - cross: the same target, read by the same read-out, as it is, from tokens that the predictor made from the
      other side (this target is fixed, so it cannot collapse);
    - latent: predicted tokens against the stop-gradient tokens, and the predicted against the stop-gradient
      embedding (Assran et al. 2023).

    Cross and latent train the predictor only: what they ask of the trunk costs its tokens colour and place
    (``benchmarks/ablation.py``).

    Parameters
    ----------
    config : `EncoderConfig`
    n_band : dict
        Number of bands of each side.
    weights : dict
        Weight of each term; one that is left out is not computed. Cross reads by what own trains: it needs own.
    """

    def __init__(self, config, n_band, weights):
        super().__init__()
        self.patch = config.patch
        self.weights = dict(weights)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.own = nn.ModuleDict({side: nn.Linear(config.dim, _TARGET_DIM) for side in SIDES})
        for offset, side in enumerate(SIDES):
            size = n_band[side] * config.patch**2
            generator = torch.Generator().manual_seed(_TARGET_SEED + offset)
            matrix = torch.randn(size, _TARGET_DIM, generator=generator) / math.sqrt(size)
            self.register_buffer(f"target_{side}", matrix, persistent=False)

    def forward(self, encoder, predictor, batch):
        """Loss of one batch.

        Parameters
        ----------
        encoder : `Encoder`
        predictor : `Predictor`
        batch : `~rosetta.encoding.observing.Batch`

        Returns
        -------
        loss : `torch.Tensor`
        terms : dict of `torch.Tensor`
            The unweighted terms, detached.
        embeddings : dict of `torch.Tensor`
            Per side, (n_batch, proj_dim), detached.
        """
        seen = {side: encoder(side, batch.views[side]) for side in SIDES}
        terms = {"match": self.match(seen["ground"][2], seen["space"][2], batch.same)}
        terms |= self.dense(encoder, predictor, seen, batch)
        loss = sum(self.weights[name] * term for name, term in terms.items())
        embeddings = {side: seen[side][2].detach() for side in SIDES}
        return loss, {name: term.detach() for name, term in terms.items()}, embeddings

    def match(self, ground, space, same):
        """`nt_xent` at the learned temperature."""
        return nt_xent(ground, space, self.log_scale.clamp(*_SCALE_RANGE), same)

    def dense(self, encoder, predictor, seen, batch):
        """The terms that look at tokens, mean of both sides (dict)."""
        parts = {name: [] for name in ("own", "cross", "latent") if name in self.weights}
        for side, other in (SIDES, SIDES[::-1]) if parts else ():
            tokens, _, embedding = seen[side]
            view = batch.views[side]
            clean = view.of_kept(patches(batch.clean[side], self.patch))
            weight = information(clean)
            target = clean.flatten(2) @ getattr(self, f"target_{side}")  # (n_batch, n_token, 64)
            if "own" in parts:
                parts["own"].append(_unexplained(self.own[side](tokens).float(), target, weight))
            if not parts.keys() - {"own"}:
                continue
            source, known = seen[other], batch.views[other]
            asked = (side, view.of_kept(view.positions), conditions(view))
            predicted, predicted_cls = self.told(predictor, *source[:2], known.of_kept(known.positions), *asked)
            if "cross" in parts:
                # The read-out of the actual tokens, as it is: what is predicted must mean the same.
                own = self.own[side]
                read = F.linear(predicted, own.weight.detach(), own.bias.detach())
                parts["cross"].append(_unexplained(read.float(), target, weight))
            if "latent" in parts:
                distance = F.smooth_l1_loss(predicted, tokens.detach(), reduction="none").mean(-1)
                away = 1 - (encoder.project(predicted_cls) * embedding.detach()).sum(-1)
                parts["latent"].append((weight * distance).mean() + away.mean())
        return {name: torch.stack(part).mean() for name, part in parts.items()}

    def told(self, predictor, tokens, cls, *asked):
        """What the predictor makes of tokens as they are: no gradient reaches them."""
        return predictor(tokens.detach(), cls.detach(), *asked)

    def temperature(self):
        """The temperature in use (float)."""
        return math.exp(-float(self.log_scale.detach().clamp(*_SCALE_RANGE)))


def _unexplained(predicted, target, weight):
    # Weighted squared residual over weighted variance: 1 is a constant guess, 0 is perfect.
    weight = weight[..., None]
    mean = (weight * target).mean((0, 1))
    variance = (weight * (target - mean).square()).mean()
    return (weight * (predicted - target).square()).mean() / variance.clamp(min=1e-6)
