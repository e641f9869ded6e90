"""Requests to stop: SIGINT and SIGTERM, which end whatever is under way except what must not be cut in two."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from rsdmri.errors import Interrupted


class Stop:
    """Whether to stop, and where that takes effect.

    The first signal raises `Interrupted` wherever the main thread is, except in the body of `held`: it is raised at
    its end then. In the body of `at_once` inside that, it is raised where it comes again. Later signals do nothing.

    Args:
        held: signals wait as in `held` from the beginning.

    Attributes:
        asked: a signal came.
    """

    def __init__(self, *, held: bool = False) -> None:
        self.asked = self._raised = False
        self._held = held

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.asked and not self._raised:
            self._raised = True
            raise Interrupted("stopped; run the same command to go on")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let signals wait while the body runs."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before
        if not self._held:
            self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let signals end the body, and one that waits keep it from beginning."""
        before, self._held = self._held, False
        try:
            self.check()
            yield
        finally:
            self._held = before

    def note(self, _number: int = 0, _frame: object = None) -> None:
        """Handle a signal."""
        self.asked = True
        if not self._held:
            self.check()


@contextmanager
def stop_on_signal(*, held: bool = False) -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM while the body runs, on the main thread; elsewhere nothing changes. See `Stop`."""
    stop = Stop(held=held)
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop.note)
    except ValueError:  # not the main thread
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
