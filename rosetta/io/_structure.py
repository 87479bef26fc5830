# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The numbers in FITS headers that say how a file is built, checked before astropy counts to them."""

import re
from math import prod

__all__ = ["check_structure"]

BLOCK, CARD = 2880, 80
BITPIX = (8, 16, 32, 64, -32, -64)
MOST = 999  # axes of an image and columns of a table, by the FITS standard
_CARD = re.compile(rb"(Z?NAXIS\d*|Z?BITPIX|PCOUNT|GCOUNT|TFIELDS) *$")
_UNIT = re.compile(rb"[BCT]UNIT\d* *$")
_POWER = re.compile(rb"10 *(\*\*|\^|[+-]) *\(? *[+-]?\d{4,}")  # of ten, which astropy would write out


def check_structure(file):
    """Walk over the headers of a FITS file; the file is left at its beginning.

    astropy loops over as many axes and columns as a header names, goes back where a size is negative, and writes out
    powers of ten in units.

    Parameters
    ----------
    file : binary file
        Not compressed as a whole.

    Raises
    ------
    OSError
        If a number of axes or columns, a length, a count or a power of ten cannot be. All else is left to astropy.
    """
    end = file.seek(0, 2)
    place, number = 0, 0
    while place < end:
        file.seek(place)
        head, header_size = _header(file)
        if head is None:
            break
        values = {}
        for card in head:
            if _UNIT.match(card[:8]) and _POWER.search(card[10:]):
                raise OSError(f"the unit in card {card[:8].decode().strip()} of HDU {number} cannot be")
            if _CARD.match(card[:8]):
                key = card[:8].decode().strip()
                if card[8:10] != b"= ":
                    raise OSError(f"the card {key} of HDU {number} is damaged")
                values.setdefault(key, card[10:].partition(b"/")[0].decode("latin1").strip())
        size = _data_size(values, number)
        if size is None:
            break
        place += header_size + -(-size // BLOCK) * BLOCK
        number += 1
    file.seek(0)


def _header(file):
    """Cards of the header that begins here and its size, or None if there is none that ends."""
    cards = []
    while True:
        block = file.read(BLOCK)
        if len(block) < BLOCK or not (cards or block.startswith((b"SIMPLE", b"XTENSION"))):
            return None, 0
        cards += [block[k : k + CARD] for k in range(0, BLOCK, CARD)]
        ends = [k for k, card in enumerate(cards) if card.rstrip() == b"END"]
        if ends:
            return cards[: ends[0]], len(cards) * CARD


def _data_size(values, number):
    """Bytes of data that a header announces; None where it does not say."""
    counts = {}
    for key, text in values.items():
        try:
            counts[key] = int(text)
        except ValueError as error:
            raise OSError(f"{key} in the header of HDU {number} is {text!r}, not a number") from error
    allowed = {"PCOUNT": (0, 2**62), "GCOUNT": (1, 2**62)} | dict.fromkeys(("NAXIS", "ZNAXIS", "TFIELDS"), (0, MOST))
    for key, value in counts.items():
        low, high = allowed.get(key, (0, 2**62))
        if value not in BITPIX if key.endswith("BITPIX") else not low <= value <= high:
            raise OSError(f"{key}={value} in the header of HDU {number}")
    if "NAXIS" not in counts or "BITPIX" not in counts:
        return None
    sides = [counts.get(f"NAXIS{k + 1}") for k in range(counts["NAXIS"])]
    if None in sides:
        return None
    pixels = prod(sides) if sides else 0
    return abs(counts["BITPIX"]) // 8 * counts.get("GCOUNT", 1) * (counts.get("PCOUNT", 0) + pixels)
