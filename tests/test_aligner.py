# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The aligner: signs, grids, refusals, corrected WCS. Scenes are Gaussians drawn on the spot."""

import json
from dataclasses import asdict, replace
from functools import lru_cache

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData, NDData, StdDevUncertainty
from astropy.table import QTable
from astropy.wcs import WCS

from rosetta import AstrometricSolution, Flag, LearnedAligner, SkyPair
from rosetta.astrometry import measurement
from rosetta.astrometry.aligner import AlignerConfig
from rosetta.astrometry.measurement import MeasurementConfig
from rosetta.astrometry.solution import AlignmentError
from rosetta.checkpoint import CheckpointError, config_of
from rosetta.detection.detection import DetectionConfig, detected
from rosetta.encoding.encoder import CrossSurveyEncoder
from rosetta.encoding.network import EncoderConfig
from rosetta.images.image import band_images
from rosetta.images.positions import from_tangent, offset_coord, tangent

CENTER = SkyCoord(53.1, -28.1, unit="deg")
SIZE = 38.4  # arcsec
SHIFT = np.array([63.0, -47.0])  # mas, corrected = ground + offset
FWHM = {"g": 0.8, "r": 0.7, "VIS": 0.16, "H_E": 0.5}


@lru_cache
def aligner():
    config = EncoderConfig(
        dim=16, depth=1, heads=2, proj_dim=8, predictor_dim=12, predictor_depth=1, predictor_heads=2
    )
    return LearnedAligner(CrossSurveyEncoder(config=config, device="cpu"))


def grid_wcs(scale, turn=0.0, flip=False, dx=0.0):
    n = int(round(SIZE / scale))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [CENTER.ra.deg, CENTER.dec.deg]
    wcs.wcs.crpix = [(n + 1) / 2 + dx, (n + 1) / 2 - 0.3 * dx]
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    parity = np.diag([1.0 if flip else -1.0, 1.0])
    wcs.wcs.cd = parity @ np.array([[c, -s], [s, c]]) * scale / 3600
    wcs.pixel_shape = (n, n)
    wcs.wcs.set()
    return wcs


