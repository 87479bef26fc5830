# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Deblending: one template per source from the sharp image, carried to every band."""

import logging
from dataclasses import dataclass, replace
from itertools import count

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import QTable

from ..astrometry.solution import as_solution, solution_for
from ..detection import detection
from ..flags import Flag
from ..head import Head
from ..images.image import band_images
from ..images.positions import joined, tangent
from ..training.loop import TrainerConfig
from ..training.rows import joined_rows, views
from . import blend_probability, merging, shapes
from .band_fit import fit_band, image_of, misfits
from .engine import shape_fit
from .engine.fluxes import amplitudes
from .features import source_features
from .point_sources import point_sources
from .scene import DeblendedScene, Templates, centroids, shape_columns, source_flags
from .source_list import coincident, user_sources
from .tiles import Part, join, tiles

__all__ = ["DeblendedScene", "JEPADeblender"]

log = logging.getLogger("rosetta")

MATCH = 0.3  # arcsec: a detection and a position, or a truth, are one source
ITERATIONS = 6  # of the shape fits before and after the residuals are searched, at most
N_GROUND_SHAPE = 2  # ground bands that take part in fitting shapes
DEFAULT_RADIUS = 0.2  # arcsec, where nothing was detected
MODEL_ERROR = 0.1  # of a model: what its template leaves of a bright source is no source


