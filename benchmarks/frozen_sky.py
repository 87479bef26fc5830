# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The main job on the frozen test sky: what it finds, how true its fluxes, errors, offsets and flags are.

Every comparison of two versions is made on this sky. Nothing is trained, chosen or tuned on it. Intervals are 68 %,
from resampling fields or blends.

Run: python benchmarks/frozen_sky.py FOLDER [--fields 40] [--blends 500] [--workers 2] [--heads FOLDER]
     [--rows FOLDER] [--before FOLDER] [--tables FOLDER] [--freeze]

FOLDER keeps the simulated sky, and --rows (FOLDER/rows) what was measured on it, so that a second run goes on where the
first ended. --before reads the rows of another version. --freeze writes the hashes of a new sky; without it they are
compared, and a sky that differs is an error.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import astropy.units as u
import numpy as np
from kit.fields import magnitude, true_offsets
from kit.frozen_sky import APART, BLENDS, FAINTEST, FIELDS, SKY, blend, described, field, known, match, outside, same
from kit.models import HEADS, trained
from kit.statistics import covered, interval, nmad, rms, shown
from kit.tables import Tables, add_option

from rosetta import AstrometricSolution, CrossSurveyEncoder, Flag, measure
from rosetta.images.positions import tangent

BANDS = ("u", "g", "r", "i", "z", "y", "VIS", "Y_E", "J_E", "H_E")
PACKAGES = ("numpy", "scipy", "galsim", "speclite", "astropy")
MAG_BINS = ((18, 22), (22, 23), (23, 24), (24, 25), (25, 26))
CLEAN = ~(Flag.VARIANCE_ESTIMATED | Flag.PSF_NOMINAL | Flag.PSF_TRUNCATED | Flag.BAND_EXTRAPOLATED | Flag.BLENDED)


# ---------------------------------------------------------------------------- one field
@lru_cache(maxsize=1)
def models(folder):
    encoder = CrossSurveyEncoder.from_pretrained(
        None if folder is None else folder / "encoder.safetensors", device="cpu"
    )
    return {"encoder": encoder, **trained(encoder, *HEADS, folder=folder)}


def measured(pair, truth, heads):
    """What the main job finds on a pair, beside the truth: arrays by name (dict)."""
    start = time.process_time()
    result = measure(pair, **models(heads))
    seconds = time.process_time() - start
    catalog, center = result.catalog, truth["sky_centroid"][0]
    rows, true = match(catalog, truth)
    row_of = np.full(len(truth), -1)
    row_of[true] = rows
    blank = np.full(len(catalog), np.nan)
    columns = {name: [catalog[f"{name}_{b}"].value if b in pair.bands else blank for b in BANDS]
               for name in ("flux", "flux_err", "chi2")}  # fmt: skip
    solution = AstrometricSolution.from_table(result.offsets)
    error, sigma = np.full((len(truth), 2), np.nan), np.full((len(truth), 2), np.nan)
    if solution.verdict != "abstain":
        error = solution.offset_at(truth["sky_centroid"]) - true_offsets(truth)
        sigma = solution.sigma_at(truth["sky_centroid"])
    windows = result.embedding.to_table()
    return {
        "row_of": row_of,
        "family": np.char.strip(np.asarray(truth["family"], "U12")),
        "true_flux": np.stack([truth[f"flux_{b}"].to_value(u.nJy) for b in BANDS], -1),
        "true_place": tangent(truth["sky_centroid"], center),
        "true_radius": truth["half_light_radius"].to_value(u.arcsec),
        **{name: np.stack(values, -1) for name, values in columns.items()},
        "place": tangent(catalog["sky_centroid"], center),
        "flags": np.asarray(catalog["flags"], int),
        "offset_error": error, "offset_sigma": sigma, "verdict": np.array(solution.verdict),
        "window_flags": np.asarray(windows["flags"], int), "seconds": np.array(seconds),
    }  # fmt: skip


def one(seed, folder, rows, heads):
    """Simulate and measure a field or a blend, unless that was done before: the file of what was found."""
    path = rows / f"{seed}.npz"
    if not path.exists():
        pair, truth = field(seed, folder) if seed in FIELDS else blend(seed)
        found = measured(pair, truth, heads) | {"described": np.array(json.dumps(described(pair, truth)))}
        rows.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npz")
        np.savez(temporary, **found)
        temporary.replace(path)
    return path


def loaded(seed, path):
    """What was measured on a field or a blend, and where a field has sources beyond its border (dict)."""
    found = dict(np.load(path))
    return found | ({"outside": outside(seed, found["true_place"])} if seed in FIELDS else {})


