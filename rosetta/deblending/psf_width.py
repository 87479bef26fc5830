# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How wide a band sees its point sources, and whether that contradicts the width of its PSF."""

import numpy as np

from ..images.image import width_error
from .engine.design import shared
from .point_sources import is_point

__all__ = ["contradicted", "flux_error", "point_widths"]

SNR, MOST = 50.0, 30  # S/N from which a point source tells a width, and how many are asked, the brightest
WIDTHS = np.exp(np.linspace(np.log(0.7), np.log(1.6), 15))  # over the PSF's
CORE = 1.2  # half a side of the pixels that are compared, in units of the PSF's full width at half maximum
ALONE = 0.05  # largest blendedness of a source that is asked
FEWEST = 3  # point sources that tell of a band
LARGEST = 0.05  # of ln(width): what PSFs are usually known to, and what a band of many stars is not flagged for


def point_widths(engine, mixtures, placed, flux, blendedness, rest):
    """Widths of bright point sources, each with its own best flux.

    Parameters
    ----------
    engine : `~rosetta.deblending.engine.engine.Engine`
    mixtures : (n, K, 6) array
    placed : `~rosetta.deblending.engine.placement.Placement`
    flux, blendedness : (n,) array
    rest : callable
        rows -> (ny, nx) array: the image without the models of all sources but these.

    Returns
    -------
    (n,) array
        Over the PSF's width; NaN where it is not measured.
    """
    image, out = placed.image, np.full(len(mixtures), np.nan)
    if placed.psf_blur == 0.0 or len(mixtures) == 0:
        return out
    snr = flux * np.sqrt((image.mean_psf**2).sum() * np.median(image.sky_weight[image.valid]))
    rows = np.flatnonzero(is_point(mixtures) & (snr > SNR) & (blendedness < ALONE))
    rows = rows[np.argsort(-snr[rows])][:MOST]
    if len(rows) == 0:
        return out
    here, points, data = placed.of(rows), mixtures[rows].copy(), rest(rows)
    points[..., 3:] = 0.0
    weight = image.sky_weight / (1.0 + image.sky_weight * (engine.config.model_error * np.maximum(data, 0.0)) ** 2)
    cores = _cores(here.xy, CORE * image.fwhm / image.pixel_scale, image)
    chi2 = np.empty((len(WIDTHS), len(rows)))
    for k, width in enumerate(WIDTHS):
        breadth = np.full(len(rows), (width**2 - 1.0) * (image.fwhm / 2.3548) ** 2 / placed.psf_blur)
        chi2[k] = _misfits(engine.render(points, here, breadth), cores, data, weight)
    for row, curve in zip(rows, chi2.T, strict=True):
        out[row] = np.exp(_lowest(np.log(WIDTHS), curve)) if np.isfinite(curve).all() else np.nan
    return out


def contradicted(fit):
    """Whether bright point sources of a band contradict the width of its PSF, by more than their scatter.

    Parameters
    ----------
    fit : `~rosetta.deblending.band_fit.BandFit`
    """
    ratio, error = _typical(fit)
    return abs(np.log(ratio)) > LARGEST + 2.0 * error


def flux_error(fit, image):
    """Relative error of a band's fluxes, because the PSF given for it cannot be true.

    Where there are enough bright point sources they tell its width; where there are not, it is the survey's. One or two
    that agree with the PSF given make it credible, although it is not as wide as the survey's.

    Parameters
    ----------
    fit : `~rosetta.deblending.band_fit.BandFit`
    image : `~rosetta.images.image.BandImage`

    Returns
    -------
    float
        0 where nothing contradicts the PSF.
    """
    ratio, error = _typical(fit)
    if contradicted(fit):
        return width_error(ratio)
    if not np.isnan(error):
        return 0.0
    few = np.abs(np.log(fit.width[np.isfinite(fit.width)]))
    agree = len(few) > 0 and few.max() < LARGEST
    return min(image.psf_suspect_error, width_error(np.exp(2.0 * LARGEST)) if agree else np.inf)


def _typical(fit):
    """Width of a band's point sources over that of its PSF, and the error of its logarithm; 1 and NaN if unknown."""
    known = np.log(fit.width[np.isfinite(fit.width)])
    if len(known) < FEWEST:
        return 1.0, np.nan
    middle = np.median(known)
    return np.exp(middle), 1.25 * 1.4826 * np.median(np.abs(known - middle)) / np.sqrt(len(known))


def _cores(xy, reach, image):
    """The pixels (y0, y1, x0, x1) about each position; None where some are not valid."""
    cores, (ny, nx), half = [], image.valid.shape, int(np.ceil(reach))
    for x, y in np.round(xy).astype(int):
        inside = half <= x < nx - half and half <= y < ny - half
        core = (y - half, y + half + 1, x - half, x + half + 1)
        cores.append(core if inside and image.valid[core[0] : core[1], core[2] : core[3]].all() else None)
    return cores


def _misfits(design, cores, data, weight):
    """Chi2 of each source of a design in its core, alone and with its best flux: (n,); NaN without a core."""
    out = np.full(len(design), np.nan)
    for k, (values, bounds, core) in enumerate(zip(design.values, design.bounds, cores, strict=True)):
        if core is None:
            continue
        own, here = shared(bounds, core)
        model, (y0, y1, x0, x1) = values[own].astype(float), core  # a wide PSF made narrower may be beyond float32
        pixels, w = data[y0:y1, x0:x1][here], weight[y0:y1, x0:x1][here]
        flux = (w * model * pixels).sum() / (w * model**2).sum()
        out[k] = (w * (pixels - flux * model) ** 2).sum()
    return out


def _lowest(x, y):
    """Where evenly sampled values are lowest, by a parabola through three of them."""
    k = int(np.clip(np.argmin(y), 1, len(x) - 2))
    bend = y[k - 1] - 2.0 * y[k] + y[k + 1]
    step = 0.5 * (y[k - 1] - y[k + 1]) / bend if bend > 0 else 0.0
    return x[k] + (x[1] - x[0]) * float(np.clip(step, -1.0, 1.0))
