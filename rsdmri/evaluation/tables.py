"""Results as text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rsdmri.evaluation.scoring import METRICS

_CONVENTION = "fastMRI convention: crop to target width, data range = volume maximum, SSIM 7x7 mean over slices"
_INTERVAL = "95 % interval: BCa bootstrap of the mean over volumes, from 3 volumes on"


def format_table(result: Mapping[str, Any]) -> str:
    """Table to print: one line per volume, their mean +/- 2 std where there are several, the convention below."""
    names = list(result["mean"])
    rows = [["volume", *(METRICS[name].label for name in names), "slices"]]
    for volume, v in result["volumes"].items():
        rows.append([volume, *(f"{v[m]:.4g}" if m in v else "-" for m in names), str(v["slices"])])
    ends = result["interval"]
    if len(result["volumes"]) > 1:
        rows.append(["mean +/- 2 std", *(_mean(result, name) for name in names), str(result["count"]["slices"])])
    if any(ends.values()):
        rows.append(["95 % interval", *(_ends(ends[name]) for name in names), ""])
    lines = _aligned(rows)
    if result["targets_without_reconstruction"]:
        lines.append(f"{len(result['targets_without_reconstruction'])} targets have no reconstruction and do not count")
    return "\n".join([*lines, *_remarks(result, any(ends.values()))])


def format_comparison(result: Mapping[str, Any]) -> str:
    """Tables to print: each metric of each method, then each difference between methods and which of both is better."""
    methods = result["methods"]
    metrics = [name for name in METRICS if any(name in each["mean"] for each in methods.values())]
    rows = [["metric", "method", "mean +/- 2 std", "95 % interval", "volumes"]]
    for metric in metrics:
        for name, each in methods.items():
            if metric in each["mean"]:
                cells = [_mean(each, metric), _ends(each["interval"][metric]), str(each["count"]["volumes"])]
                rows.append([METRICS[metric].label, name, *cells])
    lines = _aligned(rows)
    if result["differences"]:
        rows = [["metric", "difference", "mean", "95 % interval", "better"]]
        for row in result["differences"]:
            better = row["better"] or ("-" if not METRICS[row["metric"]].better else "not told apart")
            pair = f"{row['first']} - {row['second']}"
            rows.append([METRICS[row["metric"]].label, pair, f"{row['mean']:+.3g}", _ends(row["interval"]), better])
        lines += ["", *_aligned(rows)]
    for name, each in methods.items():
        if each["left_out"]:
            lines.append(f"{name}: {each['left_out']} volumes that another method lacks do not count")
    return "\n".join([*lines, *_remarks(result, interval=True)])


def _mean(result: Mapping[str, Any], metric: str) -> str:
    spread = result["two_std"][metric]
    return f"{result['mean'][metric]:.4g}" + ("" if spread is None else f" +/- {spread:.2g}")


def _ends(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"[{ends[0]:.4g}, {ends[1]:.4g}]"


def _remarks(result: Mapping[str, Any], interval: bool) -> list[str]:
    chosen = [f"volumes of {result['selection']} alone"] if result["selection"] else []
    return [*chosen, _CONVENTION, *([_INTERVAL] if interval else [])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
