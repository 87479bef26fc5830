# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What tokens would add to the heads: photometric errors, unrecognised blends and the scatter of positions.

Simulated fields of 51.2": for errors and blends from the ground alone, for positions with VIS too (headers off, two
years of motion). Each is learned from a catalogue's figures alone, with the tokens at the source, and with those of an
untrained encoder; by the head's own network and by boosted trees. Fields are left out in four folds; of the others,
the last one calibrates. Tokens enter as sixteen principal components.

Run: python benchmarks/head_tokens.py FOLDER [--fields 12] [--first-seed 7501] [--tables FOLDER]

FOLDER keeps what was measured on each field. Needs scikit-learn.
"""

import astropy.units as u
import numpy as np
import torch
from kit.fields import true_offsets
from kit.statistics import area_under_roc, interval
from kit.store import arrays
from kit.tables import Tables, parser_of_fields
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from rosetta import CrossSurveyEncoder, EmbeddingPhotometry, JEPADeblender, LearnedAligner
from rosetta.astrometry import excess_noise, measurement
from rosetta.deblending.blend_probability import BlendConfig, BlendNet
from rosetta.deblending.blend_probability import predict as blend_probability
from rosetta.deblending.deblender import occupants
from rosetta.deblending.features import source_features
from rosetta.detection.detection import DetectionConfig, detected
from rosetta.images.image import band_images
from rosetta.matching import match
from rosetta.photometry import error_model
from rosetta.photometry.catalogue import training_rows
from rosetta.simulate import IDEAL, AstrometricError, simulate_pair
from rosetta.training.loop import seeded, train
from rosetta.training.rows import joined_rows

SIZE = 51.2 * u.arcsec
FOLDS = 4
COMPONENTS = 16
GIVEN = {"figures": None, "+ tokens": "tokens", "+ untrained encoder's": "random"}
SIDES = {"errors": ("ground",), "blends": ("ground",), "positions": ("ground", "space")}
SEED = 0


# ------------------------------------------------------------------------------------- what each field teaches
class Measured:
    """Rows of a field for each of the three questions, kept in a folder."""

    def __init__(self, folder):
        self.folder = folder
        trained = CrossSurveyEncoder.from_pretrained(device="cpu")
        self.encoders = {"tokens": trained, "random": CrossSurveyEncoder(seed=SEED, device="cpu")}
        self.deblender = JEPADeblender(trained)

    def __call__(self, kind, seed):
        make = self.positions if kind == "positions" else self.ground
        found = arrays(self.folder / f"{'both' if kind == 'positions' else 'ground'}-{seed}.npz", lambda: make(seed))
        return {name.split(".")[1]: values for name, values in found.items() if name.split(".")[0] == kind}

    def tokens(self, pair, coord, sides):
        """Tokens of both encoders at sources, zeros where a side has no data."""
        return {
            name: np.concatenate([np.nan_to_num(encoder.at(pair, coord, side)) for side in sides], 1)
            for name, encoder in self.encoders.items()
        }

    def ground(self, seed):
        """A row per flux and a row per source of the sources that the ground alone finds."""
        pair, truth = simulate_pair(seed=seed, size=SIZE, families="all", delivery=IDEAL, bands="ugrizy")
        scene = self.deblender(pair)
        table, flux = scene.to_table(), truth["flux_i"].to_value(u.nJy)
        tokens = self.tokens(pair, table["sky_centroid"], SIDES["errors"])
        rows, _ = match(table, truth, scene.meta["reference_band"])
        per_flux = training_rows(scene, truth)
        per_flux |= {name: np.repeat(values[rows], len(scene.bands), 0) for name, values in tokens.items()}
        first, second = occupants(table["sky_centroid"], truth["sky_centroid"].icrs, flux, BlendConfig().reach)
        seen = first > 0
        per_source = {
            "features": source_features(table, scene.fits, scene.images, scene.template_covariance)[seen],
            "is_blend": (second > BlendConfig().hidden * first)[seen],
        } | {name: values[seen] for name, values in tokens.items()}
        named = (("errors", error_model.usable(per_flux)), ("blends", per_source))
        return {f"{kind}.{name}": values for kind, rows_ in named for name, values in rows_.items()}

    def positions(self, seed):
        """A row per band and source whose offset was measured and is known."""
        error = AstrometricError(shift=(21.2, -21.2) * u.mas, rms=10 * u.mas, length=30 * u.arcsec)
        pair, truth = simulate_pair(
            seed=seed, size=SIZE, families="all", delivery=IDEAL, bands=("g", "r", "i", "z", "VIS"),
            astrometric_error=error, proper_motion_years=2.0,
        )  # fmt: skip
        images = band_images(pair)
        sources = measurement.find_sources(detected(pair, DetectionConfig()), measurement.MeasurementConfig())
        tokens = self.tokens(pair, sources.sky, SIDES["positions"])
        nearest, apart, _ = sources.sky.match_to_catalog_sky(truth["sky_centroid"])
        known, parts = true_offsets(truth)[nearest], []
        for band in pair.ground:
            part = measurement.measure_band(images[band], sources, np.zeros(2))
            use = part.usable & (apart.arcsec < 0.3)
            sigma = np.sqrt(np.trace(part.cov, axis1=1, axis2=2) / 2)
            a, b = (np.asarray(sources.table[c], float) for c in ("a", "b"))
            with np.errstate(divide="ignore", invalid="ignore"):
                figures = np.stack([
                    np.log(part.snr) / 3 - 1, np.log(sigma) / 3 - 1, np.log(a) + 1.5, np.log(b / a),
                    np.log(part.chi2), np.log(part.amplitude),
                ], -1)  # fmt: skip
            figures = np.clip(np.nan_to_num(figures, posinf=0, neginf=0), -4, 4).astype(np.float32)
            parts.append({"features": figures[use], "residual": (part.offset - known)[use], "cov": part.cov[use]} | {
                name: values[use] for name, values in tokens.items()
            })  # fmt: skip
        return {f"positions.{name}": values for name, values in joined_rows(parts).items()}


# ------------------------------------------------------------------------------------- learning from them
def with_tokens(sets, name):
    """Features of each set with principal components of tokens, which the first set defines."""
    if name is None:
        return [s["features"] for s in sets]
    mean = sets[0][name].mean(0)
    _, _, axes = np.linalg.svd(sets[0][name] - mean, full_matrices=False)
    parts = ((s["features"], (s[name] - mean) @ axes[:COMPONENTS].T) for s in sets)
    return [np.concatenate(part, -1).astype(np.float32) for part in parts]


def scaled(sigma, pull):
    """Errors scaled so that 68 % of the ``pull`` of calibration rows lie within one sigma."""
    return sigma * np.quantile(np.abs(pull), 0.6827)


def errors(sets, features, trees):
    """ln likelihood of each test flux: (n,)."""
    fit, held, test = sets
    if trees:
        model = HistGradientBoostingRegressor(max_iter=150, learning_rate=0.05, random_state=SEED)
        ratio = [np.abs(s["flux"] - s["true"]) / s["error"] for s in sets]
        model.fit(features[0], np.log(ratio[0] + 0.05))
        widen = [np.exp(model.predict(f)) for f in features[1:]]
        return score(test["flux"] - test["true"], scaled(widen[1], ratio[1] / widen[0]) * test["error"])
    with seeded(SEED):
        network = error_model.ErrorNet(error_model.ErrorConfig(n_feature=features[0].shape[-1]))
    known = [{name: s[name] for name in ("flux", "error", "true")} for s in sets]
    rows = [{"features": f, **one} for f, one in zip(features, known, strict=True)]
    train(network, *rows[:2], EmbeddingPhotometry.trainer, seed=SEED)
    error_model.calibrate(network, rows[1])
    widen, extra = error_model.predict(network, features[2])
    return score(test["flux"] - test["true"], np.hypot(widen * test["error"], extra * test["flux"]))


def blends(sets, features, trees):
    """Probability of each test source to be a blend: (n,)."""
    if trees:
        model = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.05, random_state=SEED)
        both = [np.concatenate(part) for part in (features[:2], [s["is_blend"] for s in sets[:2]])]
        return model.fit(*both).predict_proba(features[2])[:, 1]
    with seeded(SEED):
        network = BlendNet(BlendConfig(n_feature=features[0].shape[-1]))
    rows = [{"features": f, "is_blend": s["is_blend"]} for s, f in zip(sets, features, strict=True)]
    train(network, *rows[:2], JEPADeblender.trainer, seed=SEED)
    return blend_probability(network, features[2])


def positions(sets, features, trees):
    """ln likelihood of each test offset, per axis: (n,)."""
    noise = [np.sqrt(np.trace(s["cov"], axis1=1, axis2=2) / 2) for s in sets]
    size = [np.sqrt((s["residual"] ** 2).mean(1)) for s in sets]
    if trees:
        model = HistGradientBoostingRegressor(max_iter=150, learning_rate=0.05, random_state=SEED)
        model.fit(features[0], np.log(size[0] / noise[0] + 0.05))
        widen = [np.exp(model.predict(f)) for f in features[1:]]
        sigma = scaled(widen[1], size[1] / noise[1] / widen[0]) * noise[2]
    else:
        n_scalar = sets[0]["features"].shape[1]
        config = excess_noise.ExcessNoiseConfig(token_dim=COMPONENTS, n_scalar=n_scalar)
        rows = []
        for s, f in zip(sets, features, strict=True):  # both places of the network for tokens get the same
            tokens = f[:, n_scalar:] if f.shape[1] > n_scalar else np.zeros((len(f), COMPONENTS), np.float32)
            known = {"residual": s["residual"], "cov": s["cov"]}
            rows.append({"ground": tokens, "space": tokens, "scalars": f[:, :n_scalar], **known})
        with seeded(SEED):
            network = excess_noise.ExcessNoise(config)
        train(network, *rows[:2], LearnedAligner.trainer, seed=SEED)
        extra = [excess_noise.excess_noise(network, *(r[n] for n in ("ground", "space", "scalars"))) for r in rows[1:]]
        sigma = [np.hypot(one, of) for one, of in zip(extra, noise[1:], strict=True)]
        sigma = scaled(sigma[1], size[1] / sigma[0])
    return np.stack([score(r, sigma) for r in sets[2]["residual"].T]).mean(0)


def score(residual, sigma):
    """ln of a Gaussian likelihood; no pull counts for more than ten sigma."""
    return -0.5 * np.clip(residual / sigma, -10, 10) ** 2 - np.log(sigma)


ASKED = {"errors": errors, "blends": blends, "positions": positions}


def predicted(kind, parts, name, trees):
    """Answers for all rows of all fields, each from a fit without its field."""
    out = [None] * len(parts)
    for fold in range(FOLDS):
        test = [k for k in range(len(parts)) if k % FOLDS == fold]
        rest = [k for k in range(len(parts)) if k % FOLDS != fold]
        sets = [joined_rows([parts[k] for k in of]) for of in (rest[:-1], rest[-1:], test)]
        answers = ASKED[kind](sets, with_tokens(sets, name), trees)
        ends = np.cumsum([len(parts[k]["features"]) for k in test])
        for k, part in zip(test, np.split(answers, ends[:-1]), strict=True):
            out[k] = part
    return np.concatenate(out)


def main():
    options = parser_of_fields(__doc__, 12, 7501).parse_args()
    measured, lines = Measured(options.folder), []
    torch.set_num_threads(1)
    for kind in ASKED:
        parts = [measured(kind, seed) for seed in range(options.first_seed, options.first_seed + options.fields)]
        field = np.repeat(np.arange(len(parts)), [len(part["features"]) for part in parts])
        blend = np.concatenate([part["is_blend"] for part in parts]) if kind == "blends" else None

        def figure(values, blend=blend):
            return values.mean() if blend is None else area_under_roc(values[:, 0], values[:, 1] > 0)

        for trees in (False, True):
            plain = None
            for given, name in GIVEN.items():
                values = predicted(kind, parts, name, trees)
                if plain is None:
                    plain = values
                columns = np.stack([values, plain], -1) if blend is None else np.stack([values, plain, blend], -1)
                if blend is None:
                    more = interval(lambda v: (v[:, 0] - v[:, 1]).mean(), columns, field)
                else:
                    more = interval(lambda v: figure(v[:, [0, 2]]) - figure(v[:, [1, 2]]), columns, field)
                value = figure(columns[:, 0] if blend is None else columns[:, [0, 2]])
                cell = "" if name is None else "{:+.3f} ({:+.3f}, {:+.3f})".format(*more)
                lines.append([f"{kind}, {'trees' if trees else 'network'}", given, len(values), f"{value:.3f}", cell])
    header = ("Asked, learned by", "given", "rows", "ln likelihood; blends: area under the ROC", "more than figures")
    Tables(options.tables).show("head_tokens", f"{options.fields} fields, 68 % intervals over fields", header, lines)


if __name__ == "__main__":
    main()
