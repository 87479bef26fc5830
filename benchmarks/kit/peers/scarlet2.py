# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""scarlet2 on blends: one Sersic source for every galaxy, fitted to all bands at once.

The setting was chosen on 8 blends of seed 11 at their true positions, where scarlet2's free images scattered by 0.15
and 0.10 in i (200 and 400 steps), its Sersic profiles by 0.07, 0.04 and 0.03 (100, 200 and 400). Disc and bulge apart
did not converge.
"""

import time

import equinox as eqx
import galsim
import jax.numpy as jnp
import numpy as np
import optax
import scarlet2
from numpyro.distributions import constraints
from scarlet2.constraint import unit_disk
from scarlet2.renderer import ConvolutionRenderer, Renderer

from ..blends import GROUND, SCALE, SIZE, psf_of, to_pixel
from .blends import on_riz, on_vis

__all__ = ["scarlet2_of"]

STEPS = 400
RADIUS = 0.35  # arcsec, where every fit starts: a round exponential disc
BOX = 10.0  # arcsec, side of a source's model
scarlet2.set_validation(False)  # its checks only print


def scarlet2_of(bands):
    """A method that sees ``bands``: detection as the other peers have it (SEP on VIS, or on Rubin's r + i + z)."""
    model = "VIS" if "VIS" in bands else "i"  # the band whose pixels the model has

    def method(blend, place):
        start = time.process_time()
        xy = place
        if place is None:
            xy = (on_vis(blend, None) if model == "VIS" else on_riz(blend))[2]
        frame, observations = frames(blend, bands, model)
        flux, compiling = np.zeros((0, len(bands))), 0.0
        if len(xy):
            scene = initial(frame, observations, to_pixel(xy, model), SCALE[model])
            flux, compiling = fitted(scene, observations)
        fluxes = {b: (flux[:, k], np.full(len(xy), np.nan)) for k, b in enumerate(bands)}  # it gives no errors
        return xy, fluxes, time.process_time() - start - compiling, compiling

    return method


# ---------------------------------------------------------------------------- frames
class EverySecond(Renderer):
    """Rubin's image of a model on VIS pixels.

    The grids nest (0.2" and 0.1", one centre): a convolution on the finer one, with PSFs that include Rubin's pixel,
    gives the image that scarlet2's own ResamplingRenderer does (to 0.1 % of the peak), in 0.005 CPU-seconds for the
    value and its gradient instead of 1.8.
    """

    fine: ConvolutionRenderer

    def __call__(self, model, key=None):
        return 4 * self.fine(model[1:])[:, ::2, ::2]  # flux per pixel of four times the area; the first band is VIS


def psf_on(bands, scale, n):
    """PSFs, each with its band's own pixel, sampled every ``scale`` arcsec."""
    light = [galsim.Convolve(psf_of(b), galsim.Pixel(SCALE[b])) for b in bands]
    return jnp.array([p.drawImage(nx=n, ny=n, scale=scale, method="no_pixel").array for p in light])


def frames(blend, bands, model):
    """The model's frame (its PSF a Gaussian of 0.7 pixels, scarlet2's default) and one observation per camera."""

    def observation(names, scale, n):
        data, variance = (np.stack([of[b] for b in names]) for of in (blend.data, blend.variance))
        psf = scarlet2.ArrayPSF(psf_on(names, scale, n))
        return scarlet2.Observation(data, 1 / variance, psf=psf, channels=list(names))

    shape = (len(bands), SIZE[model], SIZE[model])
    frame = scarlet2.Frame(scarlet2.Box(shape), psf=scarlet2.GaussianPSF(0.7), channels=list(bands))
    if model != "VIS":
        observations = [observation(bands, SCALE[model], 61)]
        observations[0].match(frame)
        return frame, observations
    vis, rubin = observation(["VIS"], 0.1, 81), observation(GROUND, 0.1, 121)
    vis.match(frame)
    fine = scarlet2.Frame(scarlet2.Box((len(GROUND), *shape[1:])), psf=rubin.frame.psf, channels=GROUND)
    rubin.match(frame, renderer=EverySecond(ConvolutionRenderer(frame, fine)))
    return frame, [vis, rubin]


# ---------------------------------------------------------------------------- fit
def initial(frame, observations, xy, pixel):
    """A scene of equal round discs whose spectra fit the images best, and what of it may change."""
    side = 2 * round(BOX / pixel / 2) + 1
    with scarlet2.Scene(frame) as scene:
        for x, y in xy:
            disc = scarlet2.SersicMorphology(
                jnp.array(1.0), jnp.array(RADIUS / pixel), jnp.array([1e-3, 1e-3]), shape=(side, side)
            )
            scarlet2.Source(jnp.array([y, x]), jnp.ones(len(frame.channels)), disc)
    spectra = linear_spectra(scene, observations)
    scene = eqx.tree_at(lambda s: [source.spectrum for source in s.sources], scene, list(spectra))
    with scarlet2.Parameters(scene):
        for k, source in enumerate(scene.sources):
            shape = source.morphology
            # Positive values are fitted as their logarithms, so that constant steps are relative ones. (scarlet2's
            # relative_step, of its tutorials, would be relative to the logarithm.)
            scarlet2.Parameter(source.spectrum, f"spectrum{k}", constraints.positive, stepsize=0.05)
            scarlet2.Parameter(source.center, f"center{k}", stepsize=0.05)  # pixels
            scarlet2.Parameter(shape.size, f"size{k}", constraints.positive, stepsize=0.05)
            scarlet2.Parameter(shape.ellipticity, f"ellipticity{k}", unit_disk, stepsize=0.03)
            scarlet2.Parameter(shape.n, f"index{k}", constraints.interval(0.3, 6.0), stepsize=0.05)
    return scene


def linear_spectra(scene, observations):
    """Every source's flux in every band with the morphologies as they are, made positive."""
    frame, found = scene.frame, {}
    images = [scene.evaluate_source(source) for source in scene.sources]
    for observation in observations:
        rendered = np.stack([observation.render(image) for image in images])
        for k, band in enumerate(observation.frame.channels):
            matrix, weight = rendered[:, k].reshape(len(images), -1), np.asarray(observation.weights[k]).ravel()
            right = matrix * weight @ np.asarray(observation.data[k]).ravel()
            found[band] = np.linalg.lstsq(matrix * weight @ matrix.T, right, rcond=1e-6)[0]
    spectra = np.stack([found[band] for band in frame.channels], -1)
    least = 1e-3 * spectra.max(axis=1, keepdims=True).clip(1e-3 * spectra.max())
    return jnp.asarray(np.maximum(spectra, least))


def fitted(scene, observations):
    """Fluxes (n_source, n_band) of the fitted models, and the CPU-seconds that the compiler took."""
    times = [time.process_time()]
    scene = scene.fit(
        observations, max_iter=STEPS, progress_bar=False, schedule=optax.cosine_decay_schedule(1.0, STEPS, alpha=0.02),
        callback=lambda *_: times.append(time.process_time()),
    )  # fmt: skip
    # scarlet2 compiles its step anew for every scene, within the first step.
    compiling = times[1] - times[0] - np.median(np.diff(times[1:]))
    return np.stack([scene.evaluate_source(s).sum(axis=(1, 2)) for s in scene.sources]), compiling
