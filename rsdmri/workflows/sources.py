"""Where training batches come from: acquired k-space of prepared slices, or images measured from it."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rsdmri.config import Config, CorruptionConfig
from rsdmri.data.dataset import SliceRef, TrainingSlices
from rsdmri.data.remote import name_of
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.objectives import DEEPEST
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.classical import l1_strength, l1_wavelet
from rsdmri.physics.corruptions import Corruption, Inpainting
from rsdmri.physics.prepare import PreparedSlice
from rsdmri.physics.sense import sense
from rsdmri.physics.strips import readout_strips
from rsdmri.priors import BANK_BYTES
from rsdmri.progress import progress
from rsdmri.runtime import numpy_generator, torch_generator
from rsdmri.training.degraded import degradation
from rsdmri.workflows.conditions import drawn_conditions

_BANK = 64  # acquisitions kept with a prior


class Source(Protocol):
    """What a training needs of its data.

    Attributes:
        slices: that batches are made from.
    """

    slices: TrainingSlices

    def __len__(self) -> int:
        """Number of slices."""

    def prepare(self, advance: Callable[[], None], share: slice = slice(None)) -> None:
        """Do once, for the slices of ``share``, what all steps share; ``advance`` after each."""

    def sigma_data(self) -> float:
        """Standard deviation of the images per real channel."""

    def batches(self, count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
        """Batch of ``count`` slices determined by ``key``, with fresh further masks, on the device.

        With ``positions``, only those of its items, as they are in the whole batch; no others are prepared.
        """

    def bank(self, drop: int) -> Acquisitions:
        """Acquisitions that samples of the prior are conditioned on."""


def check_objective(config: Config) -> None:
    """Raise `InputError` where settings contradict the objective."""
    kind, objective, noise = config.corruption.kind, config.objective, config.corruption.noise
    if _needs_complete(config) and config.acquisition.acceleration > 1:
        raise _incomplete(config, f"acquisition.acceleration is {config.acquisition.acceleration:g}")
    if kind == "fourier" and noise > 0:
        raise InputError("corruption.noise acts on images; set simulate.noise, or another corruption.kind")
    if kind != "fourier" and objective == "ambient-tweedie" and noise == 0:
        raise InputError("teacher.objective ambient-tweedie needs corruption.noise above 0; set it, or use edm")
    if config.teacher.images != "adjoint" and (kind != "fourier" or objective != "edm"):
        raise InputError(f"teacher.images {config.teacher.images} is for teacher.objective edm on k-space; set that")
    if config.teacher.consistency > 0 and not _knows_noise(config):
        raise InputError(
            f"teacher.consistency needs measurements with known noise, which {objective} does not know here; use "
            "teacher.objective fourier-ambient or ambient-tweedie, set corruption.noise, or leave it at 0"
        )
    if config.data.strip and not config.trains_on_kspace:
        raise InputError(f"data.strip is for training on k-space, which {objective} on {kind} does not; leave it at 0")
    if config.data.strip and config.teacher.equivariance > 0:
        raise InputError("data.strip: the motions of teacher.equivariance leave a strip; leave one of them at 0")


def open_source(config: Config, slices: TrainingSlices, device: torch.device) -> Source:
    """The source that the objective and the corruption ask for.

    Errors:
        InputError: they need complete k-space, and some slices have not.
    """
    if config.trains_on_kspace:
        return KspaceSource(config, slices, device)
    if config.corruption.kind == "fourier":
        whole = all(bool(ref.mask.all()) for ref in slices.slices)
    else:  # k-space that was never measured is no part of the image
        whole = all(bool((ref.mask | torch.as_tensor(ref.file.absent)).all()) for ref in slices.slices)
    if _needs_complete(config) and not whole:
        raise _incomplete(config, "some scans have lines that were not acquired")
    measure = ImagesOfKspace if config.corruption.kind == "fourier" else CorruptedMagnitude
    return ImageSource(config, slices, device, measure(config, slices))


def _needs_complete(config: Config) -> bool:
    return config.corruption.kind != "fourier" or config.objective == "ambient-tweedie"


def _incomplete(config: Config, found: str) -> InputError:
    kind, objective = config.corruption.kind, config.objective
    what = f"corruption.kind {kind}" if kind != "fourier" else f"teacher.objective {objective}"
    cure = "" if kind != "fourier" else ", or teacher.objective=fourier-ambient for undersampled noisy k-space"
    return InputError(f"{what} needs fully sampled scans, but {found}; give such scans with --acceleration 1{cure}")


def _knows_noise(config: Config) -> bool:
    if config.corruption.kind == "fourier":
        return config.objective in ("fourier-ambient", "ambient-tweedie")
    return config.objective != "edm" and config.corruption.noise > 0


class KspaceSource:
    """Batches of multicoil k-space with fresh further masks.

    Args:
        config: settings.
        slices: prepared training data.
        device: where batches go.
    """

    def __init__(self, config: Config, slices: TrainingSlices, device: torch.device):
        self.config, self.slices, self.device = config, slices, device
        self._noisy = config.objective == "fourier-ambient"
        self._held_out = 0.0
        if config.data.strip and any(len(ref.mask) > 1 for ref in slices.slices):
            raise InputError("data.strip: some scans have masks of points, and rows are only apart in whole lines")

    def for_posterior(self) -> "KspaceSource":
        """The same slices for `held_out_score`: with their noise, whatever the teacher's objective takes them for.

        Further masks drop up to ``posterior.held_out`` of the lines outside the centre, each a number of its own.
        """
        other = copy.copy(self)
        other._noisy, other._held_out = True, self.config.posterior.held_out
        return other

    def __len__(self) -> int:
        return len(self.slices)

    def prepare(self, advance: Callable[[], None], share: slice = slice(None)) -> None:
        """Prepare the slices."""
        self.slices.prepare(advance, share)

    def sigma_data(self) -> float:
        """Standard deviation of the images per real channel."""
        return self.slices.sigma_data()

    def batches(self, count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
        """Batch of ``count`` slices determined by ``key``; see `Source.batches`."""
        own = list(range(count) if positions is None else positions)
        items = drawn_items(self.config, self.slices, count, own, *key)
        refs = [self.slices.slices[item] for item in items]
        mask = torch.stack([ref.mask for ref in refs])
        shown = self._further(mask, refs[0], torch_generator("further", *key))
        mask, shown = mask[own], shown[own]
        prepared = [self.slices[items[position]] for position in own]
        noise = torch.tensor([p.sigma_y / math.sqrt(2) if self._noisy else 0.0 for p in prepared])
        kspace, maps = torch.stack([p.kspace for p in prepared]), torch.stack([p.maps for p in prepared])
        rows = self.config.data.strip
        if 0 < rows < kspace.shape[-2]:
            starts = torch.randint(kspace.shape[-2] - rows + 1, (count,), generator=torch_generator("strip", *key))
            kspace, maps = readout_strips(kspace, maps, starts[own], rows)
        known = drawn_conditions(self.config, self.slices, items, *key)
        known = None if known is None else known[own]
        return Batch(kspace, maps, mask, shown, noise, known).to(self.device)

    def _further(self, mask: Tensor, ref: SliceRef, generator: torch.Generator) -> Tensor:
        """Further masks of ``mask`` ``(batch, 1 or y, x)``; ``ref`` is one of its slices."""
        drop, acs = self.slices.further_drop(ref), self.slices.acs_of(ref)
        if self._held_out == 0:
            return masks.further_mask(mask, drop, acs=acs, generator=generator)
        centre = masks.further_mask(mask, mask[0].numel(), acs=acs, generator=None)
        most = (mask.sum((1, 2)) - centre.sum((1, 2))) * self._held_out
        drops = (torch.rand(len(mask), generator=generator) * most).ceil().clamp_min(1).long()
        return masks.further_mask(mask, drops, acs=acs, generator=generator)

    def bank(self, drop: int) -> Acquisitions:
        """Acquisitions of up to 64 slices of the commonest shape, within 48 MB."""
        group = self.slices.commonest()
        size = 8 * self.slices[group[0]].maps.numel()
        count = max(1, min(len(group), _BANK, int(BANK_BYTES // size)))
        chosen = sorted(numpy_generator(self.config.seed, "bank").choice(group, count, replace=False).tolist())
        prepared = [self.slices[item] for item in chosen]
        mask = torch.stack([p.mask.reshape(-1, p.mask.shape[-1]) for p in prepared]).to(self.device)
        maps = torch.stack([p.maps for p in prepared]).to(self.device)
        level = sorted(p.sigma_y for p in prepared)[len(prepared) // 2] / math.sqrt(2) if self._noisy else 0.0
        level *= taught_below(self.config)
        return Acquisitions(maps, mask, drop, sigma_y=level, coil_noise=self._noisy)


@dataclass(frozen=True)
class Measured:
    """One measured image: ``image`` (y, x), which pixels of it were measured, and their noise per real number."""

    image: Tensor
    mask: Tensor
    sigma_y: float


class ImagesOfKspace:
    """Images of prepared k-space, taken for what was measured: A^H y, or the L1-wavelet reconstruction.

    Where no coil sees anything A^H y is 0, without noise. Where noise is part of the objective, noise from a stored
    seed makes it white there too.

    Args:
        config: settings.
        slices: prepared training data.
    """

    real, keep = False, 1.0

    def __init__(self, config: Config, slices: TrainingSlices):
        self.config, self.slices = config, slices
        self._known: dict[int, Tensor] = {}

    def __call__(self, item: int) -> Measured:
        """Image of slice ``item``."""
        prepared, ref = self.slices[item], self.slices.slices[item]
        image, level = self._image(item, prepared), prepared.sigma_y / math.sqrt(2)
        mask = torch.ones(image.shape, dtype=torch.bool)
        if self.config.objective != "ambient-tweedie":
            return Measured(image, mask, 0.0)
        generator = torch_generator("background", self.config.seed, name_of(ref.path), ref.index)
        noise = level * unit_noise(image, generator)
        return Measured(torch.where((prepared.maps != 0).any(dim=0), image, noise), mask, level)

    def _image(self, item: int, prepared: PreparedSlice) -> Tensor:
        operator = sense(prepared.maps[None], prepared.mask.reshape(1, -1, prepared.mask.shape[-1]))
        if self.config.teacher.images == "adjoint":
            return operator.adjoint(prepared.kspace[None])[0]
        if item not in self._known:
            strength = l1_strength(torch.tensor([prepared.sigma_y]))
            generator = torch_generator("l1-wavelet", item)
            found = l1_wavelet(operator, prepared.kspace[None], strength=strength, generator=generator)
            self._known[item] = found[0]
        return self._known[item]


class CorruptedMagnitude:
    """Magnitude images corrupted once and for all: the mask and the noise of a slice come from a stored seed.

    Args:
        config: settings.
        slices: prepared, fully sampled training data.
    """

    real = True

    def __init__(self, config: Config, slices: TrainingSlices):
        self.config, self.slices = config, slices
        settings = config.corruption
        self.keep = settings.further_keep if settings.kind == "inpainting" and config.objective == "ambient" else 1.0

    def __call__(self, item: int) -> Measured:
        """Corrupted magnitude of slice ``item``."""
        ref, settings, image = self.slices.slices[item], self.config.corruption, self.clean(item)
        generator = torch_generator("corruption", self.config.seed, name_of(ref.path), ref.index)
        corruption = corruption_of(settings, tuple(image.shape), generator)
        measured = corruption.measure(image, generator)
        mask = torch.ones(measured.shape, dtype=torch.bool)
        if isinstance(corruption.operator, Inpainting) and self.config.objective == "ambient":
            mask = corruption.operator.mask
        return Measured(measured, mask, 0.0 if self.config.objective == "edm" else settings.noise)

    def clean(self, item: int) -> Tensor:
        """Magnitude (y, x) of slice ``item`` before its corruption."""
        prepared = self.slices[item]
        return sense(prepared.maps, torch.ones_like(prepared.mask)).adjoint(prepared.kspace).abs()


def corruption_of(settings: CorruptionConfig, shape: tuple[int, ...], generator: torch.Generator) -> Corruption:
    """The corruption that ``settings`` describe, for images of ``shape`` (y, x); random parts from ``generator``."""
    if settings.kind == "inpainting":
        return Corruption(Inpainting.random(settings.keep, shape, generator), settings.noise)
    return Corruption(degradation(settings, shape), settings.noise)


class ImageSource:
    """Batches of measured images.

    Args:
        config: settings.
        slices: prepared training data.
        device: where batches go.
        measure: gives the measured image of a slice.
    """

    def __init__(
        self,
        config: Config,
        slices: TrainingSlices,
        device: torch.device,
        measure: "ImagesOfKspace | CorruptedMagnitude",
    ):
        self.config, self.slices, self.device, self.measure = config, slices, device, measure

    def __len__(self) -> int:
        return len(self.slices)

    def prepare(self, advance: Callable[[], None], share: slice = slice(None)) -> None:
        """Prepare the slices, then measure those that are kept, and one of each size: finds what does not fit."""
        self.slices.prepare(advance, share)
        if self.config.teacher.images == "adjoint":
            for group in list(self.slices.buckets.values())[share]:
                self.measure(group[0])
            return
        own = range(len(self))[share]
        with progress("L1-wavelet reconstructions", total=len(own)) as bar:
            for item in own:
                self.measure(item)
                bar.advance()

    def sigma_data(self, most: int = 256) -> float:
        """Standard deviation of the images per real channel, from measured pixels less their noise."""
        count = min(most, len(self))
        powers = []
        for item in [k * len(self) // count for k in range(count)]:
            found = self.measure(item)
            power = float(found.image.abs().square().sum() / found.mask.sum())
            powers.append(power / (1 if self.measure.real else 2) - found.sigma_y**2)
        return max(sum(powers) / count, 1e-8) ** 0.5

    def batches(self, count: int, *key: object, positions: Sequence[int] | None = None) -> Batch:
        """Batch of ``count`` images determined by ``key``; see `Source.batches`."""
        own = list(range(count) if positions is None else positions)
        items = drawn_items(self.config, self.slices, count, own, *key)
        found = [self.measure(items[position]) for position in own]
        mask = shown = torch.stack([m.mask for m in found])
        if self.measure.keep < 1:
            every = torch.rand((count, *mask.shape[1:]), generator=torch_generator("further", *key))
            shown = mask & (every[own] < self.measure.keep)
        noise = torch.tensor([m.sigma_y for m in found])
        known = drawn_conditions(self.config, self.slices, items, *key)
        known = None if known is None else known[own]
        return Batch(torch.stack([m.image for m in found]), None, mask, shown, noise, known).to(self.device)

    def bank(self, drop: int) -> Acquisitions:
        """Masks of up to 64 images of the commonest shape."""
        group = self.slices.commonest()
        count = min(len(group), _BANK)
        chosen = sorted(numpy_generator(self.config.seed, "bank").choice(group, count, replace=False).tolist())
        found = [self.measure(item) for item in chosen]
        mask = torch.stack([m.mask for m in found]).to(self.device)
        level = sorted(m.sigma_y for m in found)[len(found) // 2] * taught_below(self.config)
        factor = self.config.corruption.factor if self.config.corruption.kind == "super-resolution" else 1
        return Acquisitions(None, mask, 0, self.measure.keep, self.measure.real, level, factor=factor)


def taught_below(config: Config) -> float:
    """Share of the measurement noise down to which the denoiser is taught."""
    return DEEPEST if config.teacher.consistency > 0 else 1.0


def drawn_items(
    config: Config, slices: TrainingSlices, count: int, positions: Sequence[int], *key: object
) -> list[int]:
    """Slices of the batch of ``key``; worker threads, if any, begin with those at ``positions`` of the next one."""
    items = slices.draw_items(count, *key)
    if config.data.workers and key and isinstance(key[-1], int):
        following = slices.draw_items(count, *key[:-1], key[-1] + 1)
        slices.prefetch([following[position] for position in positions])
    return items
