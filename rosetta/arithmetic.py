# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What a program has set for all floating-point arithmetic, set aside while the library computes."""

import sys
from functools import wraps

import numpy as np

__all__ = ["plain_arithmetic"]


def plain_arithmetic(function):
    """A function that computes with numpy's and torch's defaults, whatever its caller has set.

    ``numpy.seterr(all="raise")`` would make an error of every exponential that underflows, and another default dtype of
    torch other networks of the same weights. The caller finds both as they were.
    """

    @wraps(function)
    def wrapped(*args, **kwargs):
        torch = sys.modules.get("torch")  # what is not imported has no state, and is slow to import
        before = None if torch is None else torch.get_default_dtype()
        other = before is not None and before != torch.float32
        with np.errstate(divide="warn", over="warn", invalid="warn", under="ignore"):
            try:
                if other:
                    torch.set_default_dtype(torch.float32)
                return function(*args, **kwargs)
            finally:
                if other:
                    torch.set_default_dtype(before)

    return wrapped
