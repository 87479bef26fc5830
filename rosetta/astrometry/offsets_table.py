# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The table of offsets: rows per source and band, the fitted fields, the verdict."""

import astropy.units as u
import numpy as np
from astropy.table import QTable, vstack

from ..flags import Flag
from ..images.image import extent
from . import band_fields
from . import field as offset_field
from .epochs import MOTION
from .field_fit import FieldFit
from .solution import AstrometricSolution
from .verdict import years_apart

__all__ = ["offsets_table"]


def offsets_table(images, sources, found, excess, model, meta, config, scene_frame=None):
    """The result: rows per band, fields, verdict."""
    n = len(sources.label)
    eye = np.eye(2)
    parts = list(found.parts)
    if found.joint is not None:
        parts.append(found.joint)
        agreeing = [p for p in found.parts if p.agrees and p.band in found.joint_bands]
        if excess:  # this scatter is common to all bands, so it does not average down
            excess["joint"] = np.max([np.where(p.usable, excess[p.band], 0.0) for p in agreeing], axis=0)
    scatter = {part.band: sources.scatter(*([excess[part.band]] if excess else [])) for part in parts}
    covs = {part.band: part.cov for part in parts}
    verdict, reason = found.verdict, found.reason
    models, fits = {}, {}
    if found.few is not None:
        models = dict(found.few.fields)
        for part in parts:
            if part.band in models:
                count = int(part.usable.sum())
                fits[part.band] = FieldFit(models[part.band], np.ones(count), np.zeros(count, bool), None, np.zeros(2))
                covs[part.band] = covs[part.band] + (found.few.scatter[part.band] ** 2)[:, None, None] * eye
    elif found.verdict == "ok":
        years = {part.band: np.nan_to_num(years_apart(images[part.band], sources)) for part in found.parts}
        years["joint"] = np.sqrt(np.mean([years[part.band] ** 2 for part in agreeing]))
        for band in covs:  # of unknown epochs the scatter of stars is only fitted
            covs[band] = covs[band] + (sources.point * (MOTION * years[band]) ** 2)[:, None, None] * eye
        fields = {part.band: (part, covs[part.band]) for part in parts if part.agrees}
        sides = {band: "ground" if band in found.joint_bands else "space" for band in fields if band != "joint"}
        fits = band_fields.band_fields(sources.east_north, fields, sides, scatter, model, sources.config.field)
        models = {band: fit.model for band, fit in fits.items()}
        apart, spread = band_fields.disagreement(fits, sides, sources.config.field)
        if apart:
            verdict = "coarse"
            reason = "ground bands disagree: " + ", ".join(f"{band} by {size:.0f} mas" for band, size in apart.items())
            models["joint"] = offset_field.widened(models["joint"], spread)
        for band, fit in fits.items():
            covs[band] = covs[band] + (scatter[band] ** 2 @ fit.floor**2)[:, None, None] * eye
    elif found.verdict == "coarse":
        models["joint"] = offset_field.constant(1e3 * found.match.offset, config.coarse_error)
    if "joint" in models:
        for part in found.parts:
            if part.band not in models and part.band in found.joint_bands:
                models[part.band] = {**models["joint"], "borrowed": "joint"}
    tables = []
    for part in parts if found.joint is not None else [*parts, None]:
        band = "joint" if part is None else part.band
        tables.append(_rows(sources, part, covs.get(band) if fits else None, fits.get(band)))
        if verdict == "coarse" and (band == "joint" or band in found.joint_bands):
            tables[-1]["flags"] |= int(Flag.COARSE_ALIGNMENT)
            if not fits:
                _set_offset(tables[-1], found.match, config.coarse_error)
    result = vstack(tables, metadata_conflicts="silent") if n else tables[-1]
    low, high = extent([sources.reference])
    box = tuple(tuple(corner.tolist()) for corner in (low, high))
    solution = AstrometricSolution(verdict, reason, sources.reference.tangent_plane.center, box, models, scene_frame)
    result.meta.update(meta)
    result.meta.update(
        solution.to_meta(),
        score={band: fit.score for band, fit in fits.items()},
        coarse=None if found.match is None else {
            "d_ra_cosdec": float(1e3 * found.match.offset[0]), "d_dec": float(1e3 * found.match.offset[1]),
            "significance": found.match.significance, "rival": found.match.rival,
        },
    )
    return result


def _rows(sources, part, cov, fit):
    """The rows of one band; ``part`` None: nothing was measured; ``cov`` None: what was measured is not believed."""
    n = len(sources.label)
    table = QTable()
    table["label"] = sources.label
    table["sky_centroid"] = sources.table["sky_centroid"]
    table["band"] = np.full(n, "joint" if part is None else part.band, dtype="U16")
    offset, error, corr = np.full((n, 2), np.nan), np.full((n, 2), np.nan), np.full(n, np.nan)
    snr, weight, flags = np.full(n, np.nan), np.zeros(n), np.zeros(n, int)
    if part is not None:
        snr, flags = part.snr, part.flags.copy()
        if cov is not None:
            good = np.isfinite(part.offset).all(1) & (flags & int(Flag.LOW_SNR) == 0)
            offset[good] = part.offset[good]
            error[good] = np.sqrt(cov[good][:, [0, 1], [0, 1]])
            corr[good] = cov[good, 0, 1] / error[good].prod(1)
        if fit is not None:
            weight[part.usable] = fit.weight
            flags[np.flatnonzero(part.usable)[fit.outlier]] |= int(Flag.OUTLIER)
    if fit is None:
        flags |= int(Flag.UNALIGNED)
    for axis, column in enumerate(("d_ra_cosdec", "d_dec")):
        table[column] = offset[:, axis] * u.mas
    for axis, column in enumerate(("d_ra_cosdec", "d_dec")):
        table[f"{column}_err"] = error[:, axis] * u.mas
    table["corr"] = corr
    table["snr"] = snr
    table["weight"] = weight
    table["flags"] = flags
    return table


def _set_offset(table, match, error):
    """Give all rows of a ground band the offset of the cross-correlation."""
    for axis, column in enumerate(("d_ra_cosdec", "d_dec")):
        table[column] = 1e3 * match.offset[axis] * u.mas
        table[f"{column}_err"] = error * u.mas
    table["corr"] = 0.0
    table["flags"] &= ~int(Flag.UNALIGNED)
