# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What one unit of an image is in nJy: from a unit, or from AB zero points in the header. Nothing is guessed."""

import re
import warnings
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.io.fits.card import Undefined

__all__ = ["PhotometricUnit", "parsed_unit", "photometric_unit"]

NJY_ZEROPOINT = 31.4  # AB magnitude of 1 nJy
TOLERANCE = 0.01  # mag; statements that differ by less agree
BRIGHTEST, FAINTEST = 0.0, 50.0  # zero points of headers lie between: 0, -1 and 99 say that there is none

# Cards in use for the AB magnitude of one unit of the image. PHOTZPT of Hubble is in ST magnitudes and not among them.
_ZEROPOINTS = (
    "MAGZERO", "MAGZPT", "MAGZP", "MAGZEROP", "MAG_ZP", "ZP", "ZPT", "ZP_AB", "ZPAB", "ZEROPOINT", "ZEROPNT", "ZEROPT",
    "ZERO_PT", "ZPOINT", "ABZP", "ABZPT", "ABMAGZP", "PHOTZP",
)  # fmt: skip
_SYSTEMS = ("MAGSYS", "MAGSYSTE", "ZPSYS", "PHOTSYS", "MAG_SYS", "ZP_SYS")
_TIMES = ("EXPTIME", "TEXPTIME", "EXPOSURE", "XPOSURE")

_TEXT_NUMBER = r"[+-]?[\d.]+([eEdD][+-]?\d+)?"
_COUNTS = r"(electrons?|counts?|cts?|adus?|dn|e-?|photons?|ph)"
_RATE = re.compile(rf"{_COUNTS}\s*(/\s*s(ec(ond)?s?)?|[ *.]?s(\*\*|\^)?-1|\s+per\s+s(ec(ond)?)?)|cps", re.IGNORECASE)
_TOTAL = re.compile(_COUNTS, re.IGNORECASE)
# Spellings of archives, in the words of astropy.
_SPELLINGS = (
    (r"\bergs\b", "erg"), (r"\^", "**"), (r"\bnano-?maggies\b", "nmgy"), (r"\bmaggies\b", "mgy"),
    (r"\bJanskys\b", "Jy"), (r"(?i)\bjy\b", "Jy"), (r"(?i)\bnjy\b", "nJy"), (r"(?i)\b(u|micro)jy\b", "uJy"),
    (r"(?i)\bpixels?\b", "pix"), (r"(?i)\bper\b", "/"), (r"(?i)\bsq(uare)?[ .]*(arcsec|arcmin|deg)\w*", r"\2**2"),
)  # fmt: skip


@dataclass(frozen=True)
class PhotometricUnit:
    """One unit of an image.

    Parameters
    ----------
    factor : float
        In nJy, or in nJy per square arcsecond.
    per_area : bool
        Whether it is a surface brightness.
    source : str
        Where this comes from: "BUNIT=...", "MAGZERO=...", "unit=..." and the like.
    """

    factor: float
    per_area: bool
    source: str


def photometric_unit(header, where, unit=None, zeropoint="header"):
    """What one unit of an image is.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
    where : str
        What the header belongs to, for messages.
    unit : str or `~astropy.units.Unit`, optional
        In place of ``BUNIT``.
    zeropoint : float, "header" or None
        AB magnitude of one unit; or whether to look for it in the header where the unit is no flux.

    Returns
    -------
    `PhotometricUnit`

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If nothing says what the unit is, or if two statements differ.
    """
    if unit is not None and not isinstance(unit, str | u.UnitBase | u.function.FunctionUnitBase):
        raise TypeError(f"unit must be a unit or its name, got {type(unit).__name__}")
    text = _text(header, "BUNIT") if unit is None else str(unit).strip()
    said = f"{'BUNIT' if unit is None else 'unit'}={text!r}"
    flux = _flux(text, said, header, where)
    if unit is not None and flux is None and not (_RATE.fullmatch(text) or _TOTAL.fullmatch(text)):
        raise ValueError(f"{where}: {said} is no flux density, surface brightness or count: use one, such as 'nJy'")
    if not (zeropoint is None or (isinstance(zeropoint, str) and zeropoint == "header")):
        return _given(zeropoint, flux, where)
    found = {} if zeropoint is None else _zeropoints(header)
    if flux is not None:
        implied = NJY_ZEROPOINT - 2.5 * np.log10(flux.factor)
        if unit is None and not flux.per_area:
            for card, value in found.items():
                if abs(value - implied) > TOLERANCE:
                    raise ValueError(
                        f"{where}: {said} means zero point {implied:.4g}, but {card} says {value:.6g}: "
                        "pass the right one as unit= or zeropoint="
                    )
        return flux
    return _of_zeropoints(header, where, text, said, found, zeropoint)


def _given(zeropoint, flux, where):
    if isinstance(zeropoint, bool) or not isinstance(zeropoint, int | float | np.number):
        raise TypeError(f"zeropoint must be an AB magnitude, 'header' or None, got {zeropoint!r}")
    if not -10 <= zeropoint <= 50:
        raise ValueError(f"zeropoint must be an AB magnitude (-10 to 50), got {zeropoint}")
    factor = 10 ** ((NJY_ZEROPOINT - zeropoint) / 2.5)
    if flux is not None and (flux.per_area or abs(2.5 * np.log10(flux.factor / factor)) > TOLERANCE):
        raise ValueError(
            f"{where}: {flux.source} and zeropoint={zeropoint:g} differ: leave zeropoint out, or pass "
            "unit='count' if the unit of the header is wrong"
        )
    return PhotometricUnit(float(factor), False, f"zeropoint={zeropoint:g}")


