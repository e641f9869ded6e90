"""The folder of an ablation: what it is of, its rows, and the teacher that its runs share.

FOLDER/ablation.json, FOLDER/ablation.jsonl (a row a run), FOLDER/ablation.md, FOLDER/ablation.png, FOLDER/runs/ (run
folders), FOLDER/teacher/ (copy of the teacher), FOLDER/teacher-assessment/, FOLDER/data/ (simulated scans).
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.config import config_from_dict
from rsdmri.errors import InputError
from rsdmri.files import append_text, atomic_folder, output_directory, remove_orphans, write_text
from rsdmri.priors import load_prior
from rsdmri.report.ablation import ablation_figure, ablation_table
from rsdmri.report.png import save_png
from rsdmri.training.manifest import Manifest, Record, file_digest, read_manifest
from rsdmri.workflows.changes import differences
from rsdmri.workflows.run_folder import FREE

Row = dict[str, Any]

_LENGTHS = {"steps", "teacher.steps", "prior.steps", "teacher.share"}  # free in a run, not among runs to compare


class AblationFolder:
    """The folder of one ablation; nothing is written before `begin`.

    Args:
        path: it may be missing.
    """

    def __init__(self, path: Path):
        self.path = path
        self.runs = path / "runs"
        self.teacher = path / "teacher"
        self._rows = path / "ablation.jsonl"
        self._about = path / "ablation.json"

    def check(self, about: Row) -> None:
        """`InputError` where the folder holds something else than the ablation that ``about`` describes.

        ``about`` has ``axis``, ``teacher`` (sha256), ``settings`` of the configuration, ``budget`` in seconds and
        ``measured`` (samples, features, reference; None: nothing), which may be added to an ablation without it.
        """
        if not self._about.is_file():
            others = [item.name for item in self.path.iterdir()] if self.path.is_dir() else []
            others = [name for name in others if name != ".lock" and not name.startswith(".tmp-")]
            if others:
                raise InputError(f"{self.path}: holds other files ({sorted(others)[0]}); choose another --out")
            return
        known = self._known()
        if any(self.runs.glob("*/config.toml")) and (found := _differences(known, about)):
            raise InputError(
                f"{self.path}: holds another ablation ({found}); choose another --out, or give what it began with"
            )

    def begin(self, about: Row) -> None:
        """Write what the ablation is of, and put in order what an earlier process left."""
        output_directory(self.path)
        remove_orphans(self.path)
        known = self._known() if self._about.is_file() else None
        if known is None or known["measured"] is None or not any(self.runs.glob("*/config.toml")):
            stamped = {"note": RESEARCH_ONLY, "version": __version__, **about}
            write_text(self._about, json.dumps(stamped, indent=1) + "\n")
        self._write(self.rows())

    def rows(self) -> list[Row]:
        """Rows so far; a line that a crash cut short is left out."""
        rows = []
        for line in self._rows.read_text(encoding="utf-8").splitlines() if self._rows.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def add(self, row: Row) -> None:
        """Append ``row``, in place of an earlier one of its value and seed."""
        rows = self.rows()
        others = [other for other in rows if _key(other) != _key(row)]
        if len(others) == len(rows):
            append_text(self._rows, json.dumps(row) + "\n")
        else:
            self._write([*others, row])

    def report(self, name: str, remarks: Sequence[str]) -> None:
        """Write table and figure of the rows so far."""
        rows = self.rows()
        write_text(self.path / "ablation.md", ablation_table(name, rows, remarks))
        save_png(ablation_figure(name, rows), self.path / "ablation.png")

    def take_teacher(self, source: Path, digest: str) -> None:
        """Copy the teacher folder ``source``, whose weights have the sha256 ``digest``, where it is not there yet."""
        weights = self.teacher / "model.safetensors"
        if not (weights.is_file() and file_digest(weights) == digest):
            with atomic_folder(self.teacher) as copy:
                for name in ("README.md", "config.json", "model.safetensors"):
                    if (source / name).is_file():
                        shutil.copyfile(source / name, copy / name)

    def give_teacher(self, run: Path, source: Path) -> None:
        """Give the run folder ``run`` the teacher, before its first step.

        Files are links to the copy here, so that a large network is on the disk once. What the teacher of the run
        folder ``source`` could not learn from is left out of the distillation as it would be there.
        """
        if (run / "config.toml").exists():
            return
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        with atomic_folder(run / "teacher") as folder:
            for file in self.teacher.iterdir():
                _link(file, folder / file.name)
        roll_backs = read_manifest(source / "checkpoints").stage("teacher").roll_backs
        if roll_backs:
            Manifest().write(run / "checkpoints", "teacher", Record(roll_backs=roll_backs))

    def _known(self) -> Row:
        try:
            known: Row = json.loads(self._about.read_text(encoding="utf-8"))
            config_from_dict(known["settings"], str(self._about))
            known["axis"], known["teacher"], known["budget"], known["measured"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{self._about}: not what an ablation left; choose another --out") from None
        return known

    def _write(self, rows: Sequence[Row]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not self._rows.exists() or self._rows.read_text(encoding="utf-8") != text:
            write_text(self._rows, text)


def teacher_digest(folder: Path, device: str) -> str:
    """The sha256 of the weights in a teacher folder; `InputError` unless it is whole and they are those it names."""
    digest = load_prior(folder, device).digest
    if file_digest(folder / "model.safetensors") != digest:
        raise InputError(f"{folder}: the weights are not those that its config.json names; copy the folder again")
    return digest


def _key(row: Row) -> tuple[Any, Any]:
    return row["value"], row["seed"]


def _differences(known: Row, about: Row) -> str:
    """What differs, in words; empty where nothing does."""
    found = [f"{k}: {known[k]} there, {about[k]} asked" for k in ("axis", "teacher", "budget") if known[k] != about[k]]
    there, asked = (config_from_dict(row["settings"], "settings") for row in (known, about))
    found += map(str, differences(there, asked, set(FREE) - _LENGTHS))
    if known["measured"] is not None and known["measured"] != about["measured"]:
        given = about["measured"] or dict.fromkeys(known["measured"])
        found += [f"{k}: {v} there, {given[k]} asked" for k, v in known["measured"].items() if v != given[k]]
    return "; ".join(found[:2])


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # a file system without links
        shutil.copyfile(file, target)
