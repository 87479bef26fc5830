# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Regions of files on servers: the pixels are right, and little more than them is asked for."""

import importlib.util
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from rosetta.io import euclid, read_image, rubin

SHAPE, TILE = (1200, 1000), (100, 100)
SIZE = 4 * u.arcsec
DATA = np.random.default_rng(5).normal(0, 3, SHAPE).astype(np.float32)


# ---------------------------------------------------------------------------- servers
class Server:
    """Files by name, on a server that counts the bytes that it sends."""

    def __init__(self, prefix):
        self.prefix, self.sent = prefix, 0

    def url(self, path):
        return self.prefix + path.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def http(folder):
    """A web server that understands byte ranges."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install astro-rosetta[remote]")

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = folder / self.path.strip("/")
            if not path.is_file():
                self.send_error(404)
                return
            size = path.stat().st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first, last = (int(asked[1]), int(asked[2] or size - 1)) if asked else (0, size - 1)
            last = min(last, size - 1)
            self.send_response(206 if asked else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            if body:
                with path.open("rb") as file:
                    file.seek(first)
                    served.sent += last - first + 1
                    self.wfile.write(file.read(last - first + 1))

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Server(f"http://127.0.0.1:{server.server_port}/")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def s3(folder):
    """A server of the S3 protocol, found as a user's own would be: by the environment."""
    for package in ("moto", "flask", "s3fs"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install astro-rosetta[remote,test-remote]")
    import s3fs
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)

    def counted(environ, start_response):
        def start(status, headers, *rest):
            if environ["REQUEST_METHOD"] == "GET":
                served.sent += int(dict(headers).get("Content-Length", 0))
            return start_response(status, headers, *rest)

        return application(environ, start)

    server = make_server("127.0.0.1", 0, counted, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served = Server("s3://sky/")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}"),
            ("AWS_ACCESS_KEY_ID", "any"),
            ("AWS_SECRET_ACCESS_KEY", "any"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        system.mkdir("sky")
        for path in folder.iterdir():
            system.put(str(path), f"sky/{path.name}")
        yield served
        s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["http", "s3"])
def server(request):
    server = request.getfixturevalue(request.param)
    server.sent = 0
    return server


# ---------------------------------------------------------------------------- files
def header(scale, **cards):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53.1, -28.1], [500.0, 600.0]
    wcs.wcs.cd = np.diag([-scale, scale]) / 3600
    made = wcs.to_header()
    made.update(cards)
    return made


def write_files(folder):
    fits.PrimaryHDU(DATA, header(0.2, BUNIT="nJy")).writeto(folder / "any.fits")
    cards = header(0.1, FILTER="VIS", MAGZERO=24.6)
    fits.PrimaryHDU(DATA, cards).writeto(folder / "EUC_MER_BGSUB-MOSAIC-VIS_TILE1-A.fits")
    fits.PrimaryHDU(np.ones(SHAPE, "f4"), cards).writeto(folder / "EUC_MER_MOSAIC-VIS-RMS_TILE1-A.fits")
    mask = np.zeros(SHAPE, np.int32)
    mask[610, 505] = 1
    planes = [("IMAGE", DATA, {"BUNIT": "nJy"}), ("MASK", mask, {"MP_BAD": 0}), ("VARIANCE", np.abs(DATA) + 1, {})]
    lossless = {"compression_type": "GZIP_2", "quantize_level": 0.0, "tile_shape": TILE}
    tiled = [fits.CompImageHDU(array, header(0.2, **cards), name=name, **lossless) for name, array, cards in planes]
    primary = fits.PrimaryHDU(header=fits.Header({"FILTER": "r_03"}))
    fits.HDUList([primary, *tiled]).writeto(folder / "rubin.fits")


def center(scale):
    return WCS(header(scale)).pixel_to_world(505.2, 609.7)


def check(image, factor=1.0):
    y0, x0 = image.meta["ORIGINY"], image.meta["ORIGINX"]
    ny, nx = image.shape
    assert (ny, nx) in ((20, 20), (40, 40))
    assert abs(y0 + ny / 2 - 610.2) <= 0.5 and abs(x0 + nx / 2 - 505.7) <= 0.5
    np.testing.assert_allclose(image.data, DATA[y0 : y0 + ny, x0 : x0 + nx] * factor, rtol=1e-6)


# ---------------------------------------------------------------------------- tests
def test_any_image(server, folder):
    check(read_image(server.url(folder / "any.fits"), center=center(0.2), size=SIZE))
    assert 0 < server.sent < 0.03 * (folder / "any.fits").stat().st_size


def test_euclid(server, folder):
    paths = sorted(folder.glob("EUC*"))
    image = euclid.read_bands(map(server.url, paths), center=center(0.1), size=SIZE)["VIS"]
    check(image, 10 ** (0.4 * (31.4 - 24.6)))
    assert image.uncertainty is not None
    assert 0 < server.sent < 0.03 * sum(path.stat().st_size for path in paths)


def test_rubin(server, folder):
    """Of tile-compressed planes the tiles of the region."""
    path = folder / "rubin.fits"
    image = rubin.read(server.url(path), center=center(0.2), size=SIZE)
    check(image)
    y0, x0 = image.meta["ORIGINY"], image.meta["ORIGINX"]
    assert np.argwhere(image.mask).tolist() == [[610 - y0, 505 - x0]]
    assert 0 < server.sent < 0.12 * path.stat().st_size


def test_what_is_not_there(server, folder):
    with pytest.raises(FileNotFoundError):
        read_image(server.url(folder / "missing.fits"))
