# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Noise-free training sets on disk: writing (parallel, resumable) and reading."""

import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import QTable
from astropy.utils.console import ProgressBar
from safetensors.numpy import save

from ..arithmetic import plain_arithmetic
from ..files import atomic_write
from ..images.positions import from_tangent
from ..surveys import EUCLID, RUBIN
from .mixtures import half_light_radii, moments, scene_mixtures
from .morphology import FAMILIES
from .population import draw_scene
from .real_morphologies import fingerprint, read_morphologies
from .rendering import GROUND_BASE_FWHM, Grid, add_stamp, base_psf, draw_component, source_light

__all__ = ["TILE_FORMAT", "write_training_set"]

log = logging.getLogger("rosetta")

TILE_FORMAT = 2
TILE_SIZE = 102.4  # arcsec
_MARGIN = 6.0  # arcsec around a tile in which sources still shed light into it
_SURVEYS = (RUBIN, EUCLID)
_REFERENCE = 6  # VIS among the ten bands
_CLIP = 6e4  # below the largest float16


@plain_arithmetic
def write_training_set(
    directory,
    n_tiles,
    *,
    seed=0,
    processes=None,
    progress=True,
    families="train",
    star_density=1.0,
    morphologies=None,
):
    """Write a set of noise-free tiles of 102.4" for training the encoder and the heads.

    A tile depends on ``seed`` and its number only, so the number of processes changes nothing. Tiles
    that are already there are kept: after an interruption, call again with the same arguments.

    Parameters
    ----------
    directory : path-like
        Created if needed.
    n_tiles : int
    seed : int
    processes : int, optional
        Default: all cores.
    progress : bool
        Whether to show a progress bar.
    families : {"train", "all", "irregular"}
        Morphology families that occur; "train" leaves out the irregular one and a third of the real galaxies,
        reserved for testing.
    star_density : float
        Number of stars relative to the counts at high galactic latitude.
    morphologies : path-like, optional
        Images of real galaxies (`read_morphologies`), which half of the galaxies then look like where they are
        not brighter than these.

    Raises
    ------
    ValueError
        If the directory holds tiles of another seed or format or of other settings, or an argument is out of
        range.
    """
    if families not in FAMILIES:
        raise ValueError(f"families is {families!r}: use one of {', '.join(map(repr, FAMILIES))}")
    if n_tiles < 1:
        raise ValueError(f"n_tiles is {n_tiles}: it must be at least 1")
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}: it must be at least 1")
    if not 0 <= star_density < np.inf:
        raise ValueError(f"star_density is {star_density}: it must be finite and not negative")
    galaxies = () if morphologies is None else read_morphologies(morphologies, families)
    sky = {
        "families": families,
        "star_density": float(star_density),
        # The pixels count, not the folder: this names the set on any machine.
        "morphologies": fingerprint(galaxies) if galaxies else None,
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _claim(directory, {"format": TILE_FORMAT, "seed": seed, **sky}, n_tiles)
    missing = [i for i in range(n_tiles) if not _paths(directory, i)[0].exists()]
    log.info("%d of %d tiles to write in %s", len(missing), n_tiles, directory)
    work = partial(_write_tile, directory, seed, sky, galaxies)
    processes = min(processes or os.cpu_count() or 1, max(len(missing), 1))
    bar = ProgressBar(n_tiles) if progress else nullcontext()
    with bar:
        if progress:
            bar.update(n_tiles - len(missing))
        if processes == 1:
            for i in missing:
                work(i)
                if progress:
                    bar.update()
            return
        # Spawned, not forked: the caller may hold threads (torch does).
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for _ in pool.map(work, missing):
                if progress:
                    bar.update()


def _paths(directory, index):
    stem = f"tile_{index:05d}"
    return directory / f"{stem}.safetensors", directory / f"{stem}.fits"


def _claim(directory, key, n_tiles):
    """Write or extend the manifest; refuse a directory that holds something else."""
    path = directory / "manifest.json"
    if path.exists():
        found = json.loads(path.read_text())
        differ = [k for k in key if found.get(k) != key[k]]
        if differ:
            what = ", ".join(f"{k} {found.get(k)!r} instead of {key[k]!r}" for k in differ)
            raise ValueError(f"directory {directory} holds another training set ({what}): choose a new one")
        n_tiles = max(n_tiles, found["n_tiles"])
    elif next(directory.glob("tile_*.safetensors"), None) is not None:
        raise ValueError(f"directory {directory} holds tiles but no manifest.json: choose a new one")
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"n_tiles": n_tiles, **key}, indent=1))


def _write_tile(directory, seed, sky, galaxies, index):
    rng = np.random.default_rng([seed, index])
    scene = draw_scene(
        rng,
        TILE_SIZE / 2 + _MARGIN,
        _SURVEYS,
        _REFERENCE,
        families=sky["families"],
        star_density=sky["star_density"],
        galaxies=galaxies,
    )
    # Anywhere on the sky but the poles.
    centre = (rng.uniform(0, 360), np.degrees(np.arcsin(rng.uniform(-0.95, 0.95))))
    tensors, header = {}, {"format": TILE_FORMAT, "seed": seed, "index": index, **sky}
    header["clip"] = _CLIP
    header["base_fwhm"] = {"ground": GROUND_BASE_FWHM, "space": 0.16}
    start = 0
    for side, survey in zip(("ground", "space"), _SURVEYS):
        grid = _tile_grid(rng, survey)
        n_band = len(survey.bands)
        image = render_base(scene, grid, side, slice(start, start + n_band))
        start += n_band
        scale = np.array([sky_sigma(survey, band) for band in survey.bands], np.float32)
        tensors[side] = np.minimum(image / scale[:, None, None], _CLIP).astype(np.float16)
        tensors[f"scale_{side}"] = scale
        header[side] = {
            "survey": survey.name,
            "bands": list(survey.band_names),
            "crval": list(centre),
            "crpix": [grid.origin[0] + 1, grid.origin[1] + 1],
            "cd": [[-grid.pixel_scale / 3600, 0.0], [0.0, grid.pixel_scale / 3600]],
        }
    tensors_path, truth_path = _paths(directory, index)
    exact = np.zeros((len(scene), 2))
    table = truth_table(scene, SkyCoord(*centre, unit="deg"), _SURVEYS, _REFERENCE, TILE_SIZE / 2, exact)
    # The tile file comes last: where it exists, both exist.
    with atomic_write(truth_path) as temporary:
        table.write(temporary, format="fits")
    with atomic_write(tensors_path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"rosetta": json.dumps(header)}))


