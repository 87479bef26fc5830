# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How a survey observes: PSF, depth, noise and masks, drawn anew for every training window."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

from .network import View

__all__ = ["PAD", "background", "draw_psf", "observe"]

PAD = 16  # pixels around a window that are convolved with it and cut off again
_NATIVE = 3  # NISP pixels are 3 delivered pixels wide; their noise is interpolated with them
_SIGMA_ERROR = 0.05  # rms of ln(flux scale / noise scale) per band: zero points, bandpasses, noise maps
_RMS_RANGE = (0.6, 1.1)  # pixel noise over what the variance leads to expect: stacking correlates pixels
_PSF_GRID = 64  # frequencies per axis for the noise-equivalent area
_SQRT_8LN2 = math.sqrt(8 * math.log(2))


def observe(images, scale, positions, conditions, mix, random):
    """Observe noise-free windows: PSF, depth, noise, background, masks and missing bands.

    Parameters
    ----------
    images : `torch.Tensor`
        Padded windows in units of ``scale``, (n, n_band, size + 32, size + 32).
    scale : `torch.Tensor`
        nJy, (n, n_band).
    positions : `torch.Tensor`
        Token positions, handed on.
    conditions : `Conditions`
    mix : `torch.Tensor`
        Handed on.
    random : `torch.Generator`

    Returns
    -------
    view : `~rosetta.encoding.network.View`
    clean : `torch.Tensor`
        asinh(flux / sigma) without noise, (n, n_band, size, size).
    """
    n, n_band = images.shape[:2]
    device = images.device
    fwhm, shear = draw_psf(conditions, n, random, device)
    blurred = convolve(images, fwhm, shear, conditions)
    depth = _constant(conditions.depth, device) + _uniform(random, (n, 1), -0.8, 0.5, device)
    depth = depth + _uniform(random, (n, n_band), -0.6, 0.4, device)
    otf = transfer(fwhm, shear, conditions)
    sigma = pixel_sigma(depth, otf)  # nJy
    error = (_SIGMA_ERROR * _normal(random, (n, n_band), device)).exp()
    signal = blurred * (scale * error / sigma)[..., None, None]
    rms = noise_rms(otf, conditions) * _uniform(random, (n, n_band), *_RMS_RANGE, device)
    noisy = noise(signal.shape, conditions, random, device).mul_(rms[..., None, None]).add_(signal)
    noisy += rms[..., None, None] * background(signal.shape, random, device)
    valid = _valid(signal, conditions, random)
    view = View(
        pixels=_asinh(noisy).mul_(valid),
        valid=valid,
        positions=positions,
        mix=mix,
        fwhm=image_fwhm(otf, conditions) * (0.03 * _normal(random, (n, n_band), device)).exp(),
        depth=depth,
    )
    return view, _asinh(signal)


@lru_cache(maxsize=64)
def _constant(values, device):
    """Numbers of a survey as a tensor, kept on the device: a copy at every step would wait for it."""
    return torch.tensor(values, device=device)


def _asinh(x):
    # torch's own is not vectorised on the CPU: six times slower than these passes.
    size = x.abs()
    return size.square().add_(1).sqrt_().add_(size).log_().copysign_(x)


def _uniform(random, shape, low, high, device):
    return low + (high - low) * torch.rand(shape, generator=random, device=device)


def _normal(random, shape, device):
    return torch.randn(shape, generator=random, device=device)


def draw_psf(conditions, n, random, device):
    """Seeing or blur (arcsec), (n, n_band), and ellipticity, (n, n_band, 2)."""
    low, high = _constant(conditions.fwhm, device).T
    n_band = len(low)
    # Bands of one window share most of their seeing.
    shared = _uniform(random, (n, 1), 0, 1, device)
    own = _uniform(random, (n, n_band), 0, 1, device)
    fwhm = low * (high / low) ** (0.75 * shared + 0.25 * own)
    shear = 0.03 * _normal(random, (n, n_band, 2), device)
    return fwhm, shear.clamp(-0.1, 0.1)


def _frequencies(size, scale, device):
    """Spatial frequencies in cycles per arcsec: fx (1, size // 2 + 1) and fy (size, 1)."""
    fx = torch.fft.rfftfreq(size, scale, device=device)[None]
    return fx, torch.fft.fftfreq(size, scale, device=device)[:, None]


def _elliptical(fx, fy, shear):
    """Squared radial frequency of a PSF with the given shear: (n, n_band, size, size // 2 + 1)."""
    e1, e2 = shear[..., 0, None, None], shear[..., 1, None, None]
    return fx**2 * (1 + e1) + fy**2 * (1 - e1) + (2 * e2) * (fx * fy)


