# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What a command says while it works: messages, warnings and progress, on the terminal and in a log file."""

import logging
import os
import sys
import time
import warnings
from contextlib import contextmanager

__all__ = ["QUIET", "NORMAL", "VERBOSE", "Steps", "messages", "one_line", "say"]

QUIET, NORMAL, VERBOSE = -1, 0, 1
WIDTH = 4  # of the progress bar, characters per step

log = logging.getLogger("rosetta")


def one_line(error):
    """The text of an error or a warning in one line."""
    return " ".join(str(error).split()) or type(error).__name__


class _Terminal(logging.StreamHandler):
    """Messages on standard error, one line each."""

    def __init__(self, verbosity):
        super().__init__(sys.stderr)
        self.setLevel(logging.INFO if verbosity == VERBOSE else logging.WARNING)
        self.addFilter(lambda record: not getattr(record, "said", False))

    def format(self, record):
        kind = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"rosetta: {kind}{record.getMessage()}"


class _File(logging.FileHandler):
    """Messages in a file, with their times; those of a later run are added to it."""

    def __init__(self, path):
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))


@contextmanager
def messages(verbosity=NORMAL, path=None):
    """Show the messages of the library and all warnings, one line each, as long as the block lasts.

    Parameters
    ----------
    verbosity : int
        ``QUIET`` and ``NORMAL``: warnings and errors; ``VERBOSE``: all messages.
    path : path-like, optional
        A file that receives all messages.

    Raises
    ------
    ValueError
        If the file cannot be written; the message calls it ``--log``.
    """
    import astropy  # noqa: F401  it shows warnings in its own way from its first import on, which must come before ours

    handlers = [_Terminal(verbosity)]
    if path is not None:
        try:
            handlers.append(_File(path))
        except OSError as error:
            raise ValueError(f"--log {path}: {error.strerror}, name a file in a folder that exists") from error
    level = log.level
    for handler in handlers:
        log.addHandler(handler)
    log.setLevel(logging.INFO)

    def show(message, category, *_, **__):
        if not issubclass(category, DeprecationWarning):  # for developers, of the packages that are used
            log.warning("%s", one_line(message))

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        log.setLevel(level)
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def say(lines, verbosity=NORMAL):
    """Write the results of a command on standard output, unless it is to be quiet, and into the log file.

    Parameters
    ----------
    lines : iterable of str
    verbosity : int
    """
    for line in lines:
        if verbosity > QUIET:
            print(line)
        if line.strip():
            log.info("%s", line, extra={"said": True})


def _seconds():
    """The clock, and what this process and its ended children took of the processor."""
    return time.perf_counter(), sum(os.times()[:4])


class Steps:
    """Progress on standard error: a bar on a terminal, elsewhere a line as each step begins, from ``first`` on.

    The seconds of each step are logged. An error removes the bar.

    Parameters
    ----------
    steps : sequence of str
        Their names, in order; steps may be left out.
    verbosity : int
        ``QUIET``: nothing is drawn; ``VERBOSE``: neither, since the messages say it.
    first : str, optional
        Steps before this one look at the input; if it is bad, the error is to be the only line. Default: the first.

    Attributes
    ----------
    spent : dict of str to (float, float)
        Seconds of each step that has ended: by the clock, and of the processor (children that have ended included).
    """

    def __init__(self, steps, verbosity=NORMAL, *, first=None):
        self._steps, self._drawn = tuple(steps), verbosity == NORMAL
        self._before = self._steps.index(first) if first else 0
        self._live = self._drawn and sys.stderr.isatty()
        self._start = time.perf_counter()
        self._since, self.spent = _seconds(), {}
        self._step, self._length = None, 0

    def __enter__(self):
        return self

    def __call__(self, step, done, total):
        """Say that ``done`` of ``total`` parts of a step are done."""
        if step != self._step:
            self._end()
            self._step = step
        elif not self._live:
            return
        number = self._steps.index(step)
        if self._live or number >= self._before:
            self._show(number + done / total, f"{step} ...")

    def of(self, step):
        """The progress of one step, for what reports ``(done, total)`` only."""
        return lambda done, total: self(step, done, total)

    def __exit__(self, kind, *_):
        if kind is None:
            self._end()
            self._show(len(self._steps), "done")
        if self._live:
            sys.stderr.write("\n" if kind is None else f"\r{' ' * self._length}\r")

    def _end(self):
        now = _seconds()
        if self._step is not None:
            self.spent[self._step] = tuple(b - a for a, b in zip(self._since, now, strict=True))
            log.info("%s took %.1f s", self._step, self.spent[self._step][0])
        self._since = now

    def profile(self):
        """A line for each step that has ended, and one for all of them."""
        total = [sum(seconds) for seconds in zip(*self.spent.values(), strict=True)]
        yield f"{'step':<10}{'seconds':>10}{'CPU seconds':>14}{'share of CPU':>14}"
        for step, (clock, cpu) in [*self.spent.items(), ("all", total)]:
            yield f"{step:<10}{clock:>10.2f}{cpu:>14.2f}{cpu / max(total[1], 1e-9):>14.0%}"

    def _show(self, done, text):
        if not self._drawn:
            return
        full = round(WIDTH * done)
        bar = "#" * full + "-" * (WIDTH * len(self._steps) - full)
        seconds = time.perf_counter() - self._start
        line = f"[{bar}] {int(done)}/{len(self._steps)} {seconds:6.1f} s  {text:<12}"
        self._length = len(line)
        print(f"\r{line}" if self._live else line.rstrip(), file=sys.stderr, end="" if self._live else "\n", flush=True)
