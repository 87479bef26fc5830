# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The deblender on small scenes of Gaussians drawn on the spot."""

import json
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import NDData, VarianceUncertainty
from astropy.table import MaskedColumn, QTable
from astropy.utils.exceptions import AstropyUserWarning
from astropy.utils.masked import Masked
from astropy.wcs import WCS, Sip
from astropy.wcs.wcsapi import HighLevelWCSWrapper, SlicedLowLevelWCS
from scipy import sparse

from rosetta import AstrometricSolution, Flag, JEPADeblender, SkyPair
from rosetta.astrometry.field import constant
from rosetta.deblending import blend_probability, tiles
from rosetta.deblending.band_fit import RINGS
from rosetta.deblending.config import DeblenderConfig, MergingConfig
from rosetta.deblending.deblender import occupants
from rosetta.deblending.engine.design import Design
from rosetta.deblending.engine.rendering import render
from rosetta.deblending.features import source_features
from rosetta.deblending.job_list import JobList
from rosetta.deblending.residual_search import confirmed
from rosetta.deblending.sources import Sources
from rosetta.detection.detection import DetectionConfig, detected, ground_stack, point_variance
from rosetta.encoding.encoder import CrossSurveyEncoder
from rosetta.encoding.network import EncoderConfig
from rosetta.images.image import band_images
from rosetta.images.noise import significance
from rosetta.images.positions import from_tangent, offset_coord
from rosetta.images.psf import PSF
from rosetta.training.loop import TrainerConfig

CENTER = SkyCoord(53.1, -28.1, unit="deg")
FWHM = {"g": 0.8, "i": 0.7, "VIS": 0.2, "H_E": 0.5}
SIGMA = {"g": 4.0, "i": 5.0, "VIS": 4.0, "H_E": 12.0}
SIZE = 19.2  # arcsec
LISTED = {"neighbours": "listed", "recentre": True}  # nothing but the given sources, whose positions are fitted


@lru_cache
def deblender():
    config = EncoderConfig(
        dim=16, depth=1, heads=2, proj_dim=8, predictor_dim=12, predictor_depth=1, predictor_heads=2
    )
    return JEPADeblender(CrossSurveyEncoder(config=config, device="cpu"))


def gaussian_psf(fwhm, scale):
    half = int(np.ceil(3 * fwhm / scale))
    y, x = np.indices((2 * half + 1, 2 * half + 1)) - half
    psf = np.exp(-0.5 * (x**2 + y**2) / (fwhm / 2.3548 / scale) ** 2)
    return psf / psf.sum()


def light(radius, ratio=0.7):
    """A disc of three Gaussians, elongated north-south."""
    out = np.zeros((3, 6))
    out[:, 0] = 0.2, 0.5, 0.3
    out[:, 3], out[:, 5] = (radius * np.array([0.4, 0.9, 1.5])) ** 2 * np.array([[ratio], [1 / ratio]])
    return out


def make_pair(xy, flux, mixtures, *, sides=("ground", "space"), seed=0, mask=None, psf_width=1.0):
    """Sources at (east, north) arcsec ``xy``; flat spectra. The PSF given is ``psf_width`` times as wide as true."""
    rng, images = np.random.default_rng(seed), {}
    for band, fwhm in FWHM.items():
        scale = 0.2 if band in "gi" else 0.1
        n = round(SIZE / scale)
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = [CENTER.ra.deg, CENTER.dec.deg]
        wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
        wcs.wcs.crpix = [(n + 1) / 2 + 0.3, (n + 1) / 2 - 0.2]
        psf = gaussian_psf(fwhm, scale)
        pixel = np.stack(wcs.world_to_pixel(from_tangent(xy, CENTER)), -1)
        jacobian = np.tile(np.diag([-1 / scale, 1 / scale]), (len(xy), 1, 1))
        data = Design(render(mixtures, pixel, jacobian, PSF(psf)), (n, n), len(xy)).image(flux)
        data = data + rng.normal(0, SIGMA[band], (n, n))
        images[band] = NDData(
            data, unit=u.nJy, wcs=wcs, psf=gaussian_psf(psf_width * fwhm, scale),
            uncertainty=VarianceUncertainty(np.full((n, n), SIGMA[band] ** 2)),
            mask=None if mask is None else mask(band, n),
        )
    ground = {b: images[b] for b in "gi"} if "ground" in sides else None
    space = {b: images[b] for b in ("VIS", "H_E")} if "space" in sides else None
    return SkyPair(ground, space)


XY = np.array([[0.0, 0.0], [0.9, 0.3], [-5.0, 4.0], [5.0, -5.0]])
FLUX = np.array([6000.0, 4000.0, 5000.0, 3000.0])
MIXTURES = np.stack([light(0.3), light(0.2, 1.2), light(0.4), np.eye(1, 6).repeat(3, 0) / 3])


@lru_cache
def scene():
    return deblender()(make_pair(XY, FLUX, MIXTURES))


def match(found, xy):
    index, separation, _ = from_tangent(xy, CENTER).match_to_catalog_sky(found["sky_centroid"])
    assert separation.max() < 0.1 * u.arcsec
    return index


def test_detection_finds_the_blend():
    found = detected(make_pair(XY, FLUX, MIXTURES), DetectionConfig())
    match(found.table, XY)
    assert len(found) == 4 and found.image.band == "VIS"
    np.testing.assert_array_equal(found.table["label"], [1, 2, 3, 4])
    assert (np.diff(found.table["snr"]) < 0).all()
    x, y = (np.rint(found.table[name]).astype(int) for name in "xy")
    np.testing.assert_array_equal(found.segments[y, x], found.table["label"])


def test_noise_of_shallow_coverage_is_no_source():
    """A strip that was seen a twenty-fifth as long, and says so, next to deep sky."""
    far = XY[[0, 3]]
    pair = make_pair(far, FLUX[[0, 3]], MIXTURES[[0, 3]], sides=("ground",))
    rng, images = np.random.default_rng(1), {}
    for band, image in pair.ground.items():
        ny, _ = image.data.shape
        data, variance = image.data.copy(), image.uncertainty.array.copy()
        variance[:, :20] *= 25.0
        data[:, :20] += rng.normal(0, np.sqrt(24.0) * SIGMA[band], (ny, 20))
        images[band] = NDData(data, unit=u.nJy, wcs=image.wcs, psf=image.psf, uncertainty=VarianceUncertainty(variance))
    found = detected(SkyPair(images, None), DetectionConfig())
    match(found.table, far)
    assert len(found) == 2


def test_the_border_row_of_an_equal_grid_is_stacked():
    pair = make_pair(XY, FLUX, MIXTURES, sides=("ground",))
    both = ground_stack(list(band_images(pair).values()))
    assert np.isclose(both.variance, 1.0 / (1.0 / SIGMA["g"] ** 2 + 1.0 / SIGMA["i"] ** 2), rtol=1e-3).all()


def test_fluxes_of_a_blend_are_recovered_in_every_band():
    result = scene()
    index = match(result.to_table(), XY)
    assert len(result) == 4
    for band in result.bands:
        error = np.sqrt(result.covariance(band).diagonal())[index]
        pull = (result.flux(band).value[index] - FLUX) / np.hypot(error, 0.02 * FLUX)
        assert np.abs(pull).max() < 3.5, band


