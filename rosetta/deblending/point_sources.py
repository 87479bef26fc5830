# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Which fitted sources are points.

The family of shapes reaches a point only in the limit, and a fit that began at the moments of a saturated core, or that
takes an error of the PSF for a shape, never gets there. A source that a point describes as well, seen by a PSF as broad
as it may really be, is a point.
"""

from dataclasses import replace

import numpy as np

from .engine.fluxes import amplitudes
from .engine.rendering import stamp_sizes
from .engine.shape_fit import breadths, broadened, design_of, shape_weight

__all__ = ["point_sources"]

BRIGHT = 20.0  # S/N below which the smallest galaxies can pass for points
TOLERANCE = 4.0  # chi2, in units of what a pixel has where the shape is fitted: two sigma
FAINT = 0.02  # of the peak: pixels fainter than this take no part


def point_sources(mixtures, image):
    """Compare fitted shapes with points at the same places, each with its own best flux.

    Parameters
    ----------
    mixtures : (n, K, 6) array
    image : `~rosetta.deblending.engine.shape_fit.Image`
        The sharpest one.

    Returns
    -------
    (n,) bool array
    """
    shape, out = design_of(mixtures, image), np.zeros(len(mixtures), bool)
    flux, snr = amplitudes(shape, image.data, image.weight)
    bright = np.flatnonzero(snr > BRIGHT)
    if len(bright) == 0:
        return out
    model, rest = shape.image(flux), shape.image(np.where(snr > BRIGHT, 0.0, flux))
    points, here = mixtures[bright], image.of(bright)
    points[..., 3:] = 0.0
    breadth, _, _ = breadths(points, replace(here, data=image.data - rest))
    points = broadened(points, np.maximum(breadth, 0.0), image.gradient, image.blur)
    sizes = stamp_sizes(mixtures[bright], here.jacobian, here.psf, here.truncation)  # on the same pixels
    point, weight = design_of(points, here, sizes), shape_weight(image, model)
    for k, two in zip(bright, point.values, strict=True):
        one, (y0, y1, x0, x1) = shape.values[k], shape.bounds[k]
        cut = slice(y0, y1), slice(x0, x1)
        w = weight[cut] * ((one > FAINT * one.max()) | (two > FAINT * two.max()))
        n_pixel = np.count_nonzero(w)
        if n_pixel == 0:
            continue
        own = image.data[cut] - model[cut] + flux[k] * one
        worse, best = _chi2(two, own, w), _chi2(one, own, w)
        out[k] = worse <= best + TOLERANCE * max(best / n_pixel, 1.0)
    return out


def _chi2(values, data, weight):
    """Of an image of free, positive flux."""
    flux = max((weight * values * data).sum() / (weight * values**2).sum(), 0.0)
    return (weight * (data - flux * values) ** 2).sum()
