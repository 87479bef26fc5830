# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What can go wrong while a survey runs, done to a small one of three by three cells."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from rosetta.cli import main
from rosetta.production.store import Store
from rosetta.production.survey import read

from .mini_survey import command, identical

__all__ = ["SIZE", "lines"]

SIZE = 38.4  # arcsec: three by three cells
SIZES = ("--core", "12.8", "--margin", "4", "--window", "12.8")
KILLS = 10
DISK, LARGER = "256k", "64m"  # the first is too small for all cells


def lines(folder):
    """Do all of it; rows of a table.

    Columns: the fault; exit codes of the runs; cells done, and given up, at the end of the run that met the fault;
    cells done after one more run; how many of these have the tables of an undisturbed run; notes of tries and temporary
    files that were left.
    """
    reference = plan(folder, "reference")
    run(reference)
    faults = [
        (f"{KILLS} times a process killed", killed), ("the whole run killed", run_killed), ("the disk full", disk_full),
        ("a file cut short", cut_short), ("no time for three cells", over_time), ("two runs at once", two_runs),
    ]  # fmt: skip
    for name, fault in faults:
        yield name, *fault(folder, reference)


# ---------------------------------------------------------------------------- surveys
def plan(folder, name, files=None):
    files = files or folder / "files"
    shutil.rmtree(folder / name, ignore_errors=True)
    places = ("--rubin", files / "rubin", "--euclid", files / "euclid", "-o", folder / name)
    main(["survey", "plan", *map(str, places), *SIZES])
    return folder / name


def run(survey, *options):
    """Exit code of a run in this process, which has loaded the models."""
    return main(["survey", "run", str(survey), "--serial", *options])


def outcome(survey):
    """Cells done, and given up."""
    store, indices = Store(survey), read(survey).indices
    return sum(map(store.is_done, indices)), sum(store.failure(index) is not None for index in indices)


def line(survey, reference, codes, before):
    """A row: exit codes, cells done and given up before, done now, as in the reference, and files left over."""
    store = Store(survey)
    done = [index for index in read(survey).indices if store.is_done(index)]
    same = sum(identical(survey, reference, [index]) for index in done)
    left = [*survey.rglob("try-*.json"), *survey.rglob(".rosetta-*")]
    return ", ".join(map(str, codes)), *before, len(done), same, len(left)


# ---------------------------------------------------------------------------- faults
def children(process):
    """Numbers of the processes in which a run measures."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def killed(folder, reference):
    """Again and again, one of two processes is killed while it measures; a cell that is met three times is given up."""
    survey, moment = plan(folder, "killed"), random.Random(0)
    seconds = sum(Store(reference).record(index)["seconds"] for index in read(reference).indices) / 9
    running = subprocess.Popen(command("run", survey, "--workers", "2"))
    kills = 0
    while kills < KILLS and running.poll() is None:
        time.sleep(moment.uniform(0, seconds))
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            notes = [json.loads(path.read_text()) for path in survey.rglob("try-*.json")]
            at_work = sorted(set(children(running.pid)) & {note["process"] for note in notes})
            if at_work:
                os.kill(moment.choice(at_work), signal.SIGKILL)
                kills += 1
    codes = [running.wait()]
    if kills < KILLS:
        raise SystemExit(f"the run ended after {kills} of {KILLS} kills")
    before = outcome(survey)
    codes.append(run(survey, "--retry-failed"))
    return line(survey, reference, codes, before)


def run_killed(folder, reference):
    """The process that was started is killed; those that it started must end."""
    survey = plan(folder, "run_killed")
    running = subprocess.Popen(command("run", survey, "--workers", "2"))
    while not outcome(survey)[0]:
        time.sleep(0.1)
    workers = children(running.pid)
    running.kill()
    codes = [running.wait()]
    time.sleep(5)
    if any(Path(f"/proc/{worker}").exists() for worker in workers):
        raise SystemExit("processes went on after their run was killed")
    before = outcome(survey)
    codes.append(run(survey))
    return line(survey, reference, codes, before)


def disk_full(folder, reference):
    """The survey lies on a disk that is too small, which is then made larger (needs the right to mount)."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", disk], check=True)
    try:
        survey = plan(disk, "survey", folder / "files")
        codes = [run(survey)]
        before = outcome(survey)
        subprocess.run(["mount", "-o", f"remount,size={LARGER}", disk], check=True)
        codes.append(run(survey, "--retry-failed"))
        return line(survey, reference, codes, before)
    finally:
        subprocess.run(["umount", disk], check=True)


def cut_short(folder, reference):
    """After the plan, a patch loses the second half of its bytes. The run refuses it; then the file is put back."""
    files = folder / "cut"
    shutil.rmtree(files, ignore_errors=True)
    shutil.copytree(folder / "files", files)
    path = next((files / "rubin").glob("*_3.fits"))
    survey, whole, times = plan(folder, "cut_short", files), path.read_bytes(), path.stat()
    os.truncate(path, len(whole) // 2)
    codes, before = [run(survey)], outcome(survey)
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    codes.append(run(survey))
    return line(survey, reference, codes, before)


def over_time(folder, reference):
    """Three of the cells get a tenth of a second."""
    survey = plan(folder, "over_time")
    codes = [run(survey, "--limit", "0.1", "--shard", "0/3"), run(survey)]
    before = outcome(survey)
    codes.append(run(survey, "--retry-failed"))
    return line(survey, reference, codes, before)


def two_runs(folder, reference):
    """Two runs of one survey begin together."""
    survey = plan(folder, "two_runs")
    other = subprocess.Popen(command("run", survey, "--serial"))
    while other.poll() is None and not list(survey.rglob("try-*.json")):
        time.sleep(0.05)
    codes = [run(survey), other.wait()]
    before = outcome(survey)
    codes.append(run(survey))
    return line(survey, reference, codes, before)
