"""Where the time of a training step goes, what it would cost at the machine's limits, and what these are."""

import math
from collections import defaultdict
from statistics import median
from time import thread_time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

BY_NAME = (
    ("convolution", "convolutions"),
    ("group_norm", "norms"),
    ("silu", "activations"),
    ("scaled_dot", "attention"),
    ("fft", "physics"),
    ("mm", "matrix products"),
)


def profiled(stage: Any, steps: int = 3) -> dict[str, float]:
    """Share of each part in ``steps`` steps on one thread."""
    from torch.profiler import ProfilerActivity, profile

    from rsdmri.training.shards import Shards

    _label()
    stage.shards = Shards(1, torch.device("cpu"))
    stage.step(0, 0.0)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for number in range(steps):
            stage.step(number, 0.0)
    spent: dict[str, float] = defaultdict(float)
    for event in found.events():
        spent[_part(event)] += event.self_cpu_time_total
    return {part: value / sum(spent.values()) for part, value in spent.items()}


def _label() -> None:
    """Name the ranges that operations cannot tell: physics, optimiser, average, data."""
    from rsdmri.diffusion import denoiser
    from rsdmri.physics.sense import Sense
    from rsdmri.training import teacher

    for owner, names, part in (
        (Sense, ("_forward", "_adjoint", "_normal", "with_mask", "__init__"), "physics"),
        (denoiser, ("conjugate_gradient", "within_support"), "physics"),
        (teacher, ("apply_gradients",), "optimiser"),
        (teacher, ("update_average",), "average"),
        (teacher, ("draw_for",), "noise and data"),
    ):
        for name in names:
            setattr(owner, name, _named(getattr(owner, name), part))


def _named(function: Any, part: str) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        with torch.profiler.record_function("part:" + part):
            return function(*arguments, **options)

    return call


def _part(event: Any) -> str:
    name, above = event.name, event
    while above is not None:
        if above.name.startswith("part:"):
            return above.name.removeprefix("part:")
        above = above.cpu_parent
    return next((part for word, part in BY_NAME if word in name), "sums, copies, resampling")


class Roofline(TorchDispatchMode):
    """Counts operations and bytes read and written of every operation that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: list[tuple[float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        count = flop_registry.get(func.overloadpacket)
        work = float(count(*args, **(kwargs or {}), out_val=result)) if count is not None else 0.0
        if "_fft_c2c" in str(func):
            work = 5 * args[0].numel() * math.log2(math.prod(args[0].shape[axis] for axis in args[1]))
        self.costs.append((work, float(sum(t.numel() * t.element_size() for t in tensors))))
        return result


def floor(stage: Any, peak: float, bandwidth: float) -> dict[str, float]:
    """Operations and bytes of a step, and its seconds on one core if every operation ran at its limit."""
    from rsdmri.training.shards import Shards

    stage.shards = Shards(1, torch.device("cpu"))
    with Roofline() as counted:
        stage.step(0, 0.0)
    return {
        "operations": sum(work for work, _ in counted.costs),
        "bytes": sum(size for _, size in counted.costs),
        "seconds": sum(max(work / peak, size / bandwidth) for work, size in counted.costs),
    }


def limits(repeats: int = 5) -> dict[str, float]:
    """Best rates of one core in processor time: matrix product, convolution (operations/s), copy (bytes/s)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1024, 1024, generator=generator)
    x = torch.randn(4, 64, 64, 64, generator=generator).contiguous(memory_format=torch.channels_last)
    w = torch.randn(64, 64, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    long = torch.zeros(32 << 20)
    there = torch.zeros_like(long)
    out = torch.empty_like(a)
    trials = {
        "matrix": (lambda: torch.mm(a, a, out=out), 2 * 1024**3),
        "convolution": (lambda: torch.nn.functional.conv2d(x, w, padding=1), 2 * 9 * 64 * x.numel()),
        "copy": (lambda: there.copy_(long), 2 * 4 * long.numel()),
    }
    found = {}
    for name, (call, work) in trials.items():
        seconds = []
        for _ in range(repeats + 1):
            start = thread_time()
            call()
            seconds.append(thread_time() - start)
        found[name] = work / min(seconds[1:])
        found[name + ", median"] = work / median(seconds[1:])
    torch.set_num_threads(before)
    return found
