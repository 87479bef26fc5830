# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Deblending: one template per source from the sharp image, carried to every band."""

import logging
from dataclasses import dataclass, replace

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord, search_around_sky
from astropy.table import QTable
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from . import _detect
from ._boundary import planes as planes_of
from ._geometry import plain_icrs, tangent
from ._head import Head
from ._measure import fit_band, ground_coord, image_of, source_tokens
from ._scene import DeblendedScene, shape_columns, source_flags
from ._stamps import north_up
from ._truth import held_out_pairs, split_by_pair, training_parts
from .core import fit as shape_fit
from .core import templates
from .core.mixture import render
from .core.solve import design
from .flags import Flag

__all__ = ["DeblendedScene", "JEPADeblender"]

log = logging.getLogger("rosetta")

MATCH = 0.3  # arcsec: a detection and a position, or a truth, are one source
COINCIDENT = 0.02  # arcsec: closer positions, and chains of them, are one place
NO_LABEL = -1  # what the photometry calls a missing neighbour
VERDICTS = {"ok": Flag(0), "coarse": Flag.COARSE_ALIGNMENT, "abstain": Flag.UNALIGNED}  # and what they flag
N_GROUND_SHAPE = 2  # ground bands that take part in fitting shapes
N_JUDGE = 3  # held-out pairs on which the network must earn its place
DEFAULT_RADIUS = 0.2  # arcsec, where nothing was detected


