# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The sharper image of two, brought to the PSF of the other: the template of every source in it.

Positions: pixels are 0-based (x, y), the centre of the first one is (0, 0); arrays are [y, x].
"""

from dataclasses import dataclass
from dataclasses import field as dataclass_field

import numpy as np
from scipy import fft, ndimage

from .splines import spline_filter

__all__ = ["RegistrationConfig", "Sharp", "Template", "blurred", "transfer"]

# Transforms of the reference are kept on this many grids, and stamps of single sources' light, or their transforms, up
# to so much memory; a stamp of a source may lie so many reference pixels off.
_KEPT_SHAPES, _KEPT_BYTES, _NEARLY = 2, 2**27, 2.0


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


class _Kept:
    """Stamps of single sources, which are used again where they were made at nearly the same place."""

    def __init__(self):
        self._known = {}

    def of(self, labels, place, make):
        """Stamps and corners (n, 2), near ``place`` (n, 2), of sources; ``make(rows)`` makes those that are new."""
        found = [self._known.get(label) for label in labels]
        rows = [k for k, old in enumerate(found) if old is None or np.abs(old[1] - place[k]).max() >= _NEARLY]
        if rows:
            for k, new in zip(rows, zip(*make(rows), strict=True), strict=True):
                found[k] = new
            if (len(self._known) + len(rows)) * found[rows[0]][0].nbytes < _KEPT_BYTES:
                self._known.update((labels[k], found[k]) for k in rows)
        return tuple(np.stack(parts) for parts in zip(*found, strict=True))


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

        def transformed(rows):
            cut, corner = self.cut(position[rows], size, labels[rows])
            return fft.rfft2(cut), corner

        return self._light.setdefault(size, _Kept()).of(labels, position - size // 2, transformed)

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
    light : _Kept
        What `light_of` has made.
    """

    sharp: Sharp
    spline: np.ndarray
    missing: np.ndarray
    correlation: np.ndarray
    otf: np.ndarray
    noise: dict = dataclass_field(default_factory=dict, compare=False, repr=False)
    light: _Kept = dataclass_field(default_factory=_Kept, compare=False, repr=False)

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
        size = self.otf.shape[0]

        def made(rows):
            light, corner = self.sharp.light(labels[rows], position[rows], size)
            return blurred(light, self.otf).copy(), corner + size // 4

        return self.light.of(labels, position - size // 2 + size // 4, made)


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
