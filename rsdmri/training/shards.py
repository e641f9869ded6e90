"""Gradients of one batch, computed share by share: on several threads, one after the other, in several processes.

On a CPU, convolutions of small images use two threads poorly: two threads that each take half of the batch are 1.2 to
1.6 times faster than one batch on two threads. Shares and their sums have a fixed order, so results repeat bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from rsdmri.runtime import available_cores
from rsdmri.training.distributed import ALONE, Processes

Result = TypeVar("Result")


class Shards:
    """Runs a function on interleaved shares ``items[k::n]`` of a batch, one share per thread.

    Args:
        workers: number of shares; 0 takes one per available core (at most 8) on a CPU and 1 elsewhere.
        device: where the tensors live.
        processes: those that the batch is divided among before.
    """

    def __init__(self, workers: int, device: torch.device, processes: Processes = ALONE):
        on_cpu, cores = device.type == "cpu", available_cores()
        self.processes = processes
        self.workers = (workers or min(cores, 8)) if on_cpu else 1
        self._pool = None
        if self.workers > 1:
            threads = max(1, cores // self.workers)
            torch.set_num_threads(threads)
            self._pool = ThreadPoolExecutor(self.workers, initializer=_start_thread, initargs=(threads,))

    def map(self, function: Callable[[slice], Result], batch: int, rounds: int = 1) -> Iterator[Result]:
        """``function(share)`` for each share of ``batch`` items, in order; ``rounds`` times as many as workers."""
        count = max(1, min(self.workers * rounds, batch))
        shares = [slice(k, None, count) for k in range(count)]
        if self._pool is None or count == 1:
            return map(function, shares)
        return self._pool.map(function, shares)

    def gradients(
        self,
        loss: Callable[[slice], tuple[Tensor, ...]],
        parameters: Sequence[Tensor],
        batch: int,
        *,
        of: int | None = None,
        rounds: int = 1,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Gradient of the batch mean of ``loss(share)[0]`` and the per-item values of all that ``loss`` returns.

        ``loss`` returns tensors ``(share,)``; the first is the loss. Values come back in the batch's order. Where the
        ``batch`` items are this process's part ``of`` more, the gradient is their part of the whole batch's. ``rounds``
        times as many shares as workers take that much longer and that much less memory.
        """
        whole = batch if of is None else of

        def work(share: slice) -> tuple[list[Tensor], tuple[Tensor, ...]]:
            values = loss(share)
            total = values[0].sum() / whole
            found = torch.autograd.grad(total, parameters, allow_unused=True)
            kept = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
            return kept, tuple(value.detach() for value in values)

        sums: list[Tensor] = []
        found: list[tuple[Tensor, ...]] = []
        for gradients, values in self.map(work, batch, rounds):
            if sums:
                torch._foreach_add_(sums, gradients)
            else:
                sums = gradients
            found.append(values)
        return sums, [interleave(parts, batch) for parts in zip(*found, strict=True)]


def interleave(parts: Sequence[Tensor], batch: int) -> Tensor:
    """Put the shares ``items[k::n]`` back into the order of the batch."""
    whole = parts[0].new_empty((batch, *parts[0].shape[1:]))
    for k, part in enumerate(parts):
        whole[k :: len(parts)] = part
    return whole


def _start_thread(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