def scene(seed, n=60):
    """Positions (arcsec), fluxes (nJy), sizes (arcsec) and shapes."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-SIZE / 2 + 1.5, SIZE / 2 - 1.5, (n, 2))
    flux = 10 ** rng.uniform(2.6, 4.3, n)
    sigma = np.where(np.arange(n) % 3 == 0, 0.0, rng.uniform(0.1, 0.35, n))
    shape = rng.uniform(-0.3, 0.3, (n, 2))
    return xy, flux, sigma, shape


def draw(sky, wcs, band, sources, seed, offset, noise=True):
    """The image of the scene; header position = true position - offset (a function of xy, mas)."""
    xy, flux, sigma, shape = sources
    n = wcs.pixel_shape[0]
    image = np.zeros((n, n))
    moved = from_tangent(xy - 1e-3 * offset(xy), sky)
    px, py = wcs.world_to_pixel(moved)
    scale = np.sqrt(abs(np.linalg.det(wcs.wcs.cd))) * 3600
    to_pixel = np.linalg.inv(wcs.wcs.cd * 3600)
    psf2 = (FWHM[band] / 2.3548) ** 2
    half = int(6 * np.sqrt(psf2 + 0.35**2) / scale) + 2
    for k in range(len(flux)):
        e1, e2 = shape[k] * (sigma[k] > 0)
        cov = psf2 * np.eye(2) + sigma[k] ** 2 * np.array([[1 + e1, e2], [e2, 1 - e1]])
        inverse = np.linalg.inv(to_pixel @ cov @ to_pixel.T)
        x0, y0 = int(round(px[k])), int(round(py[k]))
        y, x = np.mgrid[max(y0 - half, 0) : min(y0 + half, n), max(x0 - half, 0) : min(x0 + half, n)]
        d = np.stack([x - px[k], y - py[k]], -1)
        value = np.exp(-0.5 * np.einsum("yxi,ij,yxj->yx", d, inverse, d))
        image[y, x] += flux[k] * value * np.sqrt(np.linalg.det(inverse)) / (2 * np.pi)
    error = 3.0 if scale > 0.15 else 2.0
    image += np.random.default_rng(seed).normal(0, error, image.shape) * noise
    stamp = np.arange(-12, 13) if scale > 0.15 else np.arange(-15, 16)
    psf = np.exp(-0.5 * (stamp[:, None] ** 2 + stamp**2) * scale**2 / psf2)
    return NDData(
        image, unit=u.nJy, wcs=wcs, uncertainty=StdDevUncertainty(np.full(image.shape, error)), psf=psf / psf.sum()
    )


def constant(value):
    return lambda xy: np.tile(value, (len(xy), 1)).astype(float)


def images(*, seed=1, offset=None, ground=None, space=None, bands=("r",), sources=None, center=CENTER):
    sources = scene(seed) if sources is None else sources
    offset = offset or constant(SHIFT)
    ground = ground or grid_wcs(0.2, dx=0.37)
    space = space or grid_wcs(0.1)
    return (
        {b: draw(center, ground, b, sources, 10 * seed + k, offset) for k, b in enumerate(bands)},
        {"VIS": draw(center, space, "VIS", sources, 10 * seed + 9, constant([0, 0]))},
    )


@lru_cache
def offsets_of(kind="shift", model="auto"):
    offset = {"shift": constant(SHIFT), "curved": curved}[kind]
    return aligner()(SkyPair(*images(offset=offset, bands=("g", "r"))), model=model)


def curved(xy):
    return SHIFT + np.stack([20 * np.sin(xy[:, 0] / 12), 15 * np.cos(xy[:, 1] / 10)], -1)


def joint_field(offsets, band="joint"):
    """Field at the centre of the image and its errors, mas."""
    solution = AstrometricSolution.from_table(offsets)
    center = solution.center.reshape(1)
    return solution.offset_at(center, band)[0], solution.sigma_at(center, band)[0]


def test_shift_is_recovered_with_its_sign_and_errors():
    offsets = offsets_of()
    assert offsets.meta["verdict"] == "ok"
    assert offsets.meta["reference"] == "VIS"
    assert set(offsets["band"]) == {"g", "r", "joint"}
    for band in ("g", "r", "joint"):
        value, error = joint_field(offsets, band)
        assert (np.abs(value - SHIFT) < 4 * error).all() and (error < 3.0).all()
    used = offsets[offsets["weight"] > 0]
    pull = [(used[c].value - s) / used[f"{c}_err"].value for c, s in zip(("d_ra_cosdec", "d_dec"), SHIFT, strict=True)]
    assert 0.75 < 1.4826 * np.median(np.abs(pull)) < 1.25
    # Two bands together are better than either.
    one, both = (offsets[offsets["band"] == b]["d_dec_err"] for b in ("r", "joint"))
    assert np.nanmedian(both / one) < 1


def test_moving_a_frame_moves_the_answer():
    ground, space = images()
    start = joint_field(aligner()(SkyPair(ground, space)))[0]
    moved = {"r": NDData(ground["r"], wcs=shifted(ground["r"].wcs, 0.080, 0.030))}
    down = joint_field(aligner()(SkyPair(moved, space)))[0]
    np.testing.assert_allclose(down - start, [-80.0, -30.0], atol=0.3)
    moved = {"VIS": NDData(space["VIS"], wcs=shifted(space["VIS"].wcs, 0.080, 0.030))}
    up = joint_field(aligner()(SkyPair(ground, moved)))[0]
    np.testing.assert_allclose(up - start, [80.0, 30.0], atol=0.3)


def shifted(wcs, east, north):
    new = wcs.deepcopy()
    center = offset_coord(SkyCoord(*wcs.wcs.crval, unit="deg"), east, north)
    new.wcs.crval = [center.ra.deg, center.dec.deg]
    new.wcs.set()
    return new


@pytest.mark.parametrize("turn, flip, dx", [(33.0, False, 0.5), (0.0, True, 0.0), (180.0, False, 0.25)])
def test_pixel_grids_do_not_matter(turn, flip, dx):
    ground, space = images(ground=grid_wcs(0.2, turn, flip, dx))
    value, error = joint_field(aligner()(SkyPair(ground, space)))
    assert (np.abs(value - SHIFT) < 4 * error).all() and (error < 3.0).all()


def test_large_shift_is_captured():
    shift = [4200.0, -2600.0]
    offsets = aligner()(SkyPair(*images(offset=constant(shift))))
    assert offsets.meta["verdict"] == "ok"
    value, error = joint_field(offsets)
    assert (np.abs(value - shift) < 4 * error).all() and (error < 3.0).all()


def test_space_bands_and_one_band_at_a_time():
    ground, space = images()
    space["H_E"] = draw(CENTER, grid_wcs(0.1, dx=0.2), "H_E", scene(1), 77, constant([5.0, -8.0]))
    offsets = aligner()(SkyPair(ground, space), bands=["r", "H_E"])
    value, error = joint_field(offsets, "H_E")
    assert (np.abs(value - [5.0, -8.0]) < 4 * error).all() and (error < 2.0).all()


def test_bands_by_any_name_and_once():
    ground, space = images(bands=("g", "r"))
    space["Y_E"] = draw(CENTER, grid_wcs(0.1, dx=0.2), "H_E", scene(1), 77, constant([5.0, -8.0]))
    pair = SkyPair(ground, space)
    once = aligner()(pair, bands=["r", "Y_E"])
    other = aligner()(pair, bands=["r", "Y", "r", "NIR_Y"])
    assert list(other["band"]) == list(once["band"])
    np.testing.assert_array_equal(other["d_dec_err"], once["d_dec_err"])
    assert other.meta["rosetta"]["options"]["bands"] == ["r", "Y_E"]
    with pytest.raises(ValueError, match="'I_E' cannot be measured against VIS"):
        aligner()(pair, bands=["r", "I_E"])
    with pytest.raises(ValueError, match="bands: 5 cannot be measured"):
        aligner()(pair, bands=["r", 5])


def test_coarse_offset_is_of_the_ground_and_says_so():
    sources = scene(1)
    stray = np.random.default_rng(0).normal(0, 250.0, sources[0].shape)  # no two sources agree
    shift = np.array([1500.0, -900.0])
    ground, space = images(sources=sources, offset=lambda xy: shift + stray)
    space["H_E"] = draw(CENTER, grid_wcs(0.1, dx=0.2), "H_E", sources, 77, constant([5.0, -8.0]))
    pair = SkyPair(ground, space)
    offsets = aligner()(pair)
    assert offsets.meta["verdict"] == "coarse"
    on_ground = offsets["band"] != "H_E"
    assert set(offsets["band"][on_ground]) == {"r", "joint"}
    for column, true in zip(("d_ra_cosdec", "d_dec"), shift, strict=True):
        np.testing.assert_allclose(offsets[column][on_ground].value, true, atol=100)
        assert (offsets[f"{column}_err"][on_ground] == 100 * u.mas).all()
        assert np.isnan(offsets[column][~on_ground]).all() and np.isnan(offsets[f"{column}_err"][~on_ground]).all()
    flagged = {flag: offsets["flags"] & int(flag) > 0 for flag in (Flag.COARSE_ALIGNMENT, Flag.UNALIGNED)}
    np.testing.assert_array_equal(flagged[Flag.COARSE_ALIGNMENT], on_ground)
    np.testing.assert_array_equal(flagged[Flag.UNALIGNED], ~on_ground)
    moved = tangent(aligner().align(pair)["r"].wcs.pixel_to_world(9, 9), CENTER)
    moved = 1e3 * (moved - tangent(ground["r"].wcs.pixel_to_world(9, 9), CENTER))
    np.testing.assert_allclose(moved[0], shift, atol=100)


def refused(ground, space):
    offsets = aligner()(SkyPair(ground, space))
    assert offsets.meta["verdict"] == "abstain" and offsets.meta["reason"]
    assert np.isnan(offsets["d_ra_cosdec"]).all() and np.isnan(offsets["d_dec_err"]).all()
    assert (offsets["flags"] & int(Flag.UNALIGNED) > 0).all()
    solution = AstrometricSolution.from_table(offsets)
    assert not solution.bands and solution.flag == Flag.UNALIGNED
    with pytest.raises(AlignmentError, match="hold no alignment"):
        aligner().correct_wcs(ground["r"].wcs, offsets)
    with pytest.raises(AlignmentError, match="hold no alignment"):
        aligner().align(SkyPair(ground, space))


def test_abstains_on_another_sky():
    ground, _ = images(seed=1)
    _, space = images(seed=2)
    refused(ground, space)


def test_abstains_on_blank_ground():
    blank = tuple(a[:0] for a in scene(1))
    refused(images(sources=blank)[0], images()[1])


@pytest.mark.parametrize("n", [0, 1])
def test_abstains_on_one_source(n):
    refused(*images(sources=tuple(a[:n] for a in scene(1))))


def few(n=3, *, flux=4e3, bands=("g", "r"), moved=0.0):
    """Two or three galaxies, the first of which lies ``moved`` arcsec to the north on the ground."""
    xy, flux = np.array([[-8.0, 3.0], [5.0, 9.0], [2.0, -7.0]])[:n], np.full(n, flux)
    sigma, shape = np.array([0.15, 0.2, 0.25])[:n], np.zeros((n, 2))
    there = xy + np.array([[0, moved], [0, 0], [0, 0]])[:n]
    ground, _ = images(sources=(there, flux, sigma, shape), bands=bands)
    return ground, images(sources=(xy, flux, sigma, shape))[1]


def test_few_sources_that_agree_are_an_answer():
    offsets = aligner()(SkyPair(*few()))
    solution = AstrometricSolution.from_table(offsets)
    assert (solution.verdict, solution.reason) == ("ok", "3 sources in 2 bands")
    for band in ("g", "r", "joint"):
        value, error = joint_field(offsets, band)
        assert solution.kind(band) == "shift" and (np.abs(value - SHIFT) < 3 * error).all() and (error < 12).all()
    rows = offsets[offsets["band"] == "joint"]
    assert (rows["weight"] == 1).sum() == 3 and not (rows["flags"] & int(Flag.UNALIGNED)).any()


def test_two_faint_sources_give_a_coarse_answer():
    offsets = aligner()(SkyPair(*few(2, flux=260.0, bands=("r",))))
    assert offsets.meta["verdict"] == "coarse"
    assert offsets.meta["reason"].startswith("2 sources in 1 band tell the offset to ")
    value, error = joint_field(offsets)
    assert (np.abs(value - SHIFT) < 3 * error).all() and 30 < error.max() < 100
    assert (offsets["flags"] & int(Flag.COARSE_ALIGNMENT) > 0).all() and np.isfinite(offsets["d_dec"]).any()


def test_abstains_on_few_sources_that_do_not_agree():
    pair = few(moved=0.4)
    refused(*pair)
    assert "3 sources in 2 bands do not agree" in aligner()(SkyPair(*pair)).meta["reason"]


def test_a_band_in_another_frame_is_named():
    ground, space = images(bands=("g", "r"), seed=3)
    ground = {**ground, "g": NDData(ground["g"], wcs=shifted(ground["g"].wcs, 0.060, 0.0))}
    offsets = aligner()(SkyPair(ground, space))
    assert offsets.meta["verdict"] == "coarse" and "ground bands disagree: " in offsets.meta["reason"]
    assert "g by 30 mas" in offsets.meta["reason"]  # of the mean of two bands
    for band, true in (("g", SHIFT - [60.0, 0.0]), ("r", SHIFT)):
        value, error = joint_field(offsets, band)
        assert (np.abs(value - true) < 4 * error).all() and (error < 3).all()
    assert joint_field(offsets)[1][0] > 15
    assert (offsets["flags"] & int(Flag.COARSE_ALIGNMENT) > 0).all()


def test_stars_of_another_epoch_move_nothing():
    """All stars moved alike, as a cluster does: without dates they are a frame of their own."""
    xy, flux, sigma, shape = sources = scene(1)
    moved = xy + np.where(sigma == 0, 0.05, 0.0)[:, None]
    ground, _ = images(sources=(moved, flux, sigma, shape))
    _, space = images(sources=sources)
    for image, year in ((ground["r"], 2026.5), (space["VIS"], 2016.5)):
        image.wcs.wcs.mjdobs = 51544.5 + 365.25 * (year - 2000)
    value, error = joint_field(aligner()(SkyPair(ground, space)))
    assert (np.abs(value - SHIFT) < 4 * error).all() and (error < 2.0).all()


YEARS = {"ground": 2026.0, "VIS": 2016.0}
TIE = np.array([-30.0, 45.0])  # mas: catalogue minus header of the space image


@lru_cache
def moving():
    """A pair with dates, whose stars drift by tens of mas per year, and they as a catalogue of epoch 2018."""
    rng = np.random.default_rng(3)
    xy, flux, sigma, shape = scene(1)
    motion = np.where(sigma[:, None] == 0, rng.normal([25.0, -15.0], 20.0, (len(xy), 2)), 0.0)  # mas / yr
    sides = []
    for side, year in YEARS.items():
        sides.append(images(sources=(xy + 1e-3 * motion * (year - 2016), flux, sigma, shape))[side == "VIS"])
        for band, image in sides[-1].items():
            wcs = image.wcs if side == "ground" else shifted(image.wcs, *(-1e-3 * TIE))
            wcs.wcs.mjdobs = 51544.5 + 365.25 * (year - 2000)
            sides[-1][band] = NDData(image, wcs=wcs)
    star, error = sigma == 0, 0.3
    at = from_tangent(xy[star] + 1e-3 * (2 * motion[star] + rng.normal(0, error, (star.sum(), 2))), CENTER)
    catalogue = QTable({
        "ra": at.ra, "dec": at.dec, "pmra": motion[star, 0] * u.mas / u.yr, "pmdec": motion[star, 1] * u.mas / u.yr,
    })
    catalogue["ref_epoch"], catalogue["ra_error"], catalogue["dec_error"] = 2018.0 * u.yr, error * u.mas, error * u.mas
    return *sides, catalogue


def test_moving_stars_pull_the_frame_neither_with_nor_without_a_catalogue():
    ground, space, catalogue = moving()
    pair = SkyPair(ground, space)
    value, error = joint_field(aligner()(pair))
    assert (np.abs(value - (SHIFT - TIE)) < 4 * error).all() and (error < 2.0).all()
    offsets = aligner()(pair, reference=catalogue)
    assert (offsets.meta["verdict"], offsets.meta["reference"]) == ("ok", "catalogue")
    for band, true in (("r", SHIFT), ("joint", SHIFT), ("VIS", TIE)):
        value, error = joint_field(offsets, band)
        assert (np.abs(value - true) < 4 * error).all() and (error < 1.5).all()
    frozen = catalogue.copy()
    frozen["pmra"], frozen["pmdec"] = 0 * u.mas / u.yr, 0 * u.mas / u.yr
    value = joint_field(aligner()(SkyPair(ground), reference=frozen))[0]
    assert np.abs(value - SHIFT).max() > 50  # the motions matter


def test_the_ground_alone_can_be_tied_to_a_catalogue():
    ground, _, catalogue = moving()
    offsets = aligner()(SkyPair(ground), reference=catalogue)
    assert set(offsets["band"]) == {"r", "joint"}
    value, error = joint_field(offsets)
    assert (np.abs(value - SHIFT) < 4 * error).all() and (error < 2.5).all()
    used = offsets[(offsets["band"] == "r") & (offsets["weight"] > 0)]
    assert 0.6 < 1.4826 * np.median(np.abs((used["d_dec"].value - SHIFT[1]) / used["d_dec_err"].value)) < 1.5
    solution = AstrometricSolution.from_table(offsets)
    sky = offsets["sky_centroid"]
    assert solution.seen_position(sky).separation(sky).mas.max() == 0  # the scene is that of the ground's header


def test_a_scene_stays_in_the_header_frame_of_the_space_image():
    ground, space, catalogue = moving()
    solution = AstrometricSolution.from_table(aligner()(SkyPair(ground, space), reference=catalogue))
    again = AstrometricSolution.from_table(QTable(meta=json.loads(json.dumps(solution.to_meta(), default=str))
                                                  | {"center": solution.center}))
    assert again.scene_frame == "VIS" and again.same_as(solution)
    scene_sky = from_tangent([[3.0, -5.0], [-9.0, 8.0]], CENTER)
    seen = scene_sky.spherical_offsets_to(solution.seen_position(scene_sky))
    np.testing.assert_allclose([a.mas.mean() for a in seen], TIE - SHIFT, atol=2.0)
    true = scene_sky.spherical_offsets_to(solution.true_position(scene_sky, "VIS"))
    np.testing.assert_allclose([a.mas.mean() for a in true], TIE, atol=1.5)


def test_both_sides_are_aligned_to_a_catalogue():
    ground, space, catalogue = moving()
    aligned = aligner().align(SkyPair(ground, space), reference=catalogue)
    for band, given, true in (("r", ground["r"], SHIFT), ("VIS", space["VIS"], TIE)):
        old, new = given.wcs.pixel_to_world(50, 60), aligned[band].wcs.pixel_to_world(50, 60)
        np.testing.assert_allclose([a.mas for a in old.spherical_offsets_to(new)], true, atol=2.5)


def test_stars_with_flat_cores_do_not_count():
    ground, _, catalogue = moving()
    level = 0.15 * ground["r"].data.max()
    data = np.minimum(ground["r"].data, level)
    offsets = aligner()(SkyPair({"r": replaced(ground["r"], data)}), reference=catalogue)
    rows = offsets[(offsets["band"] == "r") & np.isfinite(offsets["d_dec"])]
    x, y = (np.rint(v).astype(int) for v in ground["r"].wcs.world_to_pixel(rows["sky_centroid"]))
    flat = ground["r"].data[y, x] > 3 * level
    assert flat.any() and (rows["weight"][flat] == 0).all() and (rows["flags"][flat] & int(Flag.POOR_FIT) > 0).all()
    value, error = joint_field(offsets)
    assert (np.abs(value - SHIFT) < 4 * error).all() and (error < 4.0).all()


def test_abstains_where_the_catalogue_is_not_seen():
    ground, space, catalogue = moving()
    for given, told in ((catalogue[:1], "1 of 1 stars of the reference on the image is of use, and two are needed"),
                        (catalogue[:0], "0 of 0 stars")):
        offsets = aligner()(SkyPair(ground, space), reference=given)
        assert offsets.meta["verdict"] == "abstain" and told in offsets.meta["reason"]
        assert np.isnan(offsets["d_dec"]).all() and (offsets["flags"] & int(Flag.UNALIGNED) > 0).all()
        assert not AstrometricSolution.from_table(offsets).bands


def replaced(image, data, mask=None):
    return NDData(data, unit=u.nJy, wcs=image.wcs, mask=mask, uncertainty=image.uncertainty, psf=image.psf)


def test_masked_pixels_do_not_leak():
    ground, space = images()
    reference = aligner()(SkyPair(ground, space))
    mask = np.zeros(ground["r"].data.shape, bool)
    mask[60:66, :] = True
    results = []
    for value in (0.0, 1e6):
        data = np.where(mask, value, ground["r"].data)
        results.append(aligner()(SkyPair({"r": replaced(ground["r"], data, mask)}, space)))
    for column in ("d_ra_cosdec", "d_dec", "flags"):
        np.testing.assert_array_equal(results[0][column], results[1][column])
    assert (results[0]["flags"] & int(Flag.MASKED) > 0).sum() > (reference["flags"] & int(Flag.MASKED) > 0).sum()


def trail(data, xy):
    """A satellite, across the image."""
    i = np.arange(len(data))
    for w in range(-2, 3):
        data[i, np.clip(i + w, 0, len(data) - 1)] += 300.0


def cosmic_rays(data, xy):
    """Tracks of a few pixels through the cores of sources."""
    for x, y in xy[::8].astype(int):
        data[y - 1 : y + 2, x + np.arange(-1, 2)] += 400.0 * np.eye(3)


def saturated(data, xy):
    """A star cut off at full well that bleeds along its column."""
    x, y = xy[0].astype(int)
    yy, xx = np.mgrid[: data.shape[0], : data.shape[1]]
    data += 2e4 * np.exp(-0.5 * ((xx - x - 0.4) ** 2 + (yy - y + 0.3) ** 2) / 1.6**2)
    data[:, x] += 3e3 * (np.abs(yy[:, x] - y) < 30)
    np.minimum(data, 3e3, out=data)


def ghost(data, xy):
    """A bright disc with a sharp edge, far from any centre of symmetry of the sources."""
    yy, xx = np.mgrid[: data.shape[0], : data.shape[1]]
    data += 40.0 * (np.hypot(xx - 120, yy - 70) < 45)


@pytest.mark.parametrize("defect", [trail, cosmic_rays, saturated, ghost])
@pytest.mark.parametrize("side", ["ground", "space"])
def test_a_defect_in_one_survey_moves_nothing(defect, side):
    """Unmasked: nothing tells the aligner but the pixels."""
    ground, space = images()
    image = {"ground": ground["r"], "space": space["VIS"]}[side]
    data = image.data.copy()
    header = from_tangent(scene(1)[0] - 1e-3 * SHIFT * (side == "ground"), CENTER)
    xy = np.rint(np.stack(image.wcs.world_to_pixel(header), -1))
    defect(data, xy[(np.abs(xy - len(data) / 2) < len(data) / 2 - 8).all(1)])
    hit = replaced(image, data)
    pair = SkyPair({"r": hit}, space) if side == "ground" else SkyPair(ground, {"VIS": hit})
    value, error = joint_field(aligner()(pair))
    assert (np.abs(value - SHIFT) < 4.5 * error).all() and (error < 4.0).all()


def test_a_star_that_moved_is_flagged_and_moves_nothing():
    xy, flux, sigma, shape = sources = scene(1)
    star = np.flatnonzero((sigma == 0) & (np.abs(xy) < 15).all(1))
    star = star[np.argmax(flux[star])]
    moved = xy.copy()
    moved[star] += [0.15, -0.10]
    ground, _ = images(sources=(moved, flux, sigma, shape))
    _, space = images(sources=sources)
    offsets = aligner()(SkyPair(ground, space))
    rows = offsets[offsets["band"] == "joint"]
    nearest = rows["sky_centroid"].separation(from_tangent(xy[star : star + 1], CENTER)[0]).argmin()
    assert rows["flags"][nearest] & int(Flag.OUTLIER) and rows["weight"][nearest] < 0.1
    assert np.median(rows["weight"]) == 1
    value, error = joint_field(offsets)
    assert (np.abs(value - SHIFT) < 4 * error).all() and (error < 2.0).all()


def lopsided(psf):
    """A PSF 15 % too wide with a one-sided wing of 3 %, as somebody may believe it to be."""
    n = len(psf) // 2
    y, x = np.mgrid[-n : n + 1, -n : n + 1]
    wide = (1.15 * FWHM["r"] / 2.3548 / 0.2) ** 2
    stamp = [np.exp(-0.5 * ((x - d) ** 2 + y**2) / wide) for d in (0.0, 2.0)]
    return 0.97 * stamp[0] + 0.03 * stamp[1]


@pytest.mark.parametrize("claim", ["right", "wrong", "none"])
def test_a_wrong_psf_biases_nothing(claim):
    ground, space = images()
    image = ground["r"]
    psf = {"right": image.psf, "wrong": lopsided(image.psf), "none": None}[claim]
    ground = {"r": NDData(image.data, unit=u.nJy, wcs=image.wcs, uncertainty=image.uncertainty, psf=psf)}
    offsets = aligner()(SkyPair(ground, space))
    value, error = joint_field(offsets)
    assert (np.abs(value - SHIFT) < 4 * error).all() and (error < 1.0).all()
    assert np.mean(offsets["flags"] & int(Flag.POOR_FIT) > 0) < 0.05


def test_point_sources_are_known():
    pair = SkyPair(*images())
    found = measurement.find_sources(detected(pair, DetectionConfig()), MeasurementConfig())
    xy, flux, sigma, _ = scene(1)
    nearest, distance, _ = found.table["sky_centroid"].match_to_catalog_sky(from_tangent(xy, CENTER))
    apart = np.hypot(*(xy[:, None] - xy).transpose(2, 0, 1)) + 99 * np.eye(len(xy))
    clear = (distance < 0.1 * u.arcsec) & (flux[nearest] > 2e3) & (apart.min(1)[nearest] > 1.5)
    assert clear.sum() > 15
    np.testing.assert_array_equal(found.point[clear], sigma[nearest][clear] == 0)


def header_pixels(wcs, true, offsets, band="joint"):
    """Pixels of sources of true positions: the header position is the true one less the offset there."""
    shape = np.shape(true)
    header = AstrometricSolution.from_table(offsets).ground_position(true.ravel(), band)
    return wcs.world_to_pixel(header.reshape(shape))


@pytest.mark.parametrize("form, kind, model, limit", [
    ("tan", "shift", "auto", 0.02), ("sip", "curved", "polynomial3", 0.03), ("lookup", "curved", "auto", 0.03),
])
def test_corrected_wcs_holds_the_field_and_survives_fits(form, kind, model, limit, tmp_path):
    offsets = offsets_of(kind, model)
    wcs = grid_wcs(0.2, dx=0.37)
    before = wcs.to_header(relax=True)
    new = aligner().correct_wcs(wcs, offsets, form=form)
    assert wcs.to_header(relax=True) == before
    expected = from_tangent(np.stack(np.meshgrid(*2 * [np.linspace(-19, 19, 25)]), -1), CENTER)
    x, y = header_pixels(wcs, expected, offsets)
    path = tmp_path / "wcs.fits"
    if form == "lookup":
        hdus = new.to_fits(relax=True)
        hdus[0].data = np.zeros((192, 192), np.float32)
        hdus.writeto(path)
    else:
        fits.writeto(path, np.zeros((192, 192), np.float32), new.to_header(relax=True))
    with fits.open(path) as hdus:
        for candidate in (new, WCS(hdus[0].header, hdus)):
            assert candidate.pixel_to_world(x, y).separation(expected).mas.max() < limit
            back = np.stack(candidate.world_to_pixel(expected))
            np.testing.assert_allclose(back, [x, y], atol=1e-3)


def test_sip_states_how_well_it_holds_a_process():
    pair = SkyPair(*images(offset=curved, bands=("g", "r")))
    offsets, image = offsets_of("curved"), aligner().align(pair)["r"]
    assert AstrometricSolution.from_table(offsets).kind() == "gp"
    x, y = (p.ravel() for p in np.meshgrid(*2 * [np.linspace(0, 191, 25)]))
    true = image.wcs.pixel_to_world(x, y)
    apart = np.hypot(*(np.stack(header_pixels(pair.ground["r"].wcs, true, offsets, "r")) - [x, y])) * 200.0  # mas
    assert 0.3 * image.meta["ALIGNRES"] < apart.max() < 1.1 * image.meta["ALIGNRES"]
    assert image.meta["ALIGNRES"] < image.meta["ALIGNSIG"]


def test_a_wcs_in_another_equatorial_frame_is_corrected_alike():
    header = grid_wcs(0.2).to_header()
    header.remove("RADESYS", ignore_missing=True)
    header["EQUINOX"] = 2000.0
    x, y = np.array([3.0, 100.0]), np.array([180.0, 90.0])
    new, same = (aligner().correct_wcs(w, offsets_of("curved")) for w in (WCS(header), grid_wcs(0.2)))
    assert new.pixel_to_world(x, y).icrs.separation(same.pixel_to_world(x, y)).mas.max() < 30  # FK5 is not ICRS
    assert aligner().field(offsets_of("curved"), WCS(header), (192, 192)).shape == (2, 192, 192)


def test_aligned_images_keep_everything_in_a_file(tmp_path):
    ground, space = images(offset=curved)
    cards = fits.Header([("OBSERVER", "me"), ("COMMENT", "a"), ("COMMENT", "b"), ("HIERARCH long keyword", 3)])
    ground["r"].meta = {**cards, "planes": {"BAD": 0}}
    image = aligner().align(SkyPair(ground, space))["r"]
    image.write(tmp_path / "r.fits")
    plane = aligner().field(offsets_of("curved"), grid_wcs(0.2), (192, 192))
    plane.write(tmp_path / "field.fits")
    assert image.meta["OBSERVER"] == "me" and CCDData.read(tmp_path / "field.fits").meta["PLANE2"] == "d_dec"
    back = CCDData.read(tmp_path / "r.fits")
    np.testing.assert_array_equal(back.data, image.data)
    np.testing.assert_array_equal(back.mask, image.mask)
    np.testing.assert_array_equal(back.uncertainty.array, image.uncertainty.array)
    np.testing.assert_array_equal(back.psf, image.psf)
    assert back.unit == image.unit and back.uncertainty.uncertainty_type == "var"
    for key in ("ALIGN", "ALIGNMOD", "ALIGNFRM", "ALIGNRES", "ALIGNSIG"):
        assert back.meta[key] == image.meta[key]
    x, y = np.array([3.0, 180.0]), np.array([90.0, 5.0])
    assert back.wcs.pixel_to_world(x, y).separation(image.wcs.pixel_to_world(x, y)).mas.max() < 1e-3


def test_tan_keeps_the_sip_terms_of_its_input():
    wcs = grid_wcs(0.2, dx=0.37)
    curved_input = aligner().correct_wcs(wcs, offsets_of("curved"), form="sip")
    new = aligner().correct_wcs(curved_input, offsets_of("shift"), form="tan")
    x, y = np.array([3.0, 100.0, 188.0]), np.array([180.0, 90.0, 5.0])
    true = new.pixel_to_world(x, y)
    back = header_pixels(curved_input, true, offsets_of("shift"))
    assert curved_input.pixel_to_world(*back).separation(curved_input.pixel_to_world(x, y)).mas.max() < 0.05


def test_curved_field_on_top_of_a_large_shift():
    """The field belongs to true positions: several arcsec away from the header's it is another one."""
    def offset(xy):
        return [4200.0, -2600.0] + 20 * np.stack([np.sin(xy[:, 0] / 8), np.cos(xy[:, 1] / 8)], -1)

    sources = scene(3, n=120)
    ground, space = images(offset=offset, sources=sources)
    wcs = ground["r"].wcs
    offsets = aligner()(SkyPair(ground, space))
    xy = sources[0]
    true = from_tangent(xy, CENTER)
    new = aligner().correct_wcs(wcs, offsets, form="lookup")
    # The images' own truth: where a source was drawn must come out where it is.
    drawn = wcs.world_to_pixel(from_tangent(xy - 1e-3 * offset(xy), CENTER))
    on_image = (np.abs(np.stack(drawn) - 95.5) < 90).all(0)
    apart = new.pixel_to_world(*drawn).separation(true).mas[on_image]
    assert np.median(apart) < 1.5
    # And far below its errors, the field that was fitted.
    x, y = (p[on_image] for p in header_pixels(wcs, true, offsets))
    assert new.pixel_to_world(x, y).separation(true[on_image]).mas.max() < 0.1
    plane = aligner().field(offsets, wcs, (192, 192))
    x, y = np.rint(x).astype(int), np.rint(y).astype(int)
    corrected = offset_coord(wcs.pixel_to_world(x, y), *(1e-3 * plane.data[:, y, x].astype(float)))
    assert corrected.separation(new.pixel_to_world(x, y)).mas.max() < 0.2
    # Where nothing tells the size of the image, the sources do, at their places on it.
    wcs.pixel_shape = None
    new = aligner().correct_wcs(wcs, offsets, form="lookup")
    found = offsets["sky_centroid"]
    assert new.pixel_shape is None
    assert new.pixel_to_world(*header_pixels(wcs, found, offsets)).separation(found).mas.max() < 0.1


