# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Profiles of point sources from physics: diffraction by a telescope, the atmosphere, scattered light."""

from functools import lru_cache

import galsim
import numpy as np

__all__ = ["Telescope", "aureole", "seeing_disc"]

_ARCSEC = np.pi / 180 / 3600
_SAMPLES = 192  # across the aperture: the pattern repeats after 24" at 715 nm and 1.2 m
_FINE = 5  # samples per sample, for the edges of the aperture
#: Zernike terms (Noll index) that are drawn: defocus, astigmatism, coma, trefoil.
ZERNIKES = (4, 5, 6, 7, 8, 9, 10)
_PARAMS = galsim.GSParams(folding_threshold=5e-3, maxk_threshold=1e-3, kvalue_accuracy=1e-5)


class Telescope:
    """An annular aperture with three struts and wavefront errors.

    Parameters
    ----------
    diameter : float
        Of the aperture, m.
    obscuration : float
        Diameter of the central obstruction over that of the aperture.
    strut : float
        Width of the struts over the diameter of the aperture; 0 for none.
    wavefront : (7,) array_like
        Coefficients (nm, root mean square) of the Zernike terms with Noll indices 4 to 10.
    turn : float
        Position angle of the first strut, rad.
    """

    def __init__(self, diameter, obscuration, strut=0.0, wavefront=(0.0,) * 7, turn=0.0):
        self.diameter = diameter
        self._axis = (np.arange(_SAMPLES) - (_SAMPLES - 1) / 2) / (_SAMPLES / 2)
        self._amplitude = _aperture(obscuration, strut, float(np.round(turn % (2 * np.pi / 3), 2)))
        self._path = np.tensordot(wavefront, _zernikes(obscuration), axes=1)  # nm

    def pattern(self, wavelengths, weights, angle):
        """The diffraction pattern of point sources, averaged over wavelength.

        Parameters
        ----------
        wavelengths : (n,) array_like
            nm.
        weights : (m, n) array_like
            Photons per wavelength for each of m spectra.
        angle : (k,) array
            Arcsec; where to evaluate it, the same on both axes.

        Returns
        -------
        (m, k, k) float64 array
            Light per square arcsec for sources of light 1.
        """
        weights = np.asarray(weights, float)
        weights = weights / weights.sum(axis=1, keepdims=True)
        light = np.zeros((len(weights), len(angle), len(angle)))
        step = self.diameter / _SAMPLES
        norm = np.sum(self._amplitude**2)
        for wavelength, share in zip(wavelengths, weights.T, strict=True):
            metre = wavelength * 1e-9
            phase = self._amplitude * np.exp(2j * np.pi * self._path / wavelength)
            wave = np.exp((-2j * np.pi * _ARCSEC * self.diameter / 2 / metre) * np.outer(angle, self._axis))
            wave, phase = wave.astype(np.complex64), phase.astype(np.complex64)
            field = wave @ phase @ wave.T
            # Parseval: the pattern of the whole plane holds as much light as passes the aperture.
            density = (np.abs(field) ** 2).astype(float) * (step * _ARCSEC / metre) ** 2 / norm
            light += share[:, None, None] * density
        return light


@lru_cache(maxsize=8)
def _aperture(obscuration, strut, turn):
    """Transmitted amplitude, (n, n), averaged over samples that the edges cross."""
    n = _SAMPLES * _FINE
    axis = (np.arange(n) - (n - 1) / 2) / (n / 2)
    y, x = axis[:, None], axis[None, :]
    radius2 = x**2 + y**2
    open_ = (radius2 <= 1) & (radius2 >= obscuration**2)
    for k in range(3 if strut else 0):
        angle = turn + 2 * np.pi * k / 3
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        open_ &= ~((np.abs(across) < strut) & (along > 0))
    return open_.reshape(_SAMPLES, _FINE, _SAMPLES, _FINE).mean(axis=(1, 3))


@lru_cache(maxsize=4)
def _zernikes(obscuration):
    """Annular Zernike polynomials of the drawn terms on the aperture, unit root mean square, (7, n, n)."""
    axis = (np.arange(_SAMPLES) - (_SAMPLES - 1) / 2) / (_SAMPLES / 2)
    x, y = np.meshgrid(axis, axis)
    inside = np.hypot(x, y) <= 1
    basis = galsim.zernike.zernikeBasis(max(ZERNIKES), x, y, R_outer=1.0, R_inner=obscuration)
    return np.stack([np.where(inside, basis[k], 0.0) for k in ZERNIKES])


def seeing_disc(radius, fwhm, spread):
    """Light of a point source seen through the atmosphere in a stack of visits, per square arcsec.

    The mean of three Kolmogorov profiles (Fried 1966) of different widths, the width at half maximum of which is
    the stated one. Between visits the seeing differs; the wings of the stack are those of its worst.

    Parameters
    ----------
    radius : array_like
        Arcsec.
    fwhm : float
        Arcsec.
    spread : float
        Relative difference between the widths of the visits.

    Returns
    -------
    array
    """
    at, table = _stack(spread)
    return np.interp(np.asarray(radius) / fwhm, at, table) / fwhm**2


@lru_cache(maxsize=1)
def _kolmogorov():
    disc = galsim.Kolmogorov(fwhm=1.0)
    at = np.concatenate([[0.0], np.geomspace(1e-3, 40.0, 2000)])
    one = np.array([disc.xValue(r, 0.0) for r in at])
    # Beyond a few widths the profile is a power law of slope -11/3, where the table's own values are rounded.
    far = at > 6.0
    one[far] = one[np.argmax(far)] * (at[far] / at[np.argmax(far)]) ** (-11 / 3)
    return at, one


@lru_cache(maxsize=64)
def _stack(spread):
    """The profile for a width of 1: radii and light."""
    at, one = _kolmogorov()
    total = np.zeros_like(at)
    for factor in (1 - spread, 1.0, 1 + spread):
        total += np.interp(at / factor, at, one) / factor**2 / 3
    width = 2 * np.interp(-0.5 * total[0], -total, at)
    return at / width, total * width**2


def aureole(radius, inner, outer, slope=2.5):
    """Light scattered far from a point source, per square arcsec, for light 1 in total.

    Parameters
    ----------
    radius : array_like
        Arcsec.
    inner, outer : float
        Radius (arcsec) inside of which the profile is flat, and at which it ends.
    slope : float
        Steepness of the power law between the two; 2 to 3 is observed (King 1971; Racine 1996).

    Returns
    -------
    array
    """

    def profile(r):
        return (1 + (r / inner) ** 2) ** (-slope / 2) * np.clip(1 - (r / outer) ** 2, 0.0, None)

    r = np.linspace(0.0, outer, 4001)
    total = np.trapezoid(2 * np.pi * r * profile(r), r)
    return profile(np.asarray(radius, float)) / total
