# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The unit-flux images of all sources of one image, and their products with images and with each other.

What linear least squares calls the design matrix, kept as the stamps themselves: a source touches few others, so
products of overlapping rectangles are far fewer, and far quicker, than those of a sparse matrix with a row per pixel.
"""

import numpy as np
from scipy import sparse

__all__ = ["Design", "shared", "touching"]


class Design:
    """Stamps where they lie on an image.

    Parameters
    ----------
    stamps : list of `~rosetta.deblending.engine.rendering.Stamps`
    shape : tuple of int
        Image shape (ny, nx); what falls outside is left out.
    n_source : int

    Attributes
    ----------
    bounds : (n, 4) int array
        y0, y1, x0, x1 of the pixels of each source.
    values : list of (y1 - y0, x1 - x0) float32 array
    """

    def __init__(self, stamps, shape, n_source):
        self.shape = shape
        self.bounds = np.zeros((n_source, 4), int)
        self.values = [np.zeros((0, 0), np.float32)] * n_source
        for group in stamps:
            low = np.clip(group.corner[:, ::-1], 0, shape)
            high = np.clip(group.corner[:, ::-1] + group.values.shape[1], 0, shape)
            self.bounds[group.index] = np.stack([low, high], -1).reshape(-1, 4)
            for k, source in enumerate(group.index):
                (y0, x0), (y1, x1), (x, y) = low[k], high[k], group.corner[k]
                self.values[source] = group.values[k, y0 - y : y1 - y, x0 - x : x1 - x]

    def __len__(self):
        return len(self.values)

    def of(self, rows):
        """Some of the sources, ``rows`` (k,); a `Design`."""
        out = Design([], self.shape, 0)
        out.bounds, out.values = self.bounds[rows], [self.values[row] for row in rows]
        return out

    def replaced(self, rows, other):
        """This, with the sources ``rows`` (k,) as another has them; a `Design`."""
        out = Design([], self.shape, 0)
        out.bounds, out.values = self.bounds.copy(), list(self.values)
        out.bounds[rows] = other.bounds
        for row, values in zip(rows, other.values, strict=True):
            out.values[row] = values
        return out

    def _cuts(self):
        return zip(self.values, map(_slices, self.bounds), strict=True)

    def image(self, flux):
        """Sum of all sources at given fluxes (n,), (ny, nx) float64."""
        out = np.zeros(self.shape)
        for (values, cut), amplitude in zip(self._cuts(), flux, strict=True):
            out[cut] += amplitude * values
        return out

    def project(self, image):
        """Inner product of each source with an image, (n,)."""
        return np.array([(values * image[cut]).sum() for values, cut in self._cuts()], float)

    def squares(self, image=None):
        """Inner product of each source's square with an image, or with 1 everywhere, (n,)."""
        if image is None:
            return np.array([np.square(values).sum() for values in self.values], float)
        return np.array([(values * (values * image[cut])).sum() for values, cut in self._cuts()], float)

    def times(self, image):
        """The sources times an image (ny, nx); a `Design`."""
        out = Design([], self.shape, 0)
        out.bounds, out.values = self.bounds, [values * image[cut] for values, cut in self._cuts()]
        return out

    def gram(self, weight):
        """Inner products of all pairs of sources under pixel weights, sparse (n, n)."""
        rows, columns, products = [], [], []
        bounds = self.bounds.tolist()  # plain integers are quicker
        for i, partners in touching(self.bounds):
            weighted = self.values[i] * weight[_slices(bounds[i])]
            for j in partners.tolist():
                one, two = shared(bounds[i], bounds[j])
                rows.append(i)
                columns.append(j)
                products.append((weighted[one] * self.values[j][two]).sum())
        upper = sparse.coo_array((products, (rows, columns)), shape=(len(self), len(self)), dtype=float).tocsr()
        return upper + sparse.triu(upper, 1).T

    def footprint(self, level):
        """1 where a source is above ``level`` times its peak, 0 elsewhere; a `Design`."""
        out = Design([], self.shape, len(self))
        out.bounds = self.bounds
        out.values = [(v > level * v.max(initial=0.0)).astype(np.float32) for v in self.values]
        return out


def _slices(bounds):
    y0, y1, x0, x1 = bounds
    return slice(y0, y1), slice(x0, x1)


def touching(bounds):
    """Each rectangle, and those from it on that share a pixel with it: yields i, (k,) int array."""
    y0, y1, x0, x1 = bounds.T
    for i in range(len(bounds)):
        share = (y0[i:] < y1[i]) & (y0[i] < y1[i:]) & (x0[i:] < x1[i]) & (x0[i] < x1[i:])
        yield i, i + np.flatnonzero(share)


def shared(one, two):
    """The pixels that two rectangles (y0, y1, x0, x1) share, as slices of the first and of the second."""
    y0, y1, x0, x1 = max(one[0], two[0]), min(one[1], two[1]), max(one[2], two[2]), min(one[3], two[3])
    return tuple((slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)) for y, _, x, _ in (one, two))
