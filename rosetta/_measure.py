# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""From planes and templates to the fit of every band."""

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve

from ._figures import RINGS
from ._geometry import offset_coord, tangent
from ._scene import BandFit, breadth_scales
from .core import field, fit
from .core.solve import solve

__all__ = [
    "fit_band", "ground_coord", "image_of", "misfits", "noise_factor", "significance", "sky_weight", "source_tokens",
]

SKY_BLOCK = 12.8  # arcsec: the sky level's variance is taken as constant over this
THIN = 3  # every so many pixels each way tell the noise: neighbours are correlated


def ground_coord(coord, offsets):
    """Where the ground headers put sources of true positions ``coord``.

    Parameters
    ----------
    coord : `~astropy.coordinates.SkyCoord`
    offsets : `~astropy.table.QTable` or None
        From the aligner; None, or a verdict of "abstain", leaves positions as in the headers.

    Returns
    -------
    `~astropy.coordinates.SkyCoord`
    """
    if offsets is None or offsets.meta["verdict"] == "abstain":
        return coord
    shift, _ = field.evaluate(offsets.meta["model"], tangent(coord, offsets.meta["center"]))
    # Offsets vary over arcseconds by far less than they are, so no inversion is needed.
    return offset_coord(coord, -shift[:, 0] / 1e3, -shift[:, 1] / 1e3)


def source_tokens(embedding, coord, header_coord):
    """Frozen tokens of sources: space and ground side by side, zeros where a side has no data.

    Returns
    -------
    (n, 2 * width) float32 array
    """
    width = next(iter(embedding.sides.values()))["tokens"].shape[-1]
    out = np.zeros((len(coord), 2 * width), np.float32)
    for k, (side, where) in enumerate((("space", coord), ("ground", header_coord))):
        if side in embedding.sides and len(coord):
            out[:, k * width : (k + 1) * width] = np.nan_to_num(embedding.tokens_at(where, side))
    return out


def image_of(plane, coord, header_coord, share, wavelength=None):
    """A plane as the shape fit sees it.

    Parameters
    ----------
    plane : `~rosetta._boundary.Plane`
    coord, header_coord : `~astropy.coordinates.SkyCoord`
        True positions, and those in the ground headers' frame.
    share : (n,) array
        Share of the light that stamps may leave out.
    wavelength : float, optional
        Of the image that templates are those of, nm. None: this one's.

    Returns
    -------
    `~rosetta.core.fit.Image`
    """
    xy, jacobian = plane.place(header_coord if plane.side == "ground" else coord)
    scales = breadth_scales(plane, wavelength or plane.wavelength)
    return fit.Image(plane.data, plane.variance, sky_weight(plane), plane.psf, xy, jacobian, share, *scales)


def sky_weight(plane):
    """Weights that do not know the sources' own photon noise.

    Where a PSF or a template is wrong, inverse variances that include a source's photons give its wings
    the say over its flux. Flat weights leave a misfit's first-order effect out of it.

    Parameters
    ----------
    plane : `~rosetta._boundary.Plane`

    Returns
    -------
    (ny, nx) float array
        Inverse variance of the sky level (the lower quartile of blocks); the inverse of the full variance where
        that is larger than the sky and the light seen there explain; 0 where invalid.
    """
    ny, nx = plane.shape
    usable = plane.valid & np.isfinite(plane.variance) & (plane.variance > 0)
    block = max(16, round(SKY_BLOCK / plane.pixel_scale))
    sky = np.ones((ny, nx))
    for y0 in range(0, ny, block):
        for x0 in range(0, nx, block):
            cut = (slice(y0, y0 + block), slice(x0, x0 + block))
            if usable[cut].any():
                sky[cut] = np.quantile(plane.variance[cut][usable[cut]], 0.25)
    bright = usable & (plane.data > 10.0 * np.sqrt(sky))
    gain = 0.0  # variance per light, nJy
    if bright.any():
        gain = max(0.0, float(np.median((plane.variance[bright] - sky[bright]) / plane.data[bright])))
    explained = 2.0 * sky + 3.0 * gain * np.maximum(plane.data, 0.0)
    return np.where(usable, 1.0 / np.where(plane.variance > explained, plane.variance, sky), 0.0)


def fit_band(plane, image, mixtures, slope, root):
    """Fluxes, covariance, chi2 and template slopes of all sources in one band.

    Parameters
    ----------
    plane : `~rosetta._boundary.Plane`
    image : `~rosetta.core.fit.Image`
    mixtures : (n, K, 6) array
    slope : (n, n_shape) array
        See `rosetta.core.fit.flux_slopes`.
    root : (n,) int array
        The first source at each source's place: sources of one place have one breadth.

    Returns
    -------
    fit : `~rosetta._scene.BandFit`
        Its covariance is that of uncorrelated pixels, its ``noise`` is 1, and its ``plane`` None: that of the whole
        field takes its place, and the tile's pixels can be forgotten.
    scatter : (m,) float32 array
        Significance of point sources in the residuals, on every third pixel each way.
    """
    n = len(mixtures)
    alone, place = np.unique(root, return_inverse=True)
    breadth, breadth_error, design = fit.breadths(mixtures[alone], image.of(alone))
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
        left=ndimage.map_coordinates(np.nan_to_num(shown), around, order=1, cval=0.0),
    )
    return result, scatter[np.isfinite(scatter)]


def misfits(design, left, weight):
    """Mean square residual over the footprint of every source.

    Parameters
    ----------
    design : `~rosetta.core.design.Design`
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


def significance(residual, valid, psf):
    """Fluxes of point sources everywhere on a residual image, in units of the error that uncorrelated pixels give.

    Parameters
    ----------
    residual : (ny, nx) array
        Residual over its standard deviation; 0 where invalid.
    valid : (ny, nx) bool array
    psf : (k, l) array

    Returns
    -------
    (ny, nx) float32 array
        Output of the matched filter over its expectation; NaN where much of the filter falls on no pixel.
    """
    kernel = _filter(psf)
    top = fftconvolve(np.where(valid, residual, 0.0).astype(np.float32), kernel, mode="same")
    bottom = fftconvolve(valid.astype(np.float32), kernel**2, mode="same")
    good = bottom > 0.9 * (kernel**2).sum()
    return np.divide(top, np.sqrt(np.where(good, bottom, 1.0)), out=np.full_like(top, np.nan), where=good)


def noise_factor(scatter, psf):
    """How much more point-source fluxes scatter than uncorrelated pixels would let them.

    Parameters
    ----------
    scatter : (m,) array
        Of `significance`, well apart.
    psf : (k, l) array

    Returns
    -------
    float
        Robust (from the median absolute deviation); 1 where there are too few pixels to tell.
    """
    if len(scatter) * THIN**2 < 20 * _filter(psf).size:
        return 1.0
    return float(1.4826 * np.median(np.abs(scatter - np.median(scatter))))


def _filter(psf):
    half = [max(3, min(k // 2, 10)) for k in psf.shape]
    cy, cx = psf.shape[0] // 2, psf.shape[1] // 2
    rows, columns = (slice(max(c - h, 0), c + h + 1) for c, h in zip((cy, cx), half, strict=True))
    return psf[rows, columns][::-1, ::-1].astype(np.float32)
