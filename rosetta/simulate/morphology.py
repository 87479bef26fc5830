# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What galaxies are made of: families of morphology, each a recipe for components.

Shares follow the deep fields: at i < 24 and z = 0.5 to 2 about half of the star-forming galaxies are clumpy in the
rest-frame ultraviolet (Guo et al. 2015, ApJ 800, 39), with a tenth to a third of that light in knots, and less of it
in redder bands. Knots are young and discs older, so that clumpiness falls with wavelength in each galaxy.
"""

from typing import NamedTuple

import numpy as np

from .seds import GALAXY_TEMPLATES, N_DUST

__all__ = ["FAMILIES", "Component", "draw_galaxy"]

#: Weight of each morphology family under the three settings of ``families``, on top of its natural share.
FAMILIES = {
    "train": {"elliptical": 1.0, "spiral": 1.0, "clumpy": 1.0, "merger": 1.0, "lsb": 1.0, "irregular": 0.0},
    "all": {"elliptical": 0.8, "spiral": 0.8, "clumpy": 0.8, "merger": 0.8, "lsb": 0.8, "irregular": 0.2},
    "irregular": {"elliptical": 0.0, "spiral": 0.0, "clumpy": 0.0, "merger": 0.0, "lsb": 0.0, "irregular": 1.0},
}
_SIGMA_PER_RADIUS = 1 / np.sqrt(2 * np.log(2))  # of a Gaussian, by its half-light radius
_SMALLEST = 0.015  # arcsec; half-light radius of the smallest knot
_PASSIVE, _YOUNG = 0.0, 4.0  # ages: position in the list of spectra


class Component(NamedTuple):
    """One component of a galaxy; shares of the i-band light of a galaxy add up to one."""

    sersic: float
    radius: float  # half-light, arcsec
    g1: float
    g2: float
    east: float  # arcsec from the galaxy
    north: float
    share: float
    template: int  # spectrum: (1 - mix) x template + mix x other
    mix: float
    other: int


def draw_galaxy(rng, mag, redshift, families):
    """Family and components of one galaxy.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
    mag : float
        AB magnitude in i.
    redshift : float
    families : {"train", "all", "irregular"}

    Returns
    -------
    family : str
    components : list of Component
    """
    early = np.clip(0.32 - 0.055 * (mag - 20.0), 0.05, 0.32)
    natural = _natural_shares(mag, redshift, early)
    weight = FAMILIES[families]
    p = np.array([weight[name] * natural[name] for name in natural])
    name = list(natural)[rng.choice(len(natural), p=p / p.sum())]
    radius = np.clip(0.30 * 10 ** (-0.12 * (mag - 25.0) + 0.2 * rng.normal()), 0.03, 6.0)
    turn = rng.uniform(0, 2 * np.pi)
    if name == "irregular":
        return name, _irregular(rng, radius, turn)
    # Sizes of COSMOS galaxies at i = 23 to 26.
    radius *= 0.69 * 10 ** (-0.055 * (np.clip(mag, 22.0, 26.0) - 24.0))
    # Faint galaxies are too small for their details to be seen: they are not worth the time.
    detail = np.clip((26.0 - mag) / 4.0, 0.0, 1.0)
    if name == "elliptical":
        parts = _elliptical(rng, 0.8 * radius, turn)
    elif name == "spiral":
        parts = _spiral(rng, radius, turn, early, detail)
    elif name == "clumpy":
        parts = _clumpy(rng, radius, turn, redshift, detail)
    elif name == "merger":
        parts = _merger(rng, radius, turn, early, detail)
    else:
        parts = _lsb(rng, radius, turn, detail)
    total = sum(part.share for part in parts)
    return name, [part._replace(share=part.share / total) for part in parts]


def _natural_shares(mag, redshift, early):
    """Share of each family among galaxies of one magnitude and redshift."""
    late = 1 - early
    clumpy = np.clip(0.20 + 0.10 * (mag - 20.0), 0.15, 0.50) * np.clip(redshift / 0.5, 0.4, 1.2)
    merger = np.clip(0.04 + 0.04 * redshift, 0.04, 0.12)  # rises with redshift, as pair counts do
    lsb = 0.06
    return {
        "elliptical": early,
        "spiral": late * (1 - clumpy - merger - lsb),
        "clumpy": late * clumpy,
        "merger": late * merger,
        "lsb": late * lsb,
        # Weighted against all others together.
        "irregular": 1.0,
    }


# ---------------------------------------------------------------------------- geometry and spectra
def _shear(q, turn):
    g = (1 - q) / (1 + q)
    return g * np.cos(2 * turn), g * np.sin(2 * turn)


def _on_sky(x, y, q, turn):
    """East and north of a place in the plane of a disc seen at axis ratio ``q``."""
    return x * np.cos(turn) - q * y * np.sin(turn), x * np.sin(turn) + q * y * np.cos(turn)


def _streak(length, width, angle, q, turn):
    """Half-light radius and reduced shear of a Gaussian streak in the plane of a disc, seen on the sky.

    ``length`` and ``width`` are half-light radii along and across the direction ``angle``.
    """
    axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * (length, width)
    seen = np.stack(_on_sky(axes[0], axes[1], q, turn))
    xx, xy, yy = seen[0] @ seen[0], seen[0] @ seen[1], seen[1] @ seen[1]
    root = np.sqrt(xx * yy - xy**2)
    size = xx + yy + 2 * root
    return np.sqrt(root), (xx - yy) / size, 2 * xy / size


def _spectrum(rng, age, dust=None):
    """Two neighbouring templates and the weight of the second: a continuous family of colours."""
    low = int(np.clip(np.floor(age), 0, len(GALAXY_TEMPLATES) // N_DUST - 2))
    dust = rng.integers(N_DUST) if dust is None else dust
    return low * N_DUST + dust, np.clip(age - low, 0.0, 1.0), (low + 1) * N_DUST + dust


# ---------------------------------------------------------------------------- parts of galaxies
def _bulge(rng, radius, q, turn, share, dust):
    shape = _shear(1 - rng.uniform(0.2, 0.6) * (1 - q), turn + rng.normal(scale=0.1))
    sersic = rng.choice([1.0, 1.5, 2.0, 3.0, 4.0])
    return Component(sersic, radius, *shape, 0.0, 0.0, share, *_spectrum(rng, rng.uniform(_PASSIVE, 1.2), dust))


def _disc(rng, radius, q, turn, share, age, dust, flat=0.0):
    """A disc, exponential or (with probability ``flat``) Gaussian.

    Edge-on it may be cut by a dust lane: two sheets of light with a gap between them.
    """
    sersic = 0.5 if rng.uniform() < flat else 1.0
    shape = _shear(q, turn)
    spectrum = _spectrum(rng, age, dust)
    if q > 0.3 or rng.uniform() < 0.4:
        return [Component(sersic, radius, *shape, 0.0, 0.0, share, *spectrum)]
    thin = _shear(0.6 * q, turn)
    gap = radius * q * rng.uniform(0.25, 0.5)
    near = rng.uniform(0.3, 0.5)  # the sheet beyond the lane is the fainter one
    return [
        Component(sersic, radius, *thin, *_on_sky(0.0, side * gap / q, q, turn), share * part, *spectrum)
        for side, part in ((1, 1 - near), (-1, near))
    ]


def _knots(rng, n, share, place, size, dust):
    """Young knots at ``place`` (n, 2), brightnesses as of star-forming regions: dN/dL ~ L^-1.8."""
    if n == 0:
        return []
    # They fade outward as the disc does: none stands alone on the sky.
    fading = np.exp(-0.4 * np.hypot(*np.transpose(place)) / size)
    bright = np.minimum(rng.uniform(1e-3, 1, n) ** (-1 / 0.8), 10.0) * fading
    # Two ages a galaxy, so that knots of one age are drawn together.
    spectra = [_spectrum(rng, rng.uniform(2.8, _YOUNG), dust) for _ in range(2)]
    parts = []
    for (east, north), light in zip(place, share * bright / bright.sum()):
        radius = np.maximum(size * rng.uniform(0.04, 0.14), _SMALLEST)
        parts.append(Component(0.5, radius, 0.0, 0.0, east, north, light, *spectra[rng.integers(2)]))
    return parts


def _scattered(rng, n, radius, q, turn):
    """Places (n, 2) in an exponential disc, the middle left out."""
    r = radius / 1.678 * np.clip(rng.gamma(2.0, 1.0, n), 0.6, 3.0)
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.stack(_on_sky(r * np.cos(angle), r * np.sin(angle), q, turn), axis=1)


def _arms(rng, radius, q, turn, share, age, dust, detail):
    """Two to four logarithmic spirals: streaks of light, and young knots along them."""
    n_arm = rng.choice([2, 2, 2, 3, 4])
    pitch = np.tan(np.radians(rng.uniform(10, 30)))
    hand, start = rng.choice([-1, 1]), rng.uniform(0, 2 * np.pi)
    r_in, r_out = rng.uniform(0.3, 0.6), rng.uniform(1.6, 2.4)
    sweep = np.log(r_out / r_in) / pitch
    n_step = int(np.clip(round(sweep / 0.7 * (0.5 + 0.5 * detail)), 3, 9))
    spectrum = _spectrum(rng, min(age + 0.5, _YOUNG), dust)
    knotted = rng.uniform(0.2, 0.5)
    parts, places = [], []
    for k in range(n_arm):
        phase = (np.arange(n_step) + 0.5) / n_step * sweep
        r = radius * r_in * np.exp(pitch * phase)
        theta = start + 2 * np.pi * k / n_arm + hand * phase
        x, y = r * np.cos(theta), r * np.sin(theta)
        light = np.exp(-1.2 * r / radius) * r * rng.lognormal(sigma=0.3, size=n_step)
        light *= share * (1 - knotted) / n_arm / light.sum()
        tangent = theta + hand * (np.pi / 2 - np.arctan(pitch))
        length = 0.55 * r * sweep / n_step
        for j in range(n_step):
            streak = _streak(length[j], 0.12 * radius * (0.6 + 0.4 * r[j] / radius), tangent[j], q, turn)
            parts.append(Component(0.5, *streak, *_on_sky(x[j], y[j], q, turn), light[j], *spectrum))
        places.append(np.stack([x, y], axis=1))
    places = np.concatenate(places)
    n_knot = int(round(rng.uniform(2, 6) + 10 * detail))
    x, y = (places[rng.integers(len(places), size=n_knot)] + rng.normal(scale=0.15 * radius, size=(n_knot, 2))).T
    knots = np.stack(_on_sky(x, y, q, turn), axis=1)
    return parts + _knots(rng, n_knot, share * knotted, knots, radius, dust)


def _ring(rng, radius, q, turn, share, dust):
    n = 9
    theta = 2 * np.pi * (np.arange(n) + rng.uniform()) / n
    r = radius * rng.uniform(0.8, 1.4)
    light = share * rng.dirichlet(np.full(n, 6.0))
    spectrum = _spectrum(rng, rng.uniform(2.5, _YOUNG), dust)
    return [
        Component(
            0.5,
            *_streak(0.36 * r, 0.12 * radius, t + np.pi / 2, q, turn),
            *_on_sky(r * np.cos(t), r * np.sin(t), q, turn),
            part,
            *spectrum,
        )
        for t, part in zip(theta, light)
    ]


# ---------------------------------------------------------------------------- families
def _elliptical(rng, radius, turn):
    """Up to three nested ellipsoids whose axes turn and whose colours get bluer outward."""
    q = rng.uniform(0.5, 1.0)
    dust = 0
    age = rng.uniform(_PASSIVE, 0.8)
    sersic = rng.choice([2.0, 3.0, 4.0, 5.0, 6.0], p=[0.2, 0.25, 0.3, 0.15, 0.1])
    parts = [Component(sersic, radius, *_shear(q, turn), 0.0, 0.0, 1.0, *_spectrum(rng, age, dust))]
    if rng.uniform() < 0.4:  # a disc or envelope, twisted against the core
        outer = _shear(np.clip(q + rng.normal(scale=0.15), 0.3, 1.0), turn + rng.normal(scale=0.3))
        spectrum = _spectrum(rng, age + rng.uniform(0.0, 0.5), dust)
        share = rng.uniform(0.15, 0.6)
        parts.append(Component(1.0, radius * rng.uniform(1.2, 2.2), *outer, 0.0, 0.0, share, *spectrum))
    if rng.uniform() < 0.2:
        halo = Component(1.0, 3.5 * radius, *_shear(0.9, turn), 0.0, 0.0, rng.uniform(0.03, 0.12), *parts[-1][-3:])
        parts.append(halo)
    return parts


def _spiral(rng, radius, turn, early, detail):
    q = np.clip(rng.beta(2.2, 1.2), 0.2, 1.0)
    dust = rng.integers(N_DUST)
    age = rng.uniform(1.2, 3.4)
    bulge = np.clip(rng.beta(1.2, 7.0) + 0.15 * (early - 0.05), 0.0, 0.7) * (rng.uniform() > 0.45)
    parts = _disc(rng, radius, q, turn, 1 - bulge, age, dust, flat=0.25)
    if bulge > 0:
        parts.append(_bulge(rng, radius * rng.uniform(0.12, 0.4), q, turn, bulge, dust))
    if rng.uniform() < 0.3:  # a bar
        streak = _streak(radius * rng.uniform(0.3, 0.6), 0.1 * radius, rng.uniform(0, np.pi), q, turn)
        spectrum = _spectrum(rng, 0.7 * age, dust)
        parts.append(Component(0.5, *streak, 0.0, 0.0, (1 - bulge) * rng.uniform(0.05, 0.2), *spectrum))
    if rng.uniform() < 0.12:
        parts += _ring(rng, radius, q, turn, (1 - bulge) * rng.uniform(0.1, 0.3), dust)
    if rng.uniform() < 0.2 + 0.7 * detail and q > 0.3:
        parts += _arms(rng, radius, q, turn, (1 - bulge) * rng.uniform(0.35, 0.85), age, dust, detail)
    else:
        n = rng.integers(0, 4 + int(8 * detail))
        parts += _knots(rng, n, rng.uniform(0.03, 0.2), _scattered(rng, n, radius, q, turn), radius, dust)
    return parts


def _clumpy(rng, radius, turn, redshift, detail):
    """A disc of mixed age with young knots: the nearer i is to the rest-frame ultraviolet, the more light in them."""
    q = np.clip(rng.beta(2.2, 1.2), 0.25, 1.0)
    dust = rng.choice(N_DUST, p=[0.5, 0.35, 0.15])
    ultraviolet = np.clip((1 + redshift) / 2.0, 0.6, 1.6)
    knots = np.clip(rng.beta(3.0, 4.0) * ultraviolet, 0.05, 0.7)
    lean = radius * rng.normal(scale=0.2, size=2)
    parts = _disc(rng, radius, q, turn, 1 - knots, rng.uniform(1.6, 3.2), dust, flat=0.6)
    parts = [part._replace(east=part.east + lean[0], north=part.north + lean[1]) for part in parts]
    if rng.uniform() < 0.4:
        parts.append(_bulge(rng, 0.2 * radius, q, turn, rng.uniform(0.03, 0.2), dust))
    n = int(round(rng.uniform(3, 7) + 16 * detail * rng.uniform(0.3, 1.0)))
    return parts + _knots(rng, n, knots, _scattered(rng, n, radius, q, turn), radius, dust)


def _merger(rng, radius, turn, early, detail):
    """Two galaxies about to be one, a burst of young stars and a tidal tail."""
    ratio = rng.uniform(0.2, 1.0)
    apart, toward = radius * rng.uniform(0.6, 2.5), rng.uniform(0, 2 * np.pi)
    parts = []
    for share, size, where in ((1.0, 1.0, 0.0), (ratio, np.sqrt(ratio), apart)):
        east, north = where * np.cos(toward), where * np.sin(toward)
        q, angle, dust = rng.uniform(0.3, 1.0), rng.uniform(0, np.pi), rng.integers(N_DUST)
        bulge = rng.uniform(0.1, 0.4)
        here = _disc(rng, 0.8 * radius * size, q, angle, share * (1 - bulge), rng.uniform(1.2, 3.5), dust)
        here.append(_bulge(rng, 0.2 * radius * size, q, angle, share * bulge, dust))
        n = int(round(rng.uniform(0, 2 + 4 * detail)))
        place = _scattered(rng, n, 0.7 * radius * size, q, angle)
        here += _knots(rng, n, share * rng.uniform(0.05, 0.25), place, radius, dust)
        parts += [part._replace(east=part.east + east, north=part.north + north) for part in here]
    return parts + _tail(rng, radius, turn, rng.uniform(0.03, 0.15) * (1 + ratio))


def _tail(rng, radius, turn, share):
    """An arc of streaks that leaves the galaxy and fades."""
    n = 5
    theta = turn + np.linspace(0.0, rng.uniform(0.5, 1.8), n) * rng.choice([-1, 1])
    r = radius * np.linspace(1.0, rng.uniform(2.5, 4.0), n)
    x, y = r * np.cos(theta), r * np.sin(theta)
    angle = np.arctan2(np.gradient(y), np.gradient(x))
    length = 0.6 * np.hypot(np.gradient(x), np.gradient(y))
    light = share * np.exp(-np.linspace(0, 1.5, n)) / np.exp(-np.linspace(0, 1.5, n)).sum()
    spectrum = _spectrum(rng, rng.uniform(2.0, 3.6))
    return [
        Component(0.5, *_streak(length[k], 0.2 * radius, angle[k], 1.0, 0.0), x[k], y[k], light[k], *spectrum)
        for k in range(n)
    ]


def _lsb(rng, radius, turn, detail):
    """A wide disc of low surface brightness with a trace of a bulge and of knots."""
    q, dust = rng.uniform(0.4, 1.0), 0
    radius = 1.6 * radius
    parts = _disc(rng, radius, q, turn, 1.0, rng.uniform(1.5, 3.2), dust)
    if rng.uniform() < 0.5:
        parts.append(_bulge(rng, 0.2 * radius, q, turn, rng.uniform(0.01, 0.1), dust))
    n = int(round(rng.uniform(0, 2 + 6 * detail)))
    return parts + _knots(rng, n, rng.uniform(0.02, 0.08), _scattered(rng, n, radius, q, turn), 0.6 * radius, dust)


def _irregular(rng, radius, turn):
    """The family reserved for testing: a faint lopsided disc under many large bright knots."""
    q = rng.uniform(0.3, 0.9)
    shape = _shear(q, turn)
    clumps = rng.uniform(0.4, 0.7)
    dust = rng.integers(N_DUST)
    lean = radius * rng.normal(scale=0.5, size=2)
    age = rng.uniform(2.0, 3.5)
    parts = [Component(1.0, radius, *shape, *lean, 1 - clumps, *_spectrum(rng, age, dust))]
    n_clump = rng.integers(4, 10)
    wide = 1.3 * radius
    for part in clumps * rng.dirichlet(np.full(n_clump, 2.0)):
        along, across = wide * rng.normal(scale=0.8, size=2) * (1.0, q)
        east = along * np.cos(turn) - across * np.sin(turn)
        north = along * np.sin(turn) + across * np.cos(turn)
        size = np.clip(wide * rng.uniform(0.05, 0.15), 0.02, 0.4)
        spectrum = _spectrum(rng, rng.uniform(3.3, 4.0), dust)
        parts.append(Component(0.5, size, 0.0, 0.0, east, north, part, *spectrum))
    return parts
