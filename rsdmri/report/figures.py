"""Figures of images, k-space and training. Each call returns a `Figure` of its own.

Magnitudes are shown in grey, black at 0, one window per figure. Colours are Okabe and Ito's, which colour-blind readers
can tell apart. Save with `save_png`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError
from rsdmri.report.grid import Grid
from rsdmri.report.png import common_window, magnitudes, save_image_png, save_png
from rsdmri.report.reconstruction import reconstruction_figure
from rsdmri.report.style import COLOURS, INK, QUIET, SMALL, TEXT, quiet

__all__ = [
    "curves_figure",
    "image_grid",
    "kspace_figure",
    "loss_figure",
    "reconstruction_figure",
    "save_image_png",
    "save_png",
    "states_figure",
]

_SKIPPED, _ABSENT = "#bcd7ee", "#f3d9c4"
_DECADES = 4.5  # of k-space magnitude shown
_LOGARITHMIC = ("loss", "validation", "gradient norm")
_FEW = 30  # values of a curve that are marked one by one


def image_grid(
    images: ArrayLike,
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    heading: str | None = None,
    window: float | None = None,
    width: float = 7.5,
) -> Figure:
    """Magnitudes of images (n, y, x) in a grid with one window: black 0, white ``window`` (99.7th percentile).

    ``titles``: one per image; ``columns``: by default nearly square, at most 8; ``width`` of the figure in inches.
    """
    x = magnitudes(images)
    if titles is not None and len(titles) != len(x):
        raise InputError(f"titles: {len(titles)} for {len(x)} images")
    columns = columns or min(8, math.ceil(math.sqrt(len(x))))
    rows = math.ceil(len(x) / columns)
    side = (width - 0.16 - 0.06 * (columns - 1)) / columns
    above = [0.22 if titles else (0.06 if row else 0.0) for row in range(rows)]
    grid = Grid((rows, columns), (side, side * x.shape[1] / x.shape[2]), above=above, heading=heading)
    white = common_window(x) if window is None else window
    for i, image in enumerate(x):
        grid.image(*divmod(i, columns), image, white)
        if titles:
            grid.title(*divmod(i, columns), titles[i])
    return grid.figure


def states_figure(
    denoised: ArrayLike, sigmas: ArrayLike, samples: ArrayLike, *, heading: str | None = None, levels: int = 7
) -> Figure:
    """How a sampler came to its images: estimates by falling noise level from left to right, the samples last.

    ``denoised`` (n, steps, y, x): estimates at the noise levels ``sigmas`` (steps,); ``samples`` (n, y, x) sets the
    window. At most ``levels`` of the steps are shown, evenly taken, with the first and the last.
    """
    estimates, ends, steps = np.asarray(denoised), magnitudes(samples), np.asarray(sigmas)
    if estimates.shape[:2] != (len(ends), len(steps)) or estimates.shape[2:] != ends.shape[1:]:
        raise InputError(f"denoised: shape {estimates.shape} for {len(steps)} levels and samples {ends.shape}")
    shown = np.unique(np.linspace(0, len(steps) - 1, min(levels, len(steps))).round().astype(int))
    side, height, width = 1.05, *ends.shape[1:]
    above = [0.24, *[0.06] * (len(ends) - 1)]
    grid = Grid((len(ends), len(shown) + 1), (side, side * height / width), above=above, heading=heading)
    white = common_window(ends)
    for column, step in enumerate(shown):
        for row, image in enumerate(magnitudes(estimates[:, step])):
            grid.image(row, column, image, white)
        grid.title(0, column, f"σ = {steps[step]:.2g}")
    for row, image in enumerate(ends):
        grid.image(row, len(shown), image, white)
    grid.title(0, len(shown), "sample")
    return grid.figure


def kspace_figure(
    kspace: ArrayLike,
    mask: ArrayLike,
    absent: ArrayLike | None = None,
    *,
    image: ArrayLike | None = None,
    heading: str | None = None,
) -> Figure:
    """Acquired k-space magnitude (all coils, logarithmic) with what was skipped or is absent in flat colours.

    ``kspace`` (coil, y, x) or (y, x); ``mask`` bool (x,), (1, x) or (y, x), true where acquired; ``absent`` likewise,
    true where the scanner never acquires. What ``mask`` excludes is not read: it may be NaN. ``image`` (y, x), its
    magnitude, is shown to the left.
    """
    k = np.asarray(kspace)
    k = k[None] if k.ndim == 2 else k
    if k.ndim != 3:
        raise InputError(f"kspace: expected (coil, y, x) or (y, x), got shape {k.shape}")
    acquired = _spread(mask, k.shape[1:], "mask")
    never = np.zeros_like(acquired) if absent is None else _spread(absent, k.shape[1:], "absent") & ~acquired
    size = np.sqrt((np.abs(np.where(acquired, k, 0)) ** 2).sum(0))
    logarithm = np.log10(np.maximum(size / (size.max() or 1), 10**-_DECADES)) / _DECADES + 1
    side = 3.6
    cell, last = (side, side * k.shape[1] / k.shape[2]), int(image is not None)
    grid = Grid((1, 1 + last), cell, above=[0.24], right=1.75, heading=heading)
    if image is not None:
        x = magnitudes(image)
        grid.image(0, 0, x[0], common_window(x))
        grid.title(0, 0, "SENSE image, middle slice")
    axes = grid.image(0, last, np.ma.masked_where(~acquired, logarithm), 1)
    axes.images[0].set_interpolation("nearest")  # single points stay visible
    flat = np.ma.masked_where(acquired, never)
    axes.imshow(flat, cmap=ListedColormap([_SKIPPED, _ABSENT]), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    lines = int(acquired.any(0).sum())
    grid.title(0, last, f"{lines} of {k.shape[2]} phase-encode lines, {100 * acquired.mean():.0f} % of samples")
    left, bottom, _, height = grid.box(0, last)
    labels = [("#808080", "acquired (log)"), (_SKIPPED, "skipped")] + [(_ABSENT, "absent")] * bool(never.any())
    for i, (colour, label) in enumerate(labels):
        y = bottom + height - 0.2 - 0.24 * i
        grid.axes((left + side + 0.14, y, 0.14, 0.14)).set(xticks=[], yticks=[], facecolor=colour)
        grid.text(left + side + 0.36, y + 0.07, label, va="center")
    return grid.figure


def _spread(mask: ArrayLike, shape: tuple[int, ...], name: str) -> NDArray[np.bool_]:
    m = np.asarray(mask, dtype=bool)
    if m.ndim not in (1, 2) or m.shape[-1] != shape[-1] or (m.ndim == 2 and m.shape[0] not in (1, shape[0])):
        raise InputError(f"{name}: shape {m.shape} does not fit k-space of {shape[0]}x{shape[1]}")
    return np.broadcast_to(m, shape)


def loss_figure(rows: Sequence[Mapping[str, Any]], *, heading: str | None = None) -> Figure:
    """Losses over steps from the rows of ``metrics.jsonl``, one panel per ``stage``.

    A row holds ``step``, optionally ``stage``, and numbers of which those named ``loss`` or ``*_loss`` are drawn: each
    value thin, their moving mean thick, logarithmic where all are positive. Values that are not finite leave a gap.
    """
    stages = _by_stage(rows)
    down, across = math.ceil(len(stages) / 2), min(len(stages), 2)
    grid = Grid((down, across), (3.7 if across > 1 else 6.0, 2.7), above=[0.0] * down, heading=heading)
    for i, (stage, values) in enumerate(stages.items()):
        left, bottom, width, height = grid.box(*divmod(i, 2))
        axes = grid.axes((left + 0.6, bottom + 0.45, width - 0.75, height - 0.75))
        _curves_panel(axes, stage, values, _losses(values), "loss")
    return grid.figure


def curves_figure(rows: Sequence[Mapping[str, Any]], *, heading: str | None = None) -> Figure:
    """Curves of ``metrics.jsonl``, a column per stage: losses, validation, signs of health, rate, images per second.

    Rows as of `loss_figure`, also with ``validation``, ``spectrum``, ``nearest``, ``score_gap``, ``sample_std``,
    ``gradient``, ``rate`` and ``images_per_s`` where these were logged; measures that no stage has are left out. A ring
    marks the lowest validation.
    """
    stages = _by_stage(rows)
    named = {
        "loss": _losses(rows),
        "validation": ["validation", "clean"],
        "spectrum, nearest": ["spectrum", "nearest"],
        "gap, spread": ["score_gap", "sample_std"],
        "gradient norm": ["gradient"],
        "rate": ["rate"],
        "images / s": ["images_per_s"],
    }
    present = {key for row in rows for key in row}
    measures = {label: names for label, names in named.items() if present.intersection(names)}
    down = len(measures)
    grid = Grid((down, len(stages)), (4.6, 1.9), above=[0.0] * down, heading=heading)
    for column, (stage, values) in enumerate(stages.items()):
        for row, (label, names) in enumerate(measures.items()):
            own = [name for name in names if any(name in value for value in values)]
            if own:
                left, bottom, width, height = grid.box(row, column)
                axes = grid.axes((left + 0.75, bottom + 0.42, width - 0.9, height - 0.72))
                _curves_panel(axes, stage if row == 0 else "", values, own, label)
                if label == "validation":
                    value, step = min((v["validation"], v["step"]) for v in values if "validation" in v)
                    axes.plot([step], [value], "o", markersize=7, markerfacecolor="none", markeredgecolor=INK)
                elif label not in _LOGARITHMIC:
                    axes.set_ylim(bottom=0)
    return grid.figure


def _by_stage(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        stages.setdefault(str(row.get("stage", "training")), []).append(row)
    if not stages:
        raise InputError("rows: no training metrics to draw; the run has not logged a step yet")
    return stages


def _losses(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [n for n in dict.fromkeys(k for row in rows for k in row) if n == "loss" or n.endswith("_loss")]


def _curves_panel(axes: Axes, title: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], label: str) -> None:
    positive = label in _LOGARITHMIC
    for name, colour in zip(names, COLOURS * len(names), strict=False):
        own = [row for row in rows if name in row]
        steps = np.array([float(row["step"]) for row in own])
        numbers = (row[name] for row in own)
        y = np.array([v if isinstance(v, (int, float)) and math.isfinite(v) else math.nan for v in numbers])
        positive &= bool((y[~np.isnan(y)] > 0).all())
        axes.plot(steps, y, color=colour, linewidth=0.7, alpha=0.3, marker="." if len(y) <= _FEW else None)
        axes.plot(steps, _moving_mean(y), color=colour, linewidth=1.6, label=name.replace("_", " "))
    if positive and names:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, fontsize=TEXT, fontweight="bold", loc="left", color=INK)
    axes.set_xlabel("step", fontsize=TEXT, color=QUIET)
    axes.set_ylabel(label, fontsize=TEXT, color=QUIET)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    quiet(axes)
    if len(names) > 1:
        axes.legend(
            fontsize=SMALL, frameon=False, ncols=len(names), loc="lower right", bbox_to_anchor=(1, 0.99), borderpad=0
        )


def _moving_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred mean over about a fifteenth of the curve, of the values that are numbers."""
    window = max(1, len(values) // 15) | 1
    kernel = np.ones(window)
    known = ~np.isnan(values)
    total = np.convolve(np.where(known, values, 0), kernel)[window // 2 : window // 2 + len(values)]
    count = np.convolve(known, kernel)[window // 2 : window // 2 + len(values)]
    return np.where(known, total / np.maximum(count, 1), math.nan)
