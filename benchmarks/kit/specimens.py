# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Small files of every kind that rosetta reads, how to read them, and what is in them.

Each `Reader` writes whole files; `shown` gives the content of what was read as a dict of arrays and plain values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import NDData, VarianceUncertainty
from astropy.table import Table
from astropy.wcs import WCS

import rosetta
from rosetta import PSF, SkyPair
from rosetta.io import euclid, pair, rubin

from .damage import damaged_fits, damaged_safetensors

__all__ = ["Reader", "readers", "same"]

SHAPE = (48, 64)


@dataclass(frozen=True)
class Reader:
    """A kind of file."""

    name: str
    files: Callable  # (folder) -> list of lists of files; the first of each list is damaged, all are read together
    read: Callable  # (list of files) -> object
    shown: Callable  # (object) -> dict
    own: bool = False  # whether rosetta writes such files, and so can seal them with checksums
    damage: Callable = damaged_fits


def tan(scale, shape=SHAPE):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [53.1, -28.1]
    wcs.wcs.crpix = [shape[1] / 2 + 0.3, shape[0] / 2 - 0.2]
    wcs.wcs.cd = np.diag([-scale, scale]) / 3600
    return wcs


def header_of(scale, **cards):
    """Celestial cards as the surveys write them: a CD matrix, units, no defaults left out."""
    header = tan(scale).to_header()
    for key in [key for key in header if key.startswith(("PC", "CDELT", "LONPOLE", "LATPOLE", "MJDREF"))]:
        del header[key]
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -scale / 3600, 0.0, 0.0, scale / 3600
    header.update(cards)
    return header


def star(width, side=15):
    axis = (np.arange(side) - side // 2) ** 2
    psf = np.exp(-np.add.outer(axis, axis) / (2 * width**2))
    return psf / psf.sum()


def noise(seed, shape=SHAPE):
    return np.random.default_rng(seed).normal(0, 1, shape).astype("f4")


# ---------------------------------------------------------------------------- files
def rubin_files(folder):
    mask = np.zeros(SHAPE, "i4")
    mask[5, 7], mask[9, 11] = 1, 2
    bits = {"MP_BAD": 0, "MP_SAT": 1, "MP_DETECTED": 5, "MP_NO_DATA": 8}
    out = []
    for name, kind in (("plain", fits.ImageHDU), ("packed", fits.CompImageHDU)):
        options = {"compression_type": "GZIP_1", "quantize_level": 0} if kind is fits.CompImageHDU else {}
        primary = fits.PrimaryHDU()
        primary.header["FILTER"] = "r_03"
        planes = [
            ("IMAGE", noise(1), header_of(0.2, BUNIT="nJy", LTV1=-100.0, LTV2=-200.0)),
            ("MASK", mask, header_of(0.2)),
            ("VARIANCE", np.abs(noise(2)) + 1, header_of(0.2)),
        ]
        hdus = [primary] + [kind(data, header, name=name, **options) for name, data, header in planes]
        for key, bit in bits.items():
            hdus[2].header[key if len(key) <= 8 else f"HIERARCH {key}"] = bit
        hdus.append(fits.ImageHDU(star(2.0), name="PSF"))
        fits.HDUList(hdus).writeto(folder / f"{name}.fits")
        out.append([folder / f"{name}.fits"])
    return out


def euclid_files(folder):
    hdus, flag = [fits.PrimaryHDU()], np.zeros(SHAPE, "i4")
    flag[3, 4] = 1
    rms = np.abs(noise(3)) + 1
    rms[6, 6] = 1e20
    for k, (band, zero) in enumerate((("VIS", 24.6), ("NIR_Y", 29.8))):
        header = header_of(0.1, FILTER=band, MAGZERO=zero)
        planes = {"BGSUB": noise(k), "RMS": rms, "FLAG": flag, "PSF": star(1.5).astype("f4")}
        for name, data in planes.items():
            cards = header if name == "BGSUB" else fits.Header({"FILTER": band})
            hdus.append(fits.ImageHDU(data, cards, name=f"{band}_{name}"))
    fits.HDUList(hdus).writeto(folder / "cutout.fits")
    header, names = header_of(0.1, FILTER="VIS", MAGZERO=24.6), {}
    for kind, data in (("BGSUB-MOSAIC-VIS", noise(7)), ("MOSAIC-VIS-RMS", rms), ("MOSAIC-VIS-FLAG", flag)):
        names[kind] = folder / f"EUC_MER_{kind}_TILE102018211-AB_1.fits"
        fits.PrimaryHDU(data, header).writeto(names[kind])
    products = list(names.values())
    return [[folder / "cutout.fits"]] + [products[k:] + products[:k] for k in range(3)]


def psf_product_files(folder):
    """GRID-PSF and CATALOG-PSF beside a science image."""
    science, side = folder / "EUC_MER_BGSUB-MOSAIC-VIS_TILE102018211-AB_1.fits", 9
    header = header_of(0.1, FILTER="VIS", MAGZERO=24.6)
    fits.PrimaryHDU(noise(1), header).writeto(science)
    x, y = (v.ravel() for v in np.meshgrid(np.arange(8, 64, 16), np.arange(8, 48, 16)))
    own, packed = np.zeros(SHAPE, "f4"), np.zeros((side, side * len(x)), "f4")
    for k, (column, row) in enumerate(zip(x, y, strict=True)):
        cell = star(1.2 + 0.02 * k, side)
        own[row - 4 : row + 5, column - 4 : column + 5] = packed[:, k * side : (k + 1) * side] = cell
    sky = tan(0.1).pixel_to_world(x, y)
    places = {"x": x + 1.0, "y": y + 1.0, "FWHM": 0.2 + 0.0 * x}
    centers = {"x_center": np.arange(len(x)) * side + side // 2 + 1, "y_center": np.full(len(x), side // 2 + 1)}
    tables = {
        "GRID": (own, places), "CATALOG": (packed, places | centers | {"RA": sky.ra.deg, "Dec": sky.dec.deg})
    }  # fmt: skip
    out = []
    for kind, (image, columns) in tables.items():
        path = folder / f"EUC_MER_{kind}-PSF-VIS_TILE102018211-AB_1.fits"
        cards = header_of(0.1, STMPSIZE=side)
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(image, cards), fits.BinTableHDU(Table(columns))]
        fits.HDUList(hdus).writeto(path)
        out.append([path, science])
    return out


def image_files(folder):
    mask = np.zeros(SHAPE, "i4")
    mask[5, 7] = 1
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(noise(1), header_of(0.05, BUNIT="nJy"), name="SCI")]
    hdus += [fits.ImageHDU(np.abs(noise(2)) + 1, name="ERR"), fits.ImageHDU(mask, name="DQ")]
    fits.HDUList(hdus).writeto(folder / "image.fits")
    return [[folder / "image.fits"]]


