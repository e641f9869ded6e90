"""Checkpoints: one safetensors file each, written beside and renamed, with the resolved config inside.

A file holds every tensor that training needs to go on exactly (weights, averages, optimiser moments) and, as metadata,
the stage, the step, the clock and the configuration. Random streams are keyed by (seed, stage, step) and need no state.
Two generations of a stage and the one of lowest validation loss are kept; ``manifest.json`` lists them, see `manifest`.
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

from rsdmri.errors import DiskFullError, InputError
from rsdmri.files import atomic_path, remove_orphans
from rsdmri.training.manifest import Entry, Manifest, Record, RollBack, Warn, file_digest, read_manifest

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file: ``tensors`` by name and ``meta`` (stage, step, elapsed, config, version)."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_checkpoint(
    folder: Path,
    stage: str,
    step: int,
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
    validation: float | None = None,
    error: float = 0.0,
) -> Path:
    """Write ``STAGE-STEP.safetensors`` into ``folder``, list it, and remove all but the newest two of the stage.

    The one of lowest ``validation``, or of those within its standard ``error`` the latest (`Entry.gives_way`), stays as
    ``STAGE-best.safetensors``. Later ones are of a course that was given up:
    they are removed, too.

    Errors:
        DiskFullError: not enough free disk for the file twice over; the earlier checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if shutil.disk_usage(folder).free < 2 * size:
        raise DiskFullError(
            f"{folder}: less than {2 * size / 1e6:.1f} MB free for a checkpoint; free some disk and run the same "
            "command again: it goes on from the checkpoint before"
        )
    manifest = read_manifest(folder)
    record = manifest.stage(stage)
    _remove_later(folder, stage, step)
    if any(entry.step >= step for entry in record.generations):
        manifest = manifest.write(folder, stage, _until(record, step - 1))
    path = folder / f"{stage}-{step:08d}.safetensors"
    validated = {} if validation is None else {"validation": validation, "validation_error": error}
    save_tensors(path, tensors, {**meta, **validated, "stage": stage, "step": step})
    _remove_unlisted(folder, _list(folder, manifest, path, step, validation, error), stage)
    return path


def latest_checkpoint(
    folder: Path, stage: str, warn: Warn = lambda line: None, before: int | None = None
) -> Checkpoint | None:
    """Read the newest checkpoint of ``stage``; a damaged one is passed over, with a warning, for the one before.

    Args:
        folder: of the checkpoints.
        stage: its name.
        warn: gets a line on each file that is passed over.
        before: only those of earlier steps than this.

    Errors:
        InputError: there are checkpoints, and none of them is whole.
    """
    record = read_manifest(folder, warn).stage(stage)
    listed = {entry.file: entry for entry in (*record.generations, *([record.best] if record.best else []))}
    steps = {entry.file: entry.step for entry in listed.values()}
    steps |= {path.name: _step_of(path) for path in checkpoint_files(folder, stage)}
    newest_first = sorted(steps, key=lambda name: (steps[name], name != _best(stage)), reverse=True)
    wrong = []
    for name in [name for name in newest_first if before is None or steps[name] < before]:
        try:
            if name in listed:
                listed[name].check(folder)
            return Checkpoint(*load_tensors(folder / name))
        except InputError as error:
            wrong.append(str(error))
            warn(f"{error}; passed over for the checkpoint before")
    if wrong and before is None:
        raise InputError(
            f"no checkpoint of {stage} is whole ({'; '.join(wrong)}); put one back from a copy, or move {folder} away "
            "to start afresh"
        )
    return None


def best_checkpoint(folder: Path, stage: str) -> Checkpoint | None:
    """Read the checkpoint of lowest validation loss; None where none was validated.

    Errors:
        InputError: its file is damaged.
    """
    best = read_manifest(folder).stage(stage).best
    if best is None:
        return None
    best.check(folder)
    return Checkpoint(*load_tensors(folder / best.file))