def _tile_grid(rng, survey):
    scale = survey.pixel_scale.to_value(u.arcsec)
    n = round(TILE_SIZE / scale)
    # A random sub-pixel phase: the two grids are not co-registered.
    return Grid((n, n), scale, tuple((n - 1) / 2 + rng.uniform(-0.5, 0.5, 2)))


def sky_sigma(survey, band):
    """Noise per pixel at the survey's nominal depth, for a Gaussian PSF of the nominal width.

    Parameters
    ----------
    survey : `~rosetta.surveys.Survey`
    band : `~rosetta.surveys.Band`

    Returns
    -------
    float
        nJy.
    """
    sigma = band.psf_fwhm.to_value(u.arcsec) / 2.3548 / survey.pixel_scale.to_value(u.arcsec)
    return 10 ** (0.4 * (31.4 - band.depth)) / 5 / np.sqrt(4 * np.pi * sigma**2)


def render_base(scene, grid, side, bands):
    """Noise-free image of a scene under the base PSF of its side.

    Parameters
    ----------
    scene : `~rosetta.simulate.population.Scene`
    grid : Grid
    side : {"ground", "space"}
    bands : slice
        Columns of ``scene.flux`` that belong to this side.

    Returns
    -------
    `~numpy.ndarray`, float32, shape (n_band, ny, nx)
        nJy per pixel.
    """
    psf = base_psf(side)
    planes = np.zeros((bands.stop - bands.start, *grid.shape), np.float32)
    for rows in _of_one_colour(scene):
        share = scene.flux[rows].sum(axis=1)
        light, width = source_light(scene, rows, share / share.sum())
        flux = scene.flux[rows, bands].sum(axis=0)
        # Bright sources get wider stamps, for the wings of the PSF.
        wings = (0.9 if side == "ground" else 1.5) + 1.2 * np.log10(1 + flux.max() / 1e3)
        owner = scene.owner[rows[0]]
        stamp, corner = draw_component(light, psf, grid, scene.east[owner], scene.north[owner], width + wings)
        add_stamp(planes, stamp, corner, flux)
    return planes


def _of_one_colour(scene):
    """Components (arrays of indices) of one source and one colour: one stamp serves them in all bands."""
    total = scene.flux.sum(axis=1)
    bright = np.flatnonzero(total > 0)
    colour = scene.flux[bright] / total[bright, None]
    key = np.concatenate([scene.owner[bright, None], colour.round(9)], axis=1)
    group = np.unique(key, axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(group, kind="stable")
    return np.split(bright[order], np.flatnonzero(np.diff(group[order])) + 1) if order.size else []


def truth_table(scene, centre, surveys, reference, half_size, offset):
    """The sources whose position lies within +-half_size (arcsec) of the centre, as a table.

    Parameters
    ----------
    scene : `~rosetta.simulate.population.Scene`
    centre : `~astropy.coordinates.SkyCoord`
        The tangent point.
    surveys : tuple of `~rosetta.surveys.Survey`
    reference : int
        Index of the band that weights ``mixture``, size and ellipticity.
    half_size : float
    offset : `~numpy.ndarray`, shape (n, 2)
        Error of the ground astrometry at every source, east and north, mas.

    Returns
    -------
    `~astropy.table.QTable`
    """
    inside = np.flatnonzero((np.abs(scene.east) < half_size) & (np.abs(scene.north) < half_size))
    mixture = scene_mixtures(scene, reference)[inside]
    table = QTable()
    table["label"] = np.arange(1, inside.size + 1)
    offsets = np.stack([scene.east[inside], scene.north[inside]], axis=-1)
    table["sky_centroid"] = from_tangent(offsets, centre)
    flux = scene.source_flux[inside]
    names = [band for survey in surveys for band in survey.band_names]
    for name, column in zip(names, flux.T):
        table[f"flux_{name}"] = column * u.nJy
    table["half_light_radius"] = half_light_radii(mixture) * u.arcsec
    table["e1"], table["e2"] = moments(mixture)
    table["redshift"] = scene.redshift[inside]
    table["family"] = scene.family[inside]
    table["type"] = np.where(scene.family[inside] == "star", "star", "galaxy")
    table["local_density"] = _local_density(scene, inside) / u.arcmin**2
    table["pm_ra_cosdec"], table["pm_dec"] = scene.motion[inside].T * (u.mas / u.yr)
    table["d_ra_cosdec"], table["d_dec"] = offset[inside].T * u.mas
    table["mixture"] = mixture.astype(np.float32)
    return table


def _local_density(scene, inside, radius=10.0):
    """Sources per square arcminute within ``radius`` arcsec, the source itself left out."""
    de = scene.east[inside, None] - scene.east
    dn = scene.north[inside, None] - scene.north
    near = np.sum(de**2 + dn**2 < radius**2, axis=1) - 1
    return near / (np.pi * (radius / 60) ** 2)
