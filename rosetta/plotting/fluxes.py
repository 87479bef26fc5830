# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Fluxes: against truth, against their errors, against wavelength."""

from itertools import cycle

import astropy.units as u
import numpy as np

from ..flags import Flag
from ..matching import match
from ._style import BLUE, GREEN, ORANGE, RED, axes_of, pull_histogram, unit_gaussian
from ._tables import bands_of, chosen_bands

__all__ = ["plot_errors", "plot_flux_truth", "plot_pulls", "plot_sed"]


def _colours(n):
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0.0, 0.92, max(n, 1)))


def _matched(catalog, truth):
    band = "VIS" if "flux_VIS" in catalog.colnames else bands_of(catalog)[0]
    rows, true = match(catalog, truth, band)
    return catalog[rows], truth[true]


def plot_flux_truth(catalog, truth, *, bands=None, ax=None):
    """Relative flux error against true magnitude.

    Parameters
    ----------
    catalog, truth : `~astropy.table.QTable`
        Matched by position within 0.3 arcsec.
    bands : sequence of str, optional
        Default: all of the catalogue.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    `~matplotlib.axes.Axes`
        Points with S/N > 5 and their errors; triangles on the border lie beyond it.

    Raises
    ------
    ValueError
        If the catalogue lacks one of the bands.
    """
    ax = axes_of(ax, (6, 4))
    bands = chosen_bands(catalog, bands)
    found, known = _matched(catalog, truth)
    limit = 0.6
    for band, colour in zip(bands, _colours(len(bands)), strict=True):
        flux, error = (found[f"{name}_{band}"].to_value(u.nJy) for name in ("flux", "flux_err"))
        right = known[f"flux_{band}"].to_value(u.nJy)
        use = np.isfinite(flux) & (flux > 5 * error)
        mag, ratio = 31.4 - 2.5 * np.log10(right[use]), flux[use] / right[use] - 1
        inside = np.abs(ratio) < limit
        ax.errorbar(
            mag[inside], ratio[inside], (error[use] / right[use])[inside], fmt="o", ms=3, color=colour,
            ecolor=(*colour[:3], 0.3), elinewidth=0.6, label=band,
        )
        ax.scatter(
            mag[~inside], 0.97 * limit * np.sign(ratio[~inside]), marker="^", s=16, color=colour, alpha=0.8,
            linewidths=0,
        )
    ax.axhline(0, color="black", lw=0.8)
    ax.set_ylim(-limit, limit)
    ax.set_xlabel("true magnitude (AB)")
    ax.set_ylabel("flux / true flux - 1")
    ax.legend(fontsize=8, ncols=3, loc="upper left", columnspacing=1.0, handletextpad=0.2)
    return ax


def plot_pulls(catalog, truth, *, ax=None):
    """Distribution of (flux - true flux) / error in all bands, beside the unit Gaussian.

    Parameters
    ----------
    catalog, truth : `~astropy.table.QTable`
        Matched by position within 0.3 arcsec; all of these sources count, however faint.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    `~matplotlib.axes.Axes`
    """
    ax = axes_of(ax, (5, 4))
    found, known = _matched(catalog, truth)
    blended = (np.asarray(found["flags"]) & int(Flag.BLENDED)) != 0
    for of, colour, name in ((~blended, BLUE, "isolated"), (blended, ORANGE, "blended")):
        pull = []
        for band in bands_of(catalog):
            flux, error = (found[f"{part}_{band}"][of].to_value(u.nJy) for part in ("flux", "flux_err"))
            right = known[f"flux_{band}"][of].to_value(u.nJy)
            use = np.isfinite(flux) & (error > 0)
            pull.append((flux - right)[use] / error[use])
        pull = np.concatenate(pull) if pull else np.zeros(0)
        if len(pull):
            pull_histogram(ax, pull, colour, name)
    unit_gaussian(ax)
    ax.set_xlabel("(flux - true flux) / error, all bands")
    return ax


