"""A figure of cells, with labels that keep apart from each other, and a banner where something must not be missed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from rsdmri.report.style import ALARM, HEAD, INK, QUIET, SMALL, TEXT

_BANNER = 0.32  # inches


class Grid:
    """A figure with cells placed in inches, so that labels have the room they need at any number of cells."""

    def __init__(
        self,
        shape: tuple[int, int],
        cell: tuple[float, float],
        *,
        above: Sequence[float],
        left: float = 0.08,
        right: float = 0.08,
        heading: str | None = None,
        banner: str | None = None,
    ) -> None:
        self.rows, self.columns = shape
        self.width, self.height = cell
        self.gap, self.left, self.above = 0.06, left, above
        self.top = (0.34 if heading else 0.06) + (_BANNER if banner else 0.0)
        figure_width = left + self.columns * cell[0] + (self.columns - 1) * self.gap + right
        figure_height = self.top + sum(above) + self.rows * cell[1] + 0.06
        self.figure = Figure(figsize=(figure_width, figure_height), facecolor="white")
        if banner:
            figure_height -= _BANNER
            self.axes((0, figure_height, figure_width, _BANNER)).set(xticks=[], yticks=[], facecolor=ALARM)
            banner = fit(banner, figure_width - 0.16, TEXT, bold=True)
            self.text(0.08, figure_height + 0.11, banner, weight="bold", color="white")
        if heading:
            heading = fit(heading, figure_width - 0.16, HEAD, bold=True)
            self.text(0.08, figure_height - 0.25, heading, size=HEAD, weight="bold")

    def box(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, bottom, width, height of a cell in inches."""
        total = self.figure.get_figheight()
        bottom = total - self.top - sum(self.above[: row + 1]) - (row + 1) * self.height
        return self.left + column * (self.width + self.gap), bottom, self.width, self.height

    def axes(self, box: tuple[float, float, float, float]) -> Axes:
        """Axes in a box in inches, from the lower left corner."""
        width, height = self.figure.get_size_inches()
        return self.figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))

    def text(self, x: float, y: float, text: str, *, size: float = TEXT, **style: Any) -> None:
        """Text at a place in inches."""
        width, height = self.figure.get_size_inches()
        style = {"color": INK, "va": "baseline", **style}
        self.figure.text(x / width, y / height, text, fontsize=size, **style)

    def image(self, row: int, column: int, image: NDArray[Any], window: float, cmap: str = "gray") -> Axes:
        """An image in a cell, from 0 to ``window``."""
        axes = self.axes(self.box(row, column))
        axes.imshow(image, cmap=cmap, vmin=0, vmax=window, aspect="auto", interpolation="antialiased")
        axes.set_axis_off()
        return axes

    def title(self, row: int, column: int, title: str, caption: str = "") -> None:
        """Bold title and quiet caption above a cell, cut to its width."""
        x, y, width, height = self.box(row, column)
        y += height + 0.07
        if caption:
            self.text(x, y, fit(caption, width, SMALL), size=SMALL, color=QUIET)
            y += 0.15
        self.text(x, y, fit(title, width, TEXT, bold=True), weight="bold")


def fit(text: str, width: float, points: float, *, bold: bool = False) -> str:
    """``text`` on one line, cut with an ellipsis where it is wider than ``width`` inches."""
    font = FontProperties(family="sans-serif", size=points, weight="bold" if bold else "normal")
    text = " ".join(text.split())[:400]

    def fits(part: str) -> bool:
        if not part.strip():
            return True
        return float(np.ptp(TextPath((0, 0), part, prop=font, usetex=False).vertices[:, 0])) <= 72 * width

    if fits(text):
        return text
    low, high = 0, len(text)  # text[:low] fits with its ellipsis, text[:high] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(text[:middle].rstrip() + "…") else (low, middle)
    return text[:low].rstrip() + "…"
