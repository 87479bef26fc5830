# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Gaussian mixtures of the intrinsic light (multi-Gaussian expansions, Cappellari 2002)."""

from functools import lru_cache

import numpy as np
from scipy.optimize import brentq, nnls
from scipy.special import gammainc

__all__ = ["TRUNCATION", "half_light_radii", "moments", "scene_mixtures"]

#: Profiles steeper than an exponential end at this many half-light radii.
TRUNCATION = 8.0


@lru_cache(maxsize=32)
def sersic_mixture(sersic):
    """Weights and sigmas (in half-light radii) of Gaussians that sum to a Sersic profile of unit flux.

    Parameters
    ----------
    sersic : float
        Sersic index; 0.5 is a Gaussian.

    Returns
    -------
    weight, sigma : `~numpy.ndarray`
    """
    if sersic == 0.5:
        return np.ones(1), np.array([1 / np.sqrt(2 * np.log(2))])
    inverse = 1 / sersic
    if sersic > 1:
        # The half-light radius is that of the truncated profile, as in `galsim.Sersic`.
        def excess(b):
            return gammainc(2 * sersic, b) - 0.5 * gammainc(2 * sersic, b * TRUNCATION**inverse)

        b = brentq(excess, 0.1, 2 * sersic + 1)
        edge = TRUNCATION
    else:
        b = brentq(lambda b: gammainc(2 * sersic, b) - 0.5, 0.1, 2 * sersic + 1)
        edge = 7.0
    r = np.geomspace(3e-3, edge, 300)
    light = np.exp(-b * r**inverse)
    sigma = np.geomspace(0.015, 3.2, 9)
    basis = np.exp(-0.5 * (r[:, None] / sigma) ** 2) / (2 * np.pi * sigma**2)
    # Weighted by the light per unit log radius: errors count where the flux is.
    importance = np.sqrt(light * r**2)[:, None] / np.maximum(light, light[0] * 1e-5)[:, None]
    amplitude, _ = nnls(basis * importance, light * importance[:, 0])
    keep = amplitude > 0.002 * amplitude.sum()
    weight, sigma = amplitude[keep] / amplitude[keep].sum(), sigma[keep]
    # Half of the light exactly within the half-light radius, which a fit in surface brightness misses by 1 to 2 %.
    half = brentq(lambda r: 0.5 - weight @ np.exp(-0.5 * (r / sigma) ** 2), 0.5, 2.0)
    return weight, sigma / half


def scene_mixtures(scene, reference):
    """The mixture of every source, weighted by the light of one band.

    Parameters
    ----------
    scene : `~rosetta.simulate.population.Scene`
    reference : int
        Index of the band.

    Returns
    -------
    `~numpy.ndarray`, shape (n, K, 6)
        Weight, east, north (arcsec), Sxx, Sxy, Syy (arcsec^2); padded with zero weights.
    """
    terms = [[] for _ in range(len(scene))]
    for k, owner in enumerate(scene.owner):
        flux = scene.flux[k, reference]
        east, north = scene.offset[k]
        if scene.sersic[k] == 0:
            terms[owner].append(np.array([[flux, east, north, 0, 0, 0]]))
            continue
        galaxy = scene.real_galaxy(k)
        if galaxy is not None:
            terms[owner].append(_turned(galaxy.mixture, scene.shape[k], flux, scene.offset[k]))
            continue
        weight, sigma = sersic_mixture(float(scene.sersic[k]))
        g1, g2 = scene.shape[k]
        shear = np.array([[1 + g1, g2], [g2, 1 - g1]]) / np.sqrt(1 - g1**2 - g2**2)
        unit = shear @ shear.T
        rows = np.empty((weight.size, 6))
        rows[:, 0] = flux * weight
        rows[:, 1:3] = east, north
        var = (sigma * scene.radius[k]) ** 2
        rows[:, 3:] = var[:, None] * np.array([unit[0, 0], unit[0, 1], unit[1, 1]])
        terms[owner].append(rows)
    terms = [np.concatenate(t) for t in terms]
    out = np.zeros((len(terms), max((len(t) for t in terms), default=1), 6))
    for row, term in zip(out, terms):
        row[: len(term)] = term
        row[:, 0] /= row[:, 0].sum()
    return out


def _turned(mixture, shape, flux, offset):
    """Round Gaussians (K, 4) of a real galaxy, mirrored and turned, as rows of a mixture (K, 6)."""
    weight, x, y, sigma = mixture.T
    (turn, parity), zero = shape, np.zeros_like(sigma)
    x = parity * x
    east = offset[0] + np.cos(turn) * x - np.sin(turn) * y
    north = offset[1] + np.sin(turn) * x + np.cos(turn) * y
    return np.stack([flux * weight, east, north, sigma**2, zero, sigma**2], axis=1)


def moments(mixture):
    """Ellipticity (distortion) of mixtures.

    Parameters
    ----------
    mixture : `~numpy.ndarray`, shape (n, K, 6)

    Returns
    -------
    e1, e2 : `~numpy.ndarray`
        (Qxx - Qyy) / (Qxx + Qyy) and 2 Qxy / (Qxx + Qyy) with x east and y north; 0 for points.
    """
    w, x, y, sxx, sxy, syy = np.moveaxis(mixture, -1, 0)
    mx, my = np.sum(w * x, axis=1, keepdims=True), np.sum(w * y, axis=1, keepdims=True)
    qxx = np.sum(w * (sxx + (x - mx) ** 2), axis=1)
    qyy = np.sum(w * (syy + (y - my) ** 2), axis=1)
    qxy = np.sum(w * (sxy + (x - mx) * (y - my)), axis=1)
    size = np.where(qxx + qyy > 0, qxx + qyy, 1.0)
    return (qxx - qyy) / size, 2 * qxy / size


def half_light_radii(mixture):
    """Radius of the circle around the source position that holds half of the light.

    Parameters
    ----------
    mixture : `~numpy.ndarray`, shape (n, K, 6)

    Returns
    -------
    `~numpy.ndarray`, shape (n,)
        Arcsec, good to about one per cent; 0 for points.
    """
    # A fixed spiral of unit-variance points stands in for every Gaussian.
    k = np.arange(256)
    r = np.sqrt(-2 * np.log(1 - (k + 0.5) / k.size))
    turn = k * np.pi * (3 - np.sqrt(5))
    a, b = r * np.cos(turn), r * np.sin(turn)
    out = np.empty(len(mixture))
    for i, rows in enumerate(mixture):
        w, x, y, sxx, sxy, syy = rows[rows[:, 0] > 0].T[..., None]
        lxx = np.sqrt(sxx)
        lxy = np.divide(sxy, lxx, out=np.zeros_like(sxy), where=lxx > 0)
        lyy = np.sqrt(np.maximum(syy - lxy**2, 0))
        radius = np.hypot(x + lxx * a, y + lxy * a + lyy * b).ravel()
        order = np.argsort(radius)
        light = np.cumsum(np.broadcast_to(w, (w.size, k.size)).ravel()[order])
        out[i] = np.interp(0.5 * light[-1], light, radius[order])
    return out