def plot_errors(catalog, *, bands=None, ax=None):
    """Magnitude error against magnitude.

    Parameters
    ----------
    catalog : `~astropy.table.QTable`
    bands : sequence of str, optional
        Default: all of the catalogue.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    `~matplotlib.axes.Axes`
        Fluxes above one sigma only.

    Raises
    ------
    ValueError
        If the catalogue lacks one of the bands.
    """
    ax = axes_of(ax, (6, 4))
    bands = chosen_bands(catalog, bands)
    for band, colour in zip(bands, _colours(len(bands)), strict=True):
        flux, error = (catalog[f"{name}_{band}"].to_value(u.nJy) for name in ("flux", "flux_err"))
        use = np.isfinite(flux) & (error > 0) & (flux > error)
        ax.plot(
            31.4 - 2.5 * np.log10(flux[use]), 1.0857 * error[use] / flux[use], "o", ms=3, color=colour, alpha=0.7,
            label=band,
        )
    ax.axhline(0.2171, color="black", lw=0.8, ls=":")
    ax.set_yscale("log")
    ax.set_ylim(1e-3, 3)
    ax.set_xlabel("magnitude (AB)")
    ax.set_ylabel("magnitude error")
    ax.legend(fontsize=8, ncols=2, loc="upper left", columnspacing=1.0, handletextpad=0.2)
    return ax


def plot_sed(catalog, labels, surveys, *, truth=None, ax=None):
    """Fluxes of a few sources against wavelength.

    Parameters
    ----------
    catalog : `~astropy.table.QTable`
    labels : sequence of int
    surveys : tuple of two `~rosetta.Survey`
        For the wavelengths: ``pair.surveys``.
    truth : `~astropy.table.QTable`, optional
        Drawn as open squares where a true source matches.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    `~matplotlib.axes.Axes`
        AB magnitudes; fluxes below 1 sigma as 2-sigma upper limits.

    Raises
    ------
    ValueError
        If a label is not in the catalogue.
    """
    ax = axes_of(ax, (5, 4))
    pivot = {band.name: band.pivot.to_value(u.nm) for survey in surveys for band in survey.bands}
    width = {band.name: band.width.to_value(u.nm) for survey in surveys for band in survey.bands}
    bands = sorted(bands_of(catalog), key=pivot.get)
    x, dx = np.array([pivot[b] for b in bands]), np.array([width[b] / 2 for b in bands])
    found = _matched(catalog, truth) if truth is not None else None
    low, high = [], []
    for label, colour in zip(labels, cycle((BLUE, ORANGE, GREEN, RED))):
        rows = catalog[np.asarray(catalog["label"]) == label]
        if len(rows) == 0:
            raise ValueError(f"labels: {label!r} is not in the catalogue")
        row = rows[0]
        flux, error = (np.array([row[f"{n}_{b}"].to_value(u.nJy) for b in bands]) for n in ("flux", "flux_err"))
        good = np.isfinite(flux) & (error > 0)
        seen = good & (flux > error)
        mag = 31.4 - 2.5 * np.log10(np.where(seen, flux, 1.0))
        with np.errstate(invalid="ignore"):
            ax.errorbar(
                x[seen], mag[seen], 1.0857 * (error / np.abs(flux))[seen], dx[seen], fmt="o", color=colour, ms=5,
                lw=1.0, label=f"source {label}", zorder=3,
            )
        limit = good & ~seen
        upper = 31.4 - 2.5 * np.log10(np.maximum(flux[limit], 0) + 2 * error[limit])
        ax.plot(x[limit], upper, "v", color=colour, ms=6, mfc="none")
        low.append(mag[seen])
        if found is not None:
            mine = np.flatnonzero(np.asarray(found[0]["label"]) == label)
            if len(mine):
                right = np.array([found[1][f"flux_{b}"][mine[0]].to_value(u.nJy) for b in bands])
                true = 31.4 - 2.5 * np.log10(right)
                ax.plot(x, true, "s", color=colour, ms=8, mfc="none", mew=1.0, ls=":", lw=0.7)
                high.append(true)
    values = np.concatenate([np.zeros(0), *low, *high])
    if len(values):
        ax.set_ylim(values.max() + 0.8, values.min() - 0.8)
    ax.set_xscale("log")
    ticks = [400, 500, 600, 800, 1000, 1500, 2000]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set_xticks([], minor=True)
    if len(bands):
        ax.set_xlim(0.95 * (x - dx).min(), 1.05 * (x + dx).max())
    ax.set_xlabel("wavelength (nm)")
    ax.set_ylabel("magnitude (AB)")
    if len(labels):
        ax.legend(fontsize=8, loc="best", title="open squares: truth" if high else None, title_fontsize=8)
    return ax
