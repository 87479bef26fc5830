# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Simulated pairs that heads are trained on: 102", in which stars move, seeing and depth differ and headers are off."""

from collections.abc import Sequence

import astropy.units as u

from rosetta.simulate import AstrometricError, simulate_pair

YEARS, SEEING = (0, 3), (0.85, 1.2)


def simulated(seed, rng, error, density, depth):
    """A pair and its truth; epoch, density, depth (mag) and seeing are drawn between their limits."""
    years, density, depth, seeing = (float(rng.uniform(low, high)) for low, high in (YEARS, density, depth, SEEING))
    return simulate_pair(
        seed=seed, astrometric_error=error, proper_motion_years=years, density=density, depth_offset=depth,
        seeing=seeing,
    )  # fmt: skip


def nearly_aligned(seed, rng, density):
    """A pair and its truth, with what is left over from an alignment."""
    error = AstrometricError(rms=rng.uniform(2, 10) * u.mas, length=rng.uniform(15, 60) * u.arcsec)
    return simulated(seed, rng, error, density=density, depth=(-0.7, 0.3))


class Column(Sequence):
    """The pairs (0), or their truth (1), of ``n`` calls of ``draw(index)``."""

    def __init__(self, draw, n, which):
        self._draw, self._n, self._which = draw, n, which

    def __len__(self):
        return self._n

    def __getitem__(self, index):
        return self._draw(index)[self._which]
