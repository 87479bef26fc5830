# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The learned detector: its grid, its maps, what it is trained on, and how the deblender uses it."""

import pickle

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.table import QTable
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from rosetta import CheckpointError, JEPADeblender, LearnedDetector, SkyPair
from rosetta.centres import channels, heat_map, presentations
from rosetta.centres.detector import Centres
from rosetta.centres.network import REACH, CentreConfig, CentreNet
from rosetta.centres.training import true_sources
from rosetta.centres.windows import windows
from rosetta.deblending.candidates import Advice, CandidateConfig, candidates
from rosetta.deblending.deblender import as_aligned
from rosetta.detection.detection import DetectionConfig
from rosetta.encoding.training_windows import TrainingTile, TrainingTileSide
from rosetta.images.image import band_images
from rosetta.surveys import EUCLID, RUBIN

TINY = CentreConfig(widths=(8, 8, 8, 8))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return CentreNet(TINY).eval()


def test_logits_do_not_depend_on_what_is_out_of_reach(network):
    sky = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 13, 192, 192)).astype(np.float32))
    with torch.inference_mode():
        whole, part = network(sky)[0], network(sky[:, :, 16:176, 32:192])[0]
    same, deep = whole[16:176, 32:192], (slice(REACH, -REACH),) * 2
    torch.testing.assert_close(same[deep], part[deep])
    assert not torch.allclose(same, part)  # at the border it does


@given(st.integers(0, 10**6), st.sampled_from(["ground", "space"]))
def test_cells_and_positions_are_inverse(seed, side):
    rng = np.random.default_rng(seed)
    positions, offsets = rng.normal(0, 9, (4, 2)), rng.normal(0, 20, (5, 2))
    xy = channels.cells(offsets, positions, side)
    np.testing.assert_allclose(channels.east_north(xy, positions, side), offsets, atol=1e-9)
    # One arcsec to the east is five cells to the left.
    moved = channels.cells(offsets + [1, 0], positions, side) - xy
    np.testing.assert_allclose(moved, np.tile([-5, 0], (5, 1)), atol=1e-9)


def test_the_four_phases_of_vis_are_its_pixels():
    space = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(1, 4, 1, 1)
    found = channels.stacked(torch.zeros(1, 6, 2, 2), space)
    assert found[0, 6:10, 0, 1].tolist() == [2, 3, 6, 7]
    assert found[0, 10, 0, 1] == 2 * np.mean([2, 3, 6, 7])  # a mean of four has half the noise


@given(st.integers(0, 10**6))
@settings(max_examples=25)
def test_peaks_find_the_centres_of_a_map(seed):
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(6, 60, 12), np.arange(6, 60, 12))
    xy = np.stack([x.ravel(), y.ravel()], -1) + rng.uniform(-3, 3, (x.size, 2))
    weight = rng.uniform(0.1, 1, len(xy)).astype(np.float32)
    heat, weights = heat_map.target_of(xy, weight, (66, 72))
    assert (weights > 0).sum() == len(xy) and np.isclose(weights.sum(), weight.sum())
    found, value = heat_map.peaks(np.log(np.maximum(heat, 1e-9)), -2.0)
    assert len(found) == len(xy) and (value > -0.4).all()
    apart = np.linalg.norm(found[:, None] - xy[None], axis=-1).min(1)
    assert apart.max() < 0.02  # the logarithm of a Gaussian is a parabola


def test_a_peak_at_the_border_is_one():
    image = np.full((8, 8), -9.0)
    image[0, 0] = image[7, 3] = 1.0
    found, _ = heat_map.peaks(image, 0.0)
    np.testing.assert_array_equal(found, [[0, 0], [3, 7]])


# ------------------------------------------------------------------------------------- training
SIDES = {"ground": (RUBIN, 0.2), "space": (EUCLID, 0.1)}


