# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The numbers that decide what the deblender gives; they are stored with its weights."""

from dataclasses import dataclass, field

from ..detection.detection import DetectionConfig
from .blend_probability import BlendConfig
from .candidates import CandidateConfig
from .engine.config import EngineConfig
from .single_band import SingleBandConfig
from .wrong_bands import WrongBandsConfig

__all__ = ["DeblenderConfig", "MergingConfig"]


@dataclass(frozen=True)
class MergingConfig:
    """When a source is a fragment of a brighter one; see `rosetta.deblending.merging`.

    Attributes
    ----------
    reach, reach_radii : float
        arcsec, and half-light radii of a large galaxy: beyond the larger one most sources in the light of a bright one
        are others.
    inside : float
        A fragment lies where a brighter source gives this share of the fragment's own light, or more.
    misfit : float
        Mean square residual, in units of the sky's noise, above which models do not describe a source's light.
    blur : float
        arcsec (FWHM): how sharply light is compared.
    share : float
        Of the brighter source's flux: a source of more is no mere part of it.
    log_odds : float
        Least logarithm of the odds of a part and another galaxy. They leave out how many parts galaxies have; chosen on
        training sky.
    of_parts, of_others : float
        Relative scatter of flux ratios between bands: of parts of a galaxy, of other galaxies.
    light_error : float
        Of the brighter source's model, relative.
    n_colour : float
        Bands are worth so many together, at most: their fluxes are correlated.
    trust : float
        Share of the learned detector's log odds of a source that is taken from those of a part.
    inside_doubted : float
        ``inside`` of a source that the detector rather takes for none.
    """

    reach: float = 2.0
    reach_radii: float = 2.5
    inside: float = 0.15
    misfit: float = 1.6
    blur: float = 0.2
    share: float = 0.6
    log_odds: float = -1.0
    of_parts: float = 0.25
    of_others: float = 1.0
    light_error: float = 0.1
    n_colour: float = 3.0
    trust: float = 1.0
    inside_doubted: float = 0.015


@dataclass(frozen=True)
class DeblenderConfig:
    """Settings of the deblender.

    Attributes
    ----------
    detection : `~rosetta.detection.detection.DetectionConfig`
    engine : `~rosetta.deblending.engine.config.EngineConfig`
    candidates : `~rosetta.deblending.candidates.CandidateConfig`
    merging : `MergingConfig`
    blend : `~rosetta.deblending.blend_probability.BlendConfig`
    match : float
        arcsec: a detection and a position are one source.
    n_ground_shape : int
        Ground bands, the deepest, that take part in fitting shapes.
    start_radius : float
        arcsec: half-light radius to start from where nothing was detected.
    light_error : float
        Error of a model, relative, in the search of residuals: what a template leaves of a bright source is no source.
    wing_error : float
        The same of the light of stars beyond the given stamp of the PSF.
    apart : tuple of float
        Least distance of what the residuals show from a known source, in units of the PSF's width: on the space image,
        on the ground.
    largest_share : float
        Largest half-light radius of a source, in units of the width of the image.
    uncertain_centre : float
        Of the half-light radius of a large galaxy: within that a listed position is the galaxy.
    unaligned_error : float
        Of positions on ground images that are not aligned with the space image, arcsec per axis.
    blended_above, lowest_snr : float
        Blendedness above which a source is flagged as blended, and S/N below which it is flagged as faint.
    wrong_bands : `~rosetta.deblending.wrong_bands.WrongBandsConfig`
    single_band : `~rosetta.deblending.single_band.SingleBandConfig`
    """

    detection: DetectionConfig = field(default_factory=DetectionConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    merging: MergingConfig = field(default_factory=MergingConfig)
    blend: BlendConfig = field(default_factory=BlendConfig)
    match: float = 0.3
    n_ground_shape: int = 2
    start_radius: float = 0.2
    light_error: float = 0.1
    wing_error: float = 0.25
    apart: tuple = (0.5, 0.7)
    largest_share: float = 0.2
    uncertain_centre: float = 0.5
    unaligned_error: float = 0.1
    blended_above: float = 0.05
    lowest_snr: float = 3.0
    wrong_bands: WrongBandsConfig = field(default_factory=WrongBandsConfig)
    single_band: SingleBandConfig = field(default_factory=SingleBandConfig)
