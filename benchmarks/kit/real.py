# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Real images: a Euclid Q1 cutout, a patch of COSMOS seen by HSC and by HST, and blends in HSC images.

In a folder: euclid_q1_edfs_lens.fits, hsc_cosmos_cutout.fits, hsc_psf.fits, hst_cosmos_cutout.fits, hst_psf.fits, and
hsc_blends/*.npz.
"""

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS

from rosetta import EUCLID, HSC, HST_ACS, SkyPair
from rosetta.io import read_pair

__all__ = ["all_pairs", "euclid_q1", "hsc_blend", "hsc_hst"]

HSC_NJY = 10 ** (0.4 * (31.4 - 27.0))  # of one count
ACS_NJY = 10 ** (0.4 * (31.4 - 25.94))  # F814W; this file's scale is not documented: see the ratio of fluxes to HSC's
BAD = sum(1 << bit for bit in (0, 1, 4, 8))  # BAD SAT EDGE NO_DATA


def euclid_q1(data):
    """VIS and NIR from Euclid, griz that Euclid resampled to its own grid."""
    return SkyPair(*read_pair((), [data / "euclid_q1_edfs_lens.fits"]))


def hsc_hst(data):
    """Five HSC bands and ACS F814W; no variance is given, so it is measured."""
    names = "hsc_cosmos_cutout", "hst_cosmos_cutout", "hsc_psf", "hst_psf"
    hsc, hst, hsc_psf, hst_psf = (fits.getdata(data / f"{name}.fits") for name in names)
    hsc_wcs, hst_wcs = (WCS(fits.getheader(data / f"{name}.fits")).celestial for name in names[:2])
    ground = {
        band: NDData(image * HSC_NJY, unit=u.nJy, wcs=hsc_wcs, psf=psf)
        for band, image, psf in zip("grizy", hsc, hsc_psf, strict=True)
    }
    space = {"F814W": NDData(hst * ACS_NJY, unit=u.nJy, wcs=hst_wcs, psf=hst_psf)}
    return SkyPair(ground, space, surveys=(HSC, HST_ACS))


def hsc_blend(path):
    """Five HSC bands of 0.168", placed anywhere on the sky, and the file's arrays (dict)."""
    content = dict(np.load(path))
    ny, nx = content["images"].shape[1:]
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 2.0]
    wcs.wcs.crpix, wcs.wcs.cdelt = [(nx + 1) / 2, (ny + 1) / 2], [-0.168 / 3600, 0.168 / 3600]
    masks = (content["mask"] & BAD) != 0 if content["mask"].ndim == 3 else [None] * 5
    planes = zip("grizy", content["images"], content["variance"], masks, content["psfs"], strict=True)
    ground = {
        band: NDData(
            image * HSC_NJY, uncertainty=VarianceUncertainty(variance * HSC_NJY**2), mask=mask, wcs=wcs, unit=u.nJy,
            psf=psf.astype(float),
        )
        for band, image, variance, mask, psf in planes
    }  # fmt: skip
    return SkyPair(ground, None, surveys=(HSC, EUCLID)), content


def all_pairs(data):
    """Pairs of the files that are in the folder (dict by name)."""
    out = {}
    if (data / "euclid_q1_edfs_lens.fits").exists():
        out["Euclid Q1 with DES"] = euclid_q1(data)
    if (data / "hsc_cosmos_cutout.fits").exists():
        out["HSC with HST"] = hsc_hst(data)
    return out | {f"HSC {path.stem}": hsc_blend(path)[0] for path in sorted((data / "hsc_blends").glob("*.npz"))}
