# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The border: the only place where NDData, WCS and units become plain arrays and tensors, and back.

Sky positions stay float64 and leave here as offsets in arcsec from a stated centre, never as coordinates.
"""

import copy
import logging
from dataclasses import dataclass, replace
from functools import cached_property

import astropy.units as u
import numpy as np
import torch
from astropy.nddata import NDData, VarianceUncertainty
from scipy import sparse
from scipy.interpolate import RectBivariateSpline

from ._geometry import from_tangent, offset_coord, plain_icrs, tangent
from .core.augment import Tile, TileSide
from .core.moments import adaptive_moments, fourier_shift, half_maximum_width
from .core.vit import View, conditions
from .flags import Flag
from .sky import slice_wcs

log = logging.getLogger("rosetta")

PATCH = 16  # native pixels per token side
PIXEL = {"ground": 0.2, "space": 0.1}  # arcsec; the grids the encoder was built for
OVERLAP = 12.8  # arcsec shared by neighbouring windows
STEP = 3.2  # arcsec; windows are multiples of one ground token
FAR = 1e6  # pixels
DEPTH_PIXELS = 2**20  # a depth is measured on at most about as many
SLACK = 0.8  # arcsec; a rim this narrow is not worth a window: two grids of one field differ in phase


# ---------------------------------------------------------------------------- one image
@dataclass(frozen=True, eq=False)
class Plane:
    """One band, stripped to arrays when they are asked for; the WCS is asked only through the methods.

    ``data`` and ``variance`` are float32 (ny, nx) in nJy and nJy^2; invalid pixels hold 0 and infinity.
    ``psf`` is float64, centred on its adaptive-moment centroid.
    """

    band: str
    side: str
    image: object  # NDData of a SkyPair
    psf: np.ndarray
    wcs: object
    wavelength: float  # nm
    flags: Flag

    @property
    def shape(self):
        """(ny, nx)."""
        return self.image.data.shape

    @cached_property
    def valid(self):
        """(ny, nx) bool."""
        return ~self.image.mask

    @cached_property
    def data(self):
        """(ny, nx) float32."""
        return np.where(self.image.mask, np.float32(0), self.image.data)

    @cached_property
    def variance(self):
        """(ny, nx) float32."""
        return np.where(self.image.mask, np.float32(np.inf), self.image.uncertainty.array)

    def cut(self, bounds):
        """The plane on the pixels ``(y0, y1, x0, x1)`` of the image.

        It keeps the figures of the whole image: ``depth``, ``fwhm`` and ``pixel_scale``.
        """
        y0, y1, x0, x1 = bounds
        window = (slice(y0, y1), slice(x0, x1))
        noise = VarianceUncertainty(self.image.uncertainty.array[window], copy=False)
        image = NDData(self.image.data[window], uncertainty=noise, mask=self.image.mask[window])
        piece = replace(self, image=image, wcs=slice_wcs(self.wcs, window))
        piece.__dict__.update(depth=self.depth, fwhm=self.fwhm, pixel_scale=self.pixel_scale)
        return piece

    def with_pixels(self, data, variance):
        """The plane with other pixels on the same grid."""
        other = copy.copy(self)
        other.__dict__.update(data=data, variance=variance, valid=np.isfinite(variance))
        return other

    def sky_to_pixel(self, coord):
        """0-based pixel positions (x, y), float64 arrays of shape (n,)."""
        x, y = self.wcs.world_to_pixel(coord)
        return np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))

    def pixel_to_sky(self, x, y):
        """ICRS positions of 0-based pixels, of the shape of ``x``."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        return plain_icrs(self.wcs.pixel_to_world(x, y)).reshape(x.shape)

    def jacobian(self, coord):
        """d(x, y) / d(east, north) in pixel per arcsec at each position: (n, 2, 2) float64."""
        return self._around(coord)[1]

    def place(self, coord):
        """Pixel positions (n, 2) and `jacobian` of sources; one that the WCS cannot place is put far away."""
        xy, jacobian = self._around(coord)
        lost = ~(np.isfinite(xy).all(axis=1) & np.isfinite(jacobian).all(axis=(1, 2)) & (np.abs(xy) < FAR).all(axis=1))
        xy[lost], jacobian[lost] = -FAR, np.eye(2)
        return xy, jacobian

    def _around(self, coord):
        """Pixel positions (n, 2), and their derivatives (n, 2, 2), from one call of the WCS."""
        step = 0.5 * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])  # arcsec (east, north)
        at = offset_coord(coord.reshape(-1, 1), *step.T)  # (n, 5)
        middle, east, west, north, south = np.moveaxis(np.stack(self.wcs.world_to_pixel(at), -1), 1, 0)
        return middle, np.stack([east - west, north - south], -1)  # per arcsec: they are one apart

    @cached_property
    def center(self):
        """Sky position of the image centre."""
        ny, nx = self.shape
        return self.pixel_to_sky((nx - 1) / 2, (ny - 1) / 2)

    @cached_property
    def central_jacobian(self):
        """`jacobian` at the image centre: (2, 2)."""
        return self.jacobian(self.center)[0]

    @cached_property
    def pixel_scale(self):
        """Side of a pixel in arcsec at the image centre."""
        return float(abs(np.linalg.det(self.central_jacobian)) ** -0.5)

    @cached_property
    def fwhm(self):
        """Full width at half maximum of the PSF in arcsec, pixel response included."""
        return float(half_maximum_width(self.psf) * self.pixel_scale)

    @cached_property
    def depth(self):
        """5-sigma point-source depth, AB: matched filter with the PSF and the median pixel noise."""
        step = max(1, int(np.sqrt(self.image.data.size / DEPTH_PIXELS)))
        variance, mask = (a[::step, ::step] for a in (self.image.uncertainty.array, self.image.mask))
        sigma = np.sqrt(np.median(variance[~mask]))
        return float(31.4 - 2.5 * np.log10(5 * sigma / np.sqrt((self.psf**2).sum())))


