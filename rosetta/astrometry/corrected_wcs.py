# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A WCS that carries a known offset field, as plain FITS: TAN, TAN-SIP or TAN with lookup tables.

Every form is one linear least-squares fit to the corrected sky positions of a grid of pixels, so that any APE-14
WCS can be corrected. SIP: Shupe et al. (2005). Lookup tables: Calabretta et al. (2004), CPDIS.
"""

import numpy as np
from astropy.wcs import WCS, DistortionLookupTable, Sip
from astropy.wcs.wcsapi import BaseHighLevelWCS, BaseLowLevelWCS, HighLevelWCSWrapper
from scipy.interpolate import RectBivariateSpline

from ..images.positions import from_tangent, tangent

__all__ = ["FORMS", "corrected"]

FORMS = ("sip", "lookup", "tan")
_GRID = 41  # nodes per axis of the fitted grid
_MAX_ORDER = 5  # of SIP: beyond it FITS readers disagree
_GOAL = 0.02  # mas: no higher order is tried below this residual
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
        new = _tan(wcs, x, y, sky)
    elif form == "sip":
        new = _sip(wcs, x, y, sky)
    else:
        new = _lookup(wcs, solution, band, low, high)
    new.pixel_shape = pixel_shape
    return new, _residual(new, x, y, sky)


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


def _residual(new, x, y, sky):
    return float(1e3 * new.pixel_to_world(x, y).icrs.separation(sky).arcsec.max())


def _blank(center, crpix, cd, sip=False):
    """An ICRS TAN WCS; ``crpix`` 0-based, ``cd`` in arcsec per pixel."""
    new = WCS(naxis=2)
    suffix = "-SIP" if sip else ""
    new.wcs.ctype = [f"RA---TAN{suffix}", f"DEC--TAN{suffix}"]
    new.wcs.cunit = ["deg", "deg"]
    new.wcs.radesys = "ICRS"
    new.wcs.crval = [center.ra.deg, center.dec.deg]
    new.wcs.crpix = np.asarray(crpix) + 1.0
    new.wcs.cd = cd / 3600.0
    return new


def _fit(x, y, sky, crpix, order):
    """Reference point and polynomial of the tangent-plane position in pixels from ``crpix``, without a constant.

    Returns the reference point, the list of powers and their coefficients (n_term, 2) in arcsec.
    """
    u, v = x - crpix[0], y - crpix[1]
    unit = max(np.abs(u).max(), np.abs(v).max(), 1.0)
    powers = [(p, total - p) for total in range(order + 1) for p in range(total, -1, -1)]
    design = np.stack([(u / unit) ** p * (v / unit) ** q for p, q in powers], -1)
    center = sky[len(sky) // 2]
    for _ in range(3):  # the constant term moves into the reference point
        coefficient = np.linalg.lstsq(design, tangent(sky, center), rcond=None)[0]
        center = from_tangent(coefficient[0], center)[0]
    coefficient = np.linalg.lstsq(design[:, 1:], tangent(sky, center), rcond=None)[0]
    scale = np.array([unit ** -(p + q) for p, q in powers[1:]])
    return center, powers[1:], coefficient * scale[:, None]


def _start(wcs, x, y):
    """Pixel (0-based) to hold as CRPIX: the input's own, if it is near, else the middle."""
    middle = np.array([x.mean(), y.mean()])
    if isinstance(wcs, WCS):
        crpix = wcs.wcs.crpix - 1.0
        if np.abs(crpix - middle).max() < 3 * max(np.ptp(x), np.ptp(y)):
            return crpix
    return middle


