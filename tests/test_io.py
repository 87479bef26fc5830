# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The readers, on small files written in the layouts that the surveys deliver."""

import os
import tracemalloc
import warnings
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS

from rosetta.io import euclid, read_pair, rubin

SHAPE = (40, 56)  # not square, so that swapped axes show
PLANES = {"BAD": 0, "SAT": 1, "INTRP": 2, "CR": 3, "EDGE": 4, "DETECTED": 5, "DETECTED_NEGATIVE": 6}


def tan_header(scale, crpix=(20.5, 11.5), crval=(53.1, -28.1)):
    header = fits.Header()
    for axis, kind in ((1, "RA---TAN"), (2, "DEC--TAN")):
        header[f"CTYPE{axis}"] = kind
        header[f"CUNIT{axis}"] = "deg"
        header[f"CRVAL{axis}"] = crval[axis - 1]
        header[f"CRPIX{axis}"] = crpix[axis - 1]
    header["CD1_1"], header["CD2_2"] = -scale / 3600, scale / 3600
    header["CD1_2"] = header["CD2_1"] = 0.0
    return header


def write_coadd(path, *, planes=None, compress=True, drop=(), sip=False, psf=None, **cards):
    """A DP1 deep_coadd: empty primary, three tile-compressed images, archive tables."""
    rng = np.random.default_rng(3)
    planes = PLANES | {"NO_DATA": 8, "SENSOR_EDGE": 12} if planes is None else planes
    data = rng.normal(100, 30, SHAPE).astype(np.float32)
    mask = np.full(SHAPE, 1 << planes.get("DETECTED", 5), np.int32)
    mask[4, 7] |= 1 << planes.get("NO_DATA", 8)  # the flux under it stays plausible
    mask[5, 9] |= 1 << planes.get("SAT", 1)
    mask[6, 9] |= 1 << planes.get("INTRP", 2)  # an interpolated pixel stays in use
    variance = np.full(SHAPE, 900.0, np.float32)
    variance[10, 20] = 0.0
    data[11, 21] = np.nan

    header = tan_header(0.2)
    if sip:
        header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
        header["A_ORDER"] = header["B_ORDER"] = 2
        header["A_2_0"] = header["B_0_2"] = 1e-6
    header["LTV1"], header["LTV2"] = -12000.0, -8000.0
    header["BUNIT"] = "nJy"
    image_header = header.copy()
    mask_header = header.copy()
    for name, bit in planes.items():
        mask_header[f"HIERARCH MP_{name}" if len(name) > 5 else f"MP_{name}"] = bit
    primary = fits.PrimaryHDU()
    primary.header["FILTER"] = "r_03"
    for key, value in cards.items():
        target = primary.header if key in ("FILTER", "BAND") else image_header
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value

    def hdu(array, header, name):
        if not compress:
            return fits.ImageHDU(array, header, name=name)
        lossless = {"compression_type": "GZIP_1", "quantize_level": 0.0}
        return fits.CompImageHDU(array, header, name=name, **lossless)

    archive = fits.BinTableHDU.from_columns([fits.Column("id", "J", array=np.arange(3))], name="ARCHIVE_INDEX")
    hdus = [
        hdu(data, image_header, "IMAGE"),
        hdu(mask, mask_header, "MASK"),
        hdu(variance, header, "VARIANCE"),
    ]
    extra = [] if psf is None else [fits.ImageHDU(psf, name="PSF")]
    fits.HDUList([primary, *(h for h in hdus if h.name not in drop), archive, *extra]).writeto(path)
    return data


@pytest.mark.parametrize("compress", [True, False])
def test_rubin_coadd(tmp_path, compress):
    written = write_coadd(tmp_path / "coadd.fits", compress=compress)
    image = rubin.read(tmp_path / "coadd.fits")

    assert image.unit == u.nJy
    assert image.data.dtype == np.dtype("=f4")
    assert image.data.dtype.isnative
    np.testing.assert_array_equal(image.data, written)
    assert isinstance(image.uncertainty, VarianceUncertainty)
    expected = np.zeros(SHAPE, bool)
    for y, x in ((4, 7), (5, 9), (10, 20), (11, 21)):
        expected[y, x] = True
    np.testing.assert_array_equal(image.mask, expected)
    assert np.isinf(image.uncertainty.array[10, 20])
    assert image.uncertainty.array[0, 0] == 900
    assert image.meta["band"] == "r"
    assert image.meta["filter"] == "r_03"
    # The WCS of the file already refers to its own pixels: LTV must not move it.
    assert (image.meta["ORIGINX"], image.meta["ORIGINY"]) == (12000, 8000)
    sky = image.wcs.pixel_to_world(19.5, 10.5)
    assert sky.separation(SkyCoord(53.1, -28.1, unit="deg")) < 1e-6 * u.arcsec
    assert image.psf is None


