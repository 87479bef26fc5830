# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Running a survey, from wherever it stands."""

from functools import partial

from ..registry import KINDS
from . import engines
from .inputs import check_unchanged
from .models import fingerprint
from .store import Store
from .survey import read
from .task import AGAIN, FAILED, attempt

__all__ = ["LIMIT", "failures", "run_survey"]

LIMIT = 7200.0  # seconds for a cell


def _shard(indices, text):
    """The part ``i/N`` of the cells, i from 0 to N - 1: every N-th one. None means all.

    Raises
    ------
    ValueError
        If the text means no part.
    """
    if text is None:
        return indices
    part, slash, of = text.partition("/")
    if not (slash and part.isdecimal() and of.isdecimal() and int(part) < int(of)):
        raise ValueError(f"--shard {text}: write i/N, such as 0/40 to 39/40")
    return indices[int(part) :: int(of)]


def run_survey(folder, engine, *, part=None, limit=LIMIT, retry_failed=False):
    """Measure the cells that are neither done nor given up.

    Parameters
    ----------
    folder : path-like
        Of a planned survey.
    engine : context manager
        `engines.here`, `engines.processes` or `engines.dask`.
    part : str, optional
        Which cells, "i/N" for every N-th one from the i-th; None: all.
    limit : float, optional
        Seconds for a cell.
    retry_failed : bool, optional
        Whether to try cells again that were given up.

    Yields
    ------
    done, total : int
        Finished cells of this part, before the first and after each one.
    index : tuple or None
        (tract, number) of the cell that was finished last.
    failure : dict or None
        Of that cell.

    Raises
    ------
    ValueError
        If the plan was changed, or files or models are not those of the plan.
    """
    survey = read(folder)
    config, store = survey.config, Store(folder)
    for kind in KINDS:
        if fingerprint(config.models, kind) != getattr(config, kind):
            raise ValueError(f"{folder}: the {kind} is not that of the plan: put it back, or plan into a new folder")
    indices = _shard(survey.indices, part)
    if retry_failed:
        for index in indices:
            if store.failure(index):
                store.forget(index)
    left = [index for index in indices if not store.is_done(index) and not store.failure(index)]
    # All files at once and not cell by cell: a survey of two states of its files is of no use.
    files = {file: None for cell in survey.cells(left) for file in cell.rubin + cell.euclid}
    check_unchanged(files)
    done = len(indices) - len(left)
    yield done, len(indices), None, None

    def give_up(cell):
        store.fail(cell.index, "the process died three times before the cell began: see its log", 3)
        return FAILED

    work = partial(attempt, config=config, limit=limit)
    with engine as made:
        for cell, _ in engines.drive(survey.cells(left), work, made, again=AGAIN, give_up=give_up):
            done += 1
            yield done, len(indices), cell.index, store.failure(cell.index)


def failures(folder, part=None):
    """Notes of the cells, or of a part of them, that were given up (list of dict)."""
    store = Store(folder)
    return [found for index in _shard(read(folder).indices, part) if (found := store.failure(index))]
