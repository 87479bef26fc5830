# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Rubin images: ``deep_coadd`` and ``visit_image`` FITS files, one band each, as released from Data Preview 1 on."""

import warnings
from contextlib import ExitStack
from dataclasses import replace

import astropy.units as u
from astropy.nddata import VarianceUncertainty
from astropy.table import QTable
from astropy.utils.exceptions import AstropyUserWarning

from ..arithmetic import plain_arithmetic
from ..surveys import RUBIN
from ._fits import open_fits
from ._image import SurveyImage
from ._rubin_file import look
from ._rubin_planes import unknown_planes
from ._stitch import check_one_grid, overlap, psf_of_cells, stitch, union
from ._wcs import region

__all__ = ["read", "read_aperture_corrections", "read_bands", "read_noise"]


@plain_arithmetic
def read(path, *, center=None, size=None):
    """Read one Rubin image, or a region of it.

    The file holds the extensions ``IMAGE``, ``MASK`` and ``VARIANCE``, tile-compressed or not. Files of Data Preview 2,
    which ``lsst-images`` writes, also hold a JSON tree, and a PSF per cell of a coadd. Only the region leaves the disk.

    - The band is taken from the tree, or from ``BAND`` or ``FILTER`` (``r`` or a physical filter such as ``r_03``).
    - The unit is ``BUNIT``, converted to nJy (AB zero point 31.4).
    - Mask planes are found by name, in the ``MP_<NAME>`` or the ``MSKN`` and ``MSKM`` cards, since their bits differ
      from file to file. A pixel is masked where a plane of ``RUBIN.bad_planes`` is set (under its old or its new name;
      ``NO_DATA`` pixels may hold plausible fluxes), where the image is not finite, where the variance is not positive,
      or where the cell has no data.
    - The WCS is that of the ``IMAGE`` header. ``LTV1`` and ``LTV2``, or the WCS "A", only say where the file lies in
      its tract.

    Data Preview 1 keeps its PSF model in archive tables that only the Rubin pipelines can evaluate, so ``psf`` is None
    unless the file has an image extension named ``PSF``: evaluate the model at your position and set ``.psf``, else the
    survey's nominal PSF is used and flagged.

    Parameters
    ----------
    path : str, path-like, bytes or `~astropy.io.fits.HDUList`
        A FITS file, compressed or not: its path, its URL, its content or its HDUs.
    center : `~astropy.coordinates.SkyCoord`, optional
        Centre of the region to read; needs ``size``.
    size : `~astropy.units.Quantity`, optional
        Angular size of the region: one for both sides, or (ny, nx). What falls off the image is left out.

    Returns
    -------
    `~astropy.nddata.CCDData`
        Data of shape (ny, nx) in nJy, float32; `~astropy.nddata.VarianceUncertainty`, infinite where there is no
        variance; boolean mask (True: do not use); WCS of the region. ``psf`` is the PSF, or its mean over the image
        where cells have their own: then ``psf_anywhere`` is the `~rosetta.PSF` of every place, and
        `~rosetta.SkyPair` uses it. ``meta`` holds ``band``, ``survey``, ``filter``, ``file``, ``ORIGINX`` and
        ``ORIGINY`` (of the first pixel in the tract), ``planes`` (the bit of each mask plane: "BAD=0 SAT=1 ..."),
        ``noise`` (the number of noise realisations, see `read_noise`), ``unused`` (the extensions that were not read)
        and, where the file says so, ``schema``, ``skymap``, ``tract`` and ``patch``.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the file is truncated or not FITS, lacks one of the three extensions, the band, the unit, the mask-plane
        cards or a celestial WCS, if their shapes differ, if its schema is unknown, or if the region misses the image.

    Warns
    -----
    `~astropy.utils.exceptions.AstropyUserWarning`
        If the WCS is TAN-SIP, as in a visit image: there it is an approximation of the full model. If mask planes are
        not known, or bits of the mask have no name: they mask nothing. If there are extensions that nothing in the
        file accounts for: they are not read.
    """
    with open_fits(path, "path") as hdus:
        return _assembled([look(hdus, "path")], center, size)


