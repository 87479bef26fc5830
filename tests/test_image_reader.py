# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Images of any instrument: units and zero points, companions, regions; files as archives deliver them."""

import io
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from rosetta import EUCLID, HSC, HST_ACS, RUBIN, SkyPair
from rosetta.io import read_image
from rosetta.io._wcs import celestial_wcs, pixel_areas

N = 64
DATA = np.random.default_rng(8).normal(1, 1, (N, N)).astype(np.float32)
ACS = {"PHOTFLAM": 7.072e-20, "PHOTPLAM": 8045.0}  # AB 25.94, as the ACS zero-point tables say
ARCSEC2 = (1 * u.arcsec**2).to_value(u.sr)


def header(scale=0.1, **cards):
    made = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 32.5, "CRPIX2": 32.5})
    made.update({"CRVAL1": 53.0, "CRVAL2": -28.0, "CD1_1": -scale / 3600, "CD2_2": scale / 3600} | cards)
    return made


def content(*hdus):
    file = io.BytesIO()
    hdus = hdus if isinstance(hdus[0], fits.PrimaryHDU) else (fits.PrimaryHDU(), *hdus)
    fits.HDUList(list(hdus)).writeto(file)
    return file.getvalue()


def image(data=DATA, scale=0.1, **cards):
    return content(fits.PrimaryHDU(data, header(scale, **cards)))


def per_unit(found, data=DATA):
    """nJy per unit of the file."""
    ratio = found.data.astype(float) / data
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-6)
    return ratio.mean()


# ---------------------------------------------------------------------------- units
@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("nJy", 1),
        ("uJy", 1e3),
        ("UJY", 1e3),
        ("Jy/pixel", 1e9),
        ("nanomaggy", 10 ** (0.4 * (31.4 - 22.5))),
        ("nanomaggies", 10 ** (0.4 * (31.4 - 22.5))),
        ("ergs/s/cm^2/Hz", 1e32),
        ("10**-29 erg/s/cm2/Hz", 1e3),
        ("nJy/arcsec2", 0.01),  # 0.1 arcsec pixels
        ("MJy/sr", 1e15 * 0.01 * ARCSEC2),
    ],
)
def test_flux_units(unit, expected):
    assert per_unit(read_image(image(BUNIT=unit))) == pytest.approx(expected, rel=1e-4)
    assert per_unit(read_image(image(), unit=unit)) == pytest.approx(expected, rel=1e-4)


def test_flux_per_wavelength():
    flux = (1e-29 * u.erg / u.s / u.cm**2 / u.AA).to(u.nJy, u.spectral_density(8045 * u.AA))
    found = read_image(image(DATA * np.float32(1e-29), BUNIT="erg/cm2/s/Angstrom", PHOTPLAM=8045.0))
    assert per_unit(found) == pytest.approx(flux.value, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    zeropoint=st.floats(15, 35),
    card=st.sampled_from(["MAGZERO", "ZP", "HIERARCH ZEROPOINT", "MAGZPT", "PHOTZP", "FLUXMAG0"]),
)
def test_zero_points(zeropoint, card):
    """A source of one count has the magnitude of the zero point."""
    expected = (zeropoint * u.ABmag).to_value(u.nJy)
    value = 10 ** (0.4 * zeropoint) if card == "FLUXMAG0" else zeropoint
    assert per_unit(read_image(image(**{card: value}))) == pytest.approx(expected, rel=1e-3)
    assert per_unit(read_image(image(), zeropoint=zeropoint)) == pytest.approx(expected, rel=1e-3)


