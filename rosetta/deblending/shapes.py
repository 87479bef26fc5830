# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The family of source shapes.

A shape is a vector of ``N_PARAMETER`` numbers; `mixture` turns it into a Gaussian mixture. The family
holds a galaxy's concentric light (eight Gaussians of fixed relative widths, free weights, one log-shear,
rounder inside) and a star (all sizes to zero). Every vector is a valid shape, so a least-squares step may move
freely in it.
"""

from functools import lru_cache

import numpy as np
from scipy.optimize import nnls
from scipy.special import expit

__all__ = ["DIRECTIONS", "N_PARAMETER", "base_parameters", "centroids", "mixture", "overlap", "tangents"]

# Widths of the Gaussians in units of the shape's scale (about a half-light radius).
WIDTHS = np.geomspace(0.04, 4.0, 8)
EAST, NORTH, LN_SCALE, SHEAR_1, SHEAR_2, INNER = range(6)
LOGITS = slice(6, 6 + len(WIDTHS))
N_PARAMETER = 6 + len(WIDTHS)
POINT = np.log(1e-3)  # of the scale, arcsec: no image tells it from none


def _directions():
    """Directions in shape space: centre, size, shears, and weights of groups of Gaussians, core to wings."""
    groups = [[0, 1], [2, 3], [4], [6], [7]]  # the sixth Gaussian is what the others are relative to
    rows = np.zeros((5 + len(groups), N_PARAMETER))
    rows[range(5), range(5)] = 1.0
    for row, group in zip(rows[5:], groups, strict=True):
        row[[LOGITS.start + k for k in group]] = 1.0
    return rows


#: What a fit may change of a shape, (n_shape, N_PARAMETER), and the steps of its numerical derivatives.
DIRECTIONS = _directions()
STEP = np.array([0.01, 0.01, 0.02, 0.02, 0.02, 0.05, 0.05, 0.05, 0.05, 0.05])
SIZE = 2  # the direction of the scale


@lru_cache(maxsize=1)
def exponential_logits():
    """Log weights with which the family is an exponential disc of half-light radius one."""
    radius = np.geomspace(0.01, 6.0, 300)
    disc = np.exp(-1.678347 * radius)
    basis = np.exp(-0.5 * (radius[:, None] / WIDTHS) ** 2) / (2.0 * np.pi * WIDTHS**2)
    light = np.sqrt(radius**2)[:, None]
    weight, _ = nnls(np.vstack([basis * light, np.eye(len(WIDTHS)) * 1e-4]), np.append(disc * light[:, 0], WIDTHS * 0))
    weight = np.maximum(weight / weight.sum(), 1e-3)  # a Gaussian of no weight could never grow
    return np.log(weight / weight.sum())


def base_parameters(half_light_radius, log_axis_ratio, angle):
    """Shape vectors of exponential discs.

    Parameters
    ----------
    half_light_radius : (n,) array
        Along the geometric-mean axis, arcsec.
    log_axis_ratio : (n,) array
        ln(major / minor), >= 0.
    angle : (n,) array
        Of the major axis, radians from east towards north.

    Returns
    -------
    (n, N_PARAMETER) float64 array
    """
    parameters = np.zeros((len(half_light_radius), N_PARAMETER))
    parameters[:, LN_SCALE] = np.log(half_light_radius)
    parameters[:, SHEAR_1] = log_axis_ratio * np.cos(2.0 * angle)
    parameters[:, SHEAR_2] = log_axis_ratio * np.sin(2.0 * angle)
    parameters[:, INNER] = 2.0
    parameters[:, LOGITS] = exponential_logits()
    return parameters


def mixture(parameters):
    """Gaussian mixtures of shape vectors.

    Parameters
    ----------
    parameters : (n, N_PARAMETER) array

    Returns
    -------
    (n, 8, 6) float64 array
        See `rosetta.deblending.engine.rendering`.
    """
    logit = parameters[:, LOGITS]
    weight = np.exp(logit - logit.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)  # (n, K)
    # Inner light is rounder: the shear fades from its outer value to a fraction inside half the scale.
    inside = 1.0 / (1.0 + (WIDTHS / 0.5) ** 2)
    fade = 1.0 - (1.0 - expit(parameters[:, INNER]))[:, None] * inside
    shear_1, shear_2 = parameters[:, SHEAR_1, None] * fade, parameters[:, SHEAR_2, None] * fade
    size = np.sqrt(shear_1**2 + shear_2**2 + 1e-12)
    cosh, sinhc = np.cosh(size), np.sinh(size) / size
    area = np.exp(2.0 * parameters[:, LN_SCALE, None]) * WIDTHS**2
    out = np.empty((*weight.shape, 6))
    out[..., 0] = weight
    out[..., 1:3] = parameters[:, None, EAST : NORTH + 1]
    out[..., 3], out[..., 5] = area * (cosh + shear_1 * sinhc), area * (cosh - shear_1 * sinhc)
    out[..., 4] = area * shear_2 * sinhc
    return out


def tangents(parameters, mixtures):
    """Derivatives of ``mixtures``, those of ``parameters``, along `DIRECTIONS`: (n, n_shape, K, 6)."""
    moved = [mixture(parameters + step * row) for step, row in zip(STEP, DIRECTIONS, strict=True)]
    return np.stack([(new - mixtures) / step for step, new in zip(STEP, moved, strict=True)], axis=1)


def centroids(mixtures):
    """Mean position (east, north) of the light of mixtures, (..., 2)."""
    return (mixtures[..., :1] * mixtures[..., 1:3]).sum(axis=-2)


def overlap(left, right, blur):
    """Integrals of the products of mixtures (n, K, 6) and (n, L, 6), times 2 pi: (n,) array.

    ``blur`` (arcsec^2) is added to the variances of each product.
    """
    weight = left[:, :, None, 0] * right[:, None, :, 0]  # (n, K, L)
    east = left[:, :, None, 1] - right[:, None, :, 1]
    north = left[:, :, None, 2] - right[:, None, :, 2]
    sxx = left[:, :, None, 3] + right[:, None, :, 3] + blur
    sxy = left[:, :, None, 4] + right[:, None, :, 4]
    syy = left[:, :, None, 5] + right[:, None, :, 5] + blur
    det = sxx * syy - sxy**2
    chi = (syy * east**2 - 2.0 * sxy * east * north + sxx * north**2) / det
    return (weight * np.exp(-0.5 * chi) / np.sqrt(det)).sum(axis=(1, 2))


















