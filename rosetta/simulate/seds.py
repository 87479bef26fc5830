# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Spectra of galaxies and stars, seen through the real bandpasses."""

from functools import lru_cache

import astropy.units as u
import numpy as np
from speclite.filters import FilterResponse, load_filter

__all__ = ["GALAXY_TEMPLATES", "N_DUST", "galaxy_colours", "star_colours"]

# Share of the light at 5500 A that comes from young stars, from passive to bursting.
YOUNG_SHARE = (0.0, 0.12, 0.35, 0.65, 1.0)
DUST_AV = (0.0, 0.4, 1.0)
N_DUST = len(DUST_AV)
GALAXY_TEMPLATES = tuple((young, av) for young in YOUNG_SHARE for av in DUST_AV)

_LOG1Z = np.linspace(0.0, np.log(6.5), 140)
_LOG_T = np.linspace(np.log(2600.0), np.log(12000.0), 60)
# Observed wavelengths (Angstrom): from below Rubin u to beyond Euclid H.
_WAVE = np.geomspace(2900.0, 24000.0, 2200)
_SPECLITE = {"Rubin": "lsst2023", "Rubin DP1": "lsst2023", "Euclid": "Euclid", "HSC": "hsc2017"}
_LINES = ((1216.0, 20.0), (3728.0, 60.0), (4862.0, 30.0), (4960.0, 40.0), (5008.0, 120.0), (6564.0, 110.0))


def galaxy_colours(surveys, template, redshift):
    """Fluxes of galaxies in every band, relative to Rubin i.

    Parameters
    ----------
    surveys : tuple of `~rosetta.surveys.Survey`
    template : array_like of int, shape (n,)
        Row of ``GALAXY_TEMPLATES``.
    redshift : array_like, shape (n,)

    Returns
    -------
    ratio : `~numpy.ndarray`, shape (n, n_band)
        Flux density (per unit frequency) over that in Rubin i.
    """
    grid = _galaxy_grid(_band_key(surveys))  # (n_template, n_z, n_band + 1)
    at = np.interp(np.log1p(redshift), _LOG1Z, np.arange(_LOG1Z.size))
    low = np.minimum(at.astype(int), _LOG1Z.size - 2)
    part = (at - low)[:, None]
    rows = np.asarray(template, int)
    flux = (1 - part) * grid[rows, low] + part * grid[rows, low + 1]
    return flux[:, 1:] / flux[:, :1]


def star_colours(surveys, temperature):
    """Fluxes of stars in every band, relative to Rubin i.

    Parameters
    ----------
    surveys : tuple of `~rosetta.surveys.Survey`
    temperature : array_like, shape (n,)
        Effective temperature in kelvin, 2600 to 12000.

    Returns
    -------
    ratio : `~numpy.ndarray`, shape (n, n_band)
        Flux density (per unit frequency) over that in Rubin i.
    """
    grid = _star_grid(_band_key(surveys))  # (n_temperature, n_band + 1)
    log_t = np.log(temperature)
    flux = np.stack([np.interp(log_t, _LOG_T, column) for column in grid.T], axis=1)
    return flux[:, 1:] / flux[:, :1]


def _band_key(surveys):
    return tuple(
        (survey.name, band.name, band.pivot.to_value(u.AA), band.width.to_value(u.AA))
        for survey in surveys
        for band in survey.bands
    )


def _filter(survey, band, pivot, width):
    if survey in _SPECLITE:
        name = band.removesuffix("_E")
        return load_filter(f"{_SPECLITE[survey]}-{name}")
    # speclite does not ship this survey's curves: a top hat with soft edges.
    wave = pivot + width * np.linspace(-0.6, 0.6, 121)
    response = np.clip((0.55 - np.abs(np.linspace(-0.6, 0.6, 121))) / 0.1, 0.0, 1.0)
    meta = {"group_name": "tophat", "band_name": f"b{round(pivot)}w{round(width)}"}
    return FilterResponse(wave * u.AA, response, meta)