def planes(pair):
    """``dict[band, Plane]`` of a `~rosetta.SkyPair`, ground bands first."""
    result = {}
    for side, name, image in pair.images():
        band = pair.survey(side)[name]
        flags = pair.flags[name]
        psf = image.psf
        if psf is None:
            flags |= Flag.PSF_NOMINAL
        plane = Plane(
            band=name,
            side=side,
            image=image,
            psf=np.empty(0),
            wcs=image.wcs,
            wavelength=band.pivot.to_value(u.nm),
            flags=flags,
        )
        psf = _nominal_psf(band, plane.pixel_scale) if psf is None else _centred(psf)
        object.__setattr__(plane, "psf", psf)
        result[name] = plane
    return result


def _nominal_psf(band, pixel_scale):
    """A round Moffat (beta = 3.5) of the band's nominal width, averaged over pixels."""
    fwhm = band.psf_fwhm.to_value(u.arcsec) / pixel_scale
    half = int(np.ceil(6 * fwhm))
    sub = 5
    axis = (np.arange((2 * half + 1) * sub) - (half * sub + sub // 2)) / sub
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / 3.5) - 1)
    fine = (1 + (axis[:, None] ** 2 + axis[None, :] ** 2) / alpha2) ** -3.5
    psf = fine.reshape(2 * half + 1, sub, 2 * half + 1, sub).mean((1, 3))
    return psf / psf.sum()


def _centred(psf):
    """The PSF moved so that its adaptive-moment centroid is the central pixel."""
    ny, nx = psf.shape
    (x, y), _ = adaptive_moments(psf)
    dx, dy = nx // 2 - x, ny // 2 - y
    return psf if max(abs(dx), abs(dy)) < 1e-4 else fourier_shift(psf, dx, dy)


# ---------------------------------------------------------------------------- windows for the encoder
def extent(plane_list):
    """Tangent point, and the lowest and highest (east, north) offsets in arcsec of all images: (2,) each."""
    center = plane_list[-1].center  # the space side comes last: its frame is the reference
    edges = []
    for plane in plane_list:
        ny, nx = plane.shape
        x, y = np.meshgrid(np.linspace(-0.5, nx - 0.5, 9), np.linspace(-0.5, ny - 0.5, 9))
        edges.append(tangent(plane.pixel_to_sky(x.ravel(), y.ravel()), center))
    edges = np.concatenate(edges)
    return center, edges.min(0), edges.max(0)


def window_grid(plane_list, window):
    """Centres of the windows that cover the images: `~astropy.coordinates.SkyCoord`, shape (n_window,)."""
    center, lowest, highest = extent(plane_list)
    axes = []
    for low, high in zip(lowest, highest, strict=True):
        step = window - min(OVERLAP, window / 2)
        n = max(1, int(np.ceil((high - low - window - SLACK) / step)) + 1)
        axes.append((low + high) / 2 + (np.arange(n) - (n - 1) / 2) * step)
    east, north = np.meshgrid(*axes)
    return from_tangent(np.stack([east.ravel(), north.ravel()], -1), center)


