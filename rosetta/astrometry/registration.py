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
from dataclasses import field as dataclass_field

import numpy as np
from scipy import fft, linalg, ndimage
from scipy.linalg import lapack

__all__ = [
    "Fit", "Geometry", "RegistrationConfig", "Sharp", "Template", "blurred", "fit_offsets", "spline_filter",
    "stamp_radius", "stamps", "transfer", "values",
]

# Transforms of the reference are kept on this many grids, and those of single sources' light up to so much memory; a
# stamp of a source may lie so many reference pixels off.
_KEPT_SHAPES, _KEPT_BYTES, _NEARLY = 2, 2**27, 2.0
# Weight matrices are prepared for these ratios of reference to target noise power.
_RATIOS = 10.0 ** np.arange(-3.0, 1.6, 0.5)


@dataclass(frozen=True)
class RegistrationConfig:
    """What decides the fit of a source's position.

    Attributes
    ----------
    most_missing : float
        Share of its light that a template may miss because the reference is invalid, or ends, under its kernel.
    ridge : float
        Of the deconvolution, relative to the unit-sum transfer function: bounds the noise gain where the reference
        carries no information, and is invisible where it does.
    neighbour_color : float
        Scatter of the neighbours' amplitudes about the source's own (colours), relative.
    signal : float
        Least share of the normal matrix that must be the sky's own and not the template's noise.
    """

    most_missing: float = 0.01
    ridge: float = 5e-3
    neighbour_color: float = 0.5
    signal: float = 0.3


