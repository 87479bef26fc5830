# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The main job: run, products, comparison with a known truth."""
