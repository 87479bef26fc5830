# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Where the scatter of fluxes comes from: the same fields with more and more of the truth given.

Fields of benchmarks/accuracy.py, on development seeds. i-band flux over true flux, minus one: with detected positions
and fitted shapes; at the same positions, after the light of all sources that were not found has been subtracted from
the images; with true light at true positions, of the sources that were found only and of all; and the noise.

Run: python benchmarks/error_budget.py FOLDER [--fields 3] [--first-seed 9410] [--tables FOLDER]

FOLDER keeps the simulated fields.
"""

import astropy.units as u
import numpy as np
from kit.fields import magnitude, misaligned, placed, with_images
from kit.models import trained
from kit.statistics import nmad
from kit.tables import Tables, parser_of_fields

from rosetta import CrossSurveyEncoder, Flag, JEPADeblender
from rosetta.deblending.engine.engine import SparseEngine
from rosetta.images.image import band_images
from rosetta.matching import match

MAGS = (18, 22, 23, 24, 25, 26)
BAND = "i"
LEAST = 1e-4  # share of the light that stamps of true sources may leave out


def light(truth):
    """Mixtures of Gaussians that the true sources are made of, (n, K, 6)."""
    return np.asarray(truth["mixture"], float)


def solved(engine, image, truth, wavelength):
    """Fluxes and errors of true sources with their true templates, which are those at ``wavelength`` (nm)."""
    at = placed(image, truth, LEAST, wavelength)
    _, _, design = engine.fit_breadths(light(truth), at)
    found = engine.solve(design, image)
    return found.flux, np.sqrt(found.covariance.diagonal())


def without(engine, pair, truth):
    """The pair less the light of true sources."""
    images = band_images(pair)

    def change(band, image):
        design = engine.render(light(truth), placed(images[band], truth, LEAST))
        return {"data": image.data - design.image(truth[f"flux_{band}"].to_value(u.nJy))}

    return with_images(pair, change)


def measured(seed, folder, encoder, aligner, deblender):
    """Of the sources found in one field: relative errors of their fluxes at every step, noise, magnitude, blended."""
    pair, truth = misaligned(seed, folder)
    embedding, engine = encoder(pair), SparseEngine()
    offsets = aligner(embedding)
    scene = deblender(embedding, offsets=offsets)
    table, images = scene.to_table(), band_images(pair)
    reference = scene.meta["reference_band"]
    rows, true = match(table, truth, reference)
    missed = np.setdiff1d(np.arange(len(truth)), true)
    clean = deblender(
        without(engine, pair, truth[missed]), table["sky_centroid"], offsets=offsets, neighbours="listed", recentre=True
    )
    every, noise = solved(engine, images[BAND], truth, images[reference].wavelength)
    fluxes = {
        "as measured": scene.flux(BAND).value[rows],
        "nothing undetected": clean.flux(BAND).value[rows],
        "true light, detected": solved(engine, images[BAND], truth[true], images[reference].wavelength)[0],
        "true light, all": every[true],
    }
    known = truth[f"flux_{BAND}"].to_value(u.nJy)[true]
    return {name: flux / known - 1 for name, flux in fluxes.items()} | {
        "noise": noise[true] / known, "mag": magnitude(known),
        "blended": (np.asarray(table["flags"])[rows] & int(Flag.BLENDED)) != 0,
    }  # fmt: skip


def main():
    options = parser_of_fields(__doc__, 3, 9410).parse_args()
    encoder = CrossSurveyEncoder.from_pretrained(device="cpu")
    heads = trained(encoder, "aligner")["aligner"], JEPADeblender(encoder)
    seeds = range(options.first_seed, options.first_seed + options.fields)
    found = [measured(seed, options.folder, encoder, *heads) for seed in seeds]
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