class JEPADeblender(Head):
    """Separates overlapping sources: a template for each, and their models in every band.

    A proposal is made for the shape of every source; a few Gauss-Newton steps fit it to the sharpest image and
    the deepest ground bands, with the proposal as prior; then the fluxes of all overlapping sources are solved
    together in every band. The classical proposal is an exponential disc with the detection's moments. A small
    network, which looks at native pixels and at the encoder's frozen tokens, makes another, and says how likely a
    source is a blend. `fit` keeps the network's proposals only if they give better fluxes on held-out sky, after the
    pixels have had their say (``start`` in the checkpoint's configuration).

    Parameters
    ----------
    encoder : `~rosetta.CrossSurveyEncoder`, optional
        None: the bundled one, loaded when needed.
    """

    _kind = "deblender"
    _default_config = {**templates.TemplateConfig().to_dict(), "start": "classical"}

    @staticmethod
    def _build(config):
        return templates.TemplateNet(_sizes(config))

    def __call__(self, x, sources=None, *, offsets=None):
        """Deblend a pair.

        Parameters
        ----------
        x : `~rosetta.SkyPair` or `~rosetta.SkyEmbedding`
        sources : `~astropy.coordinates.SkyCoord` or table, optional
            Positions in the space image's frame, or a table with a column ``sky_centroid`` (and, if it
            has one, ``label``: different integers, none of them -1). Light of sources that are not listed is
            not modelled. Positions within 0.02 arcsec are one place, that of the first: their flux is shared
            equally (flag ``DUPLICATE``). None: detect on the space image (inverse-variance ground stack if there
            is none), then once more on the residuals.
        offsets : `~astropy.table.QTable`, optional
            From `~rosetta.LearnedAligner`: the ground images are read where it says (flag ``COARSE_ALIGNMENT``
            where its verdict is "coarse"). Without it, or where it abstained, header positions are used (flag
            ``UNALIGNED`` where it abstained).

        Returns
        -------
        `DeblendedScene`

        Raises
        ------
        TypeError, ValueError
            If ``x``, ``sources`` or ``offsets`` cannot be used; the message says what to do.
        """
        embedding = self._embedding(x)
        check_offsets(offsets)
        planes = planes_of(embedding.pair)
        ref = _detect.reference(planes)
        found, _ = _detect.segments(ref)
        if sources is None:
            coord, label = found["sky_centroid"], None
        else:
            coord, label = _positions(sources)
        state = self._propose(embedding, planes, ref, found, coord, offsets)
        moved, covariance = _fit_shapes(planes, state, iterations=4)
        if sources is None and len(coord):
            extra = _missed(planes, ref, state, moved)
            if len(extra):
                coord = _join(coord, extra)
                start = np.concatenate([moved, np.zeros((len(extra), moved.shape[1]))])
                state = self._propose(embedding, planes, ref, found, coord, offsets)
                moved, covariance = _fit_shapes(planes, state, start, iterations=2)
        label = np.arange(1, len(coord) + 1) if label is None else label
        return self._scene(embedding, planes, ref, state, moved, covariance, label, offsets)

    def fit(self, pairs, truth=None, *, seed, checkpoint=None):
        """Train the template network on sky with known truth; the encoder stays frozen.

        Parameters
        ----------
        pairs : sequence of `~rosetta.SkyPair`
            Read one at a time.
        truth : sequence of `~astropy.table.QTable`
            One per pair: ``sky_centroid``, ``mixture`` (K, 6), ``flux_<band>``, as `rosetta.simulate` gives them.
        seed : int
        checkpoint : path-like, optional
            File of the training rows of finished pairs: an interrupted run resumes from it.

        Returns
        -------
        JEPADeblender
            Itself.

        Raises
        ------
        ValueError
            If there is no truth, or it does not match the pairs, or the checkpoint is of something else.
        """
        parts = training_parts(
            pairs, truth, ("sky_centroid", "mixture"), self._training_rows,
            owner=f"{self._kind} {self.encoder.fingerprint} {seed}", checkpoint=checkpoint,
        )
        data, held_out = split_by_pair(parts)
        self._config["token_dim"] = data["tokens"].shape[1] // 2
        self._network = templates.seeded(_sizes(self._config).to_dict(), seed).to(self._device or "cpu")
        result = templates.train(self._network, data, held_out, seed=seed)
        self._provenance = {"trained": True, "seed": seed, "n_pair": len(parts), **result}
        errors = self._flux_errors(pairs, truth, held_out_pairs(parts)[:N_JUDGE])
        self._config["start"] = min(errors, key=errors.get)
        self._provenance["flux_error"] = errors
        log.info("deblender trained: %s; shapes start from the %s proposal", self._provenance, self._config["start"])
        self._fingerprint = None
        return self

    def _flux_errors(self, pairs, truth, held_out):
        """Mean error of well-measured fluxes on held-out pairs from either start; errors above a half count as one."""
        errors = {"classical": [], "learned": []}
        for i in held_out:
            embedding, true = self._embedding(pairs[i]), truth[i]
            for start, found in errors.items():
                self._config["start"] = start
                scene = self(embedding)
                table = scene.to_table()
                known = np.asarray(true[f"flux_{scene.meta['reference_band']}"].to_value(u.nJy))
                owner = _owners(table["sky_centroid"], true["sky_centroid"].icrs, known)
                for band in scene.bands:
                    flux = u.Quantity(scene.flux(band), u.nJy).value
                    sigma = np.sqrt(scene.covariance(band).diagonal())
                    rows = np.flatnonzero((owner >= 0) & (flux > 10 * sigma))
                    ratio = flux[rows] / true[f"flux_{band}"].to_value(u.nJy)[owner[rows]]
                    found.append(np.minimum(np.abs(ratio - 1), 0.5))
        return {start: float(np.mean(np.concatenate(found))) for start, found in errors.items()}

    def _training_rows(self, pair, truth):
        """Network inputs and true light of all detections that have a true source."""
        embedding = self._embedding(pair)
        planes = planes_of(pair)
        ref = _detect.reference(planes)
        found, _ = _detect.segments(ref)
        true = truth["sky_centroid"].icrs
        coord = found["sky_centroid"]
        if len(coord) == 0 or len(true) == 0:
            return None
        band = f"flux_{ref.band}"
        flux = np.asarray(truth[band].to_value(u.nJy))
        owner = _owners(coord, true, flux)
        rows = np.flatnonzero(owner >= 0)
        if len(rows) == 0:
            return None
        several = self._several(coord, true, flux, owner)
        base, snr = _classical(ref, found, coord)
        state = _State(coord, coord, snr, base, np.full(len(coord), np.nan))
        inputs = _network_inputs(embedding, planes, ref, state, self._network.config)
        mixture = np.asarray(truth["mixture"], float)[owner[rows]]
        east, north = coord[rows].spherical_offsets_to(true[owner[rows]])
        mixture[:, :, 1] += east.to_value(u.arcsec)[:, None]
        mixture[:, :, 2] += north.to_value(u.arcsec)[:, None]
        names = ("space", "ground", "scalars", "tokens")
        data = {name: array[rows] for name, array in zip(names, inputs, strict=True)}
        return {**data, "base": base[rows], "true": mixture, "several": several[rows]}

    @staticmethod
    def _several(coord, true, flux, owner):
        """Whether an undetected true source of a fifth of the flux lies within an arcsecond, (n,) float."""
        detected = np.isin(np.arange(len(true)), owner)
        out = np.zeros(len(coord))
        mine, theirs, _, _ = search_around_sky(coord, true, 1.0 * u.arcsec)
        for i, j in zip(mine, theirs, strict=True):
            if owner[i] >= 0 and not detected[j] and flux[j] > 0.2 * flux[owner[i]]:
                out[i] = 1.0
        return out

    def _propose(self, embedding, planes, ref, found, coord, offsets):
        """Everything known about sources before their shapes are fitted."""
        coord = coord[_roots(coord)]
        header = ground_coord(coord, offsets)
        base, snr = _classical(ref, found, coord)
        state = _State(coord, header, snr, base, np.full(len(coord), np.nan))
        if self._provenance.get("trained") and len(coord):
            inputs = _network_inputs(embedding, planes, ref, state, self._network.config)
            proposal, blend = templates.propose(self._network, base, *inputs)
            if self._config["start"] == "classical":
                proposal = base
            return replace(state, proposal=proposal, blend=blend)
        return state

    def _scene(self, embedding, planes, ref, state, moved, covariance, label, offsets):
        parameters = state.proposal + moved @ shape_fit.DIRECTIONS
        root = _roots(state.coord)
        parameters = parameters[root]
        mixtures = shape_fit.mixtures_of(parameters)
        fits, slopes = {}, []
        for band, plane in planes.items():
            image = image_of(plane, state.coord, state.header, state.share)
            fits[band] = fit_band(plane, image, mixtures, _slope(slopes, plane, image, parameters))
        side_of = {band: plane.side for band, plane in planes.items()}
        flags = source_flags(fits, side_of, len(label))
        flags[np.bincount(root, minlength=len(root))[root] > 1] |= int(Flag.DUPLICATE)
        flags |= int(VERDICTS[offsets.meta["verdict"]]) if offsets is not None else 0
        flags |= embedding.ood_at(state.coord) if len(label) else flags
        ground = [p for p in planes.values() if p.side == "ground"]
        blend_band = max(ground, key=lambda p: p.depth).band if ground else ref.band
        blendedness = _blendedness(fits[blend_band])
        flags[blendedness > 0.05] |= int(Flag.BLENDED)
        sharp = fits[ref.band]
        error = np.sqrt(sharp.covariance.diagonal())
        snr = np.divide(np.nan_to_num(sharp.flux), error, out=np.zeros(len(label)), where=error > 0)
        flags[sharp.measured & (snr < 3.0)] |= int(Flag.LOW_SNR)
        flags[sharp.measured & (sharp.chi2 > 3.0)] |= int(Flag.POOR_FIT)
        radius, e1, e2 = shape_columns(mixtures)
        # The fit took its weights for the whole truth: photon noise and a family of shapes that does not
        # hold this source show in the residual.
        covariance = covariance * np.maximum(sharp.misfit, 1.0)[:, None, None]

        table = QTable()
        table["label"] = label
        shift = parameters[:, :2] * u.arcsec
        table["sky_centroid"] = state.coord.icrs.spherical_offsets_by(shift[:, 0], shift[:, 1])
        table["blendedness"] = blendedness
        table["n_pixel"] = sum(fit.pixels for fit in fits.values())
        table["n_band"] = sum(fit.measured.astype(int) for fit in fits.values())
        table["blend_probability"] = state.blend
        table["half_light_radius"] = radius * u.arcsec
        table["e1"], table["e2"] = e1, e2
        table["snr"] = snr
        table["flags"] = flags
        meta = self._provenance_of(embedding, n_source=len(label))
        meta["deblender"] = "trained" if self._provenance.get("trained") else "untrained"
        meta["blendedness_band"], meta["reference_band"] = blend_band, ref.band
        meta["noise_factor"] = {band: fit.noise for band, fit in fits.items()}
        return DeblendedScene(
            embedding=embedding, table=table, parameters=parameters, mixtures=mixtures,
            shape_covariance=covariance, fits=fits, offsets=offsets, meta=meta,
        )