class JEPADeblender(Head):
    """Separates overlapping sources: a template for each, and their models in every band.

    Every source starts as an exponential disc with the moments of its detection. A few Gauss-Newton steps fit its
    shape to the sharpest image and the deepest ground bands, with the start as prior; then the fluxes of all
    overlapping sources are solved together in every band. A small network reads the numbers of the fits, and the
    residuals around a source, and says how likely it is a blend: it knows both sky seen by both sides and sky seen
    from the ground alone. It does not read the encoder's tokens: they did not make it better. `fit` trains it on
    truth with ``sky_centroid`` and ``flux_<band>``.

    Parameters
    ----------
    encoder : `~rosetta.CrossSurveyEncoder`, optional
        None: the bundled one, loaded when needed.
    """

    _kind = "deblender"
    _config_class = blend_probability.BlendConfig
    _trainer = TrainerConfig(steps=1000, batch=256)

    @staticmethod
    def _build(config):
        return blend_probability.BlendNet(config)

    def __call__(self, x, sources=None, *, offsets=None, progress=None):
        """Deblend a pair, tile by tile: beside the images, memory is needed for one tile of the field only.

        Parameters
        ----------
        x : `~rosetta.SkyPair` or `~rosetta.SkyEmbedding`
        sources : `~astropy.coordinates.SkyCoord` or table, optional
            Positions in the space image's frame, or a table with a column ``sky_centroid`` (and, if it
            has one, ``label``: different integers, none of them -1). Light of sources that are not listed is
            not modelled. Positions within 0.02 arcsec are one place, that of the first: their flux is shared
            equally (flag ``DUPLICATE``). None: detect on the space image (inverse-variance ground stack if there
            is none), then once more on the residuals; what is found in pieces is one source.
        offsets : `~astropy.table.QTable` or `~rosetta.AstrometricSolution`, optional
            From `~rosetta.LearnedAligner`: the ground images are read where it says (flag ``COARSE_ALIGNMENT``
            where its verdict is "coarse"). Without it, or where it abstained, header positions are used (flag
            ``UNALIGNED`` where it abstained).
        progress : callable, optional
            Called as ``progress(done, total)`` after every step, of which each tile of the field has three.

        Returns
        -------
        `DeblendedScene`

        Raises
        ------
        TypeError, ValueError
            If ``x``, ``sources`` or ``offsets`` cannot be used; the message says what to do.
        """
        embedding = self._embedding(x)
        planes = band_images(embedding.pair)
        solution = solution_for(offsets, planes)
        roles = _Roles.of(planes)
        coord, label = (None, None) if sources is None else user_sources(sources)
        field = tiles(planes)
        steps = count(1)

        def report():
            if progress is not None:
                progress(next(steps), 3 * len(field))

        parts = [self._part(tile, tile.cut(planes), roles, coord, solution, report) for tile in field]
        part = join(parts, planes)
        label = np.arange(1, len(part) + 1) if label is None else label
        return self._scene(embedding, planes, roles, part, label, offsets)

    def _part(self, tile, planes, roles, given, solution, report):
        """What one tile gives: its sources, and those in the margin, with shapes and fluxes."""
        sky = _Sky.of(planes)
        index = None if given is None else np.flatnonzero(tile.sees(given))
        coord = sky.found["sky_centroid"] if given is None else given[index]
        state = self._propose(sky, coord, solution)
        if given is None and sky.ref is not None:
            first, _, point = _shapes(planes, roles, state)
            state.proposal[point] = first[point]
            extra = _missed(sky, state, shape_fit.mixtures_of(first), roles.wavelength)
            if len(extra):
                coord = joined([coord, extra])
                state = self._propose(sky, coord, solution, state)
        report()
        # From the proposals again: shapes that had swallowed a neighbour would not let go of it.
        parameters, covariance, _ = _shapes(planes, roles, state)
        report()
        root, mixtures = coincident(state.coord), shape_fit.mixtures_of(parameters)
        if given is None and len(coord):
            whole, mixtures = _whole(planes, state, mixtures)
            state, coord, parameters, covariance = state.of(whole), coord[whole], parameters[whole], covariance[whole]
            root = np.arange(len(whole))
        fits, scatter, slopes = {}, {}, []
        for band, plane in planes.items():
            image = image_of(plane, state.coord, state.header, state.truncation, roles.wavelength)
            slope = _slope(slopes, plane, image, parameters)
            fits[band], scatter[band] = fit_band(plane, image, mixtures, slope, root)
        report()
        return Part(
            index=index, own=tile.owns(coord), coord=state.coord, header=state.header, snr=state.snr, mixtures=mixtures,
            covariance=covariance, fits=fits, scatter=scatter,
        )

    def _rows(self, pair, truth, index, seed):
        """Features of all sources that are a true one or more, seen by both sides and by the ground alone."""
        untrained, rows = type(self)(self.encoder), []
        for view in views(self._embedding(pair), ("ground",)):
            scene = untrained(view)
            if len(scene) == 0 or len(truth) == 0:
                continue
            name = f"flux_{scene.meta['reference_band']}"
            if name not in truth.colnames:
                raise ValueError(f"truth[{index}] has no column {name!r}: use tables as rosetta.simulate makes them")
            place, flux = truth["sky_centroid"].icrs, truth[name].to_value(u.nJy)
            first, second = _occupants(scene.to_table()["sky_centroid"], place, flux, self._config.reach)
            true = first > 0
            blend = second > self._config.hidden * first
            rows.append({"features": source_features(scene)[true], "is_blend": blend[true]})
        return joined_rows(rows)

    def _finish(self, network, data, held_out):
        return blend_probability.report(network, data, held_out)

    def _propose(self, sky, coord, solution, known=None):
        """Everything about sources before their shapes are fitted; ``known`` holds that of the first of them."""
        coord = coord[coincident(coord)]
        start, snr = _start(sky, coord)
        # The joint frame: on simulated fields a single band's own field is further from the truth.
        header = coord if solution is None else solution.ground_position(coord)
        state = _State(coord, header, snr, start)
        if known is not None:
            state.proposal[: len(known.coord)] = known.proposal
        return state

    def _scene(self, embedding, planes, roles, part, label, offsets):
        mixtures, fits, root = part.mixtures, part.fits, coincident(part.coord)
        side_of = {band: plane.side for band, plane in planes.items()}
        flags = source_flags(fits, side_of, len(label))
        flags[np.bincount(root, minlength=len(root))[root] > 1] |= int(Flag.DUPLICATE)
        flags |= int(as_solution(offsets).flag) if offsets is not None else 0
        flags |= embedding.ood_at(part.coord) if len(label) else flags
        blendedness = fits[roles.blend].blendedness
        flags[blendedness > 0.05] |= int(Flag.BLENDED)
        sharp = fits[roles.reference]
        error = np.sqrt(sharp.covariance.diagonal())
        snr = np.divide(np.nan_to_num(sharp.flux), error, out=np.zeros(len(label)), where=error > 0)
        flags[sharp.measured & (snr < 3.0)] |= int(Flag.LOW_SNR)
        flags[sharp.measured & (sharp.chi2 > 3.0)] |= int(Flag.POOR_FIT)
        radius, e1, e2 = shape_columns(mixtures)
        # The fit took its weights for the whole truth: photon noise and a family of shapes that does not
        # hold this source show in the residual.
        covariance = part.covariance * np.maximum(sharp.misfit, 1.0)[:, None, None]

        table = QTable()
        table["label"] = label
        shift = centroids(mixtures) * u.arcsec
        table["sky_centroid"] = part.coord.icrs.spherical_offsets_by(shift[:, 0], shift[:, 1])
        table["blendedness"] = blendedness
        table["n_pixel"] = sum(fit.pixels for fit in fits.values())
        table["n_band"] = sum(fit.measured.astype(int) for fit in fits.values())
        table["blend_probability"] = np.full(len(label), np.nan)
        table["half_light_radius"] = radius * u.arcsec
        table["e1"], table["e2"] = e1, e2
        table["snr"] = snr
        table["flags"] = flags
        meta = self._provenance_of(embedding, n_source=len(label))
        meta["deblender"] = "trained" if self._provenance.get("trained") else "untrained"
        meta["blendedness_band"], meta["reference_band"] = roles.blend, roles.reference
        meta["noise_factor"] = {band: fit.noise for band, fit in fits.items()}
        scene = DeblendedScene(
            embedding=embedding, table=table,
            templates=Templates(part.coord, part.header, mixtures, truncation(part.snr), roles.wavelength),
            shape_covariance=covariance, fits=fits, offsets=offsets, meta=meta,
        )
        seen = table["n_band"] > 0
        if self._provenance.get("trained") and seen.any():
            features = source_features(scene)[seen]
            table["blend_probability"][seen] = blend_probability.predict(self._network, features)
        return scene


