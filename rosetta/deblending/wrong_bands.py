# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Bands whose PSF, positions or units are not what is said of them, known from the fits of their bright sources."""

import numpy as np

__all__ = ["wrong_bands"]

POOR_SHARE = 0.03  # of the light's power in the residuals of most bright sources: no source of the band is trusted
POOR_BREADTH = 2.0  # of most bright sources, in standard deviations of colour gradients and PSF errors: nor then
BRIGHT, FEWEST = 20.0, 5  # S/N from which a source tells of its band, and how many are needed
COLOUR, COLOUR_SLOPE = 1.5, 7.5  # mag, and mag per unit of ln(wavelength): few sources are redder than that


def wrong_bands(fits, images, reference):
    """Bands that contradict the templates as a whole: their PSF, positions or units are not what is said of them.

    Parameters
    ----------
    fits : dict of str to `~rosetta.deblending.band_fit.BandFit`
    images : dict of str to `~rosetta.images.image.BandImage`
    reference : str
        Band of the templates.

    Returns
    -------
    list of str
    """
    wrong = []
    for band, fit in fits.items():
        if band == reference:
            continue
        apart = abs(np.log(images[band].wavelength / images[reference].wavelength))
        unlike = unexplained(fit) > POOR_SHARE or abs(typical_breadth(fit)) > POOR_BREADTH
        if unlike or implausible(fit, fits[reference], apart) > 0.5:
            wrong.append(band)
    return wrong


def _sigma(fit):
    """Error of each flux from uncorrelated pixels, nJy; NaN where there is no pixel."""
    seen = fit.measured & (fit.pixels > 0)
    return np.sqrt(np.where(seen, fit.covariance.diagonal(), np.nan)) / fit.noise


def unexplained(fit):
    """Share of the power of the light that the models leave in a band's residuals: the median of bright sources.

    The power in a source's footprint is the squared significance of its flux, and what chi2 has in excess of noise.
    Where the PSF or the positions of a band are wrong, most sources have such an excess; a galaxy whose shape is no
    template's says nothing of others. 0 where there are too few bright sources to tell.
    """
    sigma = _sigma(fit)
    if np.isnan(sigma).all():
        return 0.0
    # Variances may be too small. Where pixels are smoothed, chi2 is below 1 on the sky, but not in bright cores.
    noise = max(np.quantile(fit.chi2[~np.isnan(sigma)], 0.25), 1.0)
    excess = np.maximum(fit.pixels * (fit.chi2 - noise), 0.0)
    power = (fit.flux / sigma) ** 2 + excess
    bright = power > (BRIGHT * fit.noise) ** 2
    return float(np.median((excess / power)[bright])) if bright.sum() >= FEWEST else 0.0


def typical_breadth(fit):
    """Median breadth of a band's bright sources; 0 where there are too few to tell.

    Colour gradients scatter about 0, and an error of the PSF's width is common to all.
    """
    bright = fit.flux > BRIGHT * fit.noise * _sigma(fit)
    return float(np.median(fit.breadth[bright])) if bright.sum() >= FEWEST else 0.0


def implausible(fit, sharp, apart):
    """Share of the sources whose colour no ordinary spectrum has, of those bright enough to tell.

    A band with a wrong frame shows other sky at the positions of the sources, most often none of their light.

    Parameters
    ----------
    fit, sharp : `~rosetta.deblending.band_fit.BandFit`
        Of a band, and of the reference band.
    apart : float
        Between the bands, in ln(wavelength).
    """
    faintest = sharp.flux * 10 ** (-0.4 * (COLOUR + COLOUR_SLOPE * apart))
    bright = (sharp.flux > BRIGHT * _sigma(sharp)) & (faintest > BRIGHT / 2 * _sigma(fit))
    return float(np.mean(fit.flux[bright] < faintest[bright])) if bright.sum() >= FEWEST else 0.0
