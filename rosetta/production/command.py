# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What ``rosetta survey`` does. Heavy imports wait until a command needs them."""

import os
import signal
import threading
import time
from contextlib import contextmanager

__all__ = ["add_commands"]

SOME_FAILED = 3  # exit code
WATCH = 10.0  # seconds between two looks
LISTED = 20  # cells outside the limits that are printed


def add_commands(parser):
    """Add the commands to the parser of ``rosetta survey``; each sets ``survey``, what to run."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name, run, text):
        new = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        new.set_defaults(survey=run)
        return new

    plan = command("plan", _plan, "choose the cells and the files of each; reads headers only")
    what = "folders, URLs, FITS files, or text files with one of these per line"
    plan.add_argument("--rubin", nargs="+", required=True, metavar="PLACE", help=f"Rubin coadds: {what}")
    plan.add_argument("--euclid", nargs="+", default=[], metavar="PLACE", help="Euclid MER products, likewise")
    plan.add_argument("--moc", metavar="FILE", help="coverage map (FITS) of the area to measure")
    plan.add_argument("--core", type=float, metavar="ARCSEC", help="side of a cell; default: 307.2")
    plan.add_argument("--margin", type=float, metavar="ARCSEC", help="read around a cell; default: 10")
    plan.add_argument("--window", type=float, metavar="ARCSEC", help="of the encoder; default: 38.4")
    plan.add_argument("--tile", type=float, metavar="ARCSEC", help="fitted at a time; default: about 102.4")
    plan.add_argument("--models", metavar="DIR", help="folder of a checkpoint of each kind; default: the bundled ones")
    plan.add_argument("-o", "--output", required=True, metavar="SURVEY", help="folder of the survey")

    run = command("run", _run, "measure the cells that are not done yet")
    run.add_argument("folder", metavar="SURVEY")
    where = run.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, metavar="N", help="processes, one core each; default: one per core")
    where.add_argument("--serial", action="store_true", help="in this process")
    where.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster, such as tcp://host:8786")
    run.add_argument("--shard", metavar="i/N", help="only every N-th cell, from the i-th; i is 0 to N-1")
    run.add_argument("--limit", type=float, metavar="SECONDS", help="for a cell; default: 7200")
    run.add_argument("--retry-failed", action="store_true", help="also the cells that were given up")

    status = command("status", _status, "how far the survey is")
    status.add_argument("folder", metavar="SURVEY")
    status.add_argument("--watch", action="store_true", help="again every ten seconds, until all cells are done")

    quality = command("qa", _quality, "write a page with a map of the cells, coloured by how well they were measured")
    quality.add_argument("folder", metavar="SURVEY")
    quality.add_argument("-o", "--output", metavar="FILE", help="the page; default: quality.html in SURVEY")

    publish = command("publish", _publish, "write catalogues, maps and random positions of the cells that are done")
    publish.add_argument("folder", metavar="SURVEY")
    publish.add_argument("--hats", required=True, metavar="DIR", help="folder for the HATS collections and the maps")
    publish.add_argument("--randoms", type=float, metavar="N", help="random positions per square arcmin; default: 50")
    publish.add_argument("--workers", type=int, metavar="N", help="processes; default: 1, this one")

    search = command("search", _search, "list the windows that look most like another one")
    search.add_argument("folder", metavar="SURVEY")
    search.add_argument(
        "--like", nargs="+", required=True, metavar=("RA", "DEC"),
        help="a position (deg) in the survey; or one FILE with embeddings, such as the windows.parquet of a cell",
    )
    search.add_argument("-n", "--n", type=int, metavar="N", help="windows for each that is looked for; default: 20")
    search.add_argument("-o", "--output", metavar="FILE", help="write a table: .ecsv, .fits, .parquet or .vot")


def _given(arguments, *names):
    """The options that were given; the others keep their defaults, which stand where they are used."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


# ---------------------------------------------------------------------------- plan
def _plan(arguments):
    from .plan import make_plan, summary
    from .survey import write

    options = _given(arguments, "moc", "core", "margin", "window", "tile", "models")
    survey = make_plan(
        arguments.output, arguments.rubin, arguments.euclid, report=_every(arguments.report), **options
    )
    write(survey)
    yield from summary(survey)
    return 0


def _every(report, seconds=5.0):
    """A report that speaks at most every few seconds."""
    last = time.monotonic()

    def sometimes(text):
        nonlocal last
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            report(text)

    return sometimes


