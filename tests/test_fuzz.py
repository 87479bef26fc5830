# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Two hundred damaged files: no reader hangs, dies, or gives a wrong answer without a word."""

from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no checkout: benchmarks are not installed")
FIRST = 5000  # other seeds than those of the benchmark


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import fuzz

    return fuzz


COUNTS = {"rubin": 40, "euclid": 40, "mer-psf": 30, "pair": 30, "image": 30, "checkpoint": 30}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_damaged_files(fuzz, name, count):
    found = fuzz.readers()
    if name not in found:
        pytest.skip(f"there is no reader of this kind ({name})")
    outcomes = fuzz.run(found[name], range(FIRST, FIRST + count))
    faults = [f"{seed} {outcome}: {line}" for seed, (outcome, line) in outcomes.items() if outcome in fuzz.FAULTS]
    assert len(outcomes) == count
    assert not faults, "\n".join(faults)


def judged(fuzz, found, *, own=False, named=False, **parts):
    """Outcome of an answer, where the whole file holds one band."""
    from kit.damage import Damage
    from kit.specimens import Reader

    truth = {"VIS": {"data": np.ones(3), "variance": np.ones(3), "psf": np.ones(1), "sky": np.zeros(2)}}
    harm = Damage(b"", "", **parts)
    return fuzz.of_answer(found(truth), truth, harm, Reader("any", None, None, None, own), named)[0]


@pytest.mark.parametrize(
    ("change", "options", "outcome"),
    [
        ({}, {}, "right"),
        ({"variance": None}, {}, "plane"),
        ({"variance": None}, {"named": True}, "named"),
        ({"variance": None}, {"gone": "VIS_RMS"}, "right"),
        ({"variance": None}, {"gone": "VIS_PSF"}, "plane"),
        ({"variance": None}, {"gone": "VIS_RMS", "own": True}, "plane"),
        ({"sky": np.ones(2)}, {"key": "CRVAL1"}, "wcs"),
        ({"sky": np.ones(2)}, {"key": "CRVAL1", "noticeable": False}, "right"),
        ({"data": np.zeros(3)}, {}, "changed"),
        ({"data": np.zeros(3)}, {"noticeable": False}, "right"),
        ({"data": np.zeros(3)}, {"noticeable": False, "own": True}, "changed"),
    ],
)
def test_outcomes_are_told_apart(fuzz, change, options, outcome):
    """The judge itself: a lost plane, moved positions and changed pixels are faults."""
    assert judged(fuzz, lambda truth: {"VIS": truth["VIS"] | change}, **options) == outcome


def test_a_lost_band_is_a_fault(fuzz):
    assert judged(fuzz, lambda truth: {}) == "plane"


def test_errors_are_told_apart(fuzz):
    from kit.damage import Damage

    harm, files = Damage(b"", ""), [Path("a.fits")]
    assert fuzz.of_error(ValueError("a.fits is damaged"), files, harm)[0] == "clear"
    assert fuzz.of_error(ValueError("damaged"), files, harm)[0] == "vague"
    assert fuzz.of_error(ValueError("a.fits is\ndamaged"), files, harm)[0] == "vague"
    assert fuzz.of_error(KeyError("a.fits"), files, harm)[0] == "raw"


def test_damage_can_be_done_again(fuzz):
    """A seed always gives the same file, and every kind of damage is drawn."""
    import io

    from astropy.io import fits
    from kit.damage import damaged_fits, join, split

    content = io.BytesIO()
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.ones((5, 7), "f4"), name="A"), fits.ImageHDU(np.ones(3), name="B")]
    fits.HDUList(hdus).writeto(content)
    content = content.getvalue()
    assert join(split(content)) == content
    done = [damaged_fits(content, np.random.default_rng(seed)) for seed in range(200)]
    assert done[7] == damaged_fits(content, np.random.default_rng(7))
    for kind in ("missing", "NaN", "twice", "bytes of", "header", "cut to", "added", "gz", "removed", "renamed"):
        assert any(kind in damage.text for damage in done), kind
    assert sum(damage.content != content for damage in done) > 190
