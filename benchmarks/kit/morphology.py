# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Size, concentration, Gini coefficient, M20 and asymmetry of one galaxy on a stamp.

Definitions of Lotz, Primack & Madau (2004) and Conselice (2003). Neither PSF nor noise is corrected for, so that only
galaxies seen with the same PSF and noise may be compared.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = ["Morphology", "morphology"]

ETA = 0.2  # surface brightness at the Petrosian radius over the mean within it
WHOLE = 1.5  # Petrosian radii that hold the light of a galaxy
STEPS = np.array([(0.0, 0.0), (0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5)])  # pixels; the search of the centre


@dataclass(frozen=True)
class Morphology:
    """What is measured of one galaxy; NaN where its light does not allow it.

    Attributes
    ----------
    flux : float
        Within 1.5 Petrosian radii, in the unit of the image.
    petrosian, half_light : float
        Radii in pixels.
    concentration : float
        5 log10(r80 / r20).
    gini, m20 : float
        On the pixels brighter than the surface brightness at the Petrosian radius.
    asymmetry : float
        sum |I - I180| / sum |I| within 1.5 Petrosian radii, without what noise alone gives.
    """

    flux: float = np.nan
    petrosian: float = np.nan
    half_light: float = np.nan
    concentration: float = np.nan
    gini: float = np.nan
    m20: float = np.nan
    asymmetry: float = np.nan


def morphology(image, center, sigma, use):
    """Measure one galaxy.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Without sky.
    center : (x, y)
        About where the galaxy is, 0-based pixels.
    sigma : float
        Scatter of a sky pixel.
    use : ndarray of bool, shape (ny, nx)
        False on other sources and bad pixels, which take the value of the pixel opposite them.

    Returns
    -------
    Morphology
    """
    image = np.asarray(image, float)
    light = _filled(image, center, use)
    first = _petrosian(light, center)
    if not np.isfinite(first):
        return Morphology()
    center = _most_symmetric(light, center, WHOLE * first)
    light = _filled(image, center, use)
    petrosian = _petrosian(light, center)
    if not WHOLE * petrosian < _room(light.shape, center):
        return Morphology(petrosian=petrosian)
    radius = np.arange(0.5, WHOLE * petrosian + 0.5, 0.25)
    growth = np.array([_within(light, center, r) for r in radius])
    flux = _within(light, center, WHOLE * petrosian)
    if not flux > 0:
        return Morphology(petrosian=petrosian)
    r20, r50, r80 = (_first_above(radius, growth / flux, share) for share in (0.2, 0.5, 0.8))
    gini, m20 = _gini_m20(light, center, petrosian)
    return Morphology(
        flux, petrosian, r50, 5 * np.log10(r80 / r20), gini, m20, _asymmetry(light, center, WHOLE * petrosian, sigma)
    )


def _distance(shape, center):
    y, x = np.indices(shape)
    return np.hypot(x - center[0], y - center[1])


def _room(shape, center):
    """Radius of the largest circle about the centre that lies on the stamp."""
    return min(center[0], center[1], shape[1] - 1 - center[0], shape[0] - 1 - center[1]) + 0.5


def _within(image, center, radius):
    """Light within a circle whose edge is one pixel soft."""
    return float(np.sum(image * np.clip(radius + 0.5 - _distance(image.shape, center), 0, 1)))


def _filled(image, center, use):
    """The image with pixels not in use taken from across the centre, or 0 where those are not in use either."""
    turned, there = _turned(np.where(use, image, 0.0), center), _turned(use.astype(float), center)
    return np.where(use, image, np.where(there > 0.99, turned, 0.0))


def _turned(image, center):
    """The image turned by 180 degrees about the centre."""
    y, x = np.indices(image.shape)
    return ndimage.map_coordinates(image, [2 * center[1] - y, 2 * center[0] - x], order=1, cval=0.0)


def _first_above(radius, values, level):
    """Radius at which values first reach a level, interpolated; NaN if they do not."""
    k = int(np.argmax(values >= level))
    if values[k] < level:
        return np.nan
    if k == 0:
        return radius[0] * np.sqrt(level / values[0])  # as if the light within the first circle were even
    return radius[k - 1] + (level - values[k - 1]) / (values[k] - values[k - 1]) * (radius[k] - radius[k - 1])


def _petrosian(image, center):
    """Radius at which the surface brightness falls to ``ETA`` times the mean within; NaN if the stamp is too small."""
    radius = np.arange(1.5, _room(image.shape, center) / 1.25, 0.25)
    if not len(radius):
        return np.nan
    distance = _distance(image.shape, center)

    def disc(r):
        weight = np.clip(r + 0.5 - distance, 0, 1)
        return np.sum(image * weight), np.sum(weight)

    ratio = []
    for r in radius:
        (inner, n_inner), (mid, n_mid), (outer, n_outer) = disc(0.8 * r), disc(r), disc(1.25 * r)
        ratio.append((outer - inner) / (n_outer - n_inner) / (mid / n_mid) if mid > 0 else np.nan)
    return _first_above(radius, ETA - np.array(ratio), 0.0) if np.isfinite(ratio).all() else np.nan


def _difference(image, center, radius):
    """sum |I - I180| and sum |I| within a circle, and the number of its pixels."""
    within = _distance(image.shape, center) < radius
    return (
        np.sum(np.abs(image - _turned(image, center))[within]), np.sum(np.abs(image)[within]), np.count_nonzero(within),
    )  # fmt: skip


def _most_symmetric(image, center, radius):
    """The centre, near the given one, about which the galaxy is most symmetric."""
    center = np.round(2 * np.asarray(center, float)) / 2  # then turned pixels fall on pixels: no noise is averaged
    for _ in range(20):
        tries = center + STEPS
        best = int(np.argmin([_difference(image, place, radius)[0] for place in tries]))
        if best == 0:
            break
        center = tries[best]
    return center


def _asymmetry(image, center, radius, sigma):
    difference, light, n = _difference(image, center, radius)
    return float((difference - n * sigma * 2 / np.sqrt(np.pi)) / light)


def _gini_m20(image, center, petrosian):
    smooth = ndimage.gaussian_filter(image, petrosian / 5)
    distance = _distance(image.shape, center)
    edge = smooth[np.abs(distance - petrosian) < 0.75].mean()
    label, _ = ndimage.label((smooth >= edge) & (distance < 2 * petrosian))
    own = label == label[round(center[1]), round(center[0])]
    if not label[round(center[1]), round(center[0])] or own.sum() < 5:
        return np.nan, np.nan
    value = np.sort(np.abs(image[own]))
    n = len(value)
    gini = np.sum((2 * np.arange(1, n + 1) - n - 1) * value) / (value.mean() * n * (n - 1))

    y, x = np.nonzero(own)
    flux = image[own]
    if not flux.sum() > 0:
        return gini, np.nan
    middle = [np.sum(c * flux) / flux.sum() for c in (x, y)]
    moment = flux * ((x - middle[0]) ** 2 + (y - middle[1]) ** 2)
    order = np.argsort(flux)[::-1]
    brightest = np.cumsum(flux[order]) <= 0.2 * flux.sum()
    brightest[0] = True
    share = moment[order][brightest].sum() / moment.sum()
    return float(gini), float(np.log10(share)) if share > 0 else np.nan
