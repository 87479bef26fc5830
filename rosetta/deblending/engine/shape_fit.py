# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Shapes of sources fitted to native pixels: damped Gauss-Newton steps around a start.

Each step solves the linearised problem of all fluxes and shapes together, with the starts as Gaussian priors,
by conjugate gradients. Every image may see a source a little broader or narrower than the template: galaxies change
with wavelength, and no PSF is known exactly. Where the pixels say little the answer is the start; its covariance
(Laplace) is the uncertainty of the template.
"""

import numpy as np
from scipy import sparse

from ..shapes import DIRECTIONS, SIZE, mixture, tangents
from .design import Design, shared, touching
from .fluxes import amplitudes
from .rendering import draw, half_light_radius, render, stamp_sizes

__all__ = ["broadened", "design_of", "fit_breadths", "fit_shapes", "flux_slopes", "shape_weight"]

DERIVED = 30.0  # stamps of derivatives truncate this many times more light: they affect convergence, not the result
LARGEST_DERIVED = 405  # largest stamp of a derivative, pixels
BRIGHTEST = 1e3  # S/N is capped here: above it, covariances in single precision would not be positive definite
PRECISION = 0.03  # sigma, of the solution of the normal equations
MOST_TURNS = 200  # of conjugate gradients
HELD = 1e-6  # width of the prior of what a fit may not change


def broadened(mixtures, breadth, placed, config):
    """Mixtures as an image sees them; ``breadth`` (n,) is in units of the placement's size gradient and PSF blur.

    Galaxies have colour gradients: the weights of the Gaussians change with wavelength, their widths do not.
    """
    out, breadth = mixtures.copy(), breadth[:, None]
    tilt = placed.size_gradient * breadth * _reach(mixtures, config)
    weight = mixtures[..., 0] * np.exp(tilt - tilt.max(axis=1, keepdims=True))
    out[..., 0] = weight * (mixtures[..., 0].sum(axis=1) / weight.sum(axis=1))[:, None]
    out[..., [3, 5]] += (placed.psf_blur * breadth)[..., None]
    return out


def _reach(mixtures, config):
    """``config.tilt`` times the logarithm of each Gaussian's width, (n, K)."""
    area = np.sqrt(np.maximum(mixtures[..., 3] * mixtures[..., 5] - mixtures[..., 4] ** 2, 0.0))
    return config.tilt * 0.5 * np.log(area + config.narrowest**2)


def _breadth_tangent(mixtures, placed, config):
    """Derivative of `broadened`, (n, 1, K, 6); near enough for mixtures that are broadened already."""
    tangent, weight, reach = np.zeros_like(mixtures), mixtures[..., 0], _reach(mixtures, config)
    tangent[..., 0] = placed.size_gradient * weight * (reach - (weight * reach).sum(axis=1, keepdims=True))
    tangent[..., [3, 5]] = placed.psf_blur
    return tangent[:, None]


