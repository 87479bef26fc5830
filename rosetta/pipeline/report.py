# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""One HTML page on the results of a run, made from its files."""

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from math import floor, log10
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.table import Column, QTable

from ..astrometry.solution import AstrometricSolution
from ..columns import DESCRIPTIONS
from ..columns import OF_BANDS as COLUMNS_OF_BANDS
from ..display import html_table
from ..files import atomic_write
from ..flags import OF_BANDS as FLAGS_OF_BANDS
from ..flags import Flag
from ..io.catalogue import read_catalogue
from .catalogue_file import find_catalogue
from .output import PRODUCTS
from .report_page import page, picture, section, sortable

__all__ = ["MAX_ROWS", "write_report"]

MAX_ROWS = 10_000  # of the table
PNG = b"\x89PNG\r\n\x1a\n"
# Columns that are shown if they are there, with so many decimals.
NUMBERS = {"snr": 1, "half_light_radius": 3, "blendedness": 3, "blend_probability": 3}
OF_DEGREES = 7  # decimals: 0.4 mas
EXACT = 2**53  # JavaScript's numbers are exact up to here: longer identifiers are texts
LONGEST = 60  # characters of a text that are shown


def write_report(directory, path=None):
    """Write one HTML page on the results of a run.

    It holds all that it shows, loads nothing, and can be sent as one file: the overview picture, the aligner's verdict
    and offsets, the residuals, the number of rows with each flag, the catalogue as a table that can be sorted (of more
    than 10,000 rows, the 10,000 of highest S/N), and provenance.

    Parameters
    ----------
    directory : path-like
        Of the results of `rosetta.Result.write`, ``rosetta run`` or ``rosetta demo``.
    path : path-like, optional
        The page; replaced if it exists. Default: ``report.html`` in the directory.

    Returns
    -------
    `~pathlib.Path`

    Raises
    ------
    ValueError
        If the directory holds no results of a run, or one of its files is damaged; the message names it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{str(directory)!r} is no folder: name the one that rosetta run -o made")
    source = find_catalogue(directory)
    path = directory / "report.html" if path is None else Path(path)
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise ValueError(f"output {str(path)!r}: name a file in a folder that exists")
    catalog = read_catalogue(source)
    bands = _bands(catalog, source)
    sections = [
        f"<p>{escape(_summary(catalog, bands))}</p>",
        section("Overview", _overview(directory / "overview.png")),
        section("Alignment", *_alignment(directory / "offsets.ecsv")),
        section("Residuals", *_residuals(directory / "models.fits", catalog)),
        section("Flags", *_flags(catalog, bands)),
        section("Catalogue", *_table(catalog, source)),
        section("Provenance", *_provenance(catalog, directory)),
    ]
    text = page(f"rosetta: {directory.resolve().name}", sections, _rows(catalog, bands))
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _bands(catalog, source):
    """Bands that the catalogue has fluxes in."""
    missing = [name for name in ("label", "sky_centroid", "snr", "flags") if name not in catalog.colnames]
    if missing:
        raise ValueError(f"{str(source)!r} has no column {missing[0]!r}: it is no catalogue of a run")
    return [name.removeprefix("flux_err_") for name in catalog.colnames if name.startswith("flux_err_")]


def _summary(catalog, bands):
    blended = int(np.count_nonzero(np.asarray(catalog["flags"]) & int(Flag.BLENDED)))
    return f"{len(catalog)} sources in {' '.join(bands)}; {blended} of them blended."


# ---------------------------------------------------------------------------- pictures
def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _overview(path):
    if not path.is_file():
        return "<p>There is no overview.png.</p>"
    content = path.read_bytes()
    if not content.startswith(PNG):
        raise ValueError(f"{str(path)!r} is no PNG picture: run the job again")
    return picture(content, "Colour images with the sources, one deblended source, and fluxes with their errors.")


def _alignment(path):
    """The aligner's verdict, the offsets, and what the field leaves of them."""
    from ..plotting import plot_residuals

    if not path.is_file():
        yield "<p>Not measured: images of one survey only.</p>"
        return
    try:
        offsets = QTable.read(path, format="ascii.ecsv")
        solution = AstrometricSolution.from_table(offsets)
    except OSError:
        raise
    except Exception as error:  # astropy raises many types for a damaged table
        raise ValueError(f"{str(path)!r} cannot be read as offsets ({error}): run the job again") from error
    what = "; ".join(filter(None, [solution.at_center(), solution.reason]))
    verdict = escape(solution.verdict)
    yield f'<p>Verdict: <strong class="{verdict}">{verdict}</strong>. {escape(what)}</p>'
    yield solution._repr_html_()
    if solution.bands:
        axes = plot_residuals(offsets)
        yield picture(_png(axes[0].figure), "Offsets before and after the field is subtracted, and their pulls.")


