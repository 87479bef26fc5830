# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""An image whose PSF may differ from place to place, which CCDData alone cannot hold."""

from astropy.nddata import CCDData

from ..images.psf import PSF

__all__ = ["SurveyImage"]


class SurveyImage(CCDData):
    """A `~astropy.nddata.CCDData` to whose ``psf`` a `~rosetta.PSF` can be assigned.

    ``psf`` then is its mean over the image, a 2-D array, and ``psf_anywhere`` the `~rosetta.PSF` itself, which
    `~rosetta.SkyPair` uses. As in any CCDData, slicing drops both.
    """

    psf_anywhere = None

    @CCDData.psf.setter
    def psf(self, value):
        """Set the PSF: an array, a `~rosetta.PSF` or None."""
        self.psf_anywhere = value if isinstance(value, PSF) else None
        CCDData.psf.fset(self, value.mean_over(self.shape) if isinstance(value, PSF) else value)

    def copy(self):
        """A copy, ``psf_anywhere`` included."""
        new = super().copy()
        if self.psf_anywhere is not None:
            new.psf = self.psf_anywhere
        return new
