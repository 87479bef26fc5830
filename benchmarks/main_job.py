# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Wall time and peak memory of the whole process: import, the demo, and the main job at 1 and 4 times the area.

Then, within this process, what deblending and photometry take of it, in CPU-seconds per 430 sources.

Run: python benchmarks/main_job.py            (the larger field takes a few minutes to simulate)
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import astropy.units as u

from rosetta.io import pair as pair_file
from rosetta.simulate import IDEAL, AstrometricError, simulate_pair


def run(command):
    """Wall seconds, CPU seconds and peak memory (GB) of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{error}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def show(name, runs):
    wall, cpu, memory = (statistics.median(column) for column in zip(*runs, strict=True))
    low, high = min(r[0] for r in runs), max(r[0] for r in runs)
    print(f"{name:34s} {wall:7.2f} ({low:.2f} to {high:.2f}) {cpu:8.2f} {memory:7.2f}", flush=True)


def per_source(pair, turns=3):
    """Print the CPU-seconds of deblending and photometry."""
    # Not before: the peak memory of a child process is at least what its parent had when it began.
    from kit.models import models, trained

    encoder, deblender, photometry = models()
    aligner = trained(encoder, "aligner")["aligner"]
    embedding = encoder(pair)
    offsets, seconds = aligner(embedding), []
    for _ in range(turns):
        start = time.process_time()
        catalog = photometry(embedding, deblender(embedding, offsets=offsets))
        seconds.append((time.process_time() - start) / len(catalog) * 430)
    each = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
    print(f"    deblending and photometry: {each} CPU-s per 430 of {len(catalog)} sources")


def main():
    rosetta = [sys.executable, "-m", "rosetta.cli"]
    print(f"{os.cpu_count()} cores; medians{'':17s} wall, s (range)      CPU, s  peak, GB")
    show("import rosetta (and Python)", [run([sys.executable, "-c", "import rosetta"]) for _ in range(7)])
    show("Python alone", [run([sys.executable, "-c", "pass"]) for _ in range(7)])
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        show("rosetta demo", [run([*rosetta, "demo", "-o", str(folder / f"demo{i}")]) for i in range(3)])
        error = AstrometricError(shift=(63.4, -47.3) * u.mas)
        for size, turns in ((102.4, 2), (204.8, 1)):
            pair, truth = simulate_pair(seed=31, size=size * u.arcsec, astrometric_error=error, delivery=IDEAL)
            path = folder / f"{size:.0f}.fits"
            pair_file.write(pair, path)
            name = f'main job, {size:.1f}" x {size:.1f}", ten bands'
            job = [*rosetta, "run", "--pair", str(path), "-o"]
            show(name, [run([*job, str(folder / f"{size:.0f}_{i}")]) for i in range(turns)])
            print(f"    {len(truth)} true sources in the field")
        per_source(pair_file.read(folder / "102.fits"))


if __name__ == "__main__":
    main()
