# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The files of a run."""

from pathlib import Path

import numpy as np
from astropy.io import fits

from ..files import naming
from ..images.wcs import cards_of
from .output import PRODUCTS, check_output, replaced

__all__ = ["MODELS", "PRODUCTS", "with_shapes", "write", "write_models"]

MODELS = ("none", "bands", "sources")
BLOCK = 2880  # bytes; FITS comes in blocks
STAMP_SHARE = 1e-4  # of a model's peak; fainter borders are cut off its stamp


def write(result, directory, *, truth=None, overwrite=False, models="sources"):
    """Write the products of a run: all of them, or none. See `~rosetta.Result.write`.

    Parameters
    ----------
    result : `~rosetta.Result`
    directory : path-like
    truth : `~astropy.table.QTable`, optional
    overwrite : bool
    models : {"none", "bands", "sources"}

    Returns
    -------
    list of `~pathlib.Path`

    Raises
    ------
    ValueError
        If the directory cannot be used, another process writes to it, or ``models`` is unknown.
    OSError
        If a file cannot be written, for instance because the disk is full; the message names it.
    """
    if models not in MODELS:
        raise ValueError(f"models must be one of {', '.join(MODELS)}, got {models!r}")
    check_output(directory, overwrite)
    with replaced(directory) as folder:
        catalog = with_shapes(result)
        _write(directory, folder, "catalogue.ecsv", lambda path: catalog.write(path, format="ascii.ecsv"))
        if result.offsets is not None:
            _write(directory, folder, "offsets.ecsv", lambda path: result.offsets.write(path, format="ascii.ecsv"))
        if models != "none":
            sources = models == "sources"
            _write(directory, folder, "models.fits", lambda path: write_models(result.scene, path, sources=sources))
        regions = result.scene.to_regions()
        _write(directory, folder, "sources.reg", lambda path: regions.write(path, format="ds9"))
        _write(directory, folder, "overview.png", lambda path: _write_overview(result, path, truth))
        names = sorted(path.name for path in folder.iterdir())
    return [Path(directory).absolute() / name for name in names]


def _write(directory, folder, name, write):
    """One file; an error names the place that it would have had."""
    with naming(Path(directory) / name):
        write(folder / name)


def with_shapes(result):
    """The catalogue with the sizes, shapes and blendedness of the scene's table."""
    catalog, table = result.catalog.copy(), result.scene.to_table()
    for name in table.colnames:
        if name not in catalog.colnames:
            catalog[name] = table[name]
    if len(catalog) == 0:
        del catalog["flux_cov"]  # ECSV cannot be read back with an empty column of matrices
    return catalog


def _write_overview(result, path, truth):
    from ..plotting import overview

    overview(result, truth=truth).savefig(path, dpi=110, pil_kwargs={"compress_level": 3})


def write_models(scene, path, *, sources=True):
    """Models and residuals of a scene as one FITS file.

    Per band, ``MODEL_<band>`` (sum of all sources) and ``RESIDUAL_<band>`` (NaN where masked), nJy on
    the native grid, ``EXTVER`` 1 on the ground and 2 in space. Then one ``SOURCE`` image per source,
    its model in the reference band (card ``BAND``; VIS where there is one), with its own WCS and
    ``EXTVER`` its label; borders below 1e-4 of the peak are cut off. A source without a pixel in that band has none.

    Parameters
    ----------
    scene : `~rosetta.DeblendedScene`
    path : path-like
    sources : bool, optional
        Whether there are ``SOURCE`` images.
    """
    reference = scene.meta["reference_band"]
    sides = {band: side for side, band, _ in scene.embedding.pair.images()}
    primary = fits.PrimaryHDU()
    primary.header["CONTENT"] = ("models", "rosetta: models and residuals, nJy per pixel")
    primary.header["REFBAND"] = (reference, "band of the SOURCE images")
    primary.header["NSOURCE"] = len(scene)
    primary.writeto(path)
    # Band by band, so that memory is needed for one of them.
    for band in scene.bands:
        model, residual = scene.model_and_residual(band)
        header = cards_of(residual.wcs)
        header["BUNIT"], header["BAND"] = "nJy", band
        with fits.open(path, mode="append") as file:
            for hdu in (
                # GZIP_2 without quantisation is lossless. Tiles of two rows take a fifth less time than one or eight.
                fits.CompImageHDU(
                    model.data.astype(np.float32), header, name=f"MODEL_{band}", compression_type="GZIP_2",
                    quantize_level=0, tile_shape=(min(2, model.shape[0]), model.shape[1]),
                ),
                # Noise takes as long to compress as a model, for a twelfth of its size.
                fits.ImageHDU(residual.data.astype(np.float32), header, name=f"RESIDUAL_{band}"),
            ):
                hdu.ver = 1 if sides[band] == "ground" else 2
                file.append(hdu)
        if band == reference:
            of_sources = header
    if sources:
        _write_sources(scene, reference, of_sources, path)


def _write_sources(scene, band, header, path):
    """Append a ``SOURCE`` image per source; their headers differ in a few cards only, so one header serves all."""
    header = fits.ImageHDU(np.zeros((1, 1), np.float32), header, name="SOURCE", ver=1).header
    crpix = header["CRPIX1"], header["CRPIX2"]
    with open(path, "ab") as file:
        for label, (x0, y0), image in scene.source_models(band):
            y, x = np.nonzero(np.abs(image) > STAMP_SHARE * np.abs(image).max(initial=0.0))
            if len(y) == 0:
                continue
            image = image[y.min() : y.max() + 1, x.min() : x.max() + 1]
            x0, y0 = int(x0 + x.min()), int(y0 + y.min())
            header["NAXIS1"], header["NAXIS2"] = image.shape[::-1]
            header["CRPIX1"], header["CRPIX2"] = crpix[0] - x0, crpix[1] - y0
            header["EXTVER"] = label
            header["LABEL"] = (label, "row of the catalogue")
            header["ORIGINX"] = (x0, "0-based pixel of the band's image")
            header["ORIGINY"] = (y0, "0-based pixel of the band's image")
            pixels = image.astype(">f4").tobytes()
            file.write(header.tostring().encode("ascii") + pixels + bytes(-len(pixels) % BLOCK))
