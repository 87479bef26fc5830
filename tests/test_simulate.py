# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The simulated sky has the depth, flux, positions and numbers that its truth states."""

import logging
import shutil

import astropy.units as u
import numpy as np
import pytest
from scipy.signal import fftconvolve

galsim = pytest.importorskip("galsim", reason="the simulator needs the extra 'sim'")
pytest.importorskip("speclite", reason="the simulator needs the extra 'sim'")

from rosetta.images.moments import adaptive_moments  # noqa: E402
from rosetta.simulate import (  # noqa: E402
    IDEAL,
    AstrometricError,
    TrainingSet,
    read_tile,
    simulate_pair,
    write_training_set,
)
from rosetta.simulate.dataset import render_base, truth_table  # noqa: E402
from rosetta.simulate.mixtures import half_light_radii, scene_mixtures  # noqa: E402
from rosetta.simulate.pair import _tan  # noqa: E402
from rosetta.simulate.population import Scene, draw_scene, galaxy_counts  # noqa: E402
from rosetta.simulate.psf import FieldPSF  # noqa: E402
from rosetta.simulate.rendering import Grid, add_stamp, draw_sources  # noqa: E402
from rosetta.simulate.seds import galaxy_colours, star_colours  # noqa: E402
from rosetta.surveys import EUCLID, HSC, HST_ACS, RUBIN  # noqa: E402

SURVEYS = (RUBIN, EUCLID)
VIS = 6


def one_source(sersic=0.0, radius=0.0, shape=(0.0, 0.0), flux=1e6, east=0.7, north=-0.43):
    """A scene of a single component with the same flux in all ten bands."""
    return Scene(
        east=np.array([east]),
        north=np.array([north]),
        redshift=np.zeros(1),
        family=np.array(["star" if sersic == 0 else "spiral"]),
        motion=np.zeros((1, 2)),
        owner=np.zeros(1, int),
        sersic=np.array([sersic]),
        radius=np.array([radius]),
        shape=np.array([shape]),
        offset=np.zeros((1, 2)),
        flux=np.full((1, 10), flux),
    )


def render(scene, survey, band, n, seed=0, field=None):
    scale = survey.pixel_scale.to_value(u.arcsec)
    grid = Grid((n, n), scale, (n / 2 + 0.21, n / 2 - 0.37))
    fwhm = band.psf_fwhm.to_value(u.arcsec)
    field = field or FieldPSF(np.random.default_rng(seed), survey, band, survey is RUBIN, fwhm, 60.0)
    image = np.zeros((1, n, n))
    place = np.stack([scene.east, scene.north], axis=1)
    for stamp, corner in draw_sources(scene, place, scene.flux[:, 0], field, grid):
        add_stamp(image, stamp, corner, [1.0])
    return field.spread(image[0]), grid, field


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiles")
    write_training_set(directory, 2, seed=5, processes=1, progress=False)
    return directory


def test_deep_images_show_fainter_galaxies():
    def galaxies(depth_offset):
        _, truth = simulate_pair(seed=5, size=25 * u.arcsec, bands=["i"], depth_offset=depth_offset, noise=False)
        return truth["flux_i"][truth["type"] == "galaxy"].to_value(u.ABmag)

    nominal, deep = galaxies(0.3), galaxies(1.3)
    assert nominal.max() < 27.01 < 27.8 < deep.max() < 28.01
    assert len(deep) > 1.5 * len(nominal)


@pytest.mark.parametrize("depth_offset", [0.0, -0.7])
def test_rendered_depth(depth_offset):
    """The matched filter scatters on empty sky as the 5-sigma point-source depth says, in every band."""
    size = 102.4 if depth_offset == 0 else 51.2
    options = {"seed": 3, "size": size * u.arcsec, "density": 1e-6, "depth_offset": depth_offset, "defects": False}
    pair, _ = simulate_pair(**options, delivery=IDEAL)
    bare, _ = simulate_pair(**options, delivery=IDEAL, noise=False)
    for side, name, image in pair.images():
        psf = image.psf
        noise = image.data.astype(float) - getattr(bare, side)[name].data
        sky = getattr(bare, side)[name].data < 0.1 * np.sqrt(np.median(image.uncertainty.array))
        flux = fftconvolve(noise, psf[::-1, ::-1], mode="same") / np.sum(psf**2)
        inner = np.s_[20:-20, 20:-20]
        depth = 31.4 - 2.5 * np.log10(5 * np.std(flux[inner][sky[inner]]))
        expected = pair.survey(side)[name].depth + depth_offset
        assert depth == pytest.approx(expected, abs=0.05 if depth_offset == 0 else 0.1), name
        # What the uncertainty says about a point source agrees.
        stated = 31.4 - 2.5 * np.log10(5 * np.sqrt(np.median(image.uncertainty.array) / np.sum(psf**2)))
        assert stated == pytest.approx(expected, abs=0.02), name


