# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The main job on all real images: Euclid Q1 cutouts, HSC with HST, HSC blends with injected sources, LSSTCam stamps.

No model was trained on any of them. Intervals are 68 %, from drawing blends or stamps again.

Run: python benchmarks/real_sky.py DATA OUT [--tables docs/_tables]

DATA holds the files that benchmarks/kit/real.py names. OUT receives, for each field, the products of the main job and
pictures of its brightest star and of its largest galaxy: data, model and residual.
"""

import argparse
import time
from collections import Counter
from functools import partial
from pathlib import Path

import astropy.units as u
import numpy as np
from kit.appearance import encircled
from kit.fields import magnitude
from kit.models import HEADS, trained
from kit.real import Q1, euclid_q1, hsc_blends, hsc_hst, lsstcam_stamps
from kit.statistics import covered, interval, nmad, shown
from kit.tables import Tables, add_option

from rosetta import AstrometricSolution, CrossSurveyEncoder, Flag, measure
from rosetta.plotting import plot_blend

BANDS = "grizy"
TRUTH = np.array([1.040, 1.025, 1.025, 1.024, 1.054])  # light of injected stars in apertures over the catalogue's
FAR = 25  # per cent
POINT = 0.05  # arcsec; a smaller half-light radius is taken for a star's
APERTURES = (6, 10)  # pixels
CLEAN = 0.03  # of the survey's flux: how well both apertures of a clean stamp agree with it
COMPANION = 0.1  # of the survey's flux
TOLD = Flag.BLENDED | Flag.DUPLICATE | Flag.POOR_FIT | Flag.EDGE | Flag.MASKED  # that a flux is not to be trusted


def reference_of(pair):
    """VIS, or else the first band of the space survey, or of the ground."""
    side = pair.space or pair.ground
    return "VIS" if "VIS" in side else next(iter(side))


def mag(flux):
    return magnitude(np.maximum(flux, 0))


# ---------------------------------------------------------------------------- fields
def field_lines(results):
    """A row per field: sources, the largest one, negative ones, out-of-distribution scores."""
    for name, result in results.items():
        catalog, shapes = result.catalog, result.scene.to_table()
        snr = np.stack([catalog[f"flux_{b}"] / catalog[f"flux_err_{b}"] for b in result.scene.bands], -1).value
        windows = result.embedding.to_table()
        scores = [f"{survey} {score:.1f}" for survey, score in windows["survey", "ood_score"].iterrows()]
        yield [
            name, len(catalog), f"{shapes['half_light_radius'].to_value(u.arcsec).max():.2f}",
            int(np.sum(shapes["snr"] < -3)), int((snr < -3).any(1).sum()), ", ".join(scores),
        ]  # fmt: skip


def offset_lines(results):
    """The aligner's verdict on each pair of ground and space images, and the mean offset of each band."""
    for name, result in results.items():
        if result.offsets is None:
            continue
        solution = AstrometricSolution.from_table(result.offsets)
        yield [name, solution.verdict, solution.reason.replace(";", ","), "", ""]
        for band in dict.fromkeys(result.offsets["band"]):
            rows = result.offsets[(result.offsets["band"] == band) & np.isfinite(result.offsets["d_dec"])]
            if len(rows):
                weight = 1 / (rows["d_ra_cosdec_err"] ** 2 + rows["d_dec_err"] ** 2).value
                mean = [np.average(rows[c].to_value(u.mas), weights=weight) for c in ("d_ra_cosdec", "d_dec")]
                error = (weight.sum() / 2) ** -0.5
                yield [f"{name} {band}", "", "", len(rows), f"{mean[0]:+.0f} {mean[1]:+.0f} ± {error:.0f}"]


def flag_lines(results):
    """Rows of each field that carry a flag."""
    counts = {name: Counter(f for row in one.catalog["flags"] for f in Flag(int(row))) for name, one in results.items()}
    for flag in Flag:
        if any(count[flag] for count in counts.values()):
            yield [flag.name, *(count[flag] for count in counts.values())]


def residual_lines(results):
    """What models leave of each image."""
    for name, result in results.items():
        for band in result.scene.bands:
            residual = result.scene.residual(band)
            pull = (residual.data / np.sqrt(residual.uncertainty.array))[~residual.mask]
            snr = (result.catalog[f"flux_{band}"] / result.catalog[f"flux_err_{band}"]).value
            far = np.mean(np.abs(pull) > 5) * 1e3
            yield [
                f"{name} {band}", f"{np.mean(pull**2):.2f}", f"{nmad(pull):.2f}", f"{far:.1f}", int(np.sum(snr > 5)),
                f"{np.nanmedian(np.asarray(result.catalog[f'chi2_{band}'])):.2f}",
                f"{result.scene.meta['noise_factor'][band]:.2f}",
            ]  # fmt: skip


