# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Sources that only the reference band shows, although others would show any source of its flux."""

import numpy as np

__all__ = ["only_in_reference"]

# Least flux (nJy) in another band, over that in the reference band, of any star or galaxy: in a band that shares its
# range (on the blue side: late M dwarfs and dropouts are faint there; on the red side: emission lines are not), and in
# the next one on the red side.
INSIDE_BLUE, INSIDE_RED, BESIDE_RED = 0.15, 0.5, 0.3
SIGMA = 5.0
SNR = 3.0  # in the reference band
MODEL_ERROR = 0.1  # of the light of overlapping sources
LEFT = 0.5  # most that is left of the least flux


def only_in_reference(fits, edges, reference):
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

    Returns
    -------
    (n,) bool array
    """
    signal, noise = fits[reference].flux, _error(fits[reference])
    # Weighted mean of the fluxes over their least values: 1 or more for a source.
    top, bottom = np.zeros(len(signal)), np.zeros(len(signal))
    with np.errstate(all="ignore"):
        for band, least in _least_fluxes(edges, reference).items():
            expected = least * signal
            ratio, weight = fits[band].flux / expected, (expected / _error(fits[band])) ** 2
            seen = fits[band].measured & np.isfinite(ratio) & np.isfinite(weight)
            top[seen] += (weight * ratio)[seen]
            bottom[seen] += weight[seen]
        mean, sigma = top / bottom, np.sqrt(1.0 / bottom + (noise / signal) ** 2)
        return (signal > SNR * noise) & (bottom > 0) & (mean < LEFT) & (1.0 - mean > SIGMA * sigma)


def _error(fit):
    """Errors of the fluxes (n,), with what the models of overlapping sources may be wrong by."""
    flux, sigma = np.nan_to_num(fit.flux), np.sqrt(fit.covariance.diagonal())
    with np.errstate(all="ignore"):
        inverse = np.where(sigma > 0, 1.0 / sigma, 0.0)
    overlap = abs(fit.covariance).multiply(inverse[:, None]).multiply(inverse) @ np.abs(flux) - np.abs(flux)
    return np.hypot(sigma * np.sqrt(np.maximum(fit.misfit, 1.0)), MODEL_ERROR * np.maximum(overlap, 0.0))


def _least_fluxes(edges, reference):
    """Least flux in other bands over that in the reference band; only of those that tell."""
    low, high = edges[reference]
    least, beside = {}, {}
    for band, (start, stop) in edges.items():
        red = start + stop > low + high
        if band == reference:
            continue
        if min(stop, high) - max(start, low) > 0.5 * min(stop - start, high - low):
            least[band] = INSIDE_RED if red else INSIDE_BLUE
        elif red:
            beside[band] = start + stop
    if beside:
        least[min(beside, key=beside.get)] = BESIDE_RED
    return least
