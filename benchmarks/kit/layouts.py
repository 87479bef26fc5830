# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Simulated images in the layout of real ones: pixel scale, size, noise level, and size and width of the given PSF."""

from dataclasses import replace

import astropy.units as u
import numpy as np
from astropy.nddata import NDData

from rosetta.simulate import simulate_pair

from .appearance import fwhm_of, sigma_of

__all__ = ["cut_out", "simulated"]

OPTIONS = {"families": "all"}  # of every simulation here
SMALLEST = 6.2  # arcsec; a field that can be simulated
TURNS = 2  # corrections of width and depth
EMPTY = 1e-3  # density of galaxies where only the PSF is of interest


def simulated(images, surveys, seed, *, delivery, size=None, native=None, density=1.0):
    """Images like the given ones.

    Parameters
    ----------
    images : dict of str to `~astropy.nddata.NDData`
        Real images of one size.
    surveys : tuple of two `~rosetta.Survey`
        With the pixel scales of the images; bands, depths and PSF widths are set here.
    seed : int
    delivery : `~rosetta.simulate.Delivery`
        How the images are delivered.
    size : float, optional
        Width of the field, arcsec; None: that of the images.
    native : dict of str to float, optional
        Pixel of the detector where a band was resampled to finer pixels, arcsec.
    density : float
        Of galaxies.

    Returns
    -------
    images : dict of str to `~astropy.nddata.NDData`
        In nJy, of the size of the real ones unless ``size`` is given; PSFs cut to the size of the real stamps.
    truth : `~astropy.table.QTable`
    """
    shape = next(iter(images.values())).data.shape
    wanted = {band: (fwhm_of(image.psf), sigma_of(image)) for band, image in images.items()}
    native = native or {}

    def with_bands(survey, factor, shift):
        scale, bands = survey.pixel_scale.value, []
        for band in survey.bands:
            if band.name in images:
                fwhm, sigma = wanted[band.name]
                psf = np.asarray(images[band.name].psf, float)
                depth = 31.4 - 2.5 * np.log10(5 * sigma / np.sqrt(np.sum((psf / psf.sum()) ** 2)))
                pixel = native.get(band.name)
                band = replace(
                    band, psf_fwhm=fwhm * factor[band.name] * scale * u.arcsec, depth=depth + shift[band.name],
                    native_pixel=band.native_pixel if pixel is None else pixel * u.arcsec,
                )  # fmt: skip
            bands.append(band)
        return replace(survey, bands=tuple(bands))

    def simulate(field, factor, shift, **options):
        chosen = tuple(with_bands(survey, factor, shift) for survey in surveys)
        pair, truth = simulate_pair(
            seed=seed, size=field * u.arcsec, surveys=chosen, bands=list(images), delivery=delivery,
            **OPTIONS, **options
        )
        found = {band: image for _, band, image in pair.images()}
        return {band: _with_stamp(found[band], images[band].psf.shape) for band in images}, truth

    factor, shift = dict.fromkeys(images, 1.0), dict.fromkeys(images, 0.0)
    for _ in range(TURNS):  # the PSF of a seed is known once it is drawn
        trial, _ = simulate(SMALLEST, factor, shift, density=EMPTY, noise=False, defects=False)
        for band, (fwhm, sigma) in wanted.items():
            factor[band] *= fwhm / fwhm_of(trial[band].psf)
            shift[band] += 2.5 * np.log10(sigma_of(trial[band]) / sigma)
    scale = min(survey.pixel_scale.value for survey in surveys if any(b in images for b in survey.band_names))
    out, truth = simulate(max(SMALLEST, max(shape) * scale) if size is None else size, factor, shift, density=density)
    if size is None:
        middle = {band: [(n - 1) / 2 for n in image.data.shape[::-1]] for band, image in out.items()}
        out = {band: cut_out(image, *middle[band], shape) for band, image in out.items()}
    return out, truth


def _with_stamp(image, shape):
    """The image with its PSF cut to a stamp's shape."""
    half = [min(n, m) // 2 for n, m in zip(shape, image.psf.shape, strict=True)]
    middle = [n // 2 for n in image.psf.shape]
    psf = image.psf[tuple(slice(m - h, m + h + 1) for m, h in zip(middle, half, strict=True))]
    kept = {name: getattr(image, name) for name in ("data", "uncertainty", "mask", "wcs", "unit")}
    return NDData(**kept, psf=psf / psf.sum())


def cut_out(image, x, y, shape):
    """A stamp of ``shape`` about a position, None if it does not lie on the image or has no valid pixel."""
    low = [round(c - (n - 1) / 2) for c, n in zip((y, x), shape, strict=True)]
    if min(low) < 0 or any(a + n > m for a, n, m in zip(low, shape, image.data.shape, strict=True)):
        return None
    cut = tuple(slice(a, a + n) for a, n in zip(low, shape, strict=True))
    if image.mask[cut].all():
        return None
    noise = type(image.uncertainty)(image.uncertainty.array[cut])
    return NDData(image.data[cut], uncertainty=noise, mask=image.mask[cut], unit=image.unit, psf=image.psf)
