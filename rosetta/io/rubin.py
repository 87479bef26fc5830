# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Rubin images: ``deep_coadd`` and ``visit_image`` FITS files, one band each, as released from Data Preview 1 on."""

import re
import warnings
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.io.fits import Header
from astropy.nddata import VarianceUncertainty
from astropy.utils.exceptions import AstropyUserWarning

from ..surveys import RUBIN
from ._fits import as_path, celestial_wcs, image_hdu, native, open_fits
from ._image import SurveyImage
from ._rubin_planes import bad_pixels, mask_planes, unknown_planes
from ._rubin_tree import Tree, read_tree
from ._stitch import overlap, psf_of_cells, stitch, union
from .euclid import _region as region

__all__ = ["read", "read_bands", "read_noise"]

# Rubin's physical filters are a band and a serial number: r_03 (LSSTComCam), r_57 (LSSTCam).
_FILTER = re.compile(r"([ugrizy])(_\d+)?")
_BUTLER = "LSST BUTLER DATAID "


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
    path : str or path-like
        A FITS file, compressed or not.
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
        not known: they mask nothing.
    """
    return _assemble([_look(path, "path")], center, size, "path")


def read_bands(paths, *, center=None, size=None):
    """Read several Rubin images of one piece of sky.

    Several files of one band must be patches of one tract: they are put together by whole pixels. Where patches
    overlap, they must agree; where there is none, pixels are masked, with infinite variance. A PSF that is one image
    per file is taken from the file that holds the middle of the region.

    Parameters
    ----------
    paths : iterable of str or path-like
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
    patches = {}
    for path in paths:
        patch = _look(path, "paths")
        patches.setdefault(patch.band, []).append(patch)
    found = {}
    for band in RUBIN.band_names:
        if band in patches:
            found[band] = _assemble(patches[band], center, size, "paths")
    return found