def test_the_wcs_is_fitted_over_the_image_at_hand():
    pair = SkyPair(*images(offset=curved))
    expected = aligner().align(pair)["r"].meta["ALIGNRES"]
    for shape in ((19200, 19440), None):  # of the mosaic it was cut from; or not known
        ground, space = images(offset=curved)
        wcs = ground["r"].wcs.deepcopy()
        wcs.pixel_shape = shape
        cut = NDData(ground["r"], wcs=wcs)
        image = aligner().align(SkyPair({"r": cut}, space))["r"]
        assert image.wcs.pixel_shape == (192, 192)
        np.testing.assert_allclose(image.meta["ALIGNRES"], expected, rtol=1e-3)


def test_any_wcs_can_be_corrected():
    gwcs = pytest.importorskip("gwcs")
    from astropy import coordinates
    from astropy.modeling import models

    wcs = grid_wcs(0.2)
    chain = (
        models.Shift(-95.5) & models.Shift(-95.5)
        | models.AffineTransformation2D(wcs.wcs.cd)
        | models.Pix2Sky_TAN()
        | models.RotateNative2Celestial(CENTER.ra.deg, CENTER.dec.deg, 180)
    )
    frame = gwcs.coordinate_frames.CelestialFrame(reference_frame=coordinates.ICRS())
    general = gwcs.WCS(chain, output_frame=frame)
    general.bounding_box = ((-0.5, 191.5), (-0.5, 191.5))
    offsets = offsets_of()
    new = aligner().correct_wcs(general, offsets)
    x, y = np.array([10.0, 150.0]), np.array([20.0, 100.0])
    sky = general.pixel_to_world(x, y)
    moved = tangent(new.pixel_to_world(x, y), CENTER) - tangent(sky, CENTER)
    np.testing.assert_allclose(1e3 * moved, np.tile(joint_field(offsets)[0], (2, 1)), atol=0.1)


