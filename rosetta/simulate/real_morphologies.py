# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Images of real galaxies as components: deconvolved by their own PSF, as GalSim's `galsim.RealGalaxy` does it.

A set is read from a file or folder of the user's. Every third galaxy, in the order of names, is kept for testing:
those with position 2, 5, 8, ... The images are of one band, so that such a galaxy has no colour gradient. Its noise is
part of it; therefore it is drawn as bright as it was observed or fainter, never brighter.
"""

from functools import cached_property
from hashlib import sha256
from pathlib import Path

import galsim
import numpy as np
from scipy import fft
from scipy.ndimage import binary_dilation, gaussian_filter, label
from scipy.optimize import nnls

__all__ = ["RealGalaxy", "choose", "fingerprint", "read_morphologies"]

PIXEL_SCALE = 0.03  # arcsec, of stamps that do not state theirs
_MOST = 1500  # galaxies of a large catalogue that are read
_FAINTER = 2.0  # magnitudes by which a galaxy may be dimmed, where there is a choice
_MAX_K = 50.0  # radians per arcsec
_SIGMAS = (0.02, 0.04, 0.08, 0.16, 0.32)  # arcsec; widths of the Gaussians of a mixture


class RealGalaxy:
    """One real galaxy: rows north, columns east.

    Parameters
    ----------
    image, psf : `~numpy.ndarray`
        The galaxy and its PSF, pixels of ``pixel_scale`` arcsec, the pixel response included in both.
    mag : float
        AB magnitude at which the galaxy was observed.
    noise_variance : float
        Per pixel of ``image``.
    pixel_scale : float
        Arcsec.
    """

    def __init__(self, image, psf, mag, noise_variance, pixel_scale=PIXEL_SCALE):
        self.mag, self.pixel_scale = float(mag), pixel_scale
        image = np.asarray(image, float)
        light = image * _aperture(image, np.sqrt(noise_variance))
        self.image = light / light.sum()  # (ny, nx)
        self.psf = np.asarray(psf, float) / np.sum(psf)
        y, x = np.indices(image.shape)
        middle = (np.array(image.shape[::-1]) - 1) / 2
        self._centre = pixel_scale * (np.array([np.sum(x * self.image), np.sum(y * self.image)]) - middle)
        self.reach = 0.5 * pixel_scale * np.hypot(*image.shape) + np.hypot(*self._centre)

    @cached_property
    def light(self):
        """The light before any PSF (`galsim.GSObject` of unit flux) about its centroid, in (east, north) arcsec.

        Known to 50 radians per arcsec, beyond the limit of Euclid's optics.
        """
        galaxy, psf = (
            galsim.InterpolatedImage(galsim.Image(array, scale=self.pixel_scale), x_interpolant="quintic")
            for array in (self.image, self.psf)
        )
        y, x = np.indices(self.psf.shape)
        off = [np.sum(k * self.psf) - (n - 1) / 2 for k, n in ((x, self.psf.shape[1]), (y, self.psf.shape[0]))]
        dx, dy = self.pixel_scale * np.array(off) - self._centre
        light = galsim.Convolve(galaxy, galsim.Deconvolve(psf)).shift(dx, dy)
        # Sampled once: turning one table is much faster than dividing two transforms for every image.
        step = 2 * np.pi / (3 * self.pixel_scale * max(self.image.shape))
        half = int(np.ceil(_MAX_K / step))
        table = light.drawKImage(nx=2 * half + 1, ny=2 * half + 1, scale=step)
        return galsim.InterpolatedKImage(table, k_interpolant="cubic")

    @cached_property
    def mixture(self):
        """Round Gaussians that make up the light before any PSF: weight, east, north, sigma (arcsec), (K, 4)."""
        shape = [fft.next_fast_len(n + max(self.psf.shape)) for n in self.image.shape]
        psf = np.zeros(shape)
        psf[: self.psf.shape[0], : self.psf.shape[1]] = self.psf
        transform = fft.rfft2(psf)
        cy, cx = (np.sum(k * self.psf) for k in np.indices(self.psf.shape))
        fy, fx = fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])
        bright = gaussian_filter(self.image, 1.0)
        columns, rows = [], []
        # Large galaxies are built of larger parts, so that their number stays the same.
        for sigma in np.array(_SIGMAS) / self.pixel_scale * max(1.0, max(self.image.shape) / 70):
            step = max(1.2, 1.6 * sigma)
            ny, nx = self.image.shape
            for y in np.arange((ny - 1) % step / 2, ny - 1, step):
                for x in np.arange((nx - 1) % step / 2, nx - 1, step):
                    # Narrow Gaussians only where the light is.
                    if bright[int(y), int(x)] < 0.4 * bright.max() * (_SIGMAS[0] / self.pixel_scale / sigma):
                        continue
                    phase = np.exp(-2j * np.pi * (fy * (y - cy) + fx * (x - cx)))
                    blur = np.exp(-2 * np.pi**2 * sigma**2 * (fy**2 + fx**2))
                    columns.append(fft.irfft2(transform * phase * blur, shape)[:ny, :nx].ravel())
                    rows.append((x, y, sigma))
        # The triangle of the QR decomposition has the same solution and far fewer rows.
        basis, triangle = np.linalg.qr(np.stack(columns, axis=1))
        weight, _ = nnls(triangle, basis.T @ self.image.ravel())
        keep = weight > 3e-3 * weight.sum()
        x, y, sigma = self.pixel_scale * np.array(rows)[keep].T
        weight = weight[keep] / weight[keep].sum()
        return np.stack([weight, x - weight @ x, y - weight @ y, sigma], axis=1)


def _aperture(image, sigma):
    """One where the galaxy is seen, fading to zero around it: what lies beyond is noise and neighbours."""
    blurred = gaussian_filter(image, 2.0)
    blurred_sigma = sigma / (2 * np.sqrt(np.pi) * 2.0)
    marks, _ = label(blurred > 1.5 * blurred_sigma)
    ny, nx = np.array(image.shape) // 2
    middle = np.zeros(image.shape)
    middle[ny - 6 : ny + 7, nx - 6 : nx + 7] = 1
    y, x = np.unravel_index(np.argmax(blurred * middle), image.shape)
    seen = binary_dilation(marks == marks[y, x], iterations=4)
    edge = np.ones(image.shape, bool)
    edge[2:-2, 2:-2] = False
    return gaussian_filter((seen & ~edge).astype(float), 1.0)


def read_morphologies(path, families="all"):
    """Read a set of real galaxies.

    Parameters
    ----------
    path : path-like
        A ``.npz`` file with ``galaxy_NNN``, ``psf_NNN`` (images, 0.03"/px), ``mag`` and ``noise_variance`` (one for
        each galaxy, in the order of names); a folder that holds one; or a folder with the catalogue of
        `galsim.RealGalaxyCatalog`, of which at most 1500, evenly spread, are read.
    families : {"train", "all", "irregular"}
        "train": all but every third galaxy; "irregular": every third galaxy; "all": all of them.

    Returns
    -------
    tuple of RealGalaxy

    Raises
    ------
    ValueError
        If there is no set, or an entry is missing.
    """
    path = Path(path)
    file = next(iter(sorted(path.glob("*.npz"))), None) if path.is_dir() else path
    if file is None:
        found = _from_catalogue(path)
    elif not file.is_file():
        raise ValueError(f"morphologies is {str(path)!r}, which does not exist: name a .npz file or a folder")
    else:
        found = _from_arrays(file)
    kept = {"train": lambda k: k % 3 != 2, "irregular": lambda k: k % 3 == 2, "all": lambda k: True}[families]
    return tuple(galaxy for k, galaxy in enumerate(found) if kept(k))


def _from_arrays(file):
    with np.load(file) as arrays:
        names = sorted(name.removeprefix("galaxy_") for name in arrays.files if name.startswith("galaxy_"))
        try:
            mag, variance = arrays["mag"], arrays["noise_variance"]
            if not names or not len(names) == len(mag) == len(variance):
                raise KeyError(f"one mag and noise_variance for each of {len(names)} galaxies")
            return [
                RealGalaxy(arrays[f"galaxy_{name}"], arrays[f"psf_{name}"], m, v)
                for name, m, v in zip(names, mag, variance)
            ]
        except KeyError as error:
            raise ValueError(f"morphologies {file} lacks {error}: see rosetta.simulate.read_morphologies") from None


def _from_catalogue(path):
    names = sorted(p for p in path.glob("real_galaxy_catalog*.fits") if not p.stem.endswith(("_fits", "_selection")))
    if not names:
        raise ValueError(f"morphologies {str(path)!r} holds neither a .npz file nor real_galaxy_catalog*.fits")
    catalogue = galsim.RealGalaxyCatalog(names[0].name, dir=str(path))
    step = max(1, -(-catalogue.nobjects // _MOST))
    return [
        RealGalaxy(
            catalogue.getGalImage(k).array,
            catalogue.getPSFImage(k).array,
            catalogue.mag[k],
            catalogue.variance[k],
            catalogue.pixel_scale[k],
        )
        for k in range(0, catalogue.nobjects, step)
    ]


def fingerprint(galaxies):
    """Name of a set of real galaxies that depends on their pixels and magnitudes only."""
    digest = sha256()
    for galaxy in galaxies:
        digest.update(np.float64(galaxy.mag).tobytes() + galaxy.image.astype(np.float32).tobytes())
    return digest.hexdigest()[:16]


def choose(rng, galaxies, mag):
    """Index of a real galaxy that may stand at a magnitude, or None.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
    galaxies : sequence of RealGalaxy
    mag : float

    Returns
    -------
    int or None
        None where all galaxies of the set are fainter.
    """
    dimming = mag - np.array([galaxy.mag for galaxy in galaxies])
    allowed = np.flatnonzero(dimming >= 0)
    if allowed.size == 0:
        return None
    near = allowed[dimming[allowed] < max(_FAINTER, dimming[allowed].min())]
    return int(rng.choice(near if near.size else allowed))
