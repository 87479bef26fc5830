# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Drawing a source through the PSF of an image, at any sub-pixel place of it.

GalSim draws from the PSF on a grid finer than the pixels, with the interpolant lanczos5. Such a grid is the one that
was given (`rosetta.PSF` with ``oversampling``), or comes from the native pixels by band-limited interpolation. Where
the pixels undersample the PSF, as Euclid's VIS does, interpolation alone would be wrong by several per cent of the
peak: the frequencies that the pixels fold are then those of a telescope fitted to the core of the PSF
(`rosetta.images.psf_core`). Fits of the deblender use the same fit, so an injected star does not tell its error.
"""

from itertools import product

import galsim
import numpy as np

from ..simulate.rendering import profile

__all__ = ["FinePSF", "draw_source", "light_of"]

FINE = 5  # samples per pixel and axis where only native pixels are given; odd, so that the source is on a sample
PARAMS = galsim.GSParams(folding_threshold=5e-3, maxk_threshold=1e-3, maximum_fft_size=16384)
# Half-light radii that hold all but 1e-4 of the light; profiles steeper than an exponential end at 8.
REACH = {0.5: 3.7, 1.0: 7.1}
STEEP = 8.0


class FinePSF:
    """A PSF as GalSim objects, in native pixels.

    Parameters
    ----------
    psf : `~rosetta.PSF`
        Its cells' adaptive-moment centroids are their central pixels.
    """

    def __init__(self, psf):
        parts, cores = psf.parts(), psf.cores
        self._psf, self.half = psf, max(psf.cells.shape[1:]) // 2 + 1  # pixels
        self._samples, self._step = parts["samples"], 1 / parts["oversampling"]
        if parts["oversampling"] == 1:
            cores = [None] * len(psf.cells) if cores is None else cores
            if len(cores) < len(psf.cells):
                cores = cores * len(psf.cells)
            self._samples = np.stack([_finer(cell, core) for cell, core in zip(psf.cells, cores, strict=True)])
            self._step = 1 / FINE
        self._known = {}

    def at(self, x, y):
        """The PSF at one place.

        Parameters
        ----------
        x, y : float
            Pixel position, 0-based.

        Returns
        -------
        `galsim.GSObject`
            Its flux falls short of 1 by the light beyond the stamp. Pixel response is included: draw with
            ``method="no_pixel"``.
        """
        weights = self._psf.weights(x, y)[0]
        key = tuple(np.round(weights, 6))
        if key not in self._known:
            samples = np.tensordot(weights, self._samples, axes=1)
            image = galsim.Image(np.ascontiguousarray(samples), scale=self._step)
            interpolated = galsim.InterpolatedImage(
                image, x_interpolant="lanczos5", normalization="sb", gsparams=PARAMS
            )
            self._known = {key: interpolated}  # of a constant PSF this is made once
        return self._known[key]


def _finer(psf, core):
    """The PSF (k, l) on `FINE` samples per pixel: (k * FINE, l * FINE), the source in the middle of both.

    Its transform within Nyquist's frequency is that of the pixels, less what they fold; beyond, that of the core.
    """
    ny, nx = psf.shape
    fy, fx = (np.fft.fftfreq(n * FINE, 1 / FINE) for n in (ny, nx))  # cycles per pixel
    rolled = np.roll(psf, (-(ny // 2), -(nx // 2)), axis=(0, 1))
    base = np.fft.fft2(rolled)
    inner = np.ix_(*(np.flatnonzero(np.abs(f) < 0.5) for f in (fy, fx)))  # in the order of fft2 of the pixels
    if core is None:
        transform = np.zeros((len(fy), len(fx)), complex)
    else:
        transform = core.transform(fy, fx)
        whole = range(-(FINE // 2), FINE // 2 + 1)
        low_y, low_x = np.fft.fftfreq(ny), np.fft.fftfreq(nx)
        base = base - sum(core.transform(low_y + my, low_x + mx) for my, mx in product(whole, whole) if my or mx)
    transform[inner] = base
    fine = np.fft.ifft2(transform).real * FINE**2
    return np.roll(fine, (fine.shape[0] // 2, fine.shape[1] // 2), axis=(0, 1))


def light_of(scene, rows, flux):
    """The light of one source before any PSF, unit flux, in arcsec (east, north); None for a point.

    Parameters
    ----------
    scene : `~rosetta.simulate.population.Scene`
    rows : (k,) int array
        Its components.
    flux : (k,) array
        Of each component; only their ratios matter.

    Returns
    -------
    light : `galsim.GSObject` or None
    reach : float
        Radius (arcsec) that holds all but about 1e-4 of it.
    """
    share = flux / flux.sum()
    parts, reach = [], 0.0
    for k, part in zip(rows, share, strict=True):
        sersic, radius, (g1, g2), offset = scene.sersic[k], scene.radius[k], scene.shape[k], scene.offset[k]
        shape = profile(sersic, radius, g1, g2, PARAMS)
        if shape is None and len(rows) == 1:
            return None, 0.0
        parts.append(part * (galsim.DeltaFunction(gsparams=PARAMS) if shape is None else shape).shift(*offset))
        g = np.hypot(g1, g2)
        reach = max(reach, REACH.get(float(sersic), STEEP) * radius * np.sqrt((1 + g) / (1 - g)) + np.hypot(*offset))
    return galsim.Sum(parts, gsparams=PARAMS), reach


def draw_source(light, reach, psf, xy, jacobian):
    """One source of unit flux on native pixels.

    Parameters
    ----------
    light, reach
        From `light_of`.
    psf : FinePSF
    xy : (2,) array
        Pixel position (x, y), 0-based.
    jacobian : (2, 2) array
        d(x, y)/d(east, north) in pixel per arcsec.

    Returns
    -------
    stamp : (k, k) float64 array
        Its sum falls short of 1 by the light beyond the PSF's stamp.
    corner : tuple of int
        Image pixel (x, y) of its first pixel; may lie off the image.
    """
    x, y = (float(v) for v in xy)
    shape = psf.at(x, y)
    half = psf.half
    if light is not None:
        # GalSim's transformation keeps surface brightness, not flux.
        on_pixels = light.transform(*jacobian.ravel()).withFlux(1.0)
        shape = galsim.Convolve(on_pixels, shape, gsparams=PARAMS)
        half += int(np.ceil(reach * np.linalg.norm(jacobian, ord=2)))
    x0, y0 = round(x) - half, round(y) - half
    image = galsim.ImageD(galsim.BoundsI(x0, x0 + 2 * half, y0, y0 + 2 * half), scale=1.0)
    shape.drawImage(image=image, center=galsim.PositionD(x, y), method="no_pixel")
    return image.array, (x0, y0)