@plain_arithmetic
def read_bands(paths, *, center=None, size=None):
    """Read several Rubin images of one piece of sky.

    Several files of one band must be patches of one tract: they are put together by whole pixels. Where patches
    overlap, they must agree; where there is none, pixels are masked, with infinite variance. A PSF that is one image
    per file is taken from the file that holds the middle of the region.

    Parameters
    ----------
    paths : iterable
        FITS files as accepted by `read`, in any order.
    center : `~astropy.coordinates.SkyCoord`, optional
        As in `read`.
    size : `~astropy.units.Quantity`, optional
        As in `read`.

    Returns
    -------
    dict
        Band name to `~astropy.nddata.CCDData`, in order of wavelength: the ``ground`` of a
        `~rosetta.SkyPair`.

    Raises
    ------
    ValueError
        If two files of one band lie in different tracts or differ where they overlap, and whenever `read` raises.
    """
    files, images = {}, {}
    with ExitStack() as stack:
        for path in paths:
            file = _kept_open(path, center, size, stack)
            files.setdefault(file.band, []).append(file)
        for band in RUBIN.band_names:
            if band in files:
                images[band] = _assembled(files[band], center, size)
    return images


@plain_arithmetic
def read_noise(path, *, center=None, size=None):
    """Read the noise realisations of a coadd: images of noise that went through the same steps as the data.

    Parameters
    ----------
    path : str, path-like, bytes or `~astropy.io.fits.HDUList`
        A file as accepted by `read`.
    center : `~astropy.coordinates.SkyCoord`, optional
        As in `read`.
    size : `~astropy.units.Quantity`, optional
        As in `read`.

    Returns
    -------
    (n, ny, nx) float32 array
        nJy, on the pixels that `read` returns; n is 0 if the file has none.

    Raises
    ------
    ValueError
        As `read` does.
    """
    with open_fits(path, "path") as hdus:
        file = look(hdus, "path")
        return file.read_noise(_box([file], center, size))


@plain_arithmetic
def read_aperture_corrections(path, *, center=None, size=None):
    """Read the aperture corrections of a coadd of Data Preview 2, which are constant within cells.

    They are the factors by which the Rubin pipelines multiply their own fluxes; fluxes of rosetta are total and need
    none of them.

    Parameters
    ----------
    path : str, path-like, bytes or `~astropy.io.fits.HDUList`
        A file as accepted by `read`.
    center : `~astropy.coordinates.SkyCoord`, optional
        As in `read`.
    size : `~astropy.units.Quantity`, optional
        As in `read`.

    Returns
    -------
    `~astropy.table.QTable`
        A row per cell with data that the region touches: ``sky_center`` and ``x``, ``y`` (0-based pixels of the image
        that `read` returns) of its centre, and a column for each kind of flux, such as ``base_PsfFlux``, NaN where the
        cell has none.

    Raises
    ------
    ValueError
        If the file has no aperture corrections by cell, if their table is damaged, and as `read` does.
    """
    with open_fits(path, "path") as hdus:
        file = look(hdus, "path")
        box = _box([file], center, size)
        y, x, columns = file.read_corrections(box)
    x, y = x - box[2], y - box[0]
    return QTable({"sky_center": file.wcs(box).pixel_to_world(x, y), "x": x, "y": y} | columns)


def _kept_open(path, center, size, stack):
    """The headers of a file, which the stack keeps open unless the region misses it."""
    with ExitStack() as own:
        file = look(own.enter_context(open_fits(path, "paths")), "paths")
        try:
            region(file.wcs(file.box), file.shape, center, size, "")
        except ValueError:
            return replace(file, source=path)
        stack.enter_context(own.pop_all())
    return file


