# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Catalogues as files: the table that is read is the one that was written."""

import json
import sys

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import Angle, SkyCoord
from astropy.io import fits, votable
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.time import Time
from astropy.utils.masked import Masked
from hypothesis import given, settings
from hypothesis import strategies as st

from rosetta import io
from rosetta.io.catalogue import ENDINGS
from rosetta.pipeline.catalogue_file import FILES, check_format, find_catalogue


def format_or_skip(ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")


@pytest.fixture(params=list(ENDINGS))
def ending(request):
    format_or_skip(request.param)
    return request.param


def table_of(n):
    """A catalogue with all that a user's own columns may add."""
    rng = np.random.default_rng(1)
    table = QTable({"label": np.arange(1, n + 1)})
    table["label"].description = "which source"
    table["label"].info.meta = {"own": [1, 2]}
    ra, dec = 359.9999 + rng.uniform(-1e-4, 1e-4, n), rng.uniform(-90, 90, n)
    table["sky_centroid"] = SkyCoord(ra, dec, unit="deg")
    table["sky_centroid"].info.description = "place"
    table["flux_y"] = rng.normal(0, 100, n) * u.nJy
    table["flux_Y_E"] = rng.normal(0, 100, n).astype("f4") * u.nJy
    table["flux_y"][:1] = np.nan * u.nJy
    table["flux_y"].info.description, table["flux_y"].info.format = "flux", ".1f"
    table["flux_cov"] = rng.normal(0, 1, (n, 2, 2)) * u.nJy**2
    table["chi2"] = Column(rng.normal(0, 1, n), format=".2f")
    table["spectrum"] = rng.normal(0, 1, (n, 3)).astype("f4")
    table["flags"] = np.full(n, 1 << 40)
    table["good"] = np.arange(n) % 2 == 0
    table["small"], table["count"] = np.arange(n, dtype="i1"), np.arange(n, dtype="u4")
    table["name"] = np.array(["NGC 1", "a, \"b\" <c> & d", ""][:n], dtype="U16")
    table["mag"] = rng.uniform(20, 25, n) * u.ABmag
    table["size"] = Angle(rng.uniform(0, 1, n), "arcsec")
    table["ratio"] = rng.normal(0, 1, n) * u.dimensionless_unscaled
    table["n_old"] = MaskedColumn(np.arange(n), mask=np.arange(n) == 1)
    table["z_old"] = MaskedColumn(np.append([np.nan], np.arange(n))[:n], mask=np.arange(n) == 1, unit="mas")
    table["old_flux"] = Masked(np.append([np.nan], np.arange(n))[:n] * u.nJy, mask=np.arange(n) == 1)
    table["seen"] = Time(60000 + rng.uniform(0, 1, n), format="mjd", scale="utc")
    table["other"] = SkyCoord(rng.uniform(0, 360, n), rng.uniform(-90, 90, n), unit="deg")
    nested = {"a": {"b": [1, 2.5, None, "x\n<&>", {"c": True}]}, "sigma": [np.nan, 0.1 + 0.2], "text": "\u00e9\u03b1"}
    table.meta = {"bands": ["y", "Y_E"], "rosetta": nested}
    return table


def kind_of(column):
    """In ECSV a masked column is one only where something is missing."""
    return Column if type(column) is MaskedColumn and not column.mask.any() else type(column)


def same(one, two):
    """That two tables are equal: columns, kinds, types, units, notes and every value, missing ones included."""
    assert type(one) is type(two) and one.colnames == two.colnames and len(one) == len(two)
    assert repr(one.meta) == repr(dict(two.meta))
    for name in one.colnames:
        a, b = one[name], two[name]
        assert kind_of(a) is kind_of(b) and a.shape == b.shape, name
        assert a.info.unit == b.info.unit and a.info.description == b.info.description, name
        assert dict(a.info.meta or {}) == dict(b.info.meta or {}) and a.info.format == b.info.format, name
        if isinstance(a, SkyCoord):
            parts = [(a.ra.deg, b.ra.deg), (a.dec.deg, b.dec.deg)]
        elif isinstance(a, Time):
            parts = [(a.jd1, b.jd1), (a.jd2, b.jd2)]
            assert (a.scale, a.format) == (b.scale, b.format)
        else:
            assert a.dtype == b.dtype, name
            mask = getattr(a, "mask", np.zeros(a.shape, bool))
            np.testing.assert_array_equal(mask, getattr(b, "mask", np.zeros(b.shape, bool)))
            parts = [(np.asarray(getattr(c, "unmasked", c))[~np.asarray(mask)] for c in (a, b))]
        for left, right in parts:
            np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_table_comes_back(tmp_path, ending, n):
    table = table_of(n)
    before = table.copy()
    io.write_catalogue(table, tmp_path / f"c{ending}")
    same(table, io.read_catalogue(str(tmp_path / f"c{ending}")))
    same(before, table)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(), max_size=4), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4))
