# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The main job on real pixels: a Euclid Q1 cutout, and a patch of COSMOS seen by HSC and by HST.

No model was trained on either. Run: python benchmarks/real_input.py DATA OUT
DATA holds the files that benchmarks/kit/real.py names; OUT receives the products.
"""

import sys
from pathlib import Path

import astropy.units as u
import numpy as np
from kit.real import euclid_q1, hsc_hst
from kit.statistics import nmad

from rosetta import AstrometricSolution, Flag, measure


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
            f"    {band:5s} residual chi2 per pixel {np.mean(pull**2):5.2f}, NMAD of the pull {nmad(pull):.2f}; "
            f"sources at S/N > 5: {int(np.sum(snr > 5))}"
        )


def main(data, out):
    out.mkdir(parents=True, exist_ok=True)
    for name, load in (("euclid_q1", euclid_q1), ("hsc_hst", hsc_hst)):
        result = measure(load(data), device="cpu")
        result.write(out / name, overwrite=True)
        report(name, result)
        if name == "hsc_hst":
            ratio = result.catalog["flux_F814W"] / result.catalog["flux_i"]
            bright = result.catalog["flux_i"] / result.catalog["flux_err_i"] > 5
            print(f"    F814W / HSC i flux, median of {bright.sum()} bright sources: {np.median(ratio[bright]):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
