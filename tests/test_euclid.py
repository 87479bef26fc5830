# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Euclid files: cutouts with extensions, PSF products, everything that is not read is named."""

import pickle
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import Table
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS

from rosetta import PSF, SkyPair
from rosetta.io import _fits, euclid, read_pair

SHAPE = (300, 420)
SIDE = 21
REAL = Path(__file__).parents[2] / "shared" / "data"
TILE = "TILE102018211-AB_20241018T142710.276Z_00.00.fits"


def tan(shape=SHAPE, ra=53.1):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [ra, -28.1]
    wcs.wcs.crpix, wcs.wcs.cd = [shape[1] / 2, shape[0] / 2], np.diag([-0.1, 0.1]) / 3600
    return wcs


def stamp(width, side=SIDE):
    axis = (np.arange(side) - side // 2) ** 2
    psf = np.exp(-np.add.outer(axis, axis) / (2 * width**2))
    return psf / psf.sum()


def width_at(x, y):
    """The PSF's width, which is linear in the place (0-based pixels), so that interpolation is exact to first order."""
    return 1.5 + 2e-4 * x + 1e-4 * y


def width_of(psf):
    """Width of a Gaussian stamp, from the ratio of its two central pixels."""
    c = len(psf) // 2
    return np.sqrt(-0.5 / np.log(psf[c, c + 1] / psf[c, c]))


def write_cutout(path, names, **cards):
    """A file with extensions: <BAND>_<what> for every name."""
    rng, hdus = np.random.default_rng(0), [fits.PrimaryHDU()]
    for name in names:
        token, _, what = name.rpartition("_")
        data = {"RMS": np.ones((30, 40), "f4"), "FLAG": np.zeros((30, 40), "i4"), "PSF": stamp(1.5).astype("f4")}
        data = data.get(what, rng.normal(size=(30, 40)).astype("f4"))
        header = tan((30, 40)).to_header()
        if what not in ("RMS", "FLAG", "PSF"):
            header["FILTER"], header["MAGZERO"] = token.replace("DES_G", "DECAM_g"), 24.6
            header.update(cards)
        hdus.append(fits.ImageHDU(data, header, name=name))
    fits.HDUList(hdus).writeto(path)
    return path


def write_science(folder, band="VIS", shape=SHAPE):
    header = tan(shape).to_header()
    header["FILTER"], header["MAGZERO"] = band, 24.6
    path = folder / f"EUC_MER_BGSUB-MOSAIC-{band.replace('_', '-')}_{TILE}"
    fits.PrimaryHDU(np.random.default_rng(1).normal(size=shape).astype("f4"), header).writeto(path)
    return path


def write_grid(folder, step=60, blank=(), **cards):
    """GRID-PSF: stamps at their places in an image of the tile's size."""
    image = np.zeros(SHAPE, "f4")
    x, y = (v.ravel() for v in np.meshgrid(np.arange(30, SHAPE[1], step), np.arange(30, SHAPE[0], step)))
    for k, (column, row) in enumerate(zip(x, y, strict=True)):
        if k not in blank:
            image[row - 10 : row + 11, column - 10 : column + 11] = stamp(width_at(column, row))
    header = tan().to_header()
    header["STMPSIZE"] = SIDE
    header.update(cards)
    table = Table({"x": x + 1.0, "y": y + 1.0, "FWHM": 0.2 + 0.0 * x})
    path = folder / f"EUC_MER_GRID-PSF-VIS_{TILE}"
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image, header), fits.BinTableHDU(table)]
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def write_catalog(folder, n=400, first=1, ra=53.1, side=SIDE):
    """CATALOG-PSF: stamps side by side, and where on the tile they belong."""
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, SHAPE[1], n), rng.uniform(0, SHAPE[0], n)
    across = int(np.ceil(np.sqrt(n)))
    image = np.zeros((across * SIDE, across * SIDE), "f4")
    row, column = np.divmod(np.arange(n), across)
    for k in range(n):
        where = (slice(row[k] * SIDE, (row[k] + 1) * SIDE), slice(column[k] * SIDE, (column[k] + 1) * SIDE))
        image[where] = stamp(width_at(x[k], y[k]))
    sky = tan(ra=ra).pixel_to_world(x, y)
    centers = {f"{axis}_center": v * SIDE + SIDE // 2 + first for axis, v in (("x", column), ("y", row))}
    table = Table({"x": x + 1, "y": y + 1, "RA": sky.ra.deg, "Dec": sky.dec.deg, **centers, "FWHM": 0.2 + 0 * x})
    path = folder / f"EUC_MER_CATALOG-PSF-VIS_{TILE}"
    header = fits.Header({"STMPSIZE": side})
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image, header), fits.BinTableHDU(table)]
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


