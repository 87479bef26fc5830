# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The Cramer-Rao bound on the fluxes of a simulated field."""

import astropy.units as u
import numpy as np

from rosetta.deblending.engine.engine import SparseEngine
from rosetta.deblending.engine.fluxes import WhiteNoise, solve
from rosetta.deblending.engine.rendering import stamp_sizes
from rosetta.images.image import band_images

from .fields import placed

__all__ = ["bound_errors"]

# Prior inverse variances of what a source's shape has in common in all bands, so weak that they add nothing: east and
# north (arcsec), size, two shears. And the step of derivatives.
COMMON, STEP = (1.0, 1.0, 1.0, 4.0, 4.0), 0.01


def bound_errors(pair, truth):
    """Cramer-Rao errors of the fluxes of all sources together: two (n, n_band) arrays, nJy.

    Of true light and the given PSFs. Unknown are the fluxes of overlapping sources and each source's position, size and
    ellipticity (a star's position), which all bands share. In the first array its radial profile is known. In the
    second its concentration is unknown too, in each band by itself, as with bulges and discs of unknown colours.
    """
    light, engine, images = np.asarray(truth["mixture"], float), SparseEngine(), band_images(pair)
    bent, n = [_bent(light, k) for k in range(len(COMMON) + 1)], len(light)
    # A source's unknowns: `COMMON`, then concentration and ln(flux) of each band.
    prior = np.r_[COMMON, np.tile([1.0, 1e-6], len(images))]
    information, overlapping, alone = np.tile(np.diag(prior), (n, 1, 1)), {}, {}
    for k, (band, image) in enumerate(images.items()):
        at, flux = placed(image, truth, 1e-3), truth[f"flux_{band}"].to_value(u.nJy)
        sizes = stamp_sizes(light, at.jacobian, image.psf, 1e-3)
        base, *moved = (engine.render(mixtures, at, sizes=sizes) for mixtures in (light, *bent))
        root = np.sqrt(np.where(image.valid, 1 / image.variance, 0))
        first = len(COMMON) + 2 * k
        where = np.r_[: len(COMMON), first, first + 1]
        for i, (y0, y1, x0, x1) in enumerate(base.bounds):
            own = base.values[i]  # every step has the same pixels
            columns = np.stack([*((m.values[i] - own) / STEP for m in moved), own]) * (root[y0:y1, x0:x1] * flux[i])
            columns = columns.reshape(len(where), -1)
            information[i][where[:, None], where] += columns @ columns.T
        found = solve(base, image.data, WhiteNoise(image.variance))  # weights that are optimal for exact templates
        overlapping[band] = np.where(found.measured, found.covariance.diagonal(), np.nan)
        alone[band] = 1 / np.maximum(base.squares(root**2), 1e-30)
    fluxes = np.arange(len(COMMON) + 1, len(prior), 2)
    bounds = []
    for unknown in (np.r_[: len(COMMON), fluxes], np.arange(len(prior))):
        matrix = information[:, unknown[:, None], unknown]
        unit = 1 / np.sqrt(np.einsum("nii->ni", matrix))  # unknowns of one size, or the inverse loses its digits
        inverse = np.linalg.inv(matrix * unit[:, :, None] * unit[:, None])
        relative2 = (np.einsum("nii->ni", inverse) * unit**2)[:, np.isin(unknown, fluxes)]
        columns = [
            overlapping[b] + np.maximum(relative2[:, k] * truth[f"flux_{b}"].to_value(u.nJy) ** 2 - alone[b], 0)
            for k, b in enumerate(images)
        ]
        bounds.append(np.sqrt(np.stack(columns, -1)))
    return bounds


def _bent(light, k):
    """Mixtures moved by `STEP` along a shape coordinate: those of `COMMON`, or the concentration.

    The concentration is the power of their size that the weights of a mixture's Gaussians are multiplied by.
    """
    out, step = light.copy(), STEP
    if k == len(COMMON):
        size = np.sqrt(np.maximum(light[..., 3] + light[..., 5], 1e-6))
        out[..., 0] *= size**step
        out[..., 0] /= out[..., 0].sum(axis=-1, keepdims=True)
        return out
    if k < 2:
        out[..., 1 + k] += step
        return out
    bend = {2: (step, 0, step), 3: (step, 0, -step), 4: (0, step, 0)}[k]
    matrix = np.eye(2) + [[bend[0], bend[1]], [bend[1], bend[2]]]
    out[..., 1:3] = light[..., 1:3] @ matrix.T
    sxx, sxy, syy = np.moveaxis(light[..., 3:], -1, 0)
    covariance = matrix @ np.stack([np.stack([sxx, sxy], -1), np.stack([sxy, syy], -1)], -2) @ matrix.T
    out[..., 3:] = covariance[..., [0, 0, 1], [0, 1, 1]]
    return out
