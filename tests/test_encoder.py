# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""CrossSurveyEncoder and SkyEmbedding: the contract, on an untrained tiny encoder."""

import pickle
from dataclasses import asdict

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.nddata import NDData
from astropy.wcs import WCS
from astropy.wcs.wcsapi import HighLevelWCSWrapper, SlicedLowLevelWCS

from rosetta import HSC, HST_ACS, CrossSurveyEncoder, Flag, SkyPair, checkpoint
from rosetta.checkpoint import CheckpointError
from rosetta.encoding.pretraining import TrainConfig
from rosetta.images.positions import tangent


@pytest.fixture
def pair(make_image):
    return SkyPair(
        {b: make_image(100, 0.2, seed=i) for i, b in enumerate("gri")},
        {b: make_image(200, 0.1, seed=10 + i) for i, b in enumerate(("VIS", "H_E"))},
    )


@pytest.fixture
def embedding(tiny_encoder, pair):
    return tiny_encoder(pair, window=12.8 * u.arcsec)


def test_shapes_and_positions(tiny_encoder, pair):
    embedding = tiny_encoder(pair, window=19.2 * u.arcsec)
    n = len(embedding.centers)
    assert embedding.sides["ground"]["tokens"].shape == (n, 36, 384)
    assert embedding.sides["space"]["tokens"].shape == (n, 144, 384)
    np.testing.assert_allclose(np.linalg.norm(embedding.sides["space"]["embedding"], axis=1), 1, rtol=1e-5)
    assert embedding.pair is pair
    assert embedding.fingerprint == tiny_encoder.fingerprint
    with pytest.raises(ValueError, match="read-only"):
        embedding.sides["ground"]["tokens"][0] = 0


def test_encoding_is_repeatable_and_bands_matter(tiny_encoder, pair, embedding):
    again = tiny_encoder(pair, window=12.8 * u.arcsec)
    np.testing.assert_array_equal(again.sides["space"]["tokens"], embedding.sides["space"]["tokens"])
    fewer = tiny_encoder(SkyPair(dict(list(pair.ground.items())[:2]), dict(pair.space)), window=12.8 * u.arcsec)
    assert not np.allclose(fewer.sides["ground"]["cls"], embedding.sides["ground"]["cls"], atol=1e-3)
    np.testing.assert_allclose(fewer.sides["space"]["cls"], embedding.sides["space"]["cls"], atol=1e-5)


def test_a_source_is_read_in_the_middle_of_a_patch(tiny_encoder, pair, embedding):
    """The same pixels about a source give the same token, wherever the source lies among the patches of a window."""
    image = pair.space["VIS"]
    x, y = np.array([90.0, 97.0, 103.0]), np.array([80.0, 99.0, 121.0])
    coord = image.wcs.pixel_to_world(x, y)
    tokens = tiny_encoder.at(pair, coord, "space")
    assert tokens.shape == (3, 384) and np.isfinite(tokens).all()
    for name in ("Euclid", pair.surveys[1]):
        np.testing.assert_array_equal(tiny_encoder.at(embedding, coord, name), tokens)
        np.testing.assert_array_equal(embedding.at(coord, name), tokens)
    sent = pickle.loads(pickle.dumps(embedding))
    with pytest.raises(ValueError, match="without its encoder: use encoder.at"):
        sent.at(coord, "space")
    np.testing.assert_array_equal(tiny_encoder.at(sent, coord, "space"), tokens)
    one_by_one = np.concatenate([tiny_encoder.at(pair, one, "space") for one in coord])
    np.testing.assert_allclose(one_by_one, tokens, atol=1e-4)
    wcs = image.wcs.deepcopy()
    wcs.wcs.crpix -= 7  # the first seven rows and columns are gone
    moved = NDData(image.data[7:, 7:], uncertainty=type(image.uncertainty)(image.uncertainty.array[7:, 7:]),
                   mask=image.mask[7:, 7:], wcs=wcs, unit=image.unit, psf=image.psf)
    alone = SkyPair(None, {"VIS": image})
    there = tiny_encoder.at(SkyPair(None, {"VIS": moved}), coord, "space")
    np.testing.assert_allclose(there, tiny_encoder.at(alone, coord, "space"), atol=0.05)
    assert np.abs(there[0] - there[1]).max() > 0.3