def _sizes(config):
    """The part of a checkpoint's configuration that builds the network."""
    return templates.TemplateConfig(**{name: value for name, value in config.items() if name != "start"})


def _owners(coord, true, flux):
    """Row of the brightest true source in reach of each position, or -1: (n,) int."""
    owner = np.full(len(coord), -1)
    if len(coord) and len(true):
        for i, j, *_ in zip(*search_around_sky(coord, true, MATCH * u.arcsec), strict=True):
            if owner[i] < 0 or flux[j] > flux[owner[i]]:
                owner[i] = j
    return owner


@dataclass(frozen=True)
class _State:
    """Sources before their shapes are fitted."""

    coord: SkyCoord
    header: SkyCoord  # in the frame of the ground headers
    snr: np.ndarray
    proposal: np.ndarray
    blend: np.ndarray

    @property
    def share(self):
        """Bright sources need stamps that reach further into the wings."""
        return np.clip(0.1 / np.maximum(self.snr, 1.0), 1e-5, 1e-3)


def check_offsets(offsets):
    """Refuse what is neither None nor a table from the aligner."""
    if offsets is None:
        return
    meta = getattr(offsets, "meta", None)
    if meta is None or not {"model", "center", "verdict"} <= set(meta) or meta["verdict"] not in VERDICTS:
        raise ValueError("offsets must be the table that LearnedAligner returns, with its meta: pass it unchanged")


