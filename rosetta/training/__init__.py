# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What all heads share when they are trained: their rows, and the loop."""
