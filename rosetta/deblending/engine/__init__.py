# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The numerical core of deblending: rendering, shape fits and flux solutions, on arrays alone."""
