"""What a training will do, worked out before it starts: data, acquisition, sizes, memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rsdmri.config import Config
from rsdmri.data.coverage import Coverage, listed
from rsdmri.data.dataset import MaskLaw, TrainingSlices
from rsdmri.data.hdf5 import shown
from rsdmri.data.manifest import read_manifest
from rsdmri.data.remote import Location
from rsdmri.data.slice_cache import SliceCache
from rsdmri.diffusion.unet import UNet, parameter_count
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.progress import progress


def mask_law(config: Config) -> MaskLaw:
    """Mask law of a configuration."""
    acquisition = config.acquisition
    return MaskLaw(
        acquisition.mask,
        acquisition.acceleration,
        acquisition.center_fraction,
        acquisition.further_drop,
        config.seed,
        shared=acquisition.shared_mask,
        gaps=config.teacher.equivariance > 0 or config.data.allow_gaps,
    )


def open_slices(config: Config, source: Location) -> TrainingSlices:
    """Training slices of ``source`` (manifest or folder, path or URI) under the configuration's mask law."""
    chosen = [entry for entry in read_manifest(source) if entry.split == config.data.split]
    if not chosen:
        raise InputError(
            f"{shown(source)}: no scan has split {config.data.split!r}; correct the manifest or --set data.split"
        )
    data = config.data
    disk = SliceCache(Path(data.cache_dir).expanduser(), data.cache_dir_gb * 1e9) if data.cache_dir else None
    with progress("Opening scans", total=len(chosen)) as bar:
        return TrainingSlices(
            chosen, mask_law(config), data.cache_gb * 1e9, disk=disk, workers=data.workers, advance=bar.advance
        )


@dataclass(frozen=True)
class Plan:
    """Lines to print before training, and what they were worked out from."""

    lines: list[str]
    coverage: list[Coverage]
    drop: int
    parameters: int
    memory_gb: float


def plan_training(config: Config, slices: TrainingSlices, source: str) -> Plan:
    """Work out what training on ``slices`` will do; nothing is read but shapes and masks."""
    ref = slices.slices[slices.commonest()[0]]
    nominal = config.acquisition.acceleration
    achieved = [masks.achieved_acceleration(r.mask, torch.as_tensor(r.file.absent)) for r in slices.slices]
    scans = len({r.path for r in slices.slices})
    drop = slices.further_drop(ref)
    unet = UNet(channels=config.network.channels, blocks=config.network.blocks, attention=config.network.attention)
    largest = max(slices.buckets, key=lambda shape: shape[1] * shape[2])
    batch = max(config.teacher.batch, config.prior.batch)
    activations = activation_numbers(unet, largest[1:3])
    memory = 4 * (10 * parameter_count(unet) + 3 * batch * (activations + 8 * 2 * largest[0] * largest[1] * largest[2]))
    family = "as acquired (prospective)" if ref.file.prospective else config.acquisition.mask
    coverage = slices.coverage()
    lines = [
        f"data: {source}: {scans} scans, {len(slices)} slices, matrix {ref.file.y} x {ref.file.x}, "
        f"{ref.file.coils} coils",
        f"acceleration: nominal {nominal:g}, achieved {np.mean(achieved):.2f} (from {min(achieved):.2f} to "
        f"{max(achieved):.2f}); ACS {min(masks.acs_lines(r.mask) for r in slices.slices)} lines; masks: {family}; "
        f"the further mask drops {drop}",
        *(line for part in coverage for line in part.table()),
        f"{100 * np.mean([float(r.mask.float().mean()) for r in slices.slices]):.1f} % of k-space is ever read",
        "image scale: each slice is divided by the 99th percentile of its whitened ACS image",
        f"objective: {config.objective}; network: {parameter_count(unet):,} parameters, {config.preconditioning} "
        f"preconditioning, about {memory / 1e9:.2f} GB at batch {batch}",
    ]
    return Plan(lines, coverage, drop, parameter_count(unet), memory / 1e9)


def check_coverage(config: Config, coverage: list[Coverage]) -> list[str]:
    """What there is to say of lines that the masks cannot teach.

    Errors:
        InputError: there are such lines, and neither ``teacher.equivariance`` nor ``data.allow_gaps``.
    """
    if config.corruption.kind != "fourier" or config.objective not in ("ambient", "fourier-ambient"):
        return []  # images are taken as they are
    lines = []
    for part in coverage:
        gap = part.gap()
        if gap is None:
            if bool(part.never.any()):
                lines.append(f"{int(part.never.sum())} {part.unit} are in none of these masks by chance; add scans")
            continue
        positions = torch.as_tensor(gap.positions)
        named = listed(positions) if part.unit == "lines" else str(int(positions.sum()))
        found = f"{part.unit} {named} of {part.masks[0].numel()} {gap.reason}"
        if config.teacher.equivariance > 0:
            lines.append(f"{found}; the equivariant term alone teaches what they hold")
        elif config.data.allow_gaps:
            lines.append(f"warning: {found}; data.allow_gaps=true trains all the same, what they hold is undetermined")
        else:
            raise InputError(f"{found}; {gap.cure}, or train with --equivariance")
    return lines


def activation_numbers(network: nn.Module, size: tuple[int, ...]) -> int:
    """Numbers that one item of ``size`` (y, x) leaves in the outputs of the network's layers."""
    total = 0

    def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        total += output[0].numel()

    handles = [m.register_forward_hook(count) for m in network.modules() if not list(m.children())]
    probe = network.to("meta")
    try:
        probe(torch.empty(1, 3, *size, device="meta"), torch.empty(1, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return total
