# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Which parts of the pretraining recipe pay: each is added alone to plain NT-Xent, at an equal number of pairs.

Run: python benchmarks/ablation.py --tiles TRAIN --validation VALIDATION -o DIR [--rows NAME ...] [--pairs N]
A row that was interrupted goes on where it stopped; finished ones are kept; the table shows all in DIR.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from representation import load, quick
from torch import nn

from rosetta.encoding.losses import Objective, information
from rosetta.encoding.network import SIDES, Encoder, EncoderConfig, Predictor, patches, sincos
from rosetta.encoding.pretraining import TrainConfig, train
from rosetta.encoding.training_tiles import training_tiles
from rosetta.simulate import TrainingSet
from rosetta.surveys import CONDITIONS

BATCH = 96
WINDOW = 12.8  # arcsec
SCALING = (  # what is drawn: R@1, and R2
    {
        "r@1": ("anywhere", "o-C0"), "r@1 hard": ("of one tile", "o-C1"), "told ground": ("told, ground", "s--C2"),
        "told space": ("told, space", "s--C3"),
    },
    {
        "VIS space": ("VIS, space", "o-C0"), "g-H space": ("g - H, space", "o-C1"),
        "y space": ("place y, space", "o-C4"),
        "tokens ground": ("explained, ground", "s--C2"), "tokens space": ("explained, space", "s--C3"),
    },
)
SEEDS = 3  # of the reference row: their scatter is the yardstick of all others


# ------------------------------------------------------------------------------------- candidate terms
class Decoupled(Objective):
    """The positive pair leaves the denominator (Yeh et al. 2022): made for small batches."""

    def match(self, ground, space, same):
        logits = ground @ space.T * self.log_scale.exp()
        positive = logits.diagonal()
        others = logits.masked_fill(same, -math.inf)
        return 0.5 * (others.logsumexp(1) + others.logsumexp(0) - 2 * positive).mean()


def _matched(seen):
    """Ground tokens and the means of the 2 x 2 space tokens on the same sky, (n_batch, n_token, dim) each."""
    ground, space = seen["ground"][0], seen["space"][0]
    n_batch, n_token, dim = ground.shape
    side = math.isqrt(n_token)
    return ground, space.view(n_batch, side, 2, side, 2, dim).mean((2, 4)).reshape(n_batch, n_token, dim)


class Tokens(Objective):
    """InfoNCE between sky-matched tokens, 2 x 2 of space to one of ground, drawn by their information."""

    n_drawn, token_temperature = 512, 0.1

    def __init__(self, config, n_band, weights):
        super().__init__(config, n_band, weights)
        self.read = nn.ModuleDict({side: nn.Linear(config.dim, 128) for side in SIDES})

    def dense(self, encoder, predictor, seen, batch):
        ground, space = _matched(seen)
        weight = information(patches(batch.clean["ground"], self.patch))  # (n_batch, n_token)
        n_token, dim = ground.shape[1:]
        # The most informative tokens of the batch, not a random draw: nothing here needs a generator.
        rows = weight.flatten().topk(min(self.n_drawn, weight.numel())).indices
        views = [
            F.normalize(self.read[name](tokens.reshape(-1, dim)[rows]).float(), dim=-1)
            for name, tokens in (("ground", ground), ("space", space))
        ]
        logits = views[0] @ views[1].T / self.token_temperature
        window = rows // n_token
        overlap = batch.same[window][:, window] & (window[:, None] != window)  # other windows on the same sky
        logits = logits.masked_fill(overlap, -math.inf)
        label = torch.arange(len(rows), device=rows.device)
        return {"tokens": 0.5 * (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label))}


class Pixels(Objective):
    """Every noise-free pixel of every band, missing ones included, from the token: reconstruction in asinh S/N."""

    def __init__(self, config, n_band, weights):
        super().__init__(config, n_band, weights)
        self.pixels = nn.ModuleDict({side: nn.Linear(config.dim, n_band[side] * config.patch**2) for side in SIDES})

    def dense(self, encoder, predictor, seen, batch):
        total = 0.0
        for side in SIDES:
            clean = patches(batch.clean[side], self.patch)
            weight = information(clean)[..., None]  # (n_batch, n_token, 1)
            target = clean.flatten(2)
            mean = (weight * target).mean((0, 1))
            missed = (weight * (self.pixels[side](seen[side][0]).float() - target).square()).mean()
            total = total + 0.5 * missed / (weight * (target - mean).square()).mean().clamp(min=1e-6)
        return {"pixels": total}


