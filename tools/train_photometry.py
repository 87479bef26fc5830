# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Train the photometry's head on simulated pairs as users have them: PSFs that vary, frames that nearly agree.

Training tiles know one exact PSF over all of them, and a head that has never seen a wrong one quotes too small errors.
Usage: python tools/train_photometry.py OUTPUT.safetensors [ENCODER.safetensors]; goes on where it was stopped.
"""

import sys
from collections.abc import Sequence
from functools import lru_cache

import astropy.units as u
import numpy as np

from rosetta import CrossSurveyEncoder, EmbeddingPhotometry
from rosetta.simulate import AstrometricError, simulate_pair

N_PAIR = 20
FIRST_SEED = 5200


@lru_cache(maxsize=1)
def simulated(index):
    """A pair and its truth: 102"; left over from an alignment, epoch, depth, seeing and density differ."""
    rng = np.random.default_rng([52, index])
    error = AstrometricError(rms=rng.uniform(2, 10) * u.mas, length=rng.uniform(15, 60) * u.arcsec)
    limits = ((0, 3), (0.3, 1.4), (-0.7, 0.3), (0.85, 1.2))
    years, density, depth, seeing = (float(rng.uniform(low, high)) for low, high in limits)
    return simulate_pair(
        seed=FIRST_SEED + index, astrometric_error=error, proper_motion_years=years,
        density=density, depth_offset=depth, seeing=seeing,
    )


class Column(Sequence):
    """The pairs (0), or their truth (1)."""

    def __init__(self, which):
        self._which = which

    def __len__(self):
        return N_PAIR

    def __getitem__(self, index):
        return simulated(index)[self._which]


def main(output, encoder=None):
    head = EmbeddingPhotometry(CrossSurveyEncoder.from_pretrained(encoder))
    head.fit(Column(0), Column(1), seed=6, checkpoint=f"{output}.state")
    print(f"Wrote {output}: photometry {head.save(output)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
