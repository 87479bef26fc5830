# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Reading noise-free training sets back."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.nddata import NDData, VarianceUncertainty
from astropy.table import QTable
from astropy.wcs import WCS
from safetensors import SafetensorError, safe_open

from ..pair import SkyPair
from .dataset import TILE_FORMAT

__all__ = ["TrainingSet", "read_tile"]

log = logging.getLogger("rosetta")

_BASE_RADIUS = 3.0  # arcsec; support of the PSF arrays of noise-free images


def read_tile(path):
    """Read one noise-free tile, without any astropy object.

    Parameters
    ----------
    path : path-like
        A ``tile_*.safetensors`` file.

    Returns
    -------
    arrays : dict of str to `~numpy.ndarray`
        ``ground`` (n_band, ny, nx) and ``space``: float16, flux / scale; ``scale_ground`` (n_band,) and
        ``scale_space``: nJy.
    header : dict
        ``format``, ``seed``, ``index``, ``families``, ``star_density``, ``morphologies`` (fingerprint of the set, or
        None), ``clip``, ``base_fwhm`` (arcsec per side), and per side ``survey``, ``bands``, and the TAN WCS:
        ``crval`` (deg), ``crpix`` (1-based x, y), ``cd`` (deg).

    Raises
    ------
    ValueError
        If the file cannot be read or is not a tile of this format; the message names it.
    """
    try:
        with safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {}).get("rosetta", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"tile {path} cannot be read ({error}): delete it and write it again") from error
    if not isinstance(header, dict) or header.get("format") != TILE_FORMAT:
        raise ValueError(f"tile {path} is not a training tile of format {TILE_FORMAT}: write it again")
    return arrays, header


class TrainingSet(Sequence):
    """The noise-free tiles of a directory as a lazy sequence of pairs.

    Iterating skips, with a logged warning, tiles that cannot be read; indexing raises.

    Parameters
    ----------
    directory : path-like
        Written by `write_training_set`. Tiles that are still missing are left out.

    Attributes
    ----------
    paths : tuple of `~pathlib.Path`
        The tile files, one per pair.

    Raises
    ------
    ValueError
        If the directory is not a training set of this format.
    """

    def __init__(self, directory):
        directory = Path(directory)
        try:
            manifest = json.loads((directory / "manifest.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"directory {directory} has no readable manifest.json: give one written by write_training_set"
            ) from error
        if not isinstance(manifest, dict) or manifest.get("format") != TILE_FORMAT:
            raise ValueError(f"directory {directory} is no training set of format {TILE_FORMAT}: write one")
        self.paths = tuple(sorted(directory.glob("tile_*.safetensors")))
        if not self.paths:
            raise ValueError(f"directory {directory} holds no tile_*.safetensors: write the set first")
        if len(self.paths) < manifest["n_tiles"]:
            log.warning("%s: %d of %d tiles are there", directory, len(self.paths), manifest["n_tiles"])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        """The pair of one tile; the uncertainty is the noise that an image of nominal depth would have."""
        arrays, header = read_tile(self.paths[index])
        sides = {}
        for side in ("ground", "space"):
            wcs, psf = _wcs(header[side], arrays[side].shape[1:]), _psf(header[side], side)
            images = {}
            for band, data, scale in zip(header[side]["bands"], arrays[side], arrays[f"scale_{side}"]):
                images[band] = NDData(
                    data.astype(np.float32) * scale,
                    uncertainty=VarianceUncertainty(np.full(data.shape, scale**2, np.float32)),
                    wcs=wcs,
                    unit=u.nJy,
                    psf=psf,
                    meta={"noise_free": True, "tile": self.paths[index].name},
                )
            sides[side] = images
        return SkyPair(sides["ground"], sides["space"])

    def __iter__(self):
        for i in range(len(self)):
            try:
                pair = self[i]
            except ValueError as error:
                log.warning("skipped: %s", error)
                continue
            yield pair

    def truth(self, index):
        """Truth table of one pair (`~astropy.table.QTable`), columns as from `simulate_pair`.

        Parameters
        ----------
        index : int

        Raises
        ------
        ValueError
            If the table cannot be read.
        """
        path = self.paths[index].with_suffix(".fits")
        try:
            table = QTable.read(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"truth table {path} cannot be read ({error}): write the tile again") from error
        for name in ("family", "type"):  # FITS gives bytes back
            table[name] = np.asarray(table[name]).astype(str)
        return table


def _wcs(header, shape):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cd = header["crval"], header["crpix"], header["cd"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    wcs.array_shape = shape
    wcs.wcs.set()
    return wcs


def _psf(header, side):
    # Only drawing needs GalSim; reading tiles for the encoder does not.
    from .psf import draw_psf
    from .rendering import base_psf

    return draw_psf(base_psf(side), _BASE_RADIUS, abs(header["cd"][1][1]) * 3600)
