# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Both sides of one piece of sky from lists of files."""

from ..arithmetic import plain_arithmetic
from ..surveys import EUCLID, RUBIN
from . import euclid, rubin

__all__ = ["read_pair"]


@plain_arithmetic
def read_pair(rubin_paths=(), euclid_paths=(), *, center=None, size=None):
    """Read the files of both surveys into the two sides of a `~rosetta.SkyPair`.

    The ground images that Euclid delivers beside its own (filters such as ``DECAM_g``) go to the
    ground side, under their Rubin-like band name; ``meta["filter"]`` keeps what they are.

    Parameters
    ----------
    rubin_paths : iterable of str or path-like
        Files as accepted by `rosetta.io.rubin.read_bands`.
    euclid_paths : iterable of str or path-like
        Files as accepted by `rosetta.io.euclid.read_bands`.
    center : `~astropy.coordinates.SkyCoord`, optional
        Centre of the region to read.
    size : `~astropy.units.Quantity`, optional
        Angular size of that region: one for both sides, or (ny, nx).

    Returns
    -------
    ground, space : dict or None
        Band name to `~astropy.nddata.CCDData`; None for a side without any image.

    Raises
    ------
    TypeError
        If a list of paths is a string.
    ValueError
        If a ground band comes from both lists, if nothing was given, and whenever a reader raises.
    """
    for name, paths in (("rubin_paths", rubin_paths), ("euclid_paths", euclid_paths)):
        if isinstance(paths, str):
            raise TypeError(f"{name} must be a list of paths, got the string {paths!r}: put it in brackets")
    ground = rubin.read_bands(rubin_paths, center=center, size=size)
    delivered = euclid.read_bands(euclid_paths, center=center, size=size)
    for band in [name for name in delivered if name in RUBIN.band_names]:
        image = delivered.pop(band)
        if band in ground:
            raise ValueError(
                f"euclid_paths: {image.meta['file']} holds ground band {band!r}, and so does "
                f"{ground[band].meta['file']} of rubin_paths; leave one of them out"
            )
        ground[band] = image
    if not ground and not delivered:
        raise ValueError("rubin_paths and euclid_paths: give at least one image file")
    ground = {band: ground[band] for band in RUBIN.band_names if band in ground}
    space = {band: delivered[band] for band in EUCLID.band_names if band in delivered}
    return ground or None, space or None