# ---------------------------------------------------------------------------- cutouts
@pytest.mark.parametrize("name", ["euclid_q1_ecdfs_30arcsec", "euclid_q1_edfn_10arcsec", "euclid_q1_edfs_lens"])
def test_real_cutouts(name):
    """Every band of the Q1 cutouts is read, with noise and PSF, and nothing is left over."""
    path = REAL / f"{name}.fits"
    if not path.exists():
        pytest.skip("the folder with real pixels is not beside this checkout")
    if name == "euclid_q1_edfn_10arcsec":  # MEGACAM u and r, HSC g and z
        expected = ["u", "g", "r", "z"]
    else:
        expected = [] if "ecdfs" in name else ["g", "r", "i", "z"]
    ground, space = read_pair((), [path])
    assert list(ground or ()) == expected
    assert list(space) == ["VIS", "Y_E", "J_E", "H_E"]
    for image in [*(ground or {}).values(), *space.values()]:
        assert np.isfinite(image.uncertainty.array[~image.mask]).all()
        assert image.psf.shape[0] == image.psf.shape[1] and image.psf.shape[0] % 2
    assert space["VIS"].psf.shape == (21, 21)


def test_background_subtracted_before_flux(tmp_path):
    path = write_cutout(tmp_path / "a.fits", ["VIS_FLUX", "VIS_BGSUB", "VIS_RMS"])
    with pytest.warns(AstropyUserWarning, match=r"a.fits: not read: VIS_FLUX \(") as said:
        image = euclid.read(path)
    assert len(said) == 1
    np.testing.assert_allclose(image.data, fits.getdata(path, "VIS_BGSUB") * 10**2.72, rtol=1e-6)
    assert image.uncertainty is not None


def test_several_bands_are_not_one(tmp_path):
    path = write_cutout(tmp_path / "a.fits", ["VIS_FLUX", "NIR_Y_FLUX", "DES_G_FLUX"])
    with pytest.raises(ValueError, match=r"a.fits holds 3 bands \(VIS, NIR_Y, DES_G\): .*read_bands"):
        euclid.read(path)
    assert list(euclid.read_bands([path])) == ["VIS", "Y_E", "g"]


def test_what_is_not_read_is_named(tmp_path):
    path = write_cutout(tmp_path / "a.fits", ["VIS_FLUX", "VIS_RMS", "NIR_Y_RMS", "ACS_FLUX", "VIS_WEIGHT"])
    product = tmp_path / f"EUC_MER_BGMOD-VIS_{TILE}"
    product.write_bytes(b"not looked at")
    with pytest.warns(AstropyUserWarning) as said:
        images = euclid.read_bands([path, product])
    assert list(images) == ["VIS"] and images["VIS"].uncertainty is not None
    text = [str(one.message) for one in said]
    assert len(text) == 2
    assert all(name in text[0] for name in ("a.fits", "NIR_Y_RMS", "ACS_FLUX", "VIS_WEIGHT"))
    assert product.name in text[1]


def test_planes_of_a_cutout_for_a_mosaic(tmp_path):
    """A file with several images gives the plane that is named after the band, or none."""
    science = write_science(tmp_path, shape=(30, 40))
    path = write_cutout(tmp_path / "a.fits", ["NIR_Y_RMS", "VIS_FLUX", "VIS_RMS", "VIS_PSF", "NIR_Y_PSF"])
    image = euclid.read(science, path, psf=path)
    assert (image.uncertainty.array == np.float32(10**2.72) ** 2).all()
    assert image.psf.shape == (SIDE, SIDE)
    with pytest.raises(ValueError, match=r"flag: a.fits holds 5 images .* not one called <BAND>_FLAG for VIS"):
        euclid.read(science, flag=path)


def test_extensions_of_a_product_are_named(tmp_path):
    science = write_science(tmp_path)
    fits.append(science, np.ones((5, 5)), fits.Header({"EXTNAME": "WEIGHT"}))
    with pytest.warns(AstropyUserWarning, match="BGSUB-MOSAIC-VIS.*: not read: WEIGHT"):
        assert list(euclid.read_bands([science])) == ["VIS"]


def test_nothing_understood_is_an_error(tmp_path):
    path = write_cutout(tmp_path / "a.fits", ["ACS_FLUX", "ACS_RMS"])
    with pytest.raises(ValueError, match="a.fits holds no Euclid image that is known here .it holds ACS_FLUX, ACS_RMS"):
        euclid.read_bands([path])
    product = tmp_path / "EUC_MER_FINAL-CAT_TILE102018211.fits"
    with pytest.warns(AstropyUserWarning), pytest.raises(ValueError, match="none of EUC_MER_FINAL-CAT.* holds a"):
        euclid.read_bands([product])
    with pytest.raises(TypeError, match="paths must be a list of files"):
        euclid.read_bands(str(path))


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"FILTER": "NIR_Y"}, "FILTER='NIR_Y' in the header but VIS in the name"),
        ({"MAGZERO": -99.0}, "MAGZERO=-99.0"),
        ({"MAGZERO": 1e300}, "without the AB zero point"),
        ({"BUNIT": "uJy"}, "BUNIT='uJy' and MAGZERO=24.6, which contradict"),
    ],
)
def test_headers_that_contradict(tmp_path, cards, message):
    path = write_cutout(tmp_path / "a.fits", ["VIS_FLUX"], **cards)
    with pytest.raises(ValueError, match=message):
        euclid.read(path)


