# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Finding sources: segments of the matched-filtered detection image, cut where peaks are distinct.

Segments and residual peaks are found by photutils. Cutting segments it leaves to scikit-image, which is no
dependency of ours; see `rosetta.detection.watershed`.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from astropy.table import QTable
from photutils.detection import find_peaks
from photutils.segmentation import detect_sources
from photutils.utils.exceptions import NoDetectionsWarning
from scipy import ndimage

from ..images.cache import once_per_pair
from ..images.filtering import filter_sigma, filtered, nmad
from ..images.image import band_images
from ..images.moments import half_maximum_width
from ..images.resampling import on_grid
from .watershed import persistent_watershed

__all__ = [
    "DetectionConfig", "Detections", "detect", "detected", "detection_image", "point_variance", "reference_band",
    "residual_peaks",
]


@dataclass(frozen=True)
class DetectionConfig:
    """Settings of the detection.

    Attributes
    ----------
    threshold : float
        Sigma of the filtered image at which a segment ends.
    peak : float
        Sigma that a segment must reach.
    filter_fwhm : float
        arcsec, in quadrature with the PSF: the size of faint galaxies.
    prominence : float
        Sigma that a peak must stand above its saddle,
    contrast : float
        and that in units of the higher peak.
    """

    threshold: float = 1.8
    peak: float = 5.0
    filter_fwhm: float = 0.3
    prominence: float = 3.0
    contrast: float = 0.02


@dataclass(frozen=True, eq=False)
class Detections:
    """The sources of a detection image.

    Attributes
    ----------
    image : `~rosetta.images.image.BandImage`
        What they were found on.
    table : `~astropy.table.QTable`
        ``label`` (1, 2, ..., from the most significant down), ``sky_centroid``, ``x``, ``y`` (pixels of ``image``),
        ``snr``, ``a``, ``b`` (one-sigma widths of the light, arcsec, the filter removed but not the PSF), ``theta``
        (radian, from east towards north), ``radius`` (arcsec, of the circle as large as the source's segment).
    east_north : (n, 2) array
        Their positions in the tangent plane of ``image``, arcsec.
    segments : (ny, nx) int array
        Label of the source that each pixel belongs to; 0 is sky.
    config : `DetectionConfig`
    """

    image: object
    table: QTable
    east_north: np.ndarray
    segments: np.ndarray
    config: DetectionConfig

    def __len__(self):
        return len(self.table)


@once_per_pair
def detected(pair, config):
    """The `Detections` of a pair, found once: sources of all tables bear their labels."""
    images = {band: image.trimmed for band, image in band_images(pair).items()}  # masked rims say nothing of the sky
    return detect(detection_image(images), config)


def reference_band(images):
    """The sharpest space band, else the sharpest ground band: its pixels define the templates."""
    # Of equally sharp bands the deepest; half a pixel's width decides nothing.
    return min(images.values(), key=lambda image: (image.side == "ground", image.fwhm)).band


def detection_image(images):
    """What sources are found on: the sharpest space band, else the inverse-variance stack of the ground bands.

    Parameters
    ----------
    images : dict of str to `~rosetta.images.image.BandImage`

    Returns
    -------
    `~rosetta.images.image.BandImage`
    """
    image = images[reference_band(images)]
    return image if image.side == "space" else ground_stack(list(images.values()))


def ground_stack(images):
    """Stack by sky weight, for a flat spectrum, on the grid of the sharpest image; a `BandImage`."""
    first = min(images, key=lambda image: image.fwhm)
    weight, total = np.zeros(first.shape), np.zeros(first.shape)
    widths, depths = [], []
    for image in images:
        with np.errstate(divide="ignore"):
            flat = image.with_pixels(image.data, 1.0 / image.sky_weight)
            data, variance = (flat.data, flat.variance) if image is first else on_grid(flat, first)
            w = 1.0 / variance
        weight += w
        total += w * data
        widths.append(image.fwhm**2)
        depths.append(w.mean())
    data = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    variance = np.divide(1.0, weight, out=np.full_like(weight, np.inf), where=weight > 0)
    fwhm = float(np.sqrt(np.average(widths, weights=depths)))
    return first.with_pixels(data, variance, fwhm=fwhm, sky_weight=weight)


