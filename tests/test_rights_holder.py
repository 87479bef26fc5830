# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Figures of quality of a field that may not be shared."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.table import QTable, Table

TOOL = Path(__file__).parent.parent / "tools" / "rights_holder.py"
pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="no checkout: tools are not installed")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("rights_holder", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gaia_stars_are_moved_to_the_epoch(tool, tmp_path):
    """Stars that moved by up to 0.3 arcsec since Gaia's epoch; the catalogue is 30 mas east, 20 mas south of them."""
    rng = np.random.default_rng(1)
    then = SkyCoord(53.1 + rng.uniform(-0.02, 0.02, 12), -28.1 + rng.uniform(-0.02, 0.02, 12), unit="deg")
    motion = rng.uniform(-30, 30, (12, 2))  # mas / yr
    now = then.spherical_offsets_by(*(10 * motion.T + np.array([[30.0], [-20.0]])) * u.mas)
    gaia = Table({"ra": then.ra.deg, "dec": then.dec.deg, "pmra": motion[:, 0], "pmdec": motion[:, 1]})
    gaia["ref_epoch"] = 2016.0
    gaia["pmra"][0] = np.nan  # a source without a proper motion does not count
    gaia.write(tmp_path / "gaia.ecsv")
    result = SimpleNamespace(catalog=QTable({"sky_centroid": now}), offsets=None, pair=SimpleNamespace(space={}))
    found = tool.about_gaia(result, tmp_path / "gaia.ecsv", 2026.0)
    assert found["n_gaia_with_motion"] == found["space"]["n"] == 11
    np.testing.assert_allclose(found["space"]["median_east_north"], [30, -20], atol=0.1)
    np.testing.assert_allclose(found["space"]["nmad_east_north"], 0, atol=0.1)
    gaia.remove_column("pmdec")
    gaia.write(tmp_path / "short.ecsv")
    with pytest.raises(ValueError, match="short.ecsv lacks pmdec"):
        tool.about_gaia(result, tmp_path / "short.ecsv", 2026.0)


def test_residuals_tell_how_noise_is_correlated(tool):
    """Noise that is the mean of two neighbours along x, on half of a pixel's true variance."""
    white = np.random.default_rng(2).normal(size=(300, 301))
    noise = (white[:, 1:] + white[:, :-1]) / np.sqrt(2)
    image = CCDData(noise, unit=u.nJy, uncertainty=VarianceUncertainty(np.full(noise.shape, 0.5)),
                    mask=np.zeros(noise.shape, bool))  # fmt: skip
    scene = SimpleNamespace(residual=lambda band: image)
    found = tool.about_residuals(SimpleNamespace(pair=SimpleNamespace(bands=("r",)), scene=scene))["r"]
    assert found["chi2"] == pytest.approx(2, abs=0.05) and found["nmad"] == pytest.approx(2**0.5, abs=0.03)
    np.testing.assert_allclose(found["autocorrelation_x"], [0.5, 0, 0, 0, 0], atol=0.015)
    np.testing.assert_allclose(found["autocorrelation_y"], 0, atol=0.015)


def test_what_is_not_finite_is_null(tool):
    assert json.dumps(tool.plain({"a": np.float32(np.nan), "b": [np.int64(1), np.inf, True]})) == (
        '{"a": null, "b": [1, null, true]}'
    )