@lru_cache
def knotted():
    """A disc with two arms of knots, a quarter of its light, and a smooth galaxy that stands apart."""
    turn = np.linspace(0.4, 2.6, 12)
    arm = 0.45 * turn[:, None] * np.stack([np.cos(turn), np.sin(turn)], -1)
    places = np.concatenate([[[0.0, 0.0]], arm, -arm, [[5.0, -5.0]]])
    lights = np.stack([light(0.7, 1.0)] + [light(0.15, 1.0)] * 24 + [light(0.3)])
    return make_pair(places, np.r_[30000.0, np.full(24, 400.0), 2000.0], lights), places


def test_a_galaxy_and_its_knots_are_one_source(monkeypatch):
    pair, places = knotted()
    result = deblender()(pair)
    assert len(result) == 2
    table = result.to_table()
    whole, other = match(table, places[[0, -1]])
    for band in result.bands:
        error = np.sqrt(result.covariance(band).diagonal())
        for row, known in ((whole, 39600.0), (other, 2000.0)):
            assert abs(result.flux(band)[row].value - known) < 3.5 * np.hypot(error[row], 0.01 * known), (band, known)
    template = result.template(table["label"][whole])
    assert template.data.sum() == pytest.approx(1.0, abs=5e-3) and template.data.min() > -1e-6
    for band in result.bands:
        model = result.model(table["label"][whole], band)
        assert model.data.sum() == pytest.approx(result.flux(band)[whole].value, rel=2e-3)
    monkeypatch.setattr(deblender(), "_config", DeblenderConfig(merging=MergingConfig(inside=np.inf)))
    shredded = deblender()(pair)
    assert len(shredded) == 5 and shredded.flux("i").value.max() < 31000.0


def test_no_source_is_larger_than_the_image_can_tell():
    """Sky that was not subtracted, in an image of 19", at a place where there is no source."""
    clean, _ = knotted()
    images = {
        band: NDData(
            one.data + 3.0 * SIGMA[band], unit=u.nJy, wcs=one.wcs, psf=clean.psf(band), uncertainty=one.uncertainty
        )
        for band, one in clean.space.items()
    }
    with pytest.warns(AstropyUserWarning, match="subtract the sky"):
        scene = deblender()(SkyPair(None, images), from_tangent(np.array([[-3.0, 4.0]]), CENTER))
    table = scene.to_table()
    assert table["half_light_radius"][0] < 0.2 * SIZE * u.arcsec * 1.001


def test_given_positions_stay_sources_of_their_own():
    pair, places = knotted()
    result = deblender()(pair, from_tangent(places, CENTER), **LISTED)
    assert len(result) == len(places)


def test_table_columns_and_blendedness():
    table = scene().to_table()
    index = match(table, XY)
    assert np.all(table["blendedness"][index[:2]] > 0.1) and np.all(table["blendedness"][index[2:]] < 0.02)
    assert table["half_light_radius"][index[3]] < 0.08 * u.arcsec  # a star
    assert table["e1"][index[0]] < -0.15  # elongated north-south
    assert np.isnan(table["blend_probability"]).all()  # not trained
    assert (table["n_band"] == 4).all()


def test_weights_do_not_know_the_sources_photons():
    flat = band_images(make_pair(XY, FLUX, MIXTURES))["VIS"]
    light = np.maximum(flat.data, 0)
    plane = flat.with_pixels(flat.data, (flat.variance + 2 * light).astype("f4"))
    np.testing.assert_allclose(plane.sky_weight, 1 / SIGMA["VIS"] ** 2, rtol=0.1)
    bad = plane.variance.copy()
    bad[3, 4], bad[5, 6] = np.inf, 1e4
    weight = plane.with_pixels(plane.data, bad).sky_weight
    assert weight[3, 4] == 0 and weight[5, 6] == pytest.approx(1e-4)


def test_models_sum_to_fluxes_and_residuals_are_noise():
    result = scene()
    for band in result.bands:
        for row, label in enumerate(result.labels):
            assert result.model(label, band).data.sum() == pytest.approx(result.flux(band)[row].value, rel=1e-3)
        residual = result.residual(band)
        assert residual.unit == u.nJy
        assert np.std(residual.data) == pytest.approx(SIGMA[band], rel=0.06)
        image = result.model(None, band).data + result.sky(band).data + residual.data
        np.testing.assert_allclose(image, band_images(result.embedding.pair)[band].data, atol=1e-2)


def with_sky(pair, level, slope):
    """The pair under a sky of ``level``, rising by ``slope`` from its middle to the right border, in sigma."""
    sides = {}
    for side, band, image in pair.images():
        n = len(image.data)
        sky = SIGMA[band] * (level + slope * np.linspace(-1, 1, n))
        sides.setdefault(side, {})[band] = NDData(
            image.data + sky, unit=u.nJy, wcs=image.wcs, psf=image.psf_anywhere, uncertainty=image.uncertainty
        )
    return SkyPair(sides["ground"], sides["space"])


def test_what_is_left_of_the_sky_is_found_with_its_error():
    """Stars: the shape of a galaxy, which is fitted to the images as they are, takes some of the sky."""
    pair = with_sky(make_pair(XY, FLUX, MIXTURES[[3, 3, 3, 3]]), 0.2, 0.1)
    places = from_tangent(XY, CENTER)
    how = {"neighbours": "listed", "recentre": True}
    results = {background: deblender()(pair, places, background=background, **how) for background in ("plane", None)}
    pulls = {background: [] for background in results}
    for background, result in results.items():
        for band in result.bands:
            error = np.sqrt(result.covariance(band).diagonal() + (0.01 * FLUX) ** 2)
            pulls[background] += list((result.flux(band).value - FLUX) / error)
            image = band_images(pair)[band].data
            whole = result.model(None, band).data + result.sky(band).data + result.residual(band).data
            np.testing.assert_allclose(whole, image, atol=1e-2)
    assert np.abs(pulls["plane"]).max() < 3.5
    assert np.mean(pulls[None]) > np.mean(pulls["plane"]) + 0.3  # all are too bright
    skies = json.loads(json.dumps(results["plane"].meta["sky"]))
    for band, sky in skies.items():
        n = results["plane"].sky(band).shape[0]
        assert abs(sky["level"][0] - 0.2 * SIGMA[band]) < 4 * sky["level_err"][0]
        assert abs(sky["slope_x"][0] - 0.2 * SIGMA[band] / n) < 4 * sky["slope_x_err"][0]
        assert abs(sky["slope_y"][0]) < 4 * sky["slope_y_err"][0]
        assert sky["level_err"][0] < 0.1 * SIGMA[band]
    assert results[None].meta["sky"] == {} and not results[None].sky("i").data.any()


def test_every_tile_has_its_sky(monkeypatch):
    monkeypatch.setattr(tiles, "CORE", 10.0)
    pair = with_sky(make_pair(XY, FLUX, MIXTURES), 0.2, 0.1)
    result = deblender()(pair)
    for band in result.bands:
        sky, n = result.sky(band).data, result.sky(band).shape[0]
        assert len(result.meta["sky"][band]["level"]) == 4
        true = SIGMA[band] * (0.2 + 0.1 * np.linspace(-1, 1, n))
        assert np.abs(sky - true).max() < 0.15 * SIGMA[band]
        whole = result.model(None, band).data + sky + result.residual(band).data
        np.testing.assert_allclose(whole, band_images(pair)[band].data, atol=1e-2)


