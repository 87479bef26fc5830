# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What photutils measures of the source in the middle of a window, which tokens are compared with."""

import numpy as np
from photutils.aperture import CircularAperture
from photutils.segmentation import SourceCatalog, deblend_sources, detect_sources
from scipy import ndimage

PER_SOURCE = 18  # measurements beside those per band
APERTURES = 0.6, 1.2, 2.4  # radii in PSF widths
SIDE = {"ground": (slice(2, 5), 0.2), "space": (slice(0, 1), 0.1)}  # detection bands (riz; VIS), pixel in arcsec


def told(view):
    """PSF width and depth of each band, which the encoder is told too: (n, 2 n_band)."""
    return np.concatenate([np.log(view.fwhm.numpy()), view.depth.numpy()], 1)


def measure(side, view, xy):
    """Catalogue measurements of the source next to pixel ``xy`` of each window; zeros where none is detected there.

    Detection on r + i + z or VIS, smoothed to the PSF, 2 sigma on 5 pixels, deblended. Centroids (isophotal, windowed,
    quadratic) about ``xy``, moments, half-light radius, Kron and isophotal flux, number of neighbours, background
    plane; per band, asinh of the flux in `APERTURES`; and what the encoder is told.

    Parameters
    ----------
    side : {"ground", "space"}
    view : `~rosetta.encoding.network.View`
    xy : (float, float)

    Returns
    -------
    ndarray, shape (n, n_measurement)
    """
    bands, pixel = SIDE[side]
    signal = view.pixels.sinh().numpy().astype(float)  # S/N per pixel
    widths = view.fwhm.numpy() / pixel
    figures = np.zeros((len(signal), PER_SOURCE + len(APERTURES) * signal.shape[1]))
    for k, images in enumerate(signal):
        width = widths[k, bands].mean()
        figures[k] = _one(images, images[bands].mean(0), width, widths[k], xy)
    return np.concatenate([figures, told(view)], 1)


def _one(images, detection, width, widths, xy):
    out = np.zeros(PER_SOURCE + len(APERTURES) * len(images))
    smooth = ndimage.gaussian_filter(detection, width / 2.3548)
    noise = 1.4826 * np.median(np.abs(smooth - np.median(smooth)))
    segments = detect_sources(smooth - np.median(smooth), 2 * noise, 5)
    x, y = xy
    if segments is not None:
        segments = deblend_sources(smooth, segments, 5, n_levels=16, contrast=0.005, progress_bar=False)
        out[14:18] = _plane(images.mean(0), segments.data > 0, np.log(segments.n_labels))
        catalog = SourceCatalog(detection, segments, convolved_data=smooth)
        apart = np.hypot(np.atleast_1d(catalog.x_centroid) - x, np.atleast_1d(catalog.y_centroid) - y)
        nearest = int(apart.argmin())
        if apart[nearest] < max(width, 3):
            one = catalog[[nearest]]
            xx, xy_, yy = (float(c[0].value) for c in (one.covariance_xx, one.covariance_xy, one.covariance_yy))
            centroids = (
                one.x_centroid, one.y_centroid, one.x_centroid_win, one.y_centroid_win,
                one.x_centroid_quad, one.y_centroid_quad,
            )  # fmt: skip
            offsets = [float(np.atleast_1d(c)[0]) - xy[i % 2] for i, c in enumerate(centroids)]
            out[:6] = np.clip(offsets, -1.5, 1.5)  # the truth lies within half a pixel: no outlier may rule the fit
            out[6:9] = (xx - yy) / (xx + yy), 2 * xy_ / (xx + yy), 0.5 * np.log(xx + yy)
            figures = one.kron_flux, one.segment_flux, one.max_value, one.flux_radius(0.5).value, one.area.value
            out[9:14] = np.arcsinh([float(np.atleast_1d(figure)[0]) for figure in figures])
            out[:14] = np.nan_to_num(out[:14])
    for band, image in enumerate(images):
        for j, radius in enumerate(APERTURES):
            total = CircularAperture(xy, radius * widths[band]).do_photometry(image)[0][0]
            out[PER_SOURCE + len(APERTURES) * band + j] = np.arcsinh(total)
    return out


def _plane(image, masked, crowd):
    # Level and slopes of the sky, outside the sources and their wings.
    free = ~ndimage.binary_dilation(masked, iterations=4)
    y, x = np.indices(image.shape) / (image.shape[0] / 2) - 1
    if free.sum() < 50:
        return 0, 0, 0, crowd
    design = np.stack([np.ones(free.sum()), x[free], y[free]], 1)
    return (*np.linalg.lstsq(design, image[free], rcond=None)[0], crowd)
