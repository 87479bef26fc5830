# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""`AstrometricSolution`: how far the ground images' positions are from the space image's, anywhere in a field."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table

from ..arithmetic import plain_arithmetic
from ..display import html_table
from ..flags import Flag
from ..images.image import extent
from ..images.positions import offset_coord, plain_icrs, tangent
from .field import constant, evaluate

__all__ = ["AlignmentError", "AstrometricSolution", "as_solution", "solution_for"]

FLAGS = {"ok": Flag(0), "coarse": Flag.COARSE_ALIGNMENT, "abstain": Flag.UNALIGNED}  # of each verdict
ITERATIONS = 4  # of the inversion: each gains a factor of the field's gradient, some 1e-3


class AlignmentError(ValueError):
    """The data do not support an alignment; the message says why."""


@dataclass(frozen=True, eq=False)
class AstrometricSolution:
    """Smooth fields of astrometric offsets, one per band and a joint one for all ground bands.

    True position = position in an image's header + offset. The true positions are those of the reference image, the
    sharpest space image, or those of a catalogue of stars, if the aligner was given one. A `~rosetta.LearnedAligner`
    fits the solution, and `from_table` reads it from the table it returns. Wherever this library takes ``offsets`` it
    takes either.

    Attributes
    ----------
    verdict : str
        "ok"; "coarse": the offset is known to worse than 30 mas (where only the cross-correlation of the images
        worked, all ground bands have its offset), or ground bands disagree; or "abstain": nothing is known, there is
        no field, and header positions stay as they are.
    reason : str
        Why the verdict is not "ok"; of a small field, how many sources in how many bands it rests on.
    center : `~astropy.coordinates.SkyCoord`
        Centre of the field: where the tangent plane of its positions touches the sky.
    box : tuple
        ((east, north), (east, north)): lower and upper corner of the reference image about ``center``, arcsec.
    fields : dict
        Band (or "joint") -> its field, as `rosetta.astrometry.field` writes it.
    scene_frame : str or None
        Band (or "joint") in whose header's frame sources are detected and scenes are fitted, where the true positions
        are a catalogue's. None: scenes hold true positions.
    """

    verdict: str
    reason: str
    center: SkyCoord
    box: tuple
    fields: dict
    scene_frame: str | None = None

    @classmethod
    def from_table(cls, offsets):
        """The solution that a table of offsets carries.

        Parameters
        ----------
        offsets : `~astropy.table.QTable`
            From `~rosetta.LearnedAligner`, or read from an ECSV or Parquet file of it. (FITS files lose the solution.)

        Raises
        ------
        TypeError
            If ``offsets`` is no table.
        ValueError
            If it has lost its ``meta``.
        """
        advice = "offsets must be the table that LearnedAligner returns, with its meta, or its AstrometricSolution"
        if not isinstance(offsets, Table):
            raise TypeError(f"{advice}; got {type(offsets).__name__}")
        meta = offsets.meta
        lost = [name for name in ("verdict", "reason", "center", "box", "model") if name not in meta]
        if lost:
            raise ValueError(f"{advice}; this table has lost {', '.join(lost)} from its meta: pass it unchanged")
        if meta["verdict"] not in FLAGS:
            raise ValueError(f"{advice}; this table's verdict is {meta['verdict']!r}: pass it unchanged")
        fields = deepcopy(meta["model"]["bands"])
        frame = meta["model"].get("scene_frame")
        return cls(meta["verdict"], meta["reason"], meta["center"], tuple(map(tuple, meta["box"])), fields, frame)

    @classmethod
    def of_headers(cls, images):
        """The solution of images whose headers are right.

        Parameters
        ----------
        images : sequence of `~rosetta.images.image.BandImage`
        """
        low, high = extent(images)
        box = tuple(low), tuple(high)
        return cls("ok", "", images[0].tangent_plane.center, box, {"joint": constant([0.0, 0.0], 0.0)})

    def to_meta(self):
        """The entries of a table's ``meta`` that `from_table` reads (dict)."""
        return {
            "verdict": self.verdict, "reason": self.reason, "center": self.center,
            "box": [list(corner) for corner in self.box],
            "model": {"version": 1, "bands": deepcopy(self.fields), "scene_frame": self.scene_frame},
        }

    def __repr__(self):
        what = "; ".join(filter(None, [self.at_center(), self.reason]))
        return f"<AstrometricSolution {self.verdict}: {what}>"

    def _repr_html_(self):
        rows = [
            (band, self.kind(band), self.frame(band), *(f"{v:+.1f} ± {s:.1f}" for v, s in self._central(band)))
            for band in sorted(self.bands, key=lambda band: band != "joint")
        ]
        header = ("band", "model", "field of", "east (mas)", "north (mas)") if rows else ()
        note = "Offsets at the centre; corrected = ground + offset." if rows else ""
        return html_table(
            f"AstrometricSolution: {self.verdict}", header, rows, ". ".join(filter(None, [self.reason, note]))
        )

    def _central(self, band):
        """((offset, error) to the east, (offset, error) to the north) at the centre, mas."""
        center = self.center.reshape(1)
        return tuple(zip(self.offset_at(center, band)[0], self.sigma_at(center, band)[0], strict=True))

    def at_center(self):
        """The joint offset at the centre of the field, as text; empty if the alignment abstained."""
        if "joint" not in self.fields:
            return ""
        (east, east_error), (north, north_error) = self._central("joint")
        return f"{east:+.1f} ± {east_error:.1f} mas east, {north:+.1f} ± {north_error:.1f} mas north"

    @property
    def bands(self):
        """Bands that have a field, "joint" among them (tuple of str, sorted); none if the alignment abstained."""
        return tuple(sorted(self.fields))  # files do not keep their order

    @property
    def flag(self):
        """The `~rosetta.Flag` of every source that is measured with this solution."""
        return FLAGS[self.verdict]

    def kind(self, band="joint"):
        """Model of a band's field.

        Parameters
        ----------
        band : str

        Returns
        -------
        str
            "shift", "affine", "polynomial2", "polynomial3", "gp", "affine+gp" or "coarse"; of a band that has the joint
            field and a shift of its own, "joint + shift", and likewise "joint + affine".
        """
        return self._field(band)["kind"]

    def frame(self, band):
        """The band whose field a band uses.

        Parameters
        ----------
        band : str

        Returns
        -------
        str
            The band itself, or "joint" if it had too few sources of its own.
        """
        return self._field(band).get("borrowed", band)

    @plain_arithmetic
    def offset_at(self, coord, band="joint"):
        """Offsets at true positions.

        Parameters
        ----------
        coord : `~astropy.coordinates.SkyCoord`, shape (n,)
        band : str
            Whose field.

        Returns
        -------
        numpy.ndarray, shape (n, 2)
            (east, north) in mas, to be added to header positions; east is d(RA) cos(Dec).

        Raises
        ------
        AlignmentError
            If the alignment abstained.
        ValueError
            If the band has no field.
        """
        return evaluate(self._field(band), tangent(coord, self.center), covariance=False)[0]

    @plain_arithmetic
    def sigma_at(self, coord, band="joint"):
        """One-sigma errors of `offset_at`.

        Parameters
        ----------
        coord : `~astropy.coordinates.SkyCoord`, shape (n,)
        band : str
            Whose field.

        Returns
        -------
        numpy.ndarray, shape (n, 2)
            (east, north) in mas. They are errors of the field; single sources scatter about it.
        """
        covariance = evaluate(self._field(band), tangent(coord, self.center))[1]
        return np.sqrt(covariance[:, [0, 1], [0, 1]])

    @plain_arithmetic
    def ground_position(self, coord, band="joint"):
        """Where an image's header puts sources of true positions ``coord``.

        Parameters
        ----------
        coord : `~astropy.coordinates.SkyCoord`, shape (n,)
        band : str
            The image's band, or "joint" for the common frame of the ground bands.

        Returns
        -------
        `~astropy.coordinates.SkyCoord`, shape (n,)
            ``coord`` itself if the alignment abstained.
        """
        if self.verdict == "abstain":
            return coord
        return offset_coord(coord, *(-1e-3 * self.offset_at(coord, band)).T)

    @plain_arithmetic
    def true_position(self, header_coord, band="joint"):
        """The true positions of sources that an image's header puts at ``header_coord``: undoes `ground_position`.

        The field is a function of the true position, which may lie several arcsec from the header's: it is found by
        fixed-point iteration.

        Parameters
        ----------
        header_coord : `~astropy.coordinates.SkyCoord`, shape (n,)
        band : str

        Returns
        -------
        `~astropy.coordinates.SkyCoord`, shape (n,)
            ICRS.
        """
        header = plain_icrs(header_coord)
        sky = header
        for _ in range(ITERATIONS):
            east, north = self.ground_position(sky, band).spherical_offsets_to(header)
            sky = offset_coord(sky, east.arcsec, north.arcsec)
        return sky

    def seen_position(self, coord, band="joint"):
        """Where an image's header puts sources of a scene.

        A scene's positions are those of the reference image's header. They are true positions, and this is
        `ground_position`, unless the true positions are a catalogue's.

        Parameters
        ----------
        coord : `~astropy.coordinates.SkyCoord`, shape (n,)
            Of a scene, or of a catalogue of fluxes.
        band : str
            The image's band, or "joint" for the common frame of the ground bands.

        Returns
        -------
        `~astropy.coordinates.SkyCoord`, shape (n,)
            ``coord`` itself if the alignment abstained.
        """
        if self.scene_frame == band:
            return coord
        true = coord if self.scene_frame is None else self.true_position(coord, self.scene_frame)
        return self.ground_position(true, band)

    def require_fields(self):
        """Raise `AlignmentError` if the alignment abstained."""
        if self.verdict == "abstain":
            raise AlignmentError(f"offsets hold no alignment ({self.reason}): keep the header WCS")

    def same_as(self, other):
        """Whether another solution is this one, as after a round trip through a file.

        Parameters
        ----------
        other : AstrometricSolution

        Returns
        -------
        bool
        """
        return (
            (self.verdict, self.fields) == (other.verdict, other.fields)
            and self.center.separation(other.center).arcsec < 1e-6
        )

    def _field(self, band):
        self.require_fields()
        if band not in self.fields:
            raise ValueError(f"no offset field for band {band!r}; the solution has: {', '.join(self.bands)}")
        return self.fields[band]


