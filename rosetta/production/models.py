# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The models of a survey: which they are, and loaded once per process."""

import json
from functools import lru_cache
from pathlib import Path

from safetensors import safe_open

from ..registry import HEADS, head_class

__all__ = ["fingerprint", "loaded"]

BUNDLED = Path(__file__).parents[1] / "weights"


def fingerprint(folder, kind):
    """The fingerprint in the header of a checkpoint; the model itself is not loaded.

    Parameters
    ----------
    folder : str
        Where ``<kind>.safetensors`` is; empty: the bundled one.
    kind : str
        One of `rosetta.registry.KINDS`.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there is no such checkpoint.
    """
    path = (Path(folder) if folder else BUNDLED) / f"{kind}.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            return json.loads(file.metadata()["rosetta"])["fingerprint"]
    except Exception as error:  # safetensors raises its own type for every kind of damage
        raise ValueError(f"--models: {path} is not there, or no checkpoint: {error}") from error


@lru_cache(maxsize=1)
def loaded(folder):
    """The models in a folder (empty: the bundled ones) by kind; they use one thread, since every worker has a core."""
    import torch

    from ..encoding.encoder import CrossSurveyEncoder

    torch.set_num_threads(1)
    paths = {kind: Path(folder) / f"{kind}.safetensors" if folder else None for kind in ("encoder", *HEADS)}
    encoder = CrossSurveyEncoder.from_pretrained(paths["encoder"])
    heads = {kind: head_class(kind).from_pretrained(paths[kind], encoder=encoder) for kind in HEADS}
    return {"encoder": encoder, **heads}
