# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""One field as both surveys would deliver it, and the truth behind it."""

from dataclasses import asdict

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS

from ..arithmetic import plain_arithmetic
from ..pair import SkyPair
from ..surveys import EUCLID, RUBIN
from .astrometry import AstrometricError
from .dataset import truth_table
from .delivered import STREAMS, deliver
from .delivery import REAL
from .morphology import FAMILIES
from .population import draw_scene
from .psf import FieldPSF, drawn_width
from .real_morphologies import read_morphologies
from .rendering import Grid, add_stamp, draw_sources

__all__ = ["simulate_pair"]

_MARGIN = 6.0  # arcsec around the field in which sources still shed light into it
_FOG = 0.3  # mag; images deeper than nominal by more than this show galaxies that the others do not


@plain_arithmetic
def simulate_pair(
    *,
    seed,
    size=102.4 * u.arcsec,
    center=None,
    surveys=(RUBIN, EUCLID),
    bands=None,
    density=1.0,
    families="train",
    star_density=1.0,
    morphologies=None,
    astrometric_error=None,
    proper_motion_years=0.0,
    depth_offset=0.0,
    seeing=1.0,
    noise=True,
    defects=True,
    delivery=REAL,
    scene=None,
    return_psf=False,
):
    """Simulate one field as seen by a ground survey and a space survey.

    Both images are north-up TAN about ``center``, on grids with different sub-pixel phases. Galaxies are
    bulges, discs and knots with their own spectra, seen through the real bandpasses where `speclite` ships
    them (Rubin, Euclid, HSC) and through soft-edged top hats of the survey's pivot and width elsewhere.
    PSFs are those of a telescope in space or of the atmosphere, with light to 10 arcsec; they vary by a few
    per cent over the field, and in space with the colour of a source. Background noise has the depth of
    `Band.depth` for a matched filter with the PSF at the centre. ``delivery`` says how the images are delivered:
    the PSF and the variance that are given, correlated noise, and what is left of the sky.

    Parameters
    ----------
    seed : int
        The same arguments give the same sky and the same noise.
    size : `~astropy.units.Quantity`
        Width and height of the field (angle).
    center : `~astropy.coordinates.SkyCoord`, optional
        Default: RA 150.1, Dec 2.2 deg.
    surveys : tuple of two `~rosetta.surveys.Survey`
        Ground and space.
    bands : iterable of str, optional
        Bands to render; default all. A side without any becomes None.
    density : float
        Number of galaxies relative to the published counts.
    families : {"train", "all", "irregular"}
        Morphology families. "train" leaves out the irregular one and a third of the real galaxies, which are
        reserved for testing; "irregular" has these alone.
    star_density : float
        Number of stars relative to the counts at high galactic latitude.
    morphologies : path-like, optional
        Images of real galaxies (`read_morphologies`); half of the galaxies that are as bright as one of
        them, or fainter, then look like it. They have no colour gradient.
    astrometric_error : AstrometricError, optional
        Error of the ground WCS.
    proper_motion_years : float
        Epoch of the ground images minus that of the space images, in years.
    depth_offset : float
        Magnitudes added to the depth of every band. Deep images show more galaxies: beyond 0.3, the faintest are
        fainter than i = 27 by the rest.
    seeing : float
        Ground PSF widths relative to the survey's nominal ones; they scatter by 5% around it.
    noise : bool
        False leaves out all noise; the uncertainty stays that of a noisy image.
    defects : bool
        Whether to add saturation, cosmic-ray hits, bad pixels and columns, all of them masked.
    delivery : Delivery
        `REAL` (as surveys deliver) or `IDEAL` (the true PSF, white noise where pixels are native, exact variances
        and sky), or numbers of your own. Sky, true PSF and the seeds of the noise do not depend on it.
    scene : `~rosetta.simulate.population.Scene`, optional
        Sources of your own, in place of those drawn with ``density``, ``families``, ``star_density`` and
        ``morphologies``.
    return_psf : bool
        Whether to return the true PSFs too.

    Returns
    -------
    pair : `~rosetta.SkyPair`
    truth : `~astropy.table.QTable`
        A row per source whose position lies in the field: ``label``, ``sky_centroid`` (space frame, space
        epoch; centroid of the light in VIS or else the sharpest space band), ``flux_<band>`` (total, nJy,
        every band of both surveys), ``half_light_radius``, ``e1``, ``e2`` (distortion, along east and 45 deg
        to it), ``redshift``, ``family``, ``type``, ``local_density``, ``pm_ra_cosdec``, ``pm_dec``,
        ``d_ra_cosdec``, ``d_dec`` (corrected = ground + offset), ``mixture`` (K, 6): weight, east, north
        (arcsec), Sxx, Sxy, Syy (arcsec^2) of Gaussians that make up the light before any PSF.
    psf : dict of str to `~rosetta.PSF`
        With ``return_psf`` only: what the PSF of each band is, pixel response included, light 1 in total (to
        10 arcsec), for a source of slope d ln f_nu / d ln wavelength = 1. ``pair.psf(band)`` is what is given.

    Raises
    ------
    ValueError
        If an argument is out of range or a band is unknown.
    """
    half_size = 0.5 * _arcsec("size", size)
    if not 3 <= half_size < np.inf:
        raise ValueError(f"size is {size}: it must be finite and at least 6 arcsec")
    if families not in FAMILIES:
        raise ValueError(f"families is {families!r}: use one of {', '.join(map(repr, FAMILIES))}")
    if not 0 <= star_density < np.inf:
        raise ValueError(f"star_density is {star_density}: it must be finite and not negative")
    for name, value in (("density", density), ("seeing", seeing)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name} is {value}: it must be positive and finite")
    for name, value in (("proper_motion_years", proper_motion_years), ("depth_offset", depth_offset)):
        if not np.isfinite(value):
            raise ValueError(f"{name} is {value}: it must be finite")
    center = SkyCoord(150.1, 2.2, unit="deg") if center is None else center
    wanted = None if bands is None else _resolve(bands, surveys)
    reference = _reference(surveys)

    sky_seed, field_seed, image_seed = np.random.SeedSequence(seed).spawn(3)
    if scene is None:
        scene = draw_scene(
            np.random.default_rng(sky_seed),
            half_size + _MARGIN,
            surveys,
            reference,
            density=density,
            families=families,
            star_density=star_density,
            galaxies=() if morphologies is None else read_morphologies(morphologies, families),
            deeper=max(depth_offset - _FOG, 0.0),
        )
    parameters = (astrometric_error or AstrometricError()).realise(np.random.default_rng(field_seed))
    offset = AstrometricError.offset(parameters, scene.east, scene.north)  # mas
    true = np.stack([scene.east, scene.north], axis=1)
    seen = {"space": true, "ground": true + (scene.motion * proper_motion_years - offset) / 1e3}

    # A stream per band and side: leaving a band out does not change the others.
    streams = iter(image_seed.spawn(2 + sum(len(survey.bands) for survey in surveys)))
    sides, true_psf, given, column = {}, {}, {}, 0
    for side, survey in zip(("ground", "space"), surveys):
        grid = _grid(np.random.default_rng(next(streams)), survey, half_size)
        wcs = _tan(grid, center)
        images = {}
        ground = side == "ground"
        for band in survey.bands:
            rng = np.random.default_rng(next(streams))
            if wanted is None or (side, band.name) in wanted:
                # A stream per purpose: what is left out leaves the rest as it is.
                optics, *seeds = rng.integers(2**63, size=(1 + STREAMS, 2))
                optics = np.random.default_rng(optics)
                fwhm = drawn_width(optics, band, ground, seeing if ground else 1.0)
                light, true_psf[band.name] = _band(
                    optics, scene, seen[side], column, surveys, survey, band, grid, half_size, fwhm, ground
                )
                images[band.name], given[band.name] = deliver(
                    seeds, light, true_psf[band.name], survey, band, band.depth + depth_offset, wcs, delivery,
                    ground=ground, noise=noise, defects=defects,
                )  # fmt: skip
            column += 1
        sides[side] = images or None
    truth = truth_table(scene, center, surveys, reference, half_size, offset)
    truth.meta.update(
        seed=seed,
        center=[center.icrs.ra.deg, center.icrs.dec.deg],
        families=families,
        proper_motion_years=proper_motion_years,
        astrometric_error=parameters,
        delivery=asdict(delivery),
    )
    pair = SkyPair(sides["ground"], sides["space"], surveys=surveys, psf=given)
    return (pair, truth, true_psf) if return_psf else (pair, truth)


