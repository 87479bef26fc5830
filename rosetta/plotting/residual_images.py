# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The residuals of many images side by side, small."""

import numpy as np

from ._style import colour_bar

__all__ = ["plot_residual_images"]

SIDE = 200  # pixels along a panel at most; larger images are averaged in blocks
COLUMNS = 5


def plot_residual_images(images):
    """Residuals of several bands, each in units of its own scatter.

    Parameters
    ----------
    images : mapping of str to (ny, nx) array
        By band; NaN where there are no data. Taken one after the other.

    Returns
    -------
    `~matplotlib.figure.Figure`
        A panel per band, on its native grid: first row at the bottom, first column on the left. From -5 to 5; grey
        where there are no data.
    """
    from matplotlib.figure import Figure

    n_row = max(1, -(-len(images) // COLUMNS))
    n_column = max(1, min(len(images), COLUMNS))
    figure = Figure(figsize=(2.2 * n_column + 0.3, 2.3 * n_row), layout="constrained")
    axes = figure.subplots(n_row, n_column, squeeze=False).ravel()
    for ax in axes[len(images) :]:
        ax.remove()
    for ax, (band, image) in zip(axes, images.items(), strict=False):
        small = _averaged(np.asarray(image, float))
        seen = small[np.isfinite(small)]
        scatter = 1.4826 * np.median(np.abs(seen - np.median(seen))) if seen.size else 1.0
        drawn = ax.imshow(
            small / (scatter if scatter > 0 else 1.0), vmin=-5, vmax=5, cmap="RdBu_r", origin="lower",
            interpolation="nearest",
        )
        ax.set_facecolor("0.6")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(band, fontsize=9)
    if images:
        colour_bar(axes[n_column - 1], drawn, [-5, 0, 5], "scatter")
    return figure


def _averaged(image):
    """Means over square blocks; NaN where a block has no data."""
    step = -(-max(image.shape) // SIDE)
    if step == 1:
        return image
    ny, nx = (-(-n // step) for n in image.shape)
    padded = np.full((ny * step, nx * step), np.nan)
    padded[: image.shape[0], : image.shape[1]] = image
    blocks = padded.reshape(ny, step, nx, step)
    good = np.isfinite(blocks)
    count = good.sum(axis=(1, 3))
    with np.errstate(invalid="ignore"):
        return np.where(good, blocks, 0).sum(axis=(1, 3)) / np.where(count > 0, count, np.nan)