class Shaping(Objective):
    """What the predictor is asked shapes the trunk, too."""

    def told(self, predictor, tokens, cls, *asked):
        return predictor(tokens, cls, *asked)


class Shift(Objective):
    """The ground view's positions are off by a hidden shift; sky-matched tokens must tell it."""

    largest = 0.3  # arcsec

    def __init__(self, config, n_band, weights):
        super().__init__(config, n_band, weights)
        self.head = nn.Sequential(nn.Linear(2 * config.dim, config.dim), nn.GELU(), nn.Linear(config.dim, 2))

    def forward(self, encoder, predictor, batch):
        ground = batch.views["ground"]
        # A function of where the window lies, which the encoder is not told: the training stays reproducible.
        phase = 1e3 * batch.centers.sum(1)
        hidden = self.largest * torch.stack([torch.sin(phase), torch.cos(1.7 * phase)], -1)
        self.hidden = hidden.float()  # (n_batch, 2)
        moved = replace(ground, positions=ground.positions + self.hidden[:, None])
        return super().forward(encoder, predictor, replace(batch, views=batch.views | {"ground": moved}))

    def dense(self, encoder, predictor, seen, batch):
        ground, space = _matched(seen)
        weight = information(patches(batch.clean["ground"], self.patch))
        guess = self.head(torch.cat([ground, space], -1)).float()  # (n_batch, n_token, 2)
        missed = (weight[..., None] * (guess - self.hidden[:, None]).square()).mean()
        return {"shift": missed / self.hidden.square().mean()}


class Token(Encoder):
    """CLS begins as a learned token that knows nothing of the window, as is usual."""

    def _embed(self, side, view):
        tokens, condition = self.stem[side](view)
        return tokens + sincos(view.positions, self.config.dim) + condition[:, None], self.cls + condition


class RandomPatches(Encoder):
    """The weights of the patches are drawn at random, as is usual; CLS is the sum of the turned tokens all the same."""

    def __init__(self, config):
        super().__init__(config)
        for stem in self.stem.values():
            nn.init.normal_(stem.pixels.weight, std=stem.pixels.in_features**-0.5)


class Registers(Encoder):
    """Four tokens without a place (Darcet et al. 2024)."""

    def __init__(self, config):
        super().__init__(config)
        self.registers = nn.Parameter(0.1 * torch.randn(4, config.dim))

    def _trunk(self, x):
        registers = self.registers.expand(len(x), -1, -1)
        return super()._trunk(torch.cat([x, registers], 1))[:, : -len(self.registers)]


# ------------------------------------------------------------------------------------- rows
@dataclass(frozen=True)
class Row:
    """One recipe."""

    extra: dict  # weights of terms beside the match
    objective: type = Objective
    encoder: type = Encoder
    conditions: dict = None
    share: float = 1.0  # of the tiles
    keep: float = 1.0  # of the tokens, in training


def _often_without_vis():
    space = CONDITIONS["space"]
    return CONDITIONS | {"space": replace(space, drop=(0.5, *space.drop[1:]))}


REFERENCE, RECIPE = "NT-Xent", "the recipe"
ALL = {"own": 1.0, "cross": 1.0, "latent": 0.5}
ROWS = {
    REFERENCE: Row({}),
    "CLS a learned token": Row({}, encoder=Token),
    "random patch weights": Row({}, encoder=RandomPatches),
    "decoupled": Row({}, Decoupled),
    "own patches": Row({"own": 1.0}),
    "own + cross patches": Row({"own": 1.0, "cross": 1.0}, Shaping),
    "own + cross + latent": Row(ALL, Shaping),
    "token InfoNCE": Row({"tokens": 0.5}, Tokens),
    "pixel reconstruction": Row({"pixels": 1.0}, Pixels),
    "hidden shift": Row({"shift": 1.0}, Shift),
    "VIS missing half the time": Row({}, conditions=_often_without_vis()),
    "half the tokens": Row({}, keep=0.5),
    "all terms, half the tokens": Row(ALL, Shaping, keep=0.5),
    RECIPE: Row(ALL, keep=0.5),
    f"{RECIPE}, a quarter of the tiles": Row(ALL, keep=0.5, share=1 / 4),
    f"{RECIPE}, a sixteenth of the tiles": Row(ALL, keep=0.5, share=1 / 16),
    "registers": Row({}, encoder=Registers),
}


