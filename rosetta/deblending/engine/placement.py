# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Sources as they lie on one image: all that the engine is told of the sky."""

from dataclasses import dataclass, replace

import numpy as np

__all__ = ["Placement"]


@dataclass(frozen=True, eq=False)
class Placement:
    """Sources on one image.

    Attributes
    ----------
    image : object
        With ``data`` and ``variance`` (ny, nx; nJy and nJy^2; the variance is infinite where a pixel must not be used),
        ``sky_weight`` (ny, nx; weights in the fits, 0 where a pixel must not be used) and ``psf`` (`~rosetta.PSF`):
        a `~rosetta.images.image.BandImage`.
    xy : (n, 2) array
        Source positions, 0-based pixels.
    jacobian : (n, 2, 2) array
        d(x, y) / d(east, north), pixel per arcsec.
    truncation : (n,) array
        Share of each source's light that its stamp may leave out.
    size_gradient : float
        How much the logarithm of a source's size varies between this image and the sharpest one, one sigma.
    psf_blur : float
        Error of the PSF's variance, arcsec^2, one sigma.
    """

    image: object
    xy: np.ndarray
    jacobian: np.ndarray
    truncation: np.ndarray
    size_gradient: float = 0.0
    psf_blur: float = 0.0

    def __len__(self):
        return len(self.xy)

    @property
    def shape(self):
        """(ny, nx) of the image."""
        return self.image.data.shape

    def of(self, rows):
        """Some of the sources."""
        return replace(self, xy=self.xy[rows], jacobian=self.jacobian[rows], truncation=self.truncation[rows])
