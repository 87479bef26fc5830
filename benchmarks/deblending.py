# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Blends of two or three galaxies: fluxes and errors beside those of the tools that people use today.

Every blend is a 16" stamp in ten bands (Rubin's ten-year and Euclid's depths, Moffat PSFs, white noise) with galaxies
of i = 21-25, a disc and often a bulge of another colour, 0.6-2.2" apart. All methods see the same pixels, twice: with
their own detection, and at the true positions. Seed 1 gives 80 blends of 196 galaxies.

Run: python benchmarks/deblending.py ROWS [--blends 80] [--seed 1] [--heads FOLDER] [--scarlet2 N]
     [--tables FOLDER]

ROWS (JSON lines) keeps what every method found on every blend; a second run goes on where the first ended and prints
the tables. FOLDER holds encoder.safetensors, deblender.safetensors and photometry.safetensors, in place of the bundled
ones. Needs galsim and sep (extras sim and bench). N (0) is the number of blends that scarlet2 measures too, for which
``pip install scarlet2 optax numpyro`` is needed; the time to compile each of its fits stands under "s encoding".
"""

import argparse
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import astropy.units as u
import galsim
import numpy as np
import sep
from _tables import Tables, add_option
from astropy.convolution import convolve
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS
from photutils.segmentation import SourceCatalog, deblend_sources, detect_sources, make_2dgaussian_kernel
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.signal import fftconvolve

from rosetta import CrossSurveyEncoder, EmbeddingPhotometry, JEPADeblender, SkyPair
from rosetta.embedding import SkyEmbedding

# PSF FWHM (arcsec), wavelength (nm), sky variance per pixel (nJy^2), nJy per photo-electron. Ten years of Rubin and the
# Euclid Wide Survey: sky brightness and exposure of the two surveys, Euclid's noise scaled to its stated depths.
BANDS = {
    "u": (0.90, 368, 5.3058, 5.7371e-2), "g": (0.86, 486, 1.32388, 7.3078e-3), "r": (0.81, 625, 1.77060, 3.6818e-3),
    "i": (0.79, 756, 4.61446, 4.9438e-3), "z": (0.77, 870, 17.0930, 8.1425e-3), "y": (0.76, 972, 91.3732, 1.74887e-2),
    "VIS": (0.16, 715, 66.7768, 6.8848e-2), "Y_E": (0.477, 1089, 231.441, 0.817941),
    "J_E": (0.486, 1379, 223.092, 0.692982), "H_E": (0.492, 1786, 217.773, 0.732356),
}  # fmt: skip
GROUND, SPACE = list("ugrizy"), ["VIS", "Y_E", "J_E", "H_E"]
SCALE = {b: 0.2 for b in GROUND} | {b: 0.1 for b in SPACE}  # arcsec per pixel
SIZE = {b: 81 if b in GROUND else 161 for b in BANDS}  # odd: the middle pixel is the stamp's centre
MATCH = 0.5  # arcsec


# ---------------------------------------------------------------------------- blends
@dataclass(frozen=True)
class Blend:
    """Images (nJy) and truth of one blend; positions are arcsec (x to the west, y to the north) from the centre."""

    data: dict  # band -> (ny, nx)
    variance: dict  # band -> (ny, nx), photon noise of the sources included
    galaxies: list  # of dict: x, y, mag and the profiles' parameters
    flux: dict  # band -> (n,)
    alone: dict  # band -> (n, ny, nx): every galaxy by itself, without noise

    @property
    def place(self):
        return np.array([[g["x"], g["y"]] for g in self.galaxies])


@lru_cache(maxsize=16)
def psf_of(band):
    return galsim.Moffat(beta=3.5 if band in GROUND else 5.0, fwhm=BANDS[band][0])


@lru_cache(maxsize=64)
def psf_image(band, n=None, scale=None):
    n = n or (41 if band in GROUND else 61)
    return psf_of(band).drawImage(nx=n, ny=n, scale=scale or SCALE[band]).array.astype(float)


def profiles(g):
    """The disc and the bulge of a galaxy, of unit flux."""
    disc = galsim.Exponential(half_light_radius=g["radius"]).shear(g1=g["g1"], g2=g["g2"])
    bulge = galsim.Sersic(n=3, half_light_radius=g["bulge_radius"]).shear(g1=g["bulge_g1"], g2=g["bulge_g2"])
    return disc.shift(g["x"], g["y"]), bulge.shift(g["x"], g["y"])


def draw(light, band):
    image = galsim.Convolve(light, psf_of(band)).drawImage(nx=SIZE[band], ny=SIZE[band], scale=SCALE[band])
    return image.array.astype(float)


def galaxy(rng, first, angle, rank):
    """One galaxy of a blend: an exponential disc, and a bulge half of the time; power-law spectra."""
    mag = rng.uniform(21, 24) if first else rng.uniform(21.5, 25)
    if first:
        x, y = rng.uniform(-0.3, 0.3, 2)
    else:
        apart = rng.uniform(0.6, 2.2)
        turn = angle + rng.uniform(-0.6, 0.6) + (rank - 1) * np.pi * rng.uniform(0.6, 1.4)
        x, y = apart * np.cos(turn), apart * np.sin(turn)
    radius = np.clip(10 ** rng.normal(-0.42 - 0.1 * (mag - 23), 0.15), 0.12, 1.2)
    share = rng.choice([0, rng.uniform(0, 0.6)])
    e, turn = min(0.6, abs(rng.normal(0, 0.3))), np.radians(2 * rng.uniform(0, 180))
    slope = rng.uniform(0.3, 2.0)
    bulge_slope = slope + rng.uniform(0.5, 1.5)
    g1, g2 = e / 2 * np.cos(turn), e / 2 * np.sin(turn)
    return {
        "x": float(x), "y": float(y), "mag": mag, "radius": float(radius), "share": float(share), "g1": g1, "g2": g2,
        "bulge_radius": max(0.08, 0.4 * float(radius)), "bulge_g1": g1 / 2, "bulge_g2": g2 / 2,
        "slopes": (slope, bulge_slope),
    }  # fmt: skip


def light_of(g, band):
    """Fluxes of disc and bulge, nJy."""
    total = 10 ** (0.4 * (31.4 - g["mag"]))
    disc, bulge = (total * (BANDS[band][1] / BANDS["i"][1]) ** slope for slope in g["slopes"])
    return (1 - g["share"]) * disc, g["share"] * bulge


def blends(n, seed):
    """Yield ``n`` blends."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        count, angle = rng.integers(2, 4), rng.uniform(0, 2 * np.pi)
        galaxies = [galaxy(rng, j == 0, angle, j) for j in range(count)]
        flux = {b: np.array([sum(light_of(g, b)) for g in galaxies]) for b in BANDS}
        alone = {b: np.zeros((count, SIZE[b], SIZE[b])) for b in BANDS}
        for j, g in enumerate(galaxies):
            disc, bulge = profiles(g)
            for b in BANDS:
                fd, fb = light_of(g, b)
                alone[b][j] = draw(disc * fd + bulge * fb if fb else disc * fd, b)
        data, variance = {}, {}
        for b, (_, _, sky, gain) in BANDS.items():
            clean = alone[b].sum(axis=0)
            variance[b] = sky + gain * np.maximum(clean, 0)
            data[b] = clean + rng.normal(0, np.sqrt(variance[b]))
        yield Blend(data, variance, galaxies, flux, alone)


