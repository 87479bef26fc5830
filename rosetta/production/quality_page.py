# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""One HTML page on the quality of a survey: a map of its cells, coloured by any of their metrics."""

from html import escape
from pathlib import Path

import numpy as np
from astropy.coordinates import SkyCoord

from ..display import html_table
from ..files import atomic_write
from ..pipeline.report_page import page, section, sortable
from .borders import resolve
from .metrics import limit_of, outside
from .star_colours import zero_point_metrics
from .store import Store
from .survey import read, read_limits

__all__ = ["cells_of", "write_page"]

MAX_LISTED = 100  # cells in the list of those that are marked
STATES = ("not done", "failed", "empty", "done")

_MAP = """
<p><label>Metric <select id="metric"></select></label> <span id="scale"></span></p>
<canvas id="sky" style="max-width: 100%"></canvas>
<p id="pointed">Point at a cell.</p>
<p>Red rings: outside the limits. Black, crossed: given up. Grey: empty, or the metric cannot be told. White: not done.
North is up, east is left.</p>
"""

_SCRIPT = """
(() => {
  const data = JSON.parse(document.getElementById("rows").textContent);
  const canvas = document.getElementById("sky"), context = canvas.getContext("2d");
  const choice = document.getElementById("metric"), pointed = document.getElementById("pointed");
  const { corners, states, first, limits } = data.map;
  const ramp = [[0, 34, 78], [61, 83, 108], [124, 123, 120], [187, 168, 107], [254, 232, 56]];
  const colour = t => {
    const at = Math.min(0.9999, Math.max(0, t)) * (ramp.length - 1), k = Math.floor(at);
    return `rgb(${ramp[k].map((c, i) => Math.round(c + (at - k) * (ramp[k + 1][i] - c)))})`;
  };
  const bits = v => { let n = 0; for (; v; v &= v - 1) n++; return n; };
  const xs = corners.flatMap(c => [c[0], c[2], c[4], c[6]]), ys = corners.flatMap(c => [c[1], c[3], c[5], c[7]]);
  const low = (a, b) => Math.min(a, b), high = (a, b) => Math.max(a, b);
  const x0 = xs.reduce(low), x1 = xs.reduce(high), y0 = ys.reduce(low), y1 = ys.reduce(high), rim = 12;
  const scale = Math.min(1176 / (x1 - x0), 676 / (y1 - y0));
  canvas.width = Math.round((x1 - x0) * scale) + 2 * rim;
  canvas.height = Math.round((y1 - y0) * scale) + 2 * rim;
  const X = x => rim + (x1 - x) * scale, Y = y => rim + (y1 - y) * scale;
  const path = c => {
    context.beginPath();
    for (let k = 0; k < 8; k += 2) context.lineTo(X(c[k]), Y(c[k + 1]));
    context.closePath();
  };
  const marks = row => bits(row[data.flag]);
  const value = (row, k) => k === data.flag ? marks(row) : row[k];
  const marked = (row, k) => {
    if (k === data.flag) return marks(row) > 0;
    const limit = limits[k];
    return limit && row[k] !== null && (row[k] < limit[0] || row[k] > limit[1]);
  };
  const draw = () => {
    const k = Number(choice.value);
    const known = data.rows.map(row => value(row, k)).filter((v, i) => v !== null && states[i] === 3);
    known.sort((a, b) => a - b);
    const at = q => known[Math.round(q * (known.length - 1))];
    let from = at(0.02), to = at(0.98);
    if (!(to > from)) { from = known[0]; to = known[known.length - 1]; }
    const limit = limits[k];
    document.getElementById("scale").textContent = known.length
      ? `dark ${from} to yellow ${to}` + (limit ? `; limits ${limit[0]} to ${limit[1]}` : "") : "no cell has it";
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    data.rows.forEach((row, i) => {
      const v = value(row, k);
      path(corners[i]);
      context.fillStyle = states[i] === 0 ? "white" : states[i] === 1 ? "black"
        : states[i] === 2 || v === null ? "#ddd" : colour((v - from) / (to - from || 1));
      context.fill();
      context.lineWidth = 0.5;
      context.strokeStyle = "#999";
      if (states[i] === 1) {
        const c = corners[i];
        for (const k of [0, 2]) {
          context.moveTo(X(c[k]), Y(c[k + 1]));
          context.lineTo(X(c[k + 4]), Y(c[k + 5]));
        }
      }
      context.stroke();
    });
    data.rows.forEach((row, i) => {
      if (states[i] !== 3 || !marked(row, k)) return;
      const c = corners[i], size = Math.abs(c[4] - c[0]) * scale;
      context.beginPath();
      context.arc(X((c[0] + c[4]) / 2), Y((c[1] + c[5]) / 2), Math.max(5, 0.35 * size), 0, 7);
      context.lineWidth = 3;
      context.strokeStyle = "#d00000";
      context.stroke();
    });
  };
  canvas.onmousemove = event => {
    const box = canvas.getBoundingClientRect(), shrunk = canvas.width / box.width;
    const i = corners.findIndex(c => {
      path(c);
      return context.isPointInPath((event.clientX - box.left) * shrunk, (event.clientY - box.top) * shrunk);
    });
    if (i < 0) { pointed.textContent = "Point at a cell."; return; }
    const row = data.rows[i], k = Number(choice.value), v = value(row, k);
    const names = data.flags.filter((_, bit) => row[data.flag] & (1 << bit)).join(", ");
    pointed.textContent = `tract ${row[0]} cell ${row[1]}, ${data.states[states[i]]}; `
      + `${data.columns[k]} ${v === null ? "unknown" : v}${names ? "; outside: " + names : ""}`;
  };
  for (const k of [data.flag, ...data.columns.keys()].filter((k, n) => n === 0 || (k >= first && k !== data.flag))) {
    const option = document.createElement("option");
    option.value = k;
    option.textContent = k === data.flag ? "number of limits that are broken" : data.columns[k];
    choice.append(option);
  }
  choice.onchange = draw;
  draw();
})();
"""


