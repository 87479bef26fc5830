# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What ridge regression predicts of a source from its token, from its pixels, and from photutils' measurements."""

from dataclasses import dataclass

import astropy.units as u
import numpy as np

from rosetta import surveys
from rosetta.encoding import training_windows
from rosetta.encoding.inference import READ_OUT, read_out
from rosetta.encoding.network import SIDES

from .catalogue import measure, told
from .statistics import area_under_roc
from .windows import BANDS, SURVEYS, Where, nominal_sigma, note, views

STAMP = 32  # pixels
FOLDS = 5
RIDGES = np.logspace(0, 7, 15)  # on standardised features
SLOPE = 0.2  # rms of the injected background plane: noise sigma from the window's centre to its edge


@dataclass(frozen=True)
class Sources:
    """Sources to be probed: index of tile, row in its truth table, place (n, 2), background plane (n, 2)."""

    tile: np.ndarray
    row: np.ndarray
    place: np.ndarray
    slope: np.ndarray

    def __len__(self):
        return len(self.tile)


def choose(sky, seed, n=None):
    """Sources of S/N > 10 (VIS, nominal depth), away from the edges of their tile; ``n`` of them, or all."""
    tile, row = [], []
    for index, one in enumerate(sky.tiles):
        low, high = training_windows.center_range(one, max(READ_OUT.values()))
        inside = ((sky.place[index] > low + 2) & (sky.place[index] < high - 2)).all(1)
        rows = np.flatnonzero(inside & (sky.snr(index) > 10))
        tile.append(np.full(len(rows), index))
        row.append(rows)
    tile, row = np.concatenate(tile), np.concatenate(row)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(tile))[:n]
    tile, row = tile[order], row[order]
    place = np.stack([sky.place[t][r] for t, r in zip(tile, row, strict=True)])
    return Sources(tile, row, place, SLOPE * rng.normal(size=(len(tile), 2)))