def remarkable(result):
    """Labels of the brightest star (None if there is none) and of the largest galaxy."""
    shapes, band = result.scene.to_table(), reference_of(result.pair)
    radius = shapes["half_light_radius"].to_value(u.arcsec)
    flux = result.catalog[f"flux_{band}"].to_value(u.nJy)
    bright = flux / result.catalog[f"flux_err_{band}"].value > 5
    labels, point = np.asarray(shapes["label"]), radius < POINT
    star = int(labels[np.argmax(np.where(point & bright, flux, -np.inf))]) if (point & bright).any() else None
    galaxy = int(labels[np.argmax(np.where(~point & bright, radius, -np.inf))]) if (~point & bright).any() else None
    return {"brightest star": star, "largest galaxy": galaxy}


def remarkable_lines(results):
    """Catalogue rows of the brightest star and the largest galaxy of each field."""
    for name, result in results.items():
        band, shapes = reference_of(result.pair), result.scene.to_table()
        for what, label in remarkable(result).items():
            if label is None:
                continue
            row = int(np.flatnonzero(np.asarray(result.catalog["label"]) == label)[0])
            flux, error = (result.catalog[f"{kind}_{band}"][row].to_value(u.nJy) for kind in ("flux", "flux_err"))
            near = shapes["sky_centroid"][row].separation(shapes["sky_centroid"]) < 2 * u.arcsec
            yield [
                f"{name}, {what}", label, f"{band} {mag(flux):.2f}", f"{flux:.0f} ± {error:.0f}",
                f"{shapes['half_light_radius'][row].to_value(u.arcsec):.3f}",
                f"{result.catalog[f'chi2_{band}'][row]:.1f}", int(near.sum()) - 1,
                str(Flag(int(result.catalog["flags"][row]))).replace(" | ", " "),
            ]  # fmt: skip


def pictures(name, result, folder):
    """Data, model and residual of the brightest star and the largest galaxy."""
    for what, label in remarkable(result).items():
        if label is not None:
            radius = result.scene.to_table()["half_light_radius"].to_value(u.arcsec).max() if "gal" in what else 0
            axes = plot_blend(result.scene, label, half_size=float(np.clip(3 * radius, 4, 12)))
            figure = axes.flat[0].figure
            figure.suptitle(f"{name}: {what}, row {label}")
            figure.savefig(folder / f"{what.replace(' ', '_')}.png", dpi=110)


def show_fields(tables, job, data, out):
    """The main job on every field, its products and pictures."""
    loads = {name: partial(euclid_q1, data, name) for name in Q1} | {"HSC with HST": partial(hsc_hst, data)}
    results = {}
    for name, load in loads.items():
        results[name] = result = job(load())
        folder = out / name.lower().replace(" ", "_").replace("-", "")
        result.write(folder, overwrite=True)
        pictures(name, result, folder)
        if name == "HSC with HST":
            ratio = (result.catalog["flux_F814W"] / result.catalog["flux_i"]).value
            bright = result.catalog["flux_i"] / result.catalog["flux_err_i"] > 5
            print(f"\nF814W / HSC i flux, median of {bright.sum()} bright sources: {np.median(ratio[bright]):.3f}")
    header = (
        "Field", "sources", "largest half-light radius (arcsec)", "rows of snr < -3", "rows with a flux < -3 errors",
        "out-of-distribution scores",
    )  # fmt: skip
    tables.show("real_sky_fields", "Fields", header, field_lines(results))
    header = ("Field, band", "verdict", "reason", "sources", "mean offset, east and north (mas)")
    tables.show("real_sky_offsets", "Offsets", header, offset_lines(results))
    header = ("Row", "label", "magnitude", "flux (nJy)", "half-light radius", "chi2", "rows within 2 arcsec", "flags")
    tables.show("real_sky_rows", "The brightest star and the largest galaxy", header, remarkable_lines(results))
    header = ("Field, band", "chi2 / pixel", "NMAD of pull", "pixels > 5 sigma, per 1000", "sources S/N > 5",
              "median chi2", "noise factor")  # fmt: skip
    tables.show("real_sky_residuals", "Residuals, in units of the given noise", header, residual_lines(results))
    tables.show("real_sky_flags", "Rows with each flag", ("Flag", *results), flag_lines(results))


# ---------------------------------------------------------------------------- blends
def measured_blends(data, encoder, deblender, photometry):
    """Flux, error and truth of every injected source, (n, n_band, 3), NaN if it has no row; and its blend (n,)."""
    rows, blend = {"own detection": [], "catalogued peaks": []}, []
    for k, (pair, content) in enumerate(hsc_blends(data, "hsc_blends_more")):
        embedding, known = encoder(pair, window=12.8 * u.arcsec), content["matched"]
        true = np.stack([10 ** (0.4 * (31.4 - known[f"{b}magVar"])) for b in BANDS], -1) * TRUTH
        wcs = pair.ground["g"].wcs
        place = wcs.pixel_to_world(known["x"], known["y"])
        peaks = wcs.pixel_to_world(content["centers"][:, 1], content["centers"][:, 0])
        blend += [k] * len(known)
        for name, sources in (("own detection", None), ("catalogued peaks", peaks)):
            catalog = photometry(embedding, deblender(embedding, sources, neighbours="listed", recentre=True))
            index, apart, _ = place.match_to_catalog_sky(catalog["sky_centroid"])
            columns = ([f"{kind}_{b}" for b in BANDS] for kind in ("flux", "flux_err"))
            flux, error = (np.stack([catalog[c].value[index] for c in names], -1) for names in columns)
            found = np.stack([flux, error, true], -1)
            found[apart > 0.5 * u.arcsec] = np.nan
            rows[name].append(found)
    return {name: np.concatenate(parts) for name, parts in rows.items()}, np.array(blend)


