"""Figures of reconstructions: images, their errors, how uncertain they are, and an alarm that cannot be overlooked.

Magnitudes are shown in grey, black at 0, one window per figure; errors, standard deviations and widths in one fifth of
that window. Where an error exceeds what the uncertainty explains it is coloured over the image.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError
from rsdmri.metrics.image import nmse, ssim
from rsdmri.metrics.uncertainty import difference_in_std
from rsdmri.report.grid import Grid
from rsdmri.report.png import common_window, magnitudes
from rsdmri.report.style import QUIET, SMALL

ERROR_FACTOR = 5
EXPLAINED = 2.0
"""Predicted standard deviations up to which a difference is explained."""

_TO_STD = 1.645  # a 90 % band reaches so many standard deviations to each side where errors are normal
_NEGLIGIBLE = 0.01  # of the window: differences that nobody sees need no explanation
_SIDE = 1.7
_STD, _HALF, _UNDETERMINED = "standard deviation", "half width of band", "undetermined, 0 to 1"


def reconstruction_figure(
    target: ArrayLike | None,
    images: Mapping[str, ArrayLike],
    std: ArrayLike | None = None,
    *,
    band: ArrayLike | None = None,
    undetermined: ArrayLike | None = None,
    heading: str | None = None,
    captions: Mapping[str, str] | None = None,
    alarm: str | None = None,
) -> Figure:
    """One slice by several methods: magnitudes above, ``5 |image - target|`` below, NMSE and SSIM of the slice.

    With a ``band``, 1.645 predicted standard deviations to each side, a third row shows its width, and on each image
    the pixels that are off by more than `EXPLAINED` of these, and visibly. `InputError` when sizes differ.

    Args:
        target: (y, x), None for a prospective scan: then there are no errors.
        images: name to (y, x).
        std: (y, x), standard deviation, shown in the error window below the target, or as a column of its own.
        band: (3, y, x): lower end, median and upper end of the band that should hold 90 %; needs ``std``.
        undetermined: (y, x) in [0, 1], share that samples do not determine, a map of its own.
        heading: above all.
        captions: replaces the metrics under a name.
        alarm: why the image is not to be trusted, in a red banner.
    """
    shown = {name: magnitudes(image)[0] for name, image in images.items()}
    reference = None if target is None else magnitudes(target)[0]
    shown = shown if reference is None else {"Fully sampled": reference, **shown}
    maps = _maps(std, band, undetermined, last=reference is not None)
    sizes = {image.shape for image in (*shown.values(), *maps.values())}
    if len(sizes) != 1:
        raise InputError(f"images: one size expected, got {', '.join(f'{h}x{w}' for h, w in sorted(sizes))}")
    height, width = sizes.pop()
    extra = len(maps) if reference is None else 0
    notes = {name: (captions or {}).get(name) or _scores(reference, image) for name, image in shown.items()}
    first = 0.4 if any(notes.values()) else 0.24
    grid = Grid(
        (1 if reference is None else 1 + max(1, len(maps)), len(shown) + extra),
        (_SIDE, _SIDE * height / width),
        above=[first] if reference is None else [first, *[0.24] * max(1, len(maps))],
        right=0.08 if reference is None and std is None else 0.62,
        heading=heading,
        banner=None if alarm is None else f"ALARM  {alarm}",
    )
    white = common_window(np.stack([reference] if reference is not None else list(shown.values())))
    for column, (name, image) in enumerate(shown.items()):
        grid.image(0, column, image, white)
        grid.title(0, column, name, notes[name] or " " * (first > 0.24))
        if reference is not None and column:
            grid.image(1, column, np.abs(image - reference), white / ERROR_FACTOR, "inferno")
            grid.title(1, column, f"{ERROR_FACTOR} × |error|")
            if band is not None:
                _beyond(grid, (2, column), (image, reference), maps[_HALF] / _TO_STD, white)
    for number, (name, values) in enumerate(maps.items()):
        place = (0, len(shown) + number) if extra else (1 + number, 0)
        _map(grid, place, name, values, white, " " * (extra > 0 and first > 0.24))
    if reference is not None or std is not None:
        _percent_bar(grid, 0 if extra else 1)
    return grid.figure


def difference_figure(
    first: ArrayLike, second: ArrayLike, std: ArrayLike, *, names: tuple[str, str], heading: str | None = None
) -> Figure:
    """Two images (y, x) of a slice, and where they differ by more than the predicted ``std`` (y, x) explains."""
    images = [magnitudes(image)[0] for image in (first, second)]
    height, width = images[0].shape
    grid = Grid((1, 3), (_SIDE, _SIDE * height / width), above=[0.24], heading=heading)
    white = common_window(np.stack(images) if images[0].shape == images[1].shape else images[0])
    for column, (name, image) in enumerate(zip(names, images, strict=True)):
        grid.image(0, column, image, white)
        grid.title(0, column, name)
    _beyond(grid, (0, 2), (images[0], images[1]), magnitudes(std)[0], white)
    return grid.figure


def _maps(
    std: ArrayLike | None, band: ArrayLike | None, undetermined: ArrayLike | None, *, last: bool
) -> dict[str, NDArray[Any]]:
    """Maps by their names, where they are known; ``undetermined`` not last where others need the scale beside it."""
    share = {} if undetermined is None else {_UNDETERMINED: magnitudes(undetermined)[0]}
    return _spread(std, band) | share if last else share | _spread(std, band)


def _spread(std: ArrayLike | None, band: ArrayLike | None) -> dict[str, NDArray[Any]]:
    """Standard deviation and half width of the band by their names, where they are known."""
    if band is None:
        return {} if std is None else {_STD: magnitudes(std)[0]}
    if std is None or np.ndim(band) != 3 or len(np.asarray(band)) != 3:
        raise InputError(f"band: expected (3, y, x) and a standard deviation beside it, got shape {np.shape(band)}")
    low, _, high = magnitudes(band)
    return {_STD: magnitudes(std)[0], _HALF: (high - low) / 2}


def _map(grid: Grid, place: tuple[int, int], name: str, values: NDArray[Any], white: float, below: str) -> None:
    """A map of uncertainty with its title, in the window of errors; a share from 0 to 1."""
    if name == _UNDETERMINED:
        grid.image(*place, values, 1.0, "viridis")
        grid.title(*place, name, below)
    else:
        grid.image(*place, values, white / ERROR_FACTOR, "inferno")
        grid.title(*place, f"{ERROR_FACTOR} × {name}", below)


def _beyond(
    grid: Grid,
    place: tuple[int, int],
    images: tuple[NDArray[Any], NDArray[Any]],
    std: NDArray[Any],
    white: float,
) -> None:
    """The first image, with those pixels coloured that differ from the second by more than ``std`` explains."""
    away = difference_in_std(*images, std, floor=_NEGLIGIBLE * white / EXPLAINED)
    beyond = away > EXPLAINED
    axes = grid.image(*place, 0.6 * images[0], white)
    shown = np.ma.masked_where(~beyond, away)
    axes.imshow(shown, cmap="autumn_r", vmin=EXPLAINED, vmax=3 * EXPLAINED, aspect="auto", interpolation="nearest")
    grid.title(*place, f"beyond {EXPLAINED:g} std: {100 * beyond.mean():.1f} %")


def _scores(reference: NDArray[Any] | None, image: NDArray[Any]) -> str:
    if reference is None or image is reference or not reference.any():
        return ""
    text = f"NMSE {nmse(reference[None], image[None]):.3g}"
    return text if min(image.shape) < 7 else f"{text}  SSIM {ssim(reference[None], image[None]):.3f}"


def _percent_bar(grid: Grid, row: int) -> None:
    """Scale of the error window right of a row, in per cent of the image window."""
    left, bottom, _, height = grid.box(row, grid.columns - 1)
    axes = grid.axes((left + grid.width + 0.08, bottom, 0.09, height))
    axes.imshow(np.linspace(1, 0, 256)[:, None], cmap="inferno", aspect="auto", extent=(0, 1, 0, 100 / ERROR_FACTOR))
    axes.yaxis.tick_right()
    axes.set_xticks([])
    axes.set_yticks([0, 10, 20], ["0", "10", "20 %"])
    axes.tick_params(labelsize=SMALL, length=2, pad=2, colors=QUIET)
    axes.spines[:].set_visible(False)
