# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Images on other grids, with flux, variance and validity."""

import numpy as np
from scipy import ndimage, sparse
from scipy.interpolate import RectBivariateSpline

__all__ = ["NODES", "interpolated", "on_grid", "resampled"]

NODES = 17  # per axis: a WCS is smooth, so it is evaluated at few positions


def interpolated(values, rows, columns):
    """A smooth function on a grid, from its values (n, n) on nodes that are evenly spread over that grid.

    Parameters
    ----------
    values : (n, n) array
        At n places from the first to the last of ``rows``, and of ``columns``.
    rows, columns : (ny,), (nx,) array
        Increasing.

    Returns
    -------
    (ny, nx) array
    """
    nodes = [np.linspace(0.0, 1.0, len(values))] * 2
    at = [(v - v[0]) / max(v[-1] - v[0], 1e-9) for v in (np.asarray(rows, float), np.asarray(columns, float))]
    return RectBivariateSpline(*nodes, values)(*at)


def on_grid(image, target):
    """Data and variance of an image at the pixels of another, bilinear: good enough to find sources."""
    ny, nx = target.shape
    y, x = np.meshgrid(np.linspace(0, ny - 1, NODES), np.linspace(0, nx - 1, NODES), indexing="ij")
    places = image.xy(target.east_north(x.ravel(), y.ravel())).T
    # Rounded, or the border row of an equal grid falls a hair outside.
    x, y = (np.round(interpolated(v.reshape(NODES, NODES), np.arange(ny), np.arange(nx)), 6) for v in places)
    scale = (target.pixel_scale / image.pixel_scale) ** 2
    data = ndimage.map_coordinates(image.data, [y, x], order=1, cval=0.0) * scale
    invalid = ndimage.map_coordinates((~image.valid).astype(np.float32), [y, x], order=1, cval=1.0) > 0.01
    finite = np.where(image.valid, image.variance, np.median(image.variance[image.valid]))
    variance = ndimage.map_coordinates(finite, [y, x], order=1, cval=1.0) * scale**2
    return np.where(invalid, 0.0, data), np.where(invalid, np.inf, variance)


def resampled(image, grid):
    """Flux, variance and validity on another grid, as one explicit linear map (flux is conserved).

    Each output pixel is the mean of k x k bilinear samples times the ratio of pixel areas; an output pixel
    is valid only where every input pixel it rests on is. The variance is that of white noise of the same
    depth: interpolation lowers the scatter of single pixels, by an amount that depends on the sub-pixel phase,
    and raises their correlation, but does not make the image deeper.
    """
    n, nodes, sky, scale = grid
    xn, yn = (a.reshape(len(nodes), len(nodes)) for a in image.sky_to_pixel(sky))
    k = max(2, int(np.ceil(scale / image.pixel_scale)))
    fine = (np.arange(n * k) - (k - 1) / 2) / k  # sub-pixel centres, in output pixels
    x = RectBivariateSpline(nodes, nodes, xn)(fine, fine)  # (n k, n k)
    y = RectBivariateSpline(nodes, nodes, yn)(fine, fine)
    area = (scale / image.pixel_scale) ** 2
    ny, nx = image.shape
    out = np.broadcast_to((np.arange(n * k) // k)[:, None] * n + (np.arange(n * k) // k)[None, :], x.shape).ravel()
    x, y = x.ravel(), y.ravel()
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    good = np.ones(n * n, bool)
    rows, columns, weights = [], [], []
    for j in (0, 1):
        for i in (0, 1):
            weight = np.abs(1 - i - (x - x0)) * np.abs(1 - j - (y - y0))
            xi, yj = x0 + i, y0 + j
            inside = (xi >= 0) & (xi < nx) & (yj >= 0) & (yj < ny)
            good[out[~inside & (weight > 1e-9)]] = False
            rows.append(out[inside])
            columns.append(yj[inside] * nx + xi[inside])
            weights.append(weight[inside] * area / k**2)
    rows, columns, weights = (np.concatenate(a) for a in (rows, columns, weights))
    good[rows[(weights > 1e-9) & ~image.valid.ravel()[columns]]] = False
    used, columns = np.unique(columns, return_inverse=True)
    matrix = sparse.csr_matrix((weights, (rows, columns)), shape=(n * n, len(used)))
    flux = matrix @ image.data.ravel()[used].astype(float)
    finite = np.where(image.valid.ravel()[used], image.variance.ravel()[used], 0).astype(float)
    variance = matrix @ finite
    variance[~good] = np.inf
    flux[~good] = 0
    return tuple(a.reshape(n, n).astype(t) for a, t in ((flux, np.float32), (variance, np.float32), (good, bool)))