def test_align_and_field():
    pair = SkyPair(*images(bands=("g", "r")))
    aligned = aligner().align(pair)
    assert set(aligned) == {"g", "r"}
    image = aligned["r"]
    np.testing.assert_array_equal(image.data, pair.ground["r"].data)
    assert image.psf is not None and image.meta["ALIGNRES"] < 0.1
    sky = image.wcs.pixel_to_world(90.0, 100.0)
    moved = tangent(sky, CENTER) - tangent(pair.ground["r"].wcs.pixel_to_world(90.0, 100.0), CENTER)
    np.testing.assert_allclose(1e3 * moved[0], SHIFT, atol=5)
    offsets = offsets_of("curved")
    plane = aligner().field(offsets, pair.ground["r"].wcs, (192, 192))
    assert plane.data.shape == (2, 192, 192) and plane.unit == u.mas
    header = pair.ground["r"].wcs.pixel_to_world(50.0, 120.0)
    true = offset_coord(header, *(1e-3 * plane.data[:, 120, 50]))
    solution = AstrometricSolution.from_table(offsets)
    np.testing.assert_allclose(plane.data[:, 120, 50], solution.offset_at(true)[0], atol=0.1)
    np.testing.assert_allclose(plane.uncertainty.array[:, 120, 50], solution.sigma_at(true)[0], rtol=0.05)


