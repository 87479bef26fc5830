# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Files that are written whole or not at all."""

import errno
import os
import secrets
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write", "naming"]


@contextmanager
def atomic_write(path):
    """Write a file beside its place and move it there when it is complete.

    Whoever finds ``path`` finds a whole file: the new one, or, if writing failed, the one of before.

    Parameters
    ----------
    path : path-like
        Replaced if it exists. Its folder must exist.

    Yields
    ------
    `~pathlib.Path`
        Where to write: a name in the same folder with the same ending.

    Raises
    ------
    OSError
        If the file cannot be written, for instance because the disk is full; the message names ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        with naming(path):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path):
    """Make every `OSError` within name ``path``: those of a full disk name no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
