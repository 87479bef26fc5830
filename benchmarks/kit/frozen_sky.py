# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The frozen test sky: fields and blends that nothing is trained, chosen or tuned on, and the rule that matches them.

40 fields of 77" and 500 blends in ten bands, as surveys deliver them: PSFs that are not quite right, correlated noise,
residuals of the sky, artefacts. A fifth of the galaxies are of the irregular family, which is never trained on. Depths
are the nominal ones of Rubin's ten years and of Euclid's wide survey. The seeds below are used nowhere else.

``frozen_sky.json`` beside the benchmark holds the hash of every field and blend and the versions of the packages that
made them. Other versions of these packages, or another number of threads, may round differently: where hashes differ,
sums are compared.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.table import QTable
from scipy.spatial import cKDTree

from rosetta import EUCLID, RUBIN
from rosetta.images.positions import tangent
from rosetta.io import pair as pair_file
from rosetta.simulate import AstrometricError, simulate_pair
from rosetta.simulate.population import draw_scene

from .fields import magnitude

__all__ = [
    "APART", "BLENDS", "FAINTEST", "FIELDS", "SKY", "blend", "described", "field", "known", "match", "outside", "same",
]

FIELDS = range(880001, 880041)  # seeds
BLENDS = range(881001, 881501)
SKY = Path(__file__).parents[1] / "frozen_sky.json"
FAINTEST = 26.8  # i magnitude of the faintest true source that a row may belong to
APART = 0.3  # arcsec: a row and a true source are one
I_BAND, VIS = 3, 6  # among the ten bands
SIZE = 76.8 * u.arcsec
MARGIN = 6.0  # arcsec beyond the border in which `simulate_pair` draws sources too: they shed light into the field
STARS = 4.0  # times those at high galactic latitude: more than a thousand in all fields
EPOCHS = 15.0  # years between the surveys, at most


def field(seed, folder):
    """A field and its truth, simulated or from an earlier run.

    Parameters
    ----------
    seed : int
        One of `FIELDS`.
    folder : `~pathlib.Path`
        Keeps the field.

    Returns
    -------
    pair : `~rosetta.SkyPair`
    truth : `~astropy.table.QTable`
    """
    path, truth_path = folder / f"{seed}.fits", folder / f"{seed}.truth.fits"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        error = AstrometricError(shift=rng.normal(0, 40, 2) * u.mas, rms=15 * u.mas, length=30 * u.arcsec)
        pair, truth = simulate_pair(
            seed=seed, size=SIZE, families="all", star_density=STARS, astrometric_error=error,
            proper_motion_years=rng.uniform(0, EPOCHS),
        )  # fmt: skip
        truth.meta.clear()
        truth.write(truth_path, overwrite=True)
        pair_file.write(pair, path)
    return pair_file.read(path), QTable.read(truth_path)


def outside(seed, true_place):
    """Places of the sources beyond the border of a field, which no truth table has: (n, 2) arcsec, east and north.

    Parameters
    ----------
    seed : int
        One of `FIELDS`.
    true_place : (n_true, 2) array
        Of the sources of the truth, about the first of them.
    """
    half = SIZE.to_value(u.arcsec) / 2
    sky_seed = np.random.SeedSequence(seed).spawn(3)[0]  # as `simulate_pair` does
    scene = draw_scene(
        np.random.default_rng(sky_seed), half + MARGIN, (RUBIN, EUCLID), VIS, families="all", star_density=STARS
    )
    place = np.stack([scene.east, scene.north], axis=1)
    inside = (np.abs(place) < half).all(axis=1)
    place = place - place[inside][0]
    if inside.sum() != len(true_place) or not np.allclose(place[inside], true_place, atol=1e-3):
        raise ValueError(f"the sources drawn for seed {seed} are not those of its truth: the simulator has changed")
    return place[~inside]


