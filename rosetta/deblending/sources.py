# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Sources of a tile: where they are, what they start from, and how they lie on each image."""

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.spatial import cKDTree

from ..detection.detection import point_variance
from ..images.filtering import filter_sigma
from . import shapes
from .engine.placement import Placement

__all__ = ["Sources", "placed_on", "seen_at", "true_at", "truncation"]

ARRAYS = ("index", "east_north", "snr", "start", "largest", "free", "listed", "odds")  # with a row per source


@dataclass(frozen=True, eq=False)
class Sources:
    """Sources before their shapes are fitted.

    Attributes
    ----------
    index : (n,) int array
        Row of each in the list of the job; -1 for one that the residuals showed.
    east_north : (n, 2) array
        True positions in the tangent plane of the images, arcsec; sources of one place have one position.
    snr : (n,) array
        Of the detection; 0 where there was none.
    start : (n, N_PARAMETER) array
        Shapes to start from.
    largest : (n,) array
        The largest half-light radius that each may have, arcsec.
    free : (n, n_shape) bool array
        What the fit may change of each shape.
    listed : (n,) bool array
        Whether a user gave the position: such a source is no fragment of another.
    odds : (n,) array
        Logarithm of the learned detector's odds that it is a source; 0 where it is not asked.
    solution : `~rosetta.AstrometricSolution` or None
        Says where the ground headers put the sources; None: at their true positions.
    """

    index: np.ndarray
    east_north: np.ndarray
    snr: np.ndarray
    start: np.ndarray
    largest: np.ndarray
    free: np.ndarray
    listed: np.ndarray
    odds: np.ndarray
    solution: object
    _places: dict = field(default_factory=dict, repr=False)

    @classmethod
    def of_job(cls, index, job, detections, solution, config):
        """Some of a job's sources; where no shape is given they start from the moments of the nearest detection."""
        east_north, given, free = job.east_north[index], job.start[index], job.free[index]
        start, snr, largest = _start(detections, east_north, config)
        start = np.where(np.isnan(given), start, given)
        largest = np.where(free[:, shapes.SIZE], largest, np.inf)
        return cls(index, east_north, snr, start, largest, free, job.listed[index], job.odds[index], solution)

    def __len__(self):
        return len(self.index)

    @property
    def aligned(self):
        """Whether their positions on the ground images are known far better than a PSF is wide."""
        return self.solution is not None and self.solution.verdict == "ok"

    def of(self, rows):
        """Some of the sources."""
        places = {band: (xy[rows], jacobian[rows]) for band, (xy, jacobian) in self._places.items()}
        return Sources(*(getattr(self, name)[rows] for name in ARRAYS), self.solution, places)

    def elsewhere(self, rows):
        """Some of the sources, for images with other pixels."""
        return replace(self.of(rows), _places={})

    def joined(self, other):
        """These sources and others."""
        arrays = (np.concatenate([getattr(one, name) for one in (self, other)]) for name in ARRAYS)
        return Sources(*arrays, self.solution)

    def starting_from(self, start):
        """The same sources with other shapes to start from."""
        return replace(self, start=start)

    def and_at(self, east_north, odds, detections, config):
        """These sources and more, at positions (n, 2) that the residuals showed; ``odds`` (n,) as of the others."""
        n, free = len(east_north), np.ones((len(east_north), self.free.shape[1]), bool)
        start, snr, largest = _start(detections, east_north, config)
        largest = np.minimum(largest, config.engine.largest_residual)
        return self.joined(
            Sources(np.full(n, -1), east_north, snr, start, largest, free, np.zeros(n, bool), odds, self.solution)
        )

    def on(self, image, wavelength, config, light=1.0):
        """How the sources lie on an image, a `Placement`.

        Parameters
        ----------
        image : `~rosetta.images.image.BandImage`
        wavelength : float
            Of the image that the templates are those of, nm.
        config : `EngineConfig`
        light : float, optional
            Stamps may leave out this many times as much light as they usually do.
        """
        if image.band not in self._places:  # the WCS is asked once for a source and band
            self._places[image.band] = image.place(seen_at(self.east_north, image, self.solution))
        share = truncation(self.snr)
        return placed_on(image, *self._places[image.band], share if light == 1.0 else light * share, wavelength, config)


