# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""From planes and templates to the fit of every band."""

import numpy as np
from scipy.signal import fftconvolve

from ._geometry import offset_coord, tangent
from ._scene import BandFit
from .core import field, fit
from .core.mixture import render, stamp_sizes
from .core.solve import design, solve

__all__ = ["fit_band", "ground_coord", "image_of", "noise_factor", "sky_weight", "source_tokens"]

SKY_BLOCK = 12.8  # arcsec: the sky level's variance is taken as constant over this
FAR = -1e6  # pixel position of a source that a WCS cannot place


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


def image_of(plane, coord, header_coord, share):
    """A plane as the shape fit sees it.

    Parameters
    ----------
    plane : `~rosetta._boundary.Plane`
    coord, header_coord : `~astropy.coordinates.SkyCoord`
        True positions, and those in the ground headers' frame.
    share : (n,) array
        Share of the light that stamps may leave out.

    Returns
    -------
    `~rosetta.core.fit.Image`
    """
    where = header_coord if plane.side == "ground" else coord
    xy = np.stack(plane.sky_to_pixel(where), -1)
    jacobian = plane.jacobian(where)
    lost = ~(np.isfinite(xy).all(axis=1) & np.isfinite(jacobian).all(axis=(1, 2)) & (np.abs(xy) < -FAR).all(axis=1))
    xy[lost], jacobian[lost] = FAR, np.eye(2)
    return fit.Image(plane.data, plane.variance, sky_weight(plane), plane.psf, xy, jacobian, share)


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
    ny, nx = plane.data.shape
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


def fit_band(plane, image, mixtures, slope):
    """Fluxes, covariance, chi2 and template slopes of all sources in one band.

    Parameters
    ----------
    plane : `~rosetta._boundary.Plane`
    image : `~rosetta.core.fit.Image`
    mixtures : (n, K, 6) array
    slope : (n, n_shape) array
        See `rosetta.core.fit.flux_slopes`.

    Returns
    -------
    `~rosetta._scene.BandFit`
    """
    n = len(mixtures)
    sizes = stamp_sizes(mixtures, image.jacobian, image.psf, image.share)
    matrix = design(render(mixtures, image.xy, image.jacobian, image.psf, sizes=sizes), plane.data.shape, n)
    variance = plane.variance.ravel()
    found = solve(matrix, plane.data.ravel(), variance, image.weight.ravel())
    model = matrix @ np.nan_to_num(found.flux)
    weight = np.where(plane.valid.ravel(), 1.0 / variance, 0.0)
    residual = (plane.data.ravel() - model) * np.sqrt(weight)
    noise = noise_factor(residual.reshape(plane.data.shape), plane.valid, plane.psf)

    # The footprint: where the template is at least a tenth of its peak.
    foot = matrix.copy()
    peak = np.maximum.reduceat(np.append(foot.data, 0), foot.indptr[:-1]) if foot.nnz else np.zeros(n)
    foot.data = (foot.data > 0.1 * np.repeat(peak, np.diff(foot.indptr))).astype(float)
    pixels = foot.T @ (weight > 0)
    chi2 = np.divide(foot.T @ residual**2, pixels, out=np.full(n, np.nan), where=pixels > 0)
    flat = image.weight.ravel() * (plane.data.ravel() - model) ** 2
    misfit = np.divide(foot.T @ flat, pixels, out=np.ones(n), where=pixels > 0)
    inside = np.asarray(matrix.sum(axis=0)).ravel() / plane.psf.sum()
    return BandFit(
        plane=plane,
        matrix=matrix,
        flux=found.flux,
        covariance=found.covariance * noise**2,
        noise=noise,
        measured=found.measured,
        degenerate=found.degenerate,
        coverage=found.coverage / plane.psf.sum(),
        outside=1.0 - inside,
        chi2=chi2,
        misfit=misfit,
        pixels=np.round(pixels).astype(int),
        slope=slope,
    )


def noise_factor(residual, valid, psf):
    """Scatter of point-source fluxes on a residual image, relative to that of uncorrelated pixels.

    Parameters
    ----------
    residual : (ny, nx) array
        Residual over its standard deviation; 0 where invalid.
    valid : (ny, nx) bool array
    psf : (k, l) array

    Returns
    -------
    float
        Robust (median absolute deviation of the matched filter's output over its expectation); 1 where
        there are too few pixels to tell.
    """
    half = [max(3, min(k // 2, 10)) for k in psf.shape]
    cy, cx = psf.shape[0] // 2, psf.shape[1] // 2
    kernel = psf[max(cy - half[0], 0) : cy + half[0] + 1, max(cx - half[1], 0) : cx + half[1] + 1][::-1, ::-1]
    top = fftconvolve(np.where(valid, residual, 0.0), kernel, mode="same")
    bottom = fftconvolve(valid.astype(float), kernel**2, mode="same")
    good = bottom > 0.9 * (kernel**2).sum()
    if good.sum() < 20 * kernel.size:
        return 1.0
    scatter = (top / np.sqrt(np.maximum(bottom, 1e-30)))[good]
    return float(1.4826 * np.median(np.abs(scatter - np.median(scatter))))