def blur_ratio(size, fwhm, shear, conditions):
    """Transfer function that carries the base PSF to the target.

    Ground: Kolmogorov turbulence, exp(-3.44 (f FWHM / 0.976)^(5/3)) (Fried 1966), over the base Gaussian.
    Space: a Gaussian.

    Parameters
    ----------
    size : int
        Pixels along the image.
    fwhm, shear : `torch.Tensor`
        Seeing (ground) or blur (space), arcsec, (n, n_band), and ellipticity, (n, n_band, 2).
    conditions : `Conditions`

    Returns
    -------
    `torch.Tensor`
        (n, n_band, size, size // 2 + 1), real.
    """
    fx, fy = _frequencies(size, conditions.pixel_scale, fwhm.device)
    square = _elliptical(fx, fy, shear)
    gauss = 2 * (math.pi / _SQRT_8LN2) ** 2
    if conditions.base_fwhm is not None:
        strength = 3.44 * (fwhm / 0.976) ** (5 / 3)
        base = gauss * conditions.base_fwhm**2 * (fx**2 + fy**2)
        return torch.exp(base - strength[..., None, None] * square ** (5 / 6))
    return torch.exp(-(gauss * fwhm**2)[..., None, None] * square)


def base_transfer(size, conditions, device):
    """Transfer function of a tile's base PSF as sampled, pixel response included, (size, size // 2 + 1)."""
    fx, fy = _frequencies(size, conditions.pixel_scale, device)
    rate = 1 / conditions.pixel_scale
    # VIS is undersampled: frequencies beyond Nyquist come back folded.
    return sum(
        _continuous_transfer(fx + i * rate, fy + j * rate, conditions) for i in (-1, 0, 1) for j in (-1, 0, 1)
    )


def _continuous_transfer(fx, fy, conditions):
    square = fx**2 + fy**2
    pixel = torch.sinc(fx * conditions.pixel_scale) * torch.sinc(fy * conditions.pixel_scale)
    if conditions.base_fwhm is not None:
        return pixel * torch.exp(-2 * (math.pi * conditions.base_fwhm / _SQRT_8LN2) ** 2 * square)
    jitter = torch.exp(-2 * (math.pi * 0.03) ** 2 * square)
    return pixel * jitter * _annulus(square.sqrt() * 0.125, 0.4)


def _annulus(separation, obscuration):
    """Autocorrelation of an annular pupil (O'Neill 1956) at ``separation`` in units of its diameter."""

    def overlap(r1, r2):
        # Area shared by circles of radius r1 >= r2 whose centres lie 2 * separation apart.
        d = (2 * separation).clamp(min=1e-6)
        inside = torch.minimum(d, torch.full_like(d, r1 + r2)).clamp(min=max(r1 - r2, 1e-6))
        first = ((inside**2 + r1**2 - r2**2) / (2 * inside * r1)).clamp(-1, 1)
        second = ((inside**2 + r2**2 - r1**2) / (2 * inside * r2)).clamp(-1, 1)
        square = (r1 + r2) ** 2 - inside**2
        kite = (square * (inside**2 - (r1 - r2) ** 2)).clamp(min=0).sqrt() / 2
        return r1**2 * first.acos() + r2**2 * second.acos() - kite

    total = overlap(1.0, 1.0) - 2 * overlap(1.0, obscuration) + overlap(obscuration, obscuration)
    return total / (math.pi * (1 - obscuration**2))


def convolve(images, fwhm, shear, conditions):
    """Carry padded windows to their target PSF and cut the padding off: (n, n_band, size, size)."""
    size = images.shape[-1]
    ratio = blur_ratio(size, fwhm, shear, conditions)
    blurred = torch.fft.irfft2(torch.fft.rfft2(images) * ratio, s=(size, size))
    return blurred[..., PAD:-PAD, PAD:-PAD]


def transfer(fwhm, shear, conditions):
    """Transfer function of the whole PSF as sampled: (n, n_band, 64, 33), real."""
    base = base_transfer(_PSF_GRID, conditions, fwhm.device)
    return base * blur_ratio(_PSF_GRID, fwhm, shear, conditions)


