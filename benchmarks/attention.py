# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the trunk's attention looks at: cores, haloes and neighbours, per layer and head, trained and untrained.

A window of 38.4" in the middle of every tile, observed by both surveys. Attention of the tokens that hold a source of
S/N > 10 (VIS), to all other tokens; what goes to CLS and to the token itself is left out. By chance, a token gets what
all tokens get at its distance, from the tokens of all windows, in that layer and head. A *core* is a token that holds
the centre of a source of S/N > 50; a *halo* one with light beyond all half-light radii, above five times its noise, and
without the centre of a source of S/N > 5; a *neighbour* one that holds the centre of another source of S/N 10 to 50.

Run: python benchmarks/attention.py --tiles DIR [--fields 10] [--tables FOLDER] [--picture FILE]

DIR as written by ``rosetta simulate --tiles``. The picture is of another field, for the ground token at a galaxy.
"""

import argparse
from pathlib import Path

import astropy.units as u
import numpy as np
import torch
from kit.statistics import interval
from kit.tables import Tables, add_option
from kit.windows import SURVEYS, Where, load, nominal_sigma, note, views

from rosetta import CrossSurveyEncoder, surveys
from rosetta.encoding.network import SIDES, patches
from rosetta.encoding.training_windows import center_range, cut
from rosetta.plotting import plot_attention
from rosetta.simulate import IDEAL, simulate_pair

WINDOW = 38.4  # arcsec
CORE, SOURCE, FAINT = 50, 10, 5  # S/N
LIGHT = 5  # noise of a patch
BAND = {"ground": "i", "space": "VIS"}
CLASSES = ("cores", "haloes", "neighbours")
SEED = 0
PICTURE = 7511  # seed of its field


def kinds_of(sky, side, where, positions):
    """Of every token of a window, (n_token,) bool: core, halo, neighbour; and whether it holds a source."""
    tile, center = where.tile[0], where.centers[0]
    pixel, survey = surveys.CONDITIONS[side].pixel_scale, SURVEYS[side]
    place, snr = sky.place[tile] - center, sky.snr(tile)  # (n_source, 2), arcsec
    half = 8 * pixel
    holds = (np.abs(positions[:, None] - place) < half).all(-1)  # (n_token, n_source)
    core, source, faint = (holds[:, snr > limit].any(1) for limit in (CORE, SOURCE, FAINT))
    # Light of the noise-free image beyond the half-light radii, which the seeing widens.
    one, k = sky.tiles[tile].side(side), survey.band_names.index(BAND[side])
    n = round(WINDOW / pixel)
    still = np.zeros((1, 3), bool)
    images, _ = cut([one.pixels[k : k + 1]], np.zeros(1, int), one.affine[None], center[None], still, n)
    pad = (images.shape[-1] - n) // 2
    light = images[0, 0, pad : pad + n, pad : pad + n].float() * one.scale[k]
    seeing = survey.bands[k].psf_fwhm.to_value(u.arcsec) / 2
    radius = np.hypot(np.asarray(sky.truth[tile]["half_light_radius"], float), seeing)
    at = positions.reshape(n // 16, n // 16, 2)
    east = at[0, 0, 0] - pixel * (np.arange(n) - 7.5)
    north = at[0, 0, 1] + pixel * (np.arange(n) - 7.5)
    beyond = np.ones((n, n), bool)
    for (x, y), r in zip(place, radius, strict=True):
        beyond &= np.hypot(east - x, (north - y)[:, None]) > r
    # A point source of S/N 1 has the flux sigma within about four pi sigma_psf^2; a patch has the noise of its area.
    area = 4 * np.pi * (2 * seeing / 2.355) ** 2
    sigma = nominal_sigma(BAND[side]) * np.sqrt((16 * pixel) ** 2 / area)
    flux = patches((light * torch.from_numpy(beyond))[None, None], 16)[0, :, 0].sum(-1).numpy()  # (n_token,)
    return np.stack([core, (flux > LIGHT * sigma) & ~faint, source & ~core]), source


@torch.inference_mode()
def measured(encoder, sky, side, wheres):
    """Attention of all tokens of all windows by distance, and on each kind of token from the tokens with a source."""
    parts = []
    for number, where in enumerate(wheres):
        view = next(iter(views(sky, side, where, WINDOW, SEED + number)))
        positions = view.positions[0].numpy()
        kinds, source = kinds_of(sky, side, where, positions)
        weights = encoder.attention(side, view, torch.arange(len(positions)))[0, ..., 1:].numpy()
        n = len(positions)
        apart = np.hypot(*np.moveaxis(positions[:, None] - positions, -1, 0))
        bins = np.round(apart / (16 * surveys.CONDITIONS[side].pixel_scale)).astype(int)  # patches
        weights[..., np.arange(n), np.arange(n)] = 0
        inside = bins > 0
        count = np.bincount(bins[inside], minlength=60)
        total = np.stack([
            [np.bincount(bins[inside], head[inside], minlength=60) for head in layer] for layer in weights
        ])  # (depth, heads, 60)
        asked = np.flatnonzero(source)
        parts.append((count, total, weights[:, :, asked], bins[asked], kinds))
        note(f"{side}: window {number + 1} of {len(wheres)}, {len(asked)} sources")
    mean = sum(p[1] for p in parts) / np.maximum(sum(p[0] for p in parts), 1)  # (depth, heads, 60)
    out = []
    for _, _, seen, bins, kinds in parts:
        chance = mean[:, :, bins] * (bins > 0)  # (depth, heads, n_asked, n_token)
        shares = [
            (w[..., None, :] * kinds).sum(-1) / w.sum(-1)[..., None] for w in (seen, chance)
        ]  # (depth, heads, n_asked, 3)
        out.append(np.stack([share.mean(2) for share in shares], -1))
    return np.stack(out)  # (n_field, depth, heads, 3, seen and by chance)


def picture(encoder, path):
    """Attention of the ground token at the brightest galaxy near the middle of a field."""
    pair, truth = simulate_pair(seed=PICTURE, size=51.2 * u.arcsec, bands=("g", "r", "i", "z", "VIS"), delivery=IDEAL)
    image = pair.ground["i"]
    middle = image.wcs.pixel_to_world(*(0.5 * (n - 1) for n in image.data.shape[::-1]))
    near = (truth["sky_centroid"].separation(middle) < 6 * u.arcsec) & (truth["type"] == "galaxy")
    coord = truth["sky_centroid"][near][np.argmax(truth["flux_i"][near])]
    axes = plot_attention(pair, encoder.attention(pair, coord, "ground"))
    axes[0, 0].figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=Path, required=True, help="tiles that nothing was trained on")
    parser.add_argument("--fields", type=int, default=10)
    parser.add_argument("--picture", type=Path, help="draw one place there")
    add_option(parser)
    options = parser.parse_args()
    encoder = CrossSurveyEncoder.from_pretrained(device="cpu")
    if options.picture:
        picture(encoder, options.picture)
    sky = load(options.tiles, options.fields)
    wheres = []
    for index, tile in enumerate(sky.tiles):
        low, high = center_range(tile, WINDOW)
        wheres.append(Where(np.array([index]), (low + high)[None] / 2))
    untrained = CrossSurveyEncoder(config=encoder.config, seed=SEED, device="cpu")
    tables = Tables(options.tables)
    header = ("Layer, head", *(f"{name}, {of}" for name in CLASSES for of in ("by chance", "more", "untrained: more")))
    for side in SIDES:
        trained, random = (measured(e.model.encoder, sky, side, wheres) for e in (encoder, untrained))
        lines = []
        for layer, head in np.ndindex(trained.shape[1:3]):
            cells = []
            for k in range(len(CLASSES)):
                one, other = (100 * values[:, layer, head, k] for values in (trained, random))  # per cent
                cells.append(f"{one[:, 1].mean():.1f}")
                for values in (one, other):
                    cells.append("{:+.1f} ({:+.1f}, {:+.1f})".format(*interval(np.mean, values[:, 0] - values[:, 1])))
            lines.append([f"{layer + 1}, {head + 1}", *cells])
        title = f"{side}: share of attention from sources, per cent; {len(wheres)} fields, 68 %"
        tables.show(f"attention_{side}", title, header, lines)


if __name__ == "__main__":
    main()
