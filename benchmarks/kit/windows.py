# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Noise-free tiles with their truth, and windows of them as the two surveys would observe them.

In training, observing conditions are drawn from wide ranges; here they are those of the surveys, one change at a time.
"""

import sys
from dataclasses import dataclass, replace

import astropy.units as u
import numpy as np
import torch
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS
from scipy import ndimage

from rosetta import SkyPair, surveys
from rosetta.encoding import observing, training_windows, windows
from rosetta.encoding.network import SIDES, EncoderConfig, View
from rosetta.encoding.training_tiles import training_tiles
from rosetta.images.image import band_images
from rosetta.images.positions import plain_icrs, tangent
from rosetta.simulate import TrainingSet
from rosetta.surveys import EUCLID, RUBIN

SURVEYS = {"ground": RUBIN, "space": EUCLID}
BANDS = RUBIN.band_names + EUCLID.band_names
SEEING = (0.85, 1.25)  # of a window, over the nominal one
DEPTH_SPREAD = 0.2  # mag; half the range of a band's depth
BATCH = 64  # windows in memory at a time


def nominal_sigma(band):
    """Flux error of a point source at the survey's nominal depth, nJy."""
    survey = RUBIN if band in RUBIN.band_names else EUCLID
    return 10 ** (0.4 * (31.4 - survey[band].depth)) / 5


@dataclass(frozen=True)
class Sky:
    """Tiles and what is on them.

    Parameters
    ----------
    tiles : list of `~rosetta.encoding.observing.Tile`
    truth : list of `~astropy.table.QTable`
        Of each tile, as from `TrainingSet.truth`.
    place : list of ndarray
        (east, north) of its sources about the tile centre, arcsec, (n_source, 2).
    """

    tiles: list
    truth: list
    place: list

    def snr(self, tile, band="VIS"):
        """Point-source signal-to-noise of a tile's sources at nominal depth, (n_source,)."""
        return self.truth[tile][f"flux_{band}"].to_value(u.nJy) / nominal_sigma(band)


def load(directory, n=None):
    """The first ``n`` tiles (None: all) of a directory written by ``rosetta simulate``."""
    found = TrainingSet(directory)
    tiles, truth, place = [], [], []
    for index in range(len(found) if n is None else min(n, len(found))):
        pair = found[index]
        tiles += training_tiles([pair])
        truth.append(found.truth(index))
        image = pair.space["VIS"]
        ny, nx = image.data.shape
        center = plain_icrs(image.wcs.pixel_to_world((nx - 1) / 2, (ny - 1) / 2))[0]
        place.append(tangent(truth[-1]["sky_centroid"], center))
    return Sky(tiles, truth, place)


# ------------------------------------------------------------------------------------- where
@dataclass(frozen=True)
class Where:
    """Windows: index of their tile, (n,), and its (east, north) about the tile centre, arcsec, (n, 2)."""

    tile: np.ndarray
    centers: np.ndarray

    def __len__(self):
        return len(self.tile)

    def __getitem__(self, rows):
        return Where(self.tile[rows], self.centers[rows])


def disjoint(sky, window, seed, *, n_source=0):
    """Windows that share no sky, as many as the tiles hold, in random order.

    Every tile gets one lattice of random phase. With ``n_source``, only windows that hold so many sources of S/N > 10
    (VIS, nominal depth) are kept.
    """
    rng = np.random.default_rng(seed)
    tile, centers = [], []
    for index, one in enumerate(sky.tiles):
        low, high = training_windows.center_range(one, window)
        count = np.floor((high - low) / window).astype(int) + 1
        start = low + rng.uniform(size=2) * (high - low - (count - 1) * window)
        east, north = np.meshgrid(*(start[k] + window * np.arange(count[k]) for k in (0, 1)))
        here = np.stack([east.ravel(), north.ravel()], -1)
        if n_source:
            bright = sky.place[index][sky.snr(index) > 10]
            inside = (np.abs(here[:, None] - bright) < window / 2).all(-1).sum(1)
            here = here[inside >= n_source]
        tile.append(np.full(len(here), index))
        centers.append(here)
    order = rng.permutation(sum(map(len, tile)))
    return Where(np.concatenate(tile)[order], np.concatenate(centers)[order])


def lattice(sky, tile, window, side):
    """``side`` x ``side`` windows that fill one tile evenly; neighbours may share a rim."""
    low, high = training_windows.center_range(sky.tiles[tile], window)
    east, north = np.meshgrid(*(np.linspace(low[k], high[k], side) for k in (0, 1)))
    return Where(np.full(side**2, tile), np.stack([east.ravel(), north.ravel()], -1))


