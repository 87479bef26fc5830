# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Fluxes of blends by SEP, photutils, apertures and template fits: each takes (blend, place) and gives (xy, fluxes).

``place`` (n, 2) are positions in arcsec about the stamp's centre, or None: then the method detects sources. ``fluxes``
is a dict of band to fluxes and errors (n,), nJy.
"""

from functools import lru_cache

import numpy as np
import sep
from astropy.convolution import convolve
from photutils.segmentation import SourceCatalog, deblend_sources, detect_sources, make_2dgaussian_kernel
from scipy import ndimage
from scipy.signal import fftconvolve

from ..blends import BANDS, GROUND, SCALE, psf_image, to_arcsec, to_pixel

__all__ = [
    "forced_aperture", "linear_fit", "matched_aperture", "on_riz", "on_vis", "photutils_rubin", "photutils_segments",
    "sep_rubin", "template_fit",
]


def kernel_of(fwhm, n):
    return make_2dgaussian_kernel(fwhm, size=n).array


def riz(blend):
    """Inverse-variance r + i + z, in units of its noise."""
    weight = {b: 1 / BANDS[b][2] for b in "riz"}
    return sum(weight[b] * blend.data[b] for b in "riz") / np.sqrt(sum(weight.values()))


def kron(image, error, found, segments):
    """SEP's automatic elliptical aperture and its error."""
    ids = np.arange(1, len(found) + 1, dtype=np.int32)
    shape = [found[c] for c in ("x", "y", "a", "b", "theta")]
    mask = {"seg_id": ids, "segmap": segments}
    radius, _ = sep.kron_radius(image, *shape, 6.0, **mask)
    radius = np.clip(np.nan_to_num(radius, nan=3.5), 1.4, 6)
    flux, err, _ = sep.sum_ellipse(image, *shape, 2.5 * radius, err=error, subpix=5, **mask)
    return flux, err


def extract(image, noise, minarea, kernel):
    return sep.extract(
        image, 1.5, err=noise, minarea=minarea, filter_kernel=kernel, deblend_nthresh=32, deblend_cont=0.005,
        segmentation_map=True,
    )  # fmt: skip


def on_riz(blend):
    """SEP on r + i + z: sources (structured array), segments, positions (arcsec)."""
    found, segments = extract(riz(blend), 1.0, 5, kernel_of(4.0, 9))
    return found, segments, to_arcsec(np.stack([found["x"], found["y"]], -1), "i")


def sep_rubin(blend, place):
    """SEP on r + i + z, automatic apertures."""
    found, segments, xy = on_riz(blend)
    return xy, {b: kron(blend.data[b], np.sqrt(blend.variance[b]), found, segments) for b in GROUND}


def photutils_segments(stack):
    """Deblended segments of an image in units of its noise, and the smoothed image."""
    smooth = convolve(stack, kernel_of(4.0, 9))
    segments = detect_sources(smooth, 1.5, 5)
    return deblend_sources(smooth, segments, 5, n_levels=32, contrast=0.001, progress_bar=False), smooth


def photutils_rubin(blend, place):
    """photutils on r + i + z: deblend_sources, Kron fluxes with neighbours replaced."""
    stack = riz(blend)
    segments, smooth = photutils_segments(stack)
    fluxes = {}
    for b in GROUND:
        catalog = SourceCatalog(blend.data[b], segments, convolved_data=smooth, error=np.sqrt(blend.variance[b]))
        fluxes[b] = np.atleast_1d(catalog.kron_flux), np.atleast_1d(catalog.kron_flux_err)
    catalog = SourceCatalog(stack, segments, convolved_data=smooth)
    xy = np.stack([np.atleast_1d(catalog.x_centroid), np.atleast_1d(catalog.y_centroid)], -1)
    return to_arcsec(xy, "i"), fluxes


def on_vis(blend, place):
    """SEP on VIS: sources (structured array), segments, positions (arcsec).

    At given positions: each pixel of a segment belongs to the nearest of them.
    """
    noise = np.sqrt(BANDS["VIS"][2])
    found, segments = extract(blend.data["VIS"], noise, 8, kernel_of(2.5, 7))
    if place is None:
        return found, segments, to_arcsec(np.stack([found["x"], found["y"]], -1), "VIS")
    xy = to_pixel(place, "VIS")
    y, x = np.indices(segments.shape)
    near = np.argmin((x[..., None] - xy[:, 0]) ** 2 + (y[..., None] - xy[:, 1]) ** 2, axis=-1) + 1
    core = np.min((x[..., None] - xy[:, 0]) ** 2 + (y[..., None] - xy[:, 1]) ** 2, axis=-1) < 2.5**2
    segments = np.where((segments > 0) | core, near, 0).astype(np.int32)
    at = np.zeros(len(xy), found.dtype)
    for k in range(len(xy)):
        light = np.where(segments == k + 1, np.maximum(blend.data["VIS"], 0), 0)
        light /= light.sum()
        dx, dy = x - xy[k, 0], y - xy[k, 1]
        xx, xy_, yy = (light * dx * dx).sum(), (light * dx * dy).sum(), (light * dy * dy).sum()
        (small, large), axes = np.linalg.eigh([[xx, xy_], [xy_, yy]])
        at[k]["x"], at[k]["y"] = xy[k]
        at[k]["a"], at[k]["b"] = np.sqrt(max(large, 0.3)), np.sqrt(max(small, 0.3))
        at[k]["theta"] = np.arctan(axes[1, 1] / axes[0, 1]) if axes[0, 1] else np.pi / 2
    return at, segments, place


