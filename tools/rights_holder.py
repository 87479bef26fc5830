# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Figures of quality of one field, for those who may not share its images: no pixels, no positions.

Run: python tools/rights_holder.py --rubin FILE ... --euclid FILE ... -o report.json
  or: python tools/rights_holder.py --pair FILE -o report.json

The field is measured, sources are injected into it and measured again (rounds are kept in report.json.rounds, where a
run that was stopped goes on; this folder stays with you), and one small JSON file is written. It holds means, scatters,
shares and counts by band, the versions of the software, and the place of the field to 0.1 deg. A table of Gaia sources
(--gaia; columns ra, dec, pmra, pmdec and ref_epoch as in the Gaia archive) adds the frames' offsets from Gaia; give the
epoch of the images with it.
"""

import argparse
import json
import sys
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table

import rosetta
from rosetta import AstrometricSolution, Flag, SkyPair
from rosetta.checkpoint import bundled, read_header, versions
from rosetta.files import atomic_write
from rosetta.io import pair as pair_io
from rosetta.io import read_pair
from rosetta.registry import KINDS

LAGS = 5  # pixels
GAIA_MATCH = 0.5  # arcsec
FEWEST = 3  # sources behind a figure: fewer could say which


def nmad(values):
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def about_images(pair):
    """Size, depth and assumptions of each band."""
    out = {}
    for side, band, image in pair.images():
        valid = ~image.mask
        out[band] = {
            "side": side, "survey": pair.survey(side).name, "shape": list(image.data.shape),
            "valid_share": float(valid.mean()), "noise_nJy": float(np.sqrt(np.median(image.uncertainty.array[valid]))),
            "psf_light_within_stamp": None if pair.psf(band) is None else float(pair.psf(band).light.mean()),
            "psf_cells": 0 if pair.psf(band) is None else len(pair.psf(band).cells),
            "assumed": str(pair.flags[band]),
        }  # fmt: skip
    return out


def about_residuals(result):
    """Of data less models over noise: mean square, robust scatter, and correlation with pixels 1 to 5 away."""
    out = {}
    for band in result.pair.bands:
        residual = result.scene.residual(band)
        valid = ~residual.mask & np.isfinite(residual.data)
        pull = np.where(valid, residual.data / np.sqrt(residual.uncertainty.array), 0.0)
        scatter = nmad(pull[valid])
        # Pulls beyond 5 sigma are misfits, not noise.
        use = valid & (np.abs(pull) < 5 * scatter)
        out[band] = {
            "chi2": float(np.mean(pull[valid] ** 2)), "nmad": scatter,
            "autocorrelation_x": [correlation(pull, use, 0, lag) for lag in range(1, LAGS + 1)],
            "autocorrelation_y": [correlation(pull, use, lag, 0) for lag in range(1, LAGS + 1)],
        }  # fmt: skip
    return out


def correlation(pull, use, dy, dx):
    ny, nx = pull.shape
    one, two = (slice(0, ny - dy), slice(0, nx - dx)), (slice(dy, ny), slice(dx, nx))
    both = use[one] & use[two]
    return float(np.corrcoef(pull[one][both], pull[two][both])[0, 1]) if both.sum() > 100 else None


def about_offsets(result):
    """Between the surveys: verdict, and by band the mean offset and the scatter of single sources, mas."""
    if result.offsets is None:
        return None
    solution = AstrometricSolution.from_table(result.offsets)
    out = {"verdict": solution.verdict, "reason": solution.reason, "bands": {}}
    for band in dict.fromkeys(result.offsets["band"]):
        rows = result.offsets[result.offsets["band"] == band]
        offset = np.stack([rows[name].to_value(u.mas) for name in ("d_ra_cosdec", "d_dec")], -1)
        use = np.isfinite(offset).all(axis=1) & (np.asarray(rows["weight"]) > 0)
        if use.sum() >= FEWEST:
            out["bands"][str(band)] = spread(offset[use])
    return out


def spread(offset):
    """Median and robust scatter of offsets (n, 2), mas."""
    return {
        "n": len(offset), "median_east_north": np.median(offset, axis=0).tolist(),
        "nmad_east_north": [nmad(offset[:, k]) for k in range(2)],
        "rms": float(np.sqrt(np.mean((offset - offset.mean(axis=0)) ** 2))),
    }  # fmt: skip


def about_gaia(result, path, epoch):
    """Catalogue positions, in the space frame and where the ground images' headers have them, less those of Gaia."""
    gaia = Table.read(path)
    missing = [name for name in ("ra", "dec", "pmra", "pmdec", "ref_epoch") if name not in gaia.colnames]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: give a table with the columns of the Gaia archive")
    ra, dec, pmra, pmdec, then = (
        np.ma.filled(np.ma.asarray(gaia[name], float), np.nan) for name in ("ra", "dec", "pmra", "pmdec", "ref_epoch")
    )
    years = epoch - then
    moved = np.isfinite(pmra + pmdec)
    sky = SkyCoord(ra[moved] * u.deg, dec[moved] * u.deg)
    sky = sky.spherical_offsets_by(pmra[moved] * years[moved] * u.mas, pmdec[moved] * years[moved] * u.mas)
    catalog = result.catalog["sky_centroid"]
    frames = {"ground" if result.pair.space is None else "space": catalog}
    if result.offsets is not None:
        frames["ground"] = AstrometricSolution.from_table(result.offsets).ground_position(catalog)
    out = {"epoch": epoch, "n_gaia_with_motion": int(moved.sum())}
    for name, coord in frames.items():
        if len(sky) == 0 or len(coord) == 0:
            continue
        nearest, apart, _ = sky.match_to_catalog_sky(coord)
        near = apart.arcsec < GAIA_MATCH
        if near.sum() >= FEWEST:
            east, north = sky[near].spherical_offsets_to(coord[nearest[near]])
            out[name] = spread(np.stack([east.mas, north.mas], -1))
    return out


