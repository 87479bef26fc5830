# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Encoder forward pass beside timm's VisionTransformer of the same dimensions, on the same pixels, in one run.

The two take turns, so that a drift of the machine hits both; the figure is the median of the ratios of CPU times.
Run: python benchmarks/encoder.py [n_turn]      (needs timm: pip install --no-deps timm huggingface_hub)
"""

import statistics
import sys
import time

import torch
from kit.peers.timm import timm_transformer

from rosetta.encoding.network import Encoder, EncoderConfig, View

BATCH = 4


def space_view(config):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(BATCH, 4, 384, 384, generator=generator)
    axis = (torch.arange(24) - 11.5) * 1.6
    north, east = torch.meshgrid(axis, -axis, indexing="ij")
    positions = torch.stack([east.ravel(), north.ravel()], -1).expand(BATCH, -1, -1)
    conditions = torch.full((BATCH, 4), 0.5), torch.full((BATCH, 4), 25.0)
    return View(pixels, torch.ones_like(pixels, dtype=torch.bool), positions, torch.eye(4), *conditions)


def main(n_turn):
    torch.manual_seed(0)
    config = EncoderConfig()
    ours, theirs, view = Encoder(config).eval(), timm_transformer(), space_view(config)

    def run(model, bf16):
        start = time.process_time()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model("space", view) if model is ours else model.forward_features(view.pixels)
        return time.process_time() - start, out

    times = {key: [] for key in ("ours fp32", "timm fp32", "ours bf16", "timm bf16")}
    for turn in range(n_turn + 1):
        for bf16 in (False, True):
            for name, model in (("ours", ours), ("timm", theirs)):
                seconds, _ = run(model, bf16)
                if turn:  # the first turn warms up
                    times[f"{name} {'bf16' if bf16 else 'fp32'}"].append(seconds)
    print(f"{BATCH} windows of 576 tokens, {torch.get_num_threads()} threads, {n_turn} turns")
    for key, values in times.items():
        per_token = statistics.median(values) / (BATCH * 577) * 1e6
        print(f"{key}: median {statistics.median(values):.3f} s, {per_token:.1f} us per token")
    for kind in ("fp32", "bf16"):
        ratios = [a / b for a, b in zip(times[f"ours {kind}"], times[f"timm {kind}"], strict=True)]
        print(f"ours / timm, {kind}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    exact, rounded = run(ours, False)[1], run(ours, True)[1]
    for name, one, two in zip(("tokens", "cls", "embedding"), exact, rounded, strict=True):
        error = (one - two.float()).norm() / one.norm()
        print(f"bf16 autocast against fp32, {name}: relative error {error:.1e}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
