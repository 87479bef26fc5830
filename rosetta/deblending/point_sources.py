# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Which fitted sources are points.

The family of shapes reaches a point only in the limit, and a fit that began at the moments of a saturated core, or that
takes an error of the PSF for a shape, never gets there. A source that a point describes as well, seen by a PSF as broad
as it may really be, is a point; so is one that is smaller than the error of the PSF's width.
"""

from dataclasses import replace

import numpy as np

from .engine.rendering import half_light_radius, stamp_sizes
from .engine.shape_fit import broadened, shape_weight

__all__ = ["is_point", "point_sources"]

SMALLEST = 0.005  # arcsec, half-light radius: smaller ones are points
FAINT = 0.02  # of the peak: pixels fainter than this take no part


def point_sources(engine, mixtures, placed):
    """Compare fitted shapes with points at the same places, each with its own best flux.

    Parameters
    ----------
    engine : `~rosetta.deblending.engine.engine.Engine`
    mixtures : (n, K, 6) array
    placed : `~rosetta.deblending.engine.placement.Placement`
        On the sharpest image.

    Returns
    -------
    (n,) bool array
    """
    image, config = placed.image, engine.config
    shape, out = engine.render(mixtures, placed), np.zeros(len(mixtures), bool)
    flux, snr = engine.fluxes(shape, image)
    bright = np.flatnonzero(snr > config.point_snr)
    if len(bright) == 0:
        return out
    model, rest = shape.image(flux), shape.image(np.where(snr > config.point_snr, 0.0, flux))
    points, here = mixtures[bright], placed.of(bright)
    points[..., 3:] = 0.0
    alone = replace(here, image=image.with_pixels(image.data - rest, image.variance, sky_weight=image.sky_weight))
    breadth, _, _ = engine.fit_breadths(points, alone)
    points = broadened(points, np.maximum(breadth, 0.0), here, config)
    sizes = stamp_sizes(mixtures[bright], here.jacobian, image.psf, here.truncation)  # on the same pixels
    point, weight = engine.render(points, here, sizes=sizes), shape_weight(image, model, config)
    out[bright] = half_light_radius(mixtures[bright]) ** 2 < 2.0 * np.log(2.0) * placed.psf_blur
    for k, two in zip(bright, point.values, strict=True):
        one, (y0, y1, x0, x1) = shape.values[k], shape.bounds[k]
        cut = slice(y0, y1), slice(x0, x1)
        w = weight[cut] * ((one > FAINT * one.max()) | (two > FAINT * two.max()))
        n_pixel = np.count_nonzero(w)
        if n_pixel == 0:
            continue
        own = image.data[cut] - model[cut] + flux[k] * one
        worse, best = _chi2(two, own, w), _chi2(one, own, w)
        out[k] |= worse <= best + config.point_chi2 * max(best / n_pixel, 1.0)
    return out


def is_point(mixtures):
    """Which mixtures (n, K, 6) are those of points, (n,) bool."""
    return half_light_radius(mixtures) < SMALLEST


def _chi2(values, data, weight):
    """Of an image of free, positive flux."""
    flux = max((weight * values * data).sum() / (weight * values**2).sum(), 0.0)
    return (weight * (data - flux * values) ** 2).sum()