def blendedness(blend):
    """1 - sum f_k^2 / sum f_k F in i, of every galaxy."""
    one = blend.alone["i"]
    return 1 - (one**2).sum(axis=(1, 2)) / (one * one.sum(axis=0)).sum(axis=(1, 2))


def to_arcsec(pixel, band):
    return (np.asarray(pixel, float) - (SIZE[band] - 1) / 2) * SCALE[band]


def to_pixel(arcsec, band):
    return np.asarray(arcsec, float) / SCALE[band] + (SIZE[band] - 1) / 2


# ---------------------------------------------------------------------------- this library
def wcs_of(band):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 2.0]
    wcs.wcs.crpix = [(SIZE[band] + 1) / 2] * 2
    wcs.wcs.cd = np.diag([-SCALE[band] / 3600, SCALE[band] / 3600])
    wcs.array_shape = (SIZE[band], SIZE[band])
    return wcs


def pair_of(blend, bands=tuple(BANDS)):
    def image(b):
        noise = VarianceUncertainty(blend.variance[b])
        return NDData(blend.data[b], uncertainty=noise, unit=u.nJy, wcs=wcs_of(b), psf=psf_image(b))

    sides = [{b: image(b) for b in names if b in bands} or None for names in (GROUND, SPACE)]
    return SkyPair(*sides)


