# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The astrometric solution in a table of offsets, with the attributes of `rosetta.AstrometricSolution`."""

from dataclasses import dataclass

import numpy as np
from astropy.coordinates import SkyCoord

from rosetta.astrometry.field import evaluate
from rosetta.images.positions import offset_coord, tangent

__all__ = ["AstrometricSolution"]


@dataclass(frozen=True)
class AstrometricSolution:
    """Fields of offsets (mas), one per band and a joint one."""

    verdict: str
    reason: str
    center: SkyCoord
    fields: dict

    @classmethod
    def from_table(cls, offsets):
        """The solution that the aligner's table carries."""
        meta = offsets.meta
        fields = {} if meta["verdict"] == "abstain" else meta["model"]["bands"]
        return cls(meta["verdict"], meta["reason"], meta["center"], fields)

    def kind(self, band="joint"):
        """Name of a band's model."""
        return self.fields[band]["kind"]

    def offset_at(self, coord, band="joint"):
        """Offsets (n, 2), mas."""
        return evaluate(self.fields[band], tangent(coord, self.center))[0]

    def sigma_at(self, coord, band="joint"):
        """Their one-sigma errors (n, 2), mas."""
        return np.sqrt(evaluate(self.fields[band], tangent(coord, self.center))[1][:, [0, 1], [0, 1]])

    def ground_position(self, coord, band="joint"):
        """Where the ground headers put sources."""
        return offset_coord(coord, *(-1e-3 * self.offset_at(coord, band)).T) if self.fields else coord
