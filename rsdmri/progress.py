"""Progress of long work on standard error: what, how far, time left, and values such as the current loss.

On a terminal it is a live bar. Elsewhere (logs, CI) it is an occasional plain line, at most one every two seconds,
at least one every ten per cent or ten seconds of a task that reports often enough, and none for a task that is over
within two seconds. Of several processes of one training, only the first reports.

    with progress("Training teacher", total=steps) as bar:
        for loss in loop:
            bar.advance(loss=loss)
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from rsdmri.runtime import process_rank

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_QUIET_SECONDS = 2.0
_LINE_SECONDS = 10.0
_LINE_FRACTION = 0.1


class Bar(Protocol):
    """Progress of one task."""

    def advance(self, amount: float = 1, **values: float | str) -> None:
        """Report ``amount`` more of the total done, with current ``values`` to show beside it."""

    def set_total(self, total: float) -> None:
        """Change the amount that counts as finished."""

    def note(self, message: str) -> None:
        """Print one line without disturbing the bar."""


@contextmanager
def progress(
    title: str,
    total: float | None = None,
    *,
    done: float = 0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Bar]:
    """Show the progress of one task while the body runs.

    ``total``: amount of work, ``None`` when unknown; ``done``: part of it done earlier (a resumed run), which does not
    count for the speed; ``stream``: standard error unless given; ``clock``: seconds, for the plain lines.
    Bars do not nest.
    """
    if process_rank() and stream is None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            yield _Lines(title, total, done, nowhere, clock)
        return
    stream = stream or sys.stderr
    if stream.isatty():
        with _live(stream) as display:
            yield _LiveBar(display, title, total, done)
        return
    lines = _Lines(title, total, done, stream, clock)
    try:
        yield lines
    except BaseException:
        lines.finish("stopped")
        raise
    lines.finish("done")


class _Lines:
    def __init__(
        self, title: str, total: float | None, done: float, stream: TextIO, clock: Callable[[], float]
    ) -> None:
        self._title, self._total, self._stream, self._clock = title, total, stream, clock
        self._done = self._first = self._printed = done
        self._start = self._last = clock()
        self._values: dict[str, float | str] = {}

    def advance(self, amount: float = 1, **values: float | str) -> None:
        self._done += amount
        self._values.update(values)
        waited = self._clock() - self._last
        tenth = self._total is not None and self._done - self._printed >= _LINE_FRACTION * self._total
        finished = self._total is not None and self._done >= self._total
        if not finished and (waited >= _LINE_SECONDS or (tenth and waited >= _QUIET_SECONDS)):
            self._write(self._state(self._clock() - self._start))
            self._last, self._printed = self._clock(), self._done

    def set_total(self, total: float) -> None:
        self._total = total

    def note(self, message: str) -> None:
        self._write(message)

    def finish(self, word: str) -> None:
        elapsed = self._clock() - self._start
        if elapsed >= _QUIET_SECONDS:
            amount = _count(self._done) if word == "done" or self._total is None else self._amount()
            self._write(", ".join([f"{self._title}: {word}, {amount} in {_duration(elapsed)}", *_shown(self._values)]))

    def _state(self, elapsed: float) -> str:
        parts = [f"{self._title}: {self._amount()}", *_shown(self._values), f"{_duration(elapsed)} elapsed"]
        worked = self._done - self._first
        if self._total is not None and worked > 0:
            parts.append(f"about {_duration((self._total - self._done) * elapsed / worked)} left")
        return ", ".join(parts)

    def _amount(self) -> str:
        if self._total is None:
            return _count(self._done)
        percent = 100 * self._done / self._total if self._total else 100
        return f"{percent:.0f} % ({_count(self._done)}/{_count(self._total)})"

    def _write(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


@contextmanager
def _live(stream: TextIO) -> "Iterator[RichProgress]":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(show_speed=True),
        TextColumn("{task.fields[shown]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    shared = sys.stdout.isatty()  # a file or pipe gets its lines itself, even while a bar stands on the terminal
    with Progress(*columns, console=Console(file=stream), refresh_per_second=4, redirect_stdout=shared) as display:
        yield display


class _LiveBar:
    def __init__(self, display: "RichProgress", title: str, total: float | None, done: float) -> None:
        self._display = display
        self._values: dict[str, float | str] = {}
        self._task = display.add_task(title, total=total, completed=done, shown="")  # type: ignore[arg-type]

    def advance(self, amount: float = 1, **values: float | str) -> None:
        self._values.update(values)
        self._display.update(self._task, advance=amount, shown=", ".join(_shown(self._values)))

    def set_total(self, total: float) -> None:
        self._display.update(self._task, total=total)

    def note(self, message: str) -> None:
        self._display.console.print(message, markup=False, highlight=False)


def _shown(values: dict[str, float | str]) -> list[str]:
    return [f"{k.replace('_', ' ')} {v if isinstance(v, str) else format(v, '.4g')}" for k, v in values.items()]


def _count(amount: float) -> str:
    return f"{amount:.0f}" if abs(amount - round(amount)) < 0.05 else f"{amount:.1f}"


def _duration(seconds: float) -> str:
    whole = max(round(seconds), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