@pytest.mark.parametrize("level", [3.0, -3.0])
def test_a_sky_that_was_not_subtracted_is_said(level):
    pair = make_pair(XY, FLUX, MIXTURES)
    space = {**pair.space, "H_E": with_sky(pair, level, 0.0).space["H_E"]}
    with pytest.warns(AstropyUserWarning, match="band 'H_E': .*times the sky noise: subtract the sky from the image"):
        result = deblender()(SkyPair(pair.ground, space), from_tangent(XY, CENTER))
    error = np.sqrt(result.covariance("VIS").diagonal())
    assert (np.abs(result.flux("VIS").value - FLUX) < 5 * error + 0.03 * FLUX).all()


def test_only_known_backgrounds_can_be_asked_for():
    with pytest.raises(ValueError, match="background must be 'plane' or None, got 'mesh'"):
        deblender()(make_pair(XY, FLUX, MIXTURES), background="mesh")


def test_images_can_be_written_and_say_where_they_lie(tmp_path):
    for image in (scene().model(1, "i"), scene().model(None, "i"), scene().residual("i"), scene().template(1)):
        image.write(tmp_path / "image.fits", overwrite=True)
        data, header = fits.getdata(tmp_path / "image.fits", header=True)
        np.testing.assert_array_equal(data, image.data)
        for key, value in image.meta.items():
            assert header[key] == value


def test_template_is_unit_sum_and_non_negative():
    template = scene().template(scene().labels[0])
    assert template.data.sum() == pytest.approx(1) and template.data.min() >= 0


def test_regions_and_copies():
    result = scene()
    assert len(result.to_regions()) == len(result)
    result.to_table()["label"][:] = -1
    result.flux("i")[:] = 0
    assert -1 not in result.labels and result.flux("i").min() != 0


def test_ground_only_is_flagged_and_sane():
    far = XY[[0, 2, 3]]
    result = deblender()(make_pair(far, FLUX[[0, 2, 3]], MIXTURES[[0, 2, 3]], sides=("ground",)))
    table = result.to_table()
    index = match(table, far)
    assert np.all(table["flags"][index] & int(Flag.GROUND_TEMPLATE))
    np.testing.assert_allclose(result.flux("i").value[index], FLUX[[0, 2, 3]], rtol=0.06)


def test_space_only_works():
    result = deblender()(make_pair(XY, FLUX, MIXTURES, sides=("space",)))
    index = match(result.to_table(), XY)
    np.testing.assert_allclose(result.flux("VIS").value[index], FLUX, rtol=0.08)
    assert set(result.bands) == {"VIS", "H_E"}


def test_sources_off_the_image_masked_or_twice_are_flagged_rows():
    def mask(band, n):
        scale = 0.2 if band in "gi" else 0.1
        out = np.zeros((n, n), bool)
        centre = n / 2 - 0.5
        x, y = int(centre + 5.0 / scale), int(centre + 4.0 / scale)  # the source at (-5, 4): east is left
        if band == "VIS":
            out[y - 30 : y + 30, x - 30 : x + 30] = True
        return out

    pair = make_pair(XY, FLUX, MIXTURES, mask=mask)
    places = np.concatenate([XY, XY[3:], [[60.0, 0.0]]])
    result = deblender()(pair, from_tangent(places, CENTER))
    table = result.to_table()
    flags = np.asarray(table["flags"])
    assert flags[5] & int(Flag.OUTSIDE) and all(np.isnan(result.flux(b)[5]) for b in result.bands)
    assert flags[2] & int(Flag.NO_DATA) and np.isnan(result.flux("VIS")[2]) and np.isfinite(result.flux("i")[2])
    assert flags[3] & int(Flag.DUPLICATE) and flags[4] & int(Flag.DUPLICATE)
    for band in result.bands:
        assert result.flux(band)[[3, 4]].sum().value == pytest.approx(FLUX[3], abs=max(150.0, 30 * SIGMA[band]))
        assert np.isfinite(result.flux(band)[[0, 1]]).all()


MANY = 4.5 * np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]), -1).reshape(-1, 2) + [[0.4, -0.7]]


def with_wrong(pair, band, premise):
    """The pair with a header or a PSF of a band that is not true."""
    image = pair.ground[band]
    wcs, psf = image.wcs.deepcopy(), gaussian_psf(FWHM[band], 0.2)
    if premise == "mirrored":
        wcs.wcs.cdelt *= [-1, 1]
    if premise == "shifted":
        wcs.wcs.crpix += [1.5, 2.0]  # 0.5 arcsec
    if premise == "wide":
        psf = gaussian_psf(1.3 * FWHM[band], 0.2)
    wrong = NDData(image.data, unit=image.unit, wcs=wcs, psf=psf, uncertainty=image.uncertainty)
    return SkyPair(dict(pair.ground) | {band: wrong}, dict(pair.space))


@pytest.mark.parametrize("premise", ["none", "mirrored", "shifted", "wide"])
def test_a_wrong_premise_is_flagged_in_its_band_alone(premise):
    pair = make_pair(MANY, np.full(9, 6000.0), np.repeat(MIXTURES[:1], 9, axis=0))
    table = deblender()(with_wrong(pair, "g", premise), from_tangent(MANY, CENTER), **LISTED).to_table()
    poor = {
        name: np.mean((np.asarray(table[name]) & int(Flag.POOR_FIT)) != 0) for name in table.colnames if "flags" in name
    }
    wrong = float(premise != "none")
    assert poor == {"flags": wrong, "flags_g": wrong, "flags_i": 0.0, "flags_VIS": 0.0, "flags_H_E": 0.0}


def test_an_abstained_alignment_keeps_the_ground_out_of_the_shapes():
    pair = make_pair(MANY, np.full(9, 6000.0), np.repeat(MIXTURES[:1], 9, axis=0))
    lost = AstrometricSolution("abstain", "for this test", CENTER, ((-9.6, -9.6), (9.6, 9.6)), {})
    result = deblender()(with_wrong(pair, "i", "mirrored"), from_tangent(MANY, CENTER), offsets=lost, **LISTED)
    np.testing.assert_allclose(result.flux("VIS").value, 6000.0, rtol=0.1)
    table = result.to_table()
    assert np.all(table["flags_i"] & int(Flag.UNALIGNED)) and not np.any(table["flags_VIS"] & int(Flag.UNALIGNED))


def test_positions_that_are_not_aligned_are_an_error_of_the_ground_fluxes():
    """A point source that is displaced by d loses d^2 / (4 sigma^2) of its flux."""
    fits, sharp = scene().fits, match(scene().to_table(), XY)[3]
    for band in "gi":
        loss = -fits[band].displaced[sharp] / fits[band].flux[sharp]
        width = FWHM[band] / 2.3548
        np.testing.assert_allclose(loss, 0.5 * (0.1 / width) ** 2, rtol=0.1)
    assert not np.any(fits["VIS"].displaced)
    alone = deblender()(make_pair(XY, FLUX, MIXTURES, sides=("ground",)), from_tangent(XY, CENTER))
    assert not np.any(alone.fits["i"].displaced)


def test_an_empty_sky_and_no_sources_give_empty_scenes():
    pair = make_pair(np.zeros((1, 2)), np.zeros(1), MIXTURES[:1])
    assert len(deblender()(pair)) == 0
    assert len(deblender()(pair, from_tangent(np.zeros((0, 2)), CENTER))) == 0


