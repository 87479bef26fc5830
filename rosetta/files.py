# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Files that are written whole or not at all."""

import errno
import hashlib
import os
import platform
import re
import secrets
import time
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["atomic_write", "has_ended", "machine", "naming"]

OLD = 24 * 3600  # seconds without a change after which a temporary file belongs to nobody


@contextmanager
def atomic_write(path):
    """Write a file beside its place and move it there when it is complete.

    Whoever finds ``path`` finds a whole file: the new one, or, if writing failed, the one of before. A process that is
    killed leaves its temporary file, a hidden one whose name ends in that of ``path``; the next write of ``path``
    removes it if its process is known to have ended, or if it has not changed for a day.

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
    temporary = path.with_name(f".rosetta-{machine()}-{os.getpid()}-{secrets.token_hex(4)}.{path.name}")
    try:
        with naming(path):
            _remove_leftovers(path)
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


def machine():
    """Eight hex digits of where a process number means something: the host and, in a container, its name space."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _remove_leftovers(path):
    """Remove the temporary files of ``path`` that killed processes left."""
    pattern = re.compile(r"\.rosetta-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\." + re.escape(path.name))
    for entry in os.scandir(path.parent):
        match = pattern.fullmatch(entry.name)
        if match is None:
            continue
        with suppress(OSError):  # it is gone, or another user's
            ended = match[1] == machine() and has_ended(int(match[2]))
            if ended or time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD:
                os.unlink(entry.path)


def has_ended(process):
    """Whether a process of this machine, given by its number, is known to have ended."""
    if os.name != "posix":  # elsewhere signal 0 is not a question
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