def _arcsec(name, value):
    try:
        return float(u.Quantity(value).to_value(u.arcsec))
    except (TypeError, ValueError, u.UnitConversionError):
        raise ValueError(f"{name} is {value}: give an angle, such as 60 * u.arcsec") from None


def _resolve(bands, surveys):
    """The (side, canonical band name) pairs that ``bands`` names."""
    found = set()
    for name in bands:
        for side, survey in zip(("ground", "space"), surveys):
            if any(name == band.name or name in band.aliases for band in survey.bands):
                found.add((side, survey[name].name))
                break
        else:
            known = " ".join(band for survey in surveys for band in survey.band_names)
            raise ValueError(f"bands holds {name!r}, which neither survey has: use some of {known}")
    return found


def _reference(surveys):
    """Column of VIS, or else of the sharpest space band, among the bands of both surveys."""
    space = surveys[1]
    sharpest = min(space.bands, key=lambda band: band.psf_fwhm)
    return len(surveys[0].bands) + space.bands.index(sharpest)


def _grid(rng, survey, half_size):
    scale = survey.pixel_scale.to_value(u.arcsec)
    n = round(2 * half_size / scale)
    return Grid((n, n), scale, tuple((n - 1) / 2 + rng.uniform(-0.5, 0.5, 2)))


