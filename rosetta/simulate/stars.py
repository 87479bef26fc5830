# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Stars of the Galaxy at high latitude: counts, temperatures and proper motions.

Counts per square arcminute follow those at the galactic pole (Bahcall & Soneira 1980, ApJS 44, 73): 3 to i = 25, and
0.12 to i = 15.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Stars", "draw_stars", "star_counts"]

BRIGHT_LIMIT = 15.0
FAINT_LIMIT = 26.5
_KNEE, _KNEE_COUNTS = 21.0, 1.0  # i magnitude; per square arcminute
_SLOPES = (0.155, 0.12)  # of log10 counts, brighter and fainter than the knee


class Stars(NamedTuple):
    """Stars of one field."""

    place: np.ndarray  # (n, 2) arcsec east, north
    mag: np.ndarray  # (n,) i
    temperature: np.ndarray  # (n,) kelvin
    motion: np.ndarray  # (n, 2) mas/yr east, north


def star_counts(magnitude):
    """Stars per square arcminute brighter than an i magnitude, at high galactic latitude.

    Parameters
    ----------
    magnitude : float or array_like
        AB magnitude in i.

    Returns
    -------
    float or `~numpy.ndarray`
    """
    beyond = np.asarray(magnitude) - _KNEE
    return _KNEE_COUNTS * 10 ** (np.where(beyond < 0, *_SLOPES) * beyond)


def draw_stars(rng, half_size, density=1.0):
    """Draw the stars of one field, i = 15 to 26.5.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
    half_size : float
        Stars fall within +-half_size (arcsec) east and north of the centre.
    density : float
        Number of stars relative to `star_counts`.

    Returns
    -------
    Stars
    """
    area = (2 * half_size / 60.0) ** 2
    brightest, faintest = star_counts(BRIGHT_LIMIT), star_counts(FAINT_LIMIT)
    n = rng.poisson(density * (faintest - brightest) * area)
    count = rng.uniform(brightest, faintest, n)
    mag = _KNEE + np.log10(count / _KNEE_COUNTS) / np.where(count < _KNEE_COUNTS, *_SLOPES)
    # Nearer, brighter stars move faster; direction at random.
    speed = 10 ** (0.7 - 0.06 * (mag - 21) + 0.35 * rng.normal(size=n))
    turn = rng.uniform(0, 2 * np.pi, n)
    motion = speed[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return Stars(rng.uniform(-half_size, half_size, (n, 2)), mag, _temperatures(rng, n), motion)


def _temperatures(rng, n):
    """Effective temperatures: mostly red dwarfs, some turn-off stars, a few hot ones."""
    kind = rng.choice(3, n, p=[0.62, 0.35, 0.03])
    cool = rng.normal(3400, 350, n)
    turn_off = rng.normal(5600, 500, n)
    return np.clip(np.choose(kind, [cool, turn_off, rng.uniform(7500, 11500, n)]), 2700, 11900)