def list_unlisted(folder: Path, warn: Warn = lambda line: None) -> None:
    """Finish what a process left that ended between writing a checkpoint and listing it; temporary files go."""
    remove_orphans(folder)
    manifest = read_manifest(folder, warn)
    best = [path for path in folder.glob("*-best.safetensors") if not manifest.stage(_stage_of(path)).generations]
    for path in [*best, *checkpoint_files(folder, "*")]:
        known = manifest.stage(_stage_of(path)).generations
        if path not in best and known and _step_of(path) <= known[-1].step:
            continue
        try:
            meta = read_meta(path)
        except InputError:
            continue  # `latest_checkpoint` says what is wrong with it
        if isinstance(meta.get("step"), int):
            measured = meta.get("validation"), meta.get("validation_error", 0.0)
            manifest = _list(folder, manifest, path, meta["step"], *measured)


def note_validation(folder: Path, stage: str, validation: float, error: float = 0.0) -> None:
    """Record the validation loss of the newest checkpoint of ``stage``, which was saved without one."""
    manifest = read_manifest(folder)
    newest = manifest.stage(stage).generations[-1]
    _list(folder, manifest, folder / newest.file, newest.step, validation, error)


def give_up_after(folder: Path, stage: str, roll_back: RollBack) -> None:
    """Record ``roll_back`` and drop the checkpoints that are later than where it went back to."""
    _remove_later(folder, stage, roll_back.back_to)  # first, so that none is left unlisted and taken for a new one
    manifest = read_manifest(folder)
    record = _until(manifest.stage(stage), roll_back.back_to)
    record = record.model_copy(update={"roll_backs": (*record.roll_backs, roll_back)})
    manifest.write(folder, stage, record)


def checkpoint_files(folder: Path, stage: str) -> list[Path]:
    """Checkpoint files of ``stage``, oldest first."""
    return sorted(folder.glob(f"{stage}-{'[0-9]' * 8}.safetensors"))


def save_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write named tensors and JSON metadata as one safetensors file, atomically.

    Errors:
        DiskFullError: the disk is full.
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
    return _read(path, tensors=True)


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the metadata that `save_tensors` wrote; errors as of `load_tensors`."""
    return _read(path, tensors=False)[1]


def _read(path: str | os.PathLike[str], *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
            return {name: handle.get_tensor(name) for name in handle.keys()} if tensors else {}, meta  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: damaged or not a safetensors file ({reason}); use another checkpoint") from None


def _list(
    folder: Path, manifest: Manifest, path: Path, step: int, validation: float | None, error: float = 0.0
) -> Manifest:
    """Write the manifest with ``path`` as the newest generation or, by its name, as the best."""
    stage = _stage_of(path)
    record = manifest.stage(stage)
    entry = Entry(file=path.name, step=step, sha256=file_digest(path), size=path.stat().st_size, validation=validation)
    if path.name == _best(stage):
        return manifest.write(folder, stage, record.model_copy(update={"best": entry}))
    best = record.best
    if validation is not None and (best is None or best.gives_way(validation, error)):
        best = entry.kept(_best(stage), best)
        _link(path, folder / best.file)
    generations = (*(known for known in record.generations if known.step < step), entry)[-KEEP:]
    return manifest.write(folder, stage, record.model_copy(update={"generations": generations, "best": best}))


def _until(record: Record, step: int) -> Record:
    """``record`` without the checkpoints later than ``step``."""
    best = record.best if record.best and record.best.step <= step else None
    generations = tuple(entry for entry in record.generations if entry.step <= step)
    return record.model_copy(update={"generations": generations, "best": best})


def _remove_later(folder: Path, stage: str, step: int) -> None:
    for path in checkpoint_files(folder, stage):
        if _step_of(path) > step:
            path.unlink()


def _remove_unlisted(folder: Path, manifest: Manifest, stage: str) -> None:
    record = manifest.stage(stage)
    named = {entry.file for entry in record.generations}
    for path in checkpoint_files(folder, stage):
        if path.name not in named:
            path.unlink()
    if record.best is None:
        (folder / _best(stage)).unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """Give the file a second name, or make a copy where the file system has only one."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _best(stage: str) -> str:
    return f"{stage}-best.safetensors"


def _stage_of(path: Path) -> str:
    return path.name.rpartition("-")[0]


def _step_of(path: Path) -> int:
    return int(path.stem[-8:])