def without_tokens(embedding):
    """The same embedding as if the encoder had seen nothing."""
    sides = {
        side: {k: np.zeros_like(a) if k in ("tokens", "cls", "embedding") else np.array(a) for k, a in arrays.items()}
        for side, arrays in embedding.sides.items()
    }
    return SkyEmbedding(
        embedding.pair, fingerprint=embedding.fingerprint, window=embedding.window, centers=embedding.centers,
        sides=sides, meta=embedding.meta,
    )  # fmt: skip


def models(folder):
    """Encoder, deblender and photometry: the bundled ones, or those of a folder."""
    path = (lambda kind: None) if folder is None else (lambda kind: Path(folder) / f"{kind}.safetensors")
    encoder = CrossSurveyEncoder.from_pretrained(path("encoder"), device="cpu")
    heads = [
        kind.from_pretrained(path(name), encoder=encoder, device="cpu")
        for name, kind in (("deblender", JEPADeblender), ("photometry", EmbeddingPhotometry))
    ]
    return encoder, *heads


def ours(folder=None, *, bands=tuple(BANDS), learned=True):
    """A method made of this library's models; ``learned`` errors, or those of the fit alone."""
    encoder, deblender, photometry = models(folder)
    photometry = photometry if learned else EmbeddingPhotometry(encoder)

    def method(blend, place):
        start = time.process_time()
        embedding = encoder(pair_of(blend, bands), window=16 * u.arcsec)
        encoding = time.process_time() - start
        wcs = wcs_of("VIS")
        sources = None if place is None else wcs.pixel_to_world(*to_pixel(place, "VIS").T)
        start = time.process_time()
        catalog = photometry(embedding, deblender(embedding, sources))
        seconds = time.process_time() - start
        at = catalog["sky_centroid"] if place is None else sources
        columns = ("flux", "flux_err")
        found = {b: tuple(catalog[f"{c}_{b}"].to_value(u.nJy) for c in columns) for b in catalog.meta["bands"]}
        xy = np.stack([to_arcsec(v, "VIS") for v in wcs.world_to_pixel(at)], -1)
        return xy, found, seconds, encoding

    return method


# ---------------------------------------------------------------------------- peers: (blend, place) -> xy, fluxes
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


def sep_rubin(blend, place):
    """SEP on r + i + z, automatic apertures."""
    found, segments = extract(riz(blend), 1.0, 5, kernel_of(4.0, 9))
    fluxes = {b: kron(blend.data[b], np.sqrt(blend.variance[b]), found, segments) for b in GROUND}
    return to_arcsec(np.stack([found["x"], found["y"]], -1), "i"), fluxes


