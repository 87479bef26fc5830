# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""`recover`: sources injected into a user's images, measured as all others, and compared with what was put in."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import QTable, vstack
from scipy.spatial import cKDTree

from ..arithmetic import plain_arithmetic
from ..astrometry.aligner import LearnedAligner
from ..checkpoint import versions
from ..deblending.deblender import JEPADeblender
from ..encoding.encoder import CrossSurveyEncoder
from ..files import atomic_write
from ..images.positions import tangent
from ..matching import MATCH, match
from ..photometry.catalogue import EmbeddingPhotometry
from ..pipeline.run import measure
from .insertion import DENSITY, MAGNITUDE, SEPARATION, inject, require_simulator
from .summary import pull_covariance, summarise

__all__ = ["PRODUCTS", "Recovery", "recover"]

log = logging.getLogger("rosetta")

PRODUCTS = ("injected.ecsv", "summary.ecsv", "injection.png")
FORMAT = 1  # of the stored rounds


@dataclass(frozen=True, eq=False)
class Recovery:
    """What injected sources say of the measurements on one pair; made by `rosetta.recover`.

    Attributes
    ----------
    injected : `~astropy.table.QTable`
        A row per injected source: ``round``; ``found``; ``claimed_by``, the label (in ``existing``) of the source to
        which the matched row belongs (-1: none); ``distance`` from the true to the measured position (arcsec); the
        truth of `rosetta.inject`, with ``true_`` before ``label``, ``sky_centroid``, ``flux_<band>``,
        ``half_light_radius``, ``e1`` and ``e2``; then the columns of the catalogue, NaN (labels -1) where no row
        matches within 0.3 arcsec.
    summary : `~astropy.table.QTable`
        A row per ``band`` and bin: ``by`` is "all", "magnitude" (true, in this band), "size" (true half-light radius,
        arcsec; stars 0) or "family" (without this column "type"); ``low`` and ``high``, or ``kind``. ``n`` injected
        with at least half of their light on valid pixels of the reference band, ``n_found``, ``completeness``;
        ``n_measured`` found and measured, ``bias`` (median of flux / true - 1), ``nmad`` (of the same), ``coverage``
        (share of fluxes less than one sigma from the truth). Ends of intervals of 68 % in ``<name>_low`` and
        ``<name>_high``: of shares by Wilson (1927), of the others by bootstrap. ``meta["pulls"]``: ``bands``, ``n``,
        and over the sources found and measured in all bands ``covariance``, the mean products of two bands' pulls
        (pulls beyond 5 sigma count as 5), and ``predicted``, the mean correlations in ``flux_cov``.
    existing : `~astropy.table.QTable`
        The catalogue of the images as they are.
    """

    injected: QTable
    summary: QTable
    existing: QTable

    def write(self, directory):
        """Write ``injected.ecsv``, ``summary.ecsv`` and ``injection.png`` (needs matplotlib), each whole or not at all.

        Parameters
        ----------
        directory : path-like
            Created if its parent exists; files of these names are replaced.

        Returns
        -------
        list of `~pathlib.Path`
        """
        from ..plotting import plot_recovery

        directory = Path(directory)
        directory.mkdir(exist_ok=True)
        paths = [directory / name for name in PRODUCTS]
        for table, path in zip((self.injected, self.summary), paths[:2], strict=True):
            _write_table(table, path)
        with atomic_write(paths[2]) as temporary:
            plot_recovery(self.summary).savefig(temporary, dpi=110)
        return paths


