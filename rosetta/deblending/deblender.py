# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Deblending: one template per source from the sharp image, carried to every band."""

import logging
import warnings
from dataclasses import replace
from functools import partial
from itertools import count

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import QTable
from astropy.utils.exceptions import AstropyUserWarning

from ..arithmetic import plain_arithmetic
from ..astrometry.solution import AstrometricSolution, as_solution, solution_for
from ..centres.detector import LearnedDetector
from ..detection.detection import detected
from ..head import Head
from ..images.image import band_images
from ..images.positions import given_positions, joined
from ..images.sky import unsubtracted
from ..training.loop import TrainerConfig
from ..training.rows import joined_rows, views
from ..workers import check_workers, in_order
from . import blend_probability
from .band_fit import shape_variance_factor
from .candidates import Advice
from .config import DeblenderConfig
from .engine.engine import SparseEngine
from .features import source_features
from .flagging import flagged
from .job_list import JobList
from .residual_search import confirmed
from .scene import DeblendedScene, template_covariance
from .scene_fit import fit_in_scene
from .sky_plane import BACKGROUNDS
from .source_columns import source_columns
from .sources import Sources, truncation
from .templates import Templates
from .tile_fit import Roles, fit_tile
from .tiles import joined_field, tiles
from .wrong_bands import wrong_bands

__all__ = ["DeblendedScene", "JEPADeblender", "as_aligned", "occupants"]

log = logging.getLogger("rosetta")

STEPS = 3  # that a tile reports


