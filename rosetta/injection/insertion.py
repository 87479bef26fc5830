# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""`inject`: simulated sources put into the images of a pair."""

import astropy.units as u
import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ..arithmetic import plain_arithmetic
from ..astrometry.solution import solution_for
from ..detection.detection import DetectionConfig, detected, reference_band
from ..frozen_image import frozen_image
from ..images.image import band_images
from ..images.positions import tangent
from ..pair import SkyPair

__all__ = ["inject", "require_simulator"]

DENSITY = 6.0 / u.arcmin**2
SEPARATION = 5.0 * u.arcsec
MAGNITUDE = (20.0, 26.0)


@plain_arithmetic
def inject(
    pair, sources=None, *, seed, n=None, population="all", band=None, magnitude=MAGNITUDE, density=DENSITY,
    separation=SEPARATION, offsets=None, existing=None,
):
    """Put simulated sources into a copy of real images, through their own PSFs, WCS and noise.

    Positions are uniformly random over the valid pixels of the reference image, and do not avoid the sources that are
    there: blends are part of the test. Needs the extra ``sim``.

    A source is drawn through the PSF of its place (the survey's nominal one where none was given), at its sub-pixel
    place under the image's WCS, by GalSim's lanczos5 interpolation of the PSF on a grid of at least a fifth of a pixel.
    Light beyond the PSF's stamp is not drawn: the light added is the flux times the sum of the PSF. The photon noise of
    the added light is drawn and, if the image's variances hold that of its own sources, added to them. Masked pixels
    stay as they are. What is not simulated: saturation, correlation of the photon noise in resampled images, and errors
    of the PSF, the WCS and the zero point, which the injected sources share with the measurement.

    Parameters
    ----------
    pair : `~rosetta.SkyPair`
        Not modified.
    sources : `~astropy.table.Table`, optional
        What to inject; None: drawn from the population of `rosetta.simulate.simulate_pair`. Columns: ``flux_<band>``
        (total; nJy where without unit) for every band of the pair; ``type`` ("star" or "galaxy"; default: galaxies if
        there are radii); for galaxies ``half_light_radius`` (arcsec; before the profile is made elliptical, which keeps
        its area), ``sersic`` (0.3 to 6.2, default 1; above 1 truncated at 8 half-light radii), ``e1`` and ``e2``
        (distortion along east and 45 deg to it, default 0); or ``mixture`` (K, 6), as in the simulator's truth, in
        their place; ``sky_centroid`` (in the space frame; default: random places); ``label``. Others are kept.
    seed : int or sequence of int
        Of everything random.
    n : int, optional
        How many are drawn; None: as many as ``density`` allows. Only without ``sources``.
    population : {"all", "train", "irregular"}
        Families of morphology that occur. Stars occur in each.
    band : str, optional
        Of ``magnitude``; default: the reference band, the sharpest of the space side or else of the ground side.
    magnitude : tuple of float
        Brightest and faintest (AB). Numbers are uniform in between; everything else is as in the population.
    density : `~astropy.units.Quantity`
        Most injected sources per solid angle of valid sky. One source is always allowed.
    separation : `~astropy.units.Quantity`
        Least distance between two of them (angle).
    offsets : `~astropy.table.QTable` or `~rosetta.AstrometricSolution`, optional
        Of `~rosetta.LearnedAligner`: ground images get a source where their frame has it.
    existing : `~astropy.table.QTable`, optional
        Catalogue of the pair (``label``, ``sky_centroid`` and ``flux_<band>`` of the reference band); None: its
        detections, with the light in their segments as the flux.

    Returns
    -------
    pair : `~rosetta.SkyPair`
    truth : `~astropy.table.QTable`
        ``label`` (1, 2, ...; or the given), ``sky_centroid``, ``flux_<band>`` (nJy), ``type``, ``half_light_radius``,
        ``e1``, ``e2``, ``family``, ``redshift`` or the given columns; ``coverage_<band>``, the share of the added
        light that fell on valid pixels; ``existing_label``, ``existing_distance`` and ``existing_flux`` of the nearest
        source that was there (-1 and NaN: none). ``meta["injection"]`` holds the settings and, by band, the light
        within the PSF's stamp and the variance per flux with its origin.

    Raises
    ------
    ImportError
        If GalSim or speclite is not installed.
    TypeError, ValueError
        If an argument cannot be used, the sources are more than ``density`` allows or closer than ``separation``.
    """
    require_simulator()
    from .drawing import FinePSF, draw_source, light_of
    from .gain import photon_noise
    from .sources import drawn, given, random_places

    if not isinstance(pair, SkyPair):
        raise TypeError(f"pair must be a SkyPair, got {type(pair).__name__}: make one with SkyPair(ground, space)")
    if sources is not None and n is not None:
        raise ValueError("n is of no use with sources: leave it out, or give the rows that are to be injected")
    apart = _value("separation", separation, u.arcsec)
    images = band_images(pair)
    reference = images[reference_band(images)]
    band = reference.band if band is None else _known_band(pair, band)
    solution = solution_for(offsets, images)
    allowed = _allowed(reference, _value("density", density, u.arcmin**-2))

    of_sources, of_places, of_noise = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    if sources is None:
        n = allowed if n is None else n
        _check_number("n", n, allowed, density)
        low, high = magnitude
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"magnitude is {magnitude}: give (brightest, faintest), two different finite numbers")
        scene, truth = drawn(of_sources, n, pair.surveys, pair.bands, population, band, magnitude)
    else:
        scene, truth = given(sources, pair.bands)
        _check_number("the number of sources", len(truth), allowed, density)
    if "label" not in truth.colnames:
        truth.add_column(np.arange(1, len(truth) + 1), name="label", index=0)
    if "sky_centroid" in truth.colnames:
        _check_apart(truth["sky_centroid"], reference.center, apart)
    else:
        places = random_places(of_places, reference, len(truth), apart)
        truth.add_column(places, name="sky_centroid", index=1)

    sides, record = {"ground": {}, "space": {}}, {}
    parts = [np.flatnonzero(scene.owner == source) for source in range(len(truth))]
    for k, (name, image) in enumerate(images.items()):
        coord = truth["sky_centroid"]
        if solution is not None and image.side == "ground":
            coord = solution.seen_position(coord)
        light, covered = np.zeros(image.shape), np.zeros(len(truth))
        psf = FinePSF(image.psf)
        xy, jacobian = image.place(image.tangent_plane.east_north(coord))
        for source, rows in enumerate(parts):
            flux = scene.flux[rows, k]
            if not flux.sum() > 0:
                covered[source] = np.nan
                continue
            if not _touches(xy[source], image.shape):
                continue
            stamp, corner = draw_source(*light_of(scene, rows, flux), psf, xy[source], jacobian[source])
            covered[source] = _add(light, flux.sum() * stamp, corner, image.valid) / (flux.sum() * stamp.sum())
        truth[f"coverage_{name}"] = covered
        per_flux, origin, in_variance = photon_noise(image)
        pixels = getattr(pair, image.side)[name]  # as they are: what was found to be an artefact is not masked
        lit = image.valid & (light != 0)
        sides[image.side][name] = _with_light(pixels, lit, light, per_flux, in_variance, of_noise)
        record[name] = {
            "light_within_psf_stamp": float(image.psf.light.mean()), "variance_per_flux": per_flux,
            "variance_per_flux_from": origin, "in_variance": in_variance,
        }
    _add_existing(truth, pair, reference, existing)
    truth.meta["injection"] = {
        "seed": np.asarray(seed).tolist(), "reference_band": reference.band,
        "density": (len(truth) / _area(reference) / u.arcmin**2).to_string(), "separation_arcsec": apart,
        "aligned": solution is not None and solution.verdict != "abstain", "bands": record,
    }
    if sources is None:
        truth.meta["injection"].update(population=population, band=band, magnitude=list(map(float, magnitude)))
    return SkyPair._of_checked(sides["ground"], sides["space"], pair.surveys, pair.flags), truth


