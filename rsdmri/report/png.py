"""Figures and slices as PNG, each with the research-only note beneath the picture."""

import io
import math
import os
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import ArrayLike, NDArray

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.errors import InputError
from rsdmri.files import atomic_path

DPI = 150

_NOTE_INCHES, _NOTE_POINTS, _NOTE_COLOUR = 0.24, 7.0, "#5a5a5a"
_SLICE_PIXELS = 512  # slices are enlarged by a whole factor until a montage is at least this wide

Pixels = NDArray[np.uint8]


def png_bytes(figure: Figure, *, dpi: int = DPI) -> bytes:
    """Return ``figure`` as PNG with the research-only note in a strip of its own below it."""
    return _encode(_with_note(_pixels(figure, dpi), dpi), dpi)


def save_png(figure: Figure, path: str | os.PathLike[str], *, dpi: int = DPI) -> None:
    """Write `png_bytes` of ``figure`` to ``path`` atomically."""
    _write(path, png_bytes(figure, dpi=dpi))


def save_image_png(
    volume: ArrayLike, path: str | os.PathLike[str], *, window: float | None = None, columns: int | None = None
) -> None:
    """Write the magnitude of a slice (y, x) or of all slices (slice, y, x) side by side, pixel for pixel, atomically.

    One window for all slices, black at 0 and white at ``window`` (default: the 99.7th percentile). Small images are
    enlarged by a whole factor without interpolation. `InputError` for other shapes or non-finite values.
    """
    x = magnitudes(volume)
    white = common_window(x) if window is None else window
    columns = columns or math.ceil(math.sqrt(len(x)))
    rows = math.ceil(len(x) / columns)
    height, width = x.shape[1:]
    sheet = np.zeros((rows * height, columns * width), dtype=np.uint8)
    for i, image in enumerate(np.round(255 * np.clip(x / white, 0, 1)).astype(np.uint8)):
        row, column = divmod(i, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    factor = max(1, math.ceil(_SLICE_PIXELS / sheet.shape[1]))
    grey = np.repeat(np.repeat(sheet, factor, axis=0), factor, axis=1)
    _write(path, _encode(_with_note(np.repeat(grey[..., None], 3, axis=2), DPI), DPI))


def magnitudes(images: ArrayLike) -> NDArray[np.float64]:
    """Magnitudes (n, y, x) of one image (y, x) or several; `InputError` for other shapes or non-finite values."""
    x: NDArray[np.float64] = np.abs(np.asarray(images)).astype(np.float64)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or 0 in x.shape:
        raise InputError(f"images: expected (n, y, x) or (y, x), got shape {x.shape}")
    if not np.isfinite(x).all():
        raise InputError("images: NaN or infinite values cannot be shown")
    return x


def common_window(magnitude: NDArray[np.float64]) -> float:
    """Magnitude shown white: the 99.7th percentile of all pixels, 1 for images that are zero."""
    return float(np.percentile(magnitude, 99.7)) or float(magnitude.max()) or 1.0


def _pixels(figure: Figure, dpi: float) -> Pixels:
    figure.set_dpi(dpi)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _with_note(picture: Pixels, dpi: int) -> Pixels:
    width = picture.shape[1] / dpi
    strip = Figure(figsize=(width, _NOTE_INCHES), facecolor="white")
    product = f"rsdmri {__version__}"
    needed = 0.55 * (len(RESEARCH_ONLY) + len(product) + 6) / 72  # inches for both texts at one point
    points = min(_NOTE_POINTS, width / needed)
    style = {"fontsize": points, "color": _NOTE_COLOUR, "va": "center", "family": "sans-serif"}
    strip.text(0.08 / width, 0.5, RESEARCH_ONLY, ha="left", **style)
    strip.text(1 - 0.08 / width, 0.5, product, ha="right", **style)
    note = _pixels(strip, dpi)
    padded = np.full((note.shape[0], picture.shape[1], 3), 255, dtype=np.uint8)
    shared = min(note.shape[1], picture.shape[1])  # sizes in inches may round one pixel apart
    padded[:, :shared] = note[:, :shared]
    return np.concatenate([picture, padded])


def _encode(pixels: Pixels, dpi: int) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Software": f"rsdmri {__version__}", "Description": RESEARCH_ONLY}
    imsave(buffer, np.ascontiguousarray(pixels), format="png", dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