def _assembled(files, center, size):
    """One image from the files of one band."""
    box = _box(files, center, size)
    shared = {file: part for file in files if (part := overlap(box, file.box))}
    wcs = files[0].wcs(box)
    _warn_of(list(shared), wcs)
    psfs = []

    def pieces():
        for file, part in shared.items():
            piece = file.read(part)
            psfs.append((file, piece.start, piece.psf))
            yield file.name, part, piece.data, piece.variance, piece.mask

    if list(shared.values()) == [box]:
        _, _, data, variance, mask = next(pieces())
    else:
        data, variance, mask = stitch(pieces(), box, files[0].argument)
    image = SurveyImage(
        data, unit=u.nJy, uncertainty=VarianceUncertainty(variance), mask=mask, wcs=wcs, meta=_meta(list(shared), box)
    )
    image.psf = _psf(psfs, box)
    return image


def _box(files, center, size):
    """The box (y0, y1, x0, x1) of the tract to read."""
    check_one_grid(files)
    y0, y1, x0, x1 = union([file.box for file in files])
    names = ", ".join(file.name for file in files)
    where = f"{files[0].argument}: {names}"
    rows, columns = region(files[0].wcs((y0, y1, x0, x1)), (y1 - y0, x1 - x0), center, size, where)
    box = rows.start + y0, rows.stop + y0, columns.start + x0, columns.stop + x0
    if not any(overlap(box, file.box) for file in files):
        raise ValueError(f"center: the region lies between the images {names}: add the patch that holds it")
    return box


def _psf(psfs, box):
    """The PSF of the image, from the (file, first pixel of its cells, PSF) of each part."""
    psfs = [(file, start, psf) for file, start, psf in psfs if psf is not None]
    cells = [(file, start, psf) for file, start, psf in psfs if start is not None]
    if cells:
        return psf_of_cells(cells, box)
    y, x = (box[0] + box[1]) // 2, (box[2] + box[3]) // 2
    # False sorts before True: a file that holds the middle comes first.
    psfs.sort(key=lambda found: overlap(found[0].box, (y, y + 1, x, x + 1)) is None)
    return psfs[0][2] if psfs else None


def _meta(files, box):
    first = files[0]
    meta = {
        "band": first.band,
        "survey": RUBIN.name,
        "filter": _list(file.filter for file in files),
        "file": _list(file.name for file in files),
        "ORIGINX": box[2],
        "ORIGINY": box[0],
        "planes": _list(_bits(file.planes) for file in files),
        "noise": min(file.n_noise for file in files),
        "unused": _list(file.unused for file in files),
        "tract": first.tract,
        "patch": _list(str(file.patch) for file in files if file.patch is not None),
    }
    if first.tree:
        meta |= {"schema": first.tree.schema, "skymap": first.tree.skymap}
    return {key: value for key, value in meta.items() if value is not None and value != ""}


def _list(words):
    return ", ".join(dict.fromkeys(words))


def _bits(planes):
    """The bit of each plane, after the number of the integer that holds it where there are several per pixel."""
    words = [(number + index, name, bit) for number, found in enumerate(planes) for name, (index, bit) in found.items()]
    return " ".join(f"{name}={bit}" if word == 0 else f"{name}={word}:{bit}" for word, name, bit in words)


def _warn_of(files, wcs):
    names = ", ".join(file.name for file in files)
    messages = []
    if wcs.sip is not None:
        messages.append(
            f"{names}: the TAN-SIP WCS of a Rubin visit image approximates the full model; "
            "positions may be off by some milliarcseconds"
        )
    unknown = unknown_planes(name for file in files for planes in file.planes for name in planes)
    if unknown:
        messages.append(
            f"{names}: mask planes {', '.join(unknown)} are not known and mask nothing; check their meaning"
        )
    not_read = dict.fromkeys(name for file in files for name in file.unknown)
    if not_read:
        messages.append(f"{names}: not read, since nothing says what they are: {', '.join(not_read)}")
    for message in messages:
        warnings.warn(message, AstropyUserWarning, stacklevel=4)
