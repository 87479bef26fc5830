# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Noise-free tiles as a survey would deliver them: for training the heads."""

from collections.abc import Sequence

import astropy.units as u
import numpy as np
from astropy.nddata import NDData, VarianceUncertainty
from scipy import fft

from ..pair import SkyPair
from . import artefacts
from .noise import equivalent_sigma, sky_noise, source_variance
from .psf import FieldPSF
from .reader import TrainingSet

__all__ = ["ObservedSet", "observe"]

_SEEING = (0.85, 1.25)  # ground PSF widths relative to the nominal ones
_DEPTH = (-1.0, 0.2)  # magnitudes added to the nominal depths of a side
_EDGE = 2.0  # arcsec at the border of a tile that lack the light of sources beyond it
_CUT = 1e-3  # of the base PSF's transform, below which it is not divided by


def observe(pair, *, seed):
    """Give a noise-free pair the PSFs, depths, noise and blemishes of an observation.

    Each side has one seeing and one depth relative to the survey's nominal ones, and each band a PSF of its own,
    one over the field. The tile's own PSF is replaced by the ratio of Fourier transforms; what the survey's PSF has
    beyond the tile's resolution is lost, so that the PSF that is given is that of the pixels. The border of 2 arcsec
    is masked.

    Parameters
    ----------
    pair : `~rosetta.SkyPair`
        From `TrainingSet`.
    seed : int or sequence of int

    Returns
    -------
    `~rosetta.SkyPair`
    """
    rng = np.random.default_rng(seed)
    sides = {"ground": {}, "space": {}}
    nominal = {side: rng.uniform(*_SEEING) if side == "ground" else 1.0 for side in sides}
    depth = {side: rng.uniform(*_DEPTH) for side in sides}
    for side, name, image in pair.images():
        survey = pair.survey(side)
        sides[side][name] = _observe_band(
            np.random.default_rng(rng.integers(2**63, size=4)), image, survey, survey[name], side, nominal[side],
            survey[name].depth + depth[side],
        )
    return SkyPair(sides["ground"] or None, sides["space"] or None, surveys=pair.surveys)


def _observe_band(rng, image, survey, band, side, seeing, depth):
    ground = side == "ground"
    scale = survey.pixel_scale.to_value(u.arcsec)
    fwhm = band.psf_fwhm.to_value(u.arcsec) * seeing
    wanted = FieldPSF(rng, survey, band, ground, fwhm, half_size=50.0).image()
    data, psf = _with_psf(image.data, image.psf, wanted)
    sigma = equivalent_sigma(psf, depth)
    photon = source_variance(data, sigma, scale, band.pivot.to_value(u.nm), ground)
    native = scale if band.native_pixel is None else band.native_pixel.to_value(u.arcsec)
    data = data + sky_noise(rng, data.shape, psf, depth, round(native / scale))
    data += rng.normal(size=data.shape) * np.sqrt(photon)
    mask, _ = artefacts.add(
        rng, data, pixel_scale=scale, saturation_level=10 ** (0.4 * (31.4 - survey.saturation)) * psf.max(),
        sky_sigma=sigma, side=side, rates=artefacts.MASKED, psf_fwhm=fwhm, bleeds=band.native_pixel is None,
    )
    border = int(np.ceil(_EDGE / scale))
    mask[:border] = mask[-border:] = mask[:, :border] = mask[:, -border:] = True
    return NDData(
        data.astype(np.float32),
        uncertainty=VarianceUncertainty((sigma**2 + photon).astype(np.float32)),
        mask=mask, wcs=image.wcs, unit=u.nJy, psf=psf,
        meta={"survey": survey.name, "band": band.name, "depth": float(depth), "psf_fwhm": float(fwhm)},
    )


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

    Attributes
    ----------
    truth : sequence of `~astropy.table.QTable`
        Parallel to the pairs, and as lazy; the ground astrometry has no error.
    """

    def __init__(self, directory, *, seed=0):
        self._tiles, self._seed = TrainingSet(directory), seed
        self.truth = _Truth(self._tiles)

    def __len__(self):
        return len(self._tiles)

    def __getitem__(self, index):
        """The pair of one tile."""
        index = range(len(self))[index]
        return observe(self._tiles[index], seed=[self._seed, index])


class _Truth(Sequence):
    def __init__(self, tiles):
        self._tiles = tiles

    def __len__(self):
        return len(self._tiles)

    def __getitem__(self, index):
        return self._tiles.truth(range(len(self))[index])
