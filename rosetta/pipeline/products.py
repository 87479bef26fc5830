# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The files of a run."""

from pathlib import Path

import numpy as np
from astropy.io import fits

from ..files import naming
from ..images.wcs import cards_of
from ..io.catalogue import write_catalogue
from .catalogue_file import FILES, check_format
from .output import check_output, replaced

__all__ = ["MODELS", "with_shapes", "write", "write_models"]

MODELS = ("none", "bands", "sources")
BLOCK = 2880  # bytes; FITS comes in blocks
STAMP_SHARE = 1e-4  # of a model's peak; fainter borders are cut off its stamp


def write(
    result, directory, *, truth=None, overwrite=False, models="sources", format="ecsv", pixel_positions=False,
    segmentation=False, progress=None,
):
    """Write the products of a run: all of them, or none. See `~rosetta.Result.write`.

    Parameters
    ----------
    result : `~rosetta.Result`
    directory : path-like
    truth : `~astropy.table.QTable`, optional
    overwrite : bool
    models : {"none", "bands", "sources"}
    format : {"ecsv", "fits", "parquet", "votable"}
    pixel_positions : bool
    segmentation : bool
    progress : callable, optional

    Returns
    -------
    list of `~pathlib.Path`

    Raises
    ------
    ValueError
        If the directory cannot be used, another process writes to it, or ``models`` or ``format`` is
        unknown.
    OSError
        If a file cannot be written, for instance because the disk is full; the message names it.
    """
    if models not in MODELS:
        raise ValueError(f"models must be one of {', '.join(MODELS)}, got {models!r}")
    check_format(format)
    check_output(directory, overwrite)
    writers = _writers(result, truth, models, format, pixel_positions, segmentation)
    with replaced(directory) as folder:
        for done, (name, writer) in enumerate(writers.items()):
            if progress is not None:
                progress(done, len(writers))
            _write(directory, folder, name, writer)
        names = sorted(path.name for path in folder.iterdir())
    return [Path(directory).absolute() / name for name in names]


def _writers(result, truth, models, format, pixel_positions, segmentation):
    """The functions that write the files of a run, by name."""
    scene, offsets = result.scene, result.offsets
    writers = {FILES[format]: lambda path: write_catalogue(with_shapes(result, pixel_positions), path)}
    if offsets is not None:
        writers["offsets.ecsv"] = lambda path: offsets.write(path, format="ascii.ecsv")
    if models != "none":
        writers["models.fits"] = lambda path: write_models(scene, path, sources=models == "sources")
    if segmentation:
        writers["segmentation.fits"] = lambda path: _write_segmentation(scene, path)
    writers["sources.reg"] = lambda path: scene.to_regions().write(path, format="ds9")
    writers["overview.png"] = lambda path: _write_overview(result, path, truth)
    return writers


def _write(directory, folder, name, write):
    """One file; an error names the place that it would have had."""
    with naming(Path(directory) / name):
        write(folder / name)


def with_shapes(result, pixel_positions=False):
    """The catalogue with the sizes, shapes and blendedness of the scene's table, and, if asked for, the pixels."""
    catalog, table = result.catalog.copy(), result.scene.to_table()
    if pixel_positions:
        pixels = result.scene.pixel_positions()
        table.add_columns([pixels[name] for name in pixels.colnames[1:]], names=pixels.colnames[1:])
    if "listed" in table.colnames:
        table = table[table["listed"]]
        del table["listed"]
    for name in table.colnames:
        if name not in catalog.colnames:
            catalog[name] = table[name]
    return catalog


def _write_overview(result, path, truth):
    from ..plotting import overview

    overview(result, truth=truth).savefig(path, dpi=110, pil_kwargs={"compress_level": 3})


def write_models(scene, path, *, sources=True):
    """Models, sky and residuals of a scene as one FITS file.

    Per band, ``MODEL_<band>`` (sum of all sources), ``SKY_<band>`` (what was found of the sky) and ``RESIDUAL_<band>``
    (NaN where masked), which sum to the image: nJy on the native grid, ``EXTVER`` 1 on the ground and 2 in space. Then
    one ``SOURCE`` image per source, its model in the reference band (card ``BAND``; VIS where there is one), with its
    own WCS and ``EXTVER`` its label; borders below 1e-4 of the peak are cut off. A source without a pixel in that band
    has none.

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
                _compressed(model.data, header, f"MODEL_{band}"),
                _compressed(scene.sky(band).data, header, f"SKY_{band}"),
                # Noise takes as long to compress as a model, for a twelfth of its size.
                fits.ImageHDU(residual.data.astype(np.float32), header, name=f"RESIDUAL_{band}"),
            ):
                hdu.ver = 1 if sides[band] == "ground" else 2
                file.append(hdu)
        if band == reference:
            of_sources = header
    if sources:
        _write_sources(scene, reference, of_sources, path)


def _write_segmentation(scene, path):
    """Labels of the sources on the grid of the reference band."""
    found = scene.segmentation()
    header = cards_of(found.wcs)
    header["BAND"] = found.meta["band"]
    labels = fits.CompImageHDU(found.data, header, name="SEGMENTATION", compression_type="GZIP_2")
    fits.HDUList([fits.PrimaryHDU(), labels]).writeto(path)


def _compressed(image, header, name):
    # GZIP_2 without quantisation is lossless. Tiles of two rows take a fifth less time than one or eight.
    return fits.CompImageHDU(
        image.astype(np.float32), header, name=name, compression_type="GZIP_2", quantize_level=0,
        tile_shape=(min(2, image.shape[0]), image.shape[1]),
    )  # fmt: skip


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
