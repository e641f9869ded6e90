"""Where training batches come from: acquired k-space of prepared slices, or images measured from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rsdmri.config import Config, CorruptionConfig
from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.remote import name_of
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.diffusion.batch import Batch
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.corruptions import Blur, Corruption, Downsampling, Inpainting
from rsdmri.physics.linop import Identity
from rsdmri.physics.prepare import PreparedSlice
from rsdmri.physics.sense import sense
from rsdmri.priors import BANK_BYTES
from rsdmri.reconstruction.classical import l1_strength, l1_wavelet
from rsdmri.runtime import numpy_generator, torch_generator
from rsdmri.workflows.conditions import drawn_conditions

_BANK = 64  # acquisitions kept with a prior


class Source(Protocol):
    """What a training needs of its data."""

    def __len__(self) -> int:
        """Number of slices."""

    def sigma_data(self) -> float:
        """Standard deviation of the images per real channel."""

    def batches(self, count: int, *key: object) -> Batch:
        """Batch of ``count`` slices determined by ``key``, with fresh further masks, on the device."""

    def bank(self, drop: int) -> Acquisitions:
        """Acquisitions that samples of the prior are conditioned on."""


def open_source(config: Config, slices: TrainingSlices, device: torch.device) -> Source:
    """The source that the objective and the corruption ask for.

    Errors:
        InputError: they need complete k-space, and some slices have not.
    """
    kind, objective = config.corruption.kind, config.objective
    if kind == "fourier" and objective in ("ambient", "fourier-ambient"):
        return KspaceSource(config, slices, device)
    complete = kind != "fourier" or objective == "ambient-tweedie"
    if complete and not all(bool(ref.mask.all()) for ref in slices.slices):
        what = f"corruption.kind {kind}" if kind != "fourier" else f"teacher.objective {objective}"
        cure = "" if kind != "fourier" else ", or teacher.objective=fourier-ambient for undersampled noisy k-space"
        raise InputError(f"{what} needs fully sampled scans; give such scans with --acceleration 1{cure}")
    if kind != "fourier":
        return ImageSource(config, slices, device, CorruptedMagnitude(config, slices))
    return ImageSource(config, slices, device, ImagesOfKspace(config, slices))


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

    def __len__(self) -> int:
        return len(self.slices)

    def sigma_data(self) -> float:
        """Standard deviation of the images per real channel."""
        return self.slices.sigma_data()

    def batches(self, count: int, *key: object) -> Batch:
        """Batch of ``count`` slices determined by ``key``, with fresh further masks, on the device."""
        items = drawn_items(self.config, self.slices, count, *key)
        prepared = [self.slices[item] for item in items]
        mask = torch.stack([p.mask.reshape(-1, p.mask.shape[-1]) for p in prepared])
        ref = self.slices.slices[items[0]]
        drop, acs = self.slices.further_drop(ref), self.slices.acs_of(ref)
        shown = masks.further_mask(mask, drop, acs=acs, generator=torch_generator("further", *key))
        noise = torch.tensor([p.sigma_y / math.sqrt(2) if self._noisy else 0.0 for p in prepared])
        kspace, maps = torch.stack([p.kspace for p in prepared]), torch.stack([p.maps for p in prepared])
        known = drawn_conditions(self.config, self.slices, items, *key)
        return Batch(kspace, maps, mask, shown, noise, known).to(self.device)

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
        return Acquisitions(maps, mask, drop, sigma_y=level, coil_noise=self._noisy)


@dataclass(frozen=True)
class Measured:
    """One measured image: ``image`` (y, x), which pixels of it were measured, and their noise per real number."""

    image: Tensor
    mask: Tensor
    sigma_y: float


class ImagesOfKspace:
    """Images of prepared k-space, taken for what was measured: A^H y, or the L1-wavelet reconstruction.

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
        prepared = self.slices[item]
        noisy = self.config.objective == "ambient-tweedie"
        image = self._image(item, prepared)
        mask = torch.ones(image.shape, dtype=torch.bool)
        return Measured(image, mask, prepared.sigma_y / math.sqrt(2) if noisy else 0.0)

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
        prepared, ref, settings = self.slices[item], self.slices.slices[item], self.config.corruption
        every = torch.ones_like(prepared.mask)
        image = sense(prepared.maps, every).adjoint(prepared.kspace).abs()
        generator = torch_generator("corruption", self.config.seed, name_of(ref.path), ref.index)
        corruption = corruption_of(settings, tuple(image.shape), generator)
        measured = corruption.measure(image, generator)
        mask = torch.ones(measured.shape, dtype=torch.bool)
        if isinstance(corruption.operator, Inpainting) and self.config.objective == "ambient":
            mask = corruption.operator.mask
        return Measured(measured, mask, 0.0 if self.config.objective == "edm" else settings.noise)


