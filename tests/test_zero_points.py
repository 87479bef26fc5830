# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Zero points of a survey's cells, checked by the colours of their stars."""

import json
import re

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable
from astropy.wcs import WCS

from rosetta import Flag
from rosetta.production.stellar_locus import fit_locus, zero_points
from rosetta.surveys import EUCLID, RUBIN

pytest.importorskip("pyarrow")
pytest.importorskip("speclite")

from rosetta.production.metrics import outside  # noqa: E402
from rosetta.production.quality_page import cells_of, write_page  # noqa: E402
from rosetta.production.star_colours import zero_point_metrics  # noqa: E402
from rosetta.production.store import Store  # noqa: E402
from rosetta.production.survey import Config, Survey, read_limits, write  # noqa: E402
from rosetta.simulate.seds import star_colours  # noqa: E402

BANDS = (*RUBIN.band_names, *EUCLID.band_names)
TRACT, CORE, SIDE = 9, 64, 4  # pixels; cells along a side
FEW = 3  # the cell with eight stars
THICK = 0.02  # mag, of the locus in each band
WRONG = 2.5 * np.log10(1.05)  # a zero point that is wrong by 5 %
G, I = BANDS.index("g"), BANDS.index("i")


def tract_wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.radesys = ["RA---TAN", "DEC--TAN"], (53.1, -28.1), "ICRS"
    wcs.wcs.cd, wcs.wcs.crpix = np.diag([-0.2, 0.2]) / 3600, [400.5, -300.25]
    return wcs


def stars(rng, n):
    """Magnitudes and errors of stars, (n, n_band): dwarfs and those near the turn-off, with simulated spectra."""
    temperature = np.where(rng.random(n) < 0.6, rng.normal(3400, 350, n), rng.normal(5600, 500, n))
    colours = -2.5 * np.log10(star_colours((RUBIN, EUCLID), np.clip(temperature, 2700, 11900)))
    magnitude = rng.uniform(19.0, 22.0, n)[:, None] + colours
    error = np.full(magnitude.shape, 0.01)
    return magnitude + np.hypot(THICK, error) * rng.normal(size=magnitude.shape), error


def objects(rng, number, n_star, wrong=None):
    """A catalogue: stars, as many faint or extended sources, and stars that are blended or of another cell."""
    n = 3 * n_star
    magnitude, error = stars(rng, n)
    magnitude[n_star:] += 0.3 * (number % 2) * (np.arange(len(BANDS)) == BANDS.index("y"))  # no stars of this cell
    rows, columns = np.arange(n), np.arange(n_star, 2 * n_star)
    i, j = divmod(number, 256)
    x, y = CORE * j + rng.uniform(5, CORE - 5, n), CORE * i + rng.uniform(5, CORE - 5, n)
    first, blended = rows < n_star, (rows >= 2 * n_star) & (rows % 2 == 0)
    table = QTable({
        "object_id": ((TRACT << 16 | number) << 32) + rows, "is_primary": first | blended | np.isin(rows, columns),
        "sky_centroid": tract_wcs().pixel_to_world(x, y), "snr": np.full(n, 200.0),
        "half_light_radius": np.where(np.isin(rows, columns), 0.2, 0.0) * u.arcsec,
        "flags": np.where(blended, int(Flag.BLENDED), 0),
    })  # fmt: skip
    for band, mag, sigma in zip(BANDS, magnitude.T, error.T, strict=True):
        flux = 10 ** (0.4 * (31.4 - mag)) * (1 / 1.05 if band == wrong else 1.0)
        table[f"flux_{band}"], table[f"flux_err_{band}"] = flux * u.nJy, sigma * flux / 1.0857 * u.nJy
        table[f"flags_{band}"] = np.zeros(n, int)
    return table


def survey_of(folder, n_star, wrong):
    """A survey of ``SIDE`` by ``SIDE`` cells, as if it were measured; ``wrong`` maps cells to bands."""
    config = Config(str(folder), 12.8, 4.0, 12.8, 6.4, 12.8, "", *"abcde")
    inputs = [{"path": "r.fits", "size": 1, "version": "1", "survey": "rubin", "band": "r", "tract": TRACT, "patch": 4,
               "tile": "", "y0": 0, "y1": SIDE * CORE, "x0": 0, "x1": SIDE * CORE}]  # fmt: skip
    common = {"tract": TRACT, "tile": "", "others": "", "rubin": "0", "euclid": "", "euclid_height": 0.0,
              "euclid_width": 0.0, "ra": 53.1, "dec": -28.1}  # fmt: skip
    numbers = [256 * i + j for i in range(SIDE) for j in range(SIDE)]
    cards = {TRACT: tract_wcs().to_header().tostring()}
    write(Survey(config, inputs, [{**common, "cell": number} for number in numbers], cards))
    rng, store = np.random.default_rng(5), Store(folder)
    for number in numbers:
        few = 8 if number == FEW else n_star
        store.write_table((TRACT, number), "objects", objects(rng, number, few, wrong.get(number)))
        store.finish((TRACT, number), {"state": "done", "bands": list(BANDS), "metrics": {}})
    return folder