def detect(image, config):
    """Sources of one image.

    Parameters
    ----------
    image : `~rosetta.images.image.BandImage`
    config : `DetectionConfig`

    Returns
    -------
    `Detections`
    """
    valid = np.isfinite(image.variance)
    flux, significance = filtered(image, filter_sigma(image, config.filter_fwhm))
    noise = max(nmad(significance), 0.3)  # correlated noise widens it
    significance, flux = _bridge(significance / noise, valid), _bridge(flux, valid)
    found = _segments_with_peaks(significance, config)
    segments = persistent_watershed(significance, found > 0, prominence=config.prominence, contrast=config.contrast)
    table, east_north = _table(image, flux, significance, segments, config)
    order = np.argsort(-table["snr"], kind="stable")
    table = table[order]
    table["label"] = np.arange(1, len(table) + 1)
    label = np.zeros(len(table) + 1, int)
    label[1 + order] = table["label"]
    return Detections(image, table, east_north[order], label[segments], config)


def _segments_with_peaks(significance, config):
    """Connected pixels above the threshold that reach the peak, numbered from 1: (ny, nx) int array."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoDetectionsWarning)  # an empty sky is an answer
        found = detect_sources(significance, config.threshold, 1, connectivity=8)
    if found is None:
        return np.zeros(significance.shape, int)
    seen = found.data > 0  # the labels of the sky need not be sorted
    peak = ndimage.maximum(significance[seen], found.data[seen], found.labels)
    found.keep_labels(found.labels[peak > config.peak], relabel=True)
    return found.data


def _bridge(image, valid, largest=2000, longest=80):
    """Fill small masked holes with the brightest pixel around: a saturated core is one peak, not a ring.

    Holes of more than ``largest`` pixels, or ``longest`` along a side (trails), are left.
    """
    holes, count = ndimage.label(~valid, structure=np.ones((3, 3)))
    if count == 0:
        return image
    rim = np.where(holes == 0, ndimage.grey_dilation(holes, size=(3, 3)), 0)
    index = np.arange(1, count + 1)
    value = np.maximum(np.nan_to_num(ndimage.maximum(np.where(valid, image, 0.0), rim, index)), 0.0)
    value[np.bincount(holes.ravel(), minlength=count + 1)[1:] > largest] = 0.0
    sides = [[cut.stop - cut.start for cut in box] for box in ndimage.find_objects(holes)]
    value[np.max(sides, axis=1) > longest] = 0.0
    return np.where(holes > 0, np.concatenate([[0.0], value])[holes], image)


def _table(image, flux, significance, segments, config):
    """The table of `Detections`, and positions (n, 2) in the tangent plane."""
    index = np.arange(1, segments.max() + 1)
    y, x = np.nonzero(segments)
    which = segments[y, x] - 1
    n = len(index)
    light = np.maximum(flux[y, x], 0.0)
    total = np.maximum(np.bincount(which, light, n), 1e-30)
    xc, yc = np.bincount(which, light * x, n) / total, np.bincount(which, light * y, n) / total
    dx, dy = x - xc[which], y - yc[which]
    terms = ((dx * dx, 1 / 12), (dx * dy, 0), (dy * dy, 1 / 12))  # a pixel's own width on the diagonal
    moments = [np.bincount(which, light * m, n) / total + e for m, e in terms]
    # The centroid of a segment leans towards its uncut side; near the peak there is less of that.
    near = dx**2 + dy**2 < np.maximum(0.25 * (moments[0] + moments[2]), 2.0)[which]
    core = np.maximum(np.bincount(which, light**2 * near, n), 1e-30)
    xc = np.where(core > 1e-30, np.bincount(which, light**2 * near * x, n) / core, xc)
    yc = np.where(core > 1e-30, np.bincount(which, light**2 * near * y, n) / core, yc)
    table = QTable()
    table["label"] = index
    east_north = image.east_north(xc, yc)
    table["sky_centroid"] = image.tangent_plane.sky(east_north)
    table["x"], table["y"] = xc, yc
    table["snr"] = ndimage.maximum(significance[y, x], which + 1, index) if n else np.zeros(0)
    covariance = np.stack([np.stack(moments[:2], -1), np.stack(moments[1:], -1)], -2)  # (n, 2, 2) pixel
    if n:
        inverse = np.linalg.inv(image.jacobian(east_north))
        covariance = np.einsum("nij,njk,nlk->nil", inverse, covariance, inverse)
    values, vectors = np.linalg.eigh(covariance)
    # What a cut at a share t of the peak leaves of a Gaussian's second moment; then the filter's own width.
    values = values / _kept(table["snr"], config)[1][:, None] - filter_sigma(image, config.filter_fwhm) ** 2
    values = np.maximum(values, (0.2 * image.fwhm) ** 2)
    table["a"], table["b"] = np.sqrt(values[:, 1]), np.sqrt(values[:, 0])
    table["theta"] = np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1])
    table["radius"] = image.pixel_scale * np.sqrt(np.bincount(which, minlength=n) / np.pi)
    return table, east_north


def _kept(snr, config):
    """The share of the peak where a segment ends, and the share of a Gaussian's second moment within it."""
    t = np.clip(config.threshold / np.maximum(snr, 1e-9), 1e-9, 0.6)
    return t, 1.0 + t * np.log(t) / (1.0 - t)


