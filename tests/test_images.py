# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The border: geometry exact to a hundredth of a pixel, flux and depth kept, masks never leak."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import Angle, SkyCoord, SkyOffsetFrame
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from rosetta import Flag, SkyPair
from rosetta.encoding.network import EncoderConfig
from rosetta.encoding.windows import fitting_window, is_extrapolated, side_view, window_grid
from rosetta.images.image import BandImage, band_images
from rosetta.images.moments import adaptive_moments
from rosetta.images.positions import TangentPlane, from_tangent, offset_coord, tangent
from rosetta.surveys import PIXEL_SCALE

KNOTS = {side: EncoderConfig().knots(side) for side in ("ground", "space")}
angles = st.floats(-180, 180)


@settings(deadline=None, max_examples=50)
@given(
    ra=st.floats(0, 359.9),
    dec=st.floats(-88, 88),
    east=st.floats(-600, 600),
    north=st.floats(-600, 600),
)
def test_tangent_plane_round_trip(ra, dec, east, north):
    center = SkyCoord(ra, dec, unit="deg")
    sky = from_tangent([[east, north]], center)
    np.testing.assert_allclose(tangent(sky, center), [[east, north]], atol=1e-6)
    # An independent formula: gnomonic offsets are tangents of the offset-frame angles.
    local = sky.transform_to(SkyOffsetFrame(origin=center))
    expected = np.tan(local.lon.rad) * 206264.806, np.tan(local.lat.rad) / np.cos(local.lon.rad) * 206264.806
    np.testing.assert_allclose(tangent(sky, center)[0], np.ravel(expected), atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    ra=st.floats(0, 359.9),
    dec=st.floats(-89.9, 89.9),
    east=st.floats(-5, 5),
    north=st.floats(-5, 5),
)
def test_offset_coord_is_east_and_north(ra, dec, east, north):
    start = SkyCoord([ra], [dec], unit="deg")
    moved = offset_coord(start, east, north)
    expected = start.spherical_offsets_by(east * u.arcsec, north * u.arcsec)
    assert moved.shape == (1,) and moved.separation(expected)[0].arcsec < 1e-6
    away = [v[0].to_value(u.arcsec) for v in start.spherical_offsets_to(moved)]
    assert away == pytest.approx([east, north], abs=1e-6)


def test_place_of_sources_and_its_derivatives():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53.0, -28.0], [50.0, 40.0]
    c, s = np.cos(0.3), np.sin(0.3)
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) * 0.2 / 3600
    noise = VarianceUncertainty(np.ones((80, 100)))
    image = NDData(np.zeros((80, 100)), uncertainty=noise, mask=np.zeros((80, 100), bool), wcs=wcs)
    tangent_plane = TangentPlane(SkyCoord(53.01, -28.02, unit="deg"))
    plane = BandImage("i", "ground", image, np.ones((1, 1)), wcs, tangent_plane, 754.0, Flag(0))
    sky = wcs.pixel_to_world([10.0, 70.0, 49.0], [20.0, 60.0, 39.0])
    sky = SkyCoord([*sky.ra.deg, 233.0], [*sky.dec.deg, 28.0], unit="deg")  # the last is on the other side of the sky
    east_north = tangent_plane.east_north(sky)
    xy, jacobian = plane.place(east_north)
    np.testing.assert_allclose(xy[:3], [[10, 20], [70, 60], [49, 39]], atol=1e-6)
    np.testing.assert_allclose(plane.xy(east_north[:3]), xy[:3], atol=1e-6)
    np.testing.assert_allclose(plane.east_north(*xy[:3].T), east_north[:3], atol=1e-6)
    moved, _ = plane.place(east_north[:1], (0.4, -0.2))
    np.testing.assert_allclose(moved - xy[:1], [jacobian[0] @ [0.4, -0.2]], atol=1e-6)
    np.testing.assert_allclose(jacobian[2], [[-5 * c, 5 * s], [5 * s, 5 * c]], atol=1e-6)
    assert (xy[3] < -1e4).all() and (jacobian[3] == np.eye(2)).all()


