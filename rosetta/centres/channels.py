# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the learned detector reads: the bands of both surveys on one grid of cells of 0.2".

A cell is a pixel of the ground images, or two by two pixels of VIS, which enter as four channels. Images are taken on
whole pixels where they have those of the surveys, as the encoder's are: ground and space then agree to half a pixel.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ..surveys import EUCLID, PIXEL_SCALE, RUBIN

__all__ = ["CELL", "cells", "east_north", "slots", "stacked"]

CELL = 0.2  # arcsec
PATCH = 16
N_BAND = {"ground": len(RUBIN.bands), "space": len(EUCLID.bands)}
SAME_BAND = 0.15  # of ln(wavelength): bands that are farther apart are not the same


def stacked(ground, space):
    """Channels of windows: six ground bands, four phases of VIS, three NISP bands.

    Parameters
    ----------
    ground, space : `torch.Tensor` or ndarray
        asinh(flux / noise), (n, 6, ny, nx) and (n, 4, 2 ny, 2 nx); 0 where nothing is known.

    Returns
    -------
    `torch.Tensor`
        (n, 13, ny, nx), float32, channels last in memory.
    """
    ground, space = torch.as_tensor(ground), torch.as_tensor(space)
    phases, infrared = F.pixel_unshuffle(space[:, :1], 2), 2 * F.avg_pool2d(space[:, 1:], 2)
    return torch.cat([ground, phases, infrared], 1).contiguous(memory_format=torch.channels_last)


def slots(side, wavelengths):
    """The survey's band that each image stands for, by wavelength (nm): list of int, None where there is none."""
    survey = RUBIN if side == "ground" else EUCLID
    of_survey = np.log([band.pivot.to_value("nm") for band in survey.bands])
    found = []
    for wavelength in wavelengths:
        apart = np.abs(np.log(wavelength) - of_survey)
        slot = int(np.argmin(apart))
        found.append(slot if apart[slot] < SAME_BAND and slot not in found else None)
    return found


def cells(offsets, positions, side="space"):
    """Cells (x, y) of (east, north) about the window centre, arcsec, (n, 2), by the token positions of a side."""
    at = (np.asarray(offsets) - np.asarray(positions, float)[0]) * (-1, 1) / PIXEL_SCALE[side]
    return (at + PATCH / 2) * PIXEL_SCALE[side] / CELL - 0.5


def east_north(xy, positions, side="space"):
    """The inverse of `cells`."""
    pixels = (np.asarray(xy) + 0.5) * CELL / PIXEL_SCALE[side] - PATCH / 2
    return np.asarray(positions, float)[0] + pixels * (-1, 1) * PIXEL_SCALE[side]
