# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""`CrossSurveyEncoder`: one frozen network that reads the same sky in either survey."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.nddata import NDData

from .. import checkpoint
from ..arithmetic import plain_arithmetic
from ..embedding import SkyEmbedding
from ..flags import Flag
from ..images.image import band_images, extent
from ..images.positions import given_positions
from ..pair import SIDES, SkyPair
from ..surveys import PIXEL_SCALE
from . import familiar, inference, windows
from .network import EncoderConfig
from .pretraining import TrainConfig
from .training_tiles import training_tiles

__all__ = ["CrossSurveyEncoder"]

JUDGED = 0.95  # share of a window that must be seen to tell whether its sky is strange: missing pixels look strange too
AT_ONCE = 64  # positions read at a time
BATCH = 8  # windows encoded at a time: bounds the memory, whatever the size of the field


class CrossSurveyEncoder:
    """Joint-embedding encoder of two surveys.

    A vision transformer reads 16 x 16 pixel patches of either survey; matched windows of one sky are pulled together
    (NT-Xent, Chen et al. 2020) and a predictor gives one survey's tokens from the other's (the P of JEPA,
    Assran et al. 2023). A new instance is untrained; `from_pretrained` loads weights.

    Parameters
    ----------
    config : `~rosetta.encoding.network.EncoderConfig`, optional
        Sizes of the network; None: those of the bundled one.
    seed : int
        Seed of the initial weights.
    device : str, optional
        "cpu", "cuda" or "cuda:N"; None: CUDA where there is one.

    Examples
    --------
    >>> from rosetta import CrossSurveyEncoder
    >>> encoder = CrossSurveyEncoder.from_pretrained(device="cpu")
    >>> encoder
    <CrossSurveyEncoder ...>
    """

    @plain_arithmetic
    def __init__(self, *, config=None, seed=0, device=None):
        config = EncoderConfig() if config is None else config
        self._set(config, inference.Model.seeded(config, seed), device, {"trained": False, "seed": seed})

    def _set(self, config, model, device, provenance):
        self._config, self._provenance = config, provenance
        self._device = checkpoint.device_of(device)
        self._model = model.to(self._device).eval()
        self._fingerprint = None  # not known until it is asked for

    @classmethod
    @plain_arithmetic
    def from_pretrained(cls, path=None, *, device=None):
        """Load a trained encoder.

        Parameters
        ----------
        path : path-like, optional
            A checkpoint written by `save`. None: the bundled one.
        device : str, optional
            "cpu", "cuda" or "cuda:N"; None: CUDA where there is one.

        Returns
        -------
        `CrossSurveyEncoder`

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is corrupted, from a newer format, of another architecture or a pickle; or if the device is
            not there.
        """
        path = Path(path) if path is not None else checkpoint.bundled("encoder")
        found = checkpoint.load(path, kind="encoder")
        config = checkpoint.config_of(EncoderConfig, found.config, path.name)
        if max(config.depth, config.predictor_depth) > len(found.tensors):
            raise checkpoint.CheckpointError(
                f"{path.name} is of another architecture: more blocks than it has tensors ({len(found.tensors)})"
            )
        device = checkpoint.device_of(device)
        model = checkpoint.restore(lambda: inference.Model(config), found.tensors, path.name, device)
        encoder = cls.__new__(cls)
        encoder._set(config, model, device, found.provenance)
        return encoder

    config = property(lambda self: self._config, doc="Sizes of the network (`EncoderConfig`).")
    model = property(lambda self: self._model, doc="The network (`rosetta.encoding.inference.Model`), frozen.")

    @property
    def fingerprint(self):
        """Sixteen hex digits that name these weights."""
        if self._fingerprint is None:
            self._fingerprint = checkpoint.fingerprint_of("encoder", self._model.packed(), asdict(self._config))
        return self._fingerprint

    @property
    def provenance(self):
        """Where the weights came from: how and on how much they were trained, and what was measured (dict)."""
        return dict(self._provenance)

    @property
    def device(self):
        """Where the encoder computes (`torch.device`)."""
        return self._device

    def save(self, path):
        """Write the encoder to a file.

        Weights are kept on bfloat16 values at all times, so the file and this instance agree exactly.

        Parameters
        ----------
        path : path-like
            Ends in ``.safetensors``; replaced, whole or not at all, if it exists.

        Returns
        -------
        str
            The encoder's fingerprint.
        """
        return checkpoint.save(
            path, self._model.packed(), kind="encoder", config=asdict(self._config), provenance=self._provenance
        )

    @plain_arithmetic
    def __call__(self, pair, *, window=38.4 * u.arcsec, centers=None, progress=None):
        """Embed a pair.

        Parameters
        ----------
        pair : `~rosetta.SkyPair`
        window : `~astropy.units.Quantity`
            Side of the windows: a multiple of 3.2 arcsec, at least 12.8 arcsec. Smaller fields are read in windows of
            the largest allowed side that fits into them.
        centers : `~astropy.coordinates.SkyCoord`, shape (n,), optional
            Centres of the windows, which then have the side ``window`` whatever the field; those without a valid pixel
            are left out. None: windows cover the field, and none hangs over its edges.
        progress : callable, optional
            Called as ``progress(done, total)`` after every few windows of a side.

        Returns
        -------
        `~rosetta.SkyEmbedding`

        Raises
        ------
        TypeError
            If ``pair`` is not a `~rosetta.SkyPair`.
        ValueError
            If ``window`` is not an allowed size.
        """
        if not isinstance(pair, SkyPair):
            raise TypeError(f"pair must be a SkyPair, got {type(pair).__name__}: wrap the images in SkyPair(...)")
        images = list(band_images(pair).values())
        window = _checked_window(window)
        if centers is None:
            window = windows.fitting_window(images, window)
            centers = windows.window_grid(images, window)
        else:
            centers = given_positions(centers, "centers")
        sides, done = {}, 0
        of_sides = {side: [image for image in images if image.side == side] for side in SIDES}
        of_sides = {side: of_side for side, of_side in of_sides.items() if of_side}

        def report(n_window):
            nonlocal done
            done += n_window
            if progress is not None:
                progress(done, len(of_sides) * len(centers))

        for side, of_side in of_sides.items():
            sides[side] = self._embed_side(side, of_side, centers, window, report)
        looked = {side: arrays["coverage"] > 0 for side, arrays in sides.items()}
        seen = np.any(list(looked.values()), axis=0)
        for side, arrays in sides.items():
            others = [at for other, at in looked.items() if other != side]
            lonely = ~others[0] if others else seen
            arrays["flags"][lonely] |= int(Flag.ONE_SIDED)
            sides[side] = {name: array[seen] for name, array in arrays.items()}
        files = {band: image.meta.get("file") for _, band, image in pair.images()}
        inputs = {
            image.band: {
                "survey": pair.survey_name(image.side),
                **({"file": str(files[image.band])} if files[image.band] else {}),
                "side": image.side,
                "shape": list(image.data.shape),
                "depth": round(image.depth, 3),
                "psf_fwhm": round(image.fwhm, 4),
                "flags": int(image.flags),
            }
            for image in images
        }
        fingerprint = self.fingerprint
        meta = {
            "inputs": inputs,
            "encoder_fingerprint": fingerprint,
            "window": f"{window:.1f} arcsec",
            "versions": checkpoint.versions(),
        }
        return SkyEmbedding(
            pair, fingerprint=fingerprint, window=window * u.arcsec, centers=centers[seen], sides=sides, meta=meta,
            encoder=self,
        )  # fmt: skip

    def _embed_side(self, side, images, centers, window, report):
        knots = self._config.knots(side)
        parts = []
        for start in range(0, len(centers), BATCH):
            view = windows.side_view(images, centers[start : start + BATCH], window, knots)
            parts.append(inference.encode(self._model, side, view))
            report(len(view.pixels))
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        flags = np.zeros(len(centers), int)
        for image in images:
            flags |= int(image.flags)
            if windows.is_extrapolated(image.wavelength, knots):
                flags |= int(Flag.BAND_EXTRAPOLATED)
        empty = arrays["coverage"] == 0
        for name in ("tokens", "cls", "embedding", "ood_score"):
            arrays[name][empty] = np.nan  # nothing was seen here: no answer, rather than that of an empty sky
        flags[empty] |= int(Flag.NO_DATA)
        partial = arrays["coverage"] < JUDGED
        arrays["ood_score"][partial] = np.nan
        flags[partial] |= int(Flag.LOW_COVERAGE)
        flags[arrays["ood_score"] > 1] |= int(Flag.OUT_OF_DISTRIBUTION)
        arrays["flags"] = flags
        return arrays

    @plain_arithmetic
    def at(self, x, coord, survey):
        """The representation at sky positions, each read in a small window that is centred on it.

        What a token tells of a source depends on where in its patch the source lies. So the images are encoded again,
        with each position in the middle of a patch.

        Parameters
        ----------
        x : `~rosetta.SkyPair` or `~rosetta.SkyEmbedding`
            Its images are read.
        coord : `~astropy.coordinates.SkyCoord`, shape (n,)
            By the WCS of the survey's images.
        survey : str or `~rosetta.Survey`
            "ground", "space" or the survey.

        Returns
        -------
        ndarray, shape (n, 384), float32
            NaN where the survey has no valid pixel in the patch of the position.

        Raises
        ------
        TypeError
            If ``x`` is neither a pair nor an embedding.
        ValueError
            If the survey is not known or has no images here, or the embedding is of another encoder.
        """
        side, images = self._images_of(x, survey)
        coord = given_positions(coord, "coord")
        found = np.full((len(coord), self._config.dim), np.nan, np.float32)
        inside = np.flatnonzero(windows.on_images(images, coord))
        for start in range(0, len(inside), AT_ONCE):
            some = inside[start : start + AT_ONCE]
            view = windows.side_view(images, coord[some], inference.READ_OUT[side], self._config.knots(side))
            found[some] = inference.read_out(self._model.encoder, side, view)
        return found

    @plain_arithmetic
    def attention(self, x, coord, survey, *, window=38.4 * u.arcsec):
        """Where the token at a sky position looks, in every layer and head.

        Parameters
        ----------
        x : `~rosetta.SkyPair` or `~rosetta.SkyEmbedding`
            Its images are read.
        coord : `~astropy.coordinates.SkyCoord`
            One position; the window is centred on it.
        survey : str or `~rosetta.Survey`
            "ground", "space" or the survey.
        window : `~astropy.units.Quantity`
            Side of the window, as for encoding; less by one patch where that is an even number of patches.

        Returns
        -------
        `~astropy.nddata.NDData`, data of shape (n_layer, n_head, ny, nx)
            Share of attention on every patch. ``wcs`` is that of the last two axes, one pixel per patch, the middle one
            at ``coord``. ``meta``: ``cls``, the share on CLS (n_layer, n_head), with which all shares of a head sum to
            one; ``survey`` (the side) and ``encoder_fingerprint``.

        Raises
        ------
        TypeError
            If ``x`` is neither a pair nor an embedding.
        ValueError
            If the survey is not known or has no images here, the embedding is of another encoder, ``coord`` is not one
            position on the images, or ``window`` is not an allowed size.
        """
        side, images = self._images_of(x, survey)
        coord = given_positions(coord, "coord")
        if len(coord) != 1:
            raise ValueError(f"coord has {len(coord)} positions: attention is of one")
        if not windows.on_images(images, coord)[0]:
            raise ValueError(f"coord lies outside of the {side} images: ask for a position on them")
        pitch = windows.PATCH * PIXEL_SCALE[side]
        count = int(round(_checked_window(window) / pitch))
        count -= 1 - count % 2
        view = windows.side_view(images, coord, count * pitch, self._config.knots(side))
        weights = inference.look(self._model.encoder, side, view)[0]  # (n_layer, n_head, 1 + n_token)
        return NDData(
            weights[..., 1:].reshape(*weights.shape[:2], count, count),
            wcs=windows.patch_wcs(coord[0], pitch, count),
            meta={"survey": side, "cls": weights[..., 0], "encoder_fingerprint": self.fingerprint},
        )

    def _images_of(self, x, survey):
        """The side called ``survey``, and the images that a pair, or the pair of an embedding, has of it."""
        if isinstance(x, SkyEmbedding):
            if x.fingerprint != self.fingerprint:
                raise ValueError(f"x was embedded by encoder {x.fingerprint}, this is {self.fingerprint}: give x.pair")
            x = x.pair
        if not isinstance(x, SkyPair):
            raise TypeError(f"x must be a SkyPair or a SkyEmbedding, got {type(x).__name__}")
        side = x.side_of(survey)
        images = [image for image in band_images(x).values() if image.side == side]
        if not images:
            raise ValueError(f"x has no {side} images to read: ask for the other survey, or give a pair with both")
        return side, images

    @plain_arithmetic
    def predict(self, embedding, survey):
        """Predict the tokens and the embedding of ``survey`` from those of the other survey.

        Parameters
        ----------
        embedding : `~rosetta.SkyEmbedding`
            Holding the other side.
        survey : str or `~rosetta.Survey`
            The survey to predict: "ground", "space" or the survey.

        Returns
        -------
        `~rosetta.SkyEmbedding`
            With the one side ``survey``; its tokens lie on the survey's ideal grid. Observing conditions are those
            of ``embedding`` where it has that side, else the survey's nominal ones.

        Raises
        ------
        ValueError
            If the embedding is of another encoder or lacks the other side.
        """
        if not isinstance(embedding, SkyEmbedding):
            raise TypeError(f"embedding must be a SkyEmbedding, got {type(embedding).__name__}")
        if embedding.fingerprint != self.fingerprint:
            raise ValueError(
                f"embedding was made by encoder {embedding.fingerprint}, this is {self.fingerprint}: embed it again"
            )
        target = embedding.pair.side_of(survey)
        source = SIDES[1 - SIDES.index(target)]
        if source not in embedding.sides:
            raise ValueError(f"embedding has no {source} side to predict {getattr(survey, 'name', survey)!r} from")
        window = embedding.window.to_value(u.arcsec)
        conditions = windows.observing_conditions(embedding.pair, target, self._config.knots(target))
        positions = windows.ideal_offsets(target, window)
        arrays = inference.predict(self._model, embedding.sides[source], target, positions, conditions, BATCH)
        arrays["coverage"] = embedding.sides[source]["coverage"].copy()
        arrays["flags"] = embedding.sides[source]["flags"].copy()
        return SkyEmbedding(
            embedding.pair,
            fingerprint=embedding.fingerprint,
            window=embedding.window,
            centers=embedding.centers,
            sides={target: arrays},
            meta={**embedding.meta, "predicted_from": source},
            encoder=self,
        )

    @plain_arithmetic
    def search(self, embedding, other, *, reach):
        """Find the windows of one embedding in another, wherever they lie in its windows.

        An embedding contains the positions of sources as phases of plane waves. So windows whose centres differ by two
        arcsec are not similar, for instance if a header is wrong. Here every window is shifted to all positions on a
        disc, encoded again, and compared each time.

        Parameters
        ----------
        embedding : `~rosetta.SkyEmbedding`
            Its images are encoded again, about two and a half times per square arcsec of the disc.
        other : `~rosetta.SkyEmbedding`
            Where to look.
        reach : `~astropy.units.Quantity`
            Radius of the disc, an angle.

        Returns
        -------
        `~astropy.table.QTable`
            Parallel to ``embedding.to_table()``: ``survey``, ``sky_center``; ``row`` of ``other.to_table()`` that is
            most similar, ``similarity``, the cosine there, and ``sky_match``, where the window's centre lies by that
            one's coordinates, to some 0.3 arcsec. Windows without data: -1 and NaN.

        Raises
        ------
        ValueError
            If either embedding is of another encoder, their windows differ, ``embedding`` was predicted, or ``reach``
            is no positive angle.
        """
        for name, one in (("embedding", embedding), ("other", other)):
            if not isinstance(one, SkyEmbedding):
                raise TypeError(f"{name} must be a SkyEmbedding, got {type(one).__name__}")
            if one.fingerprint != self.fingerprint:
                raise ValueError(
                    f"{name} was made by encoder {one.fingerprint}, this is {self.fingerprint}: embed it again"
                )
        if embedding.window != other.window:
            raise ValueError(
                f"other has windows of {other.window:g}, embedding of {embedding.window:g}: use one window for both"
            )
        shifts = inference.disc(_checked_reach(reach))
        target = np.concatenate([arrays["embedding"] for arrays in other.sides.values()])  # (n_other, proj_dim)
        images = list(band_images(embedding.pair).values())
        window = embedding.window.to_value(u.arcsec)
        rows, cosine, place = [], [], []
        for side, arrays in embedding.sides.items():
            of_side = [image for image in images if image.side == side]
            if "seen" not in arrays:
                raise ValueError(f"embedding has a {side} side that was predicted, without images to read again")
            for start in range(0, len(embedding.centers), BATCH):
                some = slice(start, start + BATCH)
                view = windows.side_view(of_side, embedding.centers[some], window, self._config.knots(side))
                found = inference.moved(self._model, side, view, shifts) @ target.T  # (n_shift, n, n_other)
                found = np.where(np.isfinite(found) & (arrays["coverage"][some, None] > 0), found, -np.inf)
                rows.append(found.max(0).argmax(1))
                cosine.append(found.max((0, 2)))
                place.append(shifts[found.max(2).argmax(0)])
        row, cosine, place = (np.concatenate(part) for part in (rows, cosine, place))
        centers = other.centers[row % len(other.centers)]
        table = embedding.to_table()["survey", "sky_center"]
        table["row"] = np.where(np.isfinite(cosine), row, -1)
        table["similarity"] = np.where(np.isfinite(cosine), cosine, np.nan)
        place[~np.isfinite(cosine)] = np.nan
        table["sky_match"] = centers.spherical_offsets_by(*(place.T * u.arcsec))
        return table

    @plain_arithmetic
    def fit(self, pairs, *, config=None, validation=None, checkpoint=None, progress=None):
        """Train on pairs of images of one sky.

        Parameters
        ----------
        pairs : sequence of `~rosetta.SkyPair`
            Read one at a time. Noise-free pairs (``rosetta.simulate.TrainingSet``) get noise, PSF and depth anew in
            every window; those of images with noise are worsened, never improved.
        config : `~rosetta.encoding.pretraining.TrainConfig`
            Length, windows, batch sizes, learning rate, seed. None: an hour with the default settings.
        validation : sequence of `~rosetta.SkyPair`, optional
            Sky that never trains: for the retrieval gauge, and to calibrate the out-of-distribution score.
        checkpoint : path-like, optional
            Training state, written as the run goes; an interrupted run resumes from it.
        progress : callable, optional
            Called as ``progress(step, metrics)`` every ``config.log_every`` steps; metrics is a dict of floats: the
            loss and its terms, retrieval, cosine gap, effective rank, speed.

        Returns
        -------
        CrossSurveyEncoder
            Itself, trained.

        Raises
        ------
        TypeError
            If ``pairs`` is no sequence.
        ValueError
            If ``config`` sets no end, or no pair can be trained on, with the first reason.
        RuntimeError
            If the loss becomes NaN or the embedding collapses; the last good checkpoint is kept.
        """
        if not isinstance(pairs, Sequence) and not hasattr(pairs, "__getitem__"):
            raise TypeError("pairs must be a sequence of SkyPair")
        config = config or TrainConfig(max_minutes=60)
        tiles = training_tiles(pairs)
        held_out = training_tiles(validation) if validation is not None else []
        try:
            summary = inference.fit(self._model, tiles, held_out, config, checkpoint=checkpoint, callback=progress)
        finally:
            self._fingerprint = None
        self._provenance = {"trained": True, "train_config": asdict(config), "n_tiles": len(tiles), **summary}
        return self

    def calibrate(self, pairs, held_out, *, seed=0, progress=None):
        """Fit the out-of-distribution score to images as surveys deliver them; the network stays as it is.

        `fit` does it on its training sky. Images that users have differ from it (noise that is correlated, what is
        left of the sky, artefacts), and would look strange. Windows of all sizes are read at random places inside
        the fields, with all bands and with some.

        Parameters
        ----------
        pairs : sequence of `~rosetta.SkyPair`
            Ordinary sky, read one at a time: some thousand windows are needed.
        held_out : sequence of `~rosetta.SkyPair`
            Other sky. One window in a hundred of it is flagged ``OUT_OF_DISTRIBUTION``.
        seed : int
            Of the places and the bands.
        progress : callable, optional
            Called as ``progress(done, total)`` after every pair.

        Returns
        -------
        CrossSurveyEncoder
            Itself. Its fingerprint has changed: heads must be trained anew.

        Raises
        ------
        ValueError
            If one of the sequences holds no field of 12.8 arcsec or more on both sides.
        """
        sets, rng, done = [], np.random.default_rng(seed), 0
        for name, some in (("pairs", pairs), ("held_out", held_out)):
            sets.append(familiar.Familiar(self._model, seed))
            for index in range(len(some)):
                self._look_at(some[index], sets[-1], rng)
                done += 1
                if progress is not None:
                    progress(done, len(pairs) + len(held_out))
            if not all(sets[-1].count(side) for side in SIDES):
                raise ValueError(f"{name} holds no field of 12.8 arcsec or more on both sides: give larger ones")
        try:
            inference.set_novelty(self._model, *sets)
        finally:
            self._fingerprint = None
        self._provenance = {**self._provenance, "novelty": {"n_pair": [len(pairs), len(held_out)], "seed": seed}}
        return self

    def _look_at(self, pair, found, rng):
        """Add windows at random places of a pair, as much sky in windows of every size."""
        images = list(band_images(pair).values())
        lowest, highest = extent(images)
        for window in familiar.window_sizes(*familiar.SIZES):
            spare = highest - lowest - window
            if spare.min() < 0:
                continue
            n = int(np.ceil(0.5 * np.prod((highest - lowest) / window)))
            middle = (lowest + highest) / 2 + (rng.uniform(size=(n, 2)) - 0.5) * spare
            centers = images[0].tangent_plane.sky(middle)
            for side in SIDES:
                of_side = [image for image in images if image.side == side]
                for start in range(0, n if of_side else 0, BATCH):
                    some = centers[start : start + BATCH]
                    found.add(side, windows.side_view(of_side, some, window, self._config.knots(side)), JUDGED)

    def __repr__(self):
        trained = "trained" if self._provenance.get("trained") else "untrained"
        return f"<CrossSurveyEncoder {self.fingerprint}, {trained}, on {self._device}>"


def _checked_reach(reach):
    """Radius of a disc, arcsec."""
    try:
        radius = float(u.Quantity(reach).to_value(u.arcsec))
    except (TypeError, ValueError, u.UnitConversionError) as error:
        raise ValueError(f"reach must be an angle, such as 2 * u.arcsec; got {reach!r}") from error
    if not 0 < radius < np.inf:
        raise ValueError(f"reach is {radius:g} arcsec: it must be positive")
    return radius


def _checked_window(window):
    """Window side in arcsec: a multiple of 3.2, at least 12.8."""
    try:
        side = float(u.Quantity(window).to_value(u.arcsec))
    except (TypeError, ValueError, u.UnitConversionError) as error:
        raise ValueError(f"window must be an angle, such as 38.4 * u.arcsec; got {window!r}") from error
    if not np.isfinite(side):
        raise ValueError(f"window is {side} arcsec: it must be finite")
    steps = side / windows.STEP
    if side < 12.8 - 1e-6 or abs(steps - round(steps)) > 1e-6:
        raise ValueError(f"window is {side:g} arcsec: it must be a multiple of 3.2 arcsec, at least 12.8 arcsec")
    return round(round(steps) * windows.STEP, 1)
