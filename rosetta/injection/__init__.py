# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Simulated sources put into real images, and how well they are measured there (needs the extra ``sim``)."""
