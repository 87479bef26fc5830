# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Galaxies made of components: their light, truth and families; the reserved family; real galaxies."""

import numpy as np
import pytest

galsim = pytest.importorskip("galsim", reason="the simulator needs the extra 'sim'")
pytest.importorskip("speclite", reason="the simulator needs the extra 'sim'")

from rosetta.simulate import read_morphologies  # noqa: E402
from rosetta.simulate.dataset import render_base  # noqa: E402
from rosetta.simulate.mixtures import half_light_radii, moments, scene_mixtures  # noqa: E402
from rosetta.simulate.morphology import FAMILIES, draw_galaxy  # noqa: E402
from rosetta.simulate.population import Scene, draw_scene  # noqa: E402
from rosetta.simulate.real_morphologies import choose, fingerprint  # noqa: E402
from rosetta.simulate.rendering import Grid, draw_component, source_light  # noqa: E402
from rosetta.simulate.stars import draw_stars, star_counts  # noqa: E402
from rosetta.surveys import EUCLID, RUBIN  # noqa: E402

SURVEYS = (RUBIN, EUCLID)
VIS = 6
TRAINED = ("elliptical", "spiral", "clumpy", "merger", "lsb")


# Of an irregular galaxy of half-light radius 0.4", turned by 0.3 rad, generator seed 7.
# fmt: off
RESERVED = [
    [1.0, 0.4, 0.1601060470351686, 0.10953444001484511, -0.17811836775145484, -0.09093415703434451,
     0.33083585970912743, 10.0, 0.31033016809439307, 13.0],
    [0.5, 0.05024271331691504, 0.0, 0.0, 0.07780924744392739, -0.03087965233242809, 0.11817515665164, 10.0,
     0.9420174412349964, 13.0],
    [0.5, 0.05183741864046222, 0.0, 0.0, -0.028678657289118052, 0.024436144526834746, 0.07505191928594612,
     10.0, 0.4732604454191316, 13.0],
    [0.5, 0.061985670285855644, 0.0, 0.0, 0.13954249209309058, -0.24447286404586088, 0.1612931009141137, 10.0,
     0.4404247067908966, 13.0],
    [0.5, 0.06916248194969077, 0.0, 0.0, -0.31823146655827034, -0.108000374348593, 0.12230292533967221, 10.0,
     0.4081227567430079, 13.0],
    [0.5, 0.052509122113158, 0.0, 0.0, -0.05355990808964295, 0.01590322224775994, 0.11029896327843142, 10.0,
     0.8930051724561086, 13.0],
    [0.5, 0.030757771463278377, 0.0, 0.0, -0.08250790553652602, 0.37390725285948007, 0.031407955495845276,
     10.0, 0.6788006749635422, 13.0],
    [0.5, 0.0447857310687362, 0.0, 0.0, 0.10066873527650301, -0.15742152443505858, 0.016278011231149532, 10.0,
     0.7187288470450492, 13.0],
    [0.5, 0.04279789000542675, 0.0, 0.0, -0.4828054068009826, -0.12744496031982916, 0.03435610809407438, 10.0,
     0.40513981034931623, 13.0],
]  # fmt: on


def alone(parts, scale=1.0):
    """A scene of one galaxy of unit flux in one band, its components about their centroid."""
    columns = [np.array(column) for column in zip(*parts)]
    sersic, radius, g1, g2, east, north, share = columns[:7]
    offset = np.stack([east, north], axis=1)
    return Scene(
        east=np.zeros(1), north=np.zeros(1), redshift=np.zeros(1), family=np.array(["spiral"]),
        motion=np.zeros((1, 2)), owner=np.zeros(len(parts), int), sersic=sersic, radius=scale * radius,
        shape=np.stack([g1, g2], axis=1), offset=scale * (offset - share @ offset), flux=share[:, None],
    )  # fmt: skip


