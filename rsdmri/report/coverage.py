"""Figure of mask coverage: how many scans and slices acquired each position, one panel for each shape of masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rsdmri.data.coverage import Coverage
from rsdmri.report.style import COLOURS, QUIET, SMALL, TEXT

_SCANS, _NEVER, _ACS, _HELD = COLOURS[:4]
_ABSENT = "#bcd7ee"
_WIDTH, _HEIGHT, _SIDE, _MARGIN = 7.5, 2.4, 4.2, 1.05  # inches: the figure, a panel of lines, of points, around it


def coverage_figure(panels: Sequence[Coverage]) -> Figure:
    """Scans, slices and held-out slices of each line, points as an image; ACS, absent and never-acquired ones marked.

    The left axis counts scans, the right one slices: bars are scans, the thin line is slices, the thick one the
    slices in which the further mask is expected to hold a line out in one pass over all.
    """
    if not panels:
        raise ValueError("panels: expected one or more")
    heights = [_HEIGHT if _of_lines(panel) else _SIDE for panel in panels]
    total = sum(heights) + _MARGIN * len(panels)
    figure = Figure(figsize=(_WIDTH, total), facecolor="white")
    top = total
    for panel, height in zip(panels, heights, strict=True):
        top -= height + _MARGIN
        axes = figure.add_axes((0.6 / _WIDTH, (top + 0.7) / total, 6.3 / _WIDTH, height / total))
        if _of_lines(panel):
            _draw_lines(axes, panel)
        else:
            _draw_points(axes, panel)
        axes.set_title(panel.table()[0], fontsize=TEXT, loc="left")
        axes.tick_params(labelsize=SMALL, colors=QUIET, length=2.5)
    return figure


def _of_lines(panel: Coverage) -> bool:
    return panel.masks.shape[1] == 1


def _draw_lines(axes: Axes, panel: Coverage) -> None:
    lines = np.arange(panel.masks.shape[2])
    marked = [
        (panel.absent, _ABSENT, 1.0, "absent"),
        (panel.kept & ~panel.absent, _ACS, 0.2, "ACS, always shown"),
        (panel.never, _NEVER, 0.6, "never acquired"),
    ]
    handles: list[Any] = []
    for flags, colour, alpha, label in marked:
        for line in lines[flags[0].numpy()]:
            axes.axvspan(line - 0.5, line + 0.5, facecolor=colour, alpha=alpha, linewidth=0)
        if bool(flags.any()):
            handles.append(Patch(facecolor=colour, alpha=alpha, label=label))
    handles += [axes.bar(lines, panel.scans[0].numpy(), width=0.9, color=_SCANS, label="scans")]
    axes.set(xlim=(-0.5, len(lines) - 0.5), ylim=(0, 1.05 * panel.n_scans))
    right = axes.twinx()
    handles += right.plot(lines, panel.slices[0].numpy(), color="#303030", linewidth=0.7, label="slices")
    held = right.plot(lines, panel.held_out[0].numpy(), color=_HELD, linewidth=1.6, label="held out, slices a pass")
    right.set_ylim(0, 1.05 * panel.n_slices)
    right.tick_params(labelsize=SMALL, colors=QUIET, length=2.5)
    right.set_ylabel("slices", fontsize=TEXT, color=QUIET)
    axes.set_xlabel("phase-encode line", fontsize=TEXT, color=QUIET)
    axes.set_ylabel("scans", fontsize=TEXT, color=QUIET)
    for axis in (axes.xaxis, axes.yaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True))
    _legend(axes, [*handles, *held])


def _legend(axes: Axes, handles: list[Any]) -> None:
    """Below the panel and its label."""
    below = -0.42 / (_HEIGHT if len(axes.images) == 0 else _SIDE)
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, below),
        fontsize=SMALL,
        frameon=False,
        ncols=6,
        columnspacing=1.2,
        borderpad=0,
    )


def _draw_points(axes: Axes, panel: Coverage) -> None:
    share = panel.scans.numpy() / max(panel.n_scans, 1)
    image: NDArray[np.float64] = np.repeat(share[..., None], 3, axis=2)
    kept = panel.kept.numpy()
    image[panel.absent.numpy()] = to_rgb(_ABSENT)
    image[panel.never.numpy()] = to_rgb(_NEVER)
    axes.imshow(image, aspect="equal", interpolation="nearest", vmin=0, vmax=1)
    if kept.any():
        axes.contour(kept, levels=[0.5], colors=[_ACS], linewidths=1.2)
    handles = [Patch(facecolor="white", edgecolor=QUIET, label=f"all {panel.n_scans} scans")]
    handles += [Patch(facecolor="black", label="few scans"), Patch(fill=False, edgecolor=_ACS, label="ACS")]
    for flags, colour, label in ((panel.never, _NEVER, "never acquired"), (panel.absent, _ABSENT, "absent")):
        if bool(flags.any()):
            handles.append(Patch(facecolor=colour, label=label))
    _legend(axes, handles)
    axes.set_anchor("W")
    axes.set_xlabel("phase encode x", fontsize=TEXT, color=QUIET)
    axes.set_ylabel("phase encode y", fontsize=TEXT, color=QUIET)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True))
