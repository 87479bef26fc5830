# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Features of fitted sources: input of the error and blend networks, computed from the fits."""

import astropy.units as u
import numpy as np

from .band_fit import N_ANGLE, RADII

__all__ = ["flux_features", "source_features"]

N_OF_BAND = 15


def flux_features(scene):
    """Features of each flux, (n, n_band, n_feature) float32: those of its band, then those of its source.

    Parameters
    ----------
    scene : `~rosetta.DeblendedScene`
    """
    images = scene.images
    of_band = _of_bands(scene.to_table(), scene.fits, images, scene.template_covariance)
    of_source = _of_sources(scene.fits, of_band)
    return np.concatenate([of_band, np.repeat(of_source[:, None], of_band.shape[1], axis=1)], axis=2)


def source_features(table, fits, images, template_covariance):
    """Features of each source, (n, `rosetta.deblending.blend_probability.N_FEATURE`) float32, whatever bands there are.

    Mean and scatter over the measured bands of the fifteen features per band; then the residuals at the centre and in
    rings around it (maximum, minimum, mean over angle). A residual is the S/N of a point source at that position, in
    all bands together, for the colours of the source.

    Parameters
    ----------
    table : `~astropy.table.QTable`
        As from ``DeblendedScene.to_table``.
    fits : dict of str to `~rosetta.deblending.band_fit.BandFit`
    images : dict of str to `~rosetta.images.image.BandImage`
    template_covariance : (n, n_band, n_band) array
    """
    return _of_sources(fits, _of_bands(table, fits, images, template_covariance))


def _of_bands(table, fits, images, template_covariance):
    """Features of each source in each band, (n, n_band, N_OF_BAND) float32."""
    n = len(table)
    template_error = np.sqrt(np.maximum(np.einsum("nbb->nb", template_covariance), 0.0))
    out = np.zeros((n, len(fits), N_OF_BAND), np.float32)
    radius = np.log(table["half_light_radius"].to_value(u.arcsec) + 0.02)
    nearest = np.full(n, 10.0)
    if n > 1:
        _, separation, _ = table["sky_centroid"].match_to_catalog_sky(table["sky_centroid"], nthneighbor=2)
        nearest = np.minimum(separation.to_value(u.arcsec), 10.0)
    for k, (band, fit) in enumerate(fits.items()):
        error = np.sqrt(fit.covariance.diagonal())
        snr = np.divide(np.nan_to_num(fit.flux), error, out=np.zeros(n), where=error > 0)
        out[:, k, 0] = np.arcsinh(snr)
        out[:, k, 1] = np.log(np.maximum(template_error[:, k], 1e-4))
        out[:, k, 2] = table["blendedness"]
        out[:, k, 3] = np.log(np.clip(np.nan_to_num(fit.chi2, nan=1.0), 0.1, 100.0))
        out[:, k, 4] = radius
        out[:, k, 5] = images[band].side == "space"
        out[:, k, 6] = np.log(images[band].fwhm)
        out[:, k, 7] = np.arcsinh(table["snr"])
        out[:, k, 8] = fit.coverage
        out[:, k, 9] = fit.blendedness
        out[:, k, 10] = fit.breadth
        out[:, k, 11] = np.log(np.maximum(fit.breadth_error, 1e-4))
        out[:, k, 12] = np.log(nearest + 0.1)
        out[:, k, 13] = np.log(np.clip(np.nan_to_num(fit.misfit, nan=1.0), 0.1, 100.0))
        out[:, k, 14] = np.hypot(table["e1"], table["e2"])
    return out


def _of_sources(fits, features):
    fits = list(fits.values())
    seen = np.stack([fit.measured for fit in fits], axis=1)[..., None]  # (n, n_band, 1)
    count = np.maximum(seen.sum(axis=1), 1)
    mean = np.where(seen, features, 0.0).sum(axis=1) / count
    scatter = np.sqrt(np.where(seen, (features - mean[:, None]) ** 2, 0.0).sum(axis=1) / count)
    weight = np.where(seen, np.maximum(np.sinh(features[..., :1]), 1.0), 0.0)
    weight /= np.maximum(np.sqrt((weight**2).sum(axis=1, keepdims=True)), 1e-9)
    # (n, 1 + len(RADII) * N_ANGLE)
    residual = (weight * np.stack([fit.residual_snr for fit in fits], axis=1)).sum(axis=1)
    rings = residual[:, 1:].reshape(-1, len(RADII), N_ANGLE)
    around = [residual[:, :1], rings.max(axis=2), rings.min(axis=2), rings.mean(axis=2)]
    return np.concatenate([mean, scatter, np.arcsinh(np.concatenate(around, axis=1))], axis=1).astype(np.float32)
