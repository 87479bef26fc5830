# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Damaged files: what every reader makes of them.

Small whole files are damaged in one way each (header cards, bytes, length, compressed streams, extensions) and read,
with at most 10 s and 2 GB beside what the libraries take. The outcome is sorted:

- right: the answer is that of the whole file; or the damage cannot be noticed without a checksum (a card or a pixel
  with another possible value, an optional extension taken out whole) and nothing else changed;
- named: the answer differs, and a warning names the file;
- clear: a ValueError, TypeError or OSError of one line that names a file;
- vague: one of these errors that does not; raw: any other exception; hang: more time or memory than allowed;
- wcs: positions differ and nothing was said; plane: a band, mask, variance or PSF is missing and nothing was said;
  changed: anything else differs and nothing was said.

All after "clear" are faults. rosetta's own files (pair, embedding, scene, checkpoint) can be sealed with checksums, so
there any difference that nothing was said of is a fault.

Run: python benchmarks/fuzz.py [--count 1000] [--first 0] [--reader NAME ...] [--workers 1] [--tables FOLDER]
One again: python benchmarks/fuzz.py --reader euclid --only 17 [--keep FILE]
"""

import argparse
import multiprocessing
import resource
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from astropy.utils.exceptions import AstropyUserWarning
from kit.specimens import readers, same
from kit.tables import Tables, add_option

OUTCOMES = ("right", "named", "clear", "vague", "raw", "hang", "wcs", "plane", "changed")
FAULTS = OUTCOMES[3:]
SECONDS, MEMORY = 10, 2 * 1024**3
PLANES = ("data", "mask", "variance", "psf", "psf nodes")
# Which planes an extension of a survey file holds: taken out whole, nobody can know that they were there.
OPTIONAL = {"_RMS": ("variance", "mask"), "_FLAG": ("mask",), "_PSF": ("psf",), "PSF": ("psf",)}


class TookTooLong(BaseException):
    """Not an Exception, so that no reader can take it for damage."""


# ---------------------------------------------------------------------------- one file
def damage(reader, groups, seed):
    """The files of one seed: (`Damage`, names of all files, the damaged one first)."""
    rng = np.random.default_rng([seed, sum(map(ord, reader.name))])
    files = groups[seed % len(groups)]
    return reader.damage(files[0].read_bytes(), rng), files


def attempt(reader, groups, truths, seed, folder):
    """Outcome and a line about it."""
    harm, files = damage(reader, groups, seed)
    broken = folder / f"{files[0].name}{harm.ending}"
    broken.write_bytes(harm.content)
    used = [broken, *files[1:]]
    said, error, found = [], None, None
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = reader.shown(reader.read(used))
    except TookTooLong:
        return "hang", f"more than {SECONDS} s; {harm.text}"
    except MemoryError as problem:
        return "hang", f"memory: {problem}; {harm.text}"
    except Exception as problem:
        error = problem
    finally:
        broken.unlink()
    if error is not None:
        return (*of_error(error, used, harm),)
    named = any(
        issubclass(w.category, AstropyUserWarning) and any(path.name in str(w.message) for path in used) for w in said
    )
    return of_answer(found, truths[seed % len(groups)], harm, reader, named)


def of_error(error, used, harm):
    text = str(error)
    line = f"{type(error).__name__}: {text[:300]!r}; {harm.text}"
    if not isinstance(error, ValueError | TypeError | OSError):
        return "raw", line
    clear = "\n" not in text.strip() and any(path.name in text for path in used)
    return "clear" if clear else "vague", line


def of_answer(found, truth, harm, reader, named):
    """Sort an answer by how it differs from that of the whole file."""
    differ = [
        (part, name, found.get(part, {}).get(name))
        for part, values in truth.items()
        for name, value in values.items()
        if part not in found or not same(value, found[part].get(name))
    ]
    extra = [part for part in found if part not in truth] or [
        (part, name) for part in found for name in found[part] if name not in truth[part]
    ]
    if not differ and not extra:
        return "right", harm.text
    what = ", ".join(sorted({f"{part} {name}" for part, name, _ in differ}))[:200] + (f" and {extra}" if extra else "")
    line = f"differ: {what}; {harm.text}"
    if named:
        return "named", line
    lost = [(part, name) for part, name, value in differ if name in PLANES and value is None]  # also of a lost band
    if not reader.own:
        if harm.gone:
            may = next((planes for end, planes in OPTIONAL.items() if harm.gone.endswith(end)), ())
            if all(name in may for _, name, _ in differ):
                return "right", line
        elif not harm.noticeable and (not lost or harm.key in ("FILTER", "BAND") and len(found) == len(truth)):
            return "right", line  # another possible value of a card or pixel
    if lost:
        return "plane", line
    if any(name == "sky" for _, name, _ in differ):
        return "wcs", line
    return "changed", line


# ---------------------------------------------------------------------------- many files
def limit_memory():
    """`MEMORY` more than this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def ring(*_):
    raise TookTooLong