def run(name, seed, tiles, sky, n_pair, directory):
    """Train and judge one row; a finished one is read."""
    stem = f"{name.replace(' ', '_')}-{seed}-{n_pair}"
    result = directory / f"{stem}.json"
    if result.exists():
        return
    row = ROWS[name]
    torch.manual_seed(seed)
    encoder, predictor = row.encoder(EncoderConfig()), Predictor(EncoderConfig())
    config = TrainConfig(
        steps=-(-n_pair // BATCH), phases=((1.0, WINDOW, BATCH),), seed=seed,
        weights={"match": 1.0, **row.extra}, keep=row.keep, save_every=50,
    )
    start = time.process_time()
    tiles = tiles[: round(row.share * len(tiles))]
    trained = train(
        encoder, predictor, tiles, config, checkpoint=directory / f"{stem}.safetensors",
        conditions=row.conditions or CONDITIONS, objective=row.objective, callback=_say(stem),
    )
    seconds = time.process_time() - start
    told = predictor.eval() if "latent" in row.extra else None
    answer = quick(encoder.eval(), sky, told)
    answer |= {"loss": trained.metrics[-1]["match"], "pairs": trained.pairs, "cpu": seconds}
    result.write_text(json.dumps({"row": name, "seed": seed, **answer}, indent=1))


def _say(stem):
    def say(step, metrics):
        print(f"{stem} step {step} match {metrics['match']:.3f} {metrics['pairs_per_second']:.0f} pairs/s", flush=True)

    return say


def table(directory, n_pair):
    """Print all finished rows, differences in units of the reference's scatter beside them."""
    found = [json.loads(path.read_text()) for path in sorted(directory.glob(f"*-{n_pair}.json"))]
    columns = list(dict.fromkeys(c for one in found for c in one if c not in ("row", "seed", "pairs", "cpu")))
    base = {c: [one[c] for one in found if one["row"] == REFERENCE and c in one] for c in columns}

    def cell(name, values, reference):
        if not values:
            return ""
        mean = np.mean(values)
        if len(reference) < 2:
            return f"{mean:.3f}"
        scatter = np.std(reference, ddof=1)
        beside = f"+-{scatter:.3f}" if name == REFERENCE else f"{(mean - np.mean(reference)) / scatter:+.1f}s"
        return f"{mean:.3f} {beside}"

    print(f"{'':40s}" + "".join(f"{c:>16s}" for c in columns))
    for name in ROWS:
        rows = [one for one in found if one["row"] == name]
        if rows:
            cells = (cell(name, [one[c] for one in rows if c in one], base[c]) for c in columns)
            print(f"{name:40s}" + "".join(f"{text:>16s}" for text in cells))


def plot(directory, n_tile, path):
    """Draw how the recipe improves with pairs seen, and with tiles: figures of all its finished rows."""
    rows = [json.loads(file.read_text()) for file in directory.glob("the_recipe*.json")]
    for one in rows:
        one["tiles"] = round(ROWS[one["row"]].share * n_tile)
    fewest = min(one["pairs"] for one in rows)
    axes = {
        "pairs": [one for one in rows if one["tiles"] == n_tile],
        "tiles": [one for one in rows if one["pairs"] == fewest],
    }
    figure, panels = plt.subplots(2, 2, figsize=(9, 6.5), sharex="col", sharey="row", layout="constrained")
    for column, (against, some) in enumerate(axes.items()):
        some.sort(key=lambda one: one[against])
        for row, kinds in enumerate(SCALING):
            for name, (label, style) in kinds.items():
                values = [(one[against], one[name]) for one in some if name in one]
                panels[row, column].plot(*zip(*values, strict=True), style, label=label)
            panels[row, column].set_xscale("log")
        fixed = f"{n_tile} tiles" if against == "pairs" else f"{fewest:,} pairs"
        panels[0, column].set_title(f"{fixed}, more {against}")
        panels[1, column].set_xlabel(against)
        panels[1, column].set_xticks([one[against] for one in some], [f"{one[against]:,}" for one in some])
        panels[1, column].minorticks_off()
    for row, label in enumerate(("R@1", "$R^2$")):
        panels[row, 0].set_ylabel(label)
        panels[row, 1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--plot", type=Path, help="picture of how the recipe scales")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    tiles = training_tiles(TrainingSet(args.tiles))
    sky = load(args.validation)
    for name in args.rows:
        for seed in range(SEEDS if name == REFERENCE else 1):
            run(name, seed, tiles, sky, args.pairs, args.output)
    table(args.output, args.pairs)
    if args.plot:
        plot(args.output, len(tiles), args.plot)


if __name__ == "__main__":
    main()
