# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Tables as plain arrays and a description of their columns, which any format of tables can hold, and back.

A position is two columns in degrees, a time two in days, a mask a column of bool; all else is a column of its own.
"""

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import Angle, Latitude, Longitude, SkyCoord
from astropy.table import Column, MaskedColumn, QTable
from astropy.time import Time
from astropy.utils.masked import Masked

__all__ = ["FlatColumn", "flat", "restored"]

POSITION = "sky_centroid"  # whose columns are called ra and dec
ANGLES = {kind.__name__: kind for kind in (Angle, Latitude, Longitude)}
# Formats of tables do not know the types on the left.
STORED = {"int8": "int16", "uint16": "int32", "uint32": "int64", "uint64": "int64", "float16": "float32"}
UCDS = {"ra": "pos.eq.ra", "dec": "pos.eq.dec", "label": "meta.id;meta.main"}


@dataclass(frozen=True, eq=False)
class FlatColumn:
    """A column of a file.

    Attributes
    ----------
    values : (n, ...) array
        Of bool, integers, floats, text or bytes.
    unit : `~astropy.units.Unit` or None
        That every format knows; None also for one that no format knows.
    description : str or None
    ucd : str or None
        What a virtual observatory calls such a quantity.
    """

    values: np.ndarray
    unit: object = None
    description: str | None = None
    ucd: str | None = None


def flat(table):
    """A table as plain columns.

    Parameters
    ----------
    table : `~astropy.table.QTable`

    Returns
    -------
    columns : dict of str to `FlatColumn`
    known : list of dict
        What `restored` needs to know of each column of the table.

    Raises
    ------
    ValueError
        If a column is of a kind that is not known; the message names it.
    """
    columns, known = {}, []
    own_names, used = {name.lower() for name in table.colnames}, set()  # FITS cannot tell ra from RA

    def add(name, *args, own=False):
        while name.lower() in used or (not own and name.lower() in own_names):
            name += "_"
        used.add(name.lower())
        columns[name] = FlatColumn(*args)
        return name

    for name in table.colnames:
        column = table[name]
        info = {"name": name, "kind": type(column).__name__}
        info |= {key: getattr(column.info, key) for key in ("description", "format") if getattr(column.info, key)}
        if column.info.meta:
            info["meta"] = column.info.meta
        text = column.info.description
        if isinstance(column, SkyCoord):
            _check_position(name, column)
            own = name == POSITION and not {"ra", "dec"} & (own_names | used)
            parts = {"ra": column.ra.deg, "dec": column.dec.deg}
            info["parts"] = [
                add(axis if own else f"{name}_{axis}", values, u.deg, f"{axis.upper()} (ICRS) of {text or name}",
                    UCDS[axis] + (";meta.main" if own else ""))
                for axis, values in parts.items()
            ]  # fmt: skip
        elif isinstance(column, Time):
            if column.location is not None or column.masked:
                raise ValueError(f"catalog has times with a location or a mask in {name!r}: write text instead")
            parts = {"jd1": column.jd1, "jd2": column.jd2}
            info["parts"] = [add(f"{name}_{part}", values, u.day, text, None) for part, values in parts.items()]
            info |= {"scale": column.scale, "format": column.format}
        elif isinstance(column, Column | u.Quantity | Masked):
            values, mask = _values_and_mask(column)
            if values.dtype.kind not in "biufUS":
                raise ValueError(f"catalog has {values.dtype} values in {name!r}: no format of tables holds them")
            info |= {"dtype": values.dtype.newbyteorder("=").str, "shape": list(values.shape[1:])}
            if column.info.unit is not None:
                info["unit"] = column.info.unit.to_string()
            values = values.astype(STORED.get(values.dtype.newbyteorder("=").name, values.dtype))
            ucd = UCDS["label"] if name == "label" else None
            info["column"] = add(name, values, _plain(column.info.unit), text, ucd, own=True)
            if mask is not None:
                info["mask"] = add(f"{name}_masked", mask, None, f"whether {name} has no value", None)
        else:
            raise ValueError(f"catalog has a {type(column).__name__} in {name!r}: leave that column out")
        known.append(info)
    return columns, known


def restored(columns, known, meta):
    """The table that `flat` took apart.

    Parameters
    ----------
    columns : callable
        Values of a column of the file, by name.
    known : list of dict
    meta : dict

    Returns
    -------
    `~astropy.table.QTable`
    """
    table = QTable()
    for info in known:
        name, kind = info["name"], info["kind"]
        if kind == "SkyCoord":
            ra, dec = (_cast(columns(part), "<f8") for part in info["parts"])
            column = SkyCoord(ra, dec, unit="deg", frame="icrs")
        elif kind == "Time":
            jd1, jd2 = (_cast(columns(part), "<f8") for part in info["parts"])
            column = Time(jd1, jd2, format="jd", scale=info["scale"])
            column.format = info["format"]
        else:
            values = _cast(columns(info["column"]), info["dtype"]).reshape(-1, *info["shape"])
            column = _column(values, info, columns)
        table[name] = column
        for key in ("description", "meta"):
            if key in info:
                setattr(table[name].info, key, info[key])
        if "format" in info and kind != "Time":
            table[name].info.format = info["format"]
    table.meta = meta
    return table


def _check_position(name, coord):
    frame = coord.frame
    if frame.name != "icrs" or "s" in frame.data.differentials or not frame.data.norm().unit.is_equivalent(u.one):
        raise ValueError(f"catalog has positions with a frame, distance or motion in {name!r}: write plain ICRS ones")


def _values_and_mask(column):
    """The plain array of a column, 0, NaN or empty where it is masked; and its mask, None if it cannot have one."""
    if not isinstance(column, MaskedColumn | Masked):
        return np.asarray(getattr(column, "value", column)), None
    mask = np.array(column.mask)
    values = np.array(column.data.data if isinstance(column, MaskedColumn) else np.asarray(column.unmasked.value))
    values[mask] = np.nan if values.dtype.kind == "f" else np.zeros((), values.dtype)[()]
    return values, np.broadcast_to(mask, values.shape).copy()


def _column(values, info, columns):
    unit, kind = info.get("unit"), info["kind"]
    mask = _cast(columns(info["mask"]), "?").reshape(values.shape) if "mask" in info else None
    if kind in ("Column", "MaskedColumn"):
        return Column(values, unit=unit) if mask is None else MaskedColumn(values, mask=mask, unit=unit)
    quantity = values << u.Unit(unit or "")  # a magnitude where the unit is one
    if kind in ANGLES:
        quantity = ANGLES[kind](quantity)
    return quantity if mask is None else Masked(quantity, mask=mask)


def _cast(values, dtype):
    """A plain array of a type, from what a reader of files gives."""
    dtype, values = np.dtype(dtype), np.ma.getdata(values)
    if dtype.kind == "S" and values.dtype.kind in "UO":
        values = np.array([v if isinstance(v, bytes) else str(v).encode("ascii") for v in values.ravel()], dtype)
    return np.array(values, dtype=dtype, order="C")


def _plain(unit):
    """A unit that every format knows, or None."""
    unit = getattr(unit, "function_unit", unit)  # a magnitude, in some system
    try:
        for form in ("fits", "vounit"):
            u.Unit(unit.to_string(form), format=form)
    except (AttributeError, ValueError):
        return None
    return None if unit == u.dimensionless_unscaled else unit
