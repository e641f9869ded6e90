"""Side-by-side timing: the median over rounds that call every candidate in turn, so that drift hits all alike."""

import os
from collections.abc import Callable
from statistics import median
from time import perf_counter

Candidates = dict[str, Callable[[], object]]


def use_threads(threads: int) -> None:
    """Set the threads of this process and of programs that it starts; call before torch is imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}  # as in rsdmri, and best for BART, too
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def interleaved(candidates: Candidates, repeats: int) -> dict[str, float]:
    """Median seconds of each candidate over ``repeats`` rounds, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    for _ in range(repeats):
        for name, call in candidates.items():
            start = perf_counter()
            call()
            seconds[name].append(perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}
