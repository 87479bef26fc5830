# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Heat maps of centres: what a network should give, how far it is from that, and the centres of a map."""

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["loss_of", "peaks", "target_of"]

SPREAD = 0.8  # cells; width of a centre in the target


def target_of(xy, weight, shape):
    """The heat map of one window.

    Parameters
    ----------
    xy : (n, 2) array
        Cells of the true centres, from 0.
    weight : (n,) array
        What each counts in training, 0 to 1.
    shape : (int, int)
        (ny, nx).

    Returns
    -------
    heat : (ny, nx) float32 array
        1 at a centre, falling off around it.
    weights : (ny, nx) float32 array
        The weight of the cells that hold a centre; 0 elsewhere.
    """
    heat, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    middle = np.clip(np.rint(xy).astype(int), 0, np.array(shape[::-1]) - 1)
    steps = np.arange(-3, 4)
    y, x = (middle[:, 1, None, None] + steps[:, None]), (middle[:, 0, None, None] + steps[None])
    apart = (x - xy[:, 0, None, None]) ** 2 + (y - xy[:, 1, None, None]) ** 2
    value = np.exp(-0.5 * apart / SPREAD**2)
    y, x, value = np.broadcast_arrays(y, x, value)
    inside = (y >= 0) & (x >= 0) & (y < shape[0]) & (x < shape[1])
    np.maximum.at(heat, (y[inside], x[inside]), value[inside])
    np.maximum.at(weights, (middle[:, 1], middle[:, 0]), weight)
    return heat, weights


def loss_of(logits, heat, weights):
    """Focal loss of centres (Lin et al. 2017; Zhou et al. 2019), with a weight for each centre; all (n, ny, nx)."""
    chance = logits.sigmoid()
    centre = weights * (1 - chance) ** 2 * F.logsigmoid(logits)
    others = (weights == 0) * (1 - heat) ** 4 * chance**2 * F.logsigmoid(-logits)
    return -(centre + others).sum() / weights.sum().clamp(min=1.0)


def peaks(logits, floor):
    """Local maxima of a map (ny, nx) above ``floor``: cells (x, y), refined by parabolas, (n, 2), and values (n,)."""
    padded = torch.from_numpy(np.pad(logits, 1, constant_values=-np.inf))[None, None]
    highest = F.max_pool2d(padded, 3, 1)[0, 0].numpy()
    y, x = np.nonzero((logits == highest) & (logits > floor))
    ny, nx = logits.shape
    here, shifts = logits[y, x], []
    for step_y, step_x, inner in ((0, 1, (x > 0) & (x < nx - 1)), (1, 0, (y > 0) & (y < ny - 1))):
        before, after = (
            logits[np.clip(y + s * step_y, 0, ny - 1), np.clip(x + s * step_x, 0, nx - 1)] for s in (-1, 1)
        )
        bend = np.minimum(before + after - 2 * here, -1e-6)
        shifts.append(np.where(inner, np.clip(0.5 * (before - after) / bend, -0.5, 0.5), 0.0))
    return np.stack([x + shifts[0], y + shifts[1]], -1), here
