# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Astrometric tools on the scenes of `kit.scenes`: each takes a scene and gives ground pixel -> true (u, v), arcsec.

Catalogues are Source Extractor's windowed positions by `sep`. The template fit is given the exact PSFs.
"""

import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import astroalign
import galsim
import numpy as np
import sep
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from scipy import linalg, ndimage
from scipy.signal import fftconvolve
from skimage.registration import phase_cross_correlation
from tweakwcs import FITSWCSCorrector, XYXYMatch, align_wcs

from ..scenes import NOISE, PIXEL, to_pixel, to_plane

__all__ = ["PEERS", "scamp_at_hand"]

FILTER_FWHM = {"space": 2.0, "ground": 3.5}  # pixels


def header(scene):
    """Do nothing."""
    return lambda x, y: to_plane(scene.wcs["ground"], x, y)


def moved_by(scene, offset):
    """The solution in which the header's (u, v) are wrong by ``offset(u, v)``."""
    def solution(x, y):
        a, b = to_plane(scene.wcs["ground"], x, y)
        da, db = offset(a, b)
        return a - da, b - db
    return solution


def catalogue(scene, side):
    """Sources of one image, brightest first: x, y, err (pixels), flux."""
    data, noise, fwhm = scene.image[side], NOISE[side], FILTER_FWHM[side]
    axis = np.exp(-0.5 * (np.arange(-4, 5) / (fwhm / 2.355)) ** 2)
    found = sep.extract(data, 2.0, err=noise, minarea=8, filter_kernel=np.outer(axis, axis), deblend_cont=0.005)
    radius, _ = sep.flux_radius(data, found["x"], found["y"], 6 * found["a"], 0.5, normflux=found["flux"], subpix=5)
    radius = np.clip(np.nan_to_num(radius, nan=fwhm / 2), fwhm / 2.5, 20)
    x, y, flag = sep.winpos(data, found["x"], found["y"], 2 / 2.35 * radius, subpix=11)
    x, y = np.where(flag, found["x"], x), np.where(flag, found["y"], y)
    flux, error, _ = sep.sum_circle(data, x, y, 1.2 * radius, err=noise)
    table = Table({"x": x, "y": y, "err": 2 * radius / 2.355 / np.clip(flux / error, 1, None), "flux": found["flux"]})
    table = table[np.isfinite(x + y + table["err"]) & (flux / error > 5)]
    table.sort("flux", reverse=True)
    return table


def tweakwcs(scene):
    """tweakwcs, rotation and scale, weighted."""
    space, ground = (catalogue(scene, side) for side in ("space", "ground"))
    ra, dec = scene.wcs["space"].all_pix2world(space["x"], space["y"], 0)
    weights = {side: 1 / (cat["err"] * PIXEL[side]) ** 2 for side, cat in (("space", space), ("ground", ground))}
    reference = Table({"RA": ra, "DEC": dec, "weight": weights["space"]})
    own = Table({"x": ground["x"], "y": ground["y"], "weight": weights["ground"]})
    corrector = FITSWCSCorrector(scene.wcs["ground"].deepcopy(), meta={"catalog": own, "name": "ground"})
    match = XYXYMatch(searchrad=15.0, separation=1.0, tolerance=2.0, use2dhist=True)
    align_wcs([corrector], reference, fitgeom="rscale", minobj=4, match=match)
    if corrector.meta["fit_info"]["status"] != "SUCCESS":
        raise RuntimeError(corrector.meta["fit_info"]["status"])
    return lambda x, y: to_plane(corrector.wcs, x, y)


def astroalign_lists(scene, n=50):
    """astroalign, on the brightest sources of both lists."""
    space, ground = (np.column_stack([c["x"], c["y"]])[:n] for c in (catalogue(scene, s) for s in ("space", "ground")))
    transform, _ = astroalign.find_transform(ground, space, max_control_points=n)
    return lambda x, y: to_plane(scene.wcs["space"], *transform(np.column_stack([x, y])).T)


def scamp_at_hand():
    """Whether SCAMP and Source Extractor are installed."""
    return all(shutil.which(name) for name in ("scamp", "source-extractor"))


