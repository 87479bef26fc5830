# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The main job: a pair of images to a catalogue."""

import time
from dataclasses import dataclass, field

import astropy.units as u

__all__ = ["STEPS", "Result", "measure"]


@dataclass(frozen=True, eq=False)
class Result:
    """What one run of the main job gives.

    Attributes
    ----------
    pair : `~rosetta.SkyPair`
    embedding : `~rosetta.SkyEmbedding`
    offsets : `~astropy.table.QTable` or None
        None where only one survey looked.
    scene : `~rosetta.DeblendedScene`
    catalog : `~astropy.table.QTable`
    seconds : dict of str to float
        Wall-clock time of each step.
    """

    pair: object
    embedding: object
    offsets: object
    scene: object
    catalog: object
    seconds: dict = field(default_factory=dict)


STEPS = ("encode", "align", "deblend", "measure")


def measure(pair, *, encoder, aligner, deblender, photometry, window=38.4 * u.arcsec, progress=None):
    """Encode, align, deblend and measure a pair.

    Without both surveys there is nothing to align; where the aligner abstains the job goes on unaligned
    and every row is flagged ``UNALIGNED``.

    Parameters
    ----------
    pair : `~rosetta.SkyPair`
    encoder, aligner, deblender, photometry
        The four models.
    window : `~astropy.units.Quantity`
        Side of the encoder's windows.
    progress : callable, optional
        Called as ``progress(step, done, total)`` when a step of `STEPS` begins (``done`` is 0) and, within those that
        go window by window or tile by tile, after each.

    Returns
    -------
    Result
    """
    seconds = {}

    def timed(step, work):
        def within(done, total):
            if progress is not None:
                progress(step, done, total)

        within(0, 1)
        start = time.perf_counter()
        result = work(within)
        seconds[step] = time.perf_counter() - start
        return result

    embedding = timed("encode", lambda within: encoder(pair, window=window, progress=within))
    offsets = None
    if pair.ground and pair.space:
        offsets = timed("align", lambda _: aligner(embedding))
    scene = timed("deblend", lambda within: deblender(embedding, offsets=offsets, progress=within))
    catalog = timed("measure", lambda _: photometry(embedding, scene))
    return Result(pair, embedding, offsets, scene, catalog, seconds)


# ---------------------------------------------------------------------------- files
















# ---------------------------------------------------------------------------- against a truth






