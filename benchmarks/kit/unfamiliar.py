# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Input unlike the simulated sky: its out-of-distribution scores, and whether real windows find their partner."""

from dataclasses import replace

import numpy as np
import torch

from rosetta.encoding import windows
from rosetta.encoding.network import SIDES, presence
from rosetta.images.image import band_images
from rosetta.images.positions import from_tangent

from .windows import SURVEYS, Look, encode, views

WINDOW = 12.8  # arcsec
FEW = {"ground": ("g r i", "r"), "space": ("VIS H_E", "VIS")}  # bands that users may have alone
FALSE_ALARMS = 0.01


# ------------------------------------------------------------------------------------- unfamiliar input
def _noise_only(signal, random):
    return torch.randn(signal.shape, generator=random)


def _rows_displaced(signal, random):
    shift = torch.randint(signal.shape[-1], (*signal.shape[:1], 1, signal.shape[-2], 1), generator=random)
    column = (torch.arange(signal.shape[-1]) + shift) % signal.shape[-1]
    return signal.gather(-1, column.expand(signal.shape))


def _bytes_swapped(signal, random):
    return torch.from_numpy(np.nan_to_num(signal.numpy().byteswap(), posinf=0, neginf=0))


def _texture(signal, random):
    n, n_band, size, _ = signal.shape
    fx, fy = torch.fft.rfftfreq(size)[None], torch.fft.fftfreq(size)[:, None]  # cycles per pixel
    white = torch.fft.rfft2(torch.randn(n, 1, size, size, generator=random))
    field = torch.fft.irfft2(white / (fx**2 + fy**2 + size**-2.0).sqrt(), s=(size, size))
    return (30 * field / field.std((-2, -1), keepdim=True)).expand(-1, n_band, -1, -1)


def _checkerboard(signal, random):
    axis = torch.arange(signal.shape[-1]) // 8
    board = ((axis[:, None] + axis) % 2 * 20.0).expand(signal.shape)
    return board + torch.randn(signal.shape, generator=random)


#: Kinds of unfamiliar input, and how each is made of S/N per pixel.
UNFAMILIAR = {
    "blank: zeros": lambda signal, random: torch.zeros_like(signal),
    "blank: noise alone": _noise_only,
    "corrupted: rows displaced": _rows_displaced,
    "corrupted: noise map 10 times too small": lambda signal, random: 10 * signal,
    "corrupted: bytes swapped": _bytes_swapped,
    "foreign: 1/f texture, S/N 30": _texture,
    "foreign: checkerboard": _checkerboard,
}


def novelty(model, sky, where, seed, n_unfamiliar):
    """Scores of all windows as they are ("sky"), in few bands, and of unfamiliar input made of the first ones.

    Returns
    -------
    dict of dict of ndarray
        Per side, scores by name.
    """
    out = {}
    for side in SIDES:
        found = {name: [] for name in ("sky", *FEW[side], *UNFAMILIAR)}
        for name in FEW[side]:
            missing = tuple(band for band in SURVEYS[side].band_names if band not in name.split())
            for view in views(sky, side, where, WINDOW, seed, Look(missing=missing)):
                found[name].append(_scores(model, side, view))
        random = torch.Generator().manual_seed(seed)
        for view in views(sky, side, where, WINDOW, seed):
            seen = {"sky": view}
            more = sum(map(len, found["sky"])) < n_unfamiliar
            for name, change in UNFAMILIAR.items() if more else ():
                seen[name] = replace(view, pixels=change(view.pixels.sinh(), random).asinh())
            for name, one in seen.items():
                found[name].append(_scores(model, side, one))
        parts = {name: torch.cat(part).numpy() for name, part in found.items()}
        out[side] = {name: part[:n_unfamiliar] if name in UNFAMILIAR else part for name, part in parts.items()}
    return out


def _scores(model, side, view):
    return model.novelty[side](encode(model.encoder, side, [view], ("tokens",))[0], presence(view))


# ------------------------------------------------------------------------------------- real pixels
def transfer(encoder, pair, sky, where, seed, patch):
    """Do the four quadrants of a real pair find one another among simulated windows?

    Every quadrant is a window of 12.8" of which only ``patch`` arcsec are seen; so are the simulated windows, in the
    bands nearest to those of the pair.

    Returns
    -------
    ndarray, shape (4, 2)
        Rank of the true patch, from the ground and from space; 1 is found.
    """
    images = list(band_images(pair).values())
    center = images[-1].center
    steps = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)]) * patch / 2
    real, simulated = {}, {}
    for side in SIDES:
        knots = encoder.config.knots(side)
        of_side = [image for image in images if image.side == side]
        view = windows.side_view(of_side, from_tangent(steps, center), WINDOW, knots)
        mix = view.mix.sum(0)  # of bands on each knot
        names = [band for band, share in zip(SURVEYS[side].band_names, mix, strict=True) if share < 0.25]
        real[side] = encode(encoder, side, [_only(view, patch)])[0]
        alike = (_only(one, patch) for one in views(sky, side, where, WINDOW, seed, Look(missing=tuple(names))))
        simulated[side] = encode(encoder, side, alike)[0]
    ranks = []
    for side, other in (SIDES, SIDES[::-1]):
        score = real[side] @ torch.cat([real[other], simulated[other]]).T  # (4, 4 + n)
        ranks.append(1 + (score > score[:, :4].diagonal()[:, None]).sum(1))
    return torch.stack(ranks, -1).numpy()


def _only(view, patch):
    """The view with nothing seen beyond ``patch`` arcsec about its middle."""
    size = view.pixels.shape[-1]
    apart = (torch.arange(size) - (size - 1) / 2).abs() * WINDOW / size
    near = apart < patch / 2
    return replace(view, valid=view.valid & near[:, None] & near)
