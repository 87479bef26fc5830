# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The prior of galaxies' light profiles in the family of shapes: mean and covariance of a population of profiles.

Galaxies with a bright core have bright wings (de Vaucouleurs 1948). The wings lie below the noise, so what a fit says
of a galaxy's total light rests on this relation. Half of the population are exponential discs with a bulge (share
Beta(1, 4), Sersic index 1.5 to 4, 0.1 to 0.5 of the disc's radius), a quarter single Sersic profiles (index log-normal
about 1.1), a quarter early types (share of the bulge 0.5 to 1, index 2.5 to 6). Sersic profiles of index above 1 end at
8 half-light radii, as those of SDSS do (Stoughton et al. 2002).

Usage: python tools/profile_prior.py
Prints the fields `profile_mean` and `profile_covariance` of `rosetta.deblending.engine.config.EngineConfig`.
"""

import numpy as np
from scipy.optimize import least_squares
from scipy.special import gammaincinv

from rosetta.deblending.shapes import DIRECTIONS, LOGITS, WIDTHS, exponential_logits

SEED, N_PROFILE = 1, 400
PROFILE = 5  # the first direction that changes the profile
EDGE = 8.0  # half-light radii
RADIUS = np.geomspace(0.02, 12.0, 240)  # units of the half-light radius of the disc, or of the only component
ACCURACY = 0.05  # relative; and of the light at one half-light radius
UNLIKE = 0.5  # what a deviation of one from the disc costs, in units of the accuracy: it settles what light does not
FAMILY = (0.3, 0.3, 0.2, 0.2, 0.3)  # scatter that real galaxies have about such sums, along each direction


def sersic(index, radius=1.0):
    """Surface brightness of unit total light at `RADIUS`."""
    r = RADIUS / radius
    light = np.exp(-gammaincinv(2 * index, 0.5) * (r ** (1 / index) - 1))
    if index > 1:
        light = np.where(r < EDGE, light, 0.0)
    return light / np.trapezoid(2 * np.pi * RADIUS**2 * light, np.log(RADIUS))


def drawn(rng):
    """The profile of a galaxy."""
    kind = rng.uniform()
    if kind < 0.5:
        share = rng.beta(1, 4)
        return share * sersic(rng.uniform(1.5, 4.0), rng.uniform(0.1, 0.5)) + (1 - share) * sersic(1.0)
    if kind < 0.75:
        return sersic(np.clip(np.exp(rng.normal(np.log(1.1), 0.4)), 0.5, 6.0))
    share = rng.uniform(0.5, 1.0)
    return share * sersic(rng.uniform(2.5, 6.0), rng.uniform(0.4, 1.2)) + (1 - share) * sersic(1.0)


def coordinates(light):
    """Coordinates of a profile along the directions, about the exponential disc."""
    groups = DIRECTIONS[PROFILE:, LOGITS]
    sigma = ACCURACY * light + ACCURACY * 0.02 * np.interp(1.0, RADIUS, light)

    def off(values):
        weight = np.exp(exponential_logits() + values[1:] @ groups)
        width = np.exp(values[0]) * WIDTHS
        model = np.exp(-0.5 * (RADIUS[:, None] / width) ** 2) @ (weight / weight.sum() / (2 * np.pi * width**2))
        return np.r_[0.3 * np.sqrt(RADIUS) * (model - light) / sigma, UNLIKE * values[1:]]

    return least_squares(off, np.zeros(1 + len(groups))).x[1:]


def main():
    rng = np.random.default_rng(SEED)
    found = np.array([coordinates(drawn(rng)) for _ in range(N_PROFILE)])
    covariance = np.cov(found.T) + np.diag(np.square(FAMILY))
    print("profile_mean:", tuple(np.round(found.mean(axis=0), 2).tolist()))
    print("profile_covariance:", tuple(map(tuple, np.round(covariance, 2).tolist())))


if __name__ == "__main__":
    main()
