# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""One source of a scene."""

from ..display import html_table
from ..flags import Flag
from ..plotting.blends import plot_blend
from ..readonly import ReadOnlyDict

__all__ = ["Source"]


class Source:
    """One source of a `~rosetta.DeblendedScene`; made by ``scene[label]``. Immutable.

    Attributes
    ----------
    row : mapping of str to value
        Its row in the scene's table; read-only.
    label : int
    bands : tuple of str
        Bands that the scene was fitted in.
    """

    __slots__ = ("_row", "_scene")

    def __init__(self, scene, row):
        self._scene, self._row = scene, ReadOnlyDict(row)

    row = property(lambda self: self._row, doc="Its row in the scene's table (read-only).")
    label = property(lambda self: int(self._row["label"]), doc="Its label.")
    bands = property(lambda self: self._scene.bands, doc="Bands that the scene was fitted in.")

    def __reduce__(self):
        return type(self), (self._scene, dict(self._row))

    def flux(self, band):
        """Its flux in a band, as `~rosetta.DeblendedScene.flux` gives it.

        Parameters
        ----------
        band : str

        Returns
        -------
        `~astropy.units.Quantity`
            nJy; NaN where unmeasured.
        """
        return self._scene.flux(band)[self._scene.labels == self.label][0]

    def model(self, band):
        """Its model, as `~rosetta.DeblendedScene.model` gives it.

        Parameters
        ----------
        band : str

        Returns
        -------
        `~astropy.nddata.CCDData`
            nJy, the smallest cutout that holds it.

        Raises
        ------
        ValueError
            If the band is not in the scene, or the source has no pixel in it.
        """
        return self._scene.model(self.label, band)

    def residual(self, band):
        """What the models of all sources leave of the image, on the pixels of `model`.

        Parameters
        ----------
        band : str

        Returns
        -------
        `~astropy.nddata.CCDData`
            nJy, with mask and variance; NaN where masked.

        Raises
        ------
        ValueError
            If the band is not in the scene, or the source has no pixel in it.
        """
        return self._scene.residual_at(self.label, band)

    def plot(self, *, half_size=4.0, axes=None):
        """Draw it and its neighbours: image, model of all, its own model and residual, in either survey.

        Parameters
        ----------
        half_size : float
            Half the side of a panel, arcsec.
        axes : ndarray of `~matplotlib.axes.Axes`, shape (n_side, 4), optional

        Returns
        -------
        ndarray of `~matplotlib.axes.Axes`, shape (n_side, 4)
            As `~rosetta.plotting.plot_blend` returns them; ``axes[0, 0].figure`` is the figure.
        """
        return plot_blend(self._scene, self.label, half_size=half_size, axes=axes)

    def _shown(self):
        """Names and texts of what is shown of it."""
        row = self._row
        return {
            "label": self.label,
            "sky_centroid": row["sky_centroid"].to_string("hmsdms", precision=3),
            "snr": f"{row['snr']:.1f}",
            "half_light_radius": f"{row['half_light_radius']:.3f}",
            "blendedness": f"{row['blendedness']:.3f}",
            "flags": str(Flag(row["flags"])),
        }

    def __repr__(self):
        shown = self._shown()
        return (
            f"<Source {shown['label']}: {shown['sky_centroid']}, S/N {shown['snr']}, half-light radius "
            f"{shown['half_light_radius']}, flags {shown['flags']}>"
        )

    def _repr_html_(self):
        fluxes = [(f"flux_{band}", f"{self.flux(band):.4g}") for band in self.bands]
        return html_table(f"Source {self.label}", (), [*self._shown().items(), *fluxes])
