# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The deblender on small scenes of Gaussians drawn on the spot."""

from dataclasses import replace
from functools import lru_cache

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData, VarianceUncertainty
from astropy.table import QTable
from astropy.wcs import WCS

from rosetta import Flag, JEPADeblender, SkyPair
from rosetta._boundary import planes
from rosetta._detect import detect
from rosetta._geometry import from_tangent
from rosetta._measure import sky_weight
from rosetta.core import templates
from rosetta.core.mixture import render
from rosetta.core.solve import design
from rosetta.core.vit import EncoderConfig
from rosetta.encoder import CrossSurveyEncoder

CENTER = SkyCoord(53.1, -28.1, unit="deg")
FWHM = {"g": 0.8, "i": 0.7, "VIS": 0.2, "H_E": 0.5}
SIGMA = {"g": 4.0, "i": 5.0, "VIS": 4.0, "H_E": 12.0}
SIZE = 19.2  # arcsec


@lru_cache
def deblender():
    config = EncoderConfig(
        dim=16, depth=1, heads=2, proj_dim=8, predictor_dim=12, predictor_depth=1, predictor_heads=2
    )
    return JEPADeblender(CrossSurveyEncoder._with_config(config, device="cpu"))


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


def make_pair(xy, flux, mixtures, *, sides=("ground", "space"), seed=0, mask=None):
    """A pair with sources at (east, north) arcsec ``xy``; flat spectra."""
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
        data = (design(render(mixtures, pixel, jacobian, psf), (n, n), len(xy)) @ flux).reshape(n, n)
        data = data + rng.normal(0, SIGMA[band], (n, n))
        images[band] = NDData(
            data, unit=u.nJy, wcs=wcs, psf=psf, uncertainty=VarianceUncertainty(np.full((n, n), SIGMA[band] ** 2)),
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
    found = detect(planes(make_pair(XY, FLUX, MIXTURES)))
    match(found, XY)
    assert len(found) == 4
    assert found.meta["band"] == "VIS"


def test_fluxes_of_a_blend_are_recovered_in_every_band():
    result = scene()
    index = match(result.to_table(), XY)
    assert len(result) == 4
    for band in result.bands:
        error = np.sqrt(result.covariance(band).diagonal())[index]
        pull = (result.flux(band).value[index] - FLUX) / np.hypot(error, 0.02 * FLUX)
        assert np.abs(pull).max() < 3.5, band


def test_table_columns_and_blendedness():
    table = scene().to_table()
    index = match(table, XY)
    assert np.all(table["blendedness"][index[:2]] > 0.1) and np.all(table["blendedness"][index[2:]] < 0.02)
    assert table["half_light_radius"][index[3]] < 0.08 * u.arcsec  # a star
    assert table["e1"][index[0]] < -0.15  # elongated north-south
    assert np.isnan(table["blend_probability"]).all()  # not trained
    assert (table["n_band"] == 4).all()


def test_weights_do_not_know_the_sources_photons():
    flat = planes(make_pair(XY, FLUX, MIXTURES))["VIS"]
    light = np.maximum(flat.data, 0)
    plane = replace(flat, variance=(flat.variance + 2 * light).astype("f4"))
    np.testing.assert_allclose(sky_weight(plane), 1 / SIGMA["VIS"] ** 2, rtol=0.1)
    bad = plane.variance.copy()
    bad[3, 4], bad[5, 6] = np.inf, 1e4
    valid = np.isfinite(bad)
    weight = sky_weight(replace(plane, variance=bad, valid=valid))
    assert weight[3, 4] == 0 and weight[5, 6] == pytest.approx(1e-4)


def test_models_sum_to_fluxes_and_residuals_are_noise():
    result = scene()
    for band in result.bands:
        for row, label in enumerate(result.labels):
            assert result.model(label, band).data.sum() == pytest.approx(result.flux(band)[row].value, rel=1e-3)
        residual = result.residual(band)
        assert residual.unit == u.nJy
        assert np.std(residual.data) == pytest.approx(SIGMA[band], rel=0.06)
        image = result.model(None, band).data + residual.data
        np.testing.assert_allclose(image, planes(result.embedding.pair)[band].data, atol=1e-2)


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


def test_an_empty_sky_and_no_sources_give_empty_scenes():
    pair = make_pair(np.zeros((1, 2)), np.zeros(1), MIXTURES[:1])
    assert len(deblender()(pair)) == 0
    assert len(deblender()(pair, from_tangent(np.zeros((0, 2)), CENTER))) == 0


def test_bad_arguments_are_named():
    pair = make_pair(XY, FLUX, MIXTURES)
    with pytest.raises(TypeError, match="sources must be a SkyCoord"):
        deblender()(pair, [1, 2])
    twice = QTable({"label": [1, 1], "sky_centroid": from_tangent(XY[:2], CENTER)})
    with pytest.raises(ValueError, match="duplicate labels"):
        deblender()(pair, twice)
    with pytest.raises(ValueError, match="offsets must be the table"):
        deblender()(pair, offsets=QTable())
    with pytest.raises(ValueError, match="band 'q' is not in this scene"):
        scene().flux("q")
    with pytest.raises(ValueError, match="label 99 is not in this scene"):
        scene().model(99, "i")
    with pytest.raises(ValueError, match="truth is None"):
        JEPADeblender(deblender().encoder).fit([pair, pair], seed=0)


def test_offsets_move_the_ground_and_abstain_flags():
    meta = {"verdict": "ok", "center": CENTER, "model": {"bands": {}}}
    moved = make_pair(XY, FLUX, MIXTURES)
    offsets = QTable(meta={**meta, "verdict": "abstain"})
    table = deblender()(moved, from_tangent(XY, CENTER), offsets=offsets).to_table()
    assert np.all(table["flags"] & int(Flag.UNALIGNED))


def test_fit_trains_and_survives_saving(tmp_path, monkeypatch):
    monkeypatch.setattr(templates, "STEPS", 40)
    monkeypatch.setattr(templates, "BATCH", 16)
    head = JEPADeblender(deblender().encoder)
    pairs, truths = [], []
    for seed in range(2):
        pairs.append(make_pair(XY, FLUX, MIXTURES, seed=seed))
        table = QTable({"sky_centroid": from_tangent(XY, CENTER), "mixture": MIXTURES})
        for band in FWHM:
            table[f"flux_{band}"] = FLUX * u.nJy
        truths.append(table)
    path = tmp_path / "deblender.safetensors"
    head.fit(pairs, truths, seed=3, checkpoint=path)
    again = JEPADeblender.from_pretrained(path, encoder=deblender().encoder, device="cpu")
    one, two = head(pairs[0]), again(pairs[0])
    np.testing.assert_allclose(one.flux("i").value, two.flux("i").value, rtol=1e-6)
    assert np.isfinite(one.to_table()["blend_probability"]).all()
    assert head._provenance["distance"] < head._provenance["distance_classical"]
