# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Noise-free pairs as the tiles that training windows are cut from."""

import logging

import numpy as np
import torch

from ..images.image import band_images
from ..surveys import PIXEL_SCALE
from .training_windows import TrainingTile, TrainingTileSide
from .windows import is_native, same_grid

__all__ = ["training_tiles"]

log = logging.getLogger("rosetta")


def training_tiles(pairs):
    """The training tiles of a sequence of noise-free pairs; a pair that cannot be read is named, logged and left out.

    Raises
    ------
    ValueError
        If no pair can be used, with the first reason.
    """
    tiles, first = [], None
    for index in range(len(pairs)):
        try:
            tiles.append(_training_tile(pairs[index], index))
        except (OSError, ValueError) as error:
            first = first or error
            log.warning("pairs[%d] left out of training: %s", index, error)
    if not tiles:
        raise ValueError(f"pairs: none of the {len(pairs)} pairs can be trained on; the first: {first}") from first
    return tiles


def _training_tile(pair, index):
    where = f"pairs[{index}]"
    views = {}
    for side in ("space", "ground"):
        images = getattr(pair, side)
        expected = pair.survey(side).band_names
        if images is None or tuple(images) != expected:
            found = " ".join(images or ()) or "none"
            raise ValueError(f"{where}: training needs all {side} bands ({' '.join(expected)}), found {found}")
        if not all(image.meta.get("noise_free") for image in images.values()):
            raise ValueError(
                f"{where}: training adds its own noise and PSF to noise-free tiles: use rosetta.simulate.TrainingSet"
            )
        of_side = [image for image in band_images(pair).values() if image.side == side]
        if not all(same_grid(p, of_side[0]) and is_native(p, PIXEL_SCALE[side]) for p in of_side):
            raise ValueError(f"{where}: the {side} bands must share one north-up grid of {PIXEL_SCALE[side]} arcsec")
        scale = np.array([np.sqrt(np.median(p.variance)) for p in of_side], np.float32)
        stack = np.stack([p.data / s for p, s in zip(of_side, scale, strict=True)]).clip(-6e4, 6e4)
        views[side] = TrainingTileSide(
            torch.from_numpy(stack.astype(np.float16)), torch.from_numpy(scale), _affine(of_side[0], where)
        )
    return TrainingTile(**views)


def _affine(image, where):
    """Tangent-plane (east, north) arcsec -> pixel (x, y), as a (2, 3) float64 matrix."""
    ny, nx = image.shape
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, nx - 1, 5), np.linspace(0, ny - 1, 5)))
    design = np.column_stack([image.east_north(x, y), np.ones(len(x))])
    pixels = np.column_stack([x, y])
    affine = np.linalg.lstsq(design, pixels, rcond=None)[0].T
    if np.abs(design @ affine.T - pixels).max() > 0.01:
        raise ValueError(f"{where}: its WCS is not affine to 0.01 pixel: cut it into smaller pairs")
    return affine
