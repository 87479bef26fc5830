# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The main job: a pair of images to a catalogue."""

import logging
import time
from dataclasses import dataclass

import astropy.units as u
from astropy.table import QTable

from ..arithmetic import plain_arithmetic
from ..astrometry.aligner import LearnedAligner
from ..astrometry.reference_stars import reference_stars
from ..astrometry.solution import as_solution
from ..deblending.deblender import JEPADeblender
from ..deblending.scene import DeblendedScene
from ..embedding import SkyEmbedding
from ..encoding.encoder import CrossSurveyEncoder
from ..pair import SkyPair
from ..photometry.catalogue import EmbeddingPhotometry, with_columns_of
from ..photometry.zeropoints import zeropoint_errors
from ..readonly import ReadOnlyDict
from ..workers import check_workers
from . import products

__all__ = ["STEPS", "Result", "measure"]

log = logging.getLogger("rosetta")

STEPS = ("encode", "align", "deblend", "measure")


@dataclass(frozen=True, eq=False)
class Result:
    """What one run of the main job gives; made by `rosetta.measure`.

    Attributes
    ----------
    pair : `~rosetta.SkyPair`
    embedding : `~rosetta.SkyEmbedding`
    offsets : `~astropy.table.QTable` or None
        None where only one survey looked, unless stars were given.
    scene : `~rosetta.DeblendedScene`
    catalog : `~astropy.table.QTable`
    seconds : mapping of str to float
        Wall-clock time of each step.
    """

    pair: SkyPair
    embedding: SkyEmbedding
    offsets: QTable | None
    scene: DeblendedScene
    catalog: QTable
    seconds: ReadOnlyDict

    def __repr__(self):
        verdict = "one survey only" if self.offsets is None else f"alignment {self.offsets.meta['verdict']}"
        return (
            f"<Result {len(self.catalog)} sources in {' '.join(self.scene.bands)}; {verdict}; "
            f"{sum(self.seconds.values()):.0f} s>"
        )

    def _repr_html_(self):
        solution = None if self.offsets is None else as_solution(self.offsets)
        parts = [self.pair, self.scene, *([] if solution is None else [solution])]
        return "".join(part._repr_html_() for part in parts)

    @plain_arithmetic
    def write(
        self, directory, *, overwrite=False, models="sources", truth=None, format="ecsv", pixel_positions=False,
        segmentation=False, progress=None,
    ):
        """Write the results into a directory: all of them, or none.

        ``catalogue.ecsv``, ``.fits``, ``.parquet`` or ``.vot`` (fluxes, then the columns of the scene's table);
        ``offsets.ecsv`` (with both surveys); ``models.fits``; ``segmentation.fits`` (if asked for);
        ``sources.reg`` (DS9); ``overview.png`` (needs matplotlib).

        Parameters
        ----------
        directory : path-like
            Created.
        overwrite : bool
            Whether the directory may hold something. Results of an earlier run are replaced together, other files in
            it are left alone.
        models : {"none", "bands", "sources"}
            What ``models.fits`` holds: "bands", model and residual of every band; "sources", these and an image of
            every source in the reference band; "none", the file is not written.
        truth : `~astropy.table.QTable`, optional
            As from `rosetta.simulate.simulate_pair`; drawn in the overview.
        format : {"ecsv", "fits", "parquet", "votable"}
            Of the catalogue; `rosetta.io.read_catalogue` reads all of them. Parquet needs pyarrow.
        pixel_positions : bool
            Whether the catalogue has ``x_<band>`` and ``y_<band>``, see `~rosetta.DeblendedScene.pixel_positions`.
        segmentation : bool
            Whether ``segmentation.fits`` is written: `~rosetta.DeblendedScene.segmentation` of the reference band.
        progress : callable, optional
            Called as ``progress(done, total)`` before each file.

        Returns
        -------
        list of `~pathlib.Path`
            The files.

        Raises
        ------
        ValueError
            If the directory cannot be used, another process writes to it, or ``models`` or ``format`` is
            unknown.
        """
        return products.write(
            self, directory, truth=truth, overwrite=overwrite, models=models, format=format,
            pixel_positions=pixel_positions, segmentation=segmentation, progress=progress,
        )


