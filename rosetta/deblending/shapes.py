# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The family of source shapes, and the network that proposes one from pixels and frozen tokens.

A shape is a vector of ``N_PARAMETER`` numbers; `mixture` turns it into a Gaussian mixture. The family
holds a galaxy's concentric light (eight Gaussians of fixed relative widths, free weights, one log-shear,
rounder inside) and a star (all sizes to zero). Every vector is a valid shape, so a network or a
least-squares step may move freely in it.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from .blend_probability import BlendNet

__all__ = [
    "N_PARAMETER", "TemplateConfig", "TemplateNet", "base_parameters", "mixture", "mixture_distance", "overlap",
    "propose", "seeded", "train",
]

# Widths of the Gaussians in units of the shape's scale (about a half-light radius).
WIDTHS = np.geomspace(0.04, 4.0, 8)
EAST, NORTH, LN_SCALE, SHEAR_1, SHEAR_2, INNER = range(6)
LOGITS = slice(6, 6 + len(WIDTHS))
N_PARAMETER = 6 + len(WIDTHS)
POINT = np.log(1e-3)  # of the scale, arcsec: no image tells it from none


@lru_cache(maxsize=1)
def exponential_logits():
    """Log weights with which the family is an exponential disc of half-light radius one."""
    radius = np.geomspace(0.01, 6.0, 300)
    disc = np.exp(-1.678347 * radius)
    basis = np.exp(-0.5 * (radius[:, None] / WIDTHS) ** 2) / (2.0 * np.pi * WIDTHS**2)
    light = np.sqrt(radius**2)[:, None]
    weight, _ = nnls(np.vstack([basis * light, np.eye(len(WIDTHS)) * 1e-4]), np.append(disc * light[:, 0], WIDTHS * 0))
    weight = np.maximum(weight / weight.sum(), 1e-3)  # a Gaussian of no weight could never grow
    return np.log(weight / weight.sum())


def base_parameters(half_light_radius, log_axis_ratio, angle):
    """Shape vectors of exponential discs.

    Parameters
    ----------
    half_light_radius : (n,) array
        Along the geometric-mean axis, arcsec.
    log_axis_ratio : (n,) array
        ln(major / minor), >= 0.
    angle : (n,) array
        Of the major axis, radians from east towards north.

    Returns
    -------
    (n, N_PARAMETER) float64 array
    """
    parameters = np.zeros((len(half_light_radius), N_PARAMETER))
    parameters[:, LN_SCALE] = np.log(half_light_radius)
    parameters[:, SHEAR_1] = log_axis_ratio * np.cos(2.0 * angle)
    parameters[:, SHEAR_2] = log_axis_ratio * np.sin(2.0 * angle)
    parameters[:, INNER] = 2.0
    parameters[:, LOGITS] = exponential_logits()
    return parameters


def mixture(parameters):
    """Gaussian mixtures of shape vectors.

    Parameters
    ----------
    parameters : (n, N_PARAMETER) tensor

    Returns
    -------
    (n, 8, 6) tensor
        See `rosetta.deblending.engine.rendering`.
    """
    widths = torch.as_tensor(WIDTHS, dtype=parameters.dtype, device=parameters.device)
    weight = torch.softmax(parameters[:, LOGITS], dim=1)  # (n, K)
    # Inner light is rounder: the shear fades from its outer value to a fraction inside half the scale.
    inside = 1.0 / (1.0 + (widths / 0.5) ** 2)
    fade = 1.0 - (1.0 - torch.sigmoid(parameters[:, INNER]))[:, None] * inside
    shear_1, shear_2 = parameters[:, SHEAR_1, None] * fade, parameters[:, SHEAR_2, None] * fade
    size = torch.sqrt(shear_1**2 + shear_2**2 + 1e-12)
    cosh, sinhc = torch.cosh(size), torch.sinh(size) / size
    area = torch.exp(2.0 * parameters[:, LN_SCALE, None]) * widths**2
    centre = parameters[:, None, EAST : NORTH + 1].expand(-1, len(widths), -1)
    terms = [area * (cosh + shear_1 * sinhc), area * shear_2 * sinhc, area * (cosh - shear_1 * sinhc)]
    return torch.cat([weight[..., None], centre, torch.stack(terms, dim=-1)], dim=-1)


