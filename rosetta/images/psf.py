# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The point-spread function of an image, at every place of it.

However a PSF is given, here it is a few images (cells) on native pixels and the weights with which they add up at a
place. What is linear in the PSF, as its Fourier transform is, is worked out once per cell.
"""

import numpy as np

from ..arithmetic import plain_arithmetic
from .moments import adaptive_moments, fourier_shift
from .psf_core import OversampledCore, psf_core

__all__ = ["PSF", "moffat"]

NODE_STEP = 256  # native pixels, at most, between the positions at which a PSF function is evaluated


class PSF:
    """The point-spread function of an image.

    Parameters
    ----------
    array : (k, l) array_like
        The PSF, pixel response included, the same all over the image. Sides are odd; the source lies on the centre of
        the middle pixel.
    oversampling : int, optional
        Samples per native pixel, along each axis. The values are still those that a native pixel would see (an
        "effective" PSF; Anderson & King 2000).

    Attributes
    ----------
    cells : (n_cell, k, l) float64 array
        On native pixels; read-only.

    Raises
    ------
    TypeError, ValueError
        If ``array`` is no PSF or ``oversampling`` no positive whole number; the message says what to do.
    """

    @plain_arithmetic
    def __init__(self, array, *, oversampling=1):
        _check_oversampling(oversampling)
        self._set(checked_array(array, "array")[None], (np.zeros(1), np.zeros(1)), True, int(oversampling))

    def _set(self, samples, nodes, smooth, oversampling, results=None):
        self._samples = np.ascontiguousarray(samples, dtype=float)  # (n_cell, K, L)
        self._nodes, self._smooth, self._oversampling = nodes, smooth, oversampling
        self._cells = self._samples
        if oversampling > 1:
            rows, columns = (_every(n, oversampling) for n in self._samples.shape[1:])
            self._cells = np.ascontiguousarray(self._samples[:, rows[:, None], columns])
        for array in (self._samples, self._cells):
            array.setflags(write=False)
        self._results = {} if results is None else results

    def _with(self, samples, nodes, results=None):
        new = type(self).__new__(type(self))
        new._set(samples, nodes, self._smooth, self._oversampling, results)
        return new

    def __reduce__(self):
        return PSF.of_parts, tuple(self.parts().values())

    def parts(self):
        """The arguments with which `of_parts` makes the same PSF again (dict)."""
        x, y = self._nodes
        return {
            "samples": self._samples, "x": x, "y": y, "smooth": self._smooth, "oversampling": self._oversampling,
        }

    @classmethod
    def of_parts(cls, samples, x, y, smooth, oversampling):
        """A PSF from what `parts` returns.

        Parameters
        ----------
        samples : (n_cell, k, l) array
            Oversampled stamps, rows of cells one after the other.
        x, y : (n,) array
            Pixel positions (0-based) of the grid's columns and rows.
        smooth : bool
            Whether to interpolate between nodes.
        oversampling : int
            Samples per pixel and axis.

        Returns
        -------
        `PSF`
        """
        new = cls.__new__(cls)
        new._set(samples, (np.array(x, float), np.array(y, float)), bool(smooth), int(oversampling))
        return new

    @classmethod
    @plain_arithmetic
    def on_grid(cls, cells, x, y, *, oversampling=1, smooth=True, name="cells"):
        """A PSF that is known at the nodes of a rectangular grid.

        Parameters
        ----------
        cells : (len(y), len(x), k, l) array_like
            As ``array`` of the constructor.
        x, y : (n,) array_like
            Pixel positions (0-based) of the grid's columns and rows, increasing.
        oversampling : int, optional
            As for the constructor.
        smooth : bool, optional
            Whether to interpolate (bilinearly) between nodes; otherwise the PSF of the nearest node holds, as for the
            cells of a coadd. Beyond the outermost nodes theirs hold.
        name : str, optional
            What error messages call it.

        Returns
        -------
        `PSF`
        """
        _check_oversampling(oversampling)
        x, y = (np.atleast_1d(np.asarray(v, float)) for v in (x, y))
        try:
            rows = [list(row) for row in cells]  # cell by cell, so that a masked array in a list keeps its mask
        except TypeError as error:
            raise TypeError(f"{name} must be an array of shape ({len(y)}, {len(x)}, k, l), got {cells!r}") from error
        if len(rows) != len(y) or any(len(row) != len(x) for row in rows):
            shape = getattr(cells, "shape", f"({len(rows)}, {len(rows[0]) if rows else 0}, ...)")
            raise ValueError(f"{name} has shape {shape}: give ({len(y)}, {len(x)}, k, l), rows and columns first")
        if not (np.isfinite(x).all() and np.isfinite(y).all() and (np.diff(x) > 0).all() and (np.diff(y) > 0).all()):
            raise ValueError("x and y must increase and be finite: sort the nodes of the grid")
        new = cls.__new__(cls)
        arrays = [checked_array(cell, name) for row in rows for cell in row]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(f"{name} has stamps of different shapes: give all of one shape")
        new._set(np.stack(arrays), (x, y), smooth, int(oversampling))
        return new

    @classmethod
    def sampled(cls, function, shape, name="psf"):
        """A PSF that a function of the position gives, evaluated at nodes at most `NODE_STEP` pixels apart.

        Parameters
        ----------
        function : callable
            ``function(x, y)`` returns the PSF at a pixel position (0-based): a (k, l) array, always of one shape.
        shape : tuple of int
            (ny, nx) of the image.
        name : str, optional
            What error messages call it.

        Returns
        -------
        `PSF`

        Raises
        ------
        TypeError, ValueError
            If an array cannot be a PSF, or its shape differs from the first one's.
        """
        y, x = (np.linspace(0, n - 1, max(2, -(-n // NODE_STEP) + 1)) for n in shape)
        cells = []
        for row in y:
            for column in x:
                here = f"{name}({column:.0f}, {row:.0f})"
                cells.append(checked_array(function(float(column), float(row)), here))
                if cells[-1].shape != cells[0].shape:
                    shapes = f"{cells[-1].shape}, elsewhere {cells[0].shape}"
                    raise ValueError(f"{here} has shape {shapes}: return arrays of one shape")
        return cls.on_grid(np.reshape(cells, (len(y), len(x), *cells[0].shape)), x, y)

    cells = property(lambda self: self._cells, doc="The PSF at each node, (n_cell, k, l) float64.")

    def __repr__(self):
        n, k, l = self._cells.shape
        return f"<PSF of {k} x {l} pixels{f', {n} cells' if n > 1 else ''}>"

    @property
    def constant(self):
        """Whether it is one and the same all over the image (bool)."""
        return len(self._cells) == 1

    def covers(self, shape):
        """Whether the nodes reach to within one step of the border of an image.

        Parameters
        ----------
        shape : tuple of int
            (ny, nx) of the image.

        Returns
        -------
        bool
        """
        for nodes, n in zip(self._nodes, shape[::-1], strict=True):
            if len(nodes) > 1:
                step = np.diff(nodes).max()
                if nodes[0] - step > 0 or nodes[-1] + step < n - 1:
                    return False
        return True

    def weights(self, x, y):
        """Share of each cell in the PSF.

        Parameters
        ----------
        x, y : (n,) array_like
            Pixel positions, 0-based.

        Returns
        -------
        (n, n_cell) float64 array
            Rows sum to 1.
        """
        x, y = (np.atleast_1d(np.asarray(v, float)) for v in (x, y))
        across, along = (_shares(v, nodes, self._smooth) for v, nodes in zip((x, y), self._nodes, strict=True))
        return (along[:, :, None] * across[:, None, :]).reshape(len(x), len(self._cells))

    def at(self, x, y):
        """The PSF at one place.

        Parameters
        ----------
        x, y : float
            Pixel position, 0-based.

        Returns
        -------
        (k, l) float64 array
        """
        return np.tensordot(self.weights(x, y)[0], self._cells, axes=1)

    def mean_over(self, shape):
        """The mean PSF over an image.

        Parameters
        ----------
        shape : tuple of int
            (ny, nx) of the image.

        Returns
        -------
        (k, l) float64 array
        """
        if self.constant:
            return self._cells[0]
        y, x = (np.linspace(-0.5, n - 0.5, 33) for n in shape)
        grid = np.meshgrid(x, y)
        return np.tensordot(self.weights(*(v.ravel() for v in grid)).mean(axis=0), self._cells, axes=1)

    @property
    def light(self):
        """Light within each cell's stamp, (n_cell,)."""
        return self._samples.sum(axis=(1, 2)) / self._oversampling**2

    def cut(self, x0, y0):
        """The PSF of a part of the image.

        Parameters
        ----------
        x0, y0 : int
            First pixel of the part.

        Returns
        -------
        `PSF`
        """
        if self.constant:
            return self
        # The cells are the same, and so is all that is known of them.
        return self._with(self._samples, (self._nodes[0] - x0, self._nodes[1] - y0), self._results)

    def scaled(self, factors):
        """The PSF with each cell multiplied by a factor.

        Parameters
        ----------
        factors : (n_cell,) array_like

        Returns
        -------
        `PSF`
        """
        return self._with(self._samples * np.asarray(factors, float)[:, None, None], self._nodes)

    def extended(self, profile, pad, *, known=np.inf):
        """The PSF on larger stamps.

        Parameters
        ----------
        profile : callable
            ``profile(radius)`` gives the light per native pixel at radii (native pixels) outside what is known.
        pad : int
            Native pixels that are added on every side.
        known : float
            Radius (native pixels) beyond which the present stamps say nothing, and the profile takes their place.

        Returns
        -------
        `PSF`
        """
        pad = pad * self._oversampling
        samples = np.pad(self._samples, ((0, 0), (pad, pad), (pad, pad)))
        y, x = (np.arange(n) - n // 2 for n in samples.shape[1:])
        radius, outside = np.hypot(y[:, None], x), np.ones(samples.shape[1:], bool)
        outside[pad:-pad, pad:-pad] = radius[pad:-pad, pad:-pad] > known * self._oversampling
        samples[:, outside] = profile(radius[outside] / self._oversampling)
        return self._with(samples, self._nodes)

    def centred(self):
        """The PSF with the adaptive-moment centroid of every cell on the central pixel."""
        samples, moved = [], False
        for cell, own in zip(self._cells, self._samples, strict=True):
            ny, nx = cell.shape
            (x, y), _ = adaptive_moments(cell)
            dx, dy = nx // 2 - x, ny // 2 - y
            if max(abs(dx), abs(dy)) >= 1e-4:
                moved, own = True, fourier_shift(own, self._oversampling * dx, self._oversampling * dy)
            samples.append(own)
        return self._with(np.stack(samples), self._nodes) if moved else self

    def once(self, key, function):
        """A quantity derived from the cells, computed once.

        Parameters
        ----------
        key : hashable
            Its name.
        function : callable
            Computes it; takes no arguments.

        Returns
        -------
        object
            What ``function`` returned the first time.
        """
        if key not in self._results:
            self._results[key] = function()
        return self._results[key]

    @property
    def cores(self):
        """Every cell as a continuous function (see `psf_core`), or None where the pixels sample the PSF well enough."""
        return self.once("cores", self._fitted_cores)

    def _fitted_cores(self):
        if self._oversampling > 1:
            return tuple(OversampledCore(samples, self._oversampling) for samples in self._samples)
        mean = psf_core(self._cells.mean(axis=0))
        if mean is None or self.constant:
            return None if mean is None else (mean,)
        return tuple(psf_core(cell, tuple(mean.shape)) or mean for cell in self._cells)


def checked_array(array, name):
    """The array as float64, after checks that it can be a PSF.

    Parameters
    ----------
    array : array_like
    name : str
        What error messages call it.

    Returns
    -------
    (k, l) float64 array

    Raises
    ------
    TypeError, ValueError
        If it is not 2-D with odd sides, or has masked or non-finite pixels or no positive flux.
    """
    remedy = "fill them, for instance with the PSF mirrored about its centre, or cut the stamp inside of them"
    # Of numpy and of astropy; what lies under a mask can be anything.
    mask = np.ma.getmaskarray(array) if np.ma.isMaskedArray(array) else getattr(array, "mask", None)
    if mask is not None and np.any(mask):
        raise ValueError(f"{name} has masked pixels: {remedy}")
    array = np.asarray(getattr(array, "unmasked", array))
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} holds {array.dtype}, not real numbers: give a 2-D array")
    array = np.array(array, dtype=np.float64)
    if array.ndim != 2 or not all(side % 2 for side in array.shape):
        raise ValueError(f"{name} must be 2-D with odd sides, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite pixels, which may have been masked: {remedy}")
    with np.errstate(over="ignore"):
        light = array.sum()
    if not np.isfinite(light):
        raise ValueError(f"{name} has an infinite sum: divide it by its maximum")
    if not light > 0:
        raise ValueError(f"{name} has no positive flux: repair it, or pass psf=None")
    return array


