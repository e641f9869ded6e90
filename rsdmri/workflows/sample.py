"""Drawing images from a prior into a folder."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.files import atomic_path, output_directory
from rsdmri.priors import Prior, load_prior, newest_prior
from rsdmri.progress import progress
from rsdmri.report.figures import image_grid, save_png
from rsdmri.runtime import prepare_process


def sample(
    path: Path | None,
    *,
    n: int = 16,
    teacher: bool = False,
    steps: int = 18,
    seed: int = 0,
    contrast: str | None = None,
    field: float | None = None,
    out: Path = Path("samples"),
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Path:
    """Write ``samples.h5`` (complex64 ``samples`` ``(n, y, x)``) and ``samples.png`` into ``out``; return the folder.

    Args:
        path: prior; None takes the newest finished run under ``runs/``.
        n: number of images.
        teacher: sample the teacher's ODE by ``steps`` Heun steps instead of the one-step generator.
        steps: see ``teacher``.
        seed: of the samples.
        contrast: of the images, and ``field`` strength in tesla, for priors that take them.
        out: folder.
        device: ``auto``, or a torch device.
        say: where the lines for the user go.
    """
    prepare_process()
    prior = load_prior(newest_prior() if path is None else path, device)
    known: dict[str, Any] = {"contrast": contrast, "field": field}
    prior.check_request(n, teacher=teacher, steps=steps, **known)
    folder = output_directory(out)
    images, rate = timed_samples(prior, n, teacher=teacher, steps=steps, seed=seed, **known)
    evaluations = 2 * steps - 1 if teacher else 1
    attrs = {
        "method": f"teacher, Heun, {steps} steps" if teacher else "one-step prior",
        "network_evaluations": evaluations,
        "prior_sha256": prior.digest,
        "seed": seed,
        "version": __version__,
        "note": RESEARCH_ONLY,
        **{name: value for name, value in known.items() if value is not None},
    }
    with atomic_path(folder / "samples.h5") as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("samples", data=images)
        file.attrs.update(attrs)
    save_png(image_grid(np.abs(images[:64])), folder / "samples.png")
    say(f"{n} images of {images.shape[1]} x {images.shape[2]}, {evaluations} evaluations each: {rate:.1f} images/s")
    say(f"written: {folder / 'samples.h5'}, {folder / 'samples.png'}")
    return folder


def timed_samples(
    prior: Prior, n: int, *, teacher: bool = False, steps: int = 18, seed: int = 0, **known: Any
) -> tuple[np.ndarray, float]:
    """Samples complex64 ``(n, y, x)`` and images per second, the first (warm-up) evaluation not counted.

    ``known`` is the ``contrast`` and the ``field`` of `Prior.sample`.
    """
    prior.sample(min(n, 2), seed=seed, teacher=teacher, steps=1, **known)
    with progress("Sampling teacher" if teacher else "Sampling prior", total=n) as bar:
        started = time.monotonic()
        images = prior.sample(n, seed=seed, teacher=teacher, steps=steps, advance=bar.advance, **known)
        rate = n / (time.monotonic() - started)
    return images.numpy(), rate