def fitting_window(plane_list, largest):
    """The smallest allowed window (arcsec) that covers the images, at most ``largest``."""
    extent = max(max(plane.shape) * plane.pixel_scale for plane in plane_list)
    return min(largest, max(12.8, STEP * np.ceil((extent - SLACK) / STEP)))


def side_view(plane_list, centers, window, knots):
    """The encoder's input for one side.

    Parameters
    ----------
    plane_list : list of `Plane`
        All bands of the side.
    centers : `~astropy.coordinates.SkyCoord`, shape (n_window,)
    window : float
        Side length in arcsec.
    knots : sequence of float
        ln(pivot wavelength / nm) at which the encoder holds band-dependent weights.

    Returns
    -------
    `rosetta.core.vit.View`
        For all windows; flux over noise, compressed by asinh.
    """
    side = plane_list[0].side
    n = int(round(window / PIXEL[side]))
    reference = plane_list[0]
    native = _is_native(reference, PIXEL[side])
    if native:
        corner = _native_corner(reference, centers, n)  # (n_window, 2) whole pixels (x, y)
        positions = _token_offsets(reference, corner, centers, n)
    else:
        positions = np.broadcast_to(_ideal_offsets(n, PIXEL[side]), (len(centers), (n // PATCH) ** 2, 2))
    pixels = np.zeros((len(centers), len(plane_list), n, n), np.float32)
    valid = np.zeros(pixels.shape, bool)
    for b, plane in enumerate(plane_list):
        shared = native and _same_grid(plane, reference)
        for w in range(len(centers)):
            if shared:
                flux, variance, good = _crop(plane, corner[w], n)
            else:
                grid = _native_grid(reference, corner[w], n) if native else _ideal_grid(centers[w], n, PIXEL[side])
                flux, variance, good = _resample(plane, grid)
            valid[w, b] = good
            pixels[w, b] = np.arcsinh(np.divide(flux, np.sqrt(variance), out=np.zeros_like(flux), where=good))
    wavelengths = np.log([plane.wavelength for plane in plane_list])
    per_band = {name: [getattr(plane, name) for plane in plane_list] for name in ("fwhm", "depth")}
    return View(
        pixels=torch.from_numpy(pixels),
        valid=torch.from_numpy(valid),
        positions=torch.from_numpy(positions.astype(np.float32)),
        mix=torch.from_numpy(band_mix(wavelengths, knots)),
        fwhm=torch.tensor(per_band["fwhm"], dtype=torch.float32).expand(len(centers), -1),
        depth=torch.tensor(per_band["depth"], dtype=torch.float32).expand(len(centers), -1),
    )


def band_mix(wavelengths, knots):
    """Linear interpolation weights of bands between knots in ln wavelength: (n_band, n_knot) float32."""
    identity = np.eye(len(knots))
    mix = np.stack([np.interp(wavelengths, knots, row) for row in identity], -1)
    return mix.astype(np.float32)


def is_extrapolated(wavelength, knots):
    """Whether a band lies further than 10 % in wavelength from every band seen in training."""
    return bool(np.min(np.abs(np.log(wavelength) - np.asarray(knots))) > 0.1)


def _is_native(plane, scale):
    """Scale within 1 %, rotation within 2 degrees, north up and east left."""
    ideal = np.array([[-1, 0], [0, 1]]) / scale
    stretch = plane.central_jacobian @ np.linalg.inv(ideal)
    return abs(plane.pixel_scale / scale - 1) < 0.01 and np.abs(stretch - np.eye(2)).max() < np.sin(np.deg2rad(2))


def _same_grid(plane, other):
    if plane is other:
        return True
    if plane.shape != other.shape:
        return False
    ny, nx = plane.shape
    x, y = np.array([0.0, nx - 1, 0, nx - 1]), np.array([0.0, 0, ny - 1, ny - 1])
    xo, yo = plane.sky_to_pixel(other.pixel_to_sky(x, y))
    return max(np.abs(xo - x).max(), np.abs(yo - y).max()) < 0.01


def _native_corner(plane, centers, n):
    """First pixel (x, y) of the whole-pixel crop nearest to each centre: (n_window, 2) int."""
    center = np.stack(plane.sky_to_pixel(centers), -1)
    return np.round(center - (n - 1) / 2).astype(int)


def _token_offsets(plane, corner, centers, n):
    """(east, north) arcsec of every token centre from its window centre: (n_window, n_token, 2) float64."""
    axis = np.arange(n // PATCH) * PATCH + (PATCH - 1) / 2
    y, x = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    sky = [plane.pixel_to_sky(cx + x, cy + y) for cx, cy in corner]
    return np.stack([tangent(s, c) for s, c in zip(sky, centers, strict=True)])


def _ideal_offsets(n, scale):
    """Token offsets of a window resampled north-up about its own centre: (n_token, 2)."""
    axis = (np.arange(n // PATCH) * PATCH + (PATCH - 1) / 2 - (n - 1) / 2) * scale
    north, east = np.meshgrid(axis, -axis, indexing="ij")
    return np.stack([east.ravel(), north.ravel()], -1)


def _ideal_grid(center, n, scale):
    """Sky positions of a coarse grid of pixel positions of the north-up window, and those positions."""
    nodes = np.linspace(-0.5, n - 0.5, 17)
    y, x = np.meshgrid(nodes, nodes, indexing="ij")
    offsets = np.stack([-(x - (n - 1) / 2) * scale, (y - (n - 1) / 2) * scale], -1)
    return n, nodes, from_tangent(offsets.reshape(-1, 2), center), scale


def _native_grid(plane, corner, n):
    nodes = np.linspace(-0.5, n - 0.5, 17)
    y, x = np.meshgrid(nodes, nodes, indexing="ij")
    return n, nodes, plane.pixel_to_sky(corner[0] + x.ravel(), corner[1] + y.ravel()), plane.pixel_scale


def _crop(plane, corner, n):
    """Whole-pixel crop; outside the image is invalid."""
    flux, variance = np.zeros((n, n), np.float32), np.full((n, n), np.inf, np.float32)
    good = np.zeros((n, n), bool)
    ny, nx = plane.shape
    x0, y0 = corner
    xs, ys = slice(max(x0, 0), min(x0 + n, nx)), slice(max(y0, 0), min(y0 + n, ny))
    if xs.stop > xs.start and ys.stop > ys.start:
        into = (slice(ys.start - y0, ys.stop - y0), slice(xs.start - x0, xs.stop - x0))
        piece = plane.cut((ys.start, ys.stop, xs.start, xs.stop))
        flux[into], variance[into], good[into] = piece.data, piece.variance, piece.valid
    return flux, variance, good


def _resample(plane, grid):
    """Flux, variance and validity on another grid, as one explicit linear map (flux is conserved).

    Each output pixel is the mean of k x k bilinear samples times the ratio of pixel areas; an output pixel
    is valid only where every input pixel it rests on is. The variance is that of white noise of the same
    depth: interpolation lowers the scatter of single pixels, by an amount that beats with the pixel phase,
    and raises their correlation, but does not make the image deeper.
    """
    n, nodes, sky, scale = grid
    xn, yn = (a.reshape(len(nodes), len(nodes)) for a in plane.sky_to_pixel(sky))
    k = max(2, int(np.ceil(scale / plane.pixel_scale)))
    fine = (np.arange(n * k) - (k - 1) / 2) / k  # sub-pixel centres, in output pixels
    x = RectBivariateSpline(nodes, nodes, xn)(fine, fine)  # (n k, n k)
    y = RectBivariateSpline(nodes, nodes, yn)(fine, fine)
    area = (scale / plane.pixel_scale) ** 2
    ny, nx = plane.shape
    out = np.broadcast_to((np.arange(n * k) // k)[:, None] * n + (np.arange(n * k) // k)[None, :], x.shape).ravel()
    x, y = x.ravel(), y.ravel()
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    good = np.ones(n * n, bool)
    rows, columns, weights = [], [], []
    for j in (0, 1):
        for i in (0, 1):
            weight = np.abs(1 - i - (x - x0)) * np.abs(1 - j - (y - y0))
            xi, yj = x0 + i, y0 + j
            inside = (xi >= 0) & (xi < nx) & (yj >= 0) & (yj < ny)
            good[out[~inside & (weight > 1e-9)]] = False
            rows.append(out[inside])
            columns.append(yj[inside] * nx + xi[inside])
            weights.append(weight[inside] * area / k**2)
    rows, columns, weights = (np.concatenate(a) for a in (rows, columns, weights))
    good[rows[(weights > 1e-9) & ~plane.valid.ravel()[columns]]] = False
    used, columns = np.unique(columns, return_inverse=True)
    matrix = sparse.csr_matrix((weights, (rows, columns)), shape=(n * n, len(used)))
    flux = matrix @ plane.data.ravel()[used].astype(float)
    finite = np.where(plane.valid.ravel()[used], plane.variance.ravel()[used], 0).astype(float)
    variance = matrix @ finite
    variance[~good] = np.inf
    flux[~good] = 0
    return tuple(a.reshape(n, n).astype(t) for a, t in ((flux, np.float32), (variance, np.float32), (good, bool)))


# ---------------------------------------------------------------------------- what the encoder is told
def observing_conditions(pair, side, knots):
    """Observing conditions of one side on the knots, (n_knot, 3): the pair's own, or the survey's nominal ones."""
    if getattr(pair, side):
        of_side = [plane for plane in planes(pair).values() if plane.side == side]
        rows = [(plane.wavelength, plane.fwhm, plane.depth) for plane in of_side]
    else:
        rows = [(b.pivot.to_value(u.nm), b.psf_fwhm.to_value(u.arcsec), b.depth) for b in pair.survey(side).bands]
    wavelength, fwhm, depth = np.array(rows).T
    blank = torch.zeros(1, len(rows), 1, 1)
    view = View(
        pixels=blank,
        valid=blank == 0,
        positions=torch.zeros(1, 0, 2),
        mix=torch.from_numpy(band_mix(np.log(wavelength), knots)),
        fwhm=torch.tensor(fwhm[None], dtype=torch.float32),
        depth=torch.tensor(depth[None], dtype=torch.float32),
    )
    return conditions(view)[0].numpy()


def ideal_offsets(side, window):
    """Token offsets (n_token, 2) [east, north, arcsec] of the survey's ideal, centred grid."""
    return _ideal_offsets(int(round(window / PIXEL[side])), PIXEL[side])


# ---------------------------------------------------------------------------- tiles for training
def training_tiles(pairs):
    """The training tiles of a sequence of noise-free pairs; a pair that cannot be read is named, logged and left out.

    Raises
    ------
    ValueError
        If no pair can be used, with the first reason.
    """
    tiles, first = [], None
    for index in range(len(pairs)):
        try:
            tiles.append(_training_tile(pairs[index], index))
        except (OSError, ValueError) as error:
            first = first or error
            log.warning("pairs[%d] left out of training: %s", index, error)
    if not tiles:
        raise ValueError(f"pairs: none of the {len(pairs)} pairs can be trained on; the first: {first}") from first
    return tiles


def _training_tile(pair, index):
    where = f"pairs[{index}]"
    views = {}
    center = None
    for side in ("space", "ground"):
        images = getattr(pair, side)
        expected = pair.survey(side).band_names
        if images is None or tuple(images) != expected:
            found = " ".join(images or ()) or "none"
            raise ValueError(f"{where}: training needs all {side} bands ({' '.join(expected)}), found {found}")
        if not all(image.meta.get("noise_free") for image in images.values()):
            raise ValueError(
                f"{where}: training adds its own noise and PSF to noise-free tiles: use rosetta.simulate.TrainingSet"
            )
        of_side = [plane for plane in planes(pair).values() if plane.side == side]
        if not all(_same_grid(p, of_side[0]) and _is_native(p, PIXEL[side]) for p in of_side):
            raise ValueError(f"{where}: the {side} bands must share one north-up grid of {PIXEL[side]} arcsec")
        center = center or of_side[0].center
        scale = np.array([np.sqrt(np.median(p.variance)) for p in of_side], np.float32)
        stack = np.stack([p.data / s for p, s in zip(of_side, scale, strict=True)]).clip(-6e4, 6e4)
        views[side] = TileSide(
            torch.from_numpy(stack.astype(np.float16)), torch.from_numpy(scale), _affine(of_side[0], center, where)
        )
    return Tile(**views)


def _affine(plane, center, where):
    """Tangent-plane (east, north) arcsec -> pixel (x, y), as a (2, 3) float64 matrix."""
    ny, nx = plane.shape
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, nx - 1, 5), np.linspace(0, ny - 1, 5)))
    design = np.column_stack([tangent(plane.pixel_to_sky(x, y), center), np.ones(len(x))])
    pixels = np.column_stack([x, y])
    affine = np.linalg.lstsq(design, pixels, rcond=None)[0].T
    if np.abs(design @ affine.T - pixels).max() > 0.01:
        raise ValueError(f"{where}: its WCS is not affine to 0.01 pixel: cut it into smaller pairs")
    return affine
