# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""One Rubin file: what its headers say, and a part of its pixels."""

import re
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.io.fits import BinTableHDU, Header

from ..images.psf import checked_array
from ..surveys import RUBIN
from ._fits import celestial_wcs, image_hdu, native, open_fits, source_name
from ._photometric_unit import parsed_unit
from ._rubin_planes import bad_pixels, mask_planes
from ._rubin_tree import Tree, read_tree
from ._wcs import check_place

__all__ = ["Part", "RubinFile", "look"]

# Rubin's physical filters are a band and a serial number: r_03 (LSSTComCam), r_57 (LSSTCam).
_FILTER = re.compile(rf"([{''.join(RUBIN.band_names)}])(_\d+)?")
FARTHEST = 10**7  # pixels from the origin of a tract
_BUTLER = "LSST BUTLER DATAID "
# Extensions that are used or describe the file; INDEX says where the others begin.
_READ = {"PRIMARY", "IMAGE", "MASK", "VARIANCE", "PSF", "JSON", "INDEX"}


@dataclass(frozen=True)
class Part:
    """A part of a file.

    Parameters
    ----------
    box : tuple of int
        (y0, y1, x0, x1): first pixels, and those after the last, in the tract.
    data, variance : (ny, nx) float32 array
        nJy and nJy^2, the variance infinite where there is none.
    mask : (ny, nx) bool array
        True: do not use.
    start : tuple of int or None
        First pixel (y, x) of the first cell, in the tract; None if the PSF does not come in cells.
    psf : array or None
        (k, l), or (n_y, n_x, k, l) of the cells that the box touches, NaN for cells without data.
    """

    box: tuple
    data: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    start: tuple | None
    psf: np.ndarray | None


