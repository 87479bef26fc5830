# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A pretraining step beside one of timm's VisionTransformer on the same tensors, and beside what multiplication allows.

Pairs of 38.4" windows through forward pass, NT-Xent, backward pass and AdamW, in turns in one process; and the whole
step of the library: windows cut and observed anew, dense terms and predictor, half of the tokens. The limit is the
arithmetic of the trunk on all tokens (57 GFLOP a pair, forward and backward) at the rate of a large matrix product of
the same precision on the same device.
Run: python benchmarks/training.py TILES [n_turn]    (TILES: written by rosetta simulate; on CUDA if there is a device)
"""

import statistics
import sys
import time

import torch
from encoder import timm_transformer
from torch import nn

from rosetta.encoding.losses import Objective, nt_xent
from rosetta.encoding.network import SIDES, Encoder, EncoderConfig, Predictor
from rosetta.encoding.pretraining import TrainConfig
from rosetta.encoding.training_tiles import training_tiles
from rosetta.encoding.training_windows import Windows
from rosetta.simulate import TrainingSet
from rosetta.surveys import CONDITIONS

WINDOW = 38.4  # arcsec
GFLOP = 57.0  # a pair of such windows, forward and backward
BATCH = {"cpu": 8, "cuda": 64}
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices that tell the device's rate


def seconds(device, work):
    """Of the device; on a CPU that of this process, which a busy machine does not lengthen."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def rate(device):
    """GFLOP per second of a bfloat16 matrix product."""
    n = SIDE[device]
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return 2e-9 * n**3 / min(seconds(device, lambda: a @ b) for _ in range(9))


class Timm(nn.Module):
    """Two of timm's stems on one of its trunks."""

    def __init__(self):
        super().__init__()
        self.space, self.ground = timm_transformer(), timm_transformer(img_size=192, in_chans=6)
        self.ground.blocks = self.space.blocks
        self.projection = nn.Linear(384, 256)

    def forward(self, views):
        both = (getattr(self, side).forward_features(views[side].pixels)[:, 0] for side in SIDES)
        return [nn.functional.normalize(self.projection(cls).float(), dim=-1) for cls in both]


def main(directory, n_turn):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiles = training_tiles([TrainingSet(directory)[i] for i in range(2)])
    windows, config = Windows(tiles, CONDITIONS, device), EncoderConfig()
    n_band = {side: len(CONDITIONS[side].depth) for side in SIDES}
    torch.manual_seed(0)
    encoder, predictor = Encoder(config).to(device), Predictor(config).to(device)
    objective = Objective(config, n_band, TrainConfig(steps=1).weights).to(device)
    peer, scale = Timm().to(device).train(), torch.tensor(10.0, device=device).log()
    batch = windows.batch(WINDOW, BATCH[device], 0, 0)

    def ours():
        return nt_xent(*(encoder(side, batch.views[side])[2] for side in SIDES), scale, batch.same)

    def theirs():
        return nt_xent(*peer(batch.views)[::-1], scale, batch.same)

    def whole():
        drawn = windows.batch(WINDOW, BATCH[device], 0, 1, TrainConfig.keep)
        return objective(encoder, predictor, drawn)[0]

    models = {"encoder, NT-Xent": (ours, [encoder]), "timm, NT-Xent": (theirs, [peer]),
              "encoder, whole step": (whole, [encoder, predictor, objective])}  # fmt: skip
    optimizers = {
        name: torch.optim.AdamW([p for part in parts for p in part.parameters()], lr=1e-5)
        for name, (_, parts) in models.items()
    }

    def step(name):
        with torch.autocast(device, torch.bfloat16):
            loss = models[name][0]()
        optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        optimizers[name].step()

    times, limits = {name: [] for name in models}, []
    for turn in range(n_turn + 1):
        limits.append(GFLOP * BATCH[device] / rate(device))
        for name in models:
            spent = seconds(device, lambda name=name: step(name))
            if turn:  # the first turn warms up
                times[name].append(spent)
    n, limit = BATCH[device], statistics.median(limits)
    print(f"{n} pairs of {WINDOW} arcsec, {device}, {torch.get_num_threads()} threads, {n_turn} turns, bf16")
    print(f"{'arithmetic limit':22s} {n / limit:8.2f} pairs/s ({GFLOP * n / limit:.0f} GFLOP/s)")
    for name, values in times.items():
        share = [least / spent for least, spent in zip(limits[1:], values, strict=True)]
        print(f"{name:22s} {n / statistics.median(values):8.2f} pairs/s, {statistics.median(share):.2f} of the limit")
    ratios = [a / b for a, b in zip(times["encoder, NT-Xent"], times["timm, NT-Xent"], strict=True)]
    print(f"encoder / timm, time: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5)
