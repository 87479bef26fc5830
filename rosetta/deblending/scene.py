# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The deblender's result: every source's template, and what each band makes of it."""

import copy
from collections import Counter
from functools import cached_property

import astropy.units as u
import numpy as np
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.table import QTable

from ..arithmetic import plain_arithmetic
from ..astrometry.solution import as_solution
from ..columns import describe
from ..display import html_table
from ..embedding import SkyEmbedding
from ..flags import Flag
from ..images.image import FAR, band_images
from ..images.positions import offset_coord
from ..images.wcs_fit import as_fits_wcs, blank
from ..io._fits import as_path
from ..io._store import check_format, extensions, new_path, save
from ..readonly import ReadOnlyDict
from .engine.design import Design
from .engine.rendering import REFERENCE_SCALE, evaluate, render, stamp_sizes
from .engine.shape_fit import broadened
from .label_map import label_map
from .one_source import Source
from .scene_file import scene_hdus, scene_parts
from .shapes import centroids
from .sky_plane import painted_sky
from .sources import placed_on, seen_at

__all__ = ["DeblendedScene"]

FORMAT = 2  # of files
PAINTED = 256  # sources drawn at a time


class DeblendedScene:
    """Sources, their templates, and their models in every band; made by `~rosetta.JEPADeblender`.

    Immutable. Flux unit: nJy. A source's template is one distribution of light on the sky, and its
    model in a band is that, seen through the band's PSF, times the band's flux. The models of all sources, the sky and
    the residual sum to the image. ``meta["sky"]`` holds the sky by band, as lists with a value per tile: ``level`` (nJy
    per pixel) at the pixel (``x``, ``y``), ``slope_x`` and ``slope_y`` (per pixel of distance from there), and their
    errors ``level_err``, ``slope_x_err`` and ``slope_y_err``; it is empty where the sky was taken as 0.

    Images come with the band's own WCS. `~astropy.nddata.CCDData` takes FITS ones only, so any other kind is fitted
    by TAN, or by TAN-SIP where TAN is worse than 5 mas; ``meta["WCSRES"]`` of the image then holds the
    largest distance of the fit from it.

    Attributes
    ----------
    labels : ndarray of int, shape (n,)
    bands : tuple of str
    offsets : `~astropy.table.QTable` or None
        The astrometric solution that was used (a copy).
    meta : dict
        Provenance.
    """

    def __init__(self, *, embedding, table, templates, shape_covariance, fits, offsets, meta):
        self._embedding = embedding
        self._table = table
        self._templates = templates
        self._shape_covariance = shape_covariance
        self._fits = ReadOnlyDict(fits)
        self._offsets = copy.deepcopy(offsets)
        self._meta = meta

    def __reduce__(self):
        return _restored, (  # the images are the pair's
            self._embedding, self._table, self._templates, self._shape_covariance, dict(self._fits), self._offsets,
            self._meta,
        )

    labels = property(lambda self: np.asarray(self._table["label"]).copy(), doc="Labels of the sources (a copy).")
    bands = property(lambda self: tuple(self._fits), doc="Bands that were fitted, ground first.")
    embedding = property(lambda self: self._embedding, doc="What it was made from.")
    templates = property(lambda self: self._templates, doc="What draws the sources, `Templates`.")
    shape_covariance = property(lambda self: self._shape_covariance, doc="Of the fitted shapes, (n, n_shape, n_shape).")
    fits = property(lambda self: self._fits, doc="Fit of each band (read-only mapping of `BandFit`).")
    images = property(lambda self: band_images(self._embedding.pair), doc="Images of the bands, as arrays.")
    offsets = property(
        lambda self: copy.deepcopy(self._offsets),
        doc="The astrometric solution that was used (a copy), or None.",
    )
    meta = property(lambda self: copy.deepcopy(self._meta), doc="Provenance (a copy).")

    def __len__(self):
        return len(self._table)

    def __getitem__(self, label):
        """One source.

        Parameters
        ----------
        label : int

        Returns
        -------
        `~rosetta.deblending.one_source.Source`

        Raises
        ------
        ValueError
            If the label is not in this scene.
        """
        row = self._table[self._row(label)]
        return Source(self, {name: row[name] for name in self._table.colnames})

    def __iter__(self):
        """All sources, in the order of ``labels``."""
        return (self[label] for label in self.labels)

    def __repr__(self):
        return f"<DeblendedScene {len(self)} sources in {' '.join(self.bands)}>"

    def _repr_html_(self):
        pair, rows = self._embedding.pair, []
        for side, band, _ in pair.images():
            if band in self._fits:
                fit = self._fits[band]
                with np.errstate(invalid="ignore", divide="ignore"):
                    snr = fit.flux / np.sqrt(fit.covariance.diagonal())
                rows.append((pair.survey_name(side), band, int(fit.measured.sum()), int(np.sum(snr > 5))))
        flagged = Counter(flag.name for row in self._table["flags"] for flag in Flag(row))
        note = ", ".join(f"{name} {n}" for name, n in flagged.most_common()) or "none"
        return html_table(
            f"DeblendedScene: {len(self)} sources", ("survey", "band", "measured", "S/N > 5"), rows,
            f"Rows with flags: {note}. One source: scene[label].",
        )

    def check_offsets(self, offsets):
        """Raise `ValueError` if there are offsets, and they are not those that the scene was made with."""
        if offsets is None:
            return
        if self._offsets is None or not as_solution(offsets).same_as(as_solution(self._offsets)):
            raise ValueError("offsets differs from what the scene was made with: leave it out, the scene remembers")

    def to_table(self):
        """One row per source.

        Returns
        -------
        `~astropy.table.QTable`
            ``label``, ``listed`` (only where positions were given: whether the source is one of them, or a
            neighbour), ``sky_centroid`` (of the template, in the space image's frame; a listed position stays
            as it was given unless it was to be recentred), ``ra_err``, ``dec_err`` (mas on the sky, towards east and
            north, in the frame of the sharpest image) and their correlation ``ra_dec_corr`` (from the noise, its
            autocorrelation and what the template leaves in the residuals, not from the light of neighbours; too small
            for irregular galaxies; NaN where the position was given and not recentred, or no pixel is valid),
            ``blendedness``
            (0: alone; 1 - sum f^2 / sum f F over the pixels of ``meta["blendedness_band"]``),
            ``n_pixel`` and ``n_band`` (valid pixels and bands that support it), ``blend_probability``
            (that another source of at least a fifth of its flux hides within an arcsecond; NaN unless the deblender
            was trained, and where no band has a pixel of it), ``half_light_radius`` (arcsec; below 0.005 for
            points), ``e1``, ``e2`` (distortion: (Qxx - Qyy) / (Qxx + Qyy),
            2 Qxy / (Qxx + Qyy), x east and y north), ``snr`` (of the sharpest band), ``flags``, and
            ``flags_<band>`` (what of it is true in that band).
        """
        table = self._table.copy()
        describe(table, self.bands)
        table.meta.update(self.meta)
        return table

    def pixel_positions(self):
        """Where all sources lie on the images.

        Returns
        -------
        `~astropy.table.QTable`
            ``label``, and ``x_<band>``, ``y_<band>`` (pix): 0-based pixels of the band's image (the centre of the
            first one is 0), also outside it. On the ground the astrometric solution is applied. NaN where the WCS
            gives none.
        """
        table = QTable({"label": self.labels})
        for band in self.bands:
            placed = self._placed(band)
            light = centroids(self._templates.mixtures)  # arcsec (east, north) from where the source is placed
            xy = placed.xy + np.einsum("nij,nj->ni", placed.jacobian, light)
            xy[(np.abs(placed.xy) >= FAR).any(axis=1)] = np.nan
            table[f"x_{band}"], table[f"y_{band}"] = xy.T * u.pix
        describe(table, self.bands)
        return table

    @plain_arithmetic
    def segmentation(self, band=None, *, threshold=1.0):
        """Which source each pixel belongs to.

        Parameters
        ----------
        band : str, optional
            None: the reference band, ``meta["reference_band"]``.
        threshold : float, optional
            In standard deviations of the sky in one pixel. A pixel belongs to the source whose model is brightest there
            and brighter than this. A source that is fainter everywhere has no pixel.

        Returns
        -------
        `~astropy.nddata.CCDData`
            Labels, int32, on the native grid; 0 where there is no source or the pixel is masked.

        Raises
        ------
        ValueError
            If the band is not in this scene, or the threshold is not a positive number.
        """
        band = self._meta["reference_band"] if band is None else band
        self._fit(band)
        if not (np.ndim(threshold) == 0 and 0 < threshold < np.inf):
            raise ValueError(f"threshold is {threshold!r}: give a positive number")
        labels = label_map(self.source_models(band), self.images[band].sky_weight, threshold)
        wcs, meta = self._wcs_of(band)
        return CCDData(labels, unit=u.dimensionless_unscaled, wcs=wcs.deepcopy(), meta=meta)

    def _row(self, label):
        found = np.flatnonzero(np.asarray(self._table["label"]) == label) if np.ndim(label) == 0 else ()
        if len(found) == 0:
            raise ValueError(f"label {label!r} is not in this scene: use one of scene.labels")
        return int(found[0])

    def _fit(self, band):
        if not isinstance(band, str) or band not in self._fits:
            raise ValueError(f"band {band!r} is not in this scene: use one of {', '.join(self.bands)}")
        return self._fits[band]

    def flux(self, band):
        """Fluxes of all sources in a band.

        Parameters
        ----------
        band : str

        Returns
        -------
        `~astropy.units.Quantity`, shape (n,)
            nJy, in the order of ``labels``; NaN where unmeasured.

        Raises
        ------
        ValueError
            If the band is not in this scene.
        """
        return self._fit(band).flux.copy() * u.nJy

    def covariance(self, band):
        """Covariance of the fluxes of all sources in a band, from noise and overlap.

        Parameters
        ----------
        band : str

        Returns
        -------
        (n, n) `scipy.sparse.csc_array`
            nJy^2, in the order of ``labels``; empty rows for sources without a flux.

        Raises
        ------
        ValueError
            If the band is not in this scene.
        """
        return self._fit(band).covariance.copy()

    @plain_arithmetic
    def model(self, label, band):
        """The model of one source, or of all.

        Parameters
        ----------
        label : int or None
            None: the sum of all sources on the whole image.
        band : str

        Returns
        -------
        `~astropy.nddata.CCDData`
            nJy per native pixel; for one source the smallest cutout that holds its model, whose first pixel is that of
            the image called ``ORIGINX``, ``ORIGINY`` (0-based) in ``meta``. Sums to the source's flux where the image
            holds all of it.

        Raises
        ------
        ValueError
            If the label or the band is not in this scene, or the source has no pixel in the band.
        """
        fit, image = self._fit(band), self.images[band]
        if label is None:
            wcs, meta = self._wcs_of(band)
            return CCDData(self._painted(band), unit=u.nJy, wcs=wcs.deepcopy(), meta=meta)
        row = self._row(label)
        (stamp,) = self._stamps(band, np.array([row]))
        (x0, y0), size = stamp.corner[0], stamp.values.shape[1]
        (ya, yb), (xa, xb) = ((max(c, 0), min(c + size, n)) for c, n in zip((y0, x0), image.shape, strict=True))
        if ya >= yb or xa >= xb:
            raise ValueError(f"label {label!r} has no pixel in band {band!r}: see its flags")
        data = fit.flux[row] * stamp.values[0, ya - y0 : yb - y0, xa - x0 : xb - x0].astype(float)
        wcs, meta = self._wcs_of(band)
        meta.update(label=int(label), ORIGINX=int(xa), ORIGINY=int(ya))
        return CCDData(data, unit=u.nJy, wcs=wcs[ya:yb, xa:xb], meta=meta)

    def source_models(self, band):
        """The models of all sources in a band, one after the other; much quicker than `model` for each of them.

        Parameters
        ----------
        band : str

        Yields
        ------
        label : int
        origin : tuple of int
            0-based pixel (x, y) of the band's image that is the first one of ``image``.
        image : (ny, nx) array
            nJy; 0 for a source without a flux. Sources without a pixel in the band are left out.

        Raises
        ------
        ValueError
            If the band is not in this scene.
        """
        fit, labels = self._fit(band), self.labels.tolist()
        for rows, design in self._designs(band):
            for row, (y0, _, x0, _), values in zip(rows, design.bounds.tolist(), design.values, strict=True):
                if values.size:
                    yield labels[row], (x0, y0), np.nan_to_num(fit.flux[row]) * values.astype(float)

    @cached_property
    def _placements(self):
        """How all sources lie on the images, by band; filled as bands are asked for."""
        return {}

    def _placed(self, band):
        if band not in self._placements:
            templates, image = self._templates, self.images[band]
            solution = None if self._offsets is None else as_solution(self._offsets)
            seen = seen_at(image.tangent_plane.east_north(templates.coord), image, solution)
            self._placements[band] = placed_on(
                image, *image.place(seen), templates.truncation, templates.wavelength, templates.config
            )
        return self._placements[band]

    def _drawn(self, band, rows):
        """What draws some of the sources in a band: their light, how they lie on the image, sizes of their stamps."""
        placed, templates = self._placed(band).of(rows), self._templates
        seen = broadened(templates.mixtures[rows], self._fits[band].breadth[rows], placed, templates.config)
        return seen, placed, stamp_sizes(seen, placed.jacobian, placed.image.psf, placed.truncation)

    @plain_arithmetic
    def _stamps(self, band, rows):
        """Unit-flux `~rosetta.deblending.engine.rendering.Stamps` of some of the sources in a band."""
        seen, placed, sizes = self._drawn(band, rows)
        return render(seen, placed.xy, placed.jacobian, placed.image.psf, sizes=sizes)

    def _designs(self, band):
        """Unit-flux images of the sources in a band, some at a time: yields their rows and a `Design`."""
        for rows in np.split(np.arange(len(self)), range(PAINTED, len(self), PAINTED)):
            yield rows, Design(self._stamps(band, rows), self.images[band].shape, len(rows))

    def _painted(self, band, cut=None):
        """All sources on the image of a band, or on a cut of it, nJy."""
        flux = np.nan_to_num(self._fits[band].flux)
        if cut is None:
            blank = np.zeros(self.images[band].shape)
            return sum((design.image(flux[rows]) for rows, design in self._designs(band)), blank)
        return self.painted(band, cut, np.arange(len(self)))

    def painted(self, band, cut, rows):
        """Some of the sources on a cut (slices of y and x) of the image of a band, nJy."""
        flux = np.nan_to_num(self._fits[band].flux)
        _, placed, sizes = self._drawn(band, rows)
        low, high = (np.array([getattr(part, end) for part in cut[::-1]]) for end in ("start", "stop"))  # (x, y)
        reach = 0.5 * (sizes[:, None] + high - low) + 1  # (n, 2)
        near = rows[(np.abs(placed.xy - 0.5 * (low + high)) < reach).all(axis=1)]
        return Design(self._stamps(band, near), self.images[band].shape, len(near)).image(flux[near])[cut]

    @plain_arithmetic
    def template(self, label):
        """The light of one source before any PSF, at the reference resolution.

        Parameters
        ----------
        label : int

        Returns
        -------
        `~astropy.nddata.CCDData`
            Unit sum, non-negative, as seen through a Gaussian of FWHM 0.12" on a north-up grid of 0.05".

        Raises
        ------
        ValueError
            If the label is not in this scene.
        """
        row = self._row(label)
        mixture = self._templates.mixtures[row].copy()
        middle_of_light = offset_coord(self._templates.coord[row], *centroids(mixture))
        mixture[:, 1:3] -= centroids(mixture)  # it is shown about its own middle
        image = evaluate(mixture)
        middle = (image.shape[1] // 2, image.shape[0] // 2)
        wcs = blank(middle_of_light, middle, np.diag([-REFERENCE_SCALE, REFERENCE_SCALE]))
        return CCDData(image, unit=u.dimensionless_unscaled, wcs=wcs, meta={"label": int(label)})

    def sky(self, band):
        """What the image was found to hold of the sky.

        Parameters
        ----------
        band : str

        Returns
        -------
        `~astropy.nddata.CCDData`
            nJy per native pixel on the whole image: at each pixel the plane of the nearest tile; 0 with
            ``background=None``.

        Raises
        ------
        ValueError
            If the band is not in this scene.
        """
        self._fit(band)
        wcs, meta = self._wcs_of(band)
        return CCDData(self._sky(band), unit=u.nJy, wcs=wcs.deepcopy(), meta=meta)

    def _sky(self, band):
        rows, shape = self._meta.get("sky", {}).get(band), self.images[band].shape
        return np.zeros(shape) if rows is None else painted_sky(rows, shape)

    def residual(self, band):
        """The image less the models of all sources and the sky.

        Parameters
        ----------
        band : str

        Returns
        -------
        `~astropy.nddata.CCDData`
            nJy on the native grid, with the image's mask and variance; NaN where masked.

        Raises
        ------
        ValueError
            If the band is not in this scene.
        """
        return self.model_and_residual(band)[1]

    def residual_at(self, label, band):
        """The residual on the pixels of ``model(label, band)``; much quicker than `residual` on a large image.

        Parameters
        ----------
        label : int
        band : str

        Returns
        -------
        `~astropy.nddata.CCDData`
            nJy, with the image's mask and variance; NaN where masked.

        Raises
        ------
        ValueError
            If the label or the band is not in this scene, or the source has no pixel in the band.
        """
        own = self.model(label, band)
        x0, y0 = own.meta["ORIGINX"], own.meta["ORIGINY"]
        cut = slice(y0, y0 + own.shape[0]), slice(x0, x0 + own.shape[1])
        pixels = self.images[band].pixels
        mask = pixels.mask[cut]
        data = np.where(mask, np.nan, pixels.data[cut] - self._painted(band, cut) - self._sky(band)[cut])
        uncertainty = VarianceUncertainty(np.where(mask, np.nan, pixels.uncertainty.array[cut]))
        return CCDData(data, unit=u.nJy, wcs=own.wcs, mask=mask.copy(), uncertainty=uncertainty, meta=own.meta)

    @plain_arithmetic
    def model_and_residual(self, band):
        """``model(None, band)`` and ``residual(band)``, with the sources drawn once.

        Parameters
        ----------
        band : str

        Returns
        -------
        model, residual : `~astropy.nddata.CCDData`

        Raises
        ------
        ValueError
            If the band is not in this scene.
        """
        model, pixels = self.model(None, band), self.images[band].pixels
        data = np.where(pixels.mask, np.nan, pixels.data - model.data - self._sky(band))
        uncertainty = VarianceUncertainty(np.where(pixels.mask, np.nan, pixels.uncertainty.array))
        wcs, meta = self._wcs_of(band)
        residual = CCDData(
            data, unit=u.nJy, wcs=wcs.deepcopy(), mask=pixels.mask.copy(), uncertainty=uncertainty, meta=meta
        )
        return model, residual

    @cached_property
    def _fits_wcs(self):
        """FITS WCS of every band, and the largest error of its fit (mas; None where it is the band's own)."""
        return {band: as_fits_wcs(self.images[band]) for band in self._fits}

    def _wcs_of(self, band):
        """WCS of an image of a band, and the start of its meta."""
        wcs, residual = self._fits_wcs[band]
        return wcs, {"band": band} if residual is None else {"band": band, "WCSRES": residual}

    @plain_arithmetic
    def write(self, path, *, overwrite=False):
        """Write the scene, with its embedding and its pair, to one FITS file, without loss.

        The file is that of an embedding (`SkyEmbedding.write`) with more extensions: ``SOURCES`` (the table of the
        sources), ``TEMPLATES`` (what draws them), per band ``FIT_<band>`` (a row per source), ``FIT_<band>_COMMON``
        (what all sources share) and ``FIT_<band>_COVARIANCE`` (nJy^2, an entry per row), ``OFFSETS``, and
        ``SCENE_META``, ``SCENE_CONFIG`` and ``OFFSETS_META`` as JSON.

        Parameters
        ----------
        path : str or path-like
        overwrite : bool, optional
            Whether to replace the file if it exists: whole, or not at all.

        Raises
        ------
        FileExistsError
            If the file exists and ``overwrite`` is False.
        ValueError
            If the pair cannot be written to such a file.
        """
        path = new_path(path, overwrite)
        n, hdus = len(self), self._embedding._hdus()
        hdus[0].header["SCNFMT"] = (FORMAT, "rosetta scene, format version")
        hdus[0].header["NSOURCE"] = (n, "sources of the scene")
        hdus[0].header["BANDS"] = (" ".join(self.bands), "bands that were fitted")
        sides = {band: self.images[band].side for band in self._fits}
        parts = self._table, self._templates, self._shape_covariance, self._fits, sides, self._offsets, self._meta
        hdus += scene_hdus(*parts)
        save(hdus, path)

    @classmethod
    @plain_arithmetic
    def read(cls, path):
        """Read a scene written by `write`.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        `DeblendedScene`

        Raises
        ------
        ValueError
            If the file is damaged, of another kind, or of a newer format.
        """
        path = as_path(path, "path")

        def check(header):
            advice = "read a pair with rosetta.io.pair.read, an embedding with SkyEmbedding.read"
            if check_format(header, path, "SCNFMT", FORMAT, "scene", advice) < FORMAT:
                raise ValueError(f"path: {path.name} is a scene of an earlier format: make the scene again")
            SkyEmbedding._check(header, path)

        with extensions(path, check) as (header, found):
            embedding = SkyEmbedding._of_file(header, found, path)
            sides = {band: side for side, band, _ in embedding.pair.images()}
            return cls(embedding=embedding, **scene_parts(found, header["BANDS"].split(), sides))

    @plain_arithmetic
    def to_regions(self):
        """Half-light ellipses of all sources.

        Returns
        -------
        `regions.Regions`
            With the label as text; ``.write(path, format="ds9")`` for DS9.
        """
        from regions import EllipseSkyRegion, Regions

        ellipses = []
        for row in self._table:
            e1, e2 = float(row["e1"]), float(row["e2"])
            size = min(np.hypot(e1, e2), 0.98)
            ratio = np.sqrt((1 - size) / (1 + size))  # minor over major axis
            major = 2 * max(row["half_light_radius"].to_value(u.arcsec), 0.05) / np.sqrt(ratio)
            # Sky regions count angles from north towards east.
            angle = 90.0 * u.deg - 0.5 * np.arctan2(e2, e1) * u.rad
            ellipses.append(
                EllipseSkyRegion(
                    row["sky_centroid"], width=major * ratio * u.arcsec, height=major * u.arcsec, angle=angle,
                    meta={"text": str(row["label"])},
                )
            )
        return Regions(ellipses)

    @cached_property
    def template_covariance(self):
        """Relative covariance of a source's fluxes between bands, from the template's uncertainty.

        Returns
        -------
        (n, n_band, n_band) array
            Dimensionless, bands in the order of ``bands``; read-only.
        """
        covariance = template_covariance(self._fits, self._shape_covariance)
        covariance.setflags(write=False)
        return covariance


def template_covariance(fits, shape_covariance):
    """Relative covariance (n, n_band, n_band) of fluxes from the uncertainty of shapes and of each band's breadths."""
    slope = np.stack([fit.slope for fit in fits.values()], axis=1)  # (n, n_band, n_shape)
    covariance = np.einsum("nbi,nij,ncj->nbc", slope, shape_covariance, slope)
    for k, fit in enumerate(fits.values()):
        covariance[:, k, k] += fit.breadth_error**2
    return covariance


# ---------------------------------------------------------------------------- travel
def _restored(embedding, table, templates, shape_covariance, fits, offsets, meta):
    """A scene from its parts."""
    return DeblendedScene(
        embedding=embedding, table=table, templates=templates, shape_covariance=shape_covariance, fits=fits,
        offsets=offsets, meta=meta,
    )
