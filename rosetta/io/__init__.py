# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Survey files to images, by header, never by guess; and pairs in files of their own."""

from . import euclid, pair, rubin
from ._pair import read_pair

__all__ = ["euclid", "pair", "read_pair", "rubin"]
