# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Finding sources: segments of the matched-filtered reference image, cut where peaks are distinct.

Segments and residual peaks are found by photutils. Cutting segments it leaves to scikit-image, which is no
dependency of ours; see `core.watershed`.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from astropy.table import QTable
from photutils.detection import find_peaks
from photutils.segmentation import detect_sources
from photutils.utils.exceptions import NoDetectionsWarning
from scipy import ndimage

from ..images.filtering import filter_sigma, filtered, nmad
from .watershed import persistent_watershed

__all__ = ["Reference", "detect", "filtered", "reference"]

THRESHOLD = 1.8  # sigma of the filtered image: where a segment ends
PEAK = 5.0  # sigma: what makes a segment a source
PROMINENCE = 3.0  # sigma: what a peak must stand above its saddle
CONTRAST = 0.02  # and in units of the higher peak


@dataclass(frozen=True, eq=False)
class Reference:
    """The image that sources are found on: one plane, or the inverse-variance stack of the ground planes.

    Attributes
    ----------
    band : str
        Name of the plane whose grid it is on.
    side : str
    data, variance : (ny, nx) array
        Invalid pixels hold 0 and infinity.
    fwhm : float
        Of the PSF, arcsec.
    plane : `~rosetta.images.image.BandImage`
        Whose grid and WCS it has.
    """

    band: str
    side: str
    data: np.ndarray
    variance: np.ndarray
    fwhm: float
    plane: object


def reference(planes, band=None):
    """The image to detect on: ``band`` if given, else the sharpest space band, else the ground stack.

    Parameters
    ----------
    planes : dict of str to `~rosetta.images.image.BandImage`
    band : str, optional

    Returns
    -------
    `Reference`
    """
    if band is None:
        band = reference_band(planes)
        if planes[band].side == "ground":
            return _stack(list(planes.values()))
    plane = planes[band]
    return Reference(band, plane.side, plane.data, plane.variance, plane.fwhm, plane)


def reference_band(planes):
    """The sharpest space band, else the sharpest ground band."""
    # Of equally sharp bands the deepest; half a pixel's width decides nothing.
    return min(planes.values(), key=lambda p: (p.side == "ground", p.fwhm)).band


def _stack(planes):
    """Inverse-variance stack, for a flat spectrum, on the grid of the sharpest plane."""
    first = min(planes, key=lambda p: p.fwhm)
    weight, total = np.zeros(first.shape), np.zeros(first.shape)
    widths, depths = [], []
    for plane in planes:
        data, variance = (plane.data, plane.variance) if plane is first else _on_grid(plane, first)
        with np.errstate(divide="ignore"):
            w = np.where(np.isfinite(variance), 1.0 / variance, 0.0)
        weight += w
        total += w * data
        widths.append(plane.fwhm**2)
        depths.append(w.mean())
    data = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    variance = np.divide(1.0, weight, out=np.full_like(weight, np.inf), where=weight > 0)
    fwhm = float(np.sqrt(np.average(widths, weights=depths)))
    return Reference(first.band, "ground", data, variance, fwhm, first)


def _on_grid(plane, target):
    """Data and variance of a plane at the pixels of another, bilinear; good enough to find sources."""
    ny, nx = target.shape
    # A WCS is smooth: ask it on a coarse grid.
    yc, xc = np.linspace(0, ny - 1, 17), np.linspace(0, nx - 1, 17)
    grid = np.meshgrid(yc, xc, indexing="ij")
    x, y = plane.sky_to_pixel(target.pixel_to_sky(grid[1].ravel(), grid[0].ravel()))
    rows = np.arange(ny) / max(ny - 1, 1) * 16
    cols = np.arange(nx) / max(nx - 1, 1) * 16
    where = np.meshgrid(rows, cols, indexing="ij")
    # Rounded, or the border row of an equal grid falls a hair outside.
    y, x = (np.round(ndimage.map_coordinates(v.reshape(17, 17), where, order=1), 6) for v in (y, x))
    scale = (target.pixel_scale / plane.pixel_scale) ** 2
    data = ndimage.map_coordinates(plane.data, [y, x], order=1, cval=0.0) * scale
    invalid = ndimage.map_coordinates((~plane.valid).astype(np.float32), [y, x], order=1, cval=1.0) > 0.01
    finite = np.where(plane.valid, plane.variance, np.median(plane.variance[plane.valid]))
    variance = ndimage.map_coordinates(finite, [y, x], order=1, cval=1.0) * scale**2
    return np.where(invalid, 0.0, data), np.where(invalid, np.inf, variance)








def detect(planes, band=None):
    """Sources of a pair, on its reference image.

    Parameters
    ----------
    planes : dict of str to `~rosetta.images.image.BandImage`
    band : str, optional
        Detect on this band. By default on the sharpest space band (VIS), else on the
        inverse-variance stack of the ground bands.

    Returns
    -------
    `~astropy.table.QTable`
        ``label`` (1, 2, ...), ``sky_centroid``, ``x``, ``y`` (pixels of the reference band, named in
        ``meta["band"]``), ``snr``, ``a``, ``b`` (one-sigma widths of the light, arcsec, the filter removed
        but not the PSF), ``theta`` (radian, from east towards north), ``parent`` (sources cut from one
        segment share it).
    """
    ref = reference(planes, band)
    return segments(ref)[0]


