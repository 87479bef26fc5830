# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The two surveys on one frame: measured offsets, their fields, corrected WCS."""
