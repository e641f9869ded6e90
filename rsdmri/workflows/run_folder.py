"""A run's folder: configuration, metrics, checkpoints, and the lock that keeps two trainings apart.

RUN/config.toml, RUN/metrics.jsonl, RUN/checkpoints/ (manifest.json, *.safetensors), RUN/teacher/, RUN/prior/,
RUN/posterior/; and from those that look on RUN/averages/*.safetensors, RUN/samples/*.png, RUN/curves.png,
RUN/tensorboard/.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rsdmri.config import Config, load_config
from rsdmri.errors import InputError
from rsdmri.files import append_text, output_directory, remove_orphans, write_text
from rsdmri.training.checkpoint import list_unlisted
from rsdmri.training.manifest import forgive, read_manifest
from rsdmri.workflows.changes import Change, differences, shape_change
from rsdmri.workflows.run_lock import lock_folder

# Settings that may differ when a run goes on: how long, how often, how fast, not what.
FREE = (
    *("steps", "teacher.steps", "prior.steps", "checkpoint_every", "workers", "teacher.share", "network.compile"),
    *("teacher.accumulate", "prior.accumulate", "posterior.steps", "posterior.accumulate", "posterior.share"),
    *("data.cache_gb", "data.cache_dir", "data.cache_dir_gb", "data.workers"),
    *(
        "snapshots_gb",
        "logging.tensorboard",
        "logging.grid_every",
        "logging.reference",
        "prior.patience",
        "prior.checkpoint_every",
    ),
)


class RunFolder:
    """The folder of one run.

    Args:
        path: created if missing.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._made = [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]
        self.path = output_directory(path)
        self.checkpoints = self.path / "checkpoints"
        self.averages = self.path / "averages"
        self.samples = self.path / "samples"
        self.tensorboard = self.path / "tensorboard"
        self.metrics = self.path / "metrics.jsonl"
        self._adopted = False
        self._changes: list[Change] = []

    def adopt(self, config: Config, *, allow_changes: bool = False, say: Callable[[str], None] = print) -> bool:
        """Write ``config.toml``; return whether a run was here before. What an earlier process left is put in order.

        Args:
            config: settings asked for.
            allow_changes: other settings than those of the run here may be gone on with: see `accept_changes`.
            say: gets a line for each setting that differs, and warnings.

        Errors:
            InputError: the run here has other settings.
        """
        file = self.path / "config.toml"
        known = file.exists()
        self._changes = differences(load_config(file), config, FREE) if known else []
        if self._changes:
            self._check_changes(config, allow_changes, say)
        else:
            write_text(file, config.to_toml())
        self._adopted = not known
        self.checkpoints.mkdir(exist_ok=True)
        for name in ("", "data", "teacher", "prior", "posterior"):
            remove_orphans(self.path / name)
        list_unlisted(self.checkpoints, lambda line: say(f"warning: {line}"))
        return known

    def _check_changes(self, config: Config, allowed: bool, say: Callable[[str], None]) -> None:
        say(f"settings that differ from those of the run in {self.path}:")
        for change in self._changes:
            say(f"  {change}")
        reason = shape_change(load_config(self.path / "config.toml"), config)
        if reason:
            raise InputError(f"{self.path}: {reason}; choose another --out to start afresh")
        if not allowed:
            few = "; ".join(map(str, self._changes[:2])) + (" and more" if len(self._changes) > 2 else "")
            raise InputError(
                f"{self.path}: holds a run with other settings ({few}); choose another --out to start afresh, give the "
                "same settings to go on, or --allow-changes to go on with the new ones"
            )

    def accept_changes(self, config: Config) -> None:
        """Record the changes that `adopt` allowed: ``config.toml`` is replaced, the one before kept beside it."""
        if not self._changes:
            return
        reached = self.reached()
        old = self.path / f"config-{'-'.join(f'{stage}-{step}' for stage, step in reached.items()) or 'start'}.toml"
        number = 2
        while old.exists():
            old, number = old.with_name(f"{old.stem.partition('.')[0]}.{number}.toml"), number + 1
        write_text(old, (self.path / "config.toml").read_text(encoding="utf-8"))
        changes = {change.key: [change.there, change.asked] for change in self._changes}
        self.log({"event": "settings changed", "steps": reached, "changes": changes, "kept": old.name})
        forgive(self.checkpoints)
        write_text(self.path / "config.toml", config.to_toml())
        self._changes = []

    def reached(self) -> dict[str, int]:
        """Step of the newest checkpoint of each stage."""
        stages = read_manifest(self.checkpoints).stages
        return {name: record.generations[-1].step for name, record in stages.items() if record.generations}

    def give_up(self) -> None:
        """Take `adopt` back where it wrote the first settings: the data were refused, so there is no run yet."""
        if self._adopted and not any(self.checkpoints.iterdir()):
            (self.path / "config.toml").unlink(missing_ok=True)
            self.checkpoints.rmdir()
            self._adopted = False

    def rewind_metrics(self, stage: str, step: int) -> None:
        """Drop rows of ``stage`` later than ``step``, which a resumed run writes again; events stay."""
        rows = [r for r in _rows(self.path) if "event" in r or r["stage"] != stage or r["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to ``metrics.jsonl``."""
        append_text(self.metrics, json.dumps(row) + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training here at the same time; afterwards new folders that are empty are removed.

        Errors:
            InputError: another process trains here, see `lock_folder`.
        """
        try:
            with lock_folder(self.path):
                yield
        finally:
            for made in self._made:
                if any(made.iterdir()):
                    break
                made.rmdir()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics in ``metrics.jsonl``; a last line that a crash cut short is left out."""
    return [row for row in _rows(run) if "event" not in row]


def read_events(run: Path) -> list[dict[str, Any]]:
    """What ``metrics.jsonl`` says beside metrics: changed settings, roll-backs."""
    return [row for row in _rows(run) if "event" in row]


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = []
    file = run / "metrics.jsonl"
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows
