# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The files of a run: all of them, or none."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from astropy.io import fits

__all__ = ["check_output", "write", "write_models"]

STAMP_SHARE = 1e-4  # of a model's peak; fainter borders are cut off its stamp


def check_output(directory, overwrite):
    """Refuse a directory that holds something, before any work is done.

    Raises
    ------
    ValueError
        If it is a file, its parent does not exist, or it is not empty and ``overwrite`` is False.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"output {str(directory)!r} is a file: name a directory")
    if not directory.absolute().parent.is_dir():
        raise ValueError(f"output {str(directory)!r}: the folder it would stand in does not exist, create it first")
    home = directory if directory.is_dir() else directory.absolute().parent
    if not os.access(home, os.W_OK):
        raise ValueError(f"output {str(directory)!r}: {str(home)!r} cannot be written to, choose another directory")
    if directory.is_dir() and any(directory.iterdir()) and not overwrite:
        raise ValueError(f"output {str(directory)!r} is not empty: choose another directory, or allow overwriting")


def write(result, directory, *, truth=None, overwrite=False):
    """Write the five products of a run: all of them, or none.

    ``catalogue.ecsv`` (fluxes, then the columns of the scene's table); ``offsets.ecsv`` (with both surveys);
    ``models.fits``; ``sources.reg`` (DS9); ``overview.png``.

    Parameters
    ----------
    result : Result
    directory : path-like
        Created. Other files in it are left alone when it is overwritten.
    truth : `~astropy.table.QTable`, optional
        For the overview.
    overwrite : bool

    Returns
    -------
    list of `~pathlib.Path`

    Raises
    ------
    ValueError
        As `check_output`.
    """
    check_output(directory, overwrite)
    directory = Path(directory).absolute()
    exists = directory.is_dir()
    # On the same disk as the target, so that moving into place is a rename. A directory that exists stays the
    # one it is: it may be a link, a mount or somebody's current one.
    temporary = Path(tempfile.mkdtemp(dir=directory if exists else directory.parent, prefix=".rosetta-"))
    try:
        os.chmod(temporary, 0o755)
        _with_shapes(result).write(temporary / "catalogue.ecsv", format="ascii.ecsv")
        if result.offsets is not None:
            result.offsets.write(temporary / "offsets.ecsv", format="ascii.ecsv")
        write_models(result.scene, temporary / "models.fits")
        result.scene.to_regions().write(temporary / "sources.reg", format="ds9")
        _write_overview(result, temporary / "overview.png", truth)
        names = sorted(path.name for path in temporary.iterdir())
        if exists:
            for name in names:
                os.replace(temporary / name, directory / name)
            if result.offsets is None:
                (directory / "offsets.ecsv").unlink(missing_ok=True)  # of an earlier run
        else:
            os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [directory / name for name in names]


def _with_shapes(result):
    """The catalogue, with what the scene knows beside: sizes, shapes, blendedness."""
    catalog, table = result.catalog.copy(), result.scene.to_table()
    for name in table.colnames:
        if name not in catalog.colnames:
            catalog[name] = table[name]
    if len(catalog) == 0:
        del catalog["flux_cov"]  # ECSV cannot be read back with an empty column of matrices
    return catalog


def _write_overview(result, path, truth):
    from ..plotting import overview

    overview(result, truth=truth).savefig(path, dpi=110)


def write_models(scene, path):
    """Models and residuals of a scene as one FITS file.

    Per band, ``MODEL_<band>`` (sum of all sources) and ``RESIDUAL_<band>`` (NaN where masked), nJy on
    the native grid, ``EXTVER`` 1 on the ground and 2 in space. Then one ``SOURCE`` image per source,
    its model in the reference band (card ``BAND``; VIS where there is one), with its own WCS and
    ``EXTVER`` its label; borders below 1e-4 of the peak are cut off.
    """
    reference = scene.meta["reference_band"]
    sides = {band: side for side, band, _ in scene.embedding.pair.images()}
    primary = fits.PrimaryHDU()
    primary.header["CONTENT"] = ("models", "rosetta: models and residuals, nJy per pixel")
    primary.header["REFBAND"] = (reference, "band of the SOURCE images")
    primary.header["NSOURCE"] = len(scene)
    primary.writeto(path)
    headers = {}
    for band in scene.bands:
        residual = scene.residual(band)
        headers[band] = header = residual.wcs.to_header(relax=True)
        header["BUNIT"], header["BAND"] = "nJy", band
        images = {f"MODEL_{band}": scene.model(None, band).data, f"RESIDUAL_{band}": residual.data}
        _append(path, [_compressed(array, header, name, sides[band]) for name, array in images.items()])
    sources = (_source_image(scene, int(label), reference, headers[reference]) for label in scene.labels)
    _append(path, (hdu for hdu in sources if hdu is not None))


def _append(path, hdus):
    # Band after band: the file holds them all, the memory one.
    with fits.open(path, mode="append") as file:
        for hdu in hdus:
            file.append(hdu)


def _compressed(array, header, name, side):
    # GZIP_2 without quantisation is lossless.
    data = array.astype(np.float32)
    hdu = fits.CompImageHDU(data, header, name=name, compression_type="GZIP_2", quantize_level=0)
    hdu.ver = 1 if side == "ground" else 2
    return hdu


def _source_image(scene, label, band, header):
    """The model of one source, or None where it has no pixel in the band."""
    try:
        model = scene.model(label, band)
    except ValueError:  # off the image; its row in the catalogue says so
        return None
    data = np.nan_to_num(model.data)
    y, x = np.nonzero(np.abs(data) > STAMP_SHARE * np.abs(data).max())
    if len(y) == 0:
        return None
    x0, y0 = model.meta["ORIGINX"], model.meta["ORIGINY"]
    data = data[y.min() : y.max() + 1, x.min() : x.max() + 1]
    header = header.copy()
    header["CRPIX1"] -= x0 + x.min()
    header["CRPIX2"] -= y0 + y.min()
    header["LABEL"] = (label, "row of the catalogue")
    header["ORIGINX"] = (int(x0 + x.min()), "0-based pixel of the band's image")
    header["ORIGINY"] = (int(y0 + y.min()), "0-based pixel of the band's image")
    return fits.ImageHDU(data.astype(np.float32), header, name="SOURCE", ver=label)