def test_every_number_comes_back(tmp_path_factory, values, integers):
    folder, n = tmp_path_factory.mktemp("files"), len(values)
    table = QTable({"number": np.array(values, float) * u.mas, "integer": np.array(integers[:n], np.int64)})
    for ending in ENDINGS:
        if ending != ".parquet":
            io.write_catalogue(table, folder / f"c{ending}")
            same(table, io.read_catalogue(folder / f"c{ending}"))


def test_positions_are_flat(tmp_path):
    table = table_of(3)
    for ending in (".fits", ".vot"):
        io.write_catalogue(table, tmp_path / f"c{ending}")
        plain = Table.read(tmp_path / f"c{ending}", **({"hdu": 1} if ending == ".fits" else {}))
        assert {"ra", "dec", "other_ra", "other_dec", "n_old_masked"} <= set(plain.colnames)
        assert plain["ra"].unit == u.deg and plain["flux_cov"].shape == (3, 2, 2) and plain["flux_cov"].unit == u.nJy**2
        np.testing.assert_array_equal(plain["dec"], table["sky_centroid"].dec.deg)
    given = QTable({"Ra": [1.0], "sky_centroid": SkyCoord([2.0], [3.0], unit="deg")})
    io.write_catalogue(given, tmp_path / "given.fits")
    assert Table.read(tmp_path / "given.fits", hdu=1).colnames == ["Ra", "sky_centroid_ra", "sky_centroid_dec"]
    same(given, io.read_catalogue(tmp_path / "given.fits"))