def cells_of(folder):
    """State and metrics of every cell.

    Parameters
    ----------
    folder : path-like
        Of a survey.

    Returns
    -------
    survey : Survey
    states : list of str
        "done", "empty", "failed" or "not done", in the order of the plan.
    metrics : list of dict
        Those of the record; ``duplicates`` and ``orphans``: sources on the cell's border that two cells took for
        theirs, or none; and those of `zero_point_metrics`. Empty where a cell is not done.
    """
    survey, store = read(folder), Store(folder)
    records = {index: store.record(index) for index in survey.indices}
    done = [index for index, record in records.items() if record and record["state"] == "done"]
    borders = resolve(survey, store, done)
    zero_points = zero_point_metrics(store, {index: records[index] for index in done})
    states, found = [], []
    for index, record in records.items():
        if record is None:
            states.append("failed" if store.failure(index) else "not done")
        else:
            states.append(record["state"])
        found.append({})
        if states[-1] == "done":
            found[-1] = record["metrics"] | zero_points.get(index, {}) | {
                "duplicates": borders.duplicates[index], "orphans": borders.orphans[index],
            }  # fmt: skip
    return survey, states, found


def write_page(folder, path=None):
    """Write one HTML page on the quality of a survey.

    It holds all that it shows, loads nothing, and can be sent as one file. Cells outside the limits of
    ``config.toml`` are marked on the map and listed.

    Parameters
    ----------
    folder : path-like
        Of a survey.
    path : path-like, optional
        The page; replaced if it exists. Default: ``quality.html`` in the folder.

    Returns
    -------
    path : `~pathlib.Path`
    marked : list of (tuple, dict)
        (tract, cell) of the cells outside the limits, and their metrics that are.

    Raises
    ------
    ValueError
        If there is no plan, or a limit is no pair of numbers.
    """
    folder = Path(folder)
    path = folder / "quality.html" if path is None else Path(path)
    survey, states, metrics = cells_of(folder)
    limits = read_limits(folder)
    broken = [outside(found, limits) for found in metrics]
    marked = [
        (index, {name: found[name] for name in names})
        for index, found, names in zip(survey.indices, metrics, broken, strict=True) if names
    ]  # fmt: skip
    counts = ", ".join(f"{states.count(state)} {state}" for state in reversed(STATES))
    sections = [
        f"<p>{len(states)} cells: {escape(counts)}. Outside the limits: {len(marked)}.</p>",
        section("Map", _MAP),
        section("Outside the limits", *_listed(marked, limits)),
        section("Cells", "<p>Click on a column's name to sort.</p>", sortable()),
        section("Limits", html_table("", ("metric", "lowest", "highest"), [(k, *v) for k, v in limits.items()])),
        section("Survey", html_table("", (), [("plan", survey.hash), *survey.config.settings.items()])),
    ]
    text = page(f"Quality of {folder.resolve().name}", sections, _rows(survey, states, metrics, limits), _SCRIPT)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path, marked


