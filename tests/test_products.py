# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Directories of results: replaced together or not at all, whatever is killed."""

import contextlib
import errno
import os
import subprocess
import sys

import pytest

from rosetta.pipeline import products
from rosetta.pipeline.output import check_output, replaced

NAMES = ("last", "middle", "first")
# Replaces "old" files by "new" ones, and dies at the given call of a function that changes the disk.
KILLED = """
import os, sys
from pathlib import Path
from rosetta.pipeline.output import check_output, replaced
target, deadly = sys.argv[1], int(sys.argv[2])
calls = 0
def counted(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == deadly:
            os._exit(9)
        return function(*args, **kwargs)
    return call
def arm():
    for name in ("replace", "chmod", "rmdir", "unlink", "link", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    Path.unlink = counted(Path.unlink)
if len(sys.argv) > 3:
    arm()
    check_output(target, True, ("last", "middle", "first"))
    os._exit(0)
with replaced(target, ("last", "middle", "first")) as folder:
    for name in ("last", "middle", "first"):
        (folder / name).write_text("new")
    arm()
"""


def fill(directory, text, names=NAMES):
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text(text)


def write(directory, text):
    with replaced(directory, NAMES) as folder:
        fill(folder, text)


def contents(directory):
    return {path.name: path.read_text() for path in directory.iterdir() if not path.name.startswith(".")}


def hidden(folder):
    return [path.name for path in folder.rglob(".rosetta-*")]


@pytest.mark.parametrize("others", [(), ("mine.txt",)])
def test_replaced(tmp_path, others):
    out = tmp_path / "out"
    for text in ("old", "new"):
        write(out, text)
        fill(out, "mine", others)
    assert contents(out) == {**dict.fromkeys(NAMES, "new"), **dict.fromkeys(others, "mine")}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not hidden(tmp_path)


def test_products_that_are_not_written_again_go(tmp_path):
    """An earlier run's offsets do not stand beside the catalogue of one without."""
    out = tmp_path / "out"
    for others in ((), ("mine.txt",)):
        write(out, "old")
        fill(out, "mine", others)
        with replaced(out, NAMES) as folder:
            fill(folder, "new", NAMES[:2])
        assert set(contents(out)) == {*NAMES[:2], *others}


@pytest.mark.parametrize("others", [(), ("mine.txt",)])
def test_an_error_changes_nothing(tmp_path, others):
    out = tmp_path / "out"
    fill(out, "old", (*NAMES, *others))
    with pytest.raises(ZeroDivisionError), replaced(out, NAMES) as folder:
        fill(folder, "new")
        _ = 1 / 0
    assert set(contents(out).values()) == {"old"}
    assert not hidden(tmp_path)


@pytest.mark.parametrize("others", [(), ("mine.txt",)])
def test_a_killed_run_leaves_no_mixture(tmp_path, others):
    seen = set()
    for deadly in range(1, 30):
        out = tmp_path / f"out{deadly}"
        fill(out, "old")
        fill(out, "mine", others)
        done = subprocess.run([sys.executable, "-c", KILLED, str(out), str(deadly)], check=False)
        found = {name: text for name, text in contents(out).items() if name in NAMES} if out.exists() else {}
        assert len(set(found.values())) <= 1, found  # of one run
        if not others:  # swapped: all or, for a moment, none
            assert len(found) in (0, 3)
        if "last" in found:
            assert len(found) == 3 or set(found.values()) == {"old"}  # new products are whole once the last is there
        seen.add((len(found), *found.values()))
        if done.returncode == 0:
            break
        if deadly % 2:  # the next run finds all of one run, even if it fails
            with pytest.raises(ZeroDivisionError), replaced(out, NAMES):
                _ = 1 / 0
        else:
            check_output(out, overwrite=True, products=NAMES)
        again = contents(out)
        assert again in ({**dict.fromkeys(NAMES, text), **dict.fromkeys(others, "mine")} for text in ("old", "new"))
        assert found in ({}, {name: again[name] for name in found}) or again["last"] == "old"
        write(out, "newest")
        assert contents(out) == {**dict.fromkeys(NAMES, "newest"), **dict.fromkeys(others, "mine")}
        assert not [name for name in hidden(tmp_path) if f"out{deadly}." in name]
    assert done.returncode == 0
    assert len(seen) > 2


