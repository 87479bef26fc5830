# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The check of zero points by the stellar locus: what it sees, what it misses, and what dust does to it.

Stars of 120 cells, 40 of them in a cell on average, on two loci: that of real stars in u, g, r, i and z (polynomials of
Covey et al. 2007, AJ 134, 2398), and that of the simulator's spectra in ten bands, which is nearly straight. Both are
0.02 mag thick in each band, 0.05 in u, and fluxes have errors of 1 %.

- *error*: the median of those given; *scatter*: of zero points over it (from the median square), where all are right
- *shown*: cells in which the zero point of the band is told
- *marked, right*: of all, those outside the limits although nothing is wrong
- *5 % too faint*: the median zero point if this band is, in every cell anew; how many are marked; the largest median
  of another band
- *dust*: zero points if E(B-V) is 0.02 mag larger (Schlafly & Finkbeiner 2011, R_V = 3.1)

Run: python benchmarks/zero_points.py [--seed N] [--cells N] [--tables FOLDER]
"""

import argparse

import numpy as np
import pyarrow as pa
from kit.tables import Tables, add_option

from rosetta.production.metrics import LIMITS
from rosetta.production.star_colours import zero_point_metrics
from rosetta.simulate.seds import star_colours
from rosetta.surveys import EUCLID, RUBIN

STARS, ERROR, THICK, THICK_U = 40, 0.01, 0.02, 0.05
WRONG = 2.5 * np.log10(1.05)
REDDENING = dict(zip("ugriz", (4.239, 3.303, 2.285, 1.698, 1.263), strict=True))  # over E(B-V)
REDDER = 0.02  # mag of E(B-V)
COVEY = {  # colours as polynomials of g - i, lowest order first
    "u - g": (1.0636113, -1.6267818, 4.9389572, -3.2809081, 0.8725109, -0.0828035),
    "g - r": (0.4290263, -0.8852323, 2.0740616, -1.1091553, 0.2397461, -0.0183195),
    "r - i": (-0.4113500, 1.8229991, -1.9989772, 1.0662075, -0.2284455, 0.0172212),
    "i - z": (-0.2270331, 0.7794558, -0.7350749, 0.3727802, -0.0735412, 0.0049808),
}


class Cells:
    """Catalogues of stars, as those of a survey's cells are read."""

    def __init__(self, tables):
        self.tables = tables

    def table(self, index, name, columns):
        return self.tables[index].select(columns)


def simulated(rng, n):
    """Magnitudes of stars with the spectra of the simulator, (n, 10): dwarfs, and those near the turn-off."""
    temperature = np.where(rng.random(n) < 0.6, rng.normal(3400, 350, n), rng.normal(5600, 500, n))
    return -2.5 * np.log10(star_colours((RUBIN, EUCLID), np.clip(temperature, 2700, 11900)))


def real(rng, n):
    """Magnitudes of stars on the locus of real ones, (n, 5)."""
    place = np.where(rng.random(n) < 0.6, rng.normal(2.4, 0.4, n), rng.normal(0.75, 0.2, n)).clip(0.4, 3.4)
    ug, gr, ri, iz = (np.polynomial.polynomial.polyval(place, terms) for terms in COVEY.values())
    return np.stack([ug + gr + ri, gr + ri, ri, 0 * ri, -iz], -1)


def found(magnitudes, bands):
    """The metrics of all cells."""
    tables = {}
    for index, mag in magnitudes.items():
        flux, n = 10 ** (0.4 * (31.4 - mag)), len(mag)
        columns = {"is_primary": np.ones(n, bool), "snr": np.full(n, 100.0), "half_light_radius": np.zeros(n)}
        columns["flags"] = np.zeros(n, int)
        for k, band in enumerate(bands):
            columns |= {f"flux_{band}": flux[:, k], f"flux_err_{band}": ERROR * flux[:, k]}
            columns[f"flags_{band}"] = np.zeros(n, int)
        tables[index] = pa.table(columns)
    return zero_point_metrics(Cells(tables), dict.fromkeys(tables, {"bands": bands}))


def changed(magnitudes, bands, step):
    """The metrics of cells all whose stars change by ``step`` (n_band,), a tenth of the cells at a time."""
    metrics = {}
    for first in range(10):
        some = set(list(magnitudes)[first::10])
        now = found({index: mag + step if index in some else mag for index, mag in magnitudes.items()}, bands)
        metrics |= {index: now[index] for index in some}
    return metrics


def middle(values):
    """Median of the finite values; NaN if there are none."""
    values = values[np.isfinite(values)]
    return np.median(values) if len(values) else np.nan


def values(metrics, name):
    return np.array([cell.get(name, np.nan) for cell in metrics.values()])


def marked(metrics, bands):
    """Share of the cells in which a band is outside the limits."""
    low, high = LIMITS["zeropoint"]
    out = [(column < low) | (column > high) for column in (values(metrics, f"zeropoint_{band}") for band in bands)]
    return np.any(out, axis=0).mean()


def shown(value, digits=3):
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def lines(stars, bands, options):
    """A row for each band."""
    rng = np.random.default_rng(options.seed)
    thick = np.array([THICK_U if band == "u" else THICK for band in bands])
    magnitudes = {}
    for cell in range(options.cells):
        mag = stars(rng, rng.poisson(STARS))
        mag += rng.uniform(19, 22, len(mag))[:, None] + np.hypot(thick, ERROR) * rng.normal(size=mag.shape)
        magnitudes[(0, cell)] = mag
    right = found(magnitudes, bands)
    dust = np.array([REDDER * REDDENING.get(band, np.nan) for band in bands])
    redder = changed(magnitudes, bands, dust) if np.isfinite(dust).all() else None
    for band in bands:
        wrong = changed(magnitudes, bands, WRONG * (np.array(bands) == band))
        zero, error = (values(right, f"{name}_{band}") for name in ("zeropoint", "locus_err"))
        medians = {name: middle(values(wrong, f"zeropoint_{name}")) for name in bands}
        most = max(set(bands) - {band}, key=lambda name: abs(np.nan_to_num(medians[name])))
        dusty = np.nan if redder is None else middle(values(redder, f"zeropoint_{band}"))
        scatter = np.sqrt(middle((zero / error) ** 2) / 0.455)
        yield [
            band, shown(middle(error)), shown(scatter, 2), shown(np.isfinite(zero).mean(), 2),
            shown(marked(right, [band])), shown(medians[band]), shown(marked(wrong, bands)),
            f"{medians[most]:.3f} ({most})", shown(dusty),
        ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--cells", type=int, default=120)
    add_option(parser)
    options = parser.parse_args()
    header = (
        "band", "error, mag", "scatter / error", "shown", "marked, right", "5 % too faint", "marked", "largest other",
        "dust",
    )  # fmt: skip
    ten = (*RUBIN.band_names, *EUCLID.band_names)
    for name, title, stars, bands in (
        ("zero_points_real", "Locus of real stars", real, tuple("ugriz")),
        ("zero_points_simulated", "Locus of the simulator's spectra", simulated, ten),
    ):
        Tables(options.tables).show(name, title, header, lines(stars, bands, options))


if __name__ == "__main__":
    main()
