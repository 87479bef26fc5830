# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Sources that were not detected at first, found in the residuals of a first fit."""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ..detection.detection import ground_stack, residual_peaks
from ..images.filtering import filter_sigma
from .point_sources import is_point
from .sources import true_at

__all__ = ["confirmed", "missed"]


def missed(engine, images, reference, sources, mixtures, advice, config):
    """Positions of sources that the residuals show, on the reference image and on the ground stack.

    Parameters
    ----------
    engine : `~rosetta.deblending.engine.engine.Engine`
    images : dict of str to `~rosetta.images.image.BandImage`
    reference : `~rosetta.images.image.BandImage`
        The full-field image at whose resolution the templates are defined.
    sources : `~rosetta.deblending.sources.Sources`
    mixtures : (n, K, 6) array
        Their fitted shapes.
    advice : `~rosetta.deblending.candidates.Advice` or None
        Of the learned detector; None: there is none.
    config : `~rosetta.deblending.config.DeblenderConfig`

    Returns
    -------
    east_north : (n, 2) array
        True positions in the tangent plane of the images, arcsec; n may be 0.
    odds : (n,) array
        Logarithm of the detector's odds.
    """
    residuals = {}
    for band, image in images.items():
        if image.side == "ground" or band == reference.band:
            placed = sources.on(image, reference.wavelength, config.engine, light=3.0)
            residuals[band] = _residual(engine, mixtures, placed, config)
    ground = [image for image in residuals.values() if image.side == "ground"]
    looks = [residuals[reference.band]] if reference.side == "space" and reference.band in residuals else []
    looks += [ground_stack(ground)] if ground else []
    known, odds = sources.east_north, sources.odds
    for look in looks:
        x, y, significance = residual_peaks(look, config.detection)
        found = true_at(look.east_north(x, y), look, sources.solution)
        own = np.zeros(len(found))
        if advice is not None:
            own = advice.odds_at(found, config.candidates.centred)
            keep = ~advice.doubts(found, own) | (significance > config.candidates.unseen_peak)
            found, own = found[keep], own[keep]
        if len(known) and len(found):
            separation, _ = cKDTree(known).query(found)
            apart = separation > max(config.apart[look.side == "ground"] * look.fwhm, config.match)
            found, own = found[apart], own[apart]
        known, odds = np.concatenate([known, found]), np.concatenate([odds, own])
    return known[len(sources) :], odds[len(sources) :]


def confirmed(field, least, peak):
    """Rows of the sources that stay, (m,): what was not detected must be significant beside its neighbours too.

    Their models have changed since; and what a source shows in all bands together is less than in their stack if it has
    not the light of a source.

    Parameters
    ----------
    field : `~rosetta.deblending.tiles.FieldFit`
    least : (n,) array
        Sigma that must be seen of the sources of the job's list,
    peak : float
        and of those that the residuals showed.
    """
    snr = [np.where(fit.measured, fit.flux / np.sqrt(fit.covariance.diagonal()), 0.0) for fit in field.bands.values()]
    chi2 = np.sum(np.maximum(snr, 0.0) ** 2, axis=0)
    noise = 0.5 * sum(fit.measured for fit in field.bands.values())  # mean: half of the fluxes of noise are positive
    needed = np.append(least, peak)[field.index]
    return np.flatnonzero((needed == 0) | (chi2 > needed**2 + noise))


def _residual(engine, mixtures, placed, config):
    """The residual image; a fractional model error ``config.light_error`` is added to its noise."""
    image = placed.image
    _, _, design = engine.fit_breadths(mixtures, placed, iterations=1)
    flux, _ = engine.fluxes(design, image)
    model = design.image(flux)
    error2 = (config.light_error * model) ** 2 + _of_points(design, flux, mixtures, placed, config) ** 2
    return image.with_pixels(
        np.where(image.valid, image.data - model, 0.0), image.variance + error2,
        sky_weight=image.sky_weight / (1.0 + image.sky_weight * error2),
    )


def _of_points(design, flux, mixtures, placed, config):
    """Error (ny, nx) of the models of point sources due to the error of the PSF.

    The error is a share of the model's light, a larger one beyond the given stamp, where spikes are not known. It
    takes the largest value within the filter, because diffraction rings may be shifted. Unlike noise, it is correlated
    over the filter: so it is multiplied by the square root of the filter's area in pixels.
    """
    image, error = placed.image, np.zeros(placed.shape)
    for k in np.flatnonzero(is_point(mixtures) & (flux > 0)):
        y0, y1, x0, x1 = design.bounds[k]
        radius = np.hypot(np.arange(y0, y1)[:, None] - placed.xy[k, 1], np.arange(x0, x1) - placed.xy[k, 0])
        share = np.where(radius < image.psf_reach, config.light_error, config.wing_error)
        error[y0:y1, x0:x1] += share * flux[k] * design.values[k]
    sigma = filter_sigma(image, config.detection.filter_fwhm) / image.pixel_scale
    return np.sqrt(4.0 * np.pi) * sigma * ndimage.maximum_filter(error, 2 * int(np.ceil(sigma)) + 1)