def _residuals(path, catalog):
    """What the models leave of each image."""
    from ..plotting import plot_residual_images

    if not path.is_file():
        yield "<p>There is no models.fits: the run was made with --models none.</p>"
        return
    rows, images = [], {}
    try:
        with fits.open(path) as file:
            for hdu in file:
                if not hdu.name.startswith("RESIDUAL_"):
                    continue
                band = str(hdu.header["BAND"])
                image = np.asarray(hdu.data, np.float32)
                good = image[np.isfinite(image)]
                scatter = 1.4826 * float(np.median(np.abs(good - np.median(good)))) if good.size else np.nan
                far = np.mean(np.abs(good) > 5 * scatter) if good.size else np.nan
                rows.append((band, f"{scatter:.4g}", f"{1e3 * far:.2f}", f"{_median(catalog, f'chi2_{band}'):.2f}"))
                images[band] = image
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as models ({error}): run the job again") from error
    yield html_table(
        "", ("band", "scatter (nJy per pixel)", "pixels beyond 5 scatters, per 1000", "median chi2 of sources"), rows
    )
    yield "<p>Each image in units of its own scatter (NMAD), on its own pixels; red: the image is brighter.</p>"
    yield picture(_png(plot_residual_images(images)), "Residual of each band.")


def _median(catalog, name):
    values = np.asarray(catalog[name], float) if name in catalog.colnames else np.zeros(0)
    values = values[np.isfinite(values)]
    return np.median(values) if values.size else np.nan


# ---------------------------------------------------------------------------- tables
def _flags(catalog, bands):
    """Rows with each flag, and, for each band, rows with it there."""
    bands = [band for band in bands if f"flags_{band}" in catalog.colnames]
    columns = ["flags", *(f"flags_{band}" for band in bands)]
    rows = []
    for flag in Flag:
        counts = [int(np.count_nonzero(np.asarray(catalog[name]) & int(flag))) for name in columns]
        if any(counts):
            of_bands = counts[1:] if flag in FLAGS_OF_BANDS else [""] * len(bands)
            rows.append((flag.name, counts[0], *of_bands))
    yield html_table("", ("flag", "rows", *bands), rows)
    yield (
        "<p>Rows of the catalogue with each flag; in the columns of the bands, those for which it holds there. Where "
        "these are empty, the flag is not kept for each band.</p>"
    )


def _table(catalog, source):
    shown = ""
    if len(catalog) > MAX_ROWS:
        shown = f"The {MAX_ROWS} rows of highest S/N; the catalogue has {len(catalog)}. "
    yield f"<p>{shown}Fluxes in nJy. Click on a column's name to sort. All columns are in {escape(source.name)}.</p>"
    yield sortable()


def _rows(catalog, bands):
    """What the script of the page draws."""
    if len(catalog) > MAX_ROWS:
        snr = np.nan_to_num(np.asarray(catalog["snr"], float))
        catalog = catalog[np.sort(np.argsort(-snr, kind="stable")[:MAX_ROWS])]
    sky = catalog["sky_centroid"].icrs
    columns = [
        ("label", np.asarray(catalog["label"]).tolist()),
        *((_titled(catalog, name), _values(catalog[name])) for name in _own_columns(catalog, bands)),
        ("RA (deg)", _rounded(sky.ra.deg, OF_DEGREES)), ("Dec (deg)", _rounded(sky.dec.deg, OF_DEGREES)),
        *((_titled(catalog, name), _rounded(catalog[name], decimals))
          for name, decimals in NUMBERS.items() if name in catalog.colnames),
        *((band, _with_errors(catalog[f"flux_{band}"], catalog[f"flux_err_{band}"])) for band in bands),
        ("flags", np.asarray(catalog["flags"]).tolist()),
    ]  # fmt: skip
    names, values = zip(*columns, strict=True)
    return {
        "columns": list(names), "rows": [list(row) for row in zip(*values, strict=True)],
        "flags": [flag.name for flag in Flag], "flag": len(columns) - 1,
    }  # fmt: skip