def test_sources_that_the_sharpest_image_does_not_show_are_found_on_the_ground():
    def corner(band, n):
        out = np.zeros((n, n), bool)
        if band in ("VIS", "H_E"):  # they saw three arcsec without a source
            out[30:], out[:, 30:] = True, True
        return out

    found = deblender()(make_pair(XY, FLUX, MIXTURES, mask=corner)).to_table()
    match(found, XY[2:])
    assert np.all(found["flags"] & int(Flag.GROUND_TEMPLATE))


def test_what_the_residuals_showed_must_stay_significant():
    """Detections stay however faint; of the others those whose positive fluxes together are above what is needed."""
    flux = {"g": [0.1, 3.0, 6.0, -9.0], "i": [0.1, 3.0, 6.0, 4.0]}
    fits = {band: SimpleNamespace(flux=2.0 * np.array(f), measured=np.ones(4, bool), covariance=sparse.eye_array(4) * 4)
            for band, f in flux.items()}  # fmt: skip
    field = SimpleNamespace(index=np.array([0, -1, -1, -1]), bands=fits)
    np.testing.assert_array_equal(confirmed(field, np.zeros(1), 5.0), [0, 2])
    np.testing.assert_array_equal(confirmed(field, np.array([1.0]), 9.0), [])
    field.index = np.arange(4)  # 0.1, 4.2, 8.5 and 4.0 sigma, less the 1 of noise
    np.testing.assert_array_equal(confirmed(field, np.array([0.0, 5.0, 8.0, 3.0]), 5.0), [0, 2, 3])
    fitted = scene().fits["i"]
    some = fitted.of(np.array([1]))
    assert some.flux == fitted.flux[1] and some.covariance.toarray() == fitted.covariance.toarray()[1, 1]


def test_a_large_galaxy_may_be_given_where_its_light_is_centred():
    """A position 0.4 arcsec from the detection, farther than small sources are matched."""
    found = deblender()(make_pair(XY[:1], [4e6], [light(1.2)]), from_tangent([[0.4, 0.0]], CENTER))
    assert found.flux("i")[0].value == pytest.approx(4e6, rel=0.02)


def test_shapes_of_very_bright_stars_have_a_covariance():
    xy = np.array([[0.0, 0.0], [3.0, 2.5], [-3.0, -2.0], [-1.0, 4.0]])
    flux = 1e5 * np.array([3000.0, 500.0, 8000.0, 100.0])
    found = deblender()(make_pair(xy, flux, np.tile(MIXTURES[3:], (4, 1, 1))), from_tangent(xy, CENTER))
    for covariance in found._shape_covariance:
        assert np.linalg.eigvalsh(covariance).min() > 0


def test_a_source_that_one_image_does_not_hold_is_drawn_all_the_same():
    plotting = pytest.importorskip("rosetta.plotting")
    outside = deblender()(make_pair(XY, FLUX, MIXTURES), from_tangent([[60.0, 0.0]], CENTER), **LISTED)
    assert plotting.plot_blend(outside).shape == (2, 4)
    with pytest.raises(ValueError, match="label 7 is not in this scene"):
        plotting.plot_blend(outside, 7)
    nothing = deblender()(make_pair(XY, FLUX, MIXTURES), from_tangent(np.zeros((0, 2)), CENTER), **LISTED)
    with pytest.raises(ValueError, match="scene has no source"):
        plotting.plot_blend(nothing)


def test_bad_arguments_are_named():
    pair = make_pair(XY, FLUX, MIXTURES)
    with pytest.raises(TypeError, match="sources must be a SkyCoord"):
        deblender()(pair, [1, 2])
    twice = QTable({"label": [1, 1], "sky_centroid": from_tangent(XY[:2], CENTER)})
    with pytest.raises(ValueError, match="duplicate labels"):
        deblender()(pair, twice)
    place = from_tangent(XY[:2], CENTER)
    for label, error, message in (
        (["a", "b"], TypeError, "sources has labels of type <U1"),
        ([1.5, 2.5], TypeError, "sources has labels of type float64"),
        ([-1, 2], ValueError, "sources has the label -1"),
        (np.array([1, 2**63], np.uint64), ValueError, "do not fit 64 bits"),
        (MaskedColumn([1, 2], mask=[True, False]), ValueError, "sources has rows without a label"),
    ):
        with pytest.raises(error, match=message):
            deblender()(pair, QTable({"label": label, "sky_centroid": place}))
    ra, dec = (Masked(angle, mask=[True, False]) for angle in (place.ra, place.dec))
    with pytest.raises(ValueError, match=r"sources is masked in row 0 \(from 0\): drop those rows"):
        deblender()(pair, SkyCoord(ra, dec))
    with pytest.raises(TypeError, match="sources is one row of a table: give a table"):
        deblender()(pair, QTable({"sky_centroid": place})[0])
    with pytest.raises(ValueError, match="sources cannot be brought to ICRS"):
        deblender()(pair, SkyCoord([1], [2], unit="deg", frame="altaz"))
    with pytest.raises(TypeError, match="sources has a column 'sky_centroid' of type Longitude: make it a SkyCoord"):
        deblender()(pair, QTable({"sky_centroid": place.ra}))
    with pytest.raises(ValueError, match="offsets must be the table"):
        deblender()(pair, offsets=QTable())
    elsewhere = shift_offsets(0.0, 0.0)
    elsewhere.meta["center"] = offset_coord(CENTER, 0.0, 3600.0)
    with pytest.raises(ValueError, match="offsets are of another sky: .* arcmin from this pair"):
        deblender()(pair, offsets=elsewhere)
    with pytest.raises(ValueError, match="band 'q' is not in this scene"):
        scene().flux("q")
    for label in (99, [1, 2]):
        with pytest.raises(ValueError, match="is not in this scene: use one of scene.labels"):
            scene().model(label, "i")
    with pytest.raises(ValueError, match="truth is None"):
        JEPADeblender(deblender().encoder).fit([pair, pair], seed=0)


@pytest.mark.parametrize(
    ("verdict", "flag"), [("ok", Flag(0)), ("coarse", Flag.COARSE_ALIGNMENT), ("abstain", Flag.UNALIGNED)]
)
def test_verdicts_are_flagged_on_every_row(verdict, flag):
    table = deblender()(make_pair(XY, FLUX, MIXTURES), offsets=shift_offsets(0.0, 0.0, verdict)).to_table()
    both = int(Flag.COARSE_ALIGNMENT | Flag.UNALIGNED)
    assert len(table) == 4 and np.all(table["flags"] & both == int(flag))


def shift_offsets(east, north, verdict="ok"):
    """What the aligner says of a ground frame that (east, north) mas bring onto the space frame."""
    model = {"kind": "shift", "order": 0, "scale": 1.0, "coefficients": [[east, north]],
             "coefficient_covariance": np.eye(2).tolist()}
    bands = {} if verdict == "abstain" else {"joint": model}
    box = [[-SIZE / 2, -SIZE / 2], [SIZE / 2, SIZE / 2]]
    return QTable(meta={
        "verdict": verdict, "reason": "", "center": CENTER, "box": box, "model": {"version": 1, "bands": bands},
    })


