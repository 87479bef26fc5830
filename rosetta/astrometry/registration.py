# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Where is each source in one image, relative to a sharper image of the same sky?

The sharper image, convolved to the other one's PSF, is the template: it holds the true shapes, the
neighbours and the blends, and no model of a galaxy is needed. Per source a linear least-squares fit of
(amplitude, shift, background) on the native pixels of the other image gives the offset. The noise of
both images is carried through the estimator.

Positions: pixels are 0-based (x, y), the centre of the first one is (0, 0); arrays are [y, x]. Shifts
are (east, north) in arcsec. The sense is that of the package: true position = header position + offset.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg
from scipy.linalg import lapack

from .splines import value_and_slopes, value_at

__all__ = ["Fit", "Geometry", "fit_offsets", "stamp_radius", "stamps"]

# Weight matrices are prepared for these ratios of reference to target noise power.
_RATIOS = 10.0 ** np.arange(-3.0, 1.6, 0.5)


@dataclass(frozen=True)
class Geometry:
    """Where the stamps of n sources lie on both grids (stripped of any WCS, float64).

    Attributes
    ----------
    label : numpy.ndarray of int, shape (n,)
        The sources' labels in ``Template.owner``.
    center : numpy.ndarray of int, shape (n, 2)
        Target pixel (x, y) at the centre of each stamp.
    reference : numpy.ndarray, shape (n, 2)
        Reference pixel (x, y) which the headers put at that target pixel.
    matrix : numpy.ndarray, shape (n, 2, 2)
        d(reference x, y) / d(target x, y).
    sky : numpy.ndarray, shape (n, 2, 2)
        d(reference x, y) / d(east, north), in reference pixels per arcsec.
    """

    label: np.ndarray
    center: np.ndarray
    reference: np.ndarray
    matrix: np.ndarray
    sky: np.ndarray


@dataclass(frozen=True)
class Fit:
    """Per-source result of `fit_offsets`; NaN where a source could not be fitted.

    Attributes
    ----------
    amplitude, amplitude_err : numpy.ndarray, shape (n,)
        Flux in the target over flux in the reference, and its error.
    offset : numpy.ndarray, shape (n, 2)
        Total offset (east, north) in arcsec, the one assumed included.
    cov_target, cov_reference : numpy.ndarray, shape (n, 2, 2)
        Its covariance from the noise of either image, arcsec^2.
    chi2 : numpy.ndarray, shape (n,)
        Reduced chi-square of the stamp.
    missing : numpy.ndarray, shape (n,)
        Share of the stamp's pixels without usable data.
    """

    amplitude: np.ndarray
    amplitude_err: np.ndarray
    offset: np.ndarray
    cov_target: np.ndarray
    cov_reference: np.ndarray
    chi2: np.ndarray
    missing: np.ndarray

    @property
    def snr(self):
        """Significance of the amplitude."""
        return self.amplitude / self.amplitude_err


def stamp_radius(fwhm_pixel):
    """Half-width of a stamp in target pixels: two FWHM, at least 5 and at most 15 pixels."""
    return int(np.clip(np.ceil(2.0 * fwhm_pixel), 5, 15))


class _Noise:
    """Correlation of template noise between the pixels of a stamp, and weights that allow for it."""

    def __init__(self, template, matrix, sky, radius):
        lags = np.arange(-2 * radius, 2 * radius + 1)
        lx, ly = np.meshgrid(lags, lags)
        half = template.correlation.shape[0] // 2
        x = half + matrix[0, 0] * lx + matrix[0, 1] * ly
        y = half + matrix[1, 0] * lx + matrix[1, 1] * ly
        value = value_at(template.correlation, x, y)
        side = np.arange(2 * radius + 1)
        px, py = (a.ravel() for a in np.meshgrid(side, side))
        index = (py[:, None] - py + 2 * radius, px[:, None] - px + 2 * radius)
        self.pixels = value[index]  # (n_pixel, n_pixel), in units of the reference's pixel variance
        # Noise in the template's own gradient: minus the second derivative of the correlation.
        step = 0.5
        curvature = np.zeros((2, 2) + value.shape)
        for a in (0, 1):
            for b in (0, 1):
                up, down = [], []
                for sign in (1, -1):
                    gx = value_and_slopes(template.correlation, x + sign * step * (b == 0), y + sign * step * (b == 1))
                    (up if sign == 1 else down).append(gx[1 + a])
                curvature[a, b] = -(up[0] - down[0]) / (2 * step)
        self.gradient = np.einsum("ai,abyx,bj->ijyx", sky, curvature, sky)[(slice(None), slice(None)) + index]
        self.peak = self.pixels[0, 0]
        self._weights = {}

    def weight(self, k):
        """Weight matrix of noise ratio number ``k``, and its products with the noise of the template's value and
        gradient (ee, en, nn); the inverse is large, and few ratios occur."""
        if k not in self._weights:
            covariance = np.eye(len(self.pixels)) + _RATIOS[k] * self.pixels / self.peak
            lower, _ = lapack.dpotri(linalg.cholesky(covariance, lower=True, check_finite=False), lower=1)
            weight = np.tril(lower) + np.tril(lower, -1).T
            own = [weight * part for part in (self.pixels, self.gradient[0, 0], self.gradient[0, 1],
                                              self.gradient[1, 1])]
            self._weights[k] = weight, own
        return self._weights[k]

    def choose(self, ratio):
        """Index of the prepared weight matrix nearest to this noise ratio (target-pixel units)."""
        return np.abs(np.log(_RATIOS) - np.log(np.maximum(ratio, 1e-9))[:, None]).argmin(1)