@plain_arithmetic
def recover(
    pair, sources=None, *, seed, rounds=10, n=None, population="all", band=None, magnitude=MAGNITUDE, density=DENSITY,
    separation=SEPARATION, result=None, directory=None, device=None, progress=None, encoder=None, aligner=None,
    deblender=None, photometry=None,
):
    """Inject sources into a pair, measure it as `rosetta.measure` does, and compare; again and again.

    The pair is measured once as it is. In each round sources are injected into a fresh copy (see `rosetta.inject`; the
    ground images get them where the alignment of the first run says), and this is measured. The injected sources are
    matched first, the brightest before others, within 0.3 arcsec. A row that lies as near to a source that was there
    before, with none left for that one, is the brighter one's: if its flux in the reference band is nearer to that of
    the source that was there, the injected one is not found. Nor is one whose light is centred farther from every row,
    as that of a large galaxy with bright knots can be.

    Parameters
    ----------
    pair : `~rosetta.SkyPair`
    sources : `~astropy.table.Table`, optional
        As for `rosetta.inject`; without ``sky_centroid`` they have other places in each round.
    seed : int
    rounds : int
        How often to inject.
    n, population, band, magnitude, density, separation : optional
        As for `rosetta.inject`, of each round.
    result : `~rosetta.Result`, optional
        Of `rosetta.measure` on this pair with the same models, if there is one: it is not measured again.
    directory : path-like, optional
        Where rounds are kept as they finish (folder ``rounds``): the same call goes on from there after it was
        stopped.
    device : str, optional
        As for `rosetta.measure`.
    progress : callable, optional
        Called as ``progress(done, rounds)`` before the first round and after each.
    encoder, aligner, deblender, photometry : optional
        As for `rosetta.measure`.

    Returns
    -------
    `~rosetta.Recovery`

    Raises
    ------
    ImportError
        If GalSim or speclite is not installed.
    TypeError, ValueError
        If an argument cannot be used, or ``directory`` holds rounds of other images or settings.
    """
    require_simulator()
    if isinstance(rounds, bool) or not isinstance(rounds, (int, np.integer)) or rounds < 1:
        raise ValueError(f"rounds is {rounds!r}: give 1 or more")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed is {seed!r}: give a whole number, 0 or more")
    if result is not None and result.pair is not pair:
        raise ValueError("result is of another pair: give what rosetta.measure returned for this one, or leave it out")
    what = {
        "n": n, "population": population, "band": band, "magnitude": magnitude, "density": density,
        "separation": separation,
    }  # fmt: skip
    # Arguments are checked before anything is measured.
    inject(pair, sources, seed=[seed, 0], **what)
    heads = [aligner, deblender, photometry]
    if encoder is None:
        given = [head for head in heads if head is not None]
        encoder = given[0].encoder if given else CrossSurveyEncoder.from_pretrained(device=device)
    for k, kind in enumerate((LearnedAligner, JEPADeblender, EmbeddingPhotometry)):
        if heads[k] is None:
            heads[k] = kind.from_pretrained(encoder=encoder, device=device)
    models = dict(zip(("aligner", "deblender", "photometry"), heads, strict=True), encoder=encoder)
    store = None
    if directory is not None:
        store = _Rounds(Path(directory) / "rounds", _settings(pair, sources, seed, what, models))

    existing, offsets, reference = _first(pair, models, store, result)
    tables = []
    for k in range(rounds):
        if progress is not None:
            progress(k, rounds)
        table = store.read(f"round_{k:04d}") if store else None
        if table is None:
            injected, truth = inject(pair, sources, seed=[seed, k], offsets=offsets, existing=existing, **what)
            table = _compared(measure(injected, **models).catalog, truth, existing, reference)
            table.add_column(np.full(len(table), k), name="round", index=0)
            if store:
                store.write(f"round_{k:04d}", table)
        tables.append(table)
    if progress is not None:
        progress(rounds, rounds)
    what_was_injected = tables[0].meta["injection"]  # before: of one table, astropy 7.0 returns that table itself
    injected = vstack(tables, metadata_conflicts="silent")
    injected.meta = {"reference_band": reference, "bands": list(pair.bands), "rounds": rounds, "seed": int(seed)}
    injected.meta["injection"] = what_was_injected
    injected.meta["versions"] = versions()
    summary = summarise(injected, pair.bands, reference)
    summary.meta.update(reference_band=reference, bands=list(pair.bands), pulls=pull_covariance(injected, pair.bands))
    return Recovery(injected, summary, existing)


def _first(pair, models, store, result):
    """Catalogue and offsets of the pair as it is, and the reference band."""
    existing = store.read("existing") if store else None
    if existing is None:
        result = measure(pair, **models) if result is None else result
        existing = result.catalog.copy()
        if len(existing) == 0:
            del existing["flux_cov"]  # ECSV cannot be read back with an empty column of matrices
        existing.meta = {"reference_band": result.scene.meta["reference_band"]}
        if store:
            if result.offsets is not None:
                store.write("offsets", result.offsets)
            store.write("existing", existing)  # last: where it is, the offsets are
        return existing, result.offsets, existing.meta["reference_band"]
    return existing, store.read("offsets"), existing.meta["reference_band"]


# ---------------------------------------------------------------------------- matching
def _compared(catalog, truth, existing, band):
    """The truth of one round with the rows that match it."""
    rows, claimed = _matched(catalog, truth, existing, band)
    seen = rows >= 0
    table = QTable()
    table["found"], table["claimed_by"] = seen & (claimed < 0), claimed
    distance = np.full(len(truth), np.nan)
    distance[seen] = truth["sky_centroid"][seen].separation(catalog["sky_centroid"][rows[seen]]).arcsec
    table["distance"] = distance * u.arcsec
    twins = {"label", "sky_centroid", "half_light_radius", "e1", "e2"}
    for name in truth.colnames:
        table[f"true_{name}" if name in twins or name.startswith("flux_") else name] = truth[name]
    for name in catalog.colnames:
        table[name] = _at_rows(catalog[name], rows)
    table.meta["injection"] = truth.meta["injection"]
    return table


