# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The main job on real pixels: a Euclid Q1 cutout, and a patch of COSMOS seen by HSC and by HST.

Neither was ever trained on. Run: python benchmarks/real_input.py DATA OUT
DATA holds euclid_q1_edfs_lens.fits, hsc_cosmos_cutout.fits, hsc_psf.fits, hst_cosmos_cutout.fits, hst_psf.fits.
"""

import sys
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import NDData
from astropy.wcs import WCS

from rosetta import (
    HSC,
    HST_ACS,
    AstrometricSolution,
    CrossSurveyEncoder,
    EmbeddingPhotometry,
    Flag,
    JEPADeblender,
    LearnedAligner,
    SkyPair,
    measure,
)
from rosetta.io import read_pair

ACS_ZERO_POINT = 25.94  # AB, F814W; the scale of this file is not documented: see the ratio printed below


def euclid_q1(data):
    """VIS and NIR from Euclid, griz that Euclid resampled to its own grid."""
    return SkyPair(*read_pair((), [data / "euclid_q1_edfs_lens.fits"]))


def hsc_hst(data):
    """Five HSC bands (zero point 27.0) and ACS F814W; no variance is given, so it is measured."""
    hsc, hst = fits.getdata(data / "hsc_cosmos_cutout.fits"), fits.getdata(data / "hst_cosmos_cutout.fits")
    hsc_psf, hst_psf = fits.getdata(data / "hsc_psf.fits"), fits.getdata(data / "hst_psf.fits")
    hsc_wcs = WCS(fits.getheader(data / "hsc_cosmos_cutout.fits")).celestial
    hst_wcs = WCS(fits.getheader(data / "hst_cosmos_cutout.fits"))
    njy = {name: 10 ** ((31.4 - zero) / 2.5) for name, zero in (("hsc", 27.0), ("hst", ACS_ZERO_POINT))}
    ground = {
        band: NDData(image * njy["hsc"], unit=u.nJy, wcs=hsc_wcs, psf=psf)
        for band, image, psf in zip("grizy", hsc, hsc_psf, strict=True)
    }
    space = {"F814W": NDData(hst * njy["hst"], unit=u.nJy, wcs=hst_wcs, psf=hst_psf)}
    return SkyPair(ground, space, surveys=(HSC, HST_ACS))


def report(name, result):
    catalog, offsets = result.catalog, result.offsets
    print(f"\n{name}: {len(catalog)} sources; {sum(result.seconds.values()):.1f} s")
    for survey, score, flags in result.embedding.to_table()["survey", "ood_score", "flags"].iterrows():
        print(f"    {survey}: out-of-distribution score {score:.2f}, {Flag(int(flags))!r}")
    solution = AstrometricSolution.from_table(offsets)
    print(f"    alignment: {solution.verdict} ({solution.reason})")
    for band in dict.fromkeys(offsets["band"]):
        rows = offsets[(offsets["band"] == band) & np.isfinite(offsets["d_dec"])]
        if len(rows):
            weight = 1 / (rows["d_ra_cosdec_err"] ** 2 + rows["d_dec_err"] ** 2)
            mean = [np.average(rows[c].to_value(u.mas), weights=weight.value) for c in ("d_ra_cosdec", "d_dec")]
            error = (weight.sum() / 2) ** -0.5
            print(f"    {band:5s} {len(rows):3d} sources, mean offset {mean[0]:+7.1f} {mean[1]:+7.1f} +- {error:.1f}")
    for band in result.pair.bands:
        residual = result.scene.residual(band)
        pull = (residual.data / np.sqrt(residual.uncertainty.array))[~residual.mask]
        snr = catalog[f"flux_{band}"] / catalog[f"flux_err_{band}"]
        print(
            f"    {band:5s} residual chi2 per pixel {np.mean(pull**2):5.2f}, NMAD of the pull "
            f"{1.4826 * np.median(np.abs(pull)):.2f}; sources at S/N > 5: {int(np.sum(snr > 5))}"
        )


def main(data, out):
    encoder = CrossSurveyEncoder.from_pretrained(device="cpu")
    heads = {
        name: kind.from_pretrained(encoder=encoder, device="cpu")
        for name, kind in (
            ("aligner", LearnedAligner), ("deblender", JEPADeblender), ("photometry", EmbeddingPhotometry)
        )
    }
    out.mkdir(exist_ok=True, parents=True)
    for name, load in (("euclid_q1", euclid_q1), ("hsc_hst", hsc_hst)):
        result = measure(load(data), encoder=encoder, **heads)
        result.write(out / name, overwrite=True)
        report(name, result)
        if name == "hsc_hst":
            ratio = result.catalog["flux_F814W"] / result.catalog["flux_i"]
            bright = result.catalog["flux_i"] / result.catalog["flux_err_i"] > 5
            print(f"    F814W / HSC i flux, median of {bright.sum()} bright sources: {np.median(ratio[bright]):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
