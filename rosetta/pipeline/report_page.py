# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The HTML page of a report: its frame, its style, and a table that can be sorted."""

import base64
import json
from html import escape
from string import Template

__all__ = ["page", "picture", "section", "sortable"]

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
$body
<script type="application/json" id="rows">$rows</script>
<script>$script</script>
</body>
</html>
""")

_STYLE = """
body { font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; color: #222; max-width: 1250px; margin: 1.5em auto;
  padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ccc; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 0.6em 0; font-size: 0.87em; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15em 0.7em; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
.wide th { background: #f3f3f3; }
.wide th:last-child, .wide td:last-child { text-align: left; }
.wide th button { all: unset; cursor: pointer; font-weight: bold; }
.wide th button:focus-visible { outline: 2px solid #0072B2; }
.ok { color: #00704f; } .coarse { color: #9a6400; } .abstain { color: #a83c00; }
pre { font-size: 0.8em; overflow-x: auto; background: #f6f6f6; padding: 0.7em; }
"""

# Text reaches the page as text nodes only.
_SCRIPT = """
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("rows").textContent);
  const table = document.getElementById("catalogue"), shown = document.getElementById("shown");
  if (!table) return;
  const size = 100;
  let rows = data.rows.slice(), first = 0, by = -1, down = false;
  const cell = (tag, text) => { const e = document.createElement(tag); e.textContent = text; return e; };
  const flags = v => data.flags.filter((_, bit) => v & (1 << bit)).join(" ") || "none";
  const key = v => Array.isArray(v) ? v[0] : v;
  const measured = ([value, error, digits]) => value === null ? ""
    : error === null ? value + " \\u00b1 ?" : value.toFixed(digits) + " \\u00b1 " + error.toFixed(digits);
  const text = (v, k) => k === data.flag ? flags(v) : v === null ? "" : Array.isArray(v) ? measured(v) : String(v);
  const order = (x, y) => typeof x === "number" && typeof y === "number" ? x - y
    : String(x).localeCompare(String(y), undefined, {numeric: true});
  const sort = k => {
    down = by === k ? !down : true;
    by = k;
    rows.sort((a, b) => {
      const x = key(a[k]), y = key(b[k]);
      if (x === null || y === null) return (x === null) - (y === null);
      return down ? order(y, x) : order(x, y);
    });
    first = 0;
    draw();
  };
  const draw = () => {
    table.replaceChildren();
    const head = table.createTHead().insertRow();
    data.columns.forEach((name, k) => {
      const th = cell("th", ""), button = cell("button", name + (by === k ? (down ? " \\u25be" : " \\u25b4") : ""));
      button.onclick = () => sort(k);
      th.scope = "col";
      th.ariaSort = by === k ? (down ? "descending" : "ascending") : "none";
      th.append(button);
      head.append(th);
    });
    const body = table.createTBody();
    for (const row of rows.slice(first, first + size)) {
      const line = body.insertRow();
      row.forEach((v, k) => line.append(cell("td", text(v, k))));
    }
    const last = Math.min(first + size, rows.length);
    shown.textContent = last ? `rows ${first + 1} to ${last} of ${rows.length}` : "no rows";
  };
  const move = step => {
    const next = first + step * size;
    if (next >= 0 && next < rows.length) { first = next; draw(); }
  };
  document.getElementById("previous").onclick = () => move(-1);
  document.getElementById("next").onclick = () => move(1);
  draw();
})();
"""


def page(title, sections, rows, script=""):
    """The whole page.

    Parameters
    ----------
    title : str
    sections : iterable of str
        HTML.
    rows : dict
        The table that can be sorted: ``columns`` (names), ``rows`` (lists of numbers, texts, None, or
        lists of number, error and decimals), ``flags`` (names of the bits), ``flag`` (which column holds them).
    script : str, optional
        JavaScript of the page's own, which finds ``rows`` in the element of that name.

    Returns
    -------
    str
    """
    data = json.dumps(rows, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":  # nothing in it can end the element that it stands in
        data = data.replace(character, f"\\u{ord(character):04x}")
    return _PAGE.substitute(
        title=escape(title), style=_STYLE, body="\n".join(sections), rows=data, script=_SCRIPT + script
    )


def section(title, *parts):
    """A heading, and HTML below it."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def sortable():
    """Where the table of the page stands."""
    return (
        "<noscript><p>The table needs JavaScript.</p></noscript>"
        '<p><button id="previous">previous</button> <button id="next">next</button> <span id="shown"></span></p>'
        '<div class="wide"><table id="catalogue"></table></div>'
    )


def picture(png, text):
    """A picture that is part of the page.

    Parameters
    ----------
    png : bytes
    text : str
        What it shows, for those who do not see it.
    """
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'
