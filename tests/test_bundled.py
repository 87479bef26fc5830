# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What ships with the package works together: weights, sample, demo; and real pixels where they are at hand."""

import re
import warnings
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import NDData
from astropy.table import QTable
from astropy.wcs import WCS
from regions import Regions

from rosetta import (
    HSC,
    HST_ACS,
    CrossSurveyEncoder,
    EmbeddingPhotometry,
    Flag,
    JEPADeblender,
    LearnedAligner,
    SkyPair,
    checkpoint,
    measure,
)
from rosetta.cli import main
from rosetta.io import pair as pair_file
from rosetta.io import read_pair
from rosetta.registry import KINDS

WEIGHTS = Path(checkpoint.bundled("encoder")).parent
SAMPLE = WEIGHTS.parent / "data" / "sample.fits"
REAL = Path(__file__).parents[2] / "shared" / "data"
real_pixels = pytest.mark.skipif(not REAL.is_dir(), reason="the folder of real images is not beside this checkout")


@pytest.fixture(scope="module")
def models():
    encoder = CrossSurveyEncoder.from_pretrained(device="cpu")
    return {
        "encoder": encoder,
        "aligner": LearnedAligner.from_pretrained(encoder=encoder, device="cpu"),
        "deblender": JEPADeblender.from_pretrained(encoder=encoder, device="cpu"),
        "photometry": EmbeddingPhotometry.from_pretrained(encoder=encoder, device="cpu"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_small_known_and_of_one_set(kind):
    path = WEIGHTS / f"{kind}.safetensors"
    assert path.stat().st_size < 30e6
    header = checkpoint.read_header(path)
    assert header["provenance"]["trained"]
    belongs = {
        "encoder": (), "detector": (), "aligner": ("encoder",), "deblender": ("encoder", "detector"),
        "photometry": ("encoder", "deblender"),
    }[kind]  # fmt: skip
    for owner in belongs:
        assert header["config"][owner] == checkpoint.read_header(WEIGHTS / f"{owner}.safetensors")["fingerprint"]


@pytest.mark.parametrize("bands", ["r VIS", "g r VIS", "g r i VIS Y_E J_E H_E", "u g r i z y VIS", "i H_E"])
def test_fewer_bands_are_no_strange_sky(models, bands):
    pair, bands = pair_file.read(SAMPLE), bands.split()
    ground, space = ({b: image for b, image in side.items() if b in bands} for side in (pair.ground, pair.space))
    table = models["encoder"](SkyPair(ground, space)).to_table()
    assert not np.any(table["flags"] & int(Flag.OUT_OF_DISTRIBUTION)), table["ood_score"]


def test_the_encoder_knows_one_sky_from_another(models):
    """On the bundled sample, which is not training sky, the two views of one place resemble each other most."""
    pair = pair_file.read(SAMPLE)
    embedding = models["encoder"](pair, window=12.8 * u.arcsec)
    ground, space = (embedding.sides[side]["embedding"] for side in ("ground", "space"))
    cosine = ground @ space.T
    n = len(cosine)
    others = cosine[~np.eye(n, dtype=bool)]
    assert np.diag(cosine).mean() > others.mean() + 0.5
    for axis in (0, 1):
        assert np.mean(cosine.argmax(axis) == np.arange(n)) > 0.9


def test_a_search_finds_windows_wherever_they_lie(models):
    """The sample's ground bands, laid out 1.4" apart from the space ones, under headers that are wrong by 1.2"."""
    pair, ground = pair_file.read(SAMPLE), {}
    for band, image in pair.ground.items():
        wcs = image.wcs[7:, 7:]
        wcs.wcs.crval = wcs.wcs.crval - [0.0, 1.2 / 3600]
        cut = image.uncertainty[7:, 7:]
        ground[band] = NDData(image.data[7:, 7:], unit=image.unit, wcs=wcs, uncertainty=cut, psf=image.psf)
    encoder = models["encoder"]
    one, two = (encoder(SkyPair(*sides), window=12.8 * u.arcsec) for sides in ((ground, None), (None, pair.space)))
    found = encoder.search(one, two, reach=2.5 * u.arcsec)
    assert found.colnames == ["survey", "sky_center", "row", "similarity", "sky_match"]
    assert len(found) == len(one.centers)
    east, north = (v.to_value(u.arcsec) for v in found["sky_center"].spherical_offsets_to(found["sky_match"]))
    assert np.mean(np.hypot(east, north - 1.2) < 0.5) > 0.8
    unsearched = one.similarity(two).max(1)  # a window that lies well by chance gains nothing
    assert (found["similarity"] >= unsearched).all() and np.mean(found["similarity"] > unsearched) > 0.8


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "demo"), "--device", "cpu"]) in (0, None)
    printed = capsys.readouterr().out
    assert re.search(r"sources", printed)
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names == {"catalogue.ecsv", "offsets.ecsv", "models.fits", "sources.reg", "overview.png"}
    catalog = QTable.read(tmp_path / "demo" / "catalogue.ecsv")
    assert len(Regions.read(tmp_path / "demo" / "sources.reg")) == len(catalog)
    assert catalog["flux_VIS"].unit == u.nJy
    offsets = QTable.read(tmp_path / "demo" / "offsets.ecsv")
    assert offsets.meta["verdict"] == "ok"
    joint = offsets[(offsets["band"] == "joint") & (offsets["weight"] > 0)]
    # The sample's ground frame is off by some 60 mas; the median source must say so.
    assert 30 < np.hypot(np.median(joint["d_ra_cosdec"].value), np.median(joint["d_dec"].value)) < 100


