# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What every test shares: no window system, one thread, no downloads."""

import os

os.environ.setdefault("MPLBACKEND", "agg")
# Small tensors: threads cost more than they bring, and a test run shares its machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from astropy.utils.iers import conf as iers_conf  # noqa: E402

iers_conf.auto_download = False

import astropy.units as u  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from astropy.nddata import NDData, StdDevUncertainty  # noqa: E402
from astropy.wcs import WCS  # noqa: E402

CENTER = (53.1, -28.1)  # degrees


@pytest.fixture
def make_wcs():
    """North-up TAN WCS of an n x n image about ``CENTER``, moved by ``shift`` pixels (x, y)."""

    def make(n, scale, shift=(0.0, 0.0), center=CENTER):
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.cunit = ["deg", "deg"]
        wcs.wcs.crval = center
        wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
        wcs.wcs.crpix = [(n + 1) / 2 + shift[0], (n + 1) / 2 + shift[1]]
        wcs.array_shape = (n, n)
        return wcs

    return make


class CountingWCS:
    """A WCS that notes in a list what it is asked."""

    def __init__(self, wcs, asked):
        self._wcs, self._asked = wcs, asked

    def __getattr__(self, name):
        self._asked.append(name)
        return getattr(self._wcs, name)


@pytest.fixture
def counting_wcs():
    return CountingWCS


@pytest.fixture
def make_image(make_wcs):
    """A blank noisy image in nJy: ``make_image(n, scale)``; any part can be replaced."""

    def make(n, scale, *, sigma=1.0, seed=0, unit=u.nJy, **parts):
        data = np.random.default_rng(seed).normal(0, sigma, (n, n)).astype(np.float32)
        given = {
            "data": data,
            "uncertainty": StdDevUncertainty(np.full((n, n), sigma, np.float32)),
            "wcs": make_wcs(n, scale),
            "unit": unit,
        }
        return NDData(**{**given, **parts})

    return make


@pytest.fixture
def tiny_encoder():
    """An untrained encoder small enough for tests."""
    from rosetta import CrossSurveyEncoder
    from rosetta.encoding.network import EncoderConfig

    config = EncoderConfig(
        dim=384, depth=1, heads=6, proj_dim=256, predictor_dim=32, predictor_depth=1, predictor_heads=2
    )
    return CrossSurveyEncoder(config=config, seed=1, device="cpu")
