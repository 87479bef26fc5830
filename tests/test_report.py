# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The report of a run: one page that loads nothing, in which text stays text."""

import json
import re

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import MaskedColumn, QTable

from rosetta import Flag
from rosetta.cli import main
from rosetta.io import write_catalogue
from rosetta.pipeline import report

pytest.importorskip("matplotlib")

EVIL = "</script><script>alert(1)</script>"


def catalogue(n=3):
    table = QTable({"label": np.arange(1, n + 1)})
    table["sky_centroid"] = SkyCoord(150 + np.arange(n) * 1e-4, np.full(n, 2.2), unit="deg")
    for band, flux in (("r", 100.0), ("VIS", 200.0)):
        table[f"flux_{band}"] = (flux + np.arange(n)) * u.nJy
        table[f"flux_err_{band}"] = np.full(n, 3.0) * u.nJy
        table[f"chi2_{band}"] = np.full(n, 1.25)
        table[f"flags_{band}"] = np.where(np.arange(n) == 0, int(Flag.EDGE), 0)
    table["flags_VIS"][1] = int(Flag.POOR_FIT)
    table["flux_r"][-1] = np.nan * u.nJy
    table["flux_cov"] = np.ones((n, 2, 2)) * u.nJy**2
    table["snr"] = np.arange(n, dtype=float)
    table["flags"] = np.where(np.arange(n) == 0, int(Flag.EDGE | Flag.BLENDED), 0)
    table["flags"][1] = int(Flag.POOR_FIT)
    told = {"head_fingerprint": "0123", "inputs": {"r": {"file": EVIL, "shape": [10, 10], "flags": 0}}}
    table.meta.update(rosetta=told, bands=["r", "VIS"])
    return table


@pytest.fixture
def run(tmp_path):
    """The folder of a run of one survey."""
    folder = tmp_path / "a & b"
    folder.mkdir()
    write_catalogue(catalogue(), folder / "catalogue.ecsv")
    (folder / "overview.png").write_bytes(report.PNG + b"picture")
    residual = np.random.default_rng(0).normal(0, 2, (450, 450)).astype(np.float32)
    hdu = fits.ImageHDU(residual, name="RESIDUAL_VIS")
    hdu.header["BAND"] = "VIS"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(folder / "models.fits")
    return folder


def rows_of(text):
    return json.loads(re.search(r'<script type="application/json" id="rows">(.*?)</script>', text)[1])


def test_report(run, capsys):
    assert main(["report", str(run)]) == 0
    assert "report.html" in capsys.readouterr().out
    text = (run / "report.html").read_text()
    assert "3 sources in r VIS; 1 of them blended" in text
    assert "<title>rosetta: a &amp; b</title>" in text
    assert "data:image/png;base64,iVBORw0KGgo" in text
    assert re.search(r"<td>EDGE</td><td>1</td><td>1</td><td>1</td>", text)
    assert re.search(r"<td>POOR_FIT</td><td>1</td><td>0</td><td>1</td>", text)
    assert re.search(r"<td>BLENDED</td><td>1</td><td></td><td></td>", text)  # it is not kept for each band
    assert "images of one survey only" in text
    scatter, far, chi2 = re.search(r"<td>VIS</td><td>([\d.]+)</td><td>([\d.]+)</td><td>([\d.]+)</td>", text).groups()
    assert abs(float(scatter) - 2) < 0.02
    assert (float(far), float(chi2)) == (0, 1.25)
    rows = rows_of(text)
    assert len(rows["rows"]) == 3
    assert dict(zip(rows["columns"], rows["rows"][2], strict=True))["r"] == [None, 3.0, 1]
    assert dict(zip(rows["columns"], rows["rows"][2], strict=True))["VIS"] == [202.0, 3.0, 1]
    assert rows["columns"][rows["flag"]] == "flags"
    assert rows["flags"][14] == "BLENDED"


def test_columns_of_a_list_are_shown(run):
    """What came with --sources stands beside the label; names that are long or too large for a number are texts."""
    table = catalogue()
    table["id"] = MaskedColumn(["b7", EVIL, "x" * 99], mask=[False, False, True])
    table["object"] = [2**60 + 1, 2, 3]
    table["r"] = [1.5, np.inf, 0.123456789012] * u.mag  # the name of a band
    table["ra"] = table["sky_centroid"].ra
    table["pair"], table["other"] = np.ones((3, 2)), table["sky_centroid"]
    (run / "catalogue.ecsv").unlink()
    write_catalogue(table, run / "catalogue.ecsv")
    text = report.write_report(run).read_text()
    rows = rows_of(text)
    assert rows["columns"] == [
        "label", "id", "object", "r (mag)", "RA (deg)", "Dec (deg)", "snr", "r", "VIS", "flags"
    ]
    assert rows["rows"][0][:4] == [1, "b7", str(2**60 + 1), 1.5]
    assert rows["rows"][1][1:4] == [EVIL, 2, None] and EVIL not in text
    assert rows["rows"][2][1:4] == [None, 3, 0.123456789]


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (4563.27, 812.3, (4560.0, 810.0, 0)),
        (12.3456, 0.05, (12.346, 0.05, 3)),
        (-0.4, 9.96, (-0.0, 10.0, 0)),
        (np.nan, 3.0, (None, 3.0, 1)),
        (123.456, np.nan, (123.5, None, None)),
        (1.0, 0.0, (1.0, None, None)),
    ],
)
def test_values_have_the_digits_that_their_errors_allow(value, error, shown):
    table = catalogue()[:1]
    table["flux_r"], table["flux_err_r"] = [value] * u.nJy, [error] * u.nJy
    rows = report._rows(table, ["r"])
    assert tuple(rows["rows"][0][rows["columns"].index("r")]) == shown


def test_nothing_is_loaded_and_text_stays_text(run):
    text = report.write_report(run).read_text()
    assert all(value.startswith("data:") for value in re.findall(r"(?:src|href)\s*=\s*[\"']?([^\s>]*)", text))
    assert "http" not in text.replace("http-equiv", "")
    assert EVIL not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert text.count("<script") == 2 == text.count("</script")


def test_size_is_bounded(run, monkeypatch):
    """Of too many rows the brightest are shown, in the order of the catalogue, and the page says so."""
    monkeypatch.setattr(report, "MAX_ROWS", 2)
    text = report.write_report(run).read_text()
    assert [row[0] for row in rows_of(text)["rows"]] == [2, 3]
    assert "The 2 rows of highest S/N; the catalogue has 3." in text


def test_what_is_no_run(run, tmp_path, capsys):
    def refused(*argv):
        assert main(["report", *map(str, argv)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "no folder: name the one that rosetta run -o made" in refused(tmp_path / "absent")
    assert "holds no catalogue: name the folder of one run" in refused(tmp_path)
    assert "name a file in a folder that exists" in refused(run, "-o", tmp_path / "no" / "page.html")
    (run / "overview.png").write_text("text")
    assert "overview.png' is no PNG picture" in refused(run)
    (run / "offsets.ecsv").write_text("text")
    (run / "overview.png").unlink()
    assert "offsets.ecsv' cannot be read as offsets" in refused(run)
    (run / "catalogue.ecsv").write_text("text")
    assert "catalogue.ecsv'" in refused(run)
    assert not (run / "report.html").exists()
