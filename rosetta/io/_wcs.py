# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Where the pixels are: the celestial WCS of a header, checked card by card, and regions of an image."""

import re
import warnings

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io.fits.card import Undefined
from astropy.nddata import NoOverlapError, overlap_slices
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_scales, wcs_to_celestial_frame
from scipy.interpolate import RectBivariateSpline

from ..images.positions import given_positions

__all__ = ["celestial_wcs", "check_place", "pixel_areas", "region"]

PIXEL_SCALES = (0.005, 5.0)  # arcsec; what images of this field have
STRETCH = 1.5  # the longer side of a pixel over the shorter one

# Cards whose value is a number, for the two axes of an image.
_NUMBERS = re.compile(
    r"(CRPIX|CRVAL|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|PV[12]_\d+|[AB]P?_(\d+_\d+|ORDER)|LONPOLE|LATPOLE|EQUINOX"
)
_LOOKUP = re.compile(r"(CPDIS|CQDIS|DP|DQ|D2IMDIS|D2IMERR)[12]")
# Axes beyond the ninth: wcslib would make matrices for all of them.
_MANY_AXES = re.compile(
    r"(CTYPE|CUNIT|CRPIX|CRVAL|CDELT|CROTA)\d{2,}[A-Z]?|(PV|PS)\d{2,}_\d+[A-Z]?|(PC|CD)(\d{2,}_\d+|\d+_\d{2,})[A-Z]?"
)


def celestial_wcs(header, argument, shift=(0, 0), shape=None):
    """The celestial WCS of a header, for an image cut ``shift`` = (x, y) pixels into the file's.

    Nothing is taken for granted: wcslib would put zero for a reference point that is missing or cannot be read.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
    argument : str
        What the header belongs to, for messages.
    shift : tuple of int
        First pixel (x, y) of the image in the file's.
    shape : tuple of int, optional
        (ny, nx) of the image (default: the file's); the WCS remembers it as its ``pixel_shape``.

    Returns
    -------
    `~astropy.wcs.WCS`

    Raises
    ------
    ValueError
        If there is no two-dimensional celestial WCS; if a card that says where the pixels are is missing, no number
        or absurd; or if pixels are not between 0.005 and 5 arcsec wide everywhere on the image.
    """
    _check_cards(header, argument)
    header = header.copy()
    for axis, offset in enumerate(shift, start=1):
        # CRPIX is the origin of every FITS distortion too (SIP, TPV), so moving it moves them all.
        header[f"CRPIX{axis}"] -= offset
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)  # obsolete dates and the like
        try:
            wcs = WCS(header)
            wcs = wcs if wcs.naxis == 2 else WCS(header, naxis=2)  # extra axes have length 1
        except Exception as error:  # wcslib has many types of error
            raise ValueError(f"{argument}: the header's WCS cannot be read ({_last_line(error)}): repair it") from error
    if not wcs.has_celestial:
        raise ValueError(_not_celestial(header, argument))
    if shape is None and "NAXIS2" in header:
        shape = header["NAXIS2"], header["NAXIS1"]
    _check_pixels(wcs, argument, shape)
    if shape is not None:
        wcs.pixel_shape = shape[::-1]
    return wcs


def _not_celestial(header, argument):
    return (
        f"{argument}: the header has no two-dimensional celestial WCS "
        f"(CTYPE1={header.get('CTYPE1')!r}, CTYPE2={header.get('CTYPE2')!r}): "
        "repair it, or read the extension that has one"
    )