def segments(ref):
    """As `detect`, for one reference image; also the segmentation array (0 is sky)."""
    flux, significance = filtered(ref)
    noise = max(nmad(significance), 0.3)  # correlated noise widens it
    significance = _bridge(significance / noise, np.isfinite(ref.variance))
    flux = _bridge(flux, np.isfinite(ref.variance))
    parent = _segments_with_peaks(significance)
    labels = persistent_watershed(significance, parent > 0, prominence=PROMINENCE, contrast=CONTRAST)
    return _table(ref, flux, significance, labels, parent), labels


def _segments_with_peaks(significance):
    """Connected pixels above THRESHOLD that reach PEAK, numbered from 1: (ny, nx) int array."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoDetectionsWarning)  # an empty sky is an answer
        found = detect_sources(significance, THRESHOLD, 1, connectivity=8)
    if found is None:
        return np.zeros(significance.shape, int)
    seen = found.data > 0  # the labels of the sky need not be sorted
    peak = ndimage.maximum(significance[seen], found.data[seen], found.labels)
    found.keep_labels(found.labels[peak > PEAK], relabel=True)
    return found.data


def _bridge(image, valid, largest=2000):
    """Fill small masked holes with the brightest pixel around: a saturated core is one peak, not a ring."""
    holes, count = ndimage.label(~valid, structure=np.ones((3, 3)))
    if count == 0:
        return image
    rim = np.where(holes == 0, ndimage.grey_dilation(holes, size=(3, 3)), 0)
    index = np.arange(1, count + 1)
    value = np.maximum(np.nan_to_num(ndimage.maximum(np.where(valid, image, 0.0), rim, index)), 0.0)
    value[np.bincount(holes.ravel(), minlength=count + 1)[1:] > largest] = 0.0
    return np.where(holes > 0, np.concatenate([[0.0], value])[holes], image)




def _table(ref, flux, significance, labels, parent):
    index = np.arange(1, labels.max() + 1)
    y, x = np.nonzero(labels)
    which = labels[y, x] - 1
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
    sky = ref.plane.pixel_to_sky(xc, yc)
    table["sky_centroid"] = sky
    table["x"], table["y"] = xc, yc
    table["snr"] = ndimage.maximum(significance[y, x], which + 1, index) if n else np.zeros(0)
    covariance = np.stack([np.stack(moments[:2], -1), np.stack(moments[1:], -1)], -2)  # (n, 2, 2) pixel
    if n:
        inverse = np.linalg.inv(ref.plane.jacobian(sky))
        covariance = np.einsum("nij,njk,nlk->nil", inverse, covariance, inverse)
    values, vectors = np.linalg.eigh(covariance)
    # What a cut at a share t of the peak leaves of a Gaussian's second moment; then the filter's own width.
    values = values / _kept(table["snr"])[1][:, None] - filter_sigma(ref) ** 2
    values = np.maximum(values, (0.2 * ref.fwhm) ** 2)
    table["a"], table["b"] = np.sqrt(values[:, 1]), np.sqrt(values[:, 0])
    table["theta"] = np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1])
    table["parent"] = ndimage.maximum(parent[y, x], which + 1, index).astype(int) if n else np.zeros(0, int)
    table.meta["band"] = ref.band
    return table


def _kept(snr):
    """The share of the peak where a segment ends, and the share of a Gaussian's second moment within it."""
    t = np.clip(THRESHOLD / np.maximum(snr, 1e-9), 1e-9, 0.6)
    return t, 1.0 + t * np.log(t) / (1.0 - t)


def point_variance(ref, snr):
    """One-sigma width squared (arcsec^2) that a table as by `detect` gives to point sources of ``snr`` (n,).

    It is measured on the PSF as on the image, wings included: the width of its core would make every star a galaxy.
    """
    psf, sigma = ref.plane.psf, filter_sigma(ref) / ref.plane.pixel_scale
    seen = ndimage.gaussian_filter(np.pad(psf, int(np.ceil(3 * sigma))), sigma)
    y, x = np.indices(seen.shape) - np.reshape([k // 2 for k in seen.shape], (2, 1, 1))
    edges = np.geomspace(1e-3, 0.6, 25)
    variance = []
    for edge in edges:
        light = np.where(seen > edge * seen.max(), seen, 0.0)
        total = light.sum()
        second = [(light * v**2).sum() / total - ((light * v).sum() / total) ** 2 + 1 / 12 for v in (x, y)]
        variance.append(np.sqrt(second[0] * second[1]))
    share, kept = _kept(snr)
    width2 = np.interp(share, edges, variance) * ref.plane.pixel_scale**2 * (ref.fwhm / ref.plane.fwhm) ** 2
    return width2 / kept - filter_sigma(ref) ** 2


def missed(ref, residual, *, peak=PEAK):
    """Positions (x, y) and significance of what is left in a residual image.

    Parameters
    ----------
    ref : `Reference`
    residual : (ny, nx) array
        ``ref.data`` less the models.
    peak : float, optional
        Least significance.

    Returns
    -------
    x, y, significance : (n,) array
    """
    _, significance = filtered(ref, residual)
    significance = significance / max(nmad(significance), 0.3)
    size = 2 * int(np.ceil(ref.fwhm / ref.plane.pixel_scale)) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoDetectionsWarning)
        found = find_peaks(significance, peak, box_size=size)
    if found is None:
        return (np.zeros(0),) * 3
    x, y = np.asarray(found["x_peak"]), np.asarray(found["y_peak"])
    return x.astype(float), y.astype(float), significance[y, x]