def test_damage_anywhere_is_a_value_error(tmp_path):
    write_coadd(tmp_path / "a.fits")
    whole, rng = np.fromfile(tmp_path / "a.fits", np.uint8), np.random.default_rng(0)
    kinds = set()
    for _ in range(40):
        broken = whole.copy()
        broken[rng.integers(len(whole), size=30)] = rng.integers(256, size=30)
        broken.tofile(tmp_path / "b.fits")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rubin.read(tmp_path / "b.fits")
        except Exception as error:
            kinds.add(type(error))
    assert kinds == {ValueError}


def test_rubin_images_can_be_written(tmp_path):
    write_coadd(tmp_path / "a.fits")
    image = rubin.read(tmp_path / "a.fits")
    image.write(tmp_path / "b.fits")
    assert CCDData.read(tmp_path / "b.fits").meta["planes"] == image.meta["planes"]


def test_rubin_mask_planes_are_resolved_by_name(tmp_path):
    """The same file with every plane on another bit gives the same mask."""
    shuffled = {"NO_DATA": 1, "SAT": 14, "BAD": 9, "DETECTED": 0, "INTRP": 8, "SENSOR_EDGE": 3}
    write_coadd(tmp_path / "a.fits")
    write_coadd(tmp_path / "b.fits", planes=shuffled)
    a, b = rubin.read(tmp_path / "a.fits"), rubin.read(tmp_path / "b.fits")
    np.testing.assert_array_equal(a.mask, b.mask)
    assert b.meta["planes"] == "NO_DATA=1 SAT=14 BAD=9 DETECTED=0 INTRP=8 SENSOR_EDGE=3"


def test_rubin_unit_and_psf(tmp_path):
    psf = np.zeros((5, 5))
    psf[2, 2] = 1
    written = write_coadd(tmp_path / "c.fits", BUNIT="uJy", BAND="i", FILTER="i_06", psf=psf)
    image = rubin.read(tmp_path / "c.fits")
    np.testing.assert_allclose(image.data[0], written[0] * 1000, rtol=1e-6)
    assert image.uncertainty.array[0, 0] == pytest.approx(900e6)
    assert image.meta["band"] == "i"
    np.testing.assert_array_equal(image.psf, psf)


def test_rubin_visit_image_warns(tmp_path):
    write_coadd(tmp_path / "visit.fits", sip=True)
    with pytest.warns(AstropyUserWarning, match="TAN-SIP WCS of a Rubin visit image approximates"):
        image = rubin.read(tmp_path / "visit.fits")
    assert image.wcs.sip is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"FILTER": None}, "names no Rubin band"),
        ({"FILTER": "Halpha"}, "one of them must be like 'r'"),
        ({"BUNIT": None}, "has no BUNIT card"),
        ({"BUNIT": "adu"}, "'adu' of bad.fits cannot be converted to nJy"),
        ({"planes": {}}, "no MP_<NAME> cards"),
        ({"drop": ("VARIANCE",)}, "holds no image extension VARIANCE"),
        ({"CTYPE1": None, "CTYPE2": None}, "no two-dimensional celestial WCS"),
    ],
)
def test_rubin_errors(tmp_path, options, message):
    write_coadd(tmp_path / "bad.fits", **options)
    with pytest.raises(ValueError, match=message):
        rubin.read(tmp_path / "bad.fits")


def test_rubin_bands(tmp_path):
    for name in ("z_03", "g_01"):
        write_coadd(tmp_path / f"{name}.fits", FILTER=name)
    assert list(rubin.read_bands(sorted(tmp_path.glob("*.fits"), reverse=True))) == ["g", "z"]
    write_coadd(tmp_path / "again.fits", FILTER="g_07")
    with pytest.raises(ValueError, match="both hold band 'g'"):
        rubin.read_bands(tmp_path.glob("*.fits"))