# ------------------------------------------------------------------------------------- how they are seen
@dataclass(frozen=True)
class Look:
    """How the surveys look at the sky, and what is changed.

    Parameters
    ----------
    seeing : float
        Factor on the ground PSF.
    depth : float
        Magnitudes added to the depth of all bands.
    bandpass : float
        nm by which all bands lie redder than the encoder is told.
    pixel_scale : float
        Pixels delivered over the survey's own; the library then resamples to the survey's.
    missing : tuple of str
        Bands that were not observed.
    pointing : float
        arcsec by which the ground WCS is wrong, in a random direction.
    shared : bool
        One draw of PSF and depth for all windows of a call: they are of one field.
    """

    seeing: float = 1.0
    depth: float = 0.0
    bandpass: float = 0.0
    pixel_scale: float = 1.0
    missing: tuple = ()
    pointing: float = 0.0
    shared: bool = False


AS_SURVEYED = Look()


def views(sky, side, where, window, seed, look=AS_SURVEYED, *, slope=None):
    """Windows of one side, `BATCH` at a time.

    Parameters
    ----------
    sky : Sky
    side : {"ground", "space"}
    where : Where
    window : float
        arcsec.
    seed : int
        Everything random follows from it; the same draws serve every `Look`.
    look : Look
    slope : ndarray, optional
        Background plane added to all bands, noise sigma from centre to edge along x and y, (n, 2).

    Yields
    ------
    `~rosetta.encoding.network.View`
    """
    if look.shared and len(where) > BATCH:
        raise ValueError(f"{len(where)} windows of one field: at most {BATCH} get noise of their own")
    for start in range(0, len(where), BATCH):
        rows = slice(start, start + BATCH)
        random = training_windows.generator(seed, 2 * (0 if look.shared else start) + SIDES.index(side))
        tilt = None if slope is None else torch.from_numpy(slope[rows].astype(np.float32))
        yield _observe(sky, side, where[rows], window, random, look, tilt)


def _observe(sky, side, where, window, random, look, slope):
    conditions, survey = surveys.CONDITIONS[side], SURVEYS[side]
    n, n_band = len(where), len(survey.bands)
    centers = where.centers
    angle = 2 * np.pi * torch.rand(n, generator=random, dtype=torch.float64).numpy()
    if look.pointing and side == "ground":
        centers = _moved(sky, where, window, look.pointing * np.stack([np.cos(angle), np.sin(angle)], -1))
    size = round(window / conditions.pixel_scale)
    chosen = [sky.tiles[i].side(side) for i in where.tile]
    affine, still = np.stack([one.affine for one in chosen]), np.zeros((n, 3), bool)
    images, positions = training_windows.cut([one.pixels for one in chosen], np.arange(n), affine, centers, still, size)
    scale = torch.stack([one.scale for one in chosen])
    if look.bandpass:
        images = _redder(images * scale[..., None, None], survey, look.bandpass) / scale[..., None, None]
    if side == "ground":
        nominal = [float(band.psf_fwhm.to_value(u.arcsec)) * look.seeing for band in survey.bands]
        conditions = replace(conditions, fwhm=tuple((SEEING[0] * f, SEEING[1] * f) for f in nominal))
    draw = 1 if look.shared else n
    fwhm, shear = observing.draw_psf(conditions, draw, random, "cpu")
    depth = torch.tensor(conditions.depth) + look.depth
    depth = depth + DEPTH_SPREAD * (2 * torch.rand((draw, n_band), generator=random) - 1)
    fwhm, shear, depth = fwhm.expand(n, -1), shear.expand(n, -1, -1), depth.expand(n, -1)
    if look.pixel_scale != 1:
        images = _sampled(images, positions, conditions.pixel_scale, look.pixel_scale)
        conditions = replace(conditions, pixel_scale=conditions.pixel_scale * look.pixel_scale)
    signal = observing.convolve(images, fwhm, shear, conditions)
    otf = observing.transfer(fwhm, shear, conditions)
    sigma = observing.pixel_sigma(depth, otf)  # nJy
    rms = observing.noise_rms(otf, conditions)[..., None, None]
    signal *= (scale / sigma)[..., None, None]
    noisy = signal + rms * observing.noise(signal.shape, conditions, random, "cpu")
    noisy += rms * observing.background(signal.shape, random, "cpu")
    if slope is not None:
        ramp = torch.linspace(-1, 1, size)
        noisy += slope[:, 0, None, None, None] * ramp + slope[:, 1, None, None, None] * ramp[:, None]
    valid = torch.ones(noisy.shape, dtype=torch.bool)
    valid[:, [survey.band_names.index(band) for band in look.missing if band in survey.band_names]] = False
    view = View(
        pixels=noisy.asinh() * valid,
        valid=valid,
        positions=positions,
        mix=torch.eye(n_band),
        fwhm=observing.image_fwhm(otf, conditions),
        depth=depth,
    )
    return view if look.pixel_scale == 1 else _resampled(view, noisy, side, window, conditions.pixel_scale)


