# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Results that are worked out once and asked for often."""

from functools import lru_cache, wraps
from weakref import WeakKeyDictionary

import numpy as np

__all__ = ["cached_by_pixels", "once_per_pair"]


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


def once_per_pair(function):
    """Decorate a function of a pair and hashable arguments: pairs never change, so results live as long as they do."""
    known = WeakKeyDictionary()

    @wraps(function)
    def wrapped(pair, *args):
        results = known.setdefault(pair, {})
        if args not in results:
            results[args] = function(pair, *args)
        return results[args]

    return wrapped
