"""Figure of the power of samples by spatial frequency, relative to what was measured."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from rsdmri.errors import InputError
from rsdmri.report.style import COLOURS, INK, QUIET, SMALL, TEXT, quiet


def spectrum_figure(frequency: ArrayLike, curves: Mapping[str, ArrayLike], *, heading: str | None = None) -> Figure:
    """Curves of ``log10`` power ratios (bands,) over ``frequency`` (bands,) in cycles per pixel, by name; 0 is right.

    NaN leaves a gap. `InputError` for curves of another length.
    """
    x = np.asarray(frequency, dtype=np.float64)
    figure = Figure(figsize=(5.4, 3.0), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=QUIET, linewidth=0.8)
    for colour, (name, curve) in zip(COLOURS * len(curves), curves.items(), strict=False):
        y = np.asarray(curve, dtype=np.float64)
        if y.shape != x.shape:
            raise InputError(f"curves: {name} has shape {y.shape}, the frequencies {x.shape}")
        axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=2.5, label=name)
    axes.set_xlim(0, 0.5)
    axes.set_xlabel("spatial frequency (cycles per pixel)", fontsize=TEXT, color=QUIET)
    axes.set_ylabel("log₁₀ power / measured power", fontsize=TEXT, color=QUIET)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    quiet(axes)
    if curves:
        axes.legend(fontsize=SMALL, frameon=False)
    if heading:
        axes.set_title(heading, fontsize=TEXT, fontweight="bold", loc="left", color=INK)
    return figure
