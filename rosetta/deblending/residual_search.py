# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Sources that were not detected at first, found in the residuals of a first fit."""

import astropy.units as u
import numpy as np

from ..detection.detection import ground_stack, residual_peaks
from ..images.positions import joined

__all__ = ["missed"]

# Least distance from a known source, in units of the PSF's width: on the space image, on the ground.
APART = {"space": 0.5, "ground": 0.7}


def missed(engine, images, reference, sources, mixtures, config):
    """Positions of sources that the residuals show, on the reference image and on the ground stack.

    Parameters
    ----------
    engine : `~rosetta.deblending.engine.engine.Engine`
    images : dict of str to `~rosetta.images.image.BandImage`
    reference : `~rosetta.images.image.BandImage`
        The full-field image at whose resolution the templates are defined.
    sources : `~rosetta.deblending.sources.Sources`
    mixtures : (n, K, 6) array
        Their fitted shapes.
    config : `~rosetta.deblending.config.DeblenderConfig`

    Returns
    -------
    `~astropy.coordinates.SkyCoord`
        True positions in the space image's frame, (n,); n may be 0.
    """
    residuals = {}
    for band, image in images.items():
        if image.side == "ground" or band == reference.band:
            placed = sources.on(image, reference.wavelength, config.engine, light=3.0)
            residuals[band] = _residual(engine, mixtures, placed, config)
    ground = [image for image in residuals.values() if image.side == "ground"]
    looks = [residuals[reference.band]] if reference.side == "space" and reference.band in residuals else []
    looks += [ground_stack(ground)] if ground else []
    known, extra = sources.coord, []
    for look in looks:
        x, y, _ = residual_peaks(look, config.detection)
        coord = look.pixel_to_sky(x, y)
        if look.side == "ground" and sources.solution is not None and len(coord):
            coord = sources.solution.true_position(coord)
        if len(known) and len(coord):
            _, separation, _ = coord.match_to_catalog_sky(known)
            coord = coord[separation.to_value(u.arcsec) > max(APART[look.side] * look.fwhm, config.match)]
        if len(coord):
            known = joined([known, coord])
            extra.append(coord)
    return joined(extra) if extra else sources.coord[:0]


def _residual(engine, mixtures, placed, config):
    """The residual image; a fractional model error ``config.light_error`` is added to its noise."""
    image = placed.image
    _, _, design = engine.fit_breadths(mixtures, placed, iterations=1)
    model = design.image(engine.fluxes(design, image)[0])
    error2 = (config.light_error * model) ** 2
    return image.with_pixels(
        np.where(image.valid, image.data - model, 0.0), image.variance + error2,
        sky_weight=image.sky_weight / (1.0 + image.sky_weight * error2),
    )
