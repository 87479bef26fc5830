# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How far a survey is, read from its files."""

import time

from .run import LIMIT
from .store import Store
from .survey import read

__all__ = ["status"]

RECENT = 100  # cells whose times give the rate
SLOWEST = 5


def status(folder):
    """How far a survey is.

    Parameters
    ----------
    folder : path-like

    Returns
    -------
    dict
        Numbers ``total``, ``done`` (of these ``empty``), ``failed``, ``running`` and ``left``; ``per_hour``, cells
        finished per hour, and ``hours_left`` (None before two are finished); ``idle_seconds`` since the last one;
        ``rows`` and ``primary``; ``cpu_hours``; ``peak_memory_gib``; ``slowest``, records of the slowest cells; and
        ``failures``, their notes.

    Raises
    ------
    ValueError
        If there is no plan, or it was changed.
    """
    survey, store = read(folder), Store(folder)
    records = [record for index in survey.indices if (record := store.record(index))]
    done = {(record["tract"], record["cell"]) for record in records}
    open_ = [index for index in survey.indices if index not in done]
    failures = [failure for index in open_ if (failure := store.failure(index))]
    left = len(open_) - len(failures)
    finished = sorted(record["finished"] for record in records)[-RECENT:]
    per_hour = None
    if len(finished) > 1 and finished[-1] > finished[0]:
        per_hour = 3600 * (len(finished) - 1) / (finished[-1] - finished[0])
    return {
        "total": len(survey.rows),
        "done": len(records),
        "empty": sum(record["state"] == "empty" for record in records),
        "failed": len(failures),
        "running": store.n_running(open_, LIMIT),
        "left": left,
        "per_hour": per_hour,
        "hours_left": left / per_hour if per_hour else None,
        "idle_seconds": time.time() - finished[-1] if finished else None,
        "rows": sum(record.get("n_rows", 0) for record in records),
        "primary": sum(record.get("n_primary", 0) for record in records),
        "cpu_hours": sum(record["cpu_seconds"] for record in records) / 3600,
        "peak_memory_gib": max((record["peak_memory_gib"] for record in records), default=None),
        "slowest": sorted(records, key=lambda record: -record["seconds"])[:SLOWEST],
        "failures": failures,
    }
