"""Trained priors on disk: a folder of ``config.json``, ``model.safetensors`` and a model card.

Everything needed to sample and reconstruct is inside: the denoiser, the one-step generator when there is one, and a
small bank of acquisitions (coil maps and masks) that samples are conditioned on. No class is unpickled; the
architecture is in ``config.json``.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.config import Config, config_from_dict
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.diffusion.backbones import build_backbone
from rsdmri.diffusion.conditions import encode
from rsdmri.diffusion.denoiser import Denoiser, given
from rsdmri.diffusion.sample import sample_teacher
from rsdmri.diffusion.unet import parameter_count
from rsdmri.distillation.generator import Generator
from rsdmri.errors import InputError
from rsdmri.files import write_text
from rsdmri.physics.sense import Sampling, Sense, sense
from rsdmri.runtime import select_device, torch_generator
from rsdmri.training.checkpoint import load_tensors, save_tensors

FORMAT = 1
BANK_BYTES = 48e6


def build_denoiser(config: Config, sigma_data: float, device: torch.device) -> Denoiser:
    """Denoiser with freshly initialised weights, the same for the same seed."""
    network = config.network
    autocast = network.precision == "bfloat16" or (network.precision == "auto" and device.type != "cpu")
    backbone = build_backbone(config)
    backbone.initialise(torch_generator(config.seed, "init"))
    denoiser = Denoiser(backbone, sigma_data, config.preconditioning, network.cg_iterations, autocast)
    return denoiser.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Prior:
    """A trained prior: the denoiser, the one-step generator (None for a bare teacher) and its acquisitions.

    Attributes:
        config: resolved configuration of the run.
        meta: everything in ``config.json``.
        digest: sha256 of the weights.
    """

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
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.bank.device

    def sample(
        self,
        n: int = 16,
        *,
        seed: int = 0,
        teacher: bool = False,
        steps: int = 18,
        batch: int = 16,
        contrast: str | None = None,
        field: float | None = None,
        advance: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """Draw ``n`` complex images ``(n, y, x)``, scaled so that tissue is about 1, by one evaluation each.

        Sample ``i`` depends on (``seed``, ``i``) and the method alone, not on ``n`` or ``batch``.

        Args:
            n: how many.
            seed: of the noise and the acquisitions.
            teacher: sample the teacher's ODE instead (``2 steps - 1`` evaluations each).
            steps: Heun steps of the teacher.
            batch: images at once.
            contrast: of the images, for priors that take it: T1w, T2w, PDw or FLAIR; None: not given.
            field: strength in tesla, for priors that take it; None: not given.
            advance: called with the number of images after each batch.
        """
        self.check_request(n, teacher=teacher, steps=steps, contrast=contrast, field=field)
        images = []
        for draws in self._draws(n, seed, batch):
            conditions = self.conditions(len(draws.noise), contrast, field)
            with torch.no_grad():
                if teacher or self.generator is None:
                    denoiser = given(self.denoiser, conditions)
                    drawn = sample_teacher(
                        denoiser, draws.operator, draws.noise, steps, draws.coil_noise, self.bank.sigma_y
                    )
                else:
                    drawn = self.generator(draws.noise, draws.operator, conditions)
            images.append(drawn.cpu())
            advance(len(drawn))
        return torch.cat(images)

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
        steps: int = 18,
        contrast: str | None = None,
        field: float | None = None,
    ) -> None:
        """Raise `InputError` where `sample` would."""
        for name, value in {"contrast": contrast, "field": field}.items():
            if value is not None and name not in self.config.network.conditions:
                raise InputError(f"--{name} {value}: this prior was trained without it; leave it out")
        encode(contrast, field)
        if n < 1:
            raise InputError(f"--n {n}: must be at least 1")
        if teacher and steps < 1:
            raise InputError(f"--steps {steps}: must be at least 1")
        if not teacher and self.generator is None:
            raise InputError("this run has a teacher but no one-step prior yet; finish rsdmri train or use --teacher")

    def _draws(self, n: int, seed: int, batch: int) -> Iterator["_Draws"]:
        for start in range(0, n, batch):
            parts = []
            for item in range(start, min(n, start + batch)):
                generator = torch_generator("sample", seed, item, device=self.device)
                operator = self.bank.draw(1, generator)
                noise = self.bank.draw_noise(operator, generator)
                parts.append((operator, noise, self.bank.draw_coil_noise(operator, generator)))
            operators, noises, coil_noises = zip(*parts, strict=True)
            noise = torch.cat(noises)
            mask = torch.cat([operator.mask for operator in operators])
            if isinstance(operators[0], Sense):
                joined: Sense | Sampling = sense(torch.cat([operator.maps for operator in operators]), mask)
            else:
                joined = Sampling(mask, tuple(noise.shape))
            yield _Draws(joined, noise, None if coil_noises[0] is None else torch.cat(coil_noises))


@dataclass(frozen=True)
class _Draws:
    operator: Sense | Sampling
    noise: Tensor
    coil_noise: Tensor | None


def save_prior(
    folder: Path,
    denoiser: Denoiser,
    generator: Generator | None,
    bank: Acquisitions,
    config: Config,
    facts: dict[str, Any],
) -> None:
    """Write ``model.safetensors``, the model card and, last, ``config.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    tensors = {f"denoiser.{k}": v for k, v in denoiser.state_dict().items()}
    if generator is not None:
        tensors |= {f"generator.{k}": v for k, v in generator.denoiser.state_dict().items()}
    tensors |= {"bank.mask": bank.mask}
    if bank.maps is not None:
        tensors["bank.maps"] = torch.view_as_real(bank.maps)
    weights = folder / "model.safetensors"
    save_tensors(weights, tensors, {"kind": "teacher" if generator is None else "prior", "version": __version__})
    meta = {
        "format": FORMAT,
        "kind": "teacher" if generator is None else "prior",
        "version": __version__,
        "note": RESEARCH_ONLY,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "sigma_data": float(denoiser.sigma_data),
        "further_drop": bank.drop,
        "sampling": {"keep": bank.keep, "real": bank.real, "sigma_y": bank.sigma_y, "coil_noise": bank.coil_noise},
        "parameters": parameter_count(denoiser),
        "config": config.to_dict(),
        **facts,
    }
    write_text(folder / "README.md", model_card(meta, bank))
    write_text(folder / "config.json", json.dumps(meta, indent=1, sort_keys=True) + "\n")


