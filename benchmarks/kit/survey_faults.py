# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What can go wrong while a survey runs, done to a small one of three by three cells."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from rosetta.production.store import Store
from rosetta.production.survey import read

from .mini_survey import command, identical, planned, timed_run

__all__ = ["SIZE", "lines"]

SIZE = 38.4  # arcsec: three by three cells
CORE = 12.8
SIZES = ("--margin", "4", "--window", "12.8")
KILLS = 10
DISK, LARGER = "256k", "64m"  # the first is too small for all cells


def lines(folder):
    """Do all of it; rows of a table.

    Columns: the fault; exit codes of the runs; cells done, and given up, at the end of the run that met the fault;
    cells done after one more run; how many of these have the tables of an undisturbed run; notes of tries and temporary
    files that were left.
    """
    reference = plan(folder, "reference")
    timed_run(reference, "--workers", "2")
    faults = [
        (f"a process killed, {KILLS} runs", lambda: [killed(folder, reference, k) for k in range(KILLS)]),
        ("the whole run killed", lambda: [run_killed(folder, reference)]),
        ("the disk full", lambda: [disk_full(folder, reference)]),
        ("a file cut short", lambda: [cut_short(folder, reference)]),
        ("no time for three cells", lambda: [over_time(folder, reference)]),
        ("two runs at once", lambda: [two_runs(folder, reference)]),
    ]
    for name, fault in faults:
        codes, *numbers = zip(*fault(), strict=True)
        yield (name, " ".join(sorted(set(codes))), *(_range(values) for values in numbers))


def _range(values):
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


# ---------------------------------------------------------------------------- surveys
def plan(folder, name, files=None):
    files = files or folder / "files"
    shutil.rmtree(folder / name, ignore_errors=True)
    return planned(files / "rubin", files / "euclid", folder / name, CORE, *SIZES)


def run(survey, *options):
    """Exit code of a run."""
    return subprocess.run(command("run", survey, *options), check=False).returncode


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


def killed(folder, reference, k):
    """One of two processes is killed at a random moment, while the last three of the cells are measured."""
    moment = random.Random(k)
    records = [Store(reference).record(index) for index in read(reference).indices]
    aim = moment.uniform(0, 1) * (max(r["finished"] for r in records) - min(r["started"] for r in records)) / 3
    while True:
        survey = folder / f"killed{k}"
        shutil.rmtree(survey, ignore_errors=True)
        shutil.copytree(reference, survey)
        for index in read(survey).indices[-3:]:
            shutil.rmtree(Store(survey).place(index))
        running = subprocess.Popen(command("run", survey, "--workers", "2"))
        while running.poll() is None and not list(survey.rglob("try-*.json")):
            time.sleep(0.05)
        time.sleep(aim)
        if running.poll() is None and (workers := children(running.pid)):
            break
        aim /= 2  # it has ended before
    os.kill(moment.choice(workers), signal.SIGKILL)
    codes = [running.wait()]
    before = outcome(survey)
    codes.append(run(survey, "--workers", "2"))
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
    codes.append(run(survey, "--workers", "2"))
    return line(survey, reference, codes, before)


def disk_full(folder, reference):
    """The survey lies on a disk that is too small, which is then made larger (needs the right to mount)."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", disk], check=True)
    try:
        survey = plan(disk, "survey", folder / "files")
        codes = [run(survey, "--workers", "2")]
        before = outcome(survey)
        subprocess.run(["mount", "-o", f"remount,size={LARGER}", disk], check=True)
        codes.append(run(survey, "--workers", "2", "--retry-failed"))
        return line(survey, reference, codes, before)
    finally:
        subprocess.run(["umount", disk], check=True)


def cut_short(folder, reference):
    """A patch lacks the second half of its bytes; its headers are whole. It stays so: its cells must stay given up."""
    files = folder / "cut"
    shutil.copytree(folder / "files", files)
    path = next((files / "rubin").glob("*_3.fits"))
    os.truncate(path, path.stat().st_size // 2)
    survey = plan(folder, "cut_short", files)
    codes = [run(survey, "--workers", "2")]
    before = outcome(survey)
    store, indices = Store(survey), read(survey).indices
    for cell in read(survey).cells(indices):
        needs = any(name == str(path) for name, *_ in cell.rubin)
        failure = store.failure(cell.index)
        if needs != (failure is not None) or (failure and path.name not in failure["message"]):
            raise SystemExit(f"{cell.name}: needs the file: {needs}; note: {failure}")
    codes.append(run(survey, "--workers", "2"))
    return line(survey, reference, codes, before)


def over_time(folder, reference):
    """Three of the cells get a tenth of a second."""
    survey = plan(folder, "over_time")
    codes = [run(survey, "--serial", "--limit", "0.1", "--shard", "0/3"), run(survey, "--workers", "2")]
    before = outcome(survey)
    codes.append(run(survey, "--workers", "2", "--retry-failed"))
    return line(survey, reference, codes, before)


def two_runs(folder, reference):
    """Two runs of one survey begin together."""
    survey = plan(folder, "two_runs")
    running = [subprocess.Popen(command("run", survey, "--serial")) for _ in range(2)]
    codes = [one.wait() for one in running]
    before = outcome(survey)
    codes.append(run(survey, "--serial"))
    return line(survey, reference, codes, before)
