# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Detections and the centres that the learned detector sees: one list of positions, and what it thinks of each."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

__all__ = ["CandidateConfig", "candidates", "odds_at"]


@dataclass(frozen=True)
class CandidateConfig:
    """How the learned detector's centres are used.

    Attributes
    ----------
    even : float
        Score at which a centre is as often a source as not,
    slope : float
        and by how much the logarithm of these odds grows with the score; measured on simulated sky.
    support : float
        Logarithm of the odds above which a centre counts.
    apart : float
        arcsec from every detection at which a centre is a source of its own.
    centred : float
        arcsec; a detection or a peak of the residuals so near to a centre has its odds.
    centred_width : float
        The same in units of the width of a large detection.
    unseen : float
        Logarithm of the odds where there is no centre.
    unseen_peak : float
        Sigma that must be seen of a source where no centre counts.
    """

    even: float = 0.1
    slope: float = 3.0
    support: float = 0.8
    apart: float = 0.45
    centred: float = 0.3
    centred_width: float = 0.5
    unseen: float = -6.0
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
    odds : (m,) array
        What the detector thinks of each: the logarithm of the odds that it is a source; 0 without a detector.
    least : (m,) array
        Sigma that all bands together must show of it, else it is no source.
    """
    if centres is None:
        return found.east_north, np.zeros(len(found)), np.zeros(len(found))
    reach = np.maximum(config.centred, config.centred_width * np.asarray(found.table["b"]))
    odds, more = odds_at(found.east_north, centres, reach, config), _odds(centres, config)
    add = more > config.support
    if len(found) and add.any():
        add &= cKDTree(found.east_north).query(centres.east_north)[0] > config.apart
    least = np.append(np.where(odds > config.support, 0.0, config.unseen_peak), np.full(add.sum(), found.config.peak))
    return np.concatenate([found.east_north, centres.east_north[add]]), np.append(odds, more[add]), least


def _odds(centres, config):
    return np.maximum(config.slope * (centres.score - config.even), config.unseen)


def odds_at(east_north, centres, reach, config):
    """Logarithm of the detector's odds at positions (n, 2), (n,); a centre is that of the position nearest to it.

    Parameters
    ----------
    east_north : (n, 2) array
        arcsec.
    centres : `~rosetta.centres.detector.Centres` or None
        None: there is no detector, and all are 0.
    reach : float or (n,) array
        arcsec.
    config : `CandidateConfig`
    """
    if centres is None:
        return np.zeros(len(east_north))
    odds = np.full(len(east_north), config.unseen)
    if len(east_north) and len(centres.score):
        apart, nearest = cKDTree(east_north).query(centres.east_north)
        near = apart < np.broadcast_to(reach, len(east_north))[nearest]
        np.maximum.at(odds, nearest[near], _odds(centres, config)[near])
    return odds