def _check_oversampling(oversampling):
    if not isinstance(oversampling, (int, np.integer)) or isinstance(oversampling, bool) or oversampling < 1:
        raise ValueError(f"oversampling is {oversampling!r}: give a whole number of samples per pixel, 1 or more")


def _shares(value, nodes, smooth):
    """Weights of the nodes along one axis, (n, n_node)."""
    shares = np.zeros((len(value), len(nodes)))
    rows = np.arange(len(value))
    if len(nodes) == 1:
        shares[:, 0] = 1.0
        return shares
    value = np.clip(np.nan_to_num(value), nodes[0], nodes[-1])
    low = np.clip(np.searchsorted(nodes, value, side="right") - 1, 0, len(nodes) - 2)
    part = (value - nodes[low]) / (nodes[low + 1] - nodes[low])
    if not smooth:
        part = np.round(part)
    shares[rows, low], shares[rows, low + 1] = 1.0 - part, part
    return shares


def _every(n, step):
    """Indices of native pixels in ``n`` oversampled ones: an odd number of them about the middle."""
    half = (n // 2) // step
    return n // 2 + step * np.arange(-half, half + 1)


def moffat(fwhm, *, beta=3.5, reach=6.0, fine=5):
    """A round Moffat profile averaged over pixels.

    Parameters
    ----------
    fwhm : float
        Full width at half maximum, pixels.
    beta, reach : float, optional
        Slope of the wings, and half of the stamp's side in units of ``fwhm``.
    fine : int, optional
        Samples per pixel and axis.

    Returns
    -------
    (k, k) float64 array
        Odd, unit sum.
    """
    half = int(np.ceil(reach * fwhm))
    axis = (np.arange((2 * half + 1) * fine) - (half * fine + fine // 2)) / fine
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    psf = (1 + (axis[:, None] ** 2 + axis[None, :] ** 2) / alpha2) ** -beta
    psf = psf.reshape(2 * half + 1, fine, 2 * half + 1, fine).mean((1, 3))
    return psf / psf.sum()
