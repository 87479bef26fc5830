# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Input that is no familiar sky: does the encoder say so, and what does it make of real pixels?"""

from dataclasses import replace

import astropy.units as u
import numpy as np
import torch
from _windows import SURVEYS, Look, encode, views
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS
from real_input import euclid_q1, hsc_hst

from rosetta import EUCLID, HSC, SkyPair
from rosetta.encoding import observing, windows
from rosetta.encoding.network import SIDES, presence
from rosetta.images.image import band_images
from rosetta.images.positions import from_tangent

WINDOW = 12.8  # arcsec
FEW = {"ground": ("g r i", "r"), "space": ("VIS H_E", "VIS")}  # bands that users may have alone
FALSE_ALARMS = 0.01


# ------------------------------------------------------------------------------------- what is wrong
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
    fx, fy = observing._frequencies(size, 1.0, "cpu")
    white = torch.fft.rfft2(torch.randn(n, 1, size, size, generator=random))
    field = torch.fft.irfft2(white / (fx**2 + fy**2 + size**-2.0).sqrt(), s=(size, size))
    return (30 * field / field.std((-2, -1), keepdim=True)).expand(-1, n_band, -1, -1)


def _checkerboard(signal, random):
    axis = torch.arange(signal.shape[-1]) // 8
    board = ((axis[:, None] + axis) % 2 * 20.0).expand(signal.shape)
    return board + torch.randn(signal.shape, generator=random)


#: Name of each stranger, and what it makes of S/N per pixel.
STRANGERS = {
    "blank: zeros": lambda signal, random: torch.zeros_like(signal),
    "blank: noise alone": _noise_only,
    "corrupted: rows displaced": _rows_displaced,
    "corrupted: noise map 10 times too small": lambda signal, random: 10 * signal,
    "corrupted: bytes swapped": _bytes_swapped,
    "foreign: 1/f texture, S/N 30": _texture,
    "foreign: checkerboard": _checkerboard,
}


def novelty(model, sky, where, seed, n_stranger):
    """Scores of all windows as they are ("sky"), in few bands, and of strangers made of the first: dict per side."""
    out = {}
    for side in SIDES:
        found = {name: [] for name in ("sky", *FEW[side], *STRANGERS)}
        for name in FEW[side]:
            missing = tuple(band for band in SURVEYS[side].band_names if band not in name.split())
            for view in views(sky, side, where, WINDOW, seed, Look(missing=missing)):
                found[name].append(_scores(model, side, view))
        random = torch.Generator().manual_seed(seed)
        for view in views(sky, side, where, WINDOW, seed):
            seen = {"sky": view}
            more = sum(map(len, found["sky"])) < n_stranger
            for name, change in STRANGERS.items() if more else ():
                seen[name] = replace(view, pixels=change(view.pixels.sinh(), random).asinh())
            for name, one in seen.items():
                found[name].append(_scores(model, side, one))
        parts = {name: torch.cat(part).numpy() for name, part in found.items()}
        out[side] = {name: part[:n_stranger] if name in STRANGERS else part for name, part in parts.items()}
    return out


def _scores(model, side, view):
    return model.novelty[side](encode(model.encoder, side, [view], ("tokens",))[0], presence(view))


# ------------------------------------------------------------------------------------- real pixels
def real_pairs(data):
    """Pairs of real images in the folder: dict of name to `~rosetta.SkyPair`; without files, empty."""
    out = {}
    if (data / "euclid_q1_edfs_lens.fits").exists():
        out["Euclid Q1 with DES"] = euclid_q1(data)
    if (data / "hsc_cosmos_cutout.fits").exists():
        out["HSC with HST"] = hsc_hst(data)
    for path in sorted((data / "hsc_blends").glob("*.npz")):
        out[f"HSC {path.stem}"] = _hsc_blend(path)
    return out


def _hsc_blend(path):
    """Five HSC bands (zero point 27.0, 0.168 arcsec), placed anywhere on the sky."""
    file = np.load(path)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 2.0]
    ny, nx = file["images"].shape[1:]
    wcs.wcs.crpix, wcs.wcs.cd = [(nx + 1) / 2, (ny + 1) / 2], np.diag([-0.168, 0.168]) / 3600
    unit = 10 ** (0.4 * (31.4 - 27.0))
    planes = zip("grizy", file["images"], file["variance"], file["psfs"], strict=True)
    images = {
        band: NDData(image * unit, VarianceUncertainty(variance * unit**2), wcs=wcs, unit=u.nJy, psf=psf)
        for band, image, variance, psf in planes
    }
    return SkyPair(images, None, surveys=(HSC, EUCLID))


def transfer(encoder, pair, sky, where, seed, patch):
    """Do the four quadrants of a real pair find one another among simulated windows?

    Every quadrant is a window of 12.8" of which only ``patch`` arcsec are seen; so are the simulated windows, in the
    bands nearest to those of the pair.

    Returns
    -------
    ndarray, shape (4, 2)
        Rank of the true patch, from the ground and from space; 1 is found.
    """
    planes = list(band_images(pair).values())
    center = planes[-1].center
    steps = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)]) * patch / 2
    real, simulated = {}, {}
    for side in SIDES:
        knots = encoder.config.knots(side)
        of_side = [plane for plane in planes if plane.side == side]
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
