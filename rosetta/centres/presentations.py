# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Windows that the learned detector is trained on: noise-free sky, observed anew whenever it is shown.

Labels are scarce, presentations are not: noise, PSFs, depths, masks, missing bands and orientation are drawn every
time. Some windows are the sum of two, so that crowded sky and close pairs are as well known as the mean sky.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..encoding.network import SIDES
from ..encoding.observing import observe
from ..encoding.training_windows import center_range, cut, draw_windows, generator
from ..surveys import CONDITIONS, EUCLID, RUBIN
from .channels import CELL, N_BAND, cells, stacked
from .heat_map import target_of
from .network import STRIDE

__all__ = ["Presented", "TrueSources", "presented"]

SIZES = ((192, 1), (96, 4), (64, 9))  # cells along a side of a window, and windows in a step: always as many cells
SEEING = (0.8, 1.3)  # of ground PSFs, over the nominal ones
DOUBLED, PAIRED = 0.35, 0.5  # share of windows with a second sky; of those, that bring two sources close to each other
CLOSE = 1.6  # arcsec: as close as that, at most
ENDS = 0.25  # share of the windows in which the images end
MISSING = (0.6, 0.08, 0.08, 0.12, 0.12)  # all bands; no space; no ground; VIS and some ground bands; some of all bands
I_BAND = 3
BANDS = (*RUBIN.bands, *EUCLID.bands)
PAIRED_BRIGHTEST, PAIRED_FAINTEST = 19.0, 25.5  # i magnitudes of the sources of close pairs


@dataclass(frozen=True)
class TrueSources:
    """The sources of a tile.

    Attributes
    ----------
    east_north : (n, 2) array
        About the tile's centre, arcsec.
    flux : (n, 10) array
        nJy, bands of Rubin and of Euclid.
    radius : (n,) array
        Half-light radius, arcsec.
    """

    east_north: np.ndarray
    flux: np.ndarray
    radius: np.ndarray

    @property
    def mag(self):
        """i magnitude (AB), (n,)."""
        return 31.4 - 2.5 * np.log10(np.maximum(self.flux[:, I_BAND], 1e-9))


@dataclass(frozen=True)
class Presented:
    """What one step shows: channels (n, 13, ny, nx), the heat maps and the weights of their centres (n, ny, nx)."""

    channels: torch.Tensor
    heat: torch.Tensor
    weights: torch.Tensor


def presented(tiles, sources, config, seed, step):
    """The windows of a step; all that is random follows from ``seed`` and ``step``.

    Parameters
    ----------
    tiles : list of `~rosetta.encoding.training_windows.TrainingTile`
    sources : list of `TrueSources`
        Of each tile.
    config : `~rosetta.centres.network.CentreConfig`
    seed, step : int

    Returns
    -------
    `Presented`
    """
    rng, random = np.random.default_rng([seed, step]), generator(seed, step)
    size, n = SIZES[rng.integers(len(SIZES))]
    window = size * CELL
    places = [(*center_range(tile, window), np.zeros((0, 2)), np.zeros(0)) for tile in tiles]
    tile, centers, turns = draw_windows(places, window, n, random)
    skies = [(tile, centers, np.ones(n, bool))]
    other, elsewhere, _ = draw_windows(places, window, n, random)
    second = rng.random(n) < DOUBLED
    for k in np.flatnonzero(second & (rng.random(n) < PAIRED)):
        low, high = places[other[k]][:2]
        elsewhere[k] = _beside(sources[tile[k]], centers[k], sources[other[k]], elsewhere[k], low, high, window, rng)
    skies.append((other, elsewhere, second))
    views, positions = {}, {}
    for side in SIDES:
        conditions = _conditions(side)
        light, positions[side] = 0.0, []
        for index, at, there in skies:
            images, where = cut(
                [one.side(side).pixels for one in tiles], index, np.stack([tiles[i].side(side).affine for i in index]),
                at, turns, round(window / conditions.pixel_scale),
            )  # fmt: skip
            scale = torch.stack([tiles[i].side(side).scale for i in index])
            light = light + images * (scale * torch.from_numpy(there.astype(np.float32))[:, None])[..., None, None]
            positions[side].append(where)
        mix = torch.eye(N_BAND[side])
        views[side], _ = observe(light, torch.ones(n, N_BAND[side]), positions[side][0], conditions, mix, random)
    seen = np.stack([_bands_of(rng) for _ in range(n)])  # (n, 10)
    inside = np.stack([_within(size, rng) for _ in range(n)])  # (n, size, size)
    ground, space = (
        view.pixels * torch.from_numpy(of_side.astype(np.float32))[..., None, None]
        for view, of_side in zip(views.values(), np.split(seen, [N_BAND["ground"]], axis=1), strict=True)
    )
    channels = stacked(ground, space) * torch.from_numpy(inside.astype(np.float32))[:, None]
    maps = []
    for k in range(n):
        xy, weight = [], []
        for (index, at, there), where in zip(skies, positions["space"], strict=True):
            if there[k]:
                of_tile = sources[index[k]]
                offsets = _turned(of_tile.east_north - at[k], turns[k])
                places_of = cells(offsets, where[k].numpy())
                snr = _significance(of_tile, views, seen[k], k)
                keep = (np.abs(places_of - (size - 1) / 2) < size / 2).all(1) & (of_tile.mag < config.faintest)
                xy.append(places_of[keep])
                weight.append((snr**2 / (snr**2 + config.known_at**2))[keep])
        xy, weight = np.concatenate(xy), np.concatenate(weight)
        x, y = np.clip(np.rint(xy).astype(int), 0, size - 1).T
        on = inside[k, y, x]
        maps.append(target_of(xy[on], weight[on], (size, size)))
    heat, weights = (torch.from_numpy(np.stack(each)) for each in zip(*maps, strict=True))
    return Presented(channels, heat, weights)


