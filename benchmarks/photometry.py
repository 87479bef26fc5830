# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Ten-band fluxes and their errors on sky like the surveys', against truth, the Fisher bound and real pixels.

Fields of 102" with a density of 20 to 150 detectable sources per square arcminute, a fifth of the galaxies of the
reserved, irregular family, PSFs that vary over the field while one is given, and a ground frame that is 30 mas off.
Their middles (51") are measured again, on the frame that the aligner gave the whole field: with a wrong PSF, without
the aligner, from the ground or from space alone.

Run: python benchmarks/photometry.py FOLDER [--fields 12] [--first-seed 8101] [--heads FOLDER] [--real DATA]
     [--tables FOLDER]

FOLDER keeps the simulated fields and what was measured on each, so that a second run goes on where the first ended
(after a change of models or code, remove FOLDER/rows). --heads as in benchmarks/deblending.py. DATA holds
hsc_blends/*.npz and the files that benchmarks/real_input.py names.
"""

import resource
import time
from functools import cache
from pathlib import Path

import astropy.units as u
import numpy as np
from _tables import Tables, parser_of_fields
from astropy.convolution import convolve
from astropy.coordinates import search_around_sky
from astropy.nddata import NDData, VarianceUncertainty
from astropy.table import QTable
from astropy.wcs import WCS
from deblending import kernel_of, models, nmad
from photutils.segmentation import SourceCatalog, deblend_sources, detect_sources
from real_input import euclid_q1, hsc_hst
from scipy import ndimage
from scipy.special import erf

from rosetta import HSC, HST_ACS, EmbeddingPhotometry, Flag, LearnedAligner, SkyPair
from rosetta.deblending.band_fit import image_of
from rosetta.deblending.engine.design import Design
from rosetta.deblending.engine.fluxes import solve
from rosetta.deblending.engine.rendering import render, stamp_sizes
from rosetta.images.image import band_images
from rosetta.io import pair as pair_file
from rosetta.matching import match
from rosetta.simulate import AstrometricError, simulate_pair

DENSITY = (0.15, 0.5, 1.0)  # of galaxies, relative to the published counts
GROUND_ERROR = (21.2, -21.2) * u.mas  # 30 mas
MIDDLE = 51.2 * u.arcsec  # what the variants are measured on
# What the bounds' shapes have in common in all bands, by their priors' inverse variances, as good as none: east, north
# (arcsec), size, two shears.
COMMON, STEP = (1.0, 1.0, 1.0, 4.0, 4.0), 0.01
MAGS, BLENDS = (18, 22, 23, 24, 25, 26.5), (0, 0.05, 0.2, 1.01)
LISTED, LARGE = 50, 500  # sources of a bin that is shown; of one that is held to the goal
UNUSUAL = Flag.EDGE | Flag.OUTSIDE | Flag.NO_DATA | Flag.MASKED | Flag.DUPLICATE


# ---------------------------------------------------------------------------- fields
def field(seed, folder):
    """A pair and its truth, simulated or from an earlier run."""
    path, truth_path = folder / f"{seed}.fits", folder / f"{seed}.truth.fits"
    if not path.exists():
        pair, truth = simulate_pair(
            seed=seed, families="all", density=DENSITY[seed % len(DENSITY)],
            astrometric_error=AstrometricError(shift=GROUND_ERROR),
        )  # fmt: skip
        truth.meta.clear()
        truth.write(truth_path, overwrite=True)
        pair_file.write(pair, path)
    return pair_file.read(path), QTable.read(truth_path)


def with_psf(pair, factor):
    """The pair with every PSF said to be ``factor`` times as wide as it is."""

    def stretched(psf):
        middle = (np.array(psf.shape) - 1) / 2
        wide = ndimage.affine_transform(psf, np.full(2, 1 / factor), offset=middle * (1 - 1 / factor), order=3)
        return wide / wide.sum()

    sides = {"ground": {}, "space": {}}
    for side, band, image in pair.images():
        sides[side][band] = NDData(
            image.data, uncertainty=image.uncertainty, mask=image.mask, wcs=image.wcs, unit=image.unit,
            psf=stretched(np.asarray(image.psf, float)),
        )  # fmt: skip
    return SkyPair(sides["ground"] or None, sides["space"] or None, surveys=pair.surveys)


# ---------------------------------------------------------------------------- measuring
class Models:
    """The set of models under test; calling it on a pair gives scene and catalogue."""

    def __init__(self, folder=None):
        self.encoder, self.deblender, self.photometry = models(folder)
        self.formal = EmbeddingPhotometry(self.encoder)  # untrained: noise, neighbours and fitted shapes only
        self.aligner = None if folder else LearnedAligner.from_pretrained(encoder=self.encoder, device="cpu")

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


def bound_errors(pair, truth):
    """Cramer-Rao errors of the fluxes of all sources together, two (n, n_band) arrays, nJy.

    True light and the given PSFs; on top of the fluxes with their overlap, a source's position, size and ellipticity
    (a star's position) are unknown, the same in all bands of the pair. First with its radial profile known; then its
    concentration is unknown too, in every band of its own, as bulges and discs of unknown colours make it.
    """
    light, coord = np.asarray(truth["mixture"], float), truth["sky_centroid"]
    header = coord.spherical_offsets_by(-truth["d_ra_cosdec"], -truth["d_dec"])
    bent, planes, n = [_bent(light, k) for k in range(len(COMMON) + 1)], band_images(pair), len(light)
    # A source's unknowns: `COMMON`, then concentration and ln(flux) of each band.
    prior = np.r_[COMMON, np.tile([1.0, 1e-6], len(planes))]
    information, overlapping, alone = np.tile(np.diag(prior), (n, 1, 1)), {}, {}
    for k, (band, plane) in enumerate(planes.items()):
        image = image_of(plane, coord, header, np.full(n, 1e-3))
        flux, shape = truth[f"flux_{band}"].to_value(u.nJy), plane.data.shape
        sizes = stamp_sizes(light, image.jacobian, image.psf, 1e-3)
        base, *moved = (
            Design(render(m, image.xy, image.jacobian, image.psf, sizes=sizes), shape, n) for m in (light, *bent)
        )
        root = np.sqrt(np.where(plane.valid, 1 / plane.variance, 0))
        first = len(COMMON) + 2 * k
        where = np.r_[: len(COMMON), first, first + 1]
        for i, (y0, y1, x0, x1) in enumerate(base.bounds):
            own = base.values[i]  # every step has the same pixels
            columns = np.stack([*((m.values[i] - own) / STEP for m in moved), own]) * (root[y0:y1, x0:x1] * flux[i])
            columns = columns.reshape(len(where), -1)
            information[i][where[:, None], where] += columns @ columns.T
        found = solve(base, plane.data, plane.variance)
        overlapping[band] = np.where(found.measured, found.covariance.diagonal(), np.nan)
        alone[band] = 1 / np.maximum(base.squares(root**2), 1e-30)
    fluxes = np.arange(len(COMMON) + 1, len(prior), 2)
    bounds = []
    for unknown in (np.r_[: len(COMMON), fluxes], np.arange(len(prior))):
        matrix = information[:, unknown[:, None], unknown]
        unit = 1 / np.sqrt(np.einsum("nii->ni", matrix))  # unknowns of one size, or the inverse loses its digits
        inverse = np.linalg.inv(matrix * unit[:, :, None] * unit[:, None])
        relative2 = (np.einsum("nii->ni", inverse) * unit**2)[:, np.isin(unknown, fluxes)]
        columns = [
            overlapping[b] + np.maximum(relative2[:, k] * truth[f"flux_{b}"].to_value(u.nJy) ** 2 - alone[b], 0)
            for k, b in enumerate(planes)
        ]
        bounds.append(np.sqrt(np.stack(columns, -1)))
    return bounds


def _bent(light, k):
    """Mixtures moved by `STEP` along a shape coordinate: those of `COMMON`, or the concentration.

    The concentration is the power of their size that the weights of a mixture's Gaussians are multiplied by.
    """
    out, step = light.copy(), STEP
    if k == len(COMMON):
        size = np.sqrt(np.maximum(light[..., 3] + light[..., 5], 1e-6))
        out[..., 0] *= size**step
        out[..., 0] /= out[..., 0].sum(axis=-1, keepdims=True)
        return out
    if k < 2:
        out[..., 1 + k] += step
        return out
    bend = {2: (step, 0, step), 3: (step, 0, -step), 4: (0, step, 0)}[k]
    matrix = np.eye(2) + [[bend[0], bend[1]], [bend[1], bend[2]]]
    out[..., 1:3] = light[..., 1:3] @ matrix.T
    sxx, sxy, syy = np.moveaxis(light[..., 3:], -1, 0)
    covariance = matrix @ np.stack([np.stack([sxx, sxy], -1), np.stack([sxy, syy], -1)], -2) @ matrix.T
    out[..., 3:] = covariance[..., [0, 0, 1], [0, 1, 1]]
    return out


def record(pair, truth, scene, catalog, formal, seconds, *, bound=False):
    """All that the tables need of one measured field: arrays, a row per matched source."""
    bands = list(scene.bands)
    table = scene.to_table()
    rows, true = match(catalog, truth, "VIS" if "VIS" in bands else "i")
    hidden = hidden_share(truth, true)[true]

    def stack(source, name, which):
        return np.stack([u.Quantity(source[f"{name}_{b}"]).value[which] for b in bands], -1)

    out = {
        "bands": np.array(bands), "flux": stack(catalog, "flux", rows), "err": stack(catalog, "flux_err", rows),
        "formal": stack(formal, "flux_err", rows), "chi2": stack(catalog, "chi2", rows),
        "known": stack(truth, "flux", true), "mag": 31.4 - 2.5 * np.log10(truth["flux_i"].value[true]),
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


def hidden_share(truth, true):
    """Flux of the brightest unmatched true source within 1" over a source's own, in i: (n_truth,)."""
    flux = truth["flux_i"].to_value(u.nJy)
    missed = ~np.isin(np.arange(len(truth)), true)
    out = np.zeros(len(truth))
    one, two, _, _ = search_around_sky(truth["sky_centroid"], truth["sky_centroid"], 1 * u.arcsec)
    for i, j in zip(one, two, strict=True):
        if i != j and missed[j]:
            out[i] = max(out[i], flux[j] / flux[i])
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
    smooth = convolve(stack, kernel_of(4.0, 9))
    segments = detect_sources(smooth, 1.5, 5)
    segments = deblend_sources(smooth, segments, 5, n_levels=32, contrast=0.001, progress_bar=False)
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
        "mag": 31.4 - 2.5 * np.log10(truth["flux_i"].value[true]), "usual": np.isfinite(columns["flux"]).all(-1),
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
        return np.concatenate([np.full(len(p["mag"]), k) for k, p in enumerate(self.parts)])

    def column(self, name, band):
        return self[name][:, self.bands.index(band)]


def with_interval(statistic, values, field, digits=3):
    """A statistic, and half the 68 % range of it when sources are drawn again (fields, where there are six)."""
    if len(values) < 10:
        return ""
    rng, drawn = np.random.default_rng(0), []
    fields = np.unique(field)
    for _ in range(100):
        if len(fields) >= 6:
            rows = np.concatenate([np.flatnonzero(field == f) for f in rng.choice(fields, len(fields))])
        else:
            rows = rng.integers(len(values), size=len(values))
        drawn.append(statistic(values[rows]))
    low, high = np.nanpercentile(drawn, [16, 84])
    return f"{statistic(values):.{digits}f} ± {(high - low) / 2:.{digits}f}"


def covered(pull):
    return np.mean(np.abs(pull) < 1)


def figures(rows, band, of):
    """Bias, NMAD and coverage of the sources ``of`` in a band."""
    flux, err, known = (rows.column(c, band) for c in ("flux", "err", "known"))
    of = of & np.isfinite(flux + err)
    ratio, pull, at = flux[of] / known[of] - 1, (flux[of] - known[of]) / err[of], rows.field[of]
    values = (np.median, ratio), (nmad, ratio), (nmad, pull), (covered, pull)
    return [int(of.sum())] + [with_interval(s, v, at) for s, v in values]


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


def main_tables(tables, rows):
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
                with_interval(np.median, ratio[of], where),
                with_interval(nmad, ratio[of], where),
                with_interval(nmad, ((flux - known) / bound)[of], where, 2),
                with_interval(np.median, (err / bound)[of], where, 2),
                with_interval(nmad, ((flux - known) / profile)[of], where, 2),
                with_interval(np.median, (err / profile)[of], where, 2),
                with_interval(covered, ((flux - known) / err)[of], where, 2),
                with_interval(np.median, ratio[stars], rows.field[stars]),
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
    widths = [(nmad(pull), len(pull)) for band in rows.bands for pull in large_bins(rows, band)]
    in_goal = sum(0.95 <= width <= 1.05 for width, _ in widths)
    # The NMAD of n normal deviates scatters by 1.17 / sqrt(n).
    perfect = sum(erf(0.05 * np.sqrt(n) / (1.1664 * np.sqrt(2))) for _, n in widths)
    spread = np.percentile([width for width, _ in widths], [16, 50, 84])
    print(
        f"pull NMAD within 0.95-1.05 in {in_goal} of {len(widths)} bins of {LARGE} sources or more, all ten bands "
        f"(goal: 95 %; exact errors with Gaussian pulls would reach {perfect:.0f}); median {spread[1]:.3f}, 68 % of "
        f"the bins within {spread[0]:.3f}-{spread[2]:.3f}"
    )
    lines = []
    for band in rows.bands:
        flux, err, known, formal = (rows.column(c, band) for c in ("flux", "err", "known", "formal"))
        of = rows["usual"] & np.isfinite(flux + err)
        chi, chi_formal = ((flux - known) / err)[of], ((flux - known) / formal)[of]
        score = -0.5 * np.minimum(chi**2, 100) - np.log(err[of])
        best = max(
            (np.mean(-0.5 * np.minimum((chi_formal / f) ** 2, 100) - np.log(f * formal[of])), f)
            for f in np.geomspace(0.5, 20, 60)
        )
        chi2 = [
            with_interval(np.median, rows.column("chi2", band)[which], rows.field[which], 2)
            for which in (of & (rows["mag"] < 24), of & (rows["mag"] >= 24))
        ]
        gained = f"{np.mean(score) - best[0]:+.3f}"
        lines.append([band, int(of.sum()), gained, f"{best[1]:.2f}", f"{covered(chi_formal):.2f}", *chi2])
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
    lines = []
    for name, rows in variants.items():
        for band in ("i", "VIS", "H_E"):
            if band in rows.bands:
                of = rows["usual"] & (rows["mag"] < 25)
                found = sum((p["mag"] < 25).sum() for p in rows.parts)
                lines.append([f"{band}, {name}", *figures(rows, band, of), f"{found}"])
    header = ("Band, input", "n", "bias", "NMAD", "pull NMAD", "1 sigma", "matched")
    tables.show("fluxes_variants", "The same middles of the fields, i < 25", header, lines)


# ---------------------------------------------------------------------------- real pixels
def real_residuals(tables, test, data):
    lines = []
    for name, load in (("Euclid Q1", euclid_q1), ("HSC + HST", hsc_hst)):
        pair = load(data)
        scene, catalog, _, _ = test(pair, test.offsets(pair))
        for band in scene.bands:
            residual = scene.residual(band)
            pull = (residual.data / np.sqrt(residual.uncertainty.array))[~residual.mask]
            chi2 = np.asarray(catalog[f"chi2_{band}"])
            lines.append([
                f"{name} {band}", len(catalog), f"{np.mean(pull**2):.2f}", f"{nmad(pull):.2f}",
                f"{np.nanmedian(chi2):.2f}", f"{scene.meta['noise_factor'][band]:.2f}",
            ])  # fmt: skip
    header = ("Pair, band", "sources", "chi2 / pixel", "NMAD of pull", "median chi2", "noise factor")
    tables.show("real_residuals", "Real pixels: residuals", header, lines)


def hsc_blends(tables, test, data):
    """Injected galaxies and stars of known magnitude in real HSC blends, ground bands only."""
    rows = {"own detection": [], "catalogued peaks": []}
    bad = sum(1 << bit for bit in (0, 1, 4, 8))  # BAD SAT EDGE NO_DATA
    for path in sorted((data / "hsc_blends").glob("*.npz")):
        content = np.load(path)
        ny, nx = content["footprint"].shape
        wcs = WCS(naxis=2)
        wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 2.0]
        wcs.wcs.crpix, wcs.wcs.cdelt = [(nx + 1) / 2, (ny + 1) / 2], [-0.168 / 3600, 0.168 / 3600]
        scale = 10 ** (0.4 * (31.4 - 27.0))
        ground = {
            b: NDData(
                content["images"][k] * scale, uncertainty=VarianceUncertainty(content["variance"][k] * scale**2),
                mask=(content["mask"][k] & bad) != 0 if content["mask"].ndim == 3 else None, wcs=wcs, unit=u.nJy,
                psf=content["psfs"][k].astype(float),
            )
            for k, b in enumerate("grizy")
        }  # fmt: skip
        pair = SkyPair(ground, None, surveys=(HSC, HST_ACS))
        embedding = test.encoder(pair, window=12.8 * u.arcsec)
        known = content["matched"]
        place = wcs.pixel_to_world(known["x"], known["y"])
        peaks = wcs.pixel_to_world(content["centers"][:, 1], content["centers"][:, 0])
        for name, sources in (("own detection", None), ("catalogued peaks", peaks)):
            catalog = test.photometry(embedding, test.deblender(embedding, sources))
            at = catalog["sky_centroid"]
            index, apart, _ = place.match_to_catalog_sky(at)
            for k in range(len(known)):
                if apart[k] > 0.5 * u.arcsec:
                    rows[name].append(None)
                    continue
                row = catalog[index[k]]
                rows[name].append([
                    (row[f"flux_{b}"].value, row[f"flux_err_{b}"].value, 10 ** (0.4 * (31.4 - known[k][f"{b}magVar"])))
                    for b in "grizy"
                ])  # fmt: skip
    lines = []
    for name, of in rows.items():
        found = np.array([r for r in of if r is not None])  # (n, band, 3)
        for k, b in enumerate("grizy"):
            flux, err, known = found[:, k].T
            at = np.zeros(len(flux))
            pull = (flux - known) / err
            lines.append([
                f"{b}, {name}", f"{len(found)} of {len(of)}", with_interval(np.median, flux / known - 1, at),
                with_interval(nmad, flux / known - 1, at), with_interval(covered, pull, at, 2),
            ])  # fmt: skip
        colour = -2.5 * np.log10(found[:, 0, 0] / found[:, 2, 0] / (found[:, 0, 2] / found[:, 2, 2]))
        colour = colour[np.isfinite(colour)]
        lines.append([f"g-i (mag), {name}", f"{len(colour)}", with_interval(np.median, colour, 0 * colour),
                      with_interval(nmad, colour, 0 * colour), ""])  # fmt: skip
    header = ("Band, sources", "found", "bias", "NMAD", "1 sigma")
    tables.show("real_injected", "Injected sources in real HSC blends, ground only", header, lines)


# ---------------------------------------------------------------------------- one command
def main():
    parser = parser_of_fields(__doc__, 12, 8101)
    parser.add_argument("--heads", type=Path)
    parser.add_argument("--real", type=Path)
    options = parser.parse_args()
    tables = Tables(options.tables)
    rows = options.folder / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    test = Models(options.heads)
    variants = {
        "as given": {}, "PSF 5 % too wide": {"psf": 1.05}, "PSF 5 % too narrow": {"psf": 0.95},
        "30 mas, no aligner": {"align": False}, "ground only": {"space": False}, "space only": {"ground": False},
    }  # fmt: skip
    found = {"fields": [], **{name: [] for name in variants}, "photutils, ground": []}

    def kept(name, seed, work):
        path = rows / f"{name.replace(' ', '_').replace('%', 'pc').replace(',', '')}-{seed}.npz"
        if not path.exists():
            np.savez(path, **work())
        found[name].append(dict(np.load(path)))

    def vary(middle, offsets, *, psf=1.0, align=True, ground=True, space=True):
        sides = (dict(side) if kept else None for side, kept in ((middle.ground, ground), (middle.space, space)))
        seen = SkyPair(*sides, surveys=middle.surveys)
        seen = seen if psf == 1.0 else with_psf(seen, psf)
        return test(seen, offsets() if align and ground and space else None)

    for seed in range(options.first_seed, options.first_seed + options.fields):
        pair, truth = field(seed, options.folder)
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
    if options.real:
        real_residuals(tables, test, options.real)
        hsc_blends(tables, test, options.real)
    else:
        print("real pixels: left out (name their folder with --real)")


if __name__ == "__main__":
    main()
