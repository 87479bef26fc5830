# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The machinery in torch, numpy and scipy; knows nothing of astropy, units or the sky."""
