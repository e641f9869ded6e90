"""Table and figure of an ablation: what a setting does to a prior, over values and seeds."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rsdmri import RESEARCH_ONLY
from rsdmri.metrics.comparison import Estimate
from rsdmri.report.style import COLOURS, INK, QUIET, SMALL, TEXT, quiet

Row = Mapping[str, Any]
Value = float | int | str


_ALWAYS = {"steps": ("steps",), "validation": ("validation",), "lowest validation": ("lowest validation",)}
_MEASURED = {
    "Frechet distance": ("prior", "frechet"),
    "teacher's": ("teacher", "frechet"),
    "ratio": ("ratio",),
    "kernel distance": ("prior", "kernel"),
    "teacher's kernel distance": ("teacher", "kernel"),
    "images/s": ("prior", "images/s"),
    "teacher's images/s": ("teacher", "images/s"),
}


def ablation_table(name: str, rows: Sequence[Row], remarks: Sequence[str] = ()) -> str:
    """Markdown: mean and standard deviation over the seeds of each value, then every run with its 95 % intervals.

    Args:
        name: of what is varied.
        rows: of ``ablation.jsonl``: ``value``, ``seed``, and ``steps``, ``validation``, ``lowest validation`` or
            ``diverged``; where measured ``prior`` and ``teacher`` (see `Comparison.row`, with ``images/s``), ``ratio``.
        remarks: lines to stand beneath.
    """
    measured = any("prior" in row for row in rows)
    columns = _ALWAYS | (_MEASURED if measured else {})
    means = [[name, "runs", *columns]]
    for value in ordered_values(rows):
        own = [row for row in rows if row["value"] == value]
        sound = [row for row in own if "diverged" not in row]
        count = str(len(sound)) + (f", {len(own) - len(sound)} diverged" if len(sound) < len(own) else "")
        means.append([str(value), count, *(mean_and_spread(_numbers(sound, keys)) for keys in columns.values())])
    each = [[name, "seed", "steps", "validation", "lowest, at step"]]
    each[0] += ["Frechet distance", "teacher's", "ratio", "kernel distance"] if measured else []
    for value in ordered_values(rows):
        own = sorted((row for row in rows if row["value"] == value), key=lambda row: int(row["seed"]))
        each += [[str(value), str(row["seed"]), *_figures(row, len(each[0]) - 2)] for row in own]
    notes = [
        "± is the standard deviation over seeds; brackets are 95 % intervals over images",
        "validation: proximal distance, of samples measured again to the measurements; needs no clean image",
        *dict.fromkeys(row["prior"]["features"] for row in rows if "prior" in row),
        *dict.fromkeys(f"floor {row['prior']['floor']:.3g}: halves of the reference" for row in rows if "prior" in row),
        *remarks,
    ]
    parts = [f"# Ablation of {name}", f"**{RESEARCH_ONLY}**", _markdown(means), _markdown(each)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]) + "\n"


def ablation_figure(name: str, rows: Sequence[Row]) -> Figure:
    """Measures over values: seeds as points, their means joined; the teacher dashed, validation beside the distance.

    ``rows`` as of `ablation_table`; runs that diverged have no point.
    """
    panels: dict[str, tuple[str, ...]] = {"validation (no clean image)": ("validation",)}
    if any("prior" in row for row in rows):
        panels = {"Frechet distance to clean images": ("prior", "frechet"), **panels}
    figure = Figure(figsize=(0.4 + 3.6 * len(panels), 3.0), facecolor="white", layout="constrained")
    for axes, (label, keys) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _panel(axes, rows, keys)
        axes.set_xlabel(name, fontsize=TEXT, color=QUIET)
        axes.set_title(label, fontsize=TEXT, fontweight="bold", loc="left", color=INK)
    return figure


def ordered_values(rows: Sequence[Row]) -> list[Value]:
    """Values of the rows: numbers in ascending order, names as they came."""
    values: list[Any] = list(dict.fromkeys(row["value"] for row in rows))
    return values if any(isinstance(value, str) for value in values) else sorted(values)


def mean_and_spread(numbers: Sequence[float]) -> str:
    """``mean ± standard deviation``; the number alone where all are the same, a dash where there is none."""
    if not numbers:
        return "–"
    mean = short_number(statistics.fmean(numbers))
    if len(set(numbers)) == 1:
        return mean
    spread = statistics.stdev(numbers)
    return f"{mean} ± {spread:.0f}" if spread >= 100 else f"{mean} ± {spread:.2g}"


def short_number(number: float) -> str:
    """Four digits, whole from 1000 on."""
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def _figures(row: Row, count: int) -> list[str]:
    """Cells of one run, ``count`` of them."""
    if "diverged" in row:
        return [f"diverged ({row['diverged']})", *[""] * (count - 1)]
    lowest = "–"
    if "validation" in row:
        lowest = f"{short_number(row['lowest validation'])}, {row['lowest at step']}"
    cells = [str(row["steps"]), mean_and_spread(_numbers([row], ("validation",))), lowest]
    if "prior" in row:
        cells += [_interval(row["prior"], "frechet"), _interval(row["teacher"], "frechet"), short_number(row["ratio"])]
        cells.append(_interval(row["prior"], "kernel"))
    return cells + ["–"] * (count - len(cells))


def _interval(figures: Mapping[str, Any], measure: str) -> str:
    return str(Estimate(*(figures[f"{measure}{end}"] for end in ("", " low", " high"))))


def _numbers(rows: Sequence[Row], keys: Sequence[str]) -> list[float]:
    """The numbers under ``keys``, of the rows that have one."""
    found = []
    for row in rows:
        part: Any = row
        for key in keys:
            part = part.get(key) if isinstance(part, Mapping) else None
        if part is not None:
            found.append(float(part))
    return found


def _markdown(table: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(cells)} |" for cells in table)
    return "\n".join([head, "|" + "---|" * len(table[0]), *body])


def _panel(axes: Axes, rows: Sequence[Row], keys: tuple[str, ...]) -> None:
    values = ordered_values(rows)
    named = any(isinstance(value, str) for value in values)
    places = [float(k if named else value) for k, value in enumerate(values)]

    def series(keys: Sequence[str]) -> list[tuple[float, list[float]]]:
        own = ((place, [row for row in rows if row["value"] == v]) for place, v in zip(places, values, strict=True))
        found = ((place, _numbers(part, keys)) for place, part in own)
        return [(place, numbers) for place, numbers in found if numbers]

    draw: Callable[..., Any] = axes.plot
    found = series(keys)
    draw(
        *([place for place, numbers in found for _ in numbers], [n for _, numbers in found for n in numbers]),
        **{"linestyle": "none", "marker": "o", "markersize": 4, "color": COLOURS[0], "alpha": 0.6, "label": "a seed"},
    )
    dash = {"marker": "_", "markersize": 16} if named or len(values) == 1 else {}
    between = {"linestyle": "none", **dash} if named else {"linewidth": 1.6, **dash}
    draw(*_means(found), **{"color": COLOURS[0], "label": "mean", **between})
    if keys[0] == "prior":
        means = _means(series(("teacher", *keys[1:])))
        draw(*means, **{"color": COLOURS[1], "linewidth": 1.2, "linestyle": "--", "label": "teacher", **dash})
    axes.set_xticks(places, [str(value) for value in values])
    axes.margins(x=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    quiet(axes)
    if found:
        axes.legend(fontsize=SMALL, frameon=False)


def _means(found: Sequence[tuple[float, Sequence[float]]]) -> tuple[list[float], list[float]]:
    return [place for place, _ in found], [statistics.fmean(numbers) for _, numbers in found]
