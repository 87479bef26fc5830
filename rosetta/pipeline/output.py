# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A directory of results that is replaced as a whole: readers find files of one run, never of two."""

import os
import shutil
import stat
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..files import naming
from .catalogue_file import FILES

try:
    import fcntl
except ImportError:  # Windows: two writers of one directory are not told apart
    fcntl = None

__all__ = ["PRODUCTS", "check_output", "replaced"]

# All that a run can write, and its report, which belongs to no other run.
PRODUCTS = (
    *FILES.values(), "offsets.ecsv", "models.fits", "segmentation.fits", "sources.reg", "overview.png", "report.html",
)  # fmt: skip


def check_output(directory, overwrite, products=PRODUCTS):
    """Refuse a directory that holds something, before any work is done.

    If a run was killed while it replaced the products of the directory, the earlier ones are brought back first. The
    lock of the directory is taken and released again, which shows whether files can be made there.

    Parameters
    ----------
    directory : path-like
    overwrite : bool
        Whether it may hold something.
    products : sequence of str, optional
        As for `replaced`.

    Raises
    ------
    ValueError
        If it is a file, its parent does not exist, it cannot be made or written to, or it is not empty and
        ``overwrite`` is False; or if another process is writing to it.
    """
    if not os.fspath(directory):
        raise ValueError("output is empty: name a directory")
    directory = Path(directory)
    with _usable(directory):
        _check_place(directory)
        target = directory.resolve()
        stem = _stem(target)
        with _locked(_at(stem, "lock"), directory):
            if _at(stem, "old").exists() or _at(stem, "kept").exists():
                _settle(target, stem, products)
    if directory.is_dir() and not overwrite and any(not _is_ours(path.name) for path in directory.iterdir()):
        raise ValueError(
            f"output {str(directory)!r} is not empty: choose another directory, or allow overwriting (overwrite=True, "
            "--overwrite)"
        )


def _check_place(directory):
    """Refuse what is no directory, and where none can be made."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"output {str(directory)!r} is a file: name a directory")
    for above in directory.absolute().parents:
        if above.exists() and not above.is_dir():
            raise ValueError(f"output {str(directory)!r}: {str(above)!r} is a file, choose another directory")
    if not directory.absolute().parent.is_dir():
        raise ValueError(f"output {str(directory)!r}: the folder it would stand in does not exist, create it first")
    home = directory if directory.is_dir() else directory.absolute().parent
    if not os.access(home, os.W_OK):
        raise ValueError(f"output {str(directory)!r}: {str(home)!r} cannot be written to, choose another directory")


@contextmanager
def _usable(directory):
    """Errors of the system within name the directory, not the file that could not be made for it."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"output {str(directory)!r} cannot be made or written to ({error.strerror or error}): choose another "
            "directory"
        ) from error


def _is_ours(name):
    return name.startswith(".rosetta-")  # left by a run that was killed


@contextmanager
def replaced(directory, products=PRODUCTS):
    """A folder to write files into, which become those of ``directory`` when the block ends without an error.

    What holds, also for runs that are killed at any point:

    - The directory never holds products of two runs.
    - Where it holds nothing but products, two renames exchange it for the new one. It is missing between the two, and
      stays missing if the run is killed there; the earlier one then lies beside it as ``.rosetta-<name>.old``.
    - Where it holds other files too, is a mount point, or its parent cannot be written to, the earlier products are
      first kept in ``.rosetta-<name>.kept``, then removed, then the new ones are moved in, those named first in
      ``products`` last. A run that is killed in between leaves some products of one run.
    - The next call of `check_output` or `replaced` for the directory brings back all earlier products, if the run was
      killed before the new ones were complete in their place, and removes what it left.

    Parameters
    ----------
    directory : path-like
        Created if it does not exist.
    products : sequence of str, optional
        Names of all files that a run can write.

    Yields
    ------
    `~pathlib.Path`

    Raises
    ------
    ValueError
        If another process is writing to the directory, or it cannot be made.
    OSError
        If a file cannot be written, for instance because the disk is full.
    """
    target = Path(directory).resolve()  # a link stays: what it points at is replaced
    stem = _stem(target)
    new, old, kept, part, gone, lock = (_at(stem, name) for name in ("new", "old", "kept", "part", "gone", "lock"))
    with _locked(lock, directory):
        with _usable(directory):
            _settle(target, stem, products)
            new.mkdir()
        try:
            yield new
            for path in filter(Path.is_file, new.iterdir()):
                with naming(target / path.name), open(path, "rb+") as file:
                    os.fsync(file.fileno())
            held = {path.name for path in target.iterdir() if not _is_ours(path.name)} if target.exists() else set()
            if not target.exists():
                os.replace(new, target)
            elif stem.parent != target and held <= set(products):
                os.chmod(new, stat.S_IMODE(target.stat().st_mode))
                os.replace(target, old)
                os.replace(new, target)  # from here on the new products hold
                os.replace(old, gone)
            else:
                part.mkdir()
                for name in held & set(products):
                    _link(target / name, part / name)
                os.replace(part, kept)
                _refill(target, new, products, os.replace)
                os.replace(kept, gone)  # from here on the new products hold
        finally:
            _settle(target, stem, products)


def _stem(target):
    """Where the folders of a run lie that replaces ``target``, without their endings: beside it if possible."""
    beside = os.access(target.parent, os.W_OK) and not target.is_mount()
    return (target.parent if beside else target) / f".rosetta-{target.name}"


def _at(stem, part):
    return stem.with_name(f"{stem.name}.{part}")


def _settle(target, stem, products):
    """Bring back the earlier products if a run was stopped while it replaced them, and remove what it left."""
    old, kept = _at(stem, "old"), _at(stem, "kept")
    shutil.rmtree(_at(stem, "gone"), ignore_errors=True)
    if old.exists():
        os.replace(old, _at(stem, "gone") if target.exists() else target)
    if kept.exists():
        _refill(target, kept, products, _link)
        os.replace(kept, _at(stem, "gone"))
    for leftover in ("new", "part", "gone"):
        shutil.rmtree(_at(stem, leftover), ignore_errors=True)


def _refill(target, source, products, put):
    """Products of ``source`` in place of those of ``target``; never some of both."""
    for name in products:
        (target / name).unlink(missing_ok=True)
    for name in reversed(products):
        if (source / name).exists():
            put(source / name, target / name)


def _link(source, target):
    """The same file under a second name; a copy where the disk knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        with naming(target):
            shutil.copy2(source, target)


@contextmanager
def _locked(path, directory):
    """Hold the lock on a directory; the lock of a killed process is released by the system."""
    if fcntl is None:
        yield
        return
    with ExitStack() as opened:
        with _usable(directory):
            file = opened.enter_context(open(path, "a"))
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
