# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Find a large offset between two maps of the same sky, with a significance.

The statistic is the masked, normalised cross-correlation (Padfield 2012), summed over channels. A
channel is any pair of maps on one north-up grid: compressed signal-to-noise of an image band, or one
component of a token map.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

__all__ = ["Match", "correlate", "compress"]


@dataclass(frozen=True)
class Match:
    """The highest peak of a correlation.

    Attributes
    ----------
    offset : numpy.ndarray, shape (2,)
        (east, north) in arcsec, to be added to ground positions.
    height : float
        Correlation coefficient at the peak, -1 to 1, mean of the channels.
    significance : float
        Height above the median of the search area, over its scatter.
    rival : float
        The same for the highest peak elsewhere.
    """

    offset: np.ndarray
    height: float
    significance: float
    rival: float


def compress(significance):
    """Signal-to-noise of an image as a map in which a bright star does not outweigh a hundred galaxies."""
    return np.log1p(np.clip(significance - 2.0, 0.0, None) / 3.0)


def correlate(channels, pitch, max_offset, *, apart=1.5):
    """Offset at which two sets of maps agree best.

    Parameters
    ----------
    channels : list of (ground, ground_valid, space, space_valid)
        Arrays (ny, nx) with axes (north, east), both increasing, on one grid.
    pitch : float
        Arcsec per grid point.
    max_offset : float
        Search radius, arcsec.
    apart : float
        Distance from the best peak at which another one is a rival, arcsec.

    Returns
    -------
    Match or None
        None if the maps hold nothing to compare.
    """
    shape = channels[0][0].shape
    reach = int(np.ceil(max_offset / pitch))
    size = [fft.next_fast_len(n + reach + 1, real=True) for n in shape]
    north = np.arange(-reach, reach + 1)
    total, used = np.zeros((2 * reach + 1, 2 * reach + 1)), 0
    enough = np.ones(total.shape, bool)
    for ground, ground_valid, space, space_valid in channels:
        if not ground_valid.any() or not space_valid.any():
            continue
        moved = []
        for image, valid in ((ground, ground_valid), (space, space_valid)):
            centred = np.where(valid, image - image[valid].mean(), 0.0)
            moved.append([fft.rfft2(a, size) for a in (centred, centred**2, valid.astype(float))])
        (g, g2, gv), (s, s2, sv) = moved

        def lag(one, two):
            return fft.irfft2(one.conj() * two, size)[north[:, None], north[None, :]]

        power = lag(g2, sv) * lag(gv, s2)
        overlap = lag(gv, sv)
        floor = 1e-6 * power.max()
        if floor <= 0:
            continue
        total += lag(g, s) / np.sqrt(np.maximum(power, floor))
        enough &= overlap > 0.25 * overlap.max()
        used += 1
    if not used:
        return None
    distance = np.hypot(north[:, None], north[None, :]) * pitch
    search = enough & (distance <= max_offset)
    if search.sum() < 50:
        return None
    values = total[search]
    middle = np.median(values)
    scatter = 1.4826 * np.median(np.abs(values - middle))
    if not scatter > 0:
        return None
    peaks = np.where(search, total, -np.inf)
    j, i = np.unravel_index(np.argmax(peaks), peaks.shape)
    away = np.hypot(north[:, None] - north[j], north[None, :] - north[i]) * pitch > apart
    local = search & away & (ndimage.maximum_filter(total, 3) == total)
    rival = total[local].max() if local.any() else middle
    offset = np.array([north[i] + _vertex(total[j, :], i), north[j] + _vertex(total[:, i], j)]) * pitch
    return Match(
        offset, float(total[j, i] / used), float((total[j, i] - middle) / scatter), float((rival - middle) / scatter)
    )


def _vertex(row, k):
    """Sub-sample place of a maximum: vertex of the parabola through three points."""
    if not 0 < k < len(row) - 1:
        return 0.0
    low, mid, high = row[k - 1 : k + 2]
    bend = low - 2 * mid + high
    return float(np.clip(0.5 * (low - high) / bend, -0.5, 0.5)) if bend < 0 else 0.0
