# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The aligner's errors beside the Cramer-Rao bound and other tools, and whether it abstains where it must.

Field errors are those of the corrected WCS on a grid of true positions, mas per axis. Every measurement is kept in
FOLDER as soon as it is made: an interrupted run goes on where it stopped, and `--seeds` can be raised later. Intervals
are 68 %, from resampling seeds. Unless stated otherwise, the aligner is the untrained head (classical weights); section
"encoder" measures what the network adds.

Run: python benchmarks/alignment.py [SECTION ...] [--seeds N] [--folder FOLDER] [--real FOLDER]
"""

import argparse
import logging
import os
import resource
import time
import warnings
from functools import lru_cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: threads that wait for a busy core would be counted

import astropy.units as u
import galsim
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData, StdDevUncertainty
from kit.fields import misaligned, true_offsets
from kit.models import NoTokens, tiny_encoder
from kit.peers.alignment import PEERS, scamp_at_hand
from kit.real import hsc_hst
from kit.scenes import CASES, GROUND_PSF, field_bound, simulate, source_bound, to_plane
from kit.statistics import covered, interval, nmad, rms, shown
from kit.store import Rows

from rosetta import AstrometricSolution, CrossSurveyEncoder, LearnedAligner, SkyPair
from rosetta.astrometry import measurement
from rosetta.astrometry.cross_correlation import correlate
from rosetta.astrometry.field import evaluate
from rosetta.detection.detection import DetectionConfig, detected
from rosetta.images.image import band_images
from rosetta.images.positions import offset_coord, tangent

FIRST_SEED = 7001
OURS = "LearnedAligner, PSF not given"
BOUND = "Cramer-Rao bound"
MEASUREMENT = measurement.MeasurementConfig()


# ---------------------------------------------------------------------------- measuring one thing
def classical():
    """The untrained aligner: classical weights."""
    return LearnedAligner(tiny_encoder())


def cpu():
    """CPU seconds of this process and of the programs that it ran."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def field_error(scene, solution):
    """(n, 2) mas on the grid, of a function ground pixel -> true (u, v)."""
    a, b, x, y = scene.grid()
    return 1e3 * (np.stack(solution(x, y), -1) - np.stack([a, b], -1))


def peer(scene, method):
    start = cpu()
    try:
        error = field_error(scene, PEERS[method](scene))
    except Exception as failure:  # another tool's failure is a result
        return {"failed": f"{type(failure).__name__}: {str(failure)[:100]}"}
    return {"rms": rms(error), "cpu": cpu() - start}


def ours(scene, aligner, psf):
    """Field error, quoted error and pulls of one scene."""
    start = cpu()
    embedding = aligner.encoder(scene.pair(psf))
    middle = cpu()
    offsets = aligner(embedding)
    solution = AstrometricSolution.from_table(offsets)
    row = {"cpu": cpu() - middle, "encoding": middle - start, "verdict": solution.verdict}
    if solution.verdict != "ok":
        return {**row, "failed": solution.reason}
    wcs = aligner.correct_wcs(scene.wcs["ground"], offsets, form="lookup")
    error = field_error(scene, lambda x, y: to_plane(wcs, x, y))
    a, b, _, _ = scene.grid()
    return {
        **row, **field_scores(error, solution.sigma_at(_sky(a, b))), "mean": error.mean(0).tolist(),
        **pulls(scene, offsets),
    }


def field_scores(error, sigma):
    """Of a field's errors (n, 2) and their sigma, mas: rms, quoted rms, and share of true values within one sigma."""
    return {"rms": rms(error), "quoted": rms(sigma), "inside": float(covered(error / sigma))}


def _sky(a, b):
    return offset_coord(SkyCoord(53.1, -28.1, unit="deg"), np.asarray(a), np.asarray(b))


