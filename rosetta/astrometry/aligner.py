# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""`LearnedAligner`: the two surveys on one astrometric frame, with errors and a verdict."""

import logging
from dataclasses import dataclass, replace

import astropy.units as u
import numpy as np
from astropy.nddata import CCDData, StdDevUncertainty, VarianceUncertainty
from astropy.table import QTable, vstack
from astropy.wcs import WCS
from scipy.interpolate import RectBivariateSpline

from ..arithmetic import plain_arithmetic
from ..detection.detection import DetectionConfig, detected
from ..flags import Flag
from ..head import Head
from ..images.image import band_images, extent
from ..images.positions import offset_coord
from ..pair import SIDES, SkyPair
from ..training.loop import TrainerConfig
from ..training.rows import joined_rows
from . import band_fields, catalogue_tie, corrected_wcs, epochs, excess_noise, few_sources, measurement
from . import field as offset_field
from .catalogue_tie import CatalogueTieConfig
from .excess_noise import ExcessNoiseConfig
from .few_sources import FewSourcesConfig
from .field_fit import FieldFit, predict_held_out
from .measurement import MeasurementConfig
from .reference_stars import reference_stars
from .solution import AlignmentError, AstrometricSolution, as_solution
from .tied_offsets import tied

__all__ = ["AlignerConfig", "AlignmentError", "LearnedAligner"]

log = logging.getLogger("rosetta")

MAS = u.mas
MIN_ROWS = 20  # sources to learn from


@dataclass(frozen=True)
class AlignerConfig:
    """What decides the answer of a `LearnedAligner`; it is saved with its weights.

    Attributes
    ----------
    detection : `~rosetta.detection.detection.DetectionConfig`
    coarse_significance, coarse_rival : float
        Of the peak of the cross-correlation, to start from it, and how many times higher than any other it must be.
    alone_significance, alone_rival : float
        The same for the peak to be believed without single sources: few bright sources make high chance peaks.
    coarse_error : float
        Of an offset that only the correlation supports, mas.
    fine_error, most_error : float
        Largest error of an alignment that is not coarse (a tenth of the ground PSF's sigma), and of any, mas.
    few : `~rosetta.astrometry.few_sources.FewSourcesConfig`
    tie : `~rosetta.astrometry.catalogue_tie.CatalogueTieConfig`
    measurement : `~rosetta.astrometry.measurement.MeasurementConfig`
    network : `~rosetta.astrometry.excess_noise.ExcessNoiseConfig`
    """

    detection: DetectionConfig = DetectionConfig()
    coarse_significance: float = 8.0
    coarse_rival: float = 1.3
    alone_significance: float = 15.0
    alone_rival: float = 6.0
    coarse_error: float = 100.0
    fine_error: float = 30.0
    most_error: float = 100.0
    few: FewSourcesConfig = FewSourcesConfig()
    tie: CatalogueTieConfig = CatalogueTieConfig()
    measurement: MeasurementConfig = MeasurementConfig()
    network: ExcessNoiseConfig = ExcessNoiseConfig()


