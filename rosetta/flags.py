# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The bits of every ``flags`` column, in one place."""

from enum import IntFlag
from operator import index

__all__ = ["OF_BANDS", "Flag"]


class Flag(IntFlag):
    """Bits of the ``flags`` columns; ``Flag(row["flags"])`` prints their names."""

    NO_DATA = 1 << 0  #: no valid pixel where one was needed: the value is NaN
    OUTSIDE = 1 << 1  #: the position is outside the footprint
    EDGE = 1 << 2  #: part of the footprint falls off the image
    MASKED = 1 << 3  #: some of the pixels needed are masked
    VARIANCE_ESTIMATED = 1 << 4  #: the input had no uncertainty; it was measured on the image
    PSF_NOMINAL = 1 << 5  #: the input had no PSF; the survey's nominal one was used
    PSF_TRUNCATED = 1 << 6  #: light beyond the given PSF stamp was corrected for
    BAND_EXTRAPOLATED = 1 << 7  #: a band unlike any seen in training
    LOW_COVERAGE = 1 << 8  #: less than 95 % of the window has valid pixels: not judged whether it is strange
    OUT_OF_DISTRIBUTION = 1 << 9  #: unlike the sky the encoder was trained on
    ONE_SIDED = 1 << 10  #: only one of the two surveys covers this position
    UNALIGNED = 1 << 11  #: no usable astrometric solution: positions as in the headers
    OUTLIER = 1 << 12  #: disagrees with its neighbours; given little weight
    LOW_SNR = 1 << 13  #: too faint for this measurement
    BLENDED = 1 << 14  #: a neighbour contributes noticeably to its pixels
    COARSE_ALIGNMENT = 1 << 15  #: positions on the ground are known to worse than 30 mas, or bands disagree
    GROUND_TEMPLATE = 1 << 16  #: no space image here: the template rests on the ground bands
    DUPLICATE = 1 << 17  #: coincides with another source; their fluxes are not separable
    POOR_FIT = 1 << 18  #: the model does not describe the pixels (high chi2)
    PSF_SUSPECT = 1 << 19  #: the given PSF cannot be true: the survey's, or the point sources', is of another width
    ARTEFACT = 1 << 20  #: only the sharpest band shows it, although others would: no source of light
    BORDER = 1 << 21  #: on the border of two cells of a survey, which both or neither took for theirs; one row is kept

    @classmethod
    def _missing_(cls, value):
        return super()._missing_(index(value))  # an element of a column is a numpy integer

    @classmethod
    def names(cls, values):
        """Names of the flags of a whole column.

        Parameters
        ----------
        values : sequence of int
            As ``catalog["flags"]``; of any shape.

        Returns
        -------
        ndarray of str
            Of the same shape: as ``str(Flag(value))``, for instance "LOW_SNR | BLENDED", or "none".

        Raises
        ------
        TypeError
            If the values are not whole numbers.
        """
        import numpy as np  # surveys and flags are read without it

        values = np.asarray(values)
        if values.size and values.dtype.kind not in "iu":
            raise TypeError(f"values are {values.dtype}, not whole numbers: give a column of flags")
        found, where = np.unique(values.astype(np.int64), return_inverse=True)
        return np.array([str(cls(value)) for value in found], dtype=str)[where].reshape(np.shape(values))

    def __str__(self):
        return " | ".join(flag.name for flag in Flag if flag in self) or "none"


#: What can be true in single bands, and is kept in ``flags_<band>``; the others are of whole rows.
OF_BANDS = (
    Flag.NO_DATA | Flag.EDGE | Flag.MASKED | Flag.VARIANCE_ESTIMATED | Flag.PSF_NOMINAL | Flag.PSF_TRUNCATED
    | Flag.UNALIGNED | Flag.COARSE_ALIGNMENT | Flag.DUPLICATE | Flag.POOR_FIT | Flag.PSF_SUSPECT
)  # fmt: skip
