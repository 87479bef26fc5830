# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Deblended sources: image, models and residual in either survey, and the residual of a whole image."""

import astropy.units as u
import numpy as np

from ..astrometry.solution import as_solution
from ..flags import Flag
from ._grid import grid_of, offsets_of, sky_axes
from ._style import axes_of, colour_bar, round_below

__all__ = ["choose_blend", "plot_blend", "plot_residual"]


def choose_blend(scene):
    """The label of the source that shows deblending best: bright, with a neighbour that is close and as bright.

    Parameters
    ----------
    scene : `~rosetta.DeblendedScene`
        With at least one source.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If the scene has no source.
    """
    table = scene.to_table()
    if len(table) == 0:
        raise ValueError("scene has no source: there is no blend to choose")
    snr, blend = np.asarray(table["snr"]), np.asarray(table["blendedness"])
    bad = int(Flag.EDGE | Flag.MASKED | Flag.NO_DATA | Flag.OUTSIDE | Flag.DUPLICATE)
    clean = (np.asarray(table["flags"]) & bad) == 0
    side, band = bands_to_show(scene)[0]
    image = getattr(scene.embedding.pair, side)[band]
    ny, nx = image.data.shape
    x, y = image.wcs.world_to_pixel(table["sky_centroid"])
    clean &= np.minimum.reduce([x, y, nx - 1 - x, ny - 1 - y]) > 0.1 * min(nx, ny)
    merit = np.where(clean, 1.0, 0.05) * np.clip(blend, 0.01, 0.3) * np.sqrt(np.clip(snr, 0, 300))
    if len(table) > 1:
        near, apart, _ = table["sky_centroid"].match_to_catalog_sky(table["sky_centroid"], nthneighbor=2)
        close = np.clip(1.5 / np.maximum(apart.to_value(u.arcsec), 0.5), 0, 1)
        merit = merit * close * np.sqrt(np.clip(np.minimum(snr, snr[near]), 0, 300))
    if "listed" in table.colnames and table["listed"].any():
        merit = np.where(table["listed"], merit, -1.0)  # the others are in no catalogue
    return int(table["label"][int(np.argmax(merit))])


