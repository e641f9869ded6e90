"""Drawing images from a prior into a folder."""

import time
from collections.abc import Callable, Iterator
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
SHOWN_SAMPLES = 64
COMPILED_FROM = 2000  # images for which compiling on CUDA is worth its minute


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
        out, device, say: folder; ``auto`` or a torch device; where the lines for the user go.

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
    how = {"teacher": teacher, "sampler": settings, "seed": seed, **known}
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
    if prior.device.type == "cuda" and n >= COMPILED_FROM:
        prior.compiled()
    clock = _Clock()
    written, (height, width) = _write(folder, n, clock.timed(prior, n, how, kept), attrs, kept)
    say(f"{n} images of {height} x {width}, {evaluations} evaluations each: {clock.rate:.1f} images/s")
    say(f"written: {', '.join(str(file) for file in written)}")
    return folder


def _write(
    folder: Path, n: int, drawn: Iterator[np.ndarray], attrs: dict[str, Any], kept: Trajectory | None
) -> tuple[list[Path], tuple[int, ...]]:
    """Write the HDF5 file, batch by batch, and the pictures; return their paths and the matrix."""
    figures, done = {}, 0
    with atomic_path(folder / "samples.h5") as temporary, h5py.File(temporary, "w") as file:
        for images in drawn:
            if done == 0:
                file.create_dataset("samples", (n, *images.shape[1:]), images.dtype)
            file["samples"][done : done + len(images)] = images
            done += len(images)
        shown = file["samples"][:SHOWN_SAMPLES]
        figures["samples.png"] = image_grid(np.abs(shown))
        if kept is not None:
            states, denoised, sigma = kept.states.numpy(), kept.denoised.numpy(), kept.sigmas.numpy()
            for name, array in {"states": states, "denoised": denoised, "sigma": sigma}.items():
                file.create_dataset(name, data=array)
            reached = shown[: len(denoised)]
            figures["states.png"] = states_figure(denoised, sigma, reached, heading=attrs["method"])
        file.attrs.update(attrs)
    for name, figure in figures.items():
        save_png(figure, folder / name)
    return [folder / "samples.h5", *(folder / name for name in figures)], shown.shape[1:]


def timed_samples(prior: Prior, n: int, **settings: Any) -> tuple[np.ndarray, float]:
    """Samples ``(n, y, x)`` and images per second, the first (warm-up) evaluation not counted.

    Args:
        prior: to sample.
        n: how many.
        settings: ``teacher``, ``sampler``, ``seed``, ``contrast`` and ``field`` of `Prior.stream`.
    """
    clock = _Clock()
    return np.concatenate(list(clock.timed(prior, n, settings))), clock.rate


class _Clock:
    """Draws batches of samples and takes the time of that alone, not of what is done with them."""

    def __init__(self) -> None:
        self._images, self._seconds = 0, 0.0

    @property
    def rate(self) -> float:
        """Images per second so far."""
        return self._images / self._seconds

    def timed(
        self, prior: Prior, n: int, settings: dict[str, Any], kept: Trajectory | None = None
    ) -> Iterator[np.ndarray]:
        """Batches of samples after a warm-up; the bar moves with each step of the teacher."""
        sampler, teacher = settings.get("sampler") or SamplerSettings(), settings.get("teacher", False)
        prior.sample(min(n, 2), **settings, steps=1)
        with progress(f"Sampling teacher, {sampler}" if teacher else "Sampling prior", total=n) as bar:

            def step_done(step: Step) -> None:
                bar.advance(len(step.state) / sampler.steps)
                if kept is not None:
                    kept(step)

            watch: dict[str, Any] = {"on_step": step_done} if teacher else {"advance": bar.advance}
            started = time.monotonic()
            for images in prior.stream(n, **settings, **watch):
                self._images += len(images)
                self._seconds += time.monotonic() - started
                yield images.numpy()
                started = time.monotonic()
