# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The PSF products of Euclid MER: stamps in one large image, and a table of their places.

Both have an empty primary HDU, an image (extension 1) with the side of a stamp in ``STMPSIZE``, and a table (extension
2). Pixel positions in the table begin at 1.

- ``GRID-PSF``: stamps on a regular grid of the tile (every 120 pixels in Q1), each at its own place in an image of the
  tile's size with the tile's WCS, which is 0 elsewhere. The table has ``x``, ``y`` (centres) and ``FWHM``. Stamps
  where there was no exposure are blank.
- ``CATALOG-PSF``: one stamp per chosen source, side by side. The table has ``x_center``, ``y_center`` (centre of the
  stamp in this image), ``x``, ``y``, ``RA``, ``Dec`` (the source on the tile) and ``FWHM``.

Taken from SourceXtractor++ (``VariablePsfStack``), which MER uses, and from public programs that read Q1 files; the
data product description names the products but not their columns. What can be checked is checked.
"""

import numpy as np
from astropy.coordinates import SkyCoord
from scipy.spatial import cKDTree

from ..images.psf import NODE_STEP, PSF, checked_array
from ._euclid_names import plane
from ._fits import celestial_wcs, native, open_fits, source_name

__all__ = ["read_psf"]

AROUND = 25  # stamps of GRID-PSF among which one is sought that is not blank
NEAREST = 4  # stamps averaged at a node of the grid that stands for CATALOG-PSF
SOFTENING = 32.0  # pixels; nearer stamps do not count for more
TOO_FAR = 3000  # pixels between the image and the nearest stamp, 5 arcmin


def read_psf(source, extension, band, wcs, shape):
    """The PSF of an image.

    Parameters
    ----------
    source : as of `open_fits`, or array
    extension : str or None
        Its extension; None for the first image, or for a PSF product.
    band : str
        Of the image.
    wcs : `~astropy.wcs.WCS`
        Of the image.
    shape : tuple of int
        (ny, nx) of the image.

    Returns
    -------
    ndarray or `~rosetta.PSF`
    """
    if isinstance(source, np.ndarray):
        return checked_array(source, "psf")
    with open_fits(source, "psf") as hdus:
        image = plane(hdus, "psf", band, extension)
        where = f"psf: {source_name(source)}"
        if "STMPSIZE" not in image.header:
            return checked_array(native(image, np.float64), where)
        side = _side(image.header, where)
        table, names = _table(hdus, where)
        if {"x_center", "y_center", "ra", "dec"} <= set(names):
            return _of_catalog(image, side, table, names, wcs, shape, where)
        if {"x", "y"} <= set(names):
            return _of_grid(image, side, table, names, wcs, shape, where)
    raise ValueError(f"{where} has a table with columns {', '.join(names)}: need x, y (GRID-PSF) or x_center, y_center")


def _side(header, where):
    side = header["STMPSIZE"]
    if not isinstance(side, int) or isinstance(side, bool) or side < 3 or side % 2 == 0:
        raise ValueError(f"{where} has STMPSIZE={side!r}: the side of a stamp must be odd and 3 or more pixels")
    if header.get("SAMPLING", 1) != 1:
        raise ValueError(f"{where} has SAMPLING={header['SAMPLING']!r}: only stamps on native pixels can be read")
    return side


def _table(hdus, where):
    tables = [hdu for hdu in hdus[1:] if not hdu.is_image]
    if len(tables) != 1:
        raise ValueError(f"{where} has STMPSIZE but {len(tables)} tables: need one with the places of the stamps")
    try:
        return tables[0].data, {name.lower(): name for name in tables[0].columns.names}
    except Exception as error:  # astropy has many types of error for damaged tables
        raise ValueError(
            f"{where} has a table that cannot be read ({type(error).__name__}): download it again"
        ) from error


def _column(table, names, name, where):
    try:
        values = np.asarray(table[names[name]])
    except Exception as error:
        raise ValueError(f"{where} has a damaged column {names[name]}: download it again") from error
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "fiu":
        raise ValueError(f"{where} has no usable column {names[name]}: download it again")
    return values.astype(np.float64)


# ---------------------------------------------------------------------------- GRID-PSF
def _of_grid(image, side, table, names, wcs, shape, where):
    """Every grid node in and around the image, at most `NODE_STEP` pixels apart where the grid is denser."""
    x, y = (_column(table, names, name, where) - 1 for name in ("x", "y"))  # in the PSF image, 0-based
    if not np.isfinite(x + y).all():
        raise ValueError(f"{where} has stamps without a place (x, y): download it again")
    columns, rows = np.unique(x), np.unique(y)
    if len(columns) * len(rows) != len(x) or not np.all(np.isclose(x % 1, 0) & np.isclose(y % 1, 0)):
        raise ValueError(f"{where} holds {len(x)} stamps that are not on a rectangular grid of whole pixels")
    offset = _offset(celestial_wcs(image.header, where), wcs, shape, where)
    columns, rows = (
        _chosen(nodes + shift, n, where) - shift
        for nodes, shift, n in zip((columns, rows), offset, shape[::-1], strict=True)
    )
    stamps = _Stamps(image, side, np.transpose([y, x]).round().astype(int) - side // 2, where)
    nodes = np.array([(row, column) for row in rows for column in columns]) - side // 2  # first pixels of their stamps
    cells = [stamps.nearest(node) for node in nodes]
    cells = _filled(cells, nodes, where).reshape(len(rows), len(columns), side, side)
    return PSF.on_grid(cells, columns + offset[0], rows + offset[1], name=where)


class _Stamps:
    """The stamps in an image by their first pixels (n, 2: row, column), read when asked for."""

    def __init__(self, image, side, corners, where):
        if (corners < 0).any() or (corners + side > image.shape).any():
            raise ValueError(f"{where} has stamps of {side} pixels that reach over the edge of its image")
        self._image, self._side, self._corners = image, side, corners
        self._tree, self._read = cKDTree(corners), {}

    def __getitem__(self, k):
        """Stamp ``k`` of unit sum, or None if it is blank."""
        if k not in self._read:
            row, column = map(int, self._corners[k])
            where = (slice(row, row + self._side), slice(column, column + self._side))
            stamp = native(self._image, np.float64, where)
            good = np.isfinite(stamp).all() and stamp.sum() > 0
            self._read[k] = stamp / stamp.sum() if good else None
        return self._read[k]

    def nearest(self, corner):
        """The nearest stamp that is not blank, of the `AROUND` nearest; else None."""
        _, index = self._tree.query(corner, k=min(AROUND, len(self._corners)))
        return next((self[k] for k in np.atleast_1d(index) if self[k] is not None), None)


def _offset(own, wcs, shape, where):
    """(x, y) to add to a pixel of the PSF image to get that of the image."""
    y, x = np.meshgrid(*(np.linspace(0, n - 1, 3) for n in shape), indexing="ij")
    there = own.world_to_pixel(wcs.pixel_to_world(x.ravel(), y.ravel()))
    shift = np.array([x.ravel() - there[0], y.ravel() - there[1]])  # (2, 9)
    if not np.isfinite(shift).all() or np.ptp(shift, axis=1).max() > 1:
        raise ValueError(f"{where} is not on the pixel grid of the science image: give that of the same tile and band")
    return shift.mean(axis=1)


def _chosen(nodes, n, where):
    """The nodes along one axis that an image of ``n`` pixels needs."""
    before, after = nodes[nodes <= 0][-1:], nodes[nodes >= n - 1][:1]
    needed = np.unique(np.concatenate([before, nodes[(nodes > 0) & (nodes < n - 1)], after]))
    if not len(needed):
        raise ValueError(f"{where} has no stamp in the region: give that of the same tile")
    step = np.diff(nodes).min() if len(nodes) > 1 else NODE_STEP
    thin = needed[:: max(1, int(NODE_STEP // step))]
    return thin if thin[-1] == needed[-1] else np.append(thin, needed[-1])


def _filled(stamps, places, where):
    """The stamps, None replaced by the nearest other one: (n, side, side)."""
    good = [k for k, stamp in enumerate(stamps) if stamp is not None]
    if not good:
        raise ValueError(f"{where} has only blank stamps in the region: leave the PSF out, or take another region")
    nearest = cKDTree(np.array(places)[good]).query(places)[1]
    return np.stack([stamps[good[k]] for k in nearest])


# ---------------------------------------------------------------------------- CATALOG-PSF
def _of_catalog(image, side, table, names, wcs, shape, where):
    """A grid of nodes at most `NODE_STEP` pixels apart; at each the mean of the nearest stamps, nearer ones more."""
    centers = np.array([_column(table, names, name, where) for name in ("x_center", "y_center")])  # (2, n)
    # Stamps tile the image from its first pixel: the tile of a centre is the same, whether pixels begin at 0 or 1.
    if not np.isfinite(centers).all():
        raise ValueError(f"{where} has stamps without a place (x_center, y_center): download it again")
    tiles = np.floor((centers - 1) / side)
    within = centers - side * tiles - side // 2
    sizes = np.array(image.shape[::-1])[:, None]
    if np.ptp(within) > 0.1 or np.abs(within).max() > 1.1 or (tiles < 0).any() or ((tiles + 1) * side > sizes).any():
        raise ValueError(
            f"{where} has stamps that do not lie side by side, {side} pixels each: its layout is not known"
        )
    ra, dec = (_column(table, names, name, where) for name in ("ra", "dec"))
    known = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
    tiles = tiles[:, known].astype(int)
    x, y = wcs.world_to_pixel(SkyCoord(ra[known], dec[known], unit="deg"))
    inside = np.isfinite(x) & np.isfinite(y)
    inside &= np.hypot(x - np.clip(x, 0, shape[1] - 1), y - np.clip(y, 0, shape[0] - 1)) < TOO_FAR
    if not inside.any():
        raise ValueError(f"{where} has no stamp within 5 arcmin of the region: give that of the same tile")
    place, tiles = np.transpose([x[inside], y[inside]]), tiles[:, inside].T  # (n, 2)
    rows, columns = (np.linspace(0, n - 1, max(2, -(-n // NODE_STEP) + 1)) for n in shape)
    nodes = np.array([(column, row) for row in rows for column in columns])
    near = min(NEAREST, len(place))
    distance, index = (v.reshape(len(nodes), near) for v in cKDTree(place).query(nodes, k=near))
    stamps = _Stamps(image, side, side * tiles[:, ::-1], where)
    cells = []
    for row, apart in zip(index, distance, strict=True):
        share = {k: 1 / (d**2 + SOFTENING**2) for k, d in zip(row, apart, strict=True) if stamps[k] is not None}
        cells.append(sum(w * stamps[k] for k, w in share.items()) / sum(share.values()) if share else None)
    cells = _filled(cells, nodes, where).reshape(len(rows), len(columns), side, side)
    return PSF.on_grid(cells, columns, rows, name=where)