def pulls(scene, offsets):
    """Single sources: pulls, isolated ones' sigma over the Cramer-Rao bound, and star minus galaxy (mas)."""
    truth = scene.truth
    rows = offsets[(offsets["band"] == "joint") & np.isfinite(offsets["d_dec"])]
    nearest, apart, _ = rows["sky_centroid"].match_to_catalog_sky(_sky(truth["u"], truth["v"]))
    ok = (apart < 0.2 * u.arcsec) & truth["in_space"][nearest] & truth["in_ground"][nearest]
    rows, nearest = rows[ok], nearest[ok]
    true = -1e3 * np.stack([truth["du"], truth["dv"]], -1)[nearest]
    error = true_offsets(rows) - true
    sigma = np.stack([rows[f"{n}_err"].to_value(u.mas) for n in ("d_ra_cosdec", "d_dec")], -1)
    near = np.hypot(truth["u"][:, None] - truth["u"], truth["v"][:, None] - truth["v"]) + 99 * np.eye(len(truth["u"]))
    alone = near.min(1)[nearest] > 3.0
    ratio = (sigma / (1e3 * source_bound(scene).T[nearest]))[alone]
    star = truth["star"][nearest]
    means = [
        np.average(error[k], axis=0, weights=sigma[k] ** -2) if k.any() else np.full(2, np.nan) for k in (star, ~star)
    ]
    return {
        "pull": np.round(error / sigma, 3).ravel().tolist(), "ratio": np.round(ratio[np.isfinite(ratio)], 3).tolist(),
        "star_galaxy": (means[0] - means[1]).tolist(),
    }


# ---------------------------------------------------------------------------- numbers of many
def spread(values, statistic=np.median):
    """Statistic of many seeds, with half its 68 % range when they are drawn again."""
    return shown(*interval(statistic, values), 2) if len(values) else "-"


def print_calibration(name, rows):
    good = [row for row in rows if "rms" in row]
    pull = np.concatenate([row["pull"] for row in good])
    ratio = np.concatenate([row["ratio"] for row in good])
    print(
        f"{name:42s} {len(good)} seeds | field: inside 1 sigma {spread([r['inside'] for r in good], np.mean)}, "
        f"rms {rms([r['rms'] for r in good]):.2f} quoted {rms([r['quoted'] for r in good]):.2f} | "
        f"sources: pull NMAD {nmad(pull):.3f}, inside {covered(pull):.3f}, "
        f"sigma / bound {np.median(ratio):.2f}"
    )


# ---------------------------------------------------------------------------- sections
@lru_cache(maxsize=1)
def scene_of(case, seed):
    return simulate(seed, **CASES[case])


def table(store, options):
    """Field error of every method in every case."""
    methods = [m for m in PEERS if m != "SCAMP degree 3" or scamp_at_hand()]
    if len(methods) < len(PEERS):
        print("SCAMP and Source Extractor are not installed: left out")
    methods += [BOUND, OURS]
    aligner = classical()

    def measure(case, seed, method):
        scene = scene_of(case, seed)
        if method == BOUND:
            return {"rms": field_bound(scene, case)}
        return ours(scene, aligner, "none") if method == OURS else peer(scene, method)

    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    keys = [{"case": c, "seed": s, "method": m} for s in seeds for c in CASES for m in methods]
    rows = store("table").fill(keys, measure)
    print(f"{'field error, mas: median (rms)':34s} " + " ".join(f"{case:>22s}" for case in CASES))
    for method in methods:
        cells, seconds = [], []
        for case in CASES:
            own = [row for row in rows if (row["case"], row["method"]) == (case, method)]
            good = [row["rms"] for row in own if "rms" in row]
            seconds += [row["cpu"] for row in own if "cpu" in row]
            failed = f" F{len(own) - len(good)}" if len(good) < len(own) else ""
            cells.append(f"{spread(good)} ({rms(good):.2f}){failed}" if good else "failed")
        spent = f" {np.median(seconds):.2f} s" if seconds else ""
        print(f"{method:34s} " + " ".join(f"{cell:>22s}" for cell in cells) + spent)
    pairs = np.array([
        [row["rms"] for row in rows if (row["case"], row["method"]) == (case, OURS)]
        for case in ("C", "C, 30 % blended")
    ]).T
    ratio = [spread(pairs, lambda p, s=s: s(p[:, 1]) / s(p[:, 0])) for s in (np.median, rms)]
    print(f"blended over unblended: {ratio[0]} of the medians, {ratio[1]} of the rms")
    bundled = CrossSurveyEncoder.from_pretrained(device="cpu")

    def encode(seed):
        pair = scene_of("C", seed).pair("none")
        start = cpu()
        bundled(pair)
        return {"cpu": cpu() - start}

    seconds = [row["cpu"] for row in store("encoding").fill([{"seed": s} for s in seeds[:5]], encode)]
    print(f"the bundled encoder takes {np.median(seconds):.2f} s more")


