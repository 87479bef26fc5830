# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Survey files to images, by header, never by guess."""

from . import euclid, rubin
from ._pair import read_pair

__all__ = ["euclid", "read_pair", "rubin"]