def _listed(marked, limits):
    if not marked:
        yield "<p>No cell is.</p>"
        return
    if len(marked) > MAX_LISTED:
        yield f"<p>The first {MAX_LISTED} of {len(marked)}; the table below has all.</p>"
    rows = [
        (f"tract {index[0]} cell {index[1]}", name, f"{value:g}", "{:g} to {:g}".format(*limit_of(name, limits)))
        for index, found in marked[:MAX_LISTED] for name, value in found.items()
    ]  # fmt: skip
    yield html_table("", ("cell", "metric", "value", "limits"), rows)


def _rows(survey, states, metrics, limits):
    """What the scripts of the page draw."""
    names = dict.fromkeys(name for found in metrics for name in found)
    # A flag that no row of the survey has is no metric.
    names = [name for name in names if not name.startswith("share_") or any(found.get(name) for found in metrics)]
    keys = list(limits)
    rows = []
    for row, found in zip(survey.rows, metrics, strict=True):
        marks = sum(1 << bit for bit, key in enumerate(keys) if outside(found, {key: limits[key]}))
        values = [_number(found.get(name)) for name in names]
        rows.append([row["tract"], row["cell"], round(row["ra"], 5), round(row["dec"], 5), *values, marks])
    columns = ["tract", "cell", "RA (deg)", "Dec (deg)", *names, "outside"]
    return {
        "columns": columns, "rows": rows, "flags": keys, "flag": len(columns) - 1, "states": STATES,
        "map": {
            "corners": _corners(survey), "states": [STATES.index(state) for state in states], "first": 4,
            "limits": [limit_of(name, limits) for name in columns],
        },
    }  # fmt: skip


def _number(value):
    return None if value is None else float(f"{value:.4g}")


def _corners(survey):
    """Corners of each cell, (x, y) four times: degrees to the east and north, in the sinusoidal projection."""
    tracts = survey.tracts()
    x, y = [], []
    for cell in survey.cells(survey.indices):
        y0, y1, x0, x1 = cell.core
        sky = tracts[cell.tract].wcs.pixel_to_world(
            np.array([x0, x1, x1, x0]) - 0.5, np.array([y0, y0, y1, y1]) - 0.5
        )
        x.append(sky.icrs.ra.deg)
        y.append(sky.icrs.dec.deg)
    x, y = np.array(x), np.array(y)
    middle = SkyCoord(x.ravel(), y.ravel(), unit="deg").cartesian.xyz.value.mean(1)
    middle = np.degrees(np.arctan2(middle[1], middle[0]))
    x = ((x - middle + 180) % 360 - 180) * np.cos(np.radians(y))
    return np.round(np.stack([x, y], -1).reshape(-1, 8), 6).tolist()
