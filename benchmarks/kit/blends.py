# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Simulated blends of two or three galaxies in ten bands.

Every blend is a 16" stamp (Rubin's ten-year and Euclid's depths, Moffat PSFs, white noise) with galaxies of i = 21-25,
a disc and often a bulge of another colour, 0.6-2.2" apart.
"""

from dataclasses import dataclass
from functools import lru_cache

import astropy.units as u
import galsim
import numpy as np
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS

from rosetta import SkyPair

__all__ = [
    "BANDS", "GROUND", "SCALE", "SIZE", "SPACE", "Blend", "blendedness", "blends", "draw", "light_of", "pair_of",
    "profiles", "psf_image", "psf_of", "to_arcsec", "to_pixel", "wcs_of",
]

# PSF FWHM (arcsec), wavelength (nm), sky variance per pixel (nJy^2), nJy per photo-electron. Ten years of Rubin and the
# Euclid Wide Survey: sky brightness and exposure of the two surveys, Euclid's noise scaled to its stated depths.
BANDS = {
    "u": (0.90, 368, 5.3058, 5.7371e-2), "g": (0.86, 486, 1.32388, 7.3078e-3), "r": (0.81, 625, 1.77060, 3.6818e-3),
    "i": (0.79, 756, 4.61446, 4.9438e-3), "z": (0.77, 870, 17.0930, 8.1425e-3), "y": (0.76, 972, 91.3732, 1.74887e-2),
    "VIS": (0.16, 715, 66.7768, 6.8848e-2), "Y_E": (0.477, 1089, 231.441, 0.817941),
    "J_E": (0.486, 1379, 223.092, 0.692982), "H_E": (0.492, 1786, 217.773, 0.732356),
}  # fmt: skip
GROUND, SPACE = list("ugrizy"), ["VIS", "Y_E", "J_E", "H_E"]
SCALE = {b: 0.2 for b in GROUND} | {b: 0.1 for b in SPACE}  # arcsec per pixel
SIZE = {b: 81 if b in GROUND else 161 for b in BANDS}  # odd: the middle pixel is the stamp's centre


@dataclass(frozen=True)
class Blend:
    """Images (nJy) and truth of one blend; positions are arcsec (x to the west, y to the north) from the centre."""

    data: dict  # band -> (ny, nx)
    variance: dict  # band -> (ny, nx), photon noise of the sources included
    galaxies: list  # of dict: x, y, mag and the profiles' parameters
    flux: dict  # band -> (n,)
    alone: dict  # band -> (n, ny, nx): every galaxy by itself, without noise

    @property
    def place(self):
        return np.array([[g["x"], g["y"]] for g in self.galaxies])


@lru_cache(maxsize=16)
def psf_of(band):
    return galsim.Moffat(beta=3.5 if band in GROUND else 5.0, fwhm=BANDS[band][0])


@lru_cache(maxsize=64)
def psf_image(band, n=None, scale=None):
    n = n or (41 if band in GROUND else 61)
    return psf_of(band).drawImage(nx=n, ny=n, scale=scale or SCALE[band]).array.astype(float)


def profiles(g):
    """The disc and the bulge of a galaxy, of unit flux."""
    disc = galsim.Exponential(half_light_radius=g["radius"]).shear(g1=g["g1"], g2=g["g2"])
    bulge = galsim.Sersic(n=3, half_light_radius=g["bulge_radius"]).shear(g1=g["bulge_g1"], g2=g["bulge_g2"])
    return disc.shift(g["x"], g["y"]), bulge.shift(g["x"], g["y"])


def draw(light, band):
    image = galsim.Convolve(light, psf_of(band)).drawImage(nx=SIZE[band], ny=SIZE[band], scale=SCALE[band])
    return image.array.astype(float)


def galaxy(rng, first, angle, rank):
    """One galaxy of a blend: an exponential disc, and a bulge half of the time; power-law spectra."""
    mag = rng.uniform(21, 24) if first else rng.uniform(21.5, 25)
    if first:
        x, y = rng.uniform(-0.3, 0.3, 2)
    else:
        apart = rng.uniform(0.6, 2.2)
        turn = angle + rng.uniform(-0.6, 0.6) + (rank - 1) * np.pi * rng.uniform(0.6, 1.4)
        x, y = apart * np.cos(turn), apart * np.sin(turn)
    radius = np.clip(10 ** rng.normal(-0.42 - 0.1 * (mag - 23), 0.15), 0.12, 1.2)
    share = rng.choice([0, rng.uniform(0, 0.6)])
    e, turn = min(0.6, abs(rng.normal(0, 0.3))), np.radians(2 * rng.uniform(0, 180))
    slope = rng.uniform(0.3, 2.0)
    bulge_slope = slope + rng.uniform(0.5, 1.5)
    g1, g2 = e / 2 * np.cos(turn), e / 2 * np.sin(turn)
    return {
        "x": float(x), "y": float(y), "mag": mag, "radius": float(radius), "share": float(share), "g1": g1, "g2": g2,
        "bulge_radius": max(0.08, 0.4 * float(radius)), "bulge_g1": g1 / 2, "bulge_g2": g2 / 2,
        "slopes": (slope, bulge_slope),
    }  # fmt: skip


def light_of(g, band):
    """Fluxes of disc and bulge, nJy."""
    total = 10 ** (0.4 * (31.4 - g["mag"]))
    disc, bulge = (total * (BANDS[band][1] / BANDS["i"][1]) ** slope for slope in g["slopes"])
    return (1 - g["share"]) * disc, g["share"] * bulge


def blends(n, seed):
    """Yield ``n`` blends."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        count, angle = rng.integers(2, 4), rng.uniform(0, 2 * np.pi)
        galaxies = [galaxy(rng, j == 0, angle, j) for j in range(count)]
        flux = {b: np.array([sum(light_of(g, b)) for g in galaxies]) for b in BANDS}
        alone = {b: np.zeros((count, SIZE[b], SIZE[b])) for b in BANDS}
        for j, g in enumerate(galaxies):
            disc, bulge = profiles(g)
            for b in BANDS:
                fd, fb = light_of(g, b)
                alone[b][j] = draw(disc * fd + bulge * fb if fb else disc * fd, b)
        data, variance = {}, {}
        for b, (_, _, sky, gain) in BANDS.items():
            clean = alone[b].sum(axis=0)
            variance[b] = sky + gain * np.maximum(clean, 0)
            data[b] = clean + rng.normal(0, np.sqrt(variance[b]))
        yield Blend(data, variance, galaxies, flux, alone)


def blendedness(blend):
    """1 - sum f_k^2 / sum f_k F in i, of every galaxy."""
    one = blend.alone["i"]
    return 1 - (one**2).sum(axis=(1, 2)) / (one * one.sum(axis=0)).sum(axis=(1, 2))


def to_arcsec(pixel, band):
    return (np.asarray(pixel, float) - (SIZE[band] - 1) / 2) * SCALE[band]


def to_pixel(arcsec, band):
    return np.asarray(arcsec, float) / SCALE[band] + (SIZE[band] - 1) / 2


def wcs_of(band):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 2.0]
    wcs.wcs.crpix = [(SIZE[band] + 1) / 2] * 2
    wcs.wcs.cd = np.diag([-SCALE[band] / 3600, SCALE[band] / 3600])
    wcs.array_shape = (SIZE[band], SIZE[band])
    return wcs


def pair_of(blend, bands=tuple(BANDS)):
    def image(b):
        noise = VarianceUncertainty(blend.variance[b])
        return NDData(blend.data[b], uncertainty=noise, unit=u.nJy, wcs=wcs_of(b), psf=psf_image(b))

    sides = [{b: image(b) for b in names if b in bands} or None for names in (GROUND, SPACE)]
    return SkyPair(*sides)