def write_mer(folder, band="VIS", magzero=24.6, *, kinds=("SCIENCE", "RMS", "FLAG"), tile=102018211, pv=False):
    """MER products: one primary HDU per file, no BUNIT; the file names are MER's."""
    rng = np.random.default_rng(5)
    token = band.replace("_", "-")
    stamp = f"TILE{tile}-ACBD03_20241018T142710.276Z_00.00.fits"
    header = tan_header(0.1, crpix=(-8573.5, -8016.5))
    if pv:  # SCAMP's way of writing a distortion
        for card in ("PV1_0", "PV1_1", "PV1_2", "PV2_0", "PV2_1", "PV2_2"):
            header[card] = 1.0 if card.endswith("_1") else 0.0
        header["PV1_4"], header["PV2_4"] = 2e-2, -1e-2
    header["FILTER"] = band
    header["INSTRUME"] = band[:3]
    if magzero is not None:
        header["MAGZERO"] = magzero
    data = rng.normal(0, 0.004, SHAPE).astype(np.float32)
    data[7, 3] = np.nan
    rms = np.full(SHAPE, 0.004, np.float32)
    rms[2, 4], rms[2, 5], rms[2, 6], rms[2, 7] = 1e20, 2e10, 0.0, -1.0
    flag = np.zeros(SHAPE, np.int32)
    flag[9, 30] = 0b1001  # INVALID, and more
    flag[9, 31] = 0b1000  # another condition only: usable
    names = {
        "SCIENCE": (f"EUC_MER_BGSUB-MOSAIC-{token}_{stamp}", data),
        "RMS": (f"EUC_MER_MOSAIC-{token}-RMS_{stamp}", rms),
        "FLAG": (f"EUC_MER_MOSAIC-{token}-FLAG_{stamp}", flag),
    }
    files = []
    for kind in kinds:
        name, array = names[kind]
        files.append(folder / name)
        fits.PrimaryHDU(array, header).writeto(files[-1])
    return (*files, data) if len(files) > 1 else (files[0], data)


@pytest.mark.parametrize(("band", "name", "magzero"), [("VIS", "VIS", 24.6), ("NIR_H", "H_E", 29.9)])
def test_euclid_mosaic(tmp_path, band, name, magzero):
    science, rms, flag, written = write_mer(tmp_path, band, magzero)
    psf = np.eye(7)
    image = euclid.read(science, rms, flag, psf)

    factor = 10 ** ((31.4 - magzero) / 2.5)
    assert image.unit == u.nJy
    assert image.data.dtype == np.dtype("=f4")
    np.testing.assert_allclose(image.data, written * factor, rtol=1e-6)
    assert image.uncertainty.array[0, 0] == pytest.approx((0.004 * factor) ** 2, rel=1e-5)
    expected = np.zeros(SHAPE, bool)
    for y, x in ((7, 3), (2, 4), (2, 5), (2, 6), (2, 7), (9, 30)):
        expected[y, x] = True
    np.testing.assert_array_equal(image.mask, expected)
    assert image.meta["band"] == name
    np.testing.assert_array_equal(image.psf, psf)
    assert image.psf is not psf


def test_euclid_magnitude(tmp_path):
    """A source of magnitude MAGZERO has one count: 3631 Jy * 10**(-MAGZERO/2.5)."""
    science, _ = write_mer(tmp_path, kinds=("SCIENCE",))
    with fits.open(science, mode="update") as hdus:
        hdus[0].data[0, 0] = 1.0
    flux = euclid.read(science).data[0, 0] * u.nJy
    assert flux.to_value(u.ABmag) == pytest.approx(24.6, abs=1e-4)


@pytest.mark.parametrize("pv", [False, True])
def test_euclid_region_keeps_the_sky(tmp_path, pv):
    science, rms, flag, _ = write_mer(tmp_path, pv=pv)
    whole = euclid.read(science, rms, flag)
    center = whole.wcs.pixel_to_world(30.2, 17.7)
    part = euclid.read(science, rms, flag, center=center, size=(1.1, 2.0) * u.arcsec)
    assert part.shape == (11, 20)
    assert part.wcs.pixel_shape == (20, 11) and whole.wcs.pixel_shape == whole.shape[::-1]
    x0, y0 = part.meta["ORIGINX"], part.meta["ORIGINY"]
    np.testing.assert_array_equal(part.data, whole.data[y0 : y0 + 11, x0 : x0 + 20])
    np.testing.assert_array_equal(part.mask, whole.mask[y0 : y0 + 11, x0 : x0 + 20])
    x, y = part.wcs.world_to_pixel(center)
    assert abs(x - 9.5) <= 0.5
    assert abs(y - 5) <= 0.5
    corners = np.array([0, 19, 0, 19]), np.array([0, 0, 10, 10])
    there = whole.wcs.pixel_to_world(corners[0] + x0, corners[1] + y0)
    assert np.all(part.wcs.pixel_to_world(*corners).separation(there) < 1e-6 * u.arcsec)
    if pv:  # the distortion was not lost on the way
        plain = WCS(tan_header(0.1, crpix=(-8573.5, -8016.5))).pixel_to_world(30, 17)
        assert whole.wcs.pixel_to_world(30, 17).separation(plain) > 0.1 * u.arcsec


