# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Where the encoder looks from one place: every layer and head, on the sky."""

import numpy as np
from astropy.coordinates import SkyCoord

from ._grid import grid_of
from ._style import SKY_BLUE, colour_bar

__all__ = ["plot_attention"]

RANGE = 0.1, 100.0  # of the share of a patch over that of even attention
CONTOUR = 4.0  # sigma of an image that is averaged over a quarter of a patch


def plot_attention(pair, attention, *, axes=None):
    """Attention of the token at one place, for every layer (row) and head (column).

    Parameters
    ----------
    pair : `~rosetta.SkyPair`
        The images that were read.
    attention : `~astropy.nddata.NDData`
        From `rosetta.CrossSurveyEncoder.attention`.
    axes : ndarray of `~matplotlib.axes.Axes`, shape (n_layer, n_head), optional

    Returns
    -------
    ndarray of `~matplotlib.axes.Axes`, shape (n_layer, n_head)
        Colours: the share of attention of a patch over that of even attention, from 0.1 to 100, logarithmic. Lines: the
        light of VIS or i, else of the first band. A circle marks the place. CLS: its share, where it is 1 % or more.
    """
    from matplotlib.colors import LogNorm
    from scipy.ndimage import gaussian_filter

    weights, wcs, side = attention.data, attention.wcs, attention.meta["survey"]
    n_layer, n_head, count, _ = weights.shape
    if axes is None:
        from matplotlib.figure import Figure

        size = (1.5 * n_head + 1.0, 1.5 * n_layer + 0.6)
        axes = Figure(figsize=size, layout="constrained").subplots(n_layer, n_head, squeeze=False)
    images = getattr(pair, side)
    image = images["VIS"] if "VIS" in images else images["i"] if "i" in images else next(iter(images.values()))
    half = 0.5 * count * wcs.wcs.cdelt[1] * 3600
    grid = grid_of(image, SkyCoord(*wcs.wcs.crval, unit="deg"), half)
    light = np.nan_to_num(grid.read(np.where(image.mask, 0.0, image.data), image.wcs))
    light = gaussian_filter(light, light.shape[0] / count / 8)
    noise = 1.4826 * np.median(np.abs(light - np.median(light)))
    offset = (np.arange(light.shape[0]) + 0.5) / light.shape[0] * 2 * half - half
    for layer, line in enumerate(axes):
        for head, ax in enumerate(line):
            drawn = ax.imshow(
                weights[layer, head] * count**2, norm=LogNorm(*RANGE, clip=True), cmap="magma", origin="lower",
                extent=grid.extent, interpolation="nearest",
            )
            ax.contour(-offset, offset, light, [np.median(light) + CONTOUR * noise], colors=SKY_BLUE, linewidths=0.5)
            ax.plot(0, 0, "o", color="white", ms=12, mew=0.9, mfc="none")
            share = 100 * attention.meta["cls"][layer, head]
            if share >= 1:
                ax.text(0.04, 0.96, f"CLS {share:.0f} %", color="white", fontsize=7, va="top", transform=ax.transAxes)
            ax.set_xlim(half, -half)
            ax.set_ylim(-half, half)
            ax.set_xticks([10, 0, -10])
            ax.set_yticks([-10, 0, 10])
            ax.tick_params(labelsize=6)
            ax.label_outer()
            if layer == 0:
                ax.set_title(f"head {head + 1}", fontsize=8)
        line[0].set_ylabel(f"layer {layer + 1}\nnorth (arcsec)", fontsize=7)
    colour_bar(axes[n_layer // 2, -1], drawn, [0.1, 1, 10, 100], "even = 1")
    for ax in axes[-1]:
        ax.set_xlabel("east (arcsec)", fontsize=7)
    return axes
