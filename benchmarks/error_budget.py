# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Where the scatter of fluxes comes from: the same fields with more and more of the truth given.

Fields of benchmarks/accuracy.py, on development seeds. i-band flux over truth less one: with own detection and shapes;
the same positions with the light of all sources that were not found taken out of the images; true light at true
positions, of the sources that were found only and of all; and its noise.

Run: python benchmarks/error_budget.py FOLDER [--fields 3] [--first-seed 9410] [--tables FOLDER]

FOLDER keeps the simulated fields.
"""


import astropy.units as u
import numpy as np
from _tables import Tables, parser_of_fields
from accuracy import field, nmad
from astropy.nddata import NDData

from rosetta import CrossSurveyEncoder, Flag, JEPADeblender, LearnedAligner, SkyPair
from rosetta.deblending.band_fit import fit_band, image_of
from rosetta.deblending.engine.design import Design
from rosetta.deblending.engine.rendering import render, stamp_sizes
from rosetta.images.image import band_images
from rosetta.matching import match

MAGS = (18, 22, 23, 24, 25, 26)
BAND = "i"
LEAST = 1e-4  # share of the light that stamps of true sources may leave out


def true_light(truth, rows):
    """Mixtures of some true sources, and their positions in the space frame and in the ground headers' one."""
    coord = truth["sky_centroid"].icrs[rows]
    header = coord.spherical_offsets_by(-truth["d_ra_cosdec"][rows], -truth["d_dec"][rows])
    return np.asarray(truth["mixture"], float)[rows], coord, header


def solved(plane, truth, rows, wavelength):
    """Fluxes and errors of some true sources with their true templates."""
    light, coord, header = true_light(truth, rows)
    n = len(light)
    image = image_of(plane, coord, header, np.full(n, LEAST), wavelength)
    fit, _ = fit_band(plane, image, light, np.zeros((n, 0)), np.arange(n))
    return fit.flux, np.sqrt(fit.covariance.diagonal())


def without(pair, truth, rows):
    """The pair less the light of some true sources."""
    light, coord, header = true_light(truth, rows)
    sides, planes = {"ground": {}, "space": {}}, band_images(pair)
    for side, band, image in pair.images():
        plane = planes[band]
        seen = image_of(plane, coord, header, np.full(len(light), LEAST))
        sizes = stamp_sizes(light, seen.jacobian, seen.psf, seen.share)
        design = Design(render(light, seen.xy, seen.jacobian, seen.psf, sizes=sizes), plane.shape, len(light))
        data = image.data - design.image(truth[f"flux_{band}"].to_value(u.nJy)[rows])
        sides[side][band] = NDData(
            data, uncertainty=image.uncertainty, mask=image.mask, wcs=image.wcs, unit=image.unit, psf=image.psf
        )
    return SkyPair(sides["ground"], sides["space"], surveys=pair.surveys)


def main():
    options = parser_of_fields(__doc__, 3, 9410).parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    encoder = CrossSurveyEncoder.from_pretrained(device="cpu")
    aligner, deblender = LearnedAligner.from_pretrained(encoder=encoder, device="cpu"), JEPADeblender(encoder)
    found = []
    for seed in range(options.first_seed, options.first_seed + options.fields):
        pair, truth = field(seed, options.folder)
        embedding = encoder(pair)
        offsets = aligner(embedding)
        scene = deblender(embedding, offsets=offsets)
        table, planes = scene.to_table(), band_images(pair)
        rows, true = match(table, truth, scene.meta["reference_band"])
        wavelength = planes[scene.meta["reference_band"]].wavelength
        known = truth[f"flux_{BAND}"].to_value(u.nJy)[true]
        missed = np.setdiff1d(np.arange(len(truth)), true)
        clean = deblender(without(pair, truth, missed), scene._templates.coord, offsets=offsets)
        every, noise = solved(planes[BAND], truth, np.arange(len(truth)), wavelength)
        fluxes = {
            "as measured": scene.flux(BAND).value[rows],
            "nothing undetected": clean.flux(BAND).value[rows],
            "true light, detected": solved(planes[BAND], truth, true, wavelength)[0],
            "true light, all": every[true],
        }
        found.append({name: flux / known - 1 for name, flux in fluxes.items()})
        found[-1] |= {
            "noise": noise[true] / known, "mag": 31.4 - 2.5 * np.log10(known),
            "blended": (np.asarray(table["flags"])[rows] & int(Flag.BLENDED)) != 0,
        }  # fmt: skip
    rows = {name: np.concatenate([f[name] for f in found]) for name in found[0]}
    names, lines = list(found[0])[:4], []
    for kind, of in (("isolated", ~rows["blended"]), ("blended", rows["blended"])):
        for low, high in zip(MAGS[:-1], MAGS[1:], strict=True):
            use = of & (rows["mag"] >= low) & (rows["mag"] < high) & np.isfinite(rows["as measured"])
            cells = [f"{nmad(rows[n][use]):.3f} ({np.median(rows[n][use]):+.3f})" for n in names]
            lines.append([f"{kind}, {low}-{high}", use.sum(), *cells, f"{np.median(rows['noise'][use]):.3f}"])
    title = "Scatter (NMAD) of the i-band flux; in brackets the bias"
    Tables(options.tables).show("error_budget", title, ("i (AB)", "n", *names, "noise"), lines)


if __name__ == "__main__":
    main()
