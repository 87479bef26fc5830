# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Sources that only the reference band shows, although others would show any source of its flux."""

from dataclasses import dataclass

import numpy as np

__all__ = ["SingleBandConfig", "only_in_reference"]


@dataclass(frozen=True)
class SingleBandConfig:
    """When a source of the reference band alone is no source.

    Attributes
    ----------
    inside_blue, inside_red, beside_red : float
        Least flux (nJy) in another band, over that in the reference band, of any star or galaxy: in a band that shares
        its range (on the blue side: late M dwarfs and dropouts are faint there; on the red side: emission lines are
        not), and in the next one on the red side.
    sigma : float
        By which the flux must be less than that,
    left : float
        and the most that may be left of it.
    snr : float
        In the reference band.
    model_error : float
        Of the light of overlapping sources.
    """

    inside_blue: float = 0.15
    inside_red: float = 0.5
    beside_red: float = 0.3
    sigma: float = 5.0
    left: float = 0.5
    snr: float = 3.0
    model_error: float = 0.1


def only_in_reference(fits, edges, reference, config):
    """Whether bands that see the spectral range of the reference band miss the light of a source.

    Every other band with a common range, and the next band on the red side, has a least flux that a source of the
    reference band's flux must have there. Where all bands together say that it has less, no spectrum explains the
    source: it is an artefact of the reference image (or something that moved or faded between the exposures).

    Parameters
    ----------
    fits : dict of str to `~rosetta.deblending.band_fit.BandFit`
        Of the bands whose positions agree with the reference band's, itself included.
    edges : dict of str to (low, high)
        Of each band, nm.
    reference : str
    config : `SingleBandConfig`

    Returns
    -------
    (n,) bool array
    """
    signal, noise = fits[reference].flux, _error(fits[reference], config)
    # Weighted mean of the fluxes over their least values: 1 or more for a source.
    top, bottom = np.zeros(len(signal)), np.zeros(len(signal))
    with np.errstate(all="ignore"):
        for band, least in _least_fluxes(edges, reference, config).items():
            expected = least * signal
            ratio, weight = fits[band].flux / expected, (expected / _error(fits[band], config)) ** 2
            seen = fits[band].measured & np.isfinite(ratio) & np.isfinite(weight)
            top[seen] += (weight * ratio)[seen]
            bottom[seen] += weight[seen]
        mean, sigma = top / bottom, np.sqrt(1.0 / bottom + (noise / signal) ** 2)
        bright, missing = signal > config.snr * noise, 1.0 - mean > config.sigma * sigma
        return bright & (bottom > 0) & (mean < config.left) & missing


def _error(fit, config):
    """Errors of the fluxes (n,), with what the models of overlapping sources may be wrong by."""
    flux, sigma = np.nan_to_num(fit.flux), np.sqrt(fit.covariance.diagonal())
    with np.errstate(all="ignore"):
        inverse = np.where(sigma > 0, 1.0 / sigma, 0.0)
    overlap = abs(fit.covariance).multiply(inverse[:, None]).multiply(inverse) @ np.abs(flux) - np.abs(flux)
    return np.hypot(sigma * np.sqrt(np.maximum(fit.misfit, 1.0)), config.model_error * np.maximum(overlap, 0.0))


def _least_fluxes(edges, reference, config):
    """Least flux in other bands over that in the reference band; only of those that tell."""
    low, high = edges[reference]
    least, beside = {}, {}
    for band, (start, stop) in edges.items():
        red = start + stop > low + high
        if band == reference:
            continue
        if min(stop, high) - max(start, low) > 0.5 * min(stop - start, high - low):
            least[band] = config.inside_red if red else config.inside_blue
        elif red:
            beside[band] = start + stop
    if beside:
        least[min(beside, key=beside.get)] = config.beside_red
    return least
