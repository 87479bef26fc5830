# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The sky's variance as weights of pixels, and whether its light was subtracted."""

import numpy as np

__all__ = ["sky_weight", "unsubtracted"]

SKY_BLOCK = 12.8  # arcsec: the sky level's variance is taken as constant over this
RESIDUAL = 1.0  # sigma per pixel: surveys leave a twentieth of it
ONE_SIGN = 0.95  # share of the pixels
PIXELS = 2**20  # the level is measured on at most about as many


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


def unsubtracted(data, weight):
    """The level of a sky that was not subtracted, or subtracted wrongly: nearly all pixels have its sign.

    Parameters
    ----------
    data, weight : (ny, nx) array
        Weights are inverse variances of the sky, 0 where a pixel must not be used.

    Returns
    -------
    level, noise : float
        In the unit of the data, per pixel; a level of 0 where there is nothing to notice.
    """
    step = max(1, int(np.sqrt(data.size / PIXELS)))
    data, weight = data[::step, ::step], weight[::step, ::step]
    used = weight > 0
    if not used.any():
        return 0.0, 0.0
    level, noise = float(np.median(data[used])), float(1.0 / np.sqrt(np.median(weight[used])))
    alike = np.mean(np.sign(data[used]) == np.sign(level)) > ONE_SIGN
    return (level, noise) if alike and abs(level) > RESIDUAL * noise else (0.0, noise)