def test_euclid_region_is_trimmed_or_refused(tmp_path):
    science, _ = write_mer(tmp_path, kinds=("SCIENCE",))
    wcs = euclid.read(science).wcs
    assert euclid.read(science, center=wcs.pixel_to_world(0.3, 2.3), size=2 * u.arcsec).shape == (13, 11)
    far = SkyCoord(10, 10, unit="deg")
    with pytest.raises(ValueError, match="center: the region at .* is not on the image"):
        euclid.read(science, center=far, size=2 * u.arcsec)
    opposite = SkyCoord(53.1 + 180, 28.1, unit="deg")
    with pytest.raises(ValueError, match="is not on the image"):
        euclid.read(science, center=opposite, size=2 * u.arcsec)
    with pytest.raises(ValueError, match="give both"):
        euclid.read(science, center=far)
    with pytest.raises(TypeError, match="size must be an angle"):
        euclid.read(science, center=far, size=20)
    with pytest.raises(TypeError, match="center must be one SkyCoord"):
        euclid.read(science, center=(53.1, -28.1), size=2 * u.arcsec)


def test_euclid_region_of_a_full_mosaic_reads_only_that(tmp_path):
    """A mosaic of the true size (a sparse file, 1.5 GB): the cutout costs its own pixels."""
    ny, nx, start = 19440, 19200, (9000, 12345)
    header = fits.Header({"SIMPLE": True, "BITPIX": -32, "NAXIS": 2, "NAXIS1": nx, "NAXIS2": ny})
    header.update(tan_header(0.1, crpix=(9600.5, 9720.5)))
    header["FILTER"], header["MAGZERO"] = "VIS", 24.6
    path = tmp_path / "mosaic.fits"
    text = header.tostring().encode()
    path.write_bytes(text)
    os.truncate(path, len(text) + -(-nx * ny * 4 // 2880) * 2880)
    patch = np.arange(64 * 64, dtype=">f4").reshape(64, 64)
    pixels = np.memmap(path, ">f4", "r+", offset=len(text), shape=(ny, nx))
    pixels[start[0] : start[0] + 64, start[1] : start[1] + 64] = patch
    pixels.flush()
    del pixels

    center = WCS(header).pixel_to_world(start[1] + 31.5, start[0] + 31.5)
    tracemalloc.start()
    image = euclid.read(path, center=center, size=6.4 * u.arcsec)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(image.data, patch * 10 ** ((31.4 - 24.6) / 2.5), rtol=1e-6)
    assert (image.meta["ORIGINX"], image.meta["ORIGINY"]) == start[::-1]
    assert peak < 10e6  # bytes; the whole image is 1.5e9


def test_euclid_bands(tmp_path):
    files = []
    for band, magzero in (("NIR_Y", 29.8), ("VIS", 24.6), ("DECAM_g", 30.0)):
        files += write_mer(tmp_path, band, magzero)[:3]
    (tmp_path / "EUC_MER_FINAL-CAT_TILE102018211-1.fits").write_bytes(b"not looked at")
    with pytest.warns(AstropyUserWarning, match="EUC_MER_FINAL-CAT_TILE102018211-1.fits: not read: the file") as said:
        images = euclid.read_bands(sorted(tmp_path.glob("*.fits")))
    assert len(said) == 1
    assert list(images) == ["VIS", "Y_E", "g"]
    assert all(image.uncertainty is not None and image.mask[9, 30] for image in images.values())
    ground, space = read_pair((), files)
    assert (list(ground), list(space)) == (["g"], ["VIS", "Y_E"])
    assert ground["g"].meta["filter"] == "DECAM_g"

    with pytest.raises(ValueError, match="has no science image beside it"):
        euclid.read_bands([files[1]])
    other = write_mer(tmp_path, kinds=("SCIENCE",), tile=102018212)[0]
    with pytest.raises(ValueError, match="both hold band 'VIS'"):
        euclid.read_bands([*files, other])


def test_euclid_multi_extension(tmp_path):
    _, rms, _, data = write_mer(tmp_path)
    header = fits.getheader(rms)
    psf = np.full((5, 5), 0.04)
    hdus = [fits.PrimaryHDU()]
    for name, array in (("NIR_J_BGSUB", data), ("NIR_J_PSF", psf), ("NIR_J_RMS", fits.getdata(rms))):
        hdus.append(fits.ImageHDU(array, header, name=name))
        hdus[-1].header["FILTER"] = "NIR_J"
    fits.HDUList(hdus).writeto(tmp_path / "cutout.fits")
    (band, image), *rest = euclid.read_bands([tmp_path / "cutout.fits"]).items()
    assert not rest
    assert band == "J_E"
    assert image.uncertainty is not None
    np.testing.assert_array_equal(image.psf, psf)


def test_pair_of_both_surveys(tmp_path):
    write_coadd(tmp_path / "r.fits")
    science, rms, flag, _ = write_mer(tmp_path)
    ground, space = read_pair([tmp_path / "r.fits"], [science, rms, flag])
    assert (list(ground), list(space)) == (["r"], ["VIS"])
    assert read_pair([tmp_path / "r.fits"])[1] is None
    with pytest.raises(ValueError, match="give at least one image"):
        read_pair()
    clash = write_mer(tmp_path, "LSST_r", 30.0, kinds=("SCIENCE",))[0]
    with pytest.raises(ValueError, match="holds ground band 'r', and so does r.fits"):
        read_pair([tmp_path / "r.fits"], [clash])


def test_euclid_errors(tmp_path):
    science, rms, flag, _ = write_mer(tmp_path, band="F814W")
    with pytest.raises(ValueError, match="FILTER='F814W' of .* is no band known here"):
        euclid.read(science)
    science = write_mer(tmp_path, magzero=None, kinds=("SCIENCE",))[0]
    with pytest.raises(ValueError, match="MAGZERO=None"):
        euclid.read(science)
    science = write_mer(tmp_path, "NIR_Y", 29.8, kinds=("SCIENCE",))[0]
    fits.PrimaryHDU(np.ones((3, 3), np.float32)).writeto(tmp_path / "small.fits")
    with pytest.raises(ValueError, match=r"rms: small.fits is \(3, 3\), science is \(40, 56\)"):
        euclid.read(science, tmp_path / "small.fits")
    with pytest.raises(ValueError, match=r"psf must be 2-D with odd sides, got shape \(2, 5, 5\)"):
        euclid.read(science, psf=np.ones((2, 5, 5)))
    with pytest.raises(TypeError, match="rms must be the path of a FITS file.*got float"):
        euclid.read(science, 0.5)


@pytest.mark.parametrize("reader", [rubin.read, euclid.read])
def test_broken_files(tmp_path, reader):
    write_coadd(tmp_path / "good.fits", compress=False)
    good = (tmp_path / "good.fits").read_bytes()
    broken = tmp_path / "broken.fits"
    # cut within the last table, within the pixels, within a header; not FITS; empty
    for content in (good[:-2880], good[:16000], good[:4000], b"\x89PNG" * 999, b""):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match="broken.fits is not a complete FITS file"):
            reader(broken)
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / "missing.fits")
    with pytest.raises(TypeError, match="must be the path of a FITS file"):
        reader(7)


def test_real_euclid_cutout():
    """Euclid Q1: eight bands of one place; the zero points of the headers make one sky of them."""
    path = Path(__file__).parents[2] / "shared" / "data" / "euclid_q1_edfs_lens.fits"
    if not path.exists():
        pytest.skip("the folder with real pixels is not beside this checkout")
    ground, space = read_pair((), [path])
    assert list(ground) == ["g", "r", "i", "z"]
    assert list(space) == ["VIS", "Y_E", "J_E", "H_E"]
    total = {band: np.nansum(image.data[35:65, 35:65]) for band, image in (ground | space).items()}
    # A red lens galaxy: brighter in every redder band, and VIS (550-900 nm) lies between g and z.
    reds = [total[band] for band in ("g", "r", "i", "z", "Y_E", "J_E", "H_E")]
    assert reds == sorted(reds)
    assert total["g"] < total["VIS"] < total["z"]
    assert all(image.psf.shape[0] % 2 for image in (ground | space).values())