def _moved(sky, where, window, step):
    """Window centres moved by ``step`` (n, 2), along each axis the other way where they would leave the tile."""
    bounds = np.stack([training_windows.center_range(sky.tiles[i], window) for i in where.tile])  # (n, low and high, 2)
    moved = where.centers + step
    inside = (moved > bounds[:, 0]) & (moved < bounds[:, 1])
    return np.where(inside, moved, where.centers - step)


def _sampled(images, positions, pixel, factor):
    """Padded noise-free windows sampled about their sky centres at ``factor`` times the pixel."""
    n, n_band, padded, _ = images.shape
    count = int(np.ceil((padded - 2 * observing.PAD) / factor / 2 + 2)) * 2  # the window, and two pixels around it
    count += 2 * observing.PAD
    middle = positions.mean(1).numpy() / pixel * (1, -1) + (padded - 1) / 2  # (x, y) of the sky centre
    axis = (np.arange(count) - (count - 1) / 2) * factor
    out = np.empty((n, n_band, count, count), np.float32)
    for k, (x, y) in enumerate(middle):
        where = np.meshgrid(y + axis, x + axis, indexing="ij")
        for band in range(n_band):
            out[k, band] = factor**2 * ndimage.map_coordinates(images[k, band].numpy(), where, order=3, mode="nearest")
    return torch.from_numpy(out)


def _resampled(view, noisy, side, window, pixel):
    """Windows of another pixel scale, as the library itself brings them to the survey's own."""
    size = noisy.shape[-1]
    survey, knots = SURVEYS[side], EncoderConfig().knots(side)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [30.0, -20.0]
    wcs.wcs.crpix, wcs.wcs.cd = [(size + 1) / 2] * 2, np.diag([-pixel, pixel]) / 3600
    center = SkyCoord([30.0], [-20.0], unit="deg")
    noise = VarianceUncertainty(np.ones((size, size), np.float32))
    parts = []
    for one in noisy.numpy():
        images = {b: NDData(data, noise, wcs=wcs, unit=u.nJy) for b, data in zip(survey.band_names, one, strict=True)}
        pair = SkyPair(**{"ground": None, "space": None, side: images})
        parts.append(windows.side_view(list(band_images(pair).values()), center, window, knots))
    return replace(
        view,
        pixels=torch.cat([part.pixels for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
    )


def _redder(images, survey, shift):
    """Fluxes (n, n_band, ...) in bands that lie ``shift`` nm redder: linear in wavelength between neighbours.

    All bands of a tile share one PSF, so this is exact up to the curvature of the spectra.
    """
    pivot = torch.tensor([float(band.pivot.to_value(u.nm)) for band in survey.bands])
    step = 1 if shift > 0 else -1
    index = torch.arange(len(pivot))
    other = (index + step).clamp(0, len(pivot) - 1)
    other = torch.where(other == index, index - step, other)  # at the end of the range: extrapolated
    share = (shift / (pivot[other] - pivot))[:, None, None]
    return (images + share * (images[:, other] - images)).clamp(min=0)


@torch.inference_mode()
def encode(encoder, side, windows, keep=("embedding",)):
    """What the encoder gives for windows of one side.

    Parameters
    ----------
    encoder : `~rosetta.encoding.network.Encoder`
    side : {"ground", "space"}
    windows : iterable of `~rosetta.encoding.network.View`
    keep : tuple of str
        Of "tokens", "cls" and "embedding".

    Returns
    -------
    list of `torch.Tensor`
        One for each of ``keep``, all windows.
    """
    parts = []
    for view in windows:
        found = dict(zip(("tokens", "cls", "embedding"), encoder(side, view), strict=True))
        parts.append([found[name].float() for name in keep])
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def note(text):
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)