@plain_arithmetic
def measure(
    pair, sources=None, *, neighbours="detect", shape="fit", recentre=False, device=None, window=38.4 * u.arcsec,
    centers=None, tile_corners=None, background="plane", zeropoint_err=None, workers=1, progress=None, encoder=None,
    aligner=None, deblender=None, photometry=None, reference=None,
):
    """The main job: encode, align, deblend and measure a pair.

    Without both surveys there is nothing to align, unless stars are given. Where these do not tie the images, the space
    image is the frame; where the aligner abstains the job goes on unaligned and every row is flagged ``UNALIGNED``.

    Parameters
    ----------
    pair : `~rosetta.SkyPair`
    sources : `~astropy.coordinates.SkyCoord` or table, optional
        Positions to measure; the catalogue then has their rows. None: what is detected.
    neighbours, shape, recentre
        Of ``sources``, as for `~rosetta.JEPADeblender`.
    device : str, optional
        "cpu", "cuda" or "cuda:N", for models that are loaded here; None: CUDA where there is one.
    window : `~astropy.units.Quantity`
        Side of the encoder's windows (angle).
    centers : `~astropy.coordinates.SkyCoord`, optional
        Centres of these windows, see `~rosetta.CrossSurveyEncoder`; None: windows that cover the pair.
    tile_corners : `~astropy.coordinates.SkyCoord`, optional
        Where the tiles of the step "deblend" meet, see `~rosetta.JEPADeblender`; None: tiles that cover the pair.
    background : {"plane", None}
        What the images still hold of the sky, see `rosetta.JEPADeblender`.
    workers : int
        Processes that share the tiles of a field (of 102 arcsec) in the step "deblend"; see `~rosetta.JEPADeblender`.
    progress : callable, optional
        Called as ``progress(step, done, total)`` when a step ("encode", "align", "deblend", "measure") begins
        (``done`` is 0) and, within those that go window by window or tile by tile, after each.
    encoder : `~rosetta.CrossSurveyEncoder`, optional
    aligner : `~rosetta.LearnedAligner`, optional
    deblender : `~rosetta.JEPADeblender`, optional
    photometry : `~rosetta.EmbeddingPhotometry`, optional
        The models; None: the bundled one.
    reference : `~astropy.table.Table` or `~astropy.coordinates.SkyCoord`, optional
        Stars to tie the frames of the images to, as for `~rosetta.LearnedAligner`. Positions of sources stay in the
        frame of the space image's header; the offsets lead from there to the stars.
    zeropoint_err : dict of str to float, optional
        Relative error of the zero point of each band, as for `~rosetta.EmbeddingPhotometry`; 0 where none is given.

    Returns
    -------
    `~rosetta.Result`

    Raises
    ------
    TypeError
        If ``pair`` is not a pair, or ``reference`` is neither a table nor positions.
    ValueError
        If ``reference`` lacks positions or epochs, the models do not belong together, or the window, the background or
        the device cannot be used.
    """
    if not isinstance(pair, SkyPair):
        raise TypeError(f"pair must be a SkyPair, got {type(pair).__name__}: make one with SkyPair(ground, space)")
    if neighbours == "scene":
        raise ValueError(
            "neighbours is 'scene', which measure does not take: call EmbeddingPhotometry with scene and positions"
        )
    zeropoint_errors(zeropoint_err, pair.surveys)  # before the work, not after it
    check_workers(workers)
    if reference is not None:
        reference_stars(reference)
    heads = {"aligner": aligner, "deblender": deblender, "photometry": photometry}
    if encoder is None:
        given = [head for head in heads.values() if head is not None]
        encoder = given[0].encoder if given else CrossSurveyEncoder.from_pretrained(device=device)
    for kind, head in zip(heads, (LearnedAligner, JEPADeblender, EmbeddingPhotometry), strict=True):
        if heads[kind] is None:
            heads[kind] = head.from_pretrained(encoder=encoder, device=device)
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

    embedding = timed("encode", lambda within: encoder(pair, window=window, centers=centers, progress=within))
    offsets = None
    if pair.ground and (pair.space or reference is not None):
        offsets = timed("align", lambda _: _aligned(heads["aligner"], embedding, reference))
    how = {"neighbours": neighbours, "shape": shape, "recentre": recentre, "background": background}
    how |= {"tile_corners": tile_corners, "workers": workers}
    scene = timed(
        "deblend", lambda within: heads["deblender"](embedding, sources, offsets=offsets, progress=within, **how)
    )
    catalog = timed("measure", lambda _: heads["photometry"](embedding, scene, zeropoint_err=zeropoint_err))
    catalog = with_columns_of(sources, catalog)
    return Result(pair, embedding, offsets, scene, catalog, ReadOnlyDict(seconds))


def _aligned(aligner, embedding, reference):
    """The offsets; from the space image where the stars that were given do not tie it."""
    offsets = aligner(embedding, reference=reference)
    if reference is not None and offsets.meta["verdict"] == "abstain" and embedding.pair.space:
        log.warning("not tied to the reference: the frame is that of the space image")
        return aligner(embedding)
    return offsets
