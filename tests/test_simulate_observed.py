# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A noise-free tile, once observed, has the PSF, depth and flux that its pair states."""

from functools import partial

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData, VarianceUncertainty
from scipy.signal import fftconvolve

pytest.importorskip("galsim", reason="the simulator needs the extra 'sim'")
pytest.importorskip("speclite", reason="the simulator needs the extra 'sim'")

from rosetta import EUCLID, RUBIN, SkyPair  # noqa: E402
from rosetta.images.moments import adaptive_moments, half_maximum_width  # noqa: E402
from rosetta.simulate import IDEAL, ObservedSet, dataset, observe, observed, write_training_set  # noqa: E402
from rosetta.simulate.dataset import render_base  # noqa: E402
from rosetta.simulate.delivered import deliver  # noqa: E402
from rosetta.simulate.pair import _tan  # noqa: E402
from rosetta.simulate.population import Scene  # noqa: E402
from rosetta.simulate.psf import draw_psf  # noqa: E402
from rosetta.simulate.rendering import Grid, base_psf  # noqa: E402

CENTER = SkyCoord(310.0, -44.0, unit="deg")
BORDER = 2.0  # arcsec
FLUX = 1e5  # nJy


def noise_free(sersic=0.0, radius=0.0, flux=FLUX, size=25.6, phase=(0.0, 0.0)):
    """A pair as `TrainingSet` gives it: one source in the middle, ``phase`` pixels off the centre of a pixel."""
    sides = {}
    for side, survey in (("ground", RUBIN), ("space", EUCLID)):
        scale = survey.pixel_scale.to_value(u.arcsec)
        n = round(size / scale)
        grid = Grid((n, n), scale, (n // 2 + phase[0], n // 2 + phase[1]))
        scene = Scene(
            east=np.zeros(1), north=np.zeros(1), redshift=np.zeros(1), family=np.array(["star"]),
            motion=np.zeros((1, 2)), owner=np.zeros(1, int), sersic=np.array([sersic]), radius=np.array([radius]),
            shape=np.zeros((1, 2)), offset=np.zeros((1, 2)), flux=np.full((1, len(survey.bands)), flux),
        )  # fmt: skip
        data = render_base(scene, grid, side, slice(0, len(survey.bands)))
        psf = draw_psf(base_psf(side), 3.0, scale)
        sides[side] = {
            band.name: NDData(
                image, unit=u.nJy, wcs=_tan(grid, CENTER), psf=psf,
                uncertainty=VarianceUncertainty(np.ones_like(image)),
            )
            for band, image in zip(survey.bands, data, strict=True)
        }  # fmt: skip
    return SkyPair(sides["ground"], sides["space"])


@pytest.fixture
def quiet(monkeypatch):
    """Observations without noise and artefacts: what is left is optics."""
    monkeypatch.setattr(observed, "deliver", partial(deliver, noise=False, defects=False))


def middle(array, half):
    y, x = (n // 2 for n in array.shape)
    return array[y - half : y + half + 1, x - half : x + half + 1].astype(float)


def test_star_has_the_stated_psf(quiet):
    """A star on the centre of a pixel is the PSF times its flux: same centroid, size and shape in every band."""
    for side, name, image in observe(noise_free(), seed=7, delivery=IDEAL).images():
        half = 8 if side == "ground" else 10
        seen, psf = middle(image.data, half), middle(image.psf, half)
        (centroid, covariance), (expected, size) = adaptive_moments(seen), adaptive_moments(psf)
        assert np.abs(centroid - expected).max() < 0.003, name
        assert np.linalg.det(covariance) ** 0.25 == pytest.approx(np.linalg.det(size) ** 0.25, rel=0.005), name
        assert np.abs(seen / FLUX - psf).max() < 0.005 * psf.max(), name
        # The origin of a PSF is its adaptive-moment centroid: on the middle of its central pixel.
        assert np.abs(expected - half).max() < 0.01, name
        width = half_maximum_width(middle(image.psf, 20)) * (0.2 if side == "ground" else 0.1)
        assert width == pytest.approx(image.meta["psf_fwhm"], rel=0.01), name


def test_star_between_pixels_stays_where_it_is(quiet):
    """The PSF is changed about the true position: nothing moves, whatever the sub-pixel phase."""
    for side, name, image in observe(noise_free(phase=(0.37, -0.21)), seed=8, delivery=IDEAL).images():
        half = 8 if side == "ground" else 10
        centroid, _ = adaptive_moments(middle(image.data, half))
        corner = np.array(image.data.shape)[::-1] // 2 - half
        error = np.abs(centroid + corner - np.array(image.wcs.world_to_pixel(CENTER))).max()
        assert error < (0.06 if name == "VIS" else 0.01), name  # VIS is undersampled


def test_bright_source_keeps_its_flux(quiet):
    bare = noise_free(sersic=1.0, radius=0.4, size=38.4)
    for side, name, image in observe(bare, seed=11, delivery=IDEAL).images():
        before = getattr(bare, side)[name].data
        assert before.sum() == pytest.approx(FLUX, rel=3e-3), name
        assert image.data.sum() == pytest.approx(FLUX, rel=0.01), name


@pytest.fixture(scope="module")
def star():
    return observe(noise_free(), seed=7, delivery=IDEAL)


def test_depth_is_the_stated_one():
    """The matched filter on empty sky scatters by a fifth of the flux at the 5-sigma depth."""
    blank = noise_free(flux=0.0, size=51.2)
    for side, name, image in observe(blank, seed=3, delivery=IDEAL).images():
        weight = fftconvolve(1.0 - image.mask, image.psf[::-1, ::-1] ** 2, mode="same") / np.sum(image.psf**2)
        data = np.where(image.mask, 0.0, image.data)
        flux = fftconvolve(data, image.psf[::-1, ::-1], mode="same") / np.sum(image.psf**2)
        clean = weight > 0.999
        depth = 31.4 - 2.5 * np.log10(5 * np.std(flux[clean]))
        assert depth == pytest.approx(image.meta["depth"], abs=0.1), (side, name)
        stated = 31.4 - 2.5 * np.log10(5 * np.sqrt(np.median(image.uncertainty.array) / np.sum(image.psf**2)))
        assert stated == pytest.approx(image.meta["depth"], abs=0.02), (side, name)


def test_sides_have_one_depth_each(star):
    """Relative to the survey's nominal depths; drawn independently, so that one does not tell the other."""
    shift = {side: set() for side in ("ground", "space")}
    for side, name, image in star.images():
        shift[side].add(round(image.meta["depth"] - star.survey(side)[name].depth, 9))
    assert all(len(values) == 1 for values in shift.values())
    assert shift["ground"] != shift["space"]
    assert all(-1.0 <= value <= 0.2 for values in shift.values() for value in values)


def test_depths_lie_in_the_given_range():
    pair = observe(noise_free(size=12.8), seed=7, delivery=IDEAL, depth=(0.3, 0.3))
    for side, name, image in pair.images():
        assert image.meta["depth"] == pytest.approx(pair.survey(side)[name].depth + 0.3), name


def test_border_is_masked(star):
    for side, name, image in star.images():
        n = int(np.ceil(BORDER / star.survey(side).pixel_scale.to_value(u.arcsec)))
        inner = np.zeros(image.data.shape, bool)
        inner[n:-n, n:-n] = True
        assert image.mask[~inner].all(), name
        assert image.mask[inner].mean() < 0.02, name


def test_same_seed_same_pixels():
    pair = noise_free(size=12.8)
    one, two, other = (observe(pair, seed=seed) for seed in ([1, 2], [1, 2], [1, 3]))
    for (_, name, a), (_, _, b), (_, _, c) in zip(one.images(), two.images(), other.images(), strict=True):
        np.testing.assert_array_equal(a.data, b.data, err_msg=name)
        np.testing.assert_array_equal(a.mask, b.mask, err_msg=name)
        np.testing.assert_array_equal(a.psf, b.psf, err_msg=name)
        assert not np.array_equal(a.data, c.data)
        assert not np.array_equal(a.psf, c.psf)


def test_set_is_lazy_and_parallel_to_its_truth(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "TILE_SIZE", 25.6)
    write_training_set(tmp_path, 2, seed=5, processes=1, progress=False)
    pairs, again, other = ObservedSet(tmp_path, seed=1), ObservedSet(tmp_path, seed=1), ObservedSet(tmp_path, seed=2)
    assert len(pairs) == len(pairs.truth) == 2
    first = pairs[0].ground["i"]
    np.testing.assert_array_equal(first.data, again[0].ground["i"].data)
    assert not np.array_equal(first.data, other[0].ground["i"].data)
    # Pair and truth are of one tile: true positions fall on the image, and only those of its own tile do.
    for k, apart in ((0, False), (1, True)):
        x, y = first.wcs.world_to_pixel(pairs.truth[k]["sky_centroid"])
        inside = (np.abs(x - 63.5) < 66) & (np.abs(y - 63.5) < 66)
        assert inside.any() != apart and inside.all() != apart
    assert np.all(pairs.truth[0]["d_ra_cosdec"] == 0)
    with pytest.raises(IndexError):
        pairs[2]
    (tmp_path / "tile_00001.safetensors").write_bytes(b"")  # nothing is read before it is asked for
    ObservedSet(tmp_path, seed=1)[0]
