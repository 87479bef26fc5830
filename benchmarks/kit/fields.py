# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Simulated fields, kept in a folder, and what is known of their sources."""

import astropy.units as u
import numpy as np
from astropy.coordinates import search_around_sky
from astropy.nddata import NDData
from astropy.table import QTable

from rosetta import SkyPair
from rosetta.deblending.engine.config import EngineConfig
from rosetta.deblending.sources import placed_on
from rosetta.io import pair as pair_file
from rosetta.simulate import IDEAL, AstrometricError, simulate_pair

__all__ = [
    "field_number", "header_coord", "hidden_share", "magnitude", "misaligned", "placed", "survey_like", "true_offsets",
    "with_images",
]

DENSITY = (0.15, 0.5, 1.0)  # of galaxies, relative to the published counts, in turn


def misaligned(seed, folder):
    """A field whose ground headers are off by (63, -47) mas and a smooth field of 15 mas, with two years of motion."""
    error = AstrometricError(shift=(63.4, -47.3) * u.mas, rms=15 * u.mas, length=30 * u.arcsec)
    return _kept(seed, folder, astrometric_error=error, proper_motion_years=2.0)


def survey_like(seed, folder):
    """A field of 20 to 150 detectable sources per square arcminute whose ground headers are off by 30 mas."""
    error = AstrometricError(shift=(21.2, -21.2) * u.mas)
    return _kept(seed, folder, astrometric_error=error, density=DENSITY[seed % len(DENSITY)])


def _kept(seed, folder, **options):
    """A pair and its truth, simulated or from an earlier run; a fifth of the galaxies is of the irregular family."""
    path, truth_path = folder / f"{seed}.fits", folder / f"{seed}.truth.fits"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pair, truth = simulate_pair(seed=seed, families="all", delivery=IDEAL, **options)
        truth.meta.clear()
        truth.write(truth_path, overwrite=True)
        pair_file.write(pair, path)
    return pair_file.read(path), QTable.read(truth_path)


def field_number(parts):
    """Number of the field that each row comes from, for rows (or arrays) of several fields side by side."""
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts])


# ---------------------------------------------------------------------------- truth
def true_offsets(truth):
    """(east, north) of true minus header position, mas, (n, 2)."""
    return np.stack([truth[name].to_value(u.mas) for name in ("d_ra_cosdec", "d_dec")], -1)


def header_coord(truth):
    """Where the ground headers put the sources."""
    return truth["sky_centroid"].icrs.spherical_offsets_by(-truth["d_ra_cosdec"], -truth["d_dec"])


def magnitude(flux):
    """AB magnitude of fluxes in nJy; infinite where there is none."""
    with np.errstate(divide="ignore"):
        return 31.4 - 2.5 * np.log10(flux)


def hidden_share(truth, true):
    """Flux of the brightest unmatched true source within 1" over a source's own flux, in i: (n_truth,)."""
    flux = truth["flux_i"].to_value(u.nJy)
    missed = ~np.isin(np.arange(len(truth)), true)
    out = np.zeros(len(truth))
    one, two, _, _ = search_around_sky(truth["sky_centroid"], truth["sky_centroid"], 1 * u.arcsec)
    for i, j in zip(one, two, strict=True):
        if i != j and missed[j]:
            out[i] = max(out[i], flux[j] / flux[i])
    return out


def placed(image, truth, truncation, wavelength=None):
    """True sources on one image.

    Parameters
    ----------
    image : `~rosetta.images.image.BandImage`
    truth : `~astropy.table.QTable`
    truncation : float
        Share of their light that stamps may leave out.
    wavelength : float, optional
        Of the image in which the sources have the sizes they are given, nm. None: this one.

    Returns
    -------
    `~rosetta.deblending.engine.placement.Placement`
    """
    coord = header_coord(truth) if image.side == "ground" else truth["sky_centroid"].icrs
    wavelength = image.wavelength if wavelength is None else wavelength
    placed = image.place(image.tangent_plane.east_north(coord))
    return placed_on(image, *placed, np.full(len(truth), truncation), wavelength, EngineConfig())


def with_images(pair, change):
    """The pair with other images: ``change(band, image)`` gives the entries of `NDData` that differ (dict)."""
    sides = {"ground": {}, "space": {}}
    for side, band, image in pair.images():
        kept = {name: getattr(image, name) for name in ("data", "uncertainty", "mask", "wcs", "unit", "psf")}
        sides[side][band] = NDData(**{**kept, **change(band, image)})
    return SkyPair(sides["ground"] or None, sides["space"] or None, surveys=pair.surveys)
