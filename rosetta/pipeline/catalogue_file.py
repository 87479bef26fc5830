# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The catalogue of a run as a file, in one of several formats, with its units and provenance."""

from pathlib import Path

from astropy.io import fits
from astropy.table import QTable

from ..io._store import document, document_hdu

__all__ = ["FILES", "FORMATS", "check_format", "find_catalogue", "read_catalogue", "write_catalogue"]

FORMATS = ("ecsv", "fits")
FILES = tuple(f"catalogue.{name}" for name in FORMATS)
META = "CATALOGUE_META"  # FITS: the extension with the provenance, as JSON


def check_format(format):
    """Refuse a format that is not known.

    Parameters
    ----------
    format : str

    Raises
    ------
    ValueError
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")


def write_catalogue(catalog, path):
    """Write a catalogue; the ending of the file says in which format.

    Parameters
    ----------
    catalog : `~astropy.table.QTable`
    path : `~pathlib.Path`
    """
    if path.suffix == ".ecsv":
        if len(catalog) == 0:
            catalog = catalog.copy()
            del catalog["flux_cov"]  # ECSV cannot be read back with an empty column of matrices
        catalog.write(path, format="ascii.ecsv")
        return
    bare = catalog.copy(copy_data=False)
    bare.meta.clear()  # FITS headers cannot hold what is nested
    bare.write(path, format="fits")
    with fits.open(path, mode="append") as file:
        file[1].name = "CATALOGUE"
        file.append(document_hdu(META, catalog.meta))


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
    found = [directory / name for name in FILES if (directory / name).is_file()]
    if len(found) != 1:
        what = " and ".join(path.name for path in found) if found else "no catalogue"
        raise ValueError(f"{str(directory)!r} holds {what}: name the folder of one run, which rosetta run -o made")
    return found[0]


def read_catalogue(path):
    """Read a catalogue written by `write_catalogue`.

    Parameters
    ----------
    path : `~pathlib.Path`

    Returns
    -------
    `~astropy.table.QTable`

    Raises
    ------
    ValueError
        If the file is damaged; the message names it.
    """
    try:
        if path.suffix == ".ecsv":
            return QTable.read(path, format="ascii.ecsv")
        with fits.open(path) as file:
            catalog = QTable.read(file, hdu=1)
            catalog.meta = document({(hdu.name, hdu.ver): hdu for hdu in file}, META)
        return catalog
    except OSError:
        raise
    except Exception as error:  # astropy raises many types for a damaged table
        raise ValueError(f"{str(path)!r} cannot be read as a catalogue ({error}): run the job again") from error
