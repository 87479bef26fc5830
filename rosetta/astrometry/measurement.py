# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Offsets of every source in every band, from images: the geometry around `rosetta.astrometry.registration`."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ..flags import Flag
from ..images.filtering import filter_sigma, filtered
from ..images.resampling import NODES, interpolated
from . import cross_correlation, field, psf_correction, registration
from .field_fit import FieldConfig, fit_field
from .psf_correction import PsfCorrectionConfig
from .template import RegistrationConfig, Sharp, transfer

__all__ = ["BandOffsets", "MeasurementConfig", "Sources", "coarse_match", "combine", "find_sources", "measure_band"]


@dataclass(frozen=True)
class MeasurementConfig:
    """What decides the offset of a source, and whether it counts.

    Attributes
    ----------
    min_snr : float
        Of the amplitude, for a source to count.
    min_sources : int
        For the offset of a band to be trusted alone; fewer are trusted together with other bands.
    agree_share, expected_snr : float
        A band is on the right sky when this share of the sources that should be seen with this S/N are seen, in one
        place.
    near : float
        Arcsec from its true place at which a source can be used to correct the PSF.
    point : float
        Least concentration of a point source, relative to the PSF's.
    pitch, most_offset : float
        Grid and reach of the cross-correlation, arcsec.
    coarse_bands : int
        The deepest ground bands, which are cross-correlated.
    faint_galaxy : float
        FWHM before the PSF, arcsec: the size that the correlated images are filtered for.
    registration : `~rosetta.astrometry.template.RegistrationConfig`
    psf : `~rosetta.astrometry.psf_correction.PsfCorrectionConfig`
    field : `~rosetta.astrometry.field_fit.FieldConfig`
    """

    min_snr: float = 5.0
    min_sources: int = 4
    agree_share: float = 0.3
    expected_snr: float = 8.0
    near: float = 0.15
    point: float = 0.85
    pitch: float = 0.2
    most_offset: float = 20.0
    coarse_bands: int = 3
    faint_galaxy: float = 0.3
    registration: RegistrationConfig = RegistrationConfig()
    psf: PsfCorrectionConfig = PsfCorrectionConfig()
    field: FieldConfig = FieldConfig()


@dataclass(frozen=True, eq=False)
class Sources:
    """What is detected on the reference image.

    ``east_north`` (n, 2) holds the positions in the tangent plane, arcsec, in the frame of the reference image;
    ``point`` tells which ones look like the PSF (stars move between epochs, and galaxies do not). ``sharp`` is the
    reference image itself, each pixel given to the nearest source; ``config`` is how its sources are measured.
    """

    reference: object
    table: object
    east_north: np.ndarray
    label: np.ndarray
    point: np.ndarray
    sharp: Sharp
    config: MeasurementConfig

    @cached_property
    def jacobian(self):
        """d(x, y) of the reference image / d(east, north) at each source, pixel per arcsec: (n, 2, 2)."""
        return self.reference.jacobian(self.east_north)

    def scatter(self, *more):
        """Relative scatter beyond pixel noise, (n, n_component): of point sources, of all others, predicted."""
        return np.stack([self.point, ~self.point, *more], -1).astype(float)


@dataclass(frozen=True, eq=False)
class BandOffsets:
    """Measured offsets of n sources in one band; mas and mas^2, NaN where there is none.

    ``cov_target`` is the noise of the band itself, ``cov_reference`` the noise of the reference image, which is the
    same one for all bands. ``agrees`` tells whether enough sources are where the band says they are.
    """

    band: str
    offset: np.ndarray
    cov_target: np.ndarray
    cov_reference: np.ndarray
    amplitude: np.ndarray
    snr: np.ndarray
    chi2: np.ndarray
    usable: np.ndarray
    flags: np.ndarray
    agrees: bool

    @property
    def cov(self):
        """Total covariance (n, 2, 2), mas^2."""
        return self.cov_target + self.cov_reference

    def without(self, moved, variance):
        """The offsets of sources that did not move from the reference's epoch to this band's.

        Parameters
        ----------
        moved, variance : numpy.ndarray, shape (n, 2)
            How far they did move (east, north), mas, and its variance, mas^2.

        Returns
        -------
        BandOffsets
        """
        cov_reference = self.cov_reference + variance[:, :, None] * np.eye(2)  # the same in all bands of a survey
        return replace(self, offset=self.offset + moved, cov_reference=cov_reference)


