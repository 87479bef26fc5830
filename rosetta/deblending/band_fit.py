# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The fit of one band: fluxes, their covariance, and what the residuals say about every source."""

from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import ndimage, sparse

from ..images.noise import DISTANCES, overlap, significance, sky_products
from .engine.rendering import half_light_radius
from .point_sources import is_point
from .psf_width import point_widths
from .sky_plane import FoundSky, SkyPlane

__all__ = [
    "DISPLACED", "N_ANGLE", "POOR_CHI2", "RADII", "RINGS", "BandFit", "fit_band", "misfits", "shape_variance_factor",
]

RADII = (0.4, 0.8, 1.2)  # arcsec: an unrecognised neighbour lies within an arcsecond
N_ANGLE = 8
POOR_CHI2 = 3.0  # reduced chi2 from which a fit is poor
CIRCLES = (1.0, 2.0, 3.0, 4.0)  # in units of a source's half-light radius on the image
LIT = 0.5  # of the sky's noise: pixels with more light of sources than this tell nothing of the noise
_ANGLE = 2.0 * np.pi * np.arange(N_ANGLE) / N_ANGLE
#: Where residuals are looked at, (east, north) arcsec about a source: its centre, then rings.
RINGS = np.concatenate([np.zeros((1, 2)), *(r * np.stack([np.cos(_ANGLE), np.sin(_ANGLE)], -1) for r in RADII)])
#: Displacements (east, north) in units of a position error per axis: the mean product of what they do to two fluxes is
#: exact where fluxes are quadratic in the position (sigma points; Julier & Uhlmann 1997).
DISPLACED = np.sqrt(2.0) * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


@dataclass(frozen=True, eq=False)
class BandFit:
    """The sources of a scene in one band.

    Attributes
    ----------
    flux : (n,) array
        nJy; NaN where unmeasured.
    covariance : (n, n) sparse array
        nJy^2, from noise and neighbours, scaled by ``noise`` of both sources.
    point_noise : float
        How much larger the scatter of point-source fluxes is than uncorrelated pixels would give.
    noise : (n,) array
        The same for the template of each source: correlated noise averages out less in a larger one.
    measured, degenerate : (n,) bool array
        Whether there are usable pixels; whether another source has the same template.
    coverage, outside : (n,) array
        Share of a source's light on valid pixels, and off the image.
    chi2 : (n,) array
        Reduced, over the source's footprint.
    misfit : (n,) array
        The same in units of the sky's variance, without the sources' own photon noise.
    pixels : (n,) int array
        Valid pixels of the footprint.
    unmodelled : (n,) array
        nJy, of sources of poor chi2: the largest sum of the residuals in a circle about them, noise removed.
    slope : (n, n_shape) array
        Relative change of the flux along the template's directions.
    blendedness : (n,) array
        1 - sum f^2 / sum f F over the pixels, f the source's model and F the sum of all.
    breadth : (n,) array
        How broad the band sees the template; see `rosetta.deblending.engine.shape_fit.broadened`.
    breadth_error : (n,) array
        Relative error of the flux from that of the breadth.
    residual_snr : (n, n_point) array
        Significance of a point source in the residuals at `RINGS`, in units of its scatter.
    displaced : (n, 4) array
        Change of the flux, nJy, if the sources lie off their positions by the image's position error times `DISPLACED`;
        0 where the image is aligned.
    width : (n,) array
        Of bright point sources, over that of the PSF; NaN for others. See `rosetta.deblending.psf_width`.
    products : (2, n_distance) array
        What ``noise`` follows from: `~rosetta.images.noise.sky_products` of the residuals of the whole field.
    """

    flux: np.ndarray
    covariance: object
    point_noise: float
    noise: np.ndarray
    measured: np.ndarray
    degenerate: np.ndarray
    coverage: np.ndarray
    outside: np.ndarray
    chi2: np.ndarray
    misfit: np.ndarray
    pixels: np.ndarray
    unmodelled: np.ndarray
    slope: np.ndarray
    blendedness: np.ndarray
    breadth: np.ndarray
    breadth_error: np.ndarray
    residual_snr: np.ndarray
    displaced: np.ndarray
    width: np.ndarray
    products: np.ndarray

    @classmethod
    def per_source(cls):
        """Names of the attributes that hold a row per source."""
        return [field.name for field in fields(cls) if field.name not in ("covariance", "point_noise", "products")]

    def of(self, rows):
        """The fit of some of the sources."""
        arrays = {name: getattr(self, name)[rows] for name in self.per_source()}
        return replace(self, covariance=self.covariance[rows][:, rows], **arrays)

    @classmethod
    def unseen(cls, n, n_shape):
        """The fit of sources of which the band has no pixel."""
        nothing, none = np.full(n, np.nan), np.zeros(n, bool)
        return cls(
            flux=nothing, covariance=sparse.csc_array((n, n)), point_noise=1.0, noise=np.ones(n), measured=none,
            degenerate=none, coverage=np.zeros(n), outside=np.ones(n), chi2=nothing, misfit=np.ones(n),
            pixels=np.zeros(n, int), unmodelled=np.zeros(n), slope=np.zeros((n, n_shape)), blendedness=np.zeros(n),
            breadth=np.zeros(n), breadth_error=np.zeros(n), residual_snr=np.zeros((n, len(RINGS))),
            displaced=np.zeros((n, len(DISPLACED))), width=nothing, products=np.zeros((2, len(DISTANCES))),
        )