def calibration(store, options):
    """Pulls and coverage over the seeds of the table, and over four times as many of cases A and C."""
    aligner = classical()
    known = {(row["case"], row["seed"], row["method"]): row for row in store("table").rows}

    def measure(case, seed, method):
        return known.get((case, seed, method)) or ours(scene_of(case, seed), aligner, "none")

    for case in CASES:
        seeds = range(FIRST_SEED, FIRST_SEED + (4 if case in "AC" else 1) * options.seeds)
        keys = [{"case": case, "seed": s, "method": OURS} for s in seeds]
        print_calibration(case, store("calibration").fill(keys, measure))


def known_field(store, options):
    """Field errors with the amplitude, length and scatter of sources fitted, and with their true values given."""
    aligner = classical()

    def measure(case, seed):
        scene, known = scene_of(case, seed), CASES[case]
        solution = AstrometricSolution.from_table(aligner(scene.pair("none")))
        model = solution.fields["joint"]
        stray = [1e3 * known.get(name, 1e-5) for name in ("star_jitter", "galaxy_jitter")]
        told = {**model, "samples": [[1.0, stray, 1e3 * known["rms"], known["length"]]]}
        a, b, _, _ = scene.grid()
        true = -1e3 * np.stack(scene.delta(a, b), -1)
        xy = tangent(_sky(a, b), solution.center)
        return {name: rms(evaluate(m, xy)[0] - true) for name, m in (("fitted", model), ("known", told))}

    for case in "CD":
        keys = [{"case": case, "seed": s} for s in range(FIRST_SEED, FIRST_SEED + options.seeds)]
        rows = store("known_field").fill(keys, measure)
        for name in ("fitted", "known"):
            errors = [row[name] for row in rows]
            print(f"{case}, {name:6s} {spread(errors)} ({rms(errors):.2f})")


