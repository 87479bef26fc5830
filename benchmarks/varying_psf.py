# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Fluxes of bright sources where the PSF varies over the field, with the PSF of each place and with one for all.

An image of 2' in r and one in VIS, with PSFs of the simulator (other optics for each seed; wings to 10"). From one side
to the other the PSF's width changes by 6 % (east-west, +-3 % about the middle) and its ellipticity by 0.04
(north-south, +-0.02). Sources of S/N of some 500 stand about a lattice, far from each other; half are stars, half
exponential discs of 0.3". Their positions are given. The PSF is given in stamps of 8" as a function of the place, as a
grid of 5 x 5 (photutils; also with 3 samples per pixel), as cells of 30" (as coadds have them), and as that of the
middle. The control has one PSF, of the middle, everywhere, and is given it; its sources have the same positions, and
its pixels the same noise. So the bias less the control's, source by source, is the bias due to the variation of the
PSF; the bias of the control itself is due to the profiles and to the light beyond the stamps.

Run: python benchmarks/varying_psf.py [--seeds 4] [--given "grid of 5 x 5"] [--tables FOLDER]
"""

import argparse
import warnings
from functools import lru_cache

import astropy.units as u
import galsim
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS
from kit.models import tiny_encoder
from kit.tables import Tables, add_option
from photutils.psf import GriddedPSFModel
from scipy.signal import fftconvolve

from rosetta import PSF, JEPADeblender, SkyPair
from rosetta.simulate.psf import FieldPSF
from rosetta.surveys import EUCLID, RUBIN

SIZE, STEP = 120.0, 8.0  # arcsec: of the image, and between sources
JITTER = 1.5  # arcsec, off the lattice: rows of sources look like trails
BANDS = {  # pixel and PSF width (arcsec), flux (nJy), noise per pixel (nJy)
    "r": (0.2, 0.8, 20000.0, 4.0),
    "VIS": (0.1, 0.16, 20000.0, 4.0),
}


@lru_cache
def field(band, seed):
    """The simulator's PSF of a band."""
    survey, ground = (RUBIN, True) if band == "r" else (EUCLID, False)
    return FieldPSF(np.random.default_rng(seed), survey, survey[band], ground, BANDS[band][1], half_size=SIZE / 2)


def true_psf(band, seed, east, north):
    """The PSF at a place (arcsec from the middle) without the pixel and the wings, a galsim profile."""
    profile = field(band, seed).at(0.0, 0.0).dilate(1.0 + 0.03 * east / (SIZE / 2))
    return profile.shear(e1=0.02 * north / (SIZE / 2), e2=0.0)


def drawn(band, profile, half, offset=(0.0, 0.0)):
    """A stamp without the wings."""
    scale = BANDS[band][0]
    local = galsim.JacobianWCS(-scale, 0.0, 0.0, scale)
    n = 2 * half + 1
    return profile.drawImage(nx=n, ny=n, wcs=local, offset=offset, dtype=float).array


