# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A user's positions in a scene that was deblended before: its templates stay, only what it lacks is fitted."""

from dataclasses import replace

import numpy as np

from ..images.positions import offset_coord
from . import shapes
from .band_fit import shape_variance_factor
from .engine.engine import SparseEngine
from .listed import identity
from .sources import Sources
from .tile_fit import fitted_bands, fitted_shapes
from .tiles import filled

__all__ = ["fit_in_scene"]

TURNS = 4  # of shapes of what the scene lacks, and of fluxes of its own sources beside them


def fit_in_scene(scene, part, images, roles, listed, solution, config):
    """Fluxes of listed sources and of the sources of a scene around them, together.

    Parameters
    ----------
    scene : `~rosetta.DeblendedScene`
    part : `~rosetta.deblending.tiles.Tile`
        Around the positions; the light of the scene's sources beyond is subtracted.
    images : dict of str to `~rosetta.images.image.BandImage`
        Of the whole field.
    roles : `~rosetta.deblending.tile_fit.Roles`
    listed : `~rosetta.deblending.sources.Sources`
        The whole list. Those that are a source of the scene take its template, unless a shape was given.
    solution : `~rosetta.AstrometricSolution` or None
    config : `~rosetta.deblending.config.DeblenderConfig`

    Returns
    -------
    `~rosetta.deblending.tile_fit.TileFit`
        ``index`` of a source of the scene is its row there, after all rows of the list.
    """
    templates, engine = scene.templates, SparseEngine(config.engine)
    widened = shape_variance_factor(templates.mixtures, scene.fits[roles.reference.band])  # and will be again
    near = np.flatnonzero(part.sees(templates.coord))
    pieces = _surroundings(scene, part, images, near)
    n_listed, listed = len(listed), listed.elsewhere(np.flatnonzero(part.sees(listed.coord)))
    which, _ = identity(listed.coord, templates.coord[near], templates.mixtures[near], config.match)
    row = np.append(near, -1)[which]  # of the scene; -1: none
    taken, kept = (row >= 0) & listed.free[:, shapes.SIZE], near[~np.isin(near, row)]
    known, new = np.append(row[taken], kept), listed.of(np.flatnonzero(~taken))
    n, n_shape = len(known), len(shapes.DIRECTIONS)
    light, middle = templates.mixtures[known], shapes.centroids(templates.mixtures[known])
    coord, light = offset_coord(templates.coord[known], *middle.T), _shifted(light, -middle)
    of_scene = Sources(
        index=np.append(listed.index[taken], n_listed + kept), coord=coord,
        snr=0.1 / templates.truncation[known], start=np.tile(shapes.base_parameters(*np.ones((3, 1))), (n, 1)),
        largest=np.full(n, np.inf), free=np.zeros((n, n_shape), bool),
        listed=np.arange(n) < taken.sum(), solution=solution,
    )  # fmt: skip
    sources = of_scene.joined(new)
    n_component = max(light.shape[1], shapes.mixture(new.start).shape[1])
    mixtures = np.concatenate([filled(one, n_component) for one in (light, shapes.mixture(new.start))])
    fitted, covariance = new.start, np.zeros((len(new), n_shape, n_shape))
    for _ in range(TURNS if len(new) else 0):
        less = {}
        for band in {*roles.shape} & {*pieces}:
            design = engine.render(mixtures, sources.on(pieces[band], roles.reference.wavelength, config.engine))
            flux, _ = engine.fluxes(design, pieces[band])
            less[band] = pieces[band].without(design.of(np.arange(n)).image(flux[:n]))
        fitted, covariance, _ = fitted_shapes(engine, less, roles, new)
        mixtures[n:] = filled(shapes.mixture(fitted), n_component)
    own = np.concatenate([part.owns(listed.coord[taken]), part.owns(coord[taken.sum() :]), part.owns(new.coord)])
    known_covariance = scene.shape_covariance[known] / widened[known, None, None]
    fit = fitted_bands(
        engine, pieces, roles, sources, np.concatenate([of_scene.start, fitted]),
        np.concatenate([known_covariance, covariance]), mixtures, own, config, None,
    )
    bands = {}
    for band, found in fit.bands.items():  # slopes of its own shapes, and the noise of the field, are the scene's
        slope = np.concatenate([scene.fits[band].slope[known], found.slope[n:]])
        bands[band] = replace(found, slope=slope, products=scene.fits[band].products)
    return replace(fit, bands=bands)


def _shifted(mixtures, by):
    """Mixtures (n, K, 6) moved by (n, 2) arcsec."""
    mixtures = mixtures.copy()
    mixtures[..., 1:3] += by[:, None]
    return mixtures


def _surroundings(scene, part, images, near):
    """Images in a part of the field less the sky and the light of the scene's sources beyond it."""
    pieces, beyond = {}, np.setdiff1d(np.arange(len(scene)), near)
    for band, (y0, y1, x0, x1) in part.windows(images).items():
        image, window = images[band], (slice(y0, y1), slice(x0, x1))
        light = scene.painted(band, window, beyond) + scene.sky(band).data[window]
        pieces[band] = image.cut((y0, y1, x0, x1)).without(light, sky_weight=image.sky_weight[window])
    return pieces
