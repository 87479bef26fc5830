# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The command ``rosetta``. Heavy imports wait until a command needs them."""

import argparse
import logging
import re
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

from .production.command import add_commands as add_survey
from .registry import HEADS, KINDS, head_class

__all__ = ["main"]

LOG_EVERY = 10  # training steps per line


def main(argv=None):
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; default, those of the process.

    Returns
    -------
    int
        Exit code: 0; 2 for bad input, after one line on standard error; 130 after an interruption.
    """
    arguments = _parser().parse_args(argv)
    _log_to_stderr()
    try:
        with _plain_warnings():
            return arguments.run(arguments) or 0
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"rosetta: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rosetta: interrupted", file=sys.stderr)
        return 130


def _one_line(error):
    if isinstance(error, ImportError) and not isinstance(error, ValueError):
        extra = {
            "matplotlib": "plot", "galsim": "sim", "speclite": "sim", "pyarrow": "survey", "astropy_healpix": "survey",
        }.get(error.name)
        if extra:
            return f"{error.name} is not installed: pip install 'astro-rosetta[{extra}]'"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _plain_warnings():
    """Warnings as one line each on standard error, without the line of code they come from."""

    def show(message, *_, **__):
        print(f"rosetta: warning: {_one_line(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _log_to_stderr():
    logger = logging.getLogger("rosetta")
    for handler in list(logger.handlers):
        if isinstance(handler, _Handler):
            logger.removeHandler(handler)
    logger.addHandler(_Handler())
    logger.setLevel(logging.INFO)


class _Handler(logging.StreamHandler):
    """Messages of the library, one line each, on standard error."""

    def __init__(self):
        super().__init__()
        self.setFormatter(logging.Formatter("rosetta: %(levelname)s: %(message)s"))
        self.setLevel(logging.WARNING)


# ---------------------------------------------------------------------------- arguments
class _Version(argparse.Action):
    def __init__(self, option_strings, dest, **_):
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser, *_):
        import rosetta

        print(f"rosetta {rosetta.__version__}")
        parser.exit()


def _parser():
    parser = argparse.ArgumentParser(
        prog="rosetta",
        description="One aligned, deblended, ten-band catalogue from Rubin-like and Euclid-like images of one sky.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name, run, text):
        new = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        new.set_defaults(run=run)
        return new

    demo = command("demo", _demo, "the main job on a bundled pair with known truth; needs no network")
    demo.add_argument("-o", "--output", default="rosetta_demo", metavar="DIR", help="default: rosetta_demo")
    _job_options(demo)

    job = command("run", _run, "the main job on your own images")
    job.add_argument("--rubin", nargs="+", default=[], metavar="FILE", help="Rubin coadds, one band each")
    job.add_argument("--euclid", nargs="+", default=[], metavar="FILE", help="Euclid MER mosaics, RMS and FLAG maps")
    for side in ("ground", "space"):
        job.add_argument(
            f"--{side}", nargs="+", default=[], metavar="BAND=FILE",
            help=f"FITS images of any instrument for the {side} side, one band each",
        )
    job.add_argument(
        "--survey", nargs="+", default=[], metavar="FILE",
        help="TOML files that describe the surveys of --ground and --space; default: Rubin and Euclid",
    )
    job.add_argument("--pair", metavar="FILE", help="a pair file, instead of images")
    job.add_argument(
        "--center", nargs=2, type=float, metavar=("RA", "DEC"), help="measure only a region around this (degrees)"
    )
    job.add_argument("--size", type=float, metavar="ARCSEC", help="side of that region")
    job.add_argument("-o", "--output", required=True, metavar="DIR", help="for the results")
    job.add_argument("--window", type=float, default=38.4, metavar="ARCSEC", help="of the encoder; default: 38.4")
    _job_options(job)

    inject = command("inject", _inject, "simulated sources into your own images, and how well they are measured there")
    inject.add_argument("--pair", required=True, metavar="FILE", help="a pair file")
    inject.add_argument("-o", "--output", required=True, metavar="DIR", help="a stopped run goes on from there")
    inject.add_argument("--measure", action="store_true", help="measure them: completeness, bias, scatter, coverage")
    inject.add_argument("--repeat", type=int, default=10, metavar="K", help="rounds, each a fresh copy; default: 10")
    inject.add_argument("--n", type=int, metavar="N", help="sources in a round; default: as many as --density allows")
    inject.add_argument("--density", type=float, default=6.0, metavar="X", help="most per square arcminute; default: 6")
    inject.add_argument(
        "--mag", type=float, nargs=2, default=(20.0, 26.0), metavar=("LO", "HI"), help="AB; default: 20 26"
    )
    inject.add_argument("--band", help="of --mag; default: the sharpest space band, or else ground band")
    inject.add_argument("--seed", type=int, default=0, help="default: 0")
    inject.add_argument("--device", help="with --measure; cpu, cuda or cuda:N; default: CUDA where there is one")

    add_survey(command("survey", _survey, "the main job over an area: plan, run, status"))

    simulate = command("simulate", _simulate, "noise-free training tiles, or one noisy pair with its truth")
    what = simulate.add_mutually_exclusive_group(required=True)
    what.add_argument("--tiles", type=int, metavar="N", help="write N training tiles into the directory OUT; resumes")
    what.add_argument("--pair", action="store_true", help="write one pair as OUT (.fits), its truth as OUT_truth.fits")
    simulate.add_argument("-o", "--output", required=True, metavar="OUT")
    simulate.add_argument("--seed", type=int, default=0, help="default: 0")
    simulate.add_argument("--overwrite", action="store_true", help="with --pair; replace files that exist")
    simulate.add_argument("--processes", type=int, metavar="N", help="with --tiles; default: all cores")
    simulate.add_argument("--size", type=float, default=102.4, metavar="ARCSEC", help="with --pair; default: 102.4")
    simulate.add_argument("--density", type=float, default=1.0, metavar="X", help="with --pair; 1: published counts")
    simulate.add_argument(
        "--stars", type=float, default=1.0, metavar="X", help="number of stars; 1: high galactic latitude"
    )
    simulate.add_argument("--morphologies", metavar="DIR", help="images of real galaxies (.npz file or folder)")
    simulate.add_argument(
        "--shift", type=float, nargs=2, default=(0.0, 0.0), metavar=("EAST", "NORTH"),
        help="with --pair; offset that corrects the ground astrometry, mas",
    )
    simulate.add_argument(
        "--rms", type=float, default=0.0, metavar="MAS", help="with --pair; a smooth random offset on top, per axis"
    )

    pretrain = command("pretrain", _pretrain, "train the encoder on noise-free tiles; resumes where it stopped")
    pretrain.add_argument("--data", required=True, metavar="DIR", help="tiles written by rosetta simulate")
    pretrain.add_argument("--validation", metavar="DIR", help="other tiles, which never train, to measure on")
    pretrain.add_argument("-o", "--output", required=True, metavar="FILE", help="ends in .safetensors")
    pretrain.add_argument("--max-minutes", type=float, metavar="M", help="stop after M minutes of wall-clock time")
    pretrain.add_argument("--steps", type=int, metavar="N", help="stop after N steps")
    pretrain.add_argument(
        "--batch", type=int, default=96, metavar="N",
        help="windows of 12.8 arcsec in a step, and a sixth as many of 38.4; default: 96, for a CPU",
    )
    pretrain.add_argument("--seed", type=int, default=0, help="default: 0")
    pretrain.add_argument("--device", help="cpu, cuda or cuda:N; default: CUDA where there is one")

    head = command("train-head", _train_head, "train one head on the frozen encoder; resumes where it stopped")
    head.add_argument("kind", choices=tuple(HEADS))
    head.add_argument("--data", required=True, metavar="DIR", help="tiles written by rosetta simulate")
    head.add_argument("-o", "--output", required=True, metavar="FILE", help="ends in .safetensors")
    head.add_argument("--encoder", metavar="FILE", help="default: the bundled one")
    head.add_argument(
        "--deblender", metavar="FILE", help="for photometry, whose errors hold for its scenes; default: the bundled one"
    )
    head.add_argument("--seed", type=int, default=0, help="default: 0")
    head.add_argument("--device", help="cpu, cuda or cuda:N; default: CUDA where there is one")

    info = command("info", _info, "what is bundled, or what a checkpoint holds")
    info.add_argument("file", nargs="?", metavar="FILE", help="a checkpoint; default: the bundled set")
    return parser


def _job_options(parser):
    parser.add_argument("--overwrite", action="store_true", help="replace results of an earlier run")
    parser.add_argument(
        "--models", choices=("none", "bands", "sources"), default="sources",
        help="in models.fits: nothing (no file); model and residual of each band; these and each source (default)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: CUDA where there is one")


# ---------------------------------------------------------------------------- the main job
def _demo(arguments):
    from importlib.resources import as_file, files

    from astropy.table import QTable

    from .io import pair as pair_io
    from .pipeline.comparison import compare
    from .pipeline.output import check_output

    check_output(arguments.output, arguments.overwrite)
    data = files("rosetta") / "data"
    with as_file(data / "sample.fits") as path:
        pair = pair_io.read(path)
    with as_file(data / "sample_truth.fits") as path:
        truth = QTable.read(path)
    start = time.perf_counter()
    result = _measure(pair, arguments)
    written = _write(result, arguments, truth)
    for line in _against_truth(result, compare(result, truth)):
        print(line)
    _print_ending(written, start)


def _run(arguments):
    from .pipeline.output import check_output

    check_output(arguments.output, arguments.overwrite)
    pair = _pair(arguments)
    start = time.perf_counter()
    result = _measure(pair, arguments, arguments.window)
    written = _write(result, arguments)
    for line in _summary(result):
        print(line)
    _print_ending(written, start)


def _pair(arguments):
    """The pair that the options of ``rosetta run`` describe."""
    from . import SkyPair
    from .io import pair as pair_io
    from .io import read_pair

    files = {f"--{name}": getattr(arguments, name) for name in ("rubin", "euclid", "ground", "space")}
    center, size = _region(arguments)
    if arguments.pair:
        given = [name for name, value in (files | {"--survey": arguments.survey}).items() if value]
        if given:
            raise ValueError(f"--pair cannot be combined with {' and '.join(given)}: give one or the other")
        pair = pair_io.read(arguments.pair)
        return pair if center is None else pair.cutout(center, size)
    if not any(files.values()):
        raise ValueError(
            "no input: give --rubin FILE ... and --euclid FILE ... (or one of them), or --ground BAND=FILE ... and "
            "--space BAND=FILE ..., or --pair FILE"
        )
    surveys = _surveys(arguments)
    ground, space = {}, {}
    if arguments.rubin or arguments.euclid:
        ground, space = (side or {} for side in read_pair(arguments.rubin, arguments.euclid, center=center, size=size))
    sides = {"ground": ground, "space": space}
    for side, images in sides.items():
        for text in getattr(arguments, side):
            band, image = _image(f"--{side}", text, surveys[side], center, size)
            if band in images:
                raise ValueError(
                    f"--{side} {text}: band {band!r} is also in {images[band].meta['file']}: leave one of them out"
                )
            images[band] = image
    return SkyPair(ground or None, space or None, surveys=tuple(surveys[side].survey for side in sides))


def _region(arguments):
    """Centre and size of the region to measure, or None and None."""
    import astropy.units as u
    from astropy.coordinates import SkyCoord

    if (arguments.center is None) != (arguments.size is None):
        raise ValueError("--center and --size: give both, or neither for the whole images")
    if arguments.center is None:
        return None, None
    ra, dec = arguments.center
    if not (-360 <= ra <= 360 and -90 <= dec <= 90):
        raise ValueError(f"--center {ra:g} {dec:g}: give right ascension and declination in degrees")
    if not 0 < arguments.size < 1e6:
        raise ValueError(f"--size {arguments.size:g}: give the side of the region in arcsec")
    return SkyCoord(ra, dec, unit="deg"), arguments.size * u.arcsec


def _surveys(arguments):
    """What each side's images belong to: Rubin and Euclid, or what the files of --survey say."""
    from .io.survey_file import SurveyFile, read_survey_file
    from .surveys import EUCLID, RUBIN

    described = {}
    for path in arguments.survey:
        try:
            survey = read_survey_file(path)
        except ValueError as error:
            raise ValueError(f"--survey {error}") from error
        if survey.side in described:
            raise ValueError(f"--survey {path}: it is on the {survey.side} side, and so is the other one: give one")
        own = {"ground": "rubin", "space": "euclid"}[survey.side]
        if getattr(arguments, own):
            raise ValueError(f"--survey {path}: --{own} is on the same side: leave one of them out")
        if not getattr(arguments, survey.side):
            raise ValueError(f"--survey {path}: it needs images of its side: give --{survey.side} BAND=FILE ...")
        described[survey.side] = survey
    shipped = {"ground": SurveyFile(RUBIN, "ground", {}, {}), "space": SurveyFile(EUCLID, "space", {}, {})}
    return shipped | described


