# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How accurate the main job's offsets, fluxes and errors are, on simulated fields that nothing was trained on.

Every field is 102" wide, in ten bands, with a shift of (63, -47) mas, a smooth field of 15 mas and two years of proper
motion between the epochs; a fifth of its galaxies are of the irregular family, which was kept out of training. The
bundled heads and untrained ones ("classical": no network contributes) measure the same fields. Intervals are 68 %, from
resampling fields.

Run: python benchmarks/accuracy.py FOLDER [--fields 6] [--first-seed 7401] [--tables FOLDER]

FOLDER keeps the simulated fields.
"""

import sys
import time

import astropy.units as u
import numpy as np
from astropy.coordinates import search_around_sky
from kit.fields import field_number, magnitude, misaligned, true_offsets
from kit.models import HEADS, trained
from kit.statistics import covered, interval, nmad, rms, shown
from kit.tables import Tables, parser_of_fields

from rosetta import AstrometricSolution, CrossSurveyEncoder, Flag, measure
from rosetta.matching import match

MAG_BINS = ((18, 22), (22, 23), (23, 24), (24, 25), (25, 26))


def rows_of(result, truth):
    """Arrays with a row per matched source and band: band, flux, its error, true flux, blended, family."""
    catalog = result.catalog
    found, true = match(catalog, truth, result.scene.meta["reference_band"])
    blended = (np.asarray(catalog["flags"])[found] & int(Flag.BLENDED)) != 0
    family = np.char.strip(np.asarray(truth["family"], str)[true])
    columns = []
    for band in result.scene.bands:
        flux, error = (catalog[f"{n}_{band}"].to_value(u.nJy)[found] for n in ("flux", "flux_err"))
        known = truth[f"flux_{band}"].to_value(u.nJy)[true]
        columns.append((np.full(len(found), band), flux, error, known, blended, family))
    return [np.concatenate(c) for c in zip(*columns, strict=True)]


def detection_of(result, truth):
    """Of true sources: i magnitude, family, whether they have a row. Of rows without a true source: their host.

    The host is the true source within 3" with the largest flux for its distance, or none ("sky").
    """
    catalog = result.catalog
    found, true = match(catalog, truth, result.scene.meta["reference_band"])
    mag, family = magnitude(truth["flux_i"].value), np.char.strip(np.asarray(truth["family"], str))
    host = np.full(len(catalog), "", "U10")
    row, near, apart, _ = search_around_sky(catalog["sky_centroid"], truth["sky_centroid"], 3 * u.arcsec)
    light = truth["flux_i"].value[near] / (0.3**2 + apart.arcsec**2)
    for k in np.setdiff1d(np.arange(len(catalog)), found):
        of = np.flatnonzero(row == k)
        host[k] = family[near[of[np.argmax(light[of])]]] if len(of) else "sky"
    return mag, family, np.isin(np.arange(len(truth)), true), host


def offsets_of(result, truth):
    """Joint-field error and pull, and single-source pulls, per axis (mas)."""
    offsets, solution = result.offsets, AstrometricSolution.from_table(result.offsets)
    if solution.verdict == "abstain":
        return None
    known, coord = true_offsets(truth), truth["sky_centroid"]
    joint = offsets[(offsets["band"] == "joint") & (offsets["weight"] > 0)]
    nearest, distance, _ = joint["sky_centroid"].match_to_catalog_sky(truth["sky_centroid"])
    ok = (distance < 0.3 * u.arcsec) & np.isfinite(joint["d_dec"])
    measured = true_offsets(joint)
    sigma = np.stack([joint[f"{n}_err"].to_value(u.mas) for n in ("d_ra_cosdec", "d_dec")], -1)
    pull = ((measured - known[nearest]) / sigma)[ok]
    return solution.offset_at(coord) - known, solution.sigma_at(coord), pull


def cell(statistic, parts):
    """A statistic of all fields together, ``parts`` (an array each), and half its 68 % range."""
    return shown(*interval(statistic, np.concatenate(parts), field_number(parts)))


def offset_line(name, offsets):
    """The joint field and the single sources of all fields together."""
    done = [o for o in offsets if o is not None]
    if not done:
        return [name, f"0 of {len(offsets)}", *[""] * 5]
    error, sigma, pull = (np.concatenate([o[k] for o in done]) for k in range(3))
    return [
        name, f"{len(done)} of {len(offsets)}", f"{rms(error):.1f}", f"{np.median(sigma):.1f}",
        f"{covered(error / sigma):.2f}", f"{covered(pull):.2f}", f"{nmad(pull):.2f}",
    ]  # fmt: skip


def found_lines(detected):
    """Shares of the true sources that have a row in the catalogue."""
    kinds = {"all": lambda family: family != "", "irregular galaxies": lambda family: family == "irregular",
             "other galaxies and stars": lambda family: family != "irregular"}  # fmt: skip
    for kind, of in kinds.items():
        line = [kind]
        for low, high in MAG_BINS:
            parts = [has[(mag >= low) & (mag < high) & of(family)] for mag, family, has, _ in detected]
            line.append(f"{cell(np.mean, parts)} of {sum(map(len, parts))}")
        yield line


def flux_lines(fluxes, cuts):
    """Fluxes against truth; ``cuts`` name choices by band, S/N, i or own magnitude, blended and family."""
    for title, choose in cuts.items():
        parts = []
        for band, flux, sigma, known, blended, family in fluxes:
            of = choose(band, flux / sigma, magnitude(known), blended, family)
            of &= np.isfinite(flux + sigma)
            parts.append(np.stack([flux[of] / known[of] - 1, (flux[of] - known[of]) / sigma[of]], -1))
        n = sum(map(len, parts))
        if n >= 10:
            statistics = (
                lambda r: np.median(r[:, 0]), lambda r: nmad(r[:, 0]), lambda r: covered(r[:, 1]),
                lambda r: np.mean(np.abs(r[:, 0]) > 0.1),
            )  # fmt: skip
            yield [title, n, *(cell(s, parts) for s in statistics)]


def report(tables, name, fluxes, offsets, detected, seconds):
    """Show all tables of one set of heads."""
    file = f"accuracy_{name}_"
    print(f"\n== {name} heads: {len(fluxes)} fields, median {np.median(seconds):.1f} s CPU each")
    header = ("Heads", "fields", "rms error", "median quoted", "1 sigma", "sources: 1 sigma", "sources: pull NMAD")
    title = "Joint offset field (mas per axis), and the offsets of single sources"
    tables.show(file + "offsets", title, header, [offset_line(name, offsets)])
    header = ("Kind", *(f"i = {low}-{high}" for low, high in MAG_BINS))
    tables.show(file + "found", "Found, of the true sources", header, found_lines(detected))
    hosts = [host for *_, host in detected]
    none = cell(lambda host: np.mean(host != ""), hosts)
    kind, count = np.unique(np.concatenate(hosts), return_counts=True)
    print(f"\n{none} of {count.sum()} rows have no true source of their own; they lie in the light of:")
    print(", ".join(f"{k} {n}" for k, n in zip(kind, count, strict=True) if k))

    header = ("i (AB)", "n", "bias", "NMAD", "1 sigma", "> 10 % off")
    cuts = {}
    for low, high in ((18, 23), *MAG_BINS):
        cuts[f"{low}-{high}"] = lambda b, s, m, x, f, lo=low, hi=high: (b == "i") & (m >= lo) & (m < hi)
    for low, high in ((18, 23), *MAG_BINS[2:]):
        cuts[f"{low}-{high}, blended"] = lambda b, s, m, x, f, lo=low, hi=high: (b == "i") & (m >= lo) & (m < hi) & x
    tables.show(file + "magnitudes", "i-band flux against truth", header, flux_lines(fluxes, cuts))
    cuts = {}
    for band in dict.fromkeys(fluxes[0][0]):
        for kind, want in (("isolated", False), ("blended", True)):
            cuts[f"{band}, {kind}"] = lambda b, s, m, x, f, band=band, want=want: (b == band) & (s > 10) & (x == want)
    cuts["i, irregular galaxies"] = lambda b, s, m, x, f: (b == "i") & (s > 10) & (f == "irregular")
    cuts["i, others"] = lambda b, s, m, x, f: (b == "i") & (s > 10) & (f != "irregular")
    for band in ("i", "VIS"):
        cuts[f"{band} < 22, stars"] = lambda b, s, m, x, f, band=band: (b == band) & (m < 22) & (f == "star")
    header = ("Band, kind", *header[1:])
    tables.show(file + "bands", "Flux against truth where S/N > 10", header, flux_lines(fluxes, cuts))


def main():
    options = parser_of_fields(__doc__, 6, 7401).parse_args()
    encoder = CrossSurveyEncoder.from_pretrained(device="cpu")
    sets = {"bundled": trained(encoder, *HEADS), "classical": {name: head(encoder) for name, head in HEADS.items()}}
    for name, heads in sets.items():
        fluxes, offsets, detected, seconds = [], [], [], []
        for seed in range(options.first_seed, options.first_seed + options.fields):
            pair, truth = misaligned(seed, options.folder)
            start = time.process_time()
            result = measure(pair, encoder=encoder, **heads)
            seconds.append(time.process_time() - start)
            fluxes.append(rows_of(result, truth))
            offsets.append(offsets_of(result, truth))
            detected.append(detection_of(result, truth))
            print(f"{name}: field {seed} done", file=sys.stderr)
        report(Tables(options.tables), name, fluxes, offsets, detected, seconds)


if __name__ == "__main__":
    main()
