# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A ground and a space image of one sky with a known misregistration, and the least error that the pixels allow.

Space: 1024 x 1024 pixels of 0.1", an obstructed Airy disc with a little jitter (0.16"). Ground: 512 x 512 pixels of
0.2", Kolmogorov seeing of 0.7". 120 galaxies and 25 stars. The ground header puts a source whose true position is s
at s + delta(s). Positions (u, v) are tangent-plane arcsec, east and north of the middle; pixels are 0-based.
"""

from dataclasses import dataclass

import astropy.units as u
import galsim
import numpy as np
from astropy.nddata import NDData, StdDevUncertainty
from astropy.wcs import WCS

from rosetta import SkyPair

RA, DEC = 53.1, -28.1
NJY = 10 ** (0.4 * (31.4 - 30.0))  # one count, zero point 30
PIXEL = {"space": 0.1, "ground": 0.2}
NOISE = {"space": 0.50, "ground": 1.51}  # counts per pixel: 26.0 (5 sigma, point source) in the ground image
BAND = {"space": "VIS", "ground": "r"}
CLOSE = 1.2  # arcsec, the largest distance of two sources that count as blended
SHIFT = (0.0634, -0.0473)
CURVED = {"rms": 0.020, "length": 25.0}
CASES = {
    "A": {},
    "B": {"rotation": 2e-4, "scale": 1e-4},
    "C": {**CURVED},
    "D": {**CURVED, "galaxy_jitter": 0.015, "star_jitter": 0.008, "lonely": 0.05},
    "E": {"n_galaxy": 20, "n_star": 3},
    "C, 30 % blended": {**CURVED, "blended": 0.3},
}
SPACE_PSF = galsim.Convolve([galsim.Airy(lam_over_diam=0.125, obscuration=0.4), galsim.Gaussian(sigma=0.03)])
GROUND_PSF = galsim.Kolmogorov(fwhm=0.7)
_FAST = galsim.GSParams(folding_threshold=1e-2, maximum_fft_size=8192)


def tan_wcs(side, offset=(0.0, 0.0), width=102.4):
    """North-up TAN WCS of one image; ``offset`` moves the reference pixel."""
    n = round(width / PIXEL[side])
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [RA, DEC]
    wcs.wcs.crpix = [(n + 1) / 2 + offset[0], (n + 1) / 2 + offset[1]]
    wcs.wcs.cd = np.diag([-PIXEL[side], PIXEL[side]]) / 3600.0
    wcs.pixel_shape = (n, n)
    wcs.wcs.set()
    return wcs


def _plane():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [RA, DEC], [1, 1], [1 / 3600, 1 / 3600]
    return wcs


def to_plane(wcs, x, y):
    """Pixels to (u, v)."""
    return _plane().all_world2pix(*wcs.all_pix2world(x, y, 0), 0)


def to_pixel(wcs, a, b):
    """(u, v) to pixels."""
    return wcs.all_world2pix(*_plane().all_pix2world(a, b, 0), 0)


class Delta:
    """The error of the ground header, arcsec: a shift, a turn, a stretch and a smooth random field."""

    def __init__(self, seed, shift=SHIFT, rotation=0.0, scale=0.0, rms=0.0, length=25.0):
        rng = np.random.default_rng(seed)
        self.shift, self.rotation, self.scale, self.rms = shift, rotation, scale, rms
        self.wave, self.phase = rng.normal(size=(2, 400, 2)) / length, rng.uniform(0, 2 * np.pi, (2, 400))

    def __call__(self, a, b):
        a, b = np.asarray(a, float), np.asarray(b, float)
        linear = (self.scale * a - self.rotation * b, self.scale * b + self.rotation * a)
        angle = np.einsum("c...,akc->a...k", np.stack([a, b]), self.wave) + self.phase.reshape(2, *a.ndim * (1,), 400)
        smooth = self.rms * np.sqrt(2 / 400) * np.cos(angle).sum(-1)
        return tuple(s + line + wavy for s, line, wavy in zip(self.shift, linear, smooth, strict=True))


@dataclass
class Scene:
    """One scene: ``image`` and ``clean`` (without noise) by side, in counts; ``truth`` by name, a row per source."""

    delta: Delta
    wcs: dict
    psf: dict
    clean: dict
    image: dict
    truth: dict

    @property
    def half(self):
        """Half the width on which sources lie, arcsec."""
        return 0.5 * PIXEL["space"] * self.clean["space"].shape[0] - 2.0

    def grid(self, n=21):
        """Places at which a solution is judged: true (u, v), and the ground pixels that see them."""
        axis = 0.95 * self.half * np.linspace(-1, 1, n)
        a, b = (g.ravel() for g in np.meshgrid(axis, axis))
        du, dv = self.delta(a, b)
        return a, b, *to_pixel(self.wcs["ground"], a + du, b + dv)

    def nddata(self, side, psf=None):
        """One image as NDData; ``psf``: a profile, or None for none."""
        image = self.image[side]
        stamp = None
        if psf is not None:
            n = 61 if side == "ground" else 81
            east_left = galsim.JacobianWCS(-PIXEL[side], 0, 0, PIXEL[side])
            stamp = psf.drawImage(nx=n, ny=n, wcs=east_left).array.astype(float)
        error = StdDevUncertainty(np.full(image.shape, NOISE[side] * NJY))
        return NDData(image * NJY, unit=u.nJy, wcs=self.wcs[side], uncertainty=error, psf=stamp)

    def pair(self, psf="exact"):
        """The `~rosetta.SkyPair`; ``psf``: "exact", "none", or the profile that the ground image claims."""
        claims = {"exact": self.psf, "none": dict.fromkeys(PIXEL)}.get(psf, {"space": self.psf["space"], "ground": psf})
        images = {side: {BAND[side]: self.nddata(side, claims[side])} for side in PIXEL}
        return SkyPair(images["ground"], images["space"])


def simulate(
    seed, *, shift=SHIFT, rotation=0.0, scale=0.0, rms=0.0, length=25.0, n_galaxy=120, n_star=25, galaxy_jitter=0.0,
    star_jitter=0.0, lonely=0.0, blended=0.0, ground_psf=GROUND_PSF, sky=None,
):
    """Draw a scene.

    ``galaxy_jitter`` and ``star_jitter`` move sources between the images (colour gradients, proper motion; arcsec);
    ``lonely`` is the share of sources in one image only, ``blended`` the share placed 0.5" to 1.2" from another
    one; ``sky`` is the seed of the ground image's sources, where they are others.
    """
    delta = Delta(seed, shift, rotation, scale, rms, length)
    wcs = {"space": tan_wcs("space"), "ground": tan_wcs("ground", (0.37, -0.21))}
    psf = {"space": SPACE_PSF, "ground": ground_psf}
    clean = {side: galsim.ImageF(*wcs[side].pixel_shape) for side in PIXEL}
    draw = {"n_galaxy": n_galaxy, "n_star": n_star, "blended": blended}
    truth = population(np.random.default_rng(1000 + seed), **draw)
    rng = np.random.default_rng(2000 + seed)
    n = len(truth["u"])
    moved = rng.normal(size=(2, n)) * np.where(truth["star"], star_jitter, galaxy_jitter)
    alone, in_space = rng.uniform(size=(2, n)) < np.array([[lonely], [0.5]])
    seen = {"space": ~alone | in_space, "ground": ~alone | ~in_space}
    here = {"space": truth, "ground": truth if sky is None else population(np.random.default_rng(1000 + sky), **draw)}
    truth["du"], truth["dv"] = delta(truth["u"], truth["v"])
    for side in PIXEL:
        stars = here[side]
        a, b = stars["u"], stars["v"]
        if side == "ground":
            du, dv = delta(a, b)
            a, b = a + du + moved[0], b + dv + moved[1]
        x, y = to_pixel(wcs[side], a, b)
        truth[f"x_{side}"], truth[f"y_{side}"], truth[f"in_{side}"] = x, y, seen[side]
        for k in np.flatnonzero(seen[side]):
            _add(clean[side], stars, k, psf[side], x[k], y[k], side)
    clean = {side: image.array.astype(float) for side, image in clean.items()}
    image = {side: clean[side] + rng.normal(0, NOISE[side], clean[side].shape) for side in PIXEL}
    return Scene(delta, wcs, psf, clean, image, truth)


def population(rng, *, n_galaxy, n_star, blended, half=49.2):
    """Sources: galaxies by counts of 10^(0.35 m) to 25.5, stars of a flatter law; sizes, shapes and colours."""
    n = n_galaxy + n_star
    place = rng.uniform(-half, half, (2, n))
    star = np.arange(n) < n_star
    q = rng.uniform(size=n)
    galaxy = 25.5 + np.log10(q * (1 - 10 ** (-0.35 * 5)) + 10 ** (-0.35 * 5)) / 0.35
    mag = np.where(star, 18.5 + 6.0 * q**0.8, galaxy)
    size = np.clip(0.45 * 10 ** (-0.12 * (mag - 23)) * np.exp(rng.normal(0, 0.35, n)), 0.12, 1.2)
    e1, e2 = np.clip(rng.normal(0, 0.25, (2, n)), -0.55, 0.55)
    found = {
        "mag": mag, "star": star, "color": rng.normal(0, 0.3, n), "size": np.where(star, 0.0, size), "e1": e1,
        "e2": e2, "bulge": rng.uniform(size=n) < 0.25, "blended": np.zeros(n, bool),
    }
    pairs = rng.permutation(n)[: 2 * round(blended * n / 2)].reshape(2, -1)  # the second joins the first
    angle, apart = rng.uniform(0, 2 * np.pi, pairs.shape[1]), rng.uniform(0.5, CLOSE, pairs.shape[1])
    place[:, pairs[1]] = place[:, pairs[0]] + apart * np.stack([np.cos(angle), np.sin(angle)])
    found["blended"][pairs.ravel()] = True
    return {"u": place[0], "v": place[1], **found}


def _add(image, truth, k, psf, x, y, side):
    """Draw source ``k`` at pixel (x, y) of one image."""
    profile, scale = psf, PIXEL[side]
    width = 10.0
    if not truth["star"][k]:
        radius = truth["size"][k]
        if truth["bulge"][k]:
            galaxy = galsim.DeVaucouleurs(half_light_radius=radius, trunc=6 * radius, gsparams=_FAST)
        else:
            galaxy = galsim.Exponential(half_light_radius=radius, gsparams=_FAST)
        profile = galsim.Convolve([galaxy.shear(e1=truth["e1"][k], e2=truth["e2"][k]), psf])
        width = 8 * radius + (6 if side == "space" else 10)
    mag = truth["mag"][k] + (truth["color"][k] if side == "ground" else 0.0)
    n = int(np.clip(width / scale, 32, 220)) // 2 * 2
    stamp = galsim.ImageF(n, n, wcs=galsim.JacobianWCS(-scale, 0, 0, scale))
    stamp.setCenter(int(round(x)) + 1, int(round(y)) + 1)
    profile.withFlux(10 ** (0.4 * (30.0 - mag))).drawImage(image=stamp, center=galsim.PositionD(x + 1, y + 1))
    both = stamp.bounds & image.bounds
    if both.isDefined():
        image[both] += stamp[both]


def source_bound(scene):
    """Cramer-Rao sigma of each source's offset, arcsec, (2, n): flux and background are free, NaN where not seen.

    From the noise-free pixels of both images; derivatives in Fourier space, since differences are too small near
    the Nyquist frequency.
    """
    total = 0.0
    for side, radius in (("space", 15), ("ground", 10)):
        clean, truth = scene.clean[side], scene.truth
        transform = np.fft.fft2(clean)
        ny, nx = (2j * np.pi * np.fft.fftfreq(n) for n in clean.shape)
        slope_x, slope_y = (np.fft.ifft2(k * transform).real for k in (nx[None, :], ny[:, None]))
        sigma = np.full((2, len(truth["u"])), np.nan)
        for k, (x, y) in enumerate(zip(truth[f"x_{side}"], truth[f"y_{side}"], strict=True)):
            i, j = int(round(x)), int(round(y))
            inside = radius <= min(i, j) and max(i, j) < len(clean) - radius
            if not inside or not truth[f"in_{side}"][k]:
                continue
            cut = np.s_[j - radius : j + radius + 1, i - radius : i + radius + 1]
            design = np.stack([slope_x[cut], slope_y[cut], clean[cut] / clean[cut].sum(), np.ones_like(clean[cut])])
            design = design.reshape(4, -1) / NOISE[side]
            sigma[:, k] = np.sqrt(np.diag(np.linalg.inv(design @ design.T))[:2]) * PIXEL[side]
        total = total + sigma**2
    return np.sqrt(total)


def field_bound(scene, case):
    """Expected field error (mas per axis, rms over the grid) if every source is as good as its Cramer-Rao bound.

    The stamps of close sources are the same pixels, which count once: for the better measured one.
    """
    options, truth = CASES[case], scene.truth
    jitter = np.where(truth["star"], options.get("star_jitter", 0.0), options.get("galaxy_jitter", 0.0))
    a, b, _, _ = scene.grid()
    total = []
    for sigma in source_bound(scene):
        variance = sigma**2 + jitter**2
        ok = np.isfinite(variance)
        near = np.hypot(truth["u"][:, None] - truth["u"], truth["v"][:, None] - truth["v"]) < CLOSE
        ok &= ~(near & (sigma[:, None] > sigma)).any(1)
        here, there = np.stack([truth["u"][ok], truth["v"][ok]], -1), np.stack([a, b], -1)
        # A flat prior on the mean: a variance far above any offset.
        def prior(p, q):
            apart = ((p[:, None] - q) ** 2).sum(-1)
            mean = 1.0 + (1e-4 * (p @ q.T) if options.get("rotation") else 0.0)
            return mean + options.get("rms", 0.0) ** 2 * np.exp(-0.5 * apart / options.get("length", 25.0) ** 2)

        cross = prior(there, here)
        left = np.diag(prior(there, there)) - np.einsum(
            "ij,ji->i", cross, np.linalg.solve(prior(here, here) + np.diag(variance[ok]), cross.T)
        )
        total.append(left.mean())
    return 1e3 * np.sqrt(np.mean(total))
