# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Catalogues: their columns, their errors, and that they agree with the scene."""

import importlib.util
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable

from rosetta import AstrometricSolution, EmbeddingPhotometry, Flag, JEPADeblender, SkyPair, checkpoint, measure
from rosetta.deblending.psf_width import flux_error
from rosetta.encoding.encoder import CrossSurveyEncoder
from rosetta.encoding.network import EncoderConfig
from rosetta.images.image import band_images
from rosetta.images.positions import from_tangent
from rosetta.photometry import error_model
from rosetta.surveys import EUCLID, RUBIN
from rosetta.training.loop import TrainerConfig, seeded, train

# Tests are imported one by one, so the scenes shared with the deblender's tests are loaded by path.
_spec = importlib.util.spec_from_file_location("deblender_scenes", Path(__file__).with_name("test_deblender.py"))
scenes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scenes)
CENTER, FLUX, FWHM, MIXTURES, XY = scenes.CENTER, scenes.FLUX, scenes.FWHM, scenes.MIXTURES, scenes.XY
deblender, light, make_pair, match, scene = (
    scenes.deblender, scenes.light, scenes.make_pair, scenes.match, scenes.scene
)


@lru_cache
def photometry():
    return EmbeddingPhotometry(deblender().encoder)


@lru_cache
def catalog():
    return photometry()(scene().embedding.pair, scene())


def test_columns_are_the_contract():
    table = catalog()
    assert isinstance(table, QTable)
    assert table.meta["bands"] == list(FWHM)
    for band in FWHM:
        for name in ("flux", "flux_err"):
            assert table[f"{name}_{band}"].unit == u.nJy
        assert {f"chi2_{band}", f"neighbor_corr_{band}"} <= set(table.colnames)
    assert table["flux_cov"].shape == (4, 4, 4) and table["flux_cov"].unit == u.nJy**2
    assert {"label", "sky_centroid", "neighbor_label", "flags"} <= set(table.colnames)
    assert "flux_u" not in table.colnames  # not observed


def test_fluxes_are_the_scene_and_errors_are_its_diagonal():
    table, result = catalog(), scene()
    for k, band in enumerate(result.bands):
        for row, label in enumerate(table["label"]):
            model = result.model(label, band).data.sum()
            assert table[f"flux_{band}"][row].value == pytest.approx(model, rel=1e-3)
        np.testing.assert_allclose(table[f"flux_err_{band}"].value ** 2, table["flux_cov"][:, k, k].value)
        formal = np.sqrt(result.covariance(band).diagonal())
        assert (table[f"flux_err_{band}"].value >= formal).all()
    assert np.all(np.linalg.eigvalsh(table["flux_cov"].value) > 0)


def test_each_band_has_its_flags_and_its_error_of_the_position():
    table, result = catalog(), scene()
    for band in result.bands:
        np.testing.assert_array_equal(table[f"flags_{band}"], result.to_table()[f"flags_{band}"])
        assert not np.any(table[f"flags_{band}"] & ~table["flags"])
    moved = np.stack([result.fits[band].displaced for band in "gi"], axis=1)  # (n, 2, 4)
    formal = result.template_covariance[:, 0, 1] * (result.flux("g") * result.flux("i")).value
    np.testing.assert_allclose(table["flux_cov"].value[:, 0, 1], formal + (moved[:, 0] * moved[:, 1]).mean(axis=1))


def test_a_misfit_enlarges_the_error_of_its_band_alone():
    many = scenes.MANY
    pair = make_pair(many, np.full(9, 6000.0), np.repeat(MIXTURES[:1], 9, axis=0))
    coord = from_tangent(many, CENTER)
    right, wrong = (
        photometry()(scenes.with_wrong(pair, "g", how), coord, **scenes.LISTED) for how in ("none", "shifted")
    )
    pull = (wrong["flux_g"] - 6000.0 * u.nJy) / wrong["flux_err_g"]
    assert np.all(np.abs(pull) < 3)
    assert np.all(wrong["flux_err_g"] > 3 * right["flux_err_g"])
    np.testing.assert_allclose(wrong["flux_err_VIS"].value, right["flux_err_VIS"].value, rtol=0.3)