@pytest.mark.parametrize("end", ["ecsv", "parquet"])
def test_the_solution_survives_a_file_of_the_table(end, tmp_path):
    if end == "parquet":
        for needed in ("pyarrow", "pandas"):  # by astropy
            pytest.importorskip(needed, reason="Parquet support is not installed")
    offsets = offsets_of("curved")
    offsets.write(tmp_path / f"offsets.{end}")
    back = QTable.read(tmp_path / f"offsets.{end}")
    assert back["d_dec"].unit == u.mas
    before, after = (AstrometricSolution.from_table(table) for table in (offsets, back))
    assert after.same_as(before) and before.same_as(after)
    assert (after.verdict, after.reason, after.bands, after.box) == ("ok", "", before.bands, before.box)
    place = from_tangent([[3.0, 4.0]], CENTER)
    for band in ("g", "joint"):
        np.testing.assert_array_equal(after.offset_at(place, band), before.offset_at(place, band))
        np.testing.assert_array_equal(after.sigma_at(place, band), before.sigma_at(place, band))
    assert not after.same_as(AstrometricSolution.from_table(offsets_of("shift")))


def test_the_solution_serves_as_offsets():
    offsets = offsets_of("curved")
    solution, wcs = AstrometricSolution.from_table(offsets), grid_wcs(0.2)
    x, y = np.array([3.0, 100.0]), np.array([180.0, 90.0])
    for form in ("sip", "lookup"):
        one, other = (aligner().correct_wcs(wcs, given, form=form) for given in (offsets, solution))
        assert one.pixel_to_world(x, y).separation(other.pixel_to_world(x, y)).mas.max() == 0
    one, other = (aligner().field(given, wcs, (192, 192)).data for given in (offsets, solution))
    np.testing.assert_array_equal(one, other)