def test_hubble():
    found = read_image(image(BUNIT="ELECTRONS/S", **ACS))
    assert per_unit(found) == pytest.approx((25.94 * u.ABmag).to_value(u.nJy), rel=2e-3)
    # STMAG of PHOTZPT is not an AB zero point.
    assert per_unit(read_image(image(BUNIT="ELECTRONS/S", PHOTZPT=-21.1, **ACS))) == pytest.approx(per_unit(found))


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({}, "there is no BUNIT and the header has no AB zero point known here: pass zeropoint= .* or unit="),
        ({"BUNIT": "adu"}, "BUNIT='adu' is no flux and the header has no AB zero point"),
        ({"BUNIT": "mJy/beam"}, "flux per beam, not per pixel"),
        ({"BUNIT": "mag"}, "is a magnitude: convert the image to a linear unit"),
        ({"BUNIT": "erg/cm2/s/Angstrom"}, "PHOTPLAM, the pivot wavelength, is missing"),
        ({"MAGZERO": 30.0, "MAGZPT": 25.1}, "MAGZERO gives zero point 30, MAGZPT gives 25.1"),
        ({"MAGZERO": 27.0, "BUNIT": "ELECTRONS/S"} | ACS, "MAGZERO gives zero point 27, PHOTFLAM gives 25.94"),
        ({"BUNIT": "nJy", "MAGZERO": 25.0}, "BUNIT='nJy' means zero point 31.4, but MAGZERO says 25"),
        # 27 + 2.5 log10(300) = 33.1928
        ({"BUNIT": "adu", "MAGZERO": 27.0, "EXPTIME": 300.0}, "zeropoint=27.0000 .* zeropoint=33.1928 if"),
        ({"BUNIT": "ELECTRONS", "EXPTIME": 507.0} | ACS, "of one count or of one count per second"),
        (ACS, "there is no BUNIT"),
        ({"BUNIT": "ELECTRONS/S", "PHOTFLAM": 0.0, "PHOTPLAM": 8045.0}, "no AB zero point known here"),
        ({"MAGZERO": 30.0, "MAGSYS": "VEGA"}, "MAGSYS says Vega"),
        ({"MAGZPT": (23.0, "[mag] Vega zero point")}, "MAGZPT says Vega"),
        ({"MAGZPT": 23.0, "CASUVERS": "1.5"}, "CASU are Vega magnitudes per second"),
        ({"BSOFTEN": 100.0, "BOFFSET": 3.0}, "asinh magnitudes"),
    ],
)
def test_units_that_are_not_known_or_said_twice(cards, message):
    with pytest.raises(ValueError, match=f"source: bytes: .*{message}"):
        read_image(image(**cards))


def test_arguments_decide():
    assert per_unit(read_image(image(BUNIT="adu", EXPTIME=9.0, MAGZERO=20.0), zeropoint=31.4)) == pytest.approx(1)
    assert per_unit(read_image(image(BUNIT="foo", MAGZERO=20.0), unit=u.uJy)) == pytest.approx(1e3)
    # Counts that the caller says are per second.
    assert per_unit(read_image(image(BUNIT="ELECTRONS", EXPTIME=9.0, **ACS), unit="electron/s")) > 100
    for options, message in (
        ({"zeropoint": 27.0}, "BUNIT='nJy' and zeropoint=27 differ"),
        ({"zeropoint": 99.0}, "zeropoint must be an AB magnitude"),
        ({"unit": "foo"}, "unit='foo' is no flux density"),
        ({"mask_bits": 1}, "mask_bits must be a positive integer .* and needs mask"),
        ({"uncertainty": "ERR"}, "uncertainty_type must be 'std', 'var' or 'ivar'"),
        ({"uncertainty": "ERR", "uncertainty_type": "std"}, "'ERR' is neither a file nor an extension of bytes"),
        ({"center": SkyCoord(53, -28, unit="deg")}, "center and size: give both"),
        ({"plane": 1}, "plane 1 is not in"),
        ({"ext": "SCI"}, "holds no image extension SCI"),
    ):
        with pytest.raises(ValueError, match=message):
            read_image(image(BUNIT="nJy"), **options)
    with pytest.raises(ValueError, match="has no AB zero point"):
        read_image(image(MAGZERO=30.0), zeropoint=None)
    for options in ({"zeropoint": "30"}, {"unit": 3}, {"survey": "HSC"}):
        with pytest.raises(TypeError):
            read_image(image(), **options)


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"MAGZERO": "25.0"}, "MAGZERO='25.0' is text, not a number: pass zeropoint="),
        ({"MAGZERO": "25.0", "ZP": 27.0}, "MAGZERO='25.0' is text, not a number"),
        ({"MAGZERO": 99.0}, "MAGZERO gives zero point 99, outside 0 to 50"),
        ({"MAGZERO": 0.0}, "MAGZERO gives zero point 0, outside 0 to 50"),
    ],
)
def test_zero_points_that_are_none(cards, message):
    with pytest.raises(ValueError, match=f"source: bytes: {message}"):
        read_image(image(**cards))
    assert per_unit(read_image(image(**cards), zeropoint=31.4)) == pytest.approx(1)


