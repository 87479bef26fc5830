# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Checkpoints are whole and known, or refused with a reason."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from rosetta import checkpoint
from rosetta.checkpoint import CheckpointError


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3, dtype=torch.bfloat16)}
    fingerprint = checkpoint.save(path, tensors, kind="thing", config={"dim": 3}, provenance={"seed": 1})
    return path, tensors, fingerprint


def test_round_trip(saved):
    path, tensors, fingerprint = saved
    found = checkpoint.load(path, kind="thing")
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    assert (found.config, found.fingerprint) == ({"dim": 3}, fingerprint)
    assert found.provenance["seed"] == 1
    assert "torch" in found.provenance["versions"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing left beside it


def test_fingerprint_sees_weights_and_config(saved):
    _, tensors, fingerprint = saved
    other = {**tensors, "w": tensors["w"] + 1e-6}
    assert checkpoint.fingerprint_of("thing", other, {"dim": 3}) != fingerprint
    assert checkpoint.fingerprint_of("thing", tensors, {"dim": 4}) != fingerprint
    assert checkpoint.fingerprint_of("thing", tensors, {"dim": 3}) == fingerprint


def test_a_flipped_bit_is_noticed(saved):
    path, _, _ = saved
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="corrupted: fingerprint"):
        checkpoint.load(path, kind="thing")


@pytest.mark.parametrize("keep", [0, 5, 40, -4])
def test_truncated(saved, keep):
    path, _, _ = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="corrupted or not a safetensors file"):
        checkpoint.load(path, kind="thing")


def test_no_checkpoint_is_mistaken_for_a_pickle(tmp_path):
    """A safetensors file begins with its header's length, and every length must be readable."""
    for n in range(0, 260, 8):
        path = tmp_path / "model.safetensors"
        checkpoint.save(path, {"w": torch.ones(1)}, kind="thing", config={}, provenance={"note": "x" * n})
        assert checkpoint.load(path, kind="thing").provenance["note"] == "x" * n


@pytest.mark.parametrize("document", ["not json", "{}", '{"format": "2"}', '{"format": 1, "kind": 3}', "[]"])
def test_foreign_headers(tmp_path, document):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(1)}, path, metadata={"rosetta": document})
    with pytest.raises(CheckpointError, match="its header is not that of a checkpoint"):
        checkpoint.load(path, kind="thing")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    "write", [lambda p: p.write_bytes(pickle.dumps(Bomb())), lambda p: torch.save({"b": Bomb()}, p)]
)
def test_pickles_are_refused_unread(tmp_path, write):
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(CheckpointError, match="is a pickle"):
        checkpoint.load(path, kind="thing")


def test_newer_format_and_strangers(saved, tmp_path):
    path, tensors, _ = saved
    header = {"format": 99, "kind": "thing", "config": {}, "provenance": {}, "fingerprint": "0"}
    newer = tmp_path / "newer.safetensors"
    save_file(tensors, newer, metadata={"rosetta": json.dumps(header)})
    with pytest.raises(CheckpointError, match="newer than 1: upgrade"):
        checkpoint.load(newer, kind="thing")
    stranger = tmp_path / "stranger.safetensors"
    save_file(tensors, stranger)
    with pytest.raises(CheckpointError, match="not a rosetta checkpoint"):
        checkpoint.load(stranger, kind="thing")
    with pytest.raises(CheckpointError, match="is of kind 'thing', not 'encoder'"):
        checkpoint.load(path, kind="encoder")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "none.safetensors", kind="thing")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(saved, bad):
    """When a checkpoint is written, and in a file from elsewhere whose fingerprint is right."""
    path, tensors, _ = saved
    tensors = {**tensors, "w": torch.tensor([1.0, bad])}
    with pytest.raises(ValueError, match="tensors w hold NaN or infinity"):
        checkpoint.save(path, tensors, kind="thing", config={}, provenance={})
    header = {"format": 1, "kind": "thing", "config": {}, "provenance": {}}
    header["fingerprint"] = checkpoint.fingerprint_of("thing", tensors, {})
    save_file(tensors, path, metadata={"rosetta": json.dumps(header)})
    with pytest.raises(CheckpointError, match="holds NaN or infinity in w"):
        checkpoint.load(path, kind="thing")


def test_save_refuses_bad_paths(tmp_path):
    for path, message in ((tmp_path / "x.pt", "must end in"), (tmp_path / "no" / "x.safetensors", "does not exist")):
        with pytest.raises(ValueError, match=message):
            checkpoint.save(path, {}, kind="thing", config={}, provenance={})
    assert not list(tmp_path.iterdir())


def test_devices():
    assert checkpoint.device_of("cpu").type == "cpu"
    for name in ("gpu", "tpu:0"):
        with pytest.raises(ValueError, match=f"device '{name}' is not known"):
            checkpoint.device_of(name)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device is available"):
            checkpoint.device_of("cuda")


# ---------------------------------------------------------------------------- forged files
def forged(path, tensors, config, kind="thing", **header):
    """A file whose fingerprint is right, whatever it holds."""
    header = {"format": 1, "kind": kind, "config": config, "provenance": {}, **header}
    header.setdefault("fingerprint", checkpoint.fingerprint_of(kind, tensors, config))
    save_file(tensors, path, metadata={"rosetta": json.dumps(header)})
    return path
