# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A pair: images of one sky by a ground survey and a space survey."""

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord

from .arithmetic import plain_arithmetic
from .display import html_table
from .flags import Flag
from .frozen_image import cut_image, frozen_image
from .images.positions import given_positions
from .input_image import checked_image
from .readonly import ReadOnlyDict
from .surveys import EUCLID, PSF_WINGS, RUBIN, Survey

__all__ = ["SIDES", "SkyPair"]

SIDES = ("ground", "space")


class SkyPair:
    """Images of one sky by a ground survey and a space survey.

    The inputs are copied, checked and brought to one form: float32 in nJy, native byte order, variance,
    boolean mask, normalised PSF. The pair is immutable and the inputs are never modified.

    Parameters
    ----------
    ground, space : dict of str to `~astropy.nddata.NDData`, or None
        One 2-D image per band, with a celestial WCS (any APE-14 object) and a flux-density unit
        convertible to nJy. Any uncertainty class; without one the noise is measured on the image
        and the band is flagged. Pixels that are masked in a masked array are masked. ``NDData.psf``, if given, is a
        2-D array with odd sides on the image's own pixel grid, pixel response included, or a `~rosetta.PSF`.
        None: this survey did not look here.
    surveys : tuple of two `~rosetta.Survey`
        The surveys of ``ground`` and of ``space``.
    psf : dict of str to PSF, optional
        PSFs by band, in place of the images' own: a `~rosetta.PSF`, a `~photutils.psf.GriddedPSFModel`, any function
        ``psf(x, y) -> array`` of 0-based pixel positions, or a 2-D array. Fits use the PSF of each source's place.

    Attributes
    ----------
    ground, space : mapping of str to `~astropy.nddata.NDData`, or None
        The checked images, in order of wavelength; arrays are read-only. ``uncertainty`` is always a
        `~astropy.nddata.VarianceUncertainty`; pixels with a non-finite flux or an unusable variance are masked.
    flags : mapping of str to `~rosetta.Flag`
        What had to be assumed for each band.

    Raises
    ------
    TypeError
        If a side is not a dict or an image is not an `~astropy.nddata.NDData`.
    ValueError
        If an image cannot be used, with the band, the reason and the remedy: among others where its pixels are not
        0.005" to 5" wide all over the image, its WCS has no inverse, or a pixel of its PSF is masked or not finite. Or
        if the two sides do not overlap on the sky.
    """

    @plain_arithmetic
    def __init__(self, ground, space=None, *, surveys=(RUBIN, EUCLID), psf=None):
        if ground is None and space is None:
            raise ValueError("ground and space are both None: give at least one side as a dict of band to NDData")
        self._surveys = tuple(surveys) if isinstance(surveys, (tuple, list)) else ()
        if len(self._surveys) != 2 or not all(isinstance(survey, Survey) for survey in self._surveys):
            raise TypeError(f"surveys must be two Survey objects (ground, space), got {surveys!r}")
        flags, given = {}, by_band("psf", "PSF", psf, self._surveys)
        self._ground = _check_side("ground", ground, self._surveys, flags, given)
        self._space = _check_side("space", space, self._surveys, flags, given)
        self._flags = ReadOnlyDict(flags)
        if given:
            raise ValueError(f"psf has bands {sorted(given)} without an image: leave them out")
        shared = set(self._ground or ()) & set(self._space or ())
        if shared:
            raise ValueError(f"bands {sorted(shared)} are on both sides: rename them in one of the surveys")
        for side, band, image in self.images():
            _check_overlap(side, band, image, list(self.images()))

    ground = property(lambda self: self._ground, doc="Checked ground images by band, or None.")
    space = property(lambda self: self._space, doc="Checked space images by band, or None.")
    surveys = property(lambda self: self._surveys, doc="The surveys of the ground and of the space side.")
    flags = property(lambda self: self._flags, doc="What had to be assumed, by band (`~rosetta.Flag`).")

    @property
    def bands(self):
        """Names of all bands, ground first, each side in order of wavelength (tuple of str)."""
        return tuple(self._ground or ()) + tuple(self._space or ())

    def psf(self, band):
        """The PSF of a band.

        Parameters
        ----------
        band : str

        Returns
        -------
        `~rosetta.PSF` or None
            Normalised: its sum falls short of 1 by the light beyond the stamp. None where none was given.

        Raises
        ------
        ValueError
            If this pair has no such band.
        """
        if band not in self.bands:
            raise ValueError(f"band {band!r} is not in this pair: use one of {', '.join(self.bands)}")
        return next(image.psf_anywhere for _, name, image in self.images() if name == band)

    def survey(self, side):
        """The survey of one side.

        Parameters
        ----------
        side : {"ground", "space"}

        Returns
        -------
        `~rosetta.Survey`

        Raises
        ------
        ValueError
            If ``side`` is neither.
        """
        if side not in SIDES:
            raise ValueError(f"side must be 'ground' or 'space', got {side!r}")
        return self._surveys[SIDES.index(side)]

    def side_of(self, survey):
        """The side that a survey looks from.

        Parameters
        ----------
        survey : str or `~rosetta.Survey`
            "ground", "space", a survey's name or the survey.

        Returns
        -------
        str
            "ground" or "space".

        Raises
        ------
        ValueError
            If it is neither of this pair's surveys.
        """
        name, known = getattr(survey, "name", survey), [n for side in SIDES for n in (side, self.survey(side).name)]
        if name not in known:
            raise ValueError(f"unknown survey {name!r}: use one of {known}")
        return SIDES[known.index(name) // 2]

    def survey_name(self, side):
        """What to call the images of one side.

        Parameters
        ----------
        side : {"ground", "space"}

        Returns
        -------
        str
            The name of the survey that the pair was made with. If that is Rubin or Euclid, which are also the default,
            images that say otherwise (``meta["survey"]``, or the FITS cards ``INSTRUME`` or ``TELESCOP``) come first.

        Raises
        ------
        ValueError
            If ``side`` is neither.
        """
        name = self.survey(side).name
        if name not in (RUBIN.name, EUCLID.name):
            return name
        for card in ("survey", "INSTRUME", "TELESCOP"):
            found = [image.meta.get(card) for of, _, image in self.images() if of == side]
            if found and all(isinstance(value, str) and value.strip() for value in found):
                return ", ".join(dict.fromkeys(value.strip() for value in found))
        return name

    def images(self):
        """Iterate over all images, in the order of `bands`.

        Yields
        ------
        side : str
            "ground" or "space".
        band : str
        image : `~astropy.nddata.NDData`
        """
        for side in SIDES:
            for band, image in (getattr(self, side) or {}).items():
                yield side, band, image

    @property
    def footprint(self):
        """One sky polygon per image (`regions.Regions`); the band stands in ``meta["text"]``."""
        from regions import PolygonSkyRegion, Regions

        polygons = []
        for _, band, image in self.images():
            ny, nx = image.data.shape
            corners = image.wcs.pixel_to_world([-0.5, nx - 0.5, nx - 0.5, -0.5], [-0.5, -0.5, ny - 0.5, ny - 0.5])
            polygons.append(PolygonSkyRegion(corners.icrs, meta={"text": band}))
        return Regions(polygons)

    @plain_arithmetic
    def cutout(self, center, size):
        """The pair around ``center``, cut on whole pixels of every image.

        Parameters
        ----------
        center : `~astropy.coordinates.SkyCoord`
            Centre of the cutout (scalar).
        size : `~astropy.units.Quantity`
            Side length (angle), or (height, width).

        Returns
        -------
        `SkyPair`
            A band that does not cover the region is left out.

        Raises
        ------
        TypeError
            If ``center`` is not one position.
        ValueError
            If ``size`` is not a positive angle, or no image covers the region.
        """
        if not isinstance(center, SkyCoord) or not center.isscalar:
            raise TypeError("center must be one SkyCoord")
        given_positions(center, "center")
        try:
            height, width = np.broadcast_to(u.Quantity(size).to_value(u.arcsec), 2)
        except (TypeError, u.UnitConversionError, ValueError) as error:
            raise ValueError(f"size must be an angle or two (height, width), got {size!r}") from error
        if not (0 < height < np.inf and 0 < width < np.inf):
            raise ValueError(f"size must be positive and finite, got {size!r}")
        sides = {side: {} for side in SIDES}
        for side, band, image in self.images():
            bounds = _cutout_bounds(image, center, height, width)
            if bounds is None:
                continue
            piece = cut_image(image, bounds)
            if piece.mask.all():
                continue
            sides[side][band] = piece
        if not any(sides.values()):
            raise ValueError(f"center {center.to_string('hmsdms')}: no image of this pair covers it")
        return self._of_checked(sides["ground"], sides["space"], self._surveys, self._flags)

    def select(self, bands):
        """The pair with some of its bands only.

        Parameters
        ----------
        bands : sequence of str
            Names of bands of this pair, or aliases of them.

        Returns
        -------
        `SkyPair`

        Raises
        ------
        TypeError
            If ``bands`` is one string.
        ValueError
            If it is empty, or this pair has no such band.
        """
        if isinstance(bands, str):
            raise TypeError(f"bands must be a sequence of names, got the string {bands!r}: put it in brackets")
        names = {self._band_name(band, "bands") for band in bands}
        if not names:
            raise ValueError(f"bands is empty: give at least one of {', '.join(self.bands)}")
        sides = {side: {} for side in SIDES}
        for side, band, image in self.images():
            if band in names:
                sides[side][band] = image
        return self._of_checked(sides["ground"], sides["space"], self._surveys, self._flags)

    def with_psf(self, psf):
        """The pair with other PSFs.

        Parameters
        ----------
        psf : dict of str to PSF
            As the argument ``psf`` of the constructor; bands that are not named keep theirs.

        Returns
        -------
        `SkyPair`

        Raises
        ------
        TypeError
            If ``psf`` is not a dict.
        ValueError
            If this pair has no such band, or a PSF cannot be used.
        """
        given = by_band("psf", "PSF", psf, self._surveys)
        given = {self._band_name(band, "psf"): value for band, value in given.items()}
        sides, flags = {side: {} for side in SIDES}, dict(self._flags)
        for side, band, image in self.images():
            if band in given:
                told = flags[band] & Flag.VARIANCE_ESTIMATED
                image, flags[band] = _checked(side, band, image, self.survey(side), given)
                flags[band] |= told
            sides[side][band] = image
        return self._of_checked(sides["ground"], sides["space"], self._surveys, flags)

    def _band_name(self, name, argument):
        """The band of this pair that is called so, or has this alias."""
        if name in self.bands:
            return name
        for side in SIDES:
            for band in self.survey(side).bands:
                if name in band.aliases and band.name in self.bands:
                    return band.name
        raise ValueError(f"{argument}: {name!r} is not in this pair, which has {', '.join(self.bands)}")

    @classmethod
    def _of_checked(cls, ground, space, surveys, flags):
        """A pair of images of `frozen_image`, in order of wavelength; ``flags`` may hold more bands than these."""
        pair = cls.__new__(cls)
        pair._surveys = surveys
        pair._ground, pair._space = (ReadOnlyDict(images) if images else None for images in (ground, space))
        pair._flags = ReadOnlyDict({band: flags[band] for band in pair.bands})
        return pair

    def __repr__(self):
        parts = []
        for side in SIDES:
            sizes = {band: image.data.shape for of, band, image in self.images() if of == side}
            bands = ", ".join(f"{band} {nx}x{ny}" for band, (ny, nx) in sizes.items()) or "none"
            parts.append(f"{self.survey_name(side)}: {bands}")
        return f"<SkyPair {'; '.join(parts)}>"

    def _repr_html_(self):
        rows = []
        for side, band, image in self.images():
            ny, nx = image.data.shape
            sky = image.wcs.pixel_to_world([0, 1, (nx - 1) / 2], [0, 0, (ny - 1) / 2]).icrs
            scale, center = sky[0].separation(sky[1]).to_value(u.arcsec), sky[2].to_string("hmsdms", precision=1)
            psf = "none" if image.psf is None else f"{image.psf.shape[1]} x {image.psf.shape[0]}"
            rows.append((
                self.survey_name(side), band, f"{nx} x {ny}", f'{scale:.3g}"', center, f"{image.mask.mean():.1%}",
                psf, str(self.flags[band]),
            ))  # fmt: skip
        header = ("survey", "band", "pixels", "pixel scale", "centre", "masked", "PSF stamp", "assumed")
        return html_table("SkyPair", header, rows)


def _check_side(side, images, surveys, flags, given):
    """The checked, read-only images of one side, in order of wavelength; None if the side is None."""
    if images is None:
        return None
    if not hasattr(images, "items"):
        raise TypeError(f"{side} must be a dict of band name to NDData, or None; got {type(images).__name__}")
    if not images:
        raise ValueError(f"{side} is an empty dict: pass None if this survey did not look here")
    checked, survey = {}, surveys[SIDES.index(side)]
    other_side, other = next((s, one) for s, one in zip(SIDES, surveys, strict=True) if s != side)
    for name, image in images.items():
        if name not in survey and name in other:
            raise ValueError(f"{side} has band {name!r}, which is one of {other.name}'s: give it as {other_side}")
        band = survey[name].name
        if band in checked:
            raise ValueError(f"{side} has band {band!r} twice (under two of its names): keep one")
        checked[band], flags[band] = _checked(side, name, image, survey, given)
    order = [band for band in survey.band_names if band in checked]
    return ReadOnlyDict({band: checked[band] for band in order})


def _checked(side, name, image, survey, given):
    """A read-only image, and what had to be assumed; its PSF is taken out of ``given`` if it is there."""
    band = survey[name].name
    parts, flags = checked_image(
        f"{side}[{name!r}]", image, given.pop(band, None), nominal=survey[band].psf_fwhm.to_value(u.arcsec),
        wings=PSF_WINGS.get(survey.name, {}).get(band),
    )
    frozen = frozen_image(*parts)
    return frozen, flags if frozen.psf_anywhere is not None else flags | Flag.PSF_NOMINAL


def by_band(argument, what, given, surveys):
    """An argument that holds something for some bands, None for none, as a dict with the surveys' own band names."""
    if given is None:
        return {}
    if not hasattr(given, "items"):
        raise TypeError(f"{argument} must be a dict of band name to {what}, got {type(given).__name__}")
    names = {}
    for survey in surveys:
        for band in survey.bands:
            names.update(dict.fromkeys(band.aliases, band.name))
    names.update({name: name for survey in surveys for name in survey.band_names})
    unknown = [name for name in given if name not in names]
    if unknown:
        known = " and ".join(survey.name for survey in surveys)
        raise ValueError(f"{argument} has unknown bands {unknown}: use the names of {known}")
    return {names[name]: value for name, value in given.items()}


def _check_overlap(side, band, image, images):
    """An image must share sky with some image of the other side, or with another of its own where there is none."""
    other_side = [other for of, _, other in images if of != side]
    own_side = [other for of, name, other in images if of == side and name != band]
    if (other_side or own_side) and not any(_overlap(image, other) for other in other_side or own_side):
        raise ValueError(
            f"{side}[{band!r}] does not overlap the {'other side' if other_side else 'other bands'} on the sky: "
            "check its WCS, or leave it out"
        )


def _overlap(image, other):
    for one, two in ((image, other), (other, image)):
        ny, nx = one.data.shape
        y, x = np.meshgrid(np.linspace(0, ny - 1, 33), np.linspace(0, nx - 1, 33), indexing="ij")
        x, y = two.wcs.world_to_pixel(one.wcs.pixel_to_world(x.ravel(), y.ravel()))
        ny, nx = two.data.shape
        if np.any((x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)):
            return True
    return False


def _cutout_bounds(image, center, height, width):
    """Whole-pixel (y0, y1, x0, x1) of the image that cover the sky rectangle, or None."""
    half = 0.5 * np.array([[-width, -height], [width, -height], [width, height], [-width, height]])
    corners = center.icrs.spherical_offsets_by(half[:, 0] * u.arcsec, half[:, 1] * u.arcsec)
    x, y = image.wcs.world_to_pixel(corners)
    if not np.isfinite(x + y).all():
        return None
    ny, nx = image.data.shape
    x0, x1 = max(int(np.floor(x.min() + 0.5)), 0), min(int(np.ceil(x.max() + 0.5)), nx)
    y0, y1 = max(int(np.floor(y.min() + 0.5)), 0), min(int(np.ceil(y.max() + 0.5)), ny)
    return (y0, y1, x0, x1) if x1 > x0 and y1 > y0 else None
