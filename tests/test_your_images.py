# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The Python code of the page "Your own images", run in order on small files that have the names the page uses."""

import re
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, NDData, StdDevUncertainty
from astropy.wcs import WCS
from photutils.psf import GriddedPSFModel

from rosetta import PSF, SkyPair

PAGE = Path(__file__).parent.parent / "docs" / "your_images.rst"
BLOCK = re.compile(r"^\.\. code-block:: python\n((?: {4}.*\n|\s*\n)+)", re.M)
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="no checkout")


def blocks():
    """(line, code) of every Python block of the page."""
    text = PAGE.read_text()
    for found in BLOCK.finditer(text):
        yield text[: found.start()].count("\n") + 1, "\n".join(line[4:] for line in found[1].splitlines())


# ---------------------------------------------------------------------------- what the page takes for granted
def tan(n, scale):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53.1, -28.1], [(n + 1) / 2] * 2
    wcs.wcs.cd = np.diag([-scale, scale]) / 3600
    return wcs


def star(width, side=15):
    axis = (np.arange(side) - side // 2) ** 2
    psf = np.exp(-np.add.outer(axis, axis) / (2 * width**2))
    return psf / psf.sum()


def sky(n, scale, noise, width):
    """Three stars of 2,000 nJy in noise."""
    image = np.random.default_rng(n).normal(0, noise, (n, n))
    for east, north in ((-4.0, 3.0), (0.5, -5.0), (5.0, 4.5)):
        y, x = round(n / 2 + north / scale), round(n / 2 - east / scale)
        image[y - 7 : y + 8, x - 7 : x + 8] += 2000 * star(width)
    return image.astype("f4")


N_GROUND, N_SPACE = 76, 152


def write_files(folder):
    for band in "ri":
        header = tan(N_GROUND, 0.2).to_header()
        mask = fits.ImageHDU(np.zeros((N_GROUND, N_GROUND), "i4"), header.copy(), name="MASK")
        mask.header["MP_BAD"] = 0
        image = fits.ImageHDU(sky(N_GROUND, 0.2, 10, 1.8), header.copy(), name="IMAGE")
        image.header["BUNIT"] = "nJy"
        variance = fits.ImageHDU(np.full(mask.shape, 100, "f4"), header.copy(), name="VARIANCE")
        hdus = [fits.PrimaryHDU(header=fits.Header({"FILTER": f"{band}_03"})), image, mask, variance]
        fits.HDUList([*hdus, fits.ImageHDU(star(1.8), name="PSF")]).writeto(folder / f"deep_coadd_{band}.fits")
    header = tan(N_SPACE, 0.1).to_header()
    header["FILTER"], header["MAGZERO"] = "VIS", 31.4
    for kind, data in (("BGSUB-MOSAIC-VIS", sky(N_SPACE, 0.1, 5, 1.2)), ("MOSAIC-VIS-RMS", np.full((N_SPACE,) * 2, 5))):
        fits.PrimaryHDU(data.astype("f4"), header).writeto(folder / f"EUC_MER_{kind}_TILE1-A.fits")
    header = tan(60, 0.05).to_header()
    header["BUNIT"], header["PHOTFLAM"], header["PHOTPLAM"] = "ELECTRONS/S", 7e-20, 8045.0
    planes = [fits.ImageHDU(np.ones((60, 60), "f4"), header, name=name) for name in ("SCI", "WHT")]
    del planes[1].header["BUNIT"]
    fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(folder / "acs_drz.fits")
    fits.PrimaryHDU(star(1.5)).writeto(folder / "psf.fits")
    cube = tan(80, 0.168).to_header()
    fits.PrimaryHDU(np.stack([sky(80, 0.168, 1, 2) for _ in "grizy"]), cube).writeto(folder / "hsc_cosmos_cutout.fits")
    fits.PrimaryHDU(np.stack([star(2.0) for _ in "grizy"])).writeto(folder / "hsc_psf.fits")
    hst = fits.PrimaryHDU(sky(400, 0.03, 1, 1.5), tan(400, 0.03).to_header())
    hst.writeto(folder / "hst_cosmos_cutout.fits")
    fits.PrimaryHDU(star(1.5)).writeto(folder / "hst_psf.fits")


def given():
    """The variables that the page uses and does not make."""
    shape = (N_GROUND, N_GROUND)
    fine = star(5.4, 45)
    nodes = [(x, y) for y in (0.0, 75.0) for x in (0.0, 75.0)]
    grid = NDData(np.stack([star(1.8)] * 4), meta={"grid_xypos": nodes, "oversampling": 1})
    vis = CCDData(sky(N_SPACE, 0.1, 5, 1.2), unit=u.nJy, wcs=tan(N_SPACE, 0.1))
    vis.uncertainty = StdDevUncertainty(np.full(vis.shape, 5, "f4"))
    ground = CCDData(sky(N_GROUND, 0.2, 10, 1.8), unit=u.nJy, wcs=tan(N_GROUND, 0.2))
    ground.uncertainty = StdDevUncertainty(np.full(shape, 10, "f4"))
    return {
        "counts": ground.data, "zeropoint": 31.4, "wcs": ground.wcs, "sigma": np.full(shape, 10, "f4"),
        "bad": np.zeros(shape, bool), "psf": star(1.8), "i": ground, "g": ground, "vis": vis,
        "gridded": GriddedPSFModel(grid), "model_i": PSF(star(1.8)), "array": fine,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyUserWarning", "ignore::UserWarning")
def test_the_page_runs(tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    names, found = given(), list(blocks())
    assert len(found) == 10
    for line, code in found:
        exec(compile("\n" * line + code, PAGE.name, "exec"), names)
    assert names["acs"].meta["band"] == "F814W" and names["acs"].psf is not None
    test = names["test_r"]
    assert test.meta["band"] == "r" and test.shape == (101, 101) and not test.mask.any()
    np.testing.assert_allclose(test.uncertainty.array, 25)
    assert abs(test.data[38:63, 38:63].sum() - 3000) < 5 * 25 * 5 and test.psf.sum() == pytest.approx(1)
    assert SkyPair(ground={"r": test}).flags["r"] == 0
    assert names["decam"].band_names == ("g", "r")
    assert [len(table) for table in (names["result"].catalog, names["scene"].to_table())] == [3, 3]
    for name in ("field.fits", "scene.fits", "embedding.fits", "cosmos.fits", "out/catalogue.ecsv"):
        assert (tmp_path / name).exists()