def blob(make_image, n, scale, angle, parity, shift, source, sigma=0.5):
    """A faint image (asinh is linear) of a round Gaussian at ``source``, painted through its WCS."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [source.ra.deg, source.dec.deg]
    wcs.wcs.crpix = [(n + 1) / 2 + shift[0], (n + 1) / 2 + shift[1]]
    c, s = np.cos(Angle(angle, "deg")).value, np.sin(Angle(angle, "deg")).value
    wcs.wcs.cd = np.array([[c, -s], [s, c]]) @ np.diag([-parity, 1]) * scale / 3600
    y, x = np.mgrid[:n, :n]
    offset = tangent(wcs.pixel_to_world(x.ravel(), y.ravel()), source)
    data = 1e-3 * np.exp(-0.5 * (offset**2).sum(1) / sigma**2).reshape(n, n)
    return make_image(n, scale, data=data, wcs=wcs, uncertainty=VarianceUncertainty(np.ones((n, n))))


def blob_in_view(view):
    """The blob's (east, north) through the recorded token positions, and its summed signal."""
    image = view.pixels[0, 0].double().numpy()
    n = len(image)
    y, x = np.mgrid[:n, :n]
    pixel = np.array([1, (image * x).sum() / image.sum(), (image * y).sum() / image.sum()])
    axis = np.arange(n // 16) * 16 + 7.5
    ty, tx = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    positions = view.positions[0].double().numpy()
    fit = np.linalg.lstsq(np.column_stack([np.ones_like(tx), tx, ty]), positions, rcond=None)[0]
    return pixel @ fit, image.sum()


@pytest.mark.parametrize("side", ["ground", "space"])
def test_token_positions_are_exact_on_any_grid(make_image, side):
    n = {"ground": 120, "space": 240}[side]

    @settings(deadline=None, max_examples=15)
    @given(
        angle=angles,
        parity=st.sampled_from([-1, 1]),
        stretch=st.floats(0.85, 1.15),
        shift=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
        east=st.floats(-1.5, 1.5),
        north=st.floats(-1.5, 1.5),
    )
    def check(angle, parity, stretch, shift, east, north):
        source = SkyCoord(200, 35, unit="deg")
        image = blob(make_image, n, PIXEL_SCALE[side] * stretch, angle, parity, shift, source)
        pair = SkyPair({"r": image}, None) if side == "ground" else SkyPair(None, {"VIS": image})
        plane = next(iter(band_images(pair).values()))
        center = offset_coord(source, -east, -north)
        view = side_view([plane], center.reshape(1), 12.8, KNOTS[side])
        found, _ = blob_in_view(view)
        np.testing.assert_allclose(found, tangent(source, center)[0], atol=0.01 * PIXEL_SCALE[side])

    check()


def test_native_crops_are_whole_pixels_within_half_a_pixel(make_image):
    image = make_image(150, 0.2)
    plane = band_images(SkyPair({"r": image}, None))["r"]
    rng = np.random.default_rng(3)
    for x, y in rng.uniform(60, 90, (10, 2)):
        center = plane.pixel_to_sky(x, y)
        view = side_view([plane], center.reshape(1), 12.8, KNOTS["ground"])
        corner = np.round([x - 31.5, y - 31.5]).astype(int)
        expected = np.arcsinh(image.data[corner[1] : corner[1] + 64, corner[0] : corner[0] + 64])
        np.testing.assert_allclose(view.pixels[0, 0], expected, rtol=1e-5)
        # The middle of the tokens is the middle of the crop: within half a pixel of the centre, per axis.
        assert view.positions[0].mean(0).abs().max() <= 0.5 * 0.2 + 1e-4


def test_resampling_keeps_flux_and_depth(make_image):
    source = SkyCoord(10, 0, unit="deg")
    image = blob(make_image, 300, 0.06, 33.0, 1, (0.3, 0.1), source)
    plane = band_images(SkyPair(None, {"VIS": image}))["VIS"]
    view = side_view([plane], source.reshape(1), 12.8, KNOTS["space"])
    _, total = blob_in_view(view)
    # S/N per pixel = flux * area / (sigma * sqrt(area)): the sum of S/N scales with the side of a pixel.
    assert total * (0.1 / 0.06) == pytest.approx(image.data.sum(), rel=1e-3)


@pytest.mark.parametrize("scale", [0.2, 0.17])
def test_bad_pixels_never_become_sky(make_image, scale):
    mask = np.zeros((100, 100), bool)
    mask[48:52, 40:60] = True
    mild, wild = make_image(100, scale, mask=mask), make_image(100, scale, mask=mask)
    wild.data[mask] = 1e6
    views = []
    for image in (mild, wild):
        plane = band_images(SkyPair({"r": image}, None))["r"]
        views.append(side_view([plane], plane.center.reshape(1), 12.8, KNOTS["ground"]))
    np.testing.assert_array_equal(views[0].pixels, views[1].pixels)
    np.testing.assert_array_equal(views[0].valid, views[1].valid)
    assert not views[0].valid.all()
    assert (views[0].pixels[~views[0].valid] == 0).all()


def test_plane_reports_depth_and_width(make_image):
    y, x = np.mgrid[-20:21, -20:21]
    sigma = 2.0
    psf = np.exp(-0.5 * ((x - 0.3) ** 2 + (y + 0.2) ** 2) / sigma**2)
    plane = band_images(SkyPair({"r": make_image(64, 0.2, sigma=2.0, psf=psf)}, None))["r"]
    assert plane.fwhm == pytest.approx(2.3548 * sigma * 0.2, rel=5e-3)
    # A matched filter on a Gaussian: variance = sigma_pix^2 * 4 pi sigma^2.
    expected = 31.4 - 2.5 * np.log10(5 * 2.0 * np.sqrt(4 * np.pi) * sigma)
    assert plane.depth == pytest.approx(expected, abs=0.01)
    centroid, _ = adaptive_moments(plane.mean_psf)
    np.testing.assert_allclose(centroid, [20, 20], atol=1e-3)


def test_missing_psf_is_nominal_and_flagged(make_image):
    plane = band_images(SkyPair({"r": make_image(64, 0.2)}, None))["r"]
    assert plane.flags & Flag.PSF_NOMINAL
    assert plane.mean_psf.sum() == pytest.approx(1)
    assert plane.fwhm == pytest.approx(0.81, rel=0.15)


def test_jacobian_matches_finite_steps(make_image, make_wcs):
    plane = band_images(SkyPair({"r": make_image(64, 0.2)}, None))["r"]
    np.testing.assert_allclose(plane.jacobian(np.zeros((1, 2)))[0], [[-5, 0], [0, 5]], atol=1e-5)


def test_windows_cover_the_field(make_image):
    plane_list = list(band_images(SkyPair({"r": make_image(300, 0.2)}, {"VIS": make_image(600, 0.1)})).values())
    centers = window_grid(plane_list, 38.4)
    offsets = tangent(centers, plane_list[-1].center)
    for corner in ([-30, -30], [30, 30], [-30, 30], [0, 0]):
        assert np.abs(offsets - corner).max(1).min() <= 19.2 + 1e-6
    assert fitting_window(plane_list, 38.4) == 38.4
    small = list(band_images(SkyPair({"r": make_image(50, 0.2)}, None)).values())
    assert fitting_window(small, 38.4) == 12.8


@pytest.mark.parametrize("size", [12.8, 13.0, 20.0, 39.0, 45.0, 64.2, 102.4])
def test_windows_lie_inside_the_field_and_cover_it(make_image, size):
    images = list(band_images(SkyPair(None, {"VIS": make_image(round(size / 0.1), 0.1)})).values())
    window = fitting_window(images, 38.4)
    offsets = tangent(window_grid(images, window), images[0].center)
    assert np.abs(offsets).max() + window / 2 < size / 2 + 0.05  # none hangs over an edge by a pixel
    assert np.abs(offsets).max() + window / 2 > size / 2 - 0.85  # nor is more than a narrow rim left out
    east = np.unique(np.round(offsets[:, 0], 2))
    assert np.all(np.diff(east) <= window - min(12.8, window / 2) + 1.61)


def test_a_field_has_as_many_windows_as_its_size_needs(make_image):
    images = list(band_images(SkyPair(None, {"VIS": make_image(1024, 0.1)})).values())
    assert len(window_grid(images, 38.4)) == 16


def test_unfamiliar_bands():
    assert not is_extrapolated(774.0, KNOTS["ground"])  # HSC i
    assert is_extrapolated(592.0, KNOTS["space"])  # F606W is far from VIS
    assert is_extrapolated(250.0, KNOTS["ground"])


def test_an_image_is_freed_when_nobody_holds_it(make_image):
    """A circle of references would keep the pixels until the next collection."""
    pair = SkyPair(None, {"VIS": make_image(60, 0.1)})
    image = band_images(pair)["VIS"]
    assert image.trimmed is image
    assert not any(value is image for value in vars(image).values())
