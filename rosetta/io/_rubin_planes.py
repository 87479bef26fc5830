# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The mask planes of Rubin images: which bits they are, and which of them mean that a pixel must not be used."""

import warnings

import numpy as np
from astropy.utils.exceptions import AstropyUserWarning

from ..surveys import RUBIN
from ._fits import native

__all__ = ["NEW_NAMES", "bad_pixels", "mask_planes", "unknown_planes"]

# Data Preview 1 and the pipelines' own names, and what ``lsst-images`` calls the same planes from Data Preview 2 on.
NEW_NAMES = {
    "SAT": "SATURATED",
    "CR": "COSMIC_RAY",
    "INTRP": "INTERPOLATED",
    "EDGE": "DETECTION_EDGE",
    "UNMASKEDNAN": "UNMASKED_NAN",
}
_OLD_NAMES = {new: old for old, new in NEW_NAMES.items()}

# Planes that say something about a pixel whose flux can still be used.
_HARMLESS = {
    "INTRP", "DETECTED", "DETECTED_NEGATIVE", "NOT_DEBLENDED", "CLIPPED", "REJECTED", "INEXACT_PSF", "SENSOR_EDGE",
    "CELL_EDGE", "CROSSTALK", "PARTLY_VIGNETTED", "SPIKE", "HIGH_VARIANCE", "SAT_TEMPLATE", "INJECTED",
    "INJECTED_CORE", "INJECTED_TEMPLATE", "INJECTED_CORE_TEMPLATE", "BRIGHT_OBJECT",
}  # fmt: skip


def mask_planes(hdu, where, listed=()):
    """The planes of one mask extension.

    Parameters
    ----------
    hdu : image HDU
        (ny, nx) integers, or (n, ny, nx) with the planes spread over ``n`` integers per pixel.
    where : str
        What error messages call the file.
    listed : sequence of str or None
        Names of the planes in order, as the file lists them outside the header: cards cannot name planes that are
        spread over several integers.

    Returns
    -------
    dict
        Plane name, as the file writes it, to (index along the first of three axes, bit).

    Raises
    ------
    ValueError
        If no card names a plane, or a card gives no bit.
    """
    header = hdu.header
    # HIERARCH is stripped by astropy: MP_BAD and HIERARCH MP_NO_DATA both read as MP_<NAME>.
    for key, value in header.items():
        if key.startswith(("MSKN", "MSKM", "MP_")) and any(header[key, k] != value for k in range(header.count(key))):
            raise ValueError(f"{where}: its MASK has the card {key} twice, with two values: repair the header")
    numbered = {key[4:]: str(name).strip() for key, name in header.items() if key[:4] == "MSKN"}
    old = {key[3:]: bit for key, bit in header.items() if key[:3] == "MP_"}
    try:
        if numbered:
            bits = {name: _bit(header, number) for number, name in numbered.items()}
        elif old:
            bits = {name: _whole(bit) for name, bit in old.items()}
        elif header["NAXIS"] == 3:
            bits = {name: n for n, name in enumerate(listed) if name is not None}
        else:
            bits = {}
    except ValueError as error:
        raise ValueError(f"{where}: its MASK card {error} is no bit of a mask: repair the header") from None
    if not bits:
        raise ValueError(
            f"{where}: its MASK has no MP_<NAME> cards and no MSKN<nnnn> cards, so its bits have no meaning; "
            "write it with the cards that the Rubin pipelines give it"
        )
    count, width = (hdu.shape[0], _width(header)) if header["NAXIS"] == 3 else (1, abs(header["BITPIX"]))
    beyond = [name for name, bit in bits.items() if bit >= count * width]
    if beyond:
        raise ValueError(f"{where}: its MASK has no bit for the planes {', '.join(beyond)}: repair the header")
    return {name: divmod(bit, width) for name, bit in bits.items()}


def _whole(value):
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(repr(value))
    return value


def _bit(header, number):
    """The bit of plane ``number``: that of its MSKM card, which is a power of two, or else its number."""
    value = header.get(f"MSKM{number}")
    if value is None or header["NAXIS"] == 3:
        if not number.isdigit():
            raise ValueError(f"MSKN{number}")
        return int(number)
    value = value + 2**32 if value == -(2**31) else value  # the sign bit of 32
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise ValueError(f"MSKM{number}={value!r}")
    return value.bit_length() - 1


def _width(header):
    """Planes per integer: a signed one keeps its sign bit."""
    bits = abs(header["BITPIX"])
    return bits if bits == 8 or header.get("BZERO") else bits - 1


def bad_pixels(hdu, planes, slices, name):
    """Where a plane of ``RUBIN.bad_planes`` is set; a warning if bits are set that are no plane.

    Parameters
    ----------
    hdu : image HDU
        The mask.
    planes : dict
        Of `mask_planes`.
    slices : tuple of slice
        The part to read, [y, x].
    name : str
        What warnings call the file.

    Returns
    -------
    (ny, nx) bool array
    """
    bad, named = {}, {}
    for plane, (index, bit) in planes.items():
        named[index] = named.get(index, 0) | (1 << bit)
        if _OLD_NAMES.get(plane, plane) in RUBIN.bad_planes:
            bad[index] = bad.get(index, 0) | (1 << bit)
    found, unnamed = np.zeros([s.stop - s.start for s in slices], bool), []
    for index in named:
        bits = _bits(hdu, slices if hdu.header["NAXIS"] == 2 else (index, *slices))
        found |= (bits & np.uint64(bad.get(index, 0))) != 0
        more = int(np.bitwise_or.reduce(bits, axis=None)) & ~named[index] & (2 ** abs(hdu.header["BITPIX"]) - 1)
        unnamed += [str(bit) for bit in range(64) if more >> bit & 1]
    if unnamed:
        message = f"{name}: bits {', '.join(unnamed)} of its MASK are set, but have no name, and mask nothing"
        warnings.warn(f"{message}; check its header", AstropyUserWarning, stacklevel=6)
    return found


def _bits(hdu, slices):
    return native(hdu, np.int64, slices).view(np.uint64)  # bit 31 or 63 may be a sign


def unknown_planes(names):
    """Those of some plane names that are neither known to be bad nor known to be harmless (sorted list)."""
    known = _HARMLESS | set(RUBIN.bad_planes)
    return sorted({name for name in names if _OLD_NAMES.get(name, name) not in known})
