# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The numbers that decide what the shape and flux fits give; they are stored with the weights of a deblender."""

from dataclasses import dataclass

__all__ = ["EngineConfig"]


@dataclass(frozen=True)
class EngineConfig:
    """Settings of the fits.

    Attributes
    ----------
    iterations : int
        Gauss-Newton steps of a shape fit, at most.
    patience : int
        Sources whose steps are still being shortened may take this many times as many.
    settled : float
        Sigma: a source whose last step changed its images by less is left as it is.
    prior_sigma : tuple of float
        Widths of the Gaussian prior of a shape about its start, along `rosetta.deblending.shapes.DIRECTIONS`.
    largest_step : tuple of float
        The longest step along each direction.
    largest_scale : float
        arcsec: a larger source would be no galaxy, but a background or scattered light.
    largest_disc : float
        No source is larger than this many times the exponential disc that would have been detected with its segment,
    largest_residual : float
        and none that only the residuals showed is larger than this, arcsec.
    model_error : float
        Error of a model, relative: pixels of bright sources are known no better than the PSF is.
    faintest : float
        S/N below which an image cannot tell how broad a source is.
    broadest : float
        Sigma: no breadth goes further.
    tilt : float
        Power of a Gaussian's width that its weight goes with, per unit of an image's size gradient. At 2.5 an
        exponential disc becomes larger by half of what the gradient says.
    narrowest : float
        arcsec: Gaussians that are narrower count as this wide.
    size_gradient : float
        Scatter of d ln(half-light radius) / d ln(wavelength) of galaxies.
    psf_error : float
        Error of a PSF's width, relative.
    point_snr : float
        S/N below which a source is not tested for being a point: the smallest galaxies can pass for points.
    point_chi2 : float
        A point's chi2 may exceed that of the best shape by this much, in units of what a pixel has there.
    """

    iterations: int = 6
    patience: int = 3
    settled: float = 0.2
    prior_sigma: tuple = (0.05, 0.05, 0.4, 0.45, 0.45, 1.5, 0.8, 0.5, 0.5, 1.5)
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

    def __post_init__(self):
        for name in ("prior_sigma", "largest_step"):  # a configuration read back from JSON holds lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