def test_errors_of_zero_points_enter_the_covariance():
    without, (pair, known) = catalog(), (scene().embedding.pair, scene())
    found = photometry()(pair, known, zeropoint_err={"g": 0.02, "H": 0.05})
    for k, (band, error) in enumerate({"g": 0.02, "i": 0.0, "VIS": 0.0, "H_E": 0.05}.items()):
        more = (found["flux_cov"] - without["flux_cov"])[:, k].value
        expected = (error * found[f"flux_{band}"].value) ** 2
        np.testing.assert_allclose(more[:, k], expected, rtol=1e-6, atol=1e-6 * without["flux_cov"][0, k, k].value)
        assert (np.delete(more, k, axis=1) == 0).all()
        np.testing.assert_allclose(found[f"flux_err_{band}"].value ** 2, found["flux_cov"][:, k, k].value)
        assert found.meta["rosetta"]["options"]["zeropoint_err"][band] == error
    assert set(without.meta["rosetta"]["options"]["zeropoint_err"].values()) == {0.0}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (0.01, TypeError, "zeropoint_err must be a dict of band name to relative error, got float"),
        ({"K": 0.01}, ValueError, "zeropoint_err has unknown bands"),
        ({"g": -0.01}, ValueError, r"zeropoint_err\['g'\] is -0.01: it must be finite and not negative"),
        ({"Y": np.nan}, ValueError, r"zeropoint_err\['Y_E'\] is nan"),
        ({"g": "1 %"}, TypeError, r"zeropoint_err\['g'\] must be a number"),
    ],
)
def test_bad_errors_of_zero_points_are_named(given, error, message):
    with pytest.raises(error, match=message):
        photometry()(scene().embedding.pair, scene(), zeropoint_err=given)
    with pytest.raises(error, match=message):
        measure(scene().embedding.pair, zeropoint_err=given)


STARS = np.array([[-6.0, -6.0], [-6.0, 6.0], [6.0, -6.0], [6.0, 6.0], [0.0, 0.0]])


@pytest.mark.parametrize(("psf_width", "suspect"), [(1.0, False), (1.02, False), (1.15, True), (0.87, True)])
def test_stars_tell_that_a_psf_is_too_wide_or_too_narrow(psf_width, suspect):
    """The ground bands' PSF alone; errors grow by what it does to the flux of a star, and no other band's do."""
    points = np.eye(1, 6).repeat(3, 0)[None].repeat(5, 0) / 3
    true, given = (make_pair(STARS, np.full(5, 2e4), points, psf_width=width) for width in (1.0, psf_width))
    pair = SkyPair(given.ground, true.space)
    found = deblender()(pair, from_tangent(STARS, CENTER))
    table, expected = photometry()(pair, found), abs(psf_width**2 - 1) / (psf_width**2 + 1)
    for band in "gi":
        assert ((table[f"flags_{band}"] & Flag.PSF_SUSPECT) > 0).all() == suspect
        error = flux_error(found.fits[band], found.images[band])
        assert error == (pytest.approx(expected, rel=0.25) if suspect else 0.0)
        assert (table[f"flux_err_{band}"] > error * table[f"flux_{band}"]).all()
    assert not (table["flags_VIS"] & Flag.PSF_SUSPECT).any() and not (table["flags_H_E"] & Flag.PSF_SUSPECT).any()


@pytest.mark.parametrize(("psf_width", "relative"), [(2.0, 0.6), (0.5, 0.6)])
def test_the_error_of_a_psf_that_is_not_the_surveys_is_that_of_its_width(psf_width, relative):
    pair = make_pair(XY, FLUX, MIXTURES, sides=("ground",), psf_width=psf_width)
    images = band_images(pair)
    for band, fwhm in (("g", 0.86), ("i", 0.79)):
        ratio = images[band].fwhm / fwhm
        assert ratio == pytest.approx(psf_width * FWHM[band] / fwhm, rel=0.05)
        assert images[band].psf_suspect_error == pytest.approx(abs(ratio**2 - 1) / (ratio**2 + 1))
        assert images[band].psf_suspect_error == pytest.approx(relative, abs=0.1)