def drawn_pair(shift, unseen=(), fluxes=FLUX):
    """Round Gaussians summed up pixel by pixel; the ground headers lack ``shift``, (east, north) arcsec.

    Sources ``unseen`` shine on the ground only.
    """
    xy = np.array([[0.0, 0.0], [1.3, 0.4], [-5.0, 4.0], [5.0, -5.0]])
    sigma = np.array([0.25, 0.2, 0.3, 0.15])
    rng, sides = np.random.default_rng(2), {"g": {}, "i": {}, "VIS": {}, "H_E": {}}
    for band, fwhm in FWHM.items():
        scale = 0.2 if band in "gi" else 0.1
        n = round(SIZE / scale)
        psf_sigma = fwhm / 2.3548
        column, row = np.meshgrid(np.arange(n), np.arange(n))
        east, north = -(column - (n - 1) / 2) * scale, (row - (n - 1) / 2) * scale
        data = rng.normal(0, SIGMA[band], (n, n))
        for k, ((e, d), flux, s) in enumerate(zip(xy, fluxes, np.hypot(sigma, psf_sigma), strict=True)):
            if k in unseen and band not in "gi":
                continue
            data += flux * scale**2 / (2 * np.pi * s**2) * np.exp(-0.5 * ((east - e) ** 2 + (north - d) ** 2) / s**2)
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        # Ground header + shift = truth, so the header puts everything ``shift`` short of where it is.
        header = offset_coord(CENTER, *-np.asarray(shift)) if band in "gi" else CENTER
        wcs.wcs.crval = [header.ra.deg, header.dec.deg]
        wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
        wcs.wcs.crpix = [(n + 1) / 2, (n + 1) / 2]
        variance = VarianceUncertainty(np.full((n, n), SIGMA[band] ** 2))
        sides[band] = NDData(data, unit=u.nJy, wcs=wcs, psf=gaussian_psf(fwhm, scale), uncertainty=variance)
    return xy, SkyPair({b: sides[b] for b in "gi"}, {b: sides[b] for b in ("VIS", "H_E")})


def test_offsets_move_the_ground_where_the_light_is():
    """By an independent drawing, and with the stated sign: the wrong one is worse than none."""
    shift = (0.24, -0.18)
    xy, pair = drawn_pair(shift)
    places = from_tangent(xy, CENTER)
    given = {sign: shift_offsets(sign * 240.0, sign * -180.0) for sign in (1, -1)}
    bias = {}
    for name, offsets in (("true", given[1]), ("none", None), ("wrong sign", given[-1])):
        result = deblender()(pair, places, offsets=offsets, **LISTED)
        # Shapes are fitted to both sides together, so a wrong frame spoils the space fluxes too.
        bias[name] = max(np.abs(result.flux(band).value / FLUX - 1).max() for band in ("g", "i", "VIS"))
    assert bias["true"] < 0.05
    assert bias["none"] > 0.08
    assert bias["wrong sign"] > bias["none"]


def test_sources_seen_on_the_ground_alone_are_moved_once():
    shift, alone = (0.8, -0.5), 3
    xy, pair = drawn_pair(shift, unseen=(alone,), fluxes=FLUX * (1, 1, 1, 0.06))  # too faint to find its way back
    table = deblender()(pair, offsets=shift_offsets(800.0, -500.0)).to_table()
    _, separation, _ = from_tangent(xy[alone], CENTER)[:1].match_to_catalog_sky(table["sky_centroid"])
    assert len(table) == 4 and separation[0] < 0.2 * u.arcsec


def test_offsets_of_a_scene_are_its_own():
    given = shift_offsets(0.0, 0.0)
    result = deblender()(make_pair(XY, FLUX, MIXTURES), offsets=given)
    given.meta["model"]["bands"].clear()
    result.offsets.meta["verdict"] = "abstain"
    assert result.offsets.meta["verdict"] == "ok" and "joint" in result.offsets.meta["model"]["bands"]


@pytest.mark.parametrize("steps", [[0.0, 0.015], [0.03, 0.0, 0.015]], ids=["two", "chain"])
def test_sources_in_one_place_share_it_equally(steps):
    star = np.array([3.0, 3.0])
    places = np.concatenate([[[-4.0, 2.0]], star + np.array([[s, 0.0] for s in steps])])
    light_there = np.stack([light(0.3), MIXTURES[3]])
    pair = make_pair(places[[0, 1]], np.array([5000.0, 6000.0]), light_there)
    result = deblender()(pair, from_tangent(places, CENTER))
    table = result.to_table()
    flags = np.asarray(table["flags"])
    assert np.all(flags[1:] & int(Flag.DUPLICATE)) and not flags[0] & int(Flag.DUPLICATE)
    assert table["sky_centroid"][1:].separation(table["sky_centroid"][1]).max() < 1e-6 * u.arcsec
    for band in result.bands:
        flux = result.flux(band)[1:].value
        np.testing.assert_allclose(flux, flux[0], rtol=1e-4)
        assert flux.sum() == pytest.approx(6000, rel=0.05)
    for row in range(2, len(places)):
        np.testing.assert_array_equal(result._shape_covariance[row], result._shape_covariance[1])
        np.testing.assert_array_equal(result.template(result.labels[row]).data, result.template(2).data)


def distorted(wcs, n, quadratic):
    """A WCS with quadratic distortion (pixel^-1) in a form that is not FITS."""
    wcs = wcs.deepcopy()
    a, b = np.zeros((3, 3)), np.zeros((3, 3))
    a[2, 0], b[1, 1] = quadratic, -quadratic
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.pixel_shape = (n, n)
    wcs.wcs.set()
    return HighLevelWCSWrapper(SlicedLowLevelWCS(wcs.low_level_wcs, (slice(0, n), slice(0, n))))


@pytest.mark.parametrize("quadratic", [1e-7, 3e-5])
def test_images_of_other_kinds_of_wcs_say_how_well_theirs_fits(quadratic):
    plain = make_pair(XY, FLUX, MIXTURES, sides=("space",))
    space = {}
    for band, image in plain.space.items():
        wcs = distorted(image.wcs, len(image.data), quadratic)
        space[band] = NDData(image.data, unit=u.nJy, wcs=wcs, psf=image.psf, uncertainty=image.uncertainty)
    result = deblender()(SkyPair(None, space))
    residual = result.residual("VIS")
    assert 0 < residual.meta["WCSRES"] < 5
    n = len(residual.data)
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, n - 1, 7), np.linspace(0, n - 1, 7)))
    there = residual.wcs.pixel_to_world(x, y).separation(space["VIS"].wcs.pixel_to_world(x, y)).mas.max()
    assert there <= residual.meta["WCSRES"] + 0.1
    assert (residual.wcs.sip is not None) == (quadratic > 1e-6)  # terms only where they are needed
    label = result.labels[0]
    one = result.model(label, "VIS")
    assert one.meta["WCSRES"] == residual.meta["WCSRES"]
    x0, y0 = one.meta["ORIGINX"], one.meta["ORIGINY"]
    assert one.wcs.pixel_to_world(0, 0).separation(residual.wcs.pixel_to_world(x0, y0)) < 0.01 * u.mas
    assert "WCSRES" not in scene().residual("VIS").meta  # FITS already


class Interrupted:
    """Pairs that cannot be read beyond the first ``readable``."""

    def __init__(self, pairs, readable):
        self.pairs, self.readable, self.read = pairs, readable, []

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        if index >= self.readable:
            raise KeyboardInterrupt
        self.read.append(index)
        return self.pairs[index]


def known_sky(n):
    pairs = [make_pair(XY, FLUX, MIXTURES, seed=seed) for seed in range(n)]
    table = QTable({"sky_centroid": from_tangent(XY, CENTER)})
    for band in FWHM:
        table[f"flux_{band}"] = FLUX * u.nJy
    return pairs, [table] * n