def read_noise(path, *, center=None, size=None):
    """Read the noise realisations of a coadd: images of noise that went through the same steps as the data.

    Parameters
    ----------
    path : str or path-like
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
    patch = _look(path, "path")
    y0, y1, x0, x1 = box = _box([patch], center, size, "path")
    noise = np.empty((len(patch.noise), y1 - y0, x1 - x0), np.float32)
    with open_fits(patch.path, "path") as hdus:
        for plane, extension in zip(noise, patch.noise, strict=True):
            plane[:] = _scaled(_same_shape(hdus[extension], patch, "path"), patch.scale, patch.slices(box))
    return noise


@dataclass(frozen=True)
class _Patch:
    """What the headers of one file say.

    ``header`` is that of the image; the first header of a file may hold cards of other WCSs. ``shape`` is (ny, nx),
    ``origin`` the first pixel (y, x) in the tract, ``scale`` the unit of the data in nJy, and ``planes`` has a dict of
    each mask extension (see `mask_planes`).
    """

    path: object
    name: str
    band: str
    filter: str
    scale: float
    header: Header
    shape: tuple
    origin: tuple
    planes: tuple
    tract: int | None
    tree: Tree | None
    unused: str

    @property
    def box(self):
        (y, x), (ny, nx) = self.origin, self.shape
        return y, y + ny, x, x + nx

    @property
    def noise(self):
        return self.tree.noise if self.tree else ()

    def slices(self, box):
        """Rows and columns of this file that a box of the tract is."""
        (y, x), (y0, y1, x0, x1) = self.origin, box
        return slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)

    def wcs(self, argument, box=None):
        """The WCS of a box of the tract, or of this file."""
        y0, y1, x0, x1 = box = box or self.box
        shift = x0 - self.origin[1], y0 - self.origin[0]
        return celestial_wcs(self.header, f"{argument}: {self.name}", shift, (y1 - y0, x1 - x0))


def _look(path, argument):
    path = as_path(path, argument)
    where = f"{argument}: {path.name}"
    with open_fits(path, argument) as hdus:
        image = image_hdu(hdus, argument, "IMAGE")
        variance = image_hdu(hdus, argument, "VARIANCE")
        masks = _masks(hdus, argument)
        header = hdus[0].header.copy()
        header.extend(image.header, update=True, strip=False)
        tree = read_tree(hdus, where)
        filter_name, band = _band(header, tree, where)
        read_here = {"PRIMARY", "IMAGE", "MASK", "VARIANCE", "PSF", "JSON", "INDEX"}
        patch = _Patch(
            path=path,
            name=path.name,
            band=band,
            filter=filter_name,
            scale=_nanojansky(header, where),
            header=image.header.copy(),
            shape=image.shape,
            origin=_origin(header, where),
            planes=tuple(mask_planes(mask, where, tree.planes if tree else ()) for mask in masks),
            tract=tree.tract if tree else header.get(_BUTLER + "TRACT"),
            tree=tree,
            unused=" ".join(hdu.name or "unnamed" for hdu in hdus if hdu.name not in read_here),
        )
        if not all(hdu.shape[-2:] == image.shape for hdu in (*masks, variance)):
            raise ValueError(
                f"{argument}: IMAGE {image.shape}, MASK {masks[0].shape} and VARIANCE {variance.shape} of {path.name} "
                "have different shapes; they must describe the same pixels"
            )
    return patch


def _assemble(patches, center, size, argument):
    """One image from the patches of one band."""
    box = _box(patches, center, size, argument)
    parts = [(patch, shared) for patch in patches if (shared := overlap(box, patch.box))]
    first = patches[0]
    wcs = first.wcs(argument, box)
    if wcs.sip is not None:
        _warn(f"{first.name}: the TAN-SIP WCS of a Rubin visit image approximates the full model; "
              "positions may be off by some milliarcseconds")  # fmt: skip
    unknown = unknown_planes(name for patch, _ in parts for planes in patch.planes for name in planes)
    if unknown:
        names = ", ".join(patch.name for patch, _ in parts)
        _warn(f"{names}: mask planes {', '.join(unknown)} are not known and mask nothing; check their meaning")
    stamps = []
    pieces = (_pixels(patch, shared, argument, stamps) for patch, shared in parts)
    if [shared for _, shared in parts] == [box]:
        _, _, data, variance, mask = next(pieces)
    else:
        data, variance, mask = stitch(pieces, box, argument)
    image = SurveyImage(data, unit=u.nJy, uncertainty=VarianceUncertainty(variance), mask=mask, wcs=wcs)
    image.meta = _meta([patch for patch, _ in parts], box)
    image.psf = _psf(stamps, box, argument)
    return image


def _box(patches, center, size, argument):
    """The box of the tract to read."""
    if (center is None) != (size is None):
        raise ValueError("center and size: give both, for a region, or neither, for the whole image")
    _check_one_grid(patches, argument)
    whole = union([patch.box for patch in patches])
    if center is None:
        return whole
    shape = whole[1] - whole[0], whole[3] - whole[2]
    names = ", ".join(patch.name for patch in patches)
    where = f"{argument}: {names}"
    rows, columns = region(patches[0].wcs(argument, whole), shape, center, size, where)
    box = rows.start + whole[0], rows.stop + whole[0], columns.start + whole[2], columns.stop + whole[2]
    if not any(overlap(box, patch.box) for patch in patches):
        raise ValueError(f"center: the region lies between the images {names}: give the patch that holds it")
    return box


def _check_one_grid(patches, argument):
    first, *others = patches
    boxes = {first.box: first}
    for other in others:
        y0, y1, x0, x1 = other.box
        x, y = np.array([x0, x1, x0, x1]), np.array([y0, y0, y1, y1])
        sky = other.wcs(argument).pixel_to_world(x - x0, y - y0)
        there = first.wcs(argument, other.box).world_to_pixel(sky)
        apart = np.hypot(there[0] - (x - x0), there[1] - (y - y0)).max()
        if not apart < 1e-3 or first.tract != other.tract:
            tracts = "" if None in (first.tract, other.tract) else f" (tracts {first.tract} and {other.tract})"
            raise ValueError(
                f"{argument}: {first.name} and {other.name} both hold band {first.band!r} but lie on different pixel "
                f"grids{tracts}: give patches of one tract, and make a pair of each tract"
            )
        if other.box in boxes:
            raise ValueError(
                f"{argument}: {boxes[other.box].name} and {other.name} both hold band {first.band!r} of the same "
                "pixels: give each patch once"
            )
        boxes[other.box] = other


def _pixels(patch, box, argument, stamps):
    """Name, box, data, variance and mask of a part of a file; its PSFs go to ``stamps``."""
    slices = patch.slices(box)
    with open_fits(patch.path, argument) as hdus:
        data = _scaled(image_hdu(hdus, argument, "IMAGE"), patch.scale, slices)
        variance = _scaled(image_hdu(hdus, argument, "VARIANCE"), patch.scale**2, slices)
        usable = np.isfinite(variance) & (variance > 0)
        mask = ~(np.isfinite(data) & usable)
        for hdu, planes in zip(_masks(hdus, argument), patch.planes, strict=True):
            mask |= bad_pixels(hdu, planes, slices)
        if patch.tree and patch.tree.cells:
            start, cells = _cells(hdus, patch.tree.cells, box, f"{argument}: {patch.name}")
            present = ~np.isnan(cells).any((2, 3))
            for axis, (low, high) in enumerate((box[:2], box[2:])):
                cell = (np.arange(low, high) - start[axis]) // patch.tree.cells.step[axis]
                inside = (cell >= 0) & (cell < present.shape[axis])
                present = np.take(present, np.where(inside, cell, 0), axis) & np.expand_dims(inside, 1 - axis)
            usable &= present
            mask |= ~present
            stamps.append((patch, start, cells))
        elif (psf := _one_psf(hdus, patch, argument)) is not None:
            stamps.append((patch, None, psf))
    variance[~usable] = np.inf
    return patch.name, box, data, variance, mask


def _cells(hdus, grid, box, where):
    """First pixel (y, x) and PSFs of the cells that a box of the tract needs, NaN where a cell has none."""
    hdu = hdus[grid.extension]
    if len(hdu.shape) != 4:
        raise ValueError(f"{where}: its PSF has shape {hdu.shape}, need 4 axes: download or write the file again")
    slices = []
    for axis, (low, high) in enumerate((box[:2], box[2:])):
        count = hdu.shape[axis]
        start = min(max((low - grid.start[axis]) // grid.step[axis], 0), count - 1)
        stop = min(max(-(-(high - grid.start[axis]) // grid.step[axis]), start + 1), count)
        slices.append(slice(start, stop))
    cells = native(hdu, np.float64, (*slices, slice(None), slice(None)))
    corner = tuple(s.start for s in slices)
    for index in grid.missing:
        i, j = np.subtract(index, corner)
        if 0 <= i < len(cells) and 0 <= j < cells.shape[1]:
            cells[i, j] = np.nan
    cells[~(np.isfinite(cells).all((2, 3)) & (cells.sum((2, 3)) > 0))] = np.nan
    return tuple(s + n * c for s, n, c in zip(grid.start, grid.step, corner, strict=True)), cells


def _one_psf(hdus, patch, argument):
    """The PSF of a file that has one for all of it, or None."""
    hdu = next((hdu for hdu in hdus if hdu.is_image and hdu.name == "PSF"), None)
    if hdu is None:
        return None
    if len(hdu.shape) == 4:
        _warn(f"{patch.name}: its PSF has a stamp per cell, but no JSON tree says where the cells are; "
              "it is not used: download the whole file, or set .psf")  # fmt: skip
        return None
    return native(image_hdu(hdus, argument, "PSF"), np.float64)


def _psf(stamps, box, argument):
    """The PSF of the image, from what `_pixels` found."""
    cells = [(patch.name, start, array) for patch, start, array in stamps if start is not None]
    if cells:
        steps = {patch.tree.cells.step for patch, start, _ in stamps if start is not None}
        if len(steps) > 1:
            names = ", ".join(name for name, _, _ in cells)
            raise ValueError(f"{argument}: the PSF cells of {names} differ in size: give files of one processing")
        return psf_of_cells(cells, steps.pop(), box, argument)
    middle = (box[0] + box[1]) // 2, (box[2] + box[3]) // 2
    middle = middle[0], middle[0] + 1, middle[1], middle[1] + 1
    images = [(overlap(patch.box, middle) is None, n, array) for n, (patch, _, array) in enumerate(stamps)]
    return min(images, key=lambda image: image[:2])[2] if images else None


def _meta(patches, box):
    first = patches[0]
    meta = {
        "band": first.band,
        "survey": RUBIN.name,
        "filter": _list(patch.filter for patch in patches),
        "file": _list(patch.name for patch in patches),
        "ORIGINX": box[2],
        "ORIGINY": box[0],
        "planes": _list(_bits(patch.planes) for patch in patches),
        "noise": min(len(patch.noise) for patch in patches),
        "unused": _list(patch.unused for patch in patches),
    }
    if first.tree:
        meta |= {"schema": first.tree.schema, "skymap": first.tree.skymap}
        meta["patch"] = _list(str(patch.tree.patch) for patch in patches if patch.tree and patch.tree.patch is not None)
    meta["tract"] = first.tract
    return {key: value for key, value in meta.items() if value is not None and value != ""}


def _list(values):
    return ", ".join(dict.fromkeys(values))


def _bits(planes):
    """The bit of each plane, after the number of the integer that holds it where there are several per pixel."""
    words = [(number + index, name, bit) for number, found in enumerate(planes) for name, (index, bit) in found.items()]
    return " ".join(f"{name}={bit}" if word == 0 else f"{name}={word}:{bit}" for word, name, bit in words)


def _scaled(hdu, factor, slices):
    """A part of an image times a factor, float32; the product is formed in double precision."""
    if factor == 1:
        return native(hdu, np.float32, slices)
    with np.errstate(over="ignore"):
        return (native(hdu, np.float64, slices) * factor).astype(np.float32)


def _masks(hdus, argument):
    """Every extension named MASK; more than 31 planes need a second one."""
    masks = [hdu for hdu in hdus if hdu.is_image and hdu.name == "MASK"]
    if not masks or masks[0].header["NAXIS"] != 3:
        image_hdu(hdus, argument, "MASK")  # whatever is wrong with it
    return masks


def _same_shape(hdu, patch, argument):
    if hdu.shape != patch.shape:
        raise ValueError(f"{argument}: {hdu.name} of {patch.name} is {hdu.shape}, its image {patch.shape} pixels")
    return hdu


def _origin(header, where):
    """First pixel (y, x) in the tract."""
    try:
        if "LTV1" in header:
            return -round(header["LTV2"]), -round(header["LTV1"])
        if header.get("CTYPE1A") == "LINEAR":
            return tuple(round(header[f"CRVAL{axis}A"] - (header.get(f"CRPIX{axis}A", 1.0) - 1.0)) for axis in (2, 1))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{where}: the cards of its place in the tract (LTV1 and LTV2, or WCS A) hold no numbers: repair the header"
        ) from error
    return 0, 0


def _band(header, tree, where):
    """Filter and band."""
    keys = ("BAND", "FILTER", _BUTLER + "BAND", _BUTLER + "PHYSICAL_FILTER")
    named = (tree.filter, tree.band) if tree else (None, None)
    for text in (named[1], *(header.get(key) for key in keys)):
        match = _FILTER.fullmatch(str(text or "").strip())
        if match:
            return str(named[0] or header.get("FILTER") or match[0]).strip(), match[1]
    raise ValueError(
        f"{where} names no Rubin band: BAND={header.get('BAND')!r}, FILTER={header.get('FILTER')!r}, and no band in "
        "a JSON tree; one of them must be like 'r' or 'r_03': set FILTER in its first header"
    )


def _nanojansky(header, where):
    text = str(header.get("BUNIT", "")).strip()
    if not text:
        raise ValueError(f"{where} has no BUNIT card; set it to the unit of IMAGE, such as nJy")
    try:
        unit = u.Unit(text)
        if not isinstance(unit, u.UnitBase):
            raise u.UnitConversionError("it is logarithmic")
        return unit.to(u.nJy)
    except (ValueError, u.UnitConversionError) as error:
        name = where.partition(": ")[2]
        raise ValueError(
            f"{where.partition(':')[0]}: BUNIT {text!r} of {name} cannot be converted to nJy; calibrate the image first"
        ) from error


def _warn(message):
    warnings.warn(message, AstropyUserWarning, stacklevel=4)
