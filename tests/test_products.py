# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Directories of results: replaced together or not at all, whatever is killed."""

import subprocess
import sys

import pytest

from rosetta.pipeline.output import check_output, replaced

NAMES = ("last", "middle", "first")
# Replaces "old" files by "new" ones, and dies at the given call of a function that changes the disk.
KILLED = """
import os, sys
from pathlib import Path
from rosetta.pipeline.output import replaced
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
with replaced(target, ("last", "middle", "first")) as folder:
    for name in ("last", "middle", "first"):
        (folder / name).write_text("new")
    os.replace, os.chmod, os.rmdir = counted(os.replace), counted(os.chmod), counted(os.rmdir)
    os.unlink = counted(os.unlink)
    Path.unlink = counted(Path.unlink)
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
        if not found and not others:  # the next run finds the old ones, even if it fails
            with pytest.raises(ZeroDivisionError), replaced(out, NAMES):
                _ = 1 / 0
            assert contents(out) == dict.fromkeys(NAMES, "old")
        write(out, "newest")
        assert contents(out) == {**dict.fromkeys(NAMES, "newest"), **dict.fromkeys(others, "mine")}
        assert not [name for name in hidden(tmp_path) if f"out{deadly}." in name]
    assert done.returncode == 0
    assert len(seen) > 2


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
