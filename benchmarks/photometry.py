# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Ten-band fluxes and errors on survey-like simulated sky, against truth and the Fisher bound.

Fields of 102" with 20 to 150 detectable sources per square arcminute; a fifth of the galaxies are of the irregular
family, which was kept out of training; PSFs vary over the field, but one constant PSF is given; ground headers are off
by 30 mas. The central 51" are measured again with the offsets of the whole field: with a wrong PSF, without alignment,
and from the ground or from space alone.

Run: python benchmarks/photometry.py FOLDER [--fields 12] [--first-seed 8101] [--heads FOLDER] [--tables FOLDER]

FOLDER keeps the simulated fields and what was measured on each, so that a second run goes on where the first ended
(after a change of models or code, remove FOLDER/rows). --heads as in benchmarks/deblending.py.
"""

import resource
import time
from functools import cache
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.table import QTable
from kit.fields import field_number, hidden_share, magnitude, survey_like, with_images
from kit.flux_bound import bound_errors
from kit.models import models, trained
from kit.peers.blends import photutils_segments
from kit.statistics import by_field, covered, nmad
from kit.store import arrays
from kit.tables import Tables, parser_of_fields
from photutils.segmentation import SourceCatalog
from scipy import ndimage
from scipy.special import erf

from rosetta import EmbeddingPhotometry, Flag, SkyPair
from rosetta.images.image import band_images
from rosetta.matching import match
from rosetta.photometry.error_model import log_score

MIDDLE = 51.2 * u.arcsec  # what the variants are measured on
MAGS, BLENDS = (18, 22, 23, 24, 25, 26.5), (0, 0.05, 0.2, 1.01)
LISTED, LARGE = 50, 500  # least number of sources in a bin that is shown, and in one to which the goal applies
UNUSUAL = Flag.EDGE | Flag.OUTSIDE | Flag.NO_DATA | Flag.MASKED | Flag.DUPLICATE


def with_psf(pair, factor):
    """The pair with every PSF said to be ``factor`` times as wide as it is."""

    def stretched(psf):
        middle = (np.array(psf.shape) - 1) / 2
        wide = ndimage.affine_transform(psf, np.full(2, 1 / factor), offset=middle * (1 - 1 / factor), order=3)
        return wide / wide.sum()

    return with_images(pair, lambda band, image: {"psf": stretched(np.asarray(image.psf, float))})


# ---------------------------------------------------------------------------- measuring
class Models:
    """The set of models under test; calling it on a pair gives scene and catalogue."""

    def __init__(self, folder=None):
        self.encoder, self.deblender, self.photometry = models(folder)
        self.formal = EmbeddingPhotometry(self.encoder)  # untrained: noise, neighbours and fitted shapes only
        self.aligner = None if folder else trained(self.encoder, "aligner")["aligner"]

    def offsets(self, pair):
        """The aligner's table; None for models from a folder, which need not hold one."""
        return self.aligner(self.encoder(pair)) if self.aligner and pair.ground and pair.space else None

    def __call__(self, pair, offsets=None):
        start = time.process_time()
        embedding = self.encoder(pair)
        encoding = time.process_time() - start
        start = time.process_time()
        scene = self.deblender(embedding, offsets=offsets)
        catalog = self.photometry(embedding, scene)
        return scene, catalog, self.formal(embedding, scene), (encoding, time.process_time() - start)


def record(pair, truth, scene, catalog, formal, seconds, *, bound=False):
    """What the tables need of one measured field: arrays with a row per matched source."""
    bands = list(scene.bands)
    table = scene.to_table()
    rows, true = match(catalog, truth, "VIS" if "VIS" in bands else "i")
    hidden = hidden_share(truth, true)[true]

    def stack(source, name, which):
        return np.stack([u.Quantity(source[f"{name}_{b}"]).value[which] for b in bands], -1)

    out = {
        "bands": np.array(bands), "flux": stack(catalog, "flux", rows), "err": stack(catalog, "flux_err", rows),
        "formal": stack(formal, "flux_err", rows), "chi2": stack(catalog, "chi2", rows),
        "known": stack(truth, "flux", true), "mag": magnitude(truth["flux_i"].value[true]),
        "blendedness": np.asarray(table["blendedness"])[rows], "hidden": hidden,
        "star": np.char.strip(np.asarray(truth["type"], str)[true]) == "star",
        "irregular": np.char.strip(np.asarray(truth["family"], str)[true]) == "irregular",
        "usual": (np.asarray(catalog["flags"])[rows] & int(UNUSUAL)) == 0,
        "radius": table["half_light_radius"].value[rows], "true_radius": truth["half_light_radius"].value[true],
        "e": np.stack([table[c][rows] for c in ("e1", "e2")], -1),
        "true_e": np.stack([truth[c][true] for c in ("e1", "e2")], -1),
        "seconds": np.array(seconds), "n_source": np.array(len(catalog)), "n_true": np.array(len(truth)),
    }  # fmt: skip
    if bound:
        out["bound"], out["bound_profile"] = bound_errors(pair, truth[true])
        whole = interior(catalog["sky_centroid"][rows], 8.0 + 10.0 * out["radius"])  # wings and all
        out["conserved"] = conservation(scene, rows[out["usual"] & whole][:40])
    return out