def find_sources(detections, config):
    """`Sources` of the reference image, from its `~rosetta.detection.detection.Detections`."""
    reference, table, labels = detections.image, detections.table, detections.segments
    if len(table):
        nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
        labels = labels[tuple(nearest)]
    width = 0.5 * reference.fwhm / reference.pixel_scale
    middle = np.array([[n // 2] for n in reference.mean_psf.shape[::-1]], float)
    own = _concentration(reference.mean_psf, width, *middle)
    point = _concentration(reference.data, width, np.asarray(table["x"]), np.asarray(table["y"]))
    point = point > config.point * own
    sharp = Sharp(
        reference.data, reference.variance, reference.valid, labels, reference.mean_psf, config.registration
    )
    return Sources(reference, table, detections.east_north, np.asarray(table["label"]), point, sharp, config)


def _concentration(image, width, x, y):
    """Light under a Gaussian of ``width`` pixels over that under one twice as wide, at each position."""
    half = int(np.ceil(5 * width))
    step = np.arange(-half, half + 1)
    ny, nx = image.shape
    columns, rows = (np.rint(v).astype(int)[:, None] + step for v in (x, y))  # (n, side)
    light = image[np.clip(rows, 0, ny - 1)[:, :, None], np.clip(columns, 0, nx - 1)[:, None, :]]
    distance2 = ((columns - x[:, None]) ** 2)[:, None, :] + ((rows - y[:, None]) ** 2)[:, :, None]
    narrow, wide = ((light * np.exp(-0.5 * distance2 / (k * width) ** 2)).sum((1, 2)) for k in (1, 2))
    return np.divide(narrow, wide, out=np.zeros_like(narrow, float), where=wide > 0)


class _Places:
    """Where sources lie on an image and on the reference, from one look at either WCS: offsets move them linearly."""

    def __init__(self, image, sources, start):
        self.start, reference = start, sources.reference
        pixel, self.turn = image.place(sources.east_north, -start)  # (n, 2), (n, 2, 2)
        far = 10 * max(image.shape)  # where no distortion is known
        self.pixel = np.clip(pixel, -far, far)
        center = np.rint(self.pixel).astype(int)
        step = 4
        moves = step * np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
        x, y = (center[:, None, :] + moves).reshape(-1, 2).T
        where = reference.xy(image.east_north(x, y)).reshape(-1, 5, 2)
        middle, right, left, up, down = np.moveaxis(np.nan_to_num(where, nan=-1e6), 1, 0)
        matrix = np.stack([(right - left) / (2 * step), (up - down) / (2 * step)], -1)
        self.geometry = registration.Geometry(sources.label, center, middle, matrix, sources.jacobian)

    def at(self, offset):
        """The stamps of sources whose headers the offsets (n, 2), arcsec, correct."""
        away = np.einsum("nij,nj->ni", self.turn, self.start - offset)
        center = np.rint(self.pixel + away).astype(int)
        moved = np.einsum("nij,nj->ni", self.geometry.matrix, center - self.geometry.center)
        return replace(self.geometry, center=center, reference=self.geometry.reference + moved)


def _crowded(xy, rank, radius):
    """True for a source with a stronger one within ``radius``: the two would count the same pixels twice."""
    out = np.zeros(len(xy), bool)
    for i, j in cKDTree(xy).query_pairs(radius):
        out[i if rank[i] < rank[j] else j] = True
    return out


def measure_band(image, sources, start):
    """Offsets of all sources in one image.

    Parameters
    ----------
    image : `~rosetta.images.image.BandImage`
    sources : Sources
    start : (2,) array
        Assumed offset (east, north), arcsec, good to about 0.3".

    Returns
    -------
    BandOffsets
    """
    n, config = len(sources.label), sources.config
    places = _Places(image, sources, np.asarray(start, float))
    base = np.tile(np.asarray(start, float), (n, 1))
    radius = registration.stamp_radius(image.fwhm / image.pixel_scale)
    fit, template, psf, refined = None, None, image.mean_psf, False
    for step in range(5):
        geometry = places.at(base)
        if template is None:
            middle = int(np.argmin((sources.east_north**2).sum(1)))
            template = transfer(sources.sharp, psf, geometry.matrix[middle])
        amplitude = None if fit is None else fit.amplitude
        fit = registration.fit_offsets(
            template, image.data, image.variance, image.valid, geometry, base, radius, amplitude=amplitude
        )
        offset = 1e3 * fit.offset
        scale = np.maximum(fit.chi2, 1.0)[:, None, None]  # what the template cannot describe adds to the noise
        cov_target, cov_reference = 1e6 * scale * fit.cov_target, 1e6 * fit.cov_reference
        cov = cov_target + cov_reference
        good = np.isfinite(offset).all(1) & (fit.amplitude > 0) & (fit.snr > config.min_snr)
        good &= np.isfinite(fit.chi2) & (np.nan_to_num(np.trace(cov, axis1=1, axis2=2), nan=np.inf) < 2 * 300.0**2)
        rank = np.where(good, np.nan_to_num(fit.snr), -1.0)
        crowded = _crowded(sources.east_north, rank, image.fwhm)
        usable = good & ~crowded
        if not usable.any():
            model = None
            break
        if usable.sum() < config.min_sources:
            model = field.constant(_mean(offset[usable], cov[usable]), 0.0)
        else:
            kind = "affine" if step > 0 and usable.sum() >= 10 else "shift"
            at = sources.east_north[usable]
            model = fit_field(at, offset[usable], cov[usable], model=kind, config=config.field).model
        new = 1e-3 * field.evaluate(model, sources.east_north, covariance=False)[0]
        # Well-measured sources are linearised about their own place; faint ones would only chase noise.
        own = usable & (np.sqrt(np.trace(np.nan_to_num(cov), axis1=1, axis2=2) / 2) < 10.0)
        own &= np.hypot(*(fit.offset - new).T) < 0.1
        new[own] = fit.offset[own]
        moved = np.abs(new - base)[usable].max()
        base = new
        if step >= 1 and moved < 2e-3:
            break
        if not refined and moved < config.near:  # the given PSF may be wrong, or none was given
            refined = True
            better = psf_correction.corrected_psf(
                psf, template, image.data, image.variance, image.valid, places.at(base), base, radius,
                np.where(usable, fit.snr, np.nan), fit.amplitude, config.psf,
            )
            if better is not psf:
                psf, template = better, None
    agrees = model is not None and _agree(sources, fit, offset, cov, model)
    flags = np.full(n, int(image.flags))
    x, y = (geometry.center[:, k] for k in (0, 1))
    ny, nx = image.data.shape
    outside = (x < 0) | (y < 0) | (x >= nx) | (y >= ny)
    near_edge = (x < radius) | (y < radius) | (x >= nx - radius) | (y >= ny - radius)
    for condition, flag in (
        (outside, Flag.OUTSIDE),
        (near_edge & ~outside, Flag.EDGE),
        (np.isfinite(fit.missing) & (fit.missing > 0) & ~near_edge, Flag.MASKED),
        (~np.isfinite(fit.chi2) & ~(fit.missing < 0.5), Flag.NO_DATA),
        (~good & (fit.missing < 0.5), Flag.LOW_SNR),  # also those lost in the noise of the template
        (crowded, Flag.BLENDED),
        (np.nan_to_num(fit.chi2) > 3.0, Flag.POOR_FIT),
    ):
        flags[condition] |= int(flag)
    return BandOffsets(
        image.band, offset, cov_target, cov_reference, fit.amplitude, fit.snr, fit.chi2, usable, flags, agrees
    )


def _mean(offset, cov):
    """Weighted mean (2,) of offsets (n, 2)."""
    weight = np.linalg.inv(cov)
    return np.linalg.solve(weight.sum(0), np.einsum("nij,nj->i", weight, offset))


def _agree(sources, fit, offset, cov, model):
    """Are the sources that this band should show really there, and all displaced alike?"""
    seen = np.isfinite(fit.amplitude) & np.isfinite(fit.amplitude_err)
    config = sources.config
    strong = seen & (fit.snr > config.min_snr)
    if strong.sum() < config.min_sources:
        return False
    typical = max(np.median(fit.amplitude[strong]), 1e-6)
    expected = seen & (typical / np.where(seen, fit.amplitude_err, np.inf) > config.expected_snr)
    expected &= (sources.table["snr"] > 10.0)
    away = np.hypot(*(offset - field.evaluate(model, sources.east_north, covariance=False)[0]).T)
    sigma = np.sqrt(np.trace(cov, axis1=1, axis2=2))
    with np.errstate(invalid="ignore"):
        close = strong & (away < np.minimum(100.0 + 3 * sigma, 200.0)) & (fit.amplitude > 0.1 * typical)
    both = close & expected
    return both.sum() >= config.min_sources and both.sum() >= config.agree_share * expected.sum()


def combine(parts):
    """Joint offsets of several bands: per source, the mean weighted by each band's own noise.

    The noise of the reference image is common to all bands and does not average down.
    """
    if len(parts) == 1:
        part = parts[0]
        return BandOffsets("joint", *(getattr(part, name) for name in list(BandOffsets.__dataclass_fields__)[1:]))
    good = np.stack([p.usable for p in parts])  # (n_band, n)
    eye = np.eye(2)
    inverse = np.stack([
        np.where(p.usable[:, None, None], np.linalg.inv(np.where(p.usable[:, None, None], p.cov_target, eye)), 0.0)
        for p in parts
    ])  # (n_band, n, 2, 2)
    any_good = good.any(0)
    total = np.where(any_good[:, None, None], inverse.sum(0), eye)
    weight = np.linalg.inv(total) @ inverse  # (n_band, n, 2, 2)
    value = np.stack([np.where(p.usable[:, None], p.offset, 0.0) for p in parts])
    offset = np.einsum("bnij,bnj->ni", weight, value)
    root = np.stack([_root(np.where(p.usable[:, None, None], p.cov_reference, 0.0)) for p in parts])
    common = (weight @ root).sum(0)
    cov_target = np.linalg.inv(total)
    blank = ~any_good
    offset[blank], cov_target[blank] = np.nan, np.nan
    cov_reference = common @ common.swapaxes(1, 2)
    cov_reference[blank] = np.nan
    snr2 = np.stack([np.where(p.usable, p.snr, 0.0) for p in parts]) ** 2
    share = snr2 / np.maximum(snr2.sum(0), 1e-30)

    def mean(name):
        values = np.nan_to_num(np.stack([getattr(p, name) for p in parts]))
        return np.where(blank, np.nan, (share * values).sum(0))

    flags = np.bitwise_or.reduce([np.where(p.usable, p.flags, 0) for p in parts])
    flags[blank] = np.bitwise_and.reduce([p.flags for p in parts])[blank] | int(Flag.NO_DATA)
    return BandOffsets(
        "joint", offset, cov_target, cov_reference, mean("amplitude"), np.where(blank, np.nan, np.sqrt(snr2.sum(0))),
        mean("chi2"), any_good, flags, any(p.agrees for p in parts),
    )


def _root(cov):
    """Symmetric square root of (n, 2, 2) covariances."""
    value, vector = np.linalg.eigh(cov)
    return np.einsum("nij,nj,nkj->nik", vector, np.sqrt(np.maximum(value, 0.0)), vector)


def coarse_match(images, sources):
    """Large offset between the ground bands and the reference, from images alone: a `Match` or None."""
    reference, config = sources.reference, sources.config
    ground = sorted((p for p in images.values() if p.side == "ground"), key=lambda p: -p.depth)[: config.coarse_bands]
    ny, nx = reference.data.shape
    corners = reference.east_north(np.array([0, nx - 1, 0, nx - 1]), np.array([0, 0, ny - 1, ny - 1]))
    low, high = corners.min(0), corners.max(0)
    limit = min(config.most_offset, 0.4 * (high - low).min())
    low, high = low - limit, high + limit
    east, north = (np.arange(a, b, config.pitch) for a, b in zip(low, high, strict=True))
    space = _on_sky(reference, east, north, max(p.fwhm for p in ground), config)
    return cross_correlation.correlate(
        [(*_on_sky(image, east, north, 0.0, config), *space) for image in ground], config.pitch, limit
    )


def _on_sky(image, east, north, blur, config):
    """Compressed significance of an image on a north-up grid, and where it is valid: two arrays (n_north, n_east)."""
    seen = image.with_pixels(image.data, image.variance, fwhm=max(image.fwhm, blur))
    _, significance = filtered(seen, filter_sigma(seen, config.faint_galaxy))
    compressed = cross_correlation.compress(significance / max(1.4826 * np.median(np.abs(significance)), 0.3))
    nodes = np.meshgrid(*(np.linspace(axis[0], axis[-1], NODES) for axis in (east, north)))
    x, y = (
        interpolated(v.reshape(NODES, NODES), north, east)
        for v in image.xy(np.stack(nodes, -1).reshape(-1, 2)).T
    )
    ny, nx = image.data.shape
    inside = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
    valid = inside & image.valid[np.clip(np.rint(y).astype(int), 0, ny - 1), np.clip(np.rint(x).astype(int), 0, nx - 1)]
    return ndimage.map_coordinates(compressed, [y, x], order=1, cval=0.0), valid
