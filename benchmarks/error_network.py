# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the encoder would add to the photometry's errors: the same network with and without tokens.

The photometry's training pairs of tools/training_pairs.py, and four fields of benchmarks/accuracy.py (seeds 9420 to
9423; only the stopping rule of this network was chosen on them). Beside its own features the network is given the
sixteen principal components of the frozen tokens at each source, those of an untrained encoder, or nothing.

Run: python benchmarks/error_network.py FOLDER [--tables FOLDER]

FOLDER keeps simulated fields and what was measured on them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from kit.fields import magnitude, misaligned
from kit.models import trained
from kit.statistics import covered
from kit.store import arrays
from kit.tables import Tables, add_option

from rosetta import AstrometricSolution, CrossSurveyEncoder, EmbeddingPhotometry, Flag, JEPADeblender
from rosetta.matching import match
from rosetta.photometry import error_model
from rosetta.photometry.catalogue import training_rows
from rosetta.training.loop import seeded, train
from rosetta.training.rows import joined_rows, split_by_pair

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from training_pairs import N_PAIR, simulated  # noqa: E402

TEST = range(9420, 9424)
COMPONENTS = 16
SEEDS = 3
MAGS = (18, 22, 23, 24, 25, 26)


def source_tokens(encoder, pair, coord, header_coord):
    """Frozen tokens at sources: space and ground side by side, zeros where a side has no data, (n, 2 * dim)."""
    sides = (("space", coord), ("ground", header_coord))
    return np.concatenate([np.nan_to_num(encoder.at(pair, where, side)) for side, where in sides], axis=1)


class Measured:
    """Rows of one pair, with the tokens of two encoders; kept in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.encoder = CrossSurveyEncoder.from_pretrained(device="cpu")
        self.untrained = CrossSurveyEncoder(seed=0, device="cpu")
        self.deblender = JEPADeblender(self.encoder)
        self.aligner = trained(self.encoder, "aligner")["aligner"]

    def __call__(self, name, load, align):
        return arrays(self.folder / f"{name}.npz", lambda: self.rows(*load(), align))

    def rows(self, pair, truth, align):
        """A row per flux of the sources that are found: as the error network learns from, and with tokens."""
        embedding = self.encoder(pair)
        offsets = self.aligner(embedding) if align else None
        scene = self.deblender(embedding, offsets=offsets)
        table = scene.to_table()
        rows, true = match(table, truth, scene.meta["reference_band"])
        coord = table["sky_centroid"]
        header = AstrometricSolution.from_table(offsets).ground_position(coord) if align else coord
        per_source = {
            "mag": magnitude(truth["flux_i"].value[true]),
            "blended": (np.asarray(table["flags"])[rows] & int(Flag.BLENDED)) != 0,
            "tokens": source_tokens(self.encoder, pair, coord[rows], header[rows]),
            "random": source_tokens(self.untrained, pair, coord[rows], header[rows]),
        }
        per_flux = {name: np.repeat(values, len(scene.bands), axis=0) for name, values in per_source.items()}
        return training_rows(scene, truth) | per_flux


def with_tokens(sets, name):
    """Features of each set with principal components of tokens, which the first set defines."""
    if name is None:
        return [s["features"] for s in sets]
    mean = sets[0][name].mean(0)
    _, _, axes = np.linalg.svd(sets[0][name] - mean, full_matrices=False)
    parts = ((s["features"], (s[name] - mean) @ axes[:COMPONENTS].T) for s in sets)
    return [np.concatenate(part, -1).astype(np.float32) for part in parts]


def calibrated_errors(sets, features, seed):
    """Errors (n,) that a network, trained on the first of the sets and held against the second, gives the last."""
    with seeded(seed):
        network = error_model.ErrorNet(error_model.ErrorConfig(n_feature=features[0].shape[-1]))
    rows, held_out = (
        {"features": f} | {name: s[name] for name in ("flux", "error", "true")}
        for s, f in zip(sets[:2], features[:2], strict=True)
    )
    train(network, rows, held_out, EmbeddingPhotometry.trainer, seed=seed)
    error_model.calibrate(network, held_out)
    widen, extra = error_model.predict(network, features[2])
    return np.hypot(widen * sets[2]["error"], extra * sets[2]["flux"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    add_option(parser)
    options = parser.parse_args()
    measured = Measured(options.folder)
    parts = [measured(f"train-{k}", lambda k=k: simulated("photometry", k), False) for k in range(N_PAIR["photometry"])]
    sets = [error_model.usable(rows) for rows in split_by_pair(parts)]
    test = joined_rows([measured(f"test-{s}", lambda s=s: misaligned(s, options.folder), True) for s in TEST])
    sets.append(test)
    residual, error = test["flux"] - test["true"], test["error"]
    good = np.isfinite(residual) & (error > 0)
    formal = max(error_model.log_score(residual[good], k * error[good]) for k in np.geomspace(0.5, 10, 60))
    scored, inside = [], []
    for title, name in (("features of the fit", None), ("+ tokens", "tokens"), ("+ untrained encoder's", "random")):
        features = with_tokens(sets, name)
        sigmas = [calibrated_errors(sets, features, seed) for seed in range(SEEDS)]
        scores = [error_model.log_score(residual[good], sigma[good]) - formal for sigma in sigmas]
        pulls = residual / np.stack(sigmas)
        each = ", ".join(f"{s:.3f}" for s in scores)
        scored.append([title, f"{np.mean(scores):.3f} ({each})", f"{covered(pulls[:, good]):.3f}"])
        for kind, of in (("isolated", ~test["blended"]), ("blended", test["blended"])):
            line = [f"{title}, {kind}"]
            for low, high in zip(MAGS[:-1], MAGS[1:], strict=True):
                rows = of & good & (test["mag"] >= low) & (test["mag"] < high)
                line.append(f"{covered(pulls[:, rows]):.2f} ({rows.sum()})")
            inside.append(line)
    tables = Tables(options.tables)
    title = f"{good.sum()} test fluxes; true flux within one formal sigma for {np.mean(np.abs(residual) < error):.3f}"
    header = ("The network is given", "log score over formal errors x the best constant (each seed)", "1 sigma")
    tables.show("error_network", title, header, scored)
    header = ("The network is given, sources", *(f"i = {a}-{b}" for a, b in zip(MAGS[:-1], MAGS[1:], strict=True)))
    tables.show("error_network_magnitudes", "True flux within one sigma (number of fluxes)", header, inside)


if __name__ == "__main__":
    main()
