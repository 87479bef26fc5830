# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Readers of survey files, which trust the header alone and never guess; pair files."""

from . import euclid, pair, rubin
from ._pair import read_pair
from .image import read_image

__all__ = ["euclid", "pair", "read_image", "read_pair", "rubin"]