@pytest.mark.parametrize(("psf_width", "credible"), [(1.0, True), (2.0, False)])
def test_one_star_tells_whether_a_psf_that_is_not_the_surveys_is_credible(psf_width, credible):
    """A survey of half the width; the PSF given is true, or twice as wide as that."""
    point = np.eye(1, 6).repeat(3, 0)[None] / 3
    ground = make_pair(STARS[-1:], np.full(1, 1e5), point, sides=("ground",), psf_width=psf_width).ground
    sharp = replace(RUBIN, bands=tuple(replace(band, psf_fwhm=band.psf_fwhm / 2) for band in RUBIN.bands))
    found = deblender()(SkyPair(ground, None, surveys=(sharp, EUCLID)), from_tangent(STARS[-1:], CENTER))
    for band in "gi":
        image, off = found.images[band], abs(found.fits[band].flux[0] / 1e5 - 1)
        assert image.flags & Flag.PSF_SUSPECT and image.psf_suspect_error > 0.5
        error = flux_error(found.fits[band], image)
        assert off < error and (error < 0.12) == credible


def test_neighbours_are_each_other():
    table = catalog()
    index = match(table, XY)
    label = np.asarray(table["label"])
    assert table["neighbor_label"][index[0]] == label[index[1]]
    assert table["neighbor_label"][index[1]] == label[index[0]]
    assert table["neighbor_corr_i"][index[0]] < -0.1  # light given to one is taken from the other
    assert table["neighbor_label"][index[3]] == -1


def test_positions_give_the_same_answer_as_their_scene():
    pair = make_pair(XY, FLUX, MIXTURES)
    table = photometry()(pair, from_tangent(XY, CENTER))
    np.testing.assert_allclose(table["flux_i"].value, FLUX, rtol=0.05)
    outside = photometry()(pair, from_tangent([[0.0, 0.0], [99.0, 0.0]], CENTER))
    assert np.isnan(outside["flux_i"][1]) and outside["flags"][1] & int(Flag.OUTSIDE)


def test_an_empty_scene_gives_an_empty_catalogue():
    table = photometry()(make_pair(XY, FLUX, MIXTURES), from_tangent(np.zeros((0, 2)), CENTER))
    assert len(table) == 0 and "flux_i" in table.colnames


def test_heads_learn_from_aligned_pairs(monkeypatch):
    """As the main job has them: fragments are told from neighbours by the colours of aligned images."""
    (pair,), (truth,) = scenes.known_sky(1)
    headers = AstrometricSolution.of_headers(list(band_images(pair).values()))
    assert not headers.offset_at(truth["sky_centroid"]).any() and len(headers.offset_at(truth["sky_centroid"][:0])) == 0
    given, call = [], JEPADeblender.__call__

    def recorded(self, x, **options):
        given.append(options["offsets"])
        return call(self, x, **options)

    monkeypatch.setattr(JEPADeblender, "__call__", recorded)
    for head in (EmbeddingPhotometry(deblender().encoder, deblender()), deblender()):
        given.clear()
        head._rows(pair, truth, 0, 0)
        assert given[0].same_as(headers) and given[0].verdict == "ok"
        assert not any(given[1:])  # seen from one side alone


def test_training_calibrates_the_errors(monkeypatch, tmp_path):
    monkeypatch.setattr(EmbeddingPhotometry, "trainer", TrainerConfig(steps=150, batch=1024))
    rng = np.random.default_rng(5)
    pairs, truths = [], []
    for seed in range(3):
        grid = np.stack(np.meshgrid(np.arange(-7.5, 8, 3.0), np.arange(-7.5, 8, 3.0)), -1).reshape(-1, 2)
        xy = grid + rng.uniform(-0.5, 0.5, grid.shape)
        flux = 10 ** rng.uniform(2.5, 4, len(xy))
        mixtures = np.stack([light(r, q) for r, q in rng.uniform((0.15, 0.6), (0.4, 1.4), (len(xy), 2))])
        pairs.append(make_pair(xy, flux, mixtures, seed=seed))
        table = QTable({"sky_centroid": from_tangent(xy, CENTER)})
        for band in FWHM:
            table[f"flux_{band}"] = flux * u.nJy
        truths.append(table)
    head = EmbeddingPhotometry(deblender().encoder, deblender())
    path, rows = tmp_path / "photometry.safetensors", tmp_path / "rows"
    with pytest.raises(KeyboardInterrupt):
        head.fit(scenes.Interrupted(pairs, 2), truths, seed=1, checkpoint=rows)
    rest = scenes.Interrupted(pairs, 3)
    head.fit(rest, truths, seed=1, checkpoint=rows)
    assert rest.read == [0, 2]
    head.save(path)
    assert head._provenance["coverage"] == pytest.approx(0.683, abs=0.02)
    again = EmbeddingPhotometry.from_pretrained(path, encoder=deblender().encoder, device="cpu")
    one, two = (h(scene().embedding, scene()) for h in (head, again))
    np.testing.assert_allclose(one["flux_err_i"].value, two["flux_err_i"].value, rtol=1e-6)
    assert not np.allclose(one["flux_err_i"].value, catalog()["flux_err_i"].value)
    assert np.all(np.linalg.eigvalsh(one["flux_cov"].value) > 0)


