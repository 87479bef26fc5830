# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Checkpoints are whole and known, or refused with a reason."""

import json
import pickle
import time
from dataclasses import dataclass

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


BOMBS = {
    "lists": "[" * 200_000,
    "number": '{"format": ' + "9" * 100_000 + "}",
    "dicts": '{"a":' * 9000 + "1" + "}" * 9000,
}


@pytest.mark.parametrize("document", BOMBS.values(), ids=BOMBS)
def test_bombs_of_json_are_refused(tmp_path, document):
    save_file({"w": torch.ones(1)}, tmp_path / "bomb.safetensors", metadata={"rosetta": document})
    with pytest.raises(CheckpointError, match="bomb.safetensors is corrupted: its header is not that of a checkpoint"):
        checkpoint.load(tmp_path / "bomb.safetensors", kind="thing")


@pytest.mark.parametrize("shape", [[2**40], [2**62, 4], [2**32, 2**32], [0, 2**62], [-1], [1.5]])
def test_forged_shapes_are_refused(tmp_path, shape):
    """Nothing is allocated for a tensor that the file does not hold."""
    path = tmp_path / "forged.safetensors"
    document = {"format": 1, "kind": "thing", "config": {}, "provenance": {}, "fingerprint": "0"}
    tensors = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    header = json.dumps({**tensors, "__metadata__": {"rosetta": json.dumps(document)}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="forged.safetensors is corrupted"):
        checkpoint.load(path, kind="thing")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int16])
def test_types_of_tensors_that_no_checkpoint_holds(tmp_path, dtype):
    path = forged(tmp_path / "odd.safetensors", {"w": torch.ones(2).to(dtype)}, {})
    with pytest.raises(CheckpointError, match=f"it holds {dtype}, which no checkpoint does"):
        checkpoint.load(path, kind="thing")


@dataclass(frozen=True)
class Config:
    depth: int = 6
    sizes: tuple = (3.0,)


@pytest.mark.parametrize(
    ("key", "value"), [("depth", 10**9), ("depth", -1), ("depth", True), ("depth", 6.0), ("sizes", [1.0] * 10**5)]
)
def test_absurd_settings_are_refused(key, value):
    """Before a model of a thousand million layers is built."""
    with pytest.raises(CheckpointError, match=f"f is of another architecture: setting {key} cannot be"):
        checkpoint.config_of(Config, {"depth": 6, "sizes": [3.0], key: value}, "f")
    assert checkpoint.config_of(Config, {"depth": 24, "sizes": [1.0, 2.0]}, "f") == Config(24, (1.0, 2.0))


def test_a_forged_encoder_costs_nothing(tmp_path):
    """Every size of its configuration, a thousand times what it was."""
    from rosetta import CrossSurveyEncoder

    found = checkpoint.load(checkpoint.bundled("encoder"), kind="encoder")
    tensors = {name: tensor for name, tensor in found.tensors.items() if tensor.numel() < 1000}
    for key, value in found.config.items():
        if isinstance(value, int):
            path = forged(tmp_path / "e.safetensors", tensors, {**found.config, key: 1000 * value}, "encoder")
            start = time.process_time()  # whatever else the machine does
            with pytest.raises(CheckpointError, match="e.safetensors is of another architecture"):
                CrossSurveyEncoder.from_pretrained(path, device="cpu")
            assert time.process_time() - start < 10, key
