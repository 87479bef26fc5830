# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""FITS WCS fitted to sky positions: TAN, or TAN-SIP (Shupe et al. 2005), each by linear least squares."""

import numpy as np
from astropy.wcs import WCS, Sip

from .positions import from_tangent, tangent

__all__ = ["as_fits_wcs", "blank", "crpix_for", "largest_residual", "polynomial", "sip", "tan"]

MAX_ORDER = 5  # of SIP: beyond it FITS readers disagree
SIP_GOAL = 0.02  # mas: no higher order is tried below this residual
TAN_GOAL = 5.0  # mas: a WCS that TAN holds worse than this is given SIP terms
NODES = 41  # per axis of the grid that an image's own WCS is fitted on


def as_fits_wcs(image):
    """The WCS of an image as a FITS WCS.

    Parameters
    ----------
    image : `~rosetta.images.image.BandImage`

    Returns
    -------
    wcs : `~astropy.wcs.WCS`
        The image's own, if it is one; otherwise a fit by TAN, or by TAN-SIP where TAN is not good enough.
    residual : float or None
        Largest distance (mas) of the fit from the image's own WCS.
    """
    if isinstance(image.wcs, WCS):
        return image.wcs, None
    ny, nx = image.shape
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(-0.5, nx - 0.5, NODES), np.linspace(-0.5, ny - 0.5, NODES)))
    sky = image.pixel_to_sky(x, y)
    for form in (tan, sip):
        wcs = form(image.wcs, x, y, sky)
        residual = largest_residual(wcs, x, y, sky)
        if residual < TAN_GOAL:
            break
    wcs.pixel_shape = (nx, ny)
    return wcs, residual


def tan(wcs, x, y, sky):
    """TAN through the sky positions ``sky`` of the pixels ``x, y``; the SIP terms of ``wcs`` stay as they are."""
    keep = isinstance(wcs, WCS) and wcs.sip is not None and wcs.cpdis1 is None and wcs.det2im1 is None
    crpix = wcs.sip.crpix - 1.0 if keep else crpix_for(wcs, x, y)
    fx, fy = wcs.pix2foc(x, y, 0) if keep else (x, y)
    center, _, coefficient = polynomial(fx, fy, sky, crpix, 1)
    new = blank(center, crpix, coefficient.T, sip=keep)
    if keep:
        new.sip = Sip(wcs.sip.a, wcs.sip.b, wcs.sip.ap, wcs.sip.bp, wcs.sip.crpix)
    new.wcs.set()
    return new


def sip(wcs, x, y, sky):
    """TAN-SIP through the sky positions ``sky`` of the pixels ``x, y``, of the lowest order that is good enough."""
    crpix = crpix_for(wcs, x, y)
    best = None
    for order in range(2, MAX_ORDER + 1):
        new = _sip_of_order(x, y, sky, crpix, order)
        residual = largest_residual(new, x, y, sky)
        if best is None or residual < best[0]:
            best = residual, new
        if best[0] < SIP_GOAL:
            break
    return best[1]


def _sip_of_order(x, y, sky, crpix, order):
    center, powers, coefficient = polynomial(x, y, sky, crpix, order)
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
    new = blank(center, crpix, cd, sip=True)
    new.sip = Sip(forward[0], forward[1], backward[0], backward[1], np.asarray(crpix) + 1.0)
    new.wcs.set()
    return new


def polynomial(x, y, sky, crpix, order):
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


def blank(center, crpix, cd, sip=False):
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


def crpix_for(wcs, x, y):
    """Pixel (0-based) to hold as CRPIX: the input's own, if it is near, else the middle."""
    middle = np.array([x.mean(), y.mean()])
    if isinstance(wcs, WCS):
        crpix = wcs.wcs.crpix - 1.0
        if np.abs(crpix - middle).max() < 3 * max(np.ptp(x), np.ptp(y)):
            return crpix
    return middle


def largest_residual(new, x, y, sky):
    """Largest distance (mas) of a WCS from sky positions of pixels."""
    return float(1e3 * new.pixel_to_world(x, y).icrs.separation(sky).arcsec.max())
