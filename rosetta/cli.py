# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The command ``rosetta``. Heavy imports wait until a command needs them."""

import argparse
import logging
import re
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from . import terminal
from .production.command import add_commands as add_survey
from .registry import HEADS, KINDS, head_class

__all__ = ["main"]

LOG_EVERY = 10  # training steps per line

log = logging.getLogger("rosetta")


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
    try:
        _check_log(arguments)
        with terminal.messages(arguments.verbosity, arguments.log):
            if arguments.log:
                log.info("%s", " ".join(["rosetta", *(sys.argv[1:] if argv is None else argv)]), extra={"said": True})
            try:
                return arguments.run(arguments) or 0
            except (ValueError, TypeError, OSError, ImportError) as error:
                log.error("%s", _text_of(error))
                return 2
            except KeyboardInterrupt:
                log.error("interrupted")
                return 130
    except ValueError as error:  # there is no log file to tell
        print(f"rosetta: error: {terminal.one_line(error)}", file=sys.stderr)
        return 2


def _text_of(error):
    if isinstance(error, ImportError) and not isinstance(error, ValueError):
        extra = {
            "matplotlib": "plot", "galsim": "sim", "speclite": "sim", "pyarrow": "survey", "astropy_healpix": "survey",
            "hats_import": "hats", "healsparse": "hats",
        }.get(error.name)
        if extra:
            return f"{error.name} is not installed: pip install 'astro-rosetta[{extra}]'"
    return terminal.one_line(error)


def _check_log(arguments):
    """A log file cannot lie in a folder that is written as a whole."""
    if arguments.log and Path(arguments.output).resolve() in Path(arguments.log).resolve().parents:
        raise ValueError(
            f"--log {arguments.log}: it lies in --output {arguments.output}, which is written as a whole; name a file "
            "elsewhere"
        )


@contextmanager
def _option(*words):
    """Errors within name an option and its value."""
    option = " ".join(map(str, words))
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    except OSError as error:
        raise ValueError(f"{option}: {error.strerror or error}: {error.filename}") from error


