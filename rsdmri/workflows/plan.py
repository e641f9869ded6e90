"""What a training will do, worked out before it starts: data, acquisition, sizes, memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rsdmri.config import Config
from rsdmri.data.coverage import Coverage, listed
from rsdmri.data.dataset import MaskLaw, Shape, TrainingSlices
from rsdmri.data.hdf5 import shown
from rsdmri.data.manifest import read_manifest
from rsdmri.data.remote import Location
from rsdmri.data.slice_cache import SliceCache
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.priors import runs_in_bfloat16
from rsdmri.progress import progress
from rsdmri.runtime import free_memory
from rsdmri.training.shards import Shards
from rsdmri.workflows.cost import Memory, Operations, SliceSize, StageName, memory, network_cost, operations
from rsdmri.workflows.throughput import TYPICAL_SHARE, matrix_peak, trial_step

STAGES: tuple[StageName, ...] = ("teacher", "prior", "posterior")
_CHEAP = 2.0  # seconds of a step that a dry run takes for real


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
    """Lines to print before training, and what they were worked out from.

    Attributes:
        lines: for the user.
        drop: lines that the further mask drops.
        parameters: of the network.
        size: of the commonest slices.
        operations: of a step per image, by stage.
        memory: of the largest slices, by stage.
        fits: free memory holds the batches.
    """

    lines: list[str]
    coverage: list[Coverage]
    drop: int
    parameters: int
    size: SliceSize
    operations: dict[str, Operations]
    memory: dict[str, Memory]
    fits: bool


def plan_training(
    config: Config, slices: TrainingSlices, source: str, device: torch.device, processes: int = 1
) -> Plan:
    """Work out what training on ``slices`` in ``processes`` will do; nothing is read but shapes and masks."""
    ref = slices.slices[slices.commonest()[0]]
    nominal = config.acquisition.acceleration
    achieved = [masks.achieved_acceleration(r.mask, torch.as_tensor(r.file.absent)) for r in slices.slices]
    scans = len({r.path for r in slices.slices})
    drop = slices.further_drop(ref)
    family = "as acquired (prospective)" if ref.file.prospective else config.acquisition.mask
    coverage = slices.coverage()
    kinds = sorted(slices.buckets, key=lambda kind: kind[0] * kind[1] * kind[2])
    common = next(kind for kind, items in slices.buckets.items() if items is slices.commonest())
    size, largest = _slice_size(config, common), _slice_size(config, kinds[-1])
    cost = network_cost(config, size)
    spent: dict[str, Operations] = {stage: operations(config, stage, size, cost) for stage in STAGES}
    needed = _memory(config, largest, device)
    room = _room(config, slices, kinds[-1], device)
    lines = [
        f"data: {source}: {scans} scans, {len(slices)} slices, matrix {ref.file.y} x {ref.file.x}, "
        f"{ref.file.coils} coils",
        f"acceleration: nominal {nominal:g}, achieved {np.mean(achieved):.2f} (from {min(achieved):.2f} to "
        f"{max(achieved):.2f}); ACS {min(masks.acs_lines(r.mask) for r in slices.slices)} lines; masks: {family}"
        + (f"; the further mask drops {drop}" if config.trains_on_kspace else ""),
        *(line for part in coverage for line in part.table()),
        f"read: {100 * np.mean([float(r.mask.float().mean()) for r in slices.slices]):.1f} % of k-space, nothing else",
        "image scale: each slice is divided by the 99th percentile of its whitened ACS image",
        f"objective: {config.objective}; network: {cost.parameters:,} parameters, {config.preconditioning} "
        "preconditioning",
        *(_stage_line(config, stage, spent[stage], needed[stage], room, processes) for stage in _trained(config)),
    ]
    if config.corruption.kind != "fourier":
        kind = config.corruption.kind
        settings = config.corruption.model_dump(include={"noise", *_TELLING.get(kind, ())})
        lines.append(", ".join([f"corruption: {kind}", *(f"{key} {value:g}" for key, value in settings.items())]))
    lacking = [s for s in _trained(config) if room is not None and _held(config, s, needed[s], processes) > room]
    lines += [_cure(config, stage, needed[stage], room or 0.0, processes) for stage in lacking]
    return Plan(lines, coverage, drop, cost.parameters, size, spent, needed, not lacking)


def check_coverage(config: Config, coverage: list[Coverage]) -> list[str]:
    """What there is to say of lines that the masks cannot teach.

    Errors:
        InputError: there are such lines, and neither ``teacher.equivariance`` nor ``data.allow_gaps``.
    """
    if not config.trains_on_kspace:
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


def time_line(config: Config, plan: Plan, device: torch.device) -> str:
    """How long a step and the stages will take: from a timed step where that is cheap, else from the matrix peak."""
    dtype = torch.bfloat16 if runs_in_bfloat16(config, device) else torch.float32
    shards = Shards(config.workers, device)
    work = {stage: _batch(config, stage) * plan.operations[stage].total for stage in STAGES}
    seconds, basis = work["teacher"] / (TYPICAL_SHARE * matrix_peak(device, dtype)), "estimated"
    if seconds < _CHEAP and plan.fits:
        seconds, basis = trial_step(config, plan.size, device, shards), "measured on noise"
    each = {stage: seconds * work[stage] / work["teacher"] for stage in _trained(config)}
    steps = {stage: config.steps or int(getattr(config, stage).steps) for stage in each}
    parts = [f"{s} {each[s]:.2g} s a step, {_duration(each[s] * steps[s])} in all" for s in each]
    return f"time, {basis}: {'; '.join(parts)}"


def _trained(config: Config) -> tuple[StageName, ...]:
    both: tuple[StageName, ...] = ("teacher", "prior") if config.prior.distils else ("prior",)
    return (*both, "posterior") if config.trains_posterior else both


def _batch(config: Config, stage: StageName) -> int:
    return int(getattr(config, stage).batch)


def _slice_size(config: Config, kind: Shape) -> SliceSize:
    coils, height, width, rows, _ = kind
    height = min(height, config.data.strip or height)
    return SliceSize(coils if config.trains_on_kspace else 0, height, width, lines=rows == 1)


def _memory(config: Config, size: SliceSize, device: torch.device) -> dict[str, Memory]:
    cost, shares = network_cost(config, size), Shards(config.workers, device).workers
    half = runs_in_bfloat16(config, device)
    return {stage: memory(config, stage, size, cost, shares=shares, half=half) for stage in STAGES}


def _room(config: Config, slices: TrainingSlices, kind: Shape, device: torch.device) -> float | None:
    """Nine tenths of the memory that is free, less the slices that will be kept in it."""
    free = free_memory(device)
    if free is None:
        return None
    on_host = device.type == "cpu"
    kept = min(config.data.cache_gb * 1e9, len(slices) * 16 * kind[0] * kind[1] * kind[2]) if on_host else 0
    return max(0.0, 0.9 * free - kept)


def _held(config: Config, stage: StageName, needed: Memory, processes: int) -> float:
    """Bytes that one process holds in a step."""
    settings = getattr(config, stage)
    return needed.of(-(-settings.batch // processes), settings.accumulate)


def _stage_line(
    config: Config, stage: StageName, spent: Operations, needed: Memory, room: float | None, processes: int
) -> str:
    batch, held = _batch(config, stage), _held(config, stage, needed, processes)
    whose = f" in each of {processes} processes" if processes > 1 else ""
    fitting = "" if room is None else f"; {room / 1e9:.1f} GB are free, enough for {needed.largest_batch(room)} at once"
    return (
        f"{stage}: {spent.total / 1e9:.2f} GFLOP an image ({100 * spent.physics / spent.total:.0f} % of it the "
        f"acquisition operator), about {held / 1e9:.2f} GB at batch {batch}{whose}{fitting}"
    )


def _cure(config: Config, stage: StageName, needed: Memory, room: float, processes: int) -> str:
    most, batch = needed.largest_batch(room), _batch(config, stage)
    parts = -(-batch // (processes * most)) if most else 0
    cure = f"--set {stage}.accumulate={parts}, --set {stage}.batch={most * processes}, or " if most else ""
    return (
        f"warning: {stage}: batch {batch} needs about {_held(config, stage, needed, processes) / 1e9:.1f} GB "
        f"and {room / 1e9:.1f} GB are free; use {cure}a smaller network (network.preset, network.channels)"
    )


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds // 60) % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {int(seconds) % 60:02d} s"
