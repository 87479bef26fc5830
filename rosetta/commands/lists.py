# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Tables that a user gives to ``rosetta run``: positions to measure, and stars to tie the images to."""

from pathlib import Path

from .errors import options

__all__ = ["check_columns", "positions_of", "stars_of"]


def stars_of(arguments):
    """What ``rosetta.measure`` is told of the stars in the file of --gaia (dict)."""
    if arguments.gaia is None:
        return {}
    path = Path(arguments.gaia)
    table = _table("--gaia", path)
    from ..astrometry.reference_stars import reference_stars

    try:
        reference_stars(table)
    except ValueError as error:
        raise ValueError(f"--gaia {path}: {error}") from error
    return {"reference": table}


def positions_of(arguments):
    """What ``rosetta.measure`` is told of the positions in the file of --sources (dict)."""
    if arguments.sources is None:
        if arguments.neighbours != "detect" or arguments.shape != "fit" or arguments.recentre:
            raise ValueError("--neighbours, --shape and --recentre are of no use without --sources: give positions")
        return {}
    path = Path(arguments.sources)
    table = _table("--sources", path)
    from ..deblending.job_list import given_shapes
    from ..deblending.source_list import user_sources

    try:
        user_sources(table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--sources {path}: {str(error).removeprefix('sources').lstrip(': ')}") from error
    shape = table if arguments.shape == "table" else arguments.shape
    with options("shape"):
        given_shapes(shape, len(table))
    return {
        "sources": table, "neighbours": arguments.neighbours, "shape": shape, "recentre": arguments.recentre,
    }  # fmt: skip


def check_columns(table, arguments):
    """That the catalogue's file can hold the columns of a user's table: said before the work, not after it."""
    from tempfile import TemporaryDirectory

    from ..io import write_catalogue
    from ..pipeline.catalogue_file import FILES

    own = table[[name for name in table.colnames if name != "sky_centroid"]]  # which the catalogue has itself
    with TemporaryDirectory() as folder:
        try:
            write_catalogue(own, Path(folder) / FILES[arguments.format])
        except ValueError as error:
            raise ValueError(f"--sources {arguments.sources}: {error}") from error


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