@contextmanager
def _options(*names):
    """Errors within that begin with the name of an argument which is also an option's call it by that."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--{error}" if str(error).startswith(names) else str(error)) from error


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
        new.set_defaults(run=run, verbosity=terminal.NORMAL, log=None)
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
    job.set_defaults(progress=lambda done, total: None)
    job.add_argument("--pair", metavar="FILE", help="a pair file, instead of images")
    job.add_argument(
        "--center", nargs=2, type=float, metavar=("RA", "DEC"), help="measure only a region around this (degrees)"
    )
    job.add_argument("--size", type=float, metavar="ARCSEC", help="side of that region")
    job.add_argument("--bands", nargs="+", metavar="BAND", help="measure only these; default: all that are given")
    job.add_argument(
        "--psf", nargs="+", default=[], metavar="BAND=FILE",
        help="FITS images of PSFs, on the pixel grid of the band's image and with odd sides; they replace its own",
    )
    job.add_argument(
        "--sources", metavar="FILE",
        help="a table of positions to measure, with sky_centroid, or ra and dec in degrees; default: what is detected",
    )
    job.add_argument(
        "--gaia", metavar="FILE",
        help="a table of stars to tie the images to, with the columns of Gaia's archive: ra, dec, ref_epoch, pmra, ...",
    )
    job.add_argument(
        "--neighbours", choices=("detect", "listed"), default="detect",
        help="with --sources; whether sources that are not in the table are modelled (default) or not",
    )
    job.add_argument(
        "--shape", choices=("fit", "point", "table"), default="fit",
        help="with --sources; fitted (default), points, or half_light_radius, e1 and e2 of the table",
    )
    job.add_argument("--recentre", action="store_true", help="with --sources; positions may move to where the light is")
    job.add_argument("-o", "--output", required=True, metavar="DIR", help="for the results")
    job.add_argument("--workers", type=int, default=1, metavar="N", help="processes for tiles of a field; default: 1")
    job.add_argument("--profile", action="store_true", help="print the time that each step took")
    job.add_argument("--window", type=float, default=38.4, metavar="ARCSEC", help="of the encoder; default: 38.4")
    _job_options(job)

    report = command("report", _report, "one HTML page on the results of a run")
    report.add_argument("folder", metavar="DIR", help="that rosetta run or rosetta demo wrote")
    report.add_argument("-o", "--output", metavar="FILE", help="the page; default: report.html in DIR")

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

    add_survey(command("survey", _survey, "the main job over an area: plan, run, status, qa, publish"))

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
    parser.add_argument(
        "--format", choices=("ecsv", "fits", "parquet", "votable"), default="ecsv",
        help="of the catalogue; default: ecsv",
    )
    parser.add_argument(
        "--pixel-positions", action="store_true", help="add x_BAND and y_BAND to the catalogue: 0-based pixels"
    )
    parser.add_argument("--segmentation", action="store_true", help="write segmentation.fits: the source of each pixel")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: CUDA where there is one")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument(
        "-q", "--quiet", dest="verbosity", action="store_const", const=terminal.QUIET, default=terminal.NORMAL,
        help="show warnings and errors only",
    )
    loudness.add_argument(
        "-v", "--verbose", dest="verbosity", action="store_const", const=terminal.VERBOSE,
        help="show what is read, how long each step takes, and what is written",
    )
    parser.add_argument("--log", metavar="FILE", help="add all messages, with their times, to this file")


# ---------------------------------------------------------------------------- the main job
def _demo(arguments):
    from importlib.resources import as_file, files

    from astropy.table import QTable

    from .io import pair as pair_io
    from .pipeline.catalogue_file import check_format
    from .pipeline.comparison import compare
    from .pipeline.output import check_output

    with _options("output"):
        check_output(arguments.output, arguments.overwrite)
    with _options("format"):
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
    terminal.say(_against_truth(result, compare(result, truth)), arguments.verbosity)
    terminal.say(_ending(written, start), arguments.verbosity)


def _run(arguments):
    from .pipeline.catalogue_file import check_format
    from .pipeline.output import check_output

    with _options("output"):
        check_output(arguments.output, arguments.overwrite)
    with _options("format"):
        check_format(arguments.format)
    start = time.perf_counter()
    with _progress(arguments) as progress:
        progress("read", 0, 1)
        arguments.progress = progress.of("read")
        listed, reference = _listed(arguments), _reference(arguments)
        if listed:
            _check_columns(listed["sources"], arguments)
        pair = _pair(arguments)
        how = {"workers": arguments.workers, **(listed or {}), **reference}
        result, written = _measure_and_write(pair, arguments, progress, window=arguments.window, **how)
    terminal.say(_summary(result), arguments.verbosity)
    if arguments.profile:
        terminal.say(progress.profile(), arguments.verbosity)
    terminal.say(_ending(written, start), arguments.verbosity)


def _progress(arguments):
    steps = ("read", "load", "encode", "align", "deblend", "measure", "write")
    return terminal.Steps(steps, arguments.verbosity, first="encode")


def _measure_and_write(pair, arguments, progress, *, window=38.4, truth=None, **how):
    import astropy.units as u

    for side, band, image in pair.images():
        ny, nx = image.data.shape
        log.info("%s %s: %d x %d pixels; assumed: %s", pair.survey_name(side), band, nx, ny, pair.flags[band])
    progress("load", 0, 1)
    from . import measure  # with the networks, which take as long to import as the images to read

    with _options("window", "device", "workers"):
        result = measure(pair, device=arguments.device, window=window * u.arcsec, progress=progress, **how)
    written = result.write(
        arguments.output, overwrite=arguments.overwrite, models=arguments.models, truth=truth, format=arguments.format,
        pixel_positions=arguments.pixel_positions, segmentation=arguments.segmentation, progress=progress.of("write"),
    )
    for path in written:
        log.info("wrote %s, %.1f MB", path, path.stat().st_size / 1e6)
    return result, written


def _report(arguments):
    from .pipeline.report import write_report

    path = write_report(arguments.folder, arguments.output)
    print(f"Wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


def _pair(arguments):
    """The pair that the options of ``rosetta run`` describe."""
    from .io import pair as pair_io

    files = {f"--{name}": getattr(arguments, name) for name in ("rubin", "euclid", "ground", "space")}
    center, size = _region(arguments)
    psf = _psfs(arguments.psf)
    if not arguments.pair:
        return _pair_of_files(arguments, files, (center, size), psf)
    given = [name for name, value in (files | {"--survey": arguments.survey}).items() if value]
    if given:
        raise ValueError(f"--pair cannot be combined with {' and '.join(given)}: give one or the other")
    with _option("--pair"):
        pair = pair_io.read(arguments.pair)
    if arguments.bands:
        with _option("--bands", *arguments.bands):
            pair = pair.select(arguments.bands)
    if psf:
        with _option("--psf", *arguments.psf):
            pair = pair.with_psf(psf)
    if center is None:
        return pair
    with _option("--center", *arguments.center):
        return pair.cutout(center, size)


def _pair_of_files(arguments, files, region, psf):
    from . import EUCLID, RUBIN, SkyPair
    from .io import read_pair

    if not any(files.values()):
        raise ValueError(
            "no input: give --rubin FILE ... and --euclid FILE ... (or one of them), or --ground BAND=FILE ... and "
            "--space BAND=FILE ..., or --pair FILE"
        )
    center, size = region
    surveys = _surveys(arguments)
    wanted = _bands(arguments.bands, surveys)
    ground, space = {}, {}
    if arguments.rubin or arguments.euclid:
        with _option(" and ".join(name for name in ("--rubin", "--euclid") if files[name])):
            read = read_pair(arguments.rubin, arguments.euclid, center=center, size=size)
        ground, space = (
            {band: image for band, image in (side or {}).items() if wanted is None or band in wanted} for side in read
        )
    sides = {"ground": ground, "space": space}
    texts = [(side, text) for side in sides for text in getattr(arguments, side)]
    for done, (side, text) in enumerate(texts):
        arguments.progress(done, len(texts))
        band, path = _band_and_file(f"--{side}", text, surveys[side].survey.band_names[0])
        with _option(f"--{side}", text):
            band = surveys[side].survey[band].name
        if wanted is not None and band not in wanted:
            continue
        images = sides[side]
        if band in images:
            raise ValueError(
                f"--{side} {text}: band {band!r} is also in {images[band].meta['file']}: leave one of them out"
            )
        images[band] = _image(f"--{side} {text}", path, band, surveys[side], center, size)
        if surveys[side].survey in (RUBIN, EUCLID):
            del images[band].meta["survey"]  # nobody said so
    if absent := sorted((wanted or set()) - {*ground, *space}):
        raise ValueError(f"--bands {' '.join(absent)}: no image of them is given")
    if absent := sorted({_band_of(band, surveys) or band for band in psf} - {*ground, *space}):
        raise ValueError(f"--psf {' '.join(absent)}: no image of them is measured, leave them out")
    return SkyPair(ground or None, space or None, surveys=tuple(surveys[side].survey for side in sides), psf=psf)


def _bands(names, surveys):
    """The bands of the option --bands by the surveys' names for them, or None."""
    if names is None:
        return None
    found = {name: _band_of(name, surveys) for name in names}
    if unknown := [name for name, band in found.items() if band is None]:
        known = " ".join(band for one in surveys.values() for band in one.survey.band_names)
        raise ValueError(f"--bands {' '.join(unknown)}: give names of bands, of {known}")
    return set(found.values())