def _fluxes(f_lambda, key):
    """Flux per unit frequency (common arbitrary scale) in Rubin i and then in every band of ``key``.

    Photon-weighted AB means (Bessell & Murphy 2012): f_nu ~ int f_lambda R lambda d lambda over
    int R / lambda d lambda. ``f_lambda`` has shape (..., n_wave) on ``_WAVE``.
    """
    filters = [load_filter("lsst2023-i")] + [_filter(*band) for band in key]
    step = np.gradient(_WAVE)
    response = np.stack([f.interpolator(_WAVE) * step for f in filters], axis=1)  # (n_wave, n_filter)
    photons = _WAVE[:, None] * response
    return f_lambda @ photons / np.sum(response / _WAVE[:, None], axis=0)


@lru_cache(maxsize=8)
def _galaxy_grid(key):
    rest = _WAVE / np.exp(_LOG1Z)[:, None]  # (n_z, n_wave)
    forest = _forest(rest, np.exp(_LOG1Z)[:, None])
    old, young = _old(rest), _young(rest)
    spectra = [((1 - share) * old + share * young) * _calzetti(rest, av) * forest for share, av in GALAXY_TEMPLATES]
    return _fluxes(np.stack(spectra), key)


@lru_cache(maxsize=8)
def _star_grid(key):
    temperature = np.exp(_LOG_T)[:, None]
    # Metal lines take light out of the blue of cool stars.
    blanketing = np.clip((7500.0 - temperature) / 3500.0, 0.0, 1.0) * 0.6
    blue = _step(_WAVE, 4000.0, 0.04)
    return _fluxes(_planck(_WAVE, temperature) * (1 - blanketing * (1 - blue)), key)


def _planck(wave, temperature):
    """Black body, f_lambda, 1 at 5500 A (wavelength in Angstrom)."""

    def body(w):
        return w**-5.0 / np.expm1(1.4388e8 / (w * temperature))

    return body(wave) / body(5500.0)


def _step(wave, edge, width):
    return 1 / (1 + np.exp(-np.log(wave / edge) / width))


def _old(wave):
    """Passive population: a cool black body with the 4000 A break over a faint ultraviolet floor."""
    # The floor (hot evolved stars, a trace of youth) bounds the colours of passive galaxies at high redshift.
    return _planck(wave, 4700.0) * (0.45 + 0.55 * _step(wave, 4000.0, 0.02)) + 0.03 * _young(wave)


def _young(wave):
    """Star-forming population: UV power law of slope -2, Balmer break, nebular lines."""
    continuum = (wave / 5500.0) ** np.where(wave < 5500.0, -2.0, -2.4)
    continuum = continuum * (0.75 + 0.25 * _step(wave, 3700.0, 0.02))
    lines = 1.0
    for centre, width in _LINES:
        # Equivalent width in Angstrom over a line of 30 A sigma, far narrower than any band.
        lines = lines + width / (30.0 * np.sqrt(2 * np.pi)) * np.exp(-0.5 * ((wave - centre) / 30.0) ** 2)
    return continuum * lines


def _calzetti(wave, av):
    """Attenuation law of Calzetti et al. (2000), R_V = 4.05."""
    um = np.clip(wave / 1e4, 0.09, 2.2)
    blue = 2.659 * (-2.156 + 1.509 / um - 0.198 / um**2 + 0.011 / um**3) + 4.05
    red = 2.659 * (-1.857 + 1.040 / um) + 4.05
    return 10 ** (-0.4 * av * np.maximum(np.where(um < 0.63, blue, red), 0.0) / 4.05)


def _forest(wave, one_plus_z):
    """Mean absorption by intergalactic hydrogen (Madau 1995, Lyman alpha term and Lyman limit)."""
    alpha = np.exp(-0.0036 * one_plus_z**3.46)
    return np.where(wave > 1216.0, 1.0, np.where(wave > 912.0, alpha, 0.02 * alpha))