def test_an_interrupted_fit_goes_on_from_the_last_finished_pair(monkeypatch, tmp_path):
    monkeypatch.setattr(JEPADeblender, "trainer", TrainerConfig(steps=3, batch=64))
    pairs, truths = known_sky(3)
    pairs[1] = make_pair(np.zeros((1, 2)), np.zeros(1), MIXTURES[:1])  # nothing there: a pair without rows
    path = tmp_path / "rows"
    with pytest.raises(KeyboardInterrupt):
        JEPADeblender(deblender().encoder).fit(Interrupted(pairs, 2), truths, seed=3, checkpoint=path)
    with open(path, "ab") as file:
        file.write((10_000).to_bytes(8, "little") + b"killed while writing")
    rest = Interrupted(pairs, 3)
    resumed = JEPADeblender(deblender().encoder).fit(rest, truths, seed=3, checkpoint=path)
    assert rest.read == [0, 2]  # the first, to know it again, and the unfinished one
    again = Interrupted(pairs, 3)
    third = JEPADeblender(deblender().encoder).fit(again, truths, seed=3, checkpoint=path)
    assert again.read == [0]
    whole = JEPADeblender(deblender().encoder).fit(pairs, truths, seed=3)
    assert whole._provenance == resumed._provenance == third._provenance
    for name, tensor in whole._network.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), resumed._network.state_dict()[name].numpy())


def test_a_checkpoint_of_something_else_is_refused_and_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(JEPADeblender, "trainer", TrainerConfig(steps=3, batch=64))
    pairs, truths = known_sky(2)
    head, path = JEPADeblender(deblender().encoder), tmp_path / "rows"
    head.fit(pairs, truths, seed=3, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="'rows' is of another head, encoder, seed"):
        head.fit(pairs, truths, seed=4, checkpoint=path)
    other = truths[0][:2]
    with pytest.raises(ValueError, match=r"'rows' was made with another truth\[1\]"):
        head.fit(pairs, [truths[0], other], seed=3, checkpoint=path)
    assert path.read_bytes() == before
    path.write_bytes(before[:-200] + bytes(200))
    with pytest.raises(ValueError, match="'rows' is damaged"):
        head.fit(pairs, truths, seed=3, checkpoint=path)
    with pytest.raises(ValueError, match="its folder does not exist"):
        head.fit(pairs, truths, seed=3, checkpoint=tmp_path / "no" / "rows")


def test_fit_trains_and_survives_saving(tmp_path, monkeypatch):
    monkeypatch.setattr(JEPADeblender, "trainer", TrainerConfig(steps=80, batch=64))
    head = JEPADeblender(deblender().encoder)
    pairs, truths = known_sky(2)
    path = tmp_path / "deblender.safetensors"
    head.fit(pairs, truths, seed=3)
    head.save(path)
    again = JEPADeblender.from_pretrained(path, encoder=deblender().encoder, device="cpu")
    one, two = head(pairs[0]), again(pairs[0])
    np.testing.assert_allclose(one.flux("i").value, two.flux("i").value, rtol=1e-6)
    assert np.isfinite(one.to_table()["blend_probability"]).all()


def test_stars_are_no_wider_than_the_psf_measures():
    """A PSF with wings: under its core's width alone, every bright star would count as a small galaxy."""
    pair = make_pair(XY, FLUX, np.stack([MIXTURES[3]] * 4))
    plane = band_images(pair)["VIS"]
    narrow, wide = gaussian_psf(0.2, 0.1), gaussian_psf(0.7, 0.1)
    half = wide.shape[0] // 2
    psf = 0.25 * wide
    k = narrow.shape[0] // 2
    psf[half - k : half + k + 1, half - k : half + k + 1] += 0.75 * narrow
    faint, bright = point_variance(replace(plane, psf=PSF(psf)), np.array([8.0, 300.0]), DetectionConfig())
    core = (plane.fwhm / 2.3548) ** 2
    assert bright > 2 * core and faint < bright
    gauss = point_variance(plane, np.array([300.0]), DetectionConfig())[0]
    assert gauss == pytest.approx(core + 0.1**2 / 12, rel=0.05)  # the table's moments count a pixel's own width


STARS = np.array([[-5.0, 4.0], [5.0, -5.0], [4.0, 5.0]])


def stars_and_a_galaxy(**options):
    """Stars at `STARS` (east, north), and the smallest galaxy that a star could be taken for."""
    point = np.eye(1, 6).repeat(3, 0) / 3
    places, flux = np.concatenate([STARS, [[-5.0, -5.0]]]), np.array([90000.0, 9000.0, 1500.0, 3000.0])
    return make_pair(places, flux, np.stack([point, point, point, light(0.12, 1.0)]), **options), places, flux


@pytest.mark.parametrize("psf_width", [0.98, 1.0, 1.02])
def test_a_star_is_a_point_though_the_psf_is_not_quite_right(psf_width):
    pair, places, flux = stars_and_a_galaxy(psf_width=psf_width)
    result = deblender()(pair)
    table = result.to_table()
    index = match(table, places)
    radius = table["half_light_radius"].to_value(u.arcsec)[index]
    assert (radius[:3] < 0.005).all() and 0.09 < radius[3] < 0.15
    assert np.abs(table["e1"][index[:3]]).max() < 1e-6 and np.abs(table["e2"][index[:3]]).max() < 1e-6
    for band in result.bands:
        error = np.sqrt(result.covariance(band).diagonal())[index]
        assert np.abs((result.flux(band).value[index] - flux) / np.hypot(error, 0.02 * flux)).max() < 3.5, band


@pytest.mark.parametrize("fwhm", [1.9, 2.6])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_star_seen_with_a_wide_psf_that_has_noise(fwhm):
    """Its width is tried out from 0.7 of the PSF's on: that PSF, made narrower, has pixels beyond float32's squares."""
    psf, rng, wcs = gaussian_psf(fwhm, 0.2), np.random.default_rng(0), WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [CENTER.ra.deg, CENTER.dec.deg]
    wcs.wcs.crpix, wcs.wcs.cdelt = [(len(psf) + 1) / 2] * 2, [-0.2 / 3600, 0.2 / 3600]
    image = NDData(
        1e5 * psf + rng.normal(0, 2.0, psf.shape), unit=u.nJy, wcs=wcs, psf=psf + rng.normal(0, 1e-5, psf.shape),
        uncertainty=VarianceUncertainty(np.full(psf.shape, 4.0)),
    )
    result = deblender()(SkyPair({"r": image}, None))
    assert result.flux("r")[0].value == pytest.approx(1e5, rel=0.03)


def test_a_saturated_star_is_a_point():
    """The core is masked in every band: what is left of it has the moments of a galaxy."""
    def core(band, n):
        east, north = STARS[0]
        scale = 0.2 if band in "gi" else 0.1
        y, x = np.indices((n, n))
        x0, y0 = (n - 1) / 2 + 0.3 - east / scale, (n - 1) / 2 - 0.2 + north / scale
        return np.hypot(x - x0, y - y0) < 0.6 * FWHM[band] / scale

    pair, places, flux = stars_and_a_galaxy(mask=core)
    result = deblender()(pair)
    table = result.to_table()
    _, separation, _ = from_tangent(places[:1], CENTER).match_to_catalog_sky(table["sky_centroid"])
    assert separation[0] < 0.1 * u.arcsec
    index = match(table, places)[0]
    assert table["half_light_radius"][index] < 0.005 * u.arcsec
    for band in result.bands:
        assert result.flux(band)[index].value == pytest.approx(flux[0], rel=0.05), band