def point_variance(image, snr, config):
    """One-sigma width squared (arcsec^2) that the table of `detect` gives to point sources of ``snr`` (n,).

    It is measured on the PSF as on the image, wings included: the width of its core would make every star a galaxy.
    """
    psf, width = image.mean_psf, filter_sigma(image, config.filter_fwhm)
    sigma = width / image.pixel_scale
    seen = ndimage.gaussian_filter(np.pad(psf, int(np.ceil(3 * sigma))), sigma)
    y, x = np.indices(seen.shape) - np.reshape([k // 2 for k in seen.shape], (2, 1, 1))
    edges = np.geomspace(1e-3, 0.6, 25)
    variance = []
    for edge in edges:
        light = np.where(seen > edge * seen.max(), seen, 0.0)
        total = light.sum()
        second = [(light * v**2).sum() / total - ((light * v).sum() / total) ** 2 + 1 / 12 for v in (x, y)]
        variance.append(np.sqrt(second[0] * second[1]))
    share, kept = _kept(snr, config)
    # A stack is as wide as its images are on average, not as the one whose PSF it has.
    stretch = image.fwhm / (half_maximum_width(psf) * image.pixel_scale)
    return np.interp(share, edges, variance) * (image.pixel_scale * stretch) ** 2 / kept - width**2


def residual_peaks(image, config):
    """Positions (x, y) and significance, (n,) each, of what a residual image shows.

    Parameters
    ----------
    image : `~rosetta.images.image.BandImage`
        Data less the models.
    config : `DetectionConfig`
    """
    _, significance = filtered(image, filter_sigma(image, config.filter_fwhm))
    significance = significance / max(nmad(significance), 0.3)
    size = 2 * int(np.ceil(image.fwhm / image.pixel_scale)) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoDetectionsWarning)
        found = find_peaks(significance, config.peak, box_size=size)
    if found is None:
        return (np.zeros(0),) * 3
    x, y = np.asarray(found["x_peak"]), np.asarray(found["y_peak"])
    return x.astype(float), y.astype(float), significance[y, x]
