"""Readouts of a raw data file: what each one is for, and which of them make the image that was asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from rsdmri.errors import InputError

# One row a readout, with ISMRMRD's names and meanings, whatever file it is from.
LINE = np.dtype(
    [
        ("flags", "u8"),
        *((name, "i4") for name in ("number_of_samples", "active_channels", "discard_pre", "discard_post")),
        *((name, "i4") for name in ("center_sample", "encoding_space_ref", "trajectory_dimensions")),
        ("sample_time_us", "f8"),
        *((name, "f8", (3,)) for name in ("position", "read_dir", "phase_dir", "slice_dir")),
        *((name, "i4") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "slice")),
        *((name, "i4") for name in ("contrast", "repetition", "set", "phase")),
    ]
)

# Bit of each flag, counted from 1 (ismrmrd.h).
NOISE, CALIBRATION, CALIBRATION_AND_IMAGING, REVERSE = 19, 20, 21, 22
NOT_IMAGING = {
    27: "dummy",
    23: "navigator",
    24: "phase-correction",
    26: "HP feedback",
    28: "RT feedback",
    29: "surface-coil-correction",
    30: "phase-stabilisation reference",
    31: "phase-stabilisation",
}
CHOICES = ("contrast", "repetition", "set", "phase")


@dataclass(frozen=True, eq=False)
class Readouts:
    """The readouts of one file; samples are read only when asked for."""

    where: str
    """The file, for messages."""
    lines: np.ndarray
    """(n,) of ``LINE``."""
    read: Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]
    """From ascending line numbers of one size to blocks of (line numbers, samples (n, coil, sample) complex64)."""
    kind: str = "ISMRMRD"


def has_flag(lines: np.ndarray, bit: int) -> np.ndarray:
    """Which of ``lines`` carry the flag number ``bit``, counted from 1."""
    return (lines["flags"] >> np.uint64(bit - 1)) & np.uint64(1) != 0


def flag(*bits: int) -> int:
    """The flags word with the flags numbered ``bits``, counted from 1."""
    return sum(1 << (bit - 1) for bit in bits)


def noise_lines(lines: np.ndarray) -> np.ndarray:
    """Numbers of the noise measurements."""
    return np.flatnonzero(has_flag(lines, NOISE) & (lines["number_of_samples"] > 0))


def imaging_lines(readouts: Readouts, choice: dict[str, int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of the readouts that make the image, ascending, and one warning of what was left out, by name.

    Args:
        readouts: all of a file.
        choice: which ``contrast``, ``repetition``, ``set`` and ``phase``.

    Raises:
        InputError: nothing is left, or what is left is no Cartesian imaging: reversed readouts, several sizes.
    """
    lines, where = readouts.lines, readouts.where
    kept = ~has_flag(lines, NOISE)
    left_out: dict[str, int] = {}

    def drop(which: np.ndarray, name: str) -> None:
        nonlocal kept
        count = int((kept & which).sum())
        if count:
            left_out[name] = count
            kept = kept & ~which

    for bit, name in NOT_IMAGING.items():
        drop(has_flag(lines, bit), name)
    drop(has_flag(lines, CALIBRATION) & ~has_flag(lines, CALIBRATION_AND_IMAGING), "calibration-only")
    drop(lines["encoding_space_ref"] != 0, "other encoding spaces'")
    drop((lines["number_of_samples"] == 0) | (lines["active_channels"] == 0), "empty")
    warnings = []
    if left_out:
        words = ", ".join(f"{count:,} {name}" for name, count in left_out.items())
        warnings.append(f"readouts left out, by their flags: {words}")
    if not kept.any():
        raise InputError(f"{where}: none of its {len(lines):,} readouts is imaging data; check that the scan was saved")
    for name in CHOICES:
        present = np.unique(lines[name][kept])
        if choice[name] not in present:
            raise InputError(f"{where}: no {name} {choice[name]}; it holds {_counted(present)}: choose with {name}=")
        if len(present) > 1:
            warnings.append(f"{name} {choice[name]} read, of {_counted(present)}; choose another with {name}=")
            kept &= lines[name] == choice[name]
    chosen = np.flatnonzero(kept)
    _require_cartesian(lines[chosen], where)
    return chosen, tuple(warnings)


def _counted(values: np.ndarray) -> str:
    """Ascending ``values`` as a short list."""
    words = [str(value) for value in values[:8]]
    return ", ".join(words) + (f" and {len(values) - 8} more" if len(values) > 8 else "")


def _require_cartesian(lines: np.ndarray, where: str) -> None:
    count = int(has_flag(lines, REVERSE).sum())
    if count:
        raise InputError(
            f"{where}: {count:,} of {len(lines):,} imaging readouts run backwards (EPI or bipolar echoes), which needs "
            "a ghost correction that is not made here; correct and reverse them first, or choose another contrast"
        )
    names = {
        "number_of_samples": "samples",
        "active_channels": "coils",
        "center_sample": "as centre sample",
        "discard_pre": "samples to discard before",
        "discard_post": "samples to discard after",
    }
    for name, words in names.items():
        present = np.unique(lines[name])
        if len(present) > 1:
            raise InputError(
                f"{where}: imaging readouts differ, with {_counted(present)} {words}; "
                "write one file for each kind, or mark those that are no imaging by their flags"
            )
