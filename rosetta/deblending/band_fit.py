# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""From planes and templates to the fit of every band."""

import numpy as np
from scipy import ndimage

from ..images.noise import THIN, significance
from ..images.sky import sky_weight
from .engine import shape_fit
from .engine.fluxes import solve
from .features import RINGS
from .scene import BandFit, breadth_scales

__all__ = ["fit_band", "image_of", "misfits"]







def image_of(plane, coord, header_coord, truncation, wavelength=None):
    """A plane as the shape fit sees it.

    Parameters
    ----------
    plane : `~rosetta.images.image.BandImage`
    coord, header_coord : `~astropy.coordinates.SkyCoord`
        True positions, and those in the ground headers' frame.
    truncation : (n,) array
        Share of the light that stamps may leave out.
    wavelength : float, optional
        Of the image that templates are those of, nm. None: this one's.

    Returns
    -------
    `~rosetta.deblending.engine.shape_fit.Image`
    """
    xy, jacobian = plane.place(header_coord if plane.side == "ground" else coord)
    scales = breadth_scales(plane, wavelength or plane.wavelength)
    return shape_fit.Image(plane.data, plane.variance, sky_weight(plane), plane.psf, xy, jacobian, truncation, *scales)




def fit_band(plane, image, mixtures, slope, root):
    """Fluxes, covariance, chi2 and template slopes of all sources in one band.

    Parameters
    ----------
    plane : `~rosetta.images.image.BandImage`
    image : `~rosetta.deblending.engine.shape_fit.Image`
    mixtures : (n, K, 6) array
    slope : (n, n_shape) array
        See `rosetta.deblending.engine.shape_fit.flux_slopes`.
    root : (n,) int array
        The first source at each source's place: sources of one place have one breadth.

    Returns
    -------
    fit : `~rosetta.deblending.scene.BandFit`
        Its covariance is that of uncorrelated pixels, its ``noise`` is 1, and its ``plane`` None: that of the whole
        field takes its place, and the tile's pixels can be forgotten.
    scatter : (m,) float32 array
        Significance of point sources in the residuals, on every third pixel each way.
    """
    n = len(mixtures)
    alone, place = np.unique(root, return_inverse=True)
    breadth, breadth_error, design = shape_fit.breadths(mixtures[alone], image.of(alone))
    breadth, breadth_error, design = breadth[place], breadth_error[place], design.of(place)
    found = solve(design, plane.data, plane.variance, image.weight)
    left = plane.data - design.image(np.nan_to_num(found.flux))
    root = np.where(plane.valid, 1.0 / np.sqrt(plane.variance), 0.0)
    shown = significance(left * root, plane.valid, plane.psf)
    scatter = shown[::THIN, ::THIN]
    at = image.xy[:, :, None] + image.jacobian @ RINGS.T  # (n, 2, n_point)
    around = [np.nan_to_num(at[:, k], nan=-1e6) for k in (1, 0)]

    everywhere = np.ones(plane.shape)
    light = np.maximum(np.nan_to_num(found.flux), 0.0)
    overlap, alone = design.project(design.image(light)), design.squares() * light
    blendedness = 1.0 - np.divide(alone, overlap, out=np.ones(n), where=overlap > 0)

    misfit, pixels = misfits(design, left, image.weight)
    chi2, _ = misfits(design, left, root**2)
    chi2[pixels == 0] = np.nan
    inside = design.project(everywhere) / plane.psf.sum()
    result = BandFit(
        plane=None,
        flux=found.flux,
        covariance=found.covariance,
        noise=1.0,
        measured=found.measured,
        degenerate=found.degenerate,
        coverage=found.coverage / plane.psf.sum(),
        outside=1.0 - inside,
        chi2=chi2,
        misfit=misfit,
        pixels=np.round(pixels).astype(int),
        slope=slope,
        blendedness=np.clip(blendedness, 0.0, 1.0),
        breadth=breadth,
        breadth_error=breadth_error,
        residual_snr=ndimage.map_coordinates(np.nan_to_num(shown), around, order=1, cval=0.0),
    )
    return result, scatter[np.isfinite(scatter)]


def misfits(design, left, weight):
    """Mean square residual over the footprint of every source.

    Parameters
    ----------
    design : `~rosetta.deblending.engine.design.Design`
    left, weight : (ny, nx) array
        Data less the models of all sources, and what its square is multiplied by; 0 where there is no pixel.

    Returns
    -------
    misfit : (n,) array
        1 for a source without a pixel.
    pixels : (n,) array
    """
    foot = design.footprint(0.1)
    pixels = foot.project(weight > 0)
    return np.divide(foot.project(weight * left**2), pixels, out=np.ones(len(design)), where=pixels > 0), pixels






