# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Results travel: pickled, copied, or written and read, they are what they were, and as read-only."""

import copy
import pickle
from dataclasses import fields

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData, NDData, StdDevUncertainty
from astropy.wcs import WCS, Sip
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rosetta import DeblendedScene, EmbeddingPhotometry, JEPADeblender, LearnedAligner, SkyEmbedding, SkyPair
from rosetta.images.wcs import cards_of, wcs_of
from rosetta.io import pair as pair_io
from rosetta.io._store import document, document_hdu, record, record_hdus
from rosetta.readonly import ReadOnlyDict

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


def image(n, scale, seed, **parts):
    """Four stars on noise; the WCS needs 17 digits and has a SIP distortion."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN-SIP", "DEC--TAN-SIP"], [53.1 + 1e-9, -28.1]
    wcs.wcs.cd = np.array([[-1, 1e-3], [1e-3, 1]]) * scale / 3600
    wcs.wcs.crpix = [n / 2 + 1 / 3, n / 2 + 1 / 7]
    a = np.zeros((3, 3))
    a[2, 0], a[1, 1] = 1e-6 / 3, -1e-6 / 7
    wcs.sip = Sip(a, a.T, None, None, wcs.wcs.crpix)
    sky = SkyCoord(53.1, -28.1, unit="deg").spherical_offsets_by([3, -3, -3, 3.5] * u.arcsec, [3, 3, -3, -3] * u.arcsec)
    width = 0.3 / scale
    y, x = np.mgrid[:n, :n]
    data = np.random.default_rng(seed).normal(0, 1, (n, n))
    for xs, ys in zip(*wcs.world_to_pixel(sky), strict=True):
        data += 3000 * np.exp(-((x - xs) ** 2 + (y - ys) ** 2) / (2 * width**2)) / (2 * np.pi * width**2)
    yk, xk = np.mgrid[-7:8, -7:8]
    psf = np.exp(-(xk**2 + yk**2) / (2 * width**2))
    mask = np.zeros((n, n), bool)
    mask[2, 3] = True
    given = {"uncertainty": StdDevUncertainty(np.ones((n, n))), "mask": mask, "psf": psf}
    return NDData(data, wcs=wcs, unit=u.nJy, **{**given, "meta": {"visit": 7, "name": "ä"}, **parts})


@pytest.fixture(scope="module")
def encoder():
    from rosetta import CrossSurveyEncoder
    from rosetta.encoding.network import EncoderConfig

    config = EncoderConfig(
        dim=384, depth=1, heads=6, proj_dim=256, predictor_dim=32, predictor_depth=1, predictor_heads=2
    )
    return CrossSurveyEncoder(config=config, seed=1, device="cpu")


@pytest.fixture(scope="module")
def pair():
    return SkyPair(
        {"r": image(80, 0.2, 1), "y": image(80, 0.2, 2, uncertainty=None)},
        {"VIS": image(160, 0.1, 3), "Y_E": image(160, 0.1, 4, psf=None)},
    )


@pytest.fixture(scope="module")
def scene(pair, encoder):
    embedding = encoder(pair, window=12.8 * u.arcsec)
    return JEPADeblender(encoder)(embedding, offsets=LearnedAligner(encoder)(embedding))


@pytest.fixture(scope="module")
def written(scene, tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "scene.fits"
    scene.write(path)
    return path


def assert_same_pair(one, two):
    assert one.bands == two.bands
    assert one.surveys == two.surveys
    assert dict(one.flags) == dict(two.flags)
    x, y = np.random.default_rng(0).uniform(0, 80, (2, 50))
    for (_, band, a), (_, _, b) in zip(one.images(), two.images(), strict=True):
        for of in ("data", "mask", "psf"):
            np.testing.assert_array_equal(getattr(a, of), getattr(b, of), err_msg=band, strict=True)
        np.testing.assert_array_equal(a.uncertainty.array, b.uncertainty.array, err_msg=band, strict=True)
        np.testing.assert_array_equal(np.stack(a.wcs.world_to_pixel(a.wcs.pixel_to_world(x, y))),
                                      np.stack(b.wcs.world_to_pixel(b.wcs.pixel_to_world(x, y))), err_msg=band)
        assert a.meta == b.meta


def assert_same_embedding(one, two):
    assert_same_pair(one.pair, two.pair)
    assert (one.fingerprint, one.window, one.meta) == (two.fingerprint, two.window, two.meta)
    for axis in ("ra", "dec"):
        np.testing.assert_array_equal(getattr(one.centers, axis).deg, getattr(two.centers, axis).deg)
    assert set(one.sides) == set(two.sides)
    for side, arrays in one.sides.items():
        assert set(arrays) == set(two.sides[side])
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, two.sides[side][name], err_msg=name, strict=True)


def assert_same_table(one, two):
    assert one.colnames == two.colnames
    for name in one.colnames:
        a, b = (SkyCoord(t[name]).icrs.cartesian.xyz if name.startswith("sky") else t[name] for t in (one, two))
        assert getattr(a, "unit", None) == getattr(b, "unit", None)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)


def assert_same_scene(one, two, encoder):
    assert_same_embedding(one.embedding, two.embedding)
    assert (one.bands, one.meta) == (two.bands, two.meta)
    assert_same_table(one.to_table(), two.to_table())
    assert_same_table(one.offsets, two.offsets)
    assert one.offsets.meta["model"] == two.offsets.meta["model"]
    assert one.offsets.meta["center"].separation(two.offsets.meta["center"]) == 0
    np.testing.assert_array_equal(one.template_covariance, two.template_covariance)
    for band in one.bands:
        for of in ("model", "residual"):
            a, b = (s.model(None, band) if of == "model" else s.residual(band) for s in (one, two))
            np.testing.assert_array_equal(a.data, b.data, err_msg=band)
        a, b = (s.covariance(band) for s in (one, two))
        assert (a != b).nnz == 0
        assert a.shape == b.shape
        np.testing.assert_array_equal(one.model(one.labels[0], band).data, two.model(one.labels[0], band).data)
        for field in fields(one._fits[band]):
            a, b = (getattr(s._fits[band], field.name) for s in (one, two))
            if isinstance(a, np.ndarray | float | int):
                np.testing.assert_array_equal(a, b, err_msg=field.name, strict=isinstance(a, np.ndarray))
    photometry = EmbeddingPhotometry(encoder)
    assert_same_table(photometry(one.embedding, one), photometry(two.embedding, two))


# ---------------------------------------------------------------------------- pickle and deepcopy
@pytest.mark.parametrize("way", WAYS)
def test_pair_copies(pair, way):
    assert_same_pair(pair, WAYS[way](pair))


@pytest.mark.parametrize("way", WAYS)
def test_scene_copies(scene, encoder, way):
    """With its embedding and its pair."""
    assert_same_scene(scene, WAYS[way](scene), encoder)


def test_a_pickled_scene_holds_its_pixels_once(scene):
    _ = [scene.residual(band) for band in scene.bands]
    assert len(pickle.dumps(scene)) < 1.1 * len(pickle.dumps(scene.embedding)) + 1e5


def test_offsets_pickle(scene):
    offsets = pickle.loads(pickle.dumps(scene.offsets))
    assert_same_table(scene.offsets, offsets)
    assert offsets.meta["verdict"] == scene.offsets.meta["verdict"]


# ---------------------------------------------------------------------------- nothing can be changed
@pytest.mark.parametrize("way", ["itself", "deepcopy", "pickle", "file"])
def test_nothing_can_be_changed(scene, written, way):
    thing = {"itself": lambda s: s, "file": lambda s: DeblendedScene.read(written), **WAYS}[way](scene)
    embedding, pair = thing.embedding, thing.embedding.pair
    for mapping in (pair.ground, pair.space, pair.flags, embedding.sides, embedding.sides["ground"]):
        name = next(iter(mapping))
        with pytest.raises(TypeError):
            mapping[name] = None
        with pytest.raises(TypeError):
            del mapping[name]
    for _, _, picture in pair.images():
        for array in (picture.data, picture.mask, picture.uncertainty.array, picture.psf):
            if array is not None:
                with pytest.raises(ValueError, match="read-only"):
                    array[0] = 1
        for name in ("data", "mask", "uncertainty", "wcs", "meta", "psf", "unit"):
            with pytest.raises(AttributeError):
                setattr(picture, name, None)
        # What is handed out beside arrays is a copy.
        before = picture.wcs.wcs.crval[0]
        picture.wcs.wcs.crval = [0.0, 0.0]
        picture.uncertainty.array = np.zeros((2, 2))
        picture.meta["visit"] = 0
        assert picture.wcs.wcs.crval[0] == before
        assert picture.uncertainty.array.shape == picture.data.shape
        assert picture.meta["visit"] == 7
    for arrays in embedding.sides.values():
        for array in arrays.values():
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
    window, center = embedding.window, embedding.centers
    window *= 2
    center[0] = SkyCoord(0, 0, unit="deg")
    assert embedding.window == 12.8 * u.arcsec
    assert embedding.centers[0].dec.deg != 0
    embedding.meta["window"] = thing.meta["rosetta"] = None
    assert embedding.meta["window"]
    assert thing.meta["rosetta"]
    thing.to_table()["flags"] = 0
    thing.offsets["flags"] = -1
    assert not np.any(thing.offsets["flags"] == -1)
    thing.covariance("r").data[:] = 0
    thing.flux("r")[:] = 0
    thing.labels[:] = 0
    assert thing.covariance("r").data.any()
    assert thing.flux("r").value.any()
    assert thing.labels.all()
    with pytest.raises(ValueError, match="read-only"):
        thing.template_covariance[0] = 0
    for name in ("ground", "space", "surveys", "flags"):
        with pytest.raises(AttributeError):
            setattr(pair, name, None)


def test_images_can_be_copied_to_change_them(pair):
    mine = CCDData(CCDData(pair.ground["r"]).copy())
    mine.data[0] = 5
    assert mine.unit == u.nJy
    assert pair.ground["r"].data[0, 0] != 5


# ---------------------------------------------------------------------------- files
def test_embedding_file(scene, tmp_path):
    scene.embedding.write(tmp_path / "embedding.fits")
    assert_same_embedding(scene.embedding, SkyEmbedding.read(tmp_path / "embedding.fits"))
    assert [path.name for path in tmp_path.iterdir()] == ["embedding.fits"]
    for thing in (scene, scene.embedding):
        with pytest.raises(FileExistsError, match="embedding.fits' exists: choose another name, or give overwrite"):
            thing.write(tmp_path / "embedding.fits")
    scene.embedding.write(tmp_path / "embedding.fits", overwrite=True)
    with pytest.raises(ValueError, match="embedding.fits is not a rosetta scene file"):
        DeblendedScene.read(tmp_path / "embedding.fits")


def test_scene_file(scene, encoder, written):
    """It holds an embedding and a pair, too."""
    assert_same_scene(scene, DeblendedScene.read(written), encoder)
    assert_same_embedding(scene.embedding, SkyEmbedding.read(written))
    assert_same_pair(scene.embedding.pair, pair_io.read(written))
    with fits.open(written) as hdus:
        assert hdus[0].header["ENCODER"] == scene.embedding.fingerprint
        assert hdus[0].header["NSOURCE"] == len(scene)
        assert hdus["SOURCES"].columns["half_light_radius"].unit == "arcsec"


def test_a_scene_without_sources_or_offsets(encoder, tmp_path):
    blank = NDData(np.random.default_rng(0).normal(0, 1, (160, 160)), unit=u.nJy, wcs=image(160, 0.1, 0).wcs)
    empty = JEPADeblender(encoder)(encoder(SkyPair(None, {"VIS": blank}), window=12.8 * u.arcsec))
    assert len(empty) == 0
    empty.write(tmp_path / "scene.fits")
    for twin in (DeblendedScene.read(tmp_path / "scene.fits"), copy.deepcopy(empty)):
        assert len(twin) == 0
        assert twin.offsets is None
        assert_same_table(empty.to_table(), twin.to_table())
        np.testing.assert_array_equal(empty.residual("VIS").data, twin.residual("VIS").data)
        assert twin.covariance("VIS").shape == (0, 0)


def test_cutout_keeps_its_noise(pair, tmp_path):
    """The noise of a band without variance was measured on the whole image; a cutout's file must not measure again."""
    center = pair.space["VIS"].wcs.pixel_to_world(60, 60)
    piece = pair.cutout(center, 5 * u.arcsec)
    pair_io.write(piece, tmp_path / "piece.fits")
    assert_same_pair(piece, pair_io.read(tmp_path / "piece.fits"))