# ---------------------------------------------------------------------------- all fields
def cell(statistic, parts, digits=3):
    """A statistic of all fields together, ``parts`` (an array each), and half its 68 % range; empty below ten."""
    number = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    if len(number) < 10:
        return ""
    return shown(*interval(statistic, np.concatenate(parts), number), digits)


def i_magnitude(rows):
    return magnitude(rows["true_flux"][:, BANDS.index("i")])


def found_lines(fields):
    """Shares of the true sources that have a row."""
    kinds = {
        "all": lambda family: family != "",
        "stars": lambda family: family == "star",
        "irregular galaxies": lambda family: family == "irregular",
        "other galaxies": lambda family: (family != "irregular") & (family != "star"),
    }
    for kind, of in kinds.items():
        line = [kind]
        for low, high in MAG_BINS:
            parts = []
            for rows in fields:
                mag = i_magnitude(rows)
                chosen = (mag >= low) & (mag < high) & of(rows["family"])
                parts.append(rows["row_of"][chosen] >= 0)
            line.append(f"{cell(np.mean, parts)} of {sum(map(len, parts))}")
        yield line


def unmatched(rows):
    """Whether a row has no true source of its own."""
    free = np.ones(len(rows["flags"]), bool)
    free[rows["row_of"][rows["row_of"] >= 0]] = False
    return free


def left_out(rows):
    """Whether a row lies at a source that the rule leaves out: beyond the border, or too faint."""
    places = np.concatenate([rows["outside"], rows["true_place"][i_magnitude(rows) >= FAINTEST]])
    return np.linalg.norm(rows["place"][:, None] - places[None], axis=-1).min(axis=1, initial=np.inf) < APART


def nearest_host(rows, reach=3.0):
    """Number of the true source in whose light a row without one lies (-1: none within 3")."""
    apart = np.linalg.norm(rows["place"][:, None] - rows["true_place"][None], axis=-1)  # (n_row, n_true)
    light = rows["true_flux"][:, BANDS.index("i")] / (0.3**2 + apart**2)
    light[apart > reach] = 0
    return np.where(light.max(axis=1, initial=0) > 0, light.argmax(axis=1), -1)


def row_lines(fields):
    """Rows that are no true source: their share, where they lie, and how many carry no flag that warns of them."""
    free = [unmatched(rows) for rows in fields]
    yield ["rows without a true source", cell(np.mean, free)]
    other = [f & left_out(rows) for f, rows in zip(free, fields, strict=True)]
    yield [f"... of all rows: sources beyond the border or fainter than i = {FAINTEST}", cell(np.mean, other)]
    edge = [f & ((rows["flags"] & int(Flag.EDGE)) != 0) & ~o for f, o, rows in zip(free, other, fields, strict=True)]
    yield ["... of all rows: others that the border cuts (flag EDGE)", cell(np.mean, edge)]
    clean = [f & ((rows["flags"] & int(CLEAN)) == 0) for f, rows in zip(free, fields, strict=True)]
    yield ["... of them without a warning flag, per field", cell(np.mean, [np.array([c.sum()]) for c in clean], 1)]
    hosts = [nearest_host(rows)[f] for f, rows in zip(free, fields, strict=True)]
    for kind in ("irregular", "star", "sky", "other galaxies"):
        per_field = []
        for host, rows in zip(hosts, fields, strict=True):
            family = np.where(host >= 0, rows["family"][np.maximum(host, 0)], "sky")
            of = family == kind if kind != "other galaxies" else ~np.isin(family, ("irregular", "star", "sky"))
            per_field.append(np.array([of.sum()]))
        yield [f"... in the light of: {kind}, per field", cell(np.mean, per_field, 1)]
    bright = []
    for rows in fields:
        of = (rows["family"] == "irregular") & (i_magnitude(rows) < 23)
        host = nearest_host(rows)[unmatched(rows)]
        bright.append([(host == k).sum() + (rows["row_of"][k] >= 0) for k in np.flatnonzero(of)])
    parts = [np.array(b, float) for b in bright]
    yield ["rows per irregular galaxy of i < 23", cell(np.mean, parts, 2)]
    parts = []
    for rows in fields:
        of = (rows["family"] == "star") & (i_magnitude(rows) < 21)
        host = nearest_host(rows)[unmatched(rows)]
        parts.append(np.array([(host == k).sum() + (rows["row_of"][k] >= 0) for k in np.flatnonzero(of)], float))
    yield ["rows per star of i < 21", cell(np.mean, parts, 2)]