def test_reading_says_what_is_wrong(tiny_encoder, pair, embedding):
    coord = embedding.centers[:1]
    other = CrossSurveyEncoder(config=tiny_encoder.config, seed=2, device="cpu")
    with pytest.raises(ValueError, match="unknown survey 'JWST': use one of"):
        tiny_encoder.at(pair, coord, "JWST")
    with pytest.raises(ValueError, match="x has no space images to read"):
        tiny_encoder.at(SkyPair(dict(pair.ground), None), coord, "space")
    with pytest.raises(ValueError, match="x was embedded by encoder"):
        other.at(embedding, coord, "space")
    with pytest.raises(TypeError, match="x must be a SkyPair or a SkyEmbedding"):
        tiny_encoder.at(None, coord, "space")
    assert tiny_encoder.at(pair, coord[:0], "ground").shape == (0, 384)
    far = coord.spherical_offsets_by(1 * u.deg, 0 * u.deg)
    assert np.isnan(tiny_encoder.at(pair, far, "ground")).all()
    with pytest.raises(ValueError, match="coord lies outside of the ground images"):
        tiny_encoder.attention(pair, far, "ground")
    with pytest.raises(ValueError, match="coord has 2 positions: attention is of one"):
        tiny_encoder.attention(pair, embedding.centers[[0, 0]], "ground")


