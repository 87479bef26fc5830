# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How images look: noise, PSFs and sources, measured by the same functions on real and on simulated images.

Images are `~astropy.nddata.NDData` in nJy, as a `~rosetta.SkyPair` holds them. Every measurement gives rows that can be
drawn again by bootstrap: blocks of pixels, stamps or sources.
"""

import warnings

import numpy as np
from photutils.segmentation import deblend_sources, detect_sources
from photutils.utils.exceptions import NoDetectionsWarning
from scipy import ndimage

from rosetta.images.moments import adaptive_moments

from .morphology import morphology

__all__ = [
    "LAGS", "autocorrelation", "encircled", "fwhm_of", "noise_blocks", "roughness", "scatter_ratio", "segments",
    "sigma_of", "sources_of", "star_light",
]

LAGS = (1, 2, 3, 4, 5)  # pixels
EDGE, PEAK = 1.5, 5.0  # sigma of the smoothed image where a segment ends, and that it must reach
GROWN = 0.6  # arcsec around segments that are not counted as sky
CLIP = 4.0  # sigma; a sky pixel beyond is taken for a defect
LEAST = 0.25  # share of a block that must be sky
FEWEST = 50  # pixels of sky without which an image says nothing of its noise
BLOCK = 20  # pixels; side of the blocks that are drawn again


def sigma_of(image):
    """Noise of a sky pixel as given with the image, nJy: the median."""
    return float(np.sqrt(np.median(image.uncertainty.array[~image.mask])))


def fwhm_of(psf):
    """Full width at half maximum of the Gaussian with the PSF's adaptive moments, pixels."""
    return float(2.3548 * np.linalg.det(adaptive_moments(np.asarray(psf, float))[1]) ** 0.25)


# ---------------------------------------------------------------------------- sources on an image
def segments(image):
    """Numbered sources of one image (ny, nx) and the scatter of its smoothed sky; 0 is sky."""
    data = np.where(image.mask, 0.0, image.data)
    smooth = ndimage.gaussian_filter(data, fwhm_of(image.psf) / 2.3548)
    good = ~image.mask
    found = np.zeros(data.shape, int)
    middle, sigma = 0.0, 1.4826 * np.median(-smooth[good & (smooth < 0)])  # no source is negative
    for turn in range(3):  # what stands out of the sky, and the scatter of what does not
        sky = smooth[good & (found == 0)]
        if turn and len(sky) >= FEWEST:
            middle = np.median(sky)
            sigma = 1.4826 * np.median(np.abs(sky - middle))
        peaks = smooth - middle
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoDetectionsWarning)
            map_ = detect_sources(peaks, EDGE * sigma, 5, mask=image.mask)
        found = np.zeros(data.shape, int)
        if map_ is not None:
            bright = ndimage.maximum(peaks, map_.data, map_.labels) > PEAK * sigma
            if bright.any():
                map_.keep_labels(map_.labels[bright])
                map_ = deblend_sources(peaks, map_, n_pixels=5, contrast=0.02, progress_bar=False)
                found = map_.data
    return found, middle


def _sky(images, scale):
    """Pixels of the sky on images of one grid: no source in any of them."""
    covered = np.any([segments(image)[0] > 0 for image in images], axis=0)
    grown = ndimage.distance_transform_edt(~covered) > GROWN / scale if covered.any() else ~covered
    return grown & ~np.any([image.mask for image in images], axis=0)


