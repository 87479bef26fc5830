# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The command ``rosetta``: its options, and what they call. Heavy imports wait until a command needs them."""

import argparse
import logging
import sys
from pathlib import Path

from . import terminal
from .commands.info import print_checkpoints
from .commands.reported import inject_sources, measure_area
from .commands.run import measure_images, measure_sample, write_page
from .commands.simulate import simulate_sky
from .commands.train import train_encoder, train_head
from .production.command import add_commands as add_survey
from .registry import HEADS

__all__ = ["main"]

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
            "hats_import": "hats", "healsparse": "hats", "faiss": "search",
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


class _Version(argparse.Action):
    def __init__(self, option_strings, dest, **_):
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser, *_):
        import rosetta

        print(f"rosetta {rosetta.__version__}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line, as for all other bad input."""
        self.exit(2, f"rosetta: error: {terminal.one_line(message)}; see {self.prog} --help\n")


def _parser():
    parser = _Parser(
        prog="rosetta",
        description="One aligned, deblended, ten-band catalogue from Rubin-like and Euclid-like images of one sky.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name, run, text):
        new = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        new.set_defaults(run=run, verbosity=terminal.NORMAL, log=None)
        return new

    demo = command("demo", measure_sample, "the main job on a bundled pair with known truth; needs no network")
    demo.add_argument("-o", "--output", default="rosetta_demo", metavar="DIR", help="default: rosetta_demo")
    _job_options(demo)

    job = command("run", measure_images, "the main job on your own images")
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
        help="with --sources; whether sources that are not in the table are modelled (default) or not; neighbours of a "
        "scene that was deblended before: in Python, with neighbours='scene'",
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

    report = command("report", write_page, "one HTML page on the results of a run")
    report.add_argument("folder", metavar="DIR", help="that rosetta run or rosetta demo wrote")
    report.add_argument("-o", "--output", metavar="FILE", help="the page; default: report.html in DIR")

    inject = command(
        "inject", inject_sources, "simulated sources into your own images, and how well they are measured there"
    )
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

    add_survey(command("survey", measure_area, "the main job over an area: plan, run, status, qa, publish, search"))

    simulate = command("simulate", simulate_sky, "noise-free training tiles, or one noisy pair with its truth")
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

    pretrain = command("pretrain", train_encoder, "train the encoder on noise-free tiles; resumes where it stopped")
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

    head = command("train-head", train_head, "train one head on the frozen encoder; resumes where it stopped")
    head.add_argument("kind", choices=tuple(HEADS))
    head.add_argument("--data", required=True, metavar="DIR", help="tiles written by rosetta simulate")
    head.add_argument("-o", "--output", required=True, metavar="FILE", help="ends in .safetensors")
    head.add_argument("--encoder", metavar="FILE", help="default: the bundled one")
    head.add_argument(
        "--deblender", metavar="FILE", help="for photometry, whose errors hold for its scenes; default: the bundled one"
    )
    head.add_argument("--seed", type=int, default=0, help="default: 0")
    head.add_argument("--device", help="cpu, cuda or cuda:N; default: CUDA where there is one")

    info = command("info", print_checkpoints, "what is bundled, or what a checkpoint holds")
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


if __name__ == "__main__":
    sys.exit(main())