def _image(option, text, survey, center, size):
    """Band and image of an argument BAND=FILE."""
    band, equals, path = text.partition("=")
    if not (band and equals and path):
        raise ValueError(f"{option} {text}: write BAND=FILE, such as {survey.survey.band_names[0]}=image.fits")
    try:
        image = survey.read(path, band, center=center, size=size)
    except ValueError as error:
        # The remedies are those of Python.
        hint = "; here, in the file of --survey" if re.search(r"\b(zeropoint|unit|plane)=", str(error)) else ""
        raise ValueError(f"{option} {text}: {error}{hint}") from error
    return image.meta["band"], image


def _measure(pair, arguments, window=38.4):
    import astropy.units as u

    from . import measure
    from .pipeline.run import STEPS

    with _Steps(STEPS) as progress:
        return measure(pair, device=arguments.device, window=window * u.arcsec, progress=progress)


def _write(result, arguments, truth=None):
    return result.write(arguments.output, overwrite=arguments.overwrite, models=arguments.models, truth=truth)


class _Steps:
    """Progress of the main job on standard error: a bar on a terminal, a line per step elsewhere."""

    def __init__(self, steps):
        self._steps, self._start, self._live = steps, time.perf_counter(), sys.stderr.isatty()

    def __enter__(self):
        return self

    def __call__(self, step, done, total):
        if self._live or done == 0:
            self._show(self._steps.index(step) + done / total, f"{step} ...")

    def __exit__(self, kind, *_):
        if kind is None:
            self._show(len(self._steps), "measured")
        if self._live:
            print(file=sys.stderr)

    def _show(self, done, text):
        full = round(6 * done)
        bar = "#" * full + "-" * (6 * len(self._steps) - full)
        seconds = time.perf_counter() - self._start
        line = f"[{bar}] {int(done)}/{len(self._steps)} {seconds:6.1f} s  {text:<12}"
        print(("\r" if self._live else "") + line, file=sys.stderr, end="" if self._live else "\n", flush=True)


