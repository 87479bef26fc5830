# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Tables of the benchmarks, printed and, where a folder is given, written for the documentation."""

import argparse
import csv
from pathlib import Path

__all__ = ["Tables", "add_option", "parser_of_fields"]

FIRST, OTHERS = 34, 15  # characters of the printed columns, at least


class Tables:
    """Prints tables and writes them as CSV.

    Parameters
    ----------
    folder : path-like or None
        Where the CSV files go; None: nowhere.
    """

    def __init__(self, folder=None):
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def show(self, name, title, header, lines):
        """Print a table and write it to ``name``.csv: ``header`` and every line begin with what the row is called."""
        rows = [[str(cell) for cell in line] for line in (header, *lines)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        widths = [max(w, OTHERS if k else FIRST) for k, w in enumerate(widths)]
        print(f"\n{title}")
        for first, *others in rows:
            print(" ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]))
        if self.folder is not None:
            with open(self.folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)


def add_option(parser):
    """Add ``--tables FOLDER`` to a command."""
    parser.add_argument("--tables", type=Path, metavar="FOLDER", help="write the tables there as CSV")


def parser_of_fields(doc, fields, first_seed):
    """The options of a command that measures simulated fields and keeps them in a folder."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fields", type=int, default=fields)
    parser.add_argument("--first-seed", type=int, default=first_seed)
    add_option(parser)
    return parser
