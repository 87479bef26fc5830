# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What heads share when they are trained: rows in a file, one trainer, one hold-out rule, one way to be a head."""

import pickle
import resource
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.coordinates import SkyCoord
from astropy.table import QTable
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rosetta import SkyPair, checkpoint
from rosetta.checkpoint import CheckpointError
from rosetta.head import Head
from rosetta.io import pair as pair_file
from rosetta.registry import HEADS, head_class
from rosetta.training.loop import TrainerConfig, seeded, train
from rosetta.training.network import FeatureNetwork, HeadNetwork
from rosetta.training.rows import RowStore, held_out_pairs, joined_rows, split_by_pair, training_parts, views
from rosetta.workers import in_order


# ---------------------------------------------------------------------------- a head that learns a slope
@dataclass(frozen=True)
class LineConfig:
    n_feature: int = 1
    slope: float = 0.0
    limits: tuple = (-9.0, 9.0)


class Line(HeadNetwork):
    def __init__(self, config):
        super().__init__()
        self.line = nn.Linear(config.n_feature, 1)

    def loss(self, rows):
        return (self.line(rows["x"])[:, 0] - rows["y"]).square().mean()


class LineHead(Head):
    """The smallest head: y = 2 x + 1 with noise, another sky for every pair."""

    _kind = "line"
    _config_class = LineConfig
    trainer = TrainerConfig(steps=400, batch=32, rate=0.1)
    _needs_truth = False

    made = 0

    @staticmethod
    def _build(config):
        return Line(config)

    def _rows(self, pair, truth, index, seed):
        type(self).made += 1
        x = np.random.default_rng([seed, index]).normal(size=(50, 1))
        return {"x": x, "y": 2 * x[:, 0] + 1}

    def _finish(self, network, data, held_out):
        return {"slope": float(network.line.weight.detach())}


@pytest.fixture
def pairs(make_image):
    return [SkyPair({"r": make_image(64, 0.2, seed=seed)}, None) for seed in range(3)]


def test_work_that_cannot_be_sent_to_processes_is_refused():
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        list(in_order(lambda task: task, [1, 2, 3], 2))
    assert list(in_order(lambda task: 2 * task, [1, 2, 3], 1)) == [2, 4, 6]


def test_every_row_of_the_registry_is_a_head():
    for kind in HEADS:
        cls = head_class(kind)
        assert issubclass(cls, Head) and cls._kind == kind
        assert cls.fit is Head.fit and cls.from_pretrained.__func__ is Head.from_pretrained.__func__
        assert checkpoint.bundled(kind).is_file()
    with pytest.raises(ValueError, match="kind 'shapes' is no head: use one of aligner, deblender, photometry"):
        head_class("shapes")


def test_a_new_head_is_a_handful_of_lines(tiny_encoder, pairs, tmp_path):
    head, LineHead.made = LineHead(tiny_encoder), 0
    assert head.fingerprint is None
    assert head.fit(pairs, seed=4, checkpoint=tmp_path / "rows") is head
    provenance = head._provenance
    assert provenance["slope"] == pytest.approx(2, abs=0.01) and provenance["loss"] < 1e-3
    assert (provenance["n_pair"], provenance["n_row"], provenance["n_held_out"]) == (3, 100, 50)
    assert provenance["trainer"] == asdict(LineHead.trainer) and provenance["truth"] is False
    before = head.fingerprint
    assert head.save(tmp_path / "line.safetensors") == before  # a name it has before it is saved
    loaded = LineHead.from_pretrained(tmp_path / "line.safetensors", encoder=tiny_encoder, device="cpu")
    assert loaded.fingerprint == before and loaded._config == LineConfig()
    again = LineHead(tiny_encoder).fit(pairs, seed=4, checkpoint=tmp_path / "rows")
    assert LineHead.made == 3 and again.fingerprint == before  # resumed, and the same to the last bit
    assert LineHead(tiny_encoder).fit(pairs, seed=5).fingerprint != before


