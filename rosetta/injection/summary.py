# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What injected sources say: completeness, bias, scatter and coverage, each with an interval."""

import numpy as np
from astropy.table import QTable

__all__ = ["pull_covariance", "summarise"]

SIZES = (0.0, 1e-3, 0.15, 0.3, 0.6, np.inf)  # arcsec, half-light radius; the first bin holds the point sources
LEAST_COVERAGE = 0.5  # of a source's light on valid pixels, for the source to count
SAMPLES = 400  # of the bootstrap
CLIP = 5.0  # sigma: pulls beyond count as this in covariances


def summarise(injected, bands, reference):
    """Figures of each band: of all sources, and in bins of true magnitude and of true size.

    Parameters
    ----------
    injected : `~astropy.table.QTable`
        As in `rosetta.Recovery`.
    bands : sequence of str
    reference : str
        Band of the detection.

    Returns
    -------
    `~astropy.table.QTable`
        As ``Recovery.summary``, without its ``meta``.
    """
    counted = np.nan_to_num(np.asarray(injected[f"coverage_{reference}"], float)) >= LEAST_COVERAGE
    injected = injected[counted]
    sort, rows = "family" if "family" in injected.colnames else "type", []
    sorts = np.asarray(injected[sort]).astype(str)
    size = np.full(len(injected), np.nan)  # of a user's mixtures
    if "true_half_light_radius" in injected.colnames:
        size = injected["true_half_light_radius"].value
    size = np.where(np.asarray(injected["type"]).astype(str) == "star", 0.0, size)
    for band in bands:
        true = injected[f"true_flux_{band}"].value
        with np.errstate(divide="ignore"):
            magnitude = 31.4 - 2.5 * np.log10(true)
        seen = np.isfinite(magnitude)
        edges = np.arange(np.floor(magnitude[seen].min()), np.ceil(magnitude[seen].max()) + 1) if seen.any() else []
        bins = [("all", -np.inf, np.inf, "", seen)]
        bins += [
            ("magnitude", low, high, "", seen & (magnitude >= low) & (magnitude < high))
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        ]
        bins += [
            ("size", low, high, "", seen & (size >= low) & (size < high))
            for low, high in zip(SIZES[:-1], SIZES[1:], strict=True)
        ]
        bins += [(sort, np.nan, np.nan, name, seen & (sorts == name)) for name in np.unique(sorts)]
        for by, low, high, name, use in bins:
            if use.any():
                figures = _figures(injected[use], band)
                rows.append({"band": band, "by": by, "low": low, "high": high, "kind": name, **figures})
    return QTable(rows=rows) if rows else QTable()


def _figures(injected, band):
    found = np.asarray(injected["found"], bool)
    flux, error = injected[f"flux_{band}"].value, injected[f"flux_err_{band}"].value
    true = injected[f"true_flux_{band}"].value
    use = found & np.isfinite(flux) & (error > 0)
    ratio, within = flux[use] / true[use] - 1, np.abs(flux - true)[use] < error[use]
    out = {"n": len(injected), "n_found": int(found.sum())}
    out.update(_named("completeness", _share(found.sum(), len(found))))
    out["n_measured"] = int(use.sum())
    out.update(_named("bias", _bootstrap(np.median, ratio)))
    out.update(_named("nmad", _bootstrap(_nmad, ratio)))
    out.update(_named("coverage", _share(within.sum(), len(within))))
    return out


def _named(name, values):
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, values), strict=True))


def _share(k, n):
    """A share k / n and its 68 % interval (Wilson 1927)."""
    if n == 0:
        return np.nan, 0.0, 1.0
    share = k / n
    half = np.sqrt(share * (1 - share) / n + 0.25 / n**2) / (1 + 1 / n)
    middle = (share + 0.5 / n) / (1 + 1 / n)
    return share, middle - half, middle + half


def _nmad(values, axis=None):
    middle = np.median(values, axis=axis, keepdims=axis is not None)
    return 1.4826 * np.median(np.abs(values - middle), axis=axis)


def _bootstrap(statistic, values):
    """A statistic and its 68 % interval; NaN for the interval below three values."""
    if len(values) == 0:
        return np.nan, np.nan, np.nan
    if len(values) < 3:
        return statistic(values), np.nan, np.nan
    rows = np.random.default_rng(0).integers(len(values), size=(SAMPLES, len(values)))
    return statistic(values), *np.percentile(statistic(values[rows], axis=1), [16, 84])


def pull_covariance(injected, bands):
    """Covariance of the pulls (flux - true) / error of all bands, of sources found and measured in each.

    Parameters
    ----------
    injected : `~astropy.table.QTable`
    bands : sequence of str

    Returns
    -------
    dict
        ``bands``; ``n``; ``covariance``, the mean product of two bands' pulls, pulls beyond 5 counted as 5 (the unit
        matrix's diagonal if errors are right), and ``predicted``, the mean correlation in the catalogue's ``flux_cov``.
        The matrices are NaN where there are fewer than three sources.
    """
    bands = list(bands)
    flux, error, true = (
        np.stack([injected[f"{name}_{band}"].value for band in bands], axis=1) if len(injected) else
        np.zeros((0, len(bands)))
        for name in ("flux", "flux_err", "true_flux")
    )
    use = np.asarray(injected["found"], bool) & (np.isfinite(flux) & (error > 0)).all(axis=1)
    pull = np.clip((flux[use] - true[use]) / error[use], -CLIP, CLIP)  # (n, n_band)
    out = {"bands": bands, "n": int(use.sum())}
    unknown = np.full((len(bands), len(bands)), np.nan)
    if use.sum() < 3:
        return {**out, "covariance": unknown.tolist(), "predicted": unknown.tolist()}
    covariance = injected["flux_cov"].value[use]
    predicted = (covariance / (error[use][:, :, None] * error[use][:, None, :])).mean(axis=0)
    return {**out, "covariance": (pull.T @ pull / len(pull)).tolist(), "predicted": predicted.tolist()}
