# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Bands whose PSF, positions or units are not what is said of them, known from the fits of their bright sources."""

from dataclasses import dataclass

import numpy as np

__all__ = ["WrongBandsConfig", "wrong_bands"]


@dataclass(frozen=True)
class WrongBandsConfig:
    """When no source of a band is trusted.

    Attributes
    ----------
    poor_share : float
        Of the light's power in the residuals of most bright sources.
    poor_breadth : float
        Breadth of most bright sources, in standard deviations of colour gradients and PSF errors.
    bright : float
        S/N from which a source tells of its band.
    fewest : int
        Bright sources that are needed.
    colour, colour_slope : float
        mag, and mag per unit of ln(wavelength): few sources are redder than that.
    """

    poor_share: float = 0.03
    poor_breadth: float = 2.0
    bright: float = 20.0
    fewest: int = 5
    colour: float = 1.5
    colour_slope: float = 7.5


def wrong_bands(fits, images, reference, config):
    """Bands that contradict the templates as a whole: their PSF, positions or units are not what is said of them.

    Parameters
    ----------
    fits : dict of str to `~rosetta.deblending.band_fit.BandFit`
    images : dict of str to `~rosetta.images.image.BandImage`
    reference : str
        Band of the templates.
    config : `WrongBandsConfig`

    Returns
    -------
    list of str
    """
    wrong = []
    for band, fit in fits.items():
        if band == reference:
            continue
        apart = abs(np.log(images[band].wavelength / images[reference].wavelength))
        unlike = unexplained(fit, config) > config.poor_share or abs(typical_breadth(fit, config)) > config.poor_breadth
        if unlike or implausible(fit, fits[reference], apart, config) > 0.5:
            wrong.append(band)
    return wrong


def _sigma(fit):
    """Error of each flux from uncorrelated pixels, nJy; NaN where there is no pixel."""
    seen = fit.measured & (fit.pixels > 0)
    return np.sqrt(np.where(seen, fit.covariance.diagonal(), np.nan)) / fit.noise


def unexplained(fit, config):
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
    bright = power > (config.bright * fit.noise) ** 2
    return float(np.median((excess / power)[bright])) if bright.sum() >= config.fewest else 0.0


def typical_breadth(fit, config):
    """Median breadth of a band's bright sources; 0 where there are too few to tell.

    Colour gradients scatter about 0, and an error of the PSF's width is common to all.
    """
    bright = fit.flux > config.bright * fit.noise * _sigma(fit)
    return float(np.median(fit.breadth[bright])) if bright.sum() >= config.fewest else 0.0


def implausible(fit, sharp, apart, config):
    """Share of the sources whose colour no ordinary spectrum has, of those bright enough to tell.

    A band with a wrong frame shows other sky at the positions of the sources, most often none of their light.

    Parameters
    ----------
    fit, sharp : `~rosetta.deblending.band_fit.BandFit`
        Of a band, and of the reference band.
    apart : float
        Between the bands, in ln(wavelength).
    config : `WrongBandsConfig`
    """
    faintest = sharp.flux * 10 ** (-0.4 * (config.colour + config.colour_slope * apart))
    bright = (sharp.flux > config.bright * _sigma(sharp)) & (faintest > config.bright / 2 * _sigma(fit))
    return float(np.mean(fit.flux[bright] < faintest[bright])) if bright.sum() >= config.fewest else 0.0
