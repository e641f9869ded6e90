"""How good a prior is, measured against clean images of subjects that it never saw."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.data.fastmri import read_scan
from rsdmri.data.manifest import read_manifest
from rsdmri.data.remote import Location
from rsdmri.diffusion.batch import shown_noise
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.errors import InputError
from rsdmri.files import output_directory, write_text
from rsdmri.metrics.comparison import Comparison, compare_features
from rsdmri.metrics.feature_sets import select_features
from rsdmri.metrics.features import Array, Features
from rsdmri.metrics.spectrum import PowerSums, log_power_ratio, power_sums
from rsdmri.physics import masks
from rsdmri.physics.fourier import fft2c
from rsdmri.physics.noise import whiten, whitening_matrix
from rsdmri.physics.prepare import prepare_slice
from rsdmri.physics.sense import Sampling, Sense, sense
from rsdmri.priors import Prior, load_prior
from rsdmri.progress import progress
from rsdmri.report.figures import image_grid, save_png
from rsdmri.report.spectrum import spectrum_figure
from rsdmri.runtime import numpy_generator, prepare_process, torch_generator
from rsdmri.workflows.plan import mask_law
from rsdmri.workflows.sample import timed_samples
from rsdmri.workflows.slices import scan_noise

LEVELS = (0.02, 0.1, 0.5, 2.0)


@dataclass(frozen=True)
class CleanSlice:
    """A clean image (y, x) complex64 in a prior's units, with its coil maps and the mask of its file and slice.

    ``power``: of k-space, corrected for sampling and noise, where the mask acquires it.
    """

    image: Tensor
    maps: Tensor
    mask: Tensor
    power: PowerSums


def assess(
    path: Path,
    reference: Location,
    *,
    features: Sequence[str] = ("mr-magnitude-v1",),
    samples: int = 256,
    teacher: bool = True,
    seed: int = 0,
    out: Path = Path("assessment"),
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Distances of samples to clean images, errors of the denoiser by noise level; written into ``out`` and returned.

    ``assessment.json`` holds one row of figures, ``samples-*.png`` and ``reference.png`` what they were measured on,
    ``spectrum.png`` the power of samples by spatial frequency.

    Args:
        path: run folder, or prior or teacher folder.
        reference: manifest or folder of fully sampled scans of subjects that the training set does not have.
        features: what distances are measured in, see `select_features`; figures of the first stand at the top of the
            row, those of others under their name.
        samples: number of samples of each sampler.
        teacher: measure the teacher of a one-step prior, too.
        seed: of samples and noise.
        out: folder.
        device: ``auto``, or a torch device.
        say: where lines for the user go.
    """
    prepare_process()
    sets = [select_features(name, device) for name in features]
    prior = load_prior(path, device)
    folder = output_directory(out)
    clean = clean_slices(prior, reference)
    target = np.abs(torch.stack([c.image for c in clean]).numpy())
    wanted = [(kind, kind(target)) for kind in sets]
    row = _facts(prior)
    teacher = prior.denoises and (teacher or prior.generator is None)
    kinds = (["teacher"] if teacher else []) + (["prior"] if prior.generator is not None else [])
    spectra = {}
    for kind in kinds:
        images, rate = timed_samples(prior, samples, teacher=kind == "teacher", seed=seed)
        compared = compare(images, target.shape[1:], wanted, seed)
        row[kind] = {"images/s": rate, "noise": noise_level(torch.as_tensor(images)), **_figures(compared)}
        spectra[kind] = sampled_power(_resized(images, target.shape[1:]), clean, prior)
        save_png(image_grid(np.abs(images[:64])), folder / f"samples-{kind}.png")
        for line in table(kind, compared):
            say(line)
        say(f"{kind}: {rate:.1f} images/s")
    row["noise in clean images"] = noise_level(torch.stack([c.image for c in clean]))
    row["floor"] = row[kinds[0]]["floor"]
    if teacher and prior.config.corruption.kind in ("fourier", "denoising", "inpainting"):
        row["denoiser NRMSE"] = denoiser_errors(prior, clean, seed)
        say("denoiser NRMSE by level: " + ", ".join(f"{k}: {v:.3f}" for k, v in row["denoiser NRMSE"].items()))
    row["spectrum"] = _spectrum(prior, clean, spectra, folder)
    save_png(image_grid(target[:64]), folder / "reference.png")
    write_text(folder / "assessment.json", json.dumps(row, indent=1) + "\n")
    say(f"written: {folder}. {RESEARCH_ONLY}")
    return row


