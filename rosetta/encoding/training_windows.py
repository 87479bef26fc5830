# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Training windows: cut from noise-free tiles, then observed twice, independently, by the two surveys.

Everything is drawn from the seed and the step number, so a training can be resumed exactly.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ..surveys import CONDITIONS
from .losses import same_sky
from .network import SIDES
from .observing import PAD, observe

__all__ = ["Batch", "TrainingTile", "TrainingTileSide", "Windows", "cut", "draw_windows"]

_CELL = 3.2  # arcsec; cells of the map that says where sources are
_SOURCE_SHARE = 0.7  # of the windows are drawn where sources are, the others anywhere


@dataclass(frozen=True)
class TrainingTileSide:
    """One side of a noise-free training tile.

    Parameters
    ----------
    pixels : `torch.Tensor`
        Flux over ``scale`` per pixel, (n_band, height, width), float16.
    scale : `torch.Tensor`
        Unit of ``pixels`` in nJy, (n_band,), float32.
    affine : `numpy.ndarray`
        Tangent-plane (east, north) in arcsec about the tile centre -> 0-based pixel (x, y):
        ``xy = affine[:, :2] @ (east, north) + affine[:, 2]``; (2, 3) float64.
    """

    pixels: torch.Tensor
    scale: torch.Tensor
    affine: np.ndarray


@dataclass(frozen=True)
class TrainingTile:
    """A noise-free piece of sky, seen from both sides on one tangent plane."""

    ground: TrainingTileSide
    space: TrainingTileSide

    def side(self, name):
        """The `TrainingTileSide` called "ground" or "space"."""
        return self.ground if name == "ground" else self.space

    def to(self, device):
        """The same tile with its pixels on another device."""
        return TrainingTile(*(replace(side, pixels=side.pixels.to(device)) for side in (self.ground, self.space)))


@dataclass(frozen=True)
class Batch:
    """Windows of both sides.

    Parameters
    ----------
    views : dict of `~rosetta.encoding.network.View`
        Per side.
    clean : dict of `torch.Tensor`
        Per side, asinh(flux / sigma) without noise or masks, (n_batch, n_band, height, width).
    tile, centers : `torch.Tensor`
        Index of each window's tile, (n_batch,), and its (east, north) about the tile centre, arcsec, float64.
    same : `torch.Tensor` of bool
        Windows whose footprints overlap, (n_batch, n_batch).
    """

    views: dict
    clean: dict
    tile: torch.Tensor
    centers: torch.Tensor
    same: torch.Tensor


