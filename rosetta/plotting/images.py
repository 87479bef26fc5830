# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Images on the sky: colour pictures, north up and east left, and sources on them."""

import numpy as np

from ..flags import Flag
from ._grid import grid_of, offsets_of, sky_axes
from ._style import ORANGE, SKY_BLUE, axes_of
from ._tables import is_flux

__all__ = ["plot_rgb", "plot_sources", "rgb"]

_MAX_MARKS = 300


def rgb(pair, side, *, center=None, half_size=None):
    """A colour picture of one side, after Lupton et al. (2004).

    The side's bands are grouped by wavelength into blue, green and red (two bands: green is their mean;
    one: grey) and averaged by their noise. Colours are balanced so that the average of all light is white.

    Parameters
    ----------
    pair : `~rosetta.SkyPair`
    side : {"ground", "space"}
    center : `~astropy.coordinates.SkyCoord`, optional
        Centre of the picture; default, that of the sharpest image.
    half_size : float, optional
        Half its side, arcsec.

    Returns
    -------
    picture : ndarray, shape (n, n, 3), float
        0 to 1; first row south, first column east. Grey where there are no data.
    extent : tuple of float
        For ``imshow(..., origin="lower")``: east and north of the borders, arcsec.

    Raises
    ------
    ValueError
        If the pair has no such side.
    """
    from astropy.visualization import make_lupton_rgb

    images = getattr(pair, side)
    if not images:
        raise ValueError(f"pair has no {side} side to draw: it holds {', '.join(pair.bands)}")
    sharpest = "VIS" if "VIS" in images else next(iter(images))
    grid = grid_of(images[sharpest], center, half_size)
    bands = list(images)
    groups = np.array_split(bands, 3) if len(bands) >= 3 else [bands[:1], bands, bands[-1:]]
    channels = [_stack(grid, [images[band] for band in group]) for group in groups]
    light = np.mean(channels, axis=0)
    empty = np.isnan(light)
    noise = 1.4826 * np.nanmedian(np.abs(light - np.nanmedian(light)))
    bright = np.nan_to_num(light) > 5 * noise
    sums = [np.nansum(c[bright]) for c in channels]
    balanced = []
    for channel, total in zip(channels, sums, strict=True):
        gain = sums[1] / total if total > 0 and sums[1] > 0 else 1.0
        balanced.append(np.nan_to_num(channel) * np.clip(gain, 0.1, 10))
    blue, green, red = balanced
    picture = make_lupton_rgb(red, green, blue, minimum=-noise, stretch=12 * noise, Q=8, output_dtype=float)
    # Pixels no brighter than the noise are drawn grey: their colour would be noise.
    signal = np.nan_to_num(light[..., None] / (3 * noise)) ** 2
    grey = picture.mean(axis=-1, keepdims=True)
    picture = grey + (picture - grey) * signal / (1 + signal)
    picture[empty] = 0.35
    return picture, grid.extent


def _stack(grid, images):
    """Noise-weighted mean on the grid; where every band is masked, the mean of the masked pixels."""
    top = bottom = 0.0
    for image in images:
        wcs = image.wcs
        data = np.where(np.isfinite(image.data), image.data, 0)
        weight = np.where(image.mask, 1e-6, 1.0) / np.median(image.uncertainty.array[~image.mask])
        weight = np.where(np.isfinite(image.data), weight, 0.0)
        top = top + grid.read(weight * data, wcs)
        bottom = bottom + grid.read(weight, wcs)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def _compass(ax):
    """Arrows to the north and east in a corner."""
    arrow = {"arrowstyle": "<-", "color": "white", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    for end, text in (((0.95, 0.2), "N"), ((0.81, 0.06), "E")):
        ax.annotate(
            text, (0.95, 0.06), end, xycoords="axes fraction", textcoords="axes fraction", color="white",
            ha="center", va="center", arrowprops=arrow, fontsize=9,
        )


def plot_rgb(pair, side, *, center=None, half_size=None, ax=None):
    """The colour picture of one side.

    Parameters
    ----------
    pair, side, center, half_size
        As for `rgb`.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    `~matplotlib.axes.Axes`
    """
    picture, extent = rgb(pair, side, center=center, half_size=half_size)
    ax = axes_of(ax)
    ax.imshow(picture, origin="lower", extent=extent, interpolation="nearest")
    bands = " ".join(getattr(pair, side))
    sky_axes(ax, extent, f"{pair.survey_name(side)}: {bands}")
    _compass(ax)
    return ax


def plot_sources(catalog, *, center, coord=None, ax=None):
    """Circles on the catalogue's sources: blended ones orange, the others light blue.

    Parameters
    ----------
    catalog : `~astropy.table.QTable`
        With ``sky_centroid`` and ``flags``. Of more than 300 rows, the 300 brightest are drawn.
    center : `~astropy.coordinates.SkyCoord`
        Of the picture.
    coord : `~astropy.coordinates.SkyCoord`, optional
        Where to draw them, for instance in an uncorrected frame. Default: ``sky_centroid``.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    `~matplotlib.axes.Axes`
    """
    ax = axes_of(ax)
    east, north = offsets_of(catalog["sky_centroid"] if coord is None else coord, center)
    flux = [catalog[name].value for name in catalog.colnames if name.startswith("flux_") and is_flux(name)]
    total = np.nansum(flux, axis=0) if flux else np.zeros(len(catalog))
    keep = np.sort(np.argsort(-total)[:_MAX_MARKS])
    blended = (np.asarray(catalog["flags"]) & int(Flag.BLENDED)) != 0
    for of, colour, name in ((~blended, SKY_BLUE, "isolated"), (blended, ORANGE, "blended")):
        rows = keep[of[keep]]
        ax.scatter(
            east[rows], north[rows], s=60, facecolors="none", edgecolors=colour, linewidths=0.9,
            label=f"{name} ({of.sum()})" if len(rows) == of.sum() else f"{name} ({len(rows)} of {of.sum()})",
        )
    return ax
