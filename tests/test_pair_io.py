# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Pair files: everything a measurement rests on comes back as it went in."""

import gzip
import hashlib
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import NDData, VarianceUncertainty
from astropy.time import Time
from astropy.wcs import WCS, Sip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rosetta import HSC, HST_ACS, PSF, Flag, SkyPair, Survey
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
    with pytest.raises(ValueError, match="newer than 3: upgrade"):
        pair_io.read(tmp_path / "pair.fits")


def test_a_survey_of_ones_own_is_stored_whole(make_image, tmp_path):
    """All of its numbers, to the last digit; also of one that bears the name of a shipped one."""
    band = Band(
        "w_1", 1 / 3 * u.um, 100.0 * u.nm, 1 * u.arcsec, 25.1, aliases=("w+", "w"), sky=21.3,
        native_pixel=0.1 * u.arcsec,
    )
    own = Survey("mine", (band,), 1 / 7 * u.arcsec, bad_planes=("BAD",), saturation=16.0)
    other = replace(RUBIN, saturation=15.0)
    pair = SkyPair({"w+": make_image(48, 0.2)}, {"r": make_image(48, 0.2)}, surveys=(own, other))
    pair_io.write(pair, tmp_path / "pair.fits")
    back = pair_io.read(tmp_path / "pair.fits")
    assert back.surveys == (own, other)
    assert back.surveys[0].pixel_scale.unit == u.arcsec and back.surveys[1] != RUBIN
    assert_same(pair, back)


def test_notes_and_times_survive(make_image, tmp_path):
    when = Time("2025-03-04T05:06:07.123456789", scale="tai")
    wcs = make_image(48, 0.2).wcs
    times = {
        "dateobs": "2025-03-04T05:06:07.123456789", "mjdobs": 60738.2125824474375, "mjdavg": 60738.25, "timesys": "TAI",
        "dateavg": "2025-03-04T06:00:00.5", "mjdbeg": 60738.2, "mjdend": 60738.3, "xposure": 30.5,
    }
    for name, value in times.items():
        setattr(wcs.wcs, name, value)
    meta = {
        "DATE-OBS": times["dateobs"], "when": when, "whens": when + [0, 1] * u.s, "exposure": 30 * u.s, "n": [1, None],
        "Time": ["mine"], "note": {"Quantity": 5}, "blank": "",
    }
    pair = SkyPair({"r": make_image(48, 0.2, wcs=wcs, meta=meta)})
    pair_io.write(pair, tmp_path / "pair.fits")
    back = pair_io.read(tmp_path / "pair.fits").ground["r"]
    for name, value in times.items():
        assert getattr(back.wcs.wcs, name) == value, name
    notes = back.meta
    whens = notes.pop("whens")
    assert (whens == meta.pop("whens")).all() and whens.scale == "tai"
    assert notes == meta
    assert abs(notes["when"] - when).to_value("ns") == 0
    wrong = SkyPair({"r": make_image(48, 0.2, meta={(1, 2): 3})})
    with pytest.raises(ValueError, match="meta cannot be stored .*use strings as keys"):
        pair_io.write(wrong, tmp_path / "other.fits")


def test_a_file_is_replaced_only_on_demand(make_image, tmp_path):
    path = tmp_path / "pair.fits"
    one, two = (SkyPair({"r": make_image(48, 0.2, seed=seed)}) for seed in (1, 2))
    pair_io.write(one, path)
    with pytest.raises(FileExistsError, match="pair.fits' exists: choose another name, or give overwrite=True"):
        pair_io.write(two, path)
    assert_same(one, pair_io.read(path))
    pair_io.write(two, path, overwrite=True)
    assert_same(two, pair_io.read(path))
    assert [p.name for p in tmp_path.iterdir()] == ["pair.fits"]