def _summary(result):
    """The lines of the summary."""
    import numpy as np

    from .flags import Flag

    flags = np.asarray(result.catalog["flags"])
    blended = int(((flags & int(Flag.BLENDED)) != 0).sum())
    yield f"Sources    {len(result.catalog)} in {' '.join(result.scene.bands)}; {blended} of them blended"
    yield f"Offset     {_offset_text(result)}"


def _offset_text(result):
    import numpy as np

    from .astrometry.solution import as_solution

    offsets = result.offsets
    if offsets is None:
        return "not measured: one survey only"
    solution = as_solution(offsets)
    if not solution.bands:
        return f"not measured ({solution.reason}); rows are flagged UNALIGNED"
    center = solution.center.reshape(1)
    (east, north), error = solution.offset_at(center)[0], solution.sigma_at(center)[0]
    n_used = int(np.sum((offsets["band"] == "joint") & (offsets["weight"] > 0)))
    return (
        f"{east:+.1f} ± {error[0]:.1f} mas east, {north:+.1f} ± {error[1]:.1f} mas north at the centre "
        f"({solution.verdict}, {n_used} sources; corrected = ground + offset)"
    )


def _against_truth(result, numbers):
    """The lines of the summary and of the comparison with the truth."""
    band = numbers["reference_band"]
    yield from _summary(result)
    offset = numbers.get("offset")
    if offset:
        east, north = offset["truth"]
        yield (
            f"           truth {east:+.1f}, {north:+.1f} mas (mean over the field); "
            f"field error {offset['rms']:.1f} mas rms per axis"
        )
    n_detected, n_matched = numbers["n_detected"], numbers["n_matched"]
    yield f"Truth      {n_matched} of {n_detected} rows match a true source within 0.3 arcsec"
    cells = [
        f"{('<' + str(high)) if low == 0 else f'{low}-{high}'}: {found}/{n}"
        for low, high, n, found in numbers["completeness"] if n
    ]
    yield f"Found      true sources by {band} magnitude  {'  '.join(cells)}"
    yield ""
    yield "Flux against truth  (bias and scatter where S/N > 10; in 1 sigma: 68% is right)"
    yield f"{'':6}{'isolated':^38}  {'blended':^38}"
    head = f"{'n':>4} {'bias':>9} {'scatter':>9} {'in 1 sigma':>12}"
    yield f"{'band':6}{head:>38}  {head:>38}"
    rows = {(row["band"], row["kind"]): row for row in numbers["flux"]}
    for name in result.scene.bands:
        yield f"{name:6}{_flux_cells(rows[name, 'isolated']):>38}  {_flux_cells(rows[name, 'blended']):>38}"


