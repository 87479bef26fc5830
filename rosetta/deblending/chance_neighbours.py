# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Whether a source in the light of a brighter one is a part of it, or another galaxy in the same line of sight.

Parts of a galaxy lie where its light is and have nearly its colours. Other galaxies are as frequent there as anywhere,
which the number counts tell, and have colours of their own; neither of the two has a negative flux.
"""

import numpy as np

__all__ = ["log_odds"]

#: Galaxies brighter than i = 25 (363 nJy) per square arcsec, and the power of the flux that the counts follow.
COUNTS, COUNTED_AT, SLOPE = 0.0125, 363.0, -0.8


def log_odds(inside, apart, one, other, reference, config):
    """Logarithm of the probability that sources are parts of brighter ones, over that of other galaxies.

    Parameters
    ----------
    inside : (n,) array
        Light of the brighter source at the place of the source, over the source's own.
    apart : (n,) array
        Their distance, arcsec.
    one, other : (flux, error), (n, n_band) arrays each
        Of the sources and of the brighter ones, nJy; errors are infinite where a band does not see a source.
    reference : int
        Number of the band, of positive fluxes, that ``inside`` is measured in.
    config : `~rosetta.deblending.config.MergingConfig`

    Returns
    -------
    (n,) array
    """
    (flux, error), (whole, unseen) = one, other
    light = flux[:, reference]
    chance = COUNTS * (light / COUNTED_AT) ** SLOPE * np.pi * apart**2
    same = (light / whole[:, reference])[:, None] * np.maximum(whole, 0.0)  # had it the other's colours
    unsure = np.hypot(config.light_error * inside, error[:, reference] / light)[:, None] * same
    noise = np.hypot(error, unsure)
    part, neighbour = np.hypot(noise, config.of_parts * same), np.hypot(noise, config.of_others * same)
    with np.errstate(divide="ignore", invalid="ignore"):
        colour = np.log(neighbour / part) - 0.5 * ((flux - same) / part) ** 2 + 0.5 * ((flux - same) / neighbour) ** 2
        negative = 0.5 * (np.minimum(flux, 0.0) / error) ** 2
    seen = np.isfinite(error + unseen) & (whole > 0) & (np.arange(flux.shape[1]) != reference)
    told = np.where(seen & np.isfinite(colour), colour + negative, 0.0).sum(axis=1)
    told *= np.minimum(1.0, config.n_colour / np.maximum(seen.sum(axis=1), 1))
    return np.log(np.maximum(inside, 1e-9) / np.maximum(chance, 1e-9)) + told
