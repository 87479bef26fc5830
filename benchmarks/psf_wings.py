# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The light beyond PSF stamps, as it is estimated from the stamps, against the truth.

Stamps of 31 to 121 pixels, normalised as a user would give them, of obscured diffraction patterns (VIS and H_E), and of
Moffat and Kolmogorov profiles.

Run: python benchmarks/psf_wings.py [--tables FOLDER]
"""

import argparse

import astropy.units as u
import galsim
import numpy as np
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS
from kit.tables import Tables, add_option

from rosetta import SkyPair

HALVES = (15, 20, 25, 30, 40, 50, 60)  # pixels


def diffraction(size, obscuration, jitter):
    """An obscured aperture's PSF (``size`` is lambda / D, arcsec) blurred by a Gaussian."""
    return galsim.Convolve(galsim.Airy(lam_over_diam=size, obscuration=obscuration), galsim.Gaussian(sigma=jitter))


KINDS = {  # pixel scale (arcsec), profiles
    "diffraction, VIS": (0.1, [diffraction(d, o, j) for d in (0.11, 0.12, 0.13) for o in (0.3, 0.36, 0.4)
                               for j in (0.03, 0.06)]),
    "diffraction, H_E": (0.1, [diffraction(d, 0.34, 0.1) for d in (0.2, 0.25, 0.3)]),
    "Moffat": (0.2, [galsim.Moffat(beta, fwhm=w) for beta in (2.5, 3.0, 3.5, 4.765) for w in (0.7, 0.9)]),
    "Kolmogorov": (0.2, [galsim.Kolmogorov(fwhm=w) for w in (0.7, 0.9)]),
}  # fmt: skip


def estimated(stamp, scale):
    """Light beyond the stamp as `SkyPair` estimates it."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53.1, -28.1], [32.5, 32.5]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    noise = VarianceUncertainty(np.ones((64, 64)))
    image = NDData(np.zeros((64, 64)), wcs=wcs, unit=u.nJy, uncertainty=noise)
    return 1 - SkyPair({"r": image}, psf={"r": stamp / stamp.sum()}).psf("r").light[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_option(parser)
    options, lines = parser.parse_args(), []
    for kind, (scale, profiles) in KINDS.items():
        true, error = [], []
        for profile in profiles:
            for half in HALVES:
                n = 2 * half + 1
                stamp = profile.drawImage(nx=n, ny=n, scale=scale, dtype=float).array
                true.append(1 - stamp.sum())
                error.append(estimated(stamp, scale) - true[-1])
        true, error = 100 * np.array(true), 100 * np.array(error)
        rms, worst = np.sqrt((error**2).mean()), np.abs(error).max()
        lines.append([kind, len(error), *(f"{v:.2f}" for v in (true.mean(), error.mean(), rms, worst))])
    header = ["PSF", "stamps", "true light beyond, %", "bias, %", "rms error, %", "worst, %"]
    Tables(options.tables).show("psf_wings", "Light beyond PSF stamps", header, lines)


if __name__ == "__main__":
    main()
