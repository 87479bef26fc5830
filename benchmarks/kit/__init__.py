# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the benchmarks share: simulated sky, statistics, tables, models, and other tools under one signature each."""
