"""Trained priors on disk: a folder of ``config.json``, ``model.safetensors`` and a model card.

Everything needed to sample and reconstruct is inside: the denoiser, the one-step generator when there is one, and a
small bank of acquisitions (coil maps and masks) that samples are conditioned on. No class is unpickled; the
architecture is in ``config.json``.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.config import Config, config_from_dict
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.diffusion.amortised import PosteriorSampler
from rsdmri.diffusion.backbones import build_backbone
from rsdmri.diffusion.conditions import encode
from rsdmri.diffusion.denoiser import Denoiser, given
from rsdmri.diffusion.sample import OnStep, SamplerSettings, sample_teacher
from rsdmri.diffusion.unet import parameter_count
from rsdmri.distillation.generator import Generator
from rsdmri.errors import InputError
from rsdmri.files import write_text
from rsdmri.model_card import model_card
from rsdmri.physics.sense import Sampling, Sense, sense
from rsdmri.runtime import select_device, torch_generator
from rsdmri.training.checkpoint import load_tensors, save_tensors
from rsdmri.training.stage import compiled

FORMAT = 1
BANK_BYTES = 48e6
BATCH, DEVICE_BATCH = 16, 64  # images that are sampled at once


def runs_in_bfloat16(config: Config, device: torch.device) -> bool:
    """Whether the network computes in bfloat16 on ``device``."""
    precision = config.network.precision
    return precision == "bfloat16" or (precision == "auto" and device.type != "cpu")


def build_denoiser(config: Config, sigma_data: float, device: torch.device) -> Denoiser:
    """Denoiser with freshly initialised weights, the same for the same seed."""
    autocast = runs_in_bfloat16(config, device)
    backbone = build_backbone(config)
    backbone.initialise(torch_generator(config.seed, "init"))
    denoiser = Denoiser(backbone, sigma_data, config.preconditioning, config.network.cg_iterations, autocast)
    return denoiser.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Prior:
    """A trained prior: the denoiser, the one-step generator (None for a bare teacher) and its acquisitions.

    Attributes:
        config: resolved configuration of the run.
        meta: everything in ``config.json``.
        digest: sha256 of the weights.
        folder: that it was read from, if any.
    """

    folder: Path | None = None

    def __init__(
        self, denoiser: Denoiser, generator: Generator | None, bank: Acquisitions, config: Config, meta: dict[str, Any]
    ):
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.generator = None if generator is None else generator.eval().requires_grad_(False)
        self.bank, self.config, self.meta = bank, config, meta
        self.digest: str = meta.get("sha256", "")

    @property
    def kind(self) -> str:
        """``prior`` with a one-step generator, else ``teacher``."""
        return "teacher" if self.generator is None else "prior"

    @property
    def denoises(self) -> bool:
        """Whether ``denoiser`` was trained; it was not where the prior was trained without a teacher."""
        return denoises(self.kind, self.config)

    @cached_property
    def posterior(self) -> PosteriorSampler:
        """The network of variant ``amortised``, read from the run folder when it is first asked for.

        Errors:
            InputError: the prior is not in a run folder where one was trained.
        """
        if self.folder is None or not self.has_posterior:
            where = "the run folder of this prior" if self.folder is None else str(self.folder.parent)
            raise InputError(f"variant=amortised: no posterior network in {where}; run rsdmri train --stage posterior")
        return load_posterior(self.folder.parent / "posterior", self.device)

    @property
    def has_posterior(self) -> bool:
        """Whether there is that network."""
        own = Path() if self.folder is None else self.folder
        beside = own.name in ("prior", "teacher") and (own.parent / "posterior/config.json").is_file()
        return beside or "posterior" in self.__dict__

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.bank.device

    def sample(self, n: int = 16, **settings: Any) -> Tensor:
        """Draw ``n`` images ``(n, y, x)``, scaled so that tissue is about 1: the batches of `stream` in one piece."""
        return torch.cat(list(self.stream(n, **settings)))

    def stream(
        self,
        n: int = 16,
        *,
        seed: int = 0,
        teacher: bool = False,
        steps: int | None = None,
        sampler: SamplerSettings | None = None,
        batch: int | None = None,
        contrast: str | None = None,
        field: float | None = None,
        advance: Callable[[int], None] = lambda count: None,
        on_step: OnStep | None = None,
    ) -> Iterator[Tensor]:
        """Draw ``n`` images by one evaluation each; iterate over batches ``(batch, y, x)`` on the CPU as they come.

        Complex64, scaled so that tissue is about 1; float32 for a prior of magnitudes. Sample ``i`` depends on
        (``seed``, ``i``) and the method alone, not on ``n`` or ``batch``. A device draws the next batch while one is
        copied and handed out.

        Args:
            n: how many.
            seed: of the noise and the acquisitions.
            teacher: sample the teacher's ODE instead.
            steps: steps of the teacher's sampler, over those of ``sampler``.
            sampler: of the teacher; by default 18 Heun steps, 35 evaluations.
            batch: images at once; None: 16 on a CPU, 64 on another device.
            contrast: of the images, for priors that take it: T1w, T2w, PDw or FLAIR; None: not given.
            field: strength in tesla, for priors that take it; None: not given.
            advance: called with the number of images after each batch.
            on_step: called in each step of the teacher's sampler, batch after batch; a `Trajectory` keeps them all.
        """
        self.check_request(n, teacher=teacher, watched=on_step is not None, contrast=contrast, field=field)
        settings = sampler or SamplerSettings()
        settings = settings if steps is None else replace(settings, steps=steps)
        at_once = batch or (BATCH if self.device.type == "cpu" else DEVICE_BATCH)
        conditions = self.conditions(1, contrast, field)
        waiting: Tensor | None = None
        for draws in self._draws(n, seed, at_once, full_size=not teacher and self.generator is not None):
            drawn = self._drawn(draws, teacher, settings, conditions, on_step)
            if waiting is not None:
                yield _handed_out(waiting, advance)
            waiting = drawn
        if waiting is not None:
            yield _handed_out(waiting, advance)

    @torch.no_grad()
    def _drawn(
        self,
        draws: "_Draws",
        teacher: bool,
        settings: SamplerSettings,
        conditions: Tensor | None,
        on_step: OnStep | None,
    ) -> Tensor:
        """Images of one batch, on the device."""
        known = None if conditions is None else conditions.expand(len(draws.noise), -1)
        if not teacher and self.generator is not None:
            return self.generator(draws.noise, draws.operator, draws.coil_noise, known)
        return sample_teacher(
            given(self.denoiser, known),
            draws.operator,
            draws.noise,
            settings,
            coil_noise=draws.coil_noise,
            sigma_y=self.bank.sigma_y,
            generators=draws.generators,
            on_step=on_step,
        )

    def compiled(self) -> "Prior":
        """This prior, its networks compiled on first use: for many images of one size; the first batch waits for it."""
        for denoiser in (self.denoiser, *(() if self.generator is None else (self.generator.denoiser,))):
            compiled(denoiser, "on")
        return self

    def conditions(self, count: int, contrast: str | None = None, field: float | None = None) -> Tensor | None:
        """Conditions ``(count, 2)`` of ``count`` images of one scan; None for a prior that takes none."""
        if not self.config.network.conditions:
            return None
        return encode(contrast, field).to(self.device).expand(count, -1)

    def check_request(
        self,
        n: int,
        *,
        teacher: bool = False,
        watched: bool = False,
        contrast: str | None = None,
        field: float | None = None,
    ) -> None:
        """Raise `InputError` where `sample` would; ``watched``: its steps are asked for."""
        for name, value in {"contrast": contrast, "field": field}.items():
            if value is not None and name not in self.config.network.conditions:
                raise InputError(f"--{name} {value}: this prior was trained without it; leave it out")
        encode(contrast, field)
        if n < 1:
            raise InputError(f"--n {n}: must be at least 1")
        if not teacher and self.generator is None:
            raise InputError("this run has a teacher but no one-step prior yet; finish rsdmri train or use --teacher")
        if teacher and not self.denoises:
            raise InputError(f"--teacher: a prior of {self.config.prior.objective} has none; leave it out")
        if not teacher and watched:
            raise InputError("--states: the one-step prior has no steps to show; add --teacher")

    def _draws(self, n: int, seed: int, batch: int, *, full_size: bool) -> Iterator["_Draws"]:
        for start in range(0, n, batch):
            items = range(start, min(n, start + batch))
            generators = [torch_generator("sample", seed, item, device=self.device) for item in items]
            parts = []
            for generator in generators:
                operator = self.bank.draw(1, generator, full_size=full_size)
                noise = self.bank.draw_noise(operator, generator)
                parts.append((operator, noise, self.bank.draw_coil_noise(operator, generator)))
            operators, noises, coil_noises = zip(*parts, strict=True)
            noise = torch.cat(noises)
            mask = torch.cat([operator.mask for operator in operators])
            if isinstance(operators[0], Sense):
                joined: Sense | Sampling = sense(torch.cat([operator.maps for operator in operators]), mask)
            else:
                joined = Sampling(mask, tuple(noise.shape))
            yield _Draws(joined, noise, None if coil_noises[0] is None else torch.cat(coil_noises), generators)


def _handed_out(images: Tensor, advance: Callable[[int], None]) -> Tensor:
    copied = images.cpu()
    advance(len(copied))
    return copied


@dataclass(frozen=True)
class _Draws:
    operator: Sense | Sampling
    noise: Tensor
    coil_noise: Tensor | None
    generators: list[torch.Generator]


def save_prior(
    folder: Path,
    denoiser: Denoiser,
    generator: Generator | None,
    bank: Acquisitions,
    config: Config,
    facts: dict[str, Any],
    *,
    kind: str | None = None,
    more: Mapping[str, Tensor] | None = None,
) -> None:
    """Write ``model.safetensors``, the model card and, last, ``config.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    kind = kind or ("teacher" if generator is None else "prior")
    tensors: dict[str, Tensor] = {}
    if denoises(kind, config):
        tensors |= {f"denoiser.{k}": v for k, v in denoiser.state_dict().items()}
    if generator is not None:
        tensors |= {f"generator.{k}": v for k, v in generator.denoiser.state_dict().items()}
    tensors |= {"bank.mask": bank.mask, **(more or {})}
    if bank.maps is not None:
        tensors["bank.maps"] = torch.view_as_real(bank.maps)
    weights = folder / "model.safetensors"
    save_tensors(weights, tensors, {"kind": kind, "version": __version__})
    meta = {
        "format": FORMAT,
        "kind": kind,
        "version": __version__,
        "note": RESEARCH_ONLY,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "sigma_data": float(denoiser.sigma_data),
        "further_drop": bank.drop,
        "sampling": {name: getattr(bank, name) for name in ("keep", "real", "sigma_y", "coil_noise", "factor")},
        "parameters": parameter_count(denoiser),
        "config": config.to_dict(),
        **facts,
    }
    write_text(folder / "README.md", model_card(meta, bank))
    write_text(folder / "config.json", json.dumps(meta, indent=1, sort_keys=True) + "\n")


