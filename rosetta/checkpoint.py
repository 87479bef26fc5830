# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Checkpoints: one safetensors file, with a JSON document in its header. Nothing is ever unpickled.

The header holds the format version, what kind of model it is, its configuration, where it came from and a
fingerprint of all of it, so that a file is either whole and known, or refused.
"""

import hashlib
import json
import math
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from .files import atomic_write

__all__ = [
    "Checkpoint", "CheckpointError", "bundled", "config_of", "device_of", "fingerprint_of", "load", "read_header",
    "restore", "save", "versions",
]

FORMAT = 1
KEY = "rosetta"
LARGEST = 1000  # a setting, in units of its default: more layers or steps would never end
DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
}  # fmt: skip
_HEADER = {"kind": str, "config": dict, "provenance": dict, "fingerprint": str}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: corrupted, too new, of another kind, or not a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    kind: str
    tensors: dict
    config: dict
    provenance: dict
    fingerprint: str


def versions():
    """Versions of this library and of what its numbers depend on (dict of str)."""
    found = {}
    for name in ("astro-rosetta", "astropy", "numpy", "scipy", "photutils", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def bundled(kind):
    """Path of the checkpoint of this kind that ships with the package."""
    return Path(__file__).parent / "weights" / f"{kind}.safetensors"


def device_of(device):
    """The `torch.device` called ``device``; None is CUDA where there is one, else the CPU.

    Raises
    ------
    ValueError
        If there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not known: use 'cpu', 'cuda' or 'cuda:N'") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported: use 'cpu', 'cuda' or 'cuda:N'")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: no CUDA device is available here, use device='cpu'")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r}: only {torch.cuda.device_count()} CUDA devices are here")
    return found


