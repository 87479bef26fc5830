# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Pictures of what was measured (needs the extra ``plot``).

Every function draws on the axes it is given, or on new ones, and returns them; nothing is shown or saved.
Images are drawn north up, east left, in arcsec about a stated centre.
"""

from textwrap import fill

import astropy.units as u
import numpy as np
from scipy.ndimage import map_coordinates

from ._geometry import tangent
from .flags import Flag

__all__ = [
    "overview",
    "plot_blend",
    "plot_errors",
    "plot_flux_truth",
    "plot_offsets",
    "plot_pulls",
    "plot_residuals",
    "plot_rgb",
    "plot_sed",
    "plot_sources",
    "rgb",
]

# Okabe & Ito (2008): told apart by everyone.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
SKY_BLUE = "#56B4E9"
_MAX_GRID = 600  # pixels a side of a picture
_MAX_MARKS = 300
_MAX_ELLIPSES = 40


def _axes(ax, size=(5.0, 5.0)):
    """The given axes, or those of a new figure that belongs to no window system."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots()


# ---------------------------------------------------------------------------- images on the sky
def _offsets_of(coord, center):
    """(east, north) in arcsec about ``center``."""
    return tangent(coord, center).T


def _field_of(image):
    """Centre and half side (arcsec) of a square that holds an image."""
    ny, nx = image.data.shape
    center = image.wcs.pixel_to_world((nx - 1) / 2, (ny - 1) / 2).icrs
    corners = image.wcs.pixel_to_world(np.array([0, nx - 1, 0, nx - 1]), np.array([0, 0, ny - 1, ny - 1]))
    east, north = _offsets_of(corners, center)
    return center, float(max(np.abs(east).max(), np.abs(north).max()))


class _Grid:
    """A north-up grid of n x n points; ``x`` and ``y`` of an image's pixels are asked once per WCS."""

    def __init__(self, center, half, n):
        axis = (np.arange(n) + 0.5) / n * 2 * half - half
        north, east = np.meshgrid(axis, -axis, indexing="ij")
        self.shape, self.extent = (n, n), (half, -half, -half, half)
        self._sky = center.icrs.spherical_offsets_by(east.ravel() * u.arcsec, north.ravel() * u.arcsec)
        self._known = []

    def pixels(self, wcs):
        for known, place in self._known:
            if known is wcs:
                return place
        x, y = wcs.world_to_pixel(self._sky)
        place = np.stack([y, x])
        self._known.append((wcs, place))
        return place

    def read(self, array, wcs):
        """Linear interpolation; NaN off the image."""
        values = map_coordinates(array, self.pixels(wcs), order=1, cval=np.nan)
        return values.reshape(self.shape)


def _grid_of(image, center=None, half=None):
    if center is None:
        center, half = _field_of(image)
    scale = np.sqrt(np.abs(np.linalg.det(_matrix(image)))) * 3600
    return _Grid(center, half, int(np.clip(np.ceil(2 * half / scale), 16, _MAX_GRID)))


def _matrix(image):
    """d(sky, degrees) / d(pixel) at the image centre, (2, 2), for any WCS."""
    ny, nx = image.data.shape
    x, y = (nx - 1) / 2, (ny - 1) / 2
    sky = image.wcs.pixel_to_world(np.array([x, x + 1, x]), np.array([y, y, y + 1])).icrs
    east, north = _offsets_of(sky[1:], sky[0])
    return np.stack([east, north]) / 3600


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
    grid = _grid_of(images[sharpest], center, half_size)
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
    picture[empty] = 0.35
    return picture, grid.extent


def _stack(grid, images):
    """Noise-weighted mean on the grid; where every band is masked, the mean of what the pixels hold."""
    top = bottom = bare = 0.0
    for image in images:
        data = np.where(np.isfinite(image.data), image.data, 0)
        weight = np.where(image.mask, 1e-6, 1.0) / np.median(image.uncertainty.array[~image.mask])
        weight = np.where(np.isfinite(image.data), weight, 0.0)
        w = grid.read(weight, image.wcs)
        top = top + grid.read(weight * data, image.wcs)
        bottom = bottom + w
        bare = bare + np.isnan(w)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def _sky_axes(ax, extent, title):
    ax.set_xlim(extent[0], extent[1])
    ax.set_ylim(extent[2], extent[3])
    ax.set_aspect("equal")
    ax.set_xlabel("east offset (arcsec)")
    ax.set_ylabel("north offset (arcsec)")
    ax.set_title(title)
    return ax


