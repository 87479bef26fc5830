# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What ordinary sky looks like to the encoder: the windows that the novelty score is fitted on."""

from dataclasses import replace

import numpy as np
import torch

from .network import SIDES, presence
from .novelty import summary

__all__ = ["SIZES", "Familiar", "window_sizes"]

N_SIZE = 6
SIZES = (12.8, 51.2)  # arcsec, the smallest and the largest window that is looked at


def window_sizes(smallest, largest):
    """Allowed sizes between two, arcsec: tokens know in how large a window they are."""
    return (np.unique(np.round(np.geomspace(smallest, largest, N_SIZE) / 3.2)) * 3.2).round(1).tolist()


class Familiar:
    """Summaries of windows, and the bands that they were seen in; half of the windows lose some of their bands.

    Parameters
    ----------
    model : `~rosetta.encoding.inference.Model`
    seed : int
        Of the bands that are left out.
    """

    def __init__(self, model, seed):
        self._model, self._random = model, torch.Generator().manual_seed(seed)
        self._found = {side: ([], []) for side in SIDES}

    @torch.inference_mode()
    def add(self, side, view, judged=0.5):
        """Windows of a side, `~rosetta.encoding.network.View`; those of which less than ``judged`` is seen are not."""
        view = _fewer_bands(view.to(next(self._model.parameters()).device), self._random)
        present = presence(view)
        kept = (present.amax(1) >= 0.5) & (view.valid.any(1).float().mean((1, 2)) >= judged)
        self._found[side][0].append(summary(self._model.encoder(side, view)[0])[kept].cpu())
        self._found[side][1].append(present[kept].cpu())

    def count(self, side):
        """How many windows of a side were added."""
        return sum(map(len, self._found[side][0]))

    def of(self, side):
        """Summaries (n, 2 * dim) and shares of each knot (n, n_knot). On the CPU: least squares on a GPU need a design
        of full rank, and a set of bands may be absent."""
        return tuple(map(torch.cat, self._found[side]))


def _fewer_bands(view, random):
    """The view with any number of bands taken away from every other window."""
    n, n_band = view.valid.shape[:2]
    missing = torch.randint(n_band, (n, 1), generator=random) * (torch.arange(n)[:, None] % 2)
    kept = torch.rand(n, n_band, generator=random).argsort(1).argsort(1) >= missing
    return replace(view, valid=view.valid & kept[..., None, None].to(view.valid.device))
