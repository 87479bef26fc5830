# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Images as arrays: one carrier, its PSF, sky weight, noise and grids."""