def _own_columns(catalog, bands):
    """Names of the columns that came with a user's list of positions, of one number or text a row."""
    known = {"ra", "dec", *DESCRIPTIONS, *(f"{name}_{band}" for name in COLUMNS_OF_BANDS for band in bands)}
    return [
        name for name in catalog.colnames
        if name not in known and isinstance(catalog[name], Column | u.Quantity)
        and catalog[name].ndim == 1 and catalog[name].dtype.kind in "biufUSO"
    ]  # fmt: skip


def _titled(catalog, name):
    """The name of a column, with its unit."""
    unit = getattr(catalog[name], "unit", None)
    return f"{name} ({unit})" if unit else name


def _values(column):
    """Numbers and texts of a column as they are; None where it is masked or not finite."""
    mask = np.broadcast_to(getattr(column, "mask", False), column.shape)
    values = np.asarray(getattr(column, "unmasked", getattr(column, "value", column))).tolist()
    return [None if hidden else _plain_value(value) for value, hidden in zip(values, mask, strict=True)]


def _plain_value(value):
    """A number, or a text."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool | int):
        return str(value) if isinstance(value, bool) or abs(value) > EXACT else value
    if isinstance(value, float):
        return float(f"{value:.9g}") if np.isfinite(value) else None
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\u2026"


def _rounded(column, decimals):
    """Values with so many decimals; None where one is not finite."""
    values = np.asarray(getattr(column, "value", column), float)
    return [round(value, decimals) if np.isfinite(value) else None for value in values.tolist()]


def _with_errors(column, errors):
    """Value, error and decimals of each: two digits of the error, and of the value what they leave."""
    return [list(_with_error(*both)) for both in zip(column.value.tolist(), errors.value.tolist(), strict=True)]


def _with_error(value, error):
    if not (np.isfinite(error) and error > 0):
        return (float(f"{value:.4g}") if np.isfinite(value) else None), None, None
    error = float(f"{error:.2g}")
    decimals = 1 - floor(log10(error))
    return (round(value, decimals) if np.isfinite(value) else None), error, max(decimals, 0)


# ---------------------------------------------------------------------------- provenance
def _provenance(catalog, directory):
    """Inputs, models, versions and files."""
    meta = _plain(catalog.meta)
    told = meta.get("rosetta", {})
    inputs = told.get("inputs", {})
    order = [band for band in meta.get("bands", []) if band in inputs] or list(inputs)
    rows = [
        (band, *(inputs[band].get(key, "") for key in ("survey", "side", "file", "shape", "depth", "psf_fwhm")),
         str(Flag(inputs[band].get("flags", 0))))
        for band in order
    ]  # fmt: skip
    header = ("band", "survey", "side", "file", "shape (ny, nx)", "depth (AB, 5 sigma)", "PSF FWHM (arcsec)", "assumed")
    yield html_table("Images", header, rows)
    deblender = meta.get("deblender", {}).get("rosetta", {})
    models = {
        "encoder": told.get("encoder_fingerprint"), "photometry": told.get("head_fingerprint"),
        "deblender": deblender.get("head_fingerprint"),
    }  # fmt: skip
    yield html_table("Models", (), [(name, value) for name, value in models.items() if value])
    yield html_table("Versions", (), told.get("versions", {}).items())
    files = [directory / name for name in PRODUCTS if name != "report.html" and (directory / name).is_file()]
    yield html_table("Files", (), [(path.name, *_size_and_time(path.stat())) for path in files])
    text = json.dumps(meta, indent=1, default=str)
    yield f"<details><summary>All of the catalogue's meta</summary><pre>{escape(text)}</pre></details>"


def _size_and_time(status):
    return f"{status.st_size / 1e6:.2f} MB", f"{datetime.fromtimestamp(status.st_mtime, UTC):%Y-%m-%d %H:%M} UTC"


def _plain(value):
    """A meta as plain dicts with strings as keys."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if key != "__attributes__"}
    return value
