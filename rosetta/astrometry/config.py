# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What decides the answer of an aligner; it is stored with its weights."""

from dataclasses import dataclass

from ..detection.detection import DetectionConfig
from .catalogue_tie import CatalogueTieConfig
from .excess_noise import ExcessNoiseConfig
from .few_sources import FewSourcesConfig
from .measurement import MeasurementConfig

__all__ = ["AlignerConfig"]


@dataclass(frozen=True)
class AlignerConfig:
    """What decides the answer of a `LearnedAligner`; it is saved with its weights.

    Attributes
    ----------
    detection : `~rosetta.detection.detection.DetectionConfig`
    coarse_significance, coarse_rival : float
        Of the peak of the cross-correlation, to start from it, and how many times higher than any other it must be.
    alone_significance, alone_rival : float
        The same for the peak to be believed without single sources: few bright sources make high chance peaks.
    coarse_error : float
        Of an offset that only the correlation supports, mas.
    fine_error, most_error : float
        Largest error of an alignment that is not coarse (a tenth of the ground PSF's sigma), and of any, mas.
    few : `~rosetta.astrometry.few_sources.FewSourcesConfig`
    tie : `~rosetta.astrometry.catalogue_tie.CatalogueTieConfig`
    measurement : `~rosetta.astrometry.measurement.MeasurementConfig`
    network : `~rosetta.astrometry.excess_noise.ExcessNoiseConfig`
    """

    detection: DetectionConfig = DetectionConfig()
    coarse_significance: float = 8.0
    coarse_rival: float = 1.3
    alone_significance: float = 15.0
    alone_rival: float = 6.0
    coarse_error: float = 100.0
    fine_error: float = 30.0
    most_error: float = 100.0
    few: FewSourcesConfig = FewSourcesConfig()
    tie: CatalogueTieConfig = CatalogueTieConfig()
    measurement: MeasurementConfig = MeasurementConfig()
    network: ExcessNoiseConfig = ExcessNoiseConfig()
