"""Snapshots of the power-function averages during training, from which `rsdmri.training.post_hoc` makes others.

They lie as ``STAGE-STEP.safetensors`` in a folder of their own, in float32: float16 would round each weight by up to
2^-11 of itself, and combining snapshots multiplies that. A snapshot is due at every multiple of an interval that starts
at `FIRST` steps and doubles when the files would become too many; those between its multiples are removed then. So
which snapshots exist after a step follows from the step alone, and a run that goes on makes the same ones again.
"""

import shutil
from pathlib import Path

from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.training.checkpoint import checkpoint_files, save_tensors
from rsdmri.training.ema import TRACKED

FIRST = 32


def interval(step: int, most: int) -> int:
    """Steps between snapshots at ``step``: the least 32 x 2^k that leaves room for the one at the end."""
    steps = FIRST
    while step // steps >= most:
        steps *= 2
    return steps


def due(step: int, most: int) -> bool:
    """Whether a snapshot is made after ``step``, besides the one at the end."""
    return step % interval(step, most) == 0


def most_snapshots(number: int, gigabytes: float, tensors: dict[str, Tensor]) -> int:
    """How many snapshots of ``tensors`` to keep: at most ``number``, and ``gigabytes`` together."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return min(number, int(gigabytes * 1e9 // max(1, size)))


def save_snapshot(folder: Path, stage: str, step: int, tensors: dict[str, Tensor], most: int) -> Path:
    """Write ``STAGE-STEP.safetensors`` into ``folder`` atomically and remove those that `interval` leaves out.

    Errors:
        InputError: not enough free disk for the file twice over; the earlier ones stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if shutil.disk_usage(folder).free < 2 * size:
        raise InputError(f"{folder}: less than {2 * size / 1e6:.0f} MB free for a snapshot of the averages")
    path = folder / f"{stage}-{step:08d}.safetensors"
    save_tensors(path, tensors, {"kind": "averages", "stage": stage, "step": step, "sigma_rel": list(TRACKED)})
    for other in snapshot_files(folder, stage):
        if other != path and step_of(other) % interval(step, most):
            other.unlink()
    return path


def snapshot_files(folder: Path, stage: str) -> list[Path]:
    """Snapshots of ``stage``, oldest first."""
    return checkpoint_files(folder, stage)


def step_of(path: Path) -> int:
    """After how many steps a snapshot was taken."""
    return int(path.stem.rpartition("-")[2])


def rewind_snapshots(folder: Path, stage: str, step: int) -> None:
    """Remove snapshots of ``stage`` later than ``step``, which a resumed run takes again."""
    for path in snapshot_files(folder, stage):
        if step_of(path) > step:
            path.unlink()
