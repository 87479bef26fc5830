# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Planning a survey: which cells there are, and which files each one needs. Only headers are read."""

from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord

from ..io._stitch import overlap
from ..registry import KINDS
from ..surveys import EUCLID, PIXEL_SCALE, RUBIN
from . import inputs
from .area import read_area
from .cells import clipped, core_box, depth_in, grown, numbers_in, owner, polygon_area, sample
from .models import fingerprint
from .survey import Config, Survey

__all__ = ["CORE", "MARGIN", "TILE", "WINDOW", "make_plan", "summary"]

WINDOW = 38.4  # arcsec
OVERLAP = 12.8  # arcsec shared by neighbouring windows, as everywhere (`rosetta.encoding.windows`)
CORE = 307.2  # arcsec: twelve windows a side, none of which hangs over an edge
MARGIN = 10.0  # arcsec
TILE = 102.4  # arcsec, about: side of what is fitted at a time
NEAR = 4 * u.deg  # centres of tracts and tiles that can share sky are not further apart
GRID_ERROR = 1e-3  # pixels by which the grids of two patches of a tract may differ


def make_plan(
    folder, rubin, euclid=(), *, moc=None, core=CORE, margin=MARGIN, window=WINDOW, tile=None, models=None, report=None
):
    """Plan a survey; nothing is written.

    Cells lie on the pixel grids of the tracts. There is one wherever a core touches a patch and, if there are Euclid
    files, a MER tile. Where tiles overlap, a cell takes the one in which its centre lies deepest.

    Parameters
    ----------
    folder : path-like
        Where the survey will be.
    rubin, euclid : list of str
        Folders, lists, files or URLs, see `inputs.find`.
    moc : path-like, optional
        A coverage map: cells whose core it does not touch (on a grid of 17 x 17 positions) are left out.
    core, margin, window : float
        Sides of the cells and of the encoder's windows, and the margin around the cells, arcsec.
    tile : float, optional
        Side of the tiles in which sources are deblended, arcsec; None: about 102.4.
    models : path-like, optional
        Folder with a checkpoint of each kind; None: the bundled ones.
    report : callable, optional
        Called with a line of text as the files are read.

    Returns
    -------
    Survey

    Raises
    ------
    ValueError
        If sizes cannot be used, a file cannot be read, patches of a tract lie on different grids, or no cell is left.
    """
    config = _config(folder, core, margin, window, tile, models)
    report = report or (lambda text: None)
    rows, cards = _rubin_rows(inputs.find(rubin, "--rubin"), report)
    more, tiles = _euclid_rows(inputs.find(euclid, "--euclid") if euclid else [], report)
    survey = Survey(config, rows + more, [], cards)
    area = read_area(moc) if moc is not None else None
    tracts = survey.tracts()
    cells = [cell for tract in tracts.values() for cell in _cells_of(tract, tracts, survey, tiles, area)]
    if not cells:
        other = " and a Euclid tile" if euclid else ""
        raise ValueError(f"there is no cell with a Rubin patch{other}{' in the area of --moc' if moc else ''}")
    return Survey(config, survey.inputs, cells, cards)


def summary(survey):
    """Lines of text about a plan."""
    config, rows = survey.config, survey.rows
    area = len(rows) * (config.core / 3600) ** 2
    tiles = {row["tile"] for row in rows} - {""}
    files = [sum(row["survey"] == name for row in survey.inputs) for name in ("rubin", "euclid")]
    yield (
        f"{len(rows)} cells of {config.core:g} arcsec ({area:.2f} deg2) in {len({row['tract'] for row in rows})} "
        f"tracts and {len(tiles)} MER tiles; {files[0]} Rubin and {files[1]} Euclid files"
    )
    if tiles:
        covered, elsewhere = (np.mean([row[name] for row in rows]) for name in ("euclid_share", "elsewhere_share"))
        yield (
            f"{100 * covered:.1f} % of the cores lies in the MER tile that is read; {100 * elsewhere:.1f} % only in "
            "another tile, and is measured on Rubin images alone"
        )
    yield f"plan {survey.hash} in {survey.config.folder}"


