# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Windows for heads that find sources: ten bands on one grid of 0.2", the tokens of encoders, and the true centres.

The grid is that of two by two VIS pixels, which enter as four channels. Ground images are taken on whole pixels, as the
encoder's are, so that they lie within half a pixel of it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from astropy.coordinates import SkyCoord

from rosetta.centres.channels import cells, east_north, stacked
from rosetta.encoding import observing, training_windows, windows
from rosetta.encoding.network import SIDES, EncoderConfig
from rosetta.images.image import band_images
from rosetta.images.positions import from_tangent, plain_icrs, tangent
from rosetta.simulate import TrainingSet
from rosetta.simulate.reader import read_tile
from rosetta.surveys import CONDITIONS

from .windows import BANDS, SEEING, SURVEYS, Sky

__all__ = [
    "FAINTEST", "INNER", "N_CELL", "WINDOW", "Centres", "Drawn", "Field", "center_of", "magnitude", "on_sky",
    "presented", "read_tiles", "tokens_of",
]

WINDOW = 38.4  # arcsec
N_CELL = 192  # of 0.2"
FAINTEST = 26.8  # i magnitude of the faintest true source
LATTICE = (-30.0, 0.0, 30.0)  # arcsec: windows of a tile of 102.4" without its masked rim
INNER = 48.0  # arcsec: sources within this half side of a tile count
KNOWN_AT = 5.0  # S/N at which a source weighs a half in training


@dataclass(frozen=True)
class Centres:
    """True sources of a window: cells (x, y), (n, 2), and what they weigh in training, 0 to 1, (n,)."""

    xy: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Drawn:
    """One presentation: channels (13, 192, 192) float16, the views that the encoder reads, and what is true.

    ``light`` is the noise-free light on the channels, in the same units, and ``centres`` the `Centres`.
    """

    channels: np.ndarray
    views: dict
    light: np.ndarray
    centres: Centres


def read_tiles(directory, n):
    """The first ``n`` noise-free tiles of a directory, as they are stored; a `~kit.windows.Sky`."""
    found = TrainingSet(directory)
    tiles, truth, place = [], [], []
    for index in range(n):
        stored, header = read_tile(found.paths[index])
        sides = {}
        for side in SIDES:
            first, pixel = np.array(header[side]["crpix"]) - 1, abs(header[side]["cd"][0][0]) * 3600
            affine = np.column_stack([np.diag([-1, 1]) / pixel, first])  # about the tangent point
            scale = torch.from_numpy(stored[f"scale_{side}"])
            sides[side] = training_windows.TrainingTileSide(torch.from_numpy(stored[side]), scale, affine)
        tiles.append(training_windows.TrainingTile(**sides))
        truth.append(found.truth(index))
        center = SkyCoord(*header["ground"]["crval"], unit="deg")
        place.append(tangent(truth[-1]["sky_centroid"], center))
    return Sky(tiles, truth, place)


def stored(ground, space):
    """The channels of `rosetta.centres.channels.stacked`, (n, 13, 192, 192) float16."""
    return stacked(ground, space).to(torch.float16).numpy()


def significance(truth, views):
    """S/N of sources in all bands together, with matched filters, as a window is observed: (n_source,)."""
    radius, total = truth["half_light_radius"].value, 0.0
    bands = iter(BANDS)
    for side in SIDES:
        for fwhm, depth in zip(views[side].fwhm[0].tolist(), views[side].depth[0].tolist(), strict=True):
            limit = 10 ** (0.4 * (31.4 - depth)) / 5
            total = total + (truth[f"flux_{next(bands)}"].value / limit) ** 2 * fwhm**2 / (fwhm**2 + 4 * radius**2)
    return np.sqrt(total)


def magnitude(flux):
    """AB magnitude of nJy."""
    return 31.4 - 2.5 * np.log10(np.maximum(flux, 1e-9))


def conditions(side):
    """All bands, PSFs of the seeing that test fields have; depths are those of training."""
    of_side = replace(CONDITIONS[side], drop=(0.0,) * len(CONDITIONS[side].drop))
    if side == "space":
        return of_side
    nominal = [float(band.psf_fwhm.to_value("arcsec")) for band in SURVEYS[side].bands]
    return replace(of_side, fwhm=tuple((SEEING[0] * f, SEEING[1] * f) for f in nominal))


