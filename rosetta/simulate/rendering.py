# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Drawing components on a tangent-plane grid with GalSim."""

from functools import lru_cache

import galsim
import numpy as np

from .mixtures import TRUNCATION

__all__ = ["Grid", "add_stamp", "base_psf", "draw_component", "draw_sources", "profile", "reach", "source_light"]

#: FWHM (arcsec) of the Gaussian that is the base PSF of the ground side of training tiles.
GROUND_BASE_FWHM = 0.45
_PARAMS = galsim.GSParams(folding_threshold=5e-3, maxk_threshold=1e-4, kvalue_accuracy=1e-5)


class Grid:
    """A north-up, east-left TAN grid.

    Parameters
    ----------
    shape : tuple of int
        (ny, nx).
    pixel_scale : float
        Arcsec.
    origin : tuple of float
        0-based pixel (x, y) of the tangent point.
    """

    def __init__(self, shape, pixel_scale, origin):
        self.shape = shape
        self.pixel_scale = pixel_scale
        self.origin = origin
        # GalSim's world coordinates are (east, north) here.
        self.local = galsim.JacobianWCS(-pixel_scale, 0.0, 0.0, pixel_scale)

    def to_pixel(self, east, north):
        """0-based pixel (x, y) of tangent-plane arcsec."""
        return self.origin[0] - east / self.pixel_scale, self.origin[1] + north / self.pixel_scale


@lru_cache(maxsize=2)
def base_psf(side):
    """The PSF of noise-free training tiles, without pixel response.

    Parameters
    ----------
    side : {"ground", "space"}

    Returns
    -------
    `galsim.GSObject`
        A Gaussian of FWHM 0.45" on the ground; in space an Airy pattern (lambda/D 0.125", obscuration
        0.4) convolved with a Gaussian of sigma 0.03".
    """
    if side == "ground":
        return galsim.Gaussian(fwhm=GROUND_BASE_FWHM, gsparams=_PARAMS)
    return galsim.Convolve(
        galsim.Airy(lam_over_diam=0.125, obscuration=0.4, gsparams=_PARAMS),
        galsim.Gaussian(sigma=0.03, gsparams=_PARAMS),
        gsparams=_PARAMS,
    )


def profile(sersic, radius, g1, g2, params=_PARAMS):
    """The intrinsic light of one component of unit flux; None for a point.

    Parameters
    ----------
    sersic, radius, g1, g2 : float
        Index (0: point, 0.5: Gaussian), half-light radius in arcsec, reduced shear (east, north).
    params : `galsim.GSParams`

    Returns
    -------
    `galsim.GSObject` or None
    """
    if sersic == 0:
        return None
    if sersic == 0.5:
        shape = galsim.Gaussian(half_light_radius=radius, gsparams=params)
    elif sersic == 1:
        shape = galsim.Exponential(half_light_radius=radius, gsparams=params)
    else:
        shape = galsim.Sersic(sersic, half_light_radius=radius, trunc=TRUNCATION * radius, gsparams=params)
    return shape.shear(g1=g1, g2=g2) if g1 or g2 else shape


def reach(sersic, radius, g1, g2):
    """Radius (arcsec) that holds all but about 1e-3 of the intrinsic light of a component."""
    if sersic == 0:
        return 0.0
    g = np.hypot(g1, g2)
    radii = 2.8 if sersic <= 0.5 else 5.5 if sersic <= 1 else TRUNCATION
    return radii * radius * np.sqrt((1 + g) / (1 - g))


def _component(scene, k, params):
    """Intrinsic light of a component of unit flux about the position of its source, and its reach in arcsec."""
    east, north = scene.offset[k]
    galaxy = scene.real_galaxy(k)
    if galaxy is None:
        shape = (scene.sersic[k], scene.radius[k], *scene.shape[k])
        light, width = profile(*shape, params), reach(*shape)
    else:
        turn, parity = scene.shape[k]
        cos, sin = np.cos(turn), np.sin(turn)
        light = galaxy.light.transform(cos * parity, -sin, sin * parity, cos)
        width = galaxy.reach
    return (light.shift(east, north) if east or north else light), width + np.hypot(east, north)


