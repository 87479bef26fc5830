# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A planned survey on disk: its settings, its files and its cells.

``config.toml`` holds the settings, ``inputs.parquet`` a row per file, ``plan.parquet`` a row per cell. They are written
once; their hash stands in ``config.toml``, and a survey whose files do not agree with it is refused. The limits at the
end of ``config.toml`` decide no result, and may be changed.
"""

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..files import atomic_write
from ..surveys import PIXEL_SCALE
from .cells import Tract, core_box, grown
from .metrics import LIMITS

__all__ = ["Cell", "Config", "Survey", "read", "read_limits", "read_rows", "write", "write_rows"]

TRACTS = b"rosetta.tracts"  # key of the tracts' WCS in plan.parquet


@dataclass(frozen=True)
class Config:
    """What decides a result, beside the files.

    Parameters
    ----------
    folder : str
        Of the survey; not part of its hash, so that a survey can be moved.
    core, margin : float
        Side of a cell, and what is read around it, arcsec.
    window, step : float
        Side of the encoder's windows, and the distance of their centres, arcsec.
    tile : float
        Side of the tiles in which sources are deblended, arcsec.
    models : str
        Folder of ``encoder.safetensors`` and those of the heads; empty: the bundled ones.
    encoder, detector, aligner, deblender, photometry : str
        Fingerprints of the models.
    """

    folder: str
    core: float
    margin: float
    window: float
    step: float
    tile: float
    models: str
    encoder: str
    detector: str
    aligner: str
    deblender: str
    photometry: str

    @property
    def settings(self):
        """All but the folder (dict)."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}

    def pixels(self, name):
        """A length of the configuration in pixels of a tract."""
        return round(getattr(self, name) / PIXEL_SCALE["ground"])


@dataclass(frozen=True)
class Cell:
    """All that is needed to measure one cell, beside the configuration.

    Parameters
    ----------
    tract, number : int
    core, box : tuple of int
        Core, and core with margin, in pixels of the tract.
    tile : str
        The MER tile that is read; empty if there is none.
    tracts : tuple of Tract
        The cell's own tract first, then those with a patch over it.
    patches : tuple of (int, tuple)
        Number and box of the patches that are read.
    rubin, euclid : tuple of (str, int, str)
        Path, size and version of each file.
    euclid_size : tuple of float
        Height and width, in arcsec along the axes of the tile, of the region that holds the box.
    """

    tract: int
    number: int
    core: tuple
    box: tuple
    tile: str
    tracts: tuple
    patches: tuple
    rubin: tuple
    euclid: tuple
    euclid_size: tuple

    @property
    def name(self):
        """As the cell is called in lists."""
        return f"tract {self.tract} cell {self.number}"

    @property
    def index(self):
        """What the names of its files are made of."""
        return self.tract, self.number


@dataclass(frozen=True)
class Survey:
    """A planned survey.

    Parameters
    ----------
    config : Config
    inputs : list of dict
        A row per file.
    rows : list of dict
        A row per cell.
    cards : dict of int to str
        WCS of each tract.
    """

    config: Config
    inputs: list
    rows: list
    cards: dict

    @property
    def hash(self):
        """Sixteen hex digits that change with any setting, file or cell."""
        # As text: a number is the same before and after it was in a file.
        parts = [self.config.settings, self.inputs, self.rows, sorted(self.cards.items())]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def indices(self):
        """(tract, number) of every cell, in the order of the plan (list of tuple)."""
        return [(row["tract"], row["cell"]) for row in self.rows]

    def tracts(self):
        """Dict of number to `Tract`."""
        boxes = {}
        for row in self.inputs:
            if row["survey"] == "rubin":
                boxes.setdefault(row["tract"], {})[_box(row)] = None
        return {number: Tract(number, self.cards[number], tuple(found)) for number, found in boxes.items()}

    def cells(self, indices):
        """Iterate over the `Cell` of each (tract, number)."""
        tracts, rows = self.tracts(), dict(zip(self.indices, self.rows, strict=True))
        for index in indices:
            yield self._cell(rows[index], tracts)

    def _cell(self, row, tracts):
        files = {survey: [self.inputs[int(k)] for k in row[survey].split()] for survey in ("rubin", "euclid")}
        states = {
            survey: tuple((file["path"], file["size"], file["version"]) for file in found)
            for survey, found in files.items()
        }
        core = core_box(row["cell"], self.config.pixels("core"))
        return Cell(
            tract=row["tract"],
            number=row["cell"],
            core=core,
            box=grown(core, self.config.pixels("margin")),
            tile=row["tile"],
            tracts=tuple(tracts[int(k)] for k in [row["tract"], *row["others"].split()]),
            patches=tuple(dict.fromkeys((file["patch"], _box(file)) for file in files["rubin"])),
            euclid_size=(row["euclid_height"], row["euclid_width"]),
            **states,
        )


