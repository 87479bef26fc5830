# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The main job over an area: ``rosetta survey``."""
