# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Straight lines of light across an image: trails of satellites and aircraft.

A faint trail shows only when it is summed along its length. The fast Radon transform gives the sums along all lines
(Brady 1998; for satellites Nir, Zackay & Ofek 2018).
"""

import numpy as np
from scipy import ndimage

from .filtering import nmad

__all__ = ["lines"]

THRESHOLD = 5.0  # sigma of the sum along a line
CANDIDATES = 4  # looked at in each of four directions
CLIP = 1.5  # sigma of a pixel: a source on the line counts no more than noise
PARTS = 8  # of a line. Without the two lowest and the two highest, where sources may lie, they must be
PART_THRESHOLD = 2.5  # sigma above the sky, and
EVENNESS = 1.7  # within this factor of the median one
SHORTEST = 12.0  # arcsec on the image, or
SHORTEST_SHARE = 0.8  # of its shorter side, and
SHORTEST_WIDTHS = 10.0  # PSF widths
WIDEST = 3.0  # PSF widths, full width at half maximum
FAINTEST = 0.15  # sigma per pixel: where the mask of a line ends
MOST = 8  # lines of one image


def lines(data, variance, fwhm, pixel_scale):
    """Pixels on straight lines that cross an image from border to border.

    The image is filtered across the line (the line less the sky on both sides) and clipped, so that a source counts no
    more than noise; then it is summed along all lines. A line is confirmed by the medians of its parts: nothing in the
    sky is straight, about as narrow as the PSF and evenly bright from border to border.

    Parameters
    ----------
    data, variance : (ny, nx) array
        The variance is infinite where a pixel is invalid, the data are 0 there.
    fwhm : float
        Of the PSF, pixels.
    pixel_scale : float
        arcsec.

    Returns
    -------
    (ny, nx) bool array
    """
    valid = np.isfinite(variance)
    found = np.zeros(data.shape, bool)
    shortest = max(min(SHORTEST / pixel_scale, SHORTEST_SHARE * min(data.shape)), SHORTEST_WIDTHS * fwhm)
    if max(data.shape) < shortest or not valid.any():
        return found
    pixels = np.where(valid, data / np.sqrt(np.where(valid, variance, 1.0)), 0.0).astype(np.float32)
    pixels[valid] -= np.median(pixels[valid])
    # Lines that are nearer to a row, and to a column.
    for image, usable, out in ((pixels, valid, found), (pixels.T, valid.T, found.T)):
        for _ in range(MOST):
            line = _first(image, usable & ~out, fwhm, shortest)
            if line is None:
                break
            out |= line
    return found


def _first(image, usable, fwhm, shortest):
    """Pixels of the first confirmed line that is nearer to a row than to a column, or None."""
    across = _across(image, usable, 1.2 * fwhm)
    seen = usable & (across != 0)
    if not seen.any():
        return None
    scale = nmad(across[seen])
    clipped = np.where(seen, np.clip(across / scale, -CLIP, CLIP), 0.0).astype(np.float32)
    length = _length(image.shape)
    length[length < shortest] = np.inf
    for falling in (False, True):
        flip = np.s_[:, ::-1] if falling else np.s_[:, :]
        strength = _radon(clipped[flip]) / np.sqrt(length)
        noise = max(nmad(strength[::3, ::3]), 1.0)  # of neighbours that are correlated, and sources
        for _ in range(CANDIDATES):
            rise, row = np.unravel_index(strength.argmax(), strength.shape)
            if strength[rise, row] < THRESHOLD * noise:
                break
            mask = _confirmed(image[flip], across[flip] / scale, seen[flip], rise, row, fwhm, noise)
            if mask is not None:
                return mask[flip]
            strength[max(rise - 8, 0) : rise + 9, max(row - 8, 0) : row + 9] = 0.0
    return None


def _across(image, usable, width):
    """The image less what lies on both sides, for lines ``width`` pixels wide along a row."""
    sigma = max(width / 2.3548, 0.5)
    half = int(np.ceil(5 * sigma)) + 1
    distance = np.abs(np.arange(-half, half + 1))
    line = np.exp(-0.5 * (distance / sigma) ** 2)
    sides = (distance > 2.5 * sigma).astype(float)
    clipped = np.clip(image, -5.0, 20.0)

    def mean(weights):
        top = ndimage.convolve1d(np.where(usable, clipped, 0.0), weights, axis=0, mode="constant")
        bottom = ndimage.convolve1d(usable.astype(np.float32), weights, axis=0, mode="constant")
        return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0.4 * weights.sum()), bottom

    (on, seen_on), (off, seen_off) = mean(line), mean(sides)
    good = usable & (seen_on > 0.4 * line.sum()) & (seen_off > 0.4 * sides.sum())
    return np.where(good, on - off, 0.0)


def _radon(image):
    """Sums along all lines that rise by 0 to n - 1 rows from the first to the last of n columns, n a power of 2.

    Returns
    -------
    (n, n + ny) float32 array
        By rise and by the row in the first column, of which the first one is -n.
    """
    ny, nx = image.shape
    n = 1 << (nx - 1).bit_length()
    sums = np.zeros((n, 1, ny + 2 * n), np.float32)  # (strip, rise, row)
    sums[:nx, 0, n : n + ny] = image.T
    while len(sums) > 1:
        left, right = sums[::2], sums[1::2]
        rises = 2 * sums.shape[1]
        sums = np.zeros((len(left), rises, left.shape[2]), np.float32)
        for rise in range(rises):
            step = (rise + 1) // 2
            sums[:, rise] = left[:, rise // 2]
            sums[:, rise, : sums.shape[2] - step] += right[:, rise // 2, step:]
    return sums[0, :, : n + ny]


def _length(shape):
    """Columns that each line of `_radon` crosses inside the image."""
    ny, nx = shape
    n = 1 << (nx - 1).bit_length()
    row, slope = np.arange(-n, ny), np.arange(n)[:, None] / (n - 1)
    steps = np.maximum(slope, 1e-9)
    first = np.clip(np.ceil(-row / steps), 0, nx)
    last = np.clip(np.floor((ny - 1 - row) / steps), -1, nx - 1)
    return np.maximum(last - first + 1, 0.0).astype(np.float32)


def _confirmed(image, across, seen, rise, row, fwhm, noise):
    """The mask of a line, or None if it is not as a trail is."""
    ny, nx = image.shape
    n = 1 << (nx - 1).bit_length()
    x = np.arange(nx)
    middle = row - n + rise * x / (n - 1)
    y = np.round(middle).astype(int)
    inside = (y >= 0) & (y < ny)
    x, y, middle = x[inside], y[inside], middle[inside]
    kept = seen[y, x]
    if kept.sum() < 4 * PARTS:
        return None
    error = 1.25 * noise * np.sqrt(PARTS / kept.sum())
    medians = np.sort([np.median(part) for part in np.array_split(across[y, x][kept], PARTS)])
    usual, low, high = np.median(medians), medians[2], medians[-3]
    if low < max(PART_THRESHOLD * error, usual / EVENNESS - error) or high > EVENNESS * usual + error:
        return None
    # The profile across the line, from medians along it.
    half = int(np.ceil(6 * fwhm)) + 2
    rows = y[:, None] + np.arange(-half, half + 1)
    on = (rows >= 0) & (rows < ny)
    values = np.where(on, image[np.clip(rows, 0, ny - 1), x[:, None]], np.nan)
    profile, known = np.full(2 * half + 1, np.nan), on.any(axis=0)
    profile[known] = np.nanmedian(values[:, known], axis=0)
    sides = np.concatenate([profile[: half // 2], profile[-(half // 2) :]])
    if np.isnan(sides).all():
        return None
    profile -= np.nanmedian(sides)
    slope = np.hypot(1.0, rise / (n - 1))
    if (profile > 0.5 * profile[half]).sum() > WIDEST * fwhm * slope:
        return None
    lit = profile > max(FAINTEST, 3 * 1.25 / np.sqrt(kept.sum()))
    low, high = half, half
    while low > 0 and lit[low - 1]:
        low -= 1
    while high < 2 * half and lit[high + 1]:
        high += 1
    rows_of = np.arange(ny)[:, None]
    mask = np.zeros(image.shape, bool)
    mask[:, x] = np.abs(rows_of - (middle + 0.5 * (low + high) - half)) <= 0.5 * (high - low) + 1.0
    return mask
