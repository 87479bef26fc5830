# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The scores by which training recipes are compared."""

from types import SimpleNamespace

import numpy as np
import torch

from rosetta.encoding.losses import rank_me
from rosetta.encoding.network import SIDES

from .galleries import LATTICE, found, prediction, scores, seen
from .probes import choose, explained, magnitude, predicted, tokens
from .windows import Look, disjoint, lattice

__all__ = ["quick"]

SEED = 0


def quick(encoder, sky, predictor=None, *, n_window=512, n_tile=3, n_source=512):
    """The scores by which training recipes are compared: about a minute on one core.

    Parameters
    ----------
    encoder : `~rosetta.encoding.network.Encoder`
    sky : Sky
        From `load`; 11 tiles hold 512 windows.
    predictor : `~rosetta.encoding.network.Predictor`, optional
        One that was trained.
    n_window, n_tile, n_source : int
        Windows of the gallery, tiles of the hard galleries, sources of the probes.

    Returns
    -------
    dict of float
        "r@1" (12.8" windows anywhere, sky-disjoint) and "r@1 hard" (`LATTICE` squared windows of one tile), means of
        both directions; per side "rank cls <side>" and "rank tokens <side>" (RankMe), and R2 of ridge fits to the token
        of a source: "x <side>", "y <side>" (its place in the pixel), "VIS <side>" and "g-H <side>". With a predictor,
        "told <side>", R@1 of the side's predicted embedding, and "tokens <side>", variance of its source tokens
        explained.
    """
    training = encoder.training
    encoder.eval()
    where = disjoint(sky, 12.8, SEED)[:n_window]
    both = seen(encoder, sky, where, 12.8, SEED, keep=("embedding", "cls"))
    out = {"r@1": found((both["ground"][0] @ both["space"][0].T).numpy()).mean()}
    shared = Look(shared=True)
    out["r@1 hard"] = np.mean(
        [found(scores(encoder, sky, lattice(sky, t, 12.8, LATTICE), 12.8, SEED + t, shared)) for t in range(n_tile)]
    )
    sources = choose(sky, SEED, n_source)
    vis, colour = magnitude(sky, sources, "VIS"), magnitude(sky, sources, "g") - magnitude(sky, sources, "H_E")
    for side in SIDES:
        features, phase = tokens(encoder, sky, side, sources, SEED)
        out[f"rank cls {side}"] = rank_me(both[side][1])
        out[f"rank tokens {side}"] = rank_me(torch.from_numpy(features))
        truth = np.column_stack([phase, vis, colour])
        guess = predicted(features, truth, sources.tile)
        for name, t, g in zip(("x", "y", "VIS", "g-H"), truth.T, guess.T, strict=True):
            out[f"{name} {side}"] = explained(t, g)
    if predictor is not None:
        model = SimpleNamespace(encoder=encoder, predictor=predictor)
        for side, one in prediction(model, sky, where, 12.8, SEED).items():
            out[f"told {side}"] = one["predicted"].mean()
            out[f"tokens {side}"] = 1 - one["residual"].sum() / one["scatter"].sum()
    encoder.train(training)
    return {name: float(value) for name, value in out.items()}