def fit_band(engine, mixtures, placed, slope, place, position_error=0.0, background=None):
    """Fluxes, covariance, chi2 and breadths of all sources in one band, and what is left of its sky.

    Parameters
    ----------
    engine : `~rosetta.deblending.engine.engine.Engine`
    mixtures : (n, K, 6) array
    placed : `~rosetta.deblending.engine.placement.Placement`
    slope : (n, n_shape) array
        See `rosetta.deblending.engine.shape_fit.flux_slopes`.
    place : (n,) int array
        The first source at each source's place: sources of one place have one breadth.
    position_error : float, optional
        Of all sources together on this image, arcsec per axis.
    background : {"plane", None}, optional
        What is solved for with the fluxes.

    Returns
    -------
    fit : `BandFit`
        Its covariance, and what is in units of scatter, is that of uncorrelated pixels.
    overlaps : (n, n_distance) array
        `~rosetta.images.noise.overlap` of every source.
    found_sky : `~rosetta.deblending.sky_plane.FoundSky` or None
    """
    n, image, sky, first = len(mixtures), placed.image, None, {}
    alone, number = np.unique(place, return_inverse=True)
    if background == "plane":
        # Subtracted at first: breadths must not describe the sky.
        sky = SkyPlane.of(image, engine.config)
        design = engine.render(mixtures[alone], placed.of(alone))
        found = engine.solve(design, image, sky, errors=False)
        image, sky = sky.without(image, found.sky)
        placed, first = replace(placed, image=image), {"first": (design, np.nan_to_num(found.flux))}
    breadth, breadth_error, design = engine.fit_breadths(mixtures[alone], placed.of(alone), **first)
    breadth, breadth_error, design = breadth[number], breadth_error[number], design.of(number)
    found = engine.solve(design, image, sky)
    found_sky = None if sky is None else FoundSky.of(sky, found)
    if sky is not None:
        image, _ = sky.without(image, found.sky)
    flux = np.nan_to_num(found.flux)
    residual = image.data - design.image(flux)
    inverse_sigma = np.where(image.valid, 1.0 / np.sqrt(image.variance), 0.0)
    shown = significance(residual * inverse_sigma, image.valid, image.mean_psf)
    at = placed.xy[:, :, None] + placed.jacobian @ RINGS.T  # (n, 2, n_point)
    around = [np.nan_to_num(at[:, k], nan=-1e6) for k in (1, 0)]

    light = np.maximum(flux, 0.0)
    seen = design.image(light)
    unlit = image.valid & (seen * np.sqrt(image.sky_weight) < LIT)
    common, own = design.project(seen), design.squares() * light
    blendedness = 1.0 - np.divide(own, common, out=np.ones(n), where=common > 0)
    blendedness = np.clip(blendedness, 0.0, 1.0)
    misfit, pixels = misfits(design, residual, image.sky_weight)
    chi2, _ = misfits(design, residual, inverse_sigma**2)
    chi2[pixels == 0] = np.nan
    total = image.psf.weights(*placed.xy.T) @ image.psf.cells.sum(axis=(1, 2))  # light that a stamp holds
    result = BandFit(
        flux=found.flux,
        covariance=found.covariance,
        point_noise=1.0,
        noise=np.ones(n),
        measured=found.measured,
        degenerate=found.degenerate,
        coverage=found.coverage / total,
        outside=1.0 - design.project(np.ones(placed.shape)) / total,
        chi2=chi2,
        misfit=misfit,
        pixels=np.round(pixels).astype(int),
        unmodelled=_unmodelled(mixtures, placed, residual, np.nan_to_num(chi2) > POOR_CHI2),
        slope=slope,
        blendedness=blendedness,
        breadth=breadth,
        breadth_error=breadth_error,
        residual_snr=ndimage.map_coordinates(np.nan_to_num(shown), around, order=1, cval=0.0),
        displaced=_displaced(engine, design, placed, flux, position_error),
        width=point_widths(
            engine, mixtures, placed, flux, blendedness, lambda rows: residual + design.of(rows).image(flux[rows])
        ),
        products=sky_products(residual * inverse_sigma, unlit),
    )
    sigma = np.where(image.valid, np.sqrt(image.variance), 0.0)
    weights = design.times(image.sky_weight * sigma).values
    overlaps = np.array([overlap(values) for values in weights]).reshape(n, len(DISTANCES))
    return result, overlaps, found_sky


