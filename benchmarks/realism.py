# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Whether simulated images look like real ones: noise, PSFs, sources and galaxies, measured by one function on both.

Every real image is simulated in the same layout: its pixel scale, size, noise level and PSF width. Intervals (68 %) are
from drawing blocks of 20 pixels, stamps, cells of 10" or sources again. "Apart" is the distance of the two values in
units of their joint interval; statistics that are more than two apart fail.

Run: python benchmarks/realism.py DATA [--turns 3] [--tables docs/_tables] [--pictures FOLDER]

DATA holds the files that benchmarks/kit/real.py names. The Q1 fields are simulated --turns times.
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from kit.appearance import (
    LAGS,
    autocorrelation,
    encircled,
    fwhm_of,
    noise_blocks,
    roughness,
    scatter_ratio,
    sigma_of,
    sources_of,
    star_light,
)
from kit.fields import magnitude
from kit.layouts import cut_out, simulated
from kit.real import Q1, cosmos_galaxies, euclid_q1, hsc_blends, lsstcam_stamps
from kit.statistics import interval, nmad
from kit.tables import Tables, add_option

from rosetta import EUCLID, HSC, HST_ACS, RUBIN
from rosetta.simulate import REAL

RADII = (1, 2, 3)  # FWHM
CELL = 10.0  # arcsec; side of the cells in which sources are counted
COUNTED = (23.0, 24.0, 25.0)  # VIS, in circles of 0.5"
FORMS = ("half_light", "concentration", "gini", "m20", "asymmetry")
MAG_BINS = {
    "VIS": ((21.0, 23.5), (23.5, 25.0)), "i": ((20.0, 22.5), (22.5, 24.0)), "F814W": ((21.0, 24.9), (25.0, 26.0)),
}  # fmt: skip
LIMIT = 2.0  # intervals; statistics further apart fail
FEWEST = 3  # rows from which an interval can be drawn
BLEND_FIELDS, BLEND_FIELD, BLEND_LIMIT = 3, 50.0, 24.5  # arcsec, i; where stamps of blends come from
STAR_FIELD, STAR_FLUX = 480.0, (3e4, 4e5)  # arcsec, nJy; where stars for stamps come from
FEW_GALAXIES = 0.1  # density of galaxies there; at the depth of these stamps the others are not seen
GALAXY_FIELD, ALONE = 80.0, 1.0  # arcsec; where galaxies for stamps come from, and how far the next one must be


def median(values):
    return np.nanmedian(values) if np.isfinite(values).any() else np.nan


def mag_of(flux):
    return magnitude(np.maximum(flux, 0))


def lag(k, blocks):
    return autocorrelation(blocks)[k]


# What is known of how the images were delivered: PSFs of a model; RMS maps that are those of uncorrelated noise, or the
# scatter of the pixels; one exposure on its own pixels.
MODEL_PSF = {f"psf_{kind}": float(kind == "exact") for kind in REAL.psf_chances}
Q1_MOSAIC = replace(REAL, scatter_variance=0.0, **MODEL_PSF)
HSC_COADD = replace(REAL, scatter_variance=1.0, **MODEL_PSF)
SINGLE = replace(REAL, correlated=0.0, **MODEL_PSF)


class Measured:
    """Rows by table and statistic, gathered over images."""

    def __init__(self):
        self.rows = {}  # (table, name): (statistic, digits, [rows, ...])

    def add(self, table, name, statistic, rows, digits=2):
        rows = np.asarray(rows, float)
        if len(rows):
            self.rows.setdefault((table, name), (statistic, digits, []))[2].append(rows)

    def values(self, key):
        """The statistic, half of its interval and the number of rows."""
        statistic, _, parts = self.rows[key]
        rows = np.concatenate(parts)
        value, low, high = interval(statistic, rows)
        return float(value), float(high - low) / 2 if len(rows) >= FEWEST else np.nan, len(rows)


# ---------------------------------------------------------------------------- what is measured
def add_noise(measured, label, images, scale, groups=None):
    """Scatter and autocorrelation of the sky pixels; ``groups`` names the row of each band (dict)."""
    for band, blocks in zip(images, noise_blocks(list(images.values()), scale), strict=True):
        name = f"{label} {groups[band] if groups else band}"
        measured.add("noise", f"{name}: scatter / given noise", scatter_ratio, blocks)
        for k, pixels in enumerate(LAGS):
            measured.add("noise", f"{name}: autocorrelation, lag {pixels}", partial(lag, k), blocks, 3)


