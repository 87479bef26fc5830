# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Detections and the centres that the learned detector sees: one list of positions, and what it thinks of each."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

__all__ = ["CandidateConfig", "candidates", "scores_at"]


@dataclass(frozen=True)
class CandidateConfig:
    """How the learned detector's centres are used.

    Attributes
    ----------
    support : float
        Score of a centre that counts.
    apart : float
        arcsec from every detection at which a centre is a source of its own.
    centred : float
        arcsec; a detection or a peak of the residuals so near to a centre has its score.
    centred_width : float
        The same in units of the width of a large detection.
    unseen : float
        Score of a position where there is no centre.
    unseen_peak : float
        Sigma that the residuals must show where no centre counts.
    """

    support: float = -0.5
    apart: float = 0.45
    centred: float = 0.3
    centred_width: float = 0.5
    unseen: float = -3.0
    unseen_peak: float = 10.0


def candidates(found, centres, config):
    """Positions of what may be a source.

    Parameters
    ----------
    found : `~rosetta.detection.detection.Detections`
    centres : `~rosetta.centres.detector.Centres` or None
        In the same tangent plane. None: there is no detector.
    config : `CandidateConfig`

    Returns
    -------
    east_north : (m, 2) array
        The detections, then the centres that count and are none of them.
    score : (m,) array
        What the detector thinks of each: the logarithm of the odds that it is a source; 0 without a detector.
    """
    if centres is None:
        return found.east_north, np.zeros(len(found))
    reach = np.maximum(config.centred, config.centred_width * np.asarray(found.table["b"]))
    score, more = scores_at(found.east_north, centres, reach, config), centres.score > config.support
    if len(found) and more.any():
        more &= cKDTree(found.east_north).query(centres.east_north)[0] > config.apart
    return np.concatenate([found.east_north, centres.east_north[more]]), np.append(score, centres.score[more])


def scores_at(east_north, centres, reach, config):
    """The detector's scores at positions (n, 2), (n,); a centre is that of the position nearest to it.

    Parameters
    ----------
    east_north : (n, 2) array
        arcsec.
    centres : `~rosetta.centres.detector.Centres` or None
        None: there is no detector, and scores are 0.
    reach : float or (n,) array
        arcsec.
    config : `CandidateConfig`
    """
    if centres is None:
        return np.zeros(len(east_north))
    score = np.full(len(east_north), config.unseen)
    if len(east_north) and len(centres.score):
        apart, nearest = cKDTree(east_north).query(centres.east_north)
        near = apart < np.broadcast_to(reach, len(east_north))[nearest]
        np.maximum.at(score, nearest[near], centres.score[near])
    return score
