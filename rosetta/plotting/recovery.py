# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Injected sources: how many are found, and how well they are measured."""

import numpy as np

from ._style import BLUE, GREY
from .fluxes import _colours

__all__ = ["plot_recovery"]

FEWEST = 5  # measured sources in a bin that is drawn


def plot_recovery(summary):
    """Completeness, bias, scatter and coverage of injected sources, by their true magnitude.

    Parameters
    ----------
    summary : `~astropy.table.QTable`
        Of `rosetta.Recovery`.

    Returns
    -------
    `~matplotlib.figure.Figure`
        Bars are 68 % intervals; of fluxes, bins with fewer than five are left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    reference, bands = summary.meta["reference_band"], summary.meta["bands"]
    rows = summary[np.asarray(summary["by"]) == "magnitude"]
    of_band = {band: rows[np.asarray(rows["band"]) == band] for band in bands}

    _bars(axes[0, 0], of_band[reference], "completeness", BLUE, 0.0, f"reference band {reference}")
    for row in of_band[reference]:
        axes[0, 0].annotate(f"{row['n_found']}/{row['n']}", (0.5 * (row["low"] + row["high"]), 0.03), ha="center",
                            fontsize=8, color=GREY)  # fmt: skip
    shifts = np.linspace(-0.25, 0.25, len(bands)) if len(bands) > 1 else [0.0]
    for name, ax in (("bias", axes[0, 1]), ("nmad", axes[1, 0]), ("coverage", axes[1, 1])):
        for band, colour, shift in zip(bands, _colours(len(bands)), shifts, strict=True):
            drawn = of_band[band][np.asarray(of_band[band]["n_measured"]) >= FEWEST]
            _bars(ax, drawn, name, colour, shift, band)
    axes[0, 0].set_ylim(0, 1.05)
    axes[0, 0].set_ylabel("share found")
    axes[0, 1].axhline(0, color="black", lw=0.8)
    axes[0, 1].set_ylabel("bias: median of flux / true - 1")
    limit = np.nanpercentile(np.abs(_drawn_values(of_band, "bias")), 90) if len(rows) else 1.0
    axes[0, 1].set_ylim(*(np.array([-1, 1]) * np.clip(1.6 * limit, 0.02, 1.5)))
    axes[1, 0].set_yscale("log")
    axes[1, 0].set_ylabel("scatter: NMAD of flux / true")
    axes[1, 1].axhline(0.683, color="black", lw=0.8, ls="--")
    axes[1, 1].set_ylim(0, 1.05)
    axes[1, 1].set_ylabel("share within one sigma")
    for ax in axes.flat:
        ax.set_xlim(np.min(rows["low"], initial=99), np.max(rows["high"], initial=0))
        ax.set_xlabel("true magnitude in the band (AB)")
    axes[0, 0].legend(fontsize=8, loc="center left")
    axes[1, 0].legend(fontsize=8, ncols=2, loc="lower right", columnspacing=1.0, handletextpad=0.2)
    return figure


def _drawn_values(of_band, name):
    """All values of a figure that are drawn; one NaN if there are none."""
    drawn = [np.asarray(rows[name], float)[np.asarray(rows["n_measured"]) >= FEWEST] for rows in of_band.values()]
    values = np.concatenate(drawn)
    return values if len(values) else np.ones(1)


def _bars(ax, rows, name, colour, shift, label):
    middle = 0.5 * (np.asarray(rows["low"]) + np.asarray(rows["high"])) + shift
    value, low, high = (np.asarray(rows[f"{name}{end}"], float) for end in ("", "_low", "_high"))
    # A bootstrap's range need not hold the value itself.
    ends = np.maximum([value - low, high - value], 0.0)
    ax.errorbar(middle, value, ends, fmt="o-", ms=4, lw=0.8, elinewidth=0.8, color=colour, label=label)