def _plane_weight(device):
    # A mean over the full frequency plane from its stored half.
    weight = torch.full((_PSF_GRID // 2 + 1,), 2.0 / _PSF_GRID**2, device=device)
    weight[0] /= 2
    weight[-1] /= 2
    return weight


def noise_area(otf):
    """1 / sum(psf^2) in pixels, (n, n_band), of PSFs given by `transfer`."""
    return 1 / (otf.square() * _plane_weight(otf.device)).sum((-2, -1))


def pixel_sigma(depth, otf):
    """White noise per pixel, nJy, at which a PSF-matched filter reaches ``depth`` at 5 sigma; (n, n_band)."""
    return 10 ** (0.4 * (31.4 - depth)) / 5 / noise_area(otf).sqrt()


def noise_rms(otf, conditions):
    """Pixel-to-pixel noise over `pixel_sigma`, (n, n_band): below 1 where the noise is correlated.

    Noise planes state the white noise that leaves a source the same uncertainty; interpolation makes the
    pixels themselves smoother than that (0.25 in Euclid's NISP mosaics).
    """
    power = otf.square() * _plane_weight(otf.device)
    total = power.sum((-2, -1))
    fx, fy = _frequencies(_PSF_GRID, 1.0, otf.device)
    spectrum = _interpolated(fx) * _interpolated(fy)  # mean 1
    # The filter psf / sum(psf^2) has the variance rms^2 sum(power spectrum |OTF|^2) / (sum |OTF|^2)^2.
    smoother = (total / (power * spectrum).sum((-2, -1))).sqrt()
    correlated = _constant(conditions.correlated, otf.device)
    return torch.where(correlated, smoother, 1.0)


def image_fwhm(otf, conditions):
    """Full width at half maximum of PSFs given by `transfer`, mean of x and y, arcsec, (n, n_band)."""
    radius = torch.arange(192, device=otf.device) / 16  # pixels
    weight = _plane_weight(otf.device)
    fx = torch.fft.rfftfreq(_PSF_GRID, device=otf.device)
    fy = torch.fft.fftfreq(_PSF_GRID, device=otf.device)
    along_x = (otf.sum(-2) * weight) @ torch.cos(2 * math.pi * fx[:, None] * radius)
    along_y = (otf @ weight) @ torch.cos(2 * math.pi * fy[:, None] * radius)
    widths = []
    for profile in (along_x, along_y):  # (n, n_band, 192), brightest first
        fraction = profile / profile[..., :1]
        last = (fraction > 0.5).to(torch.uint8).cumprod(-1).sum(-1, keepdim=True) - 1
        last = last.clamp(max=len(radius) - 2)
        inner, outer = fraction.gather(-1, last), fraction.gather(-1, last + 1)
        widths.append(2 * (last + (inner - 0.5) / (inner - outer)) / 16)
    return (widths[0] * widths[1]).sqrt()[..., 0] * conditions.pixel_scale


def _triangle(device=None):
    steps = torch.arange(1 - _NATIVE, _NATIVE, device=device)
    return steps, 1 - steps.abs() / _NATIVE


def _interpolated(f):
    """Power spectrum (mean 1) of linearly interpolated white noise along one axis."""
    steps, weight = _triangle(f.device)
    transfer = (weight * torch.cos(2 * math.pi * f[..., None] * steps)).sum(-1)
    return transfer.square() / weight.square().sum()


def noise(shape, conditions, random, device):
    """Unit-variance noise: white, or interpolated from native pixels three times as large."""
    n, n_band, size, _ = shape
    out = torch.empty(shape, device=device)
    correlated = [band for band in range(n_band) if conditions.correlated[band]]
    white = [band for band in range(n_band) if not conditions.correlated[band]]
    for band in white:
        out[:, band] = _normal(random, (n, size, size), device)
    if correlated:
        native = size // _NATIVE + 3
        coarse = _normal(random, (n, len(correlated), native, native), device)
        fine = F.interpolate(coarse, scale_factor=_NATIVE, mode="bilinear", align_corners=False)
        # The outermost native pixels are extrapolated. The shift stays on the device: asking for it would wait.
        first = _NATIVE + torch.randint(_NATIVE, (2, 1), generator=random, device=device)
        rows, columns = first + torch.arange(size, device=device)
        fine = fine.index_select(-2, rows).index_select(-1, columns)
        _, weight = _triangle()
        norm = _NATIVE / float(weight.square().sum())  # 1 / (variance of one axis), squared below by two axes
        for k, band in enumerate(correlated):
            out[:, band] = fine[:, k] * norm
    return out


def background(shape, random, device):
    """Residual sky in units of the noise: a plane per window and band."""
    n, n_band, size, _ = shape
    level, slope_x, slope_y = 0.1 * _normal(random, (3, n, n_band, 1, 1), device)
    ramp = torch.linspace(-1, 1, size, device=device)
    return (level + slope_x * ramp) + slope_y * ramp[:, None]


def _valid(signal, conditions, random):
    """Masks: rectangles on all or some bands, columns, saturated cores, missing bands."""
    n, n_band, size, _ = signal.shape
    device = signal.device
    n_box = 3
    used = torch.rand(n, 1, n_box, generator=random, device=device) < 0.25
    bands = torch.rand(n, n_band, n_box, generator=random, device=device)
    whole = torch.rand(n, 1, n_box, generator=random, device=device) < 0.5
    used = (used & (whole | (bands < 0.3))).float()
    # Sizes are log-uniform from 3 pixels to 60 % of the window.
    extent = 3 * (0.2 * size) ** torch.rand(2, n, n_box, generator=random, device=device)
    start = torch.rand(2, n, n_box, generator=random, device=device) * (size + extent) - extent
    at = torch.arange(size, device=device)
    inside = ((at >= start[..., None]) & (at < (start + extent)[..., None])).float()  # (2, n, n_box, size)
    rows = used[..., None] * inside[0][:, None]  # (n, n_band, n_box, size)
    hit = rows.transpose(-2, -1) @ inside[1][:, None]  # (n, n_band, size, size)
    column = torch.randint(4 * size, (n, n_band, 1, 1), generator=random, device=device)
    limit = _uniform(random, (n, n_band, 1, 1), math.log(300.0), math.log(1e5), device).exp()
    drop = torch.rand(n, n_band, generator=random, device=device) < _constant(conditions.drop, device)
    # One band always stays.
    keep = torch.randint(n_band, (n, 1), generator=random, device=device)
    drop &= torch.arange(n_band, device=device) != keep
    return (hit == 0) & (at != column) & (signal < limit) & ~drop[..., None, None]
