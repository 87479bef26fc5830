# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The fit of one tile: from positions to shapes, fluxes and residuals."""

from dataclasses import dataclass, replace

import numpy as np

from ..detection.detection import reference_band
from . import merging, shapes
from .band_fit import fit_band, misfits
from .listed import placed_where_listed, with_listed
from .point_sources import point_sources
from .residual_search import missed
from .source_list import coincident

__all__ = ["Roles", "TileFit", "fit_tile", "fitted_bands", "fitted_shapes"]

SAME_WIDTH = 0.12  # of ln(PSF width): bands of one side that are nearer than this share their flux slopes
SLOPE_LIGHT = 3e-3  # fraction of a source's light truncated in stamps for d ln(flux) / d(shape)


@dataclass(frozen=True)
class Roles:
    """Which bands do what, the same all over a field.

    Attributes
    ----------
    reference : `~rosetta.images.image.BandImage`
        The sharpest image: the templates are its own.
    shape : tuple of str
        Bands that shapes are fitted to.
    blend : str
        Band that blendedness is measured in.
    """

    reference: object
    shape: tuple
    blend: str

    @classmethod
    def of(cls, images, solution, n_ground_shape):
        ground = sorted((image for image in images.values() if image.side == "ground"), key=lambda image: -image.depth)
        ground, reference = [image.band for image in ground], images[reference_band(images)]
        space = [reference.band] if reference.side == "space" else []
        if space and solution is not None and solution.verdict == "abstain":
            n_ground_shape = 0  # the ground may show other sources there
        return cls(reference, (*space, *ground[:n_ground_shape]), (ground or [reference.band])[0])


@dataclass(frozen=True, eq=False)
class TileFit:
    """The sources of a tile, its margin included.

    Attributes
    ----------
    index : (n,) int array
        Row of each in the list of the job; -1 for one that the residuals showed.
    own : (n,) bool array
        Whether the source belongs to the tile, or lies in its margin.
    east_north : (n, 2) array
        In the tangent plane of the images, arcsec.
    snr : (n,) array
    mixtures : (n, K, 6) array
    covariance : (n, n_shape, n_shape) array
        Of the shapes.
    bands : dict of str to `~rosetta.deblending.band_fit.BandFit`
    overlaps : dict of str to (n, n_distance) array
        Of the templates in each band; see `rosetta.images.noise.noise_factor`.
    skies : dict of str to `~rosetta.deblending.sky_plane.FoundSky`
        What is left of the sky; None where it was not solved for.
    """

    index: np.ndarray
    own: np.ndarray
    east_north: np.ndarray
    snr: np.ndarray
    mixtures: np.ndarray
    covariance: np.ndarray
    bands: dict
    overlaps: dict
    skies: dict

    def __len__(self):
        return len(self.own)


def fit_tile(engine, images, roles, sources, listed, detections, advice, owns, config, report, background):
    """Fit the sources of a tile.

    Parameters
    ----------
    engine : `~rosetta.deblending.engine.engine.Engine`
    images : dict of str to `~rosetta.images.image.BandImage`
        Cut to the tile.
    roles : `Roles`
    sources : `~rosetta.deblending.sources.Sources`
    listed : `~rosetta.deblending.sources.Sources` or None
        What a user lists: some of ``sources``, or beside them.
    detections : `~rosetta.detection.detection.Detections` or None
        None: no source is added, and none is merged with another.
    advice : `~rosetta.deblending.candidates.Advice` or None
        Of the learned detector; None: there is none.
    owns : callable
        Positions (n, 2) in the tangent plane -> (n,) bool: whether they belong to the tile.
    config : `~rosetta.deblending.config.DeblenderConfig`
    report : callable
        Called after each of three steps.
    background : {"plane", None}
        What is solved for beside the sources.

    Returns
    -------
    `TileFit`
    """
    if detections is not None and images:
        first, _, point = fitted_shapes(engine, images, roles, sources)
        sources = sources.starting_from(np.where(point[:, None], first, sources.start))
        extra, odds = missed(engine, images, roles.reference, sources, shapes.mixture(first), advice, config)
        if len(extra):
            sources = sources.and_at(extra, odds, detections, config)
    report()
    # From the initial shapes: a shape that absorbed an undetected neighbour would stay too large.
    merges = detections is not None and roles.reference.band in images
    parameters, covariance, _ = fitted_shapes(engine, images, roles, sources)
    owners, mixtures = _merged(engine, images, roles, sources, parameters, merges, config)
    if listed is not None:
        sources, new = with_listed(sources, owners, mixtures, listed, config)
        if new:
            parameters, covariance, _ = fitted_shapes(engine, images, roles, sources)
            owners, mixtures = _merged(engine, images, roles, sources, parameters, merges, config)
    report()
    whole = np.flatnonzero(owners == np.arange(len(owners)))
    sources, parameters, covariance = sources.of(whole), parameters[whole], covariance[whole]
    home = sources.east_north
    if listed is not None:
        sources, mixtures, home = placed_where_listed(sources, mixtures, listed)
    own = owns(home)
    fit = fitted_bands(engine, images, roles, sources, parameters, covariance, mixtures, own, config, background)
    report()
    return fit


