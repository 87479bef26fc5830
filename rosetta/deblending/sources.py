# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Sources of a tile: where they are, what they start from, and how they lie on each image."""

from dataclasses import dataclass, field, replace

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord

from ..detection.detection import point_variance
from ..images.filtering import filter_sigma
from ..images.positions import joined
from . import shapes
from .engine.placement import Placement
from .source_list import coincident

__all__ = ["Sources", "placed_on", "seen_at", "truncation"]

OF_IMAGE = 0.2  # of the width of the image: largest half-light radius


@dataclass(frozen=True, eq=False)
class Sources:
    """Sources before their shapes are fitted.

    Attributes
    ----------
    index : (n,) int array
        Row of each in the list of the job; -1 for one that the residuals showed.
    coord : `~astropy.coordinates.SkyCoord`
        True positions, in the space image's frame; sources of one place have one position.
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
    solution : `~rosetta.AstrometricSolution` or None
        Says where the ground headers put the sources; None: at their true positions.
    """

    index: np.ndarray
    coord: SkyCoord
    snr: np.ndarray
    start: np.ndarray
    largest: np.ndarray
    free: np.ndarray
    listed: np.ndarray
    solution: object
    _places: dict = field(default_factory=dict, repr=False)

    @classmethod
    def of_job(cls, index, job, detections, solution, config):
        """Some of a job's sources; where no shape is given they start from the moments of the nearest detection."""
        coord, given, free = job.coord[index], job.start[index], job.free[index]
        coord = coord[coincident(coord)]
        start, snr, largest = _start(detections, coord, config)
        start = np.where(np.isnan(given), start, given)
        largest = np.where(free[:, shapes.SIZE], largest, np.inf)
        return cls(index, coord, snr, start, largest, free, job.listed[index], solution)

    def __len__(self):
        return len(self.index)

    @property
    def aligned(self):
        """Whether their positions on the ground images are known far better than a PSF is wide."""
        return self.solution is not None and self.solution.verdict == "ok"

    def of(self, rows):
        """Some of the sources."""
        places = {band: (xy[rows], jacobian[rows]) for band, (xy, jacobian) in self._places.items()}
        arrays = (getattr(self, name)[rows] for name in ("index", "coord", "snr", "start", "largest", "free", "listed"))
        return Sources(*arrays, self.solution, places)

    def elsewhere(self, rows):
        """Some of the sources, for images with other pixels."""
        return replace(self.of(rows), _places={})

    def joined(self, other):
        """These sources and others."""
        names = ("index", "snr", "start", "largest", "free", "listed")
        arrays = {name: np.concatenate([getattr(one, name) for one in (self, other)]) for name in names}
        return Sources(coord=joined([self.coord, other.coord]), solution=self.solution, **arrays)

    def starting_from(self, start):
        """The same sources with other shapes to start from."""
        return replace(self, start=start)

    def and_at(self, coord, detections, config):
        """These sources and more, at positions that the residuals showed."""
        n, free = len(coord), np.ones((len(coord), self.free.shape[1]), bool)
        start, snr, largest = _start(detections, coord, config)
        largest = np.minimum(largest, config.engine.largest_residual)
        return self.joined(
            Sources(np.full(n, -1), coord, snr, start, largest, free, np.zeros(n, bool), self.solution)
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
            self._places[image.band] = image.place(seen_at(self.coord, image, self.solution))
        share = truncation(self.snr)
        return placed_on(image, *self._places[image.band], share if light == 1.0 else light * share, wavelength, config)


def seen_at(coord, image, solution):
    """Where the header of an image puts sources of a scene at ``coord``.

    The joint frame of the ground bands: on simulated fields a single band's own field is farther from the truth.
    """
    return coord if solution is None or image.side == "space" else solution.seen_position(coord)


def placed_on(image, xy, jacobian, share, wavelength, config):
    """A `Placement`, with what the band's wavelength and PSF leave uncertain about sizes."""
    gradient = config.size_gradient * abs(np.log(image.wavelength / wavelength))
    blur = 2.0 * config.psf_error * (image.fwhm / 2.3548) ** 2
    return Placement(image, xy, jacobian, share, gradient, blur)


def truncation(snr):
    """Share of their light that stamps of sources may leave out, (n,): a tenth of the noise."""
    return np.clip(0.1 / np.maximum(snr, 1.0), 1e-5, 1e-2)


def _start(detections, coord, config):
    """Shapes to start from, S/N, and largest half-light radii.

    Shapes are mean galaxies with the moments of the nearest detection, the PSF's width removed. A source whose size the
    pixels cannot tell, because it is faint or a neighbour took its light, would otherwise grow to fill the image.
    """
    n, engine = len(coord), config.engine
    largest = np.full(n, engine.largest_residual)
    a, b = np.full((2, n), config.start_radius)
    theta, snr = np.zeros((2, n))
    if n and len(detections):
        found, image = detections.table, detections.image
        index, separation, _ = coord.match_to_catalog_sky(found["sky_centroid"])
        nearest, _, _ = found["sky_centroid"].match_to_catalog_sky(coord)
        # The centre of a large galaxy is known less well: its detection belongs to the position nearest to it. (A blend
        # is long, but no wider than a galaxy.)
        mutual = nearest[index] == np.arange(n)
        reach = np.where(mutual, np.maximum(config.match, 0.5 * np.asarray(found["b"])[index]), config.match)
        near = separation.to_value(u.arcsec) < reach
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
        largest = np.minimum(largest, OF_IMAGE * min(image.shape) * image.pixel_scale)
    radius = np.clip(np.sqrt(a * b), 0.01, 3.0)
    disc = shapes.base_parameters(radius, np.clip(np.log(a / b), 0.0, 1.5), theta)
    return disc + engine.profile_mean @ shapes.DIRECTIONS[len(engine.prior_sigma) :], snr, largest
