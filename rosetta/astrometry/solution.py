# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The astrometric solution: where the ground images put what the space image sees."""
from ..flags import Flag
from ..images.positions import offset_coord, tangent
from .field import evaluate

__all__ = ["VERDICTS", "check_offsets", "ground_coord", "joint_offset"]


def ground_coord(coord, offsets):
    """Where the ground headers put sources of true positions ``coord``.

    Parameters
    ----------
    coord : `~astropy.coordinates.SkyCoord`
    offsets : `~astropy.table.QTable` or None
        From the aligner; None, or a verdict of "abstain", leaves positions as in the headers.

    Returns
    -------
    `~astropy.coordinates.SkyCoord`
    """
    if offsets is None or offsets.meta["verdict"] == "abstain":
        return coord
    shift, _ = evaluate(offsets.meta["model"], tangent(coord, offsets.meta["center"]))
    # Offsets vary over arcseconds by far less than they are, so no inversion is needed.
    return offset_coord(coord, -shift[:, 0] / 1e3, -shift[:, 1] / 1e3)


def joint_offset(offsets, coord):
    """The joint field at sky positions: offsets (n, 2) and covariance (n, 2, 2), mas and mas^2."""
    return evaluate(offsets.meta["model"], tangent(coord, offsets.meta["center"]), band="joint")

VERDICTS = {"ok": Flag(0), "coarse": Flag.COARSE_ALIGNMENT, "abstain": Flag.UNALIGNED}  # and what they flag


def check_offsets(offsets):
    """Refuse what is neither None nor a table from the aligner."""
    if offsets is None:
        return
    meta = getattr(offsets, "meta", None)
    if meta is None or not {"model", "center", "verdict"} <= set(meta) or meta["verdict"] not in VERDICTS:
        raise ValueError("offsets must be the table that LearnedAligner returns, with its meta: pass it unchanged")
