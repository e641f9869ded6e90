"""BART's pics on what our own methods get: whitened, scaled, undersampled k-space and the same coil maps."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cfl import read_cfl, write_cfl

ITERATIONS = 100


def pics(kspace: np.ndarray, maps: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Image (y, x) of k-space (coil, y, x) by L1-wavelet regularisation of ``strength``, with one of BART's wavelets.

    ``-w 1`` leaves the scale of the data alone, so that strengths mean the same in every slice.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("kspace", kspace), ("maps", maps)):
            write_cfl(Path(folder, name), array)
        regulariser = ["--wavelet", options.get("wavelet", "dau2"), "-R", f"W:3:0:{options['strength']}"]
        command = ["bart", "pics", "-w", "1", "-i", str(options.get("iterations", ITERATIONS)), *regulariser]
        subprocess.run([*command, "kspace", "maps", "image"], cwd=folder, check=True, capture_output=True)
        return read_cfl(Path(folder, "image"))


def scores(scan: Any, acceleration: float, seed: int, options: dict[str, Any]) -> dict[str, float]:
    """Scores of a fully sampled scan, undersampled by the mask that `reconstruct` takes for these arguments."""
    import torch

    from rsdmri.workflows.reconstruct import reconstruct
    from rsdmri.workflows.result import score
    from rsdmri.workflows.slices import SliceWork, cropped

    found = reconstruct(scan, method="zero-filled", acceleration=acceleration, seed=seed, device="cpu")
    volume = np.zeros_like(found.volume)

    def keep(index: int, item: Any, _: Any) -> None:
        image = torch.from_numpy(pics(item.kspace.numpy(), item.maps.numpy(), options))
        volume[index] = cropped(image.abs() * item.intensity, scan.crop)

    mask = torch.from_numpy(found.mask)
    SliceWork(scan, mask, "zero-filled", None, 1, seed, torch.device("cpu"), watch=keep).run(lambda slices: None)
    scored = score(scan, volume, undersampled=True)[1]
    assert scored is not None
    return scored