def _flux_cells(row):
    if not row["n_measured"]:
        return f"{0:4d} {'-':>9} {'-':>9} {'-':>12}"
    inside = f"{100 * row['coverage']:.0f}% of {row['n_measured']}"
    if not row["n"]:
        return f"{0:4d} {'-':>9} {'-':>9} {inside:>12}"
    return f"{row['n']:4d} {100 * row['bias']:+8.1f}% {100 * row['nmad']:8.1f}% {inside:>12}"


def _print_ending(written, start):
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak /= 2**30 if sys.platform == "darwin" else 2**20
    print()
    print(f"Wrote      {', '.join(path.name for path in written)} in {written[0].parent}")
    print(f"Took       {time.perf_counter() - start:.0f} s, peak memory {peak:.1f} GiB")


def _inject(arguments):
    from .injection import command

    start = time.perf_counter()
    arguments.report = lambda text: print(f"{time.perf_counter() - start:7.1f} s  {text}", file=sys.stderr, flush=True)
    for line in command.run(arguments):
        print(line)


def _survey(arguments):
    start = time.perf_counter()
    arguments.report = lambda text: print(f"{time.perf_counter() - start:7.1f} s  {text}", file=sys.stderr, flush=True)
    lines = arguments.survey(arguments)
    while True:
        try:
            print(next(lines), flush=True)
        except StopIteration as end:
            return end.value