def seen_at(east_north, image, solution):
    """Where the header of an image puts sources of a scene, (n, 2) in the tangent plane.

    The joint frame of the ground bands: on simulated fields a single band's own field is farther from the truth.
    """
    if solution is None or image.side == "space":
        return east_north
    return image.tangent_plane.east_north(solution.seen_position(image.tangent_plane.sky(east_north)))


def true_at(east_north, image, solution):
    """The positions (n, 2) in the tangent plane of what the header of an image puts at ``east_north``."""
    if solution is None or image.side == "space" or len(east_north) == 0:
        return east_north
    return image.tangent_plane.east_north(solution.true_position(image.tangent_plane.sky(east_north)))


def placed_on(image, xy, jacobian, share, wavelength, config):
    """A `Placement`, with what the band's wavelength and PSF leave uncertain about sizes."""
    gradient = config.size_gradient * abs(np.log(image.wavelength / wavelength))
    blur = 2.0 * config.psf_error * (image.fwhm / 2.3548) ** 2
    return Placement(image, xy, jacobian, share, gradient, blur)


def truncation(snr):
    """Share of their light that stamps of sources may leave out, (n,): a tenth of the noise."""
    return np.clip(0.1 / np.maximum(snr, 1.0), 1e-5, 1e-2)


def _start(detections, east_north, config):
    """Shapes to start from, S/N, and largest half-light radii.

    Shapes are mean galaxies with the moments of the nearest detection, the PSF's width removed. A source whose size the
    pixels cannot tell, because it is faint or a neighbour took its light, would otherwise grow to fill the image.
    """
    n, engine = len(east_north), config.engine
    largest = np.full(n, engine.largest_residual)
    a, b = np.full((2, n), config.start_radius)
    theta, snr = np.zeros((2, n))
    if n and len(detections):
        found, image = detections.table, detections.image
        separation, index = cKDTree(detections.east_north).query(east_north)
        _, nearest = cKDTree(east_north).query(detections.east_north)
        # The centre of a large galaxy is known less well: its detection belongs to the position nearest to it. (A blend
        # is long, but no wider than a galaxy.)
        mutual = nearest[index] == np.arange(n)
        reach = np.where(mutual, np.maximum(config.match, 0.5 * np.asarray(found["b"])[index]), config.match)
        near = separation < reach
        snr[near] = np.asarray(found["snr"])[index[near]]
        point = point_variance(image, snr[near], detections.config)
        seen = np.maximum(point, 0.0) + filter_sigma(image, detections.config.filter_fwhm) ** 2
        for out, name in ((a, "a"), (b, "b")):
            width2 = np.asarray(found[name])[index[near]] ** 2 - point
            # Nothing is smaller than a part of the error of its size: the fit could not make it grow.
            error = 2.0 * (seen + np.maximum(width2, 0.0)) / np.maximum(snr[near], 1.0)
            out[near] = np.sqrt(np.maximum(width2, 0.25 * error))
        theta[near] = np.asarray(found["theta"])[index[near]]
        # The half-light radius of an exponential disc whose segment ends at the threshold.
        disc = 1.678 * np.asarray(found["radius"])[index[near]] / np.log(snr[near] / detections.config.threshold)
        disc = np.maximum(engine.largest_disc * disc, 1.01 * np.sqrt(a * b)[near])
        largest[near] = np.minimum(disc, engine.largest_scale)
    if detections is not None:  # of a source that holds more of the image, the rest cannot be told from the sky
        image = detections.image
        largest = np.minimum(largest, config.largest_share * min(image.shape) * image.pixel_scale)
    radius = np.clip(np.sqrt(a * b), 0.01, 3.0)
    disc = shapes.base_parameters(radius, np.clip(np.log(a / b), 0.0, 1.5), theta)
    return disc + engine.profile_mean @ shapes.DIRECTIONS[len(engine.prior_sigma) :], snr, largest
