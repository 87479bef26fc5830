# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The versions that are tested are those that are promised."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="no checkout")


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return {line.split("==")[0].lower(): line.split("==")[1] for line in lines if not line.startswith("#")}


def bounds():
    """Lower bounds of what the package and its tests need, by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(need for extra in ("sim", "plot", "test") for need in extras[extra])]
    found = {}
    for need in needed:
        name, extra, bound = re.match(r"([\w-]+)(\[.*\])?(?:>=([\d.]+))?", need).groups()
        if extra is None:
            found[name.lower()] = bound
    return found


def release(version):
    """Numbers of a release, without zeros at the end."""
    numbers = [int(part) for part in version.split(".")]
    while numbers[-1] == 0:
        numbers.pop()
    return numbers


def test_the_oldest_versions_are_the_lower_bounds():
    tested, promised = pins("constraints-oldest.txt"), bounds()
    assert set(tested) == set(promised)
    for name, version in tested.items():
        assert release(version) == release(promised[name]), name


def test_the_pinned_versions_are_allowed():
    pinned = pins("constraints.txt")
    for name, bound in bounds().items():
        assert release(pinned[name]) >= release(bound), name
