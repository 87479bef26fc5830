# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The main job, the files it writes, and the comparison of its results with a known truth."""
