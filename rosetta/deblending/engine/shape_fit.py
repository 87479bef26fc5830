# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Shapes of sources fitted to native pixels: damped Gauss-Newton steps around a proposed shape.

Each step solves the linearised problem of all fluxes and shapes together, with the proposals as Gaussian priors,
by conjugate gradients. Every image may see a source a little broader or narrower than the template: galaxies change
with wavelength, and no PSF is known exactly. Where the pixels say little the
answer is the proposal; its covariance (Laplace) is the uncertainty of the template.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from .. import shapes
from .design import Design, shared, touching
from .fluxes import amplitudes
from .rendering import draw, render, stamp_sizes

__all__ = [
    "DIRECTIONS", "Image", "breadths", "broadened", "design_of", "flux_slopes", "mixtures_of", "refine", "shape_weight",
]


def _directions():
    """Directions in shape space: centre, size, shears, and weights of groups of Gaussians, core to wings."""
    groups = [[0, 1], [2, 3], [4], [6], [7]]  # the sixth Gaussian is what the others are relative to
    rows = np.zeros((5 + len(groups), shapes.N_PARAMETER))
    rows[range(5), range(5)] = 1.0
    for row, group in zip(rows[5:], groups, strict=True):
        row[[shapes.LOGITS.start + k for k in group]] = 1.0
    return rows


DIRECTIONS = _directions()
PRIOR_SIGMA = np.array([0.05, 0.05, 0.4, 0.45, 0.45, 1.5, 0.8, 0.5, 0.5, 1.5])
STEP = np.array([0.01, 0.01, 0.02, 0.02, 0.02, 0.05, 0.05, 0.05, 0.05, 0.05])
LARGEST = np.array([0.2, 0.2, 0.7, 0.7, 0.7, 1.0, 1.0, 1.0, 1.0, 1.0])
# Pixels of bright sources are not known better than the PSF is.
MODEL_ERROR = 0.01
DERIVED = 30.0  # derivatives may leave out this many times more light than the model: they only lead the way
BRIGHTEST = 1e3  # S/N above which single precision would leave covariances that are none
FAINTEST = 5.0  # S/N below which an image cannot tell how broad a source is
BROADEST = 3.0  # sigma: a breadth goes no further
PRECISION = 0.03  # sigma
# Power of a Gaussian's width that its weight goes with, per unit of an image's gradient: an exponential disc then
# becomes larger by half of what the gradient says.
TILT = 2.5
NARROWEST = 0.02  # arcsec: Gaussians that are narrower count as this wide
MOST_TURNS = 200
SIZE = 2  # the direction of the scale
LN_LARGEST_SCALE = np.log(5.0)  # arcsec: what would be larger is no galaxy, but a background or scattered light
PATIENCE = 3  # times as many steps for a source that began far from where it belongs
SETTLED = 0.2  # sigma: a source whose last step changed its images by less is left as it is


@dataclass(frozen=True)
class Image:
    """One image as the fit sees it.

    Attributes
    ----------
    data, variance : (ny, nx) array
        nJy and nJy^2; the variance is infinite where a pixel must not be used.
    weight : (ny, nx) array
        Weights of the pixels in the fit of fluxes, 0 where a pixel must not be used.
    psf : (k, k) array
    xy : (n, 2) array
        Source positions in this image, pixels.
    jacobian : (n, 2, 2) array
        Pixel per arcsec.
    truncation : (n,) array
        Share of each source's light that its stamp may leave out.
    gradient : float
        How much the logarithm of a source's size varies between this image and the sharpest one, one sigma.
    blur : float
        Error of the PSF's variance, arcsec^2, one sigma.
    """

    data: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    psf: np.ndarray
    xy: np.ndarray
    jacobian: np.ndarray
    truncation: np.ndarray
    gradient: float = 0.0
    blur: float = 0.0

    def of(self, rows):
        """The image with some of the sources."""
        return replace(self, xy=self.xy[rows], jacobian=self.jacobian[rows], truncation=self.truncation[rows])


def mixtures_of(parameters):
    """`shapes.mixture` for float64 arrays."""
    return shapes.mixture(parameters)


def tangents_of(parameters, mixtures):
    """Derivatives of mixtures along `DIRECTIONS`, (n, n_shape, K, 6): what `draw` takes."""
    moved = [mixtures_of(parameters + step * row) for step, row in zip(STEP, DIRECTIONS, strict=True)]
    return np.stack([(new - mixtures) / step for step, new in zip(STEP, moved, strict=True)], axis=1)


