# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Pair files: everything a measurement rests on comes back as it went in."""

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import Sip

from rosetta import HSC, HST_ACS, Flag, SkyPair, Survey
from rosetta.io import pair as pair_io
from rosetta.surveys import RUBIN, Band


def gaussian(size, sigma, shift=0.3):
    y, x = np.mgrid[:size, :size] - size // 2
    return np.exp(-((x - shift) ** 2 + y**2) / (2 * sigma**2))


def assert_same(one, two):
    assert one.bands == two.bands
    assert [s.name for s in one.surveys] == [s.name for s in two.surveys]
    assert dict(one.flags) == dict(two.flags)
    for (_, band, a), (_, _, b) in zip(one.images(), two.images(), strict=True):
        np.testing.assert_array_equal(a.data, b.data, err_msg=band)
        np.testing.assert_array_equal(a.uncertainty.array, b.uncertainty.array, err_msg=band)
        np.testing.assert_array_equal(a.mask, b.mask, err_msg=band)
        assert b.data.dtype.isnative
        if a.psf is None:
            assert b.psf is None
        else:
            np.testing.assert_allclose(a.psf, b.psf, rtol=1e-12, atol=0)
        x, y = np.array([0.0, 3.3, 40.0]), np.array([0.0, 30.0, 7.7])
        assert a.wcs.pixel_to_world(x, y).separation(b.wcs.pixel_to_world(x, y)).to_value(u.mas).max() < 1e-3


def test_round_trip(make_image, tmp_path):
    masked = np.zeros((48, 48), bool)
    masked[3, 5] = True
    sip = make_image(48, 0.2).wcs
    sip.sip = Sip(np.array([[0, 0, 2e-4], [0, 0, 0], [0, 0, 0]]), np.zeros((3, 3)), None, None, sip.wcs.crpix)
    sip.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    pair = SkyPair(
        ground={
            "y": make_image(48, 0.2, mask=masked, psf=gaussian(21, 1.9)),
            "g": make_image(48, 0.2, wcs=sip, seed=2),
        },
        space={"VIS": make_image(96, 0.1, uncertainty=None, seed=3), "Y": make_image(96, 0.1, seed=4)},
    )
    assert pair.flags["VIS"] & Flag.VARIANCE_ESTIMATED
    pair_io.write(pair, tmp_path / "pair.fits")
    assert_same(pair, pair_io.read(tmp_path / "pair.fits"))
    assert [p.name for p in tmp_path.iterdir()] == ["pair.fits"]


def test_one_side_and_other_surveys(make_image, tmp_path):
    pair = SkyPair(None, {"F814W": make_image(96, 0.03)}, surveys=(HSC, HST_ACS))
    pair_io.write(pair, tmp_path / "pair.fits")
    back = pair_io.read(tmp_path / "pair.fits")
    assert back.ground is None
    assert_same(pair, back)


def test_refusals(make_image, tmp_path):
    with pytest.raises(TypeError, match="pair must be a SkyPair, got dict"):
        pair_io.write({}, tmp_path / "pair.fits")
    band = Band("X", 700 * u.nm, 100 * u.nm, 1 * u.arcsec, 25.0)
    own = Survey("mine", (band,), 0.2 * u.arcsec)
    pair = SkyPair({"X": make_image(48, 0.2)}, None, surveys=(own, RUBIN))
    with pytest.raises(ValueError, match="'mine', which does not ship with rosetta"):
        pair_io.write(pair, tmp_path / "pair.fits")
    distorted = make_image(48, 0.2)
    table = np.zeros((2, 2), np.float32)
    from astropy.wcs import DistortionLookupTable

    distorted.wcs.cpdis1 = DistortionLookupTable(table, (1, 1), (1, 1), (47, 47))
    with pytest.raises(ValueError, match="not a plain FITS WCS"):
        pair_io.write(SkyPair({"g": distorted}, None), tmp_path / "pair.fits")
    assert not list(tmp_path.iterdir())


def test_a_damaged_header_is_a_value_error(make_image, tmp_path):
    pair_io.write(SkyPair({"r": make_image(64, 0.2)}, None), tmp_path / "p.fits")
    for where, card, value in ((0, "RSTFMT", "x"), (1, "BAND", None)):
        with fits.open(tmp_path / "p.fits") as hdus:
            if value is None:
                del hdus[where].header[card]
            else:
                hdus[where].header[card] = value
            hdus.writeto(tmp_path / "q.fits", overwrite=True)
        with pytest.raises(ValueError, match="q.fits"):
            pair_io.read(tmp_path / "q.fits")


def test_not_a_pair_file(make_image, tmp_path):
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "image.fits")
    with pytest.raises(ValueError, match="image.fits is not a rosetta pair file"):
        pair_io.read(tmp_path / "image.fits")
    pair_io.write(SkyPair({"g": make_image(48, 0.2)}, None), tmp_path / "pair.fits")
    content = (tmp_path / "pair.fits").read_bytes()
    (tmp_path / "cut.fits").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cut.fits is not a complete FITS file"):
        pair_io.read(tmp_path / "cut.fits")
    with fits.open(tmp_path / "pair.fits", mode="update") as hdus:
        hdus[0].header["RSTFMT"] = 99
    with pytest.raises(ValueError, match="newer than 2: upgrade"):
        pair_io.read(tmp_path / "pair.fits")