def _last_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _check_cards(header, argument):
    """The cards themselves, before wcslib fills in what is missing."""
    if not all(isinstance(header.get(f"CTYPE{axis}"), str) for axis in (1, 2)):
        raise ValueError(_not_celestial(header, argument))
    for key in dict.fromkeys(header):
        axes = header[key] if re.fullmatch("WCSAXES[A-Z]?", key) else 0
        if _MANY_AXES.fullmatch(key) or not isinstance(axes, int) or axes > 9:
            raise ValueError(f"{argument}: {key}={header[key]!r} belongs to no image of the sky: remove the card")
        if _NUMBERS.fullmatch(key):
            _check_number(key, header[key], argument)
        if _LOOKUP.fullmatch(key):
            raise ValueError(
                f"{argument}: {key} says that the distortion is a table, which is not read: give a rectified image, "
                "or one whose distortion is SIP or TPV alone"
            )
    matrix = [key for key in header if re.fullmatch(r"CD[12]_[12]", key)]
    turned = [key for key in header if re.fullmatch(r"PC[12]_[12]", key)]
    needed = ["CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2"] + ([] if matrix else ["CDELT1", "CDELT2"])
    missing = [key for key in needed if key not in header]
    if turned and missing == ["CDELT1", "CDELT2"]:
        missing = []  # the scale is in the PC matrix; FITS then says that CDELT is 1
    if missing:
        raise ValueError(
            f"{argument}: the header has no {' and no '.join(missing)}, so nothing says where the pixels are: "
            "take the WCS of the original file"
        )
    coupled = [key for key in header if re.fullmatch(r"(CD|PC)([12]_[3-9]|[3-9]_[12])", key) and header[key] != 0]
    if coupled:
        raise ValueError(f"{argument}: {coupled[0]} ties the sky to another axis: take the WCS of a plain image")
    for axis in (1, 2):
        unit = header.get(f"CUNIT{axis}", "deg")
        try:
            text = re.sub(r"(?i)deg(ree)?s?", "deg", str(unit).strip()) or "deg"
            value = header[f"CRVAL{axis}"] * u.Unit(text).to(u.deg)
        except ValueError as error:
            raise ValueError(
                f"{argument}: CUNIT{axis}={unit!r} is no angle: repair it (it is 'deg' in most files)"
            ) from error
        latitude = re.match(r"DEC|.?.?LAT", header[f"CTYPE{axis}"])
        if abs(value) > (90 if latitude else 360):
            name = "latitude" if latitude else "longitude"
            raise ValueError(
                f"{argument}: CRVAL{axis}={header[f'CRVAL{axis}']:g} is no {name}: repair the header's WCS"
            )
    if not matrix and 0.0 in (header.get("CDELT1"), header.get("CDELT2")):
        raise ValueError(f"{argument}: CDELT1 or CDELT2 is 0: take the WCS of the original file")
    if matrix:
        _check_matrix(header, argument)
    _check_rotation(header, argument)
    _check_sip(header, argument)


def _check_sip(header, argument):
    named = [header[f"CTYPE{axis}"].strip().endswith("-SIP") for axis in (1, 2)]
    orders = [header.get(f"{name}_ORDER") for name in "AB"]
    if not any(named) and orders == [None, None]:
        return
    if not all(named):
        raise ValueError(
            f"{argument}: there are SIP coefficients, but CTYPE1 and CTYPE2 do not both end in -SIP: "
            "repair CTYPE, or remove the coefficients if the image is without distortion"
        )
    if not all(isinstance(order, int) and 0 <= order <= 9 for order in orders):
        raise ValueError(
            f"{argument}: A_ORDER={orders[0]} and B_ORDER={orders[1]} of the SIP must be 0 to 9: repair them"
        )


def _check_number(key, value, argument):
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        value = "" if isinstance(value, Undefined) else value
        raise ValueError(f"{argument}: {key}={value!r} is not a number: repair the header's WCS")


def _check_matrix(header, argument):
    """CD stands alone, or beside CDELT and PC that say the same: wcslib would take one of them in silence."""
    cd, pc = (np.array([[header.get(f"{name}{i}_{j}", default[i - 1][j - 1]) for j in (1, 2)] for i in (1, 2)])
              for name, default in (("CD", np.zeros((2, 2))), ("PC", np.eye(2))))  # fmt: skip
    delta = np.array([header.get(f"CDELT{axis}", 1.0) for axis in (1, 2)])
    if any(re.fullmatch(r"PC[12]_[12]", key) for key in header):
        if np.abs(delta[:, None] * pc - cd).max() > 1e-6 * np.abs(cd).max():
            raise ValueError(f"{argument}: the header's CD and PC matrices differ: remove the wrong one")
        return
    rows = np.hypot(*cd.T)
    if np.any((delta != 0) & (np.abs(delta) != 1) & (np.abs(np.abs(delta) - rows) > 0.02 * rows)):
        raise ValueError(
            f"{argument}: CDELT ({delta[0]:.6g}, {delta[1]:.6g}) and the CD matrix ({rows[0]:.6g}, {rows[1]:.6g}) "
            "give different pixel scales: remove the wrong one"
        )