def work(reader, groups, truths, folder, pipe):
    """The loop of a worker process: a seed comes, an outcome goes."""
    limit_memory()
    signal.signal(signal.SIGALRM, ring)
    while (seed := pipe.recv()) is not None:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            outcome = attempt(reader, groups, truths, seed, folder)
        except TookTooLong:
            outcome = "hang", f"more than {SECONDS} s"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(outcome)


def watch(reader, groups, truths, seeds, folder, out):
    """Give seeds to one worker process; one that dies or hangs is replaced."""
    folder.mkdir()
    worker = pipe = None
    for seed in seeds:
        if worker is None:
            pipe, other = multiprocessing.Pipe()
            worker = multiprocessing.get_context("fork").Process(
                target=work, args=(reader, groups, truths, folder, other), daemon=True
            )
            worker.start()
            other.close()
        pipe.send(seed)
        try:
            answered = pipe.poll(SECONDS + 5)
            out[seed] = pipe.recv() if answered else ("hang", "killed: it did not come back")
        except EOFError:
            answered, out[seed] = False, ("hang", "the process died")
        if not answered:
            worker.kill()
            worker.join()
            worker = None
    if worker is not None:
        pipe.send(None)
        worker.join()


def run(reader, seeds, workers=1):
    """Outcomes by seed: {seed: (outcome, line)}.

    Parameters
    ----------
    reader : Reader
    seeds : sequence of int
    workers : int, optional
        Processes at a time.

    Returns
    -------
    dict
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, out = Path(folder), {}
        groups = reader.files(folder)
        truths = [reader.shown(reader.read(files)) for files in groups]
        threads = [
            threading.Thread(target=watch, args=(reader, groups, truths, seeds[k::workers], folder / str(k), out))
            for k in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return dict(sorted(out.items()))


def one(reader, seed, keep):
    """Do one seed again in this process, with a look at the file."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        groups = reader.files(folder)
        truths = [reader.shown(reader.read(files)) for files in groups]
        if keep:
            Path(keep).write_bytes(damage(reader, groups, seed)[0].content)
        (folder / "broken").mkdir()
        print(*attempt(reader, groups, truths, seed, folder / "broken"), sep=": ")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = readers()
    parser.add_argument("--reader", nargs="+", choices=list(known), default=list(known))
    parser.add_argument("--count", type=int, default=1000, help="damaged files per reader")
    parser.add_argument("--first", type=int, default=0, help="seed of the first of them; the others follow")
    parser.add_argument("--only", type=int, help="one seed, in this process")
    parser.add_argument("--keep", help="where to write the damaged file of --only")
    parser.add_argument("--workers", type=int, default=1)
    add_option(parser)
    options = parser.parse_args()
    if options.only is not None:
        for name in options.reader:
            one(known[name], options.only, options.keep)
        return
    lines = []
    for name in options.reader:
        start = time.time()
        out = run(known[name], range(options.first, options.first + options.count), options.workers)
        counts = Counter(outcome for outcome, _ in out.values())
        lines.append([name, *(counts[outcome] for outcome in OUTCOMES), f"{time.time() - start:.0f}"])
        faults = [f"{name} {seed} {what}: {line}" for seed, (what, line) in out.items() if what in FAULTS]
        print(*faults, sep="\n", flush=True)
    Tables(options.tables).show("fuzz", "damaged files", ["reader", *OUTCOMES, "s"], lines)


if __name__ == "__main__":
    main()