def generator(seed, step, device="cpu"):
    """A generator that depends on the seed and the step only."""
    state = np.random.SeedSequence([int(seed), int(step)]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


class Windows:
    """Draws batches of windows from tiles.

    Parameters
    ----------
    tiles : sequence of `TrainingTile`
        All with the same bands.
    conditions : dict of `Conditions`
        Per side.
    device : str or `torch.device`
    """

    def __init__(self, tiles, conditions=CONDITIONS, device="cpu"):
        if not len(tiles):
            raise ValueError("tiles is empty: give at least one tile")
        self.conditions = conditions
        self.device = torch.device(device)
        self.mix = {side: torch.eye(len(conditions[side].depth)) for side in SIDES}
        self.maps = [_source_map(tile) for tile in tiles]
        self.tiles = [tile.to(self.device) for tile in tiles]  # cut, turned and observed there

    def batch(self, window, n, seed, step, keep=1.0):
        """Draw ``n`` windows.

        Parameters
        ----------
        window : float
            Side, arcsec; a multiple of 3.2.
        n : int
        seed, step : int
            Everything random follows from these two.
        keep : float
            Share of the tokens that the trunk sees, drawn at random for each window and side.

        Returns
        -------
        `Batch`
        """
        where = generator(seed, step)
        tile, centers, turns = draw_windows(self.tiles, self.maps, window, n, where)
        device = generator(seed, step, self.device) if self.device.type != "cpu" else where
        views, clean = {}, {}
        for side in SIDES:
            conditions = self.conditions[side]
            size = round(window / conditions.pixel_scale)
            chosen = [self.tiles[i].side(side) for i in tile]
            images, positions = cut(chosen, centers, turns, size, self.device)
            scale = torch.stack([one.scale for one in chosen]).to(self.device)
            views[side], clean[side] = observe(images, scale, positions, conditions, self.mix[side], device)
            if keep < 1:
                order = torch.rand(positions.shape[:2], generator=device, device=self.device).argsort(1)
                views[side] = replace(views[side], kept=order[:, : round(keep * order.shape[1])])
        tile, centers = (torch.from_numpy(array).to(self.device) for array in (tile, centers))
        return Batch(views, clean, tile, centers, same_sky(tile, centers, window))


def _source_map(tile):
    """Sampling weight of each cell of a tile, from its S/N on the ground side.

    Returns the (east, north) of the cells, arcsec, (n_cell, 2), and their weights (n_cell,).
    """
    side = tile.ground
    per_cell = max(1, round(_CELL * abs(np.linalg.det(side.affine[:, :2])) ** 0.5))
    power = torch.log1p(side.pixels.float().square()).mean(0)  # tiles are stored in units of the noise
    cells = F.avg_pool2d(power[None, None], per_cell)[0, 0]
    rows, columns = (np.arange(n) * per_cell + (per_cell - 1) / 2 for n in cells.shape)
    x, y = np.meshgrid(columns, rows)
    return _to_sky(side.affine, np.stack([x.ravel(), y.ravel()], -1)), cells.flatten().double().sqrt() + 1e-6


def _to_sky(affine, pixels):
    return (pixels - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T


def _bounds(tile, window):
    """(east, north) range of window centres whose padded crops lie inside both images: (2, 2)."""
    low, high = np.full(2, -np.inf), np.full(2, np.inf)
    for side in (tile.ground, tile.space):
        height, width = side.pixels.shape[-2:]
        scale = abs(np.linalg.det(side.affine[:, :2])) ** -0.5
        margin = window / 2 / scale + PAD + 1
        ends = np.array([[margin, margin], [width - 1 - margin, height - 1 - margin]])
        if (ends[1] < ends[0]).any():
            raise ValueError(
                f"window is {window} arcsec, too large for a tile of {width}x{height} pixels of {scale:.3g} arcsec "
                f"with its margin of {PAD} pixels: use a smaller window or larger tiles"
            )
        sky = _to_sky(side.affine, ends)
        low, high = np.maximum(low, sky.min(0)), np.minimum(high, sky.max(0))
    return np.stack([low, high])


def draw_windows(tiles, maps, window, n, where):
    """Draw tiles, window centres and turns.

    Parameters
    ----------
    tiles : sequence of `TrainingTile`
    maps : list
        Cells and weights of each tile.
    window : float
        arcsec.
    n : int
    where : `torch.Generator`
        On the CPU.

    Returns
    -------
    tile : `numpy.ndarray` of int
        (n,).
    centers : `numpy.ndarray`
        (east, north) about the tile centre, arcsec, (n, 2).
    turns : `numpy.ndarray` of bool
        (n, 3): mirror x, mirror y, transpose; the eight symmetries of the square.
    """
    tile = torch.randint(len(tiles), (n,), generator=where).numpy()
    turns = (torch.rand(n, 3, generator=where) < 0.5).numpy()
    near = (torch.rand(n, generator=where) < _SOURCE_SHARE).numpy()
    uniform = torch.rand(n, 2, generator=where, dtype=torch.float64).numpy()
    centers = np.empty((n, 2))
    for k, index in enumerate(tile):
        low, high = _bounds(tiles[index], window)
        if near[k]:
            sky, weight = maps[index]
            inside = torch.from_numpy(((sky > low) & (sky < high)).all(1))
            weight = torch.where(inside, weight, 0.0)
            cell = int(torch.multinomial(weight, 1, generator=where)) if inside.any() else None
            if cell is not None:
                # The source falls anywhere in the central half of the window.
                centers[k] = np.clip(sky[cell] + (uniform[k] - 0.5) * window / 2, low, high)
                continue
        centers[k] = low + uniform[k] * (high - low)
    return tile, centers, turns


def cut(sides, centers, turns, size, device="cpu", patch=16):
    """Cut one window from each tile on whole native pixels, the crop centre within 0.5 px per axis.

    Parameters
    ----------
    sides : list of `TrainingTileSide`
    centers : `numpy.ndarray`
        (n, 2) arcsec.
    turns : `numpy.ndarray` of bool
        (n, 3); the sky is turned, arrays and positions alike.
    size : int
        Pixels along a side, without padding.
    device : str or `torch.device`
    patch : int

    Returns
    -------
    images : `torch.Tensor`
        Padded, in units of the tile's scale, float32, (n, n_band, size + 32, size + 32).
    positions : `torch.Tensor`
        Token centres about the shared centre, arcsec, (n, n_token, 2), float32.
    """
    n, padded = len(sides), size + 2 * PAD
    affine = np.stack([side.affine for side in sides])  # (n, 2, 3)
    middle = np.einsum("nij,nj->ni", affine[:, :, :2], centers) + affine[:, :, 2]
    corner = np.rint(middle - (size - 1) / 2).astype(int)  # (n, 2) x, y of the first pixel
    images = torch.empty(n, sides[0].pixels.shape[0], padded, padded, device=device)
    for k, side in enumerate(sides):
        x, y = corner[k] - PAD
        crop = side.pixels[:, y : y + padded, x : x + padded]
        mirror = [axis for axis, yes in ((2, turns[k, 0]), (1, turns[k, 1])) if yes]
        crop = crop.flip(mirror) if mirror else crop
        images[k].copy_(crop.transpose(1, 2) if turns[k, 2] else crop)
    count = size // patch
    steps = np.arange(count) * patch + (patch - 1) / 2
    grid = np.stack(np.broadcast_arrays(steps[None, :], steps[:, None]), -1)  # (row, column, xy)
    pixel = corner[:, None, None] + grid - affine[:, None, None, :, 2]
    sky = np.einsum("nij,nrcj->nrci", np.linalg.inv(affine[:, :, :2]), pixel) - centers[:, None, None]
    # The turned sky, seen by a camera that kept its orientation: arrays and positions move together.
    parity = np.sign(affine[:, 0, 0] * affine[:, 1, 1])
    for k, (mirror_x, mirror_y, transpose) in enumerate(turns):
        if mirror_x:
            sky[k] = sky[k][:, ::-1] * (-1, 1)
        if mirror_y:
            sky[k] = sky[k][::-1] * (1, -1)
        if transpose:
            sky[k] = sky[k].transpose(1, 0, 2)[..., ::-1] * parity[k]
    positions = torch.from_numpy(sky.reshape(n, -1, 2).astype(np.float32)).to(device)
    return images, positions