# ---------------------------------------------------------------------------- simulation
def _simulate(arguments):
    if arguments.pair:
        return _simulate_pair(arguments)
    from .simulate import write_training_set

    write_training_set(
        arguments.output, arguments.tiles, seed=arguments.seed, processes=arguments.processes,
        star_density=arguments.stars, morphologies=arguments.morphologies,
    )
    print(f"{arguments.tiles} tiles in {arguments.output}")
    return 0


def _simulate_pair(arguments):
    import astropy.units as u

    from .checkpoint import versions
    from .files import atomic_write
    from .io import pair as pair_io
    from .simulate import AstrometricError, simulate_pair

    path = Path(arguments.output)
    if path.suffix != ".fits":
        raise ValueError(f"output {str(path)!r} must end in .fits: it is one pair file")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"output {str(path)!r}: its folder does not exist, create it first")
    truth_path = path.with_name(f"{path.stem}_truth.fits")
    for file in (path, truth_path):
        if file.exists() and not arguments.overwrite:
            raise ValueError(f"output {str(file)!r} exists: choose another name, or give --overwrite")
    error = AstrometricError(shift=arguments.shift * u.mas, rms=arguments.rms * u.mas)
    pair, truth = simulate_pair(
        seed=arguments.seed, size=arguments.size * u.arcsec, density=arguments.density, astrometric_error=error,
        star_density=arguments.stars, morphologies=arguments.morphologies,
    )
    truth.meta = {"SEED": arguments.seed, "VERSION": versions()["astro-rosetta"]}
    pair_io.write(_rounded(pair), path, overwrite=arguments.overwrite)
    with atomic_write(truth_path) as temporary:
        truth.write(temporary, overwrite=True)
    print(f"{pair}\n{len(truth)} sources\nWrote {path} and {truth_path}")
    return 0


