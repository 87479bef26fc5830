# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""AB magnitudes and colours of a catalogue."""

import astropy.units as u
import numpy as np
from astropy.table import QTable, Table

from ..columns import describe

__all__ = ["colour", "magnitudes"]

PER_RATIO = 2.5 / np.log(10.0)  # mag per relative change of a flux


def magnitudes(catalog):
    """AB magnitudes of all bands of a catalogue.

    These are the usual (Pogson) magnitudes, ``31.4 - 2.5 log10(flux / nJy)``. Faint sources have no useful one: the
    error is to first order and too small below S/N of about 5, and there is none where the flux is not positive. Use
    fluxes there.

    Parameters
    ----------
    catalog : `~astropy.table.QTable`
        From `~rosetta.EmbeddingPhotometry`, or any table with ``flux_<band>`` and ``flux_err_<band>``.

    Returns
    -------
    `~astropy.table.QTable`
        ``label`` and ``sky_centroid``, if the catalogue has them, ``mag_<band>`` (AB) and ``mag_err_<band>`` (mag), in
        the order of the catalogue. NaN where the flux is not positive, or not known.

    Raises
    ------
    TypeError, ValueError
        If it is not a table with fluxes.
    """
    bands = _bands(catalog)
    out = QTable({name: catalog[name] for name in ("label", "sky_centroid") if name in catalog.colnames})
    for band in bands:
        flux, error = (_njy(catalog, f"{name}_{band}") for name in ("flux", "flux_err"))
        flux = np.where(flux > 0, flux, np.nan)
        out[f"mag_{band}"] = (flux * u.nJy).to(u.ABmag)
        out[f"mag_err_{band}"] = PER_RATIO * error / flux * u.mag
    out.meta["bands"] = bands
    describe(out, bands)
    return out


def colour(catalog, first, second):
    """A colour of all sources, with its error.

    The error takes the covariance of the two fluxes from ``flux_cov``: the uncertainty of the template moves both the
    same way, so that the colour is known better than either flux says.

    Parameters
    ----------
    catalog : `~astropy.table.QTable`
        From `~rosetta.EmbeddingPhotometry`.
    first, second : str
        Bands.

    Returns
    -------
    `~astropy.table.QTable`
        ``label``, ``colour`` (``first`` minus ``second``, AB, mag) and ``colour_err`` (mag, to first order); NaN where
        one of the two fluxes is not positive, or not known.

    Raises
    ------
    TypeError, ValueError
        If it is not such a catalogue, or a band is not in it.
    """
    bands = _bands(catalog)
    for name, band in (("first", first), ("second", second)):
        if band not in bands:
            raise ValueError(f"{name} is {band!r}: use one of {', '.join(bands)}")
    order = catalog.meta.get("bands", ())
    if "flux_cov" not in catalog.colnames or first not in order or second not in order:
        raise ValueError(
            "catalog has no flux_cov of these bands, or no meta['bands']: give the whole catalogue; "
            "of a file, that of rosetta.io.read_catalogue"
        )
    i, j = list(order).index(first), list(order).index(second)
    cov = u.Quantity(catalog["flux_cov"]).to_value(u.nJy**2)
    one, two = (np.where(flux > 0, flux, np.nan) for flux in (_njy(catalog, f"flux_{b}") for b in (first, second)))
    variance = cov[:, i, i] / one**2 + cov[:, j, j] / two**2 - 2.0 * cov[:, i, j] / (one * two)
    out = QTable({"label": catalog["label"]})
    out["colour"] = -2.5 * np.log10(one / two) * u.mag
    out["colour_err"] = PER_RATIO * np.sqrt(np.maximum(variance, 0.0)) * u.mag
    for name in ("colour", "colour_err"):
        out[name].info.format = ".4f"
    out["colour"].info.description = f"{first} - {second}, AB"
    out["colour_err"].info.description = f"Standard error of {first} - {second}, with the covariance of the fluxes"
    return out


def _bands(catalog):
    """Bands that have a flux with an error."""
    if not isinstance(catalog, Table):
        raise TypeError(f"catalog must be a table, got {type(catalog).__name__}")
    bands = [name.removeprefix("flux_err_") for name in catalog.colnames if name.startswith("flux_err_")]
    bands = [band for band in bands if f"flux_{band}" in catalog.colnames]
    if not bands:
        raise ValueError("catalog has no columns flux_<band> and flux_err_<band>: give one of EmbeddingPhotometry")
    return bands


def _njy(catalog, name):
    """A column in nJy, NaN where it is masked."""
    column = catalog[name]
    if column.unit is None:
        raise ValueError(f"catalog has no unit for {name!r}: give nJy or another unit of flux density")
    value = getattr(column, "filled", lambda _: column)(np.nan)
    return u.Quantity(value, column.unit).to_value(u.nJy)
