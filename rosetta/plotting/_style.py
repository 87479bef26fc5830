# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What all pictures share: colours, axes of their own, the histogram of pulls."""

import numpy as np

# Okabe & Ito (2008): distinct for colour-blind readers, too.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
SKY_BLUE = "#56B4E9"


def axes_of(ax, size=(5.0, 5.0)):
    """The given axes, or axes of a new figure (which opens no window)."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots()


def pull_histogram(ax, pull, colour, name):
    """Density of pulls from -5 to 5; what lies beyond is drawn at the border."""
    within = 100 * np.mean(np.abs(pull) < 1)
    ax.hist(
        np.clip(pull, -4.99, 4.99), np.linspace(-5, 5, 31), density=True, histtype="step", color=colour, lw=1.6,
        label=f"{name}: {within:.0f}% within 1σ",
    )


def unit_gaussian(ax):
    """The unit Gaussian, which pulls should follow."""
    x = np.linspace(-5, 5, 201)
    ax.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color="black", lw=0.9, ls="--", label="Gaussian: 68%")
    ax.set_xlim(-5, 5)
    ax.set_ylim(0, 1.35 * ax.get_ylim()[1])
    ax.set_ylabel("density")
    ax.legend(fontsize=8, loc="upper left")


def round_number(value):
    """1, 2 or 5 times a power of ten, next to ``value``."""
    power = 10 ** np.floor(np.log10(value))
    return float(min((1, 2, 5, 10), key=lambda k: abs(np.log(k * power / value))) * power)


def round_below(value):
    """The largest of 1, 2 and 5 times a power of ten that is at most ``value``."""
    power = 10 ** np.floor(np.log10(value))
    return float(max(k for k in (1, 2, 5) if k * power <= value) * power)


def colour_bar(ax, drawn, ticks, unit, *, scale=1.0):
    """A bar to the right of the axes, with its unit above; ticks are written in units of ``scale``."""
    shown = {"ticks": ticks, "format": lambda value, _: f"{value / scale:g}"}
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes([1.04, 0, 0.06, 1]), **shown)
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_title(unit, fontsize=7, pad=3)
    return bar
