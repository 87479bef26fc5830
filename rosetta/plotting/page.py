# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The overview page of one run."""

import astropy.units as u
import numpy as np

from ..astrometry.solution import as_solution
from ._grid import field_of
from ._style import SKY_BLUE
from ._tables import bands_of
from .astrometry import plot_offsets
from .blends import bands_to_show, choose_blend, plot_blend, plot_residual
from .fluxes import plot_errors, plot_flux_truth, plot_pulls, plot_sed
from .images import plot_rgb, plot_sources

__all__ = ["overview"]

SIZE = (16.2, 14.8)  # of the page, inches: fixed places, since working out a layout takes longer than drawing it


def overview(result, truth=None):
    """One page on one run of the main job.

    Parameters
    ----------
    result : object
        With ``pair``, ``offsets`` (or None), ``scene`` and ``catalog``.
    truth : `~astropy.table.QTable`, optional
        As from `rosetta.simulate.simulate_pair`: then fluxes are drawn against it.

    Returns
    -------
    `~matplotlib.figure.Figure`
    """
    from matplotlib.figure import Figure

    pair, scene, catalog, offsets = result.pair, result.scene, result.catalog, result.offsets
    figure = Figure(figsize=SIZE)

    sides = [side for side in ("ground", "space") if getattr(pair, side)]
    images = getattr(pair, sides[-1])
    center, half = field_of(images.get("VIS", next(iter(images.values()))))
    across = (0.8, 15.8) if len(sides) == 2 else (3.0, 13.6)
    *of_sides, last = _axes(figure, 1, len(sides) + 1, across, (0.8, 5.2), 0.8)[0]
    for ax, side in zip(of_sides, sides, strict=True):
        plot_rgb(pair, side, center=center, half_size=half, ax=ax)
        coord = catalog["sky_centroid"]
        if side == "ground" and offsets is not None and len(catalog):
            coord = as_solution(offsets).seen_position(coord)
        if len(catalog):
            plot_sources(catalog, center=center, coord=coord, ax=ax)
            ax.legend(loc="upper left", fontsize=8, framealpha=0.7)
    if offsets is not None:
        plot_offsets(offsets, center=center, half_size=half, truth=truth, ax=last)
    else:
        plot_residual(scene, center=center, half_size=half, ax=last)
    _title(figure, 8.0, 0.3, f"{len(catalog)} sources in {' '.join(scene.bands)}", 12)
    if not len(catalog):
        return figure

    label = choose_blend(scene)
    shown = bands_to_show(scene)
    plot_blend(scene, label, axes=_axes(figure, len(shown), 4, (0.8, 9.8), (6.7, 6.7 + 2.1 * len(shown)), 0.6))
    _title(figure, 5.3, 6.2, f"Source {label} and its neighbours, deblended", 11)
    near = _neighbours(catalog, label)
    plot_sed(catalog, near, pair.surveys, truth=truth, ax=_axes(figure, 1, 1, (11.4, 15.8), (6.5, 10.8), 0)[0, 0])
    _title(figure, 13.6, 6.2, f"Fluxes of source{'s' * (len(near) > 1)} {', '.join(map(str, near))}", 11)

    groups = {side: [band for band in getattr(pair, side) if band in bands_of(catalog)] for side in sides}
    groups = {side: bands for side, bands in groups.items() if bands}
    *of_sides, last = _axes(figure, 1, len(groups) + 1, (0.8, 15.8), (11.8, 14.2), 0.8)[0]
    for ax, (side, bands) in zip(of_sides, groups.items(), strict=True):
        if truth is not None:
            plot_flux_truth(catalog, truth, bands=bands, ax=ax)
            ax.set_title(f"{pair.survey_name(side)} flux against truth (S/N > 5)", fontsize=10)
        else:
            plot_errors(catalog, bands=bands, ax=ax)
            ax.set_title(f"{pair.survey_name(side)} errors (dotted: S/N 5)", fontsize=10)
    if truth is not None:
        plot_pulls(catalog, truth, ax=last).set_title("Are the errors right?", fontsize=10)
    else:
        _plot_counts(catalog, scene.meta["reference_band"], last)
    return figure


def _axes(figure, n_row, n_column, across, down, gap):
    """Axes in a box of the page, in inches from its upper left corner: (n_row, n_column)."""
    width, height = SIZE
    (left, right), (top, bottom) = across, down
    grid = figure.add_gridspec(
        n_row, n_column, left=left / width, right=right / width, top=1 - top / height, bottom=1 - bottom / height,
        wspace=gap * n_column / (right - left - gap * (n_column - 1)), hspace=0.2,
    )
    return grid.subplots(squeeze=False)


def _title(figure, x, y, text, size):
    figure.text(x / SIZE[0], 1 - y / SIZE[1], text, fontsize=size, ha="center", va="center")


def _neighbours(catalog, label, radius=3.0, most=3):
    """The source and its nearest neighbours, at most ``most`` in all."""
    row = int(np.flatnonzero(np.asarray(catalog["label"]) == label)[0])
    apart = catalog["sky_centroid"][row].separation(catalog["sky_centroid"]).to_value(u.arcsec)
    order = [k for k in np.argsort(apart) if apart[k] < radius][:most]
    return [int(catalog["label"][k]) for k in order]


def _plot_counts(catalog, band, ax):
    band = band if f"flux_{band}" in catalog.colnames else bands_of(catalog)[0]
    flux = catalog[f"flux_{band}"].to_value(u.nJy)
    mag = 31.4 - 2.5 * np.log10(flux[np.isfinite(flux) & (flux > 0)])
    if len(mag):
        ax.hist(mag, np.arange(np.floor(mag.min()), np.ceil(mag.max()) + 0.5, 0.5), color=SKY_BLUE, edgecolor="white")
    ax.set_xlabel(f"{band} magnitude (AB)")
    ax.set_ylabel("sources per 0.5 mag")
    ax.set_title(f"{len(catalog)} sources", fontsize=10)
    return ax