class LearnedAligner(Head):
    """Offsets between ground and space frames, per source and as a smooth field.

    Each source of the reference image (VIS, else the sharpest space band), convolved to a band's PSF, is fitted to that
    band's native pixels by weighted least squares for position, flux and background; the noise of both images is
    propagated. A large initial error is first found by cross-correlation. The PSF may be wrong or missing: it is
    corrected on the brightest sources. A field (shift, affine, polynomial or Gaussian process, whichever
    predicts left-out sources best) is fitted to the offsets of all sources.

    Offsets of sources scatter about the field by more than pixel noise. This scatter is fitted on the same data,
    separately for point sources (proper motions) and for all others (colour gradients). A small network uses the frozen
    tokens at each source to predict which ones deviate. Its weight is fitted as well, and it cannot move a source. It
    can predict only what its training pairs contain: colour gradients and blends, but proper motions only if sources
    moved between the two images of a pair (in tiles observed through `rosetta.simulate` they do not).

    `fit` trains it on truth with ``sky_centroid``, ``d_ra_cosdec`` and ``d_dec``. Without truth, a known shift is
    injected into each ground WCS, and sources are compared with that shift plus the field that all others define.

    Sign: corrected position = ground position + offset. Offsets are (east, north), east being
    d(RA) cos(Dec).

    Parameters
    ----------
    encoder : `~rosetta.CrossSurveyEncoder`, optional
        None: the bundled one, loaded when needed. An aligner that was neither fitted nor loaded works
        without the network.

    Examples
    --------
    >>> from rosetta import AstrometricSolution, LearnedAligner
    >>> offsets = LearnedAligner.from_pretrained()(embedding)  # doctest: +SKIP
    >>> AstrometricSolution.from_table(offsets).verdict  # doctest: +SKIP
    'ok'
    """

    _kind = "aligner"
    _config_class = AlignerConfig
    trainer = TrainerConfig(steps=600, batch=256, rate=1e-3, weight_decay=0.05, look_every=20)
    _truth_columns = ("sky_centroid", "d_ra_cosdec", "d_dec")
    _needs_truth = False

    @staticmethod
    def _build(config):
        return excess_noise.ExcessNoise(config.network)

    @plain_arithmetic
    def __call__(self, x, *, bands=None, model="auto", reference=None):
        """Measure the offsets.

        Parameters
        ----------
        x : `~rosetta.SkyPair` or `~rosetta.SkyEmbedding`
            With both sides, or with ``reference`` the ground alone.
        bands : sequence of str, optional
            Bands to measure (default: all but the reference), by any of their names.
        model : str
            "auto" (chosen by leave-one-out likelihood), "shift", "affine", "polynomial2", "polynomial3", "gp" or
            "affine+gp".
        reference : `~astropy.table.Table` or `~astropy.coordinates.SkyCoord`, optional
            Stars, as Gaia's archive gives them, whose positions are the frame in place of the reference image's:
            ``ra``, ``dec`` (or ``sky_centroid``) and ``ref_epoch`` (Julian years; or ``obstime``), and where known
            ``pmra``, ``pmdec`` (mas / yr), ``ra_error``, ``dec_error``, ``pmra_error``, ``pmdec_error`` and
            ``parallax`` (mas), which counts as an error. Each star is moved to the epoch of the image. With both sides
            the reference image is tied to the stars, and all other bands to the reference image; the ground alone is
            tied directly.

        Returns
        -------
        `~astropy.table.QTable`
            A row per source and band: ``label``, ``sky_centroid`` (in the reference image's header), ``band`` (a band,
            or "joint": all ground bands as one frame), ``d_ra_cosdec``, ``d_dec`` and their errors (mas), ``corr``
            (correlation of the two errors), ``snr``, ``weight`` (0: not used in the field), ``flags``. ``meta``:
            ``verdict`` ("ok", "coarse": known to worse than 30 mas, or ground bands disagree; ground rows are flagged
            COARSE_ALIGNMENT, and where only the cross-correlation worked they hold its offset, and space bands have
            none; or "abstain": offsets are NaN and rows are flagged UNALIGNED), ``reason``, ``center``, ``box``,
            ``model`` (one field per band): what `~rosetta.AstrometricSolution.from_table` reads; ``score``,
            ``reference`` (a band, or "catalogue"), ``coarse`` and provenance. Errors include the fitted scatter. With
            ``reference`` the reference image has rows as well, with an offset for each star that was found.

        Raises
        ------
        TypeError
            If ``x`` is neither a pair nor an embedding, or ``reference`` is neither a table nor positions.
        ValueError
            If a side is missing, a band or the model is not known, or ``reference`` lacks positions or epochs.
        """
        stars = None if reference is None else reference_stars(reference)
        sides = SIDES if stars is None else ("ground",)
        if isinstance(x, SkyPair):
            _check_sides(x, sides)
        embedding = self._embedding(x)
        pair = embedding.pair
        _check_sides(pair, sides)
        if model != "auto" and model not in offset_field.MODELS:
            raise ValueError(f"model must be 'auto' or one of {', '.join(offset_field.MODELS)}; got {model!r}")
        images = band_images(pair)
        detections = detected(pair, self._config.detection)
        sharpest = detections.image.band if pair.space is not None else None
        wanted = _wanted_bands(pair, images, sharpest, bands)
        sources = measurement.find_sources(detections, self._config.measurement)
        meta = self._provenance_of(embedding, bands=wanted, model=model)
        meta["reference"] = sharpest if stars is None else "catalogue"
        if sharpest is None:
            return _logged(_star_table(images, sources, stars, wanted, model, meta, self._config))
        still = {}
        if stars is not None:
            star, _ = _matched(stars, sources, self._config)
            years = {band: _years(images[band], sources) for band in wanted}
            if np.isfinite(list(years.values())).all():
                still = {band: stars.motion_in(years[band], star) for band in wanted}
                sources = replace(sources, point=sources.point & (star < 0))
        found = _measure(images, sources, wanted, self._config, still)
        extras = {}
        if self._provenance.get("trained") and found.few is None:  # it has learned from fields of many sources
            tokens = self._tokens(embedding, sources)
            for part in found.parts:
                extras[part.band] = excess_noise.excess_noise(self._network, *tokens, _scalars(part, sources))
        offsets = _table(images, sources, found, extras, model, meta, self._config)
        if stars is not None:
            tie = _star_table(images, sources, stars, [sharpest], "auto", meta, self._config)
            offsets = tied(offsets, tie, sharpest)
        return _logged(offsets)

    @plain_arithmetic
    def correct_wcs(self, wcs, offsets, *, band="joint", form="sip"):
        """A new WCS that carries the offset field.

        Parameters
        ----------
        wcs : APE-14 WCS
            Of a ground image (or of the band the field was measured in). It is not modified.
        offsets : `~astropy.table.QTable` or `~rosetta.AstrometricSolution`
            From this aligner.
        band : str
            Whose field: a band of ``offsets`` or "joint".
        form : {"sip", "lookup", "tan"}
            TAN-SIP up to order 5; TAN with a FITS lookup table (holds any smooth field; write it with
            ``WCS.to_fits``, since ``CCDData.write`` drops it); or the linear part only, in CRVAL and CD, which
            leaves the SIP terms of a TAN-SIP input as they are.

        Returns
        -------
        `~astropy.wcs.WCS`
            ICRS. The largest approximation error is logged; `align` states it in its ``meta``. It holds for the
            region that was fitted: the image, where ``wcs.pixel_shape`` (else ``wcs.pixel_bounds``) tells its size,
            or what the reference image covers with a margin of 5 % and 5 pixels. Set ``pixel_shape`` where the image
            is not that large; a polynomial is not valid outside of the region.

        Raises
        ------
        AlignmentError
            If the alignment abstained.
        TypeError, ValueError
            If ``offsets`` is not the aligner's table with its ``meta``, ``wcs`` is no WCS, or the form or the band is
            not known.
        """
        return _correct(wcs, as_solution(offsets), band, form)[0]

    @plain_arithmetic
    def align(self, pair, *, reference=None):
        """All ground images with corrected WCS; their pixels are untouched.

        Parameters
        ----------
        pair : `~rosetta.SkyPair` or `~rosetta.SkyEmbedding`
        reference : `~astropy.table.Table` or `~astropy.coordinates.SkyCoord`, optional
            Stars to tie the images to, as for calling the aligner. The space images are then corrected as well.

        Returns
        -------
        dict of str to `~astropy.nddata.CCDData`
            As checked by the pair (nJy, variance, mask, PSF), with a TAN-SIP WCS; ``write`` keeps all of it, and
            ``meta`` as far as a FITS header can hold it. Added there: ``ALIGN`` (verdict), ``ALIGNMOD`` and
            ``ALIGNFRM`` (kind of field, and the band whose it is), ``ALIGNRES`` (largest approximation error of the
            WCS, mas), ``ALIGNSIG`` (typical error of the field, mas).

        Raises
        ------
        AlignmentError
            If the data do not support an alignment.
        """
        offsets = self(pair, reference=reference)
        solution = as_solution(offsets)
        solution.require_fields()
        sources = offsets["sky_centroid"][offsets["band"] == "joint"]
        pair = pair if isinstance(pair, SkyPair) else pair.pair
        aligned = {}
        for side, band, image in pair.images():
            if side == "space" and reference is None:
                continue
            wcs, residual = _correct(image.wcs, solution, band, "sip", image.data.shape)
            sigma = solution.sigma_at(sources, band)
            statement = {  # keywords and values that a FITS header can hold
                "ALIGN": solution.verdict,
                "ALIGNMOD": solution.kind(band),
                "ALIGNFRM": solution.frame(band),
                "ALIGNRES": residual,
                "ALIGNSIG": float(np.sqrt(np.median((sigma**2).sum(1)) / 2)),
            }
            aligned[band] = CCDData(
                image.data.copy(),
                unit=image.unit,
                wcs=wcs,
                mask=image.mask.copy(),
                uncertainty=VarianceUncertainty(image.uncertainty.array.copy()),
                psf=image.psf,
                meta={**_cards(image.meta), **statement},
            )
        return aligned

    @plain_arithmetic
    def field(self, offsets, wcs, shape, *, band="joint"):
        """The offset field on a pixel grid.

        Parameters
        ----------
        offsets : `~astropy.table.QTable` or `~rosetta.AstrometricSolution`
            From this aligner.
        wcs : APE-14 WCS
            Of the grid, in the uncorrected frame of the band: a pixel's true position is its position there plus the
            offset.
        shape : tuple of int
            (ny, nx).
        band : str
            Whose field.

        Returns
        -------
        `~astropy.nddata.CCDData`, data of shape (2, ny, nx), mas
            Layers: offset to the east and to the north; ``uncertainty`` is their standard deviation. The WCS is that
            of the last two axes (None where ``wcs`` is not a `astropy.wcs.WCS`).

        Raises
        ------
        AlignmentError
            If the alignment abstained.
        TypeError, ValueError
            If ``offsets`` is not the aligner's table with its ``meta``, the band is not known, ``wcs`` is no WCS, or
            ``shape`` is not that of an image of 2 x 2 pixels or more.
        """
        solution = as_solution(offsets)
        if not hasattr(wcs, "pixel_to_world"):
            raise TypeError(f"wcs must be a WCS, got {type(wcs).__name__}")
        if np.shape(shape) != (2,) or not all(n >= 2 for n in shape):
            raise ValueError(f"shape must be (ny, nx), 2 or more each, got {shape!r}")
        ny, nx = shape
        # The field is smooth: ask it at some nodes and interpolate.
        nodes = [np.linspace(0, n - 1, int(np.clip(n // 8, 4, 65))) for n in (ny, nx)]
        y, x = np.meshgrid(*nodes, indexing="ij")
        solution.require_fields()
        true = solution.true_position(wcs.pixel_to_world(x.ravel(), y.ravel()), band)
        layers = np.concatenate([solution.offset_at(true, band), solution.sigma_at(true, band)], 1)
        layers = layers.T.reshape(4, *x.shape)
        fine = np.arange(ny), np.arange(nx)
        layers = np.stack([RectBivariateSpline(*nodes, p)(*fine) for p in layers]).astype(np.float32)
        return CCDData(
            layers[:2], unit=MAS, uncertainty=StdDevUncertainty(layers[2:]), wcs=wcs if isinstance(wcs, WCS) else None,
            meta={"PLANE1": "d_ra_cosdec", "PLANE2": "d_dec", "band": band},
        )

    def _rows(self, pair, truth, index, seed):
        """Tokens, scalars, residuals and covariances of the usable sources of one pair; None if it has none."""
        _check_sides(pair)
        images = band_images(pair)
        detections = detected(pair, self._config.detection)
        sources = measurement.find_sources(detections, self._config.measurement)
        wanted = [band for band in images if images[band].side == "ground"]
        injected = np.zeros(2)
        if truth is None:
            injected = np.random.default_rng([seed, index]).normal(0.0, 50.0, 2)  # mas
            images = {
                band: replace(p, wcs=_Shifted(p.wcs, 1e-3 * injected)) if p.side == "ground" else p
                for band, p in images.items()
            }
        found = _measure(images, sources, wanted, self._config, {})
        if found.verdict != "ok":
            log.warning("pairs[%d] left out of training: %s", index, found.reason)
            return None
        tokens = self._tokens(pair, sources)
        if truth is not None and len(truth):
            match, apart, _ = sources.table["sky_centroid"].match_to_catalog_sky(truth["sky_centroid"])
            known = np.stack([truth[c].to_value(MAS)[match] for c in ("d_ra_cosdec", "d_dec")], -1)
            matched = apart.arcsec < 0.3
        parts = []
        for part in found.parts:
            use = part.usable.copy()
            if truth is not None:
                use &= matched
                residual = (part.offset - known)[use]
                cov = part.cov[use]
            elif use.sum() >= 10:
                # What is known of the header error is the injected shift; the rest is the field of the others.
                rest = part.offset[use] + injected
                mean, spare = predict_held_out(sources.east_north[use], rest, part.cov[use])
                residual, cov = rest - mean, part.cov[use] + spare
            else:
                continue
            parts.append({
                "ground": tokens[0][use], "space": tokens[1][use], "scalars": _scalars(part, sources)[use],
                "residual": residual, "cov": cov,
            })
        rows = joined_rows(parts)
        return rows if rows and len(rows["residual"]) else None

    def _tokens(self, x, sources):
        """Frozen tokens at each source: ground, space; zeros where there is no data."""
        return [np.nan_to_num(self.encoder.at(x, sources.table["sky_centroid"], side)) for side in ("ground", "space")]

    def _prepared(self, data, held_out):
        n = len(data["residual"]) + len(held_out["residual"])
        if n < MIN_ROWS:
            raise ValueError(f"pairs gave {n} usable sources, {MIN_ROWS} are needed: add pairs")
        return data, held_out

    def _config_for(self, data):
        network = replace(self._config.network, token_dim=data["ground"].shape[1])
        return replace(self._config, network=network)

    def _finish(self, network, data, held_out):
        return excess_noise.report(network, held_out)


class _Shifted:
    """A WCS whose sky positions are moved by a constant (east, north) in arcsec."""

    def __init__(self, wcs, shift):
        self._wcs, self._shift = wcs, shift

    def pixel_to_world(self, x, y):
        return offset_coord(self._wcs.pixel_to_world(x, y), *self._shift)

    def world_to_pixel(self, sky):
        return self._wcs.world_to_pixel(offset_coord(sky, *-self._shift))


class _Found:
    """Measurements of a pair, with the verdict on them."""

    def __init__(self, frame, parts, joint, verdict, reason, match, few=None):
        self.frame = frame  # the bands that make up the joint frame
        self.parts, self.joint, self.verdict, self.reason, self.match = parts, joint, verdict, reason, match
        self.few = few  # `FewSources`, where the sources are too few for a field


def _check_sides(pair, sides=SIDES):
    for side in sides:
        if getattr(pair, side) is None:
            needs = "both surveys, or the ground and a reference" if len(sides) > 1 else "the ground images"
            raise ValueError(f"x has no {side} side: the aligner needs {needs}")


def _wanted_bands(pair, images, reference, bands):
    if bands is None:
        return [band for band in images if band != reference]
    if isinstance(bands, str):
        raise TypeError(f"bands must be a sequence of band names, got the string {bands!r}")
    wanted = []
    names = {}
    for band, image in images.items():
        names.update(dict.fromkeys(pair.survey(image.side)[band].aliases, band))
    names.update({band: band for band in images})  # a name proper is stronger than an alias
    for name in bands:
        band = names.get(name)
        if band is None or band == reference:
            known = ", ".join(band for band in images if band != reference)
            frame = reference or "the catalogue"
            raise ValueError(f"bands: {name!r} cannot be measured against {frame}; this pair has: {known}")
        if band not in wanted:
            wanted.append(band)
    if not any(images[band].side == "ground" for band in wanted):
        raise ValueError(f"bands must name at least one ground band ({', '.join(pair.ground)})")
    return wanted


def _cards(meta):
    """What a FITS header can hold of ``meta``."""
    kinds = (str, bool, int, float, np.number)
    return {
        key: value for key, value in meta.items()
        if isinstance(key, str) and key and len(key) <= 8 and isinstance(value, kinds) and "\n" not in str(value)
    }


def _measure(images, sources, wanted, config, still):
    """Coarse step, then every band; `_Found`. ``still``: band -> known motion of each source, to be taken off."""
    ground = [band for band in wanted if images[band].side == "ground"]
    n = len(sources.label)
    if n < 2:
        return _Found(ground, [], None, "abstain", f"only {n} sources in the reference image", None)
    match = measurement.coarse_match(images, sources)
    believed = (
        match is not None
        and match.significance > config.coarse_significance
        and match.significance > config.coarse_rival * match.rival
    )
    start = match.offset if believed else np.zeros(2)
    parts = []
    for band in wanted:
        image = images[band]
        part = measurement.measure_band(image, sources, start if image.side == "ground" else np.zeros(2))
        parts.append(part.without(*still[band]) if band in still else part)
    found = _judged(images, sources, ground, parts, config, match, believed)
    if found.verdict != "abstain":
        return found
    alone = believed and match.significance > max(config.alone_significance, config.alone_rival * match.rival)
    most = max(int(p.usable.sum()) for p in parts if p.band in ground)
    if alone and most >= sources.config.min_sources:  # two or three sources correlate well with anything
        reason = "single sources do not agree on an offset; the cross-correlation of the images does"
        return _Found(ground, parts, None, "coarse", reason, match)
    strength = "none" if match is None else f"{match.significance:.1f} sigma, next {match.rival:.1f}"
    found.reason += f"; correlation peak {strength}"
    return found


def _judged(images, sources, frame, parts, config, match=None, believed=False):
    """Do single sources of the bands ``frame`` support an offset? `_Found`."""
    deciding = [p for p in parts if p.band in frame]
    agreeing = [p for p in deciding if p.agrees]
    joint = measurement.combine(agreeing) if agreeing else None
    if joint is not None and joint.usable.sum() >= config.few.fewer_than:
        return _Found(frame, parts, joint, "ok", "", match)
    most = max((int(p.usable.sum()) for p in deciding), default=0)
    asked = joint is not None or most < config.few.fewer_than
    few = _few_sources(images, sources, deciding, config.few) if asked else None
    told = f"at best {most} usable sources in a ground band, and they do not agree"
    if few is not None:
        told = f"{few.n_source} sources in {few.n_band} band{'s' * (few.n_band > 1)}"
        agree = few.evidence > (0.0 if believed else config.few.evidence)
        fine = few.sigma < config.fine_error
        if few.evidence < 0:
            told += " do not agree"
        elif not agree:
            told += " are too faint to tell whether they agree"
        elif not fine:
            told += f" tell the offset to {few.sigma:.0f} mas only"
        if agree and few.sigma < config.most_error:
            joint = measurement.combine([p for p in deciding if p.usable.any()])
            return _Found(frame, parts, joint, "ok" if fine else "coarse", told, match, few)
    elif most < 2:
        told = f"{'one usable source' if most else 'no usable source'} in the ground bands, and two are needed"
    return _Found(frame, parts, None, "abstain", f"no common offset: {told}", match)


def _star_table(images, sources, stars, bands, model, meta, config):
    """The offsets of bands from a catalogue, measured on its stars."""
    sources = replace(sources, point=np.zeros_like(sources.point))  # no star moves by more than the catalogue says
    star, seen = _matched(stars, sources, config)
    parts = [catalogue_tie.star_offsets(images[band], sources, stars, star, config.tie) for band in bands]
    found = _judged(images, sources, bands, parts, config)
    if found.verdict == "abstain":
        most = max(int(p.usable.sum()) for p in parts)
        used = f"{most} of {seen} stars of the reference on the image {'are' if most != 1 else 'is'} of use"
        found.reason = f"{used}, and two are needed" if most < 2 else f"{used}: {found.reason}"
    return _table(images, sources, found, {}, model, meta, config, scene_frame="joint")


def _matched(stars, sources, config):
    return catalogue_tie.matched_stars(stars, sources, config.tie, config.measurement.agree_share)


def _logged(offsets):
    """The result, after a warning if its verdict is not "ok"."""
    if offsets.meta["verdict"] != "ok":
        log.warning("alignment %s: %s", offsets.meta["verdict"], offsets.meta["reason"])
    return offsets


def _few_sources(images, sources, ground, config):
    """`FewSources` of the bands with usable sources; None if these are fewer than two sources."""
    parts = [p for p in ground if p.usable.any()]
    if not parts or np.any([p.usable for p in parts], axis=0).sum() < 2:
        return None
    years = [_years(images[p.band], sources) for p in parts]
    size = np.sqrt(np.asarray(sources.table["a"], float) * np.asarray(sources.table["b"], float))
    expected = [few_sources.expected_scatter(sources.point, size, y, config) for y in years]
    return few_sources.agreed_shift(parts, expected, config)


def _years(image, sources):
    """Epoch of an image less that of the reference, years; NaN where unknown."""
    return epochs.epoch(image.wcs) - epochs.epoch(sources.reference.wcs)


def _scalars(part, sources):
    """Classical numbers for the network: (n, N_SCALAR), finite, of order one."""
    sigma = np.sqrt(np.trace(part.cov, axis1=1, axis2=2) / 2)
    a, b = (np.asarray(sources.table[c], float) for c in ("a", "b"))
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = [
            np.log(part.snr) / 3 - 1, np.log(sigma) / 3 - 1, np.log(a) + 1.5, np.log(b / a),
            np.log(part.chi2), np.log(part.amplitude),
        ]
    return np.clip(np.nan_to_num(np.stack(columns, -1), posinf=0, neginf=0), -4, 4).astype(np.float32)


def _table(images, sources, found, extras, model, meta, config, scene_frame=None):
    """The result: rows per band, fields, verdict."""
    n = len(sources.label)
    eye = np.eye(2)
    parts = list(found.parts)
    if found.joint is not None:
        parts.append(found.joint)
        agreeing = [p for p in found.parts if p.agrees and p.band in found.frame]
        if extras:  # this scatter is common to all bands, so it does not average down
            extras["joint"] = np.max([np.where(p.usable, extras[p.band], 0.0) for p in agreeing], axis=0)
    scatter = {part.band: sources.scatter(*([extras[part.band]] if extras else [])) for part in parts}
    covs = {part.band: part.cov for part in parts}
    verdict, reason = found.verdict, found.reason
    models, fits = {}, {}
    if found.few is not None:
        models = dict(found.few.fields)
        for part in parts:
            if part.band in models:
                count = int(part.usable.sum())
                fits[part.band] = FieldFit(models[part.band], np.ones(count), np.zeros(count, bool), None, np.zeros(2))
                covs[part.band] = covs[part.band] + (found.few.scatter[part.band] ** 2)[:, None, None] * eye
    elif found.verdict == "ok":
        years = {part.band: np.nan_to_num(_years(images[part.band], sources)) for part in found.parts}
        years["joint"] = np.sqrt(np.mean([years[part.band] ** 2 for part in agreeing]))
        for band in covs:  # of unknown epochs the scatter of stars is only fitted
            covs[band] = covs[band] + (sources.point * (epochs.MOTION * years[band]) ** 2)[:, None, None] * eye
        fields = {part.band: (part, covs[part.band]) for part in parts if part.agrees}
        sides = {band: "ground" if band in found.frame else "space" for band in fields if band != "joint"}
        fits = band_fields.band_fields(sources.east_north, fields, sides, scatter, model, sources.config.field)
        models = {band: fit.model for band, fit in fits.items()}
        apart, spread = band_fields.disagreement(fits, sides, sources.config.field)
        if apart:
            verdict = "coarse"
            reason = "ground bands disagree: " + ", ".join(f"{band} by {size:.0f} mas" for band, size in apart.items())
            models["joint"] = offset_field.widened(models["joint"], spread)
        for band, fit in fits.items():
            covs[band] = covs[band] + (scatter[band] ** 2 @ fit.floor**2)[:, None, None] * eye
    elif found.verdict == "coarse":
        models["joint"] = offset_field.constant(1e3 * found.match.offset, config.coarse_error)
    if "joint" in models:
        for part in found.parts:
            if part.band not in models and part.band in found.frame:
                models[part.band] = {**models["joint"], "borrowed": "joint"}
    tables = []
    for part in parts if found.joint is not None else [*parts, None]:
        band = "joint" if part is None else part.band
        tables.append(_rows(sources, part, covs.get(band) if fits else None, fits.get(band)))
        if verdict == "coarse" and (band == "joint" or band in found.frame):
            tables[-1]["flags"] |= int(Flag.COARSE_ALIGNMENT)
            if not fits:
                _set_offset(tables[-1], found.match, config.coarse_error)
    result = vstack(tables, metadata_conflicts="silent") if n else tables[-1]
    low, high = extent([sources.reference])
    box = tuple(tuple(corner.tolist()) for corner in (low, high))
    solution = AstrometricSolution(verdict, reason, sources.reference.tangent_plane.center, box, models, scene_frame)
    result.meta.update(meta)
    result.meta.update(
        solution.to_meta(),
        score={band: fit.score for band, fit in fits.items()},
        coarse=None if found.match is None else {
            "d_ra_cosdec": float(1e3 * found.match.offset[0]), "d_dec": float(1e3 * found.match.offset[1]),
            "significance": found.match.significance, "rival": found.match.rival,
        },
    )
    return result


def _rows(sources, part, cov, fit):
    """The rows of one band; ``part`` None: nothing was measured; ``cov`` None: what was measured is not believed."""
    n = len(sources.label)
    table = QTable()
    table["label"] = sources.label
    table["sky_centroid"] = sources.table["sky_centroid"]
    table["band"] = np.full(n, "joint" if part is None else part.band, dtype="U16")
    offset, error, corr = np.full((n, 2), np.nan), np.full((n, 2), np.nan), np.full(n, np.nan)
    snr, weight, flags = np.full(n, np.nan), np.zeros(n), np.zeros(n, int)
    if part is not None:
        snr, flags = part.snr, part.flags.copy()
        if cov is not None:
            good = np.isfinite(part.offset).all(1) & (flags & int(Flag.LOW_SNR) == 0)
            offset[good] = part.offset[good]
            error[good] = np.sqrt(cov[good][:, [0, 1], [0, 1]])
            corr[good] = cov[good, 0, 1] / error[good].prod(1)
        if fit is not None:
            weight[part.usable] = fit.weight
            flags[np.flatnonzero(part.usable)[fit.outlier]] |= int(Flag.OUTLIER)
    if fit is None:
        flags |= int(Flag.UNALIGNED)
    for axis, column in enumerate(("d_ra_cosdec", "d_dec")):
        table[column] = offset[:, axis] * MAS
    for axis, column in enumerate(("d_ra_cosdec", "d_dec")):
        table[f"{column}_err"] = error[:, axis] * MAS
    table["corr"] = corr
    table["snr"] = snr
    table["weight"] = weight
    table["flags"] = flags
    return table


def _set_offset(table, match, error):
    """Give all rows of a ground band the offset of the cross-correlation."""
    for axis, column in enumerate(("d_ra_cosdec", "d_dec")):
        table[column] = 1e3 * match.offset[axis] * MAS
        table[f"{column}_err"] = error * MAS
    table["corr"] = 0.0
    table["flags"] &= ~int(Flag.UNALIGNED)


def _correct(wcs, solution, band, form, shape=None):
    """Corrected WCS and its largest approximation error in mas; ``shape`` (ny, nx) where the image is known."""
    if form not in corrected_wcs.FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, corrected_wcs.FORMS))}; got {form!r}")
    solution.require_fields()
    new, residual = corrected_wcs.corrected(wcs, solution, band, form, shape)
    log.info("corrected WCS (%s, %s): largest approximation error %.3f mas", band, form, residual)
    return new, residual