def interior(coord, margin):
    """Whether positions lie ``margin`` (n,) arcsec inside the box that holds them all, where no stamp is cut."""
    xy = np.stack([v.to_value(u.arcsec) for v in coord[0].spherical_offsets_to(coord)], -1)
    margin = np.asarray(margin)[:, None]
    return ((xy > xy.min(axis=0) + margin) & (xy < xy.max(axis=0) - margin)).all(axis=1)


def conservation(scene, rows):
    """Model's sum over its flux less one, for some sources in the sharpest and the deepest band: (n, 2)."""
    out = []
    for row in rows:
        label, of = scene.labels[row], []
        for band in ("VIS", "i"):
            of.append(np.nansum(scene.model(label, band).data) / scene.flux(band)[row].value - 1)
        out.append(of)
    return np.array(out).reshape(-1, 2)


def photutils_ground(pair, truth):
    """photutils on the ground bands as in benchmarks/deblending.py: rows as of `record`, fewer columns."""
    images = {band: image for side, band, image in pair.images() if side == "ground"}
    weight = {b: 1 / np.median(images[b].uncertainty.array) for b in "riz"}
    stack = sum(weight[b] * np.where(images[b].mask, 0, images[b].data) for b in "riz") / np.sqrt(sum(weight.values()))
    segments, smooth = photutils_segments(stack)
    found = QTable()
    for b, image in images.items():
        catalog = SourceCatalog(
            image.data, segments, convolved_data=smooth, error=np.sqrt(image.uncertainty.array), mask=image.mask,
            wcs=image.wcs,
        )  # fmt: skip
        found[f"flux_{b}"], found[f"flux_err_{b}"] = catalog.kron_flux * u.nJy, catalog.kron_flux_err * u.nJy
        found["sky_centroid"] = catalog.sky_centroid.icrs
    rows, true = match(found, truth, "i")
    names = {"flux": "flux", "err": "flux_err"}
    columns = {c: np.stack([found[f"{n}_{b}"].value[rows] for b in images], -1) for c, n in names.items()}
    return {
        "bands": np.array(list(images)), **columns, "n_true": np.array(len(truth)), "n_source": np.array(len(found)),
        "known": np.stack([truth[f"flux_{b}"].value[true] for b in images], -1),
        "mag": magnitude(truth["flux_i"].value[true]), "usual": np.isfinite(columns["flux"]).all(-1),
    }  # fmt: skip


# ---------------------------------------------------------------------------- tables
class Rows:
    """Records of several fields, side by side."""

    def __init__(self, parts):
        self.parts = parts
        self.bands = [str(b) for b in parts[0]["bands"]]

    def __getitem__(self, name):
        return np.concatenate([p[name] for p in self.parts])

    @property
    def field(self):
        """Number of the field of each row."""
        return field_number([p["mag"] for p in self.parts])

    def column(self, name, band):
        """A column of one band."""
        return self[name][:, self.bands.index(band)]


def figures(rows, band, of):
    """Bias, NMAD and coverage of the sources ``of`` in a band."""
    flux, err, known = (rows.column(c, band) for c in ("flux", "err", "known"))
    of = of & np.isfinite(flux + err)
    ratio, pull, at = flux[of] / known[of] - 1, (flux[of] - known[of]) / err[of], rows.field[of]
    values = (np.median, ratio), (nmad, ratio), (nmad, pull), (covered, pull)
    return [int(of.sum())] + [by_field(s, v, at) for s, v in values]


