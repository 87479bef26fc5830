# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A directory of results that is replaced as a whole: readers find the old files or the new ones, never a mixture."""

import os
import shutil
import stat
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two writers of one directory are not told apart
    fcntl = None

__all__ = ["check_output", "replaced"]


def check_output(directory, overwrite):
    """Refuse a directory that holds something, before any work is done.

    Parameters
    ----------
    directory : path-like
    overwrite : bool
        Whether it may hold something.

    Raises
    ------
    ValueError
        If it is a file, its parent does not exist, it cannot be written to, or it is not empty and ``overwrite`` is
        False.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"output {str(directory)!r} is a file: name a directory")
    if not directory.absolute().parent.is_dir():
        raise ValueError(f"output {str(directory)!r}: the folder it would stand in does not exist, create it first")
    home = directory if directory.is_dir() else directory.absolute().parent
    if not os.access(home, os.W_OK):
        raise ValueError(f"output {str(directory)!r}: {str(home)!r} cannot be written to, choose another directory")
    if directory.is_dir() and not overwrite and any(not _is_ours(path.name) for path in directory.iterdir()):
        raise ValueError(f"output {str(directory)!r} is not empty: choose another directory, or allow overwriting")


def _is_ours(name):
    return name.startswith(".rosetta-")  # left by a run that was killed


@contextmanager
def replaced(directory, products):
    """A folder to write files into, which become those of ``directory`` when the block ends without an error.

    Where the directory holds nothing but products of an earlier run, the two directories change places: it is missing
    for the moment between two renames, and a run that is killed in this moment leaves the old one beside it as
    ``.rosetta-<name>.old``, from where the next one fetches it. Where it holds other files too, or is a mount point, or
    its parent cannot be written to, the old products are removed first and the new ones moved in one by one, those
    named first in ``products`` last: a killed run leaves some products of one run, never of two. Leftovers of killed
    runs are cleaned up.

    Parameters
    ----------
    directory : path-like
        Created if it does not exist.
    products : sequence of str
        Names of all files that a run can write.

    Yields
    ------
    `~pathlib.Path`

    Raises
    ------
    ValueError
        If another process is writing to the directory.
    """
    target = Path(directory).resolve()  # a link stays: what it points at is replaced
    beside = os.access(target.parent, os.W_OK) and not target.is_mount()
    stem = (target.parent if beside else target) / f".rosetta-{target.name}"
    new, old, lock = (stem.with_name(f"{stem.name}.{part}") for part in ("new", "old", "lock"))
    with _locked(lock, directory):
        if old.exists() and not target.exists():
            os.replace(old, target)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir()
        try:
            yield new
            held = {path.name for path in target.iterdir()} - {lock.name, new.name} if target.exists() else set()
            if not target.exists():
                os.replace(new, target)
            elif beside and held <= set(products):
                os.chmod(new, stat.S_IMODE(target.stat().st_mode))
                os.replace(target, old)
                os.replace(new, target)
            else:
                for name in products:
                    (target / name).unlink(missing_ok=True)
                for name in reversed(products):
                    if (new / name).exists():
                        os.replace(new / name, target / name)
        finally:
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _locked(path, directory):
    """Hold the lock on a directory; the lock of a killed process is released by the system."""
    if fcntl is None:
        yield
        return
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                raise BlockingIOError  # its owner has just finished and removed it
        except BlockingIOError as error:
            raise ValueError(
                f"output {str(directory)!r}: another process is writing to it; wait for it, or choose another directory"
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
