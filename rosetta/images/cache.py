# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What is worked out of an image once and asked for often."""

from functools import lru_cache, wraps

import numpy as np

__all__ = ["cached_by_pixels"]


def cached_by_pixels(function):
    """Decorate a function of an image (a PSF, say) and hashable arguments: equal pixels have equal results."""

    @lru_cache(maxsize=64)
    def known(shape, raw, *args):
        return function(np.frombuffer(raw).reshape(shape), *args)

    @wraps(function)
    def wrapped(image, *args):
        image = np.ascontiguousarray(image, dtype=float)
        return known(image.shape, image.tobytes(), *args)

    return wrapped