def _check_rotation(header, argument):
    """CROTA stands at the latitude axis, alone or beside a matrix that says the same: wcslib would overlook it."""
    latitude = 1 if re.match(r"DEC|.?.?LAT", header["CTYPE1"]) else 2
    angle, other = (header.get(f"CROTA{axis}", 0.0) for axis in (latitude, 3 - latitude))
    if other not in (0.0, angle):
        raise ValueError(
            f"{argument}: the header has CROTA{3 - latitude}={other:g} and CROTA{latitude}={angle:g}: "
            "remove the wrong one"
        )
    name = next((name for name in ("CD", "PC") if any(re.fullmatch(rf"{name}[12]_[12]", key) for key in header)), None)
    if not angle or name is None or latitude == 1:
        return
    found = np.array([[header.get(f"{name}{i}_{j}", float(name == "PC" and i == j)) for j in (1, 2)] for i in (1, 2)])
    if name == "PC":
        ratio, turn = header.get("CDELT2", 1.0) / header.get("CDELT1", 1.0), np.radians(angle)
        turned = np.array([[np.cos(turn), -np.sin(turn) * ratio], [np.sin(turn) / ratio, np.cos(turn)]])
        differ = np.abs(found - turned).max() > 1e-6
    else:  # beside which programs write CROTA with either sign, and rounded
        own = np.degrees(np.arctan2(found[1, 0], found[1, 1]))
        differ = min(abs((own - way * angle + 90) % 180 - 90) for way in (1, -1)) > 1
    if differ:
        raise ValueError(f"{argument}: CROTA{latitude}={angle:g} and the {name} matrix differ: remove the wrong one")


def _check_pixels(wcs, argument, shape):
    """Sides of the pixels, from the linear terms and then with projection and distortion."""
    linear = np.diag(wcs.wcs.get_cdelt()) @ wcs.wcs.get_pc() * 3600
    _check_sides(np.linalg.svd(linear, compute_uv=False), argument, "the header's WCS")
    if shape is None:
        return
    ny, nx = shape
    x = np.array([(nx - 1) / 2, 0, nx - 1, 0, nx - 1])
    y = np.array([(ny - 1) / 2, 0, 0, ny - 1, ny - 1])
    try:
        wcs_to_celestial_frame(wcs)
        here, right, up = (_unit_vectors(wcs, x + dx, y + dy) for dx, dy in ((0, 0), (1, 0), (0, 1)))
    except Exception as error:  # wcslib again
        raise ValueError(
            f"{argument}: the header's WCS gives no sky positions ({_last_line(error)}): repair it"
        ) from error
    steps = np.stack([right - here, up - here], axis=-1)  # (5, 3, 2)
    if not np.isfinite(steps).all():
        raise ValueError(f"{argument}: part of the image lies where its projection has no sky: repair CRPIX and CRVAL")
    for sides in np.linalg.svd(steps, compute_uv=False) * np.degrees(3600):
        _check_sides(sides, argument, "the header's WCS, projected and distorted,")


def pixel_areas(wcs, shape):
    """Solid angle of the pixels.

    Parameters
    ----------
    wcs : `~astropy.wcs.WCS`
    shape : tuple of int
        (ny, nx) of the image.

    Returns
    -------
    float or (ny, nx) array
        Square arcseconds; one number where it varies by less than 1e-3 over the image.
    """
    y, x = (np.linspace(0, n - 1, min(n, 33)) for n in shape)  # distortion is smooth
    grid_y, grid_x = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
    right, up = (
        _unit_vectors(wcs, grid_x + dx, grid_y + dy) - _unit_vectors(wcs, grid_x - dx, grid_y - dy)
        for dx, dy in ((0.5, 0), (0, 0.5))
    )
    area = np.linalg.norm(np.cross(right, up), axis=-1).reshape(len(y), len(x)) * np.degrees(3600) ** 2
    if area.max() - area.min() <= 1e-3 * area.mean():
        return float(area.mean())
    order = [min(3, n - 1) for n in area.shape]
    return RectBivariateSpline(y, x, area, kx=order[0], ky=order[1])(np.arange(shape[0]), np.arange(shape[1]))