def broadened(mixtures, breadth, gradient, blur):
    """Mixtures as an image sees them: ``breadth`` (n,) is in units of its ``gradient`` and ``blur``; see `Image`.

    A galaxy's colours differ inside and outside, so what changes are the weights of its Gaussians, not their widths.
    """
    out, breadth = mixtures.copy(), breadth[:, None]
    tilt = gradient * breadth * _reach(mixtures)
    weight = mixtures[..., 0] * np.exp(tilt - tilt.max(axis=1, keepdims=True))
    out[..., 0] = weight * (mixtures[..., 0].sum(axis=1) / weight.sum(axis=1))[:, None]
    out[..., [3, 5]] += (blur * breadth)[..., None]
    return out


def _reach(mixtures):
    """TILT times the logarithm of each Gaussian's width, (n, K)."""
    area = np.sqrt(np.maximum(mixtures[..., 3] * mixtures[..., 5] - mixtures[..., 4] ** 2, 0.0))
    return TILT * 0.5 * np.log(area + NARROWEST**2)


def _breadth_tangent(mixtures, image):
    """Derivative of `broadened`, (n, 1, K, 6); near enough for mixtures that are broadened already."""
    tangent, weight, reach = np.zeros_like(mixtures), mixtures[..., 0], _reach(mixtures)
    tangent[..., 0] = image.gradient * weight * (reach - (weight * reach).sum(axis=1, keepdims=True))
    tangent[..., [3, 5]] = image.blur
    return tangent[:, None]


def refine(proposal, images, *, iterations):
    """Fit shapes to images.

    Parameters
    ----------
    proposal : (n, N_PARAMETER) array
        Proposed shapes, the centre of the prior.
    images : list of `Image`
        Each has its own free fluxes and breadths.
    iterations : int
        At most; sources that have settled are left alone, and those whose steps are still being shortened may take
        three times as many.

    Returns
    -------
    moved : (n, n_shape) array
        The fitted shapes are ``proposal + moved @ DIRECTIONS``.
    covariance : (n, n_shape, n_shape) array
        Of ``moved``, from the noise and the prior.
    """
    n, n_shape = len(proposal), len(DIRECTIONS)
    moved, covariance = np.zeros((n, n_shape)), np.tile(np.diag(PRIOR_SIGMA**2), (n, 1, 1))
    rows, breadth = np.arange(n), np.zeros((n, len(images)))
    if n == 0:
        return moved, covariance
    mixtures = mixtures_of(proposal)
    designs = [design_of(mixtures, image) for image in images]
    flux = np.stack([amplitudes(d, i.data, i.weight)[0] for d, i in zip(designs, images, strict=True)], axis=1)
    for turn in range(PATIENCE * iterations):
        here = [image.of(rows) for image in images]
        models = [design.image(flux[:, k]) for k, design in enumerate(designs)]
        parameters = proposal[rows] + moved[rows] @ DIRECTIONS
        step, shape, own = _joint_step(
            mixtures[rows], tangents_of(parameters, mixtures[rows]), moved[rows], PRIOR_SIGMA, flux[rows],
            breadth[rows], here, models,
        )
        # One overlong coordinate shortens the whole step, so that it keeps its direction.
        length = np.abs(step[:, :n_shape] / LARGEST).max(axis=1)
        step /= np.maximum(length, 1.0)[:, None]
        moved[rows] += step[:, :n_shape]
        room = LN_LARGEST_SCALE - proposal[rows, shapes.LN_SCALE]
        moved[rows, SIZE] = np.minimum(moved[rows, SIZE], room)
        flux[rows] += step[:, n_shape::2]
        breadth[rows] = np.clip(breadth[rows] + step[:, n_shape + 1 :: 2], -BROADEST, BROADEST)
        covariance[rows] = shape[:, :n_shape, :n_shape]
        mixtures[rows] = mixtures_of(proposal[rows] + moved[rows] @ DIRECTIONS)
        active = (np.einsum("ni,nij,nj->n", step, own, step) > SETTLED**2) & ((turn + 1 < iterations) | (length > 1.0))
        for k, image in enumerate(here):
            seen = broadened(mixtures[rows], breadth[rows, k], image.gradient, image.blur)
            designs[k] = designs[k].replaced(rows, design_of(seen, image))
        rows = rows[active]
        if len(rows) == 0:
            break
    return moved, covariance