def photutils_rubin(blend, place):
    """photutils on r + i + z: deblend_sources, Kron fluxes with neighbours replaced."""
    stack = riz(blend)
    smooth = convolve(stack, kernel_of(4.0, 9))
    segments = deblend_sources(
        smooth, detect_sources(smooth, 1.5, 5), 5, n_levels=32, contrast=0.001, mode="exponential", progress_bar=False
    )
    fluxes = {}
    for b in GROUND:
        catalog = SourceCatalog(blend.data[b], segments, convolved_data=smooth, error=np.sqrt(blend.variance[b]))
        fluxes[b] = np.atleast_1d(catalog.kron_flux), np.atleast_1d(catalog.kron_flux_err)
    catalog = SourceCatalog(stack, segments, convolved_data=smooth)
    xy = np.stack([np.atleast_1d(catalog.x_centroid), np.atleast_1d(catalog.y_centroid)], -1)
    return to_arcsec(xy, "i"), fluxes


def on_vis(blend, place):
    """SEP on VIS: sources (structured array) and segments; or segments shared out between true positions."""
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


def true_template(blend, place):
    """Fluxes when every galaxy's light is known exactly: what noise alone leaves."""
    fluxes = {}
    for b in "gi":
        flux, err = linear_fit(blend.alone[b] / blend.flux[b][:, None, None], blend, b)
        fluxes[b] = flux, err
    return blend.place, fluxes


# ---------------------------------------------------------------------------- the bound
SHAPE = ("x", "y", "radius", "g1", "g2", "bulge_radius", "bulge_g1", "bulge_g2")
STEP = dict(zip(SHAPE, (0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.02, 0.02), strict=True))
PRIOR = dict(zip(SHAPE, (1.0, 1.0, 1.0, 0.5, 0.5, 1.0, 0.3, 0.3), strict=True))  # radii: of the logarithm


def bound(blend, place):
    """Draws from the Cramer-Rao covariance: disc and bulge of unknown shapes and colours, known PSF, VIS and g r i z.

    A galaxy's fluxes of disc and bulge are free in every band; its shapes and position are shared by the bands.
    """
    bands, n = ["VIS", "g", "r", "i", "z"], len(blend.galaxies)
    width = len(SHAPE) + 2 * len(bands)  # unknowns of a galaxy
    fisher = np.kron(np.eye(n), np.diag([PRIOR[p] ** -2 for p in SHAPE] + [1e-12] * (2 * len(bands))))
    for k, b in enumerate(bands):
        columns = np.zeros((n * width, SIZE[b] ** 2))
        for j, g in enumerate(blend.galaxies):
            columns[j * width : (j + 1) * width] = derivatives(g, b, k, len(bands))
        columns /= np.sqrt(blend.variance[b].ravel())
        fisher += columns @ columns.T
    total = np.zeros((2 * n, n * width))  # every galaxy's g, then its i
    for j in range(n):
        for row, b in enumerate("gi"):
            at = j * width + len(SHAPE) + 2 * bands.index(b)
            total[2 * j + row, at : at + 2] = 1
    scale = 1 / np.sqrt(np.diag(fisher))  # unknowns of one size, or the inverse loses its digits
    total *= scale
    covariance = total @ np.linalg.inv(fisher * scale * scale[:, None]) @ total.T
    rng = np.random.default_rng(int(1e6 * abs(blend.galaxies[0]["x"])))
    drawn = rng.multivariate_normal(np.zeros(2 * n), covariance)
    error = np.sqrt(np.diag(covariance))
    return blend.place, {b: (blend.flux[b] + drawn[r::2], error[r::2]) for r, b in enumerate("gi")}


def derivatives(g, band, k, n_band):
    """Of a galaxy's image by its unknowns, (n_unknown, n_pixel); ``k`` is the band's place among ``n_band``."""
    fd, fb = light_of(g, band)

    def parts(g):
        disc, bulge = profiles(g)
        return draw(disc, band).ravel(), draw(bulge, band).ravel()

    disc, bulge = parts(g)
    out = np.zeros((len(SHAPE) + 2 * n_band, disc.size))
    for row, name in enumerate(SHAPE):
        if name.startswith("bulge") and fb == 0:
            continue
        step = STEP[name] * (g[name] if "radius" in name else 1.0)
        moved = profiles({**g, name: g[name] + step})
        if not name.startswith("bulge"):
            out[row] += fd * (draw(moved[0], band).ravel() - disc) / STEP[name]
        if fb and name not in ("radius", "g1", "g2"):
            out[row] += fb * (draw(moved[1], band).ravel() - bulge) / STEP[name]
    out[len(SHAPE) + 2 * k : len(SHAPE) + 2 * k + 2] = disc, bulge
    return out