SEX_COLUMNS = """NUMBER XWIN_IMAGE YWIN_IMAGE ERRAWIN_IMAGE ERRBWIN_IMAGE ERRTHETAWIN_IMAGE X_WORLD Y_WORLD ERRA_WORLD
ERRB_WORLD ERRTHETA_WORLD FLUX_AUTO FLUXERR_AUTO MAG_AUTO MAGERR_AUTO FLAGS FLUX_RADIUS XWIN_WORLD YWIN_WORLD"""
SEX_OPTIONS = """-c /dev/null -CATALOG_TYPE FITS_LDAC -PARAMETERS_NAME columns -FILTER_NAME filter -DETECT_THRESH 2
-ANALYSIS_THRESH 2 -DETECT_MINAREA 6 -BACK_TYPE MANUAL -BACK_VALUE 0 -MAG_ZEROPOINT 30 -SATUR_LEVEL 1e9 -GAIN 1e9
-VERBOSE_TYPE QUIET"""
SCAMP_OPTIONS = """-c /dev/null -ASTREF_CATALOG FILE -ASTREFCAT_NAME reference.cat -DISTORT_DEGREES 3
-POSITION_MAXERR 0.3 -POSANGLE_MAXERR 0.5 -PIXSCALE_MAXERR 1.02 -CROSSID_RADIUS 0.6 -SOLVE_PHOTOM N
-CHECKPLOT_TYPE NONE -CHECKPLOT_DEV NULL -SN_THRESHOLDS 5.0,50.0 -FLAGS_MASK 0x00f0 -WRITE_XML N -NTHREADS 1"""


