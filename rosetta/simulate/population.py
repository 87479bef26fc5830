# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What is on the sky: clustered galaxies made of components, and stars.

Counts of galaxies: N(< i) = 46 x 10^(0.31 (i - 25)) per square arcminute (LSST Science Book, section
3.7.2); redshifts: p(z) ~ z^2 exp(-z / z0) with z0 = 0.0417 i - 0.744 (same source).
"""

from dataclasses import dataclass

import numpy as np

from .morphology import Component, draw_galaxy
from .real_morphologies import choose
from .seds import galaxy_colours, star_colours
from .stars import draw_stars

__all__ = ["Scene", "draw_scene", "galaxy_counts"]

FAINT_LIMIT = 27.0  # half a magnitude beyond the catalogue's purpose, so that the sky has its fog
_BRIGHT_LIMIT = 16.0
_SLOPE = 0.31
_REAL = 0.5  # share of real galaxies among those that may stand at their magnitude
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
    north) plane. A component with ``sersic`` 0 is a point. A component whose ``real`` is not negative is the
    image of that entry of ``galaxies``: ``radius`` is 0, ``sersic`` nan and ``shape`` its turn (rad, from east to
    north) and its parity, -1 where it is mirrored in the north axis before the turn.
    """

    east: np.ndarray  # (n,)
    north: np.ndarray
    redshift: np.ndarray
    family: np.ndarray  # (n,) str: star, real, or a family of `morphology.FAMILIES`
    motion: np.ndarray  # (n, 2) mas/yr east, north
    owner: np.ndarray  # (m,) index of the source
    sersic: np.ndarray  # (m,)
    radius: np.ndarray  # (m,) half-light radius, arcsec
    shape: np.ndarray  # (m, 2)
    offset: np.ndarray  # (m, 2) arcsec from the source
    flux: np.ndarray  # (m, n_band) nJy
    real: np.ndarray | None = None  # (m,) index into galaxies, -1 for a profile; None: profiles only
    galaxies: tuple = ()  # of `real_morphologies.RealGalaxy`

    def __len__(self):
        return self.east.size

    @property
    def source_flux(self):
        """Total flux of every source, nJy (n, n_band)."""
        total = np.zeros((len(self), self.flux.shape[1]))
        np.add.at(total, self.owner, self.flux)
        return total

    def real_galaxy(self, component):
        """The `RealGalaxy` of a component, or None where it is a profile."""
        if self.real is None or self.real[component] < 0:
            return None
        return self.galaxies[self.real[component]]


def draw_scene(
    rng, half_size, surveys, reference, *, density=1.0, families="train", star_density=1.0, galaxies=(), deeper=0.0
):
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
    star_density : float
        Stars relative to the counts at high galactic latitude.
    galaxies : sequence of `~rosetta.simulate.real_morphologies.RealGalaxy`
        Half of the galaxies that are as bright as one of these, or fainter, look like it.
    deeper : float
        Magnitudes by which there are galaxies fainter than `FAINT_LIMIT`.

    Returns
    -------
    Scene
    """
    area = (2 * half_size / 60.0) ** 2
    place, redshift, mag = _galaxies(rng, half_size, area, density, FAINT_LIMIT + deeper)
    family, owner, rows, real = [], [], [], []
    for k, (m, z) in enumerate(zip(mag, redshift)):
        name, parts = draw_galaxy(rng, m, z, families)
        index = choose(rng, galaxies, m) if len(galaxies) and rng.uniform() < _REAL else None
        if index is not None:
            name, parts = "real", [_as_component(rng, parts)]
        family.append(name)
        rows += parts
        owner += [k] * len(parts)
        real += [-1 if index is None else index] * len(parts)
    columns = Component(*map(np.array, zip(*rows) if rows else [[]] * len(Component._fields)))
    owner = np.array(owner, int)
    z = redshift[owner]
    colours = (1 - columns.mix)[:, None] * galaxy_colours(surveys, columns.template, z)
    colours = colours + columns.mix[:, None] * galaxy_colours(surveys, columns.other, z)
    flux = (columns.share * _njy(mag[owner]))[:, None] * colours
    offset = np.stack([columns.east, columns.north], axis=1)
    n_gal = mag.size
    centre = _centroid(owner, offset, flux[:, reference], n_gal)

    stars = draw_stars(rng, half_size, star_density)
    n_star = stars.mag.size
    star_flux = _njy(stars.mag)[:, None] * star_colours(surveys, stars.temperature)
    place = np.concatenate([place + centre, stars.place])
    zeros = np.zeros(n_star)
    return Scene(
        east=place[:, 0],
        north=place[:, 1],
        redshift=np.concatenate([redshift, zeros]),
        family=np.array(family + ["star"] * n_star, dtype="U10"),
        motion=np.concatenate([np.zeros((n_gal, 2)), stars.motion]),
        owner=np.concatenate([owner, n_gal + np.arange(n_star)]),
        sersic=np.concatenate([columns.sersic, zeros]),
        radius=np.concatenate([columns.radius, zeros]),
        shape=np.concatenate([np.stack([columns.g1, columns.g2], axis=1), np.zeros((n_star, 2))]),
        offset=np.concatenate([offset - centre[owner], np.zeros((n_star, 2))]),
        flux=np.concatenate([flux, star_flux]),
        real=np.concatenate([np.array(real, int), np.full(n_star, -1)]),
        galaxies=tuple(galaxies),
    )


def _as_component(rng, parts):
    """A real galaxy as one component, turned and mirrored at random, with the spectrum of the main of ``parts``."""
    main = max(parts, key=lambda part: part.share)
    turn, parity = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
    return main._replace(sersic=np.nan, radius=0.0, g1=turn, g2=parity, east=0.0, north=0.0, share=1.0)


def _njy(mag):
    return 10 ** (0.4 * (31.4 - mag))


def _centroid(owner, offset, flux, n):
    total = np.bincount(owner, flux, n)
    sums = [np.bincount(owner, flux * offset[:, k], n) for k in range(2)]
    return np.stack(sums, axis=1) / np.maximum(total, 1e-30)[:, None]


def _galaxies(rng, half_size, area, density, faintest):
    """Positions (n, 2), redshifts and i magnitudes: a Neyman-Scott process over a Poisson field."""
    expected = density * galaxy_counts(faintest) * area
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
    mag = np.maximum(faintest + np.log10(rng.uniform(1e-12, 1, n)) / _SLOPE, _BRIGHT_LIMIT)
    redshift = rng.gamma(3.0, np.maximum(0.0417 * mag - 0.744, 0.04))
    common = np.clip(rng.gamma(3.0, 0.28, max(n_parent, 1)), 0.05, 4.0)
    grouped = group >= 0
    redshift[grouped] = common[group[grouped]] * (1 + 0.002 * rng.normal(size=grouped.sum()))
    return place, np.clip(redshift, 0.02, 5.0), mag