def breadths(mixtures, image, *, iterations=2):
    """How broad an image sees sources of known shapes, and what that means for their fluxes.

    Parameters
    ----------
    mixtures : (n, K, 6) array
    image : `Image`
    iterations : int, optional

    Returns
    -------
    breadth : (n,) array
        For `broadened`; 0 for sources too faint to tell.
    error : (n,) array
        Relative error of the flux from that of the breadth.
    design : `~rosetta.deblending.engine.design.Design`
        The sources as broad as that.
    """
    n = len(mixtures)
    breadth, error = np.zeros(n), np.zeros(n)
    design = design_of(mixtures, image)
    flux, snr = amplitudes(design, image.data, image.weight)
    rows = np.flatnonzero(snr > FAINTEST)
    for _ in range(iterations):
        if len(rows) == 0:
            break
        some, here = mixtures[rows], image.of(rows)
        step, covariance, own = _joint_step(
            some, np.zeros((len(rows), 0, *some.shape[1:])), np.zeros((len(rows), 0)), np.zeros(0),
            flux[rows, None], breadth[rows, None], [here], [design.image(flux)],
        )
        flux[rows] += step[:, 0]
        breadth[rows] = np.clip(breadth[rows] + step[:, 1], -BROADEST, BROADEST)
        slope = own[:, 0, 1] / np.maximum(own[:, 0, 0] * np.abs(flux[rows]), 1e-30)
        error[rows] = np.abs(slope) * np.sqrt(covariance[:, 1, 1])
        design = design.replaced(rows, design_of(broadened(some, breadth[rows], image.gradient, image.blur), here))
        rows = rows[np.abs(step[:, 1]) > SETTLED]
    return breadth, error, design


def design_of(mixtures, image, sizes=None):
    """The unit-flux images of sources on an `Image`, a `Design`; ``sizes`` as for `render`."""
    if sizes is None:
        sizes = stamp_sizes(mixtures, image.jacobian, image.psf, image.truncation)
    stamps = render(mixtures, image.xy, image.jacobian, image.psf, sizes=sizes)
    return Design(stamps, image.data.shape, len(mixtures))


def shape_weight(image, model):
    """Weights of the pixels (ny, nx) in the fit of shapes: bright ones are known no better than the PSF is."""
    return image.weight / (1.0 + image.weight * (MODEL_ERROR * model) ** 2)


def _leading_sizes(mixtures, image):
    """Stamp sizes for derivatives."""
    return stamp_sizes(mixtures, image.jacobian, image.psf, np.minimum(DERIVED * image.truncation, 0.03))


def _joint_step(mixtures, tangents, moved, prior_sigma, flux, breadth, images, models):
    """One Gauss-Newton step of shapes, fluxes and breadths, from the models (ny, nx) of all light in the images.

    Returns
    -------
    step : (n, size) array
        A source's unknowns: its shape, then its flux and breadth in each image.
    covariance, own : (n, size, size) array
        The inverse of each source's own normal matrix, and that matrix.
    """
    n, n_shape, n_image = len(mixtures), tangents.shape[1], len(images)
    size = n_shape + 2 * n_image
    precision = np.r_[1.0 / prior_sigma**2, np.tile([1e-12, 1.0], n_image)]
    right = np.zeros((n, size))
    right[:, :n_shape] = -moved / prior_sigma**2
    right[:, n_shape + 1 :: 2] = -breadth
    blocks = {(i, i): np.diag(precision) for i in range(n)}
    for k, (image, model) in enumerate(zip(images, models, strict=True)):
        seen = broadened(mixtures, breadth[:, k], image.gradient, image.blur)
        root = np.sqrt(shape_weight(image, model)).astype(np.float32)
        left = root * (image.data - model)
        along = np.concatenate([tangents, _breadth_tangent(seen, image)], axis=1)
        bounds, columns = _columns(seen, along, flux[:, k], image, root)
        where = np.r_[n_shape + 2 * k, :n_shape, n_shape + 2 * k + 1]
        for i, (y0, y1, x0, x1) in enumerate(bounds):
            right[i, where] += columns[i].reshape(len(where), -1) @ left[y0:y1, x0:x1].ravel()
        corners = bounds.tolist()
        for i, partners in touching(bounds):
            for j in partners.tolist():
                one, two = shared(corners[i], corners[j])
                a, b = columns[i][:, *one].reshape(len(where), -1), columns[j][:, *two].reshape(len(where), -1)
                if i == j and np.dot(a[0], a[0]) * flux[i, k] ** 2 > BRIGHTEST**2:
                    a = b = a.astype(float)
                block = blocks.setdefault((i, j), np.zeros((size, size)))
                block[where[:, None], where] += a @ b.T
    for i in range(n):
        for k in range(n_shape, size, 2):  # no light there: any positive number keeps the equations regular
            blocks[i, i][k, k] += 1e-6 * (blocks[i, i][k, k] < 1e-11)
    own = np.stack([blocks[i, i] for i in range(n)])
    inverse = np.linalg.inv(own)
    blocks |= {(j, i): block.T for (i, j), block in blocks.items() if i != j}
    order = sorted(blocks)
    start = np.searchsorted([i for i, _ in order], np.arange(n + 1))
    normal = sparse.bsr_array((np.stack([blocks[k] for k in order]), [j for _, j in order], start))
    return _conjugate_gradients(normal, inverse, right), inverse, own


