# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Train the aligner's head on simulated pairs in which stars have moved and headers are off.

Training tiles know no motion, and a head that has never seen a star move trusts it too much.
Usage: python tools/train_aligner.py OUTPUT.safetensors [ENCODER.safetensors]; goes on where it was stopped.
"""

import sys
from functools import lru_cache

import astropy.units as u
import numpy as np
from training_pairs import Column, simulated

from rosetta import CrossSurveyEncoder, LearnedAligner
from rosetta.simulate import AstrometricError

N_PAIR = 14
FIRST_SEED = 5100


@lru_cache(maxsize=1)
def draw(index):
    """A pair and its truth: 102", another error field, epoch, depth, seeing and density for every index."""
    rng = np.random.default_rng([51, index])
    error = AstrometricError(
        shift=rng.normal(0, 50, 2) * u.mas,
        rms=rng.uniform(3, 20) * u.mas,
        length=rng.uniform(15, 60) * u.arcsec,
    )
    return simulated(FIRST_SEED + index, rng, error, density=(0.7, 1.4), depth=(-0.5, 0.3))


def main(output, encoder=None):
    head = LearnedAligner(CrossSurveyEncoder.from_pretrained(encoder))
    head.fit(*(Column(draw, N_PAIR, k) for k in (0, 1)), seed=5, checkpoint=f"{output}.state")
    print(f"Wrote {output}: aligner {head.save(output)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
