# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What all readers need from FITS: any source opened with clear errors, and sections of images as physical values."""

import bz2
import errno
import gzip
import io
import lzma
import os
import re
import tempfile
import warnings
import zlib
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
from astropy.io import fits

from ._structure import check_structure
from ._wcs import celestial_wcs

__all__ = ["as_path", "celestial_wcs", "image_hdu", "native", "open_fits", "source_name"]

LIMIT = 4 * 2**30  # bytes that a compressed file or image may unpack to
CHUNK = 2**22  # pixels that are converted at a time
REMOTE_BLOCK = 2**16  # bytes that a server is asked for beyond those of a header
REQUESTS = 32  # to a server at a time

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
_PACKED_OTHERWISE = {b"PK\x03\x04": "zip", b"\x1f\x9d": "compress", b"\x28\xb5\x2f\xfd": "zstd"}
# Cards that decide what pixels are and where; of two with different values astropy takes one in silence.
_DECIDING = re.compile(
    r"BSCALE|BZERO|BLANK|BUNIT|LTV[12]|MAGZ\w+|MAG_ZP|ZP\w*|ZERO\w+|AB\w*ZP\w*|FLUXMAG0"
    r"|PHOT(ZP|FLAM|PLAM)|T?EXPTIME|XPOSURE|EXPOSURE"
    r"|(CTYPE|CUNIT|CRPIX|CRVAL|CDELT|CROTA|CPDIS)[12]|(CD|PC)[12]_[12]|PV[12]_\d+|[AB]P?_(\d+_\d+|ORDER)"
    r"|LONPOLE|LATPOLE|EQUINOX|RADE\w+"
)
# What astropy raises on damaged files, beside warnings; a card that is missing is a KeyError.
DAMAGE = (OSError, EOFError, KeyError, zlib.error, lzma.LZMAError, fits.VerifyError)


# ---------------------------------------------------------------------------- sources
def as_path(value, argument):
    """The file named by an argument, or a TypeError that names the argument."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{argument} must be the path of a FITS file, got {type(value).__name__}")
    return Path(value)


def source_name(source):
    """The name of a source in messages and in ``meta["file"]``: that of its file where it has one.

    Parameters
    ----------
    source : str, path-like, bytes or `~astropy.io.fits.HDUList`

    Returns
    -------
    str
    """
    if isinstance(source, fits.HDUList):
        name = getattr(source, "shown", None) or source.filename()
        return Path(name).name if isinstance(name, str) else "HDUList"
    if isinstance(source, bytes | bytearray | memoryview):
        return "bytes"
    if isinstance(source, str) and _URL.match(source):
        source = re.split(r"[?#]", source)[0].rstrip("/")
    return Path(source).name


class _UnfitPixels(ValueError):
    """Pixels that are not what was asked for; `open_fits` adds the name of the source."""


class _Opened(fits.HDUList):
    """The HDUs of a source, and the name that it has in messages."""

    def __init__(self, hdus, shown):
        super().__init__(hdus)
        self.shown = shown


@contextmanager
def open_fits(source, argument):
    """Open a FITS file for reading; whatever is wrong with it becomes a ValueError naming it.

    Only headers are read ahead; pixels leave the disk or the server when `native` asks for a section. A file that is
    compressed as a whole (gzip, bzip2, xz) is unpacked first, to its end, into a temporary file.

    Parameters
    ----------
    source : str, path-like, bytes or `~astropy.io.fits.HDUList`
        A path, a URL such as ``https://`` or ``s3://`` (needs the extra ``remote``), the content of a file, or HDUs,
        which are left open.
    argument : str
        What the caller calls the source, for messages.

    Yields
    ------
    `~astropy.io.fits.HDUList`
        Take pixels from it with `native`.

    Raises
    ------
    TypeError
        If the source is none of these.
    ValueError
        If it is not FITS, is damaged, ends early, or unpacks to more than 4 GiB.
    ImportError
        If a URL is given and ``fsspec`` or what it needs for that kind of URL is not installed.
    """
    if not isinstance(source, str | os.PathLike | bytes | bytearray | memoryview | fits.HDUList):
        raise TypeError(
            f"{argument} must be the path of a FITS file, its URL, its bytes or an open HDUList, "
            f"got {type(source).__name__}"
        )
    name = source_name(source)
    advice = f"{argument}: {name} is not a complete FITS file; download or write it again"
    if isinstance(source, fits.HDUList):
        with _explained(f"{argument}: {name}", advice):
            yield _Opened(source, name)
        return
    with _binary(source, argument) as packed, _unpacked(packed, f"{argument}: {name}", advice) as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", fits.verify.VerifyWarning)  # cards that no reader looks at
                # astropy merely warns of a truncated file and hands over what is left.
                warnings.filterwarnings("error", message="File may have been truncated")
                warnings.filterwarnings("error", message="Error validating header")
                check_structure(file)
                # Never a memory map: astropy makes none where pixels must be scaled.
                hdus = fits.open(file, memmap=False)
                len(hdus)  # walk to the end: a file is found to be too short only on passing its data
        except Exception as error:  # only headers were looked at, so whatever astropy raises is damage
            if _is_of_the_system(error) or isinstance(error, MemoryError):
                raise
            raise ValueError(f"{advice} ({_one_line(error)})") from error
        with hdus, _explained(f"{argument}: {name}", advice):
            yield _Opened(hdus, name)


@contextmanager
def _explained(where, advice):
    """Damage that is found late, in headers or in compressed pixels, as a ValueError."""
    try:
        yield
    except _UnfitPixels as error:
        raise ValueError(f"{where}: {error}") from error
    except Exception as error:
        # astropy keeps the second type private.
        damaged = isinstance(error, DAMAGE) or type(error).__name__ == "CfitsioException"
        if not damaged or _is_of_the_system(error):
            raise
        raise ValueError(f"{advice} ({_one_line(error)})") from error


def _is_of_the_system(error):
    """Whether an error comes from a disk or a network, not from what the file holds."""
    # EINVAL: a place before the beginning, where a header with negative lengths sends the reader.
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _one_line(error):
    return " ".join(str(error).split())


def _binary(source, argument):
    """The source as an open binary file."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if not (isinstance(source, str) and _URL.match(source)):
        return as_path(source, argument).open("rb")
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(source)
        return system.open(path, "rb", block_size=REMOTE_BLOCK)
    except ImportError as error:
        raise ImportError(
            f"{argument}: reading {source} needs the extra 'remote': pip install 'astro-rosetta[remote]' ({error})"
        ) from error
    except FileNotFoundError:
        raise
    except Exception as error:  # each kind of server has its own types
        raise OSError(f"{argument}: {source} cannot be opened ({type(error).__name__}: {error})") from error