@pytest.mark.parametrize(("others", "deadly"), [((), 3), (("mine.txt",), 13)])
def test_a_recovery_that_is_killed_leaves_no_mixture(tmp_path, others, deadly):
    """The first run dies where neither the old nor the new products are in place, and so does every second one."""
    for second in range(1, 30):
        out = tmp_path / f"out{second}"
        fill(out, "old")
        fill(out, "mine", others)
        for arguments in ([str(deadly)], [str(second), "recover"]):
            done = subprocess.run([sys.executable, "-c", KILLED, str(out), *arguments], check=False)
            found = {name: text for name, text in contents(out).items() if name in NAMES} if out.exists() else {}
            assert len(set(found.values())) <= 1, found
            assert arguments[1:] or (done.returncode == 9 and len(found) < 3)
        check_output(out, overwrite=True, products=NAMES)
        assert contents(out) == {**dict.fromkeys(NAMES, "old"), **dict.fromkeys(others, "mine")}
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert second > 2


def test_leftovers_of_a_killed_run_are_results(tmp_path):
    """They are not overwritten without being asked: they are back before the check."""
    out = tmp_path / "out"
    fill(out, "old")
    out.rename(tmp_path / ".rosetta-out.old")
    with pytest.raises(ValueError, match="is not empty: choose another directory"):
        check_output(out, overwrite=False, products=NAMES)
    assert contents(out) == dict.fromkeys(NAMES, "old")


@pytest.mark.parametrize("others", [(), ("mine.txt",)])
def test_a_disk_that_is_full_while_products_are_exchanged(tmp_path, others, monkeypatch):
    out = tmp_path / "out"
    fill(out, "old")
    fill(out, "mine", others)
    before = contents(out)
    for allowed in range(8):
        calls = iter(range(100))

        def full(source, target, replace=os.replace, calls=calls, allowed=allowed):
            if next(calls) == allowed:
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(source, target)

        with monkeypatch.context() as patch, contextlib.suppress(OSError):
            patch.setattr(os, "replace", full)
            write(out, "new")
        check_output(out, overwrite=True, products=NAMES)
        assert set(contents(out).values()) - {"mine"} in ({"old"}, {"new"})
        assert len(contents(out)) == len(before)
        fill(out, "old")
    assert not hidden(tmp_path)


def test_a_full_disk_is_an_error_that_names_the_product(tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    with pytest.raises(OSError, match="No space left on device: .*out/catalogue.ecsv"), replaced(out) as folder:
        products._write(out, folder, "catalogue.ecsv", full)
    assert not list(tmp_path.iterdir())


def test_two_writers(tmp_path):
    pytest.importorskip("fcntl")
    out = tmp_path / "out"
    with replaced(out, NAMES) as folder:
        fill(folder, "one")
        with pytest.raises(ValueError, match="out': another process is writing to it; wait for it"):
            write(out, "two")
        write(tmp_path / "other", "two")
    assert contents(out) == dict.fromkeys(NAMES, "one")


def test_a_killed_writer_holds_no_lock(tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, time\nfrom rosetta.pipeline.output import replaced\n"
        "with replaced(sys.argv[1], ()) as folder:\n    (folder / 'half').write_text('x')\n"
        "    print('in', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"in\n"
        process.kill()
    assert hidden(tmp_path)
    check_output(out, overwrite=False)
    write(out, "new")
    assert contents(out) == dict.fromkeys(NAMES, "new")
    assert not hidden(tmp_path)


def test_a_link_and_the_mode_stay(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    fill(real, "old")
    real.chmod(0o750)
    link.symlink_to(real)
    write(link, "new")
    assert link.is_symlink()
    assert contents(real) == dict.fromkeys(NAMES, "new")
    assert real.stat().st_mode & 0o777 == 0o750


def test_leftovers_are_no_content(tmp_path):
    """A directory with nothing but what a killed run left is empty."""
    out = tmp_path / "out"
    (out / ".rosetta-out.new").mkdir(parents=True)
    check_output(out, overwrite=False)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty: choose another directory, or allow overwriting"):
        check_output(out, overwrite=False)
