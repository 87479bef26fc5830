# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Paired skies with known truth, rendered by GalSim (needs the extra ``sim``)."""

from .astrometry import AstrometricError
from .dataset import write_training_set
from .delivery import IDEAL, REAL, Delivery
from .observed import ObservedSet, observe
from .pair import simulate_pair
from .reader import TrainingSet, read_tile

__all__ = [
    "IDEAL",
    "REAL",
    "AstrometricError",
    "Delivery",
    "ObservedSet",
    "TrainingSet",
    "observe",
    "read_tile",
    "simulate_pair",
    "write_training_set",
]