# ------------------------------------------------------------------------------------------------------ positions
def test_a_wcs_is_asked_once_for_a_list_of_sources(counting_wcs):
    pair, config, asked = make_pair(XY, FLUX, MIXTURES), DeblenderConfig(), []
    found = detected(pair, DetectionConfig())
    solution = AstrometricSolution(
        "ok", "", CENTER, ((-9, -9), (9, 9)), {"joint": constant(np.array([50.0, -20.0]), 1.0)}
    )
    sources = Sources.of_job(np.arange(len(found)), JobList.of_detections(found), found, solution, config)
    assert sources.east_north.dtype == float and sources.east_north.shape == (len(XY), 2)
    images = [replace(image, wcs=counting_wcs(image.wcs, asked)) for image in band_images(pair).values()]
    assert all(image.fwhm > 0 for image in images)  # once per image
    asked.clear()
    for light in (1.0, 3.0):
        for image in images:
            sources.on(image, 700.0, config.engine, light=light)
    assert asked == ["world_to_pixel"] * len(images)
    some = sources.of([0, 2]).starting_from(sources.start[[0, 2]])
    np.testing.assert_array_equal(some.on(images[0], 700.0, config.engine).xy, sources._places["g"][0][[0, 2]])
    more = some.and_at(np.array([[1.0, -3.0]]), np.zeros(1), found, config)
    assert len(asked) == len(images) and len(more.on(images[0], 700.0, config.engine).xy) == 3
    assert len(asked) == len(images) + 1  # a longer list is another one
    true, seen = (image.place(sources.east_north)[0] for image in (images[-1], images[0]))
    np.testing.assert_allclose(sources._places["H_E"][0], true, atol=1e-9)
    shift = sources._places["g"][0] - seen  # of an offset that is to be added to the ground's positions
    np.testing.assert_allclose(shift, np.tile([0.050 / 0.2, 0.020 / 0.2], (len(XY), 1)), atol=1e-4)


def test_positions_on_the_other_side_of_the_sky_are_no_sources():
    given = SkyCoord([53.1, 233.1, 233.1, 143.1], [-28.1, 28.1, 28.2, 0.0], unit="deg")
    table = deblender()(make_pair(XY, FLUX, MIXTURES), given, neighbours="listed").to_table()
    assert given.separation(table["sky_centroid"]).arcsec.max() < 1e-8
    outside = table["flags"] & int(Flag.OUTSIDE) > 0
    np.testing.assert_array_equal(outside, [False, True, True, True])
    assert not (table["flags"] & int(Flag.DUPLICATE)).any()


# --------------------------------------------------------------------------------------------------- large fields
def test_tiles_share_the_sky_and_see_their_neighbours_margins(monkeypatch):
    field = band_images(make_pair(XY, FLUX, MIXTURES))
    (whole,) = tiles.tiles(field)
    assert {band: piece.shape for band, piece in whole.cut(field).items()} == {b: p.shape for b, p in field.items()}
    monkeypatch.setattr(tiles, "CORE", 8.0)
    monkeypatch.setattr(tiles, "MARGIN", 3.0)
    several = tiles.tiles(field)
    far = np.random.default_rng(3).uniform(-60, 60, (200, 2))  # beyond the images too
    assert len(several) > 3 and np.all(sum(tile.owns(far).astype(int) for tile in several) == 1)
    for tile in several:
        assert np.all(tile.sees(far[tile.owns(far)]))
        piece, plane = tile.cut(field)["VIS"], field["VIS"]
        x, y = np.round(plane.xy(piece.east_north([1.0], [2.0]))[0]).astype(int)
        assert piece.data[2, 1] == plane.data[y, x] and (x - 1, y - 2) == piece.corner
        assert piece.depth == plane.depth and piece.fwhm == plane.fwhm


def test_a_part_of_a_field_is_cut_as_the_whole_is():
    """Tiles between given corners see the same sky whatever the images; what is beyond their margins is in none."""
    field = band_images(make_pair(XY, FLUX, MIXTURES))
    turn = np.array([[1.0, 0.01], [-0.01, 1.0]])
    corners = np.stack(np.meshgrid([10.0, 0.0, -10.0], [-10.0, 0.0, 10.0]), -1) @ turn  # (3, 3, 2), east to the left
    found = tiles.tiles(field, corners)
    assert len(found) == 4
    inside = np.random.default_rng(3).uniform(-10, 10, (200, 2))
    assert np.all(sum(tile.owns(inside).astype(int) for tile in found) == 1)
    for tile in found:
        assert np.all(tile.sees(inside[tile.owns(inside)]))
        np.testing.assert_allclose(np.ptp(tile.bounds, axis=0), 10.0 + 2 * tiles.MARGIN, atol=0.2)
    far = np.array([[10.3 + tiles.MARGIN, 0.0], [0.0, -10.3 - tiles.MARGIN]])
    assert not any(tile.owns(far).any() or tile.sees(far).any() for tile in found)


def test_corners_that_cannot_be():
    pair = make_pair(XY, FLUX, MIXTURES)
    sky = SkyCoord([[53.0, 53.1], [53.0, 53.1]], [[-28.0, -28.0], [-28.1, -28.1]], unit="deg")
    with pytest.raises(TypeError, match="tile_corners must be a SkyCoord"):
        deblender()(pair, tile_corners=[[0, 1], [0, 1]])
    with pytest.raises(ValueError, match="two rows and two columns or more"):
        deblender()(pair, tile_corners=sky[0])
    with pytest.raises(ValueError, match="or sources, not both"):
        deblender()(pair, sky.ravel(), tile_corners=sky)


def test_several_tiles_give_the_scene_of_one(monkeypatch):
    pair = make_pair(XY, FLUX, MIXTURES)
    one = deblender()(pair)
    monkeypatch.setattr(tiles, "CORE", 8.0)
    monkeypatch.setattr(tiles, "MARGIN", 4.0)
    seen = []
    many = deblender()(pair, progress=lambda *at: seen.append(at))
    assert len(tiles.tiles(band_images(pair))) > 3 and seen[-1][0] == seen[-1][1] == len(seen)
    a, b = one.to_table(), many.to_table()
    assert len(a) == len(b)
    index, separation, _ = a["sky_centroid"].match_to_catalog_sky(b["sky_centroid"])
    assert separation.max() < 5 * u.mas
    for band in one.bands:
        # The noise factor is measured on the pixels, of which tiles share some: that of one field, to its own error.
        assert many.meta["noise_factor"][band] == pytest.approx(one.meta["noise_factor"][band], rel=0.15)
        factors = [found.fits[band].noise for found in (one, many)]
        np.testing.assert_allclose(factors[1][index], factors[0], rtol=0.15)
        cov, other = (
            found.covariance(band).toarray() / (noise[:, None] * noise)
            for found, noise in zip((one, many), factors, strict=True)
        )
        other = other[np.ix_(index, index)]
        sigma = np.sqrt(np.diag(cov))
        # Each tile has a sky of its own.
        assert (np.abs(one.flux(band).value - many.flux(band).value[index]) / sigma).max() < 0.2
        np.testing.assert_allclose(np.sqrt(np.diag(other)), sigma, rtol=0.02)
        np.testing.assert_array_equal(other, other.T)
        np.testing.assert_allclose(other / np.outer(sigma, sigma), cov / np.outer(sigma, sigma), atol=0.02)
        difference = one.model(None, band).data - many.model(None, band).data
        assert np.abs(difference).max() < 0.05 * one.model(None, band).data.max()


