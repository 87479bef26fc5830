# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""How noise is correlated between pixels, measured on residuals."""

import numpy as np
from scipy.signal import fftconvolve

__all__ = ["THIN", "noise_factor", "significance"]

THIN = 3  # every so many pixels each way tell the noise: neighbours are correlated


def significance(residual, valid, psf):
    """Fluxes of point sources everywhere on a residual image, in units of the error that uncorrelated pixels give.

    Parameters
    ----------
    residual : (ny, nx) array
        Residual over its standard deviation; 0 where invalid.
    valid : (ny, nx) bool array
    psf : (k, l) array

    Returns
    -------
    (ny, nx) float32 array
        Output of the matched filter over its expectation; NaN where much of the filter falls on no pixel.
    """
    kernel = _filter(psf)
    top = fftconvolve(np.where(valid, residual, 0.0).astype(np.float32), kernel, mode="same")
    bottom = fftconvolve(valid.astype(np.float32), kernel**2, mode="same")
    good = bottom > 0.9 * (kernel**2).sum()
    return np.divide(top, np.sqrt(np.where(good, bottom, 1.0)), out=np.full_like(top, np.nan), where=good)


def noise_factor(scatter, psf):
    """How much more point-source fluxes scatter than uncorrelated pixels would let them.

    Parameters
    ----------
    scatter : (m,) array
        Of `significance`, well apart.
    psf : (k, l) array

    Returns
    -------
    float
        Robust (from the median absolute deviation); 1 where there are too few pixels to tell.
    """
    if len(scatter) * THIN**2 < 20 * _filter(psf).size:
        return 1.0
    return float(1.4826 * np.median(np.abs(scatter - np.median(scatter))))


def _filter(psf):
    half = [max(3, min(k // 2, 10)) for k in psf.shape]
    cy, cx = psf.shape[0] // 2, psf.shape[1] // 2
    rows, columns = (slice(max(c - h, 0), c + h + 1) for c, h in zip((cy, cx), half, strict=True))
    return psf[rows, columns][::-1, ::-1].astype(np.float32)