def test_the_first_image_is_not_taken_for_another():
    """Where names do not say which image is meant, the caller must."""
    science, error = fits.ImageHDU(DATA, header(BUNIT="nJy")), fits.ImageHDU(DATA + 9, header(BUNIT="nJy"), name="ERR")
    other = fits.ImageHDU(2 * DATA, header(BUNIT="nJy"))
    for hdus, choice, message in (
        ((science, other), 1, r"holds several images called nothing: choose one with ext= \(1: unnamed, 2: unnamed\)"),
        ((error, science), 2, r"its first image is called ERR: choose one with ext= \(1: ERR, 2: unnamed\)"),
    ):
        file = content(fits.PrimaryHDU(), *hdus)
        with pytest.raises(ValueError, match=message):
            read_image(file)
        np.testing.assert_array_equal(read_image(file, ext=choice).data, DATA)
    np.testing.assert_array_equal(read_image(content(fits.PrimaryHDU(), science, error)).data, DATA)


@pytest.mark.parametrize("argument", ["mask", "uncertainty"])
def test_planes_of_another_place_are_refused(argument):
    wide = header()
    wide["CRVAL1"] += 0.01
    file = content(fits.PrimaryHDU(), fits.ImageHDU(DATA, header(BUNIT="nJy"), name="SCI"),
                   fits.ImageHDU(np.ones_like(DATA), wide, name="B"))  # fmt: skip
    options = {argument: "B"} | ({"uncertainty_type": "std"} if argument == "uncertainty" else {})
    with pytest.raises(ValueError, match=f"{argument}: B lies elsewhere on the sky than the image bytes"):
        read_image(file, **options)


@pytest.mark.parametrize(
    ("psf", "message"),
    [(np.ones((4, 5)), "2-D with odd sides"), (np.full((5, 5), np.nan), "NaN"), (-np.ones((5, 5)), "no positive flux")],
)
def test_psfs_in_files_are_checked(psf, message):
    science = fits.ImageHDU(DATA, header(BUNIT="nJy"), name="SCI")
    file = content(fits.PrimaryHDU(), science, fits.ImageHDU(psf, name="P"))
    with pytest.raises(ValueError, match=f"psf: bytes .*{message}"):
        read_image(file, psf="P")


def test_area_of_pixels_that_varies():
    """On a tangent plane the solid angle of a pixel falls as the cube of the cosine of its distance."""
    made = header(1.0, NAXIS=2, NAXIS1=8000, NAXIS2=40, CRPIX1=-3999.0, CRPIX2=20.5)
    area = pixel_areas(celestial_wcs(made, "a.fits"), (40, 8000))
    distance = np.arctan(np.radians((np.arange(8000) + 1 + 3999.0) / 3600))
    np.testing.assert_allclose(area[20], np.cos(distance) ** 3, rtol=1e-5)
    assert pixel_areas(celestial_wcs(header(0.2, NAXIS=2, NAXIS1=99, NAXIS2=99), "a.fits"), (99, 99)) == pytest.approx(
        0.04, rel=1e-5
    )
    found = read_image(content(fits.PrimaryHDU(np.ones((40, 8000), np.float32), made)), unit="nJy/arcsec2")
    np.testing.assert_allclose(found.data[20], np.cos(distance) ** 3, rtol=1e-5)


# ---------------------------------------------------------------------------- companions
def test_hubble_drizzle():
    weight = np.full((N, N), 4.0, np.float32)
    weight[0] = 0
    primary = fits.PrimaryHDU(header=fits.Header({"EXPTIME": 507.0, "FILTER2": "F814W", **ACS}))  # inherited
    file = content(
        primary,
        fits.ImageHDU(DATA, header(0.05, BUNIT="ELECTRONS/S"), name="SCI"),
        fits.ImageHDU(weight, name="WHT"),
        fits.ImageHDU(np.ones((N, N), np.int32), name="CTX"),
    )
    found = read_image(file, band="F814W", survey=HST_ACS, uncertainty="wht", uncertainty_type="ivar")
    assert found.meta["band"] == "F814W" and found.meta["survey"] == "HST/ACS"
    assert found.mask[0].all() and not found.mask[1:].any()
    assert np.isinf(found.uncertainty.array[0]).all()
    assert found.uncertainty.array[5, 5] == pytest.approx((0.5 * per_unit(found)) ** 2, rel=1e-5)
    with pytest.raises(ValueError, match="unknown band 'F999W' for survey HST/ACS"):
        read_image(file, band="F999W", survey=HST_ACS)


