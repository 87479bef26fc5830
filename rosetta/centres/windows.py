# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The images of a pair as the learned detector reads them: windows of channels, and where their cells lie."""

import numpy as np

from ..encoding.network import SIDES, EncoderConfig
from ..encoding.windows import side_view
from ..images.image import extent
from .channels import CELL, N_BAND, east_north, slots, stacked
from .network import REACH, STRIDE

__all__ = ["windows"]

LARGEST = 76.8  # arcsec: memory
SMALLEST = 12.8  # arcsec, as in training


def windows(images):
    """Windows that cover the images.

    Parameters
    ----------
    images : list of `~rosetta.images.image.BandImage`
        Of one pair.

    Yields
    ------
    channels : `torch.Tensor`
        (1, 13, n, n).
    place : callable
        Cells (x, y), (m, 2) -> positions (m, 2) in the tangent plane of the images, arcsec.
    own : callable
        Positions (m, 2) -> (m,) bool: whether they are this window's, and not those of a neighbour.
    """
    plane, shown = images[0].tangent_plane, {side: [] for side in SIDES}
    for side, of_side in shown.items():
        bands = [image for image in images if image.side == side]
        for image, slot in zip(bands, slots(side, [image.wavelength for image in bands]), strict=True):
            if slot is not None:
                of_side.append((slot, image.of_sky))
    shown = {side: of_side for side, of_side in shown.items() if of_side}
    if not shown:
        return
    middles, window, half = _lattice(*extent(images))
    centers = plane.sky(middles)
    for k, middle in enumerate(middles):
        views, positions = {}, None
        n = round(window / CELL)
        for side in SIDES:
            width = n * (2 if side == "space" else 1)
            pixels = np.zeros((1, N_BAND[side], width, width), np.float32)
            if side in shown:
                slot, of_side = zip(*shown[side], strict=True)
                view = side_view(list(of_side), centers[k : k + 1], window, EncoderConfig().knots(side))
                pixels[:, list(slot)] = view.pixels.numpy()
                positions = side, view.positions[0].numpy()  # of the sharper side, where there are both
            views[side] = pixels

        def place(xy, middle=middle, where=positions):
            return middle + east_north(xy, where[1], where[0])

        def own(at, middle=middle, half=half):
            return (np.abs(at - middle) < half).all(axis=1)

        yield stacked(views["ground"], views["space"]), place, own


def _lattice(low, high):
    """Centres of the windows (n, 2), the side of a window, and half the side of what each answers for, arcsec."""
    step = STRIDE * CELL
    if (high - low).max() <= LARGEST:
        window = max(SMALLEST, step * np.ceil((high - low).max() / step - 1e-6))
        return (low + high)[None] / 2, window, np.inf
    inner = LARGEST - 2 * REACH * CELL
    axes = []
    for first, last in zip(low, high, strict=True):
        n = int(np.ceil((last - first) / inner - 1e-6))
        axes.append((first + last) / 2 + inner * (np.arange(n) - (n - 1) / 2))
    east, north = np.meshgrid(*axes)
    return np.stack([east.ravel(), north.ravel()], -1), LARGEST, inner / 2
