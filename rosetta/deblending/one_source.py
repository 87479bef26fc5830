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
        """Its flux in a band, nJy (`~astropy.units.Quantity`): see `rosetta.DeblendedScene.flux`."""
        return self._scene.flux(band)[self._scene.labels == self.label][0]

    def model(self, band):
        """Its model in a band (`~astropy.nddata.CCDData`): see `rosetta.DeblendedScene.model`."""
        return self._scene.model(self.label, band)

    def residual(self, band):
        """The residual on the pixels of its model: see `rosetta.DeblendedScene.residual_at`."""
        return self._scene.residual_at(self.label, band)

    def plot(self, *, half_size=4.0, axes=None):
        """Draw it and its neighbours: see `rosetta.plotting.plot_blend`."""
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
