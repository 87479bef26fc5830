# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Photon noise of added light: its variance per flux, read off an image's own variance map or inferred from its sky."""

import numpy as np

from ..flags import Flag
from ..simulate.noise import source_variance

__all__ = ["photon_noise"]

BRIGHT = 10.0  # sigma of the sky above which pixels tell
ENOUGH = 50  # such pixels
STEP = 128  # pixels: the sky's variance is taken as constant over this


def photon_noise(image):
    """How much variance a flux brings.

    Parameters
    ----------
    image : `~rosetta.images.image.BandImage`

    Returns
    -------
    per_flux : float
        Variance (nJy^2) per flux (nJy).
    origin : {"variance map", "sky brightness"}
        Where it is read: off the variances of bright pixels; or from the noise of the sky and the brightness that the
        night sky or the zodiacal light has at this wavelength, where they do not tell.
    in_variance : bool
        Whether the image's variances hold the photon noise of sources. If they demonstrably do not (there are bright
        pixels without, or the variance was measured as one number for all pixels), those of injected ones must not
        either: real sources have none.
    """
    data, variance, sky = image.data, image.variance, np.full(image.shape, np.inf)
    for y in range(0, image.shape[0], STEP):
        for x in range(0, image.shape[1], STEP):
            cut = (slice(y, y + STEP), slice(x, x + STEP))
            if image.valid[cut].any():
                sky[cut] = np.quantile(variance[cut][image.valid[cut]], 0.25)
    sigma = float(np.sqrt(np.median(sky[image.valid])))
    by_sky = float(source_variance(1.0, sigma, image.pixel_scale, image.wavelength, image.side == "ground"))
    if Flag.VARIANCE_ESTIMATED in image.flags:
        return by_sky, "sky brightness", False
    bright = image.valid & (data > BRIGHT * np.sqrt(sky))
    if bright.sum() < ENOUGH:
        return by_sky, "sky brightness", True
    slope = (variance[bright] - sky[bright]) / data[bright]
    low, middle = np.quantile(slope, [0.25, 0.5])
    # A thousandth of what the sky predicts is the scatter of the map.
    if low > 1e-3 * by_sky:
        return float(middle), "variance map", True
    return by_sky, "sky brightness", False