def test_webb():
    error, quality = np.full((N, N), 0.02, np.float32), np.zeros((N, N), np.uint32)
    error[9, 9], quality[3, 4], quality[5, 6] = np.nan, 1, 4
    file = content(
        fits.PrimaryHDU(),
        fits.ImageHDU(DATA, header(0.03, BUNIT="MJy/sr"), name="SCI"),
        fits.ImageHDU(error, header(0.03, BUNIT="MJy/sr"), name="ERR"),
        fits.ImageHDU(quality, name="DQ"),
    )
    found = read_image(file, uncertainty="ERR", uncertainty_type="std", mask="DQ", mask_bits=1)
    assert set(zip(*np.nonzero(found.mask), strict=True)) == {(9, 9), (3, 4)}
    assert per_unit(found) == pytest.approx(1e15 * 9e-4 * ARCSEC2, rel=1e-4)
    assert read_image(file, mask=("DQ", 1)).mask.sum() == 2  # every bit
    with pytest.raises(ValueError, match="uncertainty: its BUNIT is 'uJy', that of the image bytes 'MJy/sr'"):
        read_image(file, uncertainty=image(BUNIT="uJy"), uncertainty_type="std")
    with pytest.raises(ValueError, match="ERR holds fractions, integers are needed"):
        read_image(file, mask="ERR")


def test_tiled_bricks_with_inverse_variance_in_another_file(tmp_path):
    brick = content(
        fits.CompImageHDU(DATA, header(0.262, BUNIT="nanomaggy"), compression_type="GZIP_2", quantize_level=0)
    )
    inverse = np.full((N, N), 100.0, np.float32)
    inverse[2, 2] = -1
    path = tmp_path / "invvar.fits.fz"
    path.write_bytes(content(fits.CompImageHDU(inverse, header(0.262))))
    for source in (path, str(path), (path, 1)):
        found = read_image(brick, band="r", uncertainty=source, uncertainty_type="ivar")
        assert per_unit(found) == pytest.approx(3630.78, rel=1e-5)
        good = found.uncertainty.array[~found.mask]
        np.testing.assert_allclose(np.sqrt(good), 363.078, rtol=1e-2)  # the weights are compressed with loss
        assert found.mask.sum() == 1 and found.mask[2, 2]


@pytest.mark.parametrize(("kind", "value"), [("std", 1e-31), ("var", 1e-62), ("ivar", 1e62)])
def test_small_units_neither_underflow_nor_overflow(kind, value):
    plane = content(fits.PrimaryHDU(np.full((N, N), value, np.float64)))
    found = read_image(
        image(DATA * np.float32(1e-30), BUNIT="erg / (s cm2 Hz)"), uncertainty=plane, uncertainty_type=kind
    )
    assert not found.mask.any()
    np.testing.assert_allclose(found.data, 100 * DATA, rtol=1e-5)
    np.testing.assert_allclose(found.uncertainty.array, 100, rtol=1e-5)  # nJy^2: sigma is 1e-31 cgs, 10 nJy


def test_sentinels_of_weight_maps_are_masked():
    rms = np.full((N, N), 0.1, np.float32)
    rms[0, :4] = 1e15, 1e30, np.inf, -1.0
    rms[1, 1] = 30.0  # the core of a star
    found = read_image(image(BUNIT="nJy"), uncertainty=content(fits.PrimaryHDU(rms)), uncertainty_type="std")
    assert set(zip(*np.nonzero(found.mask), strict=True)) == {(0, 0), (0, 1), (0, 2), (0, 3)}
    with pytest.raises(ValueError, match="no pixel of bytes has a finite positive var"):
        read_image(image(BUNIT="nJy"), uncertainty=content(fits.PrimaryHDU(np.zeros_like(rms))), uncertainty_type="var")
    with pytest.raises(ValueError, match=r"mask: PRIMARY is \(9, 64\), the image bytes is \(64, 64\) pixels"):
        read_image(image(BUNIT="nJy"), mask=content(fits.PrimaryHDU(np.zeros((9, N), np.uint8))))


def test_region_of_every_plane(tmp_path):
    y, x = np.mgrid[:N, :N]
    planes = np.stack([100.0 * y + x, 1 + y + x, y % 2]).astype(np.float64)
    made = header(BUNIT="nJy")
    file = content(
        fits.ImageHDU(planes[0], made, name="SCI"),
        fits.ImageHDU(planes[1], name="VAR"),
        fits.ImageHDU(planes[2].astype("u2"), name="DQ"),
        fits.ImageHDU(np.eye(5), name="PSF"),
    )
    whole = read_image(file)
    center = whole.wcs.pixel_to_world(20.2, 40.4)
    found = read_image(
        file, uncertainty="VAR", uncertainty_type="var", mask="DQ", psf="PSF", center=center, size=(1, 2) * u.arcsec
    )
    x0, y0 = found.meta["ORIGINX"], found.meta["ORIGINY"]
    window = (slice(y0, y0 + 10), slice(x0, x0 + 20))
    np.testing.assert_array_equal(found.data, planes[0][window])
    np.testing.assert_allclose(found.uncertainty.array, planes[1][window])
    np.testing.assert_array_equal(found.mask, planes[2][window] != 0)
    np.testing.assert_array_equal(found.psf, np.eye(5))
    assert found.wcs.pixel_to_world(3, 4).separation(whole.wcs.pixel_to_world(3 + x0, 4 + y0)) < 1e-7 * u.arcsec
    with pytest.raises(ValueError, match="psf must be 2-D with odd sides"):
        read_image(file, psf=np.ones((2, 5, 5)))


