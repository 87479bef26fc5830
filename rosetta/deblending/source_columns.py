# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Columns of a scene's table that follow from the fits."""

import astropy.units as u
import numpy as np

from ..flags import Flag
from .engine.rendering import half_light_radius
from .shapes import EAST, NORTH, centroids

__all__ = ["source_columns"]


def source_columns(field, coord, fixed, covariance, sharp, blended, config):
    """Columns of a scene's table that follow from the fits.

    Parameters
    ----------
    field : `~rosetta.deblending.tiles.FieldFit`
    coord : `~astropy.coordinates.SkyCoord`, shape (n,)
        Positions that the templates are about.
    fixed : (n,) bool array
        Whether a position is what a user says, and not where the template's light is.
    covariance : (n, n_shape, n_shape) array
        Of the shapes, along `~rosetta.deblending.shapes.DIRECTIONS`.
    sharp, blended : `~rosetta.deblending.band_fit.BandFit`
        Of the reference band, and of the band that blendedness is measured in.
    config : `~rosetta.deblending.config.DeblenderConfig`

    Returns
    -------
    dict of str to column
    """
    error = np.sqrt(sharp.covariance.diagonal())
    snr = np.divide(np.nan_to_num(sharp.flux), error, out=np.zeros(len(field)), where=error > 0)
    flags = np.zeros(len(field), dtype=np.int64)
    flags[blended.blendedness > config.blended_above] |= int(Flag.BLENDED)
    flags[sharp.measured & (snr < config.lowest_snr)] |= int(Flag.LOW_SNR)
    radius, e1, e2 = shape_columns(field.mixtures)
    n_band = sum(fit.measured.astype(int) for fit in field.bands.values())
    shift = np.where(fixed[:, None], 0.0, centroids(field.mixtures)) * u.arcsec
    place = coord.icrs.spherical_offsets_by(shift[:, 0], shift[:, 1])
    return {
        "sky_centroid": place,
        **position_errors(covariance * (sharp.noise**2)[:, None, None], known=~fixed & (n_band > 0)),
        "blendedness": blended.blendedness,
        "n_pixel": sum(fit.pixels for fit in field.bands.values()),
        "n_band": n_band,
        "half_light_radius": radius * u.arcsec,
        "e1": e1,
        "e2": e2,
        "snr": snr,
        "flags": flags,
    }


def shape_columns(mixtures):
    """Half-light radius (arcsec) and distortion (e1, e2) of mixtures."""
    weight, (east, north) = mixtures[..., 0], np.moveaxis(mixtures[..., 1:3] - centroids(mixtures)[:, None], -1, 0)
    second = (mixtures[..., 3] + east**2, mixtures[..., 4] + east * north, mixtures[..., 5] + north**2)
    sxx, sxy, syy = (np.sum(weight * moment, axis=1) for moment in second)
    size = np.maximum(sxx + syy, 1e-12)
    return half_light_radius(mixtures), (sxx - syy) / size, 2 * sxy / size


def position_errors(covariance, known):
    """Columns of the errors of positions.

    Parameters
    ----------
    covariance : (n, n_shape, n_shape) array
        Of the shapes, arcsec^2 for the centres.
    known : (n,) bool array
        Whether a position was fitted to pixels.

    Returns
    -------
    dict of str to column
        ``ra_err`` (on the sky, towards east) and ``dec_err`` (towards north), mas, and their correlation
        ``ra_dec_corr``; NaN where the position was not fitted.
    """
    own = np.where(known[:, None, None], covariance[:, EAST : NORTH + 1, EAST : NORTH + 1], np.nan)
    east, north = np.sqrt(own[:, 0, 0]), np.sqrt(own[:, 1, 1])
    return {
        "ra_err": (east * u.arcsec).to(u.mas), "dec_err": (north * u.arcsec).to(u.mas),
        "ra_dec_corr": own[:, 0, 1] / (east * north),
    }  # fmt: skip