def test_attention_is_a_share_on_the_sky(tiny_encoder, pair, embedding):
    """Shares sum to one, and the patch that shows the place asked about is the middle one."""
    coord = embedding.centers[0]
    for survey, pitch, count in (("ground", 3.2, 5), ("space", 1.6, 11)):
        found = tiny_encoder.attention(pair, coord, survey, window=19.2 * u.arcsec)
        config = tiny_encoder.config
        assert found.data.shape == (config.depth, config.heads, count, count)
        np.testing.assert_allclose(found.data.sum((-1, -2)) + found.meta["cls"], 1, atol=1e-5)
        np.testing.assert_allclose(found.wcs.world_to_pixel(coord), count // 2, atol=1e-6)
        east = found.wcs.pixel_to_world(count // 2 - 1, count // 2)
        np.testing.assert_allclose(tangent(east, coord)[0], [pitch, 0], atol=1e-6)


def test_attention_is_what_the_trunk_uses(tiny_encoder):
    """Values that are mixed by the weights are what the attention of a block gives."""
    attention = tiny_encoder.model.encoder.blocks[0].attention
    x = torch.randn(2, 7, tiny_encoder.config.dim, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        value = attention.key_value(x)[..., x.shape[-1] :].view(2, 7, attention.heads, -1).transpose(1, 2)
        mixed = attention.weights(x, x) @ value
        expected = attention.out(mixed.transpose(1, 2).reshape(x.shape))
        torch.testing.assert_close(attention(x, x), expected, atol=1e-4, rtol=1e-4)


def test_table_similarity_and_map(embedding):
    table = embedding.to_table()
    n = len(embedding.centers)
    assert len(table) == 2 * n
    assert table.colnames == ["survey", "sky_center", "embedding", "cls", "coverage", "ood_score", "flags"]
    assert set(table["survey"]) == {"Rubin", "Euclid"}
    assert np.all((table["coverage"] > 0) & (table["coverage"] <= 1))
    np.testing.assert_allclose(np.diag(embedding.similarity(embedding)), 1, atol=1e-5)
    for survey, pitch in (("Rubin", 3.2), ("Euclid", 1.6)):
        token_map = embedding.token_map(survey)
        coord = embedding.centers[n // 2]
        x, y = (int(np.round(v)) for v in token_map.wcs.celestial.world_to_pixel(coord))
        pixel = token_map.wcs.celestial.pixel_to_world(x, y)
        side = embedding.sides["ground" if survey == "Rubin" else "space"]
        window = embedding.centers.separation(pixel).argmin()
        nearest = np.hypot(*(side["positions"][window] - tangent(pixel, embedding.centers[window])).T).argmin()
        np.testing.assert_array_equal(token_map.data[:, y, x], side["tokens"][window, nearest])
        assert np.abs(tangent(pixel, coord)).max() <= 0.51 * pitch


@pytest.mark.parametrize("reach", [0 * u.arcsec, -1 * u.arcsec, np.nan * u.arcsec, 2 * u.m, 2.0])
def test_search_needs_an_angle(tiny_encoder, embedding, reach):
    with pytest.raises(ValueError, match="reach"):
        tiny_encoder.search(embedding, embedding, reach=reach)


def test_search_compares_like_with_like(tiny_encoder, pair, embedding):
    other = CrossSurveyEncoder(config=tiny_encoder.config, seed=2, device="cpu")
    with pytest.raises(ValueError, match="embedding was made by encoder"):
        other.search(embedding, embedding, reach=1 * u.arcsec)
    with pytest.raises(ValueError, match="other has windows of 19.2"):
        tiny_encoder.search(embedding, tiny_encoder(pair, window=19.2 * u.arcsec), reach=1 * u.arcsec)


def test_predict_both_ways(tiny_encoder, embedding, pair):
    for survey, side in (("Euclid", "space"), ("Rubin", "ground")):
        predicted = tiny_encoder.predict(embedding, survey)
        assert list(predicted.sides) == [side]
        assert predicted.sides[side]["tokens"].shape == embedding.sides[side]["tokens"].shape
        np.testing.assert_allclose(predicted.sides[side]["positions"], embedding.sides[side]["positions"], atol=0.11)
        assert np.isfinite(predicted.sides[side]["embedding"]).all()
    ground = tiny_encoder(SkyPair(dict(pair.ground), None), window=12.8 * u.arcsec)
    assert list(tiny_encoder.predict(ground, "Euclid").sides) == ["space"]
    with pytest.raises(ValueError, match="no space side to predict"):
        tiny_encoder.predict(ground, "Rubin")


def test_one_side_and_small_fields_are_flagged(tiny_encoder, make_image):
    embedding = tiny_encoder(SkyPair(None, {"VIS": make_image(60, 0.1)}))
    assert embedding.window == 12.8 * u.arcsec
    flags = embedding.sides["space"]["flags"]
    assert np.all(flags & Flag.ONE_SIDED)
    assert np.all(flags & Flag.LOW_COVERAGE)
    assert np.isnan(embedding.sides["space"]["ood_score"]).all()
    assert not np.any(flags & Flag.OUT_OF_DISTRIBUTION)
    whole = tiny_encoder(SkyPair(None, {"VIS": make_image(130, 0.1)})).sides["space"]
    assert not np.any(whole["flags"] & Flag.LOW_COVERAGE) and np.isfinite(whole["ood_score"]).all()


def test_windows_at_given_places(tiny_encoder, pair):
    """They keep their side and their places, whatever the field; where nothing is seen there is none."""
    middle = pair.ground["r"].wcs.pixel_to_world(*(0.5 * np.array(pair.ground["r"].data.shape[::-1])))
    centers = middle.spherical_offsets_by([0.0, 4.0, 500.0] * u.arcsec, [0.0, -3.0, 0.0] * u.arcsec)
    found = tiny_encoder(pair, window=12.8 * u.arcsec, centers=centers)
    assert found.window == 12.8 * u.arcsec
    assert (found.centers.separation(centers[:2]) < 1e-6 * u.arcsec).all()


def test_other_surveys_need_no_code(tiny_encoder, make_image):
    pair = SkyPair(
        {"g": make_image(80, 0.168), "i": make_image(80, 0.168)},
        {"F814W": make_image(440, 0.03)},
        surveys=(HSC, HST_ACS),
    )
    embedding = tiny_encoder(pair)
    assert np.isfinite(embedding.sides["space"]["tokens"]).all()
    assert embedding.sides["space"]["flags"][0] & Flag.BAND_EXTRAPOLATED
    assert not embedding.sides["ground"]["flags"][0] & Flag.BAND_EXTRAPOLATED


def test_any_ape14_wcs(tiny_encoder, make_image, pair):
    image = pair.ground["r"]
    wrapped = HighLevelWCSWrapper(SlicedLowLevelWCS(image.wcs, [slice(None), slice(None)]))
    assert not isinstance(wrapped, WCS)
    same = make_image(100, 0.2, data=image.data, wcs=wrapped)
    one, two = (tiny_encoder(SkyPair({"r": i}, None), window=12.8 * u.arcsec) for i in (image, same))
    np.testing.assert_allclose(one.sides["ground"]["cls"], two.sides["ground"]["cls"], atol=1e-4)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (10 * u.arcsec, "at least 12.8"),
        (20 * u.arcsec, "multiple of 3.2"),
        (38.4, "must be an angle"),
        (3 * u.m, "must be an angle"),
    ],
)
def test_bad_windows(tiny_encoder, pair, window, message):
    with pytest.raises(ValueError, match=message):
        tiny_encoder(pair, window=window)


def test_bad_calls(tiny_encoder, embedding):
    with pytest.raises(TypeError, match="pair must be a SkyPair"):
        tiny_encoder(np.zeros((3, 3)))
    other = CrossSurveyEncoder(config=tiny_encoder.config, seed=2, device="cpu")
    with pytest.raises(ValueError, match=f"{embedding.fingerprint}.*{other.fingerprint}"):
        other.predict(embedding, "Euclid")
    with pytest.raises(ValueError, match="device 'abacus' is not known"):
        CrossSurveyEncoder(device="abacus")


def test_save_and_load(tiny_encoder, embedding, pair, tmp_path):
    path = tmp_path / "encoder.safetensors"
    assert tiny_encoder.save(path) == tiny_encoder.fingerprint
    loaded = CrossSurveyEncoder.from_pretrained(path, device="cpu")
    assert loaded.fingerprint == tiny_encoder.fingerprint
    again = loaded(pair, window=12.8 * u.arcsec)
    np.testing.assert_array_equal(again.sides["ground"]["tokens"], embedding.sides["ground"]["tokens"])


def test_another_architecture_is_refused(tiny_encoder, tmp_path):
    path = tmp_path / "encoder.safetensors"
    tensors = tiny_encoder.model.packed()
    checkpoint.save(path, tensors, kind="encoder", config={"layers": 3}, provenance={})
    with pytest.raises(CheckpointError, match="another architecture: settings unknown layers and missing depth, dim"):
        CrossSurveyEncoder.from_pretrained(path)
    tensors.pop(next(iter(tensors)))
    checkpoint.save(path, tensors, kind="encoder", config=asdict(tiny_encoder.config), provenance={})
    with pytest.raises(CheckpointError, match="another architecture"):
        CrossSurveyEncoder.from_pretrained(path)


@pytest.mark.parametrize(
    "forged",
    [{"depth": 10**9}, {"predictor_depth": 10**9}, {"dim": 6 * 10**9}, {"heads": 10**9}, {"patch": 4 * 10**6},
     {"proj_dim": 10**12}, {"knots_ground": [6.0] * 40}],
)  # fmt: skip
def test_forged_sizes_cost_nothing(tiny_encoder, tmp_path, forged):
    path = tmp_path / "encoder.safetensors"
    config = {**asdict(tiny_encoder.config), **forged}
    checkpoint.save(path, tiny_encoder.model.packed(), kind="encoder", config=config, provenance={})
    with pytest.raises(CheckpointError, match="another architecture"):
        CrossSurveyEncoder.from_pretrained(path, device="cpu")


def test_fit_refuses_what_it_cannot_train_on(tiny_encoder, pair):
    with pytest.raises(TypeError, match="pairs must be a sequence"):
        tiny_encoder.fit(iter([pair]), config=TrainConfig(steps=1))
    with pytest.raises(ValueError, match="none of the 1 pairs can be trained on.*needs all space bands"):
        tiny_encoder.fit([pair], config=TrainConfig(steps=1))


class Pairs:
    """Noise-free pairs, made when they are asked for; the one called ``broken`` cannot be read."""

    def __init__(self, make_image, n, broken=None):
        self.make_image, self.n, self.broken = make_image, n, broken

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index == self.broken:
            raise OSError("the disk is full of holes")
        y, x = np.mgrid[:240, :240]
        rng = np.random.default_rng(index)
        sides = {}
        for side, n, scale, bands in (("ground", 120, 0.2, "ugrizy"), ("space", 240, 0.1, ("VIS", "Y", "J", "H"))):
            sky = sum(
                rng.uniform(5, 50) * np.exp(-0.5 * ((x - cx) ** 2 + (y - cy) ** 2) / 36)
                for cx, cy in rng.uniform(20, 220, (30, 2))
            )
            data = sky.reshape(n, 240 // n, n, 240 // n).mean((1, 3))
            sides[side] = {b: self.make_image(n, scale, data=data, meta={"noise_free": True}) for b in bands}
        return SkyPair(**sides)


TINY_TRAINING = TrainConfig(steps=2, phases=((1.0, 12.8, 4),), log_every=1, save_every=1, bf16=False, seed=3)


def test_fit_trains_measures_and_names_what_it_leaves_out(tiny_encoder, make_image, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("rosetta.encoding.inference._MEASURED", 16)
    before = tiny_encoder.fingerprint
    steps = []
    result = tiny_encoder.fit(
        Pairs(make_image, 3, broken=1),
        config=TINY_TRAINING,
        validation=Pairs(make_image, 2),
        checkpoint=tmp_path / "state.safetensors",
        progress=lambda step, metrics: steps.append(step),
    )
    assert result is tiny_encoder
    assert tiny_encoder.fingerprint != before
    assert steps == [1, 2]
    assert "pairs[1] left out of training: the disk is full of holes" in caplog.text
    provenance = tiny_encoder.provenance
    assert (provenance["n_tiles"], provenance["steps"], provenance["pairs_seen"]) == (2, 2, 8)
    assert provenance["held_out"]["12.8 arcsec"]["gallery"] == 16
    # What was trained is what is saved, novelty limits included.
    tiny_encoder.save(tmp_path / "encoder.safetensors")
    loaded = CrossSurveyEncoder.from_pretrained(tmp_path / "encoder.safetensors", device="cpu")
    pair = Pairs(make_image, 5)[4]
    one, two = (e(pair, window=12.8 * u.arcsec).sides["space"]["ood_score"] for e in (tiny_encoder, loaded))
    np.testing.assert_array_equal(one, two)
    assert (one > 0).all()


def test_what_was_predicted_cannot_be_searched_for(tiny_encoder, make_image):
    embedding = tiny_encoder(SkyPair({"r": make_image(64, 0.2)}, None), window=12.8 * u.arcsec)
    with pytest.raises(ValueError, match="embedding has a space side that was predicted"):
        tiny_encoder.search(tiny_encoder.predict(embedding, "space"), embedding, reach=1 * u.arcsec)
    with pytest.raises(TypeError, match="embedding must be a SkyEmbedding"):
        tiny_encoder.predict(None, "space")
    with pytest.raises(TypeError, match="other must be a SkyEmbedding"):
        embedding.similarity(None)


def test_there_is_no_token_where_nothing_was_seen(tiny_encoder, make_image):
    image = make_image(64, 0.2)
    mask = np.zeros(image.data.shape, bool)
    mask[:, :40] = True
    half = NDData(image.data, uncertainty=image.uncertainty, wcs=image.wcs, unit=image.unit, mask=mask)
    where = image.wcs.pixel_to_world([10, 55], [32, 32])
    pair = SkyPair({"r": half}, None)
    tokens = tiny_encoder.at(pair, where, "ground")
    assert np.isnan(tokens[0]).all() and np.isfinite(tokens[1]).all()
    token_map = tiny_encoder(pair, window=12.8 * u.arcsec).token_map("ground")
    known = np.isfinite(token_map.data[0])
    assert known.any() and not known.all()


@pytest.mark.parametrize("window", [np.inf * u.arcsec, np.nan * u.arcsec, [13, 13] * u.arcsec, "large", None])
def test_a_window_is_one_finite_angle(tiny_encoder, make_image, window):
    with pytest.raises(ValueError, match="window"):
        tiny_encoder(SkyPair({"r": make_image(64, 0.2)}, None), window=window)


def test_training_refuses_noisy_images(tiny_encoder, make_image):
    pairs = Pairs(make_image, 1)
    noisy = [SkyPair({b: make_image(120, 0.2) for b in "ugrizy"}, dict(pairs[0].space))]
    with pytest.raises(ValueError, match="noise-free tiles: use rosetta.simulate.TrainingSet"):
        tiny_encoder.fit(noisy, config=TINY_TRAINING)


def test_novelty_is_calibrated_on_images_as_they_are(tiny_encoder, make_image):
    """Sky of the same kind is ordinary afterwards, in windows of any size; other sky is not."""
    encoder = CrossSurveyEncoder(config=tiny_encoder.config, seed=3, device="cpu")

    def field(seed, scale=1.0):
        ground, space = make_image(120, 0.2, seed=seed), make_image(240, 0.1, seed=seed + 1000)
        return SkyPair({"r": _times(ground, scale)}, {"VIS": _times(space, scale)})

    before = encoder.fingerprint
    assert encoder.calibrate([field(i) for i in range(6)], [field(10 + i) for i in range(4)]) is encoder
    assert encoder.fingerprint != before and encoder.provenance["novelty"]["n_pair"] == [6, 4]
    for window in (12.8, 22.4):
        scores = {
            scale: encoder(field(30, scale), window=window * u.arcsec).to_table()["ood_score"] for scale in (1.0, 30.0)
        }
        assert np.median(scores[1.0]) < 1.2 and np.all(scores[30.0] > 2 * scores[1.0])
    small = SkyPair({"r": make_image(50, 0.2)}, {"VIS": make_image(100, 0.1)})
    with pytest.raises(ValueError, match="held_out holds no field of 12.8 arcsec or more on both sides"):
        encoder.calibrate([field(0)], [small])


def _times(image, factor):
    return NDData(image.data * factor, uncertainty=image.uncertainty, wcs=image.wcs, unit=image.unit, psf=image.psf)
