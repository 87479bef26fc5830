# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Training windows: cut from noise-free tiles, then observed twice, independently, by the two surveys.

Everything is drawn from the seed and the step number, so a training can be resumed exactly.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from .losses import same_sky
from .vit import SIDES, View

__all__ = ["TileSide", "Tile", "Conditions", "CONDITIONS", "Batch", "Windows", "draw_windows", "observe"]

PAD = 16  # pixels around a window that are convolved with it and cut off again
_CELL = 3.2  # arcsec; cells of the map that says where sources are
_SOURCE_SHARE = 0.7  # of the windows are drawn where sources are, the others anywhere
_NATIVE = 3  # NISP pixels are 3 delivered pixels wide; their noise is interpolated with them
_SIGMA_ERROR = 0.05  # rms of ln(flux scale / noise scale) per band: zero points, bandpasses, noise maps
_RMS_RANGE = (0.6, 1.1)  # pixel noise over what the noise plane leads to expect: stacking correlates pixels
_PSF_GRID = 64  # frequencies per axis for the noise-equivalent area
_SQRT_8LN2 = math.sqrt(8 * math.log(2))


@dataclass(frozen=True)
class TileSide:
    """One side of a noise-free training tile.

    Parameters
    ----------
    pixels : `torch.Tensor`
        Flux over ``scale`` per pixel, (n_band, height, width), float16.
    scale : `torch.Tensor`
        Unit of ``pixels`` in nJy, (n_band,), float32.
    affine : `numpy.ndarray`
        Tangent-plane (east, north) in arcsec about the tile centre -> 0-based pixel (x, y):
        ``xy = affine[:, :2] @ (east, north) + affine[:, 2]``; (2, 3) float64.
    """

    pixels: torch.Tensor
    scale: torch.Tensor
    affine: np.ndarray


@dataclass(frozen=True)
class Tile:
    """A noise-free piece of sky, seen from both sides on one tangent plane."""

    ground: TileSide
    space: TileSide

    def side(self, name):
        """The `TileSide` called "ground" or "space"."""
        return self.ground if name == "ground" else self.space

    def to(self, device):
        """The same tile with its pixels on another device."""
        return Tile(*(replace(side, pixels=side.pixels.to(device)) for side in (self.ground, self.space)))


@dataclass(frozen=True)
class Conditions:
    """How a survey observes: what is drawn for each window, and the base PSF that the tiles carry.

    Parameters
    ----------
    pixel_scale : float
        arcsec.
    depth : tuple of float
        Nominal 5-sigma point-source depth per band, AB.
    fwhm : tuple of (float, float)
        Per band, range of the Kolmogorov seeing (ground) or of the Gaussian blur that is added to the base
        PSF (space), arcsec.
    base_fwhm : float or None
        Width of the Gaussian base PSF of the tiles, pixel response not included, arcsec. None: the
        diffraction PSF of an annular aperture (lambda/D 0.125", obscuration 0.4) times a Gaussian of sigma
        0.03"; then the blur is Gaussian.
    correlated : tuple of bool
        Bands whose noise is interpolated from pixels three times as large.
    drop : tuple of float
        Chance that a band is missing.
    """

    pixel_scale: float
    depth: tuple
    fwhm: tuple
    base_fwhm: float | None
    correlated: tuple
    drop: tuple


CONDITIONS = {
    "ground": Conditions(
        pixel_scale=0.2,
        depth=(25.7, 26.9, 27.0, 26.4, 25.8, 24.9),
        fwhm=((0.5, 1.3),) * 6,
        base_fwhm=0.45,
        correlated=(False,) * 6,
        drop=(0.15, 0.1, 0.1, 0.1, 0.1, 0.15),
    ),
    "space": Conditions(
        pixel_scale=0.1,
        depth=(26.2, 24.4, 24.4, 24.4),
        fwhm=((0.03, 0.1), (0.36, 0.47), (0.37, 0.48), (0.38, 0.49)),
        base_fwhm=None,
        correlated=(False, True, True, True),
        drop=(0.15, 0.1, 0.1, 0.1),
    ),
}