def test_bad_arguments():
    pair = SkyPair(*images())
    with pytest.raises(ValueError, match="no space side"):
        aligner()(SkyPair(images()[0], None))
    with pytest.raises(TypeError, match="reference must be a table with sky_centroid"):
        aligner()(pair, reference="gaia.ecsv")
    with pytest.raises(ValueError, match="'q' cannot be measured against VIS"):
        aligner()(pair, bands=["q"])
    with pytest.raises(ValueError, match="model must be 'auto' or one of"):
        aligner()(pair, model="spline")
    with pytest.raises(ValueError, match="form must be one of"):
        aligner().correct_wcs(grid_wcs(0.2), offsets_of(), form="tpv")
    with pytest.raises(TypeError, match="wcs must be an APE-14 WCS"):
        aligner().correct_wcs("header", offsets_of())
    with pytest.raises(ValueError, match="offsets must be the table that LearnedAligner returns"):
        aligner().correct_wcs(grid_wcs(0.2), QTable())
    with pytest.raises(TypeError, match="offsets must be the table that LearnedAligner returns"):
        aligner().field(None, grid_wcs(0.2), (192, 192))
    with pytest.raises(TypeError, match="seed"):
        aligner().fit([pair])


def test_settings_travel_with_the_weights():
    field = replace(AlignerConfig().measurement.field, margin=4.0)
    config = replace(AlignerConfig(), coarse_error=80.0, measurement=measurement.MeasurementConfig(field=field))
    document = json.loads(json.dumps(asdict(config)))
    assert config_of(AlignerConfig, document, "a.safetensors") == config
    document["measurement"]["field"]["smoothness"] = 1.0
    told = "a.safetensors: measurement: field is of another architecture: settings unknown smoothness"
    with pytest.raises(CheckpointError, match=told):
        config_of(AlignerConfig, document, "a.safetensors")


