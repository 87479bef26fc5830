# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the fit of a part of a tile takes from the whole of it: sky, noise, and the light of sources beyond the part.

The bright sources are fitted: their light reaches far, and they tell of the PSFs. The light of the others is that of
the shapes that they were detected with.
"""

from dataclasses import dataclass, replace

import numpy as np

from . import shapes
from .sky_plane import SkyPlane
from .tile_fit import TileFit, fitted_bands, fitted_shapes, merged_fragments
from .tiles import filled

__all__ = ["WholeTile"]

BRIGHT = 50.0  # S/N of the detection


@dataclass(frozen=True, eq=False)
class WholeTile:
    """A tile, with what is known of it before parts of it are fitted.

    Attributes
    ----------
    images : dict of str to `~rosetta.images.image.BandImage`
        Cut to the tile.
    designs : dict of str to `~rosetta.deblending.engine.design.Design`
        All sources.
    fluxes : dict of str to (n,) array
        nJy.
    bright : `~rosetta.deblending.tile_fit.TileFit`
        Of the bright sources, the light of the others subtracted.
    """

    images: dict
    designs: dict
    fluxes: dict
    bright: TileFit

    @classmethod
    def of(cls, engine, images, roles, sources, config, background):
        """From the sources of a tile as they were detected."""
        bright, mixtures = np.flatnonzero(sources.snr > BRIGHT), shapes.mixture(sources.start)
        some = sources.of(bright)
        parameters, covariance, _ = fitted_shapes(engine, images, roles, some)
        owners, own = merged_fragments(engine, images, roles, some, parameters, True, config)
        whole = owners == np.arange(len(owners))
        rows, fragments, faint = bright[whole], bright[~whole], np.flatnonzero(sources.snr <= BRIGHT)
        some, parameters, covariance = some.of(whole), parameters[whole], covariance[whole]
        n_component = max(own.shape[1], mixtures.shape[1])
        mixtures, own = filled(mixtures, n_component), filled(own, n_component)
        mixtures[rows], mixtures[fragments, :, 0] = own, 0.0
        designs, fluxes, less, planes = {}, {}, {}, {}
        for band, image in images.items():
            placed = sources.on(image, roles.reference.wavelength, engine.config, light=3.0)
            designs[band] = engine.render(mixtures, placed)
            if background == "plane":
                planes[band] = SkyPlane.of(image)
            fluxes[band] = np.nan_to_num(engine.solve(designs[band], image, planes.get(band)).flux)
            light = designs[band].of(faint).image(fluxes[band][faint])
            less[band] = image.without(light)
        fit = fitted_bands(
            engine, less, roles, some, parameters, covariance, own, np.ones(len(rows), bool), config, planes,
        )
        for band, image in images.items():
            placed = some.on(image, roles.reference.wavelength, engine.config)
            drawn = engine.render(own, placed, fit.bands[band].breadth)
            designs[band] = designs[band].replaced(rows, drawn)
            fluxes[band][rows] = np.nan_to_num(fit.bands[band].flux)
        return cls(images, designs, fluxes, fit)

    def part(self, tile, inside):
        """Images of a part of the tile and their skies.

        Parameters
        ----------
        tile : `~rosetta.deblending.tiles.Tile`
            The part.
        inside : (n,) bool array
            Sources that are fitted there; the light of the others is subtracted.

        Returns
        -------
        images : dict of str to `~rosetta.images.image.BandImage`
        planes : dict of str to `~rosetta.deblending.sky_plane.SkyPlane`
        """
        images, planes, beyond = {}, {}, np.flatnonzero(~inside)
        for band, (y0, y1, x0, x1) in tile.windows(self.images).items():
            image, window = self.images[band], (slice(y0, y1), slice(x0, x1))
            light = self.designs[band].of(beyond).image(self.fluxes[band][beyond])[window]
            piece = image.cut((y0, y1, x0, x1))
            images[band] = piece.without(light, sky_weight=image.sky_weight[window])
            if (sky := self.bright.skies[band]) is not None:
                (ny, nx), across, up = image.shape, x0 + x1 - 1, y0 + y1 - 1  # twice the middle of the part
                known = sky.moved(0.5 * (across - (nx - 1)), 0.5 * (up - (ny - 1)))
                planes[band] = SkyPlane.of(images[band], known)
        return images, planes

    def bright_beyond(self, tile, parts):
        """The `TileFit` of the bright sources that the tile owns, and no part."""
        coord = self.bright.coord
        taken = np.any([part.owns(coord) for part in parts], axis=0)
        return replace(self.bright, own=tile.owns(coord) & ~taken)
