# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Does the encoder recognise the same sky in both surveys, and what can be read from its tokens?

Every score stands beside those of an untrained encoder, of the pixels, and of classical measurements. Intervals are
68 %, from resampling tiles. The tiles must be sky that nothing was trained on, 256 of them for full galleries; the
irregular family, which was kept out of training, is tested if they hold it:
``rosetta.simulate.write_training_set(DIR, 256, seed=3, families="all")``. One seed decides everything random.
Run: python benchmarks/representation.py --tiles DIR [--encoder FILE] [--real DATA] [--json OUT]
DATA holds the files that benchmarks/kit/real.py names.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import astropy.units as u
import numpy as np
from kit.galleries import (
    BATCH,
    LATTICE,
    batch_losses,
    correlations,
    found,
    lost,
    prediction,
    reserved,
    scores,
    searched,
    seen,
    waves,
    without_each,
)
from kit.probes import choose, probe, tokens
from kit.real import all_pairs
from kit.statistics import area_under_roc, interval, wilson
from kit.unfamiliar import FALSE_ALARMS, FEW, UNFAMILIAR, novelty, transfer
from kit.windows import Look, disjoint, lattice, load, note

from rosetta import CrossSurveyEncoder
from rosetta.encoding.network import SIDES

SEED = 0
GALLERY = 1024  # windows, at most
N_HARD = 40  # tiles whose windows are told from one another
N_POINTING = 256  # windows of 38.4" whose pointing is wrong
OFF = (1.0, 2.0)  # arcsec
REACH = 2.0  # arcsec, of a search
N_SOURCE = 5200  # sources that are probed, at most
PATCHES = {"Euclid Q1 with DES": 4.8, "HSC with HST": 3.6}  # arcsec; about half of each field
N_UNFAMILIAR = 256  # windows for the scores of unfamiliar input
N_SHUFFLE = 20  # random pairings


# ------------------------------------------------------------------------------------- the full table
class Table:
    """Rows of (section, what, how many, value, interval, target), printed as they come."""

    def __init__(self):
        self.rows = []

    def add(self, section, what, n, figure, target=""):
        """``figure`` is a value, or a value with the ends of its interval."""
        value, *ends = map(float, figure if isinstance(figure, tuple) else (figure,))
        if not self.rows or self.rows[-1]["section"] != section:
            print(f"\n== {section}")
        interval = f"({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
        print(f"{what:66s} {n!s:>6s} {value:8.3f} {interval:18s} {target}", flush=True)
        row = {"section": section, "what": what, "n": n, "value": value, "interval": ends, "target": target}
        self.rows.append(row)


def galleries(table, model, random, sky):
    """Retrieval, beside cross-correlation and a random encoder on the same windows."""
    n_rich = {window: len(disjoint(sky, window, SEED, n_source=3)) for window in (12.8, 38.4)}
    size = {window: min(n, GALLERY) for window, n in n_rich.items()}
    sets = {
        f'{window}" windows, {kind}': (window, disjoint(sky, window, SEED, n_source=n)[: size[window]], target)
        for window, target in ((12.8, ">= 0.90"), (38.4, ">= 0.99"))
        for kind, n, target in (("3 or more sources of S/N > 10", 3, target), ("anywhere", 0, ""))
    }
    for name, (window, where, target) in sets.items():
        if not target and n_rich[window] == len(disjoint(sky, window, SEED)):
            continue  # all windows hold three bright sources: this would be the same gallery again
        section = f"Retrieval@1: {name}, gallery of {len(where)}"
        both = {
            "encoder": scores(model.encoder, sky, where, window, SEED),
            "cross-correlation": correlations(sky, where, window, SEED),
            "random encoder": scores(random.encoder, sky, where, window, SEED),
            "its spectra, whitened": waves(random.encoder, sky, where, window, SEED),
        }
        _retrieval(table, section, {kind: found(score) for kind, score in both.items()}, where.tile, target)
    parts = {"encoder": [], "cross-correlation": [], "random encoder": [], "its spectra, whitened": []}
    shared = Look(shared=True)
    n_hard = min(N_HARD, len(sky.tiles))
    for index in range(n_hard):
        where = lattice(sky, index, 12.8, LATTICE)
        asked = where, 12.8, SEED + index, shared
        parts["encoder"].append(found(scores(model.encoder, sky, *asked)))
        parts["cross-correlation"].append(found(correlations(sky, *asked)))
        parts["random encoder"].append(found(scores(random.encoder, sky, *asked)))
        parts["its spectra, whitened"].append(found(waves(random.encoder, sky, *asked)))
        note(f"hard gallery {index + 1} of {n_hard}")
    tile = np.repeat(np.arange(n_hard), LATTICE**2)
    section = f'Hard galleries: {LATTICE**2} windows of one tile, 12.8", {n_hard} tiles'
    _retrieval(table, section, {kind: np.concatenate(part) for kind, part in parts.items()}, tile, ">= 0.85")


