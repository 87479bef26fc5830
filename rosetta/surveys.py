# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Surveys as data: what a band is, how deep and how sharp it is expected to be.

A survey is a row of numbers, never a subclass. To use another instrument, build one more
`Survey`; the encoder interpolates its band-dependent weights in pivot wavelength.
"""

import math
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
    sky : float, optional
        Brightness of the sky, AB magnitude per square arcsecond; that of a nearby band's if it is not known.
    native_pixel : `~astropy.units.Quantity`, optional
        The detector's pixel, where images are delivered on a finer grid.
    """

    name: str
    pivot: u.Quantity
    width: u.Quantity
    psf_fwhm: u.Quantity
    depth: float
    aliases: tuple = ()
    sky: float | None = None
    native_pixel: u.Quantity | None = None


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
    """

    name: str
    bands: tuple
    pixel_scale: u.Quantity
    bad_planes: tuple = ()
    saturation: float = 17.5

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