def source_light(scene, rows, share, params=_PARAMS):
    """Intrinsic light of components of one source, added up, and the radius that holds it.

    Parameters
    ----------
    scene : `~rosetta.simulate.population.Scene`
    rows : array_like of int
        Components.
    share : array_like
        Flux of each.
    params : `galsim.GSParams`

    Returns
    -------
    light : `galsim.GSObject` or None
        About the position of the source; None for a point.
    width : float
        Arcsec.
    """
    if scene.sersic[rows[0]] == 0:
        return None, 0.0
    parts, widths = zip(*(_component(scene, k, params) for k in rows))
    return galsim.Sum([part * s for part, s in zip(parts, share) if s > 0], gsparams=params), max(widths)


def draw_component(light, psf, grid, east, north, half_width):
    """Draw one component of unit flux on a stamp of the grid.

    Parameters
    ----------
    light : `galsim.GSObject` or None
        Intrinsic light; None for a point.
    psf : `galsim.GSObject`
    grid : Grid
    east, north : float
        Position, arcsec.
    half_width : float
        Half the width of the stamp, arcsec.

    Returns
    -------
    stamp : `~numpy.ndarray`
        Unit sum: the light that would fall outside of the stamp is put back inside.
    corner : tuple of int
        0-based (x, y) of its first pixel; may lie outside of the grid.
    """
    x, y = grid.to_pixel(east, north)
    half = int(np.ceil(half_width / grid.pixel_scale))
    x0, y0 = round(float(x)) - half, round(float(y)) - half
    stamp = galsim.ImageF(galsim.BoundsI(x0, x0 + 2 * half, y0, y0 + 2 * half), wcs=grid.local)
    obj = psf if light is None else galsim.Convolve(light, psf, gsparams=psf.gsparams)
    obj.drawImage(image=stamp, center=galsim.PositionD(float(x), float(y)), method="auto")
    return stamp.array / stamp.array.sum(), (x0, y0)


def draw_sources(scene, place, flux, field, grid):
    """Draw every source that sheds light on the grid, in one band, under the PSF at its place.

    Parameters
    ----------
    scene : `~rosetta.simulate.population.Scene`
    place : `~numpy.ndarray`, shape (n, 2)
        Where the sources are seen (east, north), arcsec.
    flux : `~numpy.ndarray`, shape (m,)
        Flux of every component, nJy.
    field : `~rosetta.simulate.psf.FieldPSF`
    grid : Grid

    Yields
    ------
    stamp : `~numpy.ndarray`
        nJy per pixel.
    corner : tuple of int
        0-based (x, y) of its first pixel.
    """
    order = np.argsort(scene.owner, kind="stable")
    if len(order) == 0:
        return
    for rows in np.split(order, np.flatnonzero(np.diff(scene.owner[order])) + 1):
        east, north = place[scene.owner[rows[0]]]
        psf = field.at(east, north)
        total = flux[rows].sum()
        if total <= 0:
            continue
        light, width = source_light(scene, rows, flux[rows] / total, psf.gsparams)
        stamp, corner = draw_component(light, psf, grid, east, north, width + 1.15 * field.radius)
        yield total * stamp, corner


def add_stamp(planes, stamp, corner, flux):
    """Add ``flux[band] * stamp`` to planes (n_band, ny, nx), clipped at their edges.

    Parameters
    ----------
    planes : `~numpy.ndarray`
        Changed in place.
    stamp : `~numpy.ndarray`
    corner : tuple of int
    flux : array_like, shape (n_band,)
    """
    (x0, y0), (ny, nx) = corner, planes.shape[1:]
    sy, sx = stamp.shape
    ya, yb, xa, xb = max(y0, 0), min(y0 + sy, ny), max(x0, 0), min(x0 + sx, nx)
    if ya >= yb or xa >= xb:
        return
    part = stamp[ya - y0 : yb - y0, xa - x0 : xb - x0]
    planes[:, ya:yb, xa:xb] += np.asarray(flux, np.float32)[:, None, None] * part
