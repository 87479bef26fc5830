# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Files are written whole or not at all, and what killed writers leave is removed."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from rosetta import SkyPair, checkpoint
from rosetta.files import atomic_write
from rosetta.io import pair as pair_io
from rosetta.training.rows import RowStore

resource = pytest.importorskip("resource", reason="limits of a process are those of POSIX")

KILLED = """
import os, sys
from rosetta.files import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(path, text):
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def test_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("new")
        _ = 1 / 0
    assert path.read_text() == "old"
    write(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]
    with pytest.raises(OSError, match="no/a.txt"):
        write(tmp_path / "no" / "a.txt", "new")


def test_what_a_killed_writer_left_is_removed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == -9
        assert len(names(tmp_path)) == 2  # that of the last one
    write(tmp_path / "b.txt", "other")
    assert len(names(tmp_path)) == 3  # of another file: not looked at
    assert path.read_text() == "old"
    write(path, "new")
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_what_may_be_in_use_stays(tmp_path):
    path, mine = tmp_path / "a.txt", [".rosetta-notes.a.txt", ".a.txt", "rosetta-00000000-1-00000000.a.txt"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    elsewhere = tmp_path / ".rosetta-00000000-99999999-00000000.a.txt"  # of another machine
    elsewhere.write_text("half")
    with atomic_write(path) as temporary:
        temporary.write_text("one")
        write(path, "two")  # does not remove what is being written
        assert temporary.exists() and elsewhere.exists()
    assert path.read_text() == "one"
    os.utime(elsewhere, (time.time() - 2 * 86400,) * 2)
    write(path, "three")
    assert names(tmp_path) == sorted(["a.txt", *mine])


@contextmanager
def small_disk():
    """No file can grow beyond 8 kB; not for longer than needed, as pytest may write its own output to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _encoder_state(path, tmp_path, make_image):
    from rosetta.encoding.pretraining import _save_state

    model = torch.nn.Linear(100, 100)
    return lambda: _save_state(path, model, torch.optim.AdamW(model.parameters()), {}, 1, 1.0, 1)


def _rows(path, tmp_path, make_image):
    store = RowStore(path, "owner")
    return lambda: store.append("mark", {"x": np.random.default_rng(0).normal(size=5000)})


def _pair(path, tmp_path, make_image):
    pair = SkyPair({"r": make_image(64, 0.2)})
    return lambda: pair_io.write(pair, path)


def _checkpoint(path, tmp_path, make_image):
    return lambda: checkpoint.save(path, {"w": torch.ones(5000)}, kind="thing", config={}, provenance={})


@pytest.mark.parametrize("writer", [_encoder_state, _rows, _pair, _checkpoint])
def test_a_full_disk_is_an_error_that_names_the_file(writer, tmp_path, make_image):
    path = tmp_path / "result.safetensors"
    call = writer(path, tmp_path, make_image)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(OSError, match="result.safetensors"), small_disk():
        call()
    if before is None:
        assert names(tmp_path) == []
    else:  # rows: what was half written is cut off when the file is opened again
        assert RowStore(path, "owner").parts == []
        assert path.read_bytes() == before