def flux_of(rows, band):
    """Of matched sources in one band: ratio - 1, pull, S/N, i magnitude, blended, family."""
    k, of = BANDS.index(band), np.flatnonzero(rows["row_of"] >= 0)
    row = rows["row_of"][of]
    flux, error, true = rows["flux"][row, k], rows["flux_err"][row, k], rows["true_flux"][of, k]
    good = np.isfinite(flux + error)
    blended = (rows["flags"][row] & int(Flag.BLENDED)) != 0
    columns = flux / true - 1, (flux - true) / error, flux / error, i_magnitude(rows)[of], blended, rows["family"][of]
    return [column[good] for column in columns]


def flux_lines(fields, cuts):
    """Fluxes against truth; ``cuts``: title to (band, choice by S/N, i magnitude, blended, family)."""
    statistics = (np.median, nmad), (covered, nmad), lambda r: np.mean(np.abs(r) > 0.25)
    for title, (band, choose) in cuts.items():
        ratio, pull = [], []
        for rows in fields:
            r, p, *rest = flux_of(rows, band)
            of = choose(*rest)
            ratio.append(r[of])
            pull.append(p[of])
        if sum(map(len, ratio)) >= 10:
            cells = [cell(s, ratio) for s in statistics[0]] + [cell(s, pull) for s in statistics[1]]
            yield [title, sum(map(len, ratio)), *cells, cell(statistics[2], ratio)]


def offset_lines(fields):
    verdicts, count = np.unique([str(rows["verdict"]) for rows in fields], return_counts=True)
    yield ["verdicts", ", ".join(f"{v} {n}" for v, n in zip(verdicts, count, strict=True))]
    done = [rows for rows in fields if str(rows["verdict"]) != "abstain"]
    yield ["rms error per axis (mas)", cell(rms, [rows["offset_error"] for rows in done], 1)]
    yield ["median quoted (mas)", cell(np.median, [rows["offset_sigma"] for rows in done], 1)]
    yield ["one sigma", cell(covered, [rows["offset_error"] / rows["offset_sigma"] for rows in done], 2)]


def blend_lines(blends):
    """Recall, and i-band fluxes and colours of the matched galaxies."""
    g, i, k_g, k_i, off, n_true, n_row = [], [], [], [], [], 0, 0
    error = []
    for rows in blends:
        of = np.flatnonzero(rows["row_of"] >= 0)
        row = rows["row_of"][of]
        flux, true = rows["flux"][row], rows["true_flux"][of]
        g.append(flux[:, BANDS.index("g")])
        i.append(flux[:, BANDS.index("i")])
        error.append(rows["flux_err"][row, BANDS.index("i")])
        k_g.append(true[:, BANDS.index("g")])
        k_i.append(true[:, BANDS.index("i")])
        off.append(np.r_[np.abs(i[-1] / k_i[-1] - 1) > 0.25, np.ones(len(rows["row_of"]) - len(of), bool)])
        n_true, n_row = n_true + len(rows["row_of"]), n_row + len(rows["flags"])
    ratio = [a / b - 1 for a, b in zip(i, k_i, strict=True)]
    with np.errstate(invalid="ignore", divide="ignore"):
        colour = [-2.5 * np.log10(a / b * d / c) for a, b, c, d in zip(g, i, k_g, k_i, strict=True)]
    pull = [(a - b) / e for a, b, e in zip(i, k_i, error, strict=True)]
    found = [rows["row_of"] >= 0 for rows in blends]
    yield ["galaxies", n_true]
    yield ["found", cell(np.mean, found)]
    yield ["rows a galaxy", f"{n_row / n_true:.3f}"]
    yield ["bias in i", cell(np.nanmedian, ratio)]
    yield ["NMAD in i", cell(nmad, ratio)]
    yield ["more than 25 % off in i, or not found", cell(np.mean, off)]
    yield ["NMAD of g - i", cell(nmad, colour)]
    yield ["one sigma in i", cell(lambda p: covered(p[np.isfinite(p)]), pull)]


