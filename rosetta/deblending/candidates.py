# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Detections and the centres that the learned detector sees: one list of positions, and which of them it supports."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

__all__ = ["CandidateConfig", "candidates", "supported"]


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
        arcsec; a detection or a peak of the residuals so near to a centre is supported.
    centred_width : float
        The same in units of the width of a large detection.
    unseen_peak : float
        Sigma that the residuals must show where there is no centre.
    """

    support: float = -0.5
    apart: float = 0.45
    centred: float = 0.3
    centred_width: float = 0.5
    unseen_peak: float = 10.0


def candidates(found, centres, config):
    """Positions of what may be a source.

    Parameters
    ----------
    found : `~rosetta.detection.detection.Detections`
    centres : (n, 2) array or None
        Centres that count, in the same tangent plane, arcsec. None: there is no detector, and detections are trusted.
    config : `CandidateConfig`

    Returns
    -------
    east_north : (m, 2) array
        The detections, then the centres that are none of them.
    seen : (m,) bool array
        Whether the detector sees a centre there.
    """
    if centres is None or len(centres) == 0 or len(found) == 0:
        n = len(found)
        more = np.zeros((0, 2)) if centres is None else centres
        seen = np.append(np.full(n, centres is None), np.ones(len(more), bool))
        return np.concatenate([found.east_north, more]), seen
    reach = np.maximum(config.centred, config.centred_width * np.asarray(found.table["b"]))
    seen = supported(found.east_north, centres, reach)
    apart, _ = cKDTree(found.east_north).query(centres)
    more = centres[apart > config.apart]
    return np.concatenate([found.east_north, more]), np.append(seen, np.ones(len(more), bool))


def supported(east_north, centres, reach):
    """Whether positions (n, 2) are those of centres (m, 2), (n,) bool; a centre is of the position nearest to it.

    Parameters
    ----------
    east_north, centres : (n, 2), (m, 2) array
        arcsec.
    reach : float or (n,) array
        arcsec.
    """
    seen = np.zeros(len(east_north), bool)
    if len(east_north) and len(centres):
        apart, nearest = cKDTree(east_north).query(centres)
        seen[nearest[apart < np.broadcast_to(reach, len(east_north))[nearest]]] = True
    return seen
