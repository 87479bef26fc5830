# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The frozen encoder: windows, network, pretraining, inference and novelty."""