def sample_pair(sides=(("r", 0.2, 80), ("y", 0.2, 80), ("VIS", 0.1, 160))):
    """Four stars on noise, with masks and PSFs; that of VIS varies."""
    images = {}
    for k, (band, scale, n) in enumerate(sides):
        wcs = tan(scale, (n, n))
        y, x = np.mgrid[:n, :n]
        data = noise(k, (n, n)).astype(float)
        for dx, dy in ((3, 3), (-3, 3), (-3, -3), (3.5, -3)):
            data += 300 * np.exp(-((x - n / 2 - dx / scale) ** 2 + (y - n / 2 - dy / scale) ** 2) * scale**2 * 6)
        mask = np.zeros((n, n), bool)
        mask[2, 3] = True
        images[band] = NDData(data, uncertainty=VarianceUncertainty(np.ones((n, n))), mask=mask, wcs=wcs, unit=u.nJy,
                              psf=star(0.3 / scale), meta={"visit": k})
    varying = PSF.on_grid([[star(2.0), star(2.2)], [star(2.1), star(2.3)]], [0, 159], [0, 159])
    return SkyPair({b: images[b] for b in "ry"}, {"VIS": images["VIS"]}, psf={"VIS": varying})


def pair_files(folder):
    pair.write(sample_pair(), folder / "pair.fits")
    return [[folder / "pair.fits"]]


def scene_files(folder):
    from rosetta import CrossSurveyEncoder, JEPADeblender, LearnedAligner
    from rosetta.encoding.network import EncoderConfig

    config = EncoderConfig(
        dim=384, depth=1, heads=6, proj_dim=256, predictor_dim=32, predictor_depth=1, predictor_heads=2
    )
    encoder = CrossSurveyEncoder(config=config, seed=1, device="cpu")
    embedding = encoder(sample_pair(), window=12.8 * u.arcsec)
    embedding.write(folder / "embedding.fits")
    scene = JEPADeblender(encoder)(embedding, offsets=LearnedAligner(encoder)(embedding))
    scene.write(folder / "scene.fits")
    return [[folder / "scene.fits"]]


def embedding_files(folder):
    scene_files(folder)
    return [[folder / "embedding.fits"]]


