"""Which reconstruction is scored against which target: by file name, acquisition and acceleration."""

import os
from dataclasses import dataclass
from pathlib import Path

from rsdmri.data.volumes import read_attributes
from rsdmri.errors import InputError
from rsdmri.files import safe_stem

Pairs = dict[str, tuple[Path, Path]]


@dataclass(frozen=True)
class Selection:
    """Volumes that count, as fastMRI's evaluate.py selects them; None: all.

    Attributes:
        acquisition: attribute ``acquisition`` of the target, such as ``CORPD_FBK``.
        acceleration: attribute ``acceleration`` of the target, else the nominal one of the reconstruction.
    """

    acquisition: str | None = None
    acceleration: float | None = None

    def holds(self, reconstruction: Path, target: Path) -> bool:
        """Whether a pair counts."""
        acquired = None if self.acquisition is None else read_attributes(target, ("acquisition",)).get("acquisition")
        if acquired != self.acquisition:
            return False
        if self.acceleration is None:
            return True
        told = read_attributes(target, ("acceleration",)).get("acceleration")
        if told is None:
            own = read_attributes(reconstruction, ("acceleration_nominal", "acceleration"))
            told = own.get("acceleration_nominal", own.get("acceleration"))
        return isinstance(told, float) and abs(told - self.acceleration) < 1e-6 * self.acceleration

    def __str__(self) -> str:
        """The options that select so."""
        parts = {"--acquisition": self.acquisition, "--acceleration": self.acceleration}
        return " ".join(
            f"{option} {part if isinstance(part, str) else format(part, 'g')}"
            for option, part in parts.items()
            if part is not None
        )


EVERYTHING = Selection()


def pairs(
    reconstruction: str | os.PathLike[str], target: str | os.PathLike[str], selection: Selection = EVERYTHING
) -> tuple[Pairs, list[str]]:
    """Reconstruction and target of each volume that counts, by its name, and the targets without a reconstruction.

    Names are those that `reconstruct` gives to results. `InputError` when a reconstruction has no target, two files
    have results of one name, or nothing is left to score.
    """
    found, missing = _all_pairs(Path(reconstruction), Path(target))
    kept = {name: pair for name, pair in found.items() if selection.holds(*pair)}
    if not kept:
        raise InputError(f"{reconstruction}: none of {len(found)} volumes has {selection}; leave that out")
    return kept, missing


def _all_pairs(reconstruction: Path, target: Path) -> tuple[Pairs, list[str]]:
    for path in (reconstruction, target):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
    if not reconstruction.is_dir():
        name = _told_name(reconstruction)
        partner = _by_name(target).get(name) if target.is_dir() else target
        if partner is None or not partner.is_file():
            raise InputError(
                f"{target}: holds no {reconstruction.name}; targets are matched by file name{_reason([reconstruction])}"
            )
        return {name: (reconstruction, partner)}, []
    targets = _by_name(target)
    found = _by_name(reconstruction)
    if not target.is_dir():
        found = {name: p for name, p in found.items() if name in targets}
    if not found:
        wanted = "no .h5 file" if target.is_dir() else f"no {_told_name(target)}"
        raise InputError(f"{reconstruction}: holds {wanted} to score; give a folder of reconstructions")
    orphans = sorted(found.keys() - targets.keys())
    if orphans:
        raise InputError(
            f"{target}: no target for {len(orphans)} reconstructions ({', '.join(orphans[:3])}"
            f"{', ...' if len(orphans) > 3 else ''}); they are matched by file name"
            f"{_reason([found[name] for name in orphans])}"
        )
    return {n: (p, targets[n]) for n, p in found.items()}, sorted(targets.keys() - found.keys())


def _reason(orphans: list[Path]) -> str:
    """Why there can be no target, where the reconstructions themselves say so."""
    if all(read_attributes(path, ("prospective",)).get("prospective") for path in orphans):
        return "; undersampled when they were acquired, they have no fully sampled image to be scored against"
    return ""


def _by_name(path: Path) -> dict[str, Path]:
    """Files of a folder, or the one file, by the names that `reconstruct` gives to results."""
    named: dict[str, Path] = {}
    for file in sorted(path.glob("*.h5")) if path.is_dir() else [path]:
        first = named.setdefault(_told_name(file), file)
        if first != file:
            raise InputError(f"{path}: {first.name} and {file.name} have results of one name; rename one")
    return named


def _told_name(path: Path) -> str:
    return f"{safe_stem(path)}{path.suffix}"
