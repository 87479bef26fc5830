# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Surveys as data: what a band is, how deep and how sharp it is expected to be.

A survey is a row of numbers, never a subclass. To use another instrument, build one more
`Survey`; the encoder interpolates its band-dependent weights in pivot wavelength.
"""

import math
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from numbers import Real

import astropy.units as u

__all__ = ["Band", "Survey", "RUBIN", "RUBIN_DP1", "EUCLID", "HSC", "HST_ACS", "PSF_WINGS"]


@dataclass(frozen=True)
class Band:
    """One passband of a survey.

    Parameters
    ----------
    name : str
        The name used in every input and output.
    pivot, width : `~astropy.units.Quantity`
        Pivot wavelength and full width of the bandpass.
    psf_fwhm : `~astropy.units.Quantity`
        Nominal point-spread function, full width at half maximum (angle).
    depth : float
        Nominal 5-sigma point-source depth, AB magnitude.
    aliases : tuple of str
        Other names accepted on input.
    sky : float, optional
        Brightness of the sky, AB magnitude per square arcsecond; that of a nearby band's if it is not known.
    native_pixel : `~astropy.units.Quantity`, optional
        The detector's pixel, where images are delivered on a finer grid.

    Raises
    ------
    TypeError, ValueError
        If a field is of another type, has another unit or cannot be; the message names the field. ``name`` is part of
        the names of columns and FITS extensions: letters, digits and "_", 40 at most.
    """

    name: str
    pivot: u.Quantity
    width: u.Quantity
    psf_fwhm: u.Quantity
    depth: float
    aliases: tuple = ()
    sky: float | None = None
    native_pixel: u.Quantity | None = None

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise TypeError(f"name of a band must be a string, got {self.name!r}")
        if not re.fullmatch("[A-Za-z0-9_]{1,40}", self.name):
            raise ValueError(
                f"name of a band is {self.name!r}: use 1 to 40 letters, digits and '_', it becomes part of the names "
                "of columns and FITS extensions (other names can be aliases)"
            )
        where = f"of band {self.name!r}"
        _check_quantity("pivot", where, self.pivot, u.nm)
        _check_quantity("width", where, self.width, u.nm)
        _check_quantity("psf_fwhm", where, self.psf_fwhm, u.arcsec)
        _check_number("depth", where, self.depth, "AB magnitude")
        object.__setattr__(self, "aliases", _strings("aliases", where, self.aliases))
        if self.sky is not None:
            _check_number("sky", where, self.sky, "AB magnitude per square arcsecond, or None")
        if self.native_pixel is not None:
            _check_quantity("native_pixel", where, self.native_pixel, u.arcsec)


@dataclass(frozen=True)
class Survey:
    """A survey: its bands in order of wavelength and its native pixel scale.

    Parameters
    ----------
    name : str
    bands : tuple of `Band`
        In order of increasing pivot wavelength.
    pixel_scale : `~astropy.units.Quantity`
        Angle subtended by one delivered pixel.
    bad_planes : tuple of str
        Names of the mask planes whose pixels must not be used. Rubin's are those of Data Preview 1, which
        `rosetta.io.rubin` also finds under their newer names.
    saturation : float
        AB magnitude of the faintest point source that saturates, about.

    Raises
    ------
    TypeError, ValueError
        If a field is of another type, has another unit or cannot be; if two bands share a name or an alias, or have
        names that differ only by case; or if the bands are not in order of wavelength. The message names the field.
    """

    name: str
    bands: tuple
    pixel_scale: u.Quantity
    bad_planes: tuple = ()
    saturation: float = 17.5

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise TypeError(f"name of a survey must be a string, got {self.name!r}")
        if not re.fullmatch("[!-~]([ -~]{0,58}[!-~])?", self.name):
            raise ValueError(f"name of a survey is {self.name!r}: use 1 to 60 printable ASCII characters")
        where = f"of survey {self.name!r}"
        if not isinstance(self.bands, tuple | list) or not all(isinstance(band, Band) for band in self.bands):
            raise TypeError(f"bands {where} must be a tuple of Band, got {self.bands!r}")
        if not self.bands:
            raise ValueError(f"bands {where} is empty: give at least one Band")
        object.__setattr__(self, "bands", tuple(self.bands))
        self._check_names(where)
        for one, two in zip(self.bands, self.bands[1:], strict=False):
            if one.pivot > two.pivot:
                raise ValueError(
                    f"bands {where} are not in order of wavelength: put {two.name!r} ({two.pivot}) before "
                    f"{one.name!r} ({one.pivot})"
                )
        _check_quantity("pixel_scale", where, self.pixel_scale, u.arcsec)
        object.__setattr__(self, "bad_planes", _strings("bad_planes", where, self.bad_planes))
        _check_number("saturation", where, self.saturation, "AB magnitude")

    def _check_names(self, where):
        folded, owner = {}, {}
        for band in self.bands:
            # FITS does not tell "y" from "Y" in the names of extensions and columns.
            if band.name.casefold() in folded:
                other = folded[band.name.casefold()]
                raise ValueError(f"bands {where}: {other!r} and {band.name!r} are one name in FITS files, rename one")
            folded[band.name.casefold()] = band.name
        for band in self.bands:
            for name in {band.name, *band.aliases}:
                if owner.setdefault(name, band.name) != band.name:
                    raise ValueError(
                        f"aliases {where}: {name!r} means {owner[name]!r} and {band.name!r}, leave it out of one"
                    )

    @property
    def band_names(self):
        """Names of the bands, in order of wavelength (tuple of str)."""
        return tuple(band.name for band in self.bands)

    def __contains__(self, name):
        """Whether there is a `Band` called ``name`` (or known under that alias)."""
        return any(name == band.name or name in band.aliases for band in self.bands)

    def __getitem__(self, name):
        """The `Band` called ``name`` (or known under that alias).

        Raises
        ------
        ValueError
            If the survey has no such band; the message lists the nearest names.
        """
        for band in self.bands:
            if name == band.name or name in band.aliases:
                return band
        folded = {band.casefold(): band for band in self.band_names}
        near = [folded[n] for n in get_close_matches(str(name).casefold(), folded, n=3, cutoff=0.0)]
        raise ValueError(
            f"unknown band {name!r} for survey {self.name}: "
            f"the nearest known names are {', '.join(map(repr, near))} (all: {' '.join(self.band_names)})"
        )


def _check_quantity(field, where, value, unit):
    """One positive, finite quantity that converts to ``unit``."""
    if not isinstance(value, u.Quantity):
        raise TypeError(f"{field} {where} must be a Quantity, like 1 * u.{unit}; got {value!r}")
    if not value.unit.is_equivalent(unit):
        raise ValueError(f"{field} {where} has unit {value.unit.to_string() or '1'}, which does not convert to {unit}")
    if not value.isscalar:
        raise ValueError(f"{field} {where} must be one value, got shape {value.shape}")
    if not 0 < value.to_value(unit) < math.inf:
        raise ValueError(f"{field} {where} is {value}: it must be positive and finite")


def _check_number(field, where, value, what):
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{field} {where} must be a number ({what}), got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{field} {where} is {value}: it must be finite ({what})")


def _strings(field, where, value):
    """A tuple of non-empty strings."""
    if not isinstance(value, tuple | list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{field} {where} must be a tuple of strings, got {value!r}")
    if not all(item.strip() for item in value):
        raise ValueError(f"{field} {where} has an empty string: leave it out")
    return tuple(value)


def _bands(*rows):
    """Bands from rows of name, pivot and width (nm), FWHM (arcsec), depth, sky (AB), native pixel (arcsec), aliases."""
    return tuple(
        Band(
            name, pivot * u.nm, width * u.nm, fwhm * u.arcsec, depth, tuple(aliases), sky,
            None if native is None else native * u.arcsec,
        )
        for name, pivot, width, fwhm, depth, sky, native, *aliases in rows
    )  # fmt: skip


def _with_depths(survey, name, **depths):
    bands = tuple(replace(band, depth=depths[band.name]) for band in survey.bands)
    return replace(survey, name=name, bands=bands)


# Pivots and widths: LSST throughputs v1.9; depths: ten-year coadds (Ivezic et al. 2019); sky: LSST SRD.
RUBIN = Survey(
    "Rubin",
    _bands(
        ("u", 368.0, 60.0, 0.90, 25.7, 22.9, None),
        ("g", 480.0, 148.0, 0.86, 26.9, 22.3, None),
        ("r", 622.0, 139.0, 0.81, 27.0, 21.2, None),
        ("i", 754.0, 127.0, 0.79, 26.4, 20.5, None),
        ("z", 869.0, 105.0, 0.77, 25.8, 19.6, None),
        ("y", 971.0, 90.0, 0.76, 24.9, 18.6, None),
    ),
    0.2 * u.arcsec,
    (
        "BAD", "SAT", "CR", "NO_DATA", "SUSPECT", "EDGE", "UNMASKEDNAN", "STREAK", "ITL_DIP", "VIGNETTED",
    ),
)

# Data Preview 1 is shallower than the ten-year survey.
RUBIN_DP1 = _with_depths(RUBIN, "Rubin DP1", u=24.6, g=26.0, r=26.0, i=25.6, z=24.7, y=23.1)

# Scaramella et al. 2022, Schirmer et al. 2022; NISP is natively 0.3" and resampled to 0.1"; sky: zodiacal light.
EUCLID = Survey(
    "Euclid",
    _bands(
        ("VIS", 715.0, 365.0, 0.16, 26.2, 22.3, None, "I_E"),
        ("Y_E", 1085.0, 263.0, 0.48, 24.4, 22.3, 0.3, "Y", "NIR_Y"),
        ("J_E", 1375.0, 399.0, 0.49, 24.4, 22.3, 0.3, "J", "NIR_J"),
        ("H_E", 1772.0, 500.0, 0.50, 24.4, 22.3, 0.3, "H", "NIR_H"),
    ),
    0.1 * u.arcsec,
    saturation=18.0,
)

#: Wings of PSFs by survey and band: radii (arcsec) and the share of a point source's light beyond each. Euclid:
#: diffraction by an aperture of 1.2 m with an obscuration of 0.35, and 3.5 % of scattered light. A star of 19 mag in
#: the Q1 images has 5 % of its light between 1.05 and 4.2 arcsec in VIS.
PSF_WINGS = {
    "Euclid": {
        "VIS": (
            (0.3, 0.184), (0.4, 0.132), (0.5, 0.1157), (0.6, 0.0963), (0.74, 0.0767), (0.9, 0.0673), (1.05, 0.058),
            (1.3, 0.0482), (1.6, 0.039), (2.0, 0.0304), (2.8, 0.0193), (4.0, 0.0101), (5.6, 0.0034), (8.0, 2e-4),
            (9.9, 1e-5),
        ),
        "Y_E": (
            (0.7, 0.1177), (1.0, 0.0816), (1.4, 0.0579), (2.0, 0.039), (2.8, 0.0251), (4.0, 0.014), (5.6, 0.0054),
            (8.0, 4e-4), (9.9, 1e-5),
        ),
        "J_E": (
            (0.7, 0.1357), (1.0, 0.097), (1.4, 0.0648), (2.0, 0.0439), (2.8, 0.0282), (4.0, 0.0159), (5.6, 0.0063),
            (8.0, 5e-4), (9.9, 1e-5),
        ),
        "H_E": (
            (0.7, 0.1732), (1.0, 0.1086), (1.4, 0.0801), (2.0, 0.0508), (2.8, 0.0319), (4.0, 0.018), (5.6, 0.0072),
            (8.0, 7e-4), (9.9, 1e-5),
        ),
    },
}  # fmt: skip

# Aihara et al. 2018 (Wide layer).
HSC = Survey(
    "HSC",
    _bands(
        ("g", 481.0, 145.0, 0.77, 26.5, None, None),
        ("r", 623.0, 150.0, 0.76, 26.1, None, None),
        ("i", 774.0, 152.0, 0.58, 25.9, None, None),
        ("z", 891.0, 76.0, 0.68, 25.1, None, None),
        ("y", 978.0, 78.0, 0.68, 24.4, None, None),
    ),
    0.168 * u.arcsec,
    ("BAD", "SAT", "CR", "NO_DATA", "SUSPECT", "EDGE"),
)

# Koekemoer et al. 2007 (COSMOS, drizzled to 0.03").
HST_ACS = Survey(
    "HST/ACS",
    _bands(
        ("F606W", 592.0, 234.0, 0.09, 27.5, None, None),
        ("F814W", 804.0, 251.0, 0.10, 27.2, None, None),
    ),
    0.03 * u.arcsec,
    saturation=18.0,
)


# ---------------------------------------------------------------------------- what the encoder is trained on


@dataclass(frozen=True)
class Conditions:
    """How a survey observes in training: what is drawn for each window, and the base PSF that the tiles carry.

    Parameters
    ----------
    pixel_scale : float
        arcsec.
    depth : tuple of float
        Nominal 5-sigma point-source depth per band, AB.
    fwhm : tuple of (float, float)
        Per band, range of the Kolmogorov seeing (ground) or of the Gaussian blur that is added to the base
        PSF (space), arcsec.
    base_fwhm : float or None
        Width of the Gaussian base PSF of the tiles, pixel response not included, arcsec. None: the
        diffraction PSF of an annular aperture (lambda/D 0.125", obscuration 0.4) times a Gaussian of sigma
        0.03"; then the blur is Gaussian.
    correlated : tuple of bool
        Bands whose noise is interpolated from pixels three times as large.
    drop : tuple of float
        Chance that a band is missing.
    """

    pixel_scale: float
    depth: tuple
    fwhm: tuple
    base_fwhm: float | None
    correlated: tuple
    drop: tuple


#: The surveys whose bands the encoder is trained on, by side.
TRAINED = {"ground": RUBIN, "space": EUCLID}

#: Side of a pixel (arcsec) of the grids that the encoder reads.
PIXEL_SCALE = {side: float(survey.pixel_scale.to_value(u.arcsec)) for side, survey in TRAINED.items()}

#: ln(pivot wavelength / nm) of the bands seen in training.
KNOTS = {side: tuple(math.log(band.pivot.to_value(u.nm)) for band in survey.bands) for side, survey in TRAINED.items()}

CONDITIONS = {
    "ground": Conditions(
        pixel_scale=PIXEL_SCALE["ground"],
        depth=tuple(band.depth for band in RUBIN.bands),
        fwhm=((0.5, 1.3),) * 6,
        base_fwhm=0.45,
        correlated=(False,) * 6,
        drop=(0.15, 0.1, 0.1, 0.1, 0.1, 0.15),
    ),
    "space": Conditions(
        pixel_scale=PIXEL_SCALE["space"],
        depth=tuple(band.depth for band in EUCLID.bands),
        fwhm=((0.03, 0.1), (0.36, 0.47), (0.37, 0.48), (0.38, 0.49)),
        base_fwhm=None,
        correlated=tuple(band.native_pixel is not None for band in EUCLID.bands),
        drop=(0.15, 0.1, 0.1, 0.1),
    ),
}