class Sharp:
    """The reference image: the sharper one of the two. What is worked out of it for one band is kept for the next.

    Parameters
    ----------
    data, variance, valid : numpy.ndarray, shape (ny, nx)
        The image; ``data`` is 0 where invalid.
    owner : numpy.ndarray of int, shape (ny, nx)
        Label of the source that each pixel belongs to.
    psf : numpy.ndarray
        PSF of the image on its own pixels (odd, unit sum, centred).
    config : RegistrationConfig
    """

    def __init__(self, data, variance, valid, owner, psf, config=RegistrationConfig()):
        self.config = config
        self.data, self.owner, self.psf = np.asarray(data, np.float32), owner, psf
        self.valid, self.variance = valid, np.where(valid, variance, 0.0).astype(np.float32)
        self._transforms, self._own, self._light = {}, {}, {}

    def transforms(self, shape):
        """Fourier transforms of the image and of where it is invalid, or ended, on a larger grid of a shape."""
        if shape not in self._transforms:
            if len(self._transforms) == _KEPT_SHAPES:
                self._transforms.pop(next(iter(self._transforms)))
            ny, nx = self.data.shape
            image, lost = np.zeros(shape, np.float32), np.ones(shape, np.float32)
            image[:ny, :nx], lost[:ny, :nx] = self.data, ~self.valid
            self._transforms[shape] = fft.rfft2(image), fft.rfft2(lost)
        return self._transforms[shape]

    def sharpener(self, matrix, n):
        """What takes the image's own PSF out, as an (n, n) OTF: ridge-regularised; flux per target pixel."""
        if n not in self._own:
            own = _transfer_function(self.psf, np.eye(2), n)
            ridge2 = self.config.ridge**2
            self._own[n] = own.conj() / (np.abs(own) ** 2 + ridge2) * (1.0 + ridge2)
        return self._own[n] * abs(np.linalg.det(matrix))

    def light(self, labels, position, size):
        """Fourier transforms of the light of single sources, and the corners of its stamps: see `cut`.

        A stamp that was cut at nearly this position before is used again.
        """
        light, corner = np.empty((len(labels), size, size // 2 + 1), np.complex64), np.empty((len(labels), 2), int)
        known = self._light.setdefault(size, {})
        new = []
        for k, label in enumerate(labels):
            if label in known and np.abs(known[label][1] + size // 2 - position[k]).max() < _NEARLY:
                light[k], corner[k] = known[label]
            else:
                new.append(k)
        if new:
            cut, corner[new] = self.cut(position[new], size, labels[new])
            light[new] = fft.rfft2(cut)
            if (len(known) + len(new)) * light[0].nbytes < _KEPT_BYTES:
                known.update((labels[k], (light[k].copy(), corner[k].copy())) for k in new)
        return light, corner

    def cut(self, position, size, labels=None):
        """Stamps of the image about pixel positions, of single sources where ``labels`` names them.

        Returns stamps (n, size, size) and the pixels (x, y) of their elements [0, 0], (n, 2).
        """
        corner = np.rint(position).astype(int) - size // 2
        light = np.zeros((len(position), size, size), np.float32)
        ny, nx = self.data.shape
        for k, (x, y) in enumerate(corner):
            ys, xs = slice(max(y, 0), min(y + size, ny)), slice(max(x, 0), min(x + size, nx))
            if ys.stop > ys.start and xs.stop > xs.start:
                mine = 1 if labels is None else self.owner[ys, xs] == labels[k]
                light[k, ys.start - y : ys.stop - y, xs.start - x : xs.stop - x] = self.data[ys, xs] * mine
        return light, corner


@dataclass(frozen=True)
class Template:
    """A reference image convolved to another image's PSF, ready to be read anywhere.

    Attributes
    ----------
    sharp : Sharp
        The reference image.
    spline : numpy.ndarray, shape (ny, nx)
        Cubic B-spline coefficients on the reference grid, in flux per *target* pixel.
    missing : numpy.ndarray, shape (ny, nx)
        Share of the kernel that falls on invalid reference pixels.
    correlation : numpy.ndarray, shape (n, n)
        Spline coefficients of the autocorrelation of the kernel against the lag in reference pixels;
        zero lag at ``[n // 2, n // 2]``.
    otf : numpy.ndarray, shape (n, n // 2 + 1), complex
        Transfer function of the kernel and of `spline_filter`, for convolving the light of single sources.
    noise : dict
        Noise correlations and weights prepared by `fit_offsets`, by stamp radius: they do not depend on the offset.
    """

    sharp: Sharp
    spline: np.ndarray
    missing: np.ndarray
    correlation: np.ndarray
    otf: np.ndarray
    noise: dict = dataclass_field(default_factory=dict, compare=False, repr=False)

    def light_of(self, labels, position):
        """Spline coefficients of single sources' light at the target's PSF.

        Parameters
        ----------
        labels : numpy.ndarray of int, shape (n,)
        position : numpy.ndarray, shape (n, 2)
            Reference pixels (x, y) around which the light is cut.

        Returns
        -------
        spline : numpy.ndarray, shape (n, size, size)
        corner : numpy.ndarray of int, shape (n, 2)
            Reference pixel (x, y) of element [0, 0].
        """
        light, corner = self.sharp.light(labels, position, self.otf.shape[0])
        return blurred(light, self.otf), corner + self.otf.shape[0] // 4


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


def _transfer_function(psf, matrix, n):
    """OTF of ``psf`` on the (n, n) frequency grid (cycles per reference pixel) of another pixel grid.

    ``matrix`` is d(reference)/d(target); a PSF sampled on target pixels x sits at reference positions
    matrix @ x, so that its OTF at frequency f is the one at matrix.T @ f on its own grid.
    """
    pad = 4 * int(2 ** np.ceil(np.log2(psf.shape[0])))
    stamp = np.zeros((pad, pad))
    half = psf.shape[0] // 2
    stamp[: psf.shape[0], : psf.shape[1]] = psf
    stamp = np.roll(stamp, (-half, -(psf.shape[1] // 2)), (0, 1))
    otf = fft.fftshift(fft.fft2(stamp))
    freq = fft.fftfreq(n)
    fx, fy = np.meshgrid(freq, freq)
    gx = matrix[0, 0] * fx + matrix[1, 0] * fy
    gy = matrix[0, 1] * fx + matrix[1, 1] * fy
    where = [gy * pad + pad // 2, gx * pad + pad // 2]
    real = ndimage.map_coordinates(otf.real, where, order=3, mode="grid-wrap")
    imag = ndimage.map_coordinates(otf.imag, where, order=3, mode="grid-wrap")
    inside = (np.abs(gx) < 0.5) & (np.abs(gy) < 0.5)  # beyond its Nyquist frequency nothing is known
    return np.where(inside, real + 1j * imag, 0.0)


def spline_filter(n):
    """Transfer function (n, n // 2 + 1) that makes cubic B-spline coefficients of the samples of an image."""
    fy, fx = fft.fftfreq(n)[:, None], fft.rfftfreq(n)
    return 9.0 / ((2.0 + np.cos(2 * np.pi * fy)) * (2.0 + np.cos(2 * np.pi * fx)))  # Unser 1999


def transfer(sharp, target_psf, matrix):
    """Bring a reference image to the PSF of another image.

    Parameters
    ----------
    sharp : Sharp
    target_psf : numpy.ndarray
        PSF of the other image on the other image's pixels.
    matrix : numpy.ndarray, shape (2, 2)
        d(reference x, y) / d(target x, y) near the middle of the images.

    Returns
    -------
    Template
    """
    span = np.abs(matrix) @ np.array(target_psf.shape[::-1])
    n = fft.next_fast_len(int(np.ceil(max(span.max(), sharp.psf.shape[0]) * 1.25)) // 2 * 2 + 2)
    n += n % 2
    kernel_otf = _transfer_function(target_psf, matrix, n) * sharp.sharpener(matrix, n)
    kernel = fft.ifft2(kernel_otf).real  # (n, n), origin at [0, 0]
    coefficients = fft.rfft2(kernel) * spline_filter(n)
    correlation = fft.fftshift(fft.ifft2(np.abs(kernel_otf) ** 2).real)

    ny, nx = sharp.data.shape
    shape = tuple(fft.next_fast_len(size + n, real=True) for size in (ny, nx))
    data, lost = sharp.transforms(shape)
    image, missing = (
        fft.irfft2(transform * fft.rfft2(_about_origin(k, shape)), shape)[:ny, :nx]
        for transform, k in ((data, fft.irfft2(coefficients, (n, n))), (lost, np.abs(kernel) / np.abs(kernel).sum()))
    )
    return Template(
        sharp=sharp,
        spline=image,
        missing=np.clip(missing, 0.0, 1.0),
        correlation=ndimage.spline_filter(correlation, order=3, mode="mirror"),
        otf=coefficients.astype(np.complex64),
    )


def blurred(light, otf):
    """Stamps convolved with a kernel, both as transforms, without the quarter of the width at each side that is wrapped
    round. With a kernel times `spline_filter` they are spline coefficients."""
    size = light.shape[-2]
    rim = size // 4
    return fft.irfft2(light * otf, (size, size))[:, rim : size - rim, rim : size - rim]


def _about_origin(kernel, shape):
    """A kernel (n, n) with its origin at [0, 0], on a larger grid."""
    out = np.zeros(shape, np.float32)
    half = kernel.shape[0] // 2
    for ys in (slice(0, half), slice(-half, None)):
        for xs in (slice(0, half), slice(-half, None)):
            out[ys, xs] = kernel[ys, xs]
    return out


def _bspline(t):
    """Values and derivatives of the four cubic B-spline weights at fraction t (Unser 1999)."""
    s = 1.0 - t
    value = [s**3 / 6, t * t * (t / 2 - 1) + 2 / 3, s * s * (s / 2 - 1) + 2 / 3, t**3 / 6]
    slope = [-s * s / 2, t * (1.5 * t - 2), s * (2 - 1.5 * s), t * t / 2]
    return value, slope


def _taps(images, x, y):
    """Where the 16 spline coefficients around positions lie in ``images.ravel()``: that of the first one (n, n_pixel),
    the steps to the others (4, 4) [y, x], and the fractions of a pixel; positions are clipped to the images.

    With a stack of images (n, ny, nx), x and y are (n, n_pixel), one row per image.
    """
    ny, nx = images.shape[-2:]
    x, y = np.clip(x, 1.0, nx - 3.0), np.clip(y, 1.0, ny - 3.0)
    ix, iy = np.floor(x).astype(int), np.floor(y).astype(int)
    first = (iy - 1) * nx + ix - 1
    if images.ndim == 3:
        first += ny * nx * np.arange(len(images))[:, None]
    return first, nx * np.arange(4)[:, None] + np.arange(4), x - ix, y - iy


def _value(spline, x, y):
    """Value of a spline image, or of a stack of them, at positions: see `_taps`."""
    first, step, fx, fy = _taps(spline, x, y)
    (wx, _), (wy, _), flat = _bspline(fx), _bspline(fy), spline.ravel()
    value = 0.0
    for j in range(4):
        value = value + wy[j] * sum(wx[i] * flat.take(first + step[j, i]) for i in range(4))
    return value


def _read(spline, x, y):
    """Value and gradient (per reference pixel) of a spline image, or of a stack of them, at positions: see `_taps`."""
    first, step, fx, fy = _taps(spline, x, y)
    (wx, sx), (wy, sy), flat = _bspline(fx), _bspline(fy), spline.ravel()
    value = along_x = along_y = 0.0
    for j in range(4):
        taps = [flat.take(first + step[j, i]) for i in range(4)]
        row, slope = (sum(w[i] * taps[i] for i in range(4)) for w in (wx, sx))
        value, along_y, along_x = value + wy[j] * row, along_y + sy[j] * row, along_x + wy[j] * slope
    return value, along_x, along_y


def values(splines, x, y):
    """Values of stacks of spline images (n, ny, nx, n_function) at x, y (n, n_pixel): (n, n_pixel, n_function)."""
    n, ny, nx, _ = splines.shape
    x, y = np.clip(x, 1.0, nx - 3.0), np.clip(y, 1.0, ny - 3.0)
    ix, iy = np.floor(x).astype(int), np.floor(y).astype(int)
    wx, wy = _bspline(x - ix)[0], _bspline(y - iy)[0]
    image = np.arange(n)[:, None]
    out = 0.0
    for j in range(4):
        for i in range(4):
            out = out + splines[image, iy + j - 1, ix + i - 1] * (wy[j] * wx[i])[..., None]
    return out


class _Noise:
    """Correlation of template noise between the pixels of a stamp, and weights that allow for it."""

    def __init__(self, template, matrix, sky, radius):
        lags = np.arange(-2 * radius, 2 * radius + 1)
        lx, ly = np.meshgrid(lags, lags)
        half = template.correlation.shape[0] // 2
        x = half + matrix[0, 0] * lx + matrix[0, 1] * ly
        y = half + matrix[1, 0] * lx + matrix[1, 1] * ly
        value = _value(template.correlation, x, y)
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
                    gx = _read(template.correlation, x + sign * step * (b == 0), y + sign * step * (b == 1))
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

    value = _value(template.spline, x, y)
    light, corner = template.light_of(geometry.label[part], origin)
    mine, gx, gy = _read(light, x - corner[:, 0, None], y - corner[:, 1, None])
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
