# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""``rosetta inject`` and ``rosetta survey``: jobs that tell on standard error how far they are."""

import sys
import time

from .errors import options

__all__ = ["inject_sources", "measure_area"]


def inject_sources(arguments):
    from ..injection import command

    start = time.perf_counter()
    arguments.report = lambda text: print(f"{time.perf_counter() - start:7.1f} s  {text}", file=sys.stderr, flush=True)
    with options("output"):
        for line in command.run(arguments):
            print(line)


def measure_area(arguments):
    start = time.perf_counter()
    arguments.report = lambda text: print(f"{time.perf_counter() - start:7.1f} s  {text}", file=sys.stderr, flush=True)
    lines = arguments.survey(arguments)
    while True:
        try:
            print(next(lines), flush=True)
        except StopIteration as end:
            return end.value
