# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What deblending asks of its numerical engine, and the engine that it has."""

from typing import Protocol

from .config import EngineConfig
from .fluxes import WhiteNoise, amplitudes, solve
from .shape_fit import broadened, design_of, fit_breadths, fit_shapes, flux_slopes

__all__ = ["Engine", "SparseEngine"]


class Engine(Protocol):
    """Renders sources and fits them to images.

    Sources are Gaussian mixtures (n, K, 6), or vectors of `rosetta.deblending.shapes`; they lie on an image as a
    `Placement` says. A design is the unit-flux images of all sources, a `Design`.
    """

    config: EngineConfig

    def render(self, mixtures, placed, breadth=None, sizes=None):
        """The design of sources as an image sees them: of a ``breadth`` (n,), on stamps of ``sizes`` (n,)."""

    def fit_shapes(self, start, placements, largest, free=None):
        """Shapes from several images: ``moved`` (n, n_shape) along ``DIRECTIONS``, and its covariance.

        No half-light radius exceeds ``largest`` (n,), arcsec; what is not ``free`` (n, n_shape) stays as it is.
        """

    def fit_breadths(self, mixtures, placed, *, iterations=2, first=None):
        """How broad an image sees known shapes: ``breadth`` (n,), relative flux error from it (n,), and the design.

        ``first`` is what is known of breadths of 0: the design, and fluxes (n,).
        """

    def fluxes(self, design, image):
        """Fluxes (n,), and their S/N (n,) as if each source were alone."""

    def solve(self, design, image, sky=None, *, errors=True):
        """Fluxes with their covariance, and a local sky if there is one to solve for: a `Solution`.

        Without ``errors`` it has no covariance, and is found much sooner.
        """

    def slopes(self, parameters, placed):
        """d ln(flux) / d(shape) of the weighted fit of an isolated source, (n, n_shape)."""


class SparseEngine:
    """The `Engine` on numpy: stamps by Fourier transform, normal equations by overlapping rectangles.

    Parameters
    ----------
    config : `EngineConfig`
    """

    def __init__(self, config=None):
        self.config = EngineConfig() if config is None else config

    def render(self, mixtures, placed, breadth=None, sizes=None):
        if breadth is not None:
            mixtures = broadened(mixtures, breadth, placed, self.config)
        return design_of(mixtures, placed, sizes)

    def fit_shapes(self, start, placements, largest, free=None):
        return fit_shapes(start, placements, largest, self.config, free)

    def fit_breadths(self, mixtures, placed, *, iterations=2, first=None):
        return fit_breadths(mixtures, placed, self.config, iterations=iterations, first=first)

    def fluxes(self, design, image):
        return amplitudes(design, image.data, image.sky_weight)

    def solve(self, design, image, sky=None, *, errors=True):
        return solve(design, image.data, WhiteNoise(image.variance), image.sky_weight, sky, errors=errors)

    def slopes(self, parameters, placed):
        return flux_slopes(parameters, placed)
