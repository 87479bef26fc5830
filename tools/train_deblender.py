# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Train the deblender's head on simulated pairs as users have them: PSFs that vary, frames that nearly agree.

What a fit leaves around a source tells blends only to a network that knows what an inexact PSF leaves.
Usage: python tools/train_deblender.py OUTPUT.safetensors [ENCODER.safetensors]; goes on where it was stopped.
"""

import sys
from functools import lru_cache

import numpy as np
from training_pairs import Column, nearly_aligned

from rosetta import CrossSurveyEncoder, JEPADeblender

N_PAIR = 28
FIRST_SEED = 5300


@lru_cache(maxsize=1)
def draw(index):
    """A pair and its truth: 102"; left over from an alignment, epoch, depth, seeing and density differ."""
    return nearly_aligned(FIRST_SEED + index, np.random.default_rng([53, index]), density=(0.5, 1.4))


def main(output, encoder=None):
    head = JEPADeblender(CrossSurveyEncoder.from_pretrained(encoder))
    head.fit(*(Column(draw, N_PAIR, k) for k in (0, 1)), seed=5, checkpoint=f"{output}.state")
    print(f"Wrote {output}: deblender {head.save(output)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