def fit_shapes(start, placements, largest, config, free=None):
    """Fit shapes to images.

    Parameters
    ----------
    start : (n, N_PARAMETER) array
        Shapes to start from, the centre of the prior.
    placements : list of `Placement`
        Of the same sources on every image; each image has its own free fluxes and breadths.
    largest : (n,) array
        The largest half-light radius that each source may have, arcsec.
    config : `EngineConfig`
    free : (n, n_shape) bool array, optional
        What the fit may change; None: everything.

    Returns
    -------
    moved : (n, n_shape) array
        The fitted shapes are ``start + moved @ DIRECTIONS``.
    covariance : (n, n_shape, n_shape) array
        Of ``moved``, from the noise and the prior.
    """
    n, n_shape = len(start), len(DIRECTIONS)
    covariance = _prior_covariance(np.ones((n, n_shape), bool) if free is None else free, config)
    moved, prior = np.zeros((n, n_shape)), np.linalg.inv(covariance)  # (n, n_shape), (n, n_shape, n_shape)
    rows, breadth = np.arange(n), np.zeros((n, len(placements)))
    if n == 0:
        return moved, covariance
    mixtures = mixture(start)
    designs = [design_of(mixtures, placed) for placed in placements]
    flux = np.zeros((n, len(placements)))
    for k, (design, placed) in enumerate(zip(designs, placements, strict=True)):
        flux[:, k], _ = amplitudes(design, placed.image.data, placed.image.sky_weight)
    for turn in range(config.patience * config.iterations):
        here = [placed.of(rows) for placed in placements]
        models = [design.image(flux[:, k]) for k, design in enumerate(designs)]
        along = tangents(start[rows] + moved[rows] @ DIRECTIONS, mixtures[rows])
        step, shape, own = _joint_step(
            mixtures[rows], along, moved[rows], prior[rows], flux[rows], breadth[rows], here, models, config
        )
        # One overlong coordinate shortens the whole step, so that it keeps its direction.
        length = np.abs(step[:, :n_shape] / config.largest_step).max(axis=1)
        step /= np.maximum(length, 1.0)[:, None]
        moved[rows] += step[:, :n_shape]
        radius = half_light_radius(mixture(start[rows] + moved[rows] @ DIRECTIONS))  # proportional to the scale
        moved[rows, SIZE] -= np.log(np.maximum(radius / largest[rows], 1.0))
        flux[rows] += step[:, n_shape::2]
        breadth[rows] = np.clip(breadth[rows] + step[:, n_shape + 1 :: 2], -config.broadest, config.broadest)
        covariance[rows] = shape[:, :n_shape, :n_shape]
        mixtures[rows] = mixture(start[rows] + moved[rows] @ DIRECTIONS)
        for k, placed in enumerate(here):
            seen = broadened(mixtures[rows], breadth[rows, k], placed, config)
            designs[k] = designs[k].replaced(rows, design_of(seen, placed))
        changed = np.einsum("ni,nij,nj->n", step, own, step) > config.settled**2
        rows = rows[changed & ((turn + 1 < config.iterations) | (length > 1.0))]
        if len(rows) == 0:
            break
    return moved, covariance


def _prior_covariance(free, config):
    """Covariance of shapes about their starts, (n, n_shape, n_shape), where ``free`` (n, n_shape) lets them move."""
    covariance = np.diag(np.square(np.r_[config.prior_sigma, np.zeros(len(config.profile_mean))]))
    covariance[len(config.prior_sigma) :, len(config.prior_sigma) :] = config.profile_covariance
    return np.where(free[:, :, None] & free[:, None, :], covariance, HELD**2 * np.eye(len(covariance)))


def fit_breadths(mixtures, placed, config, *, iterations=2, first=None):
    """How broad an image sees sources of known shapes, and what that means for their fluxes.

    Parameters
    ----------
    mixtures : (n, K, 6) array
    placed : `Placement`
    config : `EngineConfig`
    iterations : int, optional
    first : (`Design`, (n,) array), optional
        The sources of breadth 0 and their fluxes; None: they are found.

    Returns
    -------
    breadth : (n,) array
        For `broadened`; 0 for sources too faint to tell.
    error : (n,) array
        Relative error of the flux from that of the breadth.
    design : `Design`
        The sources as broad as that.
    """
    n = len(mixtures)
    breadth, error = np.zeros(n), np.zeros(n)
    if first is None:
        design = design_of(mixtures, placed)
        flux, snr = amplitudes(design, placed.image.data, placed.image.sky_weight)
    else:
        design, flux = first[0], first[1].copy()
        snr = flux * np.sqrt(design.squares(placed.image.sky_weight))
    rows = np.flatnonzero(snr > config.faintest)
    for _ in range(iterations):
        if len(rows) == 0:
            break
        some, here = mixtures[rows], placed.of(rows)
        step, covariance, own = _joint_step(
            some, np.zeros((len(rows), 0, *some.shape[1:])), np.zeros((len(rows), 0)), np.zeros((len(rows), 0, 0)),
            flux[rows, None], breadth[rows, None], [here], [design.image(flux)], config,
        )
        flux[rows] += step[:, 0]
        breadth[rows] = np.clip(breadth[rows] + step[:, 1], -config.broadest, config.broadest)
        slope = own[:, 0, 1] / np.maximum(own[:, 0, 0] * np.abs(flux[rows]), 1e-30)
        error[rows] = np.abs(slope) * np.sqrt(covariance[:, 1, 1])
        design = design.replaced(rows, design_of(broadened(some, breadth[rows], here, config), here))
        rows = rows[np.abs(step[:, 1]) > config.settled]
    return breadth, error, design