class JEPADeblender(Head):
    """Separates overlapping sources: a template for each, and their models in every band.

    Every source starts as a mean galaxy with the moments of its detection. A few Gauss-Newton steps fit its
    shape to the sharpest image and the deepest ground bands, with the start as prior; then the fluxes of all
    overlapping sources are solved together in every band. A small network estimates from features of the fits, and
    from the residuals around a source, the probability that it is a blend. It is trained on sky observed by both
    surveys and on sky observed from the ground alone. It does not use the encoder's tokens, which did not improve it.
    `fit` trains it on truth with ``sky_centroid`` and ``flux_<band>``.

    Parameters
    ----------
    encoder : `~rosetta.CrossSurveyEncoder`, optional
        None: the bundled one, loaded when needed.
    detector : `~rosetta.LearnedDetector`, optional
        Tells sources from parts of galaxies, and adds sources that only all bands together show. None: every peak of
        the detection image is a source, unless it looks like a part of another one.
    """

    _kind = "deblender"
    _config_class = DeblenderConfig
    trainer = TrainerConfig(steps=1000, batch=256)

    _owner_kinds = ("encoder", "detector")

    def __init__(self, encoder=None, detector=None):
        if detector is not None and not isinstance(detector, LearnedDetector):
            raise TypeError(f"detector must be a LearnedDetector or None, got {type(detector).__name__}")
        super().__init__(encoder)
        self._detector = detector

    def _restored(self, path):
        """Load the detector: ``detector.safetensors`` beside the checkpoint; where there is none, the bundled one."""
        needed = self._owners["detector"]
        if needed is None:
            return
        beside = path.with_name("detector.safetensors")
        self._detector = LearnedDetector.from_pretrained(beside if beside.exists() else None, device=self._device)
        if self._detector.fingerprint != needed:
            raise ValueError(
                f"detector has fingerprint {self._detector.fingerprint}, but {path.name} was trained with {needed}: "
                "put that one beside it, or train the head with fit()"
            )

    @property
    def detector(self):
        """The `~rosetta.LearnedDetector` that it uses; None where it uses none."""
        return self._detector

    @staticmethod
    def _build(config):
        return blend_probability.BlendNet(config.blend)

    @plain_arithmetic
    def __call__(
        self, x, sources=None, *, offsets=None, neighbours="detect", shape="fit", recentre=False, background="plane",
        tile_corners=None, workers=1, progress=None,
    ):
        """Deblend a pair, tile by tile: beside the images, memory is needed for one tile of the field only.

        Parameters
        ----------
        x : `~rosetta.SkyPair`, `~rosetta.SkyEmbedding`, or `~rosetta.DeblendedScene` with ``neighbours="scene"``
        sources : `~astropy.coordinates.SkyCoord` or table, optional
            Positions in the space image's frame, or a table with a column ``sky_centroid``, or ``ra`` and ``dec`` (deg
            where they have no unit), and, if it has one, ``label``: different integers, none of them -1. They are the
            first rows of the scene, in their order. Positions within 0.02 arcsec are one place, that of the first:
            their flux is shared equally (flag ``DUPLICATE``). Positions that are farther apart have the same flag in
            bands that hardly tell their fluxes apart (correlation beyond 0.95). None: detect on the space image
            (inverse-variance ground stack if there is none), then once more on the residuals; fragments of one galaxy
            are merged into one source.
        offsets : `~astropy.table.QTable` or `~rosetta.AstrometricSolution`, optional
            From `~rosetta.LearnedAligner`: the ground images are read where it says (flag ``COARSE_ALIGNMENT``
            where its verdict is "coarse"). Without it, or where it abstained, header positions are used (flag
            ``UNALIGNED`` where it abstained).
        neighbours : {"detect", "listed", "scene"}
            Light around the given positions. "detect": what is found in the images, and is none of the positions, is
            modelled too. A detection within 0.3 arcsec of a position (half its width for large galaxies) is that
            source, which starts from its shape; a fragment of it is merged into it. The others are the last
            rows of the scene, with the next free labels and ``listed`` False. "listed": only the positions; light of
            other sources goes into their fluxes. "scene": nothing is detected; the sources of the scene ``x`` keep
            their shapes, and the fluxes of those around the positions are fitted together with the listed ones. A
            position that is a source of the scene, in the same sense, takes its template, and its place with its error;
            where a shape is given, it replaces that source. Offsets and sky are the scene's.
        shape : {"fit", "point"} or table
            Of the sources at the given positions. A table has a row for each, with ``half_light_radius`` (arcsec; of
            the circle of equal area), ``e1`` and ``e2`` as in `DeblendedScene.to_table`: exponential discs, which
            stay as they are.
        recentre : bool
            Whether the given positions may move to where the light is. False: they are the positions of the templates
            in all bands.
        background : {"plane", None}
            What the images still hold of the sky: "plane", in each band and tile a plane is solved for together with
            the fluxes, whose errors include its own; it has a prior of a tenth of the sky noise per pixel. None: the
            sky is exactly 0.
        tile_corners : `~astropy.coordinates.SkyCoord`, shape (n, m), optional
            Where the tiles meet, so that a part of a field is cut as the whole is: rows to the north or south, columns
            to the east or west. Each tile is fitted on its pixels and those within 8 arcsec; sources that are
            farther out are left out. Not with ``sources``. None: tiles of about 102 arcsec that cover the pair.
        workers : int
            Processes that share the tiles. With more than one, a script needs ``if __name__ == "__main__":`` around its
            own work, as the processes are spawned.
        progress : callable, optional
            Called as ``progress(done, total)`` after every step, of which each tile of the field has three. All
            tiles are fitted again if a ground band that shapes are fitted to contradicts the templates: without it.

        Returns
        -------
        `DeblendedScene`

        Raises
        ------
        TypeError, ValueError
            If an argument cannot be used; the message says what to do.

        Warns
        -----
        AstropyUserWarning
            If the sky of a band was not subtracted.
        """
        check_workers(workers)
        if background not in BACKGROUNDS:
            raise ValueError(f"background must be 'plane' or None, got {background!r}")
        _check_corners(tile_corners, sources)
        if isinstance(x, DeblendedScene) or neighbours == "scene":
            return self._in_scene(x, sources, offsets, neighbours, shape, recentre)
        embedding = self._embedding(x)
        pair, config = embedding.pair, self._config
        images = band_images(pair)
        _warn_of_sky(images)
        solution = solution_for(offsets, images)
        roles = Roles.of(images, solution, config.n_ground_shape)
        found = detected(pair, config.detection)  # also what a user's positions take their starts from
        search = sources is None or neighbours == "detect"
        advice = self._advice(embedding, roles.reference.tangent_plane) if search else None
        if sources is None:
            job = JobList.of_detections(found, advice)
        else:
            how = {"neighbours": neighbours, "shape": shape, "recentre": recentre}
            job = JobList.of_positions(sources, found, advice, **how)
        corners = tile_corners
        if corners is not None:
            corners = roles.reference.tangent_plane.east_north(corners).reshape(*corners.shape, 2)
        field = tiles(images, corners)
        while True:
            whole = self._fitted(
                images, field, roles, job, found, advice, solution, search, background, workers, progress
            )
            wrong = set(wrong_bands(whole.bands, images, roles.reference.band, config.wrong_bands)) & set(roles.shape)
            if not wrong:
                break
            # A band that contradicts the templates must not have shaped them.
            roles = replace(roles, shape=tuple(band for band in roles.shape if band not in wrong))
        whole = whole.of(confirmed(whole, job.least, config.detection.peak))
        listed = None if sources is None else np.isin(whole.index, np.flatnonzero(job.listed))
        fixed = np.zeros(len(whole), bool) if listed is None or recentre else listed
        coord = _positions(whole, job.coord, job.east_north, roles.reference.tangent_plane)
        return self._scene(
            embedding, images, roles, whole, coord, _labels(whole.index, job.label), listed, fixed, offsets
        )

    def _in_scene(self, scene, sources, offsets, neighbours, shape, recentre):
        """The scene of positions whose neighbours are those of another scene of the same images."""
        if not isinstance(scene, DeblendedScene):
            raise ValueError(
                "neighbours is 'scene', but no scene is given: call the photometry or the deblender with a scene in "
                "place of the embedding"
            )
        if neighbours != "scene":
            raise ValueError(
                f"neighbours is {neighbours!r}, but a scene is given: use 'scene', or give scene.embedding"
            )
        if sources is None:
            raise ValueError("neighbours is 'scene', but sources is None: give positions")
        made_by = scene.meta["rosetta"]["head_fingerprint"]
        if made_by != self.fingerprint:
            raise ValueError(f"x is a scene of deblender {made_by}, this is {self.fingerprint}: use that one")
        scene.check_offsets(offsets)
        embedding, config = self._embedding(scene.embedding), self._config
        images = band_images(embedding.pair)
        solution = solution_for(scene.offsets, images)
        roles = Roles.of(images, solution, config.n_ground_shape)
        found = detected(embedding.pair, config.detection)
        job = JobList.of_positions(sources, found, neighbours=neighbours, shape=shape, recentre=recentre)
        listed = Sources.of_job(np.arange(len(job.label)), job, found, solution, config)
        whole, fixed = fit_in_scene(scene, images, roles, listed, recentre, solution, config)
        label = np.append(job.label, job.label.max(initial=0) + 1 + np.arange(len(scene)))
        named = whole.index < len(job.label)
        plane = roles.reference.tangent_plane
        known = joined([job.coord, scene.templates.coord])
        coord = _positions(whole, known, plane.east_north(known), plane)
        return self._scene(
            embedding, images, roles, whole, coord, _labels(whole.index, label), named, fixed, scene.offsets
        )

    def _fitted(self, images, field, roles, job, found, advice, solution, search, background, workers, progress):
        """The fits of all tiles, a `~rosetta.deblending.tiles.FieldFit`."""
        config, steps = self._config, count(1)
        found_too = found if search else None

        def report():
            if progress is not None:
                progress(next(steps), STEPS * len(field))

        def tasks():
            for tile in field:
                sees, beside = tile.sees(job.east_north), job.listed & search
                some, listed = (
                    Sources.of_job(np.flatnonzero(sees & part), job, found, solution, config)
                    for part in (~beside, beside)
                )
                yield tile.cut(images), roles, some, listed if beside.any() else None, found_too, advice, tile.owns

        within = report if workers == 1 else _unreported  # a process cannot report from within
        parts, work = [], partial(_tile, config, within, background)
        for part in in_order(work, tasks(), workers):
            parts.append(part)
            for _ in range(0 if workers == 1 else STEPS):
                report()
        return joined_field(parts, images)

    def _trained_on(self):
        return {**super()._trained_on(), "detector": None if self._detector is None else self._detector.fingerprint}

    def _advice(self, embedding, plane):
        """The `Advice` of the detector in a tangent plane; None without one."""
        if self._detector is None:
            return None
        windows, familiar = embedding.familiar
        centres = self._detector.centres(embedding.pair)
        return Advice.of(centres, plane.east_north(windows), familiar, self._config.candidates)

    def _rows(self, pair, truth, index, seed):
        """Features of all sources that are a true one or more, seen by both sides and by the ground alone."""
        untrained, rows = type(self)(self.encoder, self._detector), []
        for view in views(self._embedding(pair), ("ground",)):
            scene = untrained(view, offsets=as_aligned(view))
            if len(scene) == 0 or len(truth) == 0:
                continue
            name = f"flux_{scene.meta['reference_band']}"
            if name not in truth.colnames:
                raise ValueError(f"truth[{index}] has no column {name!r}: use tables as rosetta.simulate makes them")
            place, flux = given_positions(truth["sky_centroid"], "truth"), truth[name].to_value(u.nJy)
            first, second = occupants(scene.to_table()["sky_centroid"], place, flux, self._config.blend.reach)
            true = first > 0
            features = source_features(scene.to_table(), scene.fits, scene.images, scene.template_covariance)
            rows.append({"features": features[true], "is_blend": (second > self._config.blend.hidden * first)[true]})
        return joined_rows(rows)

    def _finish(self, network, data, held_out):
        return blend_probability.report(network, data, held_out)

    def _scene(self, embedding, images, roles, field, coord, label, listed, fixed, offsets):
        fits, reference = field.bands, roles.reference.band
        covariance = field.covariance * shape_variance_factor(field.mixtures, fits[reference])[:, None, None]
        columns = source_columns(field, coord, fixed, covariance, fits[reference], fits[roles.blend], self._config)
        solution = as_solution(offsets) if offsets is not None else None
        flags, of_bands = flagged(
            fits, images, embedding.pair, field.east_north, listed, reference, solution, self._config
        )
        flags |= columns.pop("flags")
        flags |= embedding.ood_at(coord) if len(label) else flags
        table = QTable({"label": label, **columns, "flags": flags})
        if listed is not None:
            table.add_column(listed, index=1, name="listed")
        for band, own in of_bands.items():
            table[f"flags_{band}"] = own
        probability, seen = np.full(len(label), np.nan), table["n_band"] > 0
        if self._provenance.get("trained") and seen.any():
            features = source_features(table, fits, images, template_covariance(fits, covariance))
            probability[seen] = blend_probability.predict(self._network, features[seen])
        table.add_column(probability, index=table.colnames.index("half_light_radius"), name="blend_probability")
        meta = self._provenance_of(embedding, n_source=len(label))
        meta["deblender"] = "trained" if self._provenance.get("trained") else "untrained"
        meta["blendedness_band"], meta["reference_band"] = roles.blend, reference
        meta["light_beyond_psf"] = {band: images[band].psf_beyond for band in fits}
        meta["sky"] = field.skies
        meta["noise_factor"] = {band: fit.point_noise for band, fit in fits.items()}
        templates = Templates(
            coord, field.mixtures, truncation(field.snr), roles.reference.wavelength, self._config.engine
        )
        return DeblendedScene(
            embedding=embedding, table=table, templates=templates, shape_covariance=covariance, fits=fits,
            offsets=offsets, meta=meta,
        )