def show_blends(tables, data, *heads):
    """Injected sources against their truth."""
    rows, blend = measured_blends(data, *heads)
    lines = []
    for name, everything in rows.items():
        here = np.isfinite(everything).all((1, 2))
        group = blend[here]
        relative = everything[here, :, 0] / everything[here, :, 2] - 1  # (n, n_band)
        pull = (everything[here, :, 0] - everything[here, :, 2]) / everything[here, :, 1]
        colour = -2.5 * np.log10(np.maximum(1 + relative[:, 0], 1e-3) / np.maximum(1 + relative[:, 2], 1e-3))
        count = f"{here.sum()} of {len(here)}"

        def cell(statistic, values, digits=3, group=group):
            return shown(*interval(statistic, values, group), digits)

        for k, band in enumerate(BANDS):
            far = np.abs(relative[:, k]) > FAR / 100
            lines.append([
                f"{band}, {name}", count, cell(np.median, relative[:, k]), cell(nmad, relative[:, k]),
                cell(np.mean, far, 2), cell(covered, pull[:, k], 2),
            ])  # fmt: skip
        lines.append([f"g-i (mag), {name}", count, cell(np.median, colour), cell(nmad, colour), "", ""])
    header = ("Band, sources", "found", "bias", "NMAD", f"> {FAR} % off", "1 sigma")
    tables.show("real_sky_blends", "Injected sources in real HSC blends, ground only", header, lines)


# ---------------------------------------------------------------------------- stamps
def show_stamps(tables, job, data):
    """Fluxes of alert stamps against those of the survey's pipeline."""
    clean, ratio, pull, n_row, near, unflagged = [], [], [], [], [], []
    for pair, (place, flux, error) in lsstcam_stamps(data):
        ((band, image),) = pair.ground.items()
        x, y = (float(v) for v in image.wcs.world_to_pixel(place))
        ys, xs = np.indices(image.data.shape)
        soft = [np.clip(r + 0.5 - np.hypot(xs - x, ys - y), 0, 1) for r in APERTURES]
        light = [np.sum(np.where(image.mask, 0, image.data) * w) for w in soft]
        light = np.array([one / encircled(image.psf, r) for one, r in zip(light, APERTURES, strict=True)])
        clean.append(bool(np.all(np.abs(light / flux - 1) < CLEAN)))
        catalog = job(pair).catalog
        apart = place.separation(catalog["sky_centroid"]).arcsec
        own = int(np.argmin(apart))
        value, sigma = (catalog[f"{kind}_{band}"].to_value(u.nJy) for kind in ("flux", "flux_err"))
        ratio.append(value[own] / flux if apart[own] < 1 else np.nan)
        pull.append((value[own] - flux) / np.hypot(sigma[own], error) if apart[own] < 1 else np.nan)
        others = np.flatnonzero((np.abs(value) > COMPANION * flux) & (np.arange(len(value)) != own))
        told = [bool(int(catalog["flags"][k] | catalog["flags"][own]) & TOLD) for k in others]
        n_row.append(len(catalog))
        near.append(len(others) > 0)
        unflagged.append(not all(told))
    clean, ratio, pull, n_row = np.array(clean), np.array(ratio), np.array(pull), np.array(n_row)
    near, unflagged = np.array(near), np.array(unflagged)
    lines = []
    for name, of in (("all", np.ones_like(clean)), ("clean", clean), ("others", ~clean)):
        one = of & np.isfinite(ratio)
        cells = [shown(*interval(s, v[one])) for s, v in ((np.median, ratio), (nmad, ratio), (covered, pull))]
        lines.append([
            name, of.sum(), one.sum(), *cells, f"{n_row[of].mean():.2f}", n_row[of].max(), near[of].sum(),
            unflagged[of].sum(),
        ])  # fmt: skip
    header = (
        "Stamps", "n", "with a row", "flux / survey's", "NMAD", "1 sigma", "rows, mean", "rows, most",
        "companion > 10 %", "of these unflagged",
    )  # fmt: skip
    tables.show("real_sky_stamps", "LSSTCam alert stamps", header, lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    add_option(parser)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tables, encoder = Tables(options.tables), CrossSurveyEncoder.from_pretrained(device="cpu")
    heads = trained(encoder, *HEADS)
    job = partial(measure, encoder=encoder, **heads)
    parts = {
        "fields": lambda: show_fields(tables, job, options.data, options.out),
        "blends": lambda: show_blends(tables, options.data, encoder, heads["deblender"], heads["photometry"]),
        "stamps": lambda: show_stamps(tables, job, options.data),
    }
    for name, part in parts.items():
        start = time.process_time()
        part()
        print(f"\n{name}: {time.process_time() - start:.0f} s CPU")


if __name__ == "__main__":
    main()
