# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Which source each pixel of an image belongs to."""

import numpy as np

__all__ = ["label_map"]


def label_map(models, sky_weight, threshold):
    """Labels of the sources that are brightest in each pixel.

    Parameters
    ----------
    models : iterable
        Of (label, (x, y), image) for each source: its model in the pixels of which (x, y) is the first, inside the
        image.
    sky_weight : (ny, nx) array
        Inverse variance of the sky.
    threshold : float
        In standard deviations of the sky in a pixel; no source owns pixels in which its model is fainter.

    Returns
    -------
    (ny, nx) int32 array
        0: of no source.
    """
    labels = np.zeros(sky_weight.shape, np.int32)
    least = np.full(sky_weight.shape, np.inf)
    np.divide(threshold, np.sqrt(sky_weight), out=least, where=sky_weight > 0)
    for label, (x, y), image in models:
        cut = slice(y, y + image.shape[0]), slice(x, x + image.shape[1])
        brighter = image > least[cut]
        labels[cut][brighter] = label
        least[cut][brighter] = image[brighter]
    return labels
