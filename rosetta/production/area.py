# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""An area of the sky given as a multi-order coverage map (MOC, an IVOA standard) in a FITS file."""

import numpy as np

from ..io._fits import open_fits

__all__ = ["Area", "read_area"]

DEEPEST = 29  # order of the pixels in which ranges are given


class Area:
    """A part of the sky.

    Parameters
    ----------
    ranges : (n, 2) int array
        First nested HEALPix pixel of order 29, and the one after the last, of each range.
    """

    def __init__(self, ranges):
        # Joined where they touch, so that one search tells whether a pixel is in one.
        ranges = ranges[np.argsort(ranges[:, 0])]
        highest = np.maximum.accumulate(ranges[:, 1])
        first = np.append(True, ranges[1:, 0] > highest[:-1])
        self._edges = np.stack([ranges[first, 0], highest[np.append(first[1:], True)]], 1).ravel()

    def holds(self, coord):
        """Whether positions lie in the area; bool array."""
        from astropy_healpix import HEALPix

        pixel = HEALPix(2**DEEPEST, order="nested", frame="icrs").skycoord_to_healpix(coord.icrs)
        return np.searchsorted(self._edges, pixel, side="right") % 2 == 1


def read_area(path):
    """Read a MOC.

    Parameters
    ----------
    path : str or path-like
        A FITS file of version 1 (``NUNIQ``) or 2 (``RANGE``).

    Returns
    -------
    Area

    Raises
    ------
    ValueError
        If the file is damaged, is no MOC of the sky, is not in ICRS, or is empty.
    """
    with open_fits(path, "moc") as hdus:
        table = next((hdu for hdu in hdus if "ORDERING" in hdu.header and hdu.header.get("TFIELDS")), None)
        kind = str(table.header["ORDERING"]).strip().upper() if table is not None else ""
        if kind not in ("NUNIQ", "RANGE") or table.header.get("MOCDIM", "SPACE").strip() != "SPACE":
            raise ValueError(f"moc: {path} holds no coverage map of the sky (ORDERING NUNIQ or RANGE): save it as FITS")
        if str(table.header.get("COORDSYS", "C")).strip().upper() not in ("C", "ICRS"):
            raise ValueError(f"moc: {path} has COORDSYS={table.header['COORDSYS']!r}: give it in ICRS (C)")
        values = np.asarray(table.data.field(0)).astype(np.int64).ravel()
    if not len(values):
        raise ValueError(f"moc: {path} is empty: it holds no sky")
    if kind == "RANGE":
        return Area(values.reshape(-1, 2))
    order = (np.floor(np.log2(values.astype(float))).astype(np.int64) - 2) // 2  # uniq = 4 * 4**order + pixel
    step = np.int64(4) ** (DEEPEST - order)
    first = (values - 4 * np.int64(4) ** order) * step
    return Area(np.stack([first, first + step], 1))
