# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Offsets between the surveys, and the residuals from the field fitted to them."""

from textwrap import fill

import astropy.units as u
import numpy as np

from ..astrometry.solution import as_solution
from ._grid import offsets_of, sky_axes
from ._style import BLUE, GREY, ORANGE, axes_of, pull_histogram, round_number, unit_gaussian

__all__ = ["plot_offsets", "plot_residuals"]

_MAX_ELLIPSES = 40


def plot_offsets(offsets, *, center=None, half_size=None, truth=None, ax=None):
    """Offsets of all sources (joint ground frame) as arrows, with the smooth field through them.

    Parameters
    ----------
    offsets : `~astropy.table.QTable`
        From `~rosetta.LearnedAligner`.
    center : `~astropy.coordinates.SkyCoord`, optional
        Default: that of the reference image.
    half_size : float, optional
        Half the side of the plot, arcsec.
    truth : `~astropy.table.QTable`, optional
        With ``d_ra_cosdec`` and ``d_dec``.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    `~matplotlib.axes.Axes`
        Grey: sources, with 1-sigma ellipses on the 40 best; blue: the field; orange: the truth.
    """
    from matplotlib.patches import Ellipse, Rectangle

    ax = axes_of(ax)
    solution = as_solution(offsets)
    center = solution.center if center is None else center
    joint = offsets[offsets["band"] == "joint"]
    east, north = offsets_of(joint["sky_centroid"], center)
    if half_size is None:
        half_size = 1.1 * max(np.abs(east).max(initial=1), np.abs(north).max(initial=1))
    extent = (half_size, -half_size, -half_size, half_size)
    offset = np.stack([joint[c].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
    error = np.stack([joint[f"{c}_err"].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
    good = np.isfinite(offset).all(1) & (np.asarray(joint["weight"]) > 0)
    if solution.verdict != "ok" or not good.any():
        sky_axes(ax, extent, f"Offsets: {solution.verdict}")
        ax.text(
            0.5, 0.5, fill(solution.reason or "no usable source", 36), transform=ax.transAxes,
            ha="center", va="center",
        )
        return ax
    typical = float(np.median(np.hypot(*offset[good].T)))
    key = round_number(max(typical, 1.0))
    length = key / (0.14 * half_size)  # mas per arcsec of the plot
    arrows = {"angles": "xy", "scale_units": "xy", "scale": length, "units": "dots"}
    ax.quiver(
        east[good], north[good], *offset[good].T, color=GREY, width=1.3, headwidth=6, alpha=0.8, label="sources",
        **arrows,
    )
    best = np.flatnonzero(good)[np.argsort(error[good].max(1))][:_MAX_ELLIPSES]
    for k in best:
        cross = float(joint["corr"][k]) * error[k].prod()
        value, vector = np.linalg.eigh([[error[k, 0] ** 2, cross], [cross, error[k, 1] ** 2]])
        tip = np.array([east[k], north[k]]) + offset[k] / length
        size = 2 * np.sqrt(np.maximum(value, 0)) / length
        angle = np.degrees(np.arctan2(vector[1, 1], vector[0, 1]))
        ax.add_patch(
            Ellipse(tip, size[1], size[0], angle=angle, facecolor="none", edgecolor=GREY, lw=0.8, alpha=0.9)
        )
    axis = np.linspace(-0.8, 0.8, 5) * half_size
    place = np.stack([v.ravel() for v in np.meshgrid(axis, axis)], -1)
    sky = center.icrs.spherical_offsets_by(place[:, 0] * u.arcsec, place[:, 1] * u.arcsec)
    field, sigma = solution.offset_at(sky), solution.sigma_at(sky)
    arrows_of_field = ax.quiver(
        *place.T, *field.T, color=BLUE, width=2.4, headwidth=4.5, label="field", zorder=3, **arrows
    )
    ax.add_patch(Rectangle((0.72, 0.91), 0.27, 0.08, transform=ax.transAxes, fc="white", ec="0.8", zorder=5))
    scale = ax.quiverkey(arrows_of_field, 0.79, 0.95, key, f"{key:g} mas", labelpos="E", coordinates="axes")
    scale.set_zorder(6)
    middle, sigma = field.mean(0), np.sqrt((sigma**2).mean(0))
    title = f"Offset (mas): east {_pm(middle[0], sigma[0])}, north {_pm(middle[1], sigma[1])}"
    if truth is not None:
        known = np.stack([truth[c].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
        at = np.stack(offsets_of(truth["sky_centroid"], center), -1)
        # The true field, read at the true source nearest to each arrow of the measured one.
        near = np.unique([np.argmin(np.hypot(*(at - p).T)) for p in place])
        ax.quiver(
            *at[near].T, *known[near].T, color=ORANGE, width=1.8, headwidth=5, label="truth", zorder=4, **arrows
        )
        title += f"; truth {known[:, 0].mean():+.1f}, {known[:, 1].mean():+.1f}"
    sky_axes(ax, extent, "")
    ax.set_title(title, fontsize=9)
    ax.legend(loc="lower right", fontsize=8, framealpha=0.9)
    return ax


def plot_residuals(offsets, *, truth=None, axes=None):
    """Offsets before and after the field is subtracted, and a test of their errors.

    Parameters
    ----------
    offsets : `~astropy.table.QTable`
        From `~rosetta.LearnedAligner`; the joint ground frame is shown.
    truth : `~astropy.table.QTable`, optional
        With ``sky_centroid``, ``d_ra_cosdec`` and ``d_dec``. Pulls are then taken from the true offset of the source
        within 0.3 arcsec; else from the field, in whose fit the sources had a share, so that they come out a little
        small.
    axes : pair of `~matplotlib.axes.Axes`, optional

    Returns
    -------
    ndarray of `~matplotlib.axes.Axes`
        Left: offset of each source that was used (grey) and what the field leaves of it (blue). Right: residual over
        error, both axes together, beside the unit Gaussian.
    """
    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(figsize=(10, 4.5), layout="constrained").subplots(1, 2)
    left, right = axes
    solution = as_solution(offsets)
    joint = offsets[(offsets["band"] == "joint") & (np.asarray(offsets["weight"]) > 0)]
    if solution.verdict != "ok" or not len(joint):
        reason = fill(solution.reason or "no usable source", 36)
        left.text(0.5, 0.5, reason, transform=left.transAxes, ha="center", va="center")
        return np.asarray(axes)
    offset = np.stack([joint[c].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
    error = np.stack([joint[f"{c}_err"].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
    field = solution.offset_at(joint["sky_centroid"])
    for points, colour, name in ((offset, GREY, "before"), (offset - field, BLUE, "after")):
        weight = error**-2.0
        rms = np.sqrt((weight * points**2).sum() / weight.sum())
        left.plot(*points.T, "o", ms=3.5, color=colour, alpha=0.7, label=f"{name}: weighted rms {rms:.1f} mas")
    reach = 1.2 * np.percentile(np.abs(offset), 95)
    left.set(xlim=(reach, -reach), ylim=(-reach, reach), aspect="equal")
    left.axhline(0, color="black", lw=0.6)
    left.axvline(0, color="black", lw=0.6)
    left.set_xlabel("offset to the east (mas)")
    left.set_ylabel("offset to the north (mas)")
    left.legend(fontsize=8, loc="upper left")
    if truth is None:
        pull = (offset - field) / np.hypot(error, solution.sigma_at(joint["sky_centroid"]))
    else:
        index, apart, _ = joint["sky_centroid"].match_to_catalog_sky(truth["sky_centroid"])
        known = np.stack([truth[c][index].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
        pull = ((offset - known) / error)[apart < 0.3 * u.arcsec]
    pull_histogram(right, pull.ravel(), BLUE, "sources")
    unit_gaussian(right)
    right.set_xlabel(f"(offset - {'field' if truth is None else 'true offset'}) / error")
    return np.asarray(axes)


def _pm(value, sigma):
    return f"{value:+.1f} ± {sigma:.1f}"
