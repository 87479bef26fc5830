# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Stars of an astrometric catalogue on images: which detected source is which star, and how far off its position is."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ..flags import Flag
from ..images.image import extent
from .epochs import epoch
from .measurement import BandOffsets
from .star_positions import fit_stars

__all__ = ["CatalogueTieConfig", "matched_stars", "star_offsets"]


@dataclass(frozen=True)
class CatalogueTieConfig:
    """Which sources are stars of a catalogue, and which of them count.

    Attributes
    ----------
    reach, same : float
        arcsec: the largest error of a header, and the distance within which a source is the star.
    bright : tuple of int
        Sources that vote for the shift: so many, and so many more for each star.
    most_misfit : float
        Of the residuals in the core over its light: more is no star, or one whose core is flat.
    most_missing : float
        Of a star's light: cores of saturated stars are masked.
    psf_error : float
        Of each pixel's model, relative.
    """

    reach: float = 5.0
    same: float = 0.3
    bright: tuple = (10, 4)
    most_misfit: float = 0.2
    most_missing: float = 0.1
    psf_error: float = 0.02


def matched_stars(stars, sources, config, agree_share):
    """The star that each source is.

    The shift under which most stars fall on a bright source is found first (of equal ones the smallest).

    Parameters
    ----------
    stars : `~rosetta.astrometry.reference_stars.ReferenceStars`
    sources : `~rosetta.astrometry.measurement.Sources`
    config : CatalogueTieConfig
    agree_share : float
        Of the stars on the image, that must be found.

    Returns
    -------
    star : numpy.ndarray of int, shape (n,)
        Row of the catalogue; -1 for none.
    seen : int
        Stars of the catalogue that lie on the reference image.
    """
    star, found = np.full(len(sources.label), -1), sources.east_north
    reference, (sky, _) = sources.reference, stars.at(epoch(sources.reference.wcs))
    ny, nx = reference.shape
    place = reference.tangent_plane.east_north(sky)
    low, high = extent([reference])
    low, high = low - config.reach, high + config.reach  # beyond, a WCS may have no inverse
    near = np.flatnonzero(((place > low) & (place < high)).all(1))
    x, y = reference.xy(place[near]).T
    inside = (x > -0.5) & (y > -0.5) & (x < nx - 0.5) & (y < ny - 0.5)
    near = near[inside]
    place = place[near]
    if len(near) == 0 or len(star) == 0:
        return star, len(near)
    brightest = np.argsort(-np.asarray(sources.table["snr"], float))[: config.bright[0] + config.bright[1] * len(near)]
    tree = cKDTree(found[brightest])
    within = tree.query_ball_point(place, config.reach)
    trials = [found[brightest[j]] - p for p, js in zip(place, within) for j in js]
    if not trials:
        return star, len(near)
    trials = np.array(sorted(trials, key=lambda shift: np.hypot(*shift)))  # (n_trial, 2)
    votes = [(tree.query(place + shift)[0] < config.same).sum() for shift in trials]
    shift = trials[int(np.argmax(votes))]
    apart, source = cKDTree(found).query(place + shift)
    shift = shift + np.median((found[source] - place - shift)[apart < config.same], axis=0)
    apart, source = cKDTree(found).query(place + shift)
    for k in np.argsort(-apart):  # the nearest star last: it stays
        if apart[k] < config.same:
            star[source[k]] = near[k]
    if (star >= 0).sum() < agree_share * len(near):
        star[:] = -1  # as many fall on sources by chance
    return star, len(near)


def star_offsets(image, sources, stars, star, config):
    """Offsets of one image from the catalogue, each star where it was when the image was taken.

    Parameters
    ----------
    image : `~rosetta.images.image.BandImage`
    sources, stars, config
        As for `matched_stars`.
    star : numpy.ndarray of int, shape (n,)
        From there.

    Returns
    -------
    `~rosetta.astrometry.measurement.BandOffsets`
        ``cov_reference`` is the catalogue's.
    """
    n = len(star)
    known = np.flatnonzero(star >= 0)
    start, offset, cov_target, cov_reference = (np.full(s, np.nan) for s in [(n, 2), (n, 2), (n, 2, 2), (n, 2, 2)])
    if len(known):
        start[known] = image.xy(sources.east_north[known])
    fit = fit_stars(image, start, config.psf_error)
    flags = np.full(n, int(image.flags))
    fitted = np.flatnonzero(np.isfinite(fit.xy).all(1))
    if len(fitted):
        at, variance = stars.at(epoch(image.wcs))
        true = image.tangent_plane.east_north(at[star[fitted]])
        offset[fitted] = 1e3 * (true - image.east_north(*fit.xy[fitted].T))
        back = np.linalg.inv(image.jacobian(sources.east_north[fitted]))
        # What the PSF leaves in the core (a neighbour, a flat core) can be on one side.
        lopsided = (1e3 * image.fwhm / 2.3548 * fit.misfit[fitted]) ** 2
        noise = 1e6 * np.maximum(fit.chi2[fitted], 1.0)[:, None, None] * (back @ fit.cov[fitted] @ back.swapaxes(1, 2))
        cov_target[fitted] = noise + lopsided[:, None, None] * np.eye(2)
        cov_reference[fitted] = variance[star[fitted], None, :] * np.eye(2)
    with np.errstate(invalid="ignore"):
        strong = fit.snr > sources.config.min_snr
        whole, point = fit.missing < config.most_missing, fit.misfit < config.most_misfit
    usable = strong & whole & point
    found = np.isfinite(fit.snr)
    for condition, flag in (
        (star < 0, Flag.NO_DATA),
        ((star >= 0) & ~(found & strong), Flag.LOW_SNR),
        (found & ~whole, Flag.MASKED),
        (found & ~point | (np.nan_to_num(fit.chi2) > 3.0), Flag.POOR_FIT),
    ):
        flags[condition] |= int(flag)
    agrees = usable.sum() >= sources.config.min_sources
    return BandOffsets(
        image.band, offset, cov_target, cov_reference, fit.amplitude, fit.snr, fit.chi2, usable, flags, bool(agrees)
    )
