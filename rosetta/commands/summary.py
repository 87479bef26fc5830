# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What ``rosetta run`` and ``rosetta demo`` print at their end."""

import sys
import time

__all__ = ["against_truth", "ending", "summary"]


def summary(result):
    """The lines of the summary."""
    import numpy as np

    from ..flags import Flag

    flags = np.asarray(result.catalog["flags"])
    blended = int(((flags & int(Flag.BLENDED)) != 0).sum())
    yield f"Sources    {len(result.catalog)} in {' '.join(result.scene.bands)}; {blended} of them blended"
    yield f"Offset     {_offset_text(result)}"


def _offset_text(result):
    import numpy as np

    from ..astrometry.solution import as_solution

    offsets = result.offsets
    if offsets is None:
        return "not measured: one survey only"
    solution = as_solution(offsets)
    if not solution.bands:
        return f"not measured ({solution.reason}); rows are flagged UNALIGNED"
    n_used = int(np.sum((offsets["band"] == "joint") & (offsets["weight"] > 0)))
    return (
        f"{solution.at_center()} at the centre "
        f"({solution.verdict}, {n_used} sources; corrected = ground + offset)"
    )


def against_truth(result, numbers):
    """The lines of the summary and of the comparison with the truth."""
    band = numbers["reference_band"]
    yield from summary(result)
    offset = numbers.get("offset")
    if offset:
        east, north = offset["truth"]
        yield (
            f"           truth {east:+.1f}, {north:+.1f} mas (mean over the field); "
            f"field error {offset['rms']:.1f} mas rms per axis"
        )
    n_detected, n_matched = numbers["n_detected"], numbers["n_matched"]
    yield f"Truth      {n_matched} of {n_detected} rows match a true source within 0.3 arcsec"
    cells = [
        f"{('<' + str(high)) if low == 0 else f'{low}-{high}'}: {found}/{n}"
        for low, high, n, found in numbers["completeness"] if n
    ]
    yield f"Found      true sources by {band} magnitude  {'  '.join(cells)}"
    yield ""
    yield "Flux against truth  (bias and scatter where S/N > 10; in 1 sigma: 68% is right)"
    yield f"{'':6}{'isolated':^38}  {'blended':^38}"
    head = f"{'n':>4} {'bias':>9} {'scatter':>9} {'in 1 sigma':>12}"
    yield f"{'band':6}{head:>38}  {head:>38}"
    rows = {(row["band"], row["kind"]): row for row in numbers["flux"]}
    for name in result.scene.bands:
        yield f"{name:6}{_flux_cells(rows[name, 'isolated']):>38}  {_flux_cells(rows[name, 'blended']):>38}"


def _flux_cells(row):
    if not row["n_measured"]:
        return f"{0:4d} {'-':>9} {'-':>9} {'-':>12}"
    inside = f"{100 * row['coverage']:.0f}% of {row['n_measured']}"
    if not row["n"]:
        return f"{0:4d} {'-':>9} {'-':>9} {inside:>12}"
    return f"{row['n']:4d} {100 * row['bias']:+8.1f}% {100 * row['nmad']:8.1f}% {inside:>12}"


def ending(written, start):
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak /= 2**30 if sys.platform == "darwin" else 2**20
    yield ""
    yield f"Wrote      {', '.join(path.name for path in written)} in {written[0].parent}"
    yield f"Took       {time.perf_counter() - start:.0f} s, peak memory {peak:.1f} GiB"
