# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The astrometric solution: signs, inverses, what it refuses, and that it travels."""

import pickle
from functools import lru_cache

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import QTable
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from rosetta import AstrometricSolution, Flag
from rosetta.astrometry import field, field_fit
from rosetta.astrometry.solution import AlignmentError, solution_for
from rosetta.images.image import BandImage
from rosetta.images.positions import TangentPlane, from_tangent, offset_coord, tangent

CENTER = SkyCoord(53.1, -28.1, unit="deg")
BOX = ((-50.0, -50.0), (50.0, 50.0))


def curved(xy):
    """Header + offset = truth: several arcsec, and a gradient of 2 mas an arcsec."""
    return np.stack([4200.0 + 2.0 * xy[:, 1], -2600.0 - 1.5 * xy[:, 0]], -1)


@lru_cache
def solution(verdict="ok"):
    if verdict == "abstain":
        return AstrometricSolution(verdict, "the sky is blank", CENTER, BOX, {})
    if verdict == "coarse":
        constant = field.constant([30.0, -20.0], 100.0)
        fields = {"joint": constant, "r": {**constant, "borrowed": "joint"}}
        return AstrometricSolution(verdict, "few", CENTER, BOX, fields)
    xy = np.random.default_rng(1).uniform(-40, 40, (40, 2))
    cov = np.tile(np.eye(2), (40, 1, 1))
    fits = {"joint": field_fit.fit_field(xy, curved(xy), cov, model="affine")}
    shift = field_fit.fit_field(xy, np.tile([7.0, 5.0], (40, 1)), cov, model="shift")
    fits["r"] = field_fit.on_top_of(fits["joint"].model, shift)
    return AstrometricSolution(verdict, "", CENTER, BOX, {band: fit.model for band, fit in fits.items()})


XY = np.array([[0.0, 0.0], [30.0, -12.0], [-7.0, 41.0]])


def test_offsets_and_positions_have_the_stated_sign():
    true = from_tangent(XY, CENTER)
    np.testing.assert_allclose(solution().offset_at(true), curved(XY), atol=1e-6)
    np.testing.assert_allclose(solution().offset_at(true, "r"), curved(XY) + [7.0, 5.0], atol=1e-6)
    for band in ("joint", "r"):
        header = solution().ground_position(true, band)
        moved = offset_coord(header, *(1e-3 * solution().offset_at(true, band)).T)  # true = header + offset
        assert moved.separation(true).mas.max() < 1.0
    assert solution().sigma_at(true).shape == (3, 2) and (solution().sigma_at(true) > 0).all()
    assert (solution().sigma_at(true, "r") > solution().sigma_at(true)).all()  # its own shift has an error too


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(*2 * [st.floats(-60, 60)]), min_size=1, max_size=5), st.sampled_from(["joint", "r"]),
    st.sampled_from(["ok", "coarse", "abstain"]), st.sampled_from(["icrs", "fk5"]),
)
def test_true_position_undoes_ground_position(places, band, verdict, frame):
    true = from_tangent(np.array(places), CENTER)
    header = solution(verdict).ground_position(true.transform_to(frame), band)
    assert solution(verdict).true_position(header, band).separation(true).mas.max() < 1e-3


def test_what_each_verdict_means():
    true = from_tangent(XY, CENTER)
    assert {v: solution(v).flag for v in ("ok", "coarse", "abstain")} == {
        "ok": Flag(0), "coarse": Flag.COARSE_ALIGNMENT, "abstain": Flag.UNALIGNED
    }
    coarse = solution("coarse")
    np.testing.assert_array_equal(coarse.offset_at(true, "r"), np.tile([30.0, -20.0], (3, 1)))
    np.testing.assert_array_equal(coarse.sigma_at(true), np.full((3, 2), 100.0))
    assert (coarse.kind("r"), coarse.frame("r"), coarse.frame("joint")) == ("coarse", "joint", "joint")
    assert (solution().kind("r"), solution().frame("r")) == ("joint + shift", "r")
    nothing = solution("abstain")
    assert nothing.bands == () and nothing.ground_position(true) is true
    for ask in (nothing.offset_at, nothing.sigma_at):
        with pytest.raises(AlignmentError, match="hold no alignment .the sky is blank.: keep the header WCS"):
            ask(true)


def test_unknown_band():
    with pytest.raises(ValueError, match="no offset field for band 'q'; the solution has: joint, r"):
        solution().offset_at(CENTER.reshape(1), "q")


def test_it_travels_and_cannot_be_changed():
    back = pickle.loads(pickle.dumps(solution()))
    table = QTable(meta=solution().to_meta())
    for other in (back, AstrometricSolution.from_table(table)):
        assert other.same_as(solution()) and other.box == BOX
    table.meta["model"]["bands"].clear()
    assert AstrometricSolution.from_table(QTable(meta=solution().to_meta())).bands == ("joint", "r")
    with pytest.raises(AttributeError):
        back.verdict = "abstain"
    assert not solution().same_as(solution("coarse"))


def test_refuses_what_is_not_the_aligners_table():
    advice = "offsets must be the table that LearnedAligner returns, with its meta, or its AstrometricSolution; "
    with pytest.raises(TypeError, match=f"{advice}got list"):
        AstrometricSolution.from_table([1, 2])
    with pytest.raises(ValueError, match=f"{advice}this table has lost verdict, reason, center, box, model"):
        AstrometricSolution.from_table(QTable())
    with pytest.raises(ValueError, match=f"{advice}this table's verdict is 'fine': pass it unchanged"):
        AstrometricSolution.from_table(QTable(meta={**solution().to_meta(), "verdict": "fine"}))


class Somewhere:
    """All that `solution_for` asks of an image: where it lies, 200 pixels of 0.2 arcsec a side."""

    shape = (200, 200)

    def __init__(self, center):
        self.wcs = WCS(naxis=2)
        self.wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        self.wcs.wcs.crval, self.wcs.wcs.crpix = [center.ra.deg, center.dec.deg], [100.5, 100.5]
        self.wcs.wcs.cdelt = [-0.2 / 3600, 0.2 / 3600]
        self.tangent_plane = TangentPlane(center)

    pixel_to_sky, east_north = BandImage.pixel_to_sky, BandImage.east_north


@pytest.mark.parametrize("away, told", [
    (0.0, None), (90.0, None), (110.0, "1.83 arcmin"), (600.0, "10 arcmin"), (9000.0, "2.5 deg"),
])
def test_a_pair_of_another_sky_is_refused(away, told):
    """The reference image reaches 71 arcsec from its centre, the pair's 28."""
    images = {"r": Somewhere(offset_coord(CENTER, 0.0, away))}
    if told is None:
        assert solution_for(solution(), images) is solution()
        assert solution_for(QTable(meta=solution().to_meta()), images).same_as(solution())
    else:
        with pytest.raises(ValueError, match=f"offsets are of another sky: their field is centred {told} from this"):
            solution_for(solution(), images)
    assert solution_for(None, images) is None


def test_a_full_turn_of_right_ascension_is_one_sky():
    at = SkyCoord(359.9999, 0.0, unit="deg")
    there = AstrometricSolution("ok", "", at, BOX, {"joint": field.constant([10.0, 0.0], 1.0)})
    true = from_tangent(XY, at)
    np.testing.assert_allclose(tangent(there.true_position(there.ground_position(true)), at), XY, atol=1e-6)
    assert solution_for(there, {"r": Somewhere(SkyCoord(0.0001, 0.0, unit="deg"))}) is there