def drawn(scene, scale=0.03, half_width=None):
    """Image of the first source of a scene under a narrow Gaussian, its (east, north), and that Gaussian's sigma."""
    rows = np.flatnonzero(scene.owner == 0)
    sigma = 0.05
    light, width = source_light(scene, rows, scene.flux[rows, 0] / scene.flux[rows, 0].sum())
    psf = galsim.Gaussian(sigma=sigma, gsparams=galsim.GSParams(maxk_threshold=1e-3, maximum_fft_size=16384))
    stamp, (x0, y0) = draw_component(light, psf, Grid((1, 1), scale, (0.0, 0.0)), 0.0, 0.0, half_width or width + 0.3)
    y, x = np.indices(stamp.shape)
    return stamp, -(x + x0) * scale, (y + y0) * scale, np.sqrt(sigma**2 + scale**2 / 12)


def blurred(mixture, sigma):
    mixture = mixture.copy()
    mixture[..., 3] += sigma**2
    mixture[..., 5] += sigma**2
    return mixture


def half_light(stamp, east, north):
    radius = np.hypot(east, north).ravel()
    order = np.argsort(radius)
    return np.interp(0.5, np.cumsum(stamp.ravel()[order]), radius[order])


def galaxy(name, seed, mag=22.5, redshift=0.8):
    rng = np.random.default_rng(seed)
    families = "irregular" if name == "irregular" else "train"
    while True:
        found, parts = draw_galaxy(rng, mag, redshift, families)
        if found == name:
            return parts


@pytest.mark.parametrize("name", [*TRAINED, "irregular"])
def test_truth_is_that_of_the_drawn_image(name):
    """Size, centroid and positivity of each family, drawn by GalSim, against the mixture of the truth table."""
    for seed in range(3):
        scene = alone(galaxy(name, seed))
        assert scene.flux.sum() == pytest.approx(1) and (scene.flux >= 0).all()
        stamp, east, north, sigma = drawn(scene)
        assert stamp.min() > -2e-4 * stamp.max()
        assert [np.sum(stamp * east), np.sum(stamp * north)] == pytest.approx([0, 0], abs=0.01)
        expected = half_light_radii(blurred(scene_mixtures(scene, 0), sigma))[0]
        assert half_light(stamp, east, north) == pytest.approx(expected, rel=0.02), (name, seed)


def test_reserved_family_is_as_it_was():
    """The generator of the reserved family gives the numbers that it gave before other families came."""
    from rosetta.simulate.morphology import _irregular

    rows = np.array(_irregular(np.random.default_rng(7), 0.4, 0.3))
    np.testing.assert_allclose(rows, RESERVED, rtol=1e-12)


def test_families_keep_to_their_settings():
    rng = np.random.default_rng(1)
    found = {
        setting: {draw_galaxy(rng, mag, 0.9, setting)[0] for mag in np.linspace(19, 26, 150)} for setting in FAMILIES
    }
    assert found["train"] == set(TRAINED)
    assert found["all"] == {*TRAINED, "irregular"}
    assert found["irregular"] == {"irregular"}


def test_clumps_are_blue():
    """Knots give a larger share of the light in bluer bands, in a scene as in each clumpy galaxy of it."""
    scene = draw_scene(np.random.default_rng(3), 60.0, SURVEYS, VIS)
    clumpy = np.flatnonzero(scene.family == "clumpy")
    knots = (scene.sersic == 0.5) & (scene.shape == 0).all(axis=1) & np.isin(scene.owner, clumpy)
    share = scene.flux[knots].sum(axis=0) / scene.flux[np.isin(scene.owner, clumpy)].sum(axis=0)
    u, g, i, y = share[[0, 1, 3, 5]]
    assert u > g > i > y > 0.02
    bright = (scene.source_flux[:, 3] > 10 ** (0.4 * (31.4 - 25))) & (scene.redshift > 0.5) & (scene.redshift < 2)
    late = bright & ~np.isin(scene.family, ["star", "elliptical"])
    assert 0.3 < np.mean(scene.family[late] == "clumpy") < 0.75


def test_flux_of_components_is_that_of_the_source_in_every_band():
    scene = draw_scene(np.random.default_rng(4), 12.0, SURVEYS, VIS)
    grid = Grid((320, 320), 0.2, (159.7, 160.2))
    image = render_base(scene, grid, "ground", slice(0, 6))
    np.testing.assert_allclose(image.sum(axis=(1, 2)), scene.source_flux[:, :6].sum(axis=0), rtol=5e-3)