def _facts(prior: Prior) -> dict[str, Any]:
    return {
        "objective": prior.config.objective if prior.denoises else prior.config.prior.objective,
        "preconditioning": prior.config.preconditioning,
        "seed": prior.config.seed,
        "acceleration": prior.config.acquisition.acceleration,
        "corruption": prior.config.corruption.kind,
        "matrix": list(prior.bank.shape),
        "steps": prior.meta.get("steps"),
        "seconds": prior.meta.get("seconds"),
        "version": __version__,
    }


def compare(
    images: np.ndarray, size: tuple[int, ...], wanted: Sequence[tuple[Features, Array]], seed: int
) -> dict[str, Comparison]:
    """``images`` (n, y, x), brought to ``size``, against the clean images whose features are ``wanted``, by name."""
    magnitude = np.abs(_resized(images, size))
    return {
        kind.name: compare_features(kind, kind(magnitude), target, generator=numpy_generator(seed, "bootstrap"))
        for kind, target in wanted
    }


def table(sampler: str, compared: dict[str, Comparison]) -> list[str]:
    """Lines for the user: a row of measures with their 95 % intervals for each set of features, and what they are."""
    columns = ("frechet", "kernel", "precision", "recall", "density", "coverage")
    lines = [f"{sampler:<18}" + "".join(f"{name:>24}" for name in columns) + f"{'floor':>9}"]
    for name, found in compared.items():
        lines.append(f"  {name:<16}" + "".join(f"{getattr(found, c)!s:>24}" for c in columns) + f"{found.floor:>9.3g}")
    return lines + [f"  {found.features}" for found in compared.values()]


def _figures(compared: dict[str, Comparison]) -> dict[str, Any]:
    first, *others = compared.items()
    return {**first[1].row(), **{name: found.row() for name, found in others}}