def _box(row):
    return row["y0"], row["y1"], row["x0"], row["x1"]


# ---------------------------------------------------------------------------- files
def write(survey):
    """Write the three files of a survey; its folder is created.

    Raises
    ------
    ValueError
        If another survey was planned in the folder.
    """
    folder = Path(survey.config.folder)
    if (folder / "config.toml").exists():
        if read(folder).hash != survey.hash:
            raise ValueError(f"{folder} holds another plan: name a new folder")
        return
    if not folder.absolute().parent.is_dir():
        raise ValueError(f"{folder}: the folder it would stand in does not exist, create it first")
    folder.mkdir(exist_ok=True)
    write_rows(survey.inputs, folder / "inputs.parquet")
    write_rows(survey.rows, folder / "plan.parquet", {TRACTS: json.dumps(survey.cards).encode()})
    lines = ["# Settings of a survey, in arcsec, and fingerprints of the models. A plan that was changed is refused."]
    values = {**survey.config.settings, "hash": survey.hash}
    # JSON strings and numbers are TOML's.
    lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    lines += ["", "[limits]", "# Lowest and highest value that mark no cell on the quality page; may be changed."]
    lines += [f"{name} = {json.dumps(value)}" for name, value in LIMITS.items()]
    with atomic_write(folder / "config.toml") as temporary:  # last: a folder with it is complete
        temporary.write_text("\n".join(lines) + "\n")


def read(folder):
    """Read a planned survey.

    Parameters
    ----------
    folder : path-like

    Returns
    -------
    Survey

    Raises
    ------
    ValueError
        If there is no plan, or it was changed since it was written.
    """
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise ValueError(f"{folder} holds no plan: make one with rosetta survey plan ... -o {folder}")
    try:
        values = tomllib.loads((folder / "config.toml").read_text())
        stored = values.pop("hash")
        values.pop("limits", None)
        config = Config(folder=str(folder.absolute()), **values)
        rows, meta = read_rows(folder / "plan.parquet")
        cards = {int(number): text for number, text in json.loads(meta[TRACTS]).items()}
        survey = Survey(config, read_rows(folder / "inputs.parquet")[0], rows, cards)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{folder}: its plan cannot be read ({error}): plan again into a new folder") from error
    if survey.hash != stored:
        raise ValueError(
            f"{folder}: config.toml, plan.parquet or inputs.parquet was changed after the plan: "
            "put it back, or plan again into a new folder"
        )
    return survey


def read_limits(folder):
    """The limits in the ``config.toml`` of a survey (dict of name to lowest and highest value).

    Raises
    ------
    ValueError
        If one is no pair of numbers.
    """
    path = Path(folder) / "config.toml"
    limits = tomllib.loads(path.read_text()).get("limits", {})
    for name, pair in limits.items():
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(value, int | float) for value in pair)):
            raise ValueError(f"{path}: limits.{name} must be a list of the lowest and the highest value, got {pair!r}")
    return limits


def write_rows(rows, path, meta=None):
    """Write a list of dicts with the same keys to a Parquet file."""
    pyarrow, parquet = _pyarrow()
    table = pyarrow.Table.from_pylist([{key: _plain(value) for key, value in row.items()} for row in rows])
    with atomic_write(path) as temporary:
        parquet.write_table(table.replace_schema_metadata(meta), temporary)


def read_rows(path):
    """The rows of a Parquet file (list of dict), and its metadata (dict of bytes)."""
    _, parquet = _pyarrow()
    table = parquet.read_table(path)
    return table.to_pylist(), table.schema.metadata or {}


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value


def _pyarrow():
    import pyarrow
    from pyarrow import parquet

    return pyarrow, parquet
