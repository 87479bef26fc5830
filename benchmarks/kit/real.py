# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Real images: Euclid Q1 cutouts, a patch of COSMOS seen by HSC and by HST, HSC blends, LSSTCam and COSMOS stamps.

In a folder: euclid_q1_*.fits, hsc_cosmos_cutout.fits, hsc_psf.fits, hst_cosmos_cutout.fits, hst_psf.fits,
hsc_blends/*.npz, hsc_blends_more/*.npz, lsstcam_stamps.npz and cosmos_f814w_galaxies.npz.
"""

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS

from rosetta import EUCLID, HSC, HST_ACS, RUBIN, SkyPair

__all__ = ["Q1", "all_pairs", "cosmos_galaxies", "euclid_q1", "hsc_blend", "hsc_blends", "hsc_hst", "lsstcam_stamps"]

Q1 = {"Q1 EDF-S": "edfs_lens", "Q1 EDF-N": "edfn_10arcsec", "Q1 ECDFS": "ecdfs_30arcsec"}
HSC_NJY = 10 ** (0.4 * (31.4 - 27.0))  # of one count
ACS_NJY = 10 ** (0.4 * (31.4 - 25.94))  # F814W; this file's scale is not documented: see the ratio of fluxes to HSC's
BAD = sum(1 << bit for bit in (0, 1, 4, 8))  # BAD SAT EDGE NO_DATA
NO_RMS = 1e10  # RMS values beyond mark pixels without data


def euclid_q1(data, name):
    """One Q1 cutout, named by a key of ``Q1``: VIS and NIR from Euclid, ground bands that Euclid resampled."""
    sides = {"ground": {}, "space": {}}
    with fits.open(data / f"euclid_q1_{Q1[name]}.fits") as hdus:
        for hdu in hdus:
            prefix, _, kind = hdu.name.rpartition("_")
            if kind not in ("FLUX", "BGSUB"):
                continue
            label = hdu.header["FILTER"]
            side = "space" if label.startswith(("VIS", "NIR")) else "ground"
            band = EUCLID[label].name if side == "space" else label[-1]
            njy = 10 ** (0.4 * (31.4 - hdu.header["MAGZERO"]))
            image, sigma, psf = (
                np.asarray(hdus[k].data, float) for k in (hdu.name, f"{prefix}_RMS", f"{prefix}_PSF")
            )
            mask = ~(np.isfinite(image) & (sigma > 0) & (sigma < NO_RMS))
            sides[side][band] = NDData(
                image * njy, uncertainty=VarianceUncertainty(np.where(mask, np.inf, sigma * njy) ** 2), mask=mask,
                wcs=WCS(hdu.header), unit=u.nJy, psf=psf,
                meta={"survey": EUCLID.name if side == "space" else label.rpartition("_")[0]},
            )  # fmt: skip
    ground = {band: sides["ground"][band] for band in RUBIN.band_names if band in sides["ground"]}
    return SkyPair(ground or None, {band: sides["space"][band] for band in EUCLID.band_names})


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


def hsc_blends(data, *folders):
    """Pairs and arrays of all blends in the folders, one after another."""
    for folder in folders:
        for path in sorted((data / folder).glob("*.npz")):
            yield hsc_blend(path)


def lsstcam_stamps(data):
    """Pairs of one band, and (sky position of the alert, flux and error of the survey in nJy), one after another."""
    content = np.load(data / "lsstcam_stamps.npz")
    for k, band in enumerate(content["band"]):
        image, variance, psf = (content[f"{name}_{k:02d}"].astype(float) for name in ("image", "variance", "psf"))
        mask = ~(np.isfinite(image) & (variance > 0) & np.isfinite(variance))
        wcs = WCS(fits.Header.fromstring(str(content[f"header_{k:02d}"])))
        stamp = NDData(image, uncertainty=VarianceUncertainty(variance), mask=mask, wcs=wcs, unit=u.nJy, psf=psf)
        place = SkyCoord(content["ra"][k], content["dec"][k], unit="deg")
        known = content["science_flux"][k], content["science_flux_err"][k]
        yield SkyPair({str(band): stamp}, None), (place, *known)


def cosmos_galaxies(data):
    """ACS F814W stamps of galaxies as NDData in nJy, 0.03", with their PSFs, and their magnitudes (n,)."""
    content = np.load(data / "cosmos_f814w_galaxies.npz")
    names = sorted(name.removeprefix("galaxy_") for name in content if name.startswith("galaxy_"))
    stamps = []
    for name, variance in zip(names, content["noise_variance"], strict=True):
        image = content[f"galaxy_{name}"].astype(float) * ACS_NJY
        noise = VarianceUncertainty(np.full(image.shape, variance * ACS_NJY**2))
        psf = content[f"psf_{name}"].astype(float)
        stamps.append(NDData(image, uncertainty=noise, mask=np.zeros(image.shape, bool), unit=u.nJy, psf=psf))
    return stamps, np.asarray(content["mag"], float)


def all_pairs(data):
    """Pairs of both surveys, and the first blends, of the files that are in the folder (dict by name)."""
    out = {}
    if (data / "euclid_q1_edfs_lens.fits").exists():
        out["Euclid Q1 with DES"] = euclid_q1(data, "Q1 EDF-S")
    if (data / "hsc_cosmos_cutout.fits").exists():
        out["HSC with HST"] = hsc_hst(data)
    return out | {f"HSC {path.stem}": hsc_blend(path)[0] for path in sorted((data / "hsc_blends").glob("*.npz"))}