# ---------------------------------------------------------------------------- settings
def _config(folder, core, margin, window, tile, models):
    pixel = PIXEL_SCALE["ground"]
    step = window - min(OVERLAP, window / 2)
    if not 12.8 <= window <= 1000 or abs(window / 3.2 - round(window / 3.2)) > 1e-6:
        raise ValueError(f"--window {window:g}: it must be a multiple of 3.2 arcsec, at least 12.8")
    if not step <= core <= 3600 or abs(core / step - round(core / step)) > 1e-6:
        better = step * max(1, round(core / step))
        raise ValueError(
            f"--core {core:g}: it must hold a whole number of windows, {step:g} arcsec each: such as {better:g}"
        )
    if not (window - step) / 2 <= margin <= core:
        raise ValueError(
            f"--margin {margin:g}: it must be at least {(window - step) / 2:g} arcsec, by which windows reach over the "
            "core, and at most the core"
        )
    if abs(margin / pixel - round(margin / pixel)) > 1e-6:
        raise ValueError(f"--margin {margin:g}: it must be a whole number of pixels of {pixel:g} arcsec")
    tile = core / max(1, round(core / TILE)) if tile is None else tile
    if not 12.8 <= tile <= core or abs(core / tile - round(core / tile)) > 1e-6:
        raise ValueError(f"--tile {tile:g}: a core must hold a whole number of tiles, of 12.8 arcsec or more")
    models = "" if models is None else str(Path(models).absolute())
    return Config(
        folder=str(Path(folder).absolute()), core=round(core, 6), margin=margin, window=window, step=round(step, 6),
        tile=round(tile, 6), models=models, **{kind: fingerprint(models, kind) for kind in KINDS},
    )  # fmt: skip


# ---------------------------------------------------------------------------- files
def _rubin_rows(paths, report):
    """Rows of the Rubin files, and the WCS cards of each tract."""
    rows, cards, first = [], {}, {}
    for path in paths:
        row, file = inputs.describe_rubin(path)
        number = row["tract"]
        if number not in cards:
            cards[number], first[number] = inputs.tract_cards(file), file
        _check_grid(first[number], file)
        rows.append(row)
        report(f"{len(rows)} of {len(paths)} Rubin files")
    order = {band: k for k, band in enumerate(RUBIN.band_names)}
    return sorted(rows, key=lambda row: (row["tract"], order[row["band"]], row["patch"], row["path"])), cards


def _check_grid(file, other):
    """Refuse a file that does not lie on the pixel grid of its tract."""
    y0, y1, x0, x1 = other.box
    x, y = np.array([0, x1 - x0, 0, x1 - x0]), np.array([0, 0, y1 - y0, y1 - y0])
    there = file.wcs(other.box).world_to_pixel(other.wcs(other.box).pixel_to_world(x, y))
    if not np.hypot(there[0] - x, there[1] - y).max() < GRID_ERROR:
        raise ValueError(
            f"--rubin: {file.name} and {other.name} both name tract {file.tract} but lie on different pixel grids: "
            "give files of one skymap"
        )


def _euclid_rows(paths, report):
    """Rows of the Euclid files, and the corners (ra, dec) of each tile."""
    rows, tiles = [], {}
    for k, path in enumerate(paths):
        row, footprint = inputs.describe_euclid(path)
        if row is not None:
            rows.append(row)
            if footprint is not None:
                tiles.setdefault(row["tile"], footprint)
        report(f"{k + 1} of {len(paths)} Euclid files")
    orphans = [row["path"] for row in rows if row["tile"] not in tiles]
    if orphans:
        raise ValueError(f"--euclid: {orphans[0]} has no science image beside it: add that of its tile")
    order = {band: k for k, band in enumerate(EUCLID.band_names)}
    rows.sort(key=lambda row: (row["tile"], order[row["band"].split()[0]], row["path"]))
    return rows, tiles


