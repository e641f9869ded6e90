"""Checkpoints: one safetensors file each, written beside and renamed, with the resolved config inside.

A file holds every tensor that training needs to go on exactly (weights, averages, optimiser moments) and, as metadata,
the stage, the step, the clock and the configuration. Random streams are keyed by (seed, stage, step) and need no state.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.files import atomic_path

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file: ``tensors`` by name and ``meta`` (stage, step, elapsed, config, version)."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_checkpoint(folder: Path, stage: str, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write ``STAGE-STEP.safetensors`` into ``folder`` and remove all but the newest two of the stage.

    Errors:
        InputError: not enough free disk for the file twice over; the earlier checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if shutil.disk_usage(folder).free < 2 * size:
        raise InputError(f"{folder}: less than {2 * size / 1e6:.0f} MB free for a checkpoint; free some disk and go on")
    path = folder / f"{stage}-{step:08d}.safetensors"
    save_tensors(path, tensors, {**meta, "stage": stage, "step": step})
    for old in checkpoint_files(folder, stage)[:-KEEP]:
        old.unlink()
    return path


def latest_checkpoint(folder: Path, stage: str) -> Checkpoint | None:
    """Read the newest readable checkpoint of ``stage``; a damaged one is passed over for the one before."""
    for path in reversed(checkpoint_files(folder, stage)):
        try:
            return Checkpoint(*load_tensors(path))
        except InputError:
            continue
    return None


def checkpoint_files(folder: Path, stage: str) -> list[Path]:
    """Checkpoint files of ``stage``, oldest first."""
    return sorted(folder.glob(f"{stage}-????????.safetensors"))


def remove_orphans(folder: Path) -> None:
    """Delete temporary files that an interrupted save left in ``folder``."""
    for orphan in folder.glob(".tmp-*"):
        orphan.unlink(missing_ok=True)


def save_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write named tensors and JSON metadata as one safetensors file, atomically.

    Errors:
        InputError: the disk refuses; a file that was there before stays.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            save_file(plain, temporary, metadata={"rsdmri": json.dumps(meta, sort_keys=True)})
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be written ({reason}); free some disk or check the folder") from None


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Errors:
        InputError: the file is missing, is no safetensors file (pickled weights are never opened) or is not ours.
    """
    try:
        with open(path, "rb") as handle:
            head = handle.read(16)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise InputError(f"{path}: pickled weights are not opened, they can run code; convert them to safetensors")
    try:
        with safe_open(path, framework="pt") as handle:
            meta = json.loads((handle.metadata() or {}).get("rsdmri", "null"))
            if not isinstance(meta, dict):
                raise InputError(f"{path}: a safetensors file, but not written by rsdmri; give a file of an rsdmri run")
            return {name: handle.get_tensor(name) for name in handle.keys()}, meta  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: damaged or not a safetensors file ({reason}); use another checkpoint") from None
