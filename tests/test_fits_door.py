# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The door of all readers: sources, damage, physical values, and cards that say where the pixels are."""

import builtins
import bz2
import gzip
import io
import lzma
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from rosetta.io import _fits
from rosetta.io._fits import image_hdu, native, open_fits, source_name
from rosetta.io._wcs import celestial_wcs, region

DATA = np.random.default_rng(3).normal(size=(48, 64)).astype(np.float32)


def content(*hdus):
    """The bytes of a file."""
    hdus = hdus if isinstance(hdus[0], fits.PrimaryHDU) else (fits.PrimaryHDU(), *hdus)
    file = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(file)
    return file.getvalue()


def read(source, dtype=np.float32, slices=(slice(None), slice(None)), name=None):
    with open_fits(source, "path") as hdus:
        return native(image_hdu(hdus, "path", name), dtype, slices)


FILE = content(fits.ImageHDU(DATA, name="SCI"), fits.ImageHDU((DATA > 0).astype("u2"), name="DQ"))


# ---------------------------------------------------------------------------- sources
def test_every_source_gives_the_same_pixels(tmp_path):
    path = tmp_path / "image.fits"
    path.write_bytes(FILE)
    with fits.open(path) as hdus:
        sources = [path, str(path), FILE, bytearray(FILE), hdus]
        for source in sources:
            np.testing.assert_array_equal(read(source), DATA)
            # astropy itself refuses these in a memory map.
            np.testing.assert_array_equal(read(source, bool, name="DQ"), DATA > 0)
        assert [source_name(source) for source in sources] == ["image.fits"] * 2 + ["bytes"] * 2 + ["image.fits"]
        np.testing.assert_array_equal(hdus["SCI"].data, DATA)  # still open
    with pytest.raises(ValueError, match="the HDUList of SCI is closed"):
        read(fits.HDUList([hdus[0], hdus[1]]))
    in_memory = fits.HDUList([fits.PrimaryHDU(DATA)])
    np.testing.assert_array_equal(read(in_memory), DATA)
    assert source_name(in_memory) == "HDUList"


@pytest.mark.parametrize("source", [7, 0.5, None, DATA])
def test_other_sources_are_refused(source):
    with pytest.raises(TypeError, match="path must be the path of a FITS file, its URL, its bytes or an open HDUList"):
        read(source)