def _source_extractor(scene, side, folder):
    card = scene.wcs[side].to_header()
    card.update({"FILTER": "r", "EXPTIME": 1.0, "MJD-OBS": 60000.0, "EQUINOX": 2000.0, "RADESYS": "ICRS"})
    fits.writeto(folder / f"{side}.fits", scene.image[side].astype("f4"), card)
    (folder / "columns").write_text("\n".join(SEX_COLUMNS.split()))
    (folder / "filter").write_text("CONV NORM\n1 2 1\n2 4 2\n1 2 1\n")
    command = ["source-extractor", f"{side}.fits", *SEX_OPTIONS.split(), "-CATALOG_NAME", f"{side}.cat"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return fits.open(folder / f"{side}.cat")


def scamp(scene):
    """SCAMP of degree 3 against the space catalogue as a file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _source_extractor(scene, "ground", folder).close()
        with _source_extractor(scene, "space", folder) as found:
            rows = found[2].data
            axes = [np.maximum(rows[f"ERR{k}WIN_IMAGE"] * PIXEL["space"] / 3600, 1e-9) for k in "AB"]
            columns = {
                "X_WORLD": ("1D", rows["XWIN_WORLD"]), "Y_WORLD": ("1D", rows["YWIN_WORLD"]),
                "ERRA_WORLD": ("1E", axes[0]), "ERRB_WORLD": ("1E", axes[1]),
                "ERRTHETA_WORLD": ("1E", rows["ERRTHETAWIN_IMAGE"]), "MAG": ("1E", rows["MAG_AUTO"]),
                "MAGERR": ("1E", rows["MAGERR_AUTO"]), "OBSDATE": ("1D", np.full(len(rows), 2023.15)),
            }
            columns = [fits.Column(key, form, array=values) for key, (form, values) in columns.items()]
            table = fits.BinTableHDU.from_columns(columns, name="LDAC_OBJECTS")
            fits.HDUList([fits.PrimaryHDU(), found[1].copy(), table]).writeto(folder / "reference.cat")
        command = ["scamp", "ground.cat", *SCAMP_OPTIONS.split()]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if not (folder / "ground.head").exists():
            raise RuntimeError(f"scamp wrote no header: {run.stderr[-200:]}")
        lines = (folder / "ground.head").read_text(errors="ignore").splitlines()
    card = fits.Header.fromstring("\n".join(k for k in lines if not k.startswith(("HISTORY", "COMMENT"))), sep="\n")
    card["NAXIS"], card["NAXIS1"], card["NAXIS2"] = 2, *scene.wcs["ground"].pixel_shape
    wcs = WCS(card)
    return lambda x, y: to_plane(wcs, x, y)


def matched(scene, shift=(0.0, 0.0)):
    """The space image at the ground PSF on the ground header's grid, the exact PSFs given; ``shift`` of the header."""
    pixel = {side: galsim.Pixel(scale) for side, scale in PIXEL.items()}
    own = galsim.Convolve([scene.psf["space"], pixel["space"]])
    # A tiny Gaussian keeps the deconvolution tame.
    parts = [scene.psf["ground"], pixel["ground"], galsim.Deconvolve(own), galsim.Gaussian(sigma=0.05)]
    east_left = galsim.JacobianWCS(-PIXEL["space"], 0, 0, PIXEL["space"])
    kernel = galsim.Convolve(parts).drawImage(nx=81, ny=81, wcs=east_left, method="no_pixel").array.astype(float)
    image = 4 * fftconvolve(scene.image["space"], kernel, mode="same")  # flux per ground pixel
    ny, nx = scene.image["ground"].shape
    y, x = np.mgrid[:ny, :nx]
    a, b = to_plane(scene.wcs["ground"], x.ravel(), y.ravel())
    x, y = to_pixel(scene.wcs["space"], a - shift[0], b - shift[1])
    return ndimage.map_coordinates(image, [y, x], order=5, mode="constant").reshape(ny, nx)


def phase_correlation(scene):
    """scikit-image's phase correlation with the PSF-matched space image."""
    shift, _, _ = phase_cross_correlation(scene.image["ground"], matched(scene), upsample_factor=1000)
    return moved_by(scene, lambda a, b: (-PIXEL["ground"] * shift[1], PIXEL["ground"] * shift[0]))


def template_offsets(scene, radius=7):
    """Per source, least squares of (amplitude, shift, background) to the PSF-matched space image.

    Returns u, v, the header's errors there and their sigma (arcsec).
    """
    ground, found = scene.image["ground"], catalogue(scene, "space")
    kx, ky = (2j * np.pi * np.fft.fftfreq(n) for n in ground.shape[::-1])
    a, b = to_plane(scene.wcs["space"], found["x"], found["y"])
    shift = np.zeros(2)
    for _ in range(3):  # linear about the common shift
        model = matched(scene, shift)
        transform = np.fft.fft2(model)
        slopes = [np.fft.ifft2(k * transform).real for k in (kx[None, :], ky[:, None])]
        rows = []
        for k, (x, y) in enumerate(zip(*to_pixel(scene.wcs["ground"], a + shift[0], b + shift[1]), strict=True)):
            i, j = int(round(x)), int(round(y))
            if min(i, j) < radius or max(i, j) >= len(ground) - radius:
                continue
            cut = np.s_[j - radius : j + radius + 1, i - radius : i + radius + 1]
            design = np.stack([model[cut], slopes[0][cut], slopes[1][cut], np.ones_like(model[cut])])
            design = design.reshape(4, -1) / NOISE["ground"]
            cov = np.linalg.pinv(design @ design.T)
            fit = cov @ (design @ (ground[cut].ravel() / NOISE["ground"]))
            if fit[0] <= 0.05 or fit[0] < 5 * np.sqrt(cov[0, 0]):
                continue
            sigma = np.sqrt(0.5 * (cov[1, 1] + cov[2, 2])) / fit[0] * PIXEL["ground"]
            sigma = np.hypot(sigma, 0.3 * found["err"][k] * PIXEL["space"])
            step = PIXEL["ground"] * np.array([fit[1], -fit[2]]) / fit[0]
            rows.append((a[k], b[k], *(step + shift), sigma))
        rows = np.array(rows)
        weight = 1 / (rows[:, 4] ** 2 + 0.003**2)
        shift = np.array([_median(rows[:, k], weight) for k in (2, 3)])
    return rows.T


def _median(values, weight):
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return values[order][np.searchsorted(total, 0.5 * total[-1])]


def gaussian_process(a, b, offsets, sigma):
    """Squared-exponential process with a constant mean; amplitude, length and noise floor of highest likelihood."""
    place, values = np.column_stack([a, b]), np.column_stack(offsets)
    apart = ((place[:, None] - place) ** 2).sum(-1)
    ones = np.ones((len(a), 1))
    best = None
    for length in (12, 25, 50):
        for amplitude in (0.0003, 0.003, 0.006, 0.012, 0.02, 0.03):
            for floor in (0.0005, 0.002, 0.005, 0.01, 0.02):
                prior = amplitude**2 * np.exp(-0.5 * apart / length**2) + np.diag(sigma**2 + floor**2)
                factor = linalg.cho_factor(prior, lower=True)
                solved = linalg.cho_solve(factor, np.column_stack([ones, values]))
                mean = (values.T @ solved[:, 0]) / solved[:, 0].sum()
                alpha = solved[:, 1:] - solved[:, :1] * mean
                score = -0.5 * ((values - mean) * alpha).sum() - 2 * np.log(np.diag(factor[0])).sum()
                if best is None or score > best[0]:
                    best = score, length, amplitude, mean, alpha
    _, length, amplitude, mean, alpha = best

    def predict(p, q):
        apart = (np.subtract.outer(p, a) ** 2) + np.subtract.outer(q, b) ** 2
        return (mean + amplitude**2 * np.exp(-0.5 * apart / length**2) @ alpha).T
    return predict


def template_fit(scene):
    """Template least squares and a Gaussian process, the exact PSFs given."""
    a, b, da, db, sigma = template_offsets(scene)
    keep = np.ones(len(a), bool)
    for values in (da, db):
        rest = np.abs(values - np.median(values))
        keep &= rest < 5 * 1.4826 * np.median(rest) + 1e-9
    return moved_by(scene, gaussian_process(a[keep], b[keep], (da[keep], db[keep]), sigma[keep]))


PEERS = {
    "header": header, "tweakwcs rscale, weighted": tweakwcs, "astroalign": astroalign_lists, "SCAMP degree 3": scamp,
    "phase correlation, exact PSF": phase_correlation, "template LSQ + GP, exact PSF": template_fit,
}
sep.set_extract_pixstack(2_000_000)
warnings.filterwarnings("ignore", module="astropy.wcs")