def large_bins(rows, band):
    """Pulls of a band's sources in bins of blendedness and magnitude, each of `LARGE` or more, of like numbers."""
    flux, err, known = (rows.column(c, band) for c in ("flux", "err", "known"))
    usable = rows["usual"] & np.isfinite(flux + err)
    for few, many in zip(BLENDS[:-1], BLENDS[1:], strict=True):
        of = np.flatnonzero(usable & (rows["blendedness"] >= few) & (rows["blendedness"] < many))
        of = of[np.argsort(rows["mag"][of])]
        for part in np.array_split(of, max(len(of) // LARGE, 1)):
            if len(part) >= LARGE:
                yield ((flux - known) / err)[part]


def print_widths(widths):
    """Say how many of the large bins, given as (NMAD of the pulls, number), meet the goal."""
    if not widths:
        return
    in_goal = sum(0.95 <= width <= 1.05 for width, _ in widths)
    # The NMAD of n normal deviates scatters by 1.17 / sqrt(n).
    perfect = sum(erf(0.05 * np.sqrt(n) / (1.1664 * np.sqrt(2))) for _, n in widths)
    low, median, high = np.percentile([width for width, _ in widths], [16, 50, 84])
    print(
        f"pull NMAD within 0.95-1.05 in {in_goal} of {len(widths)} bins of {LARGE} sources or more, all ten bands "
        f"(goal: 95 %; exact errors with Gaussian pulls would reach {perfect:.0f}); median {median:.3f}, 68 % of "
        f"the bins within {low:.3f}-{high:.3f}"
    )


def main_tables(tables, rows):
    """Show the tables of whole fields."""
    alone = (rows["blendedness"] < 0.05) & (rows["hidden"] < 0.02) & rows["usual"]
    lines = []
    for band in rows.bands:
        flux, known, err, bound, profile = (
            rows.column(c, band) for c in ("flux", "known", "err", "bound", "bound_profile")
        )
        ratio = flux / known - 1
        for low, high in ((30, 100), (100, np.inf)):
            of = alone & (known > low * bound) & (known <= high * bound) & np.isfinite(flux)
            where, stars = rows.field[of], of & rows["star"]
            lines.append([
                f"{band}, S/N " + (f"{low}-{high}" if np.isfinite(high) else f"> {low}"), int(of.sum()),
                by_field(np.median, ratio[of], where),
                by_field(nmad, ratio[of], where),
                by_field(nmad, ((flux - known) / bound)[of], where, 2),
                by_field(np.median, (err / bound)[of], where, 2),
                by_field(nmad, ((flux - known) / profile)[of], where, 2),
                by_field(np.median, (err / profile)[of], where, 2),
                by_field(covered, ((flux - known) / err)[of], where, 2),
                by_field(np.median, ratio[stars], rows.field[stars]),
            ])  # fmt: skip
    tables.show(
        "fluxes_isolated",
        "Isolated sources by S/N at the bound (goals: bias 0.005, scatter / Fisher 1.1, error / Fisher 1.3); profile: "
        "the bound where concentrations are unknown",
        ("Band, S/N", "n", "bias", "NMAD", "scatter / Fisher", "error / Fisher", "scatter / profile",
         "error / profile", "1 sigma", "bias of stars"), lines,
    )
    lines = []
    for band in ("g", "i", "VIS", "H_E"):
        for low, high in zip(MAGS[:-1], MAGS[1:], strict=True):
            for few, many in zip(BLENDS[:-1], BLENDS[1:], strict=True):
                of = (rows["mag"] >= low) & (rows["mag"] < high) & rows["usual"]
                of &= (rows["blendedness"] >= few) & (rows["blendedness"] < many)
                n, *cells = figures(rows, band, of)
                if n >= LISTED:
                    ratio = np.nanmedian((rows.column("err", band) / rows.column("bound", band))[of])
                    lines.append([f"{band} i={low}-{high} blended {few}-{many}", n, *cells, f"{ratio:.2f}"])
    header = ("Bin", "n", "bias", "NMAD", "pull NMAD", "1 sigma", "error / Fisher")
    tables.show("fluxes_bins", f"Bins of {LISTED} or more", header, lines)
    print_widths([(nmad(pull), len(pull)) for band in rows.bands for pull in large_bins(rows, band)])
    lines = []
    for band in rows.bands:
        flux, err, known, formal = (rows.column(c, band) for c in ("flux", "err", "known", "formal"))
        of = rows["usual"] & np.isfinite(flux + err)
        best = max((log_score((flux - known)[of], f * formal[of]), f) for f in np.geomspace(0.5, 20, 60))
        chi2 = [
            by_field(np.median, rows.column("chi2", band)[which], rows.field[which], 2)
            for which in (of & (rows["mag"] < 24), of & (rows["mag"] >= 24))
        ]
        gained = f"{log_score((flux - known)[of], err[of]) - best[0]:+.3f}"
        formal_pull = ((flux - known) / formal)[of]
        lines.append([band, int(of.sum()), gained, f"{best[1]:.2f}", f"{covered(formal_pull):.2f}", *chi2])
    tables.show(
        "fluxes_errors",
        "Errors against the formal ones times the best constant (log score, capped at ten sigma), and chi2 / dof",
        ("Band", "n", "score gained", "best constant", "formal 1 sigma", "chi2, i < 24", "chi2, i > 24"), lines,
    )
    lines = []
    for name, of in (
        ("all", rows["usual"]), ("stars", rows["usual"] & rows["star"]),
        ("irregular family", rows["usual"] & rows["irregular"]), ("other families", rows["usual"] & ~rows["irregular"]),
        ("hidden neighbour", rows["usual"] & (rows["hidden"] > 0.05)),
    ):  # fmt: skip
        for band in ("i", "VIS", "H_E"):
            bright = of & (rows["mag"] < 25)
            lines.append([f"{band}, {name}", *figures(rows, band, bright)])
    title = 'Kinds of sources, i < 25 (H_E: correlated noise; hidden: an undetected neighbour of 5 % within 1")'
    tables.show("fluxes_kinds", title, ("Band, kind", "n", "bias", "NMAD", "pull NMAD", "1 sigma"), lines)
    bright = alone & (rows["mag"] < 23.5) & ~rows["star"]
    size = np.log(rows["radius"][bright] / rows["true_radius"][bright])
    shape = (rows["e"] - rows["true_e"])[bright]
    print(
        f"\ntemplates of {bright.sum()} isolated galaxies, i < 23.5: size bias {np.median(size):+.3f}, NMAD "
        f"{nmad(size):.3f}; ellipticity bias {np.median(shape):+.3f}, NMAD {nmad(shape.ravel()):.3f}"
    )
    kept = rows["conserved"]
    print(f"flux conservation, template to grid: largest |sum / flux - 1| {np.abs(kept).max(0)} (VIS, i; goal 0.001)")
    n = [int(p["n_source"]) for p in rows.parts]
    seconds = np.array([p["seconds"] for p in rows.parts])
    each = ", ".join(f"{s:.1f} ({k} sources)" for s, k in zip(seconds[:, 1], n, strict=True))
    print(
        f"CPU seconds of deblender and photometry: {each}; per 430 sources "
        f"{np.sum(seconds[:, 1]) / np.sum(n) * 430:.1f} (goal 8); encoder {np.median(seconds[:, 0]):.1f}"
    )


def variant_tables(tables, variants):
    """Show the middles of the fields, measured from other input."""
    lines = []
    for name, rows in variants.items():
        for band in ("i", "VIS", "H_E"):
            if band in rows.bands:
                of = rows["usual"] & (rows["mag"] < 25)
                found = sum((p["mag"] < 25).sum() for p in rows.parts)
                lines.append([f"{band}, {name}", *figures(rows, band, of), f"{found}"])
    header = ("Band, input", "n", "bias", "NMAD", "pull NMAD", "1 sigma", "matched")
    tables.show("fluxes_variants", "The same middles of the fields, i < 25", header, lines)


# ---------------------------------------------------------------------------- one command
def main():
    parser = parser_of_fields(__doc__, 12, 8101)
    parser.add_argument("--heads", type=Path)
    options = parser.parse_args()
    tables = Tables(options.tables)
    test = Models(options.heads)
    variants = {
        "as given": {}, "PSF 5 % too wide": {"psf": 1.05}, "PSF 5 % too narrow": {"psf": 0.95},
        "30 mas, no aligner": {"align": False}, "ground only": {"space": False}, "space only": {"ground": False},
    }  # fmt: skip
    found = {"fields": [], **{name: [] for name in variants}, "photutils, ground": []}

    def kept(name, seed, work):
        file = f"{name.replace(' ', '_').replace('%', 'pc').replace(',', '')}-{seed}.npz"
        found[name].append(arrays(options.folder / "rows" / file, work))

    def vary(middle, offsets, *, psf=1.0, align=True, ground=True, space=True):
        sides = (dict(side) if used else None for side, used in ((middle.ground, ground), (middle.space, space)))
        seen = SkyPair(*sides, surveys=middle.surveys)
        seen = seen if psf == 1.0 else with_psf(seen, psf)
        return test(seen, offsets() if align and ground and space else None)

    for seed in range(options.first_seed, options.first_seed + options.fields):
        pair, truth = survey_like(seed, options.folder)
        offsets = cache(lambda p=pair: test.offsets(p))
        center = next(iter(band_images(pair).values())).center
        middle = pair.cutout(center, MIDDLE)
        kept("fields", seed, lambda p=pair, t=truth, o=offsets: record(p, t, *test(p, o()), bound=True))
        east, north = center.spherical_offsets_to(truth["sky_centroid"])
        near = truth[np.maximum(abs(east), abs(north)) < MIDDLE / 2]
        for name, how in variants.items():
            kept(name, seed, lambda h=how, m=middle, t=near, o=offsets: record(m, t, *vary(m, o, **h)))
        kept("photutils, ground", seed, lambda m=middle, t=near: photutils_ground(m, t))
    main_tables(tables, Rows(found["fields"]))
    variant_tables(tables, {name: Rows(parts) for name, parts in found.items() if parts and name != "fields"})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of this process {peak:.2f} GB (see benchmarks/main_job.py for memory against field size)")


if __name__ == "__main__":
    main()