def forced_aperture(blend, place, radius=1.0):
    """Circles of 1" on every Rubin band, with the point-source correction."""
    _, _, xy = on_vis(blend, place)
    fluxes = {}
    for b in GROUND:
        psf, at = psf_image(b), to_pixel(xy, b)
        middle = (psf.shape[0] - 1) / 2
        inside = sep.sum_circle(psf, [middle], [middle], radius / SCALE[b], subpix=5)[0][0] / psf.sum()
        flux, err, _ = sep.sum_circle(
            blend.data[b], at[:, 0], at[:, 1], radius / SCALE[b], err=np.sqrt(blend.variance[b]), subpix=5
        )
        fluxes[b] = flux / inside, err / inside
    return xy, fluxes


@lru_cache(maxsize=32)
def matching_kernel(source, target, scale):
    """Kernel from one band's PSF to another's: Wiener filter with a Laplacian penalty (Boucaud et al. 2016)."""
    n = 161 if scale == 0.1 else 81
    one, two = (psf_image(b, n, scale) for b in (source, target))
    one, two = (np.fft.fft2(np.fft.ifftshift(p / p.sum())) for p in (one, two))
    laplacian = np.zeros((n, n))
    laplacian[0, 0], laplacian[[0, 0, 1, -1], [1, -1, 0, 0]] = 4, -1
    penalty = 1e-4 * np.abs(np.fft.fft2(laplacian)) ** 2
    kernel = np.fft.fftshift(np.fft.ifft2(one.conj() * two / (np.abs(one) ** 2 + penalty)).real)
    cut = n // 4
    kernel = kernel[cut:-cut, cut:-cut]
    return kernel / kernel.sum()


def matched_aperture(blend, place):
    """Apertures of 1" on images brought to the u PSF, over the same on VIS, times VIS's automatic flux."""
    found, segments, xy = on_vis(blend, place)
    total, _ = kron(blend.data["VIS"], np.sqrt(blend.variance["VIS"]), found, segments)
    vis = fftconvolve(blend.data["VIS"], matching_kernel("VIS", "u", 0.1), mode="same")
    at = to_pixel(xy, "VIS")
    reference, _, _ = sep.sum_circle(vis, at[:, 0], at[:, 1], 10.0, subpix=5)
    fluxes = {}
    for b in GROUND:
        image = blend.data[b] if b == "u" else fftconvolve(blend.data[b], matching_kernel(b, "u", 0.2), mode="same")
        at = to_pixel(xy, b)
        flux, _, _ = sep.sum_circle(image, at[:, 0], at[:, 1], 5.0, subpix=5)
        fluxes[b] = flux / reference * total, np.full(len(flux), np.nan)
    return xy, fluxes


def template_fit(blend, place):
    """The light in every source's VIS segment, widened by 0.6", through the matching kernel to every band."""
    _, segments, xy = on_vis(blend, place)
    distance, nearest = ndimage.distance_transform_edt(segments == 0, return_indices=True)
    segments = np.where(distance <= 6, segments[tuple(nearest)], 0)
    cuts = [np.where(segments == k + 1, blend.data["VIS"], 0) for k in range(len(xy))]
    total, fluxes = np.array([c.sum() for c in cuts]), {}
    for b in GROUND:
        kernel = matching_kernel("VIS", b, 0.1)
        flux, err = linear_fit([halved(fftconvolve(c, kernel, mode="same")) for c in cuts], blend, b)
        fluxes[b] = flux * total, err * np.abs(total)
    return xy, fluxes


def halved(image):
    """161 pixels of 0.1" to 81 of 0.2" with the same centres."""
    return ndimage.convolve(image, np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]), mode="constant")[::2, ::2]


def linear_fit(stamps, blend, band):
    """Amplitudes of stamps (pixels weighted by the sky) and their errors."""
    matrix = np.array([s.ravel() for s in stamps])
    if len(matrix) == 0:
        return np.zeros(0), np.zeros(0)
    inverse = np.linalg.inv(matrix @ matrix.T + 1e-12 * np.eye(len(matrix)))
    amplitude = inverse @ (matrix @ blend.data[band].ravel())
    spread = inverse @ (matrix * blend.variance[band].ravel()) @ matrix.T @ inverse
    return amplitude, np.sqrt(np.maximum(np.diag(spread), 0))
