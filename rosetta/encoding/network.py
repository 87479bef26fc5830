# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The shared vision transformer: one trunk that reads either survey, and the cross-survey predictor."""

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import nn

from ..surveys import KNOTS, PIXEL_SCALE

__all__ = [
    "SIDES", "View", "EncoderConfig", "Encoder", "Predictor", "patches", "presence", "sincos", "wave_vectors",
    "spectrum",
]

SIDES = ("ground", "space")

# Wavelengths of the position code, arcsec: from half a ground token to five windows.
_SHORTEST, _LONGEST = 1.6, 200.0

# Finest of the plane waves that both sides are first compared by, cycles per arcsec: a third of what the seeing leaves.
_FINEST = 0.35
# Their colours, nm, where the surveys overlap; each takes bands within a quarter in ln(wavelength).
_WAVE_COLOURS = (620.0, 750.0, 1000.0)
_WAVE_BREADTH = 0.25

# The validity mask enters at a quarter of the patch size.
_MASK_CELLS = 4

_CACHED_TOKENS = 1200


@dataclass(frozen=True)
class View:
    """A batch of windows of one side.

    Parameters
    ----------
    pixels : `torch.Tensor`
        asinh(flux / sigma), (n_batch, n_band, height, width), axes [y, x].
    valid : `torch.Tensor` of bool
        Same shape; the values of ``pixels`` where this is False never matter.
    positions : `torch.Tensor`
        Token centres, (east, north) in arcsec from the window centre, (n_batch, n_token, 2),
        row-major in the patch grid.
    mix : `torch.Tensor`
        Share of each band on each wavelength knot, (n_band, n_knot); rows sum to 1. It stays on the CPU, where looking
        at it does not wait for the device.
    fwhm, depth : `torch.Tensor`
        PSF width in arcsec and 5-sigma point-source depth (AB), (n_batch, n_band).
    kept : `torch.Tensor` of int, optional
        The tokens that go through the trunk, (n_batch, n_kept). None: all of them.
    """

    pixels: torch.Tensor
    valid: torch.Tensor
    positions: torch.Tensor
    mix: torch.Tensor
    fwhm: torch.Tensor
    depth: torch.Tensor
    kept: torch.Tensor | None = None

    def to(self, device):
        """The same view on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if name != "mix" and value is not None}
        return replace(self, **moved)

    def of_kept(self, values):
        """Of values of all tokens, (n_batch, n_token, ...), those of the tokens that are kept."""
        if self.kept is None:
            return values
        return values[torch.arange(len(values), device=values.device)[:, None], self.kept]


@dataclass(frozen=True)
class EncoderConfig:
    """Architecture of `Encoder` and `Predictor`.

    Parameters
    ----------
    dim, depth, heads : int
        Width, number of blocks and attention heads of the trunk; ``dim`` is divisible by 4 and ``heads``.
    patch : int
        Pixels along a patch side, divisible by 4.
    proj_dim : int
        Length of the embedding.
    knots_ground, knots_space : tuple of float
        ln(pivot wavelength / nm) of the knots of band-dependent weights.
    predictor_dim, predictor_depth, predictor_heads : int
        The same for the predictor.
    """

    dim: int = 384
    depth: int = 6
    heads: int = 6
    patch: int = 16
    proj_dim: int = 256
    knots_ground: tuple = KNOTS["ground"]
    knots_space: tuple = KNOTS["space"]
    predictor_dim: int = 192
    predictor_depth: int = 2
    predictor_heads: int = 3

    def __post_init__(self):
        for name, dim, heads in (
            ("dim", self.dim, self.heads),
            ("predictor_dim", self.predictor_dim, self.predictor_heads),
        ):
            if dim % 4 or dim % heads:
                raise ValueError(f"{name}={dim} must be divisible by 4 and by its number of heads ({heads})")
        if self.patch % _MASK_CELLS:
            raise ValueError(f"patch={self.patch} must be divisible by {_MASK_CELLS}")
        # A configuration read back from JSON holds lists.
        object.__setattr__(self, "knots_ground", tuple(self.knots_ground))
        object.__setattr__(self, "knots_space", tuple(self.knots_space))

    def knots(self, side):
        """The knots of one side, ln(nm) (tuple of float)."""
        return self.knots_ground if side == "ground" else self.knots_space


def patches(images, patch):
    """Cut images into patches.

    Parameters
    ----------
    images : `torch.Tensor`
        (n_batch, n_channel, height, width), both multiples of ``patch``.
    patch : int
        Pixels along a patch side.

    Returns
    -------
    `torch.Tensor`
        (n_batch, n_token, n_channel, patch * patch), tokens in row-major order.
    """
    n_batch, n_channel, height, width = images.shape
    rows, columns = height // patch, width // patch
    cut = images.reshape(n_batch, n_channel, rows, patch, columns, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n_batch, rows * columns, n_channel, patch * patch)


def sincos(positions, dim):
    """Code positions as sines and cosines of geometric wavelengths from 1.6 to 200 arcsec.

    Parameters
    ----------
    positions : `torch.Tensor`
        (east, north) in arcsec, (..., 2).
    dim : int
        Length of the code, a multiple of 4.

    Returns
    -------
    `torch.Tensor`
        (..., dim).
    """
    steps = torch.linspace(0, 1, dim // 4, dtype=torch.float32, device=positions.device)
    waves = 2 * math.pi / (_SHORTEST * (_LONGEST / _SHORTEST) ** steps)
    phase = (positions.float()[..., None] * waves).flatten(-2)  # (..., dim / 2)
    return torch.cat([phase.sin(), phase.cos()], -1)


def wave_vectors(n, device=None):
    """Wave vectors that fill a disc evenly, on a sunflower's spiral.

    Parameters
    ----------
    n : int
    device : `torch.device`, optional

    Returns
    -------
    `torch.Tensor`
        (east, north) in rad per arcsec, (n, 2).
    """
    index = torch.arange(n, dtype=torch.float32, device=device) + 0.5
    length = 2 * math.pi * _FINEST * (index / n).sqrt()
    angle = math.pi * (3 - math.sqrt(5)) * index
    return torch.stack([length * angle.cos(), length * angle.sin()], -1)


def spectrum(tokens, positions):
    """Sum of the tokens in which the second half of the channels, seen as waves, is turned by each token's position.

    Where those channels are amplitudes of the `wave_vectors` in each token, the sum is the Fourier transform of the
    window: what holds the places of all sources, and is the same for both sides. A sum without phases would not know
    which source is where.

    Parameters
    ----------
    tokens : `torch.Tensor`
        (n_batch, n_token, dim), in the second half n real and then n imaginary parts, n = dim / 4.
    positions : `torch.Tensor`
        (east, north) in arcsec, (n_batch, n_token, 2).

    Returns
    -------
    `torch.Tensor`
        (n_batch, dim), over the root of the number of tokens.
    """
    n = tokens.shape[-1] // 4
    plain, real, imaginary = tokens.split((tokens.shape[-1] - 2 * n, n, n), -1)
    # Products and a sum, which autocast leaves in float32: as a bfloat16 matrix product, phases are off by .4 rad.
    waves, (east, north) = wave_vectors(n, positions.device), positions.float().split(1, -1)
    phase = east * waves[:, 0] + north * waves[:, 1]  # (n_batch, n_token, n)
    cos, sin = phase.cos(), phase.sin()
    turned = ((real * cos - imaginary * sin).sum(1), (real * sin + imaginary * cos).sum(1))
    return torch.cat([plain.float().sum(1), *turned], -1) / math.sqrt(tokens.shape[1])


def _plane_waves(config, side):
    """Patch weights that measure `wave_vectors` in the bands that both surveys share: (dim / 2, n_knot * patch**2)."""
    n, patch = config.dim // 4, config.patch
    colours = torch.tensor(_WAVE_COLOURS).log()[torch.arange(n) % len(_WAVE_COLOURS)]
    bands = torch.exp(-0.5 * ((torch.tensor(config.knots(side)) - colours[:, None]) / _WAVE_BREADTH) ** 2)
    at = (torch.arange(patch) - (patch - 1) / 2) * PIXEL_SCALE[side]
    east, north = wave_vectors(n).T[..., None, None]
    phase = north * at[:, None] - east * at  # (n, row, column); east is to the left
    # Real and imaginary part get one scale, or they would not turn together: white noise gives a mean variance of 1.
    bands = math.sqrt(2) / patch * F.normalize(bands, dim=-1)
    waves = torch.stack([phase.cos(), phase.sin()])[:, :, None] * bands[..., None, None]
    return waves.flatten(0, 1).flatten(1)


def _initialise(module, depth):
    # Unit-variance maps: near-zero weights leave CLS without any dependence on the image.
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            std = child.in_features**-0.5
            if name.endswith(("attention.out", "mlp.2")):
                std /= math.sqrt(2 * depth)  # keeps the residual stream at O(1) through all blocks
            nn.init.trunc_normal_(child.weight, std=std, a=-3 * std, b=3 * std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


class _Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x, memory):
        # x (n_batch, n_query, dim), memory (n_batch, n_memory, dim)
        n_batch, n_query, dim = x.shape
        if memory is x:
            # One product of three times the width is faster than two.
            weight = torch.cat([self.query.weight, self.key_value.weight])
            fused = F.linear(x, weight, torch.cat([self.query.bias, self.key_value.bias]))
            query, key, value = fused.view(n_batch, n_query, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:
            query = self.query(x).view(n_batch, n_query, self.heads, -1).transpose(1, 2)
            key_value = self.key_value(memory).view(n_batch, memory.shape[1], 2, self.heads, -1)
            key, value = key_value.permute(2, 0, 3, 1, 4)  # each (n_batch, heads, n_memory, dim / heads)
        mixed = _attend(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(n_batch, n_query, dim))

    def weights(self, x, memory):
        """Attention of x to memory: (n_batch, heads, n_query, n_memory)."""
        dim = x.shape[-1]
        key = F.linear(memory, self.key_value.weight[:dim], self.key_value.bias[:dim])
        query, key = (t.view(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in (self.query(x), key))
        return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(-1)


def _attend(query, key, value):
    # The backward pass of torch's fused CPU kernel is two (577 tokens) to six times (65) slower than this.
    if query.is_cpu and query.requires_grad:
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return weights.softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


def _mlp(dim):
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


class _Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _mlp(dim)

    def forward(self, x):
        normed = self.norm1(x)
        x = x + self.attention(normed, normed)
        return x + self.mlp(self.norm2(x))


class _CrossBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _mlp(dim)

    def forward(self, x, memory):
        x = x + self.attention(self.norm1(x), memory)
        return x + self.mlp(self.norm2(x))


class _Stem(nn.Module):
    """Pixels, mask and observing conditions of one side -> tokens before the trunk."""

    def __init__(self, config, n_knot):
        super().__init__()
        self.patch = config.patch
        self.pixels = nn.Linear(n_knot * config.patch**2, config.dim)
        self.mask = nn.Linear(n_knot * _MASK_CELLS**2, config.dim, bias=False)
        self.missing = nn.Parameter(0.1 * torch.randn(n_knot, config.dim))
        self.side = nn.Parameter(0.1 * torch.randn(config.dim))
        hidden = config.dim // 2
        self.condition = nn.Sequential(
            nn.Linear(3 * n_knot, hidden), nn.GELU(), nn.Linear(hidden, config.dim)
        )

    def forward(self, view):
        pixels = torch.where(view.valid, view.pixels, 0.0)  # (n_batch, n_band, height, width)
        cells = F.avg_pool2d(view.valid.to(pixels.dtype), self.patch // _MASK_CELLS)
        share = (F.max_pool2d(cells, _MASK_CELLS) > 0).to(pixels.dtype)  # (n_batch, n_band, row, column)
        mix = view.mix.to(pixels.dtype)  # (n_band, n_knot)
        if not _is_identity(mix):
            mix = mix.to(pixels.device, non_blocking=True)
            # Weights that are linear in mix: mixing the images is mixing the weights, and cheaper.
            pixels, cells, share = (_mixed(images, mix) for images in (pixels, cells, share))
            # Several bands on one knot are averaged, so that no knot speaks louder than in training.
            norm = share.clamp(min=1)
            pixels = pixels / _enlarged(norm, self.patch)
            cells = cells / _enlarged(norm, _MASK_CELLS)
        absent = (1 - share.clamp(max=1)).flatten(2).transpose(1, 2)  # (n_batch, n_token, n_knot)
        seen = torch.cat([patches(cells, _MASK_CELLS).flatten(2), absent], -1)
        # The sum takes the memory layout of its first term: tokens one after the other.
        tokens = F.linear(seen, torch.cat([self.mask.weight, self.missing.T], 1)) + self._read(pixels)
        return tokens, self.condition(conditions(view).flatten(1)) + self.side

    def _read(self, pixels):
        # A linear map of each patch, as a convolution: it needs no copy of the images in patches.
        weight = self.pixels.weight.view(-1, pixels.shape[1], self.patch, self.patch)
        return F.conv2d(pixels, weight, self.pixels.bias, stride=self.patch).flatten(2).transpose(1, 2)


def _is_identity(mix):
    return mix.shape[0] == mix.shape[1] and torch.equal(mix, torch.eye(len(mix), dtype=mix.dtype))


def _mixed(images, mix):
    # (n_batch, n_band, height, width) -> (n_batch, n_knot, height, width)
    return (mix.T @ images.flatten(2)).view(len(images), mix.shape[1], *images.shape[2:])


def _enlarged(images, factor):
    return images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def presence(view):
    """What is there of each knot, 0 to 1: (n_batch, n_knot)."""
    return conditions(view)[..., 2]


def conditions(view):
    """Observing conditions on the knots: [ln fwhm, depth, present].

    Parameters
    ----------
    view : `View`

    Returns
    -------
    `torch.Tensor`
        (n_batch, n_knot, 3), centred and scaled to O(1); zero where no band is present.
    """
    present = view.valid.flatten(2).any(-1)  # (n_batch, n_band)
    weight = present[..., None] * view.mix.float().to(present.device, non_blocking=True)  # (n_batch, n_band, n_knot)
    values = torch.stack([2 * (view.fwhm.log() + 0.7), (view.depth - 25.5) / 1.5], -1)  # (n_batch, n_band, 2)
    values = torch.where(present[..., None], values, 0.0)
    total = weight.sum(1)[..., None]  # (n_batch, n_knot, 1)
    means = (weight.transpose(1, 2) @ values) / total.clamp(min=1e-6)
    share = total.clamp(max=1)
    return torch.cat([means * share, share], -1)


def _look_near(attention):
    """Set queries and keys that carry `sincos` codes to attend to the same place."""
    dim = attention.query.in_features
    # Each head takes the sine and cosine of its share of the waves, in both directions.
    order = torch.argsort((torch.arange(dim) % (dim // 4)) % attention.heads, stable=True)
    # Twice the product of the codes, so that the token asked about has the largest weight from the first step on.
    near = math.sqrt(2) * torch.eye(dim)[order]
    attention.query.weight.copy_(near)
    attention.key_value.weight[:dim] = near


class Encoder(nn.Module):
    """Vision transformer shared by both sides.

    Parameters
    ----------
    config : `EncoderConfig`
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        dim = config.dim
        self.stem = nn.ModuleDict({side: _Stem(config, len(config.knots(side))) for side in SIDES})
        self.cls = nn.Parameter(0.1 * torch.randn(dim))
        self.blocks = nn.ModuleList(_Block(dim, config.heads) for _ in range(config.depth))
        # No affine part: tokens then live where the stop-gradient targets of the predictor live.
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.projection = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, config.proj_dim))
        _initialise(self, config.depth)
        with torch.no_grad():
            for side, stem in self.stem.items():
                stem.pixels.weight[-2 * (dim // 4) :] = _plane_waves(config, side)

    def forward(self, side, view):
        """Encode a batch of windows.

        Parameters
        ----------
        side : {"ground", "space"}
        view : `View`

        Returns
        -------
        tokens : `torch.Tensor`
            (n_batch, n_token, dim); those of ``view.kept``, if that is given.
        cls : `torch.Tensor`
            (n_batch, dim).
        embedding : `torch.Tensor`
            (n_batch, proj_dim), unit length.
        """
        tokens, cls = self.embed(side, view)
        x = self.trunk(torch.cat([cls[:, None], tokens], 1))  # (n_batch, 1 + n_token, dim)
        return x[:, 1:], x[:, 0], self.project(x[:, 0])

    def embed(self, side, view):
        """Tokens (n_batch, n_token, dim) and CLS (n_batch, dim) as the trunk receives them."""
        tokens, condition = self.stem[side](view)
        cls = self.cls + condition + spectrum(tokens, view.positions)
        tokens = tokens + sincos(view.positions, self.config.dim) + condition[:, None]
        return view.of_kept(tokens), cls

    def attention(self, side, view, asked):
        """Where tokens look, in every block and head.

        Parameters
        ----------
        side : {"ground", "space"}
        view : `View`
        asked : `torch.Tensor` of int
            Which tokens, (n_asked,).

        Returns
        -------
        `torch.Tensor`
            (n_batch, depth, heads, n_asked, 1 + n_token): to CLS and to every token; sums to one.
        """
        tokens, cls = self.embed(side, view)
        x, found = torch.cat([cls[:, None], tokens], 1), []
        for block in self.blocks:
            normed = block.norm1(x)
            found.append(block.attention.weights(normed[:, 1 + asked], normed))
            x = block(x)
        return torch.stack(found, 1)

    def trunk(self, x):
        """CLS and tokens through all blocks, (n_batch, 1 + n_token, dim) to the same."""
        if x.is_cpu and not torch.is_grad_enabled():
            # What a block makes of so many tokens stays in the cache.
            few = max(1, _CACHED_TOKENS // x.shape[1])
            return torch.cat([self._run(part) for part in x.split(few)])
        return self._run(x)

    def _run(self, x):
        if torch.is_autocast_enabled(x.device.type):
            # The residual stream too: casts cost more than sums.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for block in self.blocks:
            x = block(x)
        return self.norm(x.float())

    def project(self, cls):
        """Embedding of a (predicted or encoded) CLS: (n_batch, dim) -> (n_batch, proj_dim), unit length."""
        return F.normalize(self.projection(cls).float(), dim=-1)


class Predictor(nn.Module):
    """Predicts one side's tokens and CLS from the other's, at any positions.

    Parameters
    ----------
    config : `EncoderConfig`
    """

    def __init__(self, config):
        super().__init__()
        self.dim = dim = config.predictor_dim
        self.memory = nn.Linear(config.dim, dim)
        self.query = nn.ParameterDict({side: nn.Parameter(0.1 * torch.randn(dim)) for side in SIDES})
        self.query_cls = nn.ParameterDict({side: nn.Parameter(0.1 * torch.randn(dim)) for side in SIDES})
        self.condition = nn.ModuleDict({side: nn.Linear(3 * len(config.knots(side)), dim) for side in SIDES})
        self.blocks = nn.ModuleList(
            _CrossBlock(dim, config.predictor_heads) for _ in range(config.predictor_depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.tokens = nn.Linear(dim, config.dim)
        self.cls = nn.Linear(dim, config.dim)
        _initialise(self, config.predictor_depth)
        with torch.no_grad():
            # It begins by looking where it is asked, and by answering with the mean.
            for block in self.blocks:
                _look_near(block.attention)
            for answer in (self.tokens, self.cls):
                answer.weight *= 0.1

    def forward(self, tokens, cls, positions, target_side, query_positions, condition):
        """Predict the other side.

        Parameters
        ----------
        tokens, cls, positions : `torch.Tensor`
            What the encoder gave for the side that was seen, (n_batch, n_token, dim), (n_batch, dim), and
            the token positions in arcsec, (n_batch, n_token, 2).
        target_side : {"ground", "space"}
            The side to predict.
        query_positions : `torch.Tensor`
            Where, in arcsec about the same window centre, (n_batch, n_query, 2).
        condition : `torch.Tensor`
            `conditions` of the side to predict, (n_batch, n_knot, 3).

        Returns
        -------
        tokens : `torch.Tensor`
            (n_batch, n_query, dim).
        cls : `torch.Tensor`
            (n_batch, dim).
        """
        memory = self.memory(tokens) + sincos(positions, self.dim)
        memory = torch.cat([self.memory(cls)[:, None], memory], 1)  # (n_batch, 1 + n_token, predictor_dim)
        asked = self.condition[target_side](condition.flatten(1))[:, None]
        query = sincos(query_positions, self.dim) + self.query[target_side] + asked
        query = torch.cat([self.query_cls[target_side] + asked, query], 1)
        for block in self.blocks:
            query = block(query, memory)
        query = self.norm(query)
        # The two sides' CLS are trained to match, so what is left to tell is how they differ.
        return self.tokens(query[:, 1:]).float(), cls + self.cls(query[:, 0]).float()