def _resized(images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Images at ``size``; those of a teacher of low-resolution magnitudes are enlarged."""
    if images.shape[1:] == size:
        return images
    tensor = torch.from_numpy(np.abs(images))[:, None].float()
    return np.asarray(nnf.interpolate(tensor, size=size, mode="bicubic", align_corners=False)[:, 0].numpy())


def sampled_power(images: np.ndarray, clean: list[CleanSlice], prior: Prior) -> PowerSums:
    """Power of the k-space of ``images`` (n, y, x): of complex ones seen through the coils of the clean slices."""
    sums = []
    for index, image in enumerate(torch.from_numpy(images)):
        maps = clean[index % len(clean)].maps
        coils = maps * image if prior.bank.maps is not None else image[None]
        sums.append(power_sums(fft2c(coils.to(torch.complex64))[None], torch.ones(1, 1, image.shape[-1]).bool()))
    return sum(sums[1:], sums[0])


def _spectrum(
    prior: Prior, clean: list[CleanSlice], spectra: dict[str, PowerSums], folder: Path
) -> dict[str, list[float | None]]:
    """Write ``spectrum.png``; return the curves, None where noise leaves nothing to compare."""
    whole = sampled_power(torch.stack([c.image for c in clean]).numpy(), clean, prior)
    measured = sum((c.power for c in clean[1:]), clean[0].power) if prior.bank.maps is not None else whole
    if prior.bank.maps is not None:
        spectra = {**spectra, "clean images, with their noise": whole}
    curves = {name: log_power_ratio(sums, measured)[1] for name, sums in spectra.items()}
    frequency = log_power_ratio(whole, measured)[0]
    words = "acquired lines of the clean scans" if prior.bank.maps is not None else "clean images"
    save_png(spectrum_figure(frequency, curves, heading=f"Power relative to {words}"), folder / "spectrum.png")
    values = {"cycles per pixel": frequency, **curves}
    return {name: [float(v) if math.isfinite(v) else None for v in curve] for name, curve in values.items()}


def noise_level(images: Tensor) -> float:
    """Noise per real number in ``images`` (n, y, x): root mean power of k-space beyond 0.9 of the edge in both axes.

    Images hold almost nothing there, so that it is an upper bound of their noise; compare with that of clean images.
    """
    spectrum = fft2c(images.to(torch.complex64))
    height, width = images.shape[-2:]
    y, x = (torch.linspace(-1, 1, n).abs() for n in (height, width))
    corner = (y[:, None] > 0.9) & (x > 0.9)
    power = spectrum[:, corner].abs().square().mean()
    return math.sqrt(float(power) / (2 if images.is_complex() else 1))


def clean_slices(prior: Prior, reference: Location) -> list[CleanSlice]:
    """Clean images in the units of ``prior``: scale and coil maps from each slice's samples under the prior's masks."""
    law = mask_law(prior.config)
    found = []
    entries = read_manifest(reference)
    with progress("Reading clean scans", total=len(entries)) as bar:
        for entry in entries:
            scan = read_scan(entry.path)
            if scan.prospective:
                raise InputError(f"{scan.name}: is undersampled; clean images need fully sampled scans")
            width = scan.kspace.shape[-1]
            noise = scan_noise(scan, law.draw(width, f"{scan.name}.h5", 0))
            whitening = whitening_matrix(noise.covariance)
            for index, kspace in enumerate(torch.from_numpy(scan.kspace)):
                mask = law.draw(width, f"{scan.name}.h5", index)
                item = prepare_slice(kspace, mask, noise=noise, centre=law.centre(width))
                acquired = torch.from_numpy(np.array(scan.mask))
                image = sense(item.maps, acquired).adjoint(whiten(kspace, whitening) / item.scale)
                if prior.config.corruption.kind != "fourier":
                    image = image.abs()
                power = power_sums(item.kspace[None], item.mask[None], item.sigma_y / math.sqrt(2))
                found.append(CleanSlice(image, item.maps, item.mask, power))
            bar.advance()
    return found


def denoiser_errors(
    prior: Prior, clean: list[CleanSlice], seed: int, levels: tuple[float, ...] = LEVELS, batch: int = 32
) -> dict[str, float]:
    """NRMSE |D(u, M~, s) - x| / |x| over all ``clean`` images by noise level, as the prior's objective makes u."""
    error, power = dict.fromkeys(levels, 0.0), 0.0
    generator = torch_generator(seed, "denoiser errors", device=prior.device)
    with torch.no_grad(), progress("Denoising clean images", total=len(clean)) as bar:
        for start in range(0, len(clean), batch):
            part = clean[start : start + batch]
            images = torch.stack([c.image for c in part]).to(prior.device)
            operator = _operator(prior, part, images, generator)
            power += float(images.abs().square().sum())
            for level in levels:
                sigma = torch.full((len(part),), level, device=prior.device)
                coils = prior.bank.coil_noise and isinstance(operator, Sense)
                noise = unit_noise(operator.maps if coils else images, generator)  # type: ignore[union-attr]
                u = operator.normal(images) + level * shown_noise(operator, noise)
                error[level] += float((prior.denoiser(u, operator, sigma) - images).abs().square().sum())
            bar.advance(len(part))
    return {f"{level:g}": math.sqrt(found / power) for level, found in error.items()}


def _operator(prior: Prior, part: list[CleanSlice], images: Tensor, generator: torch.Generator) -> Sense | Sampling:
    """A~ of the slices: their maps and further masks of their own masks, or pixels as in the prior's bank."""
    if prior.bank.maps is None:
        return prior.bank.draw(len(part), generator)
    mask = torch.stack([c.mask for c in part]).to(prior.device)
    shown = masks.further_mask(mask, prior.bank.drop, acs=prior.bank.acs, generator=generator)
    return sense(torch.stack([c.maps for c in part]).to(prior.device), shown)