def plot_blend(scene, label=None, *, half_size=4.0, axes=None):
    """One source and its neighbours: image, model of all, model of this one, and residual, in either survey.

    Parameters
    ----------
    scene : `~rosetta.DeblendedScene`
    label : int, optional
        Default: a bright source with a close neighbour.
    half_size : float
        Half the side of a panel, arcsec.
    axes : ndarray of `~matplotlib.axes.Axes`, shape (n_side, 4), optional
        A row per observed side.

    Returns
    -------
    ndarray of `~matplotlib.axes.Axes`, shape (n_side, 4)
        Images share one asinh scale per row (nJy per pixel); residuals are in units of the noise, from -5 to 5.

    Raises
    ------
    ValueError
        If the label is not in the scene, or the scene has no source.
    """
    from matplotlib.colors import AsinhNorm

    table = scene.to_table()
    label = choose_blend(scene) if label is None else label
    row = scene._row(label)
    center = table["sky_centroid"][row].icrs
    chosen = bands_to_show(scene)
    ticks = 0.75 * half_size * np.array([-1, 0, 1])
    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(figsize=(10, 2.7 * len(chosen)), layout="constrained").subplots(len(chosen), 4, squeeze=False)
    for line, (side, band) in zip(axes, chosen, strict=True):
        image = getattr(scene.embedding.pair, side)[band]
        sky, shown = center, table["sky_centroid"]
        if side == "ground" and scene.offsets is not None:
            solution = as_solution(scene.offsets)
            sky, shown = solution.seen_position(center.reshape(1))[0], solution.seen_position(shown)
        grid = grid_of(image, sky, half_size)
        sigma = float(np.sqrt(np.median(image.uncertainty.array[~image.mask])))
        model, residual = scene.model_and_residual(band)
        with np.errstate(invalid="ignore"):
            significance = residual.data / np.sqrt(residual.uncertainty.array)
        own = np.zeros(image.data.shape)
        try:
            piece = scene.model(label, band)
            x0, y0 = piece.meta["ORIGINX"], piece.meta["ORIGINY"]
            own[y0 : y0 + piece.data.shape[0], x0 : x0 + piece.data.shape[1]] = piece.data
        except ValueError:  # not on this image: its panel stays empty
            pass
        data = np.where(image.mask, np.nan, image.data)
        wcs = image.wcs
        pictures = [grid.nearest(panel, wcs) for panel in (data, model.data, own, significance)]
        peak = float(np.nanmax(pictures[1], initial=5 * sigma))
        norm = AsinhNorm(linear_width=2 * sigma, vmin=-2 * sigma, vmax=peak)
        east, north = offsets_of(shown, sky)
        names = (f"{band}", "model of all", f"source {label}", "residual")
        how = {"origin": "lower", "extent": grid.extent, "interpolation": "nearest"}
        for k, (ax, picture, name) in enumerate(zip(line, pictures, names, strict=True)):
            if k < 3:
                drawn = ax.imshow(picture, norm=norm, cmap="cividis", **how)
            else:
                drawn = ax.imshow(picture, vmin=-5, vmax=5, cmap="RdBu_r", **how)
            if k == 2:
                top = round_below(0.95 * peak)
                marks = [0, top / 10, top] if top > 50 * sigma else [0, top]
                unit, scale = ("µJy", 1e3) if top >= 1e3 else ("nJy", 1)
                colour_bar(ax, drawn, marks, unit, scale=scale)
            elif k == 3:
                colour_bar(ax, drawn, [-5, 0, 5], "σ")
            ax.set_facecolor("0.6")
            if k in (0, 3):
                inside = (np.abs(east) < half_size) & (np.abs(north) < half_size)
                ax.plot(east[inside], north[inside], "+", color="white" if k == 0 else "black", ms=6, mew=0.9)
            ax.set_xlim(half_size, -half_size)
            ax.set_ylim(-half_size, half_size)
            ax.set_xticks(ticks)
            ax.set_yticks(ticks)
            ax.set_title(name, fontsize=9)
            ax.tick_params(labelsize=7)
            ax.label_outer()
        line[0].set_ylabel(f"{scene.embedding.pair.survey_name(side)}\nnorth (arcsec)", fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel("east (arcsec)", fontsize=8)
    return axes


def plot_residual(scene, band=None, *, center=None, half_size=None, ax=None):
    """What the models of all sources leave of an image, in units of its noise.

    Parameters
    ----------
    scene : `~rosetta.DeblendedScene`
    band : str, optional
        Default: the reference band.
    center : `~astropy.coordinates.SkyCoord`, optional
        Centre of the picture; default, that of the image.
    half_size : float, optional
        Half its side, arcsec.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    `~matplotlib.axes.Axes`
        From -5 to 5 sigma; grey where there are no data.

    Raises
    ------
    ValueError
        If the band is not in the scene.
    """
    if band is None:
        _, band = bands_to_show(scene)[0]
    ax = axes_of(ax)
    residual = scene.residual(band)
    side = next(side for side, name, _ in scene.embedding.pair.images() if name == band)
    image = getattr(scene.embedding.pair, side)[band]
    grid = grid_of(image, center, half_size)
    with np.errstate(invalid="ignore"):
        picture = grid.nearest(residual.data / np.sqrt(residual.uncertainty.array), image.wcs)
    drawn = ax.imshow(
        picture, vmin=-5, vmax=5, cmap="RdBu_r", origin="lower", extent=grid.extent, interpolation="nearest"
    )
    ax.set_facecolor("0.6")
    colour_bar(ax, drawn, [-5, 0, 5], "σ")
    return sky_axes(ax, grid.extent, f"{scene.embedding.pair.survey_name(side)} {band}: residual")


def bands_to_show(scene):
    """The reference band, and the ground band whose wavelength is next to it; with one survey, another of its bands.

    Parameters
    ----------
    scene : `~rosetta.DeblendedScene`

    Returns
    -------
    list of (side, band)
    """
    pair = scene.embedding.pair
    sides = {band: side for side, band, _ in pair.images()}
    pivot = {band: pair.survey(side)[band].pivot.to_value(u.nm) for band, side in sides.items()}
    reference = scene.meta["reference_band"] if scene.meta["reference_band"] in sides else scene.bands[-1]
    chosen = [(sides[reference], reference)]
    ground = [band for band in scene.bands if sides[band] == "ground" and band != reference]
    if sides[reference] == "space" and ground:
        band = min(ground, key=lambda b: abs(np.log(pivot[b] / pivot[reference])))
        chosen.append(("ground", band))
    elif others := [band for band in scene.bands if band != reference]:
        band = others[len(others) // 2]
        chosen.append((sides[band], band))
    return chosen
