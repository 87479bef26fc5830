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

__all__ = ["Batch", "TrainingTile", "TrainingTileSide", "Windows", "center_range", "cut", "draw_windows"]

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
        self.tiles = tiles
        self._pixels = {side: self._held([tile.side(side).pixels for tile in tiles]) for side in SIDES}
        self._affine = {side: np.stack([tile.side(side).affine for tile in tiles]) for side in SIDES}
        self._scale = {side: torch.stack([tile.side(side).scale for tile in tiles]).to(self.device) for side in SIDES}
        self._maps = [_source_map(tile) for tile in tiles]
        self._places = {}  # by window

    def _held(self, pixels):
        """The tiles of one side where they are cut and observed: on a GPU as one array, so that one call cuts them all.

        On the CPU they stay where they are: one array would be a second copy.
        """
        if self.device.type == "cpu" or len({image.shape for image in pixels}) > 1:
            return [image.to(self.device) for image in pixels]
        out = torch.empty(len(pixels), *pixels[0].shape, dtype=pixels[0].dtype, device=self.device)
        for one, image in zip(out, pixels, strict=True):
            one.copy_(image)
        return out

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
        if window not in self._places:
            self._places[window] = [_places(*each, window) for each in zip(self.tiles, self._maps, strict=True)]
        tile, centers, turns = draw_windows(self._places[window], window, n, where)
        device = generator(seed, step, self.device) if self.device.type != "cpu" else where
        views, clean = {}, {}
        for side in SIDES:
            conditions = self.conditions[side]
            size = round(window / conditions.pixel_scale)
            images, positions = cut(self._pixels[side], tile, self._affine[side][tile], centers, turns, size)
            scale = self._scale[side][_on(self.device, tile)]
            views[side], clean[side] = observe(images, scale, positions, conditions, self.mix[side], device)
            if keep < 1:
                order = torch.rand(positions.shape[:2], generator=device, device=self.device).argsort(1)
                views[side] = replace(views[side], kept=order[:, : round(keep * order.shape[1])])
        tile, centers = (_on(self.device, array) for array in (tile, centers))
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


def center_range(tile, window):
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


def _places(tile, source_map, window):
    """Where windows of a tile may lie: `center_range`, cells inside (n_cell, 2) and their cumulative weights."""
    low, high = center_range(tile, window)
    sky, weight = source_map
    inside = ((sky > low) & (sky < high)).all(1)
    total = np.cumsum(weight.numpy()[inside])
    return low, high, sky[inside], total / max(total[-1], 1e-30) if len(total) else total


def draw_windows(places, window, n, where):
    """Draw tiles, window centres and turns.

    Parameters
    ----------
    places : list
        Of every tile: lowest and highest centre (2,), cells with sources (n_cell, 2), cumulative weights (n_cell,).
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
    tile = torch.randint(len(places), (n,), generator=where).numpy()
    turns = (torch.rand(n, 3, generator=where) < 0.5).numpy()
    near = (torch.rand(n, generator=where) < _SOURCE_SHARE).numpy()
    uniform = torch.rand(n, 3, generator=where, dtype=torch.float64).numpy()
    centers = np.empty((n, 2))
    for k, index in enumerate(tile):
        low, high, sky, cumulative = places[index]
        if near[k] and len(sky):
            cell = np.searchsorted(cumulative, uniform[k, 2], side="right")
            # The source falls anywhere in the central half of the window.
            centers[k] = np.clip(sky[min(cell, len(sky) - 1)] + (uniform[k, :2] - 0.5) * window / 2, low, high)
        else:
            centers[k] = low + uniform[k, :2] * (high - low)
    return tile, centers, turns


def cut(pixels, tile, affine, centers, turns, size, patch=16):
    """Cut one window from each tile on whole native pixels, the crop centre within 0.5 px per axis.

    Parameters
    ----------
    pixels : `torch.Tensor` or list of `torch.Tensor`
        All tiles, (n_tile, n_band, height, width), or each by itself.
    tile : `numpy.ndarray` of int
        The tile of each window, (n,).
    affine : `numpy.ndarray`
        Of these tiles, (n, 2, 3); see `TrainingTileSide`.
    centers : `numpy.ndarray`
        (n, 2) arcsec.
    turns : `numpy.ndarray` of bool
        (n, 3); the sky is turned, arrays and positions alike.
    size : int
        Pixels along a side, without padding.
    patch : int

    Returns
    -------
    images : `torch.Tensor`
        Padded, in units of the tile's scale, float32, (n, n_band, size + 32, size + 32).
    positions : `torch.Tensor`
        Token centres about the shared centre, arcsec, (n, n_token, 2), float32.
    """
    device = pixels[0].device
    middle = np.einsum("nij,nj->ni", affine[:, :, :2], centers) + affine[:, :, 2]
    corner = np.rint(middle - (size - 1) / 2).astype(int)  # (n, 2) x, y of the first pixel
    if torch.is_tensor(pixels):
        rows, columns = _pixels_of(_on(device, corner - PAD), _on(device, turns), size)
        images = pixels[_on(device, tile)[:, None, None], :, rows, columns].permute(0, 3, 1, 2).float()
    else:
        each = zip(tile, corner - PAD, turns, strict=True)
        images = torch.stack([_crop(pixels[i], first, turn, size) for i, first, turn in each])
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
    return images, _on(device, sky.reshape(len(tile), -1, 2).astype(np.float32))


def _on(device, array):
    """An array as a tensor on a device, without waiting for what the device is doing."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def _crop(pixels, corner, turn, size):
    """The turned, padded crop of one tile, float32 (n_band, size + 32, size + 32)."""
    (x, y), padded = corner, size + 2 * PAD
    crop = pixels[:, y : y + padded, x : x + padded]
    crop = crop.flip([axis for axis, mirror in ((2, turn[0]), (1, turn[1])) if mirror])
    return (crop.transpose(1, 2) if turn[2] else crop).float()


def _pixels_of(corner, turns, size):
    """Rows and columns of the turned, padded crops in their tiles, each (n, size + 32, size + 32)."""
    step = torch.arange(size + 2 * PAD, device=corner.device)
    along = torch.where(turns[:, :2, None], step.flip(0), step)  # (n, xy, side): mirrored or not
    x, y = (corner[..., None] + along).unbind(1)  # (n, side)
    swap = turns[:, 2, None, None]
    rows = torch.where(swap, y[:, None, :], y[:, :, None])
    columns = torch.where(swap, x[:, :, None], x[:, None, :])
    return rows, columns
