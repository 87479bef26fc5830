# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The light of a PSF beyond its stamp: how much there is, and how it falls with radius.

If the survey's nominal wings are known, and the rim of the stamp is about as bright as they are there, then the nominal
wings are continued, scaled to the rim. Otherwise a sum of profiles is fitted to the means of the stamp in rings:
Gaussians and Moffat profiles about as wide as the PSF, diffraction (slope -3) and scattered light, with weights not
below zero. These rings are wide enough to average over diffraction rings.
"""

import numpy as np
from scipy.optimize import nnls

from .cache import cached_by_pixels
from .moments import half_maximum_width

__all__ = ["TRUNCATED", "Wings", "known_radius", "psf_wings"]

TRUNCATED = 2e-3  # of the light, beyond the stamp, that matters
REACH = 10.0  # arcsec; no light beyond is counted
STEP = 0.347  # of ln(radius) from ring to ring
INNER = 0.2  # radius of the innermost ring, in units of the stamp's half side
CORE = 3.0  # radius in full widths at half maximum beyond which all light is in the wings
HELD = 2.5  # half side of a stamp that holds the core, in full widths at half maximum
SHOWN = 0.25, 2.0  # limits of (brightness of the rim) / (nominal brightness) between which nominal wings are used
SCATTER = 0.8, 1.25  # limits of the scale of nominal wings; a fainter rim is due to a sky that was subtracted
WIDTHS, SLOPES = (0.8, 0.9, 1.0, 1.1, 1.25), (2.0, 3.0, 4.765)  # of the profiles: in units of the PSF's; Moffat's beta
SCATTERED = 1.0  # arcsec; where scattered light begins to fall
BLANK = 0.02  # brightness of the corners over that of the rim, below which a stamp is a disc
TAPERED = 0.5, 0.9  # brightness over nominal wings, relative to what it is farther in: less at the rim tells of a
# window, which begins where it is less than the second number
MATTERS = 0.03  # share of the nominal light beyond a stamp, below which a window would do no harm
EVEN = 1.5  # factor by which the brightness over nominal wings may vary where wings are seen
KNOWN = 0.15, 1e-5  # to what the mean of a ring follows a profile: relative to itself, to the peak
MOST = 0.95, 0.1  # share of light beyond a stamp, and beyond one that holds the core


class Wings:
    """The light of a PSF beyond its stamp, for light 1 in all.

    Parameters
    ----------
    radius : (n,) array
        Pixels, increasing.
    light : (n,) array
        Per pixel, at these radii.
    half : (float, float)
        Half sides (y, x) of the stamp, pixels; zeros where all radii are beyond what is known.
    replaced : float
        Share of the stamp's light whose place the wings take (see `known_radius`).
    most : float
        The largest share that can be missing.

    Attributes
    ----------
    share : float
        What the stamp lacks.
    """

    def __init__(self, radius, light, half, replaced, most):
        outside = sum(np.arccos(np.minimum(side / radius, 1.0)) for side in half) * 2.0 / np.pi
        beyond = np.trapezoid(2.0 * np.pi * radius * light * np.minimum(outside, 1.0), radius)  # the stamp holds 1
        lacking = max(beyond - replaced, 0.0)
        self.share = min(float(lacking / (1.0 + lacking)), most)
        self._radius = radius
        self._light = light * ((self.share + replaced * (1.0 - self.share)) / max(beyond, 1e-30))

    def at(self, radius):
        """Light per pixel at radii (pixels) beyond the stamp."""
        return np.interp(radius, self._radius, self._light, right=0.0)


@cached_by_pixels
def known_radius(stamp, scale, nominal=None):
    """Radius (pixels) beyond which a stamp says nothing of the PSF; inf: all of it counts.

    It is half the side of a stamp whose corners are blank. It is less where wings as bright as the survey's nominal
    ones are seen, and farther out vanish: no PSF does so.

    Parameters
    ----------
    stamp, scale, nominal
        As for `psf_wings`.

    Returns
    -------
    float
    """
    edge, radius = min(stamp.shape) / 2, _radius(stamp)
    rim, corners = (radius < edge) & (radius >= edge / 2**0.5), radius > edge
    blank = corners.any() and rim.any() and np.abs(stamp[corners]).mean() < BLANK * stamp[rim].mean()
    known = edge if blank else np.inf
    fwhm = half_maximum_width(stamp)
    if nominal is None or 2**0.5 * CORE * fwhm >= edge or _beyond(edge * scale, nominal) < MATTERS:
        return known
    bright = stamp / stamp.sum() / np.maximum(_per_pixel(radius, scale, nominal), 1e-30)
    end = edge
    while end > 2**0.5 * CORE * fwhm:  # farther in there are no wings to be compared with
        inner = [(radius >= low * end) & (radius < high * end) for low, high in ((0.5, 0.7), (0.7, 0.9))]
        levels = [bright[ring].mean() for ring in inner]
        rim = bright[(radius >= 0.9 * end) & (radius < end)].mean()
        if end == edge and rim > TAPERED[0] * min(levels):
            return known
        if rim > TAPERED[1] * min(levels):
            seen = SHOWN[0] < np.mean(levels) < SHOWN[1] and 1 / EVEN < levels[0] / levels[1] < EVEN
            return end if seen else known
        end -= 0.25
    return known


def _radius(stamp):
    """Distances from the central pixel."""
    y, x = (np.arange(k) - k // 2 for k in stamp.shape)
    return np.hypot(y[:, None], x)


@cached_by_pixels
def psf_wings(stamp, scale, nominal=None):
    """The wings of a PSF beyond its stamp.

    Parameters
    ----------
    stamp : (k, l) array
        Odd sides, any positive sum.
    scale : float
        Side of a pixel, arcsec.
    nominal : tuple of (float, float), optional
        The survey's wings: radius (arcsec) and the share of light beyond it, from the smallest radius up.

    Returns
    -------
    `Wings`
    """
    stamp = stamp / stamp.sum()
    half, radius = tuple(k / 2 for k in stamp.shape), _radius(stamp)
    edge, known = min(half), known_radius(stamp, scale, nominal)
    if known <= edge:
        half, edge = (0.0, 0.0), known
    replaced = stamp[radius > known].sum()
    fwhm = min(half_maximum_width(stamp), 2.0 * edge) if edge > 3 else 2.0 * edge
    out = np.geomspace(edge, max(REACH / scale, 4.0 * edge), 400)
    if nominal is not None and 2**0.5 * CORE * fwhm < edge < 0.9 * REACH / scale:
        rim = stamp[(radius >= edge / 2**0.5) & (radius < edge)].sum()
        inner, beyond = _beyond(np.array([edge / 2**0.5, edge]) * scale, nominal)
        bright = rim / (inner - beyond)
        if SHOWN[0] < bright < SHOWN[1]:
            light = _per_pixel(out, scale, nominal)
            light *= np.clip(bright, *SCATTER) * beyond / np.trapezoid(2.0 * np.pi * out * light, out)
            return Wings(out, light, half, replaced, MOST[1])
    inside = (radius < edge) & (radius >= INNER * edge) if edge > 4 else radius < 1.5 * edge
    ring = np.floor(np.log(np.maximum(radius, 0.3) / edge) / STEP)
    rings = [inside & (ring == k) for k in np.unique(ring[inside])]
    light, scatter = (np.array([measure(stamp[one]) for one in rings]) for measure in (np.mean, np.std))
    error = np.hypot(KNOWN[0] * light, KNOWN[1] * stamp.max())
    error = np.hypot(error, scatter / np.sqrt([np.count_nonzero(one) for one in rings]))
    matrix = np.stack([_profiles(radius[one], fwhm, scale, nominal).mean(axis=0) for one in rings]) / error[:, None]
    norm = np.maximum(matrix.max(axis=0), 1e-30)
    weight = nnls(matrix / norm, light / error)[0] / norm
    most = MOST[1] if edge > HELD * fwhm else MOST[0]
    return Wings(out, _profiles(out, fwhm, scale, nominal) @ weight, half, replaced, most)


def _profiles(radius, fwhm, scale, nominal):
    """Light per pixel of all profiles at radii in pixels, (n, n_profile)."""
    columns = []
    for width in fwhm * np.array(WIDTHS):
        columns.append(np.exp(-4.0 * np.log(2.0) * (radius / width) ** 2))
        for beta in SLOPES:
            columns.append((1.0 + (2.0 * radius / width) ** 2 * (2.0 ** (1.0 / beta) - 1.0)) ** -beta)
    if nominal is None:
        columns.append((radius**2 + fwhm**2) ** -1.5)
        arcsec = radius * scale
        fall = (1.0 + (arcsec / SCATTERED) ** 2) ** -1.25
        columns.append(fall * np.clip(1.0 - (arcsec / REACH) ** 2, 0.0, None))
    else:
        columns.append(_per_pixel(radius, scale, nominal))
    return np.stack(columns, axis=-1)


def _beyond(radius, nominal):
    """Share of light beyond radii (arcsec), power laws between those of the table."""
    known, share = np.log(nominal).T
    return np.exp(np.interp(np.log(radius), known, share))


def _per_pixel(radius, scale, nominal):
    """Light per pixel at radii (pixels): the derivative of `_beyond`, smooth from one power law to the next."""
    known, share = np.array(nominal).T
    middle = np.sqrt(known[1:] * known[:-1])
    light = -np.diff(share) / np.diff(np.pi * known**2) * scale**2
    arcsec = np.maximum(radius * scale, 0.7 * middle[0])
    return np.where(arcsec < REACH, np.exp(np.interp(np.log(arcsec), np.log(middle), np.log(light))), 0.0)
