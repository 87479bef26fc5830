# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""North-up stamps of native pixels around sources, as a network looks at them."""

import numpy as np
from scipy import ndimage

__all__ = ["north_up"]


def north_up(data, variance, xy, jacobian, *, size, scale, others, rows, radius):
    """Stamps with the source at the centre, north up and east left, bilinear.

    Parameters
    ----------
    data, variance : (ny, nx) array
        Invalid pixels hold 0 and infinity.
    xy : (n, 2) array
        Source positions, pixels.
    jacobian : (n, 2, 2) array
        Pixel per arcsec.
    size : int
        Pixels a side of a stamp.
    scale : float
        Stamp pixel, arcsec.
    others : (m, 2) array
        Positions of all sources, (east, north) arcsec on one tangent plane.
    rows : (n,) int array
        Which of them the stamps are of.
    radius : float
        Sigma (arcsec) of the marks at the other sources' positions.

    Returns
    -------
    (n, 3, size, size) float32 array
        asinh(S/N), validity, and marks at the other sources.
    """
    n = len(xy)
    axis = (np.arange(size) - (size - 1) / 2.0) * scale
    north, east = np.meshgrid(axis, -axis, indexing="ij")
    sky = np.stack([east.ravel(), north.ravel()])  # (2, size * size)
    x, y = np.moveaxis(xy[:, :, None] + jacobian @ sky, 1, 0)  # (n, size * size)
    valid = np.isfinite(variance)
    signal = np.where(valid, data / np.sqrt(np.where(valid, variance, 1.0)), 0.0)
    out = np.zeros((n, 3, size * size), dtype=np.float32)
    where = [np.nan_to_num(y, nan=-1e6), np.nan_to_num(x, nan=-1e6)]
    out[:, 1] = ndimage.map_coordinates(valid.astype(np.float32), where, order=0, cval=0.0)
    out[:, 0] = np.arcsinh(ndimage.map_coordinates(signal, where, order=1, cval=0.0)) * out[:, 1]
    half = size * scale / 2.0
    for i, row in enumerate(rows):
        offset = others - others[row]
        near = np.flatnonzero(np.abs(offset).max(axis=1) < half + 3.0 * radius)
        for j in near[near != row]:
            out[i, 2] += np.exp(-0.5 * ((sky[0] - offset[j, 0]) ** 2 + (sky[1] - offset[j, 1]) ** 2) / radius**2)
    return out.reshape(n, 3, size, size)