def add_psf(measured, label, psfs):
    """Encircled energy and roughness of given PSF stamps."""
    for radius in RADII:
        light = [encircled(psf, radius * fwhm_of(psf)) for psf in psfs if radius * fwhm_of(psf) < psf.shape[0] / 2]
        measured.add("psf", f"{label}: PSF light within {radius} FWHM", median, light, 3)
    measured.add("psf", f"{label}: PSF roughness", median, [roughness(psf) for psf in psfs], 4)


def add_colours(measured, label, sources, reference, blue, red):
    """Medians and scatter of a colour in bins of magnitude."""
    mag = mag_of(sources[f"flux_{reference}"])
    with np.errstate(invalid="ignore"):
        colour = mag_of(sources[f"flux_{blue}"]) - mag_of(sources[f"flux_{red}"])
    for low, high in MAG_BINS[reference]:
        of = (mag >= low) & (mag < high) & np.isfinite(colour)
        where = f"{label} {reference} {low:g}-{high:g}"
        measured.add("colours", f"{where}: {blue} - {red}, median", median, colour[of])
        measured.add("colours", f"{where}: {blue} - {red}, NMAD", nmad, colour[of])


def add_forms(measured, label, sources, reference):
    """Medians of sizes and shapes in bins of magnitude."""
    mag = mag_of(sources[f"flux_{reference}"])
    for low, high in MAG_BINS[reference]:
        of = (mag >= low) & (mag < high)
        for form in FORMS:
            value = sources[form][of]
            where = f"{label} {reference} {low:g}-{high:g}"
            measured.add("galaxies", f"{where}: {form.replace('_', ' ')}", median, value[np.isfinite(value)])