# ---------------------------------------------------------------------------- units
def _flux(text, said, header, where):
    """The unit as a flux density or a surface brightness; None if it is neither."""
    if not text or _RATE.fullmatch(text) or _TOTAL.fullmatch(text):
        return None
    unit = parsed_unit(text)
    if unit is None:
        return None
    if not isinstance(unit, u.UnitBase) or unit == u.mag:
        raise ValueError(f"{where}: {said} is a magnitude: convert the image to a linear unit such as nJy")
    if u.beam in unit.bases:
        raise ValueError(f"{where}: {said} is a flux per beam, not per pixel: convert the image to MJy/sr first")
    if u.pix in unit.bases:
        unit = unit * u.pix
    ab = u.zero_point_flux(1 * u.AB)
    for one, per_area in ((unit, False), (unit * u.arcsec**2, True)):
        for equivalency in (ab, _at_pivot(header)):
            try:
                factor = one.to(u.nJy, equivalencies=equivalency)
            except u.UnitConversionError:
                continue
            if not 0 < factor < np.inf:
                raise ValueError(f"{where}: {said} is {factor} nJy: repair the unit")
            return PhotometricUnit(float(factor), per_area, said)
    if any(one.is_equivalent(u.erg / u.s / u.cm**2 / u.AA) for one in (unit, unit * u.sr)):
        raise ValueError(
            f"{where}: {said} is a flux per wavelength and PHOTPLAM, the pivot wavelength, is missing: "
            "pass zeropoint= or convert the image to nJy"
        )
    return None


def _at_pivot(header):
    pivot = _number(header, "PHOTPLAM")
    return u.spectral_density(pivot * u.AA) if pivot is not None and pivot > 0 else []


def parsed_unit(text):
    """The unit that a text of an archive means, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", u.UnitsWarning)
        for attempt in (text, _respelled(text)):
            try:
                return u.Unit(attempt)
            except (ValueError, TypeError):
                continue
    return None


def _respelled(text):
    for pattern, word in _SPELLINGS:
        text = re.sub(pattern, word, text)
    return text


# ---------------------------------------------------------------------------- zero points
def _text(header, card):
    value = header.get(card, "")
    return "" if isinstance(value, Undefined | None) else str(value).strip()


def _number(header, card):
    value = header.get(card)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return float(value)


def _zeropoints(header):
    """AB zero points by card."""
    found = {card: _number(header, card) for card in _ZEROPOINTS}
    flux = _number(header, "FLUXMAG0")
    if flux is not None and flux > 0:
        found["FLUXMAG0"] = 2.5 * np.log10(flux)
    return {card: value for card, value in found.items() if value is not None}


def _of_zeropoints(header, where, text, said, found, zeropoint):
    remedy = "pass zeropoint= (AB magnitude of one unit of the image) or unit="
    if zeropoint is not None:
        for card in (*_ZEROPOINTS, "FLUXMAG0", "PHOTFLAM", "PHOTPLAM"):
            if re.fullmatch(_TEXT_NUMBER, _text(header, card)) and _number(header, card) is None:
                raise ValueError(f"{where}: {card}={header[card]!r} is text, not a number: {remedy}")
    if "BSOFTEN" in header:
        raise ValueError(
            f"{where}: the pixels are asinh magnitudes (BSOFTEN, BOFFSET): convert the image to linear fluxes first"
        )
    sensitivity, pivot = _number(header, "PHOTFLAM"), _number(header, "PHOTPLAM")
    hubble = zeropoint is not None and sensitivity is not None and pivot is not None and min(sensitivity, pivot) > 0
    if hubble:  # ACS Data Handbook: AB zero point of electrons (or DN) per second
        found = found | {"PHOTFLAM": -2.5 * np.log10(sensitivity) - 5 * np.log10(pivot) - 2.408}
    if not found:
        held = f"{said} is no flux" if text else "there is no BUNIT"
        raise ValueError(f"{where}: {held} and the header has no AB zero point known here: {remedy}")
    _refuse_vega(header, where, found, remedy)
    card, value = next(iter(found.items()))
    if not BRIGHTEST < value < FAINTEST:
        raise ValueError(f"{where}: {card} gives zero point {value:.6g}, outside 0 to 50: {remedy}")
    for other, different in found.items():
        if abs(different - value) > TOLERANCE:
            raise ValueError(f"{where}: {card} gives zero point {value:.6g}, {other} gives {different:.6g}: {remedy}")
    if _RATE.fullmatch(text):
        return PhotometricUnit(10 ** ((NJY_ZEROPOINT - value) / 2.5), False, f"{card}={header[card]}")
    time = next((time for time in (_number(header, key) for key in _TIMES) if time is not None and time > 0), None)
    if hubble or (_TOTAL.fullmatch(text) and time not in (None, 1.0)):
        later = f"{value:.4f} + 2.5 log10(seconds)" if time is None else f"{value + 2.5 * np.log10(time):.4f}"
        raise ValueError(
            f"{where}: {card} gives zero point {value:.4f}, of one count or of one count per second "
            f"({said if text else 'there is no BUNIT'}): pass zeropoint={value:.4f} if the image is in what {card} is "
            f"for, zeropoint={later} if {card} is per second and the image is not"
        )
    return PhotometricUnit(10 ** ((NJY_ZEROPOINT - value) / 2.5), False, f"{card}={header[card]}")


def _refuse_vega(header, where, found, remedy):
    vega = [card for card in (*_SYSTEMS, *found) if "VEGA" in f"{header.get(card)} {_comment(header, card)}".upper()]
    if vega or "CASUVERS" in header:
        reason = f"{vega[0]} says Vega" if vega else "zero points of CASU are Vega magnitudes per second"
        raise ValueError(f"{where}: {reason}: {remedy}")


def _comment(header, card):
    return header.comments[card] if card in header else ""