def test_units_that_agree_with_the_zero_point(tmp_path):
    counts = euclid.read(write_cutout(tmp_path / "a.fits", ["VIS_FLUX"], BUNIT="ADU/s"))
    fluxes = euclid.read(write_cutout(tmp_path / "b.fits", ["VIS_FLUX"], BUNIT="uJy", MAGZERO=23.9))
    np.testing.assert_allclose(counts.data / 10**2.72, fluxes.data / 1000, rtol=1e-5)


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"FILTER": "NIR_H"}, "rms.fits has FILTER='NIR_H', science is VIS"),
        ({"MAGZERO": 29.8}, "rms.fits has MAGZERO=29.8, science 24.6"),
        ({"CRVAL1": 53.2}, "rms.fits lies elsewhere on the sky"),
    ],
)
def test_planes_belong_together(tmp_path, cards, message):
    science, path = write_science(tmp_path), tmp_path / "rms.fits"
    header = fits.getheader(science)
    header.update(cards)
    fits.PrimaryHDU(np.ones(SHAPE, "f4"), header).writeto(path)
    with pytest.raises(ValueError, match=message):
        euclid.read(science, path)


def test_variance_does_not_under_or_overflow(tmp_path):
    science, path = write_science(tmp_path), tmp_path / "rms.fits"
    rms = np.ones(SHAPE, "f4")
    rms[0, :4] = 1e-30, 1e9, 3e38, np.inf
    fits.PrimaryHDU(rms).writeto(path)
    image = euclid.read(science, path)
    assert image.mask[0, :4].tolist() == [True, False, True, True]
    assert (image.uncertainty.array > 0).all()


# ---------------------------------------------------------------------------- PSF products
@pytest.mark.parametrize(("write", "error"), [(write_grid, 0.002), (write_catalog, 0.006)])
@pytest.mark.parametrize("region", [False, True])
def test_psf_at_each_place(tmp_path, write, error, region):
    """The PSF at a place of the image is that of the place on the tile."""
    science, path = write_science(tmp_path), write(tmp_path)
    where = {"center": tan().pixel_to_world(250, 160), "size": (8, 12) * u.arcsec} if region else {}
    image = euclid.read_bands([science, path], **where)["VIS"]
    assert isinstance(image.psf_anywhere, PSF) and isinstance(image, CCDData)
    pair = SkyPair(None, {"VIS": image})
    x0, y0 = image.meta["ORIGINX"], image.meta["ORIGINY"]
    ny, nx = image.shape
    for x, y in ((0.1 * nx, 0.2 * ny), (0.5 * nx, 0.5 * ny), (0.9 * nx, 0.8 * ny)):
        # Beyond the outermost nodes of the grid, 30 pixels from the edge, theirs hold.
        true = width_at(np.clip(x + x0, 30, SHAPE[1] - 30), np.clip(y + y0, 30, SHAPE[0] - 30))
        assert width_of(pair.psf("VIS").at(x, y)) == pytest.approx(true, abs=error)
    part = pair.cutout(image.wcs.pixel_to_world(nx / 2, ny / 2), 4 * u.arcsec)
    middle = [n / 2 for n in part.space["VIS"].data.shape[::-1]]
    assert width_of(part.psf("VIS").at(*middle)) == pytest.approx(width_at(nx / 2 + x0, ny / 2 + y0), abs=error)


@pytest.mark.parametrize("first", [0, 1])
def test_catalog_pixels_may_begin_at_0_or_1(tmp_path, first):
    psf = euclid.read(write_science(tmp_path), psf=write_catalog(tmp_path, first=first)).psf_anywhere
    assert width_of(psf.at(210, 150)) == pytest.approx(width_at(210, 150), abs=0.006)


def test_only_stamps_of_the_region(tmp_path):
    science, path = write_science(tmp_path), write_grid(tmp_path)
    center = tan().pixel_to_world(100, 100)
    image = euclid.read(science, psf=path, center=center, size=4 * u.arcsec)  # pixels 80 to 120
    assert len(image.psf_anywhere.cells) == 4  # nodes 30 and 150 of both axes; 90 is left out
    assert SkyPair(None, {"VIS": image}).psf("VIS").cells.shape == (4, SIDE, SIDE)


