# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Train the photometry's head on simulated pairs as users have them: PSFs that vary, frames that nearly agree.

Training tiles know one exact PSF over all of them, and a head that has never seen a wrong one quotes too small errors.
Usage: python tools/train_photometry.py OUTPUT.safetensors [ENCODER.safetensors [DEBLENDER.safetensors]]; goes on where
it was stopped. The head belongs to the deblender: the bundled one, if none is given.
"""

import sys
from functools import lru_cache

import numpy as np
from training_pairs import Column, nearly_aligned

from rosetta import CrossSurveyEncoder, EmbeddingPhotometry, JEPADeblender

N_PAIR = 64
FIRST_SEED = 5200


@lru_cache(maxsize=1)
def draw(index):
    """A pair and its truth: 102"; left over from an alignment, epoch, depth, seeing and density differ."""
    return nearly_aligned(FIRST_SEED + index, np.random.default_rng([52, index]), density=(0.3, 1.4))


def main(output, encoder=None, deblender=None):
    encoder = CrossSurveyEncoder.from_pretrained(encoder)
    head = EmbeddingPhotometry(encoder, JEPADeblender.from_pretrained(deblender, encoder=encoder))
    head.fit(*(Column(draw, N_PAIR, k) for k in (0, 1)), seed=6, checkpoint=f"{output}.state")
    print(f"Wrote {output}: photometry {head.save(output)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
