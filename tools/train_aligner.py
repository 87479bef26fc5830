# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Train the aligner's head on simulated pairs in which stars have moved and headers are off.

Training tiles know no motion, and a head that has never seen a star move trusts it too much.
Usage: python tools/train_aligner.py OUTPUT.safetensors [ENCODER.safetensors]; goes on where it was stopped.
"""

import sys
from collections.abc import Sequence
from functools import lru_cache

import astropy.units as u
import numpy as np

from rosetta import CrossSurveyEncoder, LearnedAligner
from rosetta.simulate import AstrometricError, simulate_pair

N_PAIR = 14
FIRST_SEED = 5100


@lru_cache(maxsize=1)
def simulated(index):
    """A pair and its truth: 102", another error field, epoch, depth, seeing and density for every index."""
    rng = np.random.default_rng([51, index])
    error = AstrometricError(
        shift=rng.normal(0, 50, 2) * u.mas,
        rms=rng.uniform(3, 20) * u.mas,
        length=rng.uniform(15, 60) * u.arcsec,
    )
    limits = ((0, 3), (0.7, 1.4), (-0.5, 0.3), (0.85, 1.2))
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
    head = LearnedAligner(CrossSurveyEncoder.from_pretrained(encoder))
    head.fit(Column(0), Column(1), seed=5, checkpoint=f"{output}.state")
    print(f"Wrote {output}: aligner {head.save(output)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