def _band_of(name, surveys):
    """A survey's own name of a band, or None."""
    bands = [band for one in surveys.values() for band in one.survey.bands]
    of_name = [band.name for band in bands if band.name == name]
    return next(iter([*of_name, *(band.name for band in bands if name in band.aliases)]), None)


def _psfs(texts):
    """The arrays of the option --psf, by band."""
    import numpy as np

    from .images.psf import PSF
    from .io._fits import image_hdu, native, open_fits

    found = {}
    for text in texts:
        band, path = _band_and_file("--psf", text, "r")
        if band in found:
            raise ValueError(f"--psf {text}: band {band!r} has another one already: leave one of them out")
        with _option("--psf", text), open_fits(path, "its file") as hdus:
            hdu = image_hdu(hdus, "its file")
            lead = (0,) * (len(hdu.shape) - 2)
            found[band] = PSF(native(hdu, np.float64, (*lead, slice(None), slice(None))))
    return found


def _band_and_file(option, text, band):
    """The parts of an argument BAND=FILE; ``band`` is an example."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ValueError(f"{option} {text}: write BAND=FILE, such as {band}=image.fits")
    return name, path


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
        with _option("--survey"):
            survey = read_survey_file(path)
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


def _image(argument, path, band, survey, center, size):
    """The image of a band, of an argument BAND=FILE."""
    try:
        return survey.read(path, band, center=center, size=size)
    except ValueError as error:
        # The remedies are those of Python.
        hint = "; here, in the file of --survey" if re.search(r"\b(zeropoint|unit|plane)=", str(error)) else ""
        raise ValueError(f"{argument}: {error}{hint}") from error
    except OSError as error:
        raise ValueError(f"{argument}: {error.strerror or error}") from error


def _table(option, path):
    """The table in the file of an option."""
    from astropy.io.registry import IORegistryError
    from astropy.table import QTable

    if not path.is_file():
        raise ValueError(f"{option} {path}: there is no such file")
    try:
        return QTable.read(path)
    except IORegistryError as error:
        raise ValueError(f"{option} {path}: not a kind of table that astropy knows by name: use .ecsv") from error
    except Exception as error:  # readers of tables fail in as many ways as there are formats
        raise ValueError(f"{option} {path}: {error}") from error


def _reference(arguments):
    """What ``rosetta.measure`` is told of the stars in the file of --gaia (dict)."""
    if arguments.gaia is None:
        return {}
    path = Path(arguments.gaia)
    table = _table("--gaia", path)
    from .astrometry.reference_stars import reference_stars

    try:
        reference_stars(table)
    except ValueError as error:
        raise ValueError(f"--gaia {path}: {error}") from error
    return {"reference": table}


def _listed(arguments):
    """What ``rosetta.measure`` is told of the positions in the file of --sources (dict)."""
    if arguments.sources is None:
        if arguments.neighbours != "detect" or arguments.shape != "fit" or arguments.recentre:
            raise ValueError("--neighbours, --shape and --recentre are of no use without --sources: give positions")
        return {}
    import astropy.units as u
    from astropy.coordinates import SkyCoord

    path = Path(arguments.sources)
    table = _table("--sources", path)
    if "sky_centroid" not in table.colnames:
        if missing := [name for name in ("ra", "dec") if name not in table.colnames]:
            raise ValueError(f"--sources {path}: no column {' and '.join(missing)}: give sky_centroid, or ra and dec")
        try:
            ra, dec = (u.Quantity(table[name], getattr(table[name], "unit", None) or u.deg) for name in ("ra", "dec"))
            table["sky_centroid"] = SkyCoord(ra, dec)
        except (TypeError, ValueError) as error:
            raise ValueError(f"--sources {path}: ra and dec are no positions in degrees: {error}") from error
    shape = table if arguments.shape == "table" else arguments.shape
    return {
        "sources": table, "neighbours": arguments.neighbours, "shape": shape, "recentre": arguments.recentre,
    }  # fmt: skip


def _check_columns(table, arguments):
    """That the catalogue's file can hold the columns of a user's table: said before the work, not after it."""
    from tempfile import TemporaryDirectory

    from .io import write_catalogue
    from .pipeline.catalogue_file import FILES

    own = table[[name for name in table.colnames if name != "sky_centroid"]]  # which the catalogue has itself
    with TemporaryDirectory() as folder:
        try:
            write_catalogue(own, Path(folder) / FILES[arguments.format])
        except ValueError as error:
            raise ValueError(f"--sources {arguments.sources}: {error}") from error


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
    n_used = int(np.sum((offsets["band"] == "joint") & (offsets["weight"] > 0)))
    return (
        f"{solution.at_center()} at the centre "
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


def _ending(written, start):
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak /= 2**30 if sys.platform == "darwin" else 2**20
    yield ""
    yield f"Wrote      {', '.join(path.name for path in written)} in {written[0].parent}"
    yield f"Took       {time.perf_counter() - start:.0f} s, peak memory {peak:.1f} GiB"


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