def _conditions(side):
    """Of the survey; all bands, and ground PSFs of ordinary seeing."""
    of_side = replace(CONDITIONS[side], drop=(0.0,) * N_BAND[side])
    if side == "space":
        return of_side
    nominal = [float(band.psf_fwhm.to_value("arcsec")) for band in RUBIN.bands]
    return replace(of_side, fwhm=tuple((SEEING[0] * width, SEEING[1] * width) for width in nominal))


def _beside(first, center, second, elsewhere, low, high, window, rng):
    """The centre of the second window for which one of its sources falls close to one of the first window's."""
    chosen = []
    for of_tile, near in ((first, np.abs(first.east_north - center).max(1) < window / 2 - CLOSE), (second, True)):
        rows = np.flatnonzero((of_tile.mag > PAIRED_BRIGHTEST) & (of_tile.mag < PAIRED_FAINTEST) & near)
        if len(rows) == 0:
            return elsewhere
        chosen.append(of_tile.east_north[rng.choice(rows)])
    angle, apart = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, CLOSE)
    moved = chosen[1] - (chosen[0] - center) - apart * np.array([np.cos(angle), np.sin(angle)])
    return moved if ((moved > low) & (moved < high)).all() else elsewhere


def _bands_of(rng):
    """Which of the ten bands there are, (10,) bool."""
    there, n_ground = np.ones(len(BANDS), bool), N_BAND["ground"]
    kind = rng.choice(len(MISSING), p=MISSING)
    some = rng.random(len(BANDS)) < 0.5
    some[[I_BAND, n_ground]] = True  # i and VIS
    if kind == 1:
        there[n_ground:] = False
    elif kind == 2:
        there[:n_ground] = False
    elif kind == 3:
        there = some
        there[n_ground + 1 :] = False
    elif kind == 4:
        there = some
    return there


def _within(size, rng):
    """Cells (size, size) bool within the images, which end in some windows."""
    out = np.ones((size, size), bool)
    if rng.random() < ENDS:
        for axis in rng.choice(2, rng.integers(1, 3), replace=False):
            end = rng.integers(STRIDE, size // 2)
            first = np.arange(size) < end
            out &= ~(first if rng.random() < 0.5 else first[::-1]).reshape((-1, 1) if axis == 0 else (1, -1))
    return out


def _turned(offsets, turn):
    """(east, north) offsets (n, 2) in a window that was turned as `cut` turns it."""
    mirror_x, mirror_y, transpose = turn
    offsets = offsets * (-1 if mirror_x else 1, -1 if mirror_y else 1)
    return -offsets[:, ::-1] if transpose else offsets  # east is to the left


def _significance(sources, views, seen, k):
    """S/N of sources in all bands that there are together, by matched filters, as window ``k`` is observed: (n,)."""
    fwhm, depth = (
        np.concatenate([getattr(views[side], name)[k].numpy() for side in SIDES]) for name in ("fwhm", "depth")
    )
    limit = 10 ** (0.4 * (31.4 - depth)) / 5
    power = (sources.flux / limit) ** 2 * fwhm**2 / (fwhm**2 + 4 * sources.radius[:, None] ** 2)
    return np.sqrt((power * seen).sum(1))