def test_url_reads_only_the_region(monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    asked = []

    def counted(paths, starts, ends, **options):
        asked.extend(end - start for start, end in zip(starts, ends, strict=True))
        return type(system).cat_ranges(system, paths, starts, ends, **options)

    monkeypatch.setattr(system, "cat_ranges", counted)
    wide = np.arange(3000 * 1000, dtype=np.float32).reshape(3000, 1000)
    with fsspec.open("memory://mosaic.fits", "wb") as file:
        file.write(content(fits.PrimaryHDU(wide)))
    with open_fits("memory://mosaic.fits", "path") as hdus:
        part = native(image_hdu(hdus, "path"), np.float32, (slice(1500, 1510), slice(20, 30)))
        np.testing.assert_array_equal(part, wide[1500:1510, 20:30])
        assert asked == [40] * 10  # bytes: ten pixels in each of ten rows
        whole_rows = native(image_hdu(hdus, "path"), np.float32, (slice(7, 9), slice(None)))
        np.testing.assert_array_equal(whole_rows, wide[7:9])
    assert source_name("https://server/a/mosaic.fits?token=1#part") == "mosaic.fits"
    with pytest.raises(FileNotFoundError):
        read("memory://missing.fits")


def test_url_without_fsspec_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name.partition(".")[0] == "fsspec":
            raise ImportError("No module named 'fsspec'", name=name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs the extra 'remote': pip install 'astro-rosetta\[remote\]'"):
        read("s3://bucket/image.fits")


# ---------------------------------------------------------------------------- damage
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_are_read_to_their_end(tmp_path, pack):
    packed = pack(FILE)
    np.testing.assert_array_equal(read(packed), DATA)
    np.testing.assert_array_equal(read(gzip.compress(packed)), DATA)
    path = tmp_path / "image.fits"  # what it is counts, not how it is called
    path.write_bytes(packed)
    np.testing.assert_array_equal(read(path), DATA)
    middle = len(packed) // 2
    broken = packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :]
    for damaged in (packed[:-1], packed[:middle], broken, gzip.compress(packed[:-9]), pack(FILE[:-2880]), pack(b"")):
        with pytest.raises(ValueError, match="path: bytes is not a complete FITS file"):
            read(damaged)


def test_compressed_files_are_bounded(monkeypatch):
    monkeypatch.setattr(_fits, "LIMIT", 2**20)
    with pytest.raises(ValueError, match="bytes unpacks to more than 0 GiB: unpack it yourself"):
        read(gzip.compress(FILE + bytes(2**21)))
    tiles = content(fits.CompImageHDU(np.zeros((1000, 1000), np.float32), name="SCI"))
    with pytest.raises(ValueError, match=r"bytes\[SCI\] unpacks to more than 0 GiB"):
        read(tiles)


def test_errors_of_the_disk_stay_what_they_are():
    with pytest.raises(FileNotFoundError), open_fits(FILE, "path"):
        Path("a file that is missing").read_bytes()


@pytest.mark.parametrize(
    "cards", [{"NAXIS1": -64}, {"NAXIS1": 0}, {"NAXIS1": 10**9}, {"NAXIS1": 10**18}, {"NAXIS1": "x"}, {"BITPIX": 7}]
)
def test_sizes_that_cannot_be(cards):
    header = fits.Header({"SIMPLE": True, "BITPIX": -32, "NAXIS": 2, "NAXIS1": 64, "NAXIS2": 48} | cards)
    with pytest.raises(ValueError, match="is not a complete FITS file|has no pixels"):
        read(header.tostring().encode() + DATA.astype(">f4").tobytes().ljust(5 * 2880, b"\0"))


@pytest.mark.parametrize(("card", "value"), [("ZNAXIS1", -4), ("ZNAXIS1", 6 * 10**7), ("ZNAXIS2", 10**7)])
def test_tiled_sizes_that_cannot_be(card, value):
    file = content(fits.CompImageHDU(DATA))
    n = {"ZNAXIS1": 64, "ZNAXIS2": 48}[card]
    old, new = (f"{card} = {number:>20}".encode() for number in (n, value))
    assert old in file
    with pytest.raises(ValueError, match="is not a complete FITS file|has no pixels|unpacks to more than"):
        read(file.replace(old, new))


# ---------------------------------------------------------------------------- physical values
KINDS = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8")


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1), tiled=st.booleans())
def test_integers_are_exact(kind, seed, tiled):
    limits = np.iinfo(kind)
    values = np.random.default_rng(seed).integers(limits.min, limits.max, (7, 9), kind, endpoint=True)
    tiled = tiled and kind in ("u1", "i2", "u2", "i4", "u4")
    file = content((fits.CompImageHDU if tiled else fits.ImageHDU)(values))
    window = (slice(2, 6), slice(1, 8))
    np.testing.assert_array_equal(read(file, np.int64, window), values[window].astype(np.int64))  # to the last bit
    np.testing.assert_array_equal(read(file, np.float32, window), values[window].astype(np.float32))
    np.testing.assert_array_equal(read(file, bool, window), values[window] != 0)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("blank", [0, -32768])
def test_scaled_integers_with_undefined_pixels(tiled, blank):
    stored = np.array([[5, 0], [-32768, 4]], np.int16)
    hdu = (fits.CompImageHDU if tiled else fits.ImageHDU)(stored)
    hdu.header["BLANK"] = blank
    plain = content(hdu)
    np.testing.assert_array_equal(read(plain, np.int64), np.where(stored == blank, -1, stored))
    hdu.header["BSCALE"], hdu.header["BZERO"] = 0.5, 3.0
    expected = np.where(stored == blank, np.nan, stored * 0.5 + 3.0)
    file = content(hdu)
    np.testing.assert_array_equal(read(file, np.float64), expected)
    if blank:
        with pytest.raises(ValueError, match="holds fractions, integers are needed"):
            read(file, np.int64)


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"BLANK": "-5"}, "BLANK='-5' is not a number"),
        ({"BSCALE": 0.0}, "BSCALE=0 makes all pixels equal"),
        ({"BSCALE": "2"}, "BSCALE='2' is not a number"),
    ],
)
def test_cards_of_scaling_that_cannot_be(tmp_path, cards, message):
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(np.arange(12, dtype="i2").reshape(3, 4)).writeto(path)
    added = b"".join(fits.Card(key, value).image.encode() for key, value in cards.items())
    end = b"END".ljust(80)
    path.write_bytes(path.read_bytes().replace(end + b" " * len(added), added + end, 1))
    with pytest.raises(ValueError, match=f"path: a.fits: {message}"):
        read(path)


