# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A user's positions in a scene that was deblended before: its templates stay, only what it lacks is fitted."""

from dataclasses import replace

import numpy as np
from scipy import sparse

from . import shapes
from .band_fit import BandFit, shape_variance_factor
from .engine.engine import SparseEngine
from .listed import identity
from .sources import Sources
from .tile_fit import fitted_bands, fitted_shapes
from .tiles import filled, joined_field, tiles

__all__ = ["fit_in_scene"]

TURNS = 12  # at most, of shapes of what the scene lacks and of fluxes of its own sources beside them
SETTLED = 3e-3  # change of the parameters of a shape after which there is no further turn


def fit_in_scene(scene, images, roles, listed, recentre, solution, config):
    """Fluxes of listed sources and of the sources of a scene around them, together.

    Parameters
    ----------
    scene : `~rosetta.DeblendedScene`
    images : dict of str to `~rosetta.images.image.BandImage`
    roles : `~rosetta.deblending.tile_fit.Roles`
    listed : `~rosetta.deblending.sources.Sources`
        Those that are a source of the scene take its template, unless a shape was given.
    recentre : bool
        Whether the others may move.
    solution : `~rosetta.AstrometricSolution` or None
    config : `~rosetta.deblending.config.DeblenderConfig`

    Returns
    -------
    field : `~rosetta.deblending.tiles.FieldFit`
        The list, then the other sources of the scene: ``index`` is their row there, after all rows of the list. Those
        far from the list are as they were.
    fixed : (n,) bool array
        Whether a position is what a user says, now or when the scene was made.
    """
    place = roles.reference.tangent_plane.east_north(scene.templates.coord)
    row, _ = identity(listed.east_north, place, scene.templates.mixtures, config)
    # Variances of shapes as the fit gave them: they will be widened again.
    factor = shape_variance_factor(scene.templates.mixtures, scene.fits[roles.reference.band])
    known = scene.shape_covariance / factor[:, None, None]
    parts = [part for tile in tiles(images) for part in tile.around(listed.east_north)] or tiles(images)
    fits = [_fit_part(scene, place, part, images, roles, listed, row, known, solution, config) for part in parts]
    field = joined_field(fits, images)
    rest = np.setdiff1d(np.arange(len(scene)), np.append(row, field.index - len(listed)))
    field = _with_rest(replace(field, skies=scene.meta["sky"]), scene, place, rest, known, len(listed))
    of_scene = np.isnan(scene.to_table()["ra_err"].value)
    of_list = np.where(_taken(row, listed), np.append(of_scene, False)[row], not recentre)
    return field, np.append(of_list, of_scene)[field.index]


def _taken(row, listed):
    """Whether listed sources take the template of the scene's source that they are, (n,) bool."""
    return (row >= 0) & listed.free[:, shapes.SIZE]


def _fit_part(scene, place, part, images, roles, listed, row, covariances, solution, config):
    """The `~rosetta.deblending.tile_fit.TileFit` of a part.

    The sources of the scene are at ``place`` (m, 2); ``row`` (n,) is which of them each listed source is, or -1.
    """
    templates, engine, n_listed = scene.templates, SparseEngine(config.engine), len(listed)
    near, mine = (np.flatnonzero(part.sees(one)) for one in (place, listed.east_north))
    pieces = _surroundings(scene, part, images, np.append(near, row[mine]))
    listed, kept, row = listed.elsewhere(mine), near[~np.isin(near, row)], row[mine]
    taken = _taken(row, listed)
    known, new = np.append(row[taken], kept), listed.of(np.flatnonzero(~taken))
    n, n_shape = len(known), len(shapes.DIRECTIONS)
    light, at = templates.mixtures[known], place[known]
    of_scene = Sources(
        index=np.append(listed.index[taken], n_listed + kept), east_north=at,
        snr=0.1 / templates.truncation[known], start=np.tile(shapes.base_parameters(*np.ones((3, 1))), (n, 1)),
        largest=np.full(n, np.inf), free=np.zeros((n, n_shape), bool),
        listed=np.arange(n) < taken.sum(), odds=np.zeros(n), solution=solution,
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
        before, (fitted, covariance, _) = fitted, fitted_shapes(engine, less, roles, new)
        mixtures[n:] = filled(shapes.mixture(fitted), n_component)
        if np.abs(fitted - before).max() < SETTLED:
            break
    own = part.owns(np.concatenate([listed.east_north[taken], at[taken.sum() :], new.east_north]))
    fit = fitted_bands(
        engine, pieces, roles, sources, np.concatenate([of_scene.start, fitted]),
        np.concatenate([covariances[known], covariance]), mixtures, own, config, None,
    )
    bands = {}
    for band, found in fit.bands.items():  # slopes of its own shapes, and the noise of the field, are the scene's
        slope = np.concatenate([scene.fits[band].slope[known], found.slope[n:]])
        bands[band] = replace(found, slope=slope, products=scene.fits[band].products)
    return replace(fit, bands=bands)


def _with_rest(field, scene, place, rest, covariances, n_listed):
    """A field with more sources of the scene, ``rest`` (k,), as they are there."""
    templates, bands = scene.templates, {}
    for band, fit in field.bands.items():
        known = scene.fits[band]
        rows = {
            name: np.concatenate([getattr(fit, name), getattr(known, name)[rest]]) for name in BandFit.per_source()
        }
        blocks = [fit.covariance, known.covariance[rest][:, rest]]
        bands[band] = replace(fit, covariance=sparse.csc_array(sparse.block_diag(blocks)), **rows)
    n_component = max(field.mixtures.shape[1], templates.mixtures.shape[1])
    mixtures = [filled(one, n_component) for one in (field.mixtures, templates.mixtures[rest])]
    return replace(
        field, index=np.append(field.index, n_listed + rest),
        east_north=np.concatenate([field.east_north, place[rest]]),
        snr=np.append(field.snr, 0.1 / templates.truncation[rest]), mixtures=np.concatenate(mixtures),
        covariance=np.concatenate([field.covariance, covariances[rest]]), bands=bands,
    )  # fmt: skip


def _surroundings(scene, part, images, near):
    """Images in a part of the field less the sky and the light of the scene's sources beyond it."""
    pieces, beyond = {}, np.setdiff1d(np.arange(len(scene)), near)
    for band, (y0, y1, x0, x1) in part.windows(images).items():
        image, window = images[band], (slice(y0, y1), slice(x0, x1))
        light = scene.painted(band, window, beyond) + scene.sky(band).data[window]
        pieces[band] = image.cut((y0, y1, x0, x1)).without(light, sky_weight=image.sky_weight[window])
    return pieces
