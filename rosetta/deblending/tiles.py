# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A field as overlapping tiles: work on one at a time needs memory for one tile, however large the field is."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from ..images.image import extent
from ..images.noise import DISTANCES, noise_factor, psf_overlap
from .band_fit import BandFit
from .shapes import DIRECTIONS
from .sky_plane import sky_rows

__all__ = ["FieldFit", "Tile", "filled", "joined_field", "tiles"]

SAME = 0.05  # arcsec: what two tiles find within this is one source
CORE = 102.4  # arcsec a side, about
MARGIN = 8.0  # arcsec around a core: light beyond it does not change a source in the core
REACH = 4.0  # arcsec around a listed position: the core of what is fitted for it
WORTH = 0.5  # of a tile's area: parts of it that cover more cost as much as all of it


@dataclass(frozen=True, eq=False)
class Tile:
    """A rectangle of the images' tangent plane. The cores of all tiles share it between them, beyond the images too.

    Attributes
    ----------
    core : (2, 2) array
        Low and high (east, north), arcsec; infinite at the rim of the field, unless that is a part of a larger one.
    bounds : (2, 2) array
        The same with the margin, finite.
    """

    core: np.ndarray
    bounds: np.ndarray

    def owns(self, east_north):
        """Whether positions (n, 2) lie in the core, (n,) bool."""
        return ((east_north >= self.core[0]) & (east_north < self.core[1])).all(axis=1)

    def sees(self, east_north):
        """Whether positions (n, 2) lie in the core or its margin, (n,) bool."""
        low, high = np.where(np.isinf(self.core), self.core, self.bounds)
        return ((east_north >= low) & (east_north < high)).all(axis=1)

    def cut(self, images):
        """The images' pixels in the tile, as images; those without a valid pixel there are left out."""
        trimmed = {band: image.trimmed for band, image in images.items()}  # so that a masked rim changes nothing
        return {band: trimmed[band].cut(window) for band, window in self.windows(trimmed).items()}

    def windows(self, images):
        """The pixels (y0, y1, x0, x1) of each image in the tile; images without a valid one are left out."""
        axis = np.linspace(0.0, 1.0, 5)
        east, north = np.meshgrid(*(low + (high - low) * axis for low, high in self.bounds.T))
        rim, windows = np.stack([east.ravel(), north.ravel()], -1), {}
        for band, image in images.items():
            (nx, ny), xy = image.shape[::-1], image.xy(rim)
            if not np.isfinite(xy).all():
                xy = np.array([[-1.0, -1.0], [nx, ny]])  # a WCS that does not reach the tile's corners: all of it
            low = np.clip(np.floor(xy.min(axis=0)), 0, (nx, ny)).astype(int)
            high = np.clip(np.ceil(xy.max(axis=0)) + 1, 0, (nx, ny)).astype(int)
            if image.valid[low[1] : high[1], low[0] : high[0]].any():
                windows[band] = (low[1], high[1], low[0], high[0])
        return windows

    def around(self, east_north):
        """Parts of the tile around those of the positions (n, 2) that it owns; the tile itself where these fill it.

        Returns
        -------
        list of `Tile`
            Their cores have no point in common, and hold all positions. Empty where the tile owns none.
        """
        place = east_north[self.owns(east_north)]
        parts = [self._about(some) for some in _groups(place)] if len(place) else []
        return [self] if sum(part.area for part in parts) > WORTH * self.area else parts

    @property
    def area(self):
        """Of the bounds, arcsec^2."""
        return _area(*self.bounds)

    def _about(self, place):
        """The smallest part that holds positions (n, 2) and what is around them."""
        low, high = place.min(axis=0) - REACH, place.max(axis=0) + REACH
        core = np.stack([np.maximum(low, self.core[0]), np.minimum(high, self.core[1])])
        bounds = np.clip(np.stack([low, high]) + MARGIN * np.array([[-1.0], [1.0]]), *self.bounds)
        return Tile(core, bounds)


def _area(low, high):
    return float(np.prod(np.maximum(high - low, 0.0)))


def _groups(place):
    """Positions (n, 2), arcsec, in groups whose surroundings are smaller one by one than together."""

    def around(some):
        return _area(some.min(axis=0), some.max(axis=0) + 2.0 * (REACH + MARGIN))

    for axis in (0, 1):
        place = place[np.argsort(place[:, axis], kind="stable")]
        gaps = np.diff(place[:, axis])
        for k in np.flatnonzero(gaps > 2.0 * REACH) + 1:  # so that the cores are apart
            one, two = place[:k], place[k:]
            if around(one) + around(two) < around(place):
                return _groups(one) + _groups(two)
    return [place]


def tiles(images, corners=None):
    """Tiles of all images.

    Parameters
    ----------
    images : dict of str to `~rosetta.images.image.BandImage`
    corners : (n, m, 2) array, optional
        Where the tiles meet, (east, north) in arcsec: rows to the north or south, columns to the east or west. What
        lies beyond their margins belongs to no tile. None: tiles that cover the images.

    Returns
    -------
    list of `Tile`
    """
    if corners is None:
        low, high = extent([image.trimmed for image in images.values()])
        # A rim that a tile can take is not worth a tile of its own.
        count = np.maximum(1, np.ceil((high - low) / CORE - 0.1)).astype(int)
        east, north = (np.linspace(a, b, n + 1) for a, b, n in zip(low, high, count, strict=True))
    else:
        east, north = _edges(corners[..., 0].T), _edges(corners[..., 1])
    found = []
    for j in range(len(north) - 1):
        for i in range(len(east) - 1):
            core = np.array([[east[i], north[j]], [east[i + 1], north[j + 1]]])
            bounds = core + MARGIN * np.array([[-1.0], [1.0]])
            rim = np.array([[i == 0, j == 0], [i == len(east) - 2, j == len(north) - 2]])
            outer = [[-np.inf], [np.inf]] if corners is None else bounds
            found.append(Tile(np.where(rim, outer, core), bounds))
    return found