@pytest.mark.parametrize(("key", "values"), [("BUNIT", ("nJy", "uJy")), ("MAGZERO", (25.0, 26.0)), ("BZERO", (0, 7))])
def test_cards_that_decide_stand_once(key, values):
    file = content(fits.ImageHDU(DATA))
    for second, refused in ((values[0], False), (values[1], True)):
        with open_fits(file, "path") as hdus:
            hdus[1].header.append((key, values[0]), end=True)
            hdus[1].header.append((key, second), end=True)
            if refused:
                with pytest.raises(ValueError, match=f"path: bytes: the header has {key} twice, with two values"):
                    image_hdu(hdus, "path")
            else:
                assert image_hdu(hdus, "path") is hdus[1]


@pytest.mark.parametrize(
    ("magic", "name"), [(b"PK\x03\x04", "zip"), (b"\x1f\x9d", "compress"), (b"\x28\xb5\x2f\xfd", "zstd")]
)
def test_other_compressions_are_named(magic, name):
    with pytest.raises(ValueError, match=f"path: bytes is packed with {name}, which is not read: unpack it first"):
        read(magic + FILE)


def test_a_first_axis_of_length_one_is_no_cube():
    with pytest.raises(ValueError, match=r"axes have lengths \[1, 64, 48\]: write it again with the sky along"):
        read(content(fits.ImageHDU(DATA[..., None])))


@pytest.mark.filterwarnings("ignore:Invalid 'BLANK' keyword")  # by which no floats are undefined
def test_scaled_floats():
    hdu = fits.ImageHDU(DATA)
    hdu.header["BSCALE"], hdu.header["BZERO"], hdu.header["BLANK"] = 2.0, 1.0, 0
    np.testing.assert_allclose(read(content(hdu)), 2 * DATA + 1, rtol=1e-6)
    hdu.header["BSCALE"] = "two"
    with pytest.raises(ValueError, match="BSCALE='two' is not a number|not a complete FITS file"):
        read(content(hdu))


def test_extra_axes():
    cube = np.arange(120.0).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(read(content(fits.ImageHDU(cube[:1, :1])), float), cube[0, 0])
    np.testing.assert_array_equal(
        read(content(fits.ImageHDU(cube[:1, :1])), float, (slice(1, 3), slice(2, 4))), cube[0, 0, 1:3, 2:4]
    )
    with pytest.raises(ValueError, match=r"it holds 6 planes \(axes \[5, 4, 3, 2\]\); choose one with .*plane=0 to 5"):
        read(content(fits.ImageHDU(cube)))
    with open_fits(content(fits.ImageHDU(cube)), "path") as hdus:
        hdu = image_hdu(hdus, "path", plane=4)
        np.testing.assert_array_equal(native(hdu, float, (1, 1, slice(1, 3), slice(None))), cube[1, 1, 1:3])
        with pytest.raises(ValueError, match="plane 6 is not in"):
            image_hdu(hdus, "path", plane=6)
    with pytest.raises(ValueError, match="has 1 axes, need 2"):
        read(content(fits.ImageHDU(cube[0, 0, 0])))


def test_extensions_by_name_number_and_version():
    file = content(*(fits.ImageHDU(DATA + k, name="SCI", ver=k) for k in (1, 2)))
    for name, k in (("sci", 1), (1, 1), (2, 2), (("SCI", 2), 2)):
        np.testing.assert_array_equal(read(file, name=name), DATA + k)
    with pytest.raises(ValueError, match=r"holds no image extension ERR \(it holds PRIMARY, SCI, SCI\)"):
        read(file, name="ERR")


