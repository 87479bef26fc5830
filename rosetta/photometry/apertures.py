# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Fluxes in apertures, which know nothing of templates: a second opinion."""

import astropy.units as u
import numpy as np
from astropy.table import QTable

from ..columns import describe
from ..deblending.scene import DeblendedScene

__all__ = ["aperture_photometry"]


def aperture_photometry(scene, radii=(0.5, 1.0) * u.arcsec):
    """Fluxes of all sources of a scene in circles and in Kron ellipses, by photutils.

    They are not total: what lies outside the aperture is missing, and that differs between bands as the PSFs do. Use
    them to check the fluxes of a catalogue, not for colours.

    Parameters
    ----------
    scene : `~rosetta.DeblendedScene`
    radii : `~astropy.units.Quantity`, shape (n_radius,)
        Of the circles (angle).

    Returns
    -------
    `~astropy.table.QTable`
        A row per source, in the order of ``scene.labels``: ``label``; ``aper_flux_<band>`` and ``aper_flux_err_<band>``
        (n_radius; nJy) of circles about the source in the image less the sky and the models of all others, with the
        model in place of masked pixels, NaN where the scene has no flux; ``kron_flux_<band>`` and
        ``kron_flux_err_<band>`` (nJy) in the ellipse of 2.5 Kron radii (Kron 1980) in the image less the sky, with
        pixels of other sources replaced by those opposite, NaN for a source that has no pixel in
        ``scene.segmentation(band)``. Errors are those of the pixels' variance times the band's factor for correlated
        noise. ``meta["radii_arcsec"]`` are the radii.

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be used; the message says what to do.
    """
    if not isinstance(scene, DeblendedScene):
        raise TypeError(f"scene must be a DeblendedScene, got {type(scene).__name__}: give result.scene")
    try:
        radii = np.atleast_1d(u.Quantity(radii).to_value(u.arcsec))
    except (TypeError, u.UnitConversionError) as error:
        raise ValueError(f"radii is {radii!r}: give angles, such as [0.5, 1] * u.arcsec") from error
    if radii.ndim != 1 or not (np.isfinite(radii) & (radii > 0)).all():
        raise ValueError("radii must be positive angles in one row")
    places = scene.pixel_positions()
    out = QTable({"label": scene.labels})
    for band in scene.bands:
        xy = np.stack([places[f"{axis}_{band}"].value for axis in "xy"], axis=1)  # (n, 2)
        factor = scene.meta["noise_factor"][band]
        for name, found in (("aper", _circles(scene, band, xy, radii)), ("kron", _ellipses(scene, band))):
            out[f"{name}_flux_{band}"] = found[0] * u.nJy
            out[f"{name}_flux_err_{band}"] = factor * found[1] * u.nJy
    out.meta["bands"], out.meta["radii_arcsec"] = list(scene.bands), radii.tolist()
    describe(out, scene.bands)
    return out


def _circles(scene, band, xy, radii):
    """Fluxes and errors (n, n_radius) in circles."""
    from photutils.aperture import CircularAperture, aperture_photometry

    image, residual = scene.images[band], scene.residual(band)
    flux, error = np.full((2, len(xy), len(radii)), np.nan)
    rows = np.flatnonzero(scene.fits[band].measured & np.isfinite(xy).all(axis=1))
    row_of = {label: row for row, label in enumerate(scene.labels)}
    if len(rows) == 0:
        return flux, error
    rest = np.nan_to_num(residual.data)
    variance = np.nan_to_num(residual.uncertainty.array)
    for k, radius in enumerate(radii / image.pixel_scale):
        circles = CircularAperture(xy[rows], radius)
        flux[rows, k] = aperture_photometry(rest, circles)["aperture_sum"]
        # Not by its ``error=``, which photutils 3.1 counts in another way for pixels on the rim.
        error[rows, k] = np.sqrt(aperture_photometry(variance, circles)["aperture_sum"])
        for label, (x0, y0), model in scene.source_models(band):
            row = row_of[label]
            own = aperture_photometry(model, CircularAperture(xy[row] - (x0, y0), radius))
            flux[row, k] += own["aperture_sum"][0]
    return flux, error


def _ellipses(scene, band):
    """Fluxes and errors (n,) in Kron ellipses."""
    from photutils.segmentation import SegmentationImage, SourceCatalog

    labels, pixels = scene.labels, scene.images[band].pixels
    flux, error = np.full((2, len(labels)), np.nan)
    segments = scene.segmentation(band).data
    if segments.any():
        data = np.where(pixels.mask, 0.0, pixels.data - scene.sky(band).data)
        sigma = np.sqrt(np.where(pixels.mask, 0.0, pixels.uncertainty.array))
        found = SourceCatalog(data, SegmentationImage(segments), error=sigma, mask=pixels.mask.copy())
        rows = np.flatnonzero(np.isin(labels, found.labels))
        at = np.searchsorted(found.labels, labels[rows])
        flux[rows], error[rows] = found.kron_flux[at], found.kron_flux_err[at]
    return flux, error
