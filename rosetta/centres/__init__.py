# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The learned detector: a network that marks the centres of sources on all bands together."""
