# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Weights of pixels for fits: what the sky alone leaves uncertain."""

import numpy as np

__all__ = ["sky_weight"]

SKY_BLOCK = 12.8  # arcsec: the sky level's variance is taken as constant over this


def sky_weight(plane):
    """Weights that do not know the sources' own photon noise.

    Where a PSF or a template is wrong, inverse variances that include a source's photons give its wings
    the say over its flux. Flat weights leave a misfit's first-order effect out of it.

    Parameters
    ----------
    plane : `~rosetta.images.image.BandImage`

    Returns
    -------
    (ny, nx) float array
        Inverse variance of the sky level (the lower quartile of blocks); the inverse of the full variance where
        that is larger than the sky and the light seen there explain; 0 where invalid.
    """
    ny, nx = plane.shape
    usable = plane.valid & np.isfinite(plane.variance) & (plane.variance > 0)
    block = max(16, round(SKY_BLOCK / plane.pixel_scale))
    sky = np.ones((ny, nx))
    for y0 in range(0, ny, block):
        for x0 in range(0, nx, block):
            cut = (slice(y0, y0 + block), slice(x0, x0 + block))
            if usable[cut].any():
                sky[cut] = np.quantile(plane.variance[cut][usable[cut]], 0.25)
    bright = usable & (plane.data > 10.0 * np.sqrt(sky))
    gain = 0.0  # variance per light, nJy
    if bright.any():
        gain = max(0.0, float(np.median((plane.variance[bright] - sky[bright]) / plane.data[bright])))
    explained = 2.0 * sky + 3.0 * gain * np.maximum(plane.data, 0.0)
    return np.where(usable, 1.0 / np.where(plane.variance > explained, plane.variance, sky), 0.0)