@real_pixels
def test_euclid_q1(models, tmp_path):
    """A lens candidate: the galaxy in the middle is found, is red, and leaves residuals like noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair = SkyPair(*read_pair((), [REAL / "euclid_q1_edfs_lens.fits"]))
    result = measure(pair, **models)
    result.write(tmp_path / "q1")
    catalog = result.catalog
    image = pair.space["VIS"]
    middle = image.wcs.pixel_to_world(49.5, 49.5)
    central = catalog[np.argmin(catalog["sky_centroid"].separation(middle))]
    assert central["sky_centroid"].separation(middle) < 1 * u.arcsec
    fluxes = [central[f"flux_{band}"].to_value(u.nJy) for band in ("g", "r", "i", "z", "VIS", "Y_E", "J_E", "H_E")]
    assert np.all(np.isfinite(fluxes))
    assert fluxes[-1] > fluxes[4] > fluxes[0] > 0
    residual = result.scene.residual("VIS")
    pull = (residual.data / np.sqrt(residual.uncertainty.array))[~residual.mask]
    assert 0.3 < 1.4826 * np.median(np.abs(pull)) < 1.3


@real_pixels
def test_hsc_and_hst(models, tmp_path):
    """One patch of COSMOS by two other surveys: no code for them, flags where they are strange."""
    hsc, hst = (fits.getdata(REAL / f"{name}_cosmos_cutout.fits") for name in ("hsc", "hst"))
    hsc_psf, hst_psf = (fits.getdata(REAL / f"{name}_psf.fits") for name in ("hsc", "hst"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wcs = [WCS(fits.getheader(REAL / f"{name}_cosmos_cutout.fits")).celestial for name in ("hsc", "hst")]
    scale = 10 ** ((31.4 - 27.0) / 2.5)
    ground = {
        b: NDData(image * scale, unit=u.nJy, wcs=wcs[0], psf=psf)
        for b, image, psf in zip("grizy", hsc, hsc_psf, strict=True)
    }
    space = {"F814W": NDData(hst, unit=u.nJy, wcs=wcs[1], psf=hst_psf)}
    result = measure(SkyPair(ground, space, surveys=(HSC, HST_ACS)), **models)
    result.write(tmp_path / "cosmos")
    assert len(result.catalog) >= 5
    assert np.all(result.embedding.sides["space"]["flags"] & Flag.BAND_EXTRAPOLATED)
    # Six galaxies are there to be seen. On so strange a sky their errors are large, and neighbours share their light.
    flux, error = (result.catalog[name].value for name in ("flux_i", "flux_err_i"))
    assert 5 <= (flux > 3 * error).sum() <= 8
    assert result.offsets.meta["verdict"] in ("ok", "coarse", "abstain")
