# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Forced photometry: the flux of a source whose position alone is given, beside the same from the whole run.

Each field is measured as a whole. Then sources of S/N > 10 in i that match a true source are measured again, one at a
time, with nothing given but a position: the catalogue's, or the true one; and once more in the scene of the whole run
(``neighbours="scene"``). The share of fluxes within one sigma of those of the whole run, and bias and scatter against
the truth, stand beside those of today's alternatives: light of sources that are not listed left in the image
("listed"), a PSF fit and an aperture of 1" (both photutils, at true positions on every image, the PSF's light beyond
the aperture corrected for). Intervals are 68 %, from resampling sources (fields, where there are six or more).

Run: python benchmarks/forced.py FOLDER [--fields 4] [--first-seed 7531] [--sources 12] [--size 32] [--tables FOLDER]
     python benchmarks/forced.py FOLDER --frozen FOLDER [--fields 40] [--sources 12]

FOLDER keeps what was measured, so that a second run goes on where the first ended. --frozen measures fields of the
frozen test sky, kept in its folder; each position alone costs as much as a whole field there, so only true positions
are measured so.
"""

import argparse
from functools import lru_cache
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.table import QTable
from kit.fields import field_number, header_coord
from kit.frozen_sky import FIELDS, field, match
from kit.models import HEADS, trained
from kit.statistics import by_field, nmad
from kit.tables import Tables, add_option
from photutils.aperture import CircularAperture, aperture_photometry
from photutils.psf import ImagePSF, PSFPhotometry

from rosetta import CrossSurveyEncoder, measure
from rosetta.images.image import band_images
from rosetta.simulate import AstrometricError, simulate_pair

BANDS = ("g", "r", "i", "VIS", "H_E")  # that are simulated, and shown
SNR = 10.0  # in i, of the sources
RADIUS = 1.0  # arcsec, of the aperture
METHODS = {
    "whole run": None,
    "alone, catalogue's position": {},
    "alone, true position": {},
    "alone, true position, listed": {"neighbours": "listed"},
    "in the scene, catalogue's position": {"neighbours": "scene"},
    "in the scene, true position": {"neighbours": "scene"},
    "photutils PSF, true position": None,
    "aperture, true position": None,
}
COSTLY = ("alone, catalogue's position", "alone, true position, listed")


@lru_cache(maxsize=1)
def models():
    encoder = CrossSurveyEncoder.from_pretrained(device="cpu")
    return {"encoder": encoder, **trained(encoder, *HEADS)}


def development(seed, size):
    """A field as surveys deliver it, and its truth."""
    shift = np.random.default_rng(seed).normal(0, 40, 2) * u.mas
    return simulate_pair(
        seed=seed, size=size * u.arcsec, bands=BANDS, families="all", astrometric_error=AstrometricError(shift=shift)
    )


# ---------------------------------------------------------------------------- methods
def peers(image, truth):
    """Fluxes and errors of the true sources by a PSF fit and in an aperture, each alone: two of (2, n)."""
    coord = header_coord(truth) if image.side == "ground" else truth["sky_centroid"]
    xy, sigma = np.stack(image.sky_to_pixel(coord), -1), np.sqrt(np.where(image.valid, image.variance, 1.0))
    data, mask = np.where(image.valid, image.data, 0.0), ~image.valid
    half = max(2, int(np.ceil(image.fwhm / image.pixel_scale)))
    fitted, summed = np.full((2, len(truth)), np.nan), np.full((2, len(truth)), np.nan)
    for k, (x, y) in enumerate(xy):
        psf = image.psf.at(x, y)
        model = ImagePSF(psf)
        model.x_0.fixed = model.y_0.fixed = True
        circle = CircularAperture((x, y), RADIUS / image.pixel_scale)
        middle = tuple(n // 2 for n in psf.shape[::-1])
        share = CircularAperture(middle, circle.r).do_photometry(psf)[0][0]
        row = aperture_photometry(data, circle, error=sigma, mask=mask)
        summed[:, k] = row["aperture_sum"][0] / share, row["aperture_sum_err"][0] / share
        start = QTable({"x": [x], "y": [y], "flux": [max(float(row["aperture_sum"][0]), 1.0)]})
        found = PSFPhotometry(model, (2 * half + 1,) * 2, aperture_radius=half)(
            data, error=sigma, mask=mask, init_params=start
        )
        fitted[:, k] = found["flux_fit"][0], found["flux_err"][0]
    return fitted, summed


def measured(pair, truth, n, seed, methods):
    """Fluxes, errors (n_method, n, n_band) and true fluxes (n, n_band) of some sources of a field (dict)."""
    heads = models()
    result = measure(pair, **heads)
    catalog, photometry = result.catalog, heads["photometry"]
    rows, true = match(catalog, truth)
    bright = (catalog["flux_i"] / catalog["flux_err_i"]).value[rows] > SNR
    rows, true = rows[bright], true[bright]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:n])
    catalog, truth = catalog[rows[chosen]], truth[true[chosen]]

    def columns(table):
        return np.stack([[table[f"{name}_{b}"].to_value(u.nJy) for b in BANDS] for name in ("flux", "flux_err")])

    found = {"whole run": columns(catalog)}  # each (2, n_band, n)
    for method in methods:
        options = METHODS[method]
        if options is not None:
            place = (catalog if "catalogue" in method else truth)["sky_centroid"]
            x = result.scene if options.get("neighbours") == "scene" else result.embedding
            alone = [photometry(x, place[k : k + 1], offsets=result.offsets, **options) for k in range(len(place))]
            found[method] = np.concatenate([columns(one) for one in alone], axis=-1)
            found["limits"] = np.stack([[one[f"upper_limit_{b}"].value[0] for b in BANDS] for one in alone])
    images = band_images(pair)
    both = [peers(images[b], truth) for b in BANDS]
    for method, k in (("photutils PSF, true position", 0), ("aperture, true position", 1)):
        found[method] = np.stack([one[k] for one in both], axis=1)
    found["truth"] = np.stack([truth[f"flux_{b}"].to_value(u.nJy) for b in BANDS], -1)
    return found


def methods(options):
    """Names of the methods that are measured."""
    return [name for name in METHODS if not (options.frozen and name in COSTLY)]


def one(seed, options):
    """What was measured on a field, now or before (dict of arrays)."""
    path = options.folder / f"{seed}.npz"
    if not path.exists():
        pair, truth = field(seed, options.frozen) if options.frozen else development(seed, options.size)
        found = measured(pair, truth, options.sources, seed, methods(options))
        options.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npz")
        np.savez(temporary, **found)
        temporary.replace(path)
    return dict(np.load(path))


# ---------------------------------------------------------------------------- all fields
def lines(fields, bands, methods):
    """A line per method; ``bands``: numbers of the bands that are taken together."""

    def of(name):
        """(2, n): fluxes and errors of all sources, band after band."""
        return np.concatenate([f[name][:, bands] for f in fields], axis=-1).reshape(2, -1)

    known = np.concatenate([f["truth"][:, bands] for f in fields]).T.ravel()
    number = np.tile(field_number([f["truth"] for f in fields]), len(bands))
    reference, error = of("whole run")
    for method in methods:
        flux, own = of(method)
        ratio = flux / known - 1
        cells = [(np.mean, np.abs(flux - reference) < error), (np.median, ratio), (nmad, ratio),
                 (np.mean, np.abs(ratio) > 0.25), (np.mean, np.abs(flux - known) < own)]  # fmt: skip
        good = np.isfinite(ratio)
        yield [method, int(good.sum()), *(by_field(f, values[good], number[good]) for f, values in cells)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fields", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=7531)
    parser.add_argument("--sources", type=int, default=12, help="of a field, at most")
    parser.add_argument("--size", type=float, default=32.0, help="of a field, arcsec")
    parser.add_argument("--frozen", type=Path, metavar="FOLDER", help="measure the frozen test sky, kept there")
    add_option(parser)
    options = parser.parse_args()
    first = FIELDS[0] if options.frozen else options.first_seed
    fields = [one(seed, options) for seed in range(first, first + options.fields)]
    tables = Tables(options.tables)
    header = ["Method", "n", "in 1 sigma of the whole run", "bias", "NMAD", "> 25 % off", "truth in 1 sigma"]
    every = list(range(len(BANDS)))
    tables.show("forced", f"Single positions: {' '.join(BANDS)}", header, lines(fields, every, methods(options)))
    for k, band in enumerate(BANDS):
        tables.show(f"forced_{band}", f"Single positions: flux in {band}", header, lines(fields, [k], methods(options)))
    limits, known = (np.concatenate([f[name].ravel() for f in fields]) for name in ("limits", "truth"))
    some = np.isfinite(limits)
    print(f"\n{np.sum(known[some] < limits[some])} of {some.sum()} true fluxes lie below their upper limits")


if __name__ == "__main__":
    main()