def _matched(catalog, truth, existing, band):
    """Catalogue row of each injected source (-1: none), and the label of the source that it was before (-1: none)."""
    row_of, claimed = np.full(len(truth), -1), np.full(len(truth), -1)
    rows, true = match(catalog, truth, band)
    row_of[true] = rows
    if len(rows) == 0 or len(existing) == 0:
        return row_of, claimed
    center = truth["sky_centroid"][0]
    here, before = tangent(catalog["sky_centroid"], center), tangent(existing["sky_centroid"], center)
    near = cKDTree(before).query_ball_point(here, MATCH)  # for each row the sources that were there
    taken = np.zeros(len(catalog), bool)
    taken[rows] = True
    with_own_row = {k for row in np.flatnonzero(~taken) for k in near[row]}
    flux, old_flux, true_flux = (t[f"flux_{band}"].to_value(u.nJy) for t in (catalog, existing, truth))
    for row, source in zip(rows, true, strict=True):
        for k in set(near[row]) - with_own_row:
            if abs(flux[row] - old_flux[k]) < abs(flux[row] - true_flux[source]):
                claimed[source] = existing["label"][k]
    return row_of, claimed


def _at_rows(column, rows):
    """A column's values at some rows; where a row is -1: NaN, or -1, or False."""
    seen = rows >= 0
    if isinstance(column, SkyCoord):
        angles = np.full((2, len(rows)), np.nan)
        angles[:, seen] = column.icrs.ra.deg[rows[seen]], column.icrs.dec.deg[rows[seen]]
        return SkyCoord(*angles, unit="deg")
    values = np.asarray(getattr(column, "value", column))
    empty = {"f": np.nan, "i": -1, "u": 0, "b": False}[values.dtype.kind]
    out = np.full((len(rows), *values.shape[1:]), empty, values.dtype)
    out[seen] = values[rows[seen]]
    return out if getattr(column, "unit", None) is None else out * column.unit


# ---------------------------------------------------------------------------- rounds on disk
class _Rounds:
    """Tables in a folder, each whole or not there, of one setting."""

    def __init__(self, folder, settings):
        self._folder = folder
        if not folder.parent.absolute().parent.is_dir():
            raise ValueError(f"directory {str(folder.parent)!r}: the folder it would stand in does not exist")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "settings.json"
        if path.is_file():
            known = json.loads(path.read_text())
            differ = sorted(name for name in settings if known.get(name) != settings[name])
            if differ:
                raise ValueError(
                    f"directory {str(folder.parent)!r} holds rounds with another {', '.join(differ)}: "
                    "choose another directory, or remove its folder 'rounds'"
                )
        else:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=1))

    def read(self, name):
        path = self._folder / f"{name}.ecsv"
        return QTable.read(path, format="ascii.ecsv") if path.is_file() else None

    def write(self, name, table):
        _write_table(table, self._folder / f"{name}.ecsv")


def _write_table(table, path):
    with atomic_write(path) as temporary:
        table.write(temporary, format="ascii.ecsv")


def _settings(pair, sources, seed, what, models):
    """What rounds depend on, as JSON keeps it."""
    pixels = hashlib.sha256()
    for _, band, image in pair.images():
        psf = pair.psf(band)
        parts = [] if psf is None else [psf.cells]
        for array in (image.data, image.uncertainty.array, image.mask, *parts):
            pixels.update(np.ascontiguousarray(array))
    table = None
    if sources is not None:
        digest = hashlib.sha256()
        for name in sources.colnames:
            column = sources[name]
            parts = [column.icrs.ra.deg, column.icrs.dec.deg] if isinstance(column, SkyCoord) else [column]
            for part in parts:
                digest.update(f"{name} {getattr(column, 'unit', None)} {np.asarray(part).tolist()}".encode())
        table = digest.hexdigest()
    return {
        "format": FORMAT, "images": pixels.hexdigest(), "sources": table, "seed": int(seed),
        **{name: list(v) if isinstance(v, tuple) else str(v) if isinstance(v, u.Quantity) else v
           for name, v in what.items()},
        "models": {kind: model.fingerprint for kind, model in models.items()},
    }  # fmt: skip
