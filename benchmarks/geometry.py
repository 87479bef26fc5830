# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Do the two views of a window show the same sky, and does every token know where it is?

A round source of known sky position is painted through the WCS of each image (TAN or TAN-SIP; shifted, rotated,
flipped, of another scale). It is then found in the windows that the encoder is given, and its place, expressed through
the recorded token positions, is compared with the truth. Run: python benchmarks/geometry.py [n_pair]
"""

import sys

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData, VarianceUncertainty
from astropy.wcs import WCS, Sip

from rosetta import SkyPair
from rosetta.encoding.network import EncoderConfig
from rosetta.encoding.windows import native_corner, side_view
from rosetta.images.image import band_images
from rosetta.images.positions import tangent
from rosetta.surveys import PIXEL_SCALE

WINDOW = 12.8


def random_wcs(rng, center, scale, n, kind):
    """A WCS whose image holds ``center`` near its middle."""
    wcs = WCS(naxis=2)
    sip = kind == "sip"
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"] if sip else ["RA---TAN", "DEC--TAN"]
    angle = np.deg2rad({"rotated": rng.uniform(-180, 180)}.get(kind, rng.uniform(-1.5, 1.5)))
    parity = -1 if kind != "flipped" else 1
    scale = scale * (rng.uniform(0.7, 1.3) if kind == "scaled" else rng.uniform(0.995, 1.005))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.cd = turn @ np.diag([parity, 1]) * scale / 3600
    wcs.wcs.crval = [center.ra.deg + rng.uniform(-1, 1) / 3600 / np.cos(center.dec.rad), center.dec.deg]
    wcs.wcs.crpix = (n + 1) / 2 + rng.uniform(-8, 8, 2)
    if sip:
        a, b = np.zeros((2, 3, 3))
        for matrix in (a, b):
            matrix[2, 0], matrix[1, 1], matrix[0, 2] = rng.normal(0, 2e-6, 3)
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.array_shape = (n, n)
    return wcs


def paint(wcs, source, n, sigma):
    """A Gaussian of ``sigma`` arcsec on the sky, sampled at the pixel centres; faint, so that asinh is linear."""
    y, x = np.mgrid[:n, :n]
    offset = tangent(wcs.pixel_to_world(x.ravel(), y.ravel()), source)
    data = 1e-3 * np.exp(-0.5 * (offset**2).sum(1) / sigma**2).reshape(n, n)
    return NDData(data, unit=u.nJy, wcs=wcs, uncertainty=VarianceUncertainty(np.ones((n, n))))


def found_offset(view):
    """(east, north) arcsec of the source, through the recorded token positions alone."""
    image = view.pixels[0, 0].double().numpy()
    n = len(image)
    y, x = np.mgrid[:n, :n]
    pixel = np.array([(image * x).sum(), (image * y).sum()]) / image.sum()
    positions = view.positions[0].double().numpy()
    k = n // 16
    axis = np.arange(k) * 16 + 7.5
    ty, tx = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))

    def terms(x, y):  # distortions within a window are quadratic
        return np.column_stack([x * 0 + 1, x, y, x * x, x * y, y * y])

    fit = np.linalg.lstsq(terms(tx, ty), positions, rcond=None)[0]
    return terms(*pixel[:, None])[0] @ fit


def one_pair(rng, kind):
    """Worst crop-centre error (pixels per axis; native grids only) and worst position error (pixels)."""
    center = SkyCoord(rng.uniform(0, 360), rng.uniform(-75, 75), unit="deg")
    source = center.spherical_offsets_by(*(rng.uniform(-1.5, 1.5, 2) * u.arcsec))
    knots = EncoderConfig()
    images = {
        "ground": {"r": paint(random_wcs(rng, center, 0.2, 160, kind), source, 160, 0.5)},
        "space": {"VIS": paint(random_wcs(rng, center, 0.1, 320, kind), source, 320, 0.5)},
    }
    pair = SkyPair(**images)
    crop, position = 0.0, 0.0
    for image in band_images(pair).values():
        view = side_view([image], center.reshape(1), WINDOW, knots.knots(image.side))
        truth = tangent(source, center)[0]
        position = max(position, np.abs(found_offset(view) - truth).max() / PIXEL_SCALE[image.side])
        if kind in ("tan", "sip"):
            n = round(WINDOW / PIXEL_SCALE[image.side])
            middle = native_corner(image, center.reshape(1), n)[0] + (n - 1) / 2
            crop = max(crop, np.abs(middle - np.ravel(image.sky_to_pixel(center))).max())
    return crop, position


def main(n_pair):
    rng = np.random.default_rng(0)
    kinds = ("tan", "sip", "rotated", "flipped", "scaled")
    print(f"{'WCS':10s} {'pairs':>6s} {'crop centre, px':>16s} {'token position, px':>19s}   (worst of all)")
    for kind in kinds:
        results = np.array([one_pair(rng, kind) for _ in range(n_pair // len(kinds))])
        crop = f"{results[:, 0].max():16.3f}" if kind in ("tan", "sip") else f"{'resampled':>16s}"
        print(f"{kind:10s} {len(results):6d} {crop} {results[:, 1].max():19.5f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