def mixture_distance(predicted, true, blurs):
    """Squared L2 distance of two mixtures seen through round Gaussians, relative to the true one's norm.

    Parameters
    ----------
    predicted, true : (n, K, 6), (n, L, 6) tensor
    blurs : sequence of float
        FWHM (arcsec) of the Gaussians; the distances are averaged.

    Returns
    -------
    (n,) tensor
        Dimensionless: 0 for equal shapes. No image is rendered: products of Gaussians integrate in
        closed form.
    """
    total = 0.0
    for fwhm in blurs:
        blur = 2.0 * (fwhm / 2.3548) ** 2
        cross = overlap(predicted, true, blur)
        norm = overlap(true, true, blur)
        total = total + (overlap(predicted, predicted, blur) - 2.0 * cross + norm) / norm
    return total / len(blurs)


def overlap(left, right, blur):
    """Integrals of the products of mixtures (n, K, 6) and (n, L, 6), times 2 pi: (n,) tensor.

    ``blur`` (arcsec^2) is added to the variances of each product.
    """
    weight = left[:, :, None, 0] * right[:, None, :, 0]  # (n, K, L)
    east = left[:, :, None, 1] - right[:, None, :, 1]
    north = left[:, :, None, 2] - right[:, None, :, 2]
    sxx = left[:, :, None, 3] + right[:, None, :, 3] + blur
    sxy = left[:, :, None, 4] + right[:, None, :, 4]
    syy = left[:, :, None, 5] + right[:, None, :, 5] + blur
    det = sxx * syy - sxy**2
    chi = (syy * east**2 - 2.0 * sxy * east * north + sxx * north**2) / det
    return (weight * torch.exp(-0.5 * chi) / torch.sqrt(det)).sum(dim=(1, 2))


@dataclass(frozen=True)
class TemplateConfig:
    """Sizes of a `TemplateNet`.

    Attributes
    ----------
    token_dim : int
        Width of the frozen tokens.
    space_size, ground_size : int
        Pixels a side of the stamps.
    width : int
        Channels of the first convolution.
    """

    token_dim: int = 384
    space_size: int = 48
    ground_size: int = 24
    width: int = 16

    def to_dict(self):
        """The configuration as a JSON-able dict."""
        return asdict(self)


# How far the network may move each parameter from the classical answer: centre (arcsec), ln scale,
# shears, inner roundness, logits.
REACH = np.concatenate([[0.3, 0.3, 1.5, 0.8, 0.8, 3.0], np.full(len(WIDTHS), 4.0)])
N_SCALAR = 8


class TemplateNet(nn.Module):
    """Shape vectors of sources, as corrections to their classical ones; beside it, the network that knows blends.

    Parameters
    ----------
    config : `TemplateConfig`
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.space = _Tower(config.width, config.space_size)
        self.ground = _Tower(config.width, config.ground_size)
        self.tokens = nn.Sequential(nn.LayerNorm(2 * config.token_dim), nn.Linear(2 * config.token_dim, 64), nn.GELU())
        features = self.space.dim + self.ground.dim + 64 + N_SCALAR + N_PARAMETER
        self.trunk = nn.Sequential(nn.Linear(features, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU())
        self.shape = nn.Linear(128, N_PARAMETER)
        self.blend = BlendNet()
        nn.init.zeros_(self.shape.weight)  # untrained, it gives the classical answer
        nn.init.zeros_(self.shape.bias)
        self.register_buffer("reach", torch.as_tensor(REACH, dtype=torch.float32))

    def forward(self, base, space, ground, scalars, tokens):
        """Propose shapes.

        Parameters
        ----------
        base : (n, N_PARAMETER) tensor
            Classical shape vectors.
        space, ground : (n, 3, size, size) tensor
            asinh(S/N), validity, and the other detected sources, north up, east left.
        scalars : (n, 8) tensor
            See `rosetta.deblender`.
        tokens : (n, 2 * token_dim) tensor
            Space token and ground token, zeros where a side is missing.

        Returns
        -------
        (n, N_PARAMETER) tensor
        """
        features = torch.cat(
            [self.space(space), self.ground(ground), self.tokens(tokens), scalars, base / self.reach], dim=1
        )
        return base + self.reach * torch.tanh(self.shape(self.trunk(features)))


class _Tower(nn.Module):
    """Three strided convolutions over a stamp of three channels."""

    def __init__(self, width, size):
        super().__init__()
        layers, channels = [], 3
        for k in range(3):
            layers += [nn.Conv2d(channels, width << k, 3, stride=2 if size >> k > 3 else 1, padding=1), nn.GELU()]
            channels = width << k
        self.layers = nn.Sequential(*layers)
        side = size
        for _ in range(3):
            side = (side + 1) // 2 if side > 3 else side
        self.dim = 96
        self.flat = nn.Linear(channels * side * side, self.dim)

    def forward(self, stamp):
        return torch.nn.functional.gelu(self.flat(self.layers(stamp).flatten(1)))


def seeded(config, seed):
    """An untrained network of a configuration (dict), the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TemplateNet(TemplateConfig(**config))


