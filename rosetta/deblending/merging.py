# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Galaxies that were detected in fragments: which fitted sources belong together, and their common template.

Spiral arms and knots are detected as sources of their own, and smooth models do not fit them. Two galaxies that happen
to lie in one line of sight are both smooth, and the models fit. So a source is a fragment if it overlaps a brighter
source and its own model does not fit its pixels.
"""

import numpy as np
from scipy.spatial import cKDTree

from .shapes import overlap

__all__ = ["merged", "fragment_owners"]


def fragment_owners(mixtures, place, flux, misfit, config):
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

    Returns
    -------
    (n,) int array
        Its own row for a source that is no fragment. A fragment of a fragment belongs to the same owner.
    """
    owners, flux = np.arange(len(flux)), np.nan_to_num(flux)
    if len(flux) < 2:
        return owners
    one, two = cKDTree(place).query_pairs(config.reach, output_type="ndarray").T
    fragment, owner = np.where(flux[one] < flux[two], (one, two), (two, one))
    keep = (flux[fragment] > 0) & (misfit[fragment] > config.misfit)
    fragment, owner = fragment[keep], owner[keep]
    own = flux * _overlap(mixtures, mixtures, np.zeros((len(flux), 2)), config.blur)
    apart = place[owner] - place[fragment]
    inside = flux[owner] * _overlap(mixtures[owner], mixtures[fragment], apart, config.blur) / own[fragment]
    order = np.argsort(inside)  # the last assignment counts: the source that gives most light there
    order = order[inside[order] > config.inside]
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
    n_component = mixtures.shape[1]
    out = np.zeros((len(whole), n_component * max(map(len, members), default=1), 6))
    for k, (row, rows) in enumerate(zip(whole, members, strict=True)):
        parts = mixtures[rows].copy()
        if len(rows) > 1:
            parts[:, :, 0] *= (flux[rows] / flux[rows].sum())[:, None]
            parts[:, :, 1:3] += (place[rows] - place[row])[:, None]
        out[k, : parts[..., 0].size] = parts.reshape(-1, 6)
    return out


def _overlap(one, two, apart, blur):
    """Overlap of mixtures whose places lie ``apart`` (n, 2), both blurred by a FWHM (arcsec): (n,)."""
    one = one.copy()
    one[..., 1:3] += apart[:, None]
    return overlap(one, two, 2.0 * (blur / 2.3548) ** 2)