def test_nisp_noise_is_correlated():
    options = {"seed": 4, "size": 25.6 * u.arcsec, "density": 1e-6, "bands": ("VIS", "H_E"), "defects": False}
    pair, _ = simulate_pair(**options, delivery=IDEAL)
    bare, _ = simulate_pair(**options, delivery=IDEAL, noise=False)
    found = {}
    for name in ("VIS", "H_E"):
        noise = pair.space[name].data - bare.space[name].data
        found[name] = np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]
    assert abs(found["VIS"]) < 0.03
    assert found["H_E"] > 0.6
    assert pair.ground is None


@pytest.mark.parametrize("survey, name", [(RUBIN, "u"), (RUBIN, "y"), (EUCLID, "VIS"), (EUCLID, "H_E")])
@pytest.mark.parametrize("sersic, radius, shape", [(0.0, 0.0, (0, 0)), (1.0, 0.5, (0.2, 0.1)), (4.0, 0.4, (0, 0.1))])
def test_flux_is_conserved(survey, name, sersic, radius, shape):
    scene = one_source(sersic, radius, shape)
    # 15" from the centre to the border: the wings, which end at 10", and the galaxy.
    image, _, _ = render(scene, survey, survey[name], 160 if survey is RUBIN else 320)
    assert image.sum() == pytest.approx(1e6, rel=1e-3)


@pytest.mark.parametrize("side, survey", [("ground", RUBIN), ("space", EUCLID)])
def test_base_flux_is_conserved(side, survey):
    grid = Grid((200, 200), survey.pixel_scale.to_value(u.arcsec), (100.0, 100.3))
    for scene in (one_source(), one_source(1.0, 0.5, (0.3, 0.0))):
        image = render_base(scene, grid, side, slice(0, 1))
        assert image.sum() == pytest.approx(1e6, rel=2e-3)