def about_injection(recovery):
    """The summary of `rosetta.recover`, bins with enough sources only, and the covariance of the bands' pulls."""
    rows = recovery.summary[np.asarray(recovery.summary["n"]) >= FEWEST]
    return {
        "injected": len(recovery.injected), "found": int(np.sum(recovery.injected["found"])),
        "settings": recovery.injected.meta["injection"], "pulls": recovery.summary.meta["pulls"],
        "summary": [{name: plain(row[name]) for name in rows.colnames} for row in rows],
    }  # fmt: skip


def about_catalog(result):
    """Counts, and the share of rows with each flag."""
    flags = np.asarray(result.catalog["flags"]).astype(int)
    return {
        "sources": len(flags),
        "flag_shares": {flag.name: float(np.mean((flags & int(flag)) != 0)) if len(flags) else None for flag in Flag},
        "detected_at_5_sigma": {
            band: int(np.sum(result.catalog[f"flux_{band}"] > 5 * result.catalog[f"flux_err_{band}"]))
            for band in result.pair.bands
        },
    }


def plain(value):
    """A value as JSON can hold it: None for what is not finite."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def report(arguments):
    """The whole report (dict)."""
    if arguments.pair:
        pair = pair_io.read(arguments.pair)
    else:
        pair = SkyPair(*read_pair(arguments.rubin, arguments.euclid))
    result = rosetta.measure(pair, device=arguments.device)
    image = next(iter((pair.space or pair.ground).values()))
    ny, nx = image.data.shape
    center = image.wcs.pixel_to_world((nx - 1) / 2, (ny - 1) / 2).icrs
    out = {
        "field_deg": [round(center.ra.deg, 1), round(center.dec.deg, 1)], "versions": versions(),
        "models": {kind: read_header(bundled(kind))["fingerprint"] for kind in KINDS},
        "images": about_images(pair), "catalogue": about_catalog(result), "residuals": about_residuals(result),
        "offsets_mas": about_offsets(result),
    }  # fmt: skip
    if arguments.gaia:
        out["gaia_mas"] = about_gaia(result, arguments.gaia, arguments.epoch)
    if arguments.rounds:
        rounds = Path(f"{arguments.output}.rounds")
        recovery = rosetta.recover(
            pair, seed=arguments.seed, rounds=arguments.rounds, magnitude=tuple(arguments.mag), result=result,
            directory=rounds, device=arguments.device,
            progress=lambda done, n: print(f"injection: {done} of {n} rounds", file=sys.stderr, flush=True),
        )  # fmt: skip
        out["injection"] = about_injection(recovery)
    return plain(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rubin", nargs="+", default=[], metavar="FILE", help="Rubin coadds, one band each")
    parser.add_argument("--euclid", nargs="+", default=[], metavar="FILE", help="Euclid MER mosaics or cutouts")
    parser.add_argument("--pair", metavar="FILE", help="a pair file, instead of survey files")
    parser.add_argument("--gaia", metavar="FILE", help="a table of Gaia sources")
    parser.add_argument("--epoch", type=float, metavar="YEAR", help="of the images; needed with --gaia")
    parser.add_argument("--rounds", type=int, default=20, metavar="K", help="of injection; 0: none; default: 20")
    parser.add_argument("--mag", type=float, nargs=2, default=(20.0, 26.0), metavar=("LO", "HI"), help="of injection")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the report, JSON")
    arguments = parser.parse_args()
    if bool(arguments.pair) == bool(arguments.rubin or arguments.euclid):
        parser.error("give --rubin and --euclid files (or one of them), or --pair FILE")
    if arguments.gaia and arguments.epoch is None:
        parser.error("--gaia needs --epoch YEAR: stars move")
    text = json.dumps(report(arguments), indent=1, allow_nan=False)
    with atomic_write(arguments.output) as temporary:
        temporary.write_text(text + "\n")
    print(f"Wrote {arguments.output}: {len(text)} characters")


if __name__ == "__main__":
    main()
