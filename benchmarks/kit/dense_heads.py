# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Heads that find sources on a grid of 0.2": a heat map of centres from pixels and from features beside them.

The head has five 3 x 3 convolutions and reads 24 channels of features beside the pixels: zeros; a linear map of an
encoder's tokens, interpolated to the grid; or of the output of a thin U-Net, which is untrained, trained to remove the
noise, or trained with the head. So all arms have the same head.
"""

import torch
import torch.nn.functional as F
from torch import nn

from rosetta.centres.heat_map import loss_of, target_of

__all__ = ["FLOOR", "CentreHead", "heat", "train", "train_path"]

N_CHANNEL, N_FEATURE, WIDTH, DIM = 13, 24, 24, 384
FLOOR = -3.9  # logit of 0.02: fainter peaks are none
RATE = {"end-to-end": 1e-3}  # peak learning rate; 2e-3 for the others


def layer(n_in, n_out):
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), nn.GroupNorm(8, n_out), nn.SiLU())


def enlarged(x):
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class UNet(nn.Module):
    """Three levels of 32, 64 and 96 channels, at 0.2", 0.4" and 0.8"."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(layer(N_CHANNEL, 32), layer(32, 32))
        self.middle = nn.Sequential(layer(32, 64), layer(64, 64))
        self.coarse = nn.Sequential(layer(64, 96), layer(96, 96))
        self.up_middle, self.up_fine = layer(160, 64), layer(96, 32)

    def forward(self, x):
        fine = self.fine(x)
        middle = self.middle(F.avg_pool2d(fine, 2))
        coarse = self.coarse(F.avg_pool2d(middle, 2))
        middle = self.up_middle(torch.cat([middle, enlarged(coarse)], 1))
        return self.up_fine(torch.cat([fine, enlarged(middle)], 1))


class CentreHead(nn.Module):
    """Logits of a heat map of centres.

    Parameters
    ----------
    arm : {"pixels", "random tokens", "tokens", "random U-Net", "light U-Net", "end-to-end"}
        What features there are. All but those of "end-to-end" are frozen.
    """

    def __init__(self, arm):
        super().__init__()
        self.arm = arm
        if "tokens" in arm:
            self.ground, self.space = nn.Linear(DIM, N_FEATURE // 2), nn.Linear(DIM, N_FEATURE // 2)
        elif arm != "pixels":
            self.path, self.narrow = UNet(), nn.Conv2d(32, N_FEATURE, 1)
            self.path.requires_grad_(arm == "end-to-end")
        parts, n_in = [], N_CHANNEL + N_FEATURE
        for _ in range(4):
            parts += [nn.Conv2d(n_in, WIDTH, 3, padding=1), nn.SiLU()]
            n_in = WIDTH
        self.convolutions = nn.Sequential(*parts)
        self.last = nn.Conv2d(WIDTH, 1, 3, padding=1)
        nn.init.constant_(self.last.bias, -4.0)  # centres are rare

    def forward(self, channels, tokens=None):
        """Channels (n, 13, ny, nx) and tokens (n, 720, 384) or None -> logits (n, ny, nx)."""
        features = self.features(channels, tokens)
        return self.last(self.convolutions(torch.cat([channels, features], 1)))[:, 0].float()

    def features(self, channels, tokens):
        n, _, *shape = channels.shape
        if self.arm == "pixels":
            return channels.new_zeros(n, N_FEATURE, *shape)
        if "tokens" in self.arm:
            parts = []
            for read, of_side in ((self.ground, tokens[:, :144]), (self.space, tokens[:, 144:])):
                side = round(of_side.shape[1] ** 0.5)
                maps = read(of_side).transpose(1, 2).reshape(n, -1, side, side)
                parts.append(F.interpolate(maps, shape, mode="bilinear", align_corners=False))
            return torch.cat(parts, 1).to(memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.arm == "end-to-end"):
            found = self.path(channels)
        return self.narrow(found)


def rate_at(step, n_step):
    """Share of the peak learning rate: 50 steps up, then level, and down to zero over the last 40 %."""
    return min(1.0, (step + 1) / 50, (n_step - step) / (0.4 * n_step))


def train(arm, seed, windows, n_step, path=None):
    """Train a head on a stream of windows.

    Parameters
    ----------
    arm : str
    seed : int
    windows : iterable
        Of (channels, tokens or None, `~kit.dense_windows.Centres`), at least ``n_step``.
    n_step : int
    path : dict of `torch.Tensor`, optional
        State of a trained `UNet`.

    Returns
    -------
    head : `CentreHead`
    losses : list of float
    """
    torch.manual_seed(seed)
    head = CentreHead(arm)
    if path is not None:
        head.path.load_state_dict(path)

    def loss(window):
        channels, tokens, centres = window
        heat_map, weight = map(torch.from_numpy, target_of(centres.xy, centres.weight, channels.shape[-2:]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(*as_input(channels, tokens))
        return loss_of(logits[0], heat_map, weight)

    return head, descend(head, loss, windows, n_step, RATE.get(arm, 2e-3))


def train_path(seed, windows, n_step):
    """Train a `UNet` to give the noise-free light; ``windows``: pairs of channels and light. Returns it and losses."""
    torch.manual_seed(seed)
    path, last = UNet(), nn.Conv2d(32, N_CHANNEL, 1)
    both = nn.Sequential(path, last)

    def loss(window):
        channels, light = (as_input(array, None)[0] for array in window)
        with torch.autocast("cpu", torch.bfloat16):
            found = both(channels)
        return (found.float() - light).square().mean()

    return path, descend(both, loss, windows, n_step, 1e-3)


def descend(network, loss, windows, n_step, peak):
    """AdamW on one window a step; the losses."""
    network.to(memory_format=torch.channels_last)
    free = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=peak, weight_decay=1e-4)
    losses = []
    for step, window in zip(range(n_step), windows, strict=False):
        optimizer.param_groups[0]["lr"] = peak * rate_at(step, n_step)
        value = loss(window)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(free, 5.0)
        optimizer.step()
        losses.append(value.item())
    return losses


def as_input(channels, tokens):
    """Arrays of one window as a batch."""
    channels = torch.from_numpy(channels).float()[None].contiguous(memory_format=torch.channels_last)
    return channels, None if tokens is None else torch.from_numpy(tokens).float()[None]


@torch.inference_mode()
def heat(head, channels, tokens=None):
    """Logits (ny, nx) of one window."""
    with torch.autocast("cpu", torch.bfloat16):
        return head(*as_input(channels, tokens))[0].numpy()