def test_fit_says_what_is_wrong_before_any_work(tiny_encoder, pairs, monkeypatch):
    head, LineHead.made = LineHead(tiny_encoder), 0
    truth = QTable({"sky_centroid": SkyCoord([53.1], [-28.1], unit="deg")})
    with pytest.raises(ValueError, match="truth has 1 tables for 3 pairs"):
        head.fit(pairs, [truth], seed=0)
    with pytest.raises(ValueError, match="pairs has 1 entries: at least 2"):
        head.fit(pairs[:1], seed=0)
    monkeypatch.setattr(LineHead, "_truth_columns", ("sky_centroid", "flux_r"))
    with pytest.raises(ValueError, match=r"truth\[0\] has no column 'flux_r'"):
        head.fit(pairs, [truth] * 3, seed=0)
    monkeypatch.setattr(LineHead, "_needs_truth", True)
    with pytest.raises(ValueError, match="truth is None"):
        head.fit(pairs, seed=0)
    assert LineHead.made == 0 and not head._provenance["trained"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, "settings unknown depth"),
        ({"slope": None}, "settings missing slope"),
        ({"depth": 3, "slope": None}, "settings unknown depth and missing slope"),
        ({"encoder": None}, "does not say which encoder it belongs to"),
        ({"n_feature": 2.0}, "setting n_feature cannot be 2.0"),
        ({"n_feature": -1}, "setting n_feature cannot be -1"),
        ({"n_feature": True}, "setting n_feature cannot be True"),
        ({"slope": float("nan")}, "setting slope cannot be nan"),
        ({"limits": [1.0, "x"]}, r"setting limits cannot be \[1.0, 'x'\]"),
        ({"n_feature": 2}, r"line.weight is \(1, 1\), not \(1, 2\)"),
        ({"n_feature": 900}, r"line.weight is \(1, 1\), not \(1, 900\)"),
        ({"n_feature": 10**12}, "setting n_feature cannot be 1000000000000"),
        ({"n_feature": 10**30}, "is of another architecture"),
    ],
)
def test_forged_settings_are_refused(tiny_encoder, tmp_path, change, message):
    """Four terabytes are never allocated: shapes are compared first."""
    path = tmp_path / "line.safetensors"
    config = {**asdict(LineConfig()), "encoder": tiny_encoder.fingerprint, **change}
    config = {key: value for key, value in config.items() if value is not None}
    checkpoint.save(path, Line(LineConfig()).state_dict(), kind="line", config=config, provenance={"trained": True})
    with pytest.raises(CheckpointError, match=message):
        LineHead.from_pretrained(path, encoder=tiny_encoder, device="cpu")


# ---------------------------------------------------------------------------- rows
@settings(max_examples=20, deadline=None)
@given(n=st.lists(st.one_of(st.none(), st.integers(1, 4)), min_size=1, max_size=5), killed=st.integers(0, 30))
def test_rows_survive_a_kill(tmp_path_factory, n, killed):
    """Whatever of the last block a killed run left, the pairs before it are read back as they were."""
    path = tmp_path_factory.mktemp("rows") / "rows"
    store, sizes = RowStore(path, "me"), []
    parts = [None if k is None else {"x": np.arange(3.0 * k).reshape(k, 3)} for k in n]
    for i, part in enumerate(parts):
        sizes.append(path.stat().st_size)
        store.append(f"m{i}", part)
    content = path.read_bytes()
    if killed:
        path.write_bytes(content[: max(sizes[-1], len(content) - killed)])
    again = RowStore(path, "me")
    kept = len(parts) - bool(killed)
    assert len(again.parts) == kept
    for one, two in zip(again.parts, parts[:kept], strict=True):
        assert (one is None) == (two is None)
        assert one is None or (one.keys() == two.keys() and np.array_equal(one["x"], two["x"]))
    for i, part in enumerate(parts):
        if i < kept:
            again.check(i, f"m{i}")
        else:
            again.append(f"m{i}", part)
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match="'rows' is of another head"):
        RowStore(path, "you")


def test_pairs_are_prepared_in_several_processes(tmp_path):
    """In their order, and no pair twice."""
    truth = [QTable({"sky_centroid": SkyCoord([i] * u.deg, [0] * u.deg)}) for i in range(4)]
    one, two = (
        training_parts([10, 20, 30, 40], truth, _times_index, columns=("sky_centroid",), owner="me", workers=workers)
        for workers in (1, 2)
    )
    assert [part["x"].tolist() for part in two] == [part["x"].tolist() for part in one] == [[0], [20], [60], [120]]
    with pytest.raises(ValueError, match=r"truth\[1\] has no column 'sky_centroid'"):
        training_parts([1, 2], [truth[0], QTable()], _times_index, columns=("sky_centroid",), owner="me", workers=2)


def _times_index(pair, truth, index):
    return {"x": np.array([pair * index])}


@given(st.lists(st.booleans(), max_size=40))
def test_whole_pairs_are_held_out(filled):
    parts = [{"pair": np.full(3, i)} if full else None for i, full in enumerate(filled)]
    n = sum(filled)
    if n < 2:
        with pytest.raises(ValueError, match=f"pairs: {n} of {len(parts)} have a source to learn from, at least 2"):
            split_by_pair(parts)
        return
    train_rows, held_out = (set(rows["pair"]) for rows in split_by_pair(parts))
    assert not train_rows & held_out and train_rows | held_out == set(np.flatnonzero(filled))
    assert held_out == set(held_out_pairs(parts)) and len(held_out) == n // 5 + (n % 5 > 0)
    assert joined_rows([None]) is None


