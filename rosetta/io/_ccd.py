# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A CCDData whose PSF may differ from place to place."""

from astropy.nddata import CCDData

from ..images.psf import PSF

__all__ = ["VaryingCCDData"]


class VaryingCCDData(CCDData):
    """A `~astropy.nddata.CCDData` whose ``psf`` may also be a `~rosetta.PSF`.

    A FITS file written from it holds the mean PSF of the image, since that is all such a file can hold.
    """

    @CCDData.psf.setter
    def psf(self, value):
        """Set an array, a `~rosetta.PSF` or None."""
        if isinstance(value, PSF):
            self._psf = value
        else:
            CCDData.psf.fset(self, value)

    def to_hdu(self, *args, **kwargs):
        """As `~astropy.nddata.CCDData.to_hdu`, with the mean PSF."""
        plain = CCDData(self.data, unit=self.unit, mask=self.mask, uncertainty=self.uncertainty, wcs=self.wcs)
        plain.meta = self.meta
        plain.psf = self.psf.mean_over(self.shape) if isinstance(self.psf, PSF) else self.psf
        return plain.to_hdu(*args, **kwargs)