def require_simulator():
    """Raise an `ImportError` that names the remedy if what the simulator needs is not installed."""
    try:
        import galsim  # noqa: F401
        import speclite  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"injection needs {error.name}, which is not installed: pip install 'astro-rosetta[sim]'", name=error.name
        ) from error


def _value(name, quantity, unit):
    try:
        value = float(u.Quantity(quantity).to_value(unit))
    except (TypeError, ValueError, u.UnitConversionError) as error:
        raise ValueError(f"{name} is {quantity!r}: give it with a unit, such as {5 * unit}") from error
    if not 0 <= value < np.inf:
        raise ValueError(f"{name} is {quantity}: it must be finite and not negative")
    return value


def _known_band(pair, band):
    for survey in pair.surveys:
        for one in survey.bands:
            if band == one.name or band in one.aliases:
                return one.name
    known = " ".join(name for survey in pair.surveys for name in survey.band_names)
    raise ValueError(f"band is {band!r}, which neither survey has: use one of {known}")


def _area(image):
    """Valid sky of an image, square arcminutes."""
    return float(image.valid.sum() * image.pixel_scale**2 / 3600)


def _allowed(image, density):
    return max(1, int(density * _area(image)))


def _check_number(what, n, allowed, density):
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"{what} is {n!r}: give 1 or more")
    if n > allowed:
        raise ValueError(
            f"{what} is {n}, but a density of {density:g} allows {allowed} here: inject fewer at a time, or raise "
            "density"
        )


