# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Injected stars against exact ones, where pixels undersample the PSF as in Euclid's VIS.

Forty places within a pixel, two PSFs, each known from its native pixels alone and from samples four times as fine. Both
stars are compared within the PSF's stamp and scaled to the same light there: *flux* is what a fit of the exact star to
the injected one gives, *peak* the largest difference of a pixel over the brightest pixel.

Run: python benchmarks/drawing.py [--tables FOLDER]
"""

import argparse

import astropy.units as u
import galsim
import numpy as np
from astropy.nddata import NDData, VarianceUncertainty
from astropy.table import QTable
from astropy.wcs import WCS
from kit.tables import Tables, add_option

import rosetta
from rosetta import PSF, SkyPair
from rosetta.images.image import band_images
from rosetta.simulate.psf import draw_psf

STEP, ROWS, COLUMNS = 81, 5, 8  # pixels between stars; stars
SCALE, FINE, FLUX = 0.1, 4, 2000.0  # arcsec, samples per pixel, nJy
PLACES = np.random.default_rng(0).uniform(-0.5, 0.5, (ROWS * COLUMNS, 2))
PSFS = {
    "lambda / D 0.123 arcsec": (0.123, 0.4, 0.045),  # and obscuration, jitter (arcsec)
    "lambda / D 0.115 arcsec": (0.115, 0.36, 0.03),
}


def profile_of(size, obscuration, jitter):
    airy = galsim.Airy(lam_over_diam=size, obscuration=obscuration)
    return galsim.Convolve(airy, galsim.Gaussian(sigma=jitter)).shear(g1=0.01, g2=-0.02)


def blank(psf):
    shape = (STEP * ROWS, STEP * COLUMNS)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53.1, -28.1], [shape[1] / 2, shape[0] / 2]
    wcs.wcs.cdelt = [-SCALE / 3600, SCALE / 3600]
    faint = VarianceUncertainty(np.full(shape, 1e-6))  # else the light would have photon noise
    image = NDData(np.zeros(shape), wcs=wcs, unit=u.nJy, uncertainty=faint)
    return SkyPair(None, {"VIS": image}, psf={"VIS": psf})


def errors(profile, psf, half):
    """Largest errors of flux and peak over all places, in per cent."""
    pair, flux, peak = blank(psf), [], []
    middle = STEP // 2 + STEP * np.stack(np.divmod(np.arange(len(PLACES)), COLUMNS)[::-1], axis=-1)  # (n, 2): x, y
    x, y = (middle + PLACES).T
    sky = band_images(pair)["VIS"].pixel_to_sky(x, y)
    table = QTable({"sky_centroid": sky, "flux_VIS": np.full(len(x), FLUX) * u.nJy})
    light = rosetta.inject(pair, table, seed=1, density=99 / u.arcmin**2)[0].space["VIS"].data / FLUX
    inside = np.hypot(*(np.indices((STEP, STEP)) - STEP // 2)) < half - 2  # beyond the stamp wings are estimated
    for (column, row), place in zip(middle - STEP // 2, PLACES, strict=True):
        drawn = light[row : row + STEP, column : column + STEP] * inside
        frame = {"nx": STEP, "ny": STEP, "wcs": galsim.JacobianWCS(-SCALE, 0, 0, SCALE)}
        exact = profile.drawImage(offset=tuple(place), **frame).array * inside
        exact *= drawn.sum() / exact.sum()
        flux.append(abs((drawn * exact).sum() / (exact**2).sum() - 1))
        peak.append(np.abs(drawn - exact).max() / exact.max())
    return 100 * max(flux), 100 * max(peak)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_option(parser)
    tables, lines = Tables(parser.parse_args().tables), []
    for name, numbers in PSFS.items():
        profile = profile_of(*numbers)
        native = draw_psf(profile, 3.0, SCALE)
        half = len(native) // 2
        side = 2 * FINE * half + 1
        grid = {"nx": side, "ny": side, "wcs": galsim.JacobianWCS(-SCALE / FINE, 0, 0, SCALE / FINE)}
        pixel = galsim.Convolve(profile, galsim.Pixel(SCALE))
        fine = pixel.drawImage(method="no_pixel", dtype=float, **grid).array
        for kind, psf in (("native pixels", native), (f"{FINE} samples per pixel", PSF(fine, oversampling=FINE))):
            lines.append([f"{name}, {kind}", *(f"{value:.2f}" for value in errors(profile, psf, half))])
    tables.show("drawing", "injected stars", ["PSF", "flux, %", "peak, %"], lines)


if __name__ == "__main__":
    main()