def test_two_processes_give_the_same_scene(monkeypatch):
    monkeypatch.setattr(tiles, "CORE", 8.0)
    pair, seen = make_pair(XY, FLUX, MIXTURES), []
    one, two = (deblender()(pair, workers=n, progress=lambda *at: seen.append(at)) for n in (1, 2))
    half = len(seen) // 2
    assert seen[half:] == seen[:half] and half > 3
    for band in one.bands:
        np.testing.assert_array_equal(one.flux(band), two.flux(band))
        np.testing.assert_array_equal(one.covariance(band).toarray(), two.covariance(band).toarray())
    for workers in (0, 1.5, True):
        with pytest.raises(ValueError, match="workers must be a positive integer"):
            deblender()(pair, workers=workers)


def test_a_tile_without_a_band_says_so(monkeypatch):
    """Given positions, one of them off the space image: rows in the order given, and no space flux there."""
    monkeypatch.setattr(tiles, "CORE", 8.0)
    pair = make_pair(XY, FLUX, MIXTURES)
    places = np.concatenate([XY[::-1], [[200.0, 0.0]]])
    scene = deblender()(pair, from_tangent(places, CENTER))
    known = from_tangent(places[:-1], CENTER)
    assert scene.to_table()["sky_centroid"][:-1].separation(known).max() < 0.1 * u.arcsec
    assert np.isnan(scene.flux("VIS")[-1]) and np.isfinite(scene.flux("VIS")[:-1]).all()


def test_a_galaxy_with_a_red_bulge_in_a_blue_disc_keeps_its_flux_in_every_band():
    """One template for all bands misses light of the disc in blue ones, one made narrower as a whole in red ones."""
    xy, flux = np.array([[0.3, -0.2]]), np.array([2e4])

    def galaxy(share):
        bulge, disc = light(0.15), light(0.5)
        bulge[:, 0] *= share
        disc[:, 0] *= 1 - share
        return make_pair(xy, flux, np.concatenate([bulge, disc])[None])

    blue, middle, red = (galaxy(share) for share in (0.05, 0.2, 0.5))
    ground = {"g": blue.ground["g"], "i": middle.ground["i"]}
    found = deblender()(SkyPair(ground, {"VIS": middle.space["VIS"], "H_E": red.space["H_E"]}))
    assert len(found) == 1
    for band in found.bands:
        assert found.flux(band)[0].value == pytest.approx(flux[0], rel=0.02), band
        assert found.model(1, band).data.sum() == pytest.approx(found.flux(band)[0].value, rel=2e-3)
    breadth = {band: found.fits[band].breadth[0] for band in found.bands}
    assert breadth["g"] > 1.0 and breadth["H_E"] < -0.5 and abs(breadth["VIS"]) < 1.0


def test_a_true_source_belongs_to_the_nearest_position():
    found = from_tangent(np.array([[0.0, 0.0], [1.5, 0.0], [9.0, 9.0]]), CENTER)
    true = from_tangent(np.array([[-0.4, 0.0], [0.4, 0.0], [1.4, 0.0], [0.0, 1.2], [0.1, 0.0]]), CENTER)
    first, second = occupants(found, true, np.array([8.0, 10.0, 3.0, 99.0, 1.0]), 1.0)
    np.testing.assert_array_equal(first, [10, 3, 0])  # 1.2" away is nobody's, however bright
    np.testing.assert_array_equal(second, [8, 0, 0])


def hidden_neighbour(share, sides=("ground",)):
    """A galaxy, and the scene of it alone, that has a neighbour of a ``share`` of its flux 0.8" to the north."""
    flux = np.array([6000.0, 6000.0 * share])
    pair = make_pair(np.array([[0.0, 0.0], [0.0, 0.8]]), flux, np.stack([light(0.2)] * 2), sides=sides)
    return deblender()(pair, from_tangent(np.zeros((1, 2)), CENTER), **LISTED)


def features_of(scene):
    return source_features(scene.to_table(), scene.fits, scene.images, scene.template_covariance)


def test_rings_show_where_a_neighbour_hides():
    alone, blended = hidden_neighbour(0.0), hidden_neighbour(0.3)
    for scene, shown in ((alone, False), (blended, True)):
        left = sum(fit.residual_snr[0] for fit in scene.fits.values()) / np.sqrt(2)
        at = RINGS[np.argmax(left)]
        assert (left.max() > 8) == shown
        assert not shown or (at[1] > 0.5 and abs(at[0]) < 0.5)
    found = [features_of(scene) for scene in (alone, blended, hidden_neighbour(0.3, ("ground", "space")))]
    assert all(f.shape == (1, blend_probability.N_FEATURE) and np.isfinite(f).all() for f in found)


def test_significance_is_that_of_a_point_source():
    rng, sigma = np.random.default_rng(0), 3.0
    y, x = np.indices((15, 15)) - 7
    psf = np.exp(-0.5 * (x**2 + y**2) / 1.8**2)
    psf /= psf.sum()
    image = rng.normal(0, sigma, (80, 80))
    error = sigma / np.sqrt((psf**2).sum())
    image[33:48, 23:38] += 20 * error * psf
    shown = significance(image / sigma, np.ones(image.shape, bool), psf)
    assert shown[40, 30] == pytest.approx(20, abs=3)
    assert np.isnan(shown[0, 0])  # much of the filter is off the image
    assert np.nanstd(np.delete(shown, slice(25, 55), axis=0)) == pytest.approx(1, abs=0.15)


def test_rows_hold_both_sides_and_the_ground_alone():
    (pair,), (truth,) = known_sky(1)
    rows = deblender()._rows(pair, truth, 0, 0)
    assert rows["features"].shape == (len(rows["is_blend"]), blend_probability.N_FEATURE)
    both, ground = (deblender()(make_pair(XY, FLUX, MIXTURES, sides=s)) for s in (("ground", "space"), ("ground",)))
    expected = features_of(both)
    np.testing.assert_allclose(rows["features"][: len(expected)], expected, rtol=1e-4, atol=1e-4)
    near = from_tangent(XY, CENTER).match_to_catalog_sky(ground.to_table()["sky_centroid"])[0]
    assert len(rows["features"]) == len(both) + len(set(near))  # not what the ground found beside them
    assert not rows["is_blend"][: len(both)].any()  # the space image tells the two galaxies apart


def test_a_source_without_a_pixel_has_no_probability(monkeypatch):
    monkeypatch.setattr(JEPADeblender, "trainer", TrainerConfig(steps=3, batch=64))
    head = JEPADeblender(deblender().encoder).fit(*known_sky(2), seed=3)
    places = from_tangent(np.concatenate([XY, [[60.0, 0.0]]]), CENTER)
    probability = head(known_sky(1)[0][0], places).to_table()["blend_probability"]
    assert np.isnan(probability[-1]) and ((probability[:-1] > 0) & (probability[:-1] < 1)).all()
    assert len(head(known_sky(1)[0][0], places[:0], **LISTED).to_table()) == 0
