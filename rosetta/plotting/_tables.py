# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Columns and bands of the tables of results."""


def is_flux(name):
    """Whether a column that begins with ``flux_`` holds fluxes of a band."""
    return not name.startswith("flux_err_") and name != "flux_cov"


def bands_of(catalog):
    """Bands that a catalogue has fluxes in (list of str)."""
    return [name.removeprefix("flux_") for name in catalog.colnames if name.startswith("flux_") and is_flux(name)]


def chosen_bands(catalog, bands):
    """The bands asked for (None: all of them) as a list.

    Raises
    ------
    ValueError
        If the catalogue has no fluxes in one of them.
    """
    known = bands_of(catalog)
    bands = known if bands is None else list(bands)
    for band in bands:
        if band not in known:
            raise ValueError(f"bands: {band!r} is not in the catalogue, which has {', '.join(known)}")
    return bands