@contextmanager
def _unpacked(file, where, advice):
    """The file itself, or a temporary one that holds what it unpacks to."""
    start = file.read(6)
    file.seek(0)
    if start == b"SIMPLE":
        yield file
        return
    opener = next((opener for magic, opener in _COMPRESSED if start.startswith(magic)), None)
    if opener is None:
        other = next((name for magic, name in _PACKED_OTHERWISE.items() if start.startswith(magic)), None)
        if other:
            raise ValueError(f"{where} is packed with {other}, which is not read: unpack it first")
        raise ValueError(f"{advice} (it does not begin like one)")
    with tempfile.TemporaryFile() as plain:
        try:
            # To the end, where the stream's own checks are: astropy takes an early end for the end of the file.
            with opener(file) as stream:
                while block := stream.read(2**20):
                    if plain.tell() + len(block) > LIMIT:
                        raise ValueError(f"{where} unpacks to more than {LIMIT / 2**30:.0f} GiB: unpack it yourself")
                    plain.write(block)
        except DAMAGE as error:
            if _is_of_the_system(error):
                raise
            raise ValueError(f"{advice} ({_one_line(error)})") from error
        plain.seek(0)
        # A second handle, since astropy refuses a file that could be written.
        with open(os.dup(plain.fileno()), "rb") as readable, _unpacked(readable, where, advice) as inner:
            yield inner