@dataclass(frozen=True, eq=False)
class RubinFile:
    """What the headers of a file say.

    Parameters
    ----------
    source : str, path-like, bytes or HDUList
    argument, name : str
        What the caller calls the source, and its name in messages.
    band, filter : str
    scale : float
        Unit of the data, nJy.
    header : `~astropy.io.fits.Header`
        That of the image: the first header of a file may hold cards of other WCSs.
    shape, origin : tuple of int
        (ny, nx), and the first pixel (y, x) in the tract.
    planes : tuple of dict
        Of each mask extension, see `mask_planes`.
    tract, patch : int or None
    tree : Tree or None
    unused : str
        Names of the extensions that are not read.
    unknown : tuple of str
        Those of them that nothing in the file accounts for, with a remedy where there is one.
    """

    source: object
    argument: str
    name: str
    band: str
    filter: str
    scale: float
    header: Header
    shape: tuple
    origin: tuple
    planes: tuple
    tract: int | None
    patch: int | None
    tree: Tree | None
    unused: str
    unknown: tuple

    @property
    def box(self):
        """The pixels of the file, in the tract."""
        (y, x), (ny, nx) = self.origin, self.shape
        return y, y + ny, x, x + nx

    @property
    def cells(self):
        """The grid of PSF cells, or None."""
        return self.tree.cells if self.tree else None

    @property
    def n_noise(self):
        """Number of noise realisations."""
        return len(self.tree.noise) if self.tree else 0

    def wcs(self, box):
        """The WCS of a box of the tract, whether or not it lies within the file."""
        y0, y1, x0, x1 = box
        shift = x0 - self.origin[1], y0 - self.origin[0]
        return celestial_wcs(self.header, f"{self.argument}: {self.name}", shift, (y1 - y0, x1 - x0))

    def read(self, box):
        """The `Part` of a box of the tract that lies within the file."""
        slices = self._slices(box)
        with open_fits(self.source, self.argument) as hdus:
            data = self._plane(hdus, "IMAGE", self.scale, slices)
            variance = self._plane(hdus, "VARIANCE", self.scale**2, slices)
            usable = np.isfinite(variance) & (variance > 0)
            mask = ~np.isfinite(data)
            for hdu, planes in zip(_masks(hdus, self.argument), self.planes, strict=True):
                mask |= bad_pixels(hdu, planes, slices, self.name)
            if self.cells:
                start, psf = self._cells(hdus, box)
                usable &= _present(psf, start, self.cells.step, box)
            else:
                start, psf = None, _one_psf(hdus, self.argument)
        variance[~usable] = np.inf
        return Part(box, data, variance, mask | ~usable, start, psf)

    def read_noise(self, box):
        """The noise realisations in a box of the tract, (n, ny, nx) float32, nJy."""
        noise = np.empty((self.n_noise, box[1] - box[0], box[3] - box[2]), np.float32)
        with open_fits(self.source, self.argument) as hdus:
            for plane, extension in zip(noise, self.tree.noise if self.tree else (), strict=True):
                plane[:] = self._plane(hdus, extension, self.scale, self._slices(box))
        return noise

    def read_corrections(self, box):
        """The aperture corrections of the cells that a box of the tract touches.

        Returns
        -------
        y, x : (n,) array
            Centres of the cells in the tract, pixels.
        columns : dict
            Name of the flux to (n,) float64 array.
        """
        where, found = f"{self.argument}: {self.name}", self.tree.corrections if self.tree else None
        if found is None:
            raise ValueError(f"{where} has no aperture corrections by cell: only coadds of Data Preview 2 have them")
        with open_fits(self.source, self.argument) as hdus:
            try:
                table = hdus[found.extension].data
                columns = {name: np.array(table[name], np.float64) for name in table.names}
                cells = np.array([columns.pop("cell_i"), columns.pop("cell_j")])
            except Exception as error:  # astropy has many types of error for damaged tables
                raise ValueError(
                    f"{where}: its table of aperture corrections cannot be read ({type(error).__name__}: {error}); "
                    "download or write the file again"
                ) from error
        low = np.array(found.corner)[:, None] + cells * np.array(found.step)[:, None]
        high = low + np.array(found.step)[:, None]
        near = ((low < np.array([[box[1]], [box[3]]])) & (high > np.array([[box[0]], [box[2]]]))).all(axis=0)
        y, x = (low + high - 1)[:, near] / 2
        return y, x, {name: values[near] for name, values in columns.items()}

    def _slices(self, box):
        (y, x), (y0, y1, x0, x1) = self.origin, box
        return slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)

    def _plane(self, hdus, name, factor, slices):
        """A part of an image times a factor, float32; the product is formed in double precision."""
        hdu = image_hdu(hdus, self.argument, name)
        if hdu.shape[-2:] != self.shape:
            raise ValueError(f"{self.argument}: {hdu.name} of {self.name} is {hdu.shape}, IMAGE {self.shape} pixels")
        if factor == 1:
            return native(hdu, np.float32, slices)
        with np.errstate(over="ignore"):
            return (native(hdu, np.float64, slices) * factor).astype(np.float32)

    def _cells(self, hdus, box):
        """First pixel (y, x) and PSFs of the cells that a box needs."""
        grid, hdu = self.cells, hdus[self.cells.extension]
        if len(hdu.shape) != 4:
            raise ValueError(
                f"{self.argument}: the PSF of {self.name} has shape {hdu.shape}, its tree says cells (4 axes): "
                "download or write the file again"
            )
        slices = []
        for axis, (low, high) in enumerate((box[:2], box[2:])):
            count = hdu.shape[axis]
            first = min(max((low - grid.start[axis]) // grid.step[axis], 0), count - 1)
            last = min(max(-(-(high - grid.start[axis]) // grid.step[axis]), first + 1), count)
            slices.append(slice(first, last))
        psf = native(hdu, np.float64, (*slices, slice(None), slice(None)))
        corner = tuple(part.start for part in slices)
        for index in grid.missing:
            i, j = np.subtract(index, corner)
            if 0 <= i < len(psf) and 0 <= j < psf.shape[1]:
                psf[i, j] = np.nan
        psf[~(np.isfinite(psf).all((2, 3)) & (psf.sum((2, 3)) > 0))] = np.nan
        return tuple(s + n * c for s, n, c in zip(grid.start, grid.step, corner, strict=True)), psf


def look(source, argument):
    """Read the headers of a file.

    Parameters
    ----------
    source : str, path-like, bytes or `~astropy.io.fits.HDUList`
    argument : str
        What the caller calls it, for messages.

    Returns
    -------
    RubinFile

    Raises
    ------
    TypeError, ValueError
        As `rosetta.io.rubin.read` does.
    """
    with open_fits(source, argument) as hdus:
        name = source_name(hdus)
        where = f"{argument}: {name}"
        image, masks = image_hdu(hdus, argument, "IMAGE"), _masks(hdus, argument)
        variance = image_hdu(hdus, argument, "VARIANCE")
        for name_of in ("IMAGE", "VARIANCE", "PSF"):
            if sum(hdu.is_image and hdu.name == name_of for hdu in hdus) > 1:
                raise ValueError(f"{where} holds several images called {name_of}: it must hold one")
        shapes = [hdu.shape[-2:] for hdu in (image, *masks, variance)]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"{argument}: IMAGE {shapes[0]}, MASK {shapes[1]} and VARIANCE {shapes[-1]} of {name} "
                "have different shapes; they must describe the same pixels"
            )
        header = hdus[0].header.copy()
        header.extend(image.header, update=True, strip=False)
        tree = read_tree(hdus, where)
        filter_name, band = _band(header, tree, where)
        wcs = celestial_wcs(image.header, where, shape=shapes[0])
        for plane in (*masks, variance):
            check_place(wcs, plane.header, f"{where}[{plane.name}]", "IMAGE")
        unused = [hdu for hdu in hdus if not _is_read(hdu, tree)]
        return RubinFile(
            source=source,
            argument=argument,
            name=name,
            band=band,
            filter=filter_name,
            scale=_nanojansky(header, argument, name),
            header=image.header.copy(),
            shape=shapes[0],
            origin=_origin(header, where),
            planes=tuple(mask_planes(mask, where, tree.planes if tree else ()) for mask in masks),
            tract=tree.tract if tree else header.get(_BUTLER + "TRACT"),
            patch=tree.patch if tree else header.get(_BUTLER + "PATCH"),
            tree=tree,
            unused=" ".join(hdu.name or "unnamed" for hdu in unused),
            unknown=tuple(_called(hdu) for hdu in unused if not _is_accounted_for(hdu, tree)),
        )


def _masks(hdus, argument):
    """Every extension named MASK: more than 31 planes need a second one, or a third axis."""
    masks = [hdu for hdu in hdus if hdu.is_image and hdu.name == "MASK"]
    if not masks or any(hdu.header["NAXIS"] != 3 for hdu in masks):
        image_hdu(hdus, argument, "MASK")  # whatever is wrong with it
    return masks


def _present(psf, start, step, box):
    """Whether the cell of each pixel of a box has data, (ny, nx)."""
    present = ~np.isnan(psf).any((2, 3))
    for axis, (low, high) in enumerate((box[:2], box[2:])):
        cell = (np.arange(low, high) - start[axis]) // step[axis]
        inside = (cell >= 0) & (cell < present.shape[axis])
        present = np.take(present, np.where(inside, cell, 0), axis) & np.expand_dims(inside, 1 - axis)
    return present


def _one_psf(hdus, argument):
    """The PSF of a file that has one image of it, or None."""
    if not any(hdu.is_image and hdu.name == "PSF" and hdu.header["NAXIS"] != 4 for hdu in hdus):
        return None
    psf = native(image_hdu(hdus, argument, "PSF"), np.float64)
    return checked_array(psf, f"{argument}: PSF of {source_name(hdus)}")


def _is_read(hdu, tree):
    """Whether an extension is used. Stamps of cells are not where nothing says which place they belong to."""
    if hdu.name == "PSF":
        return hdu.is_image and (hdu.header["NAXIS"] != 4 or bool(tree and tree.cells))
    return hdu.name in _READ


def _is_accounted_for(hdu, tree):
    """Whether an extension that is not used may be there: the tree refers to it, or it is a table with a name."""
    return (tree is not None and hdu.name in tree.extensions) or (isinstance(hdu, BinTableHDU) and bool(hdu.name))


def _called(hdu):
    if hdu.name == "PSF" and hdu.is_image:
        return (
            "PSF (a stamp per cell, but no JSON tree says where the cells are: download the whole file, or set .psf)"
        )
    return hdu.name or "an extension without a name"


def _origin(header, where):
    """First pixel (y, x) in the tract."""
    try:
        if "LTV1" in header:
            origin = -header["LTV2"], -header["LTV1"]
        elif header.get("CTYPE1A") == "LINEAR":
            origin = tuple(header[f"CRVAL{axis}A"] - (header.get(f"CRPIX{axis}A", 1.0) - 1.0) for axis in (2, 1))
        else:
            return 0, 0
        whole = tuple(round(value) for value in origin)
        if any(abs(value - there) > 0.01 or abs(there) > FARTHEST for value, there in zip(origin, whole, strict=True)):
            raise ValueError(str(origin))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{where}: the cards of its place in the tract (LTV1 and LTV2, or WCS A) are no whole pixels: "
            "repair the header"
        ) from error
    return whole


def _band(header, tree, where):
    """Filter and band."""
    keys = ("BAND", "FILTER", _BUTLER + "BAND", _BUTLER + "PHYSICAL_FILTER")
    named = (tree.filter, tree.band) if tree else (None, None)
    said = {"its JSON tree": str(named[1] or "")} | {key: str(header.get(key) or "") for key in keys}
    found = {key: match[1] for key, text in said.items() if (match := _FILTER.fullmatch(text.strip()))}
    if len(set(found.values())) > 1:
        raise ValueError(
            f"{where} names several bands ({', '.join(f'{key}: {said[key]}' for key in found)}): correct its header"
        )
    if found:
        key, band = next(iter(found.items()))
        return str(named[0] or header.get("FILTER") or said[key]).strip(), band
    raise ValueError(
        f"{where} names no Rubin band: BAND={header.get('BAND')!r}, FILTER={header.get('FILTER')!r}, and no band in "
        "a JSON tree; one of them must be like 'r' or 'r_03': set FILTER in its first header"
    )


def _nanojansky(header, argument, name):
    text = str(header.get("BUNIT", "")).strip()
    if not text:
        raise ValueError(f"{argument}: {name} has no BUNIT card; set it to the unit of IMAGE, such as nJy")
    unit = parsed_unit(text)
    if not isinstance(unit, u.UnitBase) or not unit.is_equivalent(u.nJy):
        raise ValueError(f"{argument}: BUNIT {text!r} of {name} cannot be converted to nJy; calibrate the image first")
    return unit.to(u.nJy)