# ---------------------------------------------------------------------------- noise
def noise_blocks(images, scale):
    """Sums over the sky pixels of images on one grid, from which scatter and autocorrelation follow.

    Parameters
    ----------
    images : list of `~astropy.nddata.NDData`
    scale : float
        Arcsec per pixel.

    Returns
    -------
    list of ndarray, shape (n_block, 2 + 2 * n_lag)
        One array per image. Sum of squares and number of sky pixels in units of the given noise, then the sum of
        products and the number of pairs at each of ``LAGS``, rows and columns together. Pairs belong to the block of
        their first pixel.
    """
    sky, out = _sky(images, scale), []
    ny, nx = sky.shape
    if sky.sum() < FEWEST:
        return [np.zeros((0, 2 + 2 * len(LAGS)))] * len(images)
    block = (np.arange(ny) // BLOCK)[:, None] * (nx // BLOCK + 1) + (np.arange(nx) // BLOCK)[None]
    names, block = np.unique(block, return_inverse=True)
    block = block.reshape(ny, nx)

    def sums(values, where):
        return np.bincount(block[where], values[where], len(names))

    for image in images:
        pull = np.where(sky, image.data / np.sqrt(np.where(image.mask, 1.0, image.uncertainty.array)), 0.0)
        middle = np.median(pull[sky])
        limit = CLIP * 1.4826 * np.median(np.abs(pull[sky] - middle))
        use = sky & (np.abs(pull - middle) < limit)
        pull = np.where(use, pull - pull[use].mean(), 0.0)
        columns = [sums(pull**2, use), sums(np.ones_like(pull), use)]
        for lag in LAGS:
            product, count = np.zeros_like(pull), np.zeros_like(pull)
            for one, two in ((np.s_[:, :-lag], np.s_[:, lag:]), (np.s_[:-lag], np.s_[lag:])):
                product[one] += pull[one] * pull[two]
                count[one] += use[one] & use[two]
            columns += [sums(product, use), sums(count, use)]
        out.append(np.stack(columns, -1))
    return out


def _full(blocks):
    return blocks[blocks[:, 1] >= LEAST * BLOCK**2]


def scatter_ratio(blocks):
    """Root mean square of the sky pixels over the given noise: the median of blocks, so that halos do not count."""
    blocks = _full(blocks)
    return np.sqrt(np.median(blocks[:, 0] / blocks[:, 1])) if len(blocks) else np.nan


def autocorrelation(blocks):
    """Correlation of sky pixels at ``LAGS`` along rows and columns, the median of blocks: (n_lag,)."""
    blocks = _full(blocks)
    if not len(blocks):
        return np.full(len(LAGS), np.nan)
    power = blocks[:, :1] / blocks[:, 1:2]
    return np.median(blocks[:, 2::2] / np.maximum(blocks[:, 3::2], 1) / power, axis=0)


# ---------------------------------------------------------------------------- PSF
def encircled(psf, radius, total=None):
    """Share of a PSF's light within a circle about its centroid.

    Parameters
    ----------
    psf : ndarray
    radius : float
        Pixels.
    total : float, optional
        Radius that is taken for everything. None: the whole stamp.
    """
    psf = np.asarray(psf, float)
    (x0, y0), _ = adaptive_moments(psf)
    y, x = np.indices(psf.shape)
    distance = np.hypot(x - x0, y - y0)

    def light(r):
        return np.sum(psf * np.clip(r + 0.5 - distance, 0, 1))

    return float(light(radius) / (psf.sum() if total is None else light(total)))


def roughness(psf):
    """Power of the second differences of a PSF over its own power, 1 for a pattern that alternates from pixel to pixel.

    The mean of rows and columns; high if much of the power lies near the Nyquist frequency.
    """
    psf = np.pad(np.asarray(psf, float), 2)
    power = [np.sum(np.diff(psf, 2, axis=axis) ** 2) for axis in (0, 1)]
    return float(np.mean(power) / 16 / np.sum(psf**2))


def star_light(image, x, y, fwhm, radii=(1, 2), total=3):
    """Light of a star within circles of ``radii`` FWHM over that within ``total`` FWHM: (n_radius,)."""
    ys, xs = np.indices(image.data.shape)
    distance = np.hypot(xs - x, ys - y)
    data = np.where(image.mask, 0.0, image.data)

    def light(r):
        return np.sum(data * np.clip(r * fwhm + 0.5 - distance, 0, 1))

    return np.array([light(r) for r in radii]) / light(total)


# ---------------------------------------------------------------------------- sources
def sources_of(images, reference, scale, *, least=25):
    """The sources of a field that are found on one image, and their light on all of them.

    Parameters
    ----------
    images : dict of str to `~astropy.nddata.NDData`
        On one grid.
    reference : str
        The band in which sources are found and morphologies measured.
    scale : float
        Arcsec per pixel.
    least : int
        Half the width, in pixels, of the smallest stamp.

    Returns
    -------
    dict of str to ndarray, each of shape (n,)
        ``x``, ``y`` (pixels), ``peak`` (S/N of the smoothed peak is at least 5), ``flux_<band>`` in circles of radius
        0.5 arcsec, nJy, and the fields of `~kit.morphology.Morphology` with radii in arcsec.
    """
    image = images[reference]
    found, middle = segments(image)
    sky = image.data[(found == 0) & ~image.mask]
    sigma = 1.4826 * np.median(np.abs(sky - np.median(sky))) if len(sky) >= FEWEST else sigma_of(image)
    ny, nx = found.shape
    rows = []
    for number in range(1, found.max() + 1):
        own = found == number
        if not own.any():
            continue
        y, x = ndimage.center_of_mass(np.where(own, np.maximum(image.data, 0), 0))
        half = max(least, int(3 * np.sqrt(own.sum() / np.pi)) + 5)
        y0, y1, x0, x1 = max(round(y) - half, 0), round(y) + half + 1, max(round(x) - half, 0), round(x) + half + 1
        cut = np.s_[y0:y1, x0:x1]
        use = ((found[cut] == 0) | own[cut]) & ~image.mask[cut]
        form = morphology(image.data[cut] - middle, (x - x0, y - y0), sigma, use)
        row = {"x": x, "y": y, "area": own.sum() * scale**2, **vars(form)}
        row["petrosian"], row["half_light"] = form.petrosian * scale, form.half_light * scale
        distance = np.hypot(*np.meshgrid(np.arange(nx) - x, np.arange(ny) - y))
        for band, other in images.items():
            weight = np.clip(0.5 / scale + 0.5 - distance, 0, 1)
            bad = np.any(other.mask[weight > 0])
            row[f"flux_{band}"] = np.nan if bad else float(np.sum(weight * other.data))
        rows.append(row)
    names = rows[0] if rows else ()
    return {name: np.array([row[name] for row in rows]) for name in names}