# ---------------------------------------------------------------------------- where the pixels are
SCALE = 0.1 / 3600


def header(**cards):
    """A TAN header of 1000 x 800 pixels of 0.1 arcsec; None removes a card."""
    made = fits.Header(
        {"SIMPLE": True, "BITPIX": -32, "NAXIS": 2, "NAXIS1": 1000, "NAXIS2": 800}
        | {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 500.5, "CRPIX2": 400.5, "CRVAL1": 53.0}
        | {"CRVAL2": -28.0, "CD1_1": -SCALE, "CD2_2": SCALE}
    )
    for key, value in cards.items():
        if value is None:
            made.remove(key, ignore_missing=True)
        else:
            made[key] = value
    return made


CDELT = {"CD1_1": None, "CD2_2": None, "CDELT1": -SCALE, "CDELT2": SCALE}
TPV = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV2_1": 1.0}
SIP = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2}


@pytest.mark.parametrize(
    "cards",
    [
        {},
        CDELT,
        CDELT | {"PC1_1": 0.8, "PC1_2": 0.6, "PC2_1": -0.6, "PC2_2": 0.8},
        CDELT | {"CROTA2": 30.0},
        CDELT | {"CROTA2": 90.0, "PC1_1": 0.0, "PC1_2": 1.0, "PC2_1": -1.0, "PC2_2": 0.0},
        {"CDELT1": -SCALE, "CDELT2": SCALE},
        {"CDELT1": 1.0, "CDELT2": 1.0, "PC1_1": -SCALE, "PC2_2": SCALE},
        {"CD1_1": None, "CD2_2": None, "PC1_1": -SCALE, "PC2_2": SCALE},  # CDELT is 1 where it is not given
        {"CD1_1": -SCALE * 0.8, "CD1_2": SCALE * 0.6, "CD2_1": SCALE * 0.6, "CD2_2": SCALE * 0.8, "CROTA2": -36.87},
        CDELT | {"CROTA1": 30.0, "CROTA2": 30.0},
        {"CUNIT1": "arcsec", "CUNIT2": "arcsec", "CRVAL1": 190800.0, "CRVAL2": -100800.0, "CD1_1": -0.1, "CD2_2": 0.1},
        {"CRPIX1": -20000.0, "CRPIX2": 30000.0},
        {"CRVAL2": 90.0},
        {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": -28.0, "CRVAL2": 253.0},
        {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"},
        TPV | {"PV1_4": 2e-2},
        SIP | {"A_2_0": 1e-6, "B_0_2": -2e-6},
        {"NAXIS": 3, "NAXIS3": 1, "CTYPE3": "FREQ", "CRVAL3": 1e9, "CD3_3": 1e6, "CRPIX3": 1.0},
    ],
)
def test_good_headers(cards):
    made = header(**cards)
    expected = WCS(made, naxis=2).pixel_to_world(700, 20)
    assert celestial_wcs(made, "a.fits").pixel_to_world(700, 20).separation(expected) < 1e-9 * u.arcsec
    cut = celestial_wcs(made, "a.fits", shift=(690, 15), shape=(50, 60))
    assert cut.pixel_to_world(10, 5).separation(expected) < 1e-7 * u.arcsec
    assert cut.pixel_shape == (60, 50)


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"CRPIX1": None}, "no CRPIX1, so nothing says where the pixels are"),
        ({"CRVAL1": None, "CRVAL2": None}, "no CRVAL1 and no CRVAL2"),
        ({"CD1_1": None, "CD2_2": None}, "no CDELT1 and no CDELT2"),
        ({"CRPIX1": True}, "CRPIX1=True is not a number"),
        ({"CRPIX2": "NaN"}, "CRPIX2='NaN' is not a number"),
        ({"CRPIX1": fits.card.Undefined()}, "CRPIX1='' is not a number"),
        ({"CRPIX1": 1e7}, "outside 0.005 to 5: repair CD, CDELT or CRPIX"),
        ({"CRVAL2": 95.0}, "CRVAL2=95 is no latitude"),
        ({"CRVAL1": 1e5}, "CRVAL1=100000 is no longitude"),
        ({"CD1_1": -10 / 3600, "CD2_2": 10 / 3600}, "pixels of 10 x 10 arcsec, outside 0.005 to 5"),
        ({"CD1_1": -SCALE / 100, "CD2_2": SCALE / 100}, "pixels of 0.001 x 0.001 arcsec, outside"),
        ({"CD1_1": -4 * SCALE}, "pixels of 0.4 x 0.1 arcsec, far from square"),
        ({"CD1_1": 0.0, "CD2_2": 0.0}, "outside 0.005 to 5"),
        ({"CD1_2": SCALE, "CD2_1": -SCALE}, "outside 0.005 to 5"),
        ({"CDELT1": -2 * SCALE, "CDELT2": 2 * SCALE}, "give different pixel scales"),
        ({"PC1_1": 1.0}, "CD and PC matrices differ"),
        (CDELT | {"CROTA2": 30.0, "PC1_1": 1.0}, "CROTA2=30 and the PC matrix differ"),
        ({"CROTA2": 30.0}, "CROTA2=30 and the CD matrix differ"),
        (CDELT | {"CROTA1": 30.0}, "the header has CROTA1=30 and CROTA2=0: remove the wrong one"),
        (CDELT | {"CDELT1": None, "PC1_1": 1.0}, "no CDELT1, so nothing says"),
        (CDELT | {"CDELT1": None, "CDELT2": None, "PC1_1": 1.0}, "outside 0.005 to 5"),
        ({"CPDIS1": "LOOKUP", "CPDIS2": "LOOKUP"}, "CPDIS1 says that the distortion is a table, which is not read"),
        ({"CTYPE1": "PIXEL", "CTYPE2": "PIXEL"}, "no two-dimensional celestial WCS"),
        ({"CTYPE2": "DEC--SIN"}, "cannot be read .*Inconsistent projection"),
        ({"CTYPE1": "RA---XYZ", "CTYPE2": "DEC--XYZ"}, "cannot be read .*projection code"),
        ({"CUNIT1": "furlong"}, "CUNIT1='furlong' is no angle"),
        ({"CUNIT2": "m"}, "CUNIT2='m' is no angle"),
        ({"RADESYS": "FK9"}, "gives no sky positions"),
        ({"NAXIS": 3, "NAXIS3": 1, "CD3_3": 1.0, "CD1_3": 1e-5}, "CD1_3 ties the sky to another axis"),
        (SIP | {"A_2_0": "nan"}, "A_2_0='nan' is not a number"),
        (SIP | {"A_2_0": 0.1}, "projected and distorted, has pixels of"),
        (SIP | {"B_ORDER": None}, "A_ORDER=2 and B_ORDER=None of the SIP"),
        ({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-6}, "do not both end in -SIP"),
        (TPV | {"PV1_1": "x"}, "PV1_1='x' is not a number"),
        (TPV | {"PV1_1": 50.0}, "far from square"),
        ({"WCSAXES": 9999}, "WCSAXES=9999 belongs to no image of the sky"),
        ({"CTYPE321": "FREQ"}, "CTYPE321='FREQ' belongs to no image of the sky"),
    ],
)
def test_headers_that_do_not_say_where_the_pixels_are(cards, message):
    with pytest.raises(ValueError, match=f"a.fits: .*{message}"):
        celestial_wcs(header(**cards), "path: a.fits")


def test_region():
    wcs = celestial_wcs(header(), "a.fits")
    center = wcs.pixel_to_world(300.2, 100.4)
    assert region(wcs, (800, 1000), None, None, "a.fits") == (slice(0, 800), slice(0, 1000))
    rows, columns = region(wcs, (800, 1000), center, (2, 4) * u.arcsec, "a.fits")
    assert (rows, columns) == (slice(91, 111), slice(281, 321))  # nearest whole pixels
    with pytest.raises(ValueError, match="center and size: give both"):
        region(wcs, (800, 1000), center, None, "a.fits")
