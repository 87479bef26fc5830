# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the encoder would add to the photometry's errors: the same network with and without tokens.

The training pairs of tools/train_photometry.py, and four fields of benchmarks/accuracy.py (seeds 9420 to 9423, which
chose nothing but the rules of this network). Beside its own figures the network is given the sixteen principal
components of the frozen tokens, the same of an encoder that was never trained, or nothing.

Run: python benchmarks/error_network.py FOLDER [--tables FOLDER]

FOLDER keeps simulated fields and what was measured on them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from _tables import Tables, add_option
from accuracy import field

from rosetta import CrossSurveyEncoder, Flag, JEPADeblender, LearnedAligner
from rosetta.astrometry.solution import as_solution
from rosetta.matching import match
from rosetta.photometry import error_model
from rosetta.photometry.catalogue import EmbeddingPhotometry, training_rows
from rosetta.training.loop import seeded, train
from rosetta.training.rows import split_by_pair

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from train_photometry import N_PAIR, draw  # noqa: E402

TEST = range(9420, 9424)
COMPONENTS = 16
SEEDS = 3
MAGS = (18, 22, 23, 24, 25, 26)


class Measured:
    """Rows of one pair, with the tokens of two encoders; kept in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.encoder = CrossSurveyEncoder.from_pretrained(device="cpu")
        torch.manual_seed(0)
        self.random = CrossSurveyEncoder()
        self.deblender = JEPADeblender(self.encoder)
        self.aligner = LearnedAligner.from_pretrained(encoder=self.encoder, device="cpu")

    def __call__(self, name, load, align):
        path = self.folder / f"{name}.npz"
        if not path.exists():
            pair, truth = load()
            embedding = self.encoder(pair)
            scene = self.deblender(embedding, offsets=self.aligner(embedding) if align else None)
            table = scene.to_table()
            rows, true = match(table, truth, scene.meta["reference_band"])
            coord = table["sky_centroid"]
            header = coord if scene.offsets is None else as_solution(scene.offsets).ground_position(coord)
            per_source = {
                "mag": 31.4 - 2.5 * np.log10(truth["flux_i"].value[true]),
                "blended": (np.asarray(table["flags"])[rows] & int(Flag.BLENDED)) != 0,
                "tokens": source_tokens(embedding, coord, header)[rows],
                "random": source_tokens(self.random(pair), coord, header)[rows],
            }
            per_flux = {name: np.repeat(values, len(scene.bands), axis=0) for name, values in per_source.items()}
            np.savez(path, **training_rows(scene, truth), **per_flux)
        return dict(np.load(path))


def source_tokens(embedding, coord, header_coord):
    """Frozen tokens of sources: space and ground side by side, zeros where a side has no data: (n, 2 * dim)."""
    sides = (("space", coord), ("ground", header_coord))
    return np.concatenate([np.nan_to_num(embedding.tokens_at(where, side)) for side, where in sides], axis=1)


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def with_tokens(sets, name):
    """Features of each set with principal components of tokens, which the first set defines."""
    if name is None:
        return [s["features"] for s in sets]
    first = sets[0][name]
    _, _, axes = np.linalg.svd(first - first.mean(0), full_matrices=False)
    out = []
    for s in sets:
        part = (s[name] - first.mean(0)) @ axes[:COMPONENTS].T
        out.append(np.concatenate([s["features"], part], -1).astype(np.float32))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    add_option(parser)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    measured = Measured(options.folder)
    parts = [measured(f"train-{k}", lambda k=k: draw(k), False) for k in range(N_PAIR)]
    sets = [error_model.usable(rows) for rows in split_by_pair(parts)]
    sets.append(joined([measured(f"test-{s}", lambda s=s: field(s, options.folder), True) for s in TEST]))
    test = sets[2]
    residual, error = test["flux"] - test["true"], test["error"]
    good = np.isfinite(residual) & (error > 0)
    formal = max(error_model.log_score(residual[good], k * error[good]) for k in np.geomspace(0.5, 10, 60))
    scored, inside = [], []
    for title, name in (("figures of the fit", None), ("+ tokens", "tokens"), ("+ random encoder's", "random")):
        features = with_tokens(sets, name)
        scores, pulls = [], []
        for seed in range(SEEDS):
            with seeded(seed):
                network = error_model.ErrorNet(error_model.ErrorConfig(n_feature=features[0].shape[-1]))
            rows, held = (
                {**{name: s[name] for name in ("flux", "error", "true")}, "features": f}
                for s, f in zip(sets[:2], features[:2], strict=True)
            )
            train(network, rows, held, EmbeddingPhotometry._trainer, seed=seed)
            error_model.calibrate(network, held)
            widen, extra = error_model.predict(network, features[2])
            sigma = np.hypot(widen * error, extra * test["flux"])
            scores.append(error_model.log_score(residual[good], sigma[good]) - formal)
            pulls.append(np.abs(residual) / sigma)
        pulls = np.stack(pulls)
        each = ", ".join(f"{s:.3f}" for s in scores)
        scored.append([title, f"{np.mean(scores):.3f} ({each})", f"{np.mean(pulls[:, good] < 1):.3f}"])
        for kind, of in (("isolated", ~test["blended"]), ("blended", test["blended"])):
            line = [f"{title}, {kind}"]
            for low, high in zip(MAGS[:-1], MAGS[1:], strict=True):
                rows = of & good & (test["mag"] >= low) & (test["mag"] < high)
                line.append(f"{np.mean(pulls[:, rows] < 1):.2f} ({rows.sum()})")
            inside.append(line)
    tables = Tables(options.tables)
    title = f"{good.sum()} test fluxes; formal errors inside one sigma {np.mean(np.abs(residual) < error):.3f}"
    header = ("The network is given", "log score over formal errors x the best constant (each seed)", "1 sigma")
    tables.show("error_network", title, header, scored)
    header = ("The network is given, sources", *(f"i = {a}-{b}" for a, b in zip(MAGS[:-1], MAGS[1:], strict=True)))
    tables.show("error_network_magnitudes", "Inside one sigma (fluxes)", header, inside)


if __name__ == "__main__":
    main()