def propose(network, base, space, ground, scalars, tokens):
    """Shapes by a trained network, (n, N_PARAMETER) float64, for arrays."""
    device = network.reach.device
    inputs = [torch.from_numpy(np.asarray(a, np.float32)).to(device) for a in (base, space, ground, scalars, tokens)]
    with torch.inference_mode():
        parts = zip(*(values.split(256) for values in inputs), strict=True)
        return torch.cat([network(*part) for part in parts]).cpu().numpy().astype(float)


BLURS = (0.2, 0.8, 2.0)  # arcsec: what the space image sees, what the ground sees, and the wings


STEPS, BATCH = 1200, 96


def train(network, data, held_out, *, seed):
    """Fit the network's shapes to true light.

    Parameters
    ----------
    network : `TemplateNet`
        Trained in place.
    data, held_out : dict of arrays
        ``base``, ``space``, ``ground``, ``scalars``, ``tokens`` as `TemplateNet.forward` takes them, and ``true``
        (n, L, 6) mixtures about the same positions. Held-out rows come from other sky.
    seed : int

    Returns
    -------
    dict
        ``distance_classical`` and ``distance``: median relative squared distance (`mixture_distance`) from truth
        on the held-out sky, before and after training; ``n``, ``n_held_out``.
    """
    names = ("base", "space", "ground", "scalars", "tokens")
    generator = torch.Generator().manual_seed(seed)
    device = network.reach.device
    tensors = {k: torch.from_numpy(np.asarray(data[k], np.float32)).to(device) for k in (*names, "true")}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=STEPS)
    network.train()
    for _ in range(STEPS):
        rows = torch.randint(len(tensors["base"]), (BATCH,), generator=generator).to(device)
        part = {k: v[rows] for k, v in tensors.items()}
        # One side is sometimes hidden, so that either alone suffices.
        for k, side in enumerate(("space", "ground")):
            gone = (torch.rand(BATCH, generator=generator) < 0.1).to(device)
            gone &= part["scalars"][:, 3 - k] > 0
            part[side] = torch.where(gone[:, None, None, None], 0.0, part[side])
            width = part["tokens"].shape[1] // 2
            part["tokens"][:, k * width : (k + 1) * width] *= ~gone[:, None]
            for column in (k, 2 + k, 6 + k):
                part["scalars"][:, column] *= ~gone
        shapes = network(*(part[k] for k in names))
        # The root makes the loss an error, not its square: a few hopeless blends do not rule it.
        loss = torch.sqrt(mixture_distance(mixture(shapes), part["true"], BLURS) + 1e-4).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()
    result = {"n": len(data["base"]), "n_held_out": len(held_out["base"])}
    if result["n_held_out"]:
        true = torch.from_numpy(np.asarray(held_out["true"]))
        for name, shapes in (
            ("distance_classical", held_out["base"]),
            ("distance", propose(network, *(held_out[k] for k in names))),
        ):
            found = mixture_distance(mixture(torch.from_numpy(np.asarray(shapes, float))), true.double(), BLURS)
            result[name] = float(found.median())
    return result
