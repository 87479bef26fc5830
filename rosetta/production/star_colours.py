# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Whether the zero points of all cells agree, told by the colours of their stars."""

import numpy as np

from ..flags import Flag
from ..surveys import EUCLID, RUBIN
from .stellar_locus import fit_locus, zero_points

__all__ = ["zero_point_metrics"]

BANDS = (*RUBIN.band_names, *EUCLID.band_names)
PAIRS = (("g", "i"), ("g", "z"), ("g", "VIS"), ("r", "z"), ("r", "VIS"))  # for the place on the locus: the first known
POINT = 0.005  # arcsec, half-light radius: smaller ones are points
BRIGHT, MEASURED = 50.0, 20.0  # S/N of a star, and of its flux in a band
MAG_OF_NJY = 31.4
ROW_FLAGS = Flag.OUTSIDE | Flag.EDGE | Flag.BLENDED | Flag.DUPLICATE | Flag.ARTEFACT
BAND_FLAGS = Flag.NO_DATA | Flag.EDGE | Flag.MASKED | Flag.DUPLICATE | Flag.POOR_FIT
FEWEST = 15  # stars of a cell in a band
WELL_KNOWN = 0.02  # mag; a zero point with a larger error is shown only if it is three times that


def zero_point_metrics(store, records):
    """How much the zero points of each cell differ from those of all cells.

    Parameters
    ----------
    store : Store
    records : mapping of tuple to dict
        Those of the cells that have tables, by (tract, cell).

    Returns
    -------
    dict of tuple to dict of str to float
        By cell: ``zeropoint_<band>``, mag by which its stars are fainter in this band, against the reference band (the
        second one of `PAIRS`), than those of all cells, and its error ``locus_err_<band>``. Bands with fewer than 15
        stars, or whose zero point stars do not tell, are left out.
    """
    stars = {index: _stars(store, index, record["bands"]) for index, record in records.items() if _enough(record)}
    if not stars:
        return {}
    magnitude = np.concatenate([found[0] for found in stars.values()])
    pair = _pair(magnitude)
    locus = fit_locus(magnitude, pair) if pair else None
    return {index: _shown(*zero_points(locus, *found), pair[1]) for index, found in stars.items()} if locus else {}


def _enough(record):
    """Whether a cell has the bands for a locus: two of them only say where a star lies on it."""
    return len(record["bands"]) > 2 and any(set(pair) <= set(record["bands"]) for pair in PAIRS)


def _pair(magnitude):
    """The bands of the first colour that half of the stars have."""
    for names in PAIRS:
        pair = tuple(BANDS.index(band) for band in names)
        if 2 * np.count_nonzero(np.isfinite(magnitude[:, pair]).all(1)) > len(magnitude):
            return pair
    return None


def _stars(store, index, bands):
    """Magnitudes and errors of the stars of a cell, (n_star, n_band) each; NaN where a band is no good."""
    of_bands = [f"{name}_{band}" for band in bands for name in ("flux", "flux_err", "flags")]
    table = store.table(index, "objects", ["is_primary", "snr", "half_light_radius", "flags", *of_bands])
    column = {name: table[name].to_numpy() for name in table.column_names}
    star = (
        column["is_primary"].astype(bool) & (column["snr"] > BRIGHT) & (column["half_light_radius"] < POINT)
        & (column["flags"] & int(ROW_FLAGS) == 0)
    )  # fmt: skip
    magnitude, error = np.full((2, np.count_nonzero(star), len(BANDS)), np.nan)
    for band in bands:
        flux, sigma, flags = (column[f"{name}_{band}"][star] for name in ("flux", "flux_err", "flags"))
        good = (flux > MEASURED * sigma) & (flags & int(BAND_FLAGS) == 0)
        magnitude[good, BANDS.index(band)] = MAG_OF_NJY - 2.5 * np.log10(flux[good])
        error[good, BANDS.index(band)] = 2.5 / np.log(10) * sigma[good] / flux[good]
    return magnitude, error


def _shown(offset, error, n_star, reference):
    """The metrics of a cell."""
    found = {}
    for k, band in enumerate(BANDS):
        known = error[k] <= WELL_KNOWN or abs(offset[k]) > 3 * error[k]
        if k != reference and n_star[k] >= FEWEST and known:
            found |= {f"zeropoint_{band}": float(offset[k]), f"locus_err_{band}": float(error[k])}
    return found