def design_of(mixtures, placed, sizes=None):
    """The unit-flux images of sources as they are placed on an image, a `Design`; ``sizes`` as for `render`."""
    if sizes is None:
        sizes = stamp_sizes(mixtures, placed.jacobian, placed.image.psf, placed.truncation)
    stamps = render(mixtures, placed.xy, placed.jacobian, placed.image.psf, sizes=sizes)
    return Design(stamps, placed.shape, len(mixtures))


def shape_weight(image, model, config):
    """Weights of the pixels (ny, nx) in the fit of shapes: bright ones are known no better than the PSF is."""
    return image.sky_weight / (1.0 + image.sky_weight * (config.model_error * model) ** 2)


def _leading_sizes(mixtures, placed):
    """Stamp sizes for derivatives."""
    sizes = stamp_sizes(mixtures, placed.jacobian, placed.image.psf, np.minimum(DERIVED * placed.truncation, 0.03))
    return np.minimum(sizes, LARGEST_DERIVED)


def _joint_step(mixtures, along, moved, prior, flux, breadth, placements, models, config):
    """One Gauss-Newton step of shapes, fluxes and breadths, from the models (ny, nx) of all light in the images.

    Returns
    -------
    step : (n, size) array
        A source's unknowns: its shape, then its flux and breadth in each image.
    covariance, own : (n, size, size) array
        The inverse of each source's own normal matrix, and that matrix.
    """
    n, n_shape, n_image = len(mixtures), along.shape[1], len(placements)
    size = n_shape + 2 * n_image
    own = np.tile(np.diag(np.r_[np.zeros(n_shape), np.tile([1e-12, 1.0], n_image)]), (n, 1, 1))
    own[:, :n_shape, :n_shape] = prior
    right = np.zeros((n, size))
    right[:, :n_shape] = -np.einsum("nij,nj->ni", prior, moved)
    right[:, n_shape + 1 :: 2] = -breadth
    blocks = {(i, i): own[i] for i in range(n)}
    for k, (placed, model) in enumerate(zip(placements, models, strict=True)):
        seen = broadened(mixtures, breadth[:, k], placed, config)
        root = np.sqrt(shape_weight(placed.image, model, config)).astype(np.float32)
        left = root * (placed.image.data - model)
        directions = np.concatenate([along, _breadth_tangent(seen, placed, config)], axis=1)
        bounds, columns = _columns(seen, directions, flux[:, k], placed, root)
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


def _columns(mixtures, along, flux, placed, root):
    """Derivatives of the image by flux and shape of every source, times ``root``, on the pixels that matter.

    Those are the rectangle about the pixels where its model is above a tenth of the noise or a fiftieth of its peak.

    Returns
    -------
    bounds : (n, 4) int array
        y0, y1, x0, x1.
    columns : list of (1 + n_shape, y1 - y0, x1 - x0) float32 array
    """
    ny, nx = placed.shape
    bounds, columns = np.zeros((len(mixtures), 4), int), [None] * len(mixtures)
    sizes = _leading_sizes(mixtures, placed)
    for stamps in draw(mixtures, along, placed.xy, placed.jacobian, placed.image.psf, sizes, folded=False):
        size = stamps.values.shape[1]
        for i, source in enumerate(stamps.index):
            x0, y0 = stamps.corner[i].tolist()
            ya, yb, xa, xb = max(y0, 0), min(y0 + size, ny), max(x0, 0), min(x0 + size, nx)
            yb, xb = max(ya, yb), max(xa, xb)
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


def flux_slopes(parameters, placed):
    """How the flux that a template gives depends on its shape.

    Parameters
    ----------
    parameters : (n, N_PARAMETER) array
    placed : `Placement`

    Returns
    -------
    (n, n_shape) array
        d ln(flux) / d(coordinate along `DIRECTIONS`) of the weighted fit of an isolated source.
    """
    out = np.zeros((len(parameters), len(DIRECTIONS)))
    mixtures = mixture(parameters)
    sizes, weight = _leading_sizes(mixtures, placed), placed.image.sky_weight.ravel()
    for stamps in draw(mixtures, tangents(parameters, mixtures), placed.xy, placed.jacobian, placed.image.psf, sizes):
        w = _cut(weight, stamps, placed.shape)
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
