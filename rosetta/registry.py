# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The heads that there are. Nothing is imported before a head is asked for."""

from importlib import import_module

__all__ = ["HEADS", "KINDS", "head_class"]

# Kind (the name of its checkpoint) -> module and class. To add a head: its folder, and a row here.
HEADS = {
    "aligner": "astrometry.aligner:LearnedAligner",
    "deblender": "deblending.deblender:JEPADeblender",
    "photometry": "photometry.catalogue:EmbeddingPhotometry",
}
KINDS = ("encoder", "detector", *HEADS)  # of checkpoints


def head_class(kind):
    """The class of the heads of a kind.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if kind not in HEADS:
        raise ValueError(f"kind {kind!r} is no head: use one of {', '.join(HEADS)}")
    module, name = HEADS[kind].split(":")
    return getattr(import_module(f"{__package__}.{module}"), name)
