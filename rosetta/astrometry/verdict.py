# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Whether the sources of some bands support a common offset."""

import numpy as np

from . import few_sources, measurement
from .epochs import epoch

__all__ = ["Found", "judged", "measured_bands", "years_apart"]


class Found:
    """Measurements of a pair, with the verdict on them."""

    def __init__(self, joint_bands, parts, joint, verdict, reason, match, few=None):
        self.joint_bands = joint_bands  # whose joint offset is sought
        self.parts, self.joint, self.verdict, self.reason, self.match = parts, joint, verdict, reason, match
        self.few = few  # `FewSources`, where the sources are too few for a field


def measured_bands(images, sources, wanted, config, motions):
    """Coarse step, then every band; `Found`.

    ``motions``: band -> how far each source is known to have moved, and the variance; it is taken off.
    """
    ground = [band for band in wanted if images[band].side == "ground"]
    n = len(sources.label)
    if n < 2:
        return Found(ground, [], None, "abstain", f"only {n} sources in the reference image", None)
    match = measurement.coarse_match(images, sources)
    believed = (
        match is not None
        and match.significance > config.coarse_significance
        and match.significance > config.coarse_rival * match.rival
    )
    start = match.offset if believed else np.zeros(2)
    parts = []
    for band in wanted:
        image = images[band]
        part = measurement.measure_band(image, sources, start if image.side == "ground" else np.zeros(2))
        parts.append(part.without(*motions[band]) if band in motions else part)
    found = judged(images, sources, ground, parts, config, match, believed)
    if found.verdict != "abstain":
        return found
    alone = believed and match.significance > max(config.alone_significance, config.alone_rival * match.rival)
    most = max(int(p.usable.sum()) for p in parts if p.band in ground)
    if alone and most >= sources.config.min_sources:  # two or three sources correlate well with anything
        reason = "single sources do not agree on an offset; the cross-correlation of the images does"
        return Found(ground, parts, None, "coarse", reason, match)
    strength = "none" if match is None else f"{match.significance:.1f} sigma, next {match.rival:.1f}"
    found.reason += f"; correlation peak {strength}"
    return found


def judged(images, sources, joint_bands, parts, config, match=None, believed=False):
    """Do single sources of the ``joint_bands`` support an offset? `Found`."""
    deciding = [p for p in parts if p.band in joint_bands]
    agreeing = [p for p in deciding if p.agrees]
    joint = measurement.combine(agreeing) if agreeing else None
    if joint is not None and joint.usable.sum() >= config.few.fewer_than:
        return Found(joint_bands, parts, joint, "ok", "", match)
    most = max((int(p.usable.sum()) for p in deciding), default=0)
    asked = joint is not None or most < config.few.fewer_than
    few = _few(images, sources, deciding, config.few) if asked else None
    told = f"at best {most} usable sources in a ground band, and they do not agree"
    if few is not None:
        told = f"{few.n_source} sources in {few.n_band} band{'s' * (few.n_band > 1)}"
        agree = few.evidence > (0.0 if believed else config.few.evidence)
        fine = few.sigma < config.fine_error
        if few.evidence < 0:
            told += " do not agree"
        elif not agree:
            told += " are too faint to tell whether they agree"
        elif not fine:
            told += f" tell the offset to {few.sigma:.0f} mas only"
        if agree and few.sigma < config.most_error:
            joint = measurement.combine([p for p in deciding if p.usable.any()])
            return Found(joint_bands, parts, joint, "ok" if fine else "coarse", told, match, few)
    elif most < 2:
        told = f"{'one usable source' if most else 'no usable source'} in the ground bands, and two are needed"
    return Found(joint_bands, parts, None, "abstain", f"no common offset: {told}", match)


def _few(images, sources, ground, config):
    """`FewSources` of the bands with usable sources; None if these are fewer than two sources."""
    parts = [p for p in ground if p.usable.any()]
    if not parts or np.any([p.usable for p in parts], axis=0).sum() < 2:
        return None
    years = [years_apart(images[p.band], sources) for p in parts]
    size = np.sqrt(np.asarray(sources.table["a"], float) * np.asarray(sources.table["b"], float))
    expected = [few_sources.expected_scatter(sources.point, size, y, config) for y in years]
    return few_sources.agreed_shift(parts, expected, config)


def years_apart(image, sources):
    """Epoch of an image less that of the reference, years; NaN where unknown."""
    return epoch(image.wcs) - epoch(sources.reference.wcs)