# ---------------------------------------------------------------------------- scores
def match(true, found):
    """Rows of true and found positions that are one source (optimal assignment within MATCH)."""
    if len(found) == 0:
        return np.zeros(0, int), np.zeros(0, int)
    distance = np.hypot(*(true[:, None] - found[None]).transpose(2, 0, 1))
    i, j = linear_sum_assignment(np.where(distance > MATCH, 1e3, distance))
    keep = distance[i, j] <= MATCH
    return i[keep], j[keep]


def row_of(blend, xy, fluxes, seconds, encoding):
    """What one method found on one blend, ready for JSON."""
    i, j = match(blend.place, np.asarray(xy).reshape(-1, 2))
    separation = np.hypot(*(blend.place[i] - np.asarray(xy).reshape(-1, 2)[j]).T)
    kept = {b: [np.asarray(v, float)[j].tolist() for v in fluxes[b]] for b in ("g", "i", "VIS") if b in fluxes}
    return {
        "seconds": seconds, "encoding": encoding, "n_found": len(xy), "n_true": len(blend.galaxies),
        "true": i.tolist(), "separation": separation.tolist(), "fluxes": kept,
        "known": {b: blend.flux[b].tolist() for b in kept}, "blendedness": blendedness(blend).tolist(),
        "galaxies": blend.galaxies,
    }  # fmt: skip


def nmad(x):
    x = x[np.isfinite(x)]
    return 1.4826 * np.median(np.abs(x - np.median(x))) if len(x) else np.nan


def scores(rows, band="i"):
    """Figures of a method over blends; fluxes in one band."""
    i = [np.asarray(r["true"], int) for r in rows]

    def gather(values):
        return np.concatenate(values) if len(values) else np.zeros(0)

    flux, err, known = (
        {b: gather([f(r, k, b) for k, r in zip(i, rows, strict=True)]) for b in ("g", band)}
        for f in (
            lambda r, k, b: np.asarray(r["fluxes"][b][0]),
            lambda r, k, b: np.asarray(r["fluxes"][b][1]),
            lambda r, k, b: np.asarray(r["known"][b])[k],
        )
    )
    blended = gather([np.asarray(r["blendedness"])[k] for k, r in zip(i, rows, strict=True)]) > 0.2
    ratio = flux[band] / known[band] - 1
    n_true = sum(r["n_true"] for r in rows)
    colour = -2.5 * np.log10(
        np.maximum(flux["g"], 1e-3) / np.maximum(flux[band], 1e-3) * known[band] / known["g"]
    )
    pull = (flux[band] - known[band]) / err[band]
    good = np.isfinite(pull)
    return {
        "recall": len(ratio) / n_true, "bias": np.median(ratio) if len(ratio) else np.nan, "NMAD": nmad(ratio),
        "NMAD, blended": nmad(ratio[blended]), "> 25 % off": 1 - np.sum(np.abs(ratio) <= 0.25) / n_true,
        "g-i NMAD": nmad(colour), "1 sigma": np.mean(np.abs(pull[good]) < 1) if good.any() else np.nan,
        "purity": len(ratio) / max(1, sum(r["n_found"] for r in rows)),
        "s/blend": np.mean([r["seconds"] for r in rows]), "s encoding": np.mean([r["encoding"] for r in rows]),
    }  # fmt: skip


COLUMNS = {
    "recall": 3, "bias": 3, "NMAD": 3, "NMAD, blended": 3, "> 25 % off": 3, "g-i NMAD": 3, "1 sigma": 3, "purity": 3,
    "s/blend": None, "s encoding": None,
}  # fmt: skip  # digits of value and interval; times have none


