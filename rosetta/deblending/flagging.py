# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Flags of the sources of a scene: per band, and per row."""

import astropy.units as u
import numpy as np

from ..flags import Flag
from .band_fit import POOR_CHI2
from .psf_width import contradicted
from .single_band import only_in_reference
from .source_list import coincident
from .wrong_bands import wrong_bands

__all__ = ["flagged", "inseparable"]

INSEPARABLE = 0.95  # correlation of two fluxes whose errors are more than three times those of a source alone


def flagged(fits, images, pair, east_north, listed, reference, solution, config):
    """Flags that follow from the fits.

    Parameters
    ----------
    fits : dict of str to `~rosetta.deblending.band_fit.BandFit`
    images : dict of str to `~rosetta.images.image.BandImage`
    pair : `~rosetta.SkyPair`
    east_north : (n, 2) array
        Positions in the tangent plane of the images, arcsec.
    listed : (n,) bool array or None
        Whether a user gave the position; None: nobody gave any.
    reference : str
        Band of the templates.
    solution : `~rosetta.AstrometricSolution` or None
    config : `~rosetta.deblending.config.DeblenderConfig`

    Returns
    -------
    flags : (n,) int array
        Of the rows.
    of_bands : dict of str to (n,) int array
        What of them is true in each band.
    """
    of_bands = {band: _band_flags(fit, images[band], solution) for band, fit in fits.items()}
    for band in wrong_bands(fits, images, reference, config.wrong_bands):
        of_bands[band][fits[band].measured] |= int(Flag.POOR_FIT)
    for band, fit in fits.items():
        if contradicted(fit):
            of_bands[band] |= int(Flag.PSF_SUSPECT)
        if listed is not None:
            of_bands[band][inseparable(fit, listed)] |= int(Flag.DUPLICATE)
    flags = np.bitwise_or.reduce([_source_flags(fits, images, len(east_north)), *of_bands.values()])
    place = coincident(east_north)
    flags[np.bincount(place, minlength=len(place))[place] > 1] |= int(Flag.DUPLICATE)
    flags |= int(solution.flag) if solution is not None else 0
    alone = flags & int(Flag.DUPLICATE) == 0  # what shares its place with another has no flux of its own
    single = _only_in_reference(fits, images, pair, reference, solution, config.single_band)
    flags[alone & single] |= int(Flag.ARTEFACT)
    return flags, of_bands


def _band_flags(fit, image, solution):
    """Flags of all sources in one band, (n,) int array."""
    flags = np.full(len(fit.flux), int(image.flags), dtype=np.int64)
    inside = fit.outside < 0.999
    flags[~fit.measured] |= int(Flag.NO_DATA)
    flags[inside & (fit.outside > 0.02)] |= int(Flag.EDGE)
    flags[inside & (fit.coverage + fit.outside < 0.98)] |= int(Flag.MASKED)
    flags[fit.degenerate] |= int(Flag.DUPLICATE)
    flags[fit.measured & (fit.chi2 > POOR_CHI2)] |= int(Flag.POOR_FIT)
    if solution is not None and image.side == "ground":
        flags |= int(solution.flag)
    return flags


def inseparable(fit, listed):
    """Listed sources so near another listed one that a band hardly tells their fluxes apart.

    Parameters
    ----------
    fit : `~rosetta.deblending.band_fit.BandFit`
    listed : (n,) bool array

    Returns
    -------
    (n,) bool array
    """
    covariance, sigma = fit.covariance.tocoo(), np.sqrt(fit.covariance.diagonal())
    row, other = covariance.row, covariance.col
    near = (row != other) & (np.abs(covariance.data) > INSEPARABLE * sigma[row] * sigma[other])
    found = np.zeros(len(listed), bool)
    found[row[near & listed[row] & listed[other]]] = True
    return found


def _source_flags(fits, images, n):
    """Flags of a source that follow from what all bands see of it together, (n,) int array."""
    flags = np.zeros(n, dtype=np.int64)
    anywhere = np.any([fit.outside < 0.999 for fit in fits.values()], axis=0)
    flags[~anywhere] |= int(Flag.OUTSIDE)
    for side in ("ground", "space"):
        of_side = [fit.measured for band, fit in fits.items() if images[band].side == side]
        seen = np.any([np.zeros(n, dtype=bool), *of_side], axis=0)
        flags[anywhere & ~seen] |= int(Flag.ONE_SIDED)
        if side == "space":
            flags[anywhere & ~seen] |= int(Flag.GROUND_TEMPLATE)
    return flags


def _only_in_reference(fits, images, pair, reference, solution, config):
    """Rows that only the reference band shows; the two sides are compared where they are aligned."""
    aligned = solution is not None and not solution.flag & Flag.UNALIGNED
    comparable = {b: fit for b, fit in fits.items() if aligned or images[b].side == images[reference].side}
    edges = {}
    for name in comparable:
        band = pair.survey(images[name].side)[name]
        pivot, width = band.pivot.to_value(u.nm), band.width.to_value(u.nm)
        edges[name] = (pivot - 0.5 * width, pivot + 0.5 * width)
    return only_in_reference(comparable, edges, reference, config)
