# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Gaussian mixtures: the light of a source before any PSF, and how it lands on native pixels.

A mixture is an array ``(n_component, 6)`` of ``[weight, east, north, Sxx, Sxy, Syy]``: weights that
sum to one, component centres relative to the source (arcsec, east and north), and covariances
(arcsec^2, east and north). The Fourier transform of a mixture is known in closed form, so a stamp is
one product with the transform of the PSF and one inverse FFT: sub-pixel centres are exact phases,
rotation and flips are a 2x2 matrix, and nothing is interpolated. Where the pixels undersample the PSF, the
frequencies they fold are those of a telescope fitted to its core; see `rosetta.images.psf_core`.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import fft

__all__ = [
    "REFERENCE_FWHM", "REFERENCE_SCALE", "Stamps", "draw", "evaluate", "half_light_radius", "render", "stamp_sizes",
]

#: FWHM (arcsec) and grid step (arcsec) at which templates are shown.
REFERENCE_FWHM = 0.12
REFERENCE_SCALE = 0.05

FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))

# Odd (so that no Nyquist mode breaks a sub-pixel shift) and quick to transform.
SIZES = np.array([21, 27, 35, 45, 55, 63, 81, 105, 135, 175, 225, 315, 405, 525, 675, 945, 1215])

# Share of a source's light that may be folded back into its stamp.
SHARE = 1e-3

CORE = 21  # pixels: what folded frequencies add to a stamp of an extended source is within this
RINGING = 0.05  # Fourier amplitude at the Nyquist frequency, relative to the flux, above which a source is undersampled

# Numbers held at once while stamps are drawn; bounds the memory of a crowded field, and fits a cache.
CHUNK = 1_000_000

ROLL_OFF = 0.2  # cycles per pixel, to either side of Nyquist's frequency
FAINTEST = 1e-3  # of a PSF's transform, relative to its sum: orders of folded frequencies below it are left out,
NOTHING = 1e-6  # and of the others the frequencies below this
SMALLEST = -60.0  # exponents end here: single precision is slow with the denormal numbers that follow
LARGEST = 80.0  # and here, where a light narrower than a point is asked for: single precision ends at 88


@dataclass(frozen=True)
class Stamps:
    """Stamps of one size, for some of the sources.

    Attributes
    ----------
    index : (n,) int array
        Which source each stamp belongs to.
    corner : (n, 2) int array
        Image pixel (x, y) of the first pixel of each stamp; may lie off the image.
    values : (n, size, size) float32 array
        The light of each source, axis order [y, x].
    slopes : (n, n_tangent, size, size) float32 array or None
        Derivatives along tangents, where these were given.
    """

    index: np.ndarray
    corner: np.ndarray
    values: np.ndarray
    slopes: np.ndarray | None = None


def light_radius(mixtures, share):
    """Radius (arcsec) beyond which less than ``share`` (n,) of the light lies, (n,) array.

    An upper bound: each component counts with its major axis plus the offset of its centre.
    """
    weight, east, north, sxx, sxy, syy = np.moveaxis(np.asarray(mixtures, dtype=float), -1, 0)
    major = 0.5 * (sxx + syy) + np.sqrt(0.25 * (sxx - syy) ** 2 + sxy**2)  # (n, K)
    major, offset = np.maximum(major, 0.0), np.hypot(east, north)
    low, high = np.zeros(len(weight)), np.max(offset + 5.0 * np.sqrt(major) + 1e-6, axis=1, initial=0.0)
    for _ in range(12):
        middle = 0.5 * (low + high)
        reach = np.clip(middle[:, None] - offset, 0.0, None)
        outside = (weight * np.exp(-0.5 * reach**2 / np.maximum(major, 1e-12))).sum(axis=1)
        low = np.where(outside > share, middle, low)
        high = np.where(outside > share, high, middle)
    return high


def psf_radius(psf, share):
    """Radius (pixels) about the central pixel that holds all but ``share`` (n,) of every cell of a PSF, (n,)."""
    curves = psf.once("curves of growth", lambda: [_curve_of_growth(cell) for cell in psf.cells])
    return np.max([np.interp((1.0 - share) * grown[-1], grown, radius) for radius, grown in curves], axis=0)


