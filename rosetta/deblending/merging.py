# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Galaxies that were detected in fragments: which fitted sources belong together, and their common template.

Spiral arms and knots are detected as sources of their own. A source in the light of a brighter one is a fragment of it
if smooth models do not fit its pixels (two galaxies in one line of sight are both smooth), or if it is much fainter and
a part of the galaxy is more probable than another galaxy of its colours just there.
"""

import numpy as np
from scipy.spatial import cKDTree

from .chance_neighbours import log_odds
from .engine.rendering import half_light_radius
from .shapes import overlap

__all__ = ["merged", "fragment_owners"]

FAINT = 0.02  # of a galaxy's flux: a fragment of less is one Gaussian of its moments


def fragment_owners(mixtures, place, flux, misfit, config, bands=None, told=0.0):
    """The source that each source is a fragment of.

    Parameters
    ----------
    mixtures : (n, K, 6) array
    place : (n, 2) array
        What the mixtures are about: east and north, arcsec.
    flux, misfit : (n,) array
        In the sharpest band: what the solver gives, and how badly the models fit there
        (``misfit`` of a `BandFit`).
    config : `~rosetta.deblending.config.MergingConfig`
    bands : (flux, error), optional
        Of all sources in every band, (n, n_band) nJy, the sharpest one first. None: colours and counts are not asked.
    told : (n,) array, optional
        Logarithm of the learned detector's odds that each is a source.

    Returns
    -------
    (n,) int array
        Its own row for a source that is no fragment. A fragment of a fragment belongs to the same owner.
    """
    owners, flux = np.arange(len(flux)), np.nan_to_num(flux)
    if len(flux) < 2:
        return owners
    radius = half_light_radius(mixtures)
    reach = np.maximum(config.reach, config.reach_radii * radius)
    one, two = cKDTree(place).query_pairs(reach.max(), output_type="ndarray").T
    fragment, owner = np.where(flux[one] < flux[two], (one, two), (two, one))
    apart = place[owner] - place[fragment]
    keep = (flux[fragment] > 0) & (np.hypot(*apart.T) < reach[owner])
    fragment, owner, apart = fragment[keep], owner[keep], apart[keep]
    own = flux * _overlap(mixtures, mixtures, np.zeros((len(flux), 2)), config.blur)
    inside = flux[owner] * _overlap(mixtures[owner], mixtures[fragment], apart, config.blur) / own[fragment]
    told = np.broadcast_to(told, len(flux))[fragment]
    belongs = misfit[fragment] > config.misfit
    if bands is not None:
        one, other = ([value[rows] for value in bands] for rows in (fragment, owner))
        odds = log_odds(inside, np.hypot(*apart.T), one, other, 0, config)
        odds -= config.trust * told
        belongs |= (flux[fragment] < config.share * flux[owner]) & (odds > config.log_odds)
    inside = np.where(belongs, inside, 0.0)
    order = np.argsort(inside)  # the last assignment counts: the source that gives most light there
    order = order[inside[order] > np.where(told < 0, config.inside_doubted, config.inside)[order]]
    owners[fragment[order]] = owner[order]
    for row in np.argsort(-flux, kind="stable"):  # brighter ones first: an owner's own owner is known by now
        owners[row] = owners[owners[row]]
    return owners


def merged(mixtures, place, flux, owners):
    """Templates of sources with all their fragments.

    Parameters
    ----------
    mixtures, place, flux
        As for `fragment_owners`.
    owners : (n,) int array
        From `fragment_owners`.

    Returns
    -------
    (m, L, 6) array
        For the m sources that are their own owners, in their order; components of weight 0 fill it up.
    """
    whole = np.flatnonzero(owners == np.arange(len(owners)))
    members = [np.flatnonzero(owners == row) for row in whole]
    templates = []
    for row, rows in zip(whole, members, strict=True):
        share = flux[rows] / flux[rows].sum() if len(rows) > 1 else np.ones(1)
        parts = []
        for one, part in zip(rows, share, strict=True):
            light = mixtures[one] if one == row or part > FAINT else _gaussian(mixtures[one])
            apart = place[one] - place[row]
            parts.append(np.column_stack([part * light[:, 0], light[:, 1:3] + apart, light[:, 3:]]))
        templates.append(np.concatenate(parts))
    out = np.zeros((len(whole), max(map(len, templates), default=mixtures.shape[1]), 6))
    for row, template in zip(out, templates, strict=True):
        row[: len(template)] = template
    return out


def _gaussian(mixture):
    """One Gaussian (1, 6) with the light, the centre and the second moments of a mixture (K, 6)."""
    weight = mixture[:, 0] / mixture[:, 0].sum()
    center = weight @ mixture[:, 1:3]
    east, north = (mixture[:, 1:3] - center).T
    spread = np.stack([east**2, east * north, north**2], axis=1)
    return np.concatenate([[mixture[:, 0].sum()], center, weight @ (mixture[:, 3:] + spread)])[None]


def _overlap(one, two, apart, blur):
    """Overlap of mixtures whose places lie ``apart`` (n, 2), both blurred by a FWHM (arcsec): (n,)."""
    one = one.copy()
    one[..., 1:3] += apart[:, None]
    return overlap(one, two, 2.0 * (blur / 2.3548) ** 2)