def test_a_file_lists_what_it_holds(make_image, tmp_path):
    pair = SkyPair({"r": make_image(48, 0.2, psf=gaussian(21, 1.9))}, {"VIS": make_image(96, 0.1)})
    pair_io.write(pair, tmp_path / "pair.fits")
    with fits.open(tmp_path / "pair.fits") as hdus:
        contents = hdus["CONTENTS"].data
        listed = list(zip(contents["name"], contents["version"], contents["kind"], strict=True))
        assert [(hdu.name, hdu.ver) for hdu in hdus[1:-1]] == [row[:2] for row in listed]
    assert ("SCI_R", 1, "image") in listed and ("VAR_VIS", 2, "image") in listed and ("SURVEYS", 1, "table") in listed


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    y, x = np.mgrid[:48, :48]
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [10, -5], [-0.2 / 3600, 0.2 / 3600]
    image = NDData(
        np.sin(x * y), uncertainty=VarianceUncertainty(np.ones((48, 48))), unit=u.nJy, wcs=wcs, psf=gaussian(21, 1.9)
    )
    path = tmp_path_factory.mktemp("stored") / "pair.fits"
    pair_io.write(SkyPair({"r": image, "i": image}), path)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), head=st.booleans(), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_wherever_it_is(stored, tmp_path, share, head, bit):
    content = bytearray(stored.read_bytes())
    # Half of them in the primary header, where the sum itself stands.
    content[int(share * (1000 if head else len(content)))] ^= 1 << bit
    (tmp_path / "flip.fits").write_bytes(content)
    with pytest.raises(ValueError, match="flip.fits"):
        pair_io.read(tmp_path / "flip.fits")


@pytest.mark.parametrize("compressed", [False, True])
def test_the_checksum_is_that_of_the_file(stored, tmp_path, compressed):
    """With 64 zeros in its place, as `sha256sum` would give it; in a compressed file, of what is in it."""
    path = tmp_path / f"pair.fits{'.gz' if compressed else ''}"
    pair = pair_io.read(stored)
    pair_io.write(pair, path)
    assert_same(pair, pair_io.read(path))
    content = gzip.decompress(path.read_bytes()) if compressed else path.read_bytes()
    assert content[:6] == b"SIMPLE"
    with fits.open(path) as hdus:
        found = hdus[0].header["SHA256"]
    assert found == hashlib.sha256(content.replace(found.encode(), b"0" * 64)).hexdigest()


def _without_a_mask(hdus):
    hdus.pop(3)
    hdus[0].header["NUMEXT"] -= 1


def _without_a_checksum(hdus):
    del hdus[0].header["SHA256"]


def _swapped(hdus):
    hdus["SCI_R"].data, hdus["SCI_I"].data = hdus["SCI_I"].data + 1, hdus["SCI_R"].data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hdus: setattr(hdus["SCI_R"], "name", "SCI_G"), "SCI_R is missing, SCI_G does not belong to it"),
        (_without_a_mask, "its checksum is another one, MASK_R is missing"),
        (lambda hdus: hdus.pop(3), "is not complete: it holds"),
        (lambda hdus: hdus[0].header.set("GROUND", "HSC"), "its checksum is another one; download or write it again"),
        (_swapped, "its checksum is another one"),
        (_without_a_checksum, "its checksum is another one"),
        (lambda hdus: hdus.append(fits.ImageHDU(name="MORE")), "is not complete: it holds"),
    ],
)  # fmt: skip
def test_a_changed_file_is_refused(stored, tmp_path, change, message):
    with fits.open(stored) as hdus:
        change(hdus)
        hdus.writeto(tmp_path / "changed.fits")
    with pytest.raises(ValueError, match=f"changed.fits .*{message}"):
        pair_io.read(tmp_path / "changed.fits")


def test_older_formats_are_read(make_image, tmp_path):
    """Format 2, without a checksum and with the names of the surveys only; format 1, without flags and notes."""
    psf = PSF.on_grid(np.array([[gaussian(21, 1.9), gaussian(21, 2.2)]]), [0, 47], [20])
    pair = SkyPair({"r": make_image(48, 0.2, psf=psf, meta={"visit": 7})}, {"VIS": make_image(96, 0.1)})
    for version in (2, 1):
        hdus = [hdu for hdu in pair_io.hdus_of(pair) if hdu.name != "SURVEYS"]
        hdus[0].header["RSTFMT"] = version
        for hdu in hdus:
            if hdu.name == "CELLS_R":
                hdu.name = "PSF_PARTS_R"
            if version == 1 and hdu.name.startswith("SCI"):
                del hdu.header["FLAGS"]
        if version == 1:
            hdus = [hdu for hdu in hdus if hdu.name != "PAIR_META"]
        fits.HDUList(hdus).writeto(tmp_path / f"{version}.fits")
        back = pair_io.read(tmp_path / f"{version}.fits")
        assert_same(pair, back)
        assert back.surveys == pair.surveys
        np.testing.assert_allclose(back.psf("r").at(40, 3), pair.psf("r").at(40, 3))
        assert version == 1 or back.ground["r"].meta == {"visit": 7}
