# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Other tools, called as the benchmarks call this library."""