def _positions(sources):
    """Positions and labels of user-given sources."""
    label = None
    if not isinstance(sources, SkyCoord):
        if "sky_centroid" not in getattr(sources, "colnames", ()):
            raise TypeError(
                "sources must be a SkyCoord or a table with a column 'sky_centroid', "
                f"got {type(sources).__name__}"
            )
        if "label" in sources.colnames:
            label = _labels(sources["label"])
        sources = sources["sky_centroid"]
        if not isinstance(sources, SkyCoord):
            raise TypeError(
                f"sources has a column 'sky_centroid' of type {type(sources).__name__}: make it a SkyCoord"
            )
    coord = plain_icrs(sources)
    bad = ~(np.isfinite(coord.ra.deg) & np.isfinite(coord.dec.deg))
    if bad.any():
        raise ValueError(f"sources has {bad.sum()} positions that are not finite: drop those rows")
    return coord, label


def _labels(column):
    """User-given labels, (n,) int64."""
    remedy = "give every row its own whole number, or drop the column"
    if np.any(getattr(column, "mask", False)):
        raise ValueError(f"sources has rows without a label: {remedy}")
    label = np.asarray(column)
    if len(label) == 0:
        return np.zeros(0, np.int64)
    if label.dtype.kind not in "iu" or label.ndim != 1:
        raise TypeError(f"sources has labels of type {label.dtype}: {remedy}")
    if label.max() > np.iinfo(np.int64).max:
        raise ValueError(f"sources has labels that do not fit 64 bits with a sign: {remedy}")
    label = label.astype(np.int64)
    if len(np.unique(label)) != len(label):
        raise ValueError(f"sources has duplicate labels: {remedy}")
    if (label == NO_LABEL).any():
        raise ValueError(f"sources has the label {NO_LABEL}, which stands for no source in catalogues: {remedy}")
    return label


