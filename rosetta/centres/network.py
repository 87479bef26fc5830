# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The network of the learned detector: from ten bands on one grid to a heat map of centres."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["CentreConfig", "CentreNet", "N_CHANNEL", "REACH", "STRIDE", "logits_of"]

N_CHANNEL = 13  # see `rosetta.centres.channels`
STRIDE = 8  # cells: sides of a window are multiples of it
REACH = 40  # cells: nothing farther away changes a logit
RARE = -4.0  # logit of a centre to start from


@dataclass(frozen=True)
class CentreConfig:
    """Settings of the learned detector.

    Attributes
    ----------
    widths : tuple of int
        Channels of the network at cells of 0.2", 0.4", 0.8" and 1.6".
    faintest : float
        i magnitude of the faintest source that is called one in training.
    known_at : float
        S/N, all bands together, at which a source weighs a half in training.
    floor : float
        Logit of the faintest centre that is listed.
    """

    widths: tuple = (32, 64, 96, 128)
    faintest: float = 26.8
    known_at: float = 5.0
    floor: float = -3.0


class Layer(nn.Module):
    """A convolution over 3 x 3 cells; values are normalised over the channels of a cell, not over the window.

    So the answer at a place does not depend on how much sky around it is in the window.
    """

    def __init__(self, n_in, n_out, norm=True):
        super().__init__()
        self.convolution = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm = nn.LayerNorm(n_out) if norm else nn.Identity()

    def forward(self, x):
        """(n, n_in, ny, nx) -> (n, n_out, ny, nx)."""
        x = self.convolution(x).permute(0, 2, 3, 1)
        return F.silu(self.norm(x)).permute(0, 3, 1, 2)


class CentreNet(nn.Module):
    """A U-Net of four levels.

    Parameters
    ----------
    config : `CentreConfig`
    """

    def __init__(self, config):
        super().__init__()
        down, up, n_in = [], [], N_CHANNEL
        for level, width in enumerate(config.widths):
            down.append(nn.Sequential(Layer(n_in, width, norm=level > 0), Layer(width, width)))
            n_in = width
        for width in reversed(config.widths[:-1]):
            up.append(Layer(n_in + width, width))
            n_in = width
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.last = nn.Sequential(Layer(n_in, n_in), nn.Conv2d(n_in, 1, 1))
        nn.init.constant_(self.last[-1].bias, RARE)

    def forward(self, channels):
        """Channels (n, 13, ny, nx), sides multiples of `STRIDE` -> logits (n, ny, nx) float32."""
        x, seen = channels, []
        for level in self.down:
            x = level(F.avg_pool2d(x, 2) if seen else x)
            seen.append(x)
        for level, fine in zip(self.up, reversed(seen[:-1]), strict=True):
            x = level(torch.cat([fine, F.interpolate(x, scale_factor=2.0, mode="nearest")], 1))
        return self.last(x)[:, 0].float()


@torch.inference_mode()
def logits_of(network, channels):
    """Logits (ny, nx) of one window, a numpy array; channels (1, 13, ny, nx)."""
    device = next(network.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        return network(channels.to(device))[0].cpu().numpy()
