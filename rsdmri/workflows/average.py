"""A prior from a finished run with an average of another length, chosen by validation where none is asked for."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.remote import is_uri
from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.objectives import draw_for, teacher_loss
from rsdmri.errors import InputError
from rsdmri.files import output_directory
from rsdmri.priors import Prior, load_prior, save_prior
from rsdmri.progress import progress
from rsdmri.runtime import prepare_process, torch_generator
from rsdmri.training.ema import TRACKED
from rsdmri.training.generated import draw_latent, generated, seen
from rsdmri.training.post_hoc import LARGEST_ERROR, Profile, average_of, profile_fit
from rsdmri.training.proximal import ProximalCheck
from rsdmri.training.snapshots import snapshot_files, step_of
from rsdmri.workflows.plan import open_slices
from rsdmri.workflows.sources import Source, open_source
from rsdmri.workflows.trainer import Say, StageName

LENGTHS = (0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.12, 0.15, 0.20)
BATCH, BATCHES = 16, 16


def average(
    run: Path,
    out: Path,
    *,
    sigma_rel: float | None = None,
    stage: StageName = "all",
    data: str | None = None,
    device: str = "auto",
    say: Say = print,
) -> Path:
    """Write into ``out`` the teacher or prior of ``run`` with a power-function average as its weights; return ``out``.

    Args:
        run: folder of a run with a finished stage.
        out: folder to write; it must not hold a prior.
        sigma_rel: length of the average; None compares several and today's by `validation_loss` and takes the best.
        stage: which; ``all`` takes the prior, or the teacher where there is no prior yet.
        data: manifest or folder to validate on; None takes the run's own, its split ``val`` where that has scans.
        device: ``auto``, or a torch device.
        say: where lines for the user go.

    Errors:
        InputError: no finished stage or no snapshots in ``run``; the snapshots do not give the length; no data.
    """
    prepare_process()
    if (out / "config.json").exists():
        raise InputError(f"--out {out}: holds a prior; choose another folder")
    if stage == "all":
        stage = "prior" if (run / "prior" / "config.json").is_file() else "teacher"
    prior = load_prior(run / stage, device)
    files = snapshot_files(run / "averages", stage)
    if not files:
        raise InputError(f"{run}: no snapshots of the {stage}'s averages (setting snapshots = 0); train with some")
    network = prior.denoiser if prior.generator is None else prior.generator
    last = step_of(files[-1])
    say(f"{stage}: {len(files)} snapshots, steps {step_of(files[0])} to {last}")
    if sigma_rel is None:
        source = validation_source(prior.config, run, data, prior.device, say)
        sigma_rel = _best(prior, files, source, say)
    elif not 0 < sigma_rel <= 12**-0.5:
        raise InputError(
            f"--sigma-rel {sigma_rel:g}: expected a share above 0 and at most {12**-0.5:.3f}, such as 0.08"
        )
    weights, error = average_of(files, Profile(last, sigma_rel))
    network.load_state_dict(weights)
    say(f"power-function average of sigma_rel {sigma_rel:g} after {last} steps, its profile to {100 * error:.2g} %")
    facts: dict[str, Any] = {name: prior.meta[name] for name in _FACTS if name in prior.meta}
    facts["average"] = {"kind": "power", "sigma_rel": sigma_rel, "step": last, "profile_error": error}
    save_prior(output_directory(out), prior.denoiser, prior.generator, prior.bank, prior.config, facts)
    say(f"written: {out}")
    return out


_FACTS = ("trained_on", "training", "steps", "seconds", "slices", "teacher_training")


def validation_source(config: Config, run: Path, data: str | None, device: torch.device, say: Say) -> Source:
    """Measurements of the split ``val``, or of the training's where it is empty (which is said)."""
    words = data or config.data.path or str(run / "data")
    location = words if is_uri(words) else Path(words)
    held_out = config.model_copy(update={"data": config.data.model_copy(update={"split": "val", "workers": 0})})
    try:
        slices: TrainingSlices = open_slices(held_out, location)
    except InputError as error:
        if "no scan has split" not in str(error):
            raise InputError(f"{error} (--data names the scans to validate on)") from None
        say(f"validation: no scans of split val, so on those of split {config.data.split}, which trained the network")
        slices = open_slices(config, location)
    say(f"validation: {len(slices)} slices, {BATCH * BATCHES} fixed draws")
    return open_source(config, slices, device)


def validation_loss(prior: Prior, source: Source) -> float:
    """How well networks fit fixed measurements under fixed draws; no image that was not measured is needed.

    Of a teacher the mean of its objective. Of a one-step prior, whose objective has no fixed scale, the proximal
    distance, see `ProximalCheck`.
    """
    if prior.generator is None:
        with torch.no_grad():
            return float(np.mean([_objective(prior.config, prior.denoiser, *batch) for batch in _batches(source)]))
    network, config = prior.generator, prior.config

    def sampled(batch: Batch, generator: torch.Generator) -> Tensor:
        return seen(config, generated(network, batch, draw_latent(config, batch, generator)))

    found = ProximalCheck(source.batches, config.seed, BATCH, BATCH * BATCHES)(sampled)
    return found.get("validation", math.inf)


def _best(prior: Prior, files: Sequence[Path], source: Source, say: Say) -> float:
    """The length with the least `validation_loss`; the weights of ``prior`` are left changed."""
    network = prior.denoiser if prior.generator is None else prior.generator
    last = step_of(files[-1])
    fitting = [length for length in LENGTHS if profile_fit(files, Profile(last, length))[1] <= LARGEST_ERROR]
    if not fitting:
        raise InputError(f"{files[0].parent}: too few snapshots for any length but {TRACKED}; give --sigma-rel")
    losses: dict[float, float] = {}
    with progress("Validating averages", total=len(fitting) + 1) as bar:
        own = validation_loss(prior, source)
        bar.advance()
        for length in fitting:
            network.load_state_dict(average_of(files, Profile(last, length))[0])
            losses[length] = validation_loss(prior, source)
            bar.advance()
    what = "objective" if prior.generator is None else "proximal distance"
    say(f"{what}: {own:.5g} as the run left it; " + ", ".join(f"{v:.5g} at {k:g}" for k, v in losses.items()))
    return min(losses, key=losses.__getitem__)


def _batches(source: Source) -> Iterator[tuple[Batch, torch.Generator]]:
    for index in range(BATCHES):
        batch = source.batches(BATCH, "validation", index)
        yield batch, torch_generator("validation", index, device=batch.measured.device)


def _objective(config: Config, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> float:
    draw = draw_for(config.objective, batch, generator, config.teacher.sigma_mean, config.teacher.sigma_std)
    return float(teacher_loss(config.objective, denoiser, batch, draw).mean())
