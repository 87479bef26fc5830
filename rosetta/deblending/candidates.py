# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Detections and the centres that the learned detector sees: one list of positions, and what it thinks of each."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

__all__ = ["Advice", "CandidateConfig", "candidates"]


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


@dataclass(frozen=True, eq=False)
class Advice:
    """What the learned detector says of a field; it is asked only where the encoder knows the sky.

    Attributes
    ----------
    centres : (n, 2) array
        In the tangent plane of the images, arcsec.
    odds : (n,) array
        Logarithm of the odds that each is a source.
    windows : (m, 2) array
        Centres of the encoder's windows, in the same plane.
    familiar : (m,) bool array
        Whether their sky is like that of the training. Of sky that is seen in part, as in small images, nobody knows.
    config : `CandidateConfig`
    """

    centres: np.ndarray
    odds: np.ndarray
    windows: np.ndarray
    familiar: np.ndarray
    config: CandidateConfig

    @classmethod
    def of(cls, centres, windows, familiar, config):
        """From `~rosetta.centres.detector.Centres`; see the attributes."""
        odds = np.maximum(config.slope * (centres.score - config.even), config.unseen)
        return cls(centres.east_north, odds, windows, familiar, config)

    def asked(self, east_north):
        """Whether the detector is asked at positions (n, 2): (n,) bool."""
        if len(self.windows) == 0 or len(east_north) == 0:
            return np.zeros(len(east_north), bool)
        return self.familiar[cKDTree(self.windows).query(east_north)[1]]

    def odds_at(self, east_north, reach):
        """Logarithm of the odds at positions (n, 2), (n,); 0 where it is not asked.

        A centre is that of the position nearest to it, if that is within ``reach`` (arcsec, one or (n,)).
        """
        odds = np.full(len(east_north), self.config.unseen)
        if len(east_north) and len(self.odds):
            apart, nearest = cKDTree(east_north).query(self.centres)
            near = apart < np.broadcast_to(reach, len(east_north))[nearest]
            np.maximum.at(odds, nearest[near], self.odds[near])
        return np.where(self.asked(east_north), odds, 0.0)

    def doubts(self, east_north, odds):
        """Whether positions (n, 2) of these ``odds`` (n,) count as no source unless the pixels say so loudly."""
        return self.asked(east_north) & (odds <= self.config.support)


def candidates(found, advice):
    """Positions of what may be a source.

    Parameters
    ----------
    found : `~rosetta.detection.detection.Detections`
    advice : `Advice` or None
        None: there is no detector.

    Returns
    -------
    east_north : (m, 2) array
        The detections, then the centres that count and are none of them.
    odds : (m,) array
        Logarithm of the detector's odds; 0 where it is not asked.
    least : (m,) array
        Sigma that all bands together must show of each, else it is no source.
    """
    place, n = found.east_north, len(found)
    if advice is None:
        return place, np.zeros(n), np.zeros(n)
    config = advice.config
    odds = advice.odds_at(place, np.maximum(config.centred, config.centred_width * np.asarray(found.table["b"])))
    faint = np.asarray(found.table["snr"]) < config.unseen_peak
    least = np.where(faint & advice.doubts(place, odds), config.unseen_peak, 0.0)
    add = (advice.odds > config.support) & advice.asked(advice.centres)
    if n and add.any():
        add &= cKDTree(place).query(advice.centres)[0] > config.apart
    more = np.full(add.sum(), found.config.peak)
    return np.concatenate([place, advice.centres[add]]), np.append(odds, advice.odds[add]), np.append(least, more)