def _roots(coord):
    """The first row at each row's place, (n,) int."""
    n = len(coord)
    if n < 2:
        return np.arange(n)
    one, two, _, _ = search_around_sky(coord, coord, COINCIDENT * u.arcsec)
    _, place = connected_components(sparse.coo_array((np.ones(len(one)), (one, two)), shape=(n, n)), directed=False)
    _, first = np.unique(place, return_index=True)
    return first[place]


def _join(first, second):
    first, second = first.icrs, second.icrs
    ra, dec = (np.concatenate([getattr(c, k).deg for c in (first, second)]) for k in ("ra", "dec"))
    return SkyCoord(ra, dec, unit="deg")


def _classical(ref, found, coord):
    """Exponential discs with the moments of the nearest detection, the PSF's width removed."""
    n = len(coord)
    a, b, theta, snr = np.full(n, DEFAULT_RADIUS), np.full(n, DEFAULT_RADIUS), np.zeros(n), np.zeros(n)
    if len(found) and n:
        index, separation, _ = coord.match_to_catalog_sky(found["sky_centroid"])
        near = separation.to_value(u.arcsec) < MATCH
        psf2 = (ref.fwhm / 2.3548) ** 2
        for out, name in ((a, "a"), (b, "b")):
            width2 = np.asarray(found[name])[index[near]] ** 2 - psf2
            out[near] = np.sqrt(np.maximum(width2, 0.03**2))
        theta[near], snr[near] = np.asarray(found["theta"])[index[near]], np.asarray(found["snr"])[index[near]]
    radius = np.clip(np.sqrt(a * b), 0.03, 3.0)
    return templates.base_parameters(radius, np.clip(np.log(a / b), 0.0, 1.5), theta), snr


def _shape_images(planes, state):
    """The sharpest space band, and the deepest ground bands, as the shape fit sees them."""
    space = [p for p in planes.values() if p.side == "space"]
    ground = sorted((p for p in planes.values() if p.side == "ground"), key=lambda p: -p.depth)
    chosen = ([min(space, key=lambda p: p.fwhm)] if space else []) + ground[:N_GROUND_SHAPE]
    return [image_of(plane, state.coord, state.header, np.maximum(state.share, 1e-4)) for plane in chosen]


def _slope(known, plane, image, parameters):
    """`flux_slopes` of a band; bands of one side with nearly the same PSF width share them."""
    for other, slope in known:
        if other.side == plane.side and abs(np.log(other.fwhm / plane.fwhm)) < 0.12:
            return slope
    image = replace(image, share=np.full(len(parameters), 3e-3))  # a slope needs no faint wings
    slope = shape_fit.flux_slopes(parameters, image)
    known.append((plane, slope))
    return slope


def _fit_shapes(planes, state, start=None, *, iterations):
    """`refine` for all sources; of those in one place only the first is fitted, the others follow it."""
    root = _roots(state.coord)
    alone = root == np.arange(len(root))
    images = _shape_images(planes, state)
    if not alone.all():
        images = [replace(i, xy=i.xy[alone], jacobian=i.jacobian[alone], share=i.share[alone]) for i in images]
    start = start if start is None else start[alone]
    found, found_covariance = shape_fit.refine(state.proposal[alone], images, start, iterations=iterations)
    moved = np.zeros((len(alone), found.shape[1]))
    covariance = np.zeros((len(alone), *found_covariance.shape[1:]))
    moved[alone], covariance[alone] = found, found_covariance
    return moved[root], covariance[root]