def seen(band, seed, profile, half, sampling):
    """What pixels see of a point, at every third of a pixel, say: an effective PSF, wings included."""
    scale, wings = BANDS[band][0] / sampling, field(band, seed).wings
    local = galsim.JacobianWCS(-scale, 0.0, 0.0, scale)
    profile = galsim.Convolve(profile, galsim.Pixel(BANDS[band][0]))
    n = wings.shape[0] * sampling
    core = profile.drawImage(nx=n, ny=n, wcs=local, method="no_pixel", dtype=float).array
    far = fftconvolve(core, np.kron(wings, np.full((sampling, sampling), sampling**-2)), mode="same")
    middle = slice(n // 2 - half * sampling, n // 2 + half * sampling + 1)
    return ((1.0 - wings.sum()) * core + far)[middle, middle]


def scene(band, seed, varies):
    """The image, positions (east, north), and which are stars."""
    scale, _, flux, sigma = BANDS[band]
    rng, n, half = np.random.default_rng(seed), round(SIZE / scale), round(4.0 / scale)
    noise, image = rng.normal(0, sigma, (n, n)), np.zeros((n, n))
    grid = np.arange(-SIZE / 2 + STEP, SIZE / 2 - STEP / 2, STEP)
    place = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    place = place + rng.uniform(-JITTER, JITTER, place.shape)
    star = np.arange(len(place)) % 2 == 0
    for (east, north), point in zip(place, star, strict=True):
        x, y = (n - 1) / 2 - east / scale, (n - 1) / 2 + north / scale
        profile = true_psf(band, seed, east * varies, north * varies)
        if not point:
            profile = galsim.Convolve(profile, galsim.Exponential(half_light_radius=0.3))
        x0, y0 = round(x), round(y)
        stamp = drawn(band, profile * flux, half, (x - x0, y - y0))
        image[y0 - half : y0 + half + 1, x0 - half : x0 + half + 1] += stamp
    return field(band, seed).spread(image) + noise, place, star


def given(band, seed, how):
    """The PSF of a band as a user may have it."""
    scale, _, _, _ = BANDS[band]
    n, half = round(SIZE / scale), round(4.0 / scale)

    def at(x, y, sampling=1):
        profile = true_psf(band, seed, ((n - 1) / 2 - x) * scale, (y - (n - 1) / 2) * scale)
        return seen(band, seed, profile, half, sampling)

    if how == "function":
        return at
    if how in ("one, of the middle", "control"):
        return PSF(at((n - 1) / 2, (n - 1) / 2))
    if how.startswith("grid of 5 x 5"):
        nodes, sampling = np.linspace(0, n - 1, 5), 3 if how.endswith("fine") else 1
        places = [(x, y) for y in nodes for x in nodes]
        meta = {"grid_xypos": places, "oversampling": sampling}
        return GriddedPSFModel(NDData(np.stack([at(*p, sampling) for p in places]), meta=meta))
    nodes = (np.arange(4) + 0.5) * n / 4 - 0.5  # the middles of cells of 30"
    return PSF.on_grid([[at(x, y) for x in nodes] for y in nodes], nodes, nodes, smooth=False)


HOW = ("function", "grid of 5 x 5", "grid of 5 x 5, fine", 'cells of 30"', "one, of the middle", "control")


def errors(band, how, seed, deblender):
    """Relative error of every flux, and which are stars."""
    scale, _, flux, sigma = BANDS[band]
    image, place, star = scene(band, seed, how != "control")
    n = len(image)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53.1, -28.1], [(n + 1) / 2] * 2
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    noise = VarianceUncertainty(np.full(image.shape, sigma**2))
    side = {band: NDData(image, wcs=wcs, unit=u.nJy, uncertainty=noise)}
    pair = SkyPair(*((side, None) if band == "r" else (None, side)), psf={band: given(band, seed, how)})
    center = SkyCoord(53.1, -28.1, unit="deg")
    coord = center.spherical_offsets_by(place[:, 0] * u.arcsec, place[:, 1] * u.arcsec)
    return deblender(pair, coord, neighbours="listed", recentre=True).flux(band).value / flux - 1, star


def _mean(error, digits=2):
    """A mean in percent, with its standard error."""
    return f"{100 * error.mean():+.{digits}f} ± {100 * error.std() / error.size**0.5:.{digits}f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--given", nargs="+", choices=HOW[:-1], default=HOW[:-1], help="forms of the PSF; default: all")
    add_option(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    deblender, lines = JEPADeblender(tiny_encoder()), []
    for band in BANDS:
        forms = (*options.given, "control")
        found = {how: [errors(band, how, seed, deblender) for seed in range(options.seeds)] for how in forms}
        error = {how: np.stack([of_seed for of_seed, _ in seeds]) for how, seeds in found.items()}  # (n_seed, n)
        star = np.stack([of_seed for _, of_seed in found["control"]])
        for how in forms:
            for kind, of in (("stars", star), ("galaxies", ~star)):
                of = of & np.isfinite(error[how]) & np.isfinite(error["control"])  # a row of the lattice may be masked
                own, due = error[how][of], (error[how] - error["control"])[of]
                here = np.where(of, error[how], 0.0).sum(axis=0)
                mean = here / np.maximum(of.sum(axis=0), 1)  # of one place of the lattice, over the seeds
                scatter, worst = f"{100 * own.std():.2f}", f"{100 * np.abs(mean).max():.2f}"
                lines.append([f"{band}, {kind}: {how}", len(own), _mean(own), _mean(due, 3), scatter, worst])
    header = ["PSF given", "n", "bias, %", "less the control's, %", "scatter, %", "worst place, %"]
    Tables(options.tables).show("varying_psf", "A PSF that varies over 2'", header, lines)


if __name__ == "__main__":
    main()