def fitted_bands(engine, images, roles, sources, parameters, covariance, mixtures, own, config, background):
    """Fluxes and residuals of sources of known shapes in every band, a `TileFit`.

    Parameters
    ----------
    engine, images, roles, sources, config, background
        As for `fit_tile`.
    parameters : (n, N_PARAMETER) array
    covariance : (n, n_shape, n_shape) array
        Of the shapes.
    mixtures : (n, K, 6) array
        The templates, with what was merged into them.
    own : (n,) bool array
    """
    wavelength, place = roles.reference.wavelength, coincident(sources.east_north)
    mixtures = mixtures[place]
    bands, overlaps, skies, slopes = {}, {}, {}, []
    for band, image in images.items():
        placed = sources.on(image, wavelength, config.engine)
        slope = _slope(engine, slopes, placed, parameters)
        loose = roles.reference.side == "space" and image.side == "ground" and not sources.aligned
        position_error = config.unaligned_error if loose else 0.0
        found = fit_band(engine, mixtures, placed, slope, place, position_error, background)
        bands[band], overlaps[band], skies[band] = found
    return TileFit(
        index=sources.index, own=own, east_north=sources.east_north, snr=sources.snr, mixtures=mixtures,
        covariance=covariance, bands=bands, overlaps=overlaps, skies=skies,
    )


def fitted_shapes(engine, images, roles, sources):
    """Shape vectors fitted to the pixels, their covariance, and which are points; sources of one place have one shape.

    Returns
    -------
    parameters : (n, N_PARAMETER) array
    covariance : (n, n_shape, n_shape) array
    point : (n,) bool array
    """
    seen = [images[band] for band in roles.shape if band in images]
    place = coincident(sources.east_north)
    alone = np.flatnonzero(place == np.arange(len(place)))
    placements = []
    for image in seen:
        placed = sources.on(image, roles.reference.wavelength, engine.config, light=3.0).of(alone)
        placements.append(replace(placed, truncation=np.maximum(placed.truncation, 1e-4)))
    start = sources.start[alone]
    moved, covariance = engine.fit_shapes(start, placements, sources.largest[alone], sources.free[alone])
    parameters, point = start + moved @ shapes.DIRECTIONS, np.zeros(len(alone), bool)
    if placements:
        point = point_sources(engine, shapes.mixture(parameters), placements[0]) & sources.free[alone, shapes.SIZE]
        parameters[point, shapes.LN_SCALE] = shapes.POINT
        parameters[point, shapes.SHEAR_1 : shapes.SHEAR_2 + 1] = 0.0
    first = np.searchsorted(alone, place)
    return parameters[first], covariance[first], point[first]


def _merged(engine, images, roles, sources, parameters, merges, config):
    """The source that each is a fragment of, and the templates of those that are none, with all their fragments."""
    mixtures = shapes.mixture(parameters)
    if not merges or len(sources) == 0:
        return np.arange(len(sources)), mixtures
    reference = images[roles.reference.band]
    others = [image for image in images.values() if image is not reference]
    trusted = [image for image in others if image.side == reference.side or sources.aligned]
    placements = [sources.on(image, roles.reference.wavelength, config.engine) for image in (reference, *trusted)]
    design = engine.render(mixtures, placements[0])
    found = engine.solve(design, reference)
    flux = np.nan_to_num(found.flux)
    place = sources.east_north - sources.east_north[0]
    misfit, _ = misfits(design, reference.data - design.image(flux), reference.sky_weight)
    others = [engine.solve(engine.render(mixtures, placed), placed.image) for placed in placements[1:]]
    bands = _colours([found, *others])
    owners = merging.fragment_owners(mixtures, place, flux, misfit, config.merging, bands, sources.odds)
    owners[sources.listed] = np.flatnonzero(sources.listed)  # what a user lists is no fragment
    return owners, merging.merged(mixtures, place, flux, owners)


def _colours(solutions):
    """Fluxes and errors (n, n_band), nJy, from solutions of all images; errors are infinite where one sees nothing."""
    flux = [np.nan_to_num(found.flux) for found in solutions]
    error = [np.where(found.measured, np.sqrt(found.covariance.diagonal()), np.inf) for found in solutions]
    return np.stack(flux, axis=1), np.stack(error, axis=1)


def _slope(engine, known, placed, parameters):
    """`flux_slopes` of a band; bands of one side with nearly the same PSF width share them."""
    for image, slope in known:
        if image.side == placed.image.side and abs(np.log(image.fwhm / placed.image.fwhm)) < SAME_WIDTH:
            return slope
    slope = engine.slopes(parameters, replace(placed, truncation=np.full(len(parameters), SLOPE_LIGHT)))
    known.append((placed.image, slope))
    return slope