def denoises(kind: str, config: Config) -> bool:
    """Whether a ``kind`` of prior (`Prior.kind`) holds a trained denoiser."""
    return kind != "prior" or config.prior.distils


def load_prior(path: str | os.PathLike[str], device: str = "auto") -> Prior:
    """Load a prior from a run folder, its ``prior`` or ``teacher`` folder, or the ``model.safetensors`` in one.

    Errors:
        InputError: nothing there, damaged, or not a file of ours (pickled weights are never opened).
    """
    folder = prior_folder(Path(path))
    target = select_device(device)
    meta = _read_meta(folder / "config.json")
    if meta["kind"] == "posterior":
        raise InputError(f"{folder}: the network of variant=amortised, which is no prior; give {folder.parent}")
    tensors, _ = load_tensors(folder / "model.safetensors")
    if (folder / "calibration.json").is_file():  # written later than the prior, see `rsdmri.workflows.calibrate`
        meta["calibration"] = _read_json(folder / "calibration.json")
    config = config_from_dict(meta["config"], str(folder / "config.json"))
    with _fitting(folder):
        denoiser = build_denoiser(config, meta["sigma_data"], target)
        if denoises(meta["kind"], config):
            denoiser.load_state_dict(_part("denoiser.", tensors))
        generator = None
        if meta["kind"] == "prior":
            generator = Generator(
                build_denoiser(config, meta["sigma_data"], target), config.prior.sigma_init, config.prior.mask_free
            )
            generator.denoiser.load_state_dict(_part("generator.", tensors))
        maps = torch.view_as_complex(tensors["bank.maps"]).to(target) if "bank.maps" in tensors else None
        law = meta.get("sampling", {})
        bank = Acquisitions(maps, tensors["bank.mask"].to(target), int(meta["further_drop"]), **law)
    prior = Prior(denoiser, generator, bank, config, meta)
    prior.folder = folder.resolve()
    return prior