def table(tables, name, title, methods):
    """Show the scores of every method, with half the 68 % range of resampled blends."""
    rng, lines = np.random.default_rng(0), []
    for method, rows in methods.items():
        value = scores(rows)
        drawn = [scores([rows[k] for k in rng.integers(len(rows), size=len(rows))]) for _ in range(100)]
        cells = []
        for column, digits in COLUMNS.items():
            if not np.isfinite(value[column]):
                cells.append("")
            elif digits is None:
                cells.append(f"{value[column]:.2f}")
            else:
                low, high = np.nanpercentile([d[column] for d in drawn], [16, 84])
                cells.append(f"{value[column]:.{digits}f} ± {(high - low) / 2:.{digits}f}")
        lines.append([method, *cells])
    tables.show(name, title, ("Method", *COLUMNS), lines)


def timed(peer):
    def method(blend, place):
        start = time.process_time()
        xy, fluxes = peer(blend, place)
        return xy, fluxes, time.process_time() - start, 0.0

    return method


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--blends", type=int, default=80)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--heads", type=Path)
    parser.add_argument("--scarlet2", type=int, default=0, metavar="N")
    add_option(parser)
    options = parser.parse_args()
    tables = Tables(options.tables)

    both, found, placed = ("own detection", "true positions"), ("own detection",), ("true positions",)
    methods = {
        "rosetta": (ours(options.heads), both),
        "rosetta, errors of the fit": (ours(options.heads, learned=False), both),
        "rosetta, ground only": (ours(options.heads, bands=tuple(GROUND)), both),
        "SEP, Rubin riz": (timed(sep_rubin), found),
        "photutils, Rubin riz": (timed(photutils_rubin), found),
        "forced aperture, 1 arcsec": (timed(forced_aperture), both),
        "matched aperture x VIS Kron": (timed(matched_aperture), both),
        "template fit on VIS segments": (timed(template_fit), both),
        "bound, unknown bulge and disc": (timed(bound), placed),
        "true template": (timed(true_template), placed),
    }
    print("scarlet_lite: left out (not on the package index)")
    first = {}  # methods that see the first blends only
    if options.scarlet2:
        from _scarlet2 import scarlet2_of

        first["scarlet2, VIS and Rubin"] = scarlet2_of(["VIS", *GROUND]), both
        first["scarlet2, ground only"] = scarlet2_of(GROUND), both

    done = {}
    if options.rows.exists():
        for line in options.rows.read_text().splitlines():
            row = json.loads(line)
            done[row["method"], row["mode"], row["seed"], row["blend"]] = row
    with options.rows.open("a") as file:
        for k, blend in enumerate(blends(options.blends, options.seed)):
            for name, (method, modes) in (methods | first if k < options.scarlet2 else methods).items():
                for mode in modes:
                    key = name, mode, options.seed, k
                    if key in done:
                        continue
                    result = method(blend, None if mode == "own detection" else blend.place)
                    row = row_of(blend, *result)
                    done[key] = {"method": name, "mode": mode, "seed": options.seed, "blend": k, **row}
                    file.write(json.dumps(done[key]) + "\n")
                    file.flush()
    for mode in both:
        chosen, n = {}, options.scarlet2
        for (name, where, seed, k), row in sorted(done.items(), key=lambda item: item[0][3]):
            if where == mode and seed == options.seed and k < options.blends:
                chosen.setdefault(name, []).append(row)
        file = "blends_" + mode.replace(" ", "_")
        table(tables, file, f"i band, {mode}", {name: chosen[name] for name in methods if name in chosen})
        if first:
            beside = [name for name in methods if name.startswith("rosetta")]
            some = {name: chosen[name][:n] for name in [*first, *beside]}
            table(tables, f"{file}_scarlet2", f"i band, {mode}, first {n} blends", some)


if __name__ == "__main__":
    main()
