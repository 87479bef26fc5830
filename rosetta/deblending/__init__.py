# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Whose light is it: templates, shape fits and fluxes of overlapping sources."""
