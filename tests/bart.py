"""Runs Debian's BART on arrays, where it is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")

_AXES = {"x": 1, "y": 0, "coil": 3, "set": 4}  # READ is our y (readout), PHS1 our x (phase encode)


def bart(folder: Path, command: str, *arrays: np.ndarray, axes: tuple[str, ...] = ("coil", "y", "x")) -> np.ndarray:
    """Result of ``command`` on ``arrays``, whose axes are the last of ``axes``; returns [..., coil, y, x]."""
    names = []
    for index, array in enumerate(arrays):
        names.append(str(folder / f"in{index}"))
        _write(Path(names[-1]), array, axes[len(axes) - array.ndim :])
    out = folder / "out"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(["bart", *command.split(), *names, str(out)], check=True, capture_output=True, env=environment)
    return _read(out)


def _write(path: Path, array: np.ndarray, axes: tuple[str, ...]) -> None:
    dims = [1] * 16
    for size, axis in zip(array.shape, axes, strict=True):
        dims[_AXES[axis]] = size
    order = sorted(range(array.ndim), key=lambda k: _AXES[axes[k]])
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, dims))}\n")
    array.transpose(order).astype(np.complex64).flatten(order="F").tofile(path.with_suffix(".cfl"))


def _read(path: Path) -> np.ndarray:
    dims = [int(word) for word in path.with_suffix(".hdr").read_text().split("\n")[1].split()][:5]
    data = np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(dims, order="F")
    return np.squeeze(data.transpose(4, 3, 0, 1, 2), axis=-1).squeeze()
