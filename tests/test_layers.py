# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The walls of the house, read from the imports: who may know whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rosetta

PACKAGE = Path(rosetta.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
CLASSES = {"encoder", "aligner", "deblender", "photometry", "_head"}
# The only modules that may see arrays of the sky and tensors at once.
BOUNDARY = {"_boundary", "_checkpoint"}


def imported(source, module):
    """Every module that a source file names in an import, at any depth of its code.

    ``module`` is the dotted name of the file, so that relative imports can be resolved; for
    ``from a import b`` both ``a`` and ``a.b`` are given, since ``b`` may be a module.
    """
    names = set()
    package = module.split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: -node.level] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            names |= {home} | {f"{home}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "import_module",
            "__import__",
        ):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def of(path):
    """Outside packages by their top name, and our own modules by their path below ``rosetta``."""
    dotted = ".".join(["rosetta", *path.with_suffix("").parts])
    names = imported((PACKAGE / path).read_text(), dotted)
    own = {name.removeprefix("rosetta").removeprefix(".") for name in names if name.split(".")[0] == "rosetta"}
    outside = {name.split(".")[0] for name in names} - {"rosetta"} - set(sys.stdlib_module_names)
    return outside, own


def layer(path):
    return path.parts[0] if len(path.parts) > 1 else path.stem


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports(path):
    outside, own = of(path)
    name = layer(path)
    tops = {module.split(".")[0] for module in own}
    if name == "core":
        # safetensors: the training loop writes its resume state without pickle
        assert outside <= {"torch", "numpy", "scipy", "safetensors"}
        assert tops <= {"core"}
    if name in {"surveys", "flags", "sky", "io"}:
        assert "torch" not in outside
        # nor by the back door
        assert not tops & ({"core"} | BOUNDARY | CLASSES)
    if name in CLASSES:
        assert "torch" not in outside
        allowed = {"encoder"} if name != "encoder" else set()
        allowed |= {"_head"} if name in {"aligner", "deblender", "photometry"} else set()
        allowed |= {"deblender"} if name == "photometry" else set()
        assert tops & CLASSES <= allowed | {name}
    if "torch" in outside and "astropy" in outside:
        assert name in BOUNDARY
    if path == Path("__init__.py"):
        assert not outside
    assert not outside & {"torchvision", "timm", "hyrax", "sep"}
    if name in {"surveys", "flags", "core", "io", "sky", *BOUNDARY, *CLASSES}:
        # extras must not be needed to import the library
        assert not outside & {"galsim", "speclite", "matplotlib", "reproject"}


def test_reader_of_imports():
    """The check itself: relative, nested and dynamic imports are all seen."""
    source = """
import torch.nn as nn
from . import sky
from ..core.vit import ViT
def f():
    from astropy.io import fits
    importlib.import_module("scipy.linalg")
"""
    names = imported(source, "rosetta.io.rubin")
    assert {"torch.nn", "rosetta.io.sky", "rosetta.core.vit", "astropy.io", "scipy.linalg"} <= names


def test_every_layer_is_looked_at():
    assert {"surveys", "flags", "sky", "io", "core", "_boundary", "_checkpoint", "encoder"} <= set(map(layer, MODULES))


def test_import_is_light():
    """``import rosetta`` loads neither torch nor astropy, and the data layers never load torch."""
    code = """
import sys
import rosetta
heavy = {"torch", "astropy", "photutils", "regions", "scipy", "numpy"} & set(sys.modules)
assert not heavy, heavy
rosetta.EUCLID, rosetta.SkyPair, rosetta.Flag
import rosetta.io
assert "torch" not in sys.modules, "torch"
assert set(rosetta.__all__) <= set(dir(rosetta))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_resolve():
    for name in rosetta.__all__:
        assert getattr(rosetta, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'SkyPear'"):
        _ = rosetta.SkyPear
