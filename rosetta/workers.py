# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Independent pieces of work in several processes, with the results in order."""

import pickle
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

__all__ = ["check_workers", "in_order"]

AHEAD = 1  # tasks per process that wait: what they hold stays in memory


def check_workers(workers):
    """That a number of processes is a positive integer; raises `ValueError`."""
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise ValueError(f"workers must be a positive integer, got {workers!r}")


def in_order(work, tasks, workers):
    """``work(task)`` of all tasks, in their order.

    Parameters
    ----------
    work : callable
    tasks : iterable
        Drawn as processes become free, so that those still to come need no memory.
    workers : int
        Processes. 1: this one. With more, ``work``, tasks and results are pickled.

    Yields
    ------
    object
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    pickle.dumps(work)  # raises here: a pool that cannot send its work may wait for ever
    # Spawned, not forked: the caller may hold threads (torch does).
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) > (1 + AHEAD) * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
