# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The documentation as text; its code runs when it is built."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("*.rst")])
LONGEST = 110  # characters that fit beside the navigation in a window of 1,200 pixels
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="no checkout")

BLOCKS = {
    ".md": re.compile(r"^```.*?\n(.*?)^```", re.S | re.M),
    ".rst": re.compile(r"^( *)\.\. code-block::.*\n((?:\1 +.*\n|\s*\n)+)", re.M),
}


def code_lines(path):
    """Lines of code of a page, as they are shown."""
    for block in BLOCKS[path.suffix].finditer(path.read_text()):
        *indent, text = block.groups()
        shift = len(indent[0]) + 4 if indent else 0
        yield from (line[shift:] for line in text.splitlines())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_line_of_code_is_cut(path):
    assert [line for line in code_lines(path) if len(line) > LONGEST] == []


def test_code_is_found_in_both_kinds_of_page():
    assert "pair = SkyPair(ground=rubin, space=euclid)  # any bands of each" in (
        list(code_lines(DOCS / "index.md"))
    )
    assert "rosetta run --pair pair.fits -o out" in list(code_lines(DOCS / "command_line.rst"))


def test_every_page_is_in_one_group():
    """Those of the four groups, each once."""
    text = [(DOCS / f"{group}.rst").read_text() for group in ("start", "guide", "reference", "benchmarks")]
    listed = [name for page in text for block in re.findall(r"\.\. toctree::\n((?:   .*\n|\n)+)", page)
              for name in re.findall(r"^   (\w+)$", block, re.M)]  # fmt: skip
    groups = {"index", "start", "guide", "reference", "benchmarks"}
    assert sorted(listed) == sorted({path.stem for path in PAGES} - groups)
    assert all(":caption:" in page for page in text)
