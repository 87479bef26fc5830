# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What is injected: sources of a table, or drawn from the simulator's population, as components; and where."""

import astropy.units as u
import numpy as np
from astropy.table import QTable, Table

from ..images.positions import table_positions, tangent
from ..simulate.mixtures import half_light_radii, moments, scene_mixtures
from ..simulate.morphology import FAMILIES
from ..simulate.population import Scene, draw_scene

__all__ = ["drawn", "given", "random_places"]

POOL_SIZE = 90.0  # arcsec: half the side of a field that the population is drawn in
POOLS = 10  # fields at most
NEAR = 0.25  # mag: a source of the population stands for a magnitude this far away at most
GAUSSIAN = np.sqrt(2 * np.log(2))  # half-light radius of a Gaussian in units of its sigma
SERSIC = (0.3, 6.2)  # the indices that GalSim draws
TRIES = 1000  # places per source


def random_places(rng, image, n, separation):
    """Uniformly random positions on the valid pixels of an image.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
    image : `~rosetta.images.image.BandImage`
    n : int
    separation : float
        Least distance of two of them, arcsec.

    Returns
    -------
    `~astropy.coordinates.SkyCoord`, shape (n,)

    Raises
    ------
    ValueError
        If they do not fit.
    """
    (ny, nx), center, chosen, places = image.shape, image.center, [], np.zeros((0, 2))
    for _ in range(TRIES * n):
        if len(chosen) == n:
            break
        x, y = rng.uniform(-0.5, (nx - 0.5, ny - 0.5))
        if not image.valid[round(y), round(x)]:
            continue
        place = tangent(image.pixel_to_sky([x], [y]), center)
        if (np.hypot(*(places - place).T) >= separation).all():
            chosen.append((x, y))
            places = np.concatenate([places, place])
    if len(chosen) < n:
        raise ValueError(
            f"n is {n}: only {len(chosen)} valid places were found {separation:g} arcsec apart; lower n or separation"
        )
    return image.pixel_to_sky(*np.reshape(chosen, (n, 2)).T)


# ---------------------------------------------------------------------------- the simulator's population
def drawn(rng, n, surveys, bands, population, band, magnitude):
    """Sources of the simulator's population, at equal numbers per magnitude.

    Each is the one of the population nearest to a magnitude drawn uniformly from the range: colours, sizes and shapes
    are those that the population has at this magnitude.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
    n : int
    surveys : tuple of `~rosetta.Survey`
    bands : tuple of str
        That the table is to have.
    population : {"all", "train", "irregular"}
        Families of morphology, as for `rosetta.simulate.simulate_pair`.
    band : str
        Of the magnitudes; also weights sizes and shapes.
    magnitude : tuple of float
        Brightest and faintest, AB.

    Returns
    -------
    scene : `~rosetta.simulate.population.Scene`
        Its fluxes are in the order of ``bands``.
    table : `~astropy.table.QTable`
    """
    if population not in FAMILIES:
        raise ValueError(f"population is {population!r}: use one of {', '.join(map(repr, FAMILIES))}")
    names = [name for survey in surveys for name in survey.band_names]
    column, columns = names.index(band), [names.index(name) for name in bands]
    target = np.sort(rng.uniform(*magnitude, n))
    pools, known = [], np.zeros(0)
    for _ in range(POOLS):
        pool = draw_scene(rng, POOL_SIZE, surveys, column, families=population)
        with np.errstate(divide="ignore"):
            known = np.concatenate([known, 31.4 - 2.5 * np.log10(pool.source_flux[:, column])])
        pools.append(pool)
        chosen = _nearest(target, np.where((known >= magnitude[0]) & (known <= magnitude[1]), known, np.inf))
        if chosen is not None:
            break
    else:
        raise ValueError(
            f"magnitude is {magnitude} in {band}: the population has too few such sources; widen the range or lower n"
        )
    scene = _picked(pools, rng.permutation(chosen), columns)
    mixture = scene_mixtures(scene, bands.index(band) if band in bands else 0)
    table = QTable()
    for name, flux in zip(bands, scene.source_flux.T, strict=True):
        table[f"flux_{name}"] = flux * u.nJy
    table["type"] = np.where(scene.family == "star", "star", "galaxy")
    table["family"], table["redshift"] = scene.family, scene.redshift
    table["half_light_radius"] = half_light_radii(mixture) * u.arcsec
    table["e1"], table["e2"] = moments(mixture)
    return scene, table


def _nearest(target, known):
    """For each target the index of the nearest of ``known``, none twice; None if one is farther than `NEAR`."""
    known, chosen = known.copy(), []
    for value in target:
        best = int(np.argmin(np.abs(known - value)))
        if not abs(known[best] - value) < NEAR:
            return None
        chosen.append(best)
        known[best] = np.inf
    return np.array(chosen, int)


def _picked(pools, chosen, columns):
    """Some sources of several scenes, numbered on through all of them, as one scene."""
    starts = np.cumsum([0, *map(len, pools)])
    owner = np.concatenate([pool.owner + start for pool, start in zip(pools, starts[:-1], strict=True)])
    rows = [np.flatnonzero(owner == source) for source in chosen]
    sources, parts = np.asarray(chosen, int), np.concatenate([np.zeros(0, int), *rows])

    def joined(name, which):
        return np.concatenate([getattr(pool, name) for pool in pools])[which]

    return Scene(
        **{name: joined(name, sources) for name in ("east", "north", "redshift", "family", "motion")},
        owner=np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        **{name: joined(name, parts) for name in ("sersic", "radius", "shape", "offset")},
        flux=joined("flux", parts)[:, columns],
    )


