# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The light of one band as the survey delivers it: noise, artefacts, sky, variance, and the PSF that is given."""

import astropy.units as u
import numpy as np
from astropy.nddata import NDData, VarianceUncertainty

from ..images.moments import half_maximum_width
from .background import sky_residual
from .given_psf import given_psf
from .noise import Resampling, add_defects, equivalent_sigma, source_variance, white_equivalent

__all__ = ["STREAMS", "deliver"]

STREAMS = 7  # seeds that `deliver` needs, one for each purpose


def deliver(seeds, light, truth, survey, band, depth, wcs, delivery, *, ground, noise=True, defects=True):
    """Turn the light that falls on the pixels into an image of a survey.

    Parameters
    ----------
    seeds : (7, ...) array_like of int
        One stream of random numbers each, so that nothing that is left out changes the rest.
    light : (ny, nx) array
        Sources under their PSFs, nJy per pixel.
    truth : `~rosetta.PSF`
        What the PSF is.
    survey : `~rosetta.surveys.Survey`
    band : `~rosetta.surveys.Band`
    depth : float
        5-sigma point-source depth, AB, for a matched filter with the PSF at the centre of the image.
    wcs : APE-14 WCS
    delivery : `~rosetta.simulate.Delivery`
    ground : bool
    noise, defects : bool
        Whether there is any noise, and any artefact or missing region.

    Returns
    -------
    image : `~astropy.nddata.NDData`
        nJy, without PSF. ``meta`` says what was drawn.
    psf : `~rosetta.PSF`
        What is given for the PSF.
    """
    exposures, sky, photons, detector, psf_stream, background, maps = map(np.random.default_rng, seeds)
    ny, nx = light.shape
    scale = survey.pixel_scale.to_value(u.arcsec)
    psf = truth.at((nx - 1) / 2, (ny - 1) / 2)
    sigma = equivalent_sigma(psf, depth)
    photon = source_variance(light, sigma, scale, band.pivot.to_value(u.nm), ground)
    resampling = _resampling(exposures, band, scale, delivery, ground)
    factor = 1 / white_equivalent(resampling, psf)
    image = light + sky_residual(background, light, sigma, scale, delivery)
    if noise:
        image = image + factor * sigma * resampling.noise(sky, light.shape)
        image += factor * np.sqrt(photon) * resampling.noise(photons, light.shape)
    mask = np.zeros(light.shape, bool)
    if defects:
        # Artefacts: the one call.
        mask = add_defects(detector, image, 10 ** (0.4 * (31.4 - survey.saturation)) * psf.max())
        mask |= _missing(detector, light.shape, delivery)
    scatter, without_sources = maps.uniform(size=2) < (delivery.scatter_variance, delivery.sky_variance)
    variance = np.full(light.shape, sigma**2) + (0.0 if without_sources else photon)
    if scatter:
        variance *= factor**2 * resampling.autocovariance(0)[0, 0]
    given, kind = given_psf(psf_stream, truth, light.shape, delivery)
    meta = {
        "survey": survey.name,
        "band": band.name,
        "depth": float(depth),
        "psf_fwhm": float(_width(psf) * scale),
        "psf_given": kind,
        "variance_given": "pixel scatter" if scatter else "white equivalent",
        "variance_of_sources": not without_sources,
        "interpolation": resampling.kernel,
    }
    uncertainty = VarianceUncertainty(variance.astype(np.float32))
    data = NDData(image.astype(np.float32), uncertainty=uncertainty, mask=mask, wcs=wcs, unit=u.nJy, meta=meta)
    return data, given


def _resampling(rng, band, scale, delivery, ground):
    """How the exposures of a band come to its grid: coadds of ground surveys by Lanczos, others linearly."""
    if band.native_pixel is not None:
        return Resampling(rng, band.native_pixel.to_value(u.arcsec) / scale, "linear")
    return Resampling(rng, 1.0, "none" if not delivery.correlated else "lanczos3" if ground else "linear")


def _missing(rng, shape, delivery):
    """Now and then a strip along a border, or a gap across the field, without data."""
    mask = np.zeros(shape, bool)
    if rng.uniform() < delivery.missing:
        across = mask if rng.uniform() < 0.5 else mask.T
        n = across.shape[1]
        width = round(n * rng.uniform(0.02, 0.2))
        first = rng.choice([0, n - width, rng.integers(0, n - width)])
        across[:, first : first + width] = True
    return mask


def _width(psf):
    """Full width at half maximum, pixels."""
    half = min(20, *(n // 2 for n in psf.shape))
    y, x = (n // 2 for n in psf.shape)
    return float(half_maximum_width(psf[y - half : y + half + 1, x - half : x + half + 1]))