def _unmodelled(mixtures, placed, residual, poor):
    """The largest sum of the residuals (ny, nx) in circles about poorly fitted sources, (n,) nJy; 0 for the others.

    A fit leaves no residual that looks like its model, but a wrong model misses light in the wings or the core.
    """
    out, image = np.zeros(len(mixtures)), placed.image
    radius = np.hypot(half_light_radius(mixtures), 0.5 * image.fwhm) / image.pixel_scale
    light, noise = np.where(image.valid, residual, 0.0), np.where(image.valid, image.variance, 0.0)
    for row in np.flatnonzero(poor):  # those have pixels on the image
        (x, y), reach = placed.xy[row], CIRCLES[-1] * radius[row]
        cut = tuple(slice(max(int(at - reach), 0), max(int(at + reach) + 2, 0)) for at in (y, x))
        rows, columns = (np.arange(n)[part] for n, part in zip(light.shape, cut, strict=True))
        apart = np.hypot(columns - x, rows[:, None] - y)
        inside = [apart < size * radius[row] for size in CIRCLES]
        out[row] = np.sqrt(max(0.0, *(light[cut][here].sum() ** 2 - noise[cut][here].sum() for here in inside)))
    return out


def _displaced(engine, design, placed, flux, position_error):
    """What errors of the position do to the fluxes, (n, 4) nJy: the models are moved, and fitted where they were."""
    image, model = placed.image, design.image(flux)
    if position_error == 0.0 or len(design) == 0:
        return np.zeros((len(design), len(DISPLACED)))
    steps = position_error * DISPLACED @ np.median(placed.jacobian, axis=0).T  # (4, 2) pixels (x, y)
    moved = [
        image.with_pixels(ndimage.shift(model, step[::-1], order=3), image.variance, sky_weight=image.sky_weight)
        for step in steps
    ]
    return np.stack([engine.fluxes(design, one)[0] - flux for one in moved], axis=1)


def shape_variance_factor(mixtures, fit):
    """How much larger the variances of shapes are than their fit says, (n,); ``fit`` is that of the reference band.

    It took its weights for the whole truth: photon noise and a family of shapes that does not hold this source show in
    the residual. The shape of a point is known.
    """
    return np.where(is_point(mixtures), 1.0, np.maximum(fit.misfit, 1.0))


def misfits(design, residual, weight):
    """Mean square residual over the footprint of every source.

    Parameters
    ----------
    design : `~rosetta.deblending.engine.design.Design`
    residual, weight : (ny, nx) array
        Data less the models of all sources, and what its square is multiplied by; 0 where there is no pixel.

    Returns
    -------
    misfit : (n,) array
        1 for a source without a pixel.
    pixels : (n,) array
    """
    foot = design.footprint(0.1)
    pixels = foot.project(weight > 0)
    return np.divide(foot.project(weight * residual**2), pixels, out=np.ones(len(design)), where=pixels > 0), pixels
