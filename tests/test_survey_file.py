# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Surveys in TOML files, and the options of ``rosetta run`` that use them."""

import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits

from rosetta.cli import _parser, main
from rosetta.commands.images import given_pair
from rosetta.io import pair as pair_io
from rosetta.io import read_survey

GROUND = """
name = "MyCam"
side = "ground"
pixel_scale = 0.263
bad_planes = ["BAD"]
[[bands]]
name = "r"
pivot = 642
width = 148
psf_fwhm = 1.0
depth = 24.4
zeropoint = 30
[[bands]]
name = "g"
pivot = 473
width = 150.0
psf_fwhm = 1.1
depth = 24.7
aliases = ["DECam_g"]
sky = 22.0
native_pixel = 0.3
[files]
ext = "SCI"
uncertainty = "ERR"
uncertainty_type = "std"
"""
SPACE = """
name = "MyEye"
side = "space"
pixel_scale = 0.05
[[bands]]
name = "F814W"
pivot = 804
width = 251
psf_fwhm = 0.1
depth = 27.2
"""


def written(folder, text, name="survey.toml"):
    path = folder / name
    path.write_text(text)
    return path


def test_survey(tmp_path):
    survey = read_survey(written(tmp_path, GROUND))
    assert (survey.name, survey.band_names, survey.bad_planes) == ("MyCam", ("g", "r"), ("BAD",))
    assert survey.pixel_scale == 0.263 * u.arcsec
    band = survey["DECam_g"]
    assert (band.pivot, band.width, band.psf_fwhm) == (473 * u.nm, 150 * u.nm, 1.1 * u.arcsec)
    assert (band.depth, band.sky, band.native_pixel) == (24.7, 22.0, 0.3 * u.arcsec)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[files]", "[files", "is not a TOML file"),
        ("side =", "sid =", "unknown key 'sid': use name, side, pixel_scale, bad_planes, saturation, bands, files"),
        ('side = "ground"', "", "side is missing: add it"),
        ('"ground"', '"both"', "side = 'both' must be one of 'ground', 'space'"),
        ("0.263", "-1", r"pixel_scale = -1 must be a positive number \(arcsec\)"),
        ("0.263", '"0.263"', "pixel_scale = '0.263' must be a number"),
        ("pivot = 473", "pivot = nan", "band 'g': pivot = nan must be a number"),
        ("pivot = 473", "", "band 'g': pivot is missing"),
        ("sky = 22.0", "seeing = 1", "band 'g': unknown key 'seeing': use name, pivot"),
        ('["DECam_g"]', '"DECam_g"', "band 'g': aliases = 'DECam_g' must be a list of texts"),
        ("zeropoint = 30", "zeropoint = true", "band 'r': zeropoint = True must be a number"),
        ('name = "g"', 'name = "r"', "."),
        ('["DECam_g"]', '["r"]', "."),
        ('"std"', '"rms"', "files: uncertainty_type = 'rms' must be one of 'std', 'var', 'ivar'"),
        ('uncertainty_type = "std"', "", "files: uncertainty needs uncertainty_type"),
        ('ext = "SCI"', 'unit = "nJy"', "files: unit and the zeropoint of a band say the same"),
        ('ext = "SCI"', 'hdu = "SCI"', "files: unknown key 'hdu'"),
    ],
)
def test_files_that_cannot_be(tmp_path, old, new, message):
    assert old in GROUND
    with pytest.raises(ValueError, match=f"survey.toml.*{message}"):
        read_survey(written(tmp_path, GROUND.replace(old, new, 1)))


def test_no_bands(tmp_path):
    with pytest.raises(ValueError, match=r"survey.toml has no bands: add a table \[\[bands\]\]"):
        read_survey(written(tmp_path, SPACE.split("[[bands]]")[0]))


# ---------------------------------------------------------------------------- the command line
@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(2)

    def image(name, scale, n, **cards):
        header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 53.1, "CRVAL2": -28.1} | cards)
        header.update({"CRPIX1": n / 2, "CRPIX2": n / 2, "CDELT1": -scale / 3600, "CDELT2": scale / 3600})
        hdus = [
            fits.PrimaryHDU(),
            fits.ImageHDU(rng.normal(0, 1, (n, n)).astype(np.float32), header, name="SCI"),
            fits.ImageHDU(np.ones((n, n), np.float32), name="ERR"),
        ]
        fits.HDUList(hdus).writeto(tmp_path / name)

    image("r.fits", 0.263, 80)
    image("g.fits", 0.263, 80, MAGZERO=31.4)
    image("f814w.fits", 0.05, 400, BUNIT="nJy")
    written(tmp_path, GROUND, "mycam.toml")
    written(tmp_path, SPACE, "myeye.toml")
    return tmp_path


