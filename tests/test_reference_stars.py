# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Stars of a catalogue: what tables of them say, and where they are at another epoch."""

from argparse import Namespace

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, QTable, Table
from astropy.time import Time

from rosetta.astrometry.reference_stars import reference_stars
from rosetta.commands.lists import stars_of

RATE = u.mas / u.yr
SKY = SkyCoord([53.1, 53.2], [-60.0, -60.1], unit="deg")


def archive():
    """As Gaia's archive gives it; the second star has a position only."""
    return Table({
        "ra": SKY.ra.deg * u.deg, "dec": SKY.dec.deg * u.deg, "ref_epoch": [2016.0, 2016.0] * u.yr,
        "pmra": MaskedColumn([40.0, 0.0], mask=[False, True], unit=RATE),
        "pmdec": MaskedColumn([-30.0, 0.0], mask=[False, True], unit=RATE),
        "pmra_error": MaskedColumn([0.2, 0.0], mask=[False, True], unit=RATE),
        "pmdec_error": MaskedColumn([0.1, 0.0], mask=[False, True], unit=RATE),
        "ra_error": [0.3, 1.0] * u.mas, "dec_error": [0.4, 1.0] * u.mas,
        "parallax": MaskedColumn([0.0, 0.0], mask=[False, True], unit=u.mas),
    })


def test_stars_move_along_the_great_circle_and_their_errors_grow():
    sky, variance = reference_stars(archive()).at(2026.0)
    east, north = SKY.spherical_offsets_to(sky)
    np.testing.assert_allclose(east.mas, [400.0, 0.0], atol=1e-3)
    np.testing.assert_allclose(north.mas, [-300.0, 0.0], atol=1e-3)
    np.testing.assert_allclose(variance[0], [0.3**2 + 2.0**2, 0.4**2 + 1.0**2])
    np.testing.assert_allclose(variance[1], 1.0 + 70.0**2)  # its motion is not known


@pytest.mark.parametrize("form", ["numbers", "masked", "positions in a table", "positions", "obstime"])
def test_every_form_gives_the_same_stars(form):
    table = archive()[:1]
    whole = SkyCoord(
        SKY[:1].ra, SKY[:1].dec, pm_ra_cosdec=[40.0] * RATE, pm_dec=[-30.0] * RATE,
        obstime=Time(2016.0, format="jyear"), frame="icrs",
    )
    given = {
        "numbers": Table({name: np.asarray(table[name]) for name in table.colnames}),
        "masked": QTable(table),
        "positions in a table": QTable({"sky_centroid": whole, "ra_error": [0.3] * u.mas}),
        "positions": whole,
        "obstime": QTable({
            "sky_centroid": SKY[:1], "obstime": Time([2016.0], format="jyear"),
            "pmra": [0.04] * u.arcsec / u.yr, "pmdec": [-0.03] * u.arcsec / u.yr,
        }),
    }[form]
    one, other = (reference_stars(a).at(2021.0)[0] for a in (given, table))
    assert one.separation(other).mas.max() < 1e-3


def test_an_image_without_a_date_has_the_motion_as_an_error():
    sky, variance = reference_stars(archive()[:1]).at(np.nan)
    assert sky.separation(SKY[:1]).mas.max() < 1e-6
    np.testing.assert_allclose(np.sqrt(variance[0]), [200.0, 150.0], rtol=1e-3)


def test_rows_without_a_position_are_left_out():
    table = archive()
    table["ra"] = MaskedColumn(table["ra"], mask=[True, False])
    assert len(reference_stars(table)) == 1


def test_a_file_of_stars_for_the_command_line(tmp_path):
    path = tmp_path / "stars.ecsv"
    archive().write(path)
    given = stars_of(Namespace(gaia=str(path)))["reference"]
    assert reference_stars(given).at(2021.0)[0].separation(reference_stars(archive()).at(2021.0)[0]).mas.max() < 1e-3
    assert stars_of(Namespace(gaia=None)) == {}
    archive()["ra", "dec"].write(path, overwrite=True)
    for name, message in (("stars.ecsv", "stars.ecsv: .*has no epoch"), ("none.ecsv", "there is no such file")):
        with pytest.raises(ValueError, match=message):
            stars_of(Namespace(gaia=str(tmp_path / name)))


@pytest.mark.parametrize("change, message", [
    (lambda t: t.remove_column("ref_epoch"), "has no epoch: add a column ref_epoch"),
    (lambda t: t.remove_column("ra"), "reference must be a table with sky_centroid .or ra, dec."),
    (lambda t: t.replace_column("pmra", [1.0, 2.0] * u.mas), "column pmra must hold numbers in mas / yr"),
])
def test_what_is_missing_is_named(change, message):
    table = archive()
    change(table)
    with pytest.raises(ValueError, match=message):
        reference_stars(table)
