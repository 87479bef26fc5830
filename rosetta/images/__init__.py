# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Images as arrays: `BandImage`, its PSF, sky weight, WCS, noise and resampling."""