def arguments(folder, *argv):
    named = [f"{word.split('=')[0]}={folder / word.split('=')[1]}" if "=" in word else word for word in argv]
    named = [str(folder / word) if word.endswith(".toml") else word for word in named]
    return ["run", "-o", str(folder / "out"), *named]


def pair_of(folder, *argv):
    return given_pair(_parser().parse_args(arguments(folder, *argv)))


OWN = ("--ground", "DECam_g=g.fits", "r=r.fits", "--space", "F814W=f814w.fits", "--survey", "mycam.toml", "myeye.toml")


def test_images_of_any_instrument(files):
    pair = pair_of(files, *OWN)
    assert pair.bands == ("g", "r", "F814W")
    assert [survey.name for survey in pair.surveys] == ["MyCam", "MyEye"]
    assert pair.ground["r"].uncertainty.array[3, 3] == pytest.approx(10 ** (2 * (31.4 - 30) / 2.5), rel=1e-5)
    assert pair.ground["g"].uncertainty.array[3, 3] == pytest.approx(1)
    cut = pair_of(files, *OWN, "--center", "53.1", "-28.1", "--size", "8")
    assert {band: image.data.shape for _, band, image in cut.images()} == {
        "g": (30, 30),
        "r": (30, 30),
        "F814W": (160, 160),
    }


def test_shipped_surveys_are_the_default(files):
    pair = pair_of(files, "--ground", "g=g.fits")
    assert pair.surveys[0].name == "Rubin" and pair.space is None


def test_region_of_a_pair_file(files):
    pair = pair_of(files, "--ground", "g=g.fits")
    pair_io.write(pair, files / "pair.fits")
    parsed = _parser().parse_args(["run", "-o", "x", "--pair", str(files / "pair.fits"), "--center", "53.1", "-28.1"])
    parsed.size = 8.0
    assert max(given_pair(parsed).ground["g"].data.shape) <= 32


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ground", "g"], "--ground g: write BAND=FILE, such as u=image.fits"),
        (["--ground", "q=g.fits"], "--ground q=.*: unknown band 'q' for survey Rubin"),
        (["--ground", "r=r.fits"], "--ground r=.*no AB zero point.*; here, in the file of --survey"),
        (["--ground", "g=g.fits", "g=g.fits"], "band 'g' is also in g.fits: leave one of them out"),
        (["--ground", "g=g.fits", "--survey", "mycam.toml", "mycam.toml"], "--survey .*: it is on the ground side"),
        (["--ground", "g=g.fits", "--survey", "myeye.toml"], "needs images of its side: give --space BAND=FILE"),
        (["--rubin", "x", "--ground", "g=g.fits", "--survey", "mycam.toml"], "--rubin is on the same side"),
        (["--ground", "g=g.fits", "--center", "53", "-28"], "--center and --size: give both"),
        (["--ground", "g=g.fits", "--center", "53", "-98", "--size", "9"], "--center 53 -98: give right ascension"),
        (["--ground", "g=g.fits", "--center", "53", "-28", "--size", "-9"], "--size -9: give the side"),
        (["--ground", "g=g.fits", "--center", "9", "9", "--size", "9"], "--ground g=.*: center: the region at"),
        (["--pair", "p.fits", "--survey", "mycam.toml"], "--pair cannot be combined with --survey"),
    ],
)
def test_errors_name_the_option(files, argv, message):
    with pytest.raises(ValueError, match=message):
        pair_of(files, *argv)


def test_warnings_are_plain_lines(files, capsys, monkeypatch):
    def warn(_):
        warnings.warn("a.fits: its WCS\napproximates the full model", UserWarning, stacklevel=1)
        raise ValueError("and no more")

    monkeypatch.setattr("rosetta.commands.run.given_pair", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(arguments(files, "--ground", "g=g.fits")) == 2
    assert capsys.readouterr().err.splitlines() == [
        "rosetta: warning: a.fits: its WCS approximates the full model",
        "rosetta: error: and no more",
    ]