def wrong_psf(store, options):
    """Bias of the field and star minus galaxy where the given PSF is wrong; adaptive-moment gauge."""
    wing = galsim.Add([0.97 * GROUND_PSF, 0.03 * GROUND_PSF.shift(0.35, 0)])
    claims = {
        "exact": (GROUND_PSF, GROUND_PSF), "FWHM 10 % too wide": (GROUND_PSF, galsim.Kolmogorov(fwhm=0.77)),
        "FWHM 10 % too narrow": (GROUND_PSF, galsim.Kolmogorov(fwhm=0.63)),
        "3 % wing claimed, not there": (GROUND_PSF, wing), "3 % wing there, not claimed": (wing, GROUND_PSF),
        "3 % wing there, no PSF given": (wing, "none"),
    }
    aligner = classical()

    def measure(claim, seed):
        true, given = claims[claim]
        scene = simulate(seed, ground_psf=true)
        row = ours(scene, aligner, given)
        row["mean"] = (np.array(row["mean"]) + gauge(scene)).tolist()
        return row

    print("field bias east, north and star minus galaxy east, north (mas, mean of case A)")
    for claim in claims:
        keys = [{"claim": claim, "seed": s} for s in range(FIRST_SEED, FIRST_SEED + 2 * options.seeds // 5)]
        rows = [row for row in store("wrong_psf").fill(keys, measure) if "mean" in row]
        numbers = [[row[name][axis] for row in rows] for name in ("mean", "star_galaxy") for axis in (0, 1)]
        print(f"{claim:34s} " + " ".join(f"{spread(values, np.mean):>14s}" for values in numbers))


def gauge(scene):
    """Where the true ground PSF's adaptive-moment centroid lies (east, north; mas): the origin of what is drawn."""
    moments = scene.psf["ground"].drawImage(nx=201, ny=201, scale=0.05, method="no_pixel").FindAdaptiveMom()
    return 50.0 * np.array([moments.moments_centroid.x - 101, moments.moments_centroid.y - 101])


def capture(store, options):
    """Verdicts for large shifts, and for pairs that cannot be aligned."""
    aligner = classical()
    kinds = "0.25 to 16 arcsec", "32 arcsec", "blank ground", "other sky", "under four sources"

    def answer(pair, scene):
        offsets = aligner(pair)
        row = {"verdict": AstrometricSolution.from_table(offsets).verdict}
        if row["verdict"] == "ok":
            wcs = aligner.correct_wcs(scene.wcs["ground"], offsets, form="lookup")
            row["rms"] = rms(field_error(scene, lambda x, y: to_plane(wcs, x, y)))
        return row

    def measure(kind, seed):
        rng = np.random.default_rng(seed)
        angle = rng.uniform(0, 2 * np.pi)
        few = {"n_galaxy": int(rng.integers(0, 2)), "n_star": int(rng.integers(0, 3))}
        radius = {"32 arcsec": 32.0}.get(kind, 0.25 * 2 ** rng.uniform(0, 6))
        chosen = {
            "other sky": {"sky": seed + 500_000}, "under four sources": few,
            "0.25 to 16 arcsec": {"shift": (radius * np.cos(angle), radius * np.sin(angle))},
            "32 arcsec": {"shift": (radius * np.cos(angle), radius * np.sin(angle))},
        }
        scene = simulate(seed, **chosen.get(kind, {}))
        if kind == "blank ground":
            scene.image["ground"] = scene.image["ground"] - scene.clean["ground"]
        return answer(scene.pair("none"), scene)

    keys = [  # a share of each kind at a time, for runs that are cut short
        {"kind": kind, "seed": FIRST_SEED + k}
        for turn in range(options.seeds) for kind in kinds for k in range(6 * turn, 6 * (turn + 1))
    ]
    answers = store("capture").fill(keys, measure)
    for kind in kinds:
        rows = [row for row in answers if row["kind"] == kind]
        verdicts = {v: sum(row["verdict"] == v for row in rows) for v in ("ok", "coarse", "abstain")}
        right = sum(row.get("rms", np.inf) < 20 for row in rows)
        print(f"{kind:22s} {len(rows)} trials: {verdicts}, right to 20 mas: {right}")


def token_capture(store, options):
    """Large shifts, found by correlating ground tokens with those predicted from space, and by correlating pixels."""
    encoder = CrossSurveyEncoder.from_pretrained(device="cpu")

    def measure(kind, seed):
        rng = np.random.default_rng(seed)
        pair, truth = misaligned(FIRST_SEED + seed // 5, options.folder)
        other = misaligned(FIRST_SEED + (seed // 5 + 1) % 10, options.folder)[0] if kind == "other sky" else pair
        radius, angle = 0.25 * 2 ** rng.uniform(0, 6), rng.uniform(0, 2 * np.pi)
        shift = radius * np.array([np.cos(angle), np.sin(angle)])  # arcsec
        pair = SkyPair({band: moved(image, *shift) for band, image in pair.ground.items()}, dict(other.space))
        start = cpu()
        embedding = encoder(pair)
        middle = cpu()
        matches = {"tokens": token_match(encoder, embedding)}
        late = cpu()
        matches["pixels"] = measurement.coarse_match(band_images(pair), sources_of(pair))
        row = {"encoding": middle - start, "cpu": {"tokens": late - middle, "pixels": cpu() - late}}
        known = 1e-3 * true_offsets(truth).mean(0) - shift
        for name, match in matches.items():
            row[name] = {"error": float(np.hypot(*(match.offset - known))), "significance": match.significance}
        return row

    keys = [{"kind": kind, "seed": k} for k in range(options.seeds) for kind in ("same sky", "other sky")]
    rows = store("token_capture").fill(keys, measure)
    print(f"encoding {np.median([row['encoding'] for row in rows]):.1f} CPU-s a pair, not counted below")
    for name in ("tokens", "pixels"):
        same, other = ([row[name] for row in rows if row["kind"] == k] for k in ("same sky", "other sky"))
        error = np.array([one["error"] for one in same])
        print(f"{name:8s} {len(same)} pairs of 0.25 to 16 arcsec: {np.sum(error < 1)} found to 1 arcsec, error median "
              f"{np.median(error):.3f}, largest {error.max():.3f}; significance at least "
              f"{min(one['significance'] for one in same):.1f}, on other sky at most "
              f"{max(one['significance'] for one in other):.1f}; {np.median([r['cpu'][name] for r in rows]):.2f} CPU-s")


def sources_of(pair):
    """Sources of the reference image, as the aligner measures them."""
    return measurement.find_sources(detected(pair, DetectionConfig()), MEASUREMENT)


def token_match(encoder, embedding):
    """The ground's token map against what the space tokens predict of it."""
    maps = [one.token_map("ground") for one in (embedding, encoder.predict(embedding, "ground"))]
    pitch = 3600 * maps[0].wcs.celestial.wcs.cdelt[1]
    seen, told = (m.data[:, :, ::-1] for m in maps)  # east increases with the column
    known = [np.isfinite(tokens[0]) for tokens in (seen, told)]
    channels = [(np.nan_to_num(a), known[0], np.nan_to_num(b), known[1]) for a, b in zip(seen, told, strict=True)]
    return correlate(channels, pitch, MEASUREMENT.most_offset, apart=1.5 * pitch)


def moved(image, east, north):
    """The same image, its header off by so many arcsec."""
    wcs = image.wcs.deepcopy()
    center = offset_coord(SkyCoord(*wcs.wcs.crval, unit="deg"), east, north)
    wcs.wcs.crval = [center.ra.deg, center.dec.deg]
    wcs.wcs.set()
    return NDData(image, wcs=wcs, psf=image.psf)


def nulls(store, options):
    """Moving a header by a known shift moves the offsets by it; storing the pixels in another order changes nothing."""
    aligner = classical()
    moves = {"ground header moved": ("ground", -1), "space header moved": ("space", 1)}

    def measure(test, seed):
        scene = simulate(seed, **({"shift": (0.0, 0.0)} if test == "no offset" else {}))
        before = AstrometricSolution.from_table(aligner(scene.pair("none")))
        if test == "no offset":
            middle = before.center.reshape(1)
            value, sigma = before.offset_at(middle)[0], before.sigma_at(middle)[0]
            return {"pull": (value / sigma).tolist(), "size": float(np.abs(value).max())}
        images = {side: scene.nddata(side) for side in ("ground", "space")}
        expected = np.zeros(2)
        if test in moves:
            side, sign = moves[test]
            images[side] = moved(images[side], 0.080, 0.030)
            expected = sign * np.array([80.0, 30.0])
        elif test == "other grid":
            images["ground"] = turned(images["ground"])
        after = AstrometricSolution.from_table(aligner(SkyPair({"r": images["ground"]}, {"VIS": images["space"]})))
        old, new = (solution.offset_at(solution.center.reshape(1)) for solution in (before, after))
        change = new - old
        return {"size": float(np.abs(change - expected).max())}

    for test in ("no offset", *moves, "other grid"):
        seeds = range(FIRST_SEED, FIRST_SEED + options.seeds // 5)
        rows = store("nulls").fill([{"test": test, "seed": s} for s in seeds], measure)
        pull = np.ravel([row["pull"] for row in rows if "pull" in row])
        told = f", pull rms {rms(pull):.2f}" if len(pull) else ""
        print(f"{test:22s} {len(rows)} seeds: median |difference| {np.median([r['size'] for r in rows]):.3f} mas, "
              f"largest {max(r['size'] for r in rows):.3f}{told}")


def turned(image):
    """The same pixels stored in another order, turned by 90 deg and mirrored, with the WCS to match."""
    wcs = image.wcs.deepcopy()
    ny, nx = image.data.shape
    # New pixel (x', y') holds old pixel (ny - 1 - y', nx - 1 - x'): an anti-transposition.
    wcs.wcs.crpix = [ny + 1 - wcs.wcs.crpix[1], nx + 1 - wcs.wcs.crpix[0]]
    wcs.wcs.cd = wcs.wcs.cd @ np.array([[0.0, -1.0], [-1.0, 0.0]])
    wcs.pixel_shape = (ny, nx)
    wcs.wcs.set()
    error = StdDevUncertainty(image.uncertainty.array[::-1, ::-1].T.copy())
    return NDData(image.data[::-1, ::-1].T.copy(), unit=image.unit, wcs=wcs, uncertainty=error)


def scores_on(truth, offsets):
    """Errors of the joint field at the sources of a simulated field, or None if the alignment failed."""
    solution = AstrometricSolution.from_table(offsets)
    if solution.verdict != "ok":
        return None
    coord = truth["sky_centroid"]
    return field_scores(solution.offset_at(coord) - true_offsets(truth), solution.sigma_at(coord))


def ten_bands(store, options):
    """All ground bands as one frame against each alone, on the project's own fields."""
    head = LearnedAligner.from_pretrained(device="cpu")

    def measure(seed):
        pair, truth = misaligned(seed, options.folder)
        ground = tuple(pair.ground)
        embedding = head.encoder(pair)
        scores = {"joint": scores_on(truth, head(embedding, bands=ground))}
        scores |= {band: scores_on(truth, head(embedding, bands=(band,))) for band in ground}
        return {name: list(found.values()) for name, found in scores.items() if found}

    rows = store("ten_bands").fill([{"seed": s} for s in range(FIRST_SEED, FIRST_SEED + options.seeds // 5)], measure)
    for band in ("joint", *"ugrizy"):
        both = [(row[band], row["joint"]) for row in rows if band in row and "joint" in row]
        found, joint = (np.array(part) for part in zip(*both, strict=True))
        print(f"{band:6s} {len(found)} of {len(rows)} fields: error median {spread(found[:, 0])}, rms "
              f"{rms(found[:, 0]):.2f}, quoted {rms(found[:, 1]):.2f}, inside 1 sigma "
              f"{spread(found[:, 2], np.mean)}; joint over this {spread(joint[:, 0] / found[:, 0])}")


def encoder(store, options):
    """The same table with the tokens zeroed and with an untrained encoder; heads trained alike on other fields."""
    bundled = CrossSurveyEncoder.from_pretrained(device="cpu")
    untrained = CrossSurveyEncoder(config=bundled.config, device="cpu")
    n = options.seeds // 5
    pairs = [misaligned(FIRST_SEED + 900_000 + k, options.folder) for k in range(n)]
    heads = {"no network": LearnedAligner(bundled)}
    zeroed = NoTokens.from_pretrained(device="cpu")
    for name, model in (("tokens", bundled), ("zeroed", zeroed), ("untrained", untrained)):
        heads[name] = LearnedAligner(model).fit(*zip(*pairs, strict=True), seed=0)

    def measure(head, seed):
        pair, truth = misaligned(seed, options.folder)
        return scores_on(truth, heads[head](pair))

    start = {}
    for head in heads:
        keys = [{"head": head, "seed": s} for s in range(FIRST_SEED, FIRST_SEED + n)]
        rows = store("encoder").fill(keys, measure)
        start.setdefault("none", [row["rms"] for row in rows])
        gain = 1 - np.array([row["rms"] for row in rows]) / np.array(start["none"])
        print(f"{head:12s} error median {spread([row['rms'] for row in rows])}, quoted "
              f"{rms([row['quoted'] for row in rows]):.2f}, inside 1 sigma {np.mean([r['inside'] for r in rows]):.2f}; "
              f"better than without by {spread(gain, np.mean)}")


def real(store, options):
    """HSC against HST, band by band."""
    if options.real is None or not options.real.is_dir():
        print("no folder of real images (--real FOLDER): left out")
        return
    pair = hsc_hst(options.real)
    solution = AstrometricSolution.from_table(classical()(pair))
    print(f"verdict: {solution.verdict} {solution.reason}")
    images, sources, means = band_images(pair), sources_of(pair), []
    for band in pair.ground:  # as measured, whatever the verdict
        part = measurement.measure_band(images[band], sources, np.zeros(2))
        use = part.usable
        weight = np.linalg.inv(part.cov[use])
        cov = np.linalg.inv(weight.sum(0))
        means.append(cov @ np.einsum("nij,nj->i", weight, part.offset[use]))
        print(f"{band:6s} {use.sum()} sources, mean offset {means[-1][0]:+7.1f} {means[-1][1]:+7.1f} "
              f"+- {np.sqrt(np.trace(cov) / 2):.1f} mas")
    east, north = np.std(means, axis=0, ddof=1)
    print(f"scatter between {len(means)} bands: {east:.1f} east, {north:.1f} north, mas")


SECTIONS = {
    f.__name__: f for f in (
        table, calibration, known_field, wrong_psf, capture, token_capture, nulls, ten_bands, encoder, real,
    )
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("alignment-results"))
    parser.add_argument("--real", type=Path, help="folder of real HSC and HST cutouts")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no such section: {', '.join(unknown)}")
    for name in ("rosetta", "astropy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    def store(name):
        return Rows(options.folder / f"{name}.jsonl")

    for name in options.sections or SECTIONS:
        print(f"\n== {name}: {SECTIONS[name].__doc__}")
        start = time.process_time()
        SECTIONS[name](store, options)
        print(f"({time.process_time() - start:.0f} s CPU)", flush=True)


if __name__ == "__main__":
    main()