def add_counts(measured, label, sources, shape, scale):
    """Sources per square arcminute brighter than a limit."""
    side = round(CELL / scale)
    cells = [(y, x) for y in range(shape[0] // side) for x in range(shape[1] // side)]
    mag, at = mag_of(sources["flux_VIS"]), np.stack([sources["y"] // side, sources["x"] // side], -1)
    for limit in COUNTED:
        count = [np.sum((at == cell).all(1) & (mag < limit)) / (CELL / 60) ** 2 for cell in cells]
        measured.add("galaxies", f"{label}: sources per sq. arcmin, VIS < {limit:g}", np.mean, count, 1)


# ---------------------------------------------------------------------------- what is seen
GROUND = {  # bands that Euclid resampled to its own grid: the instrument and its pixel, arcsec
    "Q1 EDF-S": dict.fromkeys("griz", ("DES", 0.263)),
    "Q1 EDF-N": {"u": ("MegaCam", 0.187), "g": ("HSC", 0.168), "r": ("MegaCam", 0.187), "z": ("HSC", 0.168)},
    "Q1 ECDFS": {},
}
ON_EUCLIDS_GRID = replace(RUBIN, pixel_scale=EUCLID.pixel_scale)


def measure_q1(measured, fields):
    """Images by band of all three fields, by name."""
    scale = EUCLID.pixel_scale.value
    for name, images in fields:
        groups = {band: band for band in images} | {b: f"ground, {tool}" for b, (tool, _) in GROUND[name].items()}
        add_noise(measured, "Q1", images, scale, groups)
        for band, image in images.items():
            add_psf(measured, f"Q1 {groups[band]}", [image.psf])
        sources = sources_of(images, "VIS", scale)
        if sources:
            add_counts(measured, "Q1", sources, images["VIS"].data.shape, scale)
            add_forms(measured, "Q1", sources, "VIS")
            add_colours(measured, "Q1", sources, "VIS", "VIS", "J_E")


def measure_hsc(measured, stamps):
    """Images by band of every blend."""
    scale = HSC.pixel_scale.value
    for images in stamps:
        add_noise(measured, "HSC", images, scale)
        for band, image in images.items():
            add_psf(measured, f"HSC {band}", [image.psf])
        sources = sources_of(images, "i", scale)
        if sources:
            add_colours(measured, "HSC", sources, "i", "r", "i")


def measure_lsstcam(measured, stamps):
    """Image and position (x, y) of the star of every stamp."""
    for image, x, y in stamps:
        add_noise(measured, "LSSTCam", {"stamps": image}, RUBIN.pixel_scale.value)
        add_psf(measured, "LSSTCam", [image.psf])
        light = star_light(image, x, y, fwhm_of(image.psf))
        for radius, share in zip((1, 2), light, strict=True):
            measured.add("psf", f"LSSTCam stars: light within {radius} FWHM of that within 3", median, [share], 3)


def measure_cosmos(measured, stamps):
    """F814W stamps of single galaxies."""
    for image in stamps:
        add_psf(measured, "COSMOS", [image.psf])
        sources = sources_of({"F814W": image}, "F814W", HST_ACS.pixel_scale.value, least=10**4)
        if sources:
            ny, nx = image.data.shape
            near = [np.argmin(np.hypot(sources["x"] - (nx - 1) / 2, sources["y"] - (ny - 1) / 2))]
            add_forms(measured, "COSMOS", {name: values[near] for name, values in sources.items()}, "F814W")


# ---------------------------------------------------------------------------- real and simulated images
def real_images(data):
    """What `measure_all` takes, of the real images."""
    fields = [(name, {band: image for _, band, image in euclid_q1(data, name).images()}) for name in Q1]
    blends = [dict(pair.ground) for pair, _ in hsc_blends(data, "hsc_blends", "hsc_blends_more")]
    stars = []
    for pair, (place, _, _) in lsstcam_stamps(data):
        ((band, image),) = pair.ground.items()
        stars.append((band, image, *(float(v) for v in image.wcs.world_to_pixel(place))))
    return fields, blends, stars, list(zip(*cosmos_galaxies(data), strict=True))


def simulated_images(fields, blends, stars, galaxies, turns):
    """The same of simulated images, one for each real one, the fields ``turns`` times."""
    out_fields = [
        (name, simulated(images, (ON_EUCLIDS_GRID, EUCLID), 100 * turn + k,
                         delivery=Q1_MOSAIC, native={b: pixel for b, (_, pixel) in GROUND[name].items()})[0])
        for turn in range(1, turns + 1) for k, (name, images) in enumerate(fields)
    ]  # fmt: skip
    out_blends = [
        stamp
        for k in range(BLEND_FIELDS) for stamp in blend_stamps(blends[k::BLEND_FIELDS], 2000 + k)
    ]  # fmt: skip
    out_stars = [
        star
        for k, band in enumerate(sorted({star[0] for star in stars}))
        for star in star_stamps(band, [s for s in stars if s[0] == band], 3000 + k)
    ]
    return out_fields, out_blends, out_stars, galaxy_stamps(galaxies, 4000)


def blend_stamps(blends, seed):
    """A stamp around a source of one simulated field for every real one, of the same size."""
    middle = blends[len(blends) // 2]
    images, truth = simulated(middle, (HSC, EUCLID), seed, size=BLEND_FIELD, delivery=HSC_COADD)
    bright = truth[mag_of(truth["flux_i"].value) < BLEND_LIMIT]
    x, y = images["i"].wcs.world_to_pixel(bright["sky_centroid"])
    out = []
    for column, row in zip(x, y, strict=True):
        if len(out) == len(blends):
            break
        shape = blends[len(out)]["i"].data.shape
        stamp = {band: cut_out(image, column, row, shape) for band, image in images.items()}
        if all(one is not None for one in stamp.values()):
            out.append(stamp)
    return out


def star_stamps(band, stars, seed):
    """As many stamps of bright simulated stars as there are real ones, at most, of the same sizes."""
    widths = [fwhm_of(image.psf) for _, image, _, _ in stars]
    middle = stars[int(np.argsort(widths)[len(widths) // 2])][1]
    images, truth = simulated(
        {band: middle}, (RUBIN, EUCLID), seed, delivery=SINGLE, size=STAR_FIELD, density=FEW_GALAXIES
    )
    flux = truth[f"flux_{band}"].value
    bright = truth[(truth["type"] == "star") & (flux > STAR_FLUX[0]) & (flux < STAR_FLUX[1])]
    x, y = images[band].wcs.world_to_pixel(bright["sky_centroid"])
    out = []
    for one, two, (_, image, _, _) in zip(x, y, stars, strict=False):
        shape = image.data.shape
        stamp = cut_out(images[band], one, two, shape)
        if stamp is not None:
            low = [round(c - (n - 1) / 2) for c, n in zip((two, one), shape, strict=True)]
            out.append((band, stamp, one - low[1], two - low[0]))
    return out


def galaxy_stamps(galaxies, seed):
    """A simulated galaxy of about the same magnitude for every real one: stamp and magnitude."""
    deep = sorted(range(len(galaxies)), key=lambda k: galaxies[k][1])
    images, truth = simulated(
        {"F814W": galaxies[deep[0]][0]}, (RUBIN, HST_ACS), seed, delivery=Q1_MOSAIC, size=GALAXY_FIELD,
        native={"F814W": 0.05},
    )  # fmt: skip
    mag, coord = mag_of(truth["flux_F814W"].value), truth["sky_centroid"]
    x, y = images["F814W"].wcs.world_to_pixel(coord)
    scale = HST_ACS.pixel_scale.value
    apart = np.hypot(x[:, None] - x, y[:, None] - y) * scale + np.where(mag < mag[:, None] + 2, 0, np.inf)
    np.fill_diagonal(apart, np.inf)
    free = (truth["type"] != "star") & (apart.min(1) > ALONE)
    out = []
    for k in deep:
        image, known = galaxies[k]
        for j in np.argsort(np.where(free, np.abs(mag - known), np.inf)):
            stamp = cut_out(images["F814W"], x[j], y[j], image.data.shape) if free[j] else None
            if stamp is not None:
                free[j] = False
                out.append((stamp, mag[j]))
                break
    return out


def measure_all(fields, blends, stars, galaxies):
    measured = Measured()
    measure_q1(measured, fields)
    measure_hsc(measured, blends)
    measure_lsstcam(measured, [star[1:] for star in stars])
    measure_cosmos(measured, [image for image, _ in galaxies])
    return measured


# ---------------------------------------------------------------------------- tables and pictures
TITLES = {"noise": "Noise", "psf": "PSFs", "galaxies": "Counts and shapes", "colours": "Colours"}


def lines_of(table, real, fake):
    for key, (_, digits, _) in real.rows.items():
        if key[0] != table or key not in fake.rows:
            continue
        (one, error, n), (two, other, m) = real.values(key), fake.values(key)
        joint = np.hypot(error, other)
        apart = abs(one - two) / joint if joint > 0 else np.nan
        cells = [f"{value:.{digits}f}" + (f" ± {half:.{digits}f}" if np.isfinite(half) else "")
                 for value, half in ((one, error), (two, other))]  # fmt: skip
        verdict = "" if not np.isfinite(apart) else f"{apart:.1f}" + (", fails" if apart > LIMIT else "")
        yield [key[1], cells[0], n, cells[1], m, verdict]


def show_tables(tables, real, fake):
    counts = []
    for table, title in TITLES.items():
        lines = list(lines_of(table, real, fake))
        tables.show(f"realism_{table}", title, ("Statistic", "real", "n", "simulated", "n", "apart"), lines)
        judged = [line for line in lines if line[-1]]
        counts.append([title, len(judged), sum("fails" not in line[-1] for line in judged)])
    tables.show("realism", "Statistics that agree within two intervals", ("Table", "judged", "agree"), counts)


def draw(folder, real, fake):
    """Real and simulated images side by side with the same stretch."""
    from matplotlib.colors import AsinhNorm
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)

    def panels(name, rows, columns, images, titles, softening=2.0, top=60.0):
        figure = Figure(figsize=(2.1 * columns, 2.2 * rows), layout="constrained")
        for ax, image, title in zip(figure.subplots(rows, columns, squeeze=False).flat, images, titles, strict=False):
            ax.set_axis_off()
            if image is None:
                continue
            pull = np.where(image.mask, np.nan, image.data) / sigma_of(image)
            ax.imshow(pull, origin="lower", cmap="gray", norm=AsinhNorm(softening, -4, top), interpolation="nearest")
            ax.set_title(title, fontsize=7)
        figure.savefig(folder / f"{name}.png", dpi=130)

    for k, (name, images) in enumerate(real[0]):
        sides = [images, *(one for _, one in fake[0][k :: len(Q1)][:2])]
        kinds = ["real", *["simulated"] * (len(sides) - 1)]
        shown = [
            (side[band], f"{name} {band}, {kind}")
            for band in ("VIS", "J_E") for side, kind in zip(sides, kinds, strict=True)
        ]  # fmt: skip
        panels(f"q1_{Q1[name]}", 2, len(sides), *zip(*shown, strict=True))
    for name, band, sides in (
        ("hsc_i", "i", [[stamp["i"] for stamp in side[1]] for side in (real, fake)]),
        ("lsstcam", "", [[star[1] for star in side[2]] for side in (real, fake)]),
        ("cosmos", "F814W", [[g[0] for g in sorted(side[3], key=lambda g: g[1])] for side in (real, fake)]),
    ):
        images, titles = [], []
        for start in range(0, 36, 12):
            for side, kind in zip(sides, ("real", "simulated"), strict=True):
                row = [side[i] if i < len(side) else None for i in range(start, start + 12)]
                images += row
                titles += [f"{band} {kind}"] * 12
        panels(name, 6, 12, images, titles)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write the pictures there")
    add_option(parser)
    options = parser.parse_args()
    start = time.process_time()
    real = real_images(options.data)
    fake = simulated_images(*real, options.turns)
    print(f"simulated: {time.process_time() - start:.0f} s CPU")
    if options.pictures:
        draw(options.pictures, real, fake)
    show_tables(Tables(options.tables), measure_all(*real), measure_all(*fake))
    print(f"\n{time.process_time() - start:.0f} s CPU")


if __name__ == "__main__":
    main()
