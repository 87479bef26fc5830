# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What every test shares: no window system, one thread, no downloads."""

import os

os.environ.setdefault("MPLBACKEND", "agg")
# Small tensors: threads cost more than they bring, and a test run shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from astropy.utils.iers import conf as iers_conf  # noqa: E402

iers_conf.auto_download = False
