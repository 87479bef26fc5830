# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Train everything but the encoder, on sky as surveys deliver it: novelty score, aligner, detector, deblender,
photometry.

Usage: python tools/calibrate_all.py WORK [--morphologies FILE] [--encoder FILE] [--workers 2] [--install]
Every step goes on where it was stopped when the same command is given again. --install copies the result into the
package.
"""

import argparse
import logging
import shutil
from pathlib import Path

from training_pairs import N_PAIR, Sky

import rosetta
from rosetta import CrossSurveyEncoder, EmbeddingPhotometry, JEPADeblender, LearnedAligner, LearnedDetector
from rosetta.registry import KINDS
from rosetta.simulate import TrainingSet, write_training_set

SEED = {"aligner": 5, "deblender": 5, "photometry": 6, "detector": 6200}
TILE_SEED, N_TILE, STEPS = 6600, 96, 16000  # of the detector


def calibrated(path, source, skies):
    """The encoder with a novelty score for delivered images; its windows are no head's errors, so the sky is shared."""
    if not path.exists():
        encoder = CrossSurveyEncoder.from_pretrained(source, device="cpu")
        encoder.calibrate(skies["photometry"], skies["aligner"])
        encoder.save(path)
    return CrossSurveyEncoder.from_pretrained(path, device="cpu")


def detector_of(work, morphologies, workers):
    """The detector, trained or from an earlier run, on noise-free tiles of its own."""
    path, folder = work / "detector.safetensors", work / "detector_tiles"
    if not path.exists():
        write_training_set(folder, N_TILE, seed=TILE_SEED, processes=workers, morphologies=morphologies)
        tiles = TrainingSet(folder)
        truth = [tiles.truth(index) for index in range(len(tiles))]

        def progress(step, steps, loss):
            if step % 500 == 0:
                print(f"detector: step {step} of {steps}, loss {loss:.3f}", flush=True)

        detector = LearnedDetector(device="cpu")
        state = path.with_suffix(".state.safetensors")
        detector.fit(tiles, truth, steps=STEPS, seed=SEED["detector"], checkpoint=state, progress=progress)
        print(f"detector: {detector.save(path)}", flush=True)
    return LearnedDetector.from_pretrained(path, device="cpu")


def trained(path, head, sky, workers):
    """A head, trained or from an earlier run."""
    if not path.exists():
        head.fit(sky, sky.truth, seed=SEED[sky.kind], checkpoint=path.with_suffix(".rows"), workers=workers)
        print(f"{sky.kind}: {head.save(path)}", flush=True)
    return type(head).from_pretrained(path, encoder=head.encoder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--morphologies", type=Path, help="images of real galaxies, for a third of photometry's pairs")
    parser.add_argument("--encoder", type=Path, help="a checkpoint; default: the bundled one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--install", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rosetta").setLevel(logging.INFO)  # what was measured on held-out sky
    skies = {kind: Sky(args.work / "sky", kind, args.morphologies) for kind in N_PAIR}
    for sky in skies.values():
        sky.simulate(args.workers)
    paths = {kind: args.work / f"{kind}.safetensors" for kind in KINDS}
    encoder = calibrated(paths["encoder"], args.encoder, skies)
    trained(paths["aligner"], LearnedAligner(encoder), skies["aligner"], args.workers)
    detector = detector_of(args.work, args.morphologies, args.workers)
    deblender = trained(paths["deblender"], JEPADeblender(encoder, detector), skies["deblender"], args.workers)
    trained(paths["photometry"], EmbeddingPhotometry(encoder, deblender), skies["photometry"], args.workers)
    if args.install:
        for path in paths.values():
            shutil.copy(path, Path(rosetta.__file__).parent / "weights")


if __name__ == "__main__":
    main()