def _compass(ax):
    """North up, east left: said once in a corner."""
    arrow = {"arrowstyle": "<-", "color": "white", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    for end, text in (((0.95, 0.19), "N"), ((0.82, 0.06), "E")):
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
    ax = _axes(ax)
    ax.imshow(picture, origin="lower", extent=extent, interpolation="nearest")
    bands = " ".join(getattr(pair, side))
    _sky_axes(ax, extent, f"{pair.survey(side).name}: {bands}")
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
    ax = _axes(ax)
    east, north = _offsets_of(catalog["sky_centroid"] if coord is None else coord, center)
    flux = [catalog[name].value for name in catalog.colnames if name.startswith("flux_") and _is_flux(name)]
    total = np.nansum(flux, axis=0) if flux else np.zeros(len(catalog))
    keep = np.sort(np.argsort(-total)[:_MAX_MARKS])
    blended = (np.asarray(catalog["flags"]) & int(Flag.BLENDED)) != 0
    for of, colour, name in ((~blended, SKY_BLUE, "isolated"), (blended, ORANGE, "blended")):
        rows = keep[of[keep]]
        ax.scatter(
            east[rows], north[rows], s=60, facecolors="none", edgecolors=colour, linewidths=0.9,
            label=f"{name} ({of.sum()})",
        )
    return ax


def _is_flux(name):
    return not name.startswith("flux_err_") and name != "flux_cov"


# ---------------------------------------------------------------------------- astrometry
def plot_offsets(offsets, *, center=None, half_size=None, truth=None, ax=None):
    """Offsets of all sources (joint ground frame) as arrows, with the smooth field through them.

    Parameters
    ----------
    offsets : `~astropy.table.QTable`
        From `~rosetta.LearnedAligner`.
    center : `~astropy.coordinates.SkyCoord`, optional
        Default: ``offsets.meta["center"]``.
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

    ax = _axes(ax)
    center = offsets.meta["center"] if center is None else center
    joint = offsets[offsets["band"] == "joint"]
    east, north = _offsets_of(joint["sky_centroid"], center)
    if half_size is None:
        half_size = 1.1 * max(np.abs(east).max(initial=1), np.abs(north).max(initial=1))
    extent = (half_size, -half_size, -half_size, half_size)
    offset = np.stack([joint[c].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
    error = np.stack([joint[f"{c}_err"].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
    good = np.isfinite(offset).all(1) & (np.asarray(joint["weight"]) > 0)
    if offsets.meta["verdict"] != "ok" or not good.any():
        _sky_axes(ax, extent, f"Offsets: {offsets.meta['verdict']}")
        ax.text(
            0.5, 0.5, fill(offsets.meta["reason"] or "no usable source", 36), transform=ax.transAxes,
            ha="center", va="center",
        )
        return ax
    typical = float(np.median(np.hypot(*offset[good].T)))
    key = _round_number(max(typical, 1.0))
    length = key / (0.18 * half_size)  # mas per arcsec of the plot
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
    field, covariance = _joint_field(offsets, sky)
    arrows_of_field = ax.quiver(
        *place.T, *field.T, color=BLUE, width=2.4, headwidth=4.5, label="field", zorder=3, **arrows
    )
    ax.add_patch(Rectangle((0.72, 0.91), 0.27, 0.08, transform=ax.transAxes, fc="white", ec="0.8", zorder=5))
    scale = ax.quiverkey(arrows_of_field, 0.79, 0.95, key, f"{key:g} mas", labelpos="E", coordinates="axes")
    scale.set_zorder(6)
    middle, sigma = field.mean(0), np.sqrt(covariance.mean(0)[[0, 1], [0, 1]])
    title = f"Offset (mas): east {_pm(middle[0], sigma[0])}, north {_pm(middle[1], sigma[1])}"
    if truth is not None:
        known = np.stack([truth[c].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
        at = np.stack(_offsets_of(truth["sky_centroid"], center), -1)
        # The true field, read at the true source nearest to each arrow of the measured one.
        near = np.unique([np.argmin(np.hypot(*(at - p).T)) for p in place])
        ax.quiver(
            *at[near].T, *known[near].T, color=ORANGE, width=1.8, headwidth=5, label="truth", zorder=4, **arrows
        )
        title += f"; truth {known[:, 0].mean():+.1f}, {known[:, 1].mean():+.1f}"
    _sky_axes(ax, extent, "")
    ax.set_title(title, fontsize=9)
    ax.legend(loc="lower right", fontsize=8, framealpha=0.9)
    return ax


def plot_residuals(offsets, *, truth=None, axes=None):
    """Positions before and after the field is taken away, and whether their errors are right.

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
    joint = offsets[(offsets["band"] == "joint") & (np.asarray(offsets["weight"]) > 0)]
    if offsets.meta["verdict"] != "ok" or not len(joint):
        reason = fill(offsets.meta["reason"] or "no usable source", 36)
        left.text(0.5, 0.5, reason, transform=left.transAxes, ha="center", va="center")
        return np.asarray(axes)
    offset = np.stack([joint[c].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
    error = np.stack([joint[f"{c}_err"].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
    field, covariance = _joint_field(offsets, joint["sky_centroid"])
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
        pull = (offset - field) / np.sqrt(error**2 + covariance[:, [0, 1], [0, 1]])
    else:
        index, apart, _ = joint["sky_centroid"].match_to_catalog_sky(truth["sky_centroid"])
        known = np.stack([truth[c][index].to_value(u.mas) for c in ("d_ra_cosdec", "d_dec")], -1)
        pull = ((offset - known) / error)[apart < 0.3 * u.arcsec]
    _pull_histogram(right, pull.ravel(), BLUE, "sources")
    _unit_gaussian(right)
    right.set_xlabel(f"(offset - {'field' if truth is None else 'true offset'}) / error")
    return np.asarray(axes)


def _pull_histogram(ax, pull, colour, name):
    within = 100 * np.mean(np.abs(pull) < 1)
    ax.hist(
        np.clip(pull, -4.99, 4.99), np.linspace(-5, 5, 31), density=True, histtype="step", color=colour, lw=1.6,
        label=f"{name}: {within:.0f}% within 1σ",
    )


def _unit_gaussian(ax):
    x = np.linspace(-5, 5, 201)
    ax.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color="black", lw=0.9, ls="--", label="Gaussian: 68%")
    ax.set_xlim(-5, 5)
    ax.set_ylim(0, 1.35 * ax.get_ylim()[1])
    ax.set_ylabel("density")
    ax.legend(fontsize=8, loc="upper left")


def _pm(value, sigma):
    return f"{value:+.1f} ± {sigma:.1f}"


def _round_number(value):
    """1, 2 or 5 times a power of ten, next to ``value``."""
    power = 10 ** np.floor(np.log10(value))
    return float(min((1, 2, 5, 10), key=lambda k: abs(np.log(k * power / value))) * power)


def _joint_field(offsets, coord):
    from ._pipeline import joint_offset

    return joint_offset(offsets, coord)


# ---------------------------------------------------------------------------- a deblended source
def choose_blend(scene):
    """The label of the source that shows deblending best: a bright one whose neighbour is close and bright.

    Parameters
    ----------
    scene : `~rosetta.DeblendedScene`
        With at least one source.

    Returns
    -------
    int
    """
    table = scene.to_table()
    snr, blend = np.asarray(table["snr"]), np.asarray(table["blendedness"])
    bad = int(Flag.EDGE | Flag.MASKED | Flag.NO_DATA | Flag.OUTSIDE | Flag.DUPLICATE)
    clean = (np.asarray(table["flags"]) & bad) == 0
    image = scene.residual(scene.meta["reference_band"])
    ny, nx = image.data.shape
    x, y = image.wcs.world_to_pixel(table["sky_centroid"])
    clean &= np.minimum.reduce([x, y, nx - 1 - x, ny - 1 - y]) > 0.1 * min(nx, ny)
    merit = np.where(clean, 1.0, 0.05) * np.clip(blend, 0.01, 0.6) * np.sqrt(np.clip(snr, 0, 300))
    if len(table) > 1:
        near, apart, _ = table["sky_centroid"].match_to_catalog_sky(table["sky_centroid"], nthneighbor=2)
        close = np.clip(1.5 / np.maximum(apart.to_value(u.arcsec), 0.5), 0, 1)
        merit = merit * close * np.sqrt(np.clip(snr[near], 0, 300))
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
    """
    from matplotlib.colors import AsinhNorm

    table = scene.to_table()
    label = choose_blend(scene) if label is None else label
    row = int(np.flatnonzero(np.asarray(table["label"]) == label)[0])
    center = table["sky_centroid"][row].icrs
    chosen = _bands_to_show(scene)
    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(figsize=(10, 2.7 * len(chosen)), layout="constrained").subplots(len(chosen), 4, squeeze=False)
    for line, (side, band) in zip(axes, chosen, strict=True):
        image = getattr(scene.embedding.pair, side)[band]
        sky, shown = center, table["sky_centroid"]
        if side == "ground" and scene.offsets is not None and scene.offsets.meta["verdict"] != "abstain":
            sky = _uncorrected(center.reshape(1), scene.offsets)[0]
            shown = _uncorrected(shown, scene.offsets)
        grid = _grid_of(image, sky, half_size)
        sigma = float(np.sqrt(np.median(image.uncertainty.array[~image.mask])))
        residual = scene.residual(band)
        with np.errstate(invalid="ignore"):
            significance = residual.data / np.sqrt(residual.uncertainty.array)
        own = np.zeros(image.data.shape)
        try:
            piece = scene.model(label, band)
            x0, y0 = piece.meta["origin"]
            own[y0 : y0 + piece.data.shape[0], x0 : x0 + piece.data.shape[1]] = piece.data
        except ValueError:  # not on this image: its panel stays empty
            pass
        data = np.where(image.mask, np.nan, image.data)
        panels = [data, scene.model(None, band).data, own, significance]
        pictures = [grid.read(panel, image.wcs) for panel in panels]
        peak = max(float(np.nanmax(pictures[1])), 5 * sigma)
        norm = AsinhNorm(linear_width=2 * sigma, vmin=-2 * sigma, vmax=peak)
        east, north = _offsets_of(shown, sky)
        names = (f"{band}", "model", f"source {label}", "residual / σ")
        how = {"origin": "lower", "extent": grid.extent, "interpolation": "nearest"}
        for k, (ax, picture, name) in enumerate(zip(line, pictures, names, strict=True)):
            if k < 3:
                ax.imshow(picture, norm=norm, cmap="cividis", **how)
            else:
                drawn = ax.imshow(picture, vmin=-5, vmax=5, cmap="RdBu_r", **how)
                ax.figure.colorbar(drawn, ax=ax, fraction=0.046, pad=0.03, ticks=[-5, 0, 5])
            ax.set_facecolor("0.6")
            if k in (0, 3):
                inside = (np.abs(east) < half_size) & (np.abs(north) < half_size)
                ax.plot(east[inside], north[inside], "+", color="white" if k == 0 else "black", ms=6, mew=0.9)
            ax.set_xlim(half_size, -half_size)
            ax.set_ylim(-half_size, half_size)
            ax.set_title(name, fontsize=9)
            ax.tick_params(labelsize=7)
            ax.label_outer()
        line[0].set_ylabel(f"{scene.embedding.pair.survey(side).name}\nnorth (arcsec)", fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel("east (arcsec)", fontsize=8)
    return axes


def _bands_to_show(scene):
    """The reference band, and the ground band whose wavelength is next to it."""
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


def _uncorrected(coord, offsets):
    """Where the ground headers have sources of true positions ``coord``."""
    shift, _ = _joint_field(offsets, coord)
    return coord.icrs.spherical_offsets_by(-shift[:, 0] * u.mas, -shift[:, 1] * u.mas)


# ---------------------------------------------------------------------------- fluxes
def _bands_of(catalog):
    return [name.removeprefix("flux_") for name in catalog.colnames if name.startswith("flux_") and _is_flux(name)]


def _colours(n):
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0.0, 0.92, max(n, 1)))


def _matched(catalog, truth):
    from ._pipeline import match

    band = "VIS" if "flux_VIS" in catalog.colnames else _bands_of(catalog)[0]
    rows, true = match(catalog, truth, band)
    return catalog[rows], truth[true]


def plot_flux_truth(catalog, truth, *, bands=None, ax=None):
    """Relative flux error against true magnitude.

    Parameters
    ----------
    catalog, truth : `~astropy.table.QTable`
        Matched by position.
    bands : sequence of str, optional
        Default: all of the catalogue.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    `~matplotlib.axes.Axes`
        Points with S/N > 5 and their errors; triangles on the border lie beyond it.
    """
    ax = _axes(ax, (6, 4))
    bands = _bands_of(catalog) if bands is None else list(bands)
    found, known = _matched(catalog, truth)
    limit = 0.6
    for band, colour in zip(bands, _colours(len(bands)), strict=True):
        flux, error = (found[f"{name}_{band}"].to_value(u.nJy) for name in ("flux", "flux_err"))
        right = known[f"flux_{band}"].to_value(u.nJy)
        use = np.isfinite(flux) & (flux > 5 * error)
        mag, ratio = 31.4 - 2.5 * np.log10(right[use]), flux[use] / right[use] - 1
        inside = np.abs(ratio) < limit
        ax.errorbar(
            mag[inside], ratio[inside], (error[use] / right[use])[inside], fmt="o", ms=3.5, lw=0.7, color=colour,
            alpha=0.8, label=band,
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
        Matched by position.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    `~matplotlib.axes.Axes`
    """
    ax = _axes(ax, (5, 4))
    found, known = _matched(catalog, truth)
    blended = (np.asarray(found["flags"]) & int(Flag.BLENDED)) != 0
    for of, colour, name in ((~blended, BLUE, "isolated"), (blended, ORANGE, "blended")):
        pull = []
        for band in _bands_of(catalog):
            flux, error = (found[f"{part}_{band}"][of].to_value(u.nJy) for part in ("flux", "flux_err"))
            right = known[f"flux_{band}"][of].to_value(u.nJy)
            use = np.isfinite(flux) & (error > 0)
            pull.append((flux - right)[use] / error[use])
        pull = np.concatenate(pull) if pull else np.zeros(0)
        if len(pull):
            _pull_histogram(ax, pull, colour, name)
    _unit_gaussian(ax)
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
    """
    ax = _axes(ax, (6, 4))
    bands = _bands_of(catalog) if bands is None else list(bands)
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
    """
    ax = _axes(ax, (5, 4))
    pivot = {band.name: band.pivot.to_value(u.nm) for survey in surveys for band in survey.bands}
    width = {band.name: band.width.to_value(u.nm) for survey in surveys for band in survey.bands}
    bands = sorted(_bands_of(catalog), key=pivot.get)
    x, dx = np.array([pivot[b] for b in bands]), np.array([width[b] / 2 for b in bands])
    found = _matched(catalog, truth) if truth is not None else None
    low, high = [], []
    for label, colour in zip(labels, (BLUE, ORANGE, GREEN, RED), strict=False):
        row = catalog[np.asarray(catalog["label"]) == label][0]
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
            match = np.flatnonzero(np.asarray(found[0]["label"]) == label)
            if len(match):
                right = np.array([found[1][f"flux_{b}"][match[0]].to_value(u.nJy) for b in bands])
                true = 31.4 - 2.5 * np.log10(right)
                ax.plot(x, true, "s", color=colour, ms=8, mfc="none", mew=1.0, ls=":", lw=0.7)
                high.append(true)
    values = np.concatenate([*low, *high])
    if len(values):
        ax.set_ylim(values.max() + 0.8, values.min() - 0.8)
    ax.set_xscale("log")
    ticks = [400, 600, 1000, 1500]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("wavelength (nm)")
    ax.set_ylabel("magnitude (AB)")
    ax.legend(fontsize=8, loc="best", title="open squares: truth" if high else None, title_fontsize=8)
    return ax


# ---------------------------------------------------------------------------- everything on one page
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
    figure = Figure(figsize=(16, 14.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.07)
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(5.2, 5.0, 4.0), hspace=0.02)

    sides = [side for side in ("ground", "space") if getattr(pair, side)]
    images = getattr(pair, sides[-1])
    center, half = _field_of(images.get("VIS", next(iter(images.values()))))
    axes = top.subplots(1, 3)
    aligned = offsets is not None and offsets.meta["verdict"] != "abstain"
    for ax, side in zip(axes, ("ground", "space"), strict=False):
        if side not in sides:
            ax.set_axis_off()
            ax.text(0.5, 0.5, f"no {side} images", transform=ax.transAxes, ha="center")
            continue
        plot_rgb(pair, side, center=center, half_size=half, ax=ax)
        coord = catalog["sky_centroid"]
        if side == "ground" and aligned and len(catalog):
            coord = _uncorrected(coord, offsets)
        if len(catalog):
            plot_sources(catalog, center=center, coord=coord, ax=ax)
            ax.legend(loc="upper left", fontsize=8, framealpha=0.7)
    if offsets is not None:
        plot_offsets(offsets, center=center, half_size=half, truth=truth, ax=axes[2])
    else:
        axes[2].set_axis_off()
        axes[2].text(0.5, 0.5, "one survey only: nothing to align", transform=axes[2].transAxes, ha="center")
    figure.suptitle(f"{len(catalog)} sources in {' '.join(scene.bands)}", fontsize=11)  # keeps room for titles, too
    if not len(catalog):
        return figure

    left, right = middle.subfigures(1, 2, width_ratios=(2, 1))
    label = choose_blend(scene)
    shown = _bands_to_show(scene)
    plot_blend(scene, label, axes=left.subplots(len(shown), 4, squeeze=False))
    left.suptitle(f"Source {label} and its neighbours, deblended", fontsize=10)
    near = _neighbours(catalog, label)
    plot_sed(catalog, near, pair.surveys, truth=truth, ax=right.subplots()).set_title(
        "Fluxes of source " + ", ".join(map(str, near)), fontsize=10
    )

    axes = bottom.subplots(1, 3)
    groups = [[b for b in getattr(pair, side) or () if b in _bands_of(catalog)] for side in ("ground", "space")]
    for ax, side, bands in zip(axes, ("ground", "space"), groups, strict=False):
        if not bands:
            ax.set_axis_off()
            continue
        if truth is not None:
            plot_flux_truth(catalog, truth, bands=bands, ax=ax)
            ax.set_title(f"{pair.survey(side).name} flux against truth (S/N > 5)", fontsize=10)
        else:
            plot_errors(catalog, bands=bands, ax=ax)
            ax.set_title(f"{pair.survey(side).name} errors (dotted: S/N 5)", fontsize=10)
    if truth is not None:
        plot_pulls(catalog, truth, ax=axes[2]).set_title("Are the errors right?", fontsize=10)
    else:
        _plot_counts(catalog, scene.meta["reference_band"], axes[2])
    return figure


def _neighbours(catalog, label, radius=3.0, most=3):
    """The source and its nearest neighbours, at most ``most`` in all."""
    row = int(np.flatnonzero(np.asarray(catalog["label"]) == label)[0])
    apart = catalog["sky_centroid"][row].separation(catalog["sky_centroid"]).to_value(u.arcsec)
    order = [k for k in np.argsort(apart) if apart[k] < radius][:most]
    return [int(catalog["label"][k]) for k in order]


def _plot_counts(catalog, band, ax):
    band = band if f"flux_{band}" in catalog.colnames else _bands_of(catalog)[0]
    flux = catalog[f"flux_{band}"].to_value(u.nJy)
    mag = 31.4 - 2.5 * np.log10(flux[np.isfinite(flux) & (flux > 0)])
    if len(mag):
        ax.hist(mag, np.arange(np.floor(mag.min()), np.ceil(mag.max()) + 0.5, 0.5), color=SKY_BLUE, edgecolor="white")
    ax.set_xlabel(f"{band} magnitude (AB)")
    ax.set_ylabel("sources per 0.5 mag")
    ax.set_title(f"{len(catalog)} sources", fontsize=10)
    return ax
