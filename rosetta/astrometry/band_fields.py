# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""One offset field per band: the joint ground field moved by little, since a single band cannot tell a curved
field from its own noise."""

import numpy as np

from . import field
from .field_fit import fit_field, on_top_of

__all__ = ["band_fields", "disagreement"]


def band_fields(xy, measured, side, scatter, model, config):
    """Fit the fields of all bands.

    Parameters
    ----------
    xy : numpy.ndarray, shape (n, 2)
        (east, north) of the sources, arcsec.
    measured : dict
        Band (or "joint") -> (`~rosetta.astrometry.measurement.BandOffsets`, covariance (n, 2, 2) in mas^2).
    side : dict
        Band -> "ground" or "space".
    scatter : dict
        Band (or "joint") -> (n, n_component) relative scatter of the sources; its amplitudes are fitted.
    model : str
        As for `~rosetta.astrometry.field_fit.fit_field`; rules the joint field. A ground band has that field plus a
        shift (or an affine one), and a space band a shift (or an affine one), as its frame is the reference's own.
    config : `~rosetta.astrometry.field_fit.FieldConfig`

    Returns
    -------
    dict
        Band -> `~rosetta.astrometry.field_fit.FieldFit`.
    """
    fits = {}
    ground = [band for band in measured if side.get(band) == "ground"]
    if "joint" in measured:
        part, cov = measured["joint"]
        use = part.usable
        fits["joint"] = fit_field(
            xy[use], part.offset[use], cov[use], scatter=scatter["joint"][use], model=model, config=config
        )
        if len(ground) > 1:
            joint = field.evaluate(fits["joint"].model, xy, covariance=False)[0]
    for band, (part, cov) in measured.items():
        use = part.usable
        if band == "joint":
            continue
        if side[band] == "ground" and len(ground) == 1:
            fits[band] = fits["joint"]
        elif side[band] == "ground":
            own = _low_order(xy[use], (part.offset - joint)[use], cov[use], scatter[band][use], model, config)
            fits[band] = on_top_of(fits["joint"].model, own)
        else:
            fits[band] = _low_order(xy[use], part.offset[use], cov[use], scatter[band][use], model, config)
    return fits


def _low_order(xy, offset, cov, scatter, model, config):
    """A shift, or an affine field where left-out sources clearly ask for it."""
    shift = fit_field(xy, offset, cov, scatter=scatter, model="shift", config=config)
    if model == "shift" or len(xy) < config.min_affine:
        return shift
    affine = fit_field(xy, offset, cov, scatter=scatter, model="affine", config=config)
    return affine if (affine.score - shift.score) * len(xy) > config.margin else shift


def disagreement(fits, side, config):
    """Ground bands that are shifted against the others.

    Parameters
    ----------
    fits, side : dict
        What `band_fields` returned and was given.
    config : `~rosetta.astrometry.field_fit.FieldConfig`

    Returns
    -------
    apart : dict
        Band -> distance of its shift from the median one, mas; only bands that disagree.
    spread : float
        Rms distance of all bands per axis, mas: an error of the joint field.
    """
    ground = (band for band in fits if side.get(band) == "ground")
    own = {band: fits[band].model["added"] for band in ground if "added" in fits[band].model}
    if not own:
        return {}, 0.0
    found = [field.evaluate(model, np.zeros((1, 2))) for model in own.values()]  # at the centre
    shift, cov = (np.concatenate(a) for a in zip(*found, strict=True))
    shift = shift - np.median(shift, axis=0)
    size = np.hypot(*shift.T)
    significance = np.sqrt(np.einsum("ni,nij,nj->n", shift, np.linalg.inv(cov), shift))
    differs = (significance > config.apart_significance) & (size > config.apart)
    apart = {band: float(d) for band, d, bad in zip(own, size, differs, strict=True) if bad}
    return apart, float(np.sqrt(np.mean(shift**2)))
