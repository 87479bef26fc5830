# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""One aligned, deblended, ten-band catalogue from Rubin-like and Euclid-like images of one sky.

The public names below are imported when they are first used (PEP 562), so that
``import rosetta`` takes milliseconds and torch is loaded only when a class needs it.
"""

from importlib import import_module

from .registry import HEADS

_HOME = {
    "SkyPair": "pair",
    "SkyEmbedding": "embedding",
    "PSF": "images.psf",
    "Survey": "surveys",
    "RUBIN": "surveys",
    "RUBIN_DP1": "surveys",
    "EUCLID": "surveys",
    "HSC": "surveys",
    "HST_ACS": "surveys",
    "Flag": "flags",
    "CrossSurveyEncoder": "encoding.encoder",
    "LearnedDetector": "centres.detector",
    "AstrometricSolution": "astrometry.solution",
    "DeblendedScene": "deblending.scene",
    **{name: module for module, name in (place.split(":") for place in HEADS.values())},
    "magnitudes": "photometry.magnitudes",
    "colour": "photometry.magnitudes",
    "aperture_photometry": "photometry.apertures",
    "ebv": "photometry.reddening",
    "measure": "pipeline.run",
    "Result": "pipeline.run",
    "inject": "injection.insertion",
    "recover": "injection.recovery",
    "Recovery": "injection.recovery",
    "TrainConfig": "encoding.pretraining",
    "TrainingError": "encoding.pretraining",
    "AlignmentError": "astrometry.solution",
    "CheckpointError": "checkpoint",
}

__all__ = list(_HOME)


def __getattr__(name):
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # asked for once only
    return value


def __dir__():
    return sorted({*globals(), *__all__, "__version__"})


def _version():
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("astro-rosetta")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"