def _retrieval(table, section, success, tile, target):
    for kind, values in success.items():
        for k, direction in enumerate(("ground finds space", "space finds ground")):
            of = target if kind == "encoder" else ""
            table.add(section, f"{kind}, {direction}", len(values), interval(np.mean, values[:, k], tile), of)
    rival = success["cross-correlation"].mean(1)
    ahead = interval(np.mean, success["encoder"].mean(1) - rival, tile)
    table.add(section, "encoder minus cross-correlation", len(rival), ahead, "> 0")


def robustness(table, model, sky):
    """R@1 lost under changes of how the sky is seen."""
    where = disjoint(sky, 12.8, SEED, n_source=3)[:GALLERY]
    section = f'R@1 lost at 12.8", gallery of {len(where)}, mean of both directions'
    for name, values in lost(model.encoder, sky, where, 12.8, SEED).items():
        table.add(section, name, len(values), interval(np.mean, values, where.tile), "<= 0.05")
    values, tile = reserved(model.encoder, sky, 12.8, SEED)
    if len(values):
        name = f"reserved morphology leads the window, gallery of {2 * len(values)}"
        table.add(section, name, len(values), interval(np.mean, values, tile), "<= 0.05")
    else:
        note("reserved morphology: skipped, these tiles hold none (write them with families='all')")


def pointing(table, model, sky):
    """Windows whose header is wrong, as they are and when they are searched."""
    for window, most in ((12.8, GALLERY), (38.4, N_POINTING)):
        where = disjoint(sky, window, SEED, n_source=3)[:most]
        section = f'Pointing: R@1 at {window}", gallery of {len(where)}, mean of both directions'
        for off in (0.0, *OFF):
            look = Look(pointing=off)
            plain = found(scores(model.encoder, sky, where, window, SEED, look)).mean(1)
            best = found(searched(model, sky, where, window, SEED, look, REACH)).mean(1)
            for name, success in (("compared as they are", plain), (f'searched within {REACH}"', best)):
                table.add(section, f'{off}" off, {name}', len(where), interval(np.mean, success, where.tile))


def predictions(table, model, sky):
    """Does the predicted embedding find the true one?"""
    where = disjoint(sky, 12.8, SEED, n_source=3)[:GALLERY]
    section = f'Prediction at 12.8", gallery of {len(where)}'
    for side, one in prediction(model, sky, where, 12.8, SEED).items():
        for kind in ("predicted", "mean token"):
            target = "ahead of the mean token" if kind == "predicted" else ""
            figure = interval(np.mean, one[kind], where.tile)
            table.add(section, f"{side} embedding from the other side, {kind}: R@1", len(where), figure, target)
        both = np.stack([one["residual"], one["scatter"]], -1)
        figure = interval(lambda rows: 1 - rows[:, 0].sum() / rows[:, 1].sum(), both, where.tile)
        table.add(section, f"{side} tokens at sources: variance explained (mean token: 0)", len(where), figure, "> 0")


def gauges(table, model, sky):
    """Is anything collapsed?"""
    where = disjoint(sky, 12.8, SEED)[: 2 * GALLERY]
    both = seen(model.encoder, sky, where, 12.8, SEED, keep=("embedding", "cls"))
    ground, space = (both[side][0] for side in SIDES)
    section = 'Collapse gauges at 12.8", windows anywhere'
    losses = batch_losses(ground, space)
    chance = f"well under ln(2B - 1) = {np.log(2 * BATCH - 1):.2f}"
    figure = interval(np.mean, losses, np.arange(len(losses)))
    table.add(section, f"NT-Xent of batches of {BATCH} pairs, temperature 0.1, nat", len(losses), figure, chance)
    score, rng = (ground @ space.T).numpy(), np.random.default_rng(SEED)
    null = np.mean([found(score[:, rng.permutation(len(where))]).mean(1) for _ in range(N_SHUFFLE)], 0)
    chance = f"{1 / len(where):.4f}"
    table.add(section, "R@1 of shuffled pairs", len(where), interval(np.mean, null, where.tile), chance)
    for side in SIDES:
        table.add(section, f"RankMe of CLS, {side}", len(where), without_each(both[side][1], where.tile), ">= 64")
    sources = choose(sky, SEED, N_SOURCE)
    for side in SIDES:
        values = tokens(model.encoder, sky, side, sources, SEED)
        table.add(section, f"RankMe of source tokens, {side}", len(values), without_each(values, sources.tile), ">= 64")


def probes(table, model, random, sky):
    """What a ridge fit reads at a source."""
    sources = choose(sky, SEED, N_SOURCE)
    encoders = {"tokens": model.encoder, "random encoder": random.encoder}
    for row in probe(encoders, sky, sources, SEED):
        kinds, measured = list(row["guess"]), row["measure"]
        values = np.stack([row["truth"], *row["guess"].values()], -1)
        known = np.isfinite(row["truth"])
        values, tile = values[known], sources.tile[known]

        def score(rows, k, measured=measured):
            return measured(rows[:, 0], rows[:, 1 + k])

        # Group 1 must be ahead of all three; group 2 of the pixels and of the random encoder.
        rivals = [k for k, kind in enumerate(kinds) if kind != "tokens" and (row["group"] == 1 or kind != "photutils")]
        own = kinds.index("tokens")
        section = f"Ridge probes, group {row['group']}: {row['target']} from {row['side']} ({measured.__name__})"
        for k, kind in enumerate(kinds):
            table.add(section, kind, len(values), interval(partial(score, k=k), values, tile))

        def ahead(rows, score=score, own=own, rivals=rivals):
            return score(rows, own) - max(score(rows, k) for k in rivals)

        figure = interval(ahead, values, tile)
        table.add(section, "tokens minus the best that they must beat", len(values), figure, "> 0")