def _conjugate_gradients(normal, inverse, right):
    """Solve the normal equations, preconditioned by each source's own, until no source is off by `PRECISION` sigma.

    A criterion on the sum of all would leave faint sources unsolved beside a bright one.
    """

    def precondition(residual):
        return np.einsum("nij,nj->ni", inverse, residual)

    solution, residual = np.zeros_like(right), right.copy()
    direction = moved = precondition(residual)
    for _ in range(MOST_TURNS):
        off = np.einsum("ni,ni->n", residual, moved)  # sigma^2 of each source
        if off.max(initial=0.0) < PRECISION**2:
            break
        turned = (normal @ direction.ravel()).reshape(right.shape)
        length = off.sum() / (direction * turned).sum()
        solution = solution + length * direction
        residual = residual - length * turned
        moved = precondition(residual)
        direction = moved + (residual * moved).sum() / off.sum() * direction
    return solution


def _columns(mixtures, tangents, flux, image, root):
    """Derivatives of the image by flux and shape of every source, times ``root``, on the pixels that matter.

    Those are the rectangle about the pixels where its model is above a tenth of the noise or a fiftieth of its peak.

    Returns
    -------
    bounds : (n, 4) int array
        y0, y1, x0, x1.
    columns : list of (1 + n_shape, y1 - y0, x1 - x0) float32 array
    """
    ny, nx = image.data.shape
    bounds, columns = np.zeros((len(mixtures), 4), int), [None] * len(mixtures)
    sizes = _leading_sizes(mixtures, image)
    for stamps in draw(mixtures, tangents, image.xy, image.jacobian, image.psf, sizes, folded=False):
        size = stamps.values.shape[1]
        for i, source in enumerate(stamps.index):
            x0, y0 = stamps.corner[i]
            ya, yb, xa, xb = (
                int(np.clip(v, 0, m)) for v, m in ((y0, ny), (y0 + size, ny), (x0, nx), (x0 + size, nx))
            )
            own, weight = stamps.values[i, ya - y0 : yb - y0, xa - x0 : xb - x0], root[ya:yb, xa:xb]
            keep = (own > 0.02 * stamps.values[i].max()) | (own * weight * abs(flux[source]) > 0.1)
            y, x = (np.flatnonzero(keep.any(axis=axis)) for axis in (1, 0))
            if len(y):
                ya, yb, xa, xb = ya + y[0], ya + y[-1] + 1, xa + x[0], xa + x[-1] + 1
            else:
                yb, xb = ya, xa
            bounds[source] = ya, yb, xa, xb
            cut = (slice(ya - y0, yb - y0), slice(xa - x0, xb - x0))
            slopes = stamps.slopes[(i, slice(None), *cut)] * np.float32(flux[source])
            columns[source] = np.concatenate([stamps.values[i][cut][None], slopes]) * root[ya:yb, xa:xb]
    return bounds, columns


def flux_slopes(parameters, image):
    """How the flux that a template gives depends on its shape.

    Parameters
    ----------
    parameters : (n, N_PARAMETER) array
    image : `Image`

    Returns
    -------
    (n, n_shape) array
        d ln(flux) / d(coordinate along `DIRECTIONS`) of the weighted fit of an isolated source.
    """
    out = np.zeros((len(parameters), len(DIRECTIONS)))
    mixtures = mixtures_of(parameters)
    sizes, weight = _leading_sizes(mixtures, image), image.weight.ravel()
    for stamps in draw(mixtures, tangents_of(parameters, mixtures), image.xy, image.jacobian, image.psf, sizes):
        w = _cut(weight, stamps, image.data.shape)
        own = (w * stamps.values.reshape(len(w), -1))[:, None]  # (n, 1, pixel)
        power = np.matmul(own, stamps.values.reshape(len(w), -1, 1))[:, 0]
        project = np.matmul(own, stamps.slopes.reshape(len(w), len(DIRECTIONS), -1).transpose(0, 2, 1))[:, 0]
        out[stamps.index] = np.divide(-project, power, out=np.zeros_like(project), where=power > 0)
    return out


def _cut(image, stamps, shape):
    """A flat image at the pixels of stamps, 0 off the image: (n, size * size) float32."""
    ny, nx = shape
    size = stamps.values.shape[1]
    x = stamps.corner[:, 0, None] + np.arange(size)
    y = stamps.corner[:, 1, None] + np.arange(size)
    inside = ((y >= 0) & (y < ny))[:, :, None] & ((x >= 0) & (x < nx))[:, None, :]
    pixel = np.where(inside, y[:, :, None] * nx + x[:, None, :], 0)
    return np.where(inside, image[pixel], 0.0).astype(np.float32).reshape(len(x), -1)