def _check_apart(coord, center, apart):
    place = tangent(coord, center)
    if len(place) < 2:
        return
    distance = cKDTree(place).query(place, k=2)[0][:, 1]
    if distance.min() < apart:
        raise ValueError(
            f"sources has two rows {distance.min():.2f} arcsec apart, closer than separation ({apart:g}): inject them "
            "in separate calls, or lower separation"
        )


def _touches(xy, shape):
    """Whether a place is within 1000 pixels of the image: light from farther is not drawn."""
    return bool(((xy > -1000.0) & (xy < np.array(shape[::-1]) + 1000.0)).all())


def _add(image, stamp, corner, valid):
    """Add a stamp to an image, clipped at its edges; the sum of what fell on valid pixels."""
    (x0, y0), (ny, nx), (sy, sx) = corner, image.shape, stamp.shape
    ya, yb, xa, xb = max(y0, 0), min(y0 + sy, ny), max(x0, 0), min(x0 + sx, nx)
    if ya >= yb or xa >= xb:
        return 0.0
    part = stamp[ya - y0 : yb - y0, xa - x0 : xb - x0]
    image[ya:yb, xa:xb] += part
    return float(part[valid[ya:yb, xa:xb]].sum())


def _with_light(pixels, lit, light, per_flux, in_variance, rng):
    """An image of a pair with light on some pixels (``lit``), and with its photon noise."""
    added = np.maximum(light[lit], 0.0) * per_flux
    data, variance = np.array(pixels.data), np.array(pixels.uncertainty.array)
    data[lit] += light[lit] + rng.normal(size=len(added)) * np.sqrt(added)
    if in_variance:
        variance[lit] += added
    return frozen_image(data, variance, np.array(pixels.mask), pixels.wcs, pixels.meta, pixels.psf_anywhere)



def _add_existing(truth, pair, reference, existing):
    """Label, distance and flux of the nearest source that was there before."""
    if existing is None:
        found = detected(pair, DetectionConfig())
        label, coord = np.asarray(found.table["label"]), found.table["sky_centroid"]
        flux = np.atleast_1d(ndimage.sum(found.image.data, found.segments, label)) if len(found) else np.zeros(0)
    else:
        label, coord = np.asarray(existing["label"]), existing["sky_centroid"]
        flux = existing[f"flux_{reference.band}"].to_value(u.nJy)
    n = len(truth)
    nearest, distance = np.full(n, -1), np.full(n, np.nan)
    if len(label) and n:
        there, here = tangent(coord, reference.center), tangent(truth["sky_centroid"], reference.center)
        distance, nearest = cKDTree(there).query(here)
    truth["existing_label"] = np.append(label, -1)[nearest].astype(int)
    truth["existing_distance"] = distance * u.arcsec
    truth["existing_flux"] = np.append(np.asarray(flux, float), np.nan)[nearest] * u.nJy