def test_star_counts_and_motions():
    stars = draw_stars(np.random.default_rng(0), 3000.0)
    area = 100.0**2
    for limit in (18.0, 21.0, 25.0):
        expected = star_counts(limit) - star_counts(15.0)
        assert np.sum(stars.mag < limit) / area == pytest.approx(expected, rel=0.08)
    assert stars.mag.min() > 15 and np.sum(stars.mag < 15.5) > 100
    speed = np.hypot(*stars.motion.T)
    assert np.median(speed[stars.mag < 17]) > 1.5 * np.median(speed[stars.mag > 23])
    few = draw_stars(np.random.default_rng(0), 300.0, density=0.1)
    assert 0.05 < len(few.mag) / len(draw_stars(np.random.default_rng(0), 300.0).mag) < 0.2


# ---------------------------------------------------------------------------- real galaxies
def hst_like(seed, mag, scale=0.03):
    """A stamp as a real set holds it: a lopsided pair of blobs under a PSF of 0.1", and a little noise."""
    rng = np.random.default_rng(seed)
    psf = galsim.Moffat(beta=3, fwhm=0.1)
    light = galsim.Exponential(half_light_radius=0.2).shear(g1=0.2) * 0.8
    light += galsim.Gaussian(half_light_radius=0.06).shift(0.25, 0.1) * 0.2
    stamps = [
        obj.drawImage(nx=n, ny=n + 2, scale=scale, method="no_pixel", dtype=float).array
        for obj, n in ((galsim.Convolve(light, psf), 64), (psf, 41))
    ]
    flux = 10 ** (-0.4 * (mag - 25.94))
    noise = 1e-4 * flux
    return flux * stamps[0] + rng.normal(scale=noise, size=stamps[0].shape), stamps[1], noise**2, light


@pytest.fixture(scope="module")
def real_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "galaxies.npz"
    arrays, mags, variances = {}, [], []
    for k in range(6):
        image, psf, variance, _ = hst_like(k, 22.0 + 0.5 * k)
        arrays |= {f"galaxy_{k:03d}": image, f"psf_{k:03d}": psf}
        mags.append(22.0 + 0.5 * k)
        variances.append(variance)
    np.savez(path, mag=mags, noise_variance=variances, **arrays)
    return path


def test_split_is_fixed_and_disjoint(real_set):
    train, test, both = (read_morphologies(real_set, families) for families in ("train", "irregular", "all"))
    assert [g.mag for g in train] == [22.0, 22.5, 23.5, 24.0]
    assert [g.mag for g in test] == [23.0, 24.5]
    assert len(both) == 6
    assert fingerprint(train) == fingerprint(read_morphologies(real_set.parent, "train")) != fingerprint(test)


def test_real_galaxies_are_never_brighter_than_observed(real_set):
    galaxies = read_morphologies(real_set)
    rng = np.random.default_rng(0)
    for mag in (20.0, 22.2, 23.4, 26.0):
        chosen = [choose(rng, galaxies, mag) for _ in range(20)]
        if mag < 22:
            assert set(chosen) == {None}
        else:
            assert all(galaxies[k].mag <= mag for k in chosen)
    scene = draw_scene(rng, 30.0, SURVEYS, VIS, galaxies=galaxies)
    real = np.flatnonzero(scene.real >= 0)
    assert set(scene.family[scene.owner[real]]) == {"real"} and len(real) > 20
    mag = 31.4 - 2.5 * np.log10(scene.flux[real, 3])
    np.testing.assert_array_less(np.array([galaxies[k].mag for k in scene.real[real]]), mag + 1e-6)


