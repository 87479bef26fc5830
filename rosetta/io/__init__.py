# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Readers of image files, which trust the header alone and never guess; pair files; surveys in TOML files."""

from . import euclid, pair, rubin
from ._pair import read_pair
from .image import read_image
from .survey_file import read_survey

__all__ = ["euclid", "pair", "read_image", "read_pair", "read_survey", "rubin"]