def presented(sky, n_tile, seed, step):
    """Presentation number ``step``: a window anywhere in the first ``n_tile`` tiles, turned, with noise of its own.

    Parameters
    ----------
    sky : `~kit.windows.Sky`
    n_tile, seed, step : int

    Returns
    -------
    `Drawn`
    """
    random = training_windows.generator(seed, step)
    ends = [training_windows.center_range(tile, WINDOW) for tile in sky.tiles[:n_tile]]
    places = [(low, high, np.zeros((0, 2)), np.zeros(0)) for low, high in ends]
    tile, centers, turns = training_windows.draw_windows(places, WINDOW, 1, random)
    views, light = {}, {}
    for side in SIDES:
        one, how = sky.tiles[tile[0]].side(side), conditions(side)
        size = round(WINDOW / how.pixel_scale)
        images, positions = training_windows.cut([one.pixels], np.zeros(1, int), one.affine[None], centers, turns, size)
        mix = torch.eye(len(how.depth))
        views[side], light[side] = observing.observe(images, one.scale[None], positions, how, mix, random)
    offsets, truth = sky.place[tile[0]] - centers[0], sky.truth[tile[0]]
    mirror_x, mirror_y, transpose = turns[0]
    offsets = offsets * (-1 if mirror_x else 1, -1 if mirror_y else 1)
    offsets = -offsets[:, ::-1] if transpose else offsets  # east is to the left
    xy = cells(offsets, views["space"].positions[0])
    chosen = (xy > -0.5).all(1) & (xy < N_CELL - 0.5).all(1) & (magnitude(truth["flux_i"].value) < FAINTEST)
    snr = significance(truth, views)
    weight = snr**2 / (snr**2 + KNOWN_AT**2)
    centres = Centres(xy[chosen].astype(np.float32), weight[chosen].astype(np.float32))
    channels = stored(*(views[side].pixels for side in SIDES))[0]
    return Drawn(channels, views, stored(*(light[side] for side in SIDES))[0], centres)


@torch.inference_mode()
def tokens_of(encoder, views):
    """Tokens of the ground and of the space view, one after the other, (n, 144 + 576, 384) float16."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [encoder(side, views[side])[0] for side in SIDES]
    return torch.cat(parts, 1).to(torch.float16).numpy()


def center_of(pair):
    """The sky position in the middle of the VIS image."""
    image = pair.space["VIS"]
    ny, nx = image.data.shape
    return plain_icrs(image.wcs.pixel_to_world((nx - 1) / 2, (ny - 1) / 2))[0]


def lattice():
    """(east, north) of the windows of a field about its centre, arcsec, (9, 2)."""
    east, north = np.meshgrid(LATTICE, LATTICE)
    return np.stack([east.ravel(), north.ravel()], -1)


class Field:
    """A tile as surveys deliver it, cut into windows.

    Parameters
    ----------
    pair : `~rosetta.SkyPair`

    Attributes
    ----------
    center : `~astropy.coordinates.SkyCoord`
    views : dict of `~rosetta.encoding.network.View`
        All windows.
    """

    def __init__(self, pair):
        self.center = center_of(pair)
        centers = from_tangent(lattice(), self.center)
        self.views = {}
        for side in SIDES:
            images = [image.of_sky for image in band_images(pair).values() if image.side == side]
            self.views[side] = windows.side_view(images, centers, WINDOW, EncoderConfig().knots(side))

    def channels(self):
        """(n_window, 13, 192, 192) float16."""
        return stored(*(self.views[side].pixels for side in SIDES))

    def positions(self):
        """Token positions of the space view of every window, (n_window, 576, 2)."""
        return self.views["space"].positions.numpy()

    def place(self, truth):
        """(east, north) of sources about the field's centre, arcsec, (n, 2)."""
        return tangent(truth["sky_centroid"], self.center)


def on_sky(peaks, positions):
    """Peaks of the windows of a field, joined: each window answers for what is nearest to its centre.

    Parameters
    ----------
    peaks : list of (xy, score)
        Of each window: cells (n, 2) and scores (n,).
    positions : ndarray
        As from `Field.positions`.

    Returns
    -------
    place : ndarray
        (east, north) about the field's centre, arcsec, (n, 2).
    score : ndarray
        (n,).
    """
    middles, places, scores = lattice(), [], []
    for (xy, score), where, middle in zip(peaks, positions, middles, strict=True):
        place = middle + east_north(xy, where)
        nearest = np.argmin(np.abs(place[:, None] - middles).max(-1), 1)  # squares around the centres
        own = (middles[nearest] == middle).all(1) & (np.abs(place) < INNER).all(1)
        places.append(place[own])
        scores.append(score[own])
    return np.concatenate(places), np.concatenate(scores)
