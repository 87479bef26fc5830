# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What separates the images that a survey delivers from ideal ones, as numbers."""

from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["IDEAL", "REAL", "Delivery"]


@dataclass(frozen=True)
class Delivery:
    """How images are delivered. The sky, the PSF that it is seen with and the noise do not depend on it.

    Parameters
    ----------
    psf_exact, psf_cut, psf_stars, psf_constant, psf_width, psf_wings : float
        Chance, for each band, of the PSF that is given: the true one at every place; a stamp of 21 to 47 pixels cut
        out of it and normalised to one; an estimate from 3 to 30 noisy stars; that of the field's centre for the whole
        field; one of a width that is off by ``width_error``; one with wings off by ``wing_error``. They sum to 1.
    width_error : float
        Standard deviation of the relative error of the width.
    wing_error : float
        Relative error of the light in the wings, of either sign.
    correlated : float
        1 if exposures are resampled to the grid of the image, so that the noise of all bands is correlated; 0 if only
        that of bands with a larger native pixel is.
    scatter_variance : float
        Chance that the given variance is the scatter of the pixels, and not that of the white noise with which point
        sources would be measured as well.
    sky_variance : float
        Chance that the given variance is that of the sky alone, without the photon noise of the sources.
    pedestal, gradient : float
        Standard deviations, in units of the sky noise per pixel, of a constant and of a slope (from centre to border)
        that are left of the sky.
    bowl : float
        Largest over-subtraction of the sky around bright sources, in units of the sky noise per pixel.
    missing : float
        Chance that a band lacks a strip of the field.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or the chances of the PSFs do not sum to 1.
    """

    psf_exact: float = 1.0
    psf_cut: float = 0.0
    psf_stars: float = 0.0
    psf_constant: float = 0.0
    psf_width: float = 0.0
    psf_wings: float = 0.0
    width_error: float = 0.02
    wing_error: float = 0.2
    correlated: float = 0.0
    scatter_variance: float = 0.0
    sky_variance: float = 0.0
    pedestal: float = 0.0
    gradient: float = 0.0
    bowl: float = 0.0
    missing: float = 0.0

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not 0 <= value < np.inf:
                raise ValueError(f"{name} is {value}: it must be finite and not negative")
        total = sum(self.psf_chances.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"psf_exact to psf_wings sum to {total:g}: they are chances and must sum to 1")

    @property
    def psf_chances(self):
        """Chance of each kind of given PSF (dict of str to float)."""
        return {name.removeprefix("psf_"): value for name, value in asdict(self).items() if name[:4] == "psf_"}


#: The true PSF, noise that is white where pixels are native, exact variances, no residual of the sky.
IDEAL = Delivery()

#: As surveys deliver: from the stamps, variance maps and skies of Euclid Q1, HSC and Rubin.
REAL = Delivery(
    psf_exact=0.15,
    psf_cut=0.3,
    psf_stars=0.2,
    psf_constant=0.15,
    psf_width=0.1,
    psf_wings=0.1,
    correlated=1.0,
    scatter_variance=0.4,
    sky_variance=0.4,
    pedestal=0.05,
    gradient=0.05,
    bowl=0.25,
    missing=0.05,
)
