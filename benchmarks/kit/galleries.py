# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Does a window find its own sky in the other survey, among the windows of a gallery?"""

import numpy as np
import torch
from scipy import ndimage

from rosetta.encoding import training_windows
from rosetta.encoding.inference import disc, moved
from rosetta.encoding.losses import rank_me
from rosetta.encoding.network import SIDES, conditions, spectrum

from .windows import AS_SURVEYED, Look, Where, encode, views

LATTICE = 8  # windows along a side of the hard gallery of one tile
TEMPERATURE = 0.1  # of the collapse gauge
BATCH = 64  # windows in it

#: What is changed, one at a time, and by how much.
CHANGES = {
    "seeing +25 %": Look(seeing=1.25),
    "seeing -25 %": Look(seeing=0.75),
    "depth -0.75 mag, both": Look(depth=-0.75),
    "bandpass +5 nm, all bands": Look(bandpass=5.0),
    "bandpass -5 nm, all bands": Look(bandpass=-5.0),
    "pixels 10 % larger, both": Look(pixel_scale=1.1),
    "pixels 10 % smaller, both": Look(pixel_scale=0.9),
    "u and y missing": Look(missing=("u", "y")),
    "VIS missing": Look(missing=("VIS",)),
    'ground pointing 2" off': Look(pointing=2.0),
}


def seen(encoder, sky, where, window, seed, look=AS_SURVEYED, keep=("embedding",)):
    """What the encoder gives for windows of both sides: per side a list, as from `encode`."""
    return {side: encode(encoder, side, views(sky, side, where, window, seed, look), keep) for side in SIDES}


def scores(encoder, sky, where, window, seed, look=AS_SURVEYED):
    """Cosine of every ground window (row) with every space window (column), (n, n)."""
    both = seen(encoder, sky, where, window, seed, look)
    return (both["ground"][0] @ both["space"][0].T).numpy()


def found(score):
    """Whether each window's best match is its own sky: (n, 2), from the ground and from space."""
    own = np.arange(len(score))
    return np.stack([score.argmax(1) == own, score.argmax(0) == own], -1).astype(float)


# ------------------------------------------------------------------------------------- classical: cross-correlation
def correlations(sky, where, window, seed, look=AS_SURVEYED):
    """Normalised cross-correlation of every ground with every space window, PSF matched, (n, n).

    Space images are blurred to the median ground PSF and binned to ground pixels: VIS against the mean S/N of r, i and
    z, and Y_E against y, each compressed by asinh above 3 sigma; the mean of the two correlations. The grids agree to
    half a pixel; a search over shifts finds fewer (both chosen on validation sky).
    """
    ground = [(view.pixels.sinh(), view.fwhm) for view in views(sky, "ground", where, window, seed, look)]
    first = torch.cat([_flat(torch.stack([pixels[:, 2:5].mean(1), pixels[:, 5]], 1)) for pixels, _ in ground])
    seeing = torch.cat([fwhm for _, fwhm in ground]).median(0).values  # (6,)
    wanted = torch.stack([seeing[2:5].mean(), seeing[5]])
    second = []
    for view in views(sky, "space", where, window, seed, look):
        sigma = ((wanted**2 - view.fwhm[:, :2] ** 2).clamp(min=0).sqrt() / 2.3548 / 0.1).numpy()  # pixels
        pixels = view.pixels[:, :2].sinh().numpy()
        for k, band in np.ndindex(*sigma.shape):
            pixels[k, band] = ndimage.gaussian_filter(pixels[k, band], sigma[k, band], mode="nearest")
        second.append(_flat(torch.nn.functional.avg_pool2d(torch.from_numpy(pixels), 2)))
    return (torch.einsum("ncp,mcp->nm", first, torch.cat(second)) / 2).numpy()


def _flat(images):
    # (n, channel, height, width) -> (n, channel, pixel), mean 0 and length 1
    flat = (images / 3).asinh().flatten(2)
    flat = flat - flat.mean(-1, keepdim=True)
    return torch.nn.functional.normalize(flat, dim=-1)


