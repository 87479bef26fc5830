# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""``rosetta demo``, ``rosetta run`` and ``rosetta report``: the main job, and a page on its results."""

import logging
import time

from .. import terminal
from .errors import options
from .images import given_pair
from .lists import check_columns, positions_of, stars_of
from .summary import against_truth, ending, summary

__all__ = ["measure_images", "measure_sample", "write_page"]

log = logging.getLogger("rosetta")


def measure_sample(arguments):
    from importlib.resources import as_file, files

    from astropy.table import QTable

    from ..io import pair as pair_io
    from ..pipeline.catalogue_file import check_format
    from ..pipeline.comparison import compare
    from ..pipeline.output import check_output

    with options("output"):
        check_output(arguments.output, arguments.overwrite)
    with options("format"):
        check_format(arguments.format)
    data = files("rosetta") / "data"
    start = time.perf_counter()
    with _progress(arguments) as progress:
        progress("read", 0, 1)
        with as_file(data / "sample.fits") as path:
            pair = pair_io.read(path)
        with as_file(data / "sample_truth.fits") as path:
            truth = QTable.read(path)
        result, written = _measure_and_write(pair, arguments, progress, truth=truth)
    terminal.say(against_truth(result, compare(result, truth)), arguments.verbosity)
    terminal.say(ending(written, start), arguments.verbosity)


def measure_images(arguments):
    from ..pipeline.catalogue_file import check_format
    from ..pipeline.output import check_output

    with options("output"):
        check_output(arguments.output, arguments.overwrite)
    with options("format"):
        check_format(arguments.format)
    start = time.perf_counter()
    with _progress(arguments) as progress:
        progress("read", 0, 1)
        arguments.progress = progress.of("read")
        listed, reference = positions_of(arguments), stars_of(arguments)
        if listed:
            check_columns(listed["sources"], arguments)
        pair = given_pair(arguments)
        how = {"workers": arguments.workers, **(listed or {}), **reference}
        result, written = _measure_and_write(pair, arguments, progress, window=arguments.window, **how)
    terminal.say(summary(result), arguments.verbosity)
    if arguments.profile:
        terminal.say(progress.profile(), arguments.verbosity)
    terminal.say(ending(written, start), arguments.verbosity)


def write_page(arguments):
    from ..pipeline.report import write_report

    with options("output"):
        path = write_report(arguments.folder, arguments.output)
    print(f"Wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


def _progress(arguments):
    steps = ("read", "load", "encode", "align", "deblend", "measure", "write")
    return terminal.Steps(steps, arguments.verbosity, first="encode")


def _measure_and_write(pair, arguments, progress, *, window=38.4, truth=None, **how):
    import astropy.units as u

    for side, band, image in pair.images():
        ny, nx = image.data.shape
        log.info("%s %s: %d x %d pixels; assumed: %s", pair.survey_name(side), band, nx, ny, pair.flags[band])
    progress("load", 0, 1)
    from .. import measure  # with the networks, which take as long to import as the images to read

    with options("window", "device", "workers"):
        result = measure(pair, device=arguments.device, window=window * u.arcsec, progress=progress, **how)
    with options("output"):
        written = result.write(
            arguments.output, overwrite=arguments.overwrite, models=arguments.models, truth=truth,
            format=arguments.format, pixel_positions=arguments.pixel_positions, segmentation=arguments.segmentation,
            progress=progress.of("write"),
        )
    for path in written:
        log.info("wrote %s, %.1f MB", path, path.stat().st_size / 1e6)
    return result, written
