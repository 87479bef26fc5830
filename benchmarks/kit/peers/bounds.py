# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The best that blends allow: true templates, and the Cramer-Rao bound; called as the methods of `kit.peers.blends`."""

import numpy as np

from ..blends import SIZE, draw, light_of, profiles
from .blends import linear_fit

__all__ = ["bound", "true_template"]

SHAPE = ("x", "y", "radius", "g1", "g2", "bulge_radius", "bulge_g1", "bulge_g2")
STEP = dict(zip(SHAPE, (0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.02, 0.02), strict=True))
PRIOR = dict(zip(SHAPE, (1.0, 1.0, 1.0, 0.5, 0.5, 1.0, 0.3, 0.3), strict=True))  # radii: of the logarithm


def bound(blend, place):
    """Draws from the Cramer-Rao covariance: disc and bulge of unknown shapes and colours, known PSF, VIS and g r i z.

    A galaxy's fluxes of disc and bulge are free in every band; its shapes and position are shared by the bands.
    """
    bands, n = ["VIS", "g", "r", "i", "z"], len(blend.galaxies)
    width = len(SHAPE) + 2 * len(bands)  # unknowns of a galaxy
    fisher = np.kron(np.eye(n), np.diag([PRIOR[p] ** -2 for p in SHAPE] + [1e-12] * (2 * len(bands))))
    for k, b in enumerate(bands):
        columns = np.zeros((n * width, SIZE[b] ** 2))
        for j, g in enumerate(blend.galaxies):
            columns[j * width : (j + 1) * width] = derivatives(g, b, k, len(bands))
        columns /= np.sqrt(blend.variance[b].ravel())
        fisher += columns @ columns.T
    total = np.zeros((2 * n, n * width))  # every galaxy's g, then its i
    for j in range(n):
        for row, b in enumerate("gi"):
            at = j * width + len(SHAPE) + 2 * bands.index(b)
            total[2 * j + row, at : at + 2] = 1
    scale = 1 / np.sqrt(np.diag(fisher))  # unknowns of one size, or the inverse loses its digits
    total *= scale
    covariance = total @ np.linalg.inv(fisher * scale * scale[:, None]) @ total.T
    rng = np.random.default_rng(int(1e6 * abs(blend.galaxies[0]["x"])))
    drawn = rng.multivariate_normal(np.zeros(2 * n), covariance)
    error = np.sqrt(np.diag(covariance))
    return blend.place, {b: (blend.flux[b] + drawn[r::2], error[r::2]) for r, b in enumerate("gi")}


def derivatives(g, band, k, n_band):
    """Of a galaxy's image by its unknowns, (n_unknown, n_pixel); ``k`` is the band's place among ``n_band``."""
    fd, fb = light_of(g, band)

    def parts(g):
        disc, bulge = profiles(g)
        return draw(disc, band).ravel(), draw(bulge, band).ravel()

    disc, bulge = parts(g)
    out = np.zeros((len(SHAPE) + 2 * n_band, disc.size))
    for row, name in enumerate(SHAPE):
        if name.startswith("bulge") and fb == 0:
            continue
        step = STEP[name] * (g[name] if "radius" in name else 1.0)
        moved = profiles({**g, name: g[name] + step})
        if not name.startswith("bulge"):
            out[row] += fd * (draw(moved[0], band).ravel() - disc) / STEP[name]
        if fb and name not in ("radius", "g1", "g2"):
            out[row] += fb * (draw(moved[1], band).ravel() - bulge) / STEP[name]
    out[len(SHAPE) + 2 * k : len(SHAPE) + 2 * k + 2] = disc, bulge
    return out


def true_template(blend, place):
    """Fluxes when every galaxy's light is known exactly: what noise alone leaves."""
    fluxes = {}
    for b in "gi":
        flux, err = linear_fit(blend.alone[b] / blend.flux[b][:, None, None], blend, b)
        fluxes[b] = flux, err
    return blend.place, fluxes