def test_settings_decide_results():
    pair, strict = SkyPair(*images()), LearnedAligner(aligner().encoder)
    strict._config = replace(AlignerConfig(), measurement=measurement.MeasurementConfig(min_snr=50.0))
    few, many = ((head(pair)["weight"] > 0).sum() for head in (strict, aligner()))
    assert 0 < few < many


def test_either_wcs_is_asked_a_few_times_only(counting_wcs):
    """Once per band and list of sources, not once per step of the fit."""
    ground, space = images()
    pair = SkyPair(ground, space)
    planes = dict(band_images(pair))
    found = measurement.find_sources(detected(pair, DetectionConfig()), MeasurementConfig())
    assert found.jacobian.shape == (len(found.east_north), 2, 2)
    asked = []
    for band, image in planes.items():
        planes[band] = replace(image, wcs=counting_wcs(image.wcs, asked))
    found = replace(found, reference=planes["VIS"])
    assert found.jacobian.shape == (len(found.east_north), 2, 2) and len(asked) == 1
    measured = measurement.measure_band(planes["r"], found, np.zeros(2))
    assert measured.usable.sum() > 20 and len(asked) <= 6


class Skies:
    """A lazy sequence of pairs in which every third source (the stars) has moved between the epochs."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        xy, flux, sigma, shape = scene(50 + index)
        motion = np.random.default_rng(index).normal(0, 40.0, xy.shape) * (sigma == 0)[:, None]
        moved = (xy + 1e-3 * motion, flux, sigma, shape)
        return SkyPair(
            {"r": draw(CENTER, grid_wcs(0.2, dx=0.37), "r", moved, index, constant(SHIFT))},
            {"VIS": draw(CENTER, grid_wcs(0.1), "VIS", (xy, flux, sigma, shape), 90 + index, constant([0, 0]))},
        )


@pytest.mark.parametrize("with_truth", [True, False])
def test_fit_learns_the_scatter(with_truth, tmp_path):
    pairs = Skies(3)
    truth = None
    if with_truth:
        truth = []
        for index in range(3):
            xy = scene(50 + index)[0]
            table = QTable({"sky_centroid": from_tangent(xy, CENTER)})
            table["d_ra_cosdec"], table["d_dec"] = (np.full(len(xy), s) * u.mas for s in SHIFT)
            truth.append(table)
    head = LearnedAligner(aligner().encoder)
    with pytest.raises(ValueError, match="has not been trained"):
        head.save(tmp_path / "aligner.safetensors")
    assert head.fit(pairs, truth, seed=1, checkpoint=tmp_path / "rows") is head
    report = head._provenance
    assert report["loss_with"] < report["loss_without"]
    # A resumed run gives the same head; a saved one answers alike.
    again = LearnedAligner(aligner().encoder).fit(pairs, truth, seed=1, checkpoint=tmp_path / "rows")
    with pytest.raises(ValueError, match="checkpoint 'rows' is of other pairs: it holds rows of 3, here are 2"):
        head.fit(Skies(2), truth and truth[:2], seed=1, checkpoint=tmp_path / "rows")
    with pytest.raises(ValueError, match="'rows' is of another head, encoder, seed or kind of truth, or of other"):
        head.fit([Skies(1)[0].cutout(CENTER, 20 * u.arcsec), *3 * [None]][:3], truth, seed=1,
                 checkpoint=tmp_path / "rows")
    head.save(tmp_path / "aligner.safetensors")
    loaded = LearnedAligner.from_pretrained(tmp_path / "aligner.safetensors", encoder=aligner().encoder, device="cpu")
    pair = Skies(9)[8]
    results = [a(pair) for a in (head, again, loaded)]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0]["d_dec_err"], other["d_dec_err"])
    plain = aligner()(pair)
    np.testing.assert_array_equal(results[0]["d_dec"], plain["d_dec"])  # it cannot move a source
    # The moving sources are the points: on sky that it never saw, they are the ones that are given larger errors.
    xy, _, sigma, _ = scene(58)
    nearest, distance, _ = plain["sky_centroid"].match_to_catalog_sky(from_tangent(xy, CENTER))
    known = (plain["band"] == "r") & np.isfinite(plain["d_dec"]) & (distance < 0.2 * u.arcsec)
    error = results[0]["d_dec_err"].to_value(u.mas)
    star = sigma[nearest] == 0
    assert np.median(error[known & star]) > 1.3 * np.median(error[known & ~star])
