# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The parts of a scene in its FITS file."""

from dataclasses import asdict, fields

import numpy as np
from astropy.table import QTable

from ..astrometry.solution import AstrometricSolution
from ..images.noise import DISTANCES
from ..io._store import document, document_hdu, record, record_hdus
from .band_fit import DISPLACED, BandFit
from .engine.config import EngineConfig
from .templates import Templates

__all__ = ["scene_hdus", "scene_parts"]


def scene_hdus(table, templates, shape_covariance, fits, sides, offsets, meta):
    """The parts of a scene as extensions of its file, a list; ``sides`` is the side of each band."""
    n = len(table)
    hdus = record_hdus("SOURCES", _columns(table), n)
    values = {**_values(templates), "shape_covariance": shape_covariance}
    config = values.pop("config")
    hdus += record_hdus("TEMPLATES", values, n)
    for band, fit in fits.items():
        hdus += record_hdus(f"FIT_{band}", _values(fit), n, ver=_extver(sides[band]))
    hdus.append(document_hdu("SCENE_META", meta))
    hdus.append(document_hdu("SCENE_CONFIG", asdict(config)))
    if isinstance(offsets, AstrometricSolution):
        hdus.append(document_hdu("OFFSETS_META", offsets.to_meta()))
    elif offsets is not None:
        hdus += record_hdus("OFFSETS", _columns(offsets), len(offsets))
        hdus.append(document_hdu("OFFSETS_META", offsets.meta))
    return hdus


def scene_parts(found, bands, sides):
    """The parts of a scene from the extensions of its file, as `scene_hdus` takes them (dict, without ``sides``)."""
    templates, offsets = record(found, "TEMPLATES"), None
    templates["config"] = EngineConfig(**document(found, "SCENE_CONFIG"))
    if ("OFFSETS", 1) in found:
        offsets = QTable(record(found, "OFFSETS"), meta=document(found, "OFFSETS_META"))
    elif ("OFFSETS_META", 1) in found:
        offsets = AstrometricSolution.from_table(QTable(meta=document(found, "OFFSETS_META")))
    return {
        "table": QTable(record(found, "SOURCES")), "templates": _instance(Templates, templates),
        "shape_covariance": templates["shape_covariance"],
        "fits": {band: _fit_of(found, band, sides[band]) for band in bands},
        "offsets": offsets, "meta": document(found, "SCENE_META"),
    }


def _fit_of(found, band, side):
    """The fit of a band in a file; earlier ones know no displacements and widths, and one noise for all sources."""
    values = record(found, f"FIT_{band}", ver=_extver(side))
    n = len(values["flux"])
    values.setdefault("displaced", np.zeros((n, len(DISPLACED))))
    values.setdefault("width", np.full(n, np.nan))
    values.setdefault("products", np.zeros((2, len(DISTANCES))))
    if "point_noise" not in values:
        values["residual_snr"] = values["residual_snr"] / values["noise"]
        values |= {"point_noise": values["noise"], "noise": np.full(n, values["noise"])}
    return _instance(BandFit, values)


def _values(instance):
    """The fields of a dataclass by name."""
    return {field.name: getattr(instance, field.name) for field in fields(instance)}


def _instance(kind, values):
    """A dataclass from its fields by name."""
    return kind(**{field.name: values[field.name] for field in fields(kind)})


def _extver(side):
    return 1 if side == "ground" else 2  # as in pair files


def _columns(table):
    """The columns of a table by name."""
    return {name: table[name] for name in table.colnames}
