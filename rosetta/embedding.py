# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The frozen encoder's representation of a pair of images."""

import copy

import astropy.units as u
import numpy as np
from astropy.nddata import NDData
from astropy.table import QTable
from astropy.wcs import WCS

from .arithmetic import plain_arithmetic
from .display import html_table
from .flags import Flag
from .images.positions import given_positions, plain_icrs
from .io import pair as pair_io
from .io._fits import as_path
from .io._store import check_format, document, document_hdu, extensions, new_path, record, record_hdus, save
from .pair import SIDES
from .readonly import ReadOnlyDict

__all__ = ["SkyEmbedding"]

FORMAT = 1  # of files


class SkyEmbedding:
    """The frozen encoder's representation of a `SkyPair`: tokens and one summary vector per window and side.

    Made by `~rosetta.CrossSurveyEncoder`, never by hand; immutable. Windows lie on one tangent-plane grid and
    overlap.

    Parameters
    ----------
    pair : `SkyPair`
        The images it was made from.
    fingerprint : str
        Fingerprint of the encoder that made it.
    window : `~astropy.units.Quantity`
        Side length of a window (angle).
    centers : `~astropy.coordinates.SkyCoord`, shape (n_window,)
        Window centres.
    sides : mapping
        ``sides["ground"]`` and ``sides["space"]`` (where observed): a mapping of ``tokens``
        (n_window, n_token, 384), ``positions`` (n_window, n_token, 2) [east, north, arcsec from the window centre],
        ``seen`` (n_window, n_token; whether a token has a valid pixel; not where it is predicted), ``cls``
        (n_window, 384), ``embedding`` (n_window, 256; unit length), ``coverage`` (share of valid pixels), ``ood_score``
        and ``flags`` (n_window,). Arrays are read-only.
    meta : dict
        Provenance.
    encoder : `~rosetta.CrossSurveyEncoder`, optional
        That made it; neither pickled nor written to files.
    """

    def __init__(self, pair, *, fingerprint, window, centers, sides, meta, encoder=None):
        self._pair, self._fingerprint, self._window = pair, fingerprint, window
        self._centers, self._meta, self._encoder = centers, meta, encoder
        self._sides = ReadOnlyDict({side: ReadOnlyDict(arrays) for side, arrays in sides.items()})

    pair = property(lambda self: self._pair, doc="The images it was made from.")
    fingerprint = property(lambda self: self._fingerprint, doc="Fingerprint of the encoder that made it.")
    window = property(lambda self: self._window.copy(), doc="Side length of a window (angle).")
    centers = property(lambda self: self._centers.copy(), doc="Window centres, shape (n_window,) (a copy).")
    sides = property(lambda self: self._sides, doc="Read-only arrays by side.")
    meta = property(lambda self: copy.deepcopy(self._meta), doc="Provenance (a copy).")

    def __getstate__(self):
        return {**self.__dict__, "_encoder": None}

    def at(self, coord, survey):
        """The representation at sky positions, each read in a small window that is centred on it.

        Parameters
        ----------
        coord : `~astropy.coordinates.SkyCoord`, shape (n,)
            By the WCS of the survey's images.
        survey : str or `~rosetta.Survey`
            "ground", "space" or the survey.

        Returns
        -------
        ndarray, shape (n, 384), float32
            As `CrossSurveyEncoder.at`: NaN where the survey has no valid pixel in the patch of the position.

        Raises
        ------
        ValueError
            If the survey is not known or has no images here, or the embedding came from a file or another process.
        """
        if self._encoder is None:
            raise ValueError(
                "this embedding came from a file or another process, without its encoder: use encoder.at(embedding, "
                f"coord, survey) with encoder {self._fingerprint}"
            )
        return self._encoder.at(self, coord, survey)

    def _side(self, survey):
        """Arrays of the side called ``survey``."""
        side = self._pair.side_of(survey)
        if side not in self._sides:
            raise ValueError(f"survey {getattr(survey, 'name', survey)!r}: this embedding has no {side} side")
        return self._sides[side]

    @plain_arithmetic
    def ood_at(self, coord):
        """Out-of-distribution flags of the windows whose centres are nearest to sky positions.

        Parameters
        ----------
        coord : `~astropy.coordinates.SkyCoord`, shape (n,)

        Returns
        -------
        ndarray of int, shape (n,)
            ``Flag.OUT_OF_DISTRIBUTION`` where it is set on any side, else 0.
        """
        window, _ = self._locate(coord)
        flags = np.zeros(len(window), int)
        for side in self._sides.values():
            flags |= side["flags"][window] & int(Flag.OUT_OF_DISTRIBUTION)
        return flags

    @property
    def familiar(self):
        """Centres of the windows, and whether their sky is like the training sky: judged on a side, strange on none.

        `~astropy.coordinates.SkyCoord` and bool array, shape (n_window,) each.
        """
        scores = np.stack([side["ood_score"] for side in self._sides.values()])
        return self._centers, np.isfinite(scores).any(axis=0) & ~(scores > 1).any(axis=0)

    def _locate(self, coord):
        """Nearest window of each position, and the offset from its centre in arcsec."""
        coord = given_positions(coord, "coord")
        window, _, _ = coord.match_to_catalog_sky(self._centers)
        east, north = self._centers[window].spherical_offsets_to(coord)
        return window, np.stack([east.to_value(u.arcsec), north.to_value(u.arcsec)], -1)

    def to_table(self):
        """The embedding as a table with one row per window and survey.

        Returns
        -------
        `~astropy.table.QTable`
            ``survey``, ``sky_center``, ``embedding`` (256), ``cls`` (384), ``coverage`` (fraction of valid
            pixels), ``ood_score`` (larger: less like the training sky; above 1 flagged ``OUT_OF_DISTRIBUTION``; NaN
            where less than 95 % of the window has valid pixels),
            ``flags``.
        """
        sides = list(self._sides.items())
        names = np.concatenate([[self._pair.survey(side).name] * len(self._centers) for side, _ in sides])
        table = QTable({"survey": names})
        table["sky_center"] = self._centers[np.tile(np.arange(len(self._centers)), len(sides))]
        for column in ("embedding", "cls", "coverage", "ood_score", "flags"):
            table[column] = np.concatenate([arrays[column] for _, arrays in sides])
        table.meta.update(self.meta)
        return table

    @plain_arithmetic
    def similarity(self, other):
        """Cosine similarity of every row of ``self.to_table()`` with every row of ``other.to_table()``.

        Parameters
        ----------
        other : `SkyEmbedding`
            By the same encoder; of the same sky or another.

        Returns
        -------
        ndarray, shape (n_row, n_row_other)

        Raises
        ------
        TypeError, ValueError
            If ``other`` is no embedding, or was made by another encoder.
        """
        if not isinstance(other, SkyEmbedding):
            raise TypeError(f"other must be a SkyEmbedding, got {type(other).__name__}")
        if other.fingerprint != self._fingerprint:
            raise ValueError(
                f"other was made by encoder {other.fingerprint}, this by {self._fingerprint}: use one encoder for both"
            )
        one, two = (np.concatenate([a["embedding"] for a in e.sides.values()]) for e in (self, other))
        return one @ two.T

    @plain_arithmetic
    def token_map(self, survey):
        """The tokens as an image on the sky.

        Parameters
        ----------
        survey : str or `~rosetta.Survey`
            "ground", "space" or the survey.

        Returns
        -------
        `~astropy.nddata.NDData`, data of shape (384, ny, nx)
            With a three-axis WCS: right ascension, declination (TAN, one pixel per token), and channel. A pixel is the
            token whose patch is nearest, in the window whose centre is nearest; NaN where the survey has no data. What
            there is at a source is told better by `rosetta.CrossSurveyEncoder.at`.

        Raises
        ------
        ValueError
            If the survey is not known here or has no side.
        """
        side = self._side(survey)
        positions = side["positions"][0].astype(float)
        pitch = np.ptp(positions[:, 0]) / (np.sqrt(len(positions)) - 1)
        center = self._centers[len(self._centers) // 2]
        east, north = center.spherical_offsets_to(self._centers)
        half = 0.5 * self._window.to_value(u.arcsec)
        east, north = east.to_value(u.arcsec), north.to_value(u.arcsec)
        nx, ny = (int(round((np.ptp(v) + 2 * half) / pitch)) for v in (east, north))
        wcs = WCS(naxis=3)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN", "CHANNEL"]
        wcs.wcs.cunit = ["deg", "deg", ""]
        wcs.wcs.crval = [center.ra.deg, center.dec.deg, 0]
        wcs.wcs.cdelt = [-pitch / 3600, pitch / 3600, 1]
        wcs.wcs.crpix = [0.5 + (east.max() + half) / pitch, 0.5 + (half - north.min()) / pitch, 1]
        y, x = np.mgrid[:ny, :nx]
        tokens = self._nearest(side, wcs.celestial.pixel_to_world(x.ravel(), y.ravel()))
        return NDData(np.moveaxis(tokens.reshape(ny, nx, -1), -1, 0), wcs=wcs, meta=self.meta)

    def _nearest(self, side, coord):
        """Of positions (n,), the tokens of the nearest patches in the nearest windows: (n, dim), NaN where is none."""
        window, offset = self._locate(coord)
        outside = np.abs(offset).max(axis=-1, initial=0) > 0.5 * self._window.to_value(u.arcsec) + 1
        tokens = np.empty((len(window), side["tokens"].shape[-1]), np.float32)
        for w in np.unique(window):
            rows = np.flatnonzero(window == w)
            d2 = ((offset[rows, None, :] - side["positions"][w][None]) ** 2).sum(-1)  # (n_row, n_token)
            nearest = d2.argmin(1)
            tokens[rows] = side["tokens"][w][nearest]
            if "seen" in side:  # a side that was predicted has no pixels
                tokens[rows[~side["seen"][w][nearest]]] = np.nan
        tokens[outside] = np.nan
        return tokens

    @plain_arithmetic
    def write(self, path, *, overwrite=False):
        """Write the embedding, together with its pair, to one FITS file, without loss.

        The file is a pair file (`rosetta.io.pair`) with more extensions: ``EMBEDDING_GROUND`` and
        ``EMBEDDING_SPACE`` have a row per window and a column per array of ``sides``, ``WINDOWS`` holds the window
        centres, and ``EMBEDDING_META`` is the provenance as JSON.

        Parameters
        ----------
        path : str or path-like
        overwrite : bool, optional
            Whether to replace the file if it exists: whole, or not at all.

        Raises
        ------
        FileExistsError
            If the file exists and ``overwrite`` is False.
        ValueError
            If the pair cannot be written to such a file.
        """
        path = new_path(path, overwrite)
        save(self._hdus(), path)

    def _hdus(self):
        """The HDUs of the file, the primary one first."""
        hdus = pair_io.hdus_of(self._pair)
        hdus[0].header["EMBFMT"] = (FORMAT, "rosetta embedding, format version")
        hdus[0].header["ENCODER"] = (self._fingerprint, "fingerprint of the encoder")
        windows = {"center": plain_icrs(self._centers), "side": self._window}
        hdus += record_hdus("WINDOWS", windows, len(self._centers))
        for side, arrays in self._sides.items():
            hdus += record_hdus(f"EMBEDDING_{side.upper()}", arrays, len(self._centers))
        return [*hdus, document_hdu("EMBEDDING_META", self._meta)]

    @classmethod
    @plain_arithmetic
    def read(cls, path):
        """Read an embedding written by `write`, or the one in the file of a scene.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        `SkyEmbedding`

        Raises
        ------
        ValueError
            If the file is damaged, of another kind, or of a newer format.
        """
        path = as_path(path, "path")
        with extensions(path, lambda header: cls._check(header, path)) as (header, found):
            return cls._of_file(header, found, path)

    @staticmethod
    def _check(header, path):
        """Refuse a file that holds no embedding, or one of a newer format."""
        advice = "read a pair with rosetta.io.pair.read, a scene with DeblendedScene.read"
        check_format(header, path, "EMBFMT", FORMAT, "embedding", advice)
        pair_io.check_pair(header, path)

    @classmethod
    def _of_file(cls, header, found, path):
        windows = record(found, "WINDOWS")
        names = {side: f"EMBEDDING_{side.upper()}" for side in SIDES}
        return cls(
            pair_io.pair_of(header, found, path), fingerprint=header["ENCODER"], window=windows["side"],
            centers=windows["center"], meta=document(found, "EMBEDDING_META"),
            sides={side: record(found, name) for side, name in names.items() if (name, 1) in found},
        )

    def __repr__(self):
        n, names = len(self._centers), self._pair.survey_name
        sides = ", ".join(f"{names(side)} {arrays['tokens'].shape[1]} tokens" for side, arrays in self._sides.items())
        return f"<SkyEmbedding {n} window{'s' * (n != 1)} of {self._window:.1f}: {sides}; encoder {self._fingerprint}>"

    def _repr_html_(self):
        rows = []
        for side, arrays in self._sides.items():
            strange = (arrays["flags"] & int(Flag.OUT_OF_DISTRIBUTION)) != 0
            scores = arrays["ood_score"][np.isfinite(arrays["ood_score"])]
            rows.append((
                self._pair.survey_name(side), arrays["tokens"].shape[1], f"{arrays['coverage'].mean():.1%}",
                f"{np.median(scores):.2f}" if len(scores) else "not judged", int(strange.sum()),
            ))  # fmt: skip
        header = ("survey", "tokens per window", "mean coverage", "median OOD score", "windows out of distribution")
        n = len(self._centers)
        title = f"SkyEmbedding: {n} window{'s' * (n != 1)} of {self._window:.1f}"
        return html_table(title, header, rows, f"Encoder {self._fingerprint}")
