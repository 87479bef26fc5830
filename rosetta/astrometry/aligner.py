# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""`LearnedAligner`: the two surveys on one astrometric frame, with errors and a verdict."""

import logging
from dataclasses import replace

import astropy.units as u
import numpy as np
from astropy.nddata import CCDData, StdDevUncertainty, VarianceUncertainty
from astropy.wcs import WCS
from scipy.interpolate import RectBivariateSpline

from ..arithmetic import plain_arithmetic
from ..detection.detection import detected
from ..head import Head
from ..images.image import band_images
from ..images.positions import given_positions, offset_coord
from ..pair import SIDES, SkyPair
from ..training.loop import TrainerConfig
from ..training.rows import joined_rows
from . import corrected_wcs, excess_noise, measurement
from . import field as offset_field
from .config import AlignerConfig
from .field_fit import predict_held_out
from .offsets_table import offsets_table
from .reference_stars import reference_stars
from .solution import AlignmentError, as_solution
from .tied_offsets import stars_among, table_from_stars, tied
from .verdict import measured_bands, years_apart

__all__ = ["AlignerConfig", "AlignmentError", "LearnedAligner"]

log = logging.getLogger("rosetta")

MAS = u.mas
MIN_ROWS = 20  # sources to learn from


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
            Stars, as Gaia's archive gives them, whose positions are the reference in place of an image's:
            ``ra``, ``dec`` (or ``sky_centroid``) and ``ref_epoch`` (Julian years; or ``obstime``), and where known
            ``pmra``, ``pmdec`` (mas / yr), ``ra_error``, ``dec_error``, ``pmra_error``, ``pmdec_error`` and
            ``parallax`` (mas), which counts as an error. Each star is moved to the epoch of the image. With both sides
            the reference image is tied to the stars, and all other bands to the reference image; the ground alone is
            tied directly.

        Returns
        -------
        `~astropy.table.QTable`
            A row per source and band: ``label``, ``sky_centroid`` (in the reference image's header), ``band`` (a band,
            or "joint": the offset of all ground bands together), ``d_ra_cosdec``, ``d_dec`` and their errors (mas),
            ``corr`` (correlation of the two errors), ``snr``, ``weight`` (0: not used in the field), ``flags``.
            ``meta``: ``verdict`` ("ok", "coarse": known to worse than 30 mas, or ground bands disagree; ground rows are
            flagged COARSE_ALIGNMENT, and where only the cross-correlation worked they hold its offset, and space bands
            have none; or "abstain": offsets are NaN and rows are flagged UNALIGNED), ``reason``, ``center``, ``box``,
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
            return _logged(table_from_stars(images, sources, stars, wanted, model, meta, self._config))
        motions = {}
        if stars is not None:
            star, _ = stars_among(stars, sources, self._config)
            years = {band: years_apart(images[band], sources) for band in wanted}
            if np.isfinite(list(years.values())).all():
                motions = {band: stars.motion_in(years[band], star) for band in wanted}
                sources = replace(sources, point=sources.point & (star < 0))
        found = measured_bands(images, sources, wanted, self._config, motions)
        excess = {}
        if self._provenance.get("trained") and found.few is None:  # it has learned from fields of many sources
            tokens = self._tokens(embedding, sources)
            for part in found.parts:
                excess[part.band] = excess_noise.excess_noise(self._network, *tokens, _scalars(part, sources))
        offsets = offsets_table(images, sources, found, excess, model, meta, self._config)
        if stars is not None:
            tie = table_from_stars(images, sources, stars, [sharpest], "auto", meta, self._config)
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
        return corrected_within(wcs, as_solution(offsets), band, form)[0]

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
            wcs, residual = corrected_within(image.wcs, solution, band, "sip", image.data.shape)
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
        found = measured_bands(images, sources, wanted, self._config, {})
        if found.verdict != "ok":
            log.warning("pairs[%d] left out of training: %s", index, found.reason)
            return None
        tokens = self._tokens(pair, sources)
        if truth is not None and len(truth):
            true = given_positions(truth["sky_centroid"], "truth")
            match, apart, _ = sources.table["sky_centroid"].match_to_catalog_sky(true)
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
            what = reference or "the catalogue"
            raise ValueError(f"bands: {name!r} cannot be measured against {what}; this pair has: {known}")
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


def _logged(offsets):
    """The result, after a warning if its verdict is not "ok"."""
    if offsets.meta["verdict"] != "ok":
        log.warning("alignment %s: %s", offsets.meta["verdict"], offsets.meta["reason"])
    return offsets


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


def corrected_within(wcs, solution, band, form, shape=None):
    """Corrected WCS and its largest approximation error in mas; ``shape`` (ny, nx) where the image is known."""
    if form not in corrected_wcs.FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, corrected_wcs.FORMS))}; got {form!r}")
    solution.require_fields()
    new, residual = corrected_wcs.corrected(wcs, solution, band, form, shape)
    log.info("corrected WCS (%s, %s): largest approximation error %.3f mas", band, form, residual)
    return new, residual