def _tan(wcs, x, y, sky):
    """Reference point and CD matrix; the input's own SIP terms stay as they are."""
    keep = isinstance(wcs, WCS) and wcs.sip is not None and wcs.cpdis1 is None and wcs.det2im1 is None
    crpix = wcs.sip.crpix - 1.0 if keep else _start(wcs, x, y)
    fx, fy = wcs.pix2foc(x, y, 0) if keep else (x, y)
    center, _, coefficient = _fit(fx, fy, sky, crpix, 1)
    new = _blank(center, crpix, coefficient.T, sip=keep)
    if keep:
        new.sip = Sip(wcs.sip.a, wcs.sip.b, wcs.sip.ap, wcs.sip.bp, wcs.sip.crpix)
    new.wcs.set()
    return new


def _sip(wcs, x, y, sky):
    crpix = _start(wcs, x, y)
    best = None
    for order in range(2, _MAX_ORDER + 1):
        new = _sip_of_order(x, y, sky, crpix, order)
        residual = _residual(new, x, y, sky)
        if best is None or residual < best[0]:
            best = residual, new
        if best[0] < _GOAL:
            break
    return best[1]


def _sip_of_order(x, y, sky, crpix, order):
    center, powers, coefficient = _fit(x, y, sky, crpix, order)
    cd = coefficient[:2].T  # powers (1, 0), (0, 1)
    pixels = np.linalg.solve(cd, coefficient[2:].T)  # (2, n_term): SIP is in pixels, before CD
    forward = np.zeros((2, order + 1, order + 1))
    for k, (p, q) in enumerate(powers[2:]):
        forward[:, p, q] = pixels[:, k]
    # The inverse polynomials are for other readers; astropy inverts the forward ones.
    u, v = x - crpix[0], y - crpix[1]
    shift = sum(forward[:, p, q, None] * u**p * v**q for p, q in powers[2:])
    fu, fv = u + shift[0], v + shift[1]
    unit = max(np.abs(u).max(), np.abs(v).max(), 1.0)
    terms = [(p, q) for p in range(order + 1) for q in range(order + 1 - p)]
    design = np.stack([(fu / unit) ** p * (fv / unit) ** q for p, q in terms], -1)
    solution = np.linalg.lstsq(design, -shift.T, rcond=None)[0]
    backward = np.zeros_like(forward)
    for k, (p, q) in enumerate(terms):
        backward[:, p, q] = solution[k] / unit ** (p + q)
    new = _blank(center, crpix, cd, sip=True)
    new.sip = Sip(forward[0], forward[1], backward[0], backward[1], np.asarray(crpix) + 1.0)
    new.wcs.set()
    return new


def _lookup(wcs, solution, band, low, high):
    """TAN, and per axis a table of pixel shifts that holds everything else, the input's own distortion included."""
    n = [int(np.clip(np.ceil((b - a) / _LOOKUP_STEP) + 1, 2, _LOOKUP_MAX)) for a, b in zip(low, high, strict=True)]
    fine = [np.linspace(a, b, k) for a, b, k in zip(low, high, n, strict=True)]
    nodes = [np.linspace(a, b, _LOOKUP_NODES) for a, b in zip(low, high, strict=True)]
    x, y = (a.ravel() for a in np.meshgrid(*nodes))
    sky = solution.true_position(wcs.pixel_to_world(x, y), band)
    crpix = _start(wcs, x, y)
    center, _, coefficient = _fit(x, y, sky, crpix, 1)
    cd = coefficient.T
    want = np.linalg.solve(cd, tangent(sky, center).T)  # pixels from CRPIX
    shift = (want - np.stack([x - crpix[0], y - crpix[1]])).reshape(2, _LOOKUP_NODES, _LOOKUP_NODES)
    # Readers interpolate the table linearly, so it is finer than the field needs.
    shift = [RectBivariateSpline(nodes[1], nodes[0], s)(fine[1], fine[0]) for s in shift]
    new = _blank(center, crpix, cd)
    step = [(b - a) / (k - 1) for a, b, k in zip(low, high, n, strict=True)]
    tables = [
        DistortionLookupTable(s.astype(np.float32), (1.0, 1.0), tuple(low + 1.0), tuple(step))
        for s in shift
    ]
    new.cpdis1, new.cpdis2 = tables
    new.wcs.set()
    return new