# ---------------------------------------------------------------------------- run
def _run(arguments):
    from .run import failures, run_survey

    steps = run_survey(
        arguments.folder, _engine(arguments), part=arguments.shard, retry_failed=arguments.retry_failed,
        **_given(arguments, "limit"),
    )  # fmt: skip
    with _ended_politely():
        for done, total, index, failure in steps:
            name = f"  tract {index[0]} cell {index[1]}" if index else ""
            arguments.report(f"{done} of {total} cells{name}{' failed' if failure else ''}")
    found = failures(arguments.folder, arguments.shard)
    yield f"{total - len(found)} of {total} cells are done"
    if not found:
        return 0
    yield from _listed(found)
    return SOME_FAILED


@contextmanager
def _ended_politely():
    """Take SIGTERM for Ctrl-C: queues send it before they kill, and what is at work is then no try of its cell."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _engine(arguments):
    from . import engines

    if arguments.serial:
        return engines.here()
    if arguments.dask:
        return engines.dask(arguments.dask)
    n = arguments.workers
    if n is None:
        n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if n < 1:
        raise ValueError(f"--workers {n}: give 1 or more, or --serial")
    return engines.processes(n)


def _listed(failures):
    yield f"{len(failures)} failed (again with --retry-failed):"
    for failure in failures:
        tries = f" ({failure['tries']} tries)" if failure["tries"] > 1 else ""
        yield f"  tract {failure['tract']} cell {failure['cell']}: {failure['message']}{tries}"


# ---------------------------------------------------------------------------- status
def _status(arguments):
    from .status import status

    while True:
        found = status(arguments.folder)
        yield from _lines(found)
        if not arguments.watch or not found["left"]:
            return 0
        time.sleep(WATCH)
        yield ""


def _lines(found):
    yield (
        f"{found['done']} of {found['total']} cells done ({found['empty']} empty), {found['failed']} failed, "
        f"{found['left']} left, {found['running']} of them at work"
    )
    if found["per_hour"] is not None:
        left = f", {found['hours_left']:.1f} h left at this rate" if found["left"] else ""
        yield (
            f"{found['per_hour']:.3g} cells an hour, the last one {found['idle_seconds']:.0f} s ago{left}; "
            f"{found['cpu_hours']:.2f} CPU hours"
        )
    if found["done"]:
        yield f"{found['rows']} rows, {found['primary']} primary; peak memory {found['peak_memory_gib']:.2f} GiB"
        yield "slowest:"
    for record in found["slowest"]:
        steps = "  ".join(f"{name} {seconds:.0f}" for name, seconds in record.get("steps", {}).items())
        yield f"  tract {record['tract']} cell {record['cell']}: {record['seconds']:.0f} s  {steps}".rstrip()
    if found["failures"]:
        yield from _listed(found["failures"])


# ---------------------------------------------------------------------------- quality
def _quality(arguments):
    from .quality_page import write_page

    path, marked = write_page(arguments.folder, arguments.output)
    yield f"{len(marked)} cells are outside the limits"
    for index, found in marked[:LISTED]:
        values = ", ".join(f"{name} {value:g}" for name, value in found.items())
        yield f"  tract {index[0]} cell {index[1]}: {values}"
    yield str(path)
    return 0


# ---------------------------------------------------------------------------- publish
def _publish(arguments):
    from .publish import publish

    options = {"density": arguments.randoms, "workers": arguments.workers}
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in (("--randoms", arguments.randoms), ("--workers", arguments.workers)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} {value:g}: give a number above 0")
    yield from publish(arguments.folder, arguments.hats, **given)
    return 0


# ---------------------------------------------------------------------------- search
def _search(arguments):
    from .search import search

    table = search(arguments.folder, _like(arguments.like), **_given(arguments, "n"))
    if arguments.output:
        from ..io.catalogue import write_catalogue

        write_catalogue(table, arguments.output, overwrite=True)
        yield f"{len(table)} windows in {arguments.output}"
    else:
        yield from table.pformat(max_lines=-1, max_width=-1)
    return 0


def _like(given):
    """A position or the path of a file."""
    if len(given) == 1:
        return given[0]
    from astropy.coordinates import SkyCoord

    try:
        ra, dec = map(float, given)
        return SkyCoord(ra, dec, unit="deg")
    except ValueError as error:
        text = " ".join(given)
        raise ValueError(f"--like {text}: give right ascension and declination (deg), or one file") from error