def unfamiliar(table, model, sky):
    """Scores of input unlike the simulated sky."""
    where = disjoint(sky, 12.8, SEED)[: 2 * GALLERY]
    limits = {}
    for side, scores_ in novelty(model, sky, where, SEED, N_UNFAMILIAR).items():
        limits[side] = float(np.quantile(scores_["sky"], 1 - FALSE_ALARMS))
        section = f'Out of distribution, {side}, 12.8" windows; threshold {limits[side]:.2f} (1 % false alarms)'
        table.add(section, "simulated sky: flagged at the built-in limit 1", len(where),
                  interval(np.mean, scores_["sky"] > 1, where.tile), "0.01")  # fmt: skip
        for name in FEW[side]:
            table.add(section, f"simulated sky in {name} alone: flagged at the built-in limit 1", len(where),
                      interval(np.mean, scores_[name] > 1, where.tile), "0.01")  # fmt: skip
        for name in UNFAMILIAR:
            values = scores_[name]
            tile, both = where.tile[: len(values)], np.stack([values, scores_["sky"][: len(values)]], -1)
            table.add(section, f"{name}: flagged", len(values), interval(np.mean, values > limits[side], tile))
            table.add(section, f"{name}: area under the ROC", len(values), interval(ranked, both, tile))
    return limits


def ranked(rows):
    """Area under the ROC of scores of unfamiliar input (first column) against those of sky (second)."""
    return area_under_roc(rows.ravel(), np.tile([True, False], len(rows)))


def real(table, encoder, sky, data, limits):
    """Real windows: are they flagged, and do they find their partner?"""
    pairs = all_pairs(data) if data else {}
    if not pairs:
        note("real pixels: skipped, no files (give their folder with --real)")
        return
    parts = {side: [] for side in SIDES}  # (image, coverage, flagged at the threshold, flagged at the built-in limit)
    for index, pair in enumerate(pairs.values()):
        rows = encoder(pair, window=12.8 * u.arcsec).to_table()
        names = {pair.survey(side).name: side for side in SIDES}
        for survey, coverage, score in rows["survey", "coverage", "ood_score"].iterrows():
            side = names[str(survey)]
            parts[side].append((index, coverage, score > limits[side], score > 1))
    for side, values in parts.items():
        image, coverage, *flagged = np.array(values, float).T
        for kind, good in (("all", coverage > 0), ("half seen or more", coverage >= 0.5)):
            for name, share in zip(("the threshold", "the built-in limit"), flagged, strict=True):
                section = f"Real windows of 12.8\", {side}, {len(np.unique(image[good]))} images: {kind}"
                figure = interval(np.mean, share[good], image[good])
                table.add(section, f"share flagged at {name}", int(good.sum()), figure, "<= 0.10")
    where = disjoint(sky, 12.8, SEED)[:N_UNFAMILIAR]
    for name, patch in PATCHES.items():
        if name in pairs:
            ranks = transfer(encoder.model.encoder, pairs[name], sky, where, SEED, patch)
            section = f'Transfer: {name}, four patches of {patch}" among {len(where)} simulated ones'
            for k, direction in enumerate(("ground finds space", "space finds ground")):
                table.add(section, f"{direction}: R@1", 4, wilson((ranks[:, k] == 1).sum(), 4))
                of = f"1 of {4 + len(where)}"
                table.add(section, f"{direction}: median rank", 4, float(np.median(ranks[:, k])), of)


def main(options):
    sky = load(options.tiles)
    encoder = CrossSurveyEncoder.from_pretrained(options.encoder, device="cpu")
    model = encoder.model
    random = CrossSurveyEncoder(config=encoder.config, seed=SEED, device="cpu").model
    print(f"encoder {encoder.fingerprint}; {len(sky.tiles)} tiles; seed {SEED}")
    print(f"{'':66s} {'n':>6s} {'value':>8s} {'68 %':18s} target")
    table = Table()
    galleries(table, model, random, sky)
    robustness(table, model, sky)
    pointing(table, model, sky)
    predictions(table, model, sky)
    gauges(table, model, sky)
    limits = unfamiliar(table, model, sky)
    real(table, encoder, sky, options.real, limits)
    probes(table, model, random, sky)
    if options.json:
        content = {"encoder": encoder.fingerprint, "n_tiles": len(sky.tiles), "seed": SEED, "rows": table.rows}
        options.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=Path, required=True, help="tiles that nothing was trained on")
    parser.add_argument("--encoder", type=Path, help="a checkpoint; default: the bundled one")
    parser.add_argument("--real", type=Path, help="folder of real pixels")
    parser.add_argument("--json", type=Path, help="write the table here too")
    main(parser.parse_args())