def _tile(config, report, background, task):
    """The fit of one tile; here, so that other processes find it."""
    images, roles, sources, listed, detections, advice, owns = task
    engine = SparseEngine(config.engine)
    return fit_tile(engine, images, roles, sources, listed, detections, advice, owns, config, report, background)


def _unreported():
    pass


def _check_corners(corners, sources):
    if corners is None:
        return
    if sources is not None:
        raise ValueError("tile_corners is for sources that are detected: give it, or sources, not both")
    if not isinstance(corners, SkyCoord):
        raise TypeError(f"tile_corners must be a SkyCoord, got {type(corners).__name__}")
    if corners.ndim != 2 or min(corners.shape) < 2:
        raise ValueError(f"tile_corners must have two rows and two columns or more, got shape {corners.shape}")
    given_positions(corners, "tile_corners")


def as_aligned(x):
    """The solution that headers are right, for a training pair (or its embedding) of two sides; else None.

    Heads learn from aligned images, as the main job has them: there the colours of both sides tell fragments apart.
    """
    pair = getattr(x, "pair", x)
    if pair.ground is None or pair.space is None:
        return None
    return AstrometricSolution.of_headers(list(band_images(pair).values()))


def _warn_of_sky(images):
    for band, image in images.items():
        level, noise = unsubtracted(image.data, image.sky_weight)
        if level:
            warnings.warn(
                f"band {band!r}: nearly all pixels have the sign of their median, {level:.3g} nJy, which is "
                f"{abs(level) / noise:.1f} times the sky noise: subtract the sky from the image first",
                AstropyUserWarning, stacklevel=3,
            )  # fmt: skip


