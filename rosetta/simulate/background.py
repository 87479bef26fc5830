# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What is left of the sky after its subtraction."""

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

__all__ = ["sky_residual"]

_MESH = 1.0  # arcsec; the residual is smooth
_SMOOTH = 5.0  # arcsec; about the scale on which surveys estimate the sky
_CLIP = 3.0  # sigma; brighter pixels are recognised as sources
_HALF = 0.7  # sigma of unrecognised light that gives half the deepest bowl


def sky_residual(rng, light, sigma, pixel_scale, delivery):
    """Pedestal, gradient, and bowls around bright sources, whose faint outskirts are taken for sky.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
    light : (ny, nx) array
        Sources without noise, nJy per pixel.
    sigma : float
        Sky noise, nJy per pixel.
    pixel_scale : float
        Arcsec.
    delivery : `~rosetta.simulate.Delivery`

    Returns
    -------
    (ny, nx) float64 array
        nJy per pixel.
    """
    ny, nx = light.shape
    constant, east, north = rng.normal(size=3) * (delivery.pedestal, delivery.gradient, delivery.gradient)
    depth = delivery.bowl * rng.uniform(0.3, 1.0)
    y, x = np.linspace(-1, 1, ny)[:, None], np.linspace(-1, 1, nx)
    residual = constant + north * y + east * x
    if depth > 0:
        step = max(round(_MESH / pixel_scale), 1)
        rows, columns = ny // step, nx // step
        clipped = np.clip(light[: rows * step, : columns * step] / sigma, 0.0, _CLIP)
        mesh = clipped.reshape(rows, step, columns, step).mean(axis=(1, 3))
        smooth = gaussian_filter(mesh, _SMOOTH / (step * pixel_scale), mode="nearest")
        excess = np.clip(smooth - np.median(smooth), 0.0, None)
        bowl = excess / (excess + _HALF)
        residual = residual - depth * zoom(bowl, (ny / rows, nx / columns), order=1, mode="nearest", grid_mode=True)
    return sigma * residual