def fingerprint_of(kind, tensors, config):
    """Sixteen hex digits that change with any weight or setting."""
    digest = hashlib.sha256(json.dumps([kind, config], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save(path, tensors, *, kind, config, provenance):
    """Write a checkpoint atomically and return its fingerprint.

    Parameters
    ----------
    path : path-like
        Ends in ``.safetensors``.
    tensors : dict of str to `torch.Tensor`
    kind : str
        What the file is, e.g. "encoder".
    config, provenance : dict
        JSON-able: how to build the model, and where the weights came from.

    Raises
    ------
    ValueError
        If the name does not end in ``.safetensors``, the folder does not exist, or a tensor is not finite.
    OSError
        If the file cannot be written, for instance because the disk is full.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path {str(path)!r} must end in '.safetensors'")
    if not path.parent.is_dir():
        raise ValueError(f"path {str(path)!r}: the folder {str(path.parent)!r} does not exist, create it first")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if bad := _not_finite(tensors):
        raise ValueError(f"tensors {', '.join(bad)} hold NaN or infinity: train again, a checkpoint must be usable")
    fingerprint = fingerprint_of(kind, tensors, config)
    header = {
        "format": FORMAT,
        "kind": kind,
        "config": config,
        "provenance": {**provenance, "versions": versions()},
        "fingerprint": fingerprint,
    }
    # As bytes: the package's own writer reports a full disk as another kind of error.
    content = safetensors.torch.save(tensors, metadata={KEY: json.dumps(header)})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return fingerprint


def _not_finite(tensors):
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]


def read_header(path):
    """The JSON document of a checkpoint, without its tensors.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it is not a whole checkpoint of a known format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # safetensors raises its own type for every kind of damage
        # Looked at only now: a safetensors file may begin with the same bytes by chance.
        with open(path, "rb") as file:
            if file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
                raise CheckpointError(
                    f"{path.name} is a pickle (a torch.save file), which is never loaded: convert it to safetensors"
                ) from error
        raise CheckpointError(f"{path.name} is corrupted or not a safetensors file: {error}") from error
    if KEY not in metadata:
        raise CheckpointError(f"{path.name} is a safetensors file but not a rosetta checkpoint")
    try:
        header = json.loads(metadata[KEY])
        known = isinstance(header["format"], int) and all(
            isinstance(header[name], kind) for name, kind in _HEADER.items()
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is corrupted: its header is not that of a checkpoint") from error
    if not known:
        raise CheckpointError(f"{path.name} is corrupted: its header is not that of a checkpoint")
    if header["format"] > FORMAT:
        raise CheckpointError(
            f"{path.name} has checkpoint format {header['format']}, newer than {FORMAT}: upgrade astro-rosetta"
        )
    return header


def load(path, *, kind):
    """Read a checkpoint and verify it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it is corrupted, from a newer format, of another kind, a pickle, or holds NaN or infinity.
    """
    header = read_header(path)
    name = Path(path).name
    if header["kind"] != kind:
        raise CheckpointError(f"{name} is of kind {header['kind']!r}, not {kind!r}: give the matching file")
    try:
        tensors = safetensors.torch.load_file(path)
    except Exception as error:
        raise CheckpointError(f"{name} is corrupted: {error}") from error
    if strange := sorted({str(tensor.dtype) for tensor in tensors.values() if tensor.dtype not in DTYPES}):
        raise CheckpointError(f"{name} is corrupted: it holds {', '.join(strange)}, which no checkpoint does")
    found = fingerprint_of(kind, tensors, header["config"])
    if found != header["fingerprint"]:
        raise CheckpointError(f"{name} is corrupted: fingerprint {found}, header says {header['fingerprint']}")
    if bad := _not_finite(tensors):
        raise CheckpointError(f"{name} holds NaN or infinity in {', '.join(bad)}: it cannot be used, train again")
    return Checkpoint(kind, tensors, header["config"], header["provenance"], found)


def config_of(config_class, document, name):
    """A configuration as it was stored.

    Parameters
    ----------
    config_class : type
        A dataclass in which every field has a default of the type it must have; it may hold other such dataclasses.
    document : dict
        Read back from JSON.
    name : str
        Of the file, for messages.

    Raises
    ------
    CheckpointError
        If a setting is missing, unknown, or of another type; the message names it.
    """
    try:
        return config_class(**_checked(config_class(), document, name))
    except CheckpointError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{name} is of another architecture: {error}") from error


def _checked(default, document, name):
    """The settings of a document, which must be those of a default configuration; nested ones are checked alike."""
    defaults = {field.name: getattr(default, field.name) for field in fields(default)}
    unknown, missing = sorted(set(document) - set(defaults)), sorted(set(defaults) - set(document))
    if unknown or missing:
        what = [f"{kind} {', '.join(keys)}" for kind, keys in (("unknown", unknown), ("missing", missing)) if keys]
        raise CheckpointError(
            f"{name} is of another architecture: settings {' and '.join(what)}. Use the version of astro-rosetta that "
            "wrote it, or train again"
        )
    found = {}
    for key, value in document.items():
        if is_dataclass(defaults[key]) and isinstance(value, dict):
            found[key] = type(defaults[key])(**_checked(defaults[key], value, f"{name}: {key}"))
        elif is_dataclass(defaults[key]) or not _alike(value, defaults[key]):
            raise CheckpointError(f"{name} is of another architecture: setting {key} cannot be {value!r}")
        else:
            found[key] = tuple(value) if isinstance(value, list) else value
    return found


def _alike(value, default):
    """Whether a value from JSON can take the place of a default: same type, finite, no negative or absurd sizes."""
    if isinstance(default, bool) or isinstance(value, bool):
        return type(value) is type(default)
    if isinstance(default, int):
        return isinstance(value, int) and 0 <= value <= LARGEST * max(default, 1)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and math.isfinite(value)
    if isinstance(default, tuple):
        return isinstance(value, list) and len(value) <= LARGEST and all(_alike(v, default[0]) for v in value)
    return isinstance(value, type(default))


def restore(build, tensors, name, device):
    """A model with the tensors of a checkpoint.

    Parameters
    ----------
    build : callable
        Makes the untrained model (`torch.nn.Module`). It is called where tensors take no memory, and nothing is
        allocated before all shapes agree with the file: a forged size costs nothing.
    tensors : dict of str to `torch.Tensor`
    name : str
        Of the file, for messages.
    device : `torch.device`

    Raises
    ------
    CheckpointError
        If the tensors belong to another architecture.
    """
    try:
        with torch.device("meta"):
            module = build()
    except Exception as error:  # a forged configuration can fail in any way
        raise CheckpointError(f"{name} is of another architecture: {error}") from error
    built, stored = ({k: tuple(t.shape) for k, t in state.items()} for state in (module.state_dict(), tensors))
    if built != stored:
        differ = sorted(k for k in built.keys() | stored.keys() if built.get(k) != stored.get(k))
        raise CheckpointError(
            f"{name} is of another architecture: "
            + "; ".join(f"{k} is {stored.get(k, 'absent')}, not {built.get(k, 'expected')}" for k in differ[:3])
            + (f"; and {len(differ) - 3} more" if len(differ) > 3 else "")
        )
    module = module.to_empty(device=device)
    module.load_state_dict(tensors, strict=True)
    return module