def test_views_are_what_users_have(make_image):
    pair = SkyPair({"r": make_image(64, 0.2)}, {"VIS": make_image(128, 0.1)})

    class Embedding:
        def __init__(self, pair):
            self.pair = pair

    both, ground, space = views(Embedding(pair), ("ground", "space"))
    assert both.pair is pair and list(ground.bands) == ["r"] and list(space.bands) == ["VIS"]
    alone = Embedding(ground)
    assert views(alone, ("ground", "space")) == [alone]


# ---------------------------------------------------------------------------- the trainer
class Noisy(FeatureNetwork):
    """Learns y from two features, with dropout."""

    def __init__(self):
        super().__init__(2, 16, 1, 0.2, 5.0)

    def loss(self, rows):
        return (self(rows["features"])[:, 0] - rows["y"]).square().mean()


def noisy_rows(n, seed):
    features = np.random.default_rng(seed).normal(3, 10, (n, 2))
    return {"features": features, "y": np.tanh(features[:, 0] / 10)}


def trained(seed, data=None, held_out=None, **changes):
    with seeded(seed):
        network = Noisy()
    config = TrainerConfig(**{"steps": 60, "batch": 32, "look_every": 10, **changes})
    return network, train(network, data or noisy_rows(400, 0), held_out or noisy_rows(200, 1), config, seed=seed)


def test_the_same_seed_gives_the_same_network_and_the_callers_numbers_stay():
    state = torch.random.get_rng_state()
    (one, report), (two, _), (other, _) = (trained(seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
    assert not torch.equal(one.trunk[0].weight, other.trunk[0].weight)
    assert not one.training and report["loss"] < 0.3 and (report["n_row"], report["n_held_out"]) == (400, 200)


def test_features_are_normalised_and_the_strange_ones_cut():
    network, _ = trained(0)
    np.testing.assert_allclose(network.mean, noisy_rows(400, 0)["features"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(network.spread, noisy_rows(400, 0)["features"].std(0), rtol=1e-3)
    with torch.no_grad():
        far = network(torch.tensor([[1e3, 3.0], [1e9, 3.0]]))
    assert torch.equal(far[0], far[1])


def test_of_all_states_the_best_on_held_out_rows_is_kept():
    """Labels of the training rows are noise, so that every step beyond the first few only harms."""
    data, held_out = noisy_rows(40, 0), noisy_rows(400, 1)
    data["y"] = data["y"] + np.random.default_rng(2).normal(0, 3, 40)
    network, report = trained(0, data, held_out, steps=600)
    tensors = {name: torch.as_tensor(np.float32(array)) for name, array in held_out.items()}
    assert float(network.loss(tensors).detach()) == pytest.approx(report["loss"], rel=1e-5)
    _, last = trained(0, data, held_out, steps=600, look_every=600)
    assert report["best_step"] < 600 and report["loss"] < 0.8 * last["loss"]


def test_a_training_that_is_never_finite_is_refused():
    data = noisy_rows(400, 0)
    data["y"][7] = np.inf
    with pytest.raises(ValueError, match="did not train to a finite loss, check images and truth for outliers"):
        trained(0, data, data)


# ---------------------------------------------------------------------------- full disks
@contextmanager
def full_disk(n_byte):
    """No file may grow beyond some bytes: as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_byte, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, pairs):
    def weights(n):
        return {"w": torch.ones(n)}

    path = tmp_path / "model.safetensors"
    checkpoint.save(path, weights(3), kind="thing", config={}, provenance={})
    before = path.read_bytes()
    with full_disk(4096), pytest.raises(OSError, match=r"File too large.*model\.safetensors'"):
        checkpoint.save(path, weights(10_000), kind="thing", config={}, provenance={})
    assert path.read_bytes() == before

    with full_disk(4096), pytest.raises(OSError, match=r"pair\.fits'"):
        pair_file.write(pairs[0], tmp_path / "pair.fits")

    store = RowStore(tmp_path / "rows", "me")
    store.append("a", {"x": np.zeros(9)})
    with full_disk(4096), pytest.raises(OSError, match=r"File too large.*rows'"):
        store.append("b", {"x": np.zeros(9999)})
    assert len(RowStore(tmp_path / "rows", "me").parts) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "rows"]  # nothing is left beside


def test_files_are_made_with_the_users_rights(tmp_path, pairs):
    pair_file.write(pairs[0], tmp_path / "pair.fits")
    (tmp_path / "plain").touch()
    assert (tmp_path / "pair.fits").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert pair_file.read(tmp_path / "pair.fits").ground["r"].unit == u.nJy
