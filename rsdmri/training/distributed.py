"""The processes of one training, as torchrun starts them, and what they tell each other.

All take the same steps on the same weights. Each prepares and computes its share of every batch, gradients are summed,
and whatever all must agree on (errors, time, a request to stop) is exchanged at the same place of every step. The first
process alone writes, and what it reads from the run folder it sends to the others. A single process runs the same code
with nobody to tell.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
from torch import Tensor

from rsdmri.errors import InputError, Interrupted, StoppedElsewhereError
from rsdmri.runtime import communication, process_count, process_rank

_INTERRUPTED = 0.5  # what `Processes.together` exchanges: errors are numbers from 1 on
_BUCKET = 8 << 20  # numbers that are summed in one message
_PATIENCE = timedelta(hours=1)  # the first process simulates and measures meanwhile
# torch.distributed.nn.functional is imported before there is a group. The first step of an optimiser would import it
# with one, keep that group as the default of its functions, and so leave threads that may meet the end of the
# interpreter, which aborts then (pytorch issue 190489).


class Processes:
    """This process among those of a training.

    Args:
        rank: its number, from 0.
        count: of processes; with 1, nothing is exchanged.
        device: where gradients are.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None):
        self.rank, self.count, self.device = rank, count, device

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """The items of a batch that are this process's."""
        return slice(self.rank, None, self.count)

    def check_batch(self, name: str, batch: int) -> None:
        """Raise `InputError` where a ``batch`` is too small for every process to have a share of it."""
        if batch < self.count:
            raise self.alike(
                InputError(
                    f"{name}.batch {batch}: fewer images than the {self.count} processes; --set {name}.batch="
                    f"{self.count} or more, or start fewer processes"
                )
            )

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum float32 ``tensors`` over all processes, in place; the same bits in all of them."""
        if self.count == 1:
            return
        pending = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with _talking():
                pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in pending:
            with _talking():
                work.wait()
            parts = flat.split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(list(bucket), [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)])

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over all processes."""
        if self.count == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _talking():
            dist.all_reduce(found, dist.ReduceOp.MAX)
            return found.tolist()

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error that one process meets in the body stops all at its end.

        It is raised where it happened (the lowest rank, if several), with a note of that, and is
        `StoppedElsewhereError` elsewhere. `Interrupted` in one is `Interrupted` in all. What the body exchanges must
        not be interrupted.
        """
        if self.count == 1:
            yield
            return
        failed: Exception | Interrupted | None = None
        try:
            yield
        except (Exception, Interrupted) as error:
            failed = error
        own = 0.0
        if isinstance(failed, Interrupted):
            own = _INTERRUPTED
        elif failed is not None and not isinstance(failed, StoppedElsewhereError):
            own = self.count - self.rank
        try:
            (worst,) = self.largest(own)
        except InputError as lost:
            raise failed or lost from None
        if worst == _INTERRUPTED:
            raise Interrupted("stopped; run the same command to go on") from None
        if failed is not None and worst in (own, 0):
            failed.add_note(f"in process {self.rank}")
            raise failed
        if worst:
            raise StoppedElsewhereError(f"process {self.count - int(worst)} stopped") from None

    def alike(self, error: InputError) -> InputError:
        """The error to raise for one that all processes meet: only the first is to print it."""
        return error if self.first else StoppedElsewhereError(str(error))

    def of_first(self, meta: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The first process's JSON-able ``meta`` and named ``tensors`` (on the CPU); those of others are ignored."""
        if self.count == 1:
            return meta, tensors
        table = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
        text = torch.frombuffer(bytearray(json.dumps([meta, table]).encode()), dtype=torch.uint8)
        length = torch.tensor(len(text))
        _send(length)
        text = text if self.first else torch.empty(int(length), dtype=torch.uint8)
        _send(text)
        meta, table = json.loads(text.numpy().tobytes())
        kept = {}
        for name, kind, shape in table:
            own = tensors[name].detach().cpu().contiguous() if self.first else None
            kept[name] = torch.empty(shape, dtype=getattr(torch, kind)) if own is None else own
            _send(kept[name])
        return meta, kept

    def check_same(self, tensors: dict[str, Tensor]) -> None:
        """Raise `InputError` where ``tensors`` do not have the same bits in all processes."""
        if self.count == 1:
            return
        found = torch.stack([_fingerprint(tensor).to(self.device) for tensor in tensors.values()])
        both = torch.stack([found, -found])
        with _talking():
            dist.all_reduce(both, dist.ReduceOp.MAX)
        different = (both[0] != -both[1]).tolist()
        if any(different):
            name = list(tensors)[different.index(True)]
            raise self.alike(
                InputError(
                    f"{name}: not the same in all processes, so one of the devices or nodes computes wrongly; find it, "
                    "and go on from the last checkpoint"
                )
            )


ALONE = Processes()


@contextmanager
def joined(device: torch.device, patience: timedelta = _PATIENCE) -> Iterator[Processes]:
    """The processes that torchrun started, connected while the body runs; alone without torchrun.

    A process group that exists already is used and left. One process waits ``patience`` for another.
    """
    if process_count() == 1:
        yield ALONE
        return
    own = not dist.is_initialized()
    if own:
        index = device if device.index is not None else None
        with _talking():
            dist.init_process_group(communication(device), timeout=patience, device_id=index)
    try:
        yield Processes(process_rank(), process_count(), device)
    finally:
        if own:
            dist.destroy_process_group()


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"the processes of this training lost each other ({reason}); the same command goes on from the last "
            "checkpoint"
        ) from None


def _send(tensor: Tensor) -> None:
    with _talking():
        dist.broadcast(tensor, 0)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours together, up to a size."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _fingerprint(tensor: Tensor) -> Tensor:
    """Sum of the bit patterns, int64: in any order the same."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().reshape(-1).view(kind).sum(dtype=torch.int64)
