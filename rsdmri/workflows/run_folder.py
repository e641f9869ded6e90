"""A run's folder: configuration, metrics, checkpoints, and the lock that keeps two trainings apart.

RUN/config.toml, RUN/metrics.jsonl, RUN/checkpoints/*.safetensors, RUN/teacher/, RUN/prior/.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rsdmri.config import Config, load_config
from rsdmri.errors import InputError
from rsdmri.files import output_directory, write_text
from rsdmri.training.checkpoint import remove_orphans

# Settings that may differ when a run goes on: how long, how often, how fast, not what.
FREE = (
    *("steps", "teacher.steps", "prior.steps", "checkpoint_every", "workers", "teacher.share"),
    *("teacher.accumulate", "prior.accumulate"),
    *("data.cache_gb", "data.cache_dir", "data.cache_dir_gb", "data.workers"),
)


_held: set[Path] = set()  # locks of this very process


class RunFolder:
    """The folder of one run.

    Args:
        path: created if missing.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._made = [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]
        self.path = output_directory(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self._adopted = False

    def adopt(self, config: Config) -> bool:
        """Write ``config.toml``; return whether a run with the same settings was here before.

        Errors:
            InputError: the run here has other settings, which are named.
        """
        file = self.path / "config.toml"
        known = file.exists()
        if known:
            changed = _difference(load_config(file), config)
            if changed:
                raise InputError(
                    f"{self.path}: holds a run with other settings ({'; '.join(changed)}); choose another --out to "
                    "start afresh, or give the same settings to go on"
                )
        write_text(file, config.to_toml())
        self._adopted = not known
        self.checkpoints.mkdir(exist_ok=True)
        remove_orphans(self.checkpoints)
        return known

    def give_up(self) -> None:
        """Take `adopt` back where it wrote the first settings: the data were refused, so there is no run yet."""
        if self._adopted and not any(self.checkpoints.iterdir()):
            (self.path / "config.toml").unlink(missing_ok=True)
            self.checkpoints.rmdir()
            self._adopted = False

    def rewind_metrics(self, stage: str, step: int) -> None:
        """Drop rows of ``stage`` later than ``step``, which a resumed run writes again."""
        rows = [row for row in read_metrics(self.path) if row["stage"] != stage or row["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to ``metrics.jsonl``."""
        with open(self.metrics, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training here at the same time; afterwards new folders that are empty are removed.

        Errors:
            InputError: a living process of this machine holds the lock.
        """
        file = self.path / ".lock"
        host = socket.gethostname()
        while True:
            try:
                descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                break
            except FileExistsError:
                _check_holder(file, host)
                file.unlink(missing_ok=True)
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            json.dump({"pid": os.getpid(), "host": host}, handle)
        _held.add(file.resolve())
        try:
            yield
        finally:
            _held.discard(file.resolve())
            file.unlink(missing_ok=True)
            for made in self._made:
                if any(made.iterdir()):
                    break
                made.rmdir()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``; a last line that a crash cut short is left out."""
    rows = []
    file = run / "metrics.jsonl"
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def _check_holder(file: Path, host: str) -> None:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        pid, where = int(holder["pid"]), str(holder["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    reused = pid == os.getpid() and file.resolve() not in _held  # numbers start anew in a restarted container
    if where == host and (reused or not _alive(pid)):
        return
    raise InputError(
        f"{file.parent}: process {pid} on {where} is training here; wait for it, choose another --out, or delete "
        f"{file.name} there if it is gone"
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _difference(before: Config, after: Config) -> list[str]:
    old, new = _flat(before.to_dict()), _flat(after.to_dict())
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in FREE)
    return [f"{key}: {old.get(key, 'unset')} there, {new.get(key, 'unset')} asked" for key in keys]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