@torch.inference_mode()
def spectra(encoder, sky, where, window, seed, look=AS_SURVEYED):
    """The plane waves of the spectra that CLS begins as: per side (n, dim / 2)."""
    both = {}
    for side in SIDES:
        views_ = views(sky, side, where, window, seed, look)
        every = torch.cat([spectrum(encoder.stem[side](view)[0], view.positions) for view in views_])
        both[side] = every[:, encoder.config.dim // 2 :].numpy()
    return both


def waves(encoder, sky, where, window, seed, look=AS_SURVEYED):
    """Cosine of `spectra`, every channel scaled to unit variance, (n, n).

    Of an untrained encoder: what its plane waves know without a network.
    """
    both = []
    for values in spectra(encoder, sky, where, window, seed, look).values():
        scaled = (values - values.mean(0)) / values.std(0)
        both.append(scaled / np.linalg.norm(scaled, axis=1, keepdims=True))
    return both[0] @ both[1].T


# ------------------------------------------------------------------------------------- robustness
def lost(encoder, sky, where, window, seed):
    """R@1 lost under each of `CHANGES`: dict of (n,) arrays, success as surveyed minus success when changed."""
    plain = seen(encoder, sky, where, window, seed)
    before = found((plain["ground"][0] @ plain["space"][0].T).numpy()).mean(1)
    out = {}
    for name, look in CHANGES.items():
        both = dict(plain)
        for side in _touched(look):
            both[side] = encode(encoder, side, views(sky, side, where, window, seed, look))
        out[name] = before - found((both["ground"][0] @ both["space"][0].T).numpy()).mean(1)
    return out


def searched(model, sky, where, window, seed, look, reach):
    """Cosines as of `scores`, the best over all places of a ground window within ``reach`` arcsec."""
    space, shifts = encode(model.encoder, "space", views(sky, "space", where, window, seed, look))[0], disc(reach)
    best = [
        torch.from_numpy((moved(model, "ground", view, shifts) @ space.numpy().T).max(0))
        for view in views(sky, "ground", where, window, seed, look)
    ]
    return torch.cat(best).numpy()


def _touched(look):
    """The sides that a change concerns."""
    if look.missing:
        return ("space",) if "VIS" in look.missing else ("ground",)
    return ("ground",) if look.pointing or look.seeing != 1 else SIDES


def reserved(encoder, sky, window, seed):
    """Windows led by a galaxy of the reserved family, each with one led by a familiar galaxy of equal magnitude.

    Returns
    -------
    lost : ndarray, shape (n_pair,)
        Success of the familiar minus success of the reserved, in one gallery of both.
    tile : ndarray of int
        Of the reserved one; None of either where the tiles hold no such galaxies.
    """
    rng = np.random.default_rng(seed)
    led = {True: [], False: []}  # (tile, centre, S/N)
    for index, tile in enumerate(sky.tiles):
        low, high = training_windows.center_range(tile, window)
        place, snr = sky.place[index], sky.snr(index)
        family = np.asarray(sky.truth[index]["family"])
        taken = np.empty((0, 2))
        # The reserved ones choose their place first, for they are few; the order is random otherwise.
        order = rng.permutation(np.flatnonzero((snr > 10) & (family != "star")))
        for k in order[np.argsort(family[order] != "irregular", kind="stable")]:
            center = place[k] + rng.uniform(-1, 1, 2)
            inside = np.abs(place - center).max(1) < window / 2
            free = (np.abs(taken - center).max(1, initial=0) >= window).all() if len(taken) else True
            if free and (center > low).all() and (center < high).all() and snr[k] == snr[inside].max():
                taken = np.vstack([taken, center])
                led[family[k] == "irregular"].append((index, center, snr[k]))
    if not led[True] or len(led[False]) < len(led[True]):
        return np.empty(0), np.empty(0, int)
    # One to one, by signal-to-noise: both sorted, the familiar thinned around the reserved.
    free, chosen = list(led[False]), []
    for _, _, snr in led[True]:
        nearest = min(range(len(free)), key=lambda k: abs(np.log(free[k][2] / snr)))
        chosen.append(free.pop(nearest))
    rows = led[True] + chosen
    where = Where(np.array([row[0] for row in rows]), np.array([row[1] for row in rows]))
    success = found(scores(encoder, sky, where, window, seed)).mean(1)
    n = len(led[True])
    return success[n:] - success[:n], where.tile[:n]


# ------------------------------------------------------------------------------------- prediction
@torch.inference_mode()
def prediction(model, sky, where, window, seed):
    """From one side's tokens, the other side's embedding and tokens.

    Returns
    -------
    dict
        Per predicted side: "predicted" and "mean token" (the embedding read from the mean of the seeing side's tokens),
        whether each finds the true embedding, (n,); "residual" and "scatter", squared distance of the tokens that hold
        a source of S/N > 10 from the prediction and from the mean token, summed per window, (n,).
    """
    encoder = model.encoder
    both = {side: list(views(sky, side, where, window, seed)) for side in SIDES}
    out = {}
    for target, source in (SIDES, SIDES[::-1]):
        truth, guess, naive, tokens, told = [], [], [], [], []
        for seen_view, view in zip(both[source], both[target], strict=True):
            known, cls, _ = encoder(source, seen_view)
            true, _, embedding = encoder(target, view)
            told_, cls = model.predictor(known, cls, seen_view.positions, target, view.positions, conditions(view))
            truth.append(embedding)
            guess.append(encoder.project(cls))
            naive.append(encoder.project(known.mean(1)))
            tokens.append(true)
            told.append(told_)
        truth, guess, naive, tokens, told = (torch.cat(part).float() for part in (truth, guess, naive, tokens, told))
        positions = torch.cat([view.positions for view in both[target]]).numpy()
        holds = torch.from_numpy(_holds_source(sky, where, positions, window))
        mean = tokens[holds].mean(0)
        own = torch.arange(len(truth))
        out[target] = {
            "predicted": ((guess @ truth.T).argmax(1) == own).float().numpy(),
            "mean token": ((naive @ truth.T).argmax(1) == own).float().numpy(),
            "residual": (((told - tokens) ** 2).sum(-1) * holds).sum(1).numpy(),
            "scatter": (((mean - tokens) ** 2).sum(-1) * holds).sum(1).numpy(),
        }
    return out


def _holds_source(sky, where, positions, window):
    """Whether a token's patch holds a source of S/N > 10: (n, n_token)."""
    half = window / round(positions.shape[1] ** 0.5) / 2
    out = np.zeros(positions.shape[:2], bool)
    for k, tile in enumerate(where.tile):
        bright = sky.place[tile][sky.snr(tile) > 10] - where.centers[k]  # (n_source, 2)
        out[k] = (np.abs(positions[k][:, None] - bright) < half).all(-1).any(1)
    return out


# ------------------------------------------------------------------------------------- collapse
def batch_losses(ground, space):
    """NT-Xent of batches of `BATCH` pairs, each view against the 2B - 1 others (Chen et al. 2020), nat, (n_batch,)."""
    out = []
    for start in range(0, len(ground) - BATCH + 1, BATCH):
        both = torch.cat([ground[start : start + BATCH], space[start : start + BATCH]])
        logits = (both @ both.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        label = torch.arange(2 * BATCH).roll(BATCH)
        out.append(float(torch.nn.functional.cross_entropy(logits, label)))
    return np.array(out)


def without_each(features, tile):
    """RankMe and its 68 % range from leaving out one tile at a time (jackknife).

    Drawing tiles again would repeat rows, which lowers a rank.
    """
    features = torch.as_tensor(features)
    tiles = np.unique(tile)
    left = np.array([float(rank_me(features[torch.from_numpy(tile != one)])) for one in tiles])
    error = np.sqrt((len(tiles) - 1) / len(tiles) * ((left - left.mean()) ** 2).sum())
    value = float(rank_me(features))
    return value, value - float(error), value + float(error)