def described(pair, truth):
    """What identifies a pair and its truth: a hash of every number, and sums that rounding leaves alone (dict)."""
    digest, sums = hashlib.sha256(), {}
    for _, band, image in pair.images():
        psf = pair.psf(band)
        parts = [image.data, image.uncertainty.array, image.mask]
        parts += [] if psf is None else [np.asarray(psf.parts()["samples"])]
        for array in parts:
            digest.update(np.ascontiguousarray(array).tobytes())
        good = ~image.mask
        total, rms = np.sum(image.data[good], dtype=float), np.sqrt(np.mean(image.data[good] ** 2.0))
        sums[band] = [float(f"{total:.6g}"), float(f"{rms:.6g}")]
    for name in ("flux_i", "half_light_radius"):
        digest.update(np.asarray(truth[name].value, float).tobytes())
    return {"hash": digest.hexdigest()[:16], "sources": len(truth), "sums": sums}


def same(found, kept):
    """Whether a description agrees with the one that was kept: hash for hash, or its sums to one part in 1e4."""
    if kept is None:
        return False
    if found["hash"] == kept["hash"]:
        return True
    close = [np.allclose(found["sums"][band], kept["sums"][band], rtol=1e-4, atol=1.0) for band in kept["sums"]]
    return found["sources"] == kept["sources"] and set(found["sums"]) == set(kept["sums"]) and all(close)


def known():
    """The descriptions that were kept (dict); empty before the sky is made for the first time."""
    return json.loads(SKY.read_text()) if SKY.exists() else {}


def match(catalog, truth):
    """Rows and true sources that are one: nearest first, one to one, within 0.3" and to i = 26.8.

    Parameters
    ----------
    catalog, truth : `~astropy.table.QTable`

    Returns
    -------
    rows, true : `~numpy.ndarray` of int
        Parallel.
    """
    of = np.flatnonzero(magnitude(truth["flux_i"].to_value(u.nJy)) < FAINTEST)
    if len(catalog) == 0 or len(of) == 0:
        return np.zeros(0, int), np.zeros(0, int)
    center = truth["sky_centroid"][0]
    rows, place = tangent(catalog["sky_centroid"], center), tangent(truth["sky_centroid"][of], center)
    near = cKDTree(rows).query_ball_tree(cKDTree(place), APART)
    pairs = [(np.hypot(*(rows[row] - place[true])), row, true) for row, trues in enumerate(near) for true in trues]
    found, used_row, used_true = [], set(), set()
    for _, row, true in sorted(pairs):
        if row not in used_row and true not in used_true:
            used_row.add(row)
            used_true.add(true)
            found.append((row, of[true]))
    return tuple(np.array(found, int).reshape(-1, 2).T)


def blend(seed):
    """A blend of two or three galaxies of i = 21 to 25, 0.6 to 2.2" apart, alone in a field of 16", and its truth.

    Parameters
    ----------
    seed : int
        One of `BLENDS`.

    Returns
    -------
    pair : `~rosetta.SkyPair`
    truth : `~astropy.table.QTable`
    """
    rng = np.random.default_rng(seed)
    drawn = draw_scene(rng, 30.0, (RUBIN, EUCLID), VIS, families="all", star_density=0.0)
    mag = magnitude(drawn.source_flux[:, I_BAND])
    first = rng.choice(np.flatnonzero((mag > 21) & (mag < 24)))
    others = np.setdiff1d(np.flatnonzero((mag > 21.5) & (mag < 25)), [first])
    chosen = np.r_[first, rng.choice(others, rng.integers(1, 3), replace=False)]
    place = rng.uniform(-0.3, 0.3, (1, 2))
    while len(place) < len(chosen):
        turn = rng.uniform(0, 2 * np.pi)
        new = place[0] + rng.uniform(0.6, 2.2) * np.array([np.cos(turn), np.sin(turn)])
        if np.hypot(*(place - new).T).min() > 0.6:
            place = np.vstack([place, new])
    return simulate_pair(seed=seed, size=16 * u.arcsec, scene=_moved(drawn, chosen, place))


def _moved(scene, sources, place):
    """Some sources of a scene (indices) at other places (east, north)."""
    parts = np.flatnonzero(np.isin(scene.owner, sources))
    number = {source: k for k, source in enumerate(sources)}
    of_source = {name: getattr(scene, name)[sources] for name in ("redshift", "family", "motion")}
    of_part = {name: getattr(scene, name)[parts] for name in ("sersic", "radius", "shape", "offset", "flux", "real")}
    owner = np.array([number[k] for k in scene.owner[parts]])
    return replace(scene, east=place[:, 0], north=place[:, 1], owner=owner, **of_source, **of_part)
