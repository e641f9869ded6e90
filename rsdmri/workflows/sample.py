"""Drawing images from a prior into a folder."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.diffusion.sample import SamplerSettings, Step, Trajectory
from rsdmri.errors import InputError
from rsdmri.files import atomic_path, output_directory
from rsdmri.priors import Prior, load_prior, newest_prior
from rsdmri.progress import progress
from rsdmri.report.figures import image_grid, save_png, states_figure
from rsdmri.runtime import prepare_process

SHOWN_STATES = 8  # images whose states are kept


def sample(
    path: Path | None,
    *,
    n: int = 16,
    teacher: bool = False,
    sampler: SamplerSettings | None = None,
    states: bool = False,
    seed: int = 0,
    contrast: str | None = None,
    field: float | None = None,
    out: Path = Path("samples"),
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Path:
    """Write ``samples.h5`` (``samples`` ``(n, y, x)``) and ``samples.png`` into ``out``; return the folder.

    Complex64; float32 for a prior of magnitudes.

    Args:
        path: prior; None takes the newest finished run under ``runs/``.
        n: number of images.
        teacher: sample the teacher's ODE instead of the one-step generator.
        sampler: of the teacher; by default 18 Heun steps.
        states: keep what the teacher's sampler went through for the first 8 images: ``states`` and ``denoised``
            ``(8, steps, y, x)`` and ``sigma`` ``(steps,)`` in ``samples.h5``, and the picture ``states.png``.
        seed: of the samples.
        contrast: of the images, and ``field`` strength in tesla, for priors that take them.
        out: folder.
        device: ``auto``, or a torch device.
        say: where the lines for the user go.

    Errors:
        InputError: settings of the teacher's sampler without ``teacher``, no such prior, a folder that cannot be
            written.
    """
    prepare_process()
    settings = sampler or SamplerSettings()
    if not teacher and settings != SamplerSettings():
        raise InputError("--sampler, --steps and --churn: the one-step prior takes one step; add --teacher")
    prior = load_prior(newest_prior() if path is None else path, device)
    known: dict[str, Any] = {"contrast": contrast, "field": field}
    prior.check_request(n, teacher=teacher, watched=states, **known)
    folder = output_directory(out)
    kept = Trajectory(SHOWN_STATES) if states else None
    images, rate = timed_samples(prior, n, teacher=teacher, sampler=settings, seed=seed, kept=kept, **known)
    evaluations = settings.evaluations if teacher else 1
    attrs = {
        "method": f"teacher, {settings}" if teacher else "one-step prior",
        "network_evaluations": evaluations,
        "prior_sha256": prior.digest,
        "seed": seed,
        "version": __version__,
        "note": RESEARCH_ONLY,
        **{name: value for name, value in known.items() if value is not None},
    }
    written = _write(folder, images, attrs, kept)
    say(f"{n} images of {images.shape[1]} x {images.shape[2]}, {evaluations} evaluations each: {rate:.1f} images/s")
    say(f"written: {', '.join(str(file) for file in written)}")
    return folder


def _write(folder: Path, images: np.ndarray, attrs: dict[str, Any], kept: Trajectory | None) -> list[Path]:
    """Write the HDF5 file and the pictures; return their paths."""
    arrays = {"samples": images}
    figures = {"samples.png": image_grid(np.abs(images[:64]))}
    if kept is not None:
        states, denoised, sigma = kept.states.numpy(), kept.denoised.numpy(), kept.sigmas.numpy()
        arrays |= {"states": states, "denoised": denoised, "sigma": sigma}
        figures["states.png"] = states_figure(denoised, sigma, images[: len(denoised)], heading=attrs["method"])
    with atomic_path(folder / "samples.h5") as temporary, h5py.File(temporary, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        file.attrs.update(attrs)
    for name, figure in figures.items():
        save_png(figure, folder / name)
    return [folder / "samples.h5", *(folder / name for name in figures)]


def timed_samples(
    prior: Prior,
    n: int,
    *,
    teacher: bool = False,
    sampler: SamplerSettings | None = None,
    seed: int = 0,
    kept: Trajectory | None = None,
    **known: Any,
) -> tuple[np.ndarray, float]:
    """Samples ``(n, y, x)`` and images per second, the first (warm-up) evaluation not counted.

    The bar moves with each step of the teacher; ``kept`` takes its states; ``known`` is the
    ``contrast`` and the ``field`` of `Prior.sample`.
    """
    settings = sampler or SamplerSettings()
    prior.sample(min(n, 2), seed=seed, teacher=teacher, steps=1, **known)
    with progress(f"Sampling teacher, {settings}" if teacher else "Sampling prior", total=n) as bar:

        def step_done(step: Step) -> None:
            bar.advance(len(step.state) / settings.steps)
            if kept is not None:
                kept(step)

        watch: dict[str, Any] = {"on_step": step_done} if teacher else {"advance": bar.advance}
        started = time.monotonic()
        images = prior.sample(n, seed=seed, teacher=teacher, sampler=settings, **watch, **known)
        rate = n / (time.monotonic() - started)
    return images.numpy(), rate