def corruption_of(settings: CorruptionConfig, shape: tuple[int, ...], generator: torch.Generator) -> Corruption:
    """The corruption that ``settings`` describe, for images of ``shape`` (y, x); random parts from ``generator``."""
    match settings.kind:
        case "inpainting":
            return Corruption(Inpainting.random(settings.keep, shape, generator), settings.noise)
        case "blur":
            return Corruption(Blur(settings.blur, shape), settings.noise)
        case "super-resolution":
            return Corruption(Downsampling(settings.factor, shape), settings.noise)
        case _:
            return Corruption(Identity(shape), settings.noise)


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

    def prepare(self, advance: Callable[[], None]) -> None:
        """Measure all images once, which finds what is wrong with them; ``advance`` after each."""
        for item in range(len(self)):
            self.measure(item)
            advance()

    def sigma_data(self, most: int = 256) -> float:
        """Standard deviation of the images per real channel, from measured pixels less their noise."""
        count = min(most, len(self))
        powers = []
        for item in [k * len(self) // count for k in range(count)]:
            found = self.measure(item)
            power = float(found.image.abs().square().sum() / found.mask.sum())
            powers.append(power / (1 if self.measure.real else 2) - found.sigma_y**2)
        return max(sum(powers) / count, 1e-8) ** 0.5

    def batches(self, count: int, *key: object) -> Batch:
        """Batch of ``count`` images determined by ``key``, with fresh further masks, on the device."""
        items = drawn_items(self.config, self.slices, count, *key)
        found = [self.measure(item) for item in items]
        mask = shown = torch.stack([m.mask for m in found])
        if self.measure.keep < 1:
            shown = mask & (torch.rand(mask.shape, generator=torch_generator("further", *key)) < self.measure.keep)
        noise = torch.tensor([m.sigma_y for m in found])
        known = drawn_conditions(self.config, self.slices, items, *key)
        return Batch(torch.stack([m.image for m in found]), None, mask, shown, noise, known).to(self.device)

    def bank(self, drop: int) -> Acquisitions:
        """Masks of up to 64 images of the commonest shape."""
        group = self.slices.commonest()
        count = min(len(group), _BANK)
        chosen = sorted(numpy_generator(self.config.seed, "bank").choice(group, count, replace=False).tolist())
        found = [self.measure(item) for item in chosen]
        mask = torch.stack([m.mask for m in found]).to(self.device)
        level = sorted(m.sigma_y for m in found)[len(found) // 2]
        return Acquisitions(None, mask, 0, self.measure.keep, self.measure.real, level)


def drawn_items(config: Config, slices: TrainingSlices, count: int, *key: object) -> list[int]:
    """Slices of the batch of ``key``; worker threads, where there are any, begin with the next one's."""
    items = slices.draw_items(count, *key)
    if config.data.workers and key and isinstance(key[-1], int):
        slices.prefetch(slices.draw_items(count, *key[:-1], key[-1] + 1))
    return items
