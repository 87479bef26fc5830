# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The catalogue of fluxes, and the model of their errors."""
