# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Settings of the shape and flux fits; they are stored with the weights of a deblender."""

from dataclasses import dataclass

__all__ = ["EngineConfig"]


@dataclass(frozen=True)
class EngineConfig:
    """Settings of the fits.

    The breadth of a source in a band says how much broader than its template it is, in units of the prior's sigma.

    Attributes
    ----------
    iterations : int
        Gauss-Newton steps of a shape fit, at most.
    patience : int
        A source whose steps are still being shortened may take this many times ``iterations``.
    settled : float
        A source has converged if its last step changed its images by less than this many sigma.
    prior_sigma : tuple of float
        Widths of the Gaussian prior of a shape about its start: centre (arcsec), ln of the scale, shears.
    profile_mean, profile_covariance : tuple
        Gaussian prior of a galaxy's light profile, along the other `rosetta.deblending.shapes.DIRECTIONS`, core to
        wings, about an exponential disc. Bright cores go with bright wings, which lie below the noise.
    largest_step : tuple of float
        The longest step along each direction.
    largest_scale : float
        Largest half-light radius, arcsec. A larger source would be background or scattered light.
    largest_disc : float
        Largest size, as a multiple of the exponential disc that would have been detected with the same segment.
    largest_residual : float
        Largest half-light radius of a source found in the residuals, arcsec.
    model_error : float
        Relative error of a model, because the PSF has an error; added to the noise in pixels of bright sources.
    faintest : float
        S/N below which the breadth of a source is not fitted.
    broadest : float
        Largest absolute breadth.
    tilt : float
        The weights of a source's Gaussians are multiplied by width**p, with p = tilt * size gradient * breadth. At 2.5
        the half-light radius of an exponential disc changes by half the size gradient.
    narrowest : float
        Smallest width of a Gaussian in this product, arcsec.
    size_gradient : float
        Scatter of d ln(half-light radius) / d ln(wavelength) of galaxies.
    psf_error : float
        Error of a PSF's width, relative.
    point_snr : float
        S/N below which a source is not tested for being a point source: small galaxies would pass the test.
    point_chi2 : float
        A source is a point source if its chi2 exceeds that of the best shape by less than this many times the chi2 per
        pixel there.
    sky_level, sky_slope : float
        What a survey leaves of the sky, one sigma, in units of the sky noise per pixel: of the level, and of the slope
        per arcsec. Where the pixels cannot tell sky from the wings of a galaxy, the plane is no larger than that.
    """

    iterations: int = 6
    patience: int = 3
    settled: float = 0.2
    prior_sigma: tuple = (0.05, 0.05, 0.4, 0.45, 0.45)
    profile_mean: tuple = (2.83, 1.26, 0.32, 0.26, -0.11)  # from tools/profile_prior.py, as the covariance
    profile_covariance: tuple = (
        (3.71, 1.89, 0.49, 1.23, 0.18),
        (1.89, 1.34, 0.43, 0.88, 0.13),
        (0.49, 0.43, 0.37, 0.27, -0.01),
        (1.23, 0.88, 0.27, 1.43, 0.19),
        (0.18, 0.13, -0.01, 0.19, 0.24),
    )
    largest_step: tuple = (0.2, 0.2, 0.7, 0.7, 0.7, 1.0, 1.0, 1.0, 1.0, 1.0)
    largest_scale: float = 5.0
    largest_disc: float = 3.0
    largest_residual: float = 1.5
    model_error: float = 0.01
    faintest: float = 5.0
    broadest: float = 3.0
    tilt: float = 2.5
    narrowest: float = 0.02
    size_gradient: float = 0.3
    psf_error: float = 0.02
    point_snr: float = 20.0
    point_chi2: float = 4.0
    sky_level: float = 0.1
    sky_slope: float = 0.005

    def __post_init__(self):
        for name in ("prior_sigma", "profile_mean", "largest_step"):  # a configuration read back from JSON holds lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "profile_covariance", tuple(map(tuple, self.profile_covariance)))