def _positions(field, known, at, plane):
    """Sky positions of the sources of a field; those that are where a list has them (``at``, (n, 2)) are as it says."""
    coord, row = plane.sky(field.east_north), np.flatnonzero(field.index >= 0)
    row = row[(field.east_north[row] == at[field.index[row]]).all(axis=1)]
    coord[row] = known[field.index[row]]
    return coord


def _labels(index, label):
    """Labels of the sources of a field: those of the job's list, and new ones for what the residuals showed."""
    new = index < 0
    out = np.zeros(len(index), np.int64)
    out[~new] = label[index[~new]]
    out[new] = label.max(initial=0) + 1 + np.arange(new.sum())
    return out


def occupants(coord, true, flux, reach):
    """Fluxes of the brightest true source that each position stands for, and of the second-brightest.

    Parameters
    ----------
    coord : `~astropy.coordinates.SkyCoord`, shape (n,)
    true : `~astropy.coordinates.SkyCoord`, shape (n_true,)
        True positions; a true source belongs to the nearest of ``coord``.
    flux : (n_true,) array
    reach : float
        Arcsec beyond which a true source belongs to none.

    Returns
    -------
    first, second : (n,) array
        In the unit of ``flux``; 0 where there is no such source.
    """
    first, second = np.zeros(len(coord)), np.zeros(len(coord))
    if len(coord) and len(true):
        nearest, separation, _ = true.match_to_catalog_sky(coord)
        for j in np.flatnonzero(separation < reach * u.arcsec):
            i = nearest[j]
            first[i], second[i] = max(first[i], flux[j]), max(second[i], min(first[i], flux[j]))
    return first, second
