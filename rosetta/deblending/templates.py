# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What draws the sources of a scene."""

from dataclasses import dataclass

import numpy as np
from astropy.coordinates import SkyCoord

from .engine.config import EngineConfig

__all__ = ["Templates"]


@dataclass(frozen=True, eq=False)
class Templates:
    """What draws the sources of a scene.

    Attributes
    ----------
    coord : `~astropy.coordinates.SkyCoord`
        Positions that the templates are about, in the space image's frame.
    mixtures : (n, K, 6) array
    truncation : (n,) array
        Share of the light that stamps may leave out.
    wavelength : float
        Of the band that they are the templates of, nm.
    config : `~rosetta.deblending.engine.config.EngineConfig`
        How they were fitted.
    """

    coord: SkyCoord
    mixtures: np.ndarray
    truncation: np.ndarray
    wavelength: float
    config: EngineConfig
