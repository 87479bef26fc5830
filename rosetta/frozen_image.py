# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The image that a pair holds: an `~astropy.nddata.NDData` that cannot be changed."""

import copy

import astropy.units as u
from astropy.nddata import NDData, VarianceUncertainty

from .images.wcs import packed, slice_wcs, unpacked

__all__ = ["cut_image", "frozen_image"]

NJY = u.nJy


class _Image(NDData):
    """An image that cannot be changed: its arrays are read-only; uncertainty, WCS and meta are handed out as copies."""

    def __setattr__(self, name, value):
        if "_frozen" in self.__dict__:
            raise AttributeError(f"images of a SkyPair are read-only ({name}): make a new one, as with CCDData(image)")
        super().__setattr__(name, value)

    @NDData.uncertainty.getter
    def uncertainty(self):
        """Variance; its array is that of the image, which is read-only."""
        return VarianceUncertainty(self._uncertainty.array, copy=False, unit=NJY**2)

    @NDData.wcs.getter
    def wcs(self):
        """A copy of the WCS."""
        return copy.deepcopy(self._wcs)

    @property
    def meta(self):
        """A copy of the header or other notes."""
        return copy.deepcopy(self._meta)

    @meta.setter
    def meta(self, value):
        self._meta = value

    def __reduce__(self):
        # Arrays come back from pickle and deepcopy writeable, a FITS WCS from pickle with 14 digits.
        array = self._uncertainty.array
        return _unpickled, (self.data, array, self.mask, packed(self._wcs), self._meta, self.psf_anywhere)


def _unpickled(data, variance, mask, wcs, meta, psf):
    """The image that `_Image.__reduce__` took apart."""
    return frozen_image(data, variance, mask, unpacked(wcs), meta, psf)


def frozen_image(data, variance, mask, wcs, meta, psf):
    """A read-only image made of arrays that have been checked.

    Parameters
    ----------
    data, variance, mask : (ny, nx) array
        nJy, nJy^2 and bool; they become read-only.
    wcs : APE-14 WCS
    meta : dict
    psf : `~rosetta.PSF` or None

    Returns
    -------
    `~astropy.nddata.NDData`
        Its ``psf`` is the mean PSF of the image, an array or None; ``psf_anywhere`` is that of every place.
    """
    stamp = None if psf is None else psf.mean_over(data.shape)
    for array in (data, variance, mask, stamp):
        if array is not None:
            array.setflags(write=False)
    uncertainty = VarianceUncertainty(variance, copy=False, unit=NJY**2)
    image = _Image(data, uncertainty=uncertainty, mask=mask, wcs=wcs, meta=meta, unit=NJY, psf=stamp)
    image.psf_anywhere = psf
    image._frozen = True
    return image


def cut_image(image, bounds):
    """The read-only image on the pixels ``(y0, y1, x0, x1)``."""
    y0, y1, x0, x1 = bounds
    window = (slice(y0, y1), slice(x0, x1))
    wcs = slice_wcs(image.wcs, window)
    psf = None if image.psf_anywhere is None else image.psf_anywhere.cut(x0, y0)
    return frozen_image(
        image.data[window], image.uncertainty.array[window], image.mask[window], wcs, image.meta, psf
    )