def _curve_of_growth(psf):
    y, x = np.indices(psf.shape)
    radius = np.hypot(x - psf.shape[1] // 2, y - psf.shape[0] // 2).ravel()
    order = np.argsort(radius)
    return radius[order], np.maximum.accumulate(np.cumsum(psf.ravel()[order]))


def _psf_transforms(psf, size):
    """Transforms (n_cell, size, size // 2 + 1) of a PSF's cells, centred on pixel (0, 0).

    Light that does not fit is folded back, so that the sum stays.
    """

    def transforms():
        folded = np.zeros((len(psf.cells), size, size))
        rows, columns = ((np.arange(k) - k // 2) % size for k in psf.cells.shape[1:])
        np.add.at(folded, (slice(None), rows[:, None], columns[None, :]), psf.cells)
        return fft.rfft2(folded).astype(np.complex64)

    return psf.once(("transforms", size), transforms)


def _of_places(cells, weights):
    """What holds at each place (n, 1, ...), from what holds for each cell (n_cell, ...) and the weights (n, n_cell)."""
    return cells[None] if len(cells) == 1 else np.tensordot(weights, cells, axes=1)[:, None]


def stamp_sizes(mixtures, jacobian, psf, share=SHARE):
    """Stamp size (pixels) for each source: room for all but ``share`` of its light, (n,) int array."""
    share = np.broadcast_to(share, len(mixtures))
    stretch = np.linalg.norm(jacobian, ord=2, axis=(1, 2))  # pixel per arcsec
    need = 2.0 * np.hypot(light_radius(mixtures, share) * stretch, psf_radius(psf, share)) + 3.0
    return SIZES[np.minimum(np.searchsorted(SIZES, need), len(SIZES) - 1)]


def render(mixtures, xy, jacobian, psf, *, sizes=None):
    """Draw unit-flux sources on the native pixels of one image.

    Parameters
    ----------
    mixtures : (n, K, 6) array
        Light before any PSF; see the module's description.
    xy : (n, 2) array
        Source positions, pixel (x, y), 0-based at pixel centres.
    jacobian : (n, 2, 2) array
        d(x, y)/d(east, north) in pixel per arcsec.
    psf : `~rosetta.PSF`
    sizes : (n,) int array, optional
        Stamp sizes in pixels, odd. By default they follow from the light and the PSF.

    Returns
    -------
    list of `Stamps`
        One entry per stamp size; every stamp sums to the PSF's sum (light that would fall off a
        stamp, about 0.1 %, is folded back into it).
    """
    if sizes is None:
        sizes = stamp_sizes(mixtures, jacobian, psf)
    groups = {}
    for part in draw(mixtures, None, xy, jacobian, psf, sizes):
        groups.setdefault(part.values.shape[1], []).append(part)
    return [
        Stamps(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("index", "corner", "values")))
        for parts in groups.values()
    ]


def draw(mixtures, tangents, xy, jacobian, psf, sizes, *, folded=True):
    """As `render`, a few sources at a time, with derivatives.

    Parameters
    ----------
    mixtures, xy, jacobian, psf, sizes
        As for `render`.
    tangents : (n, D, K, 6) array or None
        Derivatives of the mixtures' numbers along D directions; each moves the centres of all components alike.
    folded : bool, optional
        Whether the frequencies are added that undersampled pixels fold. Derivatives that only lead the way can do
        without.

    Yields
    ------
    `Stamps`
    """
    mixtures, xy, jacobian = (np.asarray(array, dtype=float) for array in (mixtures, xy, jacobian))
    cores = psf.cores if folded else None
    weights = psf.weights(*xy.T).astype(np.float32)  # (n, n_cell)
    apart, sharp = _sharp(mixtures, jacobian)
    windows = sizes if cores is None else np.where(apart | sharp, sizes, np.minimum(sizes, CORE))
    counts = mixtures.shape[1] - np.argmax(mixtures[:, ::-1, 0] != 0, axis=1)  # up to the last that has light
    n_image = 1 if tangents is None else 1 + tangents.shape[1]
    kinds, which = np.unique(np.stack([sizes, windows, counts], axis=1), axis=0, return_inverse=True)
    for kind, (size, window, count) in enumerate(kinds.tolist()):
        members = np.flatnonzero(which.ravel() == kind)
        transform = _psf_transforms(psf, size)
        frequencies = np.fft.fftfreq(size), np.fft.rfftfreq(size)
        step = max(1, CHUNK // (size * (size // 2 + 1) * (count + 2 * n_image)))
        for start in range(0, len(members), step):
            index = members[start : start + step]
            lights = mixtures[index, :count]
            along = None if tangents is None else tangents[index, :, :count]
            corner = np.round(xy[index]).astype(int) - size // 2
            light = _transforms(lights, along, xy[index] - corner, jacobian[index], *frequencies)
            light *= _of_places(transform, weights[index])
            if cores is not None:
                edge = (size - window) // 2
                aliases = psf.once(("aliases", window), lambda window=window: _aliases(psf, window))
                more = _folded(
                    lights, along, xy[index] - corner - edge, jacobian[index], aliases, weights[index], window
                )
                if edge == 0:
                    light += more
            values = fft.irfft2(light, s=(size, size), axes=(2, 3), overwrite_x=True)  # (n, 1 + D, size, size)
            if cores is not None:
                if edge > 0:
                    middle = slice(edge, edge + window)
                    values[..., middle, middle] += fft.irfft2(more, s=(window, window), axes=(2, 3), overwrite_x=True)
                star = (sharp & ~apart)[index]
                values[star, 0] = _without_dark(values[star, 0], psf)
            yield Stamps(index, corner, values[:, 0], None if tangents is None else values[:, 1:])


def _sharp(mixtures, jacobian):
    """Sources in pieces, and those with enough light at Nyquist's frequency to ring all over a stamp, (n,) bool."""
    apart = ((mixtures[..., 1:3] != mixtures[:, :1, 1:3]).any(axis=-1) & (mixtures[..., 0] != 0)).any(axis=1)
    variance = 0.5 * _pixel_covariance(mixtures[..., 3:], jacobian)[..., [0, 2]].sum(axis=-1)  # (n, K)
    return apart, (mixtures[..., 0] * np.exp(-0.5 * np.pi**2 * variance)).sum(axis=1) > RINGING


def _folded(mixtures, tangents, center, jacobian, aliases, weights, size):
    """What an undersampled PSF's frequencies beyond Nyquist add to the transforms of stamps.

    (n, 1 + D, size, size // 2 + 1) complex64.

    The sampled PSF holds them folded as they are for a source on a pixel's centre; elsewhere each has the phase
    of its own frequency. That difference is added.
    """
    fy, fx = np.fft.fftfreq(size), np.fft.rfftfreq(size)
    # A source narrower than the PSF has Gaussians of negative variance, which would grow without limit out there.
    inner = _transforms(mixtures, tangents, center, jacobian, fy, fx, largest=0.0)
    total = np.zeros_like(inner)
    for my, mx, box, responses in aliases:
        light = _transforms(mixtures, tangents, center, jacobian, fy[box[0]] + my, fx[box[1]] + mx, largest=0.0)
        total[:, :, *box] += (light - inner[:, :, *box]) * _of_places(responses, weights)
    return total


def _without_dark(values, psf):
    """Stamps (n, size, size) whose pixels are no darker than the darkest one of the PSF; their sums stay.

    The pixels do not tell all of an undersampled PSF. What is missing between its diffraction rings can be negative.
    """
    raised = np.maximum(values, min(0.0, psf.once("darkest", lambda: float(psf.cells.min()))))
    return raised * (values.sum(axis=(1, 2), keepdims=True) / raised.sum(axis=(1, 2), keepdims=True))


def _aliases(psf, size):
    """The alias orders (y, x), in cycles per pixel, of an undersampled PSF, and each cell's response at each of them.

    A response stands on the box of frequencies (slices of y and x) outside which it is nothing.

    The PSF is its core, whose frequencies are known also beyond Nyquist, plus a remainder that is known on the pixels
    only. The pixels do not tell how the remainder is divided between a frequency and its aliases. `_share` divides it
    smoothly in frequency, because a sharp division at Nyquist would ring in a shifted stamp.
    """
    fy, fx = np.fft.fftfreq(size), np.fft.rfftfreq(size)
    whole = list(product((-1, 0, 1), repeat=2))
    cores = [np.stack([core.transform(fy + my, fx + mx) for core in psf.cores]) for my, mx in whole]  # (n_cell, ...)
    rest, found = _psf_transforms(psf, size) - sum(cores), []
    sums = np.abs(_psf_transforms(psf, size)[:, 0, 0]).max()
    for (my, mx), core in zip(whole, cores, strict=True):
        responses = core + rest * _share(fy + my)[:, None] * _share(fx + mx)
        strength = np.abs(responses).max(axis=0)
        if (my or mx) and strength.max() > FAINTEST * sums:
            seen = strength > NOTHING * sums
            box = tuple(slice(at.min(), at.max() + 1) for at in np.nonzero(seen))
            found.append((my, mx, box, responses[:, *box].astype(np.complex64)))
    return found


def _share(frequency):
    """Part of what the pixels see at a frequency modulo 1 that is at this frequency (cycles per pixel)."""
    beyond = np.clip((np.abs(frequency) - 0.5) / ROLL_OFF, -1.0, 1.0)
    return 0.5 * (1.0 - np.sin(0.5 * np.pi * beyond))


def _transforms(mixtures, tangents, center, jacobian, fy, fx, largest=LARGEST):
    """Fourier transforms of mixtures and of their derivatives, in closed form.

    At frequencies in cycles per pixel; (n, 1 + D, len(fy), len(fx)) complex64. ``largest`` bounds the logarithm of the
    transform of a Gaussian of unit light.
    """
    n, n_component = mixtures.shape[:2]
    weight = mixtures[..., 0]
    shift = np.einsum("nij,nkj->nki", jacobian, mixtures[..., 1:3]) + center[:, None]  # (n, K, 2)
    quadratic = -2.0 * np.pi**2 * np.stack(
        [np.broadcast_to(fx**2, (len(fy), len(fx))), 2.0 * fy[:, None] * fx, np.tile(fy[:, None] ** 2, len(fx))]
    ).reshape(3, -1).astype(np.float32)
    covariance = _pixel_covariance(mixtures[..., 3:], jacobian).astype(np.float32)
    common = np.ptp(shift, axis=1).max(initial=0.0) < 1e-9
    rows, terms = [weight], [(0, None)]  # each row of weights of Gaussians is part of one image
    if tangents is not None:
        along = _pixel_covariance(tangents[..., 3:], jacobian[:, None])  # (n, D, K, 3)
        for d in range(tangents.shape[1]):
            candidates = [(None, tangents[:, d, :, 0])] + [(q, weight * along[:, d, :, q]) for q in range(3)]
            for q, row in candidates:
                if row.any():
                    rows.append(row)
                    terms.append((1 + d, q))
    rows, images = np.stack(rows, axis=1).astype(np.float32), 0.0
    step = max(1, CHUNK // (n * quadratic.shape[1]))  # a galaxy of many fragments has hundreds of components
    for some in (slice(start, start + step) for start in range(0, n_component, step)):
        basis = covariance[:, some] @ quadratic  # (n, k, frequency)
        np.exp(np.clip(basis, SMALLEST, largest, out=basis), out=basis)
        if not common:
            basis = basis * _phase(shift[:, some].reshape(-1, 2), fx, fy).reshape(basis.shape)
        images = images + rows[:, :, some] @ basis  # (n, n_row, frequency)
    out = np.zeros((n, 1 if tangents is None else 1 + tangents.shape[1], quadratic.shape[1]), images.dtype)
    for row, (k, q) in enumerate(terms):
        out[:, k] += images[:, row] if q is None else images[:, row] * quadratic[q]
    out = out.reshape(n, -1, len(fy), len(fx))
    out = (out * _phase(shift[:, 0], fx, fy)[:, None] if common else out).astype(np.complex64, copy=False)
    if tangents is not None:
        move = np.einsum("nij,ndj->ndi", jacobian, tangents[:, :, 0, 1:3])  # (n, D, 2)
        for d in np.flatnonzero(move.any(axis=(0, 2))):
            angle = move[:, d, 0, None, None] * fx + move[:, d, 1, None, None] * fy[:, None]
            out[:, 1 + d] += out[:, 0] * (-2j * np.pi * angle).astype(np.complex64)
    return out


def _phase(shift, fx, fy):
    """exp(-2 pi i f.shift) on a grid of frequencies, from two 1-D factors."""
    x = np.exp(-2j * np.pi * shift[:, 0, None] * fx).astype(np.complex64)
    y = np.exp(-2j * np.pi * shift[:, 1, None] * fy).astype(np.complex64)
    return y[:, :, None] * x[:, None, :]


def _pixel_covariance(covariance, jacobian):
    """Covariances (..., K, 3) [xx, xy, yy] on the sky as they are on pixels, for jacobians (..., 2, 2)."""
    sky = np.stack([covariance[..., [0, 1]], covariance[..., [1, 2]]], axis=-2)
    pixel = jacobian[..., None, :, :] @ sky @ np.swapaxes(jacobian, -1, -2)[..., None, :, :]
    return np.stack([pixel[..., 0, 0], pixel[..., 0, 1], pixel[..., 1, 1]], axis=-1)


def evaluate(mixture, *, fwhm=REFERENCE_FWHM, scale=REFERENCE_SCALE, size=None):
    """The template of one source at the reference resolution.

    Parameters
    ----------
    mixture : (K, 6) array
        Light before any PSF.
    fwhm : float, optional
        FWHM (arcsec) of the Gaussian that the light is seen through.
    scale : float, optional
        Grid step, arcsec.
    size : int, optional
        Pixels a side, odd; by default large enough for the light.

    Returns
    -------
    (size, size) float64 array
        Non-negative, unit sum, axis order [north, west]: north is up and east to the left, and the
        source position is the centre of the middle pixel.
    """
    mixture = np.asarray(mixture, dtype=float)
    blur = (fwhm / FWHM_PER_SIGMA) ** 2
    if size is None:
        size = 2 * int(np.ceil((light_radius(mixture[None], SHARE)[0] + 2.0 * fwhm) / scale)) + 1
    axis = (np.arange(size) - size // 2) * scale
    north, west = np.meshgrid(axis, axis, indexing="ij")
    image = np.zeros((size, size))
    for weight, east0, north0, sxx, sxy, syy in mixture[mixture[:, 0] > 0.0]:
        sxx, syy = sxx + blur, syy + blur
        det = sxx * syy - sxy**2
        x, y = -west - east0, north - north0
        image += weight / np.sqrt(det) * np.exp(-0.5 * (syy * x**2 - 2 * sxy * x * y + sxx * y**2) / det)
    return image / image.sum()


def half_light_radius(mixtures):
    """Radius (arcsec) of the circle about the mean position that holds half of the light, (n,).

    Elliptical components enter with the circle of equal area, which is exact for round sources.
    """
    mixtures = np.asarray(mixtures, dtype=float)
    weight = mixtures[..., 0]
    variance = np.sqrt(np.maximum(mixtures[..., 3] * mixtures[..., 5] - mixtures[..., 4] ** 2, 0.0))
    centre = (weight[..., None] * mixtures[..., 1:3]).sum(axis=1, keepdims=True)
    variance = variance + 0.5 * ((mixtures[..., 1:3] - centre) ** 2).sum(axis=-1)
    low, high = np.zeros(len(mixtures)), 5.0 * np.sqrt(variance.max(axis=1, initial=0.0)) + 1e-6
    for _ in range(40):
        middle = 0.5 * (low + high)
        inside = (weight * -np.expm1(-0.5 * middle[:, None] ** 2 / np.maximum(variance, 1e-12))).sum(axis=1)
        low, high = np.where(inside < 0.5, middle, low), np.where(inside < 0.5, high, middle)
    return 0.5 * (low + high)
