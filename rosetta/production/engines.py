# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Where cells are measured: in this process, in others, or on a Dask cluster. One loop drives them all."""

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager

from .store import TRIES

__all__ = ["dask", "drive", "here", "processes"]

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def drive(jobs, work, engine, *, again, give_up):
    """Do all jobs, a bounded number at a time, those to be done again after the others.

    Parameters
    ----------
    jobs : iterable
        Taken one by one, as there is room.
    work : callable
        ``work(job)`` gives an outcome. It is called by the engine.
    engine : (`~concurrent.futures.Executor`, int, tuple of type)
        As from `here`, `processes` or `dask`: how many jobs it gets at a time, and what it raises if a worker died.
    again : object
        The outcome of a job that must be done again.
    give_up : callable
        ``give_up(job)`` gives the outcome of a job whose worker died three times.

    Yields
    ------
    job, outcome
    """
    executor, room, died = engine
    jobs, later, running, deaths = iter(jobs), deque(), {}, Counter()
    while True:
        while len(running) < room:
            job = next(jobs, None)
            if job is None:
                job = later.popleft() if later else None
            if job is None:
                break
            running[executor.submit(work, job)] = job
        if not running:
            return
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            job = running.pop(future)
            try:
                outcome = future.result()
            except died:
                deaths[job] += 1
                outcome = again if deaths[job] < TRIES else give_up(job)
            if outcome == again:
                later.append(job)
            else:
                yield job, outcome


# ---------------------------------------------------------------------------- engines
@contextmanager
def here():
    """One job at a time, in this process."""
    yield _Here(), 1, ()


class _Here(Executor):
    def submit(self, function, /, *args):
        future = Future()
        future.set_result(function(*args))
        return future


@contextmanager
def processes(n):
    """``n`` processes, each with one thread. One that dies takes no other with it, and is replaced."""
    for name in THREADS:
        os.environ.setdefault(name, "1")
    pools, others = _Pools(n), set(multiprocessing.active_children())
    try:
        yield pools, n, (BrokenExecutor,)
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()  # what is at work is given back
        raise
    finally:
        pools.shutdown()


class _Pools(Executor):
    """Pools of one process: a larger pool breaks as a whole when one of its processes dies."""

    def __init__(self, n):
        self._idle, self._busy = [None] * n, {}

    def submit(self, function, /, *args):
        for future in [future for future in self._busy if future.done()]:
            pool = self._busy.pop(future)
            self._idle.append(None if isinstance(future.exception(), BrokenExecutor) else pool)
        pool = self._idle.pop() or self._new()
        try:
            future = pool.submit(function, *args)
        except BrokenExecutor:  # it died idle
            pool = self._new()
            future = pool.submit(function, *args)
        self._busy[future] = pool
        return future

    def _new(self):
        # Not forked: torch and its threads do not survive that.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=context, initializer=_begin_worker)

    def shutdown(self, wait=True, *, cancel_futures=True):
        for pool in {*self._idle, *self._busy.values()} - {None}:
            pool.shutdown(wait, cancel_futures=cancel_futures)


def _begin_worker():
    """End with the parent, and stop between two lines of code where a queue asks to end: that is no try of the cell."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def dask(address):
    """The workers of a Dask cluster, given by the address of its scheduler; each needs one thread."""
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise ImportError("--dask needs the extra 'survey': pip install 'astro-rosetta[survey]'") from error
    with Client(address) as client:
        n = sum(client.ncores().values())
        if not n:
            raise ValueError(f"--dask {address}: the cluster has no workers yet: start some, then run again")
        # Twice as many as are at work, so that none waits; no more, so that the scheduler's list stays short.
        yield client.get_executor(pure=False, retries=0), 2 * n, (KilledWorker,)