@pytest.mark.parametrize("survey", SURVEYS, ids=("ground", "space"))
def test_star_is_where_the_truth_wcs_says(survey):
    """Adaptive-moment centroid against the sky position in the truth table, in every band."""
    from astropy.coordinates import SkyCoord

    centre = SkyCoord(310.0, -44.0, unit="deg")
    for k, band in enumerate(survey.bands):
        field = None
        error = []
        # Coarser than Nyquist (VIS), one centroid depends on the sub-pixel phase: average over phases.
        for phase in range(16):
            east, north = 0.05 * np.array(divmod(phase, 4)) * survey.pixel_scale.to_value(u.arcsec) * 5
            scene = one_source(east=east, north=north)
            image, grid, field = render(scene, survey, band, 96, seed=10 + k, field=field)
            truth = truth_table(scene, centre, SURVEYS, VIS, 30.0, np.zeros((1, 2)))
            expected = np.array(_tan(grid, centre).world_to_pixel(truth["sky_centroid"])).ravel()
            error.append(adaptive_moments(image)[0] - expected)
        assert np.abs(np.mean(error, axis=0)).max() < 0.01, band.name
        assert np.abs(error).max() < (0.06 if band.name == "VIS" else 0.01), band.name
        stamp = field.image()
        assert stamp.sum() == pytest.approx(1)
        assert np.abs(adaptive_moments(stamp)[0] - np.array(stamp.shape) // 2).max() < 2e-3


def test_psf_is_not_round_and_varies():
    field = FieldPSF(np.random.default_rng(1), RUBIN, RUBIN["r"], True, 0.8, 50.0)

    def covariance(east, north):
        return adaptive_moments(field.image(east, north))[1]

    middle, corner = covariance(0, 0), covariance(50, 50)
    fwhm = 2.3548 * np.linalg.det(middle) ** 0.25 * 0.2
    assert 0.78 < fwhm < 0.95  # the atmosphere's 0.8" and the pixel
    assert abs(middle[0, 0] - middle[1, 1]) + 2 * abs(middle[0, 1]) > 0.005 * np.trace(middle)
    assert 0.002 < np.abs(corner / np.trace(middle) - middle / np.trace(middle)).max() < 0.1


def test_mixture_is_the_light():
    """The truth mixture, smoothed and pixelated, against GalSim's image of the same galaxy."""
    for sersic, radius, shape in ((1.0, 0.5, (0.25, -0.1)), (2.0, 0.4, (0.0, 0.2)), (4.0, 0.4, (0.1, 0.0))):
        scene = one_source(sersic, radius, shape, flux=1.0)
        mixture = scene_mixtures(scene, VIS)
        assert mixture[0, :, 0].sum() == pytest.approx(1)
        # For an ellipse the circular half-light radius is near the geometric mean of the axes.
        assert half_light_radii(mixture)[0] == pytest.approx(radius, rel=0.06)
        sigma = 0.45 / 2.3548
        grid = Grid((160, 160), 0.1, (80.0, 80.0))
        from rosetta.simulate.rendering import draw_component, profile

        psf = galsim.Gaussian(sigma=sigma, gsparams=galsim.GSParams(maxk_threshold=1e-4))
        light = profile(sersic, radius, *shape)
        stamp, corner = draw_component(light, psf, grid, 0.7, -0.43, 6.0)
        y, x = np.mgrid[: stamp.shape[0], : stamp.shape[1]]
        east = -(x + corner[0] - 80.0) * 0.1 - 0.7
        north = (y + corner[1] - 80.0) * 0.1 + 0.43
        model = np.zeros(stamp.shape)
        for w, me, mn, sxx, sxy, syy in mixture[0]:
            # A pixel adds scale^2 / 12 to the variance.
            cov = np.array([[sxx, sxy], [sxy, syy]]) + np.eye(2) * (sigma**2 + 0.1**2 / 12)
            d = np.stack([east - me, north - mn], -1)
            chi2 = np.einsum("yxi,ij,yxj->yx", d, np.linalg.inv(cov), d)
            model += w * np.exp(-0.5 * chi2) * 0.01 / (2 * np.pi * np.sqrt(np.linalg.det(cov)))
        assert np.abs(model - stamp).sum() < 0.04, sersic
        assert np.abs(model - stamp).max() < 0.03 * stamp.max(), sersic


def test_counts_sizes_and_redshifts():
    scene = draw_scene(np.random.default_rng(0), 180.0, SURVEYS, VIS)
    galaxy = scene.family != "star"
    i = 31.4 - 2.5 * np.log10(scene.source_flux[:, 3])
    for limit in (24.0, 25.0, 26.5):
        counts = np.sum(galaxy & (i < limit)) / 36.0
        assert counts == pytest.approx(galaxy_counts(limit), rel=0.12), limit
    assert 1.5 < np.sum(~galaxy & (i < 25)) / 36 < 5
    z = scene.redshift[galaxy & (i < 25.3)]
    assert 0.7 < np.mean(z) < 1.2
    # The centroid of the reference band's light is the position.
    weighted = scene.flux[:, VIS, None] * scene.offset
    for k in range(2):
        pull = np.bincount(scene.owner, weighted[:, k]) / scene.source_flux[:, VIS]
        assert np.abs(pull).max() < 1e-9
    # Clustered: more close pairs than in a Poisson field.
    from scipy.spatial import cKDTree

    place = np.stack([scene.east, scene.north], axis=1)[galaxy]
    rng = np.random.default_rng(1)
    pairs = [len(cKDTree(p).query_pairs(5.0)) for p in (place, rng.uniform(-180, 180, place.shape))]
    assert 1.06 < pairs[0] / pairs[1] < 1.3


def test_colours():
    """Passive galaxies redden through the 4000 A break; red dwarfs are red; other surveys work."""
    passive = -2.5 * np.log10(galaxy_colours(SURVEYS, [0, 0], [0.1, 0.5]))
    assert passive[1, 1] - passive[1, 2] > passive[0, 1] - passive[0, 2] + 0.4  # g - r
    burst = -2.5 * np.log10(galaxy_colours(SURVEYS, [12], [0.5]))[0]
    assert burst[1] < passive[1, 1] - 1.5
    dropout = -2.5 * np.log10(galaxy_colours(SURVEYS, [12], [4.0]))[0]
    assert dropout[0] > 3  # u is gone
    everything = galaxy_colours(SURVEYS, np.repeat(np.arange(15), 20), np.tile(np.linspace(0.02, 5, 20), 15))
    assert np.all(np.abs(2.5 * np.log10(everything[:, 6:])) < 6)
    cool, hot = -2.5 * np.log10(star_colours(SURVEYS, [3200.0, 9000.0]))
    assert cool[1] - cool[2] > 1 and -0.6 < hot[1] - hot[2] < 0.3
    other = galaxy_colours((HSC, HST_ACS), [6], [0.7])[0]
    rubin = galaxy_colours(SURVEYS, [6], [0.7])[0]
    assert other[1] == pytest.approx(rubin[2], rel=0.05)  # r in both
    assert rubin[2] < other[-1] < rubin[5]  # F814W between r and y of a red spectrum


def test_reserved_family_stays_out_of_training():
    drawn = {
        families: draw_scene(np.random.default_rng(2), 60.0, SURVEYS, VIS, families=families)
        for families in ("train", "all", "irregular")
    }
    assert "irregular" not in drawn["train"].family
    assert "irregular" in drawn["all"].family and "spiral" in drawn["all"].family
    assert set(drawn["irregular"].family) == {"irregular", "star"}


def test_same_seed_same_pair_and_bands_do_not_interfere():
    options = {"seed": 11, "size": 12.8 * u.arcsec}
    (one, truth), (two, _) = (simulate_pair(**options, bands=b) for b in (("r", "VIS"), ("VIS", "r", "i")))
    np.testing.assert_array_equal(one.space["VIS"].data, two.space["VIS"].data)
    np.testing.assert_array_equal(one.ground["r"].data, two.ground["r"].data)
    other, _ = simulate_pair(seed=12, size=12.8 * u.arcsec, bands=("r",))
    assert not np.array_equal(one.ground["r"].data, other.ground["r"].data)
    assert {f"flux_{b}" for b in RUBIN.band_names + EUCLID.band_names} <= set(truth.colnames)


def test_astrometric_error_has_the_stated_sign_and_size():
    """corrected = ground + offset: a star is seen where the header, minus the offset, puts it."""
    error = AstrometricError(shift=(300, -200) * u.mas, rms=20 * u.mas, rotation=5 * u.arcsec)
    options = {"seed": 21, "size": 51.2 * u.arcsec, "noise": False, "defects": False, "density": 1e-6}
    options |= {"bands": ("r", "VIS"), "delivery": IDEAL}
    pair, truth = simulate_pair(**options, astrometric_error=error, proper_motion_years=2)
    flux = truth["flux_r"].value
    edge = 40
    image = pair.ground["r"]
    checked = 0
    for row in truth[np.argsort(-flux)]:
        moved = row["sky_centroid"].spherical_offsets_by(
            2 * u.yr * row["pm_ra_cosdec"] - row["d_ra_cosdec"], 2 * u.yr * row["pm_dec"] - row["d_dec"]
        )
        x, y = image.wcs.world_to_pixel(moved)
        others = truth["sky_centroid"].separation(row["sky_centroid"]) < 6 * u.arcsec
        if others.sum() > 1 or not (edge < x < 255 - edge and edge < y < 255 - edge):
            continue
        x0, y0 = round(float(x)) - 15, round(float(y)) - 15
        found, _ = adaptive_moments(image.data[y0 : y0 + 31, x0 : x0 + 31].astype(float))
        assert np.abs(found + (x0, y0) - (x, y)).max() < 0.02
        checked += 1
    assert checked >= 1
    parameters = truth.meta["astrometric_error"]
    far = np.random.default_rng(0).uniform(-2000, 2000, (2, 4000))
    smooth = dict(parameters, matrix=np.zeros((2, 2)))
    offset = AstrometricError.offset(smooth, *far)
    assert offset.mean(axis=0) == pytest.approx([300, -200], abs=3)
    assert offset.std(axis=0) == pytest.approx([20, 20], rel=0.15)


def test_defects_are_masked():
    options = {"seed": 31, "size": 51.2 * u.arcsec, "bands": ("r",), "noise": False, "delivery": IDEAL}
    marred, clean = (simulate_pair(**options, defects=d)[0].ground["r"] for d in (True, False))
    assert not clean.mask.any()
    assert 0 < marred.mask.mean() < 0.05
    np.testing.assert_array_equal(marred.data[~marred.mask], clean.data[~marred.mask])
    limit = 10 ** (0.4 * (31.4 - RUBIN.saturation)) * marred.psf.max()
    assert marred.data[~marred.mask].max() <= limit


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 3 * u.s}, "size .* give an angle"),
        ({"size": 1 * u.arcsec}, "at least 6 arcsec"),
        ({"families": "odd"}, "families is 'odd': use one of"),
        ({"bands": ("r", "K")}, "bands holds 'K'"),
        ({"seeing": 0}, "seeing is 0: it must be positive"),
        ({"size": "large"}, "size is large: give an angle"),
        ({"star_density": -1}, "star_density is -1: it must be finite and not negative"),
        ({"morphologies": "nowhere.npz"}, "morphologies is 'nowhere.npz', which does not exist"),
        ({"size": np.inf * u.arcsec}, "it must be finite"),
        ({"proper_motion_years": np.nan}, "proper_motion_years is nan: it must be finite"),
        ({"astrometric_error": AstrometricError(length=0 * u.arcsec)}, "astrometric_error has rms"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        simulate_pair(seed=0, **options)


def test_a_field_may_be_empty():
    pair, truth = simulate_pair(seed=5, size=6 * u.arcsec, density=0.05, bands=["VIS"])
    assert len(truth) < 3 and np.isfinite(pair.space["VIS"].data[~pair.space["VIS"].mask]).all()


def test_training_set(directory, caplog, tmp_path):
    tiles = TrainingSet(directory)
    assert len(tiles) == 2
    pair, truth = tiles[0], tiles.truth(0)
    assert pair.ground["r"].data.shape == (512, 512) and pair.space["VIS"].data.shape == (1024, 1024)
    assert pair.ground["r"].meta["noise_free"]
    assert set(truth["family"]) <= {"star", "spiral", "elliptical", "clumpy", "merger", "lsb"}
    # Bright unsaturated point sources sit where the truth says, on both grids.
    for image in (pair.ground["i"], pair.space["VIS"]):
        x, y = image.wcs.world_to_pixel(truth["sky_centroid"])
        n = image.data.shape[0]
        flux = truth["flux_VIS"].value
        stars = np.flatnonzero((truth["type"] == "star") & (flux > 1e3) & (flux < 1e5))
        offsets = []
        for k in stars:
            x0, y0 = round(float(x[k])) - 12, round(float(y[k])) - 12
            if min(x0, y0) >= 0 and max(x0, y0) + 25 <= n:
                found, _ = adaptive_moments(image.data[y0 : y0 + 25, x0 : x0 + 25].astype(float))
                offsets.append(found + (x0, y0) - (x[k], y[k]))
        assert len(offsets) >= 1
        assert np.median(np.abs(offsets)) < 0.05
    # Damage one tile: indexing names it, iteration logs and goes on.
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    broken = copy / "tile_00000.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    damaged = TrainingSet(copy)
    with pytest.raises(ValueError, match="tile_00000"):
        damaged[0]
    with caplog.at_level(logging.WARNING, logger="rosetta"):
        assert len(list(damaged)) == 1
    assert "tile_00000" in caplog.text
    with pytest.raises(ValueError, match="manifest"):
        TrainingSet(tmp_path)


def test_resume_gives_the_same_tiles(directory, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    (copy / "tile_00001.safetensors").unlink()
    untouched = (copy / "tile_00000.safetensors").stat().st_mtime_ns
    write_training_set(copy, 2, seed=5, processes=1, progress=False)
    assert (copy / "tile_00000.safetensors").stat().st_mtime_ns == untouched
    (new, header), (old, _) = (read_tile(d / "tile_00001.safetensors") for d in (copy, directory))
    assert header["index"] == 1
    for name in old:
        np.testing.assert_array_equal(new[name], old[name])
    assert not list(copy.glob(".*"))


def test_other_seed_is_refused(directory):
    with pytest.raises(ValueError, match="holds another training set .seed 5 instead of 6"):
        write_training_set(directory, 2, seed=6, processes=1, progress=False)
    with pytest.raises(ValueError, match="another training set .star_density 1.0 instead of 3.0"):
        write_training_set(directory, 2, seed=5, processes=1, progress=False, star_density=3.0)
    with pytest.raises(ValueError, match="n_tiles is 0"):
        write_training_set(directory, 0)