def _occupants(coord, true, flux, reach):
    """Fluxes of the brightest true source that each position stands for, and of the second: (n,) and (n,), or 0.

    A true source belongs to the position nearest to it, if that is within ``reach`` arcsec.
    """
    first, second = np.zeros(len(coord)), np.zeros(len(coord))
    if len(coord) and len(true):
        nearest, separation, _ = true.match_to_catalog_sky(coord)
        for j in np.flatnonzero(separation < reach * u.arcsec):
            i = nearest[j]
            first[i], second[i] = max(first[i], flux[j]), max(second[i], min(first[i], flux[j]))
    return first, second


@dataclass(frozen=True)
class _State:
    """Sources before their shapes are fitted."""

    coord: SkyCoord
    header: SkyCoord  # in the frame of the ground headers
    snr: np.ndarray
    proposal: np.ndarray

    @property
    def truncation(self):
        return truncation(self.snr)

    def of(self, rows):
        """Some of the sources."""
        return _State(self.coord[rows], self.header[rows], self.snr[rows], self.proposal[rows])


def truncation(snr):
    """Share of their light that stamps of sources may leave out: a tenth of the noise."""
    return np.clip(0.1 / np.maximum(snr, 1.0), 1e-5, 1e-2)


@dataclass(frozen=True)
class _Roles:
    """Which bands do what, the same all over a field."""

    reference: str  # the sharpest band
    wavelength: float  # its pivot, nm
    shape: tuple  # that shapes are fitted to
    blend: str  # that blendedness is measured in

    @classmethod
    def of(cls, planes):
        ground = sorted((p for p in planes.values() if p.side == "ground"), key=lambda p: -p.depth)
        ground, reference = [p.band for p in ground], detection.reference_band(planes)
        space = [reference] if planes[reference].side == "space" else []
        shape = (*space, *ground[:N_GROUND_SHAPE])
        return cls(reference, planes[reference].wavelength, shape, (ground or [reference])[0])


@dataclass(frozen=True)
class _Sky:
    """The pixels of a tile, and what is found on them."""

    planes: dict
    ref: object  # `detection.Reference`, or None where there is no pixel
    found: QTable

    @classmethod
    def of(cls, planes):
        if not planes:
            return cls(planes, None, QTable({"sky_centroid": SkyCoord([], [], unit="deg")}))
        ref = detection.reference(planes)
        return cls(planes, ref, detection.segments(ref)[0])


def _start(sky, coord):
    """Shapes to start from, and S/N: discs with the moments of the nearest detection, the PSF's width removed."""
    found = sky.found
    n = len(coord)
    a, b, theta, snr = np.full(n, DEFAULT_RADIUS), np.full(n, DEFAULT_RADIUS), np.zeros(n), np.zeros(n)
    if len(found) and n:
        index, separation, _ = coord.match_to_catalog_sky(found["sky_centroid"])
        nearest, _, _ = found["sky_centroid"].match_to_catalog_sky(coord)
        # The centre of a large galaxy is known less well: its detection belongs to the position nearest to it. (A blend
        # is long, but no wider than a galaxy.)
        mutual = nearest[index] == np.arange(n)
        reach = np.where(mutual, np.maximum(MATCH, 0.5 * np.asarray(found["b"])[index]), MATCH)
        near = separation.to_value(u.arcsec) < reach
        snr[near] = np.asarray(found["snr"])[index[near]]
        point = detection.point_variance(sky.ref, snr[near])
        filtered = np.maximum(point, 0.0) + detection.filter_sigma(sky.ref) ** 2
        for out, name in ((a, "a"), (b, "b")):
            width2 = np.asarray(found[name])[index[near]] ** 2 - point
            # Nothing is smaller than a part of the error of its size: the fit could not make it grow.
            error = 2.0 * (filtered + np.maximum(width2, 0.0)) / np.maximum(snr[near], 1.0)
            out[near] = np.sqrt(np.maximum(width2, 0.25 * error))
        theta[near] = np.asarray(found["theta"])[index[near]]
    radius = np.clip(np.sqrt(a * b), 0.01, 3.0)
    return shapes.base_parameters(radius, np.clip(np.log(a / b), 0.0, 1.5), theta), snr


