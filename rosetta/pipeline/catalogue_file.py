# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The catalogue among the files of a run, in one of several formats."""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["FILES", "FORMATS", "check_format", "find_catalogue"]

FILES = {
    "ecsv": "catalogue.ecsv", "fits": "catalogue.fits", "parquet": "catalogue.parquet", "votable": "catalogue.vot",
}  # fmt: skip
FORMATS = tuple(FILES)


def check_format(format):
    """Refuse a format that is not known, or that needs a package that is not installed.

    Parameters
    ----------
    format : str

    Raises
    ------
    ValueError
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "parquet" and find_spec("pyarrow") is None:
        raise ValueError("format 'parquet' needs pyarrow: install it, or choose ecsv, fits or votable")


def find_catalogue(directory):
    """The catalogue in the folder of a run.

    Parameters
    ----------
    directory : path-like

    Returns
    -------
    `~pathlib.Path`

    Raises
    ------
    ValueError
        If there is none, or more than one.
    """
    directory = Path(directory)
    found = [directory / name for name in FILES.values() if (directory / name).is_file()]
    if len(found) != 1:
        what = " and ".join(path.name for path in found) if found else "no catalogue"
        raise ValueError(f"{str(directory)!r} holds {what}: name the folder of one run, which rosetta run -o made")
    return found[0]
