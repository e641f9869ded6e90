"""When training diverges: how it is noticed, what it goes back to, what it does otherwise then.

The same run resumed must notice and do the same, so everything here follows from what checkpoints and their manifest
hold: the last gradient norms, and the roll-backs so far.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from rsdmri.errors import InputError
from rsdmri.training.manifest import RollBack

ROLL_BACKS = 3  # that may follow each other without a checkpoint beyond the step that failed
SPIKE = 1e3  # times the median gradient norm
_WINDOW, _LEAST = 200, 100  # gradient norms that the median is of, and how many there must be


class TrainingDivergedError(InputError):
    """Step ``step`` (from 1) of ``stage`` gave numbers that are not to be kept.

    Attributes:
        stage: its name.
        step: the step.
        problem: what is wrong, in words.
    """

    def __init__(self, stage: str, step: int, problem: str, after: str = ""):
        self.stage, self.step, self.problem = stage, step, problem
        super().__init__(
            f"{stage}: {problem} at step {step}{after}; lower --set {stage}.learning_rate and run again with "
            "--allow-changes from the last checkpoint"
        )


class Guard:
    """Looks at the metrics of each step: numbers that are none, and spikes of the gradient norm.

    A spike is a norm above 1000 times the median of the last 200, from the hundredth on.

    Args:
        norms: gradient norms of earlier steps.
    """

    def __init__(self, norms: Iterable[float] = ()):
        self.norms = deque(norms, maxlen=_WINDOW)

    @property
    def typical(self) -> float | None:
        """Median of the last gradient norms; None before there are enough."""
        return statistics.median(self.norms) if len(self.norms) >= _LEAST else None

    def problem(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong with the step of these ``metrics``; one with nothing wrong is taken into account."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                return f"{name} not a number"
        norm, typical = metrics.get("gradient"), self.typical
        if norm is None:
            return None
        if typical and norm > SPIKE * typical:
            return f"gradient norm {norm:.3g} where {typical:.3g} is usual"
        self.norms.append(norm)
        return None


class Draws:
    """What is drawn for a step, given the roll-backs of its stage.

    A roll-back that found slices to blame leaves these out from the step on that it went back to; another one draws
    everything anew from there on.

    Args:
        roll_backs: in order.
    """

    def __init__(self, roll_backs: Sequence[RollBack] = ()):
        self._roll_backs = roll_backs

    def left_out(self, index: int) -> frozenset[int]:
        """Slices that step ``index`` (from 0) must not draw."""
        return frozenset(item.item for r in self._roll_backs if r.back_to <= index for item in r.left_out)

    def anew(self, index: int) -> int:
        """How often the draws of step ``index`` were replaced."""
        return sum(not r.left_out and r.back_to <= index for r in self._roll_backs)


def outstanding(roll_backs: Sequence[RollBack], saved: int) -> list[RollBack]:
    """Roll-backs whose failed step was not passed yet, ``saved`` being the step of the newest checkpoint."""
    return [r for r in roll_backs if r.step > saved]


def to_blame(norms: Sequence[float], typical: float | None) -> list[int]:
    """Which of the items, given the gradient ``norms`` of each alone on sound weights, made a step diverge.

    Those that are not finite; if there are none, those that are spikes by themselves. None where it is most of them:
    then it is not the data.
    """
    found = [k for k, norm in enumerate(norms) if not math.isfinite(norm)]
    if not found and typical:
        found = [k for k, norm in enumerate(norms) if norm > SPIKE * typical]
    return found if 2 * len(found) <= len(norms) or len(norms) == 1 else []
