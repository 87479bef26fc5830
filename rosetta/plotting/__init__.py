# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Pictures of what was measured (needs the extra ``plot``).

Every function draws on the axes it is given, or on new ones, and returns them; nothing is shown or saved.
Images are drawn north up, east left, in arcsec about a stated centre.
"""

from .astrometry import plot_offsets, plot_residuals
from .attention import plot_attention
from .blends import choose_blend, plot_blend, plot_residual
from .fluxes import plot_errors, plot_flux_truth, plot_pulls, plot_sed
from .images import plot_rgb, plot_sources, rgb
from .page import overview
from .recovery import plot_recovery
from .residual_images import plot_residual_images

__all__ = [
    "choose_blend",
    "overview",
    "plot_attention",
    "plot_blend",
    "plot_errors",
    "plot_flux_truth",
    "plot_offsets",
    "plot_pulls",
    "plot_recovery",
    "plot_residual",
    "plot_residual_images",
    "plot_residuals",
    "plot_rgb",
    "plot_sed",
    "plot_sources",
    "rgb",
]