def field_tables(fields):
    """Name, title, header and lines of every table of the fields."""
    header = ("Kind", *(f"i = {low}-{high}" for low, high in MAG_BINS))
    yield "frozen_found", "Found, of the true sources", header, found_lines(fields)
    yield "frozen_rows", "Rows that are no true source", ("What", "measured"), row_lines(fields)
    header = ("i (AB)", "n", "bias", "NMAD", "1 sigma", "pull NMAD", "> 25 % off")
    cuts = {}
    for low, high in MAG_BINS:
        cuts[f"{low}-{high}"] = "i", lambda s, m, x, f, lo=low, hi=high: (m >= lo) & (m < hi)
    for low, high in MAG_BINS:
        cuts[f"{low}-{high}, blended"] = "i", lambda s, m, x, f, lo=low, hi=high: (m >= lo) & (m < hi) & x
    yield "frozen_magnitudes", "i-band flux against truth", header, flux_lines(fields, cuts)
    cuts = {}
    for band in BANDS:
        cuts[f"{band}, isolated"] = band, lambda s, m, x, f: (s > 10) & ~x
        cuts[f"{band}, blended"] = band, lambda s, m, x, f: (s > 10) & x
    for band in ("r", "i", "VIS", "H_E"):
        cuts[f"{band}, stars"] = band, lambda s, m, x, f: (s > 10) & (f == "star")
        cuts[f"{band}, irregular galaxies"] = band, lambda s, m, x, f: (s > 10) & (f == "irregular")
    header = ("Band, kind", *header[1:])
    yield "frozen_bands", "Flux against truth where S/N > 10", header, flux_lines(fields, cuts)
    yield "frozen_offsets", "Joint offset field", ("What", "measured"), offset_lines(fields)
    odd = [(rows["window_flags"] & int(Flag.OUT_OF_DISTRIBUTION)) != 0 for rows in fields]
    title = "Windows flagged OUT_OF_DISTRIBUTION"
    yield "frozen_strange", title, ("What", "share"), [["windows flagged as unfamiliar", cell(np.mean, odd)]]


def change_lines(before, now):
    """What two versions measure on the same fields."""
    for (name, _, header, old), (_, _, _, new) in zip(field_tables(before), field_tables(now), strict=True):
        new = {line[0]: line[1:] for line in new}
        for title, *cells in old:
            for column, one, two in zip(header[1:], cells, new.get(title, cells), strict=True):
                if len(header) == 2:
                    yield [title, one, two]
                elif name == "frozen_found":
                    yield [f"found, {title}: {column}", one, two]
                elif column in ("NMAD", "1 sigma", "> 25 % off"):
                    yield [f"{title}: {column}", one, two]


def report(tables, fields, blends):
    """Show all tables."""
    if blends:
        tables.show("frozen_blends", "Blends of two or three galaxies", ("What", "measured"), blend_lines(blends))
    n_star = sum(((rows["family"] == "star") & (i_magnitude(rows) < FAINTEST)).sum() for rows in fields)
    n_odd = sum(((rows["family"] == "irregular") & (i_magnitude(rows) < 23)).sum() for rows in fields)
    cpu = np.median([rows["seconds"] for rows in fields])
    print(f"{len(fields)} fields, {n_star} stars of i < {FAINTEST}, {n_odd} irregular galaxies of i < 23")
    print(f"{cpu:.0f} CPU-s for a field, median")
    for table in field_tables(fields):
        tables.show(*table)


def check(found, freeze):
    """Compare the sky that was made (descriptions by seed) with the frozen one, or freeze it."""
    kept, versions = known(), {name: version(name) for name in PACKAGES}
    if freeze:
        kept = {"versions": versions, "sky": {**kept.get("sky", {}), **found}}
        SKY.write_text(json.dumps(kept, sort_keys=True).replace('}, "8', '},\n"8') + "\n")
    kept = kept.get("sky", {})
    differ = [seed for seed in found if not same(found[seed], kept.get(seed))]
    if differ:
        sys.exit(f"seeds {', '.join(differ)} are not those of {SKY.name}: delete them and simulate them again")
    exact = sum(found[seed]["hash"] == kept[seed]["hash"] for seed in found)
    print(f"{len(found)} skies are those of {SKY.name}; {exact} hash for hash, the others by their sums")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fields", type=int, default=len(FIELDS))
    parser.add_argument("--blends", type=int, default=len(BLENDS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--heads", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--before", type=Path, help="rows of another version, to be compared on the same fields")
    parser.add_argument("--freeze", action="store_true")
    add_option(parser)
    options = parser.parse_args()
    seeds, rows = [*FIELDS[: options.fields], *BLENDS[: options.blends]], options.rows or options.folder / "rows"
    found = {}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        work = partial(one, folder=options.folder, rows=rows, heads=options.heads)
        for seed, path in zip(seeds, pool.map(work, seeds), strict=True):
            found[seed] = loaded(seed, path)
            print(f"{len(found)} of {len(seeds)} measured", file=sys.stderr)
    check({str(seed): json.loads(str(one["described"])) for seed, one in found.items()}, options.freeze)
    tables, fields = Tables(options.tables), [found[seed] for seed in seeds if seed in FIELDS]
    report(tables, fields, [found[seed] for seed in seeds if seed in BLENDS])
    if options.before is not None:
        before = [loaded(seed, options.before / f"{seed}.npz") for seed in seeds if seed in FIELDS]
        tables.show("frozen_changes", "Before and after", ("What", "before", "after"), change_lines(before, fields))


if __name__ == "__main__":
    main()