@pytest.mark.parametrize("turn, parity", [(0.0, 1.0), (0.7, 1.0), (2.0, -1.0)])
def test_real_galaxy_is_deconvolved_and_turned(real_set, turn, parity):
    """Drawn under another PSF it is the light underneath under that PSF; its truth follows the turn."""
    (galaxy, *_), light = read_morphologies(real_set), hst_like(0, 22.0)[3]
    scene = Scene(
        east=np.zeros(1), north=np.zeros(1), redshift=np.zeros(1), family=np.array(["real"]),
        motion=np.zeros((1, 2)), owner=np.zeros(1, int), sersic=np.full(1, np.nan), radius=np.zeros(1),
        shape=np.array([[turn, parity]]), offset=np.zeros((1, 2)), flux=np.ones((1, 1)),
        real=np.zeros(1, int), galaxies=(galaxy,),
    )  # fmt: skip
    width = galsim.Gaussian(sigma=0.07)
    grid = Grid((1, 1), 0.05, (0.0, 0.0))
    found, _ = source_light(scene, [0], [1.0])
    stamp, _ = draw_component(found, width, grid, 0.0, 0.0, 1.5)
    cos, sin = np.cos(turn), np.sin(turn)
    centroid = light.centroid
    expected = light.shift(-centroid.x, -centroid.y).transform(cos * parity, -sin, sin * parity, cos)
    wanted, _ = draw_component(expected, width, grid, 0.0, 0.0, 1.5)
    assert np.abs(stamp - wanted).max() < 0.03 * wanted.max()
    stamp, east, north, sigma = drawn(scene, half_width=1.5)
    mixture = blurred(scene_mixtures(scene, 0), sigma)
    assert half_light_radii(mixture)[0] == pytest.approx(half_light(stamp, east, north), rel=0.02)
    # Moments of the drawn image, its PSF and pixel taken off.
    e1, e2 = moments(scene_mixtures(scene, 0))
    qee, qnn, qen = (np.sum(stamp * a * b) for a, b in ((east, east), (north, north), (east, north)))
    size = qee + qnn - 2 * sigma**2
    assert [e1[0], e2[0]] == pytest.approx([(qee - qnn) / size, 2 * qen / size], abs=0.08)


def test_a_galsim_catalogue_is_read(tmp_path):
    """The files of `galsim.COSMOSCatalog`: a table, and images of galaxies and PSFs as extensions."""
    from astropy.io import fits
    from astropy.table import Table

    stamps = [hst_like(k, 22.0 + k) for k in range(3)]
    for name, which in (("galaxies", 0), ("psfs", 1)):
        images = [fits.PrimaryHDU(), *(fits.ImageHDU(stamp[which]) for stamp in stamps)]
        fits.HDUList(images).writeto(tmp_path / f"{name}.fits")
    columns = {
        "IDENT": [7, 8, 9], "MAG": [22.0, 23.0, 24.0], "BAND": ["F814W"] * 3, "WEIGHT": [1.0] * 3,
        "GAL_FILENAME": ["galaxies.fits"] * 3, "PSF_FILENAME": ["psfs.fits"] * 3, "GAL_HDU": [1, 2, 3],
        "PSF_HDU": [1, 2, 3], "PIXEL_SCALE": [0.03] * 3, "NOISE_MEAN": [0.0] * 3,
        "NOISE_VARIANCE": [stamp[2] for stamp in stamps], "NOISE_FILENAME": [""] * 3,
    }  # fmt: skip
    Table(columns).write(tmp_path / "real_galaxy_catalog_23.5.fits")
    galaxies = read_morphologies(tmp_path)
    assert [galaxy.mag for galaxy in galaxies] == [22.0, 23.0, 24.0]
    wanted = hst_like(0, 22.0)[0]
    assert galaxies[0].image.shape == wanted.shape
    assert np.corrcoef(galaxies[0].image.ravel(), wanted.ravel())[0, 1] > 0.99  # without the noise around it


def test_bad_sets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist: name a .npz file or a folder"):
        read_morphologies(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="holds neither"):
        read_morphologies(tmp_path)
    np.savez(tmp_path / "set.npz", galaxy_000=np.ones((9, 9)), mag=[20.0], noise_variance=[1.0])
    with pytest.raises(ValueError, match="lacks .*psf_000"):
        read_morphologies(tmp_path / "set.npz")