def test_too_little_truth_is_refused():
    head = EmbeddingPhotometry(deblender().encoder, deblender())
    pairs = [make_pair(XY[:3], FLUX[:3], MIXTURES[:3], seed=seed) for seed in range(2)]
    truth = QTable({"sky_centroid": from_tangent(XY[:3], CENTER), **{f"flux_{b}": FLUX[:3] * u.nJy for b in FWHM}})
    with pytest.raises(ValueError, match=r"pairs give \d+ training fluxes with truth, at least 30"):
        head.fit(pairs, [truth, truth], seed=0)
    assert not head._provenance.get("trained")


def test_a_bundled_deblender_is_used_where_it_belongs_and_never_swallowed(monkeypatch, tmp_path, caplog):
    """Which one is decided by fingerprints; a damaged file stops the program."""
    pair, places = make_pair(XY, FLUX, MIXTURES), from_tangent(XY, CENTER)
    path = tmp_path / "deblender.safetensors"
    monkeypatch.setattr(checkpoint, "bundled", lambda kind: tmp_path / f"{kind}.safetensors")
    used = EmbeddingPhotometry(deblender().encoder)(pair, places)  # none is bundled
    assert used.meta["rosetta"]["options"]["deblender"] == "untrained" and "no bundled deblender" in caplog.text
    trained = named(JEPADeblender(deblender().encoder))
    fingerprint = trained.save(path)

    config = EncoderConfig(dim=16, depth=1, heads=2, proj_dim=8, predictor_dim=12, predictor_depth=1, predictor_heads=2)
    stranger = CrossSurveyEncoder(config=config, seed=9, device="cpu")
    assert EmbeddingPhotometry(stranger)._own_deblender().fingerprint is None
    head = EmbeddingPhotometry(deblender().encoder)
    head._device = "cpu"
    assert head._own_deblender().fingerprint == fingerprint
    assert head._own_deblender() is head._own_deblender()  # loaded once
    assert str(head._own_deblender()._device) == "cpu"
    assert head(pair, places).meta["rosetta"]["options"]["deblender"] == fingerprint

    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(checkpoint.CheckpointError, match="corrupted"):
        EmbeddingPhotometry(deblender().encoder)(pair, places)
    monkeypatch.setattr(JEPADeblender, "from_pretrained", lambda **_: int("no number"))
    trained.save(path)
    with pytest.raises(ValueError, match="no number"):
        EmbeddingPhotometry(deblender().encoder)(pair, places)


def named(head, **owners):
    """The head as if it had been trained, on ``owners`` instead of its own."""
    head._provenance, head._owners = {"trained": True}, {**head._trained_on(), **owners}
    return head


def test_errors_are_calibrated_on_one_deblender(tmp_path):
    """Scenes of any other are refused, also of an untrained one, also after saving; by name on either side."""
    encoder, pair, places = deblender().encoder, make_pair(XY, FLUX, MIXTURES), from_tangent(XY, CENTER)
    trained = named(JEPADeblender(encoder))
    ours = trained(pair, places)
    assert ours.meta["rosetta"]["head_fingerprint"] == trained.fingerprint is not None
    assert scene().meta["rosetta"]["head_fingerprint"] is None
    head = named(EmbeddingPhotometry(deblender=trained))
    assert head.encoder is encoder
    head.save(tmp_path / "photometry.safetensors")
    loaded = EmbeddingPhotometry.from_pretrained(tmp_path / "photometry.safetensors", encoder=encoder, device="cpu")
    for calibrated in (head, loaded):
        assert calibrated(ours.embedding, ours).meta["rosetta"]["options"] == {
            "deblender": trained.fingerprint, "zeropoint_err": dict.fromkeys(FWHM, 0.0)
        }  # fmt: skip
        with pytest.raises(ValueError, match=f"of an untrained deblender, but .* on deblender {trained.fingerprint}"):
            calibrated(scene().embedding, scene())
    other = named(EmbeddingPhotometry(encoder, deblender()), deblender="0123456789abcdef")
    with pytest.raises(ValueError, match=f"a scene of deblender {trained.fingerprint}, but .* 0123456789abcdef: give"):
        other(ours.embedding, ours)
    with pytest.raises(ValueError, match="through an untrained deblender, but .* calibrated on deblender 0123"):
        other(pair, places)
    on_untrained = named(EmbeddingPhotometry(encoder, deblender()))
    assert len(on_untrained(scene().embedding, scene())) == len(scene())
    with pytest.raises(ValueError, match="are calibrated on an untrained deblender"):
        on_untrained(ours.embedding, ours)
    assert len(EmbeddingPhotometry(encoder)(ours.embedding, ours)) == len(ours)  # formal errors hold for any scene