def _edges(lines):
    """Edges of tiles, increasing, from the positions across them of the corners on each line, (n_line, n_corner).

    Lines that are not quite along the axes are replaced by their means; the outer edges have all corners between them.
    """
    edges = np.sort(lines.mean(axis=1))
    edges[0], edges[-1] = lines.min(), lines.max()
    return edges


@dataclass(frozen=True, eq=False)
class FieldFit:
    """The sources of a whole field; attributes as of `TileFit`, ``skies`` as of `sky_rows`."""

    index: np.ndarray
    east_north: np.ndarray
    snr: np.ndarray
    mixtures: np.ndarray
    covariance: np.ndarray
    bands: dict
    skies: dict

    def __len__(self):
        return len(self.index)

    def of(self, rows):
        """Some of the sources (indices)."""
        arrays = {name: getattr(self, name)[rows] for name in ("index", "east_north", "snr", "mixtures", "covariance")}
        return replace(self, bands={band: fit.of(rows) for band, fit in self.bands.items()}, **arrays)


def joined_field(parts, images):
    """The fits of all tiles as one: in the order of the job's list, then what the residuals showed.

    Parameters
    ----------
    parts : list of `~rosetta.deblending.tile_fit.TileFit`
    images : dict of str to `~rosetta.images.image.BandImage`
        Of the whole field.

    Returns
    -------
    `FieldFit`
        Fluxes in two tiles are correlated as the tile of one of them saw it.
    """

    def stacked(name):
        return np.concatenate([getattr(part, name)[part.own] for part in parts])

    index = stacked("index")
    order = np.argsort(np.where(index < 0, len(index), index), kind="stable")
    numbers = _numbers(parts, order, index[order], stacked("east_north")[order])
    most = max(part.mixtures.shape[1] for part in parts)
    parts = [replace(part, mixtures=filled(part.mixtures, most)) for part in parts]
    bands, skies = {}, {}
    for band, image in images.items():
        fits = [part.bands.get(band, BandFit.unseen(len(part), len(DIRECTIONS))) for part in parts]
        rows = {
            name: np.concatenate([getattr(fit, name)[part.own] for fit, part in zip(fits, parts, strict=True)])[order]
            for name in BandFit.per_source()
        }
        products = sum(fit.products for fit in fits)
        noise, point_noise = _noise(parts, band, image, order, products)
        covariance = _covariance([fit.covariance for fit in fits], parts, numbers, len(order)).tocoo()
        covariance.data *= noise[covariance.row] * noise[covariance.col]
        rows |= {"noise": noise, "residual_snr": rows["residual_snr"] / point_noise}
        common = {"covariance": sparse.csc_array(covariance), "point_noise": point_noise, "products": products}
        bands[band] = BandFit(**common, **rows)
        planes = [part.skies[band] for part in parts if part.skies.get(band) is not None]
        if planes:
            skies[band] = sky_rows(planes, point_noise)
    arrays = {name: stacked(name)[order] for name in ("east_north", "snr", "mixtures", "covariance")}
    return FieldFit(index=index[order], bands=bands, skies=skies, **arrays)


def _noise(parts, band, image, order, products):
    """Noise factor of every source, (n,), and of a point source, from the residuals of all tiles."""
    unseen = np.eye(1, len(DISTANCES))
    overlaps = np.concatenate(
        [part.overlaps.get(band, np.repeat(unseen, len(part), axis=0))[part.own] for part in parts]
    )
    noise = noise_factor(products, np.concatenate([overlaps[order], psf_overlap(image.mean_psf)[None]]))
    return noise[:-1], float(noise[-1])


def filled(mixtures, n_component):
    """Mixtures with components of weight 0 up to a number of them."""
    return np.pad(mixtures, ((0, 0), (0, n_component - mixtures.shape[1]), (0, 0)))


def _numbers(parts, order, index, east_north):
    """Row in the whole field of each part's sources, -1 where another tile does not know one of the margin."""
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    listed = index >= 0
    row_of = np.full(max((part.index.max(initial=-1) for part in parts), default=-1) + 1, -1)
    row_of[index[listed]] = np.flatnonzero(listed)
    numbers, start = [], 0
    for part in parts:
        number = np.full(len(part), -1)
        count = int(part.own.sum())
        number[part.own] = rank[start : start + count]
        start += count
        number[~part.own & (part.index >= 0)] = row_of[part.index[~part.own & (part.index >= 0)]]
        found = np.flatnonzero(~part.own & (part.index < 0))
        if len(found) and len(east_north):
            separation, nearest = cKDTree(east_north).query(part.east_north[found])
            number[found] = np.where(separation < SAME, nearest, -1)
        numbers.append(number)
    return numbers


def _covariance(matrices, parts, numbers, n):
    """One symmetric matrix from the rows of each part's own sources."""
    rows, columns, values = [], [], []
    for matrix, part, number in zip(matrices, parts, numbers, strict=True):
        entries = matrix.tocoo()
        keep = part.own[entries.row] & (number[entries.col] >= 0)
        rows.append(number[entries.row[keep]])
        columns.append(number[entries.col[keep]])
        values.append(entries.data[keep])
    rows, columns, values = (np.concatenate(v) for v in (rows, columns, values))
    total = sparse.coo_array((values, (rows, columns)), shape=(n, n)).tocsc()
    times = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, n)).tocsc()
    total, times = total + total.T, times + times.T  # a pair across a border has one entry or two
    return sparse.csc_array((total.data / times.data, total.indices, total.indptr), shape=(n, n))