def check_place(wcs, header, where, whose):
    """Refuse a plane whose own WCS, where its header has one, puts it elsewhere than its image.

    Parameters
    ----------
    wcs : `~astropy.wcs.WCS`
        Of the whole image, with ``pixel_shape``.
    header : `~astropy.io.fits.Header`
        Of the plane, which has the image's shape.
    where, whose : str
        What messages call the plane and the image.

    Raises
    ------
    ValueError
        If a corner lies half a pixel or more from that of the image; or as `celestial_wcs` does.
    """
    if "CRVAL1" not in header:
        return
    nx, ny = wcs.pixel_shape
    x, y = np.array([0, nx - 1, 0]), np.array([0, 0, ny - 1])
    found = wcs.world_to_pixel(celestial_wcs(header, where).pixel_to_world(x, y))
    if not np.hypot(found[0] - x, found[1] - y).max() < 0.5:
        raise ValueError(f"{where} lies elsewhere on the sky than {whose}: give that of the same image")


def _check_sides(sides, argument, what):
    """Refuse lengths (arcsec; the longer one first) that pixels do not have."""
    low, high = PIXEL_SCALES
    long, short = sides
    if not (low <= short and long <= high):
        raise ValueError(
            f"{argument}: {what} has pixels of {long:.4g} x {short:.4g} arcsec, outside {low} to {high:g}: "
            "repair CD, CDELT or CRPIX"
        )
    if long > STRETCH * short:
        raise ValueError(
            f"{argument}: {what} has pixels of {long:.4g} x {short:.4g} arcsec, far from square: "
            "repair CD, CDELT or CRPIX"
        )


def _unit_vectors(wcs, x, y):
    world = np.radians(wcs.all_pix2world(np.stack([x, y], axis=-1), 0))
    lon, lat = world[:, wcs.wcs.lng], world[:, wcs.wcs.lat]
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def region(wcs, shape, center, size, where):
    """Slices of a region of the sky, trimmed to the image.

    Parameters
    ----------
    wcs : `~astropy.wcs.WCS`
    shape : tuple of int
        (ny, nx) of the image.
    center : `~astropy.coordinates.SkyCoord` or None
        Centre of the region; None: the whole image.
    size : `~astropy.units.Quantity` or None
        Angular size of the region: one for both sides, or (ny, nx). Given with ``center`` only.
    where : str
        What the image is, for messages.

    Returns
    -------
    tuple of slice
        Rows and columns, [y, x].

    Raises
    ------
    TypeError
        If ``center`` is not one position or ``size`` no angle.
    ValueError
        If only one of them is given, ``size`` is not positive, or the region is not on the image.
    """
    if (center is None) != (size is None):
        raise ValueError("center and size: give both, for a region, or neither, for the whole image")
    if center is None:
        return slice(0, shape[0]), slice(0, shape[1])
    if not isinstance(center, SkyCoord) or not center.isscalar:
        raise TypeError("center must be one SkyCoord")
    given_positions(center, "center")
    if not isinstance(size, u.Quantity) or not size.unit.is_equivalent(u.deg):
        raise TypeError("size must be an angle, for example 60 * u.arcsec")
    if size.shape not in ((), (2,)) or not np.all((size > 0) & np.isfinite(size)):
        raise ValueError(f"size must be one positive angle or two, (ny, nx), got {size}")
    x, y = wcs.world_to_pixel(center)
    scale_x, scale_y = proj_plane_pixel_scales(wcs) * u.deg
    size_y, size_x = np.broadcast_to(size, 2, subok=True)
    pixels = tuple(max(1, round(float(extent))) for extent in (size_y / scale_y, size_x / scale_x))
    try:
        slices, _ = overlap_slices(shape, pixels, (float(y), float(x)), mode="trim")
    except (NoOverlapError, ValueError) as error:  # NaN where the sky is behind the tangent plane
        raise ValueError(
            f"center: the region at {center.to_string('hmsdms', precision=1)} is not on the image ({where})"
        ) from error
    return slices
