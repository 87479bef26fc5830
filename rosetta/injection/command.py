# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What ``rosetta inject`` does."""

from pathlib import Path

import astropy.units as u
import numpy as np

from ..files import atomic_write
from ..io import pair as pair_io
from ..pipeline.output import check_output
from .insertion import inject, require_simulator
from .recovery import PRODUCTS, recover

__all__ = ["run"]


def run(arguments):
    """Inject sources and, if asked to, measure them.

    Parameters
    ----------
    arguments : `argparse.Namespace`
        With ``report``, a function that shows progress.

    Yields
    ------
    str
        Lines for the user.
    """
    require_simulator()
    directory = Path(arguments.output)
    _check_output(directory, arguments)
    pair = pair_io.read(arguments.pair)
    what = {
        "n": arguments.n, "magnitude": tuple(arguments.mag), "band": arguments.band,
        "density": arguments.density / u.arcmin**2,
    }  # fmt: skip
    if not arguments.measure:
        yield from _write_pairs(pair, arguments, what, directory)
        return

    result = recover(
        pair, seed=arguments.seed, rounds=arguments.repeat, directory=directory, device=arguments.device,
        progress=lambda done, rounds: arguments.report(f"{done} of {rounds} rounds"), **what,
    )
    written = result.write(directory)
    yield from _text(result)
    yield f"Wrote {', '.join(path.name for path in written)} in {directory.absolute()}"


def _check_output(directory, arguments):
    """Results and rounds of an earlier run may be there: rounds are gone on with, results are those of the rounds."""
    ours = {*PRODUCTS, "rounds"} if arguments.measure else set()
    held = {path.name for path in directory.iterdir() if path.name[0] != "."} if directory.is_dir() else set()
    check_output(directory, held <= ours)


def _write_pairs(pair, arguments, what, directory):
    """A pair file and the truth of each round."""
    directory.mkdir(exist_ok=True)
    for k in range(arguments.repeat):
        injected, truth = inject(pair, seed=[arguments.seed, k], **what)
        path = directory / f"injected_{k:04d}.fits"
        with atomic_write(directory / f"injected_{k:04d}_truth.ecsv") as temporary:
            truth.write(temporary, format="ascii.ecsv")
        pair_io.write(injected, path)
        yield f"Wrote {path} and its truth: {len(truth)} sources"


def _text(result):
    """The figures as text."""
    summary, reference = result.summary, result.summary.meta["reference_band"]
    by, of = np.asarray(summary["by"]), np.asarray(summary["band"])
    cells = [
        f"{row['low']:.0f}-{row['high']:.0f}: {row['n_found']}/{row['n']}"
        for row in summary[(by == "magnitude") & (of == reference)]
    ]
    yield f"Found      by true {reference} magnitude  {'  '.join(cells)}"
    yield "Flux against truth, of all that were found (± half of the 68% interval; in 1 sigma: 68% is right)"
    yield f"{'band':6}{'n':>6}{'bias':>18}{'scatter':>18}{'in 1 sigma':>18}"
    for row in summary[by == "all"]:
        cells = "".join(f"{_share(row, name):>18}" for name in ("bias", "nmad", "coverage"))
        yield f"{row['band']:6}{row['n_measured']:6d}{cells}"


def _share(row, name):
    value, half = 100 * row[name], 50 * (row[f"{name}_high"] - row[f"{name}_low"])
    sign = "+" if name == "bias" else ""
    return f"{value:{sign}.1f} ± {half:.1f} %"