@dataclass(frozen=True)
class Batch:
    """Windows of both sides.

    Parameters
    ----------
    views : dict of `~rosetta.core.vit.View`
        Per side.
    clean : dict of `torch.Tensor`
        Per side, asinh(flux / sigma) without noise or masks, (n_batch, n_band, height, width).
    tile, centers : `torch.Tensor`
        Index of each window's tile, (n_batch,), and its (east, north) about the tile centre, arcsec, float64.
    same : `torch.Tensor` of bool
        Windows whose footprints overlap, (n_batch, n_batch).
    """

    views: dict
    clean: dict
    tile: torch.Tensor
    centers: torch.Tensor
    same: torch.Tensor


def generator(seed, step, device="cpu"):
    """A generator that depends on the seed and the step only."""
    state = np.random.SeedSequence([int(seed), int(step)]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


# ------------------------------------------------------------------------------------- where to look
class Windows:
    """Draws batches of windows from tiles.

    Parameters
    ----------
    tiles : sequence of `Tile`
        All with the same bands.
    conditions : dict of `Conditions`
        Per side.
    device : str or `torch.device`
    """

    def __init__(self, tiles, conditions=CONDITIONS, device="cpu"):
        if not len(tiles):
            raise ValueError("tiles is empty: give at least one tile")
        self.conditions = conditions
        self.device = torch.device(device)
        self.mix = {side: torch.eye(len(conditions[side].depth)) for side in SIDES}
        self.maps = [_source_map(tile) for tile in tiles]
        self.tiles = [tile.to(self.device) for tile in tiles]  # cut, turned and observed there

    def batch(self, window, n, seed, step, keep=1.0):
        """Draw ``n`` windows.

        Parameters
        ----------
        window : float
            Side, arcsec; a multiple of 3.2.
        n : int
        seed, step : int
            Everything random follows from these two.
        keep : float
            Share of the tokens that the trunk sees, drawn at random for each window and side.

        Returns
        -------
        `Batch`
        """
        where = generator(seed, step)
        tile, centers, turns = draw_windows(self.tiles, self.maps, window, n, where)
        device = generator(seed, step, self.device) if self.device.type != "cpu" else where
        views, clean = {}, {}
        for side in SIDES:
            conditions = self.conditions[side]
            size = round(window / conditions.pixel_scale)
            chosen = [self.tiles[i].side(side) for i in tile]
            images, positions = cut(chosen, centers, turns, size, self.device)
            scale = torch.stack([one.scale for one in chosen]).to(self.device)
            views[side], clean[side] = observe(images, scale, positions, conditions, self.mix[side], device)
            if keep < 1:
                order = torch.rand(positions.shape[:2], generator=device, device=self.device).argsort(1)
                views[side] = replace(views[side], kept=order[:, : round(keep * order.shape[1])])
        tile, centers = (torch.from_numpy(array).to(self.device) for array in (tile, centers))
        return Batch(views, clean, tile, centers, same_sky(tile, centers, window))


def _source_map(tile):
    """Sampling weight of each cell of a tile, from its S/N on the ground side.

    Returns the (east, north) of the cells, arcsec, (n_cell, 2), and their weights (n_cell,).
    """
    side = tile.ground
    per_cell = max(1, round(_CELL * abs(np.linalg.det(side.affine[:, :2])) ** 0.5))
    power = torch.log1p(side.pixels.float().square()).mean(0)  # tiles are stored in units of the noise
    cells = F.avg_pool2d(power[None, None], per_cell)[0, 0]
    rows, columns = (np.arange(n) * per_cell + (per_cell - 1) / 2 for n in cells.shape)
    x, y = np.meshgrid(columns, rows)
    return _to_sky(side.affine, np.stack([x.ravel(), y.ravel()], -1)), cells.flatten().double().sqrt() + 1e-6


def _to_sky(affine, pixels):
    return (pixels - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T


def _bounds(tile, window):
    """(east, north) range of window centres whose padded crops lie inside both images: (2, 2)."""
    low, high = np.full(2, -np.inf), np.full(2, np.inf)
    for side in (tile.ground, tile.space):
        height, width = side.pixels.shape[-2:]
        scale = abs(np.linalg.det(side.affine[:, :2])) ** -0.5
        margin = window / 2 / scale + PAD + 1
        ends = np.array([[margin, margin], [width - 1 - margin, height - 1 - margin]])
        if (ends[1] < ends[0]).any():
            raise ValueError(
                f"window is {window} arcsec, too large for a tile of {width}x{height} pixels of {scale:.3g} arcsec "
                f"with its margin of {PAD} pixels: use a smaller window or larger tiles"
            )
        sky = _to_sky(side.affine, ends)
        low, high = np.maximum(low, sky.min(0)), np.minimum(high, sky.max(0))
    return np.stack([low, high])


def draw_windows(tiles, maps, window, n, where):
    """Draw tiles, window centres and turns.

    Parameters
    ----------
    tiles : sequence of `Tile`
    maps : list
        Cells and weights of each tile.
    window : float
        arcsec.
    n : int
    where : `torch.Generator`
        On the CPU.

    Returns
    -------
    tile : `numpy.ndarray` of int
        (n,).
    centers : `numpy.ndarray`
        (east, north) about the tile centre, arcsec, (n, 2).
    turns : `numpy.ndarray` of bool
        (n, 3): mirror x, mirror y, transpose; the eight symmetries of the square.
    """
    tile = torch.randint(len(tiles), (n,), generator=where).numpy()
    turns = (torch.rand(n, 3, generator=where) < 0.5).numpy()
    near = (torch.rand(n, generator=where) < _SOURCE_SHARE).numpy()
    uniform = torch.rand(n, 2, generator=where, dtype=torch.float64).numpy()
    centers = np.empty((n, 2))
    for k, index in enumerate(tile):
        low, high = _bounds(tiles[index], window)
        if near[k]:
            sky, weight = maps[index]
            inside = torch.from_numpy(((sky > low) & (sky < high)).all(1))
            weight = torch.where(inside, weight, 0.0)
            cell = int(torch.multinomial(weight, 1, generator=where)) if inside.any() else None
            if cell is not None:
                # The source falls anywhere in the central half of the window.
                centers[k] = np.clip(sky[cell] + (uniform[k] - 0.5) * window / 2, low, high)
                continue
        centers[k] = low + uniform[k] * (high - low)
    return tile, centers, turns


def cut(sides, centers, turns, size, device="cpu", patch=16):
    """Cut one window from each tile on whole native pixels, the crop centre within 0.5 px per axis.

    Parameters
    ----------
    sides : list of `TileSide`
    centers : `numpy.ndarray`
        (n, 2) arcsec.
    turns : `numpy.ndarray` of bool
        (n, 3); the sky is turned, arrays and positions alike.
    size : int
        Pixels along a side, without padding.
    device : str or `torch.device`
    patch : int

    Returns
    -------
    images : `torch.Tensor`
        Padded, in units of the tile's scale, float32, (n, n_band, size + 32, size + 32).
    positions : `torch.Tensor`
        Token centres about the shared centre, arcsec, (n, n_token, 2), float32.
    """
    n, padded = len(sides), size + 2 * PAD
    affine = np.stack([side.affine for side in sides])  # (n, 2, 3)
    middle = np.einsum("nij,nj->ni", affine[:, :, :2], centers) + affine[:, :, 2]
    corner = np.rint(middle - (size - 1) / 2).astype(int)  # (n, 2) x, y of the first pixel
    images = torch.empty(n, sides[0].pixels.shape[0], padded, padded, device=device)
    for k, side in enumerate(sides):
        x, y = corner[k] - PAD
        crop = side.pixels[:, y : y + padded, x : x + padded]
        mirror = [axis for axis, yes in ((2, turns[k, 0]), (1, turns[k, 1])) if yes]
        crop = crop.flip(mirror) if mirror else crop
        images[k].copy_(crop.transpose(1, 2) if turns[k, 2] else crop)
    count = size // patch
    steps = np.arange(count) * patch + (patch - 1) / 2
    grid = np.stack(np.broadcast_arrays(steps[None, :], steps[:, None]), -1)  # (row, column, xy)
    pixel = corner[:, None, None] + grid - affine[:, None, None, :, 2]
    sky = np.einsum("nij,nrcj->nrci", np.linalg.inv(affine[:, :, :2]), pixel) - centers[:, None, None]
    # The turned sky, seen by a camera that kept its orientation: arrays and positions move together.
    parity = np.sign(affine[:, 0, 0] * affine[:, 1, 1])
    for k, (mirror_x, mirror_y, transpose) in enumerate(turns):
        if mirror_x:
            sky[k] = sky[k][:, ::-1] * (-1, 1)
        if mirror_y:
            sky[k] = sky[k][::-1] * (1, -1)
        if transpose:
            sky[k] = sky[k].transpose(1, 0, 2)[..., ::-1] * parity[k]
    positions = torch.from_numpy(sky.reshape(n, -1, 2).astype(np.float32)).to(device)
    return images, positions


# ------------------------------------------------------------------------------------- how it is seen
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
    view : `~rosetta.core.vit.View`
    clean : `torch.Tensor`
        asinh(flux / sigma) without noise, (n, n_band, size, size).
    """
    n, n_band = images.shape[:2]
    device = images.device
    fwhm, shear = _draw_psf(conditions, n, random, device)
    blurred = convolve(images, fwhm, shear, conditions)
    depth = torch.tensor(conditions.depth, device=device) + _uniform(random, (n, 1), -0.8, 0.5, device)
    depth = depth + _uniform(random, (n, n_band), -0.6, 0.4, device)
    otf = transfer(fwhm, shear, conditions)
    sigma = pixel_sigma(depth, otf)  # nJy
    error = (_SIGMA_ERROR * _normal(random, (n, n_band), device)).exp()
    signal = blurred * (scale * error / sigma)[..., None, None]
    rms = noise_rms(otf, conditions) * _uniform(random, (n, n_band), *_RMS_RANGE, device)
    noisy = noise(signal.shape, conditions, random, device).mul_(rms[..., None, None]).add_(signal)
    noisy += rms[..., None, None] * _background(signal.shape, random, device)
    valid = _valid(signal, conditions, random)
    view = View(
        pixels=_asinh(noisy).mul_(valid),
        valid=valid,
        positions=positions,
        mix=mix.to(device),
        fwhm=image_fwhm(otf, conditions) * (0.03 * _normal(random, (n, n_band), device)).exp(),
        depth=depth,
    )
    return view, _asinh(signal)


def _asinh(x):
    # torch's own is not vectorised on the CPU: six times slower than these passes.
    size = x.abs()
    return size.square().add_(1).sqrt_().add_(size).log_().copysign_(x)


def _uniform(random, shape, low, high, device):
    return low + (high - low) * torch.rand(shape, generator=random, device=device)


def _normal(random, shape, device):
    return torch.randn(shape, generator=random, device=device)


def _draw_psf(conditions, n, random, device):
    """Seeing or blur (arcsec), (n, n_band), and ellipticity, (n, n_band, 2)."""
    low, high = torch.tensor(conditions.fwhm, device=device).T
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
    weight[[0, -1]] /= 2
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
    correlated = torch.tensor(conditions.correlated, device=otf.device)
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


def _triangle():
    steps = torch.arange(1 - _NATIVE, _NATIVE)
    return steps, 1 - steps.abs() / _NATIVE


def _interpolated(f):
    """Power spectrum (mean 1) of linearly interpolated white noise along one axis."""
    steps, weight = _triangle()
    steps, weight = steps.to(f.device), weight.to(f.device)
    transfer = (weight * torch.cos(2 * math.pi * f[..., None] * steps)).sum(-1)
    return transfer.square() / weight.square().sum()


def noise(shape, conditions, random, device):
    """Unit-variance noise: white, or interpolated from native pixels three times as large."""
    n, n_band, size, _ = shape
    out = torch.empty(shape, device=device)
    correlated = torch.tensor(conditions.correlated)
    white = (~correlated).nonzero().flatten().tolist()
    for band in white:
        out[:, band] = _normal(random, (n, size, size), device)
    if len(white) < n_band:
        native = size // _NATIVE + 3
        coarse = _normal(random, (n, n_band - len(white), native, native), device)
        fine = F.interpolate(coarse, scale_factor=_NATIVE, mode="bilinear", align_corners=False)
        shift = torch.randint(_NATIVE, (2,), generator=random, device=device).tolist()
        top, left = (_NATIVE + s for s in shift)  # the outermost native pixels are extrapolated
        _, weight = _triangle()
        norm = _NATIVE / float(weight.square().sum())  # 1 / (variance of one axis), squared below by two axes
        out[:, correlated.to(device)] = fine[..., top : top + size, left : left + size] * norm
    return out


def _background(shape, random, device):
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
    drop = torch.rand(n, n_band, generator=random, device=device) < torch.tensor(
        conditions.drop, device=device
    )
    # One band always stays.
    keep = torch.randint(n_band, (n, 1), generator=random, device=device)
    drop &= torch.arange(n_band, device=device) != keep
    return (hit == 0) & (at != column) & (signal < limit) & ~drop[..., None, None]
