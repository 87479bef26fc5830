# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Readers of image files, which trust the header alone and never guess; files of pairs, catalogues and surveys."""

from . import euclid, pair, rubin
from ._pair import read_pair
from .catalogue import read_catalogue, write_catalogue
from .image import read_image
from .survey_file import read_survey

__all__ = [
    "euclid", "pair", "read_catalogue", "read_image", "read_pair", "read_survey", "rubin", "write_catalogue",
]  # fmt: skip