def load_posterior(folder: Path, device: torch.device) -> PosteriorSampler:
    """The network that ``--stage posterior`` wrote into ``folder``; errors as of `load_prior`."""
    meta = _read_meta(folder / "config.json")
    config = config_from_dict(meta["config"], str(folder / "config.json"))
    tensors, _ = load_tensors(folder / "model.safetensors")
    with _fitting(folder):
        denoiser = build_denoiser(config, meta["sigma_data"], device)
        denoiser.load_state_dict(_part("denoiser.", tensors))
        settings = config.posterior
        sampler = PosteriorSampler(denoiser, settings.levels, settings.trust, meta["sha256"], warm=settings.warm)
        sampler.spread.load_state_dict(_part("spread.", tensors))
    return sampler.eval().requires_grad_(False)


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{folder}: weights and config.json do not fit ({reason}); copy the whole folder") from None


def newest_prior(runs: Path = Path("runs")) -> Path:
    """Folder of the newest finished prior under ``runs``.

    Errors:
        InputError: there is none yet.
    """
    found = sorted(runs.glob("*/prior/config.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise InputError(f"no finished prior under {runs}/; run rsdmri train first, or give --prior PATH")
    return found[-1].parent


def prior_folder(path: Path) -> Path:
    """Folder with the ``config.json`` of the prior at ``path``, see `load_prior`."""
    if path.is_file():
        if path.name == "config.json" or (path.suffix == ".safetensors" and (path.parent / "config.json").exists()):
            return path.parent
        load_tensors(path)  # names what is wrong with it
        raise InputError(f"{path}: weights without the config.json beside them; give the folder of a prior")
    for folder in (path, path / "prior", path / "teacher"):
        if (folder / "config.json").is_file():
            return folder
    if path.exists():
        raise InputError(f"{path}: no finished prior in this folder (no prior/config.json); finish rsdmri train")
    raise InputError(f"{path}: no such prior; give a run folder, or leave --prior out for the newest run")


def _read_meta(path: Path) -> dict[str, Any]:
    meta = _read_json(path)
    if not isinstance(meta, dict) or not {"kind", "config", "sigma_data", "further_drop"} <= meta.keys():
        raise InputError(f"{path}: not the config.json of an rsdmri prior; give the folder of a prior")
    return meta


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path}: not readable JSON; copy the prior's folder again") from None


def _part(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
