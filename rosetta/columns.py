# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the columns of catalogues and scenes are, and with how many digits they are shown."""

import math

__all__ = ["DESCRIPTIONS", "OF_BANDS", "describe"]

#: Of columns that are there once.
DESCRIPTIONS = {
    "label": "Label of the source, the same in every table of a job",
    "listed": "Whether the source is one of the given positions, or a neighbour",
    "sky_centroid": "Position of the source (ICRS), in the frame of the sharpest image",
    "ra_err": "Formal error of the position towards east, on the sky (RA times cos Dec)",
    "dec_err": "Formal error of the position towards north",
    "ra_dec_corr": "Correlation of the errors towards east and north",
    "flux_cov": "Covariance of the fluxes between bands, in the order of meta['bands']",
    "neighbor_label": "Label of the source whose flux is most correlated with this one's; -1: none",
    "blendedness": "Share of the light of other sources on its pixels, 1 - sum f^2 / sum f F; 0: alone",
    "n_pixel": "Valid pixels of all bands under the source",
    "n_band": "Bands in which it is measured",
    "blend_probability": "Probability that a source of at least a fifth of its flux hides within an arcsecond",
    "half_light_radius": "Radius that holds half of the light, before any PSF; below 0.005 arcsec: a point",
    "e1": "Distortion (Qxx - Qyy) / (Qxx + Qyy), x east and y north",
    "e2": "Distortion 2 Qxy / (Qxx + Qyy), x east and y north",
    "snr": "Flux over its error from the noise, in the sharpest band",
    "flags": "Bits of rosetta.Flag; 0: nothing to report",
    "object_id": "Tract times 2^48, plus cell times 2^32, plus row of the cell",
    "is_primary": "Whether it lies in the core of the cell that was measured, and its tract owns the position",
    "patch": "Rubin patch in which it lies deepest; -1: not known",
    "mer_tile": "Euclid MER tile that was read; empty: none",
}
#: Of columns that are there once for each band; ``{}`` is the band.
OF_BANDS = {
    "flux": "Total flux in {}; AB magnitude = 31.4 - 2.5 log10(flux / nJy)",
    "flux_err": "Standard error of the flux in {}",
    "neighbor_corr": "Correlation of the flux with that of neighbor_label in {}, from the overlap",
    "chi2": "Reduced chi2 of the source's pixels in {}",
    "flags": "Bits of rosetta.Flag that are true in {}",
    "upper_limit": "max(flux, 0) + 3 flux_err in {} where flux < 3 flux_err, else NaN",
    "mag": "AB magnitude in {}; NaN where the flux is not positive",
    "mag_err": "Standard error of the magnitude in {}, to first order",
    "aper_flux": "Flux in {} in circles of meta['radii_arcsec'], without the models of other sources",
    "aper_flux_err": "Standard error of aper_flux in {}",
    "kron_flux": "Flux in {} in the ellipse of 2.5 Kron radii",
    "kron_flux_err": "Standard error of kron_flux in {}",
    "x": "Column of the source in the image of {}; the centre of the first pixel is 0",
    "y": "Row of the source in the image of {}; the centre of the first pixel is 0",
}
SHOWN = {"blendedness": ".3f", "blend_probability": ".3f", "half_light_radius": ".3f", "e1": ".3f", "e2": ".3f",
         "snr": ".1f", "ra_dec_corr": ".3f"}  # fmt: skip
SHOWN_OF_BANDS = {"neighbor_corr": ".3f", "chi2": ".2f", "x": ".3f", "y": ".3f"}
MOST_DIGITS = 6
ERRORS = {"ra_err": ("ra_err",), "dec_err": ("dec_err",)}
ERRORS_OF_BANDS = {
    "flux_err": ("flux", "flux_err", "upper_limit"), "mag_err": ("mag", "mag_err"),
    "aper_flux_err": ("aper_flux", "aper_flux_err"), "kron_flux_err": ("kron_flux", "kron_flux_err"),
}  # fmt: skip


def describe(table, bands=()):
    """Describe the columns of a table that have known names, and show them to a tenth of their smallest error.

    Values stay as they are. Units are part of the columns.

    Parameters
    ----------
    table : `~astropy.table.QTable`
        Changed in place.
    bands : sequence of str, optional
        Bands that have columns of their own.
    """
    texts, shown, errors = dict(DESCRIPTIONS), dict(SHOWN), dict(ERRORS)
    for band in bands:
        texts |= {f"{name}_{band}": text.format(band) for name, text in OF_BANDS.items()}
        shown |= {f"{name}_{band}": form for name, form in SHOWN_OF_BANDS.items()}
        errors |= {f"{name}_{band}": [f"{n}_{band}" for n in of] for name, of in ERRORS_OF_BANDS.items()}
    for error, names in errors.items():
        if error in table.colnames:
            shown |= dict.fromkeys(names, _digits(table[error]))
    for name in table.colnames:
        if name in texts:
            table[name].info.description = texts[name]
        if name in shown and table[name].dtype.kind == "f":
            table[name].info.format = shown[name]


def _digits(error):
    """Format with the decimals of a tenth of the smallest positive error of a column."""
    values = [value for value in getattr(error, "value", error).ravel().tolist() if 0 < value < math.inf]
    if not values:
        return ".3g"
    return f".{min(max(-math.floor(math.log10(min(values) / 10.0)), 0), MOST_DIGITS)}f"
