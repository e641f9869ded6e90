"""How many draws, or which cheaper method, fit into a time: from the measured rate of one slice of each scan."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rsdmri.data.scan import Scan
from rsdmri.errors import InputError

Clock = Callable[[], float]
Trial = Callable[[Scan, str, int], object]

CHEAPER = ("l1-wavelet", "sense", "zero-filled")

_USED = 0.9  # of what is left: rates vary
_WRITING = 1.5  # seconds for files and figure, until it was measured
_DRAWS = 3  # of the trial that the rate of draws comes from


@dataclass(frozen=True)
class Choice:
    """What one scan is reconstructed with."""

    method: str
    samples: int
    warning: str | None = None
    """What was left out."""


@dataclass(frozen=True)
class TimeLimit:
    """Wall-clock time of a whole command."""

    seconds: float
    started: float | None = None
    """When the command began, by ``clock``; None: now."""
    clock: Clock = time.monotonic


class Budget:
    """The time of a command, shared equally by the ``scans`` that are left."""

    def __init__(self, limit: TimeLimit, scans: int) -> None:
        self.seconds, self._clock, self._left = limit.seconds, limit.clock, scans
        self._end = (self._clock() if limit.started is None else limit.started) + limit.seconds
        self._deadline = self._end
        self._writing = _WRITING
        self._rates: dict[tuple[object, ...], tuple[float, float]] = {}
        self._warm: set[str] = set()

    def begin(self) -> None:
        """A scan begins: it has its share of what is left until the end."""
        now = self._clock()
        self._deadline = now + max(0.0, self._end - now) / max(1, self._left)
        self._left -= 1

    def wrote(self, since: float) -> None:
        """Results of a scan were written from ``since`` on: the next scan's will take as long."""
        self._writing = self._clock() - since

    def now(self) -> float:
        """Seconds by the clock."""
        return self._clock()

    def choose(
        self, scan: Scan, method: str, samples: int, *, drawn: bool, trial: Trial, stretch: float = 1.0
    ) -> Choice:
        """The most of ``samples`` draws of ``method`` that fit, else the first of `CHEAPER` methods that does.

        All slices are reconstructed in any case; where nothing fits it is by the cheapest method.

        Args:
            scan: to reconstruct.
            method: asked for.
            samples: draws asked for.
            drawn: whether ``method`` makes draws, whose number is free.
            trial: reconstructs a scan with a method and a number of draws; called for the slice with most signal.
            stretch: how many times as long a draw of ``method`` takes as one of a trial.
        """
        slices = len(scan.kspace)
        one = _loudest(scan)
        fixed, rate = self._rate(one, method, slices, drawn, trial, stretch)
        seconds = self._available() / slices
        fitting = samples if fixed + samples * rate <= seconds else math.floor((seconds - fixed) / max(rate, 1e-9))
        if fitting >= samples or (fitting >= 1 and not drawn):
            return Choice(method, samples)
        said = f"--budget {self.seconds:g}s"
        if fitting >= 1:
            spread = "; no spread from one draw" if fitting == 1 else ""
            return Choice(method, fitting, f"{said}: {fitting} of {samples} draws fit{spread}")
        for other in CHEAPER[CHEAPER.index(method) + 1 if method in CHEAPER else int(method == "tv") :]:
            fixed, _ = self._rate(one, other, slices, False, trial)
            if fixed <= self._available() / slices:
                return Choice(other, 1, f"{said}: {method} does not fit, {other} instead")
        last = CHEAPER[-1]
        instead = "" if method == last else f", {last} instead"
        return Choice(last, 1, f"{said}: {method} does not fit{instead}, and this takes longer than what is left")

    def _available(self) -> float:
        return _USED * (self._deadline - self._clock()) - self._writing

    def _rate(
        self, one: Scan, method: str, slices: int, drawn: bool, trial: Trial, stretch: float = 1.0
    ) -> tuple[float, float]:
        """Seconds of a slice without its draws, and of a draw; measured once for each size of slice."""
        key = (method, *one.kspace.shape)
        if key in self._rates:
            return self._rates[key]
        if method not in self._warm:
            self._warm.add(method)
            trial(one, method, 1)  # the first time takes longer
        single = self._timed(one, method, 1, trial)
        if single * slices > self._available():
            return single, 0.0  # the next scan may have more time
        several = self._timed(one, method, _DRAWS, trial) if drawn else single
        rate = min(max(0.0, (several - single) / (_DRAWS - 1)), single)
        self._rates[key] = single - rate, rate * stretch
        return self._rates[key]

    def _timed(self, one: Scan, method: str, samples: int, trial: Trial) -> float:
        started = self._clock()
        trial(one, method, samples)
        return self._clock() - started


def _loudest(scan: Scan) -> Scan:
    """The slice with most signal, as a scan: an empty one would say nothing of the time."""
    index = int(np.argmax([np.linalg.norm(kspace) for kspace in scan.kspace]))
    own = slice(index, index + 1)
    return replace(
        scan,
        kspace=scan.kspace[own],
        maps=None if scan.maps is None else scan.maps[own],
        target=None if scan.target is None else scan.target[own],
        geometry=None,
        warnings=(),
    )


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``30m``, ``2h`` or ``1h30m``."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip().lower())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total > 0 or not math.isfinite(total):
        raise InputError(f"--budget {text}: expected a time such as 90s, 30m or 2h")
    return total
