# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""``rosetta pretrain`` and ``rosetta train-head``."""

import signal
import sys
import time
from pathlib import Path

from ..registry import head_class
from .errors import options

__all__ = ["train_encoder", "train_head"]

LOG_EVERY = 10  # training steps per line


def train_encoder(arguments):
    with options("output"):
        path = _checkpoint_path(arguments.output)
    if arguments.steps is None and arguments.max_minutes is None:
        raise ValueError("no end: give --steps N, --max-minutes M, or both (whichever comes first)")
    if arguments.batch < 12:
        raise ValueError(f"--batch is {arguments.batch}: use 12 or more, for two windows of 38.4 arcsec in a step")
    from .. import CrossSurveyEncoder
    from ..encoding.pretraining import TrainConfig, TrainingError
    from ..simulate import TrainingSet

    pairs = TrainingSet(arguments.data)
    validation = TrainingSet(arguments.validation) if arguments.validation else None
    batch = {12.8: arguments.batch, 38.4: arguments.batch // 6}
    config = TrainConfig(
        steps=arguments.steps, max_minutes=arguments.max_minutes, seed=arguments.seed, log_every=LOG_EVERY,
        phases=tuple((share, window, batch[window]) for share, window, _ in TrainConfig.phases),
    )
    state = path.with_name(f"{path.name}.state")
    encoder = CrossSurveyEncoder(seed=arguments.seed, device=arguments.device)
    print(f"{len(pairs)} tiles; {encoder}; training state in {state}", flush=True)
    try:
        with _StopBetweenSteps() as progress:
            encoder.fit(pairs, config=config, validation=validation, checkpoint=state, progress=progress)
    except TrainingError as error:
        raise ValueError(str(error)) from error
    except KeyboardInterrupt:
        if state.exists():
            print(f"{state} keeps the training: the same command goes on from there", file=sys.stderr)
        raise
    print(f"Wrote {path}: encoder {encoder.save(path)}")
    for window, measured in encoder.provenance.get("held_out", {}).items():
        print(
            f"Held out, windows of {window}: retrieval {measured['retrieval']:.3f} among {measured['gallery']}, "
            f"cosine gap {measured['gap']:.3f}, rank {measured['rank']:.0f}"
        )


def train_head(arguments):
    with options("output"):
        path = _checkpoint_path(arguments.output)
    if arguments.deblender and arguments.kind != "photometry":
        raise ValueError(f"--deblender is of no use to train-head {arguments.kind}: leave it out")
    from .. import CrossSurveyEncoder, JEPADeblender, LearnedDetector
    from ..simulate.observed import ObservedSet

    encoder = CrossSurveyEncoder.from_pretrained(arguments.encoder, device=arguments.device)
    pairs = ObservedSet(arguments.data, seed=arguments.seed)
    given = {}
    if arguments.deblender:
        given["deblender"] = JEPADeblender.from_pretrained(
            arguments.deblender, encoder=encoder, device=arguments.device
        )
    if arguments.kind == "deblender":
        given["detector"] = LearnedDetector.from_pretrained(device=arguments.device)
    head = head_class(arguments.kind)(encoder, **given)
    state = path.with_name(f"{path.name}.state")
    print(f"{arguments.kind} on {encoder}: {len(pairs)} tiles; training state in {state}", flush=True)
    start = time.perf_counter()
    head.fit(_Reported(pairs, start), pairs.truth, seed=arguments.seed, checkpoint=state)
    print(f"Wrote {path}: {arguments.kind} {head.save(path)}, {(time.perf_counter() - start) / 60:.1f} min")


def _checkpoint_path(value):
    path = Path(value)
    if path.suffix != ".safetensors":
        raise ValueError(f"output {str(path)!r} must end in .safetensors")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"output {str(path)!r}: its folder does not exist, create it first")
    return path


class _StopBetweenSteps:
    """Prints progress; the first Ctrl-C stops the training at its next line, where its state is kept.

    A second Ctrl-C stops at once.
    """

    def __enter__(self):
        self._asked = False
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_):
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("stopping at the next line (Ctrl-C again: at once)", file=sys.stderr, flush=True)

    def __call__(self, step, metrics):
        _print_step(step, metrics)
        if self._asked:
            raise KeyboardInterrupt


def _print_step(step, metrics):
    """One line of training."""
    progress, elapsed = metrics["progress"], metrics["elapsed"]
    left = elapsed * (1 - progress) / progress / 60 if progress > 0 else float("nan")
    print(
        f"step {step:6d} {100 * progress:5.1f}%  loss {metrics['loss']:7.3f}  retrieval {metrics['retrieval']:.3f}  "
        f"gap {metrics['gap']:.3f}  rank {metrics['rank']:5.1f}  std {metrics['std']:.2f}  "
        f"{metrics['pairs_per_second']:6.1f} pairs/s  {elapsed / 60:.1f} min, {left:.1f} left",
        flush=True,
    )


class _Reported:
    """A sequence that prints, on standard error, which item is being read."""

    def __init__(self, items, start):
        self._items, self._start = items, start

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        item = self._items[index]
        minutes = (time.perf_counter() - self._start) / 60
        print(f"tile {index + 1} of {len(self)}, {minutes:.1f} min", file=sys.stderr, flush=True)
        return item

    def __iter__(self):
        return (self[index] for index in range(len(self)))