def _missed(planes, ref, state, moved):
    """Positions of sources that the residuals show, on the reference image and on the ground stack."""
    parameters = state.proposal + moved @ shape_fit.DIRECTIONS
    mixtures = shape_fit.mixtures_of(parameters)
    left = {}
    for band, plane in planes.items():
        if plane.side == "ground" or band == ref.band:
            left[band] = _residual_plane(plane, image_of(plane, state.coord, state.header, state.share), mixtures)
    taken, extra = state.coord, None
    ground = {band: p for band, p in left.items() if p.side == "ground"}
    searches = [(_detect.reference(left, ref.band), 0.5)] if ref.side == "space" else []
    searches += [(_detect.reference(ground), 0.7)] if ground else []
    for look, apart in searches:
        x, y, _ = _detect.missed(look, look.data)
        if len(x) == 0:
            continue
        coord = look.plane.pixel_to_sky(x, y)
        _, separation, _ = coord.match_to_catalog_sky(taken)
        coord = coord[separation.to_value(u.arcsec) > max(apart * look.fwhm, MATCH)]
        if len(coord):
            taken = _join(taken, coord)
            extra = coord if extra is None else _join(extra, coord)
    return state.coord[:0] if extra is None else extra


def _residual_plane(plane, image, mixtures):
    matrix = design(render(mixtures, image.xy, image.jacobian, image.psf), plane.data.shape, len(mixtures))
    flux = shape_fit.fluxes(matrix, image)
    model = (matrix @ flux).reshape(plane.data.shape)
    # What a bright source's template leaves is no source: a tenth of the model counts as noise.
    return replace(
        plane, data=np.where(plane.valid, plane.data - model, 0.0), variance=plane.variance + (0.1 * model) ** 2
    )


def _blendedness(fit):
    """1 - sum f_k^2 / sum f_k F over the pixels, f_k the source's model and F the sum of all."""
    flux = np.maximum(np.nan_to_num(fit.flux), 0.0)
    overlap = fit.matrix.T @ (fit.matrix @ flux)  # (n,)
    own = fit.matrix.copy()
    own.data = own.data**2
    own = np.asarray(own.sum(axis=0)).ravel() * flux
    return np.clip(1.0 - np.divide(own, overlap, out=np.ones(len(flux)), where=overlap > 0), 0.0, 1.0)


def _network_inputs(embedding, planes, ref, state, config):
    """Stamps, scalars and tokens of all sources."""
    coord, header, n = state.coord, state.header, len(state.coord)
    others = tangent(coord, coord[0])
    space = [p for p in planes.values() if p.side == "space"]
    ground = {band: p for band, p in planes.items() if p.side == "ground"}
    stamps, scalars = [], np.zeros((n, templates.N_SCALAR), np.float32)
    for k, (side, size, scale) in enumerate((("space", config.space_size, 0.1), ("ground", config.ground_size, 0.2))):
        seen = space if side == "space" else ground
        if not seen:
            stamps.append(np.zeros((n, 3, size, size), np.float32))
            continue
        look = _detect.reference({p.band: p for p in space}) if side == "space" else _detect.reference(ground)
        image = image_of(look.plane, coord, header, state.share)
        stamps.append(
            north_up(
                look.data, look.variance, image.xy, image.jacobian, size=size, scale=scale, others=others, radius=scale
            )
        )
        scalars[:, k], scalars[:, 2 + k] = np.log(look.fwhm), 1.0
        scalars[:, 6 + k] = look.plane.depth - 26.0
    scalars[:, 4] = np.arcsinh(state.snr) - 3.0
    nearest = np.full(n, 10.0)
    if n > 1:
        _, separation, _ = coord.match_to_catalog_sky(coord, nthneighbor=2)
        nearest = np.minimum(separation.to_value(u.arcsec), 10.0)
    scalars[:, 5] = np.log(nearest + 0.1)
    return stamps[0], stamps[1], scalars, source_tokens(embedding, coord, header)
