"""How all figures look: colours, sizes of text, and axes that stand behind their curves."""

from matplotlib.axes import Axes

# Okabe and Ito's palette, which people of any colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ALARM = "#b00020"
INK, QUIET = "#1a1a1a", "#5a5a5a"
HEAD, TEXT, SMALL = 10.0, 8.5, 7.5  # points


def quiet(axes: Axes) -> None:
    """Draw ticks, spines and grid of ``axes`` so that they stand behind the curves."""
    axes.tick_params(which="both", labelsize=SMALL, colors=QUIET, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9a9a9a")
    axes.grid(alpha=0.25, linewidth=0.6)
