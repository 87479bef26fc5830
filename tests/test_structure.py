# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Headers that announce impossible counts are refused at once, whatever reads the file."""

import io

import numpy as np
import pytest
from astropy.io import fits

from rosetta.io._fits import open_fits
from rosetta.io._structure import check_structure


def content_of(**cards):
    """An image and a table; the given cards of the extensions are replaced."""
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.arange(3))], name="T")
    whole = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones((5, 7), "f4"), name="A"), table]).writeto(whole)
    content = whole.getvalue()
    for key, value in cards.items():
        start = content.index(f"{key:<8}=".encode(), 2880)
        content = content[:start] + f"{key:<8}= {value:>20}".encode() + content[start + 30 :]
    return content


def test_whole_files_pass():
    for kind in ("plain", "packed"):
        whole = io.BytesIO(content_of())
        if kind == "packed":
            whole = io.BytesIO()
            image = fits.CompImageHDU(np.ones((50, 70), "i4"), compression_type="RICE_1")
            fits.HDUList([fits.PrimaryHDU(), image]).writeto(whole)
        check_structure(whole)
        assert whole.tell() == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("NAXIS", 10**7), ("NAXIS", -1), ("NAXIS2", -5), ("GCOUNT", -1), ("GCOUNT", 0), ("PCOUNT", -7), ("TFIELDS", 9**9)],
)
def test_impossible_counts(key, value):
    content = content_of(**{key: value})
    with pytest.raises(OSError, match=f"{key}={value} in the header of HDU [12]"):
        check_structure(io.BytesIO(content))
    with (
        pytest.raises(ValueError, match=f"source: bytes is not a complete FITS file.*{key}={value}"),
        open_fits(content, "source"),
    ):
        pass


@pytest.mark.parametrize(("key", "value"), [("PCOUNT", "'abc     '"), ("NAXIS1", 1e8)])
def test_counts_that_are_no_numbers(key, value):
    with pytest.raises(OSError, match=f"{key} in the header of HDU [12] is .*, not a number"):
        check_structure(io.BytesIO(content_of(**{key: value})))


@pytest.mark.parametrize("unit", ["10**99999999 nJy", "10^(-99999999) Jy", "10+99999999 Jy"])
def test_absurd_powers_in_units(unit):
    """astropy would write out the power of ten."""
    content, image = io.BytesIO(), fits.ImageHDU(np.ones((5, 7), "f4"), fits.Header({"BUNIT": unit}))
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(content)
    with pytest.raises(OSError, match="the unit in card BUNIT of HDU 1 cannot be"):
        check_structure(content)


@pytest.mark.parametrize(("key", "sign"), [("BITPIX", b"=%"), ("NAXIS", b"^ "), ("TFIELDS", b"=-")])
def test_damaged_cards(key, sign):
    content = content_of()
    start = content.index(f"{key:<8}=".encode(), 2880)
    with pytest.raises(OSError, match=f"the card {key} of HDU [12] is damaged"):
        check_structure(io.BytesIO(content[: start + 8] + sign + content[start + 10 :]))


@pytest.mark.parametrize("content", [b"", b"SIMPLE", content_of()[:4000], content_of() + b"\0" * 100])
def test_what_is_not_whole_is_left_to_astropy(content):
    check_structure(io.BytesIO(content))