def _tan(grid, center):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [center.icrs.ra.deg, center.icrs.dec.deg]
    wcs.wcs.crpix = [grid.origin[0] + 1, grid.origin[1] + 1]
    wcs.wcs.cdelt = [-grid.pixel_scale / 3600, grid.pixel_scale / 3600]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    wcs.array_shape = grid.shape
    wcs.wcs.set()
    return wcs


def _band(rng, scene, place, column, surveys, survey, band, grid, half_size, fwhm, ground):
    """Light of the sources under their own PSFs, and the PSFs."""
    field = FieldPSF(rng, survey, band, ground, fwhm, half_size)
    # Sources beyond the border shed light into the field: their stamps must not end there.
    pad = int(np.ceil(_MARGIN / grid.pixel_scale))
    wide = Grid(
        (grid.shape[0] + 2 * pad, grid.shape[1] + 2 * pad), grid.pixel_scale,
        (grid.origin[0] + pad, grid.origin[1] + pad),
    )  # fmt: skip
    colour = _colour_class(scene, surveys, band, field.slopes)[scene.owner]
    image = np.zeros((1, *wide.shape))
    for k, slope in enumerate(field.slopes):
        flux = np.where(colour == k, scene.flux[:, column], 0.0)
        for stamp, corner in draw_sources(scene, place, flux, field.coloured(slope), wide):
            add_stamp(image, stamp, corner, [1.0])
    return field.spread(image[0])[pad:-pad, pad:-pad], field.everywhere(grid.to_pixel)


def _colour_class(scene, surveys, band, slopes):
    """Index in ``slopes`` of every source: its colour across the band, from its fluxes in all bands."""
    pivot = np.log([b.pivot.to_value(u.nm) for survey in surveys for b in survey.bands])
    order = np.argsort(pivot)
    flux = scene.source_flux
    flux = np.log(np.maximum(flux, 1e-4 * flux.max(axis=1, keepdims=True)))[:, order]
    ends = np.log((band.pivot + np.array([-0.5, 0.5]) * band.width).to_value(u.nm))
    slope = [np.diff(np.interp(ends, pivot[order], row))[0] / np.diff(ends)[0] for row in flux]
    return np.abs(np.reshape(slope, (-1, 1)) - np.array(slopes)).argmin(axis=1)