def _rounded(pair):
    """The pair rounded to 1/32 to 1/64 of the noise: less than half the file size for 0.01% more noise."""
    import numpy as np
    from astropy.nddata import NDData, VarianceUncertainty

    from . import SkyPair

    sides = {"ground": {}, "space": {}}
    for side, band, image in pair.images():
        variance = np.array(image.uncertainty.array)
        step = 2.0 ** np.floor(np.log2(np.sqrt(np.median(variance)) / 32))
        mantissa, exponent = np.frexp(variance)
        sides[side][band] = NDData(
            np.float32(np.round(image.data / step) * step),
            uncertainty=VarianceUncertainty(np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)),
            mask=image.mask, wcs=image.wcs, unit=image.unit, psf=np.float32(image.psf), meta=image.meta,
        )
    return SkyPair(sides["ground"] or None, sides["space"] or None, surveys=pair.surveys)


# ---------------------------------------------------------------------------- training
def _checkpoint_path(value):
    path = Path(value)
    if path.suffix != ".safetensors":
        raise ValueError(f"output {str(path)!r} must end in .safetensors")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"output {str(path)!r}: its folder does not exist, create it first")
    return path


def _pretrain(arguments):
    path = _checkpoint_path(arguments.output)
    if arguments.steps is None and arguments.max_minutes is None:
        raise ValueError("no end: give --steps N, --max-minutes M, or both (whichever comes first)")
    if arguments.batch < 12:
        raise ValueError(f"--batch is {arguments.batch}: use 12 or more, for two windows of 38.4 arcsec in a step")
    from . import CrossSurveyEncoder
    from .encoding.pretraining import TrainConfig, TrainingError
    from .simulate import TrainingSet

    pairs = TrainingSet(arguments.data)
    validation = TrainingSet(arguments.validation) if arguments.validation else None
    batch = {12.8: arguments.batch, 38.4: arguments.batch // 6}
    config = TrainConfig(
        steps=arguments.steps, max_minutes=arguments.max_minutes, seed=arguments.seed, log_every=LOG_EVERY,
        phases=tuple((share, window, batch[window]) for share, window, _ in TrainConfig.phases),
    )
    state = path.with_name(f"{path.name}.state")
    encoder = CrossSurveyEncoder(seed=arguments.seed, device=arguments.device)
    print(f"{len(pairs)} tiles; {encoder}; training state in {state}", flush=True)
    try:
        with _StopBetweenSteps() as progress:
            encoder.fit(pairs, config=config, validation=validation, checkpoint=state, progress=progress)
    except TrainingError as error:
        raise ValueError(str(error)) from error
    except KeyboardInterrupt:
        if state.exists():
            print(f"{state} keeps the training: the same command goes on from there", file=sys.stderr)
        raise
    print(f"Wrote {path}: encoder {encoder.save(path)}")
    for window, measured in encoder.provenance.get("held_out", {}).items():
        print(
            f"Held out, windows of {window}: retrieval {measured['retrieval']:.3f} among {measured['gallery']}, "
            f"cosine gap {measured['gap']:.3f}, rank {measured['rank']:.0f}"
        )


class _StopBetweenSteps:
    """Prints progress; the first Ctrl-C stops the training at its next line, where its state is kept.

    A second Ctrl-C stops at once.
    """

    def __enter__(self):
        self._asked = False
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_):
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("stopping at the next line (Ctrl-C again: at once)", file=sys.stderr, flush=True)

    def __call__(self, step, metrics):
        _print_step(step, metrics)
        if self._asked:
            raise KeyboardInterrupt