# ---------------------------------------------------------------------------- images
def image_hdu(hdus, argument, name=None, *, plane=None):
    """The image HDU called ``name``, or the first one; two-dimensional, but for extra axes of length 1.

    Parameters
    ----------
    hdus : `~astropy.io.fits.HDUList`
        From `open_fits`.
    argument : str
        For messages.
    name : str, int or tuple of (str, int), optional
        EXTNAME, number of the HDU (0: primary), or EXTNAME and EXTVER.
    plane : int, optional
        Says that the caller picks this one of the planes of a cube.

    Returns
    -------
    image HDU

    Raises
    ------
    ValueError
        If there is none (the message lists what the file holds), or if it is not two-dimensional.
    """
    for number, hdu in enumerate(hdus):
        axes = hdu.header.get("NAXIS", 0)
        if (
            not isinstance(hdu, fits.PrimaryHDU | fits.ImageHDU)
            or not _is_called(hdu, number, name)
            or (axes == 0 and name is None)
        ):
            continue
        where = f"{argument}: {source_name(hdus)}[{hdu.name or number}]"
        if not hasattr(hdu, "shape"):  # astropy makes no image of a header that contradicts itself
            raise ValueError(f"{where} is no image that can be read: download or write it again")
        sides = [hdu.header[f"NAXIS{axis}"] for axis in range(1, axes + 1)]
        if not all(isinstance(side, int) for side in sides):
            raise ValueError(f"{where}: its axes have lengths {sides}: download or write it again")
        if axes < 2:
            raise ValueError(f"{where} has {axes} axes, need 2")
        for header in (hdus[0].header, hdu.header):
            _check_once(header, f"{argument}: {source_name(hdus)}")
        if min(sides) <= 0:
            raise ValueError(f"{where} has no pixels (its axes have lengths {sides}): download or write it again")
        n_plane = prod(sides[2:])
        if n_plane > 1 and 1 in sides[:2]:
            raise ValueError(f"{where}: its axes have lengths {sides}: write it again with the sky along the first two")
        if plane is None and n_plane > 1:
            raise ValueError(
                f"{where} has {axes} axes, need 2: it holds {n_plane} planes (axes {sides}); "
                f"choose one with rosetta.io.read_image(..., plane=0 to {n_plane - 1})"
            )
        if plane is not None and not 0 <= plane < n_plane:
            raise ValueError(f"plane {plane} is not in {where}, which holds {n_plane}: use 0 to {n_plane - 1}")
        if isinstance(hdu, fits.CompImageHDU) and prod(sides) * abs(hdu.header["BITPIX"]) // 8 > LIMIT:
            raise ValueError(f"{where} unpacks to more than {LIMIT / 2**30:.0f} GiB: unpack it yourself")
        return hdu
    held = ", ".join(hdu.name or "unnamed" for hdu in hdus)
    wanted = "image" if name is None else f"image extension {name}"
    raise ValueError(f"{argument}: {source_name(hdus)} holds no {wanted} (it holds {held})")


def _check_once(header, where):
    """Refuse a header in which a card that decides stands twice, with two values."""
    seen = {}
    for card in header.cards:
        if _DECIDING.fullmatch(card.keyword) and seen.setdefault(card.keyword, card.value) != card.value:
            raise ValueError(f"{where}: the header has {card.keyword} twice, with two values: remove the wrong one")


def _is_called(hdu, number, name):
    if name is None:
        return True
    if isinstance(name, int):
        return number == name
    extname, extver = (name, None) if isinstance(name, str) else name
    return hdu.name == extname.strip().upper() and extver in (None, hdu.ver)


def native(hdu, dtype, slices=(slice(None), slice(None))):
    """A section of an image HDU as a new array of physical values in native byte order (FITS is big-endian).

    BSCALE, BZERO and BLANK are applied, unsigned integers too. Integers are exact to 64 bits; undefined pixels
    (BLANK) become NaN, and in integers -1: every bit is set.

    Parameters
    ----------
    hdu : image HDU
    dtype : dtype
        float, int64 or bool (True: not zero).
    slices : tuple of slice or int
        Per axis, slowest first, without steps. Leading axes of length 1 may be left out.

    Returns
    -------
    array

    Raises
    ------
    ValueError
        If integers are asked for and the image holds fractions, or if its scale is no number.
    """
    shape, dtype = hdu.shape, np.dtype(dtype)
    slices = (0,) * (len(shape) - len(slices)) + tuple(slices)
    kept = [not isinstance(part, int | np.integer) for part in slices]
    bounds = [part.indices(n)[:2] if keep else (int(part), int(part) + 1)
              for part, n, keep in zip(slices, shape, kept, strict=True)]  # fmt: skip
    counts = [max(0, stop - start) for start, stop in bounds]
    info = None if "data" in vars(hdu) or isinstance(hdu, fits.CompImageHDU) else hdu.fileinfo()
    if info is None:
        values = _in_memory(hdu, tuple(slice(*bound) for bound in bounds))
        result = _as_type(values, dtype, hdu.name)
    else:
        if info["file"].closed:
            raise ValueError(f"the HDUList of {hdu.name or 'an image'} is closed: read it before, or give the path")
        result = np.empty(prod(counts), dtype)
        done = 0
        for raw in _runs(info, hdu.header["BITPIX"], shape, bounds, counts):
            result[done : done + raw.size] = _as_type(_physical(raw, hdu.header, dtype), dtype, hdu.name)
            done += raw.size
    return result.reshape([n for n, keep in zip(counts, kept, strict=True) if keep])


def _in_memory(hdu, slices):
    """Physical values of a compressed image, or of one whose pixels astropy has scaled already."""
    if not isinstance(hdu, fits.CompImageHDU) or "data" in vars(hdu):
        return np.asarray(hdu.data[slices])
    # Looked at before the pixels, with which older versions of astropy drop these cards.
    blank, zero, integers = hdu.header.get("BLANK"), hdu.header.get("BZERO", 0), hdu.header["BITPIX"] > 0
    try:
        values = np.asarray(hdu.section[slices])
    except Exception as error:  # damage may show anywhere in the tiles
        raise OSError(f"the tiles of {hdu.name or 'an image'} cannot be unpacked: {error}") from error
    if blank == 0 and integers:  # which astropy overlooks
        return np.where(values == zero, np.nan, values)
    return values


def _runs(info, bitpix, shape, bounds, counts):
    """Stored pixels of a region, in order, in pieces that lie together in the file."""
    stored = np.dtype({8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}[bitpix])
    outer = len(shape)  # axes before this one are stepped through, the rest lies together
    while outer > 1 and counts[outer - 1] == shape[outer - 1]:
        outer -= 1
    n_run, pieces = prod(counts[outer - 1 :]), []
    for place in np.ndindex(*counts[: outer - 1]):
        first = [start + step for (start, _), step in zip(bounds, place, strict=False)]
        first += [start for start, _ in bounds[outer - 1 :]]
        pixel = 0
        for start, n in zip(first, shape, strict=True):
            pixel = pixel * n + start
        for done in range(0, n_run, CHUNK):
            start, n = pixel + done, min(CHUNK, n_run - done)
            pieces.append((info["datLoc"] + start * stored.itemsize, n * stored.itemsize))
    for content, (_, n_bytes) in zip(_contents(info["file"], pieces), pieces, strict=True):
        if len(content) != n_bytes:
            raise OSError("it ends within its pixels")
        yield np.frombuffer(content, stored)


def _contents(file, pieces):
    """The bytes of each piece (offset, length) of a file."""
    remote = getattr(file, "_file", None)  # what astropy wraps
    if not hasattr(remote, "fs") or len(pieces) < 2:
        for offset, n_bytes in pieces:
            file.seek(offset)
            yield file.read(n_bytes)
        return
    # One by one, a server would be waited for at each row; and fsspec would read on between them.
    for first in range(0, len(pieces), REQUESTS):
        some = pieces[first : first + REQUESTS]
        starts, ends = [offset for offset, _ in some], [offset + n_bytes for offset, n_bytes in some]
        yield from remote.fs.cat_ranges([remote.path] * len(some), starts, ends)


def _physical(raw, header, dtype):
    """Stored values as physical ones: integers where that is exact, else floats."""
    scale, zero = (header.get(key, default) for key, default in (("BSCALE", 1), ("BZERO", 0)))
    for key, value in (("BSCALE", scale), ("BZERO", zero)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise _UnfitPixels(f"{key}={value!r} is not a number: repair the header")
    if scale == 0:
        raise _UnfitPixels("BSCALE=0 makes all pixels equal: repair the header")
    if raw.dtype.kind == "f":
        return raw if (scale, zero) == (1, 0) else raw * np.float64(scale) + zero
    if scale == 1 and zero == int(zero):
        # Modulo 2**64, so that BZERO = 2**63, which makes integers unsigned, keeps every bit.
        values = raw.astype(np.int64).view(np.uint64) + np.uint64(int(zero) % 2**64)
        values = values if zero == 2**63 else values.view(np.int64)
    else:
        values = raw * np.float64(scale) + zero
    if "BLANK" in header:
        blank = header["BLANK"]
        if isinstance(blank, bool) or not isinstance(blank, int | float):
            raise _UnfitPixels(f"BLANK={blank!r} is not a number: repair the header")
        undefined = raw == blank
        values = values.astype(np.float64) if dtype.kind == "f" else values
        values[undefined] = np.nan if values.dtype.kind == "f" else np.array(-1).astype(values.dtype)
    return values


def _as_type(values, dtype, name):
    if dtype.kind == "b":
        return values != 0
    if dtype.kind in "iu" and values.dtype.kind == "f":
        finite = np.isfinite(values)
        if np.any(values[finite] != np.trunc(values[finite])):
            raise _UnfitPixels(f"{name or 'the image'} holds fractions, integers are needed: is it a mask?")
        values = np.where(finite, values, -1)
    with np.errstate(over="ignore", invalid="ignore"):  # sentinels such as 1e300, and NaN of any kind
        return values.astype(dtype)
