# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What a survey has measured, on disk. Files are the only state: a run can be stopped at any time, and go on.

``cells/tract=T/cell=NNNNN/`` holds the tables of a cell, and ``record.json``, which is written last: a cell is done if
and only if its record is there. ``try-*.json`` beside it notes each try from its beginning, so that one that was killed
is known too. ``failed/tract=T/cell=NNNNN.json`` says why a cell was given up.
"""

import errno
import json
import os
import secrets
import shutil
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path

from ..files import atomic_write, has_ended, machine
from ..io.catalogue import write_catalogue

__all__ = ["TRIES", "Store"]

TRIES = 3


class Store:
    """The results of a survey.

    Parameters
    ----------
    folder : path-like
        That of the survey.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    # ------------------------------------------------------------------ cells
    def place(self, index):
        """The folder of a cell, given as (tract, number)."""
        return self.folder / "cells" / f"tract={index[0]}" / f"cell={index[1]:05d}"

    def record(self, index):
        """What is known of a finished cell (dict), or None."""
        return _read(self.place(index) / "record.json")

    def is_done(self, index):
        """Whether a cell is finished."""
        return (self.place(index) / "record.json").is_file()

    def write_table(self, index, name, table):
        """Write "objects", "offsets", "windows" or "maps" of a cell, as `rosetta.io.write_catalogue` does."""
        place = self.place(index)
        place.mkdir(parents=True, exist_ok=True)
        write_catalogue(table, place / f"{name}.parquet", overwrite=True)

    def table(self, index, name, columns=None):
        """One of the tables of a finished cell, or columns of it (`pyarrow.Table`)."""
        from pyarrow import parquet

        return parquet.read_table(self.place(index) / f"{name}.parquet", columns=columns, partitioning=None)

    def schema(self, index, name):
        """The columns of one of the tables of a finished cell (`pyarrow.Schema`)."""
        from pyarrow import parquet

        return parquet.read_schema(self.place(index) / f"{name}.parquet")

    def finish(self, index, record):
        """Write the record of a cell, after its tables."""
        place = self.place(index)
        place.mkdir(parents=True, exist_ok=True)
        _write(place / "record.json", record)
        self._failure(index).unlink(missing_ok=True)
        for path in place.glob("try-*.json"):
            path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ tries
    @contextmanager
    def trying(self, index):
        """Note the beginning of a try and, if it fails, its error, which is passed on.

        An interruption is no try, and neither is one that ended because the disk is full.
        """
        place = self.place(index)
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"try-{secrets.token_hex(6)}.json"
        note = {"machine": machine(), "process": os.getpid(), "started": time.time()}
        _write(path, note)
        try:
            yield
        except Exception as error:
            if _no_room(error):
                path.unlink(missing_ok=True)
                raise
            text = "".join(traceback.format_exception(error))
            _write(path, {**note, "ended": time.time(), "message": _message(error), "traceback": text})
            raise
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def tries(self, index, limit):
        """Notes of the tries of a cell that came to nothing (list of dict), in order.

        One that did not end was killed if its process has ended or, on another machine, if it began more than ``limit``
        seconds ago. Otherwise it may be at work, and is left out.
        """
        notes = [note for path in self.place(index).glob("try-*.json") if (note := _read(path))]
        return sorted((note for note in notes if _came_to_nothing(note, limit)), key=lambda note: note["started"])

    def n_running(self, indices, limit):
        """Number of cells with a try that may be at work."""
        notes = ([_read(path) for path in self.place(index).glob("try-*.json")] for index in indices)
        return sum(any(note and not _came_to_nothing(note, limit) for note in found) for found in notes)

    # ------------------------------------------------------------------ failures
    def _failure(self, index):
        return self.folder / "failed" / f"tract={index[0]}" / f"cell={index[1]:05d}.json"

    def fail(self, index, message, tries, text=""):
        """Give up a cell."""
        path = self._failure(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, {"tract": index[0], "cell": index[1], "message": message, "tries": tries, "traceback": text})

    def failure(self, index):
        """Why a cell was given up (dict), or None; a cell that was finished all the same has not failed."""
        return None if self.is_done(index) else _read(self._failure(index))

    def forget(self, index):
        """Forget the failure of a cell and its tries."""
        self._failure(index).unlink(missing_ok=True)
        if not self.is_done(index):
            shutil.rmtree(self.place(index), ignore_errors=True)


def _came_to_nothing(note, limit):
    if "ended" in note:
        return True
    if note["machine"] == machine():
        return has_ended(note["process"])
    return time.time() - note["started"] > limit


def _no_room(error):
    """Whether an error says that the disk, or one's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _message(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _write(path, content):
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def _read(path):
    with suppress(FileNotFoundError):
        return json.loads(path.read_text())
    return None