def test_damaged_files_are_named(written, tmp_path):
    whole = written.read_bytes()
    with fits.open(written, disable_image_compression=True) as hdus:
        names = [hdu.name for hdu in hdus]
        ends = [hdu._data_offset + -(-hdu._data_size // 2880) * 2880 for hdu in hdus]
    cut = tmp_path / "cut.fits"
    readers = (DeblendedScene.read, SkyEmbedding.read, pair_io.read)
    for end in (ends[0], ends[len(ends) // 2], ends[-2], ends[-1] - 2880):
        cut.write_bytes(whole[:end])
        for read in readers:
            with pytest.raises(ValueError, match="cut.fits is not .*complete"):
                read(cut)
    for missing in ("WINDOWS", "TEMPLATES", "FIT_R", "SCENE_META"):
        with fits.open(written) as hdus:
            hdus.pop(names.index(missing))
            hdus[0].header["NUMEXT"] -= 1
            hdus.writeto(cut, overwrite=True)
        with pytest.raises(ValueError, match=f"cut.fits .*{missing}"):
            DeblendedScene.read(cut)
    with fits.open(written) as hdus:
        hdus[0].header["SCNFMT"] = 99
        hdus.writeto(cut, overwrite=True)
    with pytest.raises(ValueError, match="cut.fits has scene format 99, newer than 2: upgrade"):
        DeblendedScene.read(cut)
    with fits.open(written) as hdus:
        hdus[0].header["SCNFMT"] = 1
        hdus.writeto(cut, overwrite=True)
    with pytest.raises(ValueError, match="cut.fits is a scene of an earlier format: make the scene again"):
        DeblendedScene.read(cut)
    cut.write_text("not FITS")
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "foreign.fits")
    for read in readers:
        with pytest.raises(ValueError, match="cut.fits is not a complete FITS file"):
            read(cut)
        with pytest.raises(ValueError, match="foreign.fits is not a rosetta"):
            read(tmp_path / "foreign.fits")


def test_a_failed_write_leaves_the_old_file(scene, tmp_path, monkeypatch):
    path = tmp_path / "scene.fits"
    path.write_text("mine")
    monkeypatch.setattr(fits.HDUList, "writeto", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scene.write(path, overwrite=True)
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["scene.fits"]


# ---------------------------------------------------------------------------- building blocks
numbers = st.one_of(
    hnp.arrays(st.sampled_from([np.float64, np.float32, np.int64, np.int32, np.uint8, bool]), st.just((3, 2))),
    hnp.arrays(np.float64, 3), st.floats(), st.integers(-(2**62), 2**62), st.booleans(), st.none(),
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcdefgh"), numbers, min_size=1))
def test_records_come_back(values):
    hdus = record_hdus("NAME", values, 3)
    with _reopened(hdus) as again:
        back = record({(hdu.name, hdu.ver): hdu for hdu in again[1:]}, "NAME")
    assert set(back) == set(values)
    for name, value in values.items():
        assert type(back[name]) is type(value)
        np.testing.assert_array_equal(back[name], value, strict=isinstance(value, np.ndarray))


def _reopened(hdus):
    from io import BytesIO

    file = BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(file)
    file.seek(0)
    return fits.open(file)


def test_notes_come_back():
    note = {"a": [1, 2.5e-300, None, "it's ä"], "at": SkyCoord(1 / 3, -2 / 3, unit="deg"), "x": {"size": 3 * u.mas}}
    with _reopened([document_hdu("NOTE", {**note, "path": ValueError("odd"), "np": np.float64(0.1)})]) as hdus:
        back = document({("NOTE", 1): hdus[1]}, "NOTE")
    assert (back["a"], back["x"], back["path"], back["np"]) == (note["a"], note["x"], "odd", 0.1)
    assert (back["at"].ra.deg, back["at"].dec.deg) == (1 / 3, -2 / 3)


@given(
    st.lists(st.floats(-1e-3, 1e-3).filter(lambda v: abs(v) > 1e-12), min_size=4, max_size=4),
    st.tuples(st.floats(0, 359), st.floats(-80, 80)), st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
)
def test_wcs_cards_lose_nothing(matrix, crval, crpix):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], crval, crpix
    wcs.wcs.cd = np.reshape(matrix, (2, 2)) + np.eye(2) * 0.01
    again = wcs_of(fits.Header.fromstring(cards_of(wcs).tostring()))
    np.testing.assert_array_equal(wcs.pixel_to_world_values(3.3, 7.7), again.pixel_to_world_values(3.3, 7.7))


def test_read_only_dict():
    array = np.zeros(3)
    one = ReadOnlyDict({"a": array, "b": ReadOnlyDict({"c": 1})})
    for way in WAYS.values():
        two = way(one)
        assert two["b"] == {"c": 1}
        assert not two["a"].flags.writeable
        with pytest.raises(TypeError):
            two["d"] = 1