def test_planes_of_a_cube():
    cube, psf = np.arange(3 * N * N, dtype=float).reshape(3, N, N), np.arange(75.0).reshape(3, 5, 5)
    file = content(fits.ImageHDU(cube, header(BUNIT="nJy"), name="SCI"), fits.ImageHDU(psf, name="PSF"))
    found = read_image(file, plane=2, psf="PSF")
    np.testing.assert_array_equal(found.data, cube[2].astype(np.float32))
    np.testing.assert_array_equal(found.psf, psf[2])
    with pytest.raises(ValueError, match="it holds 3 planes"):
        read_image(file)


def test_real_hsc_and_hubble():
    """Five bands of a cube without variance, and Hubble, of one patch of COSMOS make a pair."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.exists():
        pytest.skip("the folder with real pixels is not beside this checkout")
    ground = {
        band: read_image(
            folder / "hsc_cosmos_cutout.fits",
            band=band,
            survey=HSC,
            plane=k,
            zeropoint=27.0,
            psf=folder / "hsc_psf.fits",
        )
        for k, band in enumerate(HSC.band_names)
    }
    space = {"F814W": read_image(folder / "hst_cosmos_cutout.fits", zeropoint=25.94, psf=folder / "hst_psf.fits")}
    pair = SkyPair(ground, space, surveys=(HSC, HST_ACS))
    assert pair.bands == (*"grizy", "F814W")
    # The same galaxy is the brightest in both: the two headers agree to the resolution of the ground.
    places = []
    for band in ("i", "F814W"):
        image = pair.ground["i"] if band == "i" else pair.space[band]
        y, x = np.unravel_index(np.argmax(image.data), image.data.shape)
        places.append(image.wcs.pixel_to_world(x, y))
    assert places[0].separation(places[1]) < 0.4 * u.arcsec


# ---------------------------------------------------------------------------- the band
@pytest.mark.parametrize(
    ("cards", "band", "survey"),
    [
        ({"FILTER": "i"}, "r", RUBIN), ({"FILTER": "i_03"}, "r", RUBIN), ({"BAND": "y"}, "z", RUBIN),
        ({"FILTER": "g DECam SDSS c0001 4720.0 1520.0"}, "r", RUBIN), ({"FILTER": "H"}, "J_E", EUCLID),
        ({"FILTER1": "CLEAR1L", "FILTER2": "F814W"}, "F606W", HST_ACS),
    ],
)  # fmt: skip
def test_a_header_of_another_band_is_refused(cards, band, survey):
    """As the readers of Rubin and Euclid do."""
    file = image(BUNIT="nJy", **cards)
    with pytest.raises(ValueError, match=f"has (FILTER|BAND|FILTER2)='.*', which is the band .* but band is '{band}'"):
        read_image(file, band=band, survey=survey)
    assert read_image(file, band=band).meta["band"] == band  # nobody said what survey it is of


@pytest.mark.parametrize(
    ("cards", "band"),
    [({"FILTER": "r"}, "r"), ({"FILTER": "r_57"}, "r"), ({"FILTER": "HSC-I"}, "r"), ({"FILTER": ""}, "r"),
     ({"FILTER": "CLEAR", "BAND": "r"}, "r"), ({"FILTER1": "i", "FILTER2": "r"}, "r"), ({"FILTER": "z_blocker"}, "r")],
)  # fmt: skip
def test_headers_that_do_not_contradict_the_band(cards, band):
    assert read_image(image(BUNIT="nJy", **cards), band=band, survey=RUBIN).meta["band"] == "r"


def test_names_that_are_no_band():
    file = image(BUNIT="nJy", FILTER="r")
    for band, survey, error, message in (
        ("q", RUBIN, ValueError, "band: unknown band 'q' for survey Rubin: the nearest known names"),
        ("", RUBIN, ValueError, "band is '': name the band, or leave it out"),
        (" ", None, ValueError, "band is ' ': name the band"),
        (3, None, TypeError, "band must be a string, got int"),
    ):
        with pytest.raises(error, match=message):
            read_image(file, band=band, survey=survey)