def look_at(sky, side, sources, seed):
    """Windows with the source on the central pixel of the patch in their middle, as the library reads sources.

    Yields
    ------
    view : `~rosetta.encoding.network.View`
    phase : ndarray, shape (n, 2)
        Where in the pixel the source lies, x and y, pixels from the pixel corner at the patch centre.
    """
    pixel, where = surveys.CONDITIONS[side].pixel_scale, Where(sources.tile, sources.place)
    start = 0
    for view in views(sky, side, where, READ_OUT[side], seed, slope=sources.slope):
        start += len(view.pixels)
        middle = view.positions[:, view.positions.shape[1] // 2].numpy()  # of the patch, about the source
        yield view, middle / pixel * (1, -1)
        note(f"probes: {side}, {start} of {len(sources)} sources")


def stamps(view):
    """The `STAMP` pixels a side about the centre, flattened: (n, n_band * 32 * 32)."""
    edge = (view.pixels.shape[-1] - STAMP) // 2
    return view.pixels[:, :, edge : edge + STAMP, edge : edge + STAMP].flatten(1).numpy()


def tokens(encoder, sky, side, sources, seed):
    """The token at each source, (n, dim)."""
    return np.concatenate([read_out(encoder, side, view) for view, _ in look_at(sky, side, sources, seed)])


def magnitude(sky, sources, band):
    """True asinh magnitude, softened at the noise of a point source (Lupton et al. 1999), (n,)."""
    flux = np.array([sky.truth[t][f"flux_{band}"][r].to_value(u.nJy) for t, r in zip(sources.tile, sources.row)])
    return -2.5 / np.log(10) * np.arcsinh(flux / (2 * nominal_sigma(band)))


def _column(sky, sources, name):
    return np.array([np.asarray(sky.truth[t][name])[r] for t, r in zip(sources.tile, sources.row, strict=True)])


def targets(sky, sources):
    """What is asked about every source: dict of name to (group, truth (n,), measure); NaN where it has no meaning.

    The place in the pixel belongs to a side and is added by `probe`.
    """
    galaxy = _column(sky, sources, "type") == "galaxy"
    family = _column(sky, sources, "family")
    redshift = _column(sky, sources, "redshift")
    magnitudes = {band: magnitude(sky, sources, band) for band in BANDS}

    def of_galaxies(values):
        return np.where(galaxy, values, np.nan)

    out = {
        "star or galaxy": (1, galaxy.astype(float), auc),
        "ln(1 + redshift)": (1, of_galaxies(np.log1p(redshift)), explained),
        "g - H": (1, magnitudes["g"] - magnitudes["H_E"], explained),
        "rest-frame u - r": (1, of_galaxies(_rest_colour(sky, sources, redshift)), explained),
        "early or late type": (1, of_galaxies(family == "elliptical"), auc),
        "ln local density": (1, np.log(_column(sky, sources, "local_density") + 5), explained),
    }
    out |= {f"magnitude {band}": (2, values, explained) for band, values in magnitudes.items()}
    out |= {
        "ln half-light radius": (2, of_galaxies(np.log(_column(sky, sources, "half_light_radius") + 0.01)), explained),
        "e1": (2, of_galaxies(_column(sky, sources, "e1")), explained),
        "e2": (2, of_galaxies(_column(sky, sources, "e2")), explained),
        "background slope x": (2, sources.slope[:, 0], explained),
        "background slope y": (2, sources.slope[:, 1], explained),
    }
    return out


def _rest_colour(sky, sources, redshift, blue=368.0, red=622.0):
    """Rest-frame u - r from the true fluxes, linear in ln flux over ln wavelength; NaN where r leaves the bands."""
    pivots = np.array([band.pivot.to_value(u.nm) for survey in SURVEYS.values() for band in survey.bands])
    order = np.argsort(pivots)
    flux = np.stack([_column(sky, sources, f"flux_{band}") for band in BANDS], -1)  # (n, 10)
    level = -2.5 * np.log10(flux.clip(1e-3)[:, order])
    wave = np.log(pivots[order])
    colour = [
        np.interp(np.log(blue * (1 + z)), wave, row) - np.interp(np.log(red * (1 + z)), wave, row)
        for z, row in zip(redshift, level, strict=True)
    ]
    return np.where(red * (1 + redshift) < pivots.max(), colour, np.nan)


def features(encoders, sky, side, sources, seed):
    """All that the linear map may read, from the same windows.

    Parameters
    ----------
    encoders : dict of `~rosetta.encoding.network.Encoder`

    Returns
    -------
    readable : dict of ndarray
        Per encoder the token, "pixels" (a stamp of `STAMP` pixels, asinh S/N) and "photutils"; (n, p).
    phase : ndarray, shape (n, 2)
    """
    readable, phases = {name: [] for name in (*encoders, "pixels", "photutils")}, []
    for view, phase in look_at(sky, side, sources, seed):
        for name, encoder in encoders.items():
            readable[name].append(read_out(encoder, side, view))
        readable["pixels"].append(np.concatenate([stamps(view), told(view)], 1))
        readable["photutils"].append(measure(side, view, [(view.pixels.shape[-1] - 1) / 2] * 2))
        phases.append(phase)
    return {name: np.concatenate(parts) for name, parts in readable.items()}, np.concatenate(phases)


def probe(encoders, sky, sources, seed):
    """Ridge predictions of all targets.

    Returns
    -------
    list of dict
        "group", "target", "side" ("ground", "space" or "both"), "measure", "truth" (n,) and "guess", per kind of
        feature (n,).
    """
    seen = {side: features(encoders, sky, side, sources, seed) for side in SIDES}
    asked = targets(sky, sources)
    rows = []
    for side in (*SIDES, "both"):
        one = dict(asked)
        if side == "both":
            readable = {k: np.concatenate([seen[s][0][k] for s in SIDES], 1) for k in seen["ground"][0]}
        else:
            readable, phase = seen[side]
            one |= {f"place in pixel, {axis}": (2, phase[:, k], explained) for k, axis in enumerate("xy")}
        truth = np.stack([values for _, values, _ in one.values()], -1)
        guess = {}
        for kind, values in readable.items():
            guess[kind] = predicted(values, truth, sources.tile)
            note(f"probes: {side}, ridge on {kind}")
        for k, (name, (group, _, measured)) in enumerate(one.items()):
            rows.append({
                "group": group, "target": name, "side": side, "measure": measured, "truth": truth[:, k],
                "guess": {kind: values[:, k] for kind, values in guess.items()},
            })  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------- the linear map
def predicted(features, targets, tile):
    """Ridge predictions, each from a fit to other tiles; the penalty by leaving out one source at a time (Allen 1974).

    Parameters
    ----------
    features : ndarray, shape (n, p)
    targets : ndarray, shape (n, k)
        NaN rows of a column are left out of its fit.
    tile : ndarray of int, shape (n,)

    Returns
    -------
    ndarray, shape (n, k)
    """
    known = np.isfinite(targets)
    out = np.full(targets.shape, np.nan)
    for fold in range(min(FOLDS, len(np.unique(tile)))):
        test = tile % FOLDS == fold
        # Columns that are known for the same sources share one decomposition.
        for pattern in np.unique(known, axis=1).T:
            columns = np.flatnonzero((known == pattern[:, None]).all(0))
            train = ~test & pattern
            out[np.ix_(test, columns)] = _ridge(features[train], targets[np.ix_(train, columns)], features[test])
    return out


def _ridge(x, y, new):
    mean, spread = x.mean(0), x.std(0)
    keep = spread > 1e-6 * max(float(spread.max()), 1e-12)
    x, new = (((a[:, keep] - mean[keep]) / spread[keep]).astype(np.float64) for a in (x, new))
    level, low, high = y.mean(0), y.min(0), y.max(0)
    y = y - level
    # Whichever of the two Gram matrices is the smaller one gives the left singular vectors.
    if x.shape[1] <= len(x):
        values, vectors = np.linalg.eigh(x.T @ x)
        values = values.clip(1e-9)
        left = x @ vectors / np.sqrt(values)  # (n, rank)
        read = new @ vectors / np.sqrt(values)  # (m, rank)
    else:
        values, left = np.linalg.eigh(x @ x.T)
        values = values.clip(1e-9)
        read = (new @ x.T) @ left / values
    seen = left.T @ y  # (rank, k)
    best, out = np.full(y.shape[1], np.inf), np.empty((len(new), y.shape[1]))
    for ridge in RIDGES:
        shrink = values / (values + ridge)
        missed = (y - (left * shrink) @ seen) / (1 - left**2 @ shrink)[:, None]  # of each source by a fit without it
        score = (missed**2).sum(0)
        better = score < best
        best[better] = score[better]
        out[:, better] = (read * shrink) @ seen[:, better] + level[better]
    return out.clip(low, high)  # beyond what was ever seen, no line is to be trusted


def explained(truth, guess):
    """R2: share of the variance of ``truth`` that ``guess`` explains."""
    ok = np.isfinite(truth) & np.isfinite(guess)
    truth, guess = truth[ok], guess[ok]
    return float(1 - ((truth - guess) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def auc(truth, guess):
    """Area under the ROC curve of a class (1; others 0)."""
    ok = np.isfinite(truth) & np.isfinite(guess)
    return float(area_under_roc(guess[ok], truth[ok] > 0.5))
