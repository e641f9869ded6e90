"""Figure of the power of samples by spatial frequency, relative to what was measured."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from rsdmri.errors import InputError
from rsdmri.report.figures import COLOURS

_INK, _QUIET = "#1a1a1a", "#5a5a5a"
_TEXT, _SMALL = 8.5, 7.5  # points


def spectrum_figure(frequency: ArrayLike, curves: Mapping[str, ArrayLike], *, heading: str | None = None) -> Figure:
    """Curves of ``log10`` power ratios (bands,) over ``frequency`` (bands,) in cycles per pixel, by name; 0 is right.

    NaN leaves a gap. `InputError` for curves of another length.
    """
    x = np.asarray(frequency, dtype=np.float64)
    figure = Figure(figsize=(5.4, 3.0), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=_QUIET, linewidth=0.8)
    for colour, (name, curve) in zip(COLOURS * len(curves), curves.items(), strict=False):
        y = np.asarray(curve, dtype=np.float64)
        if y.shape != x.shape:
            raise InputError(f"curves: {name} has shape {y.shape}, the frequencies {x.shape}")
        axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=2.5, label=name)
    axes.set_xlim(0, 0.5)
    axes.set_xlabel("spatial frequency (cycles per pixel)", fontsize=_TEXT, color=_QUIET)
    axes.set_ylabel("log₁₀ power / measured power", fontsize=_TEXT, color=_QUIET)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(labelsize=_SMALL, colors=_QUIET, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    if curves:
        axes.legend(fontsize=_SMALL, frameon=False)
    if heading:
        axes.set_title(heading, fontsize=_TEXT, fontweight="bold", loc="left", color=_INK)
    return figure