def test_blank_stamps_are_replaced_by_the_nearest(tmp_path):
    science = write_science(tmp_path)
    psf = euclid.read(science, psf=write_grid(tmp_path, blank=(0, 1))).psf_anywhere
    assert width_of(psf.at(30, 30)) == pytest.approx(width_at(30, 30), abs=0.03)
    assert (psf.light > 0.9).all()
    with pytest.raises(ValueError, match="only blank stamps in the region"):
        euclid.read(science, psf=write_grid(tmp_path, blank=range(100)))


def test_grid_before_catalog(tmp_path):
    files = [write_science(tmp_path), write_grid(tmp_path), write_catalog(tmp_path)]
    with pytest.warns(AstropyUserWarning, match="CATALOG-PSF.*the GRID-PSF file of this band is used"):
        image = euclid.read_bands(files)["VIS"]
    assert width_of(image.psf_anywhere.at(210, 150)) == pytest.approx(width_at(210, 150), abs=0.002)
    with pytest.raises(ValueError, match="GRID-PSF-VIS.* has no science image beside it"):
        euclid.read_bands(files[1:2])


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (write_grid, {"STMPSIZE": 20}, "STMPSIZE=20: the side of a stamp must be odd"),
        (write_grid, {"SAMPLING": 0.5}, "SAMPLING=0.5: only stamps on native pixels"),
        (write_grid, {"CRVAL1": 54.0}, "no stamp in the region|not on the pixel grid"),
        (write_grid, {"PC1_1": -0.12 / 3600}, "is not on the pixel grid of the science image"),
        (write_grid, {"FILTER": "NIR_Y"}, "has FILTER='NIR_Y', science is VIS"),
        (write_catalog, {"side": 19}, "stamps that do not lie side by side, 19 pixels each"),
        (write_catalog, {"ra": 53.5}, "no stamp within 5 arcmin of the region"),
    ],
)
def test_psf_products_that_do_not_fit(tmp_path, write, options, message):
    with pytest.raises(ValueError, match=message):
        euclid.read(write_science(tmp_path), psf=write(tmp_path, **options))


def test_images_with_a_varying_psf_are_ordinary(tmp_path):
    image = euclid.read(write_science(tmp_path), psf=write_grid(tmp_path))
    image.write(tmp_path / "b.fits")
    np.testing.assert_array_equal(CCDData.read(tmp_path / "b.fits").psf, image.psf)
    for twin in (pickle.loads(pickle.dumps(image)), image.copy()):
        np.testing.assert_array_equal(twin.psf_anywhere.cells, image.psf_anywhere.cells)
    image.psf = stamp(1.5)
    assert SkyPair(None, {"VIS": image}).psf("VIS").constant


@pytest.mark.parametrize(
    ("psf", "message"),
    [
        (np.ma.array(stamp(1.5), mask=np.eye(SIDE)), "psf has masked pixels"),
        (np.full((5, 5), np.nan), "psf has NaN"),
        (np.ones((4, 4)), "psf must be 2-D with odd sides"),
    ],
)
def test_psf_arrays_are_checked(tmp_path, psf, message):
    with pytest.raises(ValueError, match=message):
        euclid.read(write_science(tmp_path), psf=psf)


def test_a_card_with_two_values(tmp_path):
    path = write_cutout(tmp_path / "a.fits", ["VIS_FLUX"])
    with fits.open(path, mode="update") as hdus:
        hdus[1].header.append(("CRVAL1", hdus[1].header["CRVAL1"]), end=True)
    assert euclid.read(path).meta["band"] == "VIS"  # the same value twice does no harm
    with fits.open(path, mode="update") as hdus:
        hdus[1].header.append(("CRVAL1", 54.0), end=True)
    with pytest.raises(ValueError, match="a.fits: the header has CRVAL1 twice, with two values"):
        euclid.read(path)


def test_files_are_opened_once(tmp_path, monkeypatch):
    opened, real = [], _fits._binary

    def counted(source, argument):
        opened.append(source)
        return real(source, argument)

    monkeypatch.setattr(_fits, "_binary", counted)
    planes = [f"{band}_{name}" for band in ("VIS", "NIR_Y") for name in ("BGSUB", "RMS", "FLAG", "PSF")]
    cutout = write_cutout(tmp_path / "a.fits", planes)
    assert list(euclid.read_bands([cutout])) == ["VIS", "Y_E"]
    assert opened == [cutout]
    opened.clear()
    paths = [write_science(tmp_path), write_grid(tmp_path)]
    euclid.read_bands(paths)
    euclid.read(paths[0], psf=paths[1])
    assert opened == paths * 2


def test_region_far_from_the_tile(tmp_path):
    with pytest.raises(ValueError, match="is not on the image"):
        euclid.read(write_science(tmp_path), center=SkyCoord(10, 10, unit="deg"), size=4 * u.arcsec)