def fit_offsets(template, data, variance, valid, geometry, offset, radius, *, amplitude=None):
    """Weighted linear least squares of (amplitude, shift, background), one source at a time.

    The target stamp D(p) is modelled as a T(p; o) + a s . dS/do + b + c N, with the template T = S + N (the
    source and its neighbours) read where the headers and the assumed offset o put each target pixel, and
    c, the neighbours' difference of colour, held to 0 +- a/2 by a prior. The weights allow for the
    correlated noise of the template; the part of the normal matrix which is the template's noise
    squared is subtracted (an errors-in-variables correction, Fuller 1987), so that faint sources are
    not pulled to o.

    Parameters
    ----------
    template : Template
    data, variance, valid : numpy.ndarray, shape (ny, nx)
        The target image.
    geometry : Geometry
        Of n sources.
    offset : numpy.ndarray, shape (n, 2)
        Assumed offset (east, north), arcsec, around which the model is linear.
    radius : int
        Half-width of the stamps in target pixels.
    amplitude : numpy.ndarray, shape (n,), optional
        Rough amplitudes, used for weights only (default 1).

    Returns
    -------
    Fit
    """
    n = len(geometry.center)
    amplitude = np.ones(n) if amplitude is None else np.clip(np.nan_to_num(amplitude, nan=1.0), 0.05, 20.0)
    out = Fit(*(np.full(shape, np.nan) for shape in [n, n, (n, 2), (n, 2, 2), (n, 2, 2), n, n]))
    if n == 0:
        return out
    middle = geometry.reference - np.array(template.spline.shape[::-1]) / 2.0
    typical = int(np.argmin((middle**2).sum(1)))
    if radius not in template.noise:  # the grids turn by nothing that matters between two calls
        template.noise[radius] = _Noise(template, geometry.matrix[typical], geometry.sky[typical], radius)
    noise = template.noise[radius]
    chunk = max(1, 200_000 // (2 * radius + 1) ** 2)
    for start in range(0, n, chunk):
        part = slice(start, start + chunk)
        _fit_chunk(template, data, variance, valid, geometry, offset, radius, amplitude, noise, part, out)
    return out


def stamps(template, data, valid, geometry, offset, radius, part):
    """Pixels and linear model of the stamps of some sources.

    Returns the target pixels px, py (n, n_pixel), the reference pixels under them x, y, which of them are of use,
    and the design (n, n_pixel, 5): template, its slope for the source's own light to the east and to the north, 1,
    neighbours.
    """
    side = np.arange(-radius, radius + 1)
    dx, dy = (a.ravel().astype(float) for a in np.meshgrid(side, side))  # (n_pixel,)
    center = geometry.center[part]
    px = center[:, 0, None] + dx.astype(int)  # (n, n_pixel)
    py = center[:, 1, None] + dy.astype(int)
    inside = (px >= 0) & (py >= 0) & (px < data.shape[1]) & (py < data.shape[0])
    px, py = np.clip(px, 0, data.shape[1] - 1), np.clip(py, 0, data.shape[0] - 1)

    matrix, sky = geometry.matrix[part], geometry.sky[part]
    origin = geometry.reference[part] + np.einsum("nij,nj->ni", sky, offset[part])
    x = origin[:, 0, None] + matrix[:, 0, 0, None] * dx + matrix[:, 0, 1, None] * dy
    y = origin[:, 1, None] + matrix[:, 1, 0, None] * dx + matrix[:, 1, 1, None] * dy
    ny, nx = template.spline.shape
    inside &= (x > 1) & (y > 1) & (x < nx - 3) & (y < ny - 3)
    nearest = np.clip(np.rint(y).astype(int), 0, ny - 1), np.clip(np.rint(x).astype(int), 0, nx - 1)
    use = inside & valid[py, px] & (template.missing[nearest] < template.sharp.config.most_missing)

    value = value_at(template.spline, x, y)
    light, corner = template.light_of(geometry.label[part], origin)
    mine, gx, gy = value_and_slopes(light, x - corner[:, 0, None], y - corner[:, 1, None])
    east = gx * sky[:, 0, 0, None] + gy * sky[:, 1, 0, None]
    north = gx * sky[:, 0, 1, None] + gy * sky[:, 1, 1, None]
    design = np.stack([value, east, north, np.ones_like(value), value - mine], -1)  # (n, n_pixel, 5)
    return px, py, x, y, nearest, use, design


def _times(matrix, stack):
    """A matrix (p, p) times each of a stack (m, p, k), as one product."""
    m, p, k = stack.shape
    return (matrix @ stack.transpose(1, 0, 2).reshape(p, m * k)).reshape(p, m, k).transpose(1, 0, 2)


def _fit_chunk(template, data, variance, valid, geometry, offset, radius, amplitude, noise, part, out):
    px, py, x, y, nearest, use, design = stamps(template, data, valid, geometry, offset, radius, part)
    _, east, north = np.moveaxis(design[..., :3], -1, 0)
    prior = np.zeros((len(px), 5, 5))
    prior[:, 4, 4] = 1.0 / (template.sharp.config.neighbour_color * amplitude[part]) ** 2
    v_target = np.where(use, variance[py, px], np.inf).astype(float)
    pull = east**2 + north**2
    v_ref = (np.where(use, template.sharp.variance[nearest], 0.0) * pull).sum(1)
    v_ref /= np.maximum(np.where(use, pull, 0.0).sum(1), 1e-300)
    with np.errstate(invalid="ignore", divide="ignore"):
        sigma = 1.0 / np.sqrt(v_target)  # 0 where unusable
        mean_v = use.sum(1) / np.maximum((1.0 / v_target).sum(1), 1e-300)
        choice = noise.choose(amplitude[part] ** 2 * v_ref * noise.peak / np.maximum(mean_v, 1e-300))
    image = np.where(use, data[py, px], 0.0)
    n_use = use.sum(1)
    good = np.flatnonzero((n_use >= max(25, 0.5 * px.shape[1])) & np.isfinite(mean_v))
    for k in np.unique(choice[good]):
        rows = good[choice[good] == k]
        weight, products = noise.weight(k)
        scaled = design[rows] * sigma[rows, :, None]  # (m, n_pixel, 5)
        back = _times(weight, scaled) * sigma[rows, :, None]  # (m, n_pixel, 5): Omega A
        normal = back.swapaxes(1, 2) @ design[rows]
        right = np.einsum("mpi,mp->mi", back, image[rows])
        # The template's noise squared, part of `normal` but not of the sky.
        own = np.zeros_like(normal)
        spread = sigma[rows]
        for (i, j), product in zip(((0, 0), (1, 1), (1, 2), (2, 2)), products, strict=True):
            own[:, i, j] = own[:, j, i] = ((spread @ product) * spread).sum(1)
        clean = normal - own * v_ref[rows, None, None] + prior[rows]
        left, all_ = (np.diagonal(a, axis1=1, axis2=2)[:, :3] for a in (clean, normal))
        fine = (left > template.sharp.config.signal * all_).all(1)
        rows, back, clean, right = rows[fine], back[fine], clean[fine], right[fine]
        if len(rows) == 0:
            continue
        inverse = np.linalg.inv(clean)
        p = np.einsum("mij,mj->mi", inverse, right)
        a = p[:, 0]
        finite_v = np.where(use[rows], v_target[rows], 0.0)
        c_target = back.swapaxes(1, 2) @ (finite_v[..., None] * back) + prior[rows]
        c_target = inverse @ c_target @ inverse.swapaxes(1, 2)
        c_ref = back.swapaxes(1, 2) @ _times(noise.pixels, back)
        c_ref = inverse @ c_ref @ inverse.swapaxes(1, 2) * (a**2 * v_ref[rows])[:, None, None]
        shift = p[:, 1:3] / a[:, None]
        # d(shift)/d(a, a s_east, a s_north)
        jac = np.zeros((len(rows), 2, 5))
        jac[:, :, 0] = -shift / a[:, None]
        jac[:, 0, 1] = jac[:, 1, 2] = 1.0 / a
        residual = image[rows] - np.einsum("mpi,mi->mp", design[rows], p)
        expected = v_target[rows] + (a**2 * v_ref[rows] * noise.peak)[:, None]
        to = part.start + rows
        out.amplitude[to] = a
        out.amplitude_err[to] = np.sqrt(c_target[:, 0, 0] + c_ref[:, 0, 0])
        out.offset[to] = offset[to] + shift
        out.cov_target[to] = jac @ c_target @ jac.swapaxes(1, 2)
        out.cov_reference[to] = jac @ c_ref @ jac.swapaxes(1, 2)
        out.chi2[to] = np.where(use[rows], residual**2 / expected, 0.0).sum(1) / (n_use[rows] - 4)
    out.missing[part] = 1.0 - n_use / px.shape[1]
