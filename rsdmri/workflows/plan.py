"""What a training will do, worked out before it starts: data, acquisition, sizes, memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rsdmri.config import Config
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
        acquisition.mask, acquisition.acceleration, acquisition.center_fraction, acquisition.further_drop, config.seed
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
            chosen,
            mask_law(config),
            data.cache_gb * 1e9,
            disk=disk,
            workers=data.workers,
            ambient=config.trains_on_kspace,
            advance=bar.advance,
        )


_TELLING = {"inpainting": ("keep", "further_keep"), "blur": ("blur",), "super-resolution": ("factor",)}


@dataclass(frozen=True)
class Plan:
    """Lines to print before training, and what they were worked out from."""

    lines: list[str]
    drop: int
    parameters: int
    memory_gb: float


def plan_training(config: Config, slices: TrainingSlices, source: str, processes: int = 1) -> Plan:
    """Work out what training on ``slices`` in ``processes`` will do; nothing is read but shapes and masks."""
    ref = slices.slices[slices.commonest()[0]]
    width, nominal = ref.file.x, config.acquisition.acceleration
    achieved = [masks.achieved_acceleration(r.mask, torch.as_tensor(r.file.absent)) for r in slices.slices]
    scans = len({r.path for r in slices.slices})
    drop = slices.further_drop(ref)
    unet = UNet(channels=config.network.channels, blocks=config.network.blocks, attention=config.network.attention)
    largest = max(slices.buckets, key=lambda shape: shape[1] * shape[2])
    batch = max(config.teacher.batch, config.prior.batch)
    at_once = max(-(-s.batch // (processes * s.accumulate)) for s in (config.teacher, config.prior))
    activations, samples = activation_numbers(unet, largest[1:3]), largest[0] * largest[1] * largest[2]
    memory = 4 * (10 * parameter_count(unet) + 3 * at_once * (activations + 8 * 2 * samples))
    memory += 4 * 4 * (-(-batch // processes) - at_once) * samples  # k-space and maps that wait
    whose = f" in each of {processes} processes" if processes > 1 else ""
    family = "as acquired (prospective)" if ref.file.prospective else config.acquisition.mask
    counts = slices.coverage()[width]
    lines = [
        f"data: {source}: {scans} scans, {len(slices)} slices, matrix {ref.file.y} x {ref.file.x}, "
        f"{ref.file.coils} coils",
        f"acceleration: nominal {nominal:g}, achieved {np.mean(achieved):.2f} (from {min(achieved):.2f} to "
        f"{max(achieved):.2f}); ACS {min(masks.acs_lines(r.mask) for r in slices.slices)} lines; masks: {family}"
        + (f"; the further mask drops {drop}" if config.trains_on_kspace else ""),
        f"coverage: each line acquired in {int(counts.min())} to {int(counts.max())} of {len(slices)} slices; "
        f"{100 * np.mean([float(r.mask.float().mean()) for r in slices.slices]):.1f} % of k-space is ever read",
        "image scale: each slice is divided by the 99th percentile of its whitened ACS image",
        f"objective: {config.objective}; network: {parameter_count(unet):,} parameters, {config.preconditioning} "
        f"preconditioning, about {memory / 1e9:.2f} GB at batch {batch}{whose}",
    ]
    if config.corruption.kind != "fourier":
        kind = config.corruption.kind
        settings = config.corruption.model_dump(include={"noise", *_TELLING.get(kind, ())})
        lines.insert(-1, ", ".join([f"corruption: {kind}", *(f"{key} {value:g}" for key, value in settings.items())]))
    return Plan(lines, drop, parameter_count(unet), memory / 1e9)


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
