# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Damage done to files: header cards, bytes, lengths, compressed streams, extensions.

FITS files are taken apart here without astropy, so that what no library would write can be written too.
"""

import bz2
import gzip
import json
import lzma
from dataclasses import dataclass

__all__ = ["Damage", "damaged_fits", "damaged_safetensors"]

BLOCK, CARD = 2880, 80
PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
# Cards that decide where pixels are, what they mean and how they are stored: half of all damage to cards is done here.
VITAL = (
    "CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CD1_1", "CD2_2", "CDELT1", "CDELT2", "PC1_1", "PC2_2", "CTYPE1", "CTYPE2",
    "CUNIT1", "MAGZERO", "FILTER", "BAND", "BUNIT", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "BZERO", "BSCALE", "EXTNAME",
    "EXTVER", "PCOUNT", "GCOUNT", "TFIELDS", "TFORM1", "ZBITPIX", "ZNAXIS1", "ZCMPTYPE", "ZTILE1", "NUMEXT", "FLAGS",
    "RSTFMT", "EMBFMT", "SCNFMT", "GROUND", "SPACE", "BANDS", "ABSENT", "SIDE", "MP_BAD", "MP_SAT",
)  # fmt: skip
WAYS = ("missing", "NaN", "1e300", "absurd", "wrong type", "empty", "twice", "negative", "zero", "other")
NOTICEABLE = WAYS[:7]  # of the others a reader cannot know that a card was changed


@dataclass(frozen=True)
class Damage:
    """A damaged file: its content, what was done, and what a reader can know of it."""

    content: bytes
    text: str
    ending: str = ""  # added to the file's name
    key: str = ""  # card that was changed
    noticeable: bool = True  # whether a reader without checksums can find out
    gone: str = ""  # extension that was taken out whole, as if it had never been there


def damaged_fits(content, rng):
    """One kind of damage, drawn at random.

    Parameters
    ----------
    content : bytes
        A FITS file.
    rng : `~numpy.random.Generator`

    Returns
    -------
    `Damage`
    """
    kinds = (_card, _bytes, _header_bytes, _length, _packed, _extension)
    return kinds[rng.choice(len(kinds), p=(0.5, 0.08, 0.1, 0.08, 0.12, 0.12))](content, rng)


# ---------------------------------------------------------------------------- structure
def split(content):
    """[[cards, data], ...] of a whole FITS file: lists of 80-byte cards without END, and padded bytes."""
    hdus, place = [], 0
    while place < len(content):
        cards = []
        while True:
            card = content[place : place + CARD]
            place += CARD
            if card[:8] == b"END     ":
                break
            cards.append(card)
        place = -(-place // BLOCK) * BLOCK
        size = _data_size(cards)
        hdus.append([cards, content[place : place + size]])
        place += size
    return hdus


def join(hdus):
    """The file of what `split` returned."""
    parts = []
    for cards, data in hdus:
        head = b"".join(cards) + b"END".ljust(CARD)
        parts += [head.ljust(-(-len(head) // BLOCK) * BLOCK), data]
    return b"".join(parts)


def _data_size(cards):
    value = {key_of(card): value_of(card) for card in cards if card[8:10] == b"= "}
    sides = [int(value[f"NAXIS{k + 1}"]) for k in range(int(value["NAXIS"]))]
    n = 1 if sides else 0
    for side in sides:
        n *= side
    n = abs(int(value["BITPIX"])) // 8 * int(value.get("GCOUNT", 1)) * (int(value.get("PCOUNT", 0)) + n)
    return -(-n // BLOCK) * BLOCK


def key_of(card):
    return card[:8].decode("latin1").strip()


def value_of(card):
    """The value of a card as text, without its comment."""
    text = card[10:].decode("latin1")
    if text.lstrip().startswith("'"):
        return text.lstrip()[1:].partition("'")[0].rstrip()
    return text.partition("/")[0].strip()


def _name(cards):
    return next((value_of(card) for card in cards if key_of(card) == "EXTNAME"), "")


# ---------------------------------------------------------------------------- kinds of damage
def _card(content, rng):
    hdus = split(content)
    places = [
        (h, k) for h, (cards, _) in enumerate(hdus) for k, card in enumerate(cards) if card[8:10] == b"= "
    ]
    vital = [(h, k) for h, k in places if key_of(hdus[h][0][k]) in VITAL]
    h, k = places[rng.integers(len(places))] if rng.random() < 0.5 or not vital else vital[rng.integers(len(vital))]
    cards = hdus[h][0]
    key, old = key_of(cards[k]), value_of(cards[k])
    text = cards[k][10:].lstrip().startswith(b"'")
    how = str(rng.choice(WAYS))
    number = _number(old)
    values = {
        "NaN": "NaN", "1e300": "1E300", "negative": _shown(-number), "zero": "0", "absurd": _shown(1e7 * number + 1e7),
        "wrong type": "12.5" if text else "'abc     '", "empty": "", "other": _shown(1.5 * number + 1),
        "twice": _shown(1.5 * number + 1),
    }  # fmt: skip
    if text and how in ("other", "twice", "negative"):
        values[how] = f"'{old[::-1]:<8}'"
    if how == "missing":
        del cards[k]
    elif how == "twice":
        cards.insert(k + int(rng.integers(2)), _written(key, values[how]))
    else:
        cards[k] = _written(key, values[how])
    where = f"{_name(cards) or h}: {key}={old}"
    return Damage(join(hdus), f"{where} -> {how} {values.get(how, '')}", key=key, noticeable=how in NOTICEABLE)


def _number(text):
    try:
        return float(text)
    except ValueError:
        return 1.0


def _shown(number):
    return repr(int(number)) if number == int(number) and abs(number) < 1e15 else repr(number).upper()


def _written(key, value):
    return f"{key:<8}= {value:>20}".encode("latin1").ljust(CARD)[:CARD]


def _bytes(content, rng):
    """Bytes of pixels and tables, which nobody without a checksum can notice."""
    hdus = split(content)
    hdu = hdus[rng.choice([k for k, (_, data) in enumerate(hdus) if data])]
    broken = bytearray(hdu[1])
    for place in rng.integers(len(broken), size=rng.integers(1, 30)):
        broken[place] = rng.integers(256)
    hdu[1] = bytes(broken)
    return Damage(join(hdus), f"bytes of {_name(hdu[0]) or 'the first HDU'}", noticeable=False)


def _header_bytes(content, rng):
    """Bytes of one header card; a digit that becomes another digit cannot be noticed."""
    hdus = split(content)
    h = int(rng.integers(len(hdus)))
    cards = hdus[h][0]
    k = int(rng.integers(len(cards)))
    old, new = cards[k], bytearray(cards[k])
    for place in rng.integers(30, size=rng.integers(1, 3)):
        new[place] = rng.integers(32, 127)
    cards[k] = bytes(new)
    digits = all(a == b or (chr(a).isdigit() and chr(b).isdigit()) for a, b in zip(old, new, strict=True))
    text = b"'" in old[10:12]
    noticeable = not digits and not (text and old[:12] == bytes(new[:12]))
    return Damage(join(hdus), f"header {_name(cards) or h}: {old[:30]!r} -> {bytes(new[:30])!r}", key=key_of(old),
                  noticeable=noticeable)


def _length(content, rng):
    if rng.random() < 0.6:
        n = int(rng.integers(len(content)))
        last = b"".join(data for _, data in split(content)[-1:])
        padding = len(content) - n < len(last) - len(last.rstrip(b"\0"))
        return Damage(content[:n], f"cut to {n} of {len(content)} bytes", noticeable=not padding)
    tail = [b"\0" * 2880, b"\0" * 100, rng.bytes(5000), content[:4000]][rng.integers(4)]
    return Damage(content + tail, f"{len(tail)} bytes added at the end")


def _packed(content, rng):
    ending = str(rng.choice(list(PACKED)))
    packed = PACKED[ending](content)
    how = rng.choice(["whole", "cut", "bytes"], p=[0.15, 0.6, 0.25])
    if how == "cut":
        packed = packed[: int(rng.integers(10, len(packed)))]
    elif how == "bytes":
        packed = bytearray(packed)
        for place in rng.integers(20, len(packed), size=rng.integers(1, 4)):
            packed[place] ^= int(rng.integers(1, 256))
        packed = bytes(packed)
    return Damage(packed, f"{ending[1:]}, {how}", ending=ending)


def _extension(content, rng):
    hdus = split(content)
    if len(hdus) < 2:
        return _card(content, rng)
    h = int(rng.integers(1, len(hdus)))
    name = _name(hdus[h][0])
    how = str(rng.choice(["removed", "renamed", "reordered", "twice"]))
    gone, noticeable = "", True
    if how == "removed":
        del hdus[h]
        gone = name
    elif how == "renamed":
        new = str(rng.choice(["ABC", f"{name}X", name[:-1], f"X_{name}"]))
        cards = [card for card in hdus[h][0] if key_of(card) != "EXTNAME"]
        hdus[h][0] = [*cards, _written("EXTNAME", f"'{new:<8}'")]
        name = f"{name} to {new}"
    elif how == "reordered":
        hdus.insert(int(rng.integers(1, len(hdus))), hdus.pop(h))
    else:
        hdus.insert(int(rng.integers(1, len(hdus))), [list(hdus[h][0]), hdus[h][1]])
    return Damage(join(hdus), f"extension {name} {how}", gone=gone, noticeable=noticeable)


# ---------------------------------------------------------------------------- checkpoints
def damaged_safetensors(content, rng):
    """One kind of damage to a safetensors file: its JSON header, its bytes, its length.

    Parameters
    ----------
    content : bytes
    rng : `~numpy.random.Generator`

    Returns
    -------
    `Damage`
    """
    size = int.from_bytes(content[:8], "little")
    kind = rng.choice(["value", "header bytes", "bytes", "length", "size"], p=[0.4, 0.2, 0.2, 0.15, 0.05])
    if kind == "length":
        n = int(rng.integers(len(content) + 5000))
        return Damage(content[:n] if n < len(content) else content + rng.bytes(n - len(content)), f"{n} bytes long")
    if kind == "size":
        n = int(rng.choice([0, 1, size - 1, size + 1, 2**31, 2**62]))
        return Damage(n.to_bytes(8, "little") + content[8:], f"header of {n} bytes")
    if kind != "value":
        broken, (low, high) = bytearray(content), (8, 8 + size) if kind == "header bytes" else (8 + size, len(content))
        for place in rng.integers(low, high, size=rng.integers(1, 20)):
            broken[place] ^= int(rng.integers(1, 256))
        return Damage(bytes(broken), str(kind))
    header = json.loads(content[8 : 8 + size])
    documents = {"": header} | {key: json.loads(value) for key, value in header.get("__metadata__", {}).items()}
    places = [(d, path) for d in documents.values() for path in _paths(d) if path[0] != "__metadata__"]
    document, path = places[rng.integers(len(places))]
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    new = [None, float("nan"), 1e300, -1, 0, "abc", [], {}, "missing"][rng.integers(9)]
    text = f"{'.'.join(map(str, path))}={inner[path[-1]]!r} -> {new!r}"
    if new == "missing":
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    header["__metadata__"] = {key: json.dumps(value) for key, value in documents.items() if key}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return Damage(len(head).to_bytes(8, "little") + head + content[8 + size :], text)


def _paths(node, above=()):
    """Every place in nested dicts and lists."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from _paths(value, (*above, key))
