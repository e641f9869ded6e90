"""Figures of evaluated methods: every metric by volume and method, and the images of one volume."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rsdmri.evaluation import METRICS
from rsdmri.report.style import COLOURS, INK, QUIET, SMALL, TEXT, quiet

_ARROW = {1: " ↑", -1: " ↓", 0: ""}
_MOST_NAMED = 14  # letters of a method's name below an axis


def methods_figure(methods: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One panel a metric: volumes as points, joined from method to method; means with their 95 % intervals.

    ``methods``: name to ``volumes``, ``mean`` and ``interval`` as of `rsdmri.evaluation.compare`. Arrows say which way
    is better.
    """
    metrics = [name for name in METRICS if any(name in each["mean"] for each in methods.values())]
    down = math.ceil(len(metrics) / 4)
    across = math.ceil(len(metrics) / down)
    width = max(2.2, 0.6 + 0.55 * len(methods))
    figure = Figure(figsize=(0.2 + width * across, 2.7 * down), facecolor="white", layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).ravel())
    for axes in panels[len(metrics) :]:
        axes.set_axis_off()
    for axes, metric in zip(panels, metrics, strict=False):
        _panel(axes, metric, methods)
    return figure


def _panel(axes: Axes, metric: str, methods: Mapping[str, Mapping[str, Any]]) -> None:
    draw: Callable[..., Any] = axes.plot
    volumes = dict.fromkeys(name for each in methods.values() for name in each["volumes"])
    for volume in volumes:
        own = [
            (place, each["volumes"][volume][metric])
            for place, each in enumerate(methods.values())
            if metric in each["volumes"].get(volume, {})
        ]
        style = {"color": QUIET, "alpha": 0.35, "linewidth": 0.6, "marker": "o", "markersize": 2.5}
        draw([place for place, _ in own], [value for _, value in own], **style)
    for place, each in enumerate(methods.values()):
        if metric not in each["mean"]:
            continue
        mean, ends = each["mean"][metric], each["interval"][metric]
        draw([place], [mean], color=COLOURS[0], marker="_", markersize=16, markeredgewidth=2, linestyle="none")
        if ends is not None:
            draw([place, place], ends, color=COLOURS[0], linewidth=2)
    short = [name if len(name) <= _MOST_NAMED else f"{name[: _MOST_NAMED - 1]}…" for name in methods]
    turned: dict[str, Any] = (
        {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, short)) > 18 else {}
    )
    axes.set_xticks(range(len(methods)), short, fontsize=SMALL, **turned)
    axes.set_xlim(-0.6, len(methods) - 0.4)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(METRICS[metric].label + _ARROW[METRICS[metric].better], fontsize=TEXT, loc="left", color=INK)
    quiet(axes)