def checkpoint_files(folder):
    weights = Path(rosetta.__file__).parent / "weights"
    for kind in ("deblender", "photometry"):
        (folder / f"{kind}.safetensors").write_bytes((weights / f"{kind}.safetensors").read_bytes())
    return [[folder / f"{kind}.safetensors"] for kind in ("deblender", "photometry")]


# ---------------------------------------------------------------------------- what was read
def shown_images(images):
    """Content of images by band; a missing plane is None."""
    out = {}
    for band, image in images.items():
        psf = getattr(image, "psf_anywhere", None)
        psf = image.psf if psf is None else psf
        ny, nx = image.data.shape
        sky = image.wcs.pixel_to_world([0, nx - 1, 0], [0, 0, ny - 1]).icrs
        out[band] = {
            "data": image.data, "mask": image.mask, "psf": getattr(psf, "cells", psf),
            "psf nodes": np.concatenate([psf.parts()["x"], psf.parts()["y"]]) if hasattr(psf, "parts") else None,
            "variance": None if image.uncertainty is None else image.uncertainty.array,
            "sky": np.array([sky.ra.deg, sky.dec.deg]),
        }  # fmt: skip
    return out


def shown_pair(found):
    images = shown_images({band: image for _, band, image in found.images()})
    for band, flag in found.flags.items():
        images[band]["flags"] = int(flag)
    images["pair"] = {"bands": found.bands, "surveys": tuple(survey.name for survey in found.surveys)}
    for _, band, image in found.images():
        images[band]["meta"] = repr(sorted(image.meta.items(), key=str))
    return images


def shown_embedding(found):
    out = shown_pair(found.pair)
    out["embedding"] = {
        "fingerprint": found.fingerprint, "window": repr(found.window), "meta": repr(found.meta),
        "centers": np.array([found.centers.ra.deg, found.centers.dec.deg]),
    }  # fmt: skip
    for side, arrays in found.sides.items():
        out[f"embedding {side}"] = {name: np.asarray(array) for name, array in arrays.items()}
    return out


def shown_table(table):
    """Columns as arrays; positions as degrees."""
    columns = {}
    for name in table.colnames:
        column = table[name]
        columns[name] = np.array([column.ra.deg, column.dec.deg]) if hasattr(column, "ra") else np.asarray(column)
    return columns


def shown_scene(found):
    out = shown_embedding(found.embedding)
    out["table"] = shown_table(found.to_table())
    label = found.to_table()["label"][0]
    for band in found.bands:
        out[f"scene {band}"] = {"covariance": found.covariance(band).toarray(), "model": found.model(label, band).data}
    return out


def shown_checkpoint(found):
    return {
        "checkpoint": {"kind": found.kind, "config": repr(found.config), "fingerprint": found.fingerprint},
        "tensors": {name: tensor.numpy() for name, tensor in found.tensors.items()},
    }


def load_checkpoint(files):
    from rosetta import checkpoint

    return checkpoint.load(files[0], kind=files[0].name.split(".")[0])


def read_any_image(files):
    from rosetta.io import read_image

    return read_image(files[0], ext="SCI", band="F200W", uncertainty="ERR", uncertainty_type="std", mask="DQ")


def _single(kind):
    return lambda files: kind(files[0])


def readers():
    """Every reader, by name."""
    found = [
        Reader("rubin", rubin_files, _single(rubin.read), lambda image: shown_images({image.meta["band"]: image})),
        Reader("euclid", euclid_files, euclid.read_bands, shown_images),
        Reader("mer-psf", psf_product_files, euclid.read_bands, shown_images),
        Reader("pair", pair_files, _single(pair.read), shown_pair, own=True),
        Reader("embedding", embedding_files, _single(rosetta.SkyEmbedding.read), shown_embedding, own=True),
        Reader("scene", scene_files, _single(rosetta.DeblendedScene.read), shown_scene, own=True),
        Reader("checkpoint", checkpoint_files, load_checkpoint, shown_checkpoint, True, damaged_safetensors),
    ]
    if hasattr(rosetta.io, "read_image"):
        found.append(
            Reader("image", image_files, read_any_image, lambda image: shown_images({image.meta["band"]: image}))
        )
    return {reader.name: reader for reader in found}


def same(one, two):
    """Whether two values that `shown` gave are equal; positions to 0.01 mas."""
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return one.shape == two.shape and (one.dtype == two.dtype) and bool(
            np.array_equal(one, two, equal_nan=one.dtype.kind in "fc")
        )
    return type(one) is type(two) and one == two
