# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Surveys as data: what a band is, how deep and how sharp it is expected to be.

A survey is a row of numbers, never a subclass. To use another instrument, build one more
`Survey`; the encoder interpolates its band-dependent weights in pivot wavelength.
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches

import astropy.units as u

__all__ = ["Band", "Survey", "RUBIN", "RUBIN_DP1", "EUCLID", "HSC", "HST_ACS"]


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
    """

    name: str
    pivot: u.Quantity
    width: u.Quantity
    psf_fwhm: u.Quantity
    depth: float
    aliases: tuple = ()


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
        Names of the mask planes whose pixels must not be used.
    """

    name: str
    bands: tuple
    pixel_scale: u.Quantity
    bad_planes: tuple = ()

    @property
    def band_names(self):
        """Names of the bands, in order of wavelength (tuple of str)."""
        return tuple(band.name for band in self.bands)

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


def _bands(*rows):
    return tuple(
        Band(name, pivot * u.nm, width * u.nm, fwhm * u.arcsec, depth, tuple(aliases))
        for name, pivot, width, fwhm, depth, *aliases in rows
    )


def _with_depths(survey, name, **depths):
    bands = tuple(replace(band, depth=depths[band.name]) for band in survey.bands)
    return replace(survey, name=name, bands=bands)


# Pivots and widths: LSST throughputs v1.9; depths: ten-year coadds (Ivezic et al. 2019).
RUBIN = Survey(
    "Rubin",
    _bands(
        ("u", 368.0, 60.0, 0.90, 25.7),
        ("g", 480.0, 148.0, 0.86, 26.9),
        ("r", 622.0, 139.0, 0.81, 27.0),
        ("i", 754.0, 127.0, 0.79, 26.4),
        ("z", 869.0, 105.0, 0.77, 25.8),
        ("y", 971.0, 90.0, 0.76, 24.9),
    ),
    0.2 * u.arcsec,
    ("BAD", "SAT", "CR", "NO_DATA", "SUSPECT", "EDGE", "UNMASKEDNAN"),
)

# Data Preview 1 is shallower than the ten-year survey.
RUBIN_DP1 = _with_depths(RUBIN, "Rubin DP1", u=24.6, g=26.0, r=26.0, i=25.6, z=24.7, y=23.1)

# Scaramella et al. 2022, Schirmer et al. 2022; NISP is natively 0.3" and resampled to 0.1".
EUCLID = Survey(
    "Euclid",
    _bands(
        ("VIS", 715.0, 365.0, 0.16, 26.2, "I_E"),
        ("Y_E", 1085.0, 263.0, 0.48, 24.4, "Y", "NIR_Y"),
        ("J_E", 1375.0, 399.0, 0.49, 24.4, "J", "NIR_J"),
        ("H_E", 1772.0, 500.0, 0.50, 24.4, "H", "NIR_H"),
    ),
    0.1 * u.arcsec,
)

# Aihara et al. 2018 (Wide layer).
HSC = Survey(
    "HSC",
    _bands(
        ("g", 481.0, 145.0, 0.77, 26.5),
        ("r", 623.0, 150.0, 0.76, 26.1),
        ("i", 774.0, 152.0, 0.58, 25.9),
        ("z", 891.0, 76.0, 0.68, 25.1),
        ("y", 978.0, 78.0, 0.68, 24.4),
    ),
    0.168 * u.arcsec,
    ("BAD", "SAT", "CR", "NO_DATA", "SUSPECT", "EDGE"),
)

# Koekemoer et al. 2007 (COSMOS, drizzled to 0.03").
HST_ACS = Survey(
    "HST/ACS",
    _bands(
        ("F606W", 592.0, 234.0, 0.09, 27.5),
        ("F814W", 804.0, 251.0, 0.10, 27.2),
    ),
    0.03 * u.arcsec,
)