def _print_step(step, metrics):
    """One line of training."""
    progress, elapsed = metrics["progress"], metrics["elapsed"]
    left = elapsed * (1 - progress) / progress / 60 if progress > 0 else float("nan")
    print(
        f"step {step:6d} {100 * progress:5.1f}%  loss {metrics['loss']:7.3f}  retrieval {metrics['retrieval']:.3f}  "
        f"gap {metrics['gap']:.3f}  rank {metrics['rank']:5.1f}  std {metrics['std']:.2f}  "
        f"{metrics['pairs_per_second']:6.1f} pairs/s  {elapsed / 60:.1f} min, {left:.1f} left",
        flush=True,
    )


def _train_head(arguments):
    path = _checkpoint_path(arguments.output)
    if arguments.deblender and arguments.kind != "photometry":
        raise ValueError(f"--deblender is of no use to train-head {arguments.kind}: leave it out")
    from . import CrossSurveyEncoder, JEPADeblender
    from .simulate.observed import ObservedSet

    encoder = CrossSurveyEncoder.from_pretrained(arguments.encoder, device=arguments.device)
    pairs = ObservedSet(arguments.data, seed=arguments.seed)
    given = {}
    if arguments.deblender:
        given["deblender"] = JEPADeblender.from_pretrained(
            arguments.deblender, encoder=encoder, device=arguments.device
        )
    head = head_class(arguments.kind)(encoder, **given)
    state = path.with_name(f"{path.name}.state")
    print(f"{arguments.kind} on {encoder}: {len(pairs)} tiles; training state in {state}", flush=True)
    start = time.perf_counter()
    head.fit(_Reported(pairs, start), pairs.truth, seed=arguments.seed, checkpoint=state)
    print(f"Wrote {path}: {arguments.kind} {head.save(path)}, {(time.perf_counter() - start) / 60:.1f} min")


class _Reported:
    """A sequence that prints, on standard error, which item is being read."""

    def __init__(self, items, start):
        self._items, self._start = items, start

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        item = self._items[index]
        minutes = (time.perf_counter() - self._start) / 60
        print(f"tile {index + 1} of {len(self)}, {minutes:.1f} min", file=sys.stderr, flush=True)
        return item

    def __iter__(self):
        return (self[index] for index in range(len(self)))


# ---------------------------------------------------------------------------- checkpoints
def _info(arguments):
    from . import __version__, checkpoint

    if arguments.file:
        _print_header(Path(arguments.file), checkpoint.read_header(arguments.file))
        return 0
    print(f"rosetta {__version__}")
    headers = {}
    for kind in KINDS:
        path = checkpoint.bundled(kind)
        if path.is_file():
            headers[kind] = checkpoint.read_header(path)
            size = path.stat().st_size / 1e6
            print(f"{kind:11} {headers[kind]['fingerprint']}  {size:6.1f} MB  {path.name}")
        else:
            print(f"{kind:11} not bundled")
    strangers = [
        f"{kind} (to {owner} {header['config'][owner] or 'untrained'})"
        for kind, header in headers.items() for owner in KINDS
        if owner in header["config"] and header["config"][owner] != headers.get(owner, {}).get("fingerprint")
    ]
    if strangers:
        print(f"NOT one set: {', '.join(strangers)} belong to others")
    else:
        print("one set: the heads belong to this encoder, and the errors of photometry to this deblender")
    return 0


def _print_header(path, header):
    import json

    print(f"{path.name}: {header['kind']} {header['fingerprint']}, checkpoint format {header['format']}")
    for part in ("config", "provenance"):
        print(f"{part}:")
        for key, value in header[part].items():
            print(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")


if __name__ == "__main__":
    sys.exit(main())
