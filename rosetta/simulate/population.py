# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What is on the sky: clustered galaxies made of components, and stars.

Counts of galaxies: N(< i) = 46 x 10^(0.31 (i - 25)) per square arcminute (LSST Science Book, section
3.7.2); redshifts: p(z) ~ z^2 exp(-z / z0) with z0 = 0.0417 i - 0.744 (same source).
"""

from dataclasses import dataclass

import numpy as np

from .seds import GALAXY_TEMPLATES, N_DUST, galaxy_colours, star_colours

__all__ = ["FAMILIES", "Scene", "draw_scene", "galaxy_counts"]

#: Share of each morphology family under the three settings of ``families``.
FAMILIES = {
    "train": {"elliptical": 1.0, "spiral": 1.0, "irregular": 0.0},
    "all": {"elliptical": 0.8, "spiral": 0.8, "irregular": 0.2},
    "irregular": {"elliptical": 0.0, "spiral": 0.0, "irregular": 1.0},
}
FAINT_LIMIT = 27.0  # half a magnitude beyond the catalogue's purpose, so that the sky has its fog
_BRIGHT_LIMIT = 16.0
_SLOPE = 0.31
_STARS = 3.0  # per square arcminute to i = 25, at high galactic latitude
_STAR_SLOPE = 0.12
# Groups give an excess of pairs of about 10% at 5", near what deep counts show.
_GROUPED = 0.45  # share of galaxies
_GROUP_SIZE = 6.0
_GROUP_RADII = (2.5, 25.0)  # arcsec, drawn uniformly in the logarithm


def galaxy_counts(magnitude):
    """Galaxies per square arcminute brighter than an i magnitude.

    Parameters
    ----------
    magnitude : float or array_like
        AB magnitude in i.

    Returns
    -------
    float or `~numpy.ndarray`
        46 x 10^(0.31 (i - 25)), LSST Science Book section 3.7.2.
    """
    return 46.0 * 10 ** (_SLOPE * (np.asarray(magnitude) - 25.0))


@dataclass(frozen=True)
class Scene:
    """Sources and the components that they are made of.

    Positions are tangent-plane arcsec (east, north) from the centre; ``east``/``north`` of a source is
    the centroid of its light in the reference band. Ellipticities are reduced shears of the (east,
    north) plane. A component with ``sersic`` 0 is a point.
    """

    east: np.ndarray  # (n,)
    north: np.ndarray
    redshift: np.ndarray
    family: np.ndarray  # (n,) str: star, elliptical, spiral, irregular
    motion: np.ndarray  # (n, 2) mas/yr east, north
    owner: np.ndarray  # (m,) index of the source
    sersic: np.ndarray  # (m,)
    radius: np.ndarray  # (m,) half-light radius, arcsec
    shape: np.ndarray  # (m, 2)
    offset: np.ndarray  # (m, 2) arcsec from the source
    flux: np.ndarray  # (m, n_band) nJy

    def __len__(self):
        return self.east.size

    @property
    def source_flux(self):
        """Total flux of every source, nJy (n, n_band)."""
        total = np.zeros((len(self), self.flux.shape[1]))
        np.add.at(total, self.owner, self.flux)
        return total


def draw_scene(rng, half_size, surveys, reference, *, density=1.0, families="train"):
    """Draw the sources of one field.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
    half_size : float
        Sources fall within +-half_size (arcsec) east and north of the centre.
    surveys : tuple of `~rosetta.surveys.Survey`
    reference : int
        Index of the band whose light defines the centroid.
    density : float
        Galaxies relative to the published counts.
    families : {"train", "all", "irregular"}
        Which morphology families occur.

    Returns
    -------
    Scene
    """
    area = (2 * half_size / 60.0) ** 2
    place, redshift, mag = _galaxies(rng, half_size, area, density)
    parts = [_morphology(rng, i, m, z, families) for i, (m, z) in enumerate(zip(mag, redshift))]
    family = [name for name, _ in parts]
    rows = [row for _, source in parts for row in source]
    owner, sersic, radius, g1, g2, east, north, share, template, mix, other = map(
        np.array, zip(*rows) if rows else [[]] * 11
    )
    owner = owner.astype(int)
    z = redshift[owner]
    colours = (1 - mix)[:, None] * galaxy_colours(surveys, template, z)
    colours = colours + mix[:, None] * galaxy_colours(surveys, other, z)
    flux = (share * _njy(mag[owner]))[:, None] * colours
    offset = np.stack([east, north], axis=1)

    n_star = rng.poisson(_STARS * 10 ** (_STAR_SLOPE * (26.5 - 25.0)) * area)
    star_mag = np.maximum(26.5 + np.log10(rng.uniform(1e-9, 1, n_star)) / _STAR_SLOPE, 15.0)
    star_flux = _njy(star_mag)[:, None] * star_colours(surveys, _temperatures(rng, n_star))
    # Nearer, brighter stars move faster; direction at random.
    speed = 10 ** (0.7 - 0.06 * (star_mag - 21) + 0.35 * rng.normal(size=n_star))
    turn = rng.uniform(0, 2 * np.pi, n_star)
    star_motion = speed[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    star_place = rng.uniform(-half_size, half_size, (n_star, 2))

    n_gal = mag.size
    place = place + _centroid(owner, offset, flux[:, reference], n_gal)
    offset = offset - _centroid(owner, offset, flux[:, reference], n_gal)[owner]
    zeros = np.zeros(n_star)
    return Scene(
        east=np.concatenate([place[:, 0], star_place[:, 0]]),
        north=np.concatenate([place[:, 1], star_place[:, 1]]),
        redshift=np.concatenate([redshift, zeros]),
        family=np.array(family + ["star"] * n_star, dtype="U10"),
        motion=np.concatenate([np.zeros((n_gal, 2)), star_motion]),
        owner=np.concatenate([owner, n_gal + np.arange(n_star)]),
        sersic=np.concatenate([sersic, zeros]),
        radius=np.concatenate([radius, zeros]),
        shape=np.concatenate([np.stack([g1, g2], axis=1), np.zeros((n_star, 2))]),
        offset=np.concatenate([offset, np.zeros((n_star, 2))]),
        flux=np.concatenate([flux, star_flux]),
    )


def _njy(mag):
    return 10 ** (0.4 * (31.4 - mag))


def _centroid(owner, offset, flux, n):
    total = np.bincount(owner, flux, n)
    sums = [np.bincount(owner, flux * offset[:, k], n) for k in range(2)]
    return np.stack(sums, axis=1) / np.maximum(total, 1e-30)[:, None]


def _galaxies(rng, half_size, area, density):
    """Positions (n, 2), redshifts and i magnitudes: a Neyman-Scott process over a Poisson field."""
    expected = density * galaxy_counts(FAINT_LIMIT) * area
    n_field = rng.poisson(expected * (1 - _GROUPED))
    place = [rng.uniform(-half_size, half_size, (n_field, 2))]
    group = [np.full(n_field, -1)]
    # Parents live in a wider square, so that the density is uniform up to the edge.
    wide = half_size + 2 * _GROUP_RADII[1]
    n_parent = rng.poisson(expected * _GROUPED / _GROUP_SIZE * (wide / half_size) ** 2)
    for k, parent in enumerate(rng.uniform(-wide, wide, (n_parent, 2))):
        radius = np.exp(rng.uniform(*np.log(_GROUP_RADII)))
        members = parent + rng.normal(scale=radius, size=(rng.poisson(_GROUP_SIZE), 2))
        members = members[np.all(np.abs(members) < half_size, axis=1)]
        place.append(members)
        group.append(np.full(len(members), k))
    place, group = np.concatenate(place), np.concatenate(group)
    n = len(place)
    mag = np.maximum(FAINT_LIMIT + np.log10(rng.uniform(1e-12, 1, n)) / _SLOPE, _BRIGHT_LIMIT)
    redshift = rng.gamma(3.0, np.maximum(0.0417 * mag - 0.744, 0.04))
    common = np.clip(rng.gamma(3.0, 0.28, max(n_parent, 1)), 0.05, 4.0)
    grouped = group >= 0
    redshift[grouped] = common[group[grouped]] * (1 + 0.002 * rng.normal(size=grouped.sum()))
    return place, np.clip(redshift, 0.02, 5.0), mag


def _temperatures(rng, n):
    """Effective temperatures: mostly red dwarfs, some turn-off stars, a few hot ones."""
    kind = rng.choice(3, n, p=[0.62, 0.35, 0.03])
    cool = rng.normal(3400, 350, n)
    turn_off = rng.normal(5600, 500, n)
    return np.clip(np.choose(kind, [cool, turn_off, rng.uniform(7500, 11500, n)]), 2700, 11900)


def _morphology(rng, index, mag, redshift, families):
    """Family name and component rows of one galaxy.

    A row is (owner, sersic, radius, g1, g2, east, north, share of i, template, mix, other template).
    """
    early = np.clip(0.38 - 0.05 * (mag - 20.0), 0.07, 0.38)
    weight = FAMILIES[families]
    p = np.array([weight["elliptical"] * early, weight["spiral"] * (1 - early), weight["irregular"]])
    name = ("elliptical", "spiral", "irregular")[rng.choice(3, p=p / p.sum())]
    radius = np.clip(0.30 * 10 ** (-0.12 * (mag - 25.0) + 0.2 * rng.normal()), 0.03, 6.0)
    turn = rng.uniform(0, 2 * np.pi)
    if name == "elliptical":
        return name, _elliptical(rng, index, 0.8 * radius, turn)
    if name == "spiral":
        return name, _spiral(rng, index, radius, turn, early)
    return name, _irregular(rng, index, radius, turn)


def _axis_ratio_to_shear(q, turn):
    g = (1 - q) / (1 + q)
    return g * np.cos(2 * turn), g * np.sin(2 * turn)


def _spectrum(rng, age, dust=None):
    """Two neighbouring templates and the weight of the second: a continuous family of colours."""
    low = int(np.clip(np.floor(age), 0, len(GALAXY_TEMPLATES) // N_DUST - 2))
    dust = rng.integers(N_DUST) if dust is None else dust
    return low * N_DUST + dust, np.clip(age - low, 0.0, 1.0), (low + 1) * N_DUST + dust


def _elliptical(rng, index, radius, turn):
    shape = _axis_ratio_to_shear(rng.uniform(0.55, 1.0), turn)
    sersic = rng.choice([2.0, 4.0])
    return [(index, sersic, radius, *shape, 0.0, 0.0, 1.0, *_spectrum(rng, rng.uniform(0.0, 0.8), 0))]


def _spiral(rng, index, radius, turn, early):
    bulge = np.clip(rng.beta(1.2, 4.0) + 0.3 * (early - 0.07), 0.0, 0.8)
    bulge = 0.0 if rng.uniform() < 0.3 else bulge
    q = np.clip(rng.uniform(0.15, 1.0), 0.2, 1.0)
    disc_shape = _axis_ratio_to_shear(q, turn)
    age = rng.uniform(1.2, 3.6)
    dust = rng.integers(N_DUST)
    n_clump = rng.integers(1, 5) if rng.uniform() < 0.35 else 0
    clumps = (1 - bulge) * rng.uniform(0.03, 0.2) if n_clump else 0.0
    rows = [(index, 1.0, radius, *disc_shape, 0.0, 0.0, 1 - bulge - clumps, *_spectrum(rng, age, dust))]
    if bulge > 0:
        shape = _axis_ratio_to_shear(1 - 0.4 * (1 - q), turn)
        size = radius * rng.uniform(0.15, 0.4)
        spectrum = _spectrum(rng, rng.uniform(0.0, 1.0), dust)
        rows.append((index, rng.choice([2.0, 4.0]), size, *shape, 0.0, 0.0, bulge, *spectrum))
    return rows + _clumps(rng, index, n_clump, clumps, radius, q, turn, dust)


def _clumps(rng, index, n, share, radius, q, turn, dust):
    """Young knots scattered over an inclined disc."""
    rows = []
    for part in share * rng.dirichlet(np.full(n, 2.0)) if n else ():
        along, across = radius * rng.normal(scale=0.8, size=2) * (1.0, q)
        east = along * np.cos(turn) - across * np.sin(turn)
        north = along * np.sin(turn) + across * np.cos(turn)
        size = np.clip(radius * rng.uniform(0.05, 0.15), 0.02, 0.4)
        spectrum = _spectrum(rng, rng.uniform(3.3, 4.0), dust)
        rows.append((index, 0.5, size, 0.0, 0.0, east, north, part, *spectrum))
    return rows


def _irregular(rng, index, radius, turn):
    """The family reserved for testing: a faint lopsided disc under many large bright knots."""
    q = rng.uniform(0.3, 0.9)
    shape = _axis_ratio_to_shear(q, turn)
    clumps = rng.uniform(0.4, 0.7)
    dust = rng.integers(N_DUST)
    lean = radius * rng.normal(scale=0.5, size=2)
    age = rng.uniform(2.0, 3.5)
    disc = (index, 1.0, radius, *shape, *lean, 1 - clumps, *_spectrum(rng, age, dust))
    n_clump = rng.integers(4, 10)
    return [disc] + _clumps(rng, index, n_clump, clumps, 1.3 * radius, q, turn, dust)
