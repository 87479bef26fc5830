# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Measurements in files: each is made once, so that an interrupted benchmark goes on where it stopped."""

import json

import numpy as np

__all__ = ["Rows", "arrays"]


class Rows:
    """Measurements as lines of JSON.

    Parameters
    ----------
    path : `~pathlib.Path`
    """

    def __init__(self, path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def fill(self, keys, measure):
        """Rows of all ``keys`` (dicts of the same names); ``measure(**key)`` gives the rest of one that is missing."""

        def key_of(row):
            return tuple(row[name] for name in keys[0])

        done = {key_of(row): row for row in self.rows}
        for key in keys:
            if key_of(key) not in done:
                row = {**key, **measure(**key)}
                done[key_of(row)] = row
                self.rows.append(row)
                with self.path.open("a") as out:
                    out.write(json.dumps(row) + "\n")
        return [done[key_of(key)] for key in keys]


def arrays(path, make):
    """Arrays by name (dict), from a file or, the first time, from ``make()``."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **make())
    return dict(np.load(path))
