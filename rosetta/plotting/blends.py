# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A deblended source: image, models and residual in either survey."""

import astropy.units as u
import numpy as np

from ..astrometry.solution import as_solution
from ..flags import Flag
from ._grid import grid_of, offsets_of

__all__ = ["choose_blend", "plot_blend"]


def choose_blend(scene):
    """The label of the source that shows deblending best: a bright one whose neighbour is close and bright.

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
    merit = np.where(clean, 1.0, 0.05) * np.clip(blend, 0.01, 0.6) * np.sqrt(np.clip(snr, 0, 300))
    if len(table) > 1:
        near, apart, _ = table["sky_centroid"].match_to_catalog_sky(table["sky_centroid"], nthneighbor=2)
        close = np.clip(1.5 / np.maximum(apart.to_value(u.arcsec), 0.5), 0, 1)
        merit = merit * close * np.sqrt(np.clip(snr[near], 0, 300))
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
        Images share one asinh scale per row; residuals are in units of the noise, from -5 to 5.

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
            sky, shown = solution.ground_position(center.reshape(1))[0], solution.ground_position(shown)
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
        pictures = [grid.read(panel, wcs) for panel in (data, model.data, own, significance)]
        peak = float(np.nanmax(pictures[1], initial=5 * sigma))
        norm = AsinhNorm(linear_width=2 * sigma, vmin=-2 * sigma, vmax=peak)
        east, north = offsets_of(shown, sky)
        names = (f"{band}", "model", f"source {label}", "residual / σ")
        how = {"origin": "lower", "extent": grid.extent, "interpolation": "nearest"}
        for k, (ax, picture, name) in enumerate(zip(line, pictures, names, strict=True)):
            if k < 3:
                ax.imshow(picture, norm=norm, cmap="cividis", **how)
            else:
                drawn = ax.imshow(picture, vmin=-5, vmax=5, cmap="RdBu_r", **how)
                ax.figure.colorbar(drawn, cax=ax.inset_axes([1.04, 0, 0.06, 1]), ticks=[-5, 0, 5])
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
        line[0].set_ylabel(f"{scene.embedding.pair.survey(side).name}\nnorth (arcsec)", fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel("east (arcsec)", fontsize=8)
    return axes


def bands_to_show(scene):
    """The reference band, and the ground band whose wavelength is next to it.

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
    return chosen
