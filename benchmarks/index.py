# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How far the true window of the other survey stands out from all others, by embedding and by spectra.

Windows that share no sky, anywhere on the tiles, as the surveys would see them. The separation of a window is the
cosine with its own sky less the mean of all others, over their scatter. *Spectra* are what CLS begins as: Fourier
coefficients of the window, linear in its pixels. Their channels are standardised by mean and scatter on training sky.
*Phases* are spectra less that mean, whose waves all have one amplitude.

Run: python benchmarks/index.py --tiles DIR --training-tiles DIR [--most 300] [--tables FOLDER]

Both folders as written by ``rosetta simulate --tiles``, of different seeds.
"""

import argparse
from pathlib import Path

import numpy as np
from kit.galleries import found, seen, spectra
from kit.statistics import interval
from kit.tables import Tables, add_option
from kit.windows import disjoint, load, note
from scipy.stats import norm

from rosetta import CrossSurveyEncoder
from rosetta.encoding.network import SIDES

WINDOWS = (38.4, 12.8)  # arcsec
SEED = 0
SHARE = 0.3  # of the embedding in a cosine of both
MANY = 10**6  # windows of an index


def unit(values):
    """Rows of unit length."""
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def phases(values):
    """Spectra whose waves all have one amplitude (phase correlation, Kuglin & Hines 1975)."""
    n = values.shape[1] // 2
    waves = values[:, :n] + 1j * values[:, n:]
    waves /= np.abs(waves)
    return np.concatenate([waves.real, waves.imag], 1) / np.sqrt(n)


def separations(score):
    """Of every window, in sigma, from the ground and from space: (n, 2)."""
    n, own = len(score), np.diag(score)
    others = np.where(np.eye(n, dtype=bool), np.nan, score)
    return np.stack([(own - np.nanmean(others, axis)) / np.nanstd(others, axis) for axis in (1, 0)], -1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=Path, required=True, help="tiles that nothing was trained on")
    parser.add_argument("--training-tiles", type=Path, required=True, help="for the statistics of channels")
    parser.add_argument("--most", type=int, default=300, help="windows of each size")
    add_option(parser)
    options = parser.parse_args()
    sky, training = load(options.tiles), load(options.training_tiles)
    models = {
        "trained": CrossSurveyEncoder.from_pretrained(device="cpu").model.encoder,
        "untrained": CrossSurveyEncoder(seed=SEED, device="cpu").model.encoder,
    }
    # A spectrum is over the root of the number of tokens: its statistics are those of any size.
    known = disjoint(training, WINDOWS[-1], SEED)[: options.most]
    ordinary = {name: spectra(encoder, training, known, WINDOWS[-1], SEED) for name, encoder in models.items()}
    lines = []
    for window in WINDOWS:
        where = disjoint(sky, window, SEED)[: options.most]
        embedding = {
            side: values[0].numpy() for side, values in seen(models["trained"], sky, where, window, SEED).items()
        }
        compared = {"embedding": embedding}
        for name, encoder in models.items():
            raw = spectra(encoder, sky, where, window, SEED)
            usual = ordinary[name]
            spectrum = {side: unit((raw[side] - usual[side].mean(0)) / usual[side].std(0)) for side in SIDES}
            phase = {side: phases(raw[side] - usual[side].mean(0)) for side in SIDES}
            for what, values in (("spectra", spectrum), ("phases", phase)):
                compared[f"{what}, {name}"] = values
                parts = {side: (np.sqrt(SHARE) * embedding[side], np.sqrt(1 - SHARE) * values[side]) for side in SIDES}
                compared[f"{SHARE} embedding, {1 - SHARE} {what}, {name}"] = {
                    side: np.concatenate(part, 1) for side, part in parts.items()
                }
        note(f'{window}": read')
        for name, of in compared.items():
            score = of["ground"] @ of["space"].T
            z, right = separations(score), found(score)

            def figure(statistic, values=z, tile=where.tile):
                return "{:.2f} ({:.2f}, {:.2f})".format(*interval(statistic, values, tile))

            lines.append([
                f'{window}", {name}', len(where), f"{right.mean():.3f}", figure(np.median),
                figure(lambda v: np.quantile(v, 0.05)), figure(lambda v: np.mean(norm.cdf(v) ** (MANY - 1))),
            ])
    header = ("Window, what is compared", "windows", "R@1", "separation, median", "5 %", "found in 10^6 if Gaussian")
    Tables(options.tables).show("index", "Separation of the true window from all others, sigma", header, lines)


if __name__ == "__main__":
    main()
