# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Noise-free tiles as a survey would deliver them: for training the heads."""

from collections.abc import Sequence

import astropy.units as u
import numpy as np
from scipy import fft

from ..arithmetic import plain_arithmetic
from ..images.psf import PSF
from ..pair import SkyPair
from .delivered import STREAMS, deliver
from .delivery import REAL
from .psf import FieldPSF, drawn_width
from .reader import TrainingSet

__all__ = ["ObservedSet", "observe"]

_SEEING = (0.85, 1.25)  # ground PSF widths relative to the nominal ones
_DEPTH = (-1.0, 0.2)  # magnitudes added to the nominal depths of a side, in training
_EDGE = 2.0  # arcsec at the border of a tile that lack the light of sources beyond it
_CUT = 1e-3  # of the base PSF's transform, below which it is not divided by


@plain_arithmetic
def observe(pair, *, seed, delivery=REAL, depth=_DEPTH):
    """Give a noise-free pair the PSFs, depths, noise, sky and artefacts of an observation.

    Each side has one seeing and one depth relative to the survey's nominal ones, and each band a PSF of its own,
    one over the field. The tile's own PSF is replaced by the ratio of Fourier transforms; what the survey's PSF has
    beyond the tile's resolution is lost, so that the true PSF is that of the pixels. The border of 2 arcsec is
    masked.

    Parameters
    ----------
    pair : `~rosetta.SkyPair`
        From `TrainingSet`.
    seed : int or sequence of int
    delivery : Delivery
        As for `simulate_pair`.
    depth : (float, float)
        Range of the magnitudes that are added to the nominal depths of a side.

    Returns
    -------
    `~rosetta.SkyPair`
    """
    rng = np.random.default_rng(seed)
    sides, given = {"ground": {}, "space": {}}, {}
    nominal = {side: rng.uniform(*_SEEING) if side == "ground" else 1.0 for side in sides}
    deeper = {side: rng.uniform(*depth) for side in sides}
    for side, name, image in pair.images():
        survey = pair.survey(side)
        band, ground = survey[name], side == "ground"
        optics, *seeds = rng.integers(2**63, size=(1 + STREAMS, 2))
        optics = np.random.default_rng(optics)
        fwhm = drawn_width(optics, band, ground, nominal[side])
        wanted = FieldPSF(optics, survey, band, ground, fwhm, half_size=50.0).image()
        light, psf = _with_psf(image.data, image.psf, wanted)
        sides[side][name], given[name] = deliver(
            seeds, light, PSF(psf), survey, band, band.depth + deeper[side], image.wcs, delivery, ground=ground
        )
        border = int(np.ceil(_EDGE / survey.pixel_scale.to_value(u.arcsec)))
        mask = sides[side][name].mask
        mask[:border] = mask[-border:] = mask[:, :border] = mask[:, -border:] = True
    return SkyPair(sides["ground"] or None, sides["space"] or None, surveys=pair.surveys, psf=given)


def _with_psf(data, base, wanted):
    """The image with its PSF changed from ``base`` to ``wanted``, and the PSF it then has."""
    pad = max(*base.shape, *wanted.shape)
    shape = tuple(fft.next_fast_len(n + pad) for n in data.shape)
    low = _transform(base, shape)
    ratio = _transform(wanted, shape) * low.conj() / np.maximum(np.abs(low) ** 2, _CUT**2)
    # Never sharper than the tile: what is aliased in it would be raised too.
    ratio /= np.maximum(np.abs(ratio), 1.0)
    changed = fft.irfft2(fft.rfft2(data, shape) * ratio, shape)[: data.shape[0], : data.shape[1]]
    ny, nx = wanted.shape
    psf = np.roll(fft.irfft2(low * ratio, shape), (ny // 2, nx // 2), axis=(0, 1))[:ny, :nx]
    return changed, psf / psf.sum()


def _transform(psf, shape):
    """Of a PSF whose central pixel is moved to the corner of ``shape``."""
    padded = np.zeros(shape)
    padded[: psf.shape[0], : psf.shape[1]] = psf
    return fft.rfft2(np.roll(padded, (-(psf.shape[0] // 2), -(psf.shape[1] // 2)), axis=(0, 1)))


class ObservedSet(Sequence):
    """The tiles of a directory, observed one at a time as they are asked for.

    Parameters
    ----------
    directory : path-like
        Written by `write_training_set`.
    seed : int
        The same seed gives the same noise.
    delivery : Delivery
    depth : (float, float)
        As for `observe`.

    Attributes
    ----------
    truth : sequence of `~astropy.table.QTable`
        Parallel to the pairs, and as lazy; the ground astrometry has no error.
    """

    def __init__(self, directory, *, seed=0, delivery=REAL, depth=_DEPTH):
        self._tiles, self._seed = TrainingSet(directory), seed
        self._how = {"delivery": delivery, "depth": depth}
        self.truth = _Truth(self._tiles)

    def __len__(self):
        return len(self._tiles)

    def __getitem__(self, index):
        """The pair of one tile."""
        index = range(len(self))[index]
        return observe(self._tiles[index], seed=[self._seed, index], **self._how)


class _Truth(Sequence):
    def __init__(self, tiles):
        self._tiles = tiles

    def __len__(self):
        return len(self._tiles)

    def __getitem__(self, index):
        return self._tiles.truth(range(len(self))[index])