# ---------------------------------------------------------------------------- a user's table
def given(sources, bands):
    """The components of a table's sources, and the table in the library's units.

    Parameters
    ----------
    sources : `~astropy.table.Table`
        See `rosetta.inject`.
    bands : tuple of str

    Returns
    -------
    scene : `~rosetta.simulate.population.Scene`
        Its positions are not used.
    table : `~astropy.table.QTable`
        A copy.

    Raises
    ------
    TypeError, ValueError
        If a column is missing or holds what cannot be drawn.
    """
    if not isinstance(sources, Table):
        raise TypeError(f"sources must be a table, got {type(sources).__name__}")
    table = QTable(sources, copy=True)
    n = len(table)
    missing = [f"flux_{band}" for band in bands if f"flux_{band}" not in table.colnames]
    if missing:
        raise ValueError(f"sources lacks {', '.join(missing)}: give a flux in every band of the pair")
    for band in bands:
        table[f"flux_{band}"] = _in(table, f"flux_{band}", u.nJy)
    flux = np.stack([table[f"flux_{band}"].value for band in bands], axis=1)  # (n, n_band)
    if not (np.isfinite(flux).all() and (flux >= 0).all()):
        raise ValueError("sources has fluxes that are negative or not finite: drop those rows")
    if "sky_centroid" in table.colnames:
        table["sky_centroid"] = table_positions(table, "sources")
    if "mixture" in table.colnames:
        parts = _of_mixtures(np.asarray(table["mixture"], float))
    else:
        parts = _of_shapes(table)
    if "type" not in table.colnames:
        point = np.ones(n, bool)
        point[parts["owner"][parts["sersic"] > 0]] = False
        table["type"] = np.where(point, "star", "galaxy")
    share = parts.pop("share")[:, None]
    scene = Scene(
        east=np.zeros(n), north=np.zeros(n), redshift=np.zeros(n), family=np.asarray(table["type"]).astype(str),
        motion=np.zeros((n, 2)), flux=share * flux[parts["owner"]], **parts,
    )  # fmt: skip
    return scene, table


def _in(table, name, unit):
    """A column in a unit; one without a unit is in it."""
    try:
        return u.Quantity(table[name]).to(unit) if getattr(table[name], "unit", None) else table[name] * unit
    except (u.UnitConversionError, TypeError) as error:
        raise ValueError(f"sources has {name} in {table[name].unit}: give it in {unit}") from error


def _of_shapes(table):
    """One component per source: a point, or a Sersic profile."""
    n = len(table)
    if "type" in table.colnames:
        kind = np.asarray(table["type"]).astype(str)
        unknown = sorted(set(kind) - {"star", "galaxy"})
        if unknown:
            raise ValueError(f"sources has type {unknown[0]!r}: use 'star' or 'galaxy'")
        star = kind == "star"
    else:
        star = np.full(n, "half_light_radius" not in table.colnames)
    if not star.all() and "half_light_radius" not in table.colnames:
        raise ValueError("sources has galaxies but no half_light_radius: give it, or a mixture")
    radius, sersic, e = np.zeros(n), np.zeros(n), np.zeros((n, 2))
    if not star.all():
        table["half_light_radius"] = _in(table, "half_light_radius", u.arcsec)
        radius = np.where(star, 0.0, table["half_light_radius"].value)
        sersic = np.where(star, 0.0, np.asarray(table["sersic"], float) if "sersic" in table.colnames else 1.0)
        e = np.stack([np.asarray(table[k], float) if k in table.colnames else np.zeros(n) for k in ("e1", "e2")], -1)
        e[star] = 0.0
        low, high = SERSIC
        bad = ~star & ~((radius > 0) & (sersic >= low) & (sersic <= high) & (np.hypot(*e.T) < 0.99))
        if bad.any():
            raise ValueError(
                f"sources has {bad.sum()} galaxies that cannot be drawn: half_light_radius must be positive, sersic "
                f"from {low} to {high}, and the ellipticity below 0.99"
            )
    return {
        "owner": np.arange(n), "share": np.ones(n), "sersic": sersic, "radius": radius, "shape": _shear(e),
        "offset": np.zeros((n, 2)),
    }  # fmt: skip


def _of_mixtures(mixture):
    """The Gaussians of mixtures (n, K, 6) as components."""
    if mixture.ndim != 3 or mixture.shape[-1] != 6 or not np.isfinite(mixture).all():
        raise ValueError(f"sources has a mixture of shape {mixture.shape}: give finite numbers, (n, K, 6)")
    owner, term = np.nonzero(mixture[..., 0] != 0)
    weight, east, north, sxx, sxy, syy = mixture[owner, term].T
    area = np.sqrt(np.maximum(sxx * syy - sxy**2, 0.0))
    trace = np.where(sxx + syy > 0, sxx + syy, 1.0)
    total = mixture[..., 0].sum(axis=1)
    if not (weight > 0).all() or not (total > 0).all():
        raise ValueError("sources has a mixture without light or with negative weights: drop those rows")
    e = np.stack([(sxx - syy) / trace, 2 * sxy / trace], axis=-1)
    return {
        "owner": owner, "share": weight / total[owner], "sersic": np.where(area > 0, 0.5, 0.0),
        "radius": GAUSSIAN * np.sqrt(area), "shape": _shear(np.where(area[:, None] > 0, e, 0.0)),
        "offset": np.stack([east, north], axis=-1),
    }  # fmt: skip


def _shear(e):
    """Reduced shears of distortions (n, 2)."""
    return e / (1 + np.sqrt(np.maximum(1 - (e**2).sum(axis=1, keepdims=True), 0.0)))