# ---------------------------------------------------------------------------- the page
def test_a_wrong_zero_point_is_marked(tmp_path):
    """Bands that are 5 % too faint in one cell each, and no other cell, are marked; values and errors are right.

    A cell with eight stars shows nothing; galaxies, blends and stars of other cells do not count.
    """
    wrong = {0: "r", 257: "VIS", 515: "z", 770: "y", FEW: "r"}
    folder = survey_of(tmp_path / "s", 40, wrong)
    path, marked = write_page(folder)
    del wrong[FEW]
    assert [number for (_, number), _ in marked] == list(wrong)
    for (_, number), found in marked:
        band = wrong[number]
        assert max(found, key=lambda name: abs(found[name])) == f"zeropoint_{band}"
        assert found[f"zeropoint_{band}"] == pytest.approx(WRONG, abs=0.02)
    survey, _, metrics = cells_of(folder)
    metrics = {number: found for (_, number), found in zip(survey.indices, metrics, strict=True)}
    assert not any(name.startswith("zeropoint") for name in metrics.pop(FEW))
    right = [found for number, found in metrics.items() if number not in wrong]
    for band in ("r", "z", "VIS"):
        pull = [found[f"zeropoint_{band}"] / found[f"locus_err_{band}"] for found in right]
        assert 0.3 < np.std(pull) < 1.6 and max(np.abs(pull)) < 4
    assert not any(outside(found, read_limits(folder)) for found in right)
    data = json.loads(re.search(r'<script type="application/json" id="rows">(.*?)</script>', path.read_text())[1])
    assert {"zeropoint_r", "locus_err_r"} <= set(data["columns"]) and "zeropoint_i" not in data["columns"]
    assert data["map"]["limits"][data["columns"].index("zeropoint_r")] == [-0.03, 0.03]


@pytest.mark.parametrize("n_star", [0, 8])
def test_too_few_stars_show_nothing(tmp_path, n_star):
    """Neither in a survey nor in its cells: no noise that could be taken for an error of the zero point."""
    folder = survey_of(tmp_path / "s", n_star, {0: "r"})
    assert not any(name.startswith("zeropoint") for found in cells_of(folder)[2] for name in found)


def test_bands_that_do_not_make_a_locus():
    """Two bands say where a star lies on the locus, and nothing else."""
    records = {(TRACT, 0): {"bands": ["r", "VIS"]}, (TRACT, 1): {"bands": ["Y_E", "J_E", "H_E"]}}
    assert zero_point_metrics(None, records) == {}


# ---------------------------------------------------------------------------- the fit
@pytest.fixture(scope="module")
def locus():
    magnitude, _ = stars(np.random.default_rng(1), 4000)
    return fit_locus(magnitude, (G, I))


def test_locus_is_that_of_the_spectra(locus):
    """Without noise, stars of any temperature on the line have its colours; the noise is its thickness."""
    temperature = np.linspace(3000, 6200, 30)
    magnitude = -2.5 * np.log10(star_colours((RUBIN, EUCLID), temperature))
    colours, _ = locus.at(magnitude[:, G] - magnitude[:, I])
    redder = magnitude - magnitude[:, [I]]
    np.testing.assert_allclose(colours, redder, atol=0.05)
    assert fit_locus(magnitude, (G, I)) is None  # 30 stars are none
    assert np.all((locus.scatter > THICK) & (locus.scatter < 5 * THICK))


@pytest.mark.parametrize("band", ["r", "VIS", "H_E"])
def test_strange_stars_count_little(locus, band):
    """A fifth of them far off the line, all to one side, move the zero point by less than its limit."""
    rng, k = np.random.default_rng(2), BANDS.index(band)
    magnitude, error = stars(rng, 60)
    clean, _, _ = zero_points(locus, magnitude, error)
    magnitude[:12, k] += 1.0
    offset, sigma, n_star = zero_points(locus, magnitude, error)
    assert abs(offset[k] - clean[k]) < 0.03 and n_star[k] == 60
    assert offset[I] == sigma[I] == 0


def test_a_band_that_is_missing(locus):
    """It is NaN, and the others do not change much; stars without the colour of the line are not used."""
    magnitude, error = stars(np.random.default_rng(3), 50)
    magnitude[:, BANDS.index("u")] = np.nan
    magnitude[:10, G] = np.nan
    offset, _, n_star = zero_points(locus, magnitude, error)
    assert np.isnan(offset[BANDS.index("u")]) and n_star[BANDS.index("u")] == 0 and n_star[I] == 40
    assert np.all(np.abs(np.delete(offset, BANDS.index("u"))) < 0.03)


def test_brightness_and_place_on_the_line_are_free(locus):
    """A field of only dwarfs, one of only hot stars, and one that is a magnitude brighter have the same zero points."""
    magnitude, error = stars(np.random.default_rng(4), 400)
    cool = magnitude[:, G] - magnitude[:, I] > 1.5
    for part, shift in ((cool, 0.0), (~cool, 0.0), (cool | True, -1.0)):
        offset, _, _ = zero_points(locus, magnitude[part] + shift, error[part])
        assert np.all(np.abs(offset) < 0.03)