def tile_of(seed, n_source=60, size=60.0):
    """A tile of point-like sources, each a Gaussian as wide as the tile's PSF, and their `TrueSources`."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(-size / 2 + 3, size / 2 - 3, (n_source, 2))
    flux = 10 ** rng.uniform(2.5, 4, (n_source, 1)) * np.ones(10)
    sides, first = {}, 0
    for side, (survey, scale) in SIDES.items():
        n, n_band = round(size / scale), len(survey.bands)
        affine = np.array([[-1 / scale, 0, (n - 1) / 2 + 0.3], [0, 1 / scale, (n - 1) / 2 - 0.2]])
        x, y = affine[:, :2] @ place.T + affine[:, 2:]
        sigma = {"ground": 0.45, "space": 0.16}[side] / 2.3548 / scale
        at = np.arange(n)
        one = [np.exp(-0.5 * ((at - c[:, None]) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi)) for c in (x, y)]
        light = np.einsum("kb,ky,kx->byx", flux[:, first : first + n_band], one[1], one[0])
        sides[side] = TrainingTileSide(torch.from_numpy(light.astype(np.float16)), torch.ones(n_band), affine)
        first += n_band
    return TrainingTile(**sides), presentations.TrueSources(place, flux, np.full(n_source, 0.01))


def test_marked_centres_are_where_the_light_is():
    tiles, sources = zip(*(tile_of(seed) for seed in range(2)), strict=True)
    light, beside, sizes = [], [], set()
    for step in range(12):
        shown = presentations.presented(list(tiles), list(sources), CentreConfig(), 3, step)
        again = presentations.presented(list(tiles), list(sources), CentreConfig(), 3, step)
        assert torch.equal(shown.channels, again.channels) and torch.equal(shown.weights, again.weights)
        sizes.add(shown.channels.shape)
        for part in (slice(0, 6), slice(6, 10)):  # ground, VIS
            of_side = shown.channels[:, part].mean(1)
            centre = (shown.weights > 0.9) & (of_side != 0)
            light += of_side[centre].tolist()
            beside += torch.roll(of_side, 6, -1)[centre].tolist()
    assert {shape[-1] for shape in sizes} == {64, 96, 192} and len({n * a * b for n, _, a, b in sizes}) == 1
    assert np.median(light) > 2.5 > 4 * abs(np.median(beside))


def test_a_source_weighs_by_the_bands_that_are_there():
    _, sources = tile_of(0)
    view = type("View", (), {"fwhm": torch.full((1, 6), 0.7), "depth": torch.full((1, 6), 26.0)})
    space = type("View", (), {"fwhm": torch.full((1, 4), 0.2), "depth": torch.full((1, 4), 26.0)})
    every, one = np.ones(10, bool), np.eye(10, dtype=bool)[6]
    views = {"ground": view, "space": space}
    all_bands, vis = (presentations._significance(sources, views, seen, 0) for seen in (every, one))
    np.testing.assert_allclose(all_bands, np.sqrt(10) * vis, rtol=0.01)


def test_training_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    tile, sources = tile_of(0)
    monkeypatch.setattr("rosetta.centres.training.training_tiles", lambda pairs: [tile] * len(pairs))
    monkeypatch.setattr("rosetta.centres.training.true_sources", lambda pair, truth: sources)
    monkeypatch.setattr("rosetta.centres.training.EVERY", 2)
    monkeypatch.setattr(presentations, "SIZES", ((64, 1),))
    detector = LearnedDetector(device="cpu")
    detector._config = TINY
    path = tmp_path / "state"

    def stop(step, steps, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector.fit([0], [0], steps=4, seed=1, checkpoint=path, progress=stop)
    assert detector.fingerprint is None
    steps = []
    detector.fit([0], [0], steps=4, seed=1, checkpoint=path, progress=lambda step, *_: steps.append(step))
    assert steps == [3, 4]
    other = LearnedDetector(device="cpu")
    other._config = TINY
    assert other.fit([0], [0], steps=4, seed=1).fingerprint == detector.fingerprint
    with pytest.raises(ValueError, match="belongs to another training"):
        other.fit([0], [0], steps=4, seed=2, checkpoint=path)
    (tmp_path / "damaged").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged is no training state"):
        other.fit([0], [0], steps=4, seed=1, checkpoint=tmp_path / "damaged")
    with pytest.raises(ValueError, match="steps is 0: it must be at least 1"):
        other.fit([0], [0], steps=0, seed=1)
    with pytest.raises(ValueError, match="truth has 0 tables for 1 pairs"):
        other.fit([0], [], steps=4, seed=2)
    saved = tmp_path / "detector.safetensors"
    assert detector.save(saved) == detector.fingerprint
    again = LearnedDetector.from_pretrained(saved, device="cpu")
    assert again.fingerprint == detector.fingerprint and again.provenance["steps"] == 4
    with pytest.raises(CheckpointError, match="is of kind 'detector', not 'deblender'"):
        JEPADeblender.from_pretrained(saved)


def test_truth_without_a_column_is_refused(make_image):
    pair = SkyPair({"i": make_image(64, 0.2)}, None)
    truth = QTable({"sky_centroid": band_images(pair)["i"].pixel_to_sky([3.0], [3.0])})
    with pytest.raises(ValueError, match="truth has a table without half_light_radius, flux_u, .*: use tables as"):
        true_sources(pair, truth)


# ------------------------------------------------------------------------------------- on images
@pytest.fixture
def detector(network):
    found = LearnedDetector(device="cpu")
    found._set(CentreConfig(**{**TINY.__dict__, "floor": -9.0}), network, {"trained": True})
    return found


def test_untrained_and_unfit_input_is_refused(make_image):
    with pytest.raises(ValueError, match="has not been trained"):
        LearnedDetector(device="cpu").save("x.safetensors")
    with pytest.raises(TypeError, match="pair must be a SkyPair"):
        LearnedDetector(device="cpu")(make_image(64, 0.2))
    with pytest.raises(ValueError, match="has not been trained"):
        LearnedDetector(device="cpu")(SkyPair({"i": make_image(64, 0.2)}, None))
    with pytest.raises(TypeError, match="detector must be a LearnedDetector"):
        JEPADeblender(detector="bundled")


def test_windows_share_a_field_and_agree(make_image, detector):
    """A field of four windows: every position is of one window, and the list is that of a larger single window."""
    pair = SkyPair({"i": make_image(480, 0.2)}, {"VIS": make_image(960, 0.1, seed=1)})
    images = list(band_images(pair).values())
    parts = list(windows(images))
    assert len(parts) == 4 and parts[0][0].shape == (1, 13, 384, 384)
    at = np.random.default_rng(0).uniform(-48, 48, (200, 2))
    assert (np.sum([own(at) for _, _, own in parts], axis=0) == 1).all()
    for shown, place, _ in parts:
        value = shown[0, 3, 200, 150].item()
        x, y = images[0].xy(place(np.array([[150.0, 200.0]])))[0]
        assert value == pytest.approx(np.arcsinh(images[0].data[round(y), round(x)]), rel=1e-5)
    table = detector(pair)
    other = pickle.loads(pickle.dumps(detector))  # as processes get it
    np.testing.assert_array_equal(other(pair)["score"], table["score"])
    assert len(table) > 20 and (np.diff(table["score"]) <= 0).all()
    inner = pair.cutout(images[0].center, 60 * u.arcsec)
    smaller = detector(inner)
    plane = images[0].tangent_plane
    one, two = (plane.east_north(each["sky_centroid"]) for each in (table, smaller))
    deep = np.abs(two).max(1) < 30 - REACH * 0.2 - 1
    apart, _ = cKDTree(one).query(two[deep])
    assert deep.sum() > 5 and np.mean(apart < 0.05) > 0.9  # the pooling grid may lie elsewhere


def test_a_ground_pair_alone_and_bands_of_no_survey(make_image, detector):
    assert "score" in detector(SkyPair({"r": make_image(100, 0.2)}, None)).colnames
    assert channels.slots("ground", [620.0, 2200.0, 622.0]) == [2, None, None]


# ------------------------------------------------------------------------------------- in the deblender
class _Found:
    config = DetectionConfig()

    def __init__(self, east_north, b, snr):
        self.east_north = np.asarray(east_north, float)
        self.table = QTable({"b": np.asarray(b, float), "snr": np.asarray(snr, float)})

    def __len__(self):
        return len(self.east_north)


RULES = CandidateConfig(even=0.0, slope=2.0, support=0.5, unseen=-5.0, unseen_peak=9.0)
WINDOWS = np.array([[0.0, 0.0], [50.0, 0.0]])


def advice(at, score, familiar=(True, False)):
    return Advice.of(Centres(np.asarray(at, float), np.asarray(score, float)), WINDOWS, np.array(familiar), RULES)


def test_centres_are_added_to_detections():
    found = _Found([[0, 0], [0.8, 0], [5, 5], [7, 7], [44, 0]], [0.2, 0.2, 1.0, 0.2, 0.2], [8, 8, 8, 12, 8])
    at = [[0.1, 0.0], [0.4, 0.5], [5.4, 5.0], [9.0, 9.0], [-7.0, 0.0], [48.0, 0.0]]
    places, odds, least = candidates(found, advice(at, [2.0, 1.0, 0.5, 0.3, 0.2, 3.0]))
    # The fifth does not count, and at the last one the detector is not asked.
    np.testing.assert_array_equal(places[5:], np.array(at)[[1, 3]])
    np.testing.assert_array_equal(odds, [4.0, -5.0, 1.0, -5.0, 0.0, 2.0, 0.6])
    np.testing.assert_array_equal(least, [0, 9.0, 0, 0, 0, 5.0, 5.0])  # what is bright stays
    places, odds, least = candidates(found, None)  # without a detector
    assert len(places) == 5 and (odds == 0).all() and (least == 0).all()
    places, odds, least = candidates(found, advice(np.zeros((0, 2)), []))  # with one that sees nothing
    np.testing.assert_array_equal(odds, [-5.0] * 4 + [0.0])
    places, odds, least = candidates(found, advice(at, [2.0] * 6, familiar=(False, False)))
    assert len(places) == 5 and (odds == 0).all() and (least == 0).all()


def test_a_centre_is_that_of_one_position():
    places, told = np.array([[0, 0], [0.2, 0], [49, 0]]), advice([[0.05, 0.0], [0.06, 0.0], [49, 0]], [1.0, 2.0, -2.0])
    odds = told.odds_at(places, 0.3)
    np.testing.assert_array_equal(odds, [4.0, -5.0, 0.0])
    np.testing.assert_array_equal(told.doubts(places, odds), [False, True, False])
    assert not told.asked(np.zeros((0, 2))).any()


class _Told(LearnedDetector):
    """A detector that sees what it is told."""

    def __init__(self, east_north):
        super().__init__(device="cpu")
        self._told = np.asarray(east_north, float)

    fingerprint = "0123456789abcdef"

    def centres(self, pair):
        return Centres(self._told, np.full(len(self._told), 3.0))


class _Unasked(_Told):
    def centres(self, pair):
        raise AssertionError("the detector is not asked")


def gaussian(n, scale, east, north, flux, sigma):
    """Light of a round Gaussian on n x n pixels."""
    y, x = np.indices((n, n))
    r2 = (-(x - (n - 1) / 2) * scale - east) ** 2 + ((y - (n - 1) / 2) * scale - north) ** 2
    return flux * scale**2 / (2 * np.pi * sigma**2) * np.exp(-0.5 * r2 / sigma**2)


def test_the_deblender_reads_the_detector(make_image, tiny_encoder):
    """A bluer knot in a galaxy's light is a source if the detector sees both, and part of it if it sees one centre."""

    def scene(n, scale, psf):
        sources = ((0.0, 0.0, 8000.0, 0.4), (0.8, 0.0, 500.0 if scale == 0.1 else 150.0, 0.1))
        light = sum(gaussian(n, scale, *at, flux, np.hypot(sigma, psf)) for *at, flux, sigma in sources)
        noise = np.random.default_rng(n).normal(size=(n, n))
        return make_image(n, scale, data=(light + noise).astype(np.float32)), gaussian(41, scale, 0, 0, 1, psf)

    images, psf = zip(scene(100, 0.2, 0.3), scene(200, 0.1, 0.09), strict=True)
    pair = SkyPair({"i": images[0]}, {"VIS": images[1]}, psf={"i": psf[0] / psf[0].sum(), "VIS": psf[1] / psf[1].sum()})
    embedding = tiny_encoder(pair, window=12.8 * u.arcsec)

    def rows(told):
        return JEPADeblender(tiny_encoder, _Told(told))(embedding, offsets=as_aligned(pair)).to_table()

    assert len(rows([[0, 0], [0.8, 0]])) == 2
    assert len(rows([[0, 0]])) == 1
    assert len(rows([[0, 0], [0.8, 0], [-4, 3]])) == 2  # a centre without light is no source
    silent = JEPADeblender(tiny_encoder, _Unasked([]))  # it adds nothing to what a user lists alone
    place = band_images(pair)["VIS"].tangent_plane.sky(np.zeros((1, 2)))
    assert len(silent(embedding, place, neighbours="listed")) == 1


def test_a_deblender_names_its_detector(detector, tiny_encoder, tmp_path):
    head = JEPADeblender(tiny_encoder, detector)
    head._provenance, head._owners = {"trained": True}, head._trained_on()
    head.save(tmp_path / "deblender.safetensors")
    with pytest.raises(ValueError, match=f"was trained with {detector.fingerprint}: put that one beside it"):
        JEPADeblender.from_pretrained(tmp_path / "deblender.safetensors", encoder=tiny_encoder)
    detector.save(tmp_path / "detector.safetensors")
    again = JEPADeblender.from_pretrained(tmp_path / "deblender.safetensors", encoder=tiny_encoder)
    assert again.detector.fingerprint == detector.fingerprint
    alone = JEPADeblender(tiny_encoder)
    alone._provenance, alone._owners = {"trained": True}, alone._trained_on()
    alone.save(tmp_path / "alone.safetensors")
    assert JEPADeblender.from_pretrained(tmp_path / "alone.safetensors", encoder=tiny_encoder).detector is None