def test_a_deblender_of_another_encoder_is_refused(tiny_encoder):
    with pytest.raises(ValueError, match="deblender belongs to encoder .*, but encoder is .*: give the one"):
        EmbeddingPhotometry(tiny_encoder, deblender())
    with pytest.raises(TypeError, match="deblender must be a JEPADeblender or None, got str"):
        EmbeddingPhotometry(tiny_encoder, "deblender")


def test_x_must_be_what_the_scene_was_made_from():
    other = make_pair(XY, FLUX, MIXTURES, seed=7)
    with pytest.raises(ValueError, match="x is not what sources, a DeblendedScene, was made from: give scene.emb"):
        photometry()(other, scene())
    with pytest.raises(ValueError, match="x is not what sources"):
        photometry()(deblender().encoder(other), scene())
    with pytest.raises(TypeError, match="x must be a SkyPair or a SkyEmbedding, got NoneType"):
        photometry()(None, scene())
    assert len(photometry()(scene().embedding, scene())) == len(scene())


def test_a_scenes_own_offsets_may_be_given_again():
    given = scenes.shift_offsets(20.0, -10.0)
    pair = make_pair(XY, FLUX, MIXTURES)
    result = deblender()(pair, offsets=given)
    for same in (given, given.copy(), result.offsets, AstrometricSolution.from_table(given)):
        assert len(photometry()(pair, result, offsets=same)) == len(result)
    with pytest.raises(ValueError, match="the scene remembers"):
        photometry()(pair, result, offsets=scenes.shift_offsets(20.0, -11.0))
    with pytest.raises(ValueError, match="offsets must be the table"):
        photometry()(pair, result, offsets=QTable())
    of_solution = deblender()(pair, offsets=AstrometricSolution.from_table(given))
    np.testing.assert_array_equal(photometry()(pair, of_solution)["flux_g"], photometry()(pair, result)["flux_g"])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="the scene remembers"):
        photometry()(scene().embedding, scene(), offsets=scenes.shift_offsets(0.0, 0.0))
    with pytest.raises(ValueError, match="truth has 1 tables for 2 pairs"):
        photometry().fit([None, None], [QTable()], seed=0)


def test_unmeasured_fluxes_do_not_poison_the_error_network():
    rng = np.random.default_rng(0)
    true = rng.uniform(10, 1000, 1200)
    data = {
        "features": rng.normal(size=(len(true), error_model.N_FEATURE)).astype(np.float32),
        "true": true,
        "error": np.full(len(true), 5.0),
        "flux": true * (1 + 0.2 * rng.normal(size=true.shape)),
    }
    data["flux"][::7] = np.nan
    data["error"][::5] = np.nan
    rows = error_model.usable(data)
    assert len(rows["flux"]) == (np.isfinite(data["flux"]) & np.isfinite(data["error"])).sum()
    with seeded(0):
        network = error_model.ErrorNet(error_model.ErrorConfig(width=8))
    train(network, rows, rows, EmbeddingPhotometry.trainer, seed=0)
    report = error_model.calibrate(network, rows)
    assert report["coverage"] == pytest.approx(0.683, abs=0.01)
    widen, extra = error_model.predict(network, data["features"])
    relative = np.hypot(widen * 5.0, extra * true) / true
    assert np.median(relative) == pytest.approx(0.2, rel=0.25)
