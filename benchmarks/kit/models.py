# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The models under test, and what they are compared with: untrained, tiny, or without tokens."""

from pathlib import Path

import numpy as np

from rosetta import CrossSurveyEncoder, EmbeddingPhotometry, JEPADeblender, LearnedAligner
from rosetta.embedding import SkyEmbedding
from rosetta.encoding.network import EncoderConfig

__all__ = ["HEADS", "NoTokens", "models", "tiny_encoder", "trained", "without_tokens"]

HEADS = {"aligner": LearnedAligner, "deblender": JEPADeblender, "photometry": EmbeddingPhotometry}


def trained(encoder, *names, folder=None):
    """Trained heads by name (dict): the bundled ones, or those of a folder's ``<name>.safetensors``."""
    return {name: HEADS[name].from_pretrained(_path(folder, name), encoder=encoder, device="cpu") for name in names}


def models(folder=None):
    """Encoder, deblender and photometry: the bundled ones, or those of a folder."""
    encoder = CrossSurveyEncoder.from_pretrained(_path(folder, "encoder"), device="cpu")
    return encoder, *trained(encoder, "deblender", "photometry", folder=folder).values()


def _path(folder, name):
    return None if folder is None else Path(folder) / f"{name}.safetensors"


def tiny_encoder():
    """An untrained encoder, as small as can be, for heads that do not read its tokens."""
    config = EncoderConfig(
        dim=16, depth=1, heads=2, proj_dim=8, predictor_dim=12, predictor_depth=1, predictor_heads=2
    )
    return CrossSurveyEncoder(config=config, device="cpu")


def without_tokens(embedding):
    """The same embedding with its tokens and summary vectors set to zero."""
    sides = {
        side: {k: np.zeros_like(a) if k in ("tokens", "cls", "embedding") else np.array(a) for k, a in arrays.items()}
        for side, arrays in embedding.sides.items()
    }
    return SkyEmbedding(
        embedding.pair, fingerprint=embedding.fingerprint, window=embedding.window, centers=embedding.centers,
        sides=sides, meta=embedding.meta,
    )  # fmt: skip


class NoTokens(CrossSurveyEncoder):
    """An encoder whose representation is zero everywhere."""

    def at(self, x, coord, survey):
        return np.zeros_like(super().at(x, coord, survey))

    def __call__(self, pair, **options):
        return without_tokens(super().__call__(pair, **options))