# ---------------------------------------------------------------------------- cells
def _cells_of(tract, tracts, survey, tiles, area):
    """Rows of the cells of one tract."""
    config = survey.config
    core_pixels, margin = config.pixels("core"), config.pixels("margin")
    scale = np.sqrt(np.abs(np.linalg.det(tract.wcs.pixel_scale_matrix))) * 3600
    if abs(scale / PIXEL_SCALE["ground"] - 1) > 0.01:
        raise ValueError(
            f"--rubin: tract {tract.number} has pixels of {scale:.4g} arcsec, not {PIXEL_SCALE['ground']:g}: "
            "cells are laid out for Rubin's"
        )
    polygons = _on_tract(tract, tiles)
    others = [other for other in tracts.values() if other is not tract and _near(other.center, tract)]
    numbered = list(enumerate(survey.inputs))
    of_tract = [(k, row, _box(row)) for k, row in numbered if row["survey"] == "rubin" and row["tract"] == tract.number]
    of_tile = {tile: " ".join(str(k) for k, row in numbered if row["tile"] == tile) for tile in polygons}
    for number in numbers_in(tract.boxes, core_pixels):
        core = core_box(number, core_pixels)
        box = grown(core, margin)
        x, y = sample(core)
        sky = tract.wcs.pixel_to_world(x, y)
        over = [other for other in others if other.holds(sky).any()]
        if over and not (owner(sky, [tract, *over]) == tract.number).any():
            continue
        if area is not None and not area.holds(sky).any():
            continue
        seen = [part for patch in tract.boxes if (part := overlap(core, patch))]
        tile = _tile(polygons, core, seen)
        if tiles and tile is None:
            continue
        polygon = polygons.get(tile)
        rubin = _useful(of_tract, box, polygon)
        height, width = _size(tiles[tile], tract, box) if tile is not None else (0.0, 0.0)
        inside = {name: depth_in(other, x, y) >= 0 for name, other in polygons.items()}
        own = inside.get(tile, np.zeros(len(x), bool))
        yield {
            "tract": tract.number,
            "cell": number,
            "ra": float(sky[len(x) // 2].ra.deg),
            "dec": float(sky[len(x) // 2].dec.deg),
            "tile": tile or "",
            "others": " ".join(str(other.number) for other in over),
            "rubin": " ".join(map(str, rubin)),
            "euclid": of_tile.get(tile, ""),
            "euclid_height": height,
            "euclid_width": width,
            "euclid_share": round(float(own.mean()), 4),
            "elsewhere_share": round(float(np.mean(~own & np.any(list(inside.values()) or [own], axis=0))), 4),
        }


def _near(coord, tract):
    return bool(coord.separation(tract.center) < NEAR)


def _box(row):
    return row["y0"], row["y1"], row["x0"], row["x1"]


def _on_tract(tract, tiles):
    """The tiles near a tract as polygons (4, 2) [x, y] of its pixels."""
    found = {}
    for tile, (ra, dec) in sorted(tiles.items()):
        corners = SkyCoord(ra, dec, unit="deg")
        if _near(corners[0], tract):
            found[tile] = np.stack(tract.pixels(corners), -1)
    return found


def _tile(polygons, core, seen):
    """The tile in which the centre of a core lies deepest, of those that share sky with a patch in the core."""
    shared = [
        tile for tile, polygon in polygons.items() if any(polygon_area(clipped(polygon, part)) > 0 for part in seen)
    ]
    y0, y1, x0, x1 = core
    middle = (x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2
    # The smaller name where two are as deep.
    return max(reversed(shared), key=lambda tile: round(float(depth_in(polygons[tile], *middle)), 3), default=None)


def _useful(files, box, polygon):
    """Numbers of the Rubin files to read: a band that shares no sky with the tile is left out, as a pair needs it."""
    bands = {}
    for k, row, patch in files:
        part = overlap(box, patch)
        if part:
            bands.setdefault(row["band"], []).append((k, part))
    return [
        k for found in bands.values() for k, _ in found
        if polygon is None or any(polygon_area(clipped(polygon, part)) > 0 for _, part in found)
    ]  # fmt: skip


def _size(footprint, tract, box):
    """Height and width (arcsec, along the axes of a tile) of the region about a box's centre that holds the box."""
    y0, y1, x0, x1 = box
    x = np.array([(x0 + x1 - 1) / 2, x0 - 0.5, x1 - 0.5, x0 - 0.5, x1 - 0.5])
    y = np.array([(y0 + y1 - 1) / 2, y0 - 0.5, y0 - 0.5, y1 - 0.5, y1 - 0.5])
    places = tract.wcs.pixel_to_world(x, y)
    corner = SkyCoord(*footprint, unit="deg")
    axes = []
    for k in (1, 3):  # along the lower edge, and up
        east, north = (value.to_value(u.arcsec) for value in corner[0].spherical_offsets_to(corner[k]))
        axes.append(np.array([east, north]) / np.hypot(east, north))
    east, north = (value.to_value(u.arcsec) for value in places[0].spherical_offsets_to(places[1:]))
    across, up = (2 * np.abs(axis[0] * east + axis[1] * north).max() for axis in axes)
    return float(np.ceil(up * 10) / 10), float(np.ceil(across * 10) / 10)