def test_parquet_is_flat_and_says_units(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
    io.write_catalogue(table_of(3), tmp_path / "c.parquet")
    found = parquet.read_table(tmp_path / "c.parquet")
    assert {"ra", "dec", "flux_cov"} <= set(found.column_names)
    told = found.schema.field("flux_y").metadata
    assert (told[b"unit"], told[b"description"]) == (b"nJy", b"flux")
    assert json.loads(found.schema.metadata[b"CATALOGUE_META"])["bands"] == ["y", "Y_E"]
    assert len(found["flux_cov"][0].as_py()) == 4


@pytest.mark.parametrize("n", [0, 3])
def test_the_votable_is_valid(tmp_path, n):
    io.write_catalogue(table_of(n), tmp_path / "c.vot")
    report = tmp_path / "report"
    with open(report, "w") as output:
        assert votable.validate(str(tmp_path / "c.vot"), output=output), report.read_text()
    assert "found no violations" in report.read_text()
    assert "<DESCRIPTION>\n     flux\n" in (tmp_path / "c.vot").read_text()
    fields = {field.name: field for field in votable.parse_single_table(str(tmp_path / "c.vot")).fields}
    assert fields["ra"].ucd == "pos.eq.ra;meta.main" and fields["other_dec"].ucd == "pos.eq.dec"
    assert str(fields["mag"].unit) == "mag"


def test_fits_has_descriptions_and_provenance(tmp_path):
    io.write_catalogue(table_of(3), tmp_path / "c.fits")
    with fits.open(tmp_path / "c.fits") as file:
        number = file["CATALOGUE"].columns.names.index("flux_y") + 1
        assert file["CATALOGUE"].header[f"TCOMM{number}"] == "flux"
        assert file["CATALOGUE"].header[f"TUNIT{number}"] == "nJy"
        assert json.loads(file["CATALOGUE_META"].data["json"][0])["bands"] == ["y", "Y_E"]


def test_files_are_replaced_only_if_asked(tmp_path, ending):
    path = tmp_path / f"c{ending}"
    io.write_catalogue(table_of(1), path)
    with pytest.raises(FileExistsError, match="exists: choose another name, or give overwrite=True"):
        io.write_catalogue(table_of(3), path)
    io.write_catalogue(table_of(3), path, overwrite=True)
    assert len(io.read_catalogue(path)) == 3 and len(list(tmp_path.iterdir())) == 1


def test_a_damaged_file_is_named(tmp_path, ending):
    path = tmp_path / f"c{ending}"
    io.write_catalogue(table_of(3), path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises((OSError, ValueError), match=path.name):
        io.read_catalogue(path)


def test_a_fits_file_of_another_kind_is_named(tmp_path):
    path = tmp_path / "c.fits"
    QTable({"label": [1, 2, 3]}).write(path)
    with pytest.raises(ValueError, match="c.fits' cannot be read .*no extension CATALOGUE_COLUMNS"):
        io.read_catalogue(path)


@pytest.mark.parametrize("lost", ["row", "digit"])
def test_a_cut_ecsv_file_is_noticed(tmp_path, lost):
    path = tmp_path / "c.ecsv"
    io.write_catalogue(table_of(3), path)
    text = path.read_text()
    path.write_text(text[: text.rindex("\n", 0, -1) + 1] if lost == "row" else text[:-2])
    with pytest.raises(ValueError, match=r"c.ecsv' cannot be read .* \(it was cut: it ends in row [23] of 3\)"):
        io.read_catalogue(path)


def test_what_cannot_be_written_is_named(tmp_path):
    def written(column, ending=".fits"):
        io.write_catalogue(QTable({"own": column}), tmp_path / f"c{ending}")

    with pytest.raises(ValueError, match="object values in 'own'"):
        written(Column([{}, []], dtype=object))
    with pytest.raises(ValueError, match="a frame, distance or motion in 'own': write plain ICRS ones"):
        written(SkyCoord([1], [2], unit="deg", frame="galactic"))
    with pytest.raises(ValueError, match="text in 'own' that FITS cannot hold: choose ECSV, Parquet or VOTable"):
        written(["\u03b1"])
    with pytest.raises(ValueError, match=r"path is 'c.csv': let it end in one of .ecsv, .fits, .parquet, .vot"):
        written([1], ".csv")
    with pytest.raises(TypeError, match="path must be the path of a file, got NoneType"):
        io.read_catalogue(None)
    with pytest.raises(TypeError, match="catalog must be a table, got dict"):
        io.write_catalogue({}, tmp_path / "c.fits")
    assert not list(tmp_path.iterdir())


def test_names_that_differ_in_case_alone_stay_apart(tmp_path, ending):
    table = QTable({"Mag": [1.0], "mag": [2.0], "MAG": [3], "mag_": [4]})
    table["x"] = MaskedColumn([5.0], mask=[True])
    table["X_masked"] = [6]
    io.write_catalogue(table, tmp_path / f"c{ending}")
    same(table, io.read_catalogue(tmp_path / f"c{ending}"))


def test_a_missing_pyarrow_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="Parquet files need pyarrow: install it"):
        io.write_catalogue(table_of(1), tmp_path / "c.parquet")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("rosetta.pipeline.catalogue_file.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="format 'parquet' needs pyarrow: install it, or choose ecsv, fits or votable"):
        check_format("parquet")
    check_format("votable")


def test_a_run_has_one_catalogue(tmp_path):
    for name in FILES.values():
        assert name.endswith(tuple(ENDINGS))
        (tmp_path / name).write_text("")
        assert find_catalogue(tmp_path).name == name
        (tmp_path / name).unlink()