def load_prior(path: str | os.PathLike[str], device: str = "auto") -> Prior:
    """Load a prior from a run folder, its ``prior`` or ``teacher`` folder, or the ``model.safetensors`` in one.

    Errors:
        InputError: nothing there, damaged, or not a file of ours (pickled weights are never opened).
    """
    folder = _locate(Path(path))
    target = select_device(device)
    meta = _read_meta(folder / "config.json")
    tensors, _ = load_tensors(folder / "model.safetensors")
    config = config_from_dict(meta["config"], str(folder / "config.json"))
    try:
        denoiser = build_denoiser(config, meta["sigma_data"], target)
        denoiser.load_state_dict(_part("denoiser.", tensors))
        generator = None
        if meta["kind"] == "prior":
            generator = Generator(build_denoiser(config, meta["sigma_data"], target), config.prior.sigma_init)
            generator.denoiser.load_state_dict(_part("generator.", tensors))
        maps = torch.view_as_complex(tensors["bank.maps"]).to(target) if "bank.maps" in tensors else None
        law = meta.get("sampling", {})
        bank = Acquisitions(maps, tensors["bank.mask"].to(target), int(meta["further_drop"]), **law)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{folder}: weights and config.json do not fit ({reason}); copy the whole folder") from None
    return Prior(denoiser, generator, bank, config, meta)


def newest_prior(runs: Path = Path("runs")) -> Path:
    """Folder of the newest finished prior under ``runs``.

    Errors:
        InputError: there is none yet.
    """
    found = sorted(runs.glob("*/prior/config.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise InputError(f"no finished prior under {runs}/; run rsdmri train first, or give --prior PATH")
    return found[-1].parent


def model_card(meta: dict[str, Any], bank: Acquisitions) -> str:
    """Model card in Markdown."""
    config, (height, width) = meta["config"], bank.shape
    rows = {
        "kind": "one-step generator with its teacher" if meta["kind"] == "prior" else "diffusion teacher",
        "objective": config_from_dict(config, "config.json").objective,
        "trained on": meta.get("trained_on", "unknown"),
        "matrix": f"{height} x {width}" + ("" if bank.maps is None else f", {bank.maps.shape[1]} coils"),
        "measurements": _measurements(config, bank),
        "scale": "whitened k-space divided by the 99th percentile of its centre-only root-sum-of-squares image",
        "parameters": f"{meta['parameters']:,}",
        "training": meta.get("training", "unknown"),
        "sha256": meta["sha256"],
    }
    lines = [f"- {name}: {value}" for name, value in rows.items()]
    return "\n".join(
        [
            "# rsdmri prior",
            "",
            f"**{RESEARCH_ONLY}**",
            "",
            *lines,
            "",
            "Samples and reconstructions far from the training data (anatomy, contrast, field strength, matrix, coils,",
            "acceleration) can look right and be wrong. Generative models can memorise training images: compare",
            "samples with them before sharing. Coil maps of the training scans are part of the weights file.",
            "",
        ]
    )


def _measurements(config: dict[str, Any], bank: Acquisitions) -> str:
    acquisition, corruption = config["acquisition"], config.get("corruption", {"kind": "fourier"})
    if corruption["kind"] == "fourier":
        dropped = f"; {bank.drop} dropped further" if bank.maps is not None else ""
        return f"k-space at acceleration {acquisition['acceleration']:g} ({acquisition['mask']} masks){dropped}"
    return f"magnitude images, {corruption['kind']}, noise {corruption['noise']:g}"


def _locate(path: Path) -> Path:
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
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path}: not readable JSON; copy the prior's folder again") from None
    if not isinstance(meta, dict) or not {"kind", "config", "sigma_data", "further_drop"} <= meta.keys():
        raise InputError(f"{path}: not the config.json of an rsdmri prior; give the folder of a prior")
    return meta


def _part(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
