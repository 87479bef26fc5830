# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How objects show themselves in a notebook: small HTML tables in which all text is escaped."""

from html import escape

__all__ = ["html_table"]


def html_table(title, header, rows, note=""):
    """A table with a title.

    Parameters
    ----------
    title : str
        Empty: none is written.
    header : sequence of str
        Names of the columns; empty: none are written.
    rows : iterable of sequence
        Cells, written with `str`.
    note : str, optional
        A line below.

    Returns
    -------
    str
        HTML.
    """

    def line(tag, cells):
        return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"

    head = f"<thead>{line('th', header)}</thead>" if header else ""
    body = "".join(line("td", row) for row in rows)
    below = f"<div>{escape(note)}</div>" if note else ""
    above = f"<strong>{escape(title)}</strong>" if title else ""
    return f"<div>{above}<table>{head}<tbody>{body}</tbody></table>{below}</div>"
