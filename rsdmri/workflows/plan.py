"""What a training will do, worked out before it starts: data, acquisition, sizes, memory."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.data.dataset import MaskLaw, TrainingSlices
from rsdmri.data.hdf5 import shown
from rsdmri.data.manifest import read_manifest
from rsdmri.data.remote import Location
from rsdmri.data.slice_cache import SliceCache
from rsdmri.diffusion.backbones import Adapted, build_backbone
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
            chosen, mask_law(config), data.cache_gb * 1e9, disk=disk, workers=data.workers, advance=bar.advance
        )


@dataclass(frozen=True)
class Plan:
    """Lines to print before training, and what they were worked out from."""

    lines: list[str]
    drop: int
    parameters: int
    memory_gb: float


def plan_training(config: Config, slices: TrainingSlices, source: str) -> Plan:
    """Work out what training on ``slices`` will do; nothing is read but shapes and masks."""
    ref = slices.slices[slices.commonest()[0]]
    width, nominal = ref.file.x, config.acquisition.acceleration
    achieved = [masks.achieved_acceleration(r.mask, torch.as_tensor(r.file.absent)) for r in slices.slices]
    scans = len({r.path for r in slices.slices})
    drop = slices.further_drop(ref)
    network = build_backbone(config)
    largest = max(slices.buckets, key=lambda shape: shape[1] * shape[2])
    memory = max(training_bytes(config, network, largest[:3]).values())
    batch = max(config.teacher.batch, config.prior.batch)
    family = "as acquired (prospective)" if ref.file.prospective else config.acquisition.mask
    counts = slices.coverage()[width]
    lines = [
        f"data: {source}: {scans} scans, {len(slices)} slices, matrix {ref.file.y} x {ref.file.x}, "
        f"{ref.file.coils} coils",
        f"acceleration: nominal {nominal:g}, achieved {np.mean(achieved):.2f} (from {min(achieved):.2f} to "
        f"{max(achieved):.2f}); ACS {min(masks.acs_lines(r.mask) for r in slices.slices)} lines; masks: {family}; "
        f"the further mask drops {drop}",
        f"coverage: each line acquired in {int(counts.min())} to {int(counts.max())} of {len(slices)} slices; "
        f"{100 * np.mean([float(r.mask.float().mean()) for r in slices.slices]):.1f} % of k-space is ever read",
        "image scale: each slice is divided by the 99th percentile of its whitened ACS image",
        f"objective: {config.objective}; network: {parameter_count(network):,} parameters, {config.preconditioning} "
        f"preconditioning, about {memory / 1e9:.2f} GB at batch {batch}",
    ]
    return Plan(lines, drop, parameter_count(network), memory / 1e9)


def training_bytes(config: Config, network: UNet | Adapted, shape: tuple[int, int, int]) -> dict[str, float]:
    """Most bytes that each stage holds while it trains ``network`` on slices of ``shape`` (coils, y, x), in float32.

    teacher: weights, their average, gradients and two moments; what one network keeps, and a seventh of it on the way
    back. prior: weights of four networks, an average, gradients and moments of two; what four networks keep, of which
    two are frozen and keep less. Both: 24 arrays as large as the k-space. Within 6 % of what was measured
    for the three presets (benchmarks/backbone.py).
    """
    weights, kept = parameter_count(network), activation_numbers(network, shape[1:])
    samples = 48 * math.prod(shape)
    return {
        "teacher": 4 * (5 * weights + config.teacher.batch * (1.15 * kept + samples)),
        "prior": 4 * (10 * weights + config.prior.batch * (4 * kept + samples)),
    }


def activation_numbers(network: UNet | Adapted, size: tuple[int, ...]) -> int:
    """Numbers that the network keeps for the gradient of one item of ``size`` (y, x).

    Counted in a small image and multiplied by the pixels: every layer's are proportional to them, as attention keeps
    no matrix.
    """
    side = 2 * network.stride
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(torch.zeros(1, network.inputs, side, side), torch.zeros(1))
    found = sum(kept[place].untyped_storage().nbytes() for place in kept.keys() - weights)
    pixels = math.prod(-(-n // network.stride) * network.stride for n in size)
    return found // 4 * pixels // side**2