def as_solution(offsets):
    """The astrometric solution of what the aligner returned.

    Parameters
    ----------
    offsets : `~astropy.table.QTable` or AstrometricSolution

    Returns
    -------
    AstrometricSolution

    Raises
    ------
    TypeError, ValueError
        If it is neither, or the table has lost its ``meta``.
    """
    return offsets if isinstance(offsets, AstrometricSolution) else AstrometricSolution.from_table(offsets)


def solution_for(offsets, images):
    """The solution to measure a pair's images with.

    Parameters
    ----------
    offsets : `~astropy.table.QTable`, AstrometricSolution or None
    images : dict of str to `~rosetta.images.image.BandImage`

    Returns
    -------
    AstrometricSolution or None

    Raises
    ------
    TypeError, ValueError
        If ``offsets`` is something else, or its field of view and the images' do not touch.
    """
    if offsets is None:
        return None
    solution = as_solution(offsets)
    several = list(images.values())
    low, high = extent(several)
    apart = several[0].tangent_plane.center.separation(solution.center).arcsec
    reach = sum(np.hypot(*np.abs(box).max(0)) for box in ((low, high), solution.box))
    if apart > reach:
        raise ValueError(
            f"offsets are of another sky: their field is centred {_readable(apart)} from this pair's, and the two do "
            "not touch; align this pair"
        )
    return solution


def _readable(arcsec):
    """An angle as text."""
    for unit, size in (("deg", 3600.0), ("arcmin", 60.0)):
        if arcsec >= size:
            return f"{arcsec / size:.3g} {unit}"
    return f"{arcsec:.3g} arcsec"
