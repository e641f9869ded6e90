"""Arrays to and from BART's file pair NAME.hdr, NAME.cfl."""

from pathlib import Path

import numpy as np


def write_cfl(path: Path, array: np.ndarray) -> None:
    """Write (coil, y, x) or (y, x): y is BART's READ, x its PHS1, and coils its COIL."""
    array = array if array.ndim == 3 else array[None]
    n_coils, height, width = array.shape
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{height} {width} 1 {n_coils}{' 1' * 12}\n")
    array.transpose(1, 2, 0).flatten(order="F").astype(np.complex64).tofile(path.with_suffix(".cfl"))


def read_cfl(path: Path) -> np.ndarray:
    """Read (coil, y, x), or (y, x) where there is one coil."""
    height, width, _, n_coils = map(int, path.with_suffix(".hdr").read_text().split("\n")[1].split()[:4])
    data = np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(height, width, n_coils, order="F")
    array = np.ascontiguousarray(data.transpose(2, 0, 1))
    return array if n_coils > 1 else array[0]
