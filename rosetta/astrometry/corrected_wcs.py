# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A WCS that carries a known offset field, as plain FITS: TAN, TAN-SIP or TAN with lookup tables.

Every form is one linear least-squares fit to the corrected sky positions of a grid of pixels, so that any APE-14
WCS can be corrected. Lookup tables: Calabretta et al. (2004), CPDIS.
"""

import numpy as np
from astropy.wcs import DistortionLookupTable
from astropy.wcs.wcsapi import BaseHighLevelWCS, BaseLowLevelWCS, HighLevelWCSWrapper
from scipy.interpolate import RectBivariateSpline

from ..images.positions import from_tangent, tangent
from ..images.wcs_fit import blank, crpix_for, largest_residual, polynomial, sip, tan

__all__ = ["FORMS", "corrected"]

FORMS = ("sip", "lookup", "tan")
_GRID = 41  # nodes per axis of the fitted grid
_LOOKUP_STEP = 4.0  # pixels between the entries of a lookup table
_LOOKUP_MAX = 513  # entries per axis
_LOOKUP_NODES = 65  # per axis, at which the field itself is asked


def corrected(wcs, solution, band, form, shape=None):
    """The corrected WCS and how well it holds the field.

    Parameters
    ----------
    wcs : APE-14 WCS
        Two celestial axes.
    solution : `~rosetta.AstrometricSolution`
    band : str
        Whose field.
    form : {"sip", "lookup", "tan"}
    shape : tuple of int, optional
        (ny, nx) of the image; default: what ``wcs`` says, else the region that the reference image covers.

    Returns
    -------
    wcs : `~astropy.wcs.WCS`
        New, ICRS.
    residual : float
        Largest distance (mas) from the corrected positions over the grid.
    """
    if isinstance(wcs, BaseLowLevelWCS) and not isinstance(wcs, BaseHighLevelWCS):
        wcs = HighLevelWCSWrapper(wcs)
    if not isinstance(wcs, BaseHighLevelWCS):
        raise TypeError(f"wcs must be an APE-14 WCS, got {type(wcs).__name__}")
    pixel_shape, low, high = _region(wcs, solution, band, shape)
    axes = [np.linspace(a, b, _GRID) for a, b in zip(low, high, strict=True)]
    x, y = (a.ravel() for a in np.meshgrid(*axes))
    sky = solution.true_position(wcs.pixel_to_world(x, y), band)
    if form == "tan":
        new = tan(wcs, x, y, sky)
    elif form == "sip":
        new = sip(wcs, x, y, sky)
    else:
        new = _lookup(wcs, solution, band, low, high)
    new.pixel_shape = pixel_shape
    return new, largest_residual(new, x, y, sky)


def _region(wcs, solution, band, shape):
    """Image shape (nx, ny) or None, and the pixel box to fit."""
    size = wcs.low_level_wcs.pixel_shape if shape is None else shape[::-1]
    if size is not None:
        return tuple(int(s) for s in size), np.full(2, -0.5), np.array(size, float) - 0.5
    bounds = wcs.low_level_wcs.pixel_bounds
    if bounds is not None and all(b is not None for b in bounds):
        low, high = np.array(bounds, float).T
        return None, low, high
    (west, south), (east, north) = solution.box
    edge = from_tangent([(west, south), (east, south), (west, north), (east, north)], solution.center)
    pixels = np.stack(wcs.world_to_pixel(solution.ground_position(edge, band)), -1)
    low, high = pixels.min(0), pixels.max(0)
    margin = 0.05 * (high - low) + 5.0
    return None, low - margin, high + margin


def _lookup(wcs, solution, band, low, high):
    """TAN, and per axis a table of pixel shifts that holds everything else, the input's own distortion included."""
    n = [int(np.clip(np.ceil((b - a) / _LOOKUP_STEP) + 1, 2, _LOOKUP_MAX)) for a, b in zip(low, high, strict=True)]
    fine = [np.linspace(a, b, k) for a, b, k in zip(low, high, n, strict=True)]
    nodes = [np.linspace(a, b, _LOOKUP_NODES) for a, b in zip(low, high, strict=True)]
    x, y = (a.ravel() for a in np.meshgrid(*nodes))
    sky = solution.true_position(wcs.pixel_to_world(x, y), band)
    crpix = crpix_for(wcs, x, y)
    center, _, coefficient = polynomial(x, y, sky, crpix, 1)
    cd = coefficient.T
    want = np.linalg.solve(cd, tangent(sky, center).T)  # pixels from CRPIX
    shift = (want - np.stack([x - crpix[0], y - crpix[1]])).reshape(2, _LOOKUP_NODES, _LOOKUP_NODES)
    # Readers interpolate the table linearly, so it is finer than the field needs.
    shift = [RectBivariateSpline(nodes[1], nodes[0], s)(fine[1], fine[0]) for s in shift]
    new = blank(center, crpix, cd)
    step = [(b - a) / (k - 1) for a, b, k in zip(low, high, n, strict=True)]
    tables = [
        DistortionLookupTable(s.astype(np.float32), (1.0, 1.0), tuple(low + 1.0), tuple(step))
        for s in shift
    ]
    new.cpdis1, new.cpdis2 = tables
    new.wcs.set()
    return new