def _shape_images(planes, roles, state):
    """The bands of a tile that shapes are fitted to, as the fit sees them."""
    reach = np.maximum(3.0 * state.truncation, 1e-4)
    return [
        image_of(planes[band], state.coord, state.header, reach, roles.wavelength)
        for band in roles.shape if band in planes
    ]


def _slope(known, plane, image, parameters):
    """`flux_slopes` of a band; bands of one side with nearly the same PSF width share them."""
    for other, slope in known:
        if other.side == plane.side and abs(np.log(other.fwhm / plane.fwhm)) < 0.12:
            return slope
    image = replace(image, truncation=np.full(len(parameters), 3e-3))  # a slope needs no faint wings
    slope = shape_fit.flux_slopes(parameters, image)
    known.append((plane, slope))
    return slope


def _shapes(planes, roles, state):
    """Shape vectors fitted to the pixels, their covariance, and which are points; sources of one place have one shape.

    Returns
    -------
    parameters : (n, N_PARAMETER) array
    covariance : (n, n_shape, n_shape) array
    point : (n,) bool array
    """
    images, root = _shape_images(planes, roles, state), coincident(state.coord)
    alone = np.flatnonzero(root == np.arange(len(root)))
    moved, covariance = shape_fit.refine(
        state.proposal[alone], [image.of(alone) for image in images], iterations=ITERATIONS
    )
    parameters, point = state.proposal[alone] + moved @ shape_fit.DIRECTIONS, np.zeros(len(alone), bool)
    if images:
        point = point_sources(shape_fit.mixtures_of(parameters), images[0].of(alone))
        parameters[point, shapes.LN_SCALE] = shapes.POINT
        parameters[point, shapes.SHEAR_1 : shapes.SHEAR_2 + 1] = 0.0
    first = np.searchsorted(alone, root)
    return parameters[first], covariance[first], point[first]


def _whole(planes, state, mixtures):
    """Rows of the sources that are no pieces of others, and their templates with all their pieces."""
    plane = planes[detection.reference_band(planes)]
    image = image_of(plane, state.coord, state.header, state.truncation)
    design = shape_fit.design_of(mixtures, image)
    flux, _ = amplitudes(design, image.data, image.weight)
    place = tangent(state.coord, state.coord[0])
    misfit, _ = misfits(design, image.data - design.image(flux), image.weight)
    root = merging.fragment_owners(mixtures, place, flux, misfit)
    return np.flatnonzero(root == np.arange(len(root))), merging.merged(mixtures, place, flux, root)


def _missed(sky, state, mixtures, wavelength):
    """Positions of sources that the residuals show, on the reference image and on the ground stack."""
    ref, left = sky.ref, {}
    for band, plane in sky.planes.items():
        if plane.side == "ground" or band == ref.band:
            image = image_of(plane, state.coord, state.header, 3.0 * state.truncation, wavelength)
            left[band] = _residual_plane(plane, image, mixtures)
    taken, extra = state.coord, None
    ground = {band: p for band, p in left.items() if p.side == "ground"}
    searches = [(detection.reference(left, ref.band), 0.5)] if ref.side == "space" else []
    searches += [(detection.reference(ground), 0.7)] if ground else []
    for look, apart in searches:
        x, y, _ = detection.missed(look, look.data)
        if len(x) == 0:
            continue
        coord = look.plane.pixel_to_sky(x, y)
        if len(taken):
            _, separation, _ = coord.match_to_catalog_sky(taken)
            coord = coord[separation.to_value(u.arcsec) > max(apart * look.fwhm, MATCH)]
        if len(coord):
            taken = joined([taken, coord])
            extra = coord if extra is None else joined([extra, coord])
    return state.coord[:0] if extra is None else extra


def _residual_plane(plane, image, mixtures):
    _, _, design = shape_fit.breadths(mixtures, image, iterations=1)
    model = design.image(amplitudes(design, image.data, image.weight)[0])
    variance = plane.variance + (MODEL_ERROR * model) ** 2
    return plane.with_pixels(np.where(plane.valid, plane.data - model, 0.0), variance)


