# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Weights of pixels by the variance of the sky alone."""

import numpy as np

__all__ = ["sky_weight"]

SKY_BLOCK = 12.8  # arcsec: the sky level's variance is taken as constant over this


def sky_weight(data, variance, pixel_scale):
    """Weights without the sources' own photon noise.

    Weights that include source photon noise down-weight the core, so that an imperfect PSF or template biases the
    flux through the wings; in fits with flat weights a misfit has no first-order effect on the flux.

    Parameters
    ----------
    data, variance : (ny, nx) array
        The variance is infinite where a pixel must not be used.
    pixel_scale : float
        arcsec.

    Returns
    -------
    (ny, nx) float array
        Inverse variance of the sky level (the lower quartile of blocks); the inverse of the full variance where
        that is larger than the sky and the light seen there explain; 0 where invalid.
    """
    ny, nx = variance.shape
    usable = np.isfinite(variance) & (variance > 0)
    block = max(16, round(SKY_BLOCK / pixel_scale))
    sky = np.ones((ny, nx))
    for y0 in range(0, ny, block):
        for x0 in range(0, nx, block):
            cut = (slice(y0, y0 + block), slice(x0, x0 + block))
            if usable[cut].any():
                sky[cut] = np.quantile(variance[cut][usable[cut]], 0.25)
    bright = usable & (data > 10.0 * np.sqrt(sky))
    gain = 0.0  # variance per light, nJy
    if bright.any():
        gain = max(0.0, float(np.median((variance[bright] - sky[bright]) / data[bright])))
    explained = 2.0 * sky + 3.0 * gain * np.maximum(data, 0.0)
    return np.where(usable, 1.0 / np.where(variance > explained, variance, sky), 0.0)
