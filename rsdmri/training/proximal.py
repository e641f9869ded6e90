"""How good a generator is, by measurements alone: what picks its checkpoint, ends its training and warns early."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rsdmri.diffusion.batch import Batch
from rsdmri.metrics.distribution import frechet_distance, half_samples
from rsdmri.metrics.features import Array
from rsdmri.metrics.magnitude_features import SMALLEST, image_features
from rsdmri.metrics.proximal import measured_again, measured_distances
from rsdmri.metrics.spectrum import PowerSums, log_power_ratio, power_sums
from rsdmri.physics.fourier import fft2c
from rsdmri.runtime import numpy_generator
from rsdmri.training.stage import BatchSource
from rsdmri.training.validation import energy_distance, fixed_batches

LOOKED_AT = 8  # samples whose nearest training slice is sought
HALVES = 50  # half sets whose spread is the standard error

Generate = Callable[[Batch, torch.Generator], Tensor]


class ProximalCheck:
    """Compares samples that are measured again with what was measured, over fixed slices and noise.

    Each sample is generated for the maps and the mask of one slice and measured with the same maps and the further mask
    of another: lines that a generator was not shown count, too. See `rsdmri.metrics.proximal` for what this cannot see.

    Args:
        batches: of the training set.
        seed: of the run.
        batch: images at a time.
        images: number of slices and of samples.
    """

    def __init__(self, batches: BatchSource, seed: int, batch: int, images: int) -> None:
        self._batches, self._key, self._images = batches, (seed, "proximal"), images
        self._batch = min(batch, images)

    @torch.no_grad()
    def __call__(self, generate: Generate) -> dict[str, float]:
        """Measures of a generator; nothing where a sample is not finite or there is one image at a time only.

        ``validation``: Frechet distance in `image_features` of A~^H (A~ x_g + n) to A~^H y, the lower the better.
        Images below 32 pixels: mean energy distance over the batches instead.
        ``validation_error``: its standard error, from half sets or over the batches.
        ``spectrum``: root mean square over spatial frequencies of log10 of the power of samples over the measured one.
        ``nearest``: median over 8 samples of |A_j x_g - y_j| / |y_j| to the nearest training slice j.
        """
        if self._batch < 2:
            return {}
        sums, nearest, generated, measured = _Spectrum(), _Nearest(), list[Tensor](), list[Tensor]()
        for batch, generator in fixed_batches(self._batches, self._key, self._batch, self._images):
            images = generate(batch, generator)
            if not bool(torch.isfinite(torch.view_as_real(images) if images.is_complex() else images).all()):
                return {}
            operator = batch.shown.with_mask(batch.further_mask.roll(1, 0))
            generated.append(measured_again(images, operator, batch.sigma_y, generator))
            measured.append(batch.shown.adjoint(batch.measured))
            sums.add(batch, operator.forward(images))
            nearest.add(batch, images)
        distance, error = _distance(generated, measured)
        found = {"validation": distance, "validation_error": error}
        found |= {"spectrum": sums.found(), "nearest": nearest.found()}
        return {name: value for name, value in found.items() if math.isfinite(value)}


def _distance(generated: list[Tensor], measured: list[Tensor]) -> tuple[float, float]:
    """Distance and standard error."""
    if min(min(images.shape[1:]) for images in measured) < SMALLEST:
        each = [energy_distance(g, m) for g, m in zip(generated, measured, strict=True)]
        return float(np.mean(each)), float(np.std(each, ddof=1) / len(each) ** 0.5) if len(each) > 1 else 0.0
    a, b = _features(generated), _features(measured)
    if len(a) < 4:
        return frechet_distance(a, b), 0.0
    halves = half_samples(len(a), len(b), generator=numpy_generator("proximal error"), repeats=HALVES)
    return frechet_distance(a, b), float(np.std([frechet_distance(a[i], b[j]) for i, j in halves], ddof=1))


def _features(batches: list[Tensor]) -> Array:
    return np.concatenate([image_features(images.abs().float().cpu().numpy()) for images in batches])


class _Spectrum:
    """Sums over the batches that have the size of the first."""

    def __init__(self) -> None:
        self._samples: PowerSums | None = None
        self._measured: PowerSums | None = None

    def add(self, batch: Batch, again: Tensor) -> None:
        """``again``: samples seen through the further masks of the slices that follow."""
        shown = batch.further_mask
        if batch.maps is None:
            every = torch.ones((len(batch), 1, again.shape[-1]), dtype=torch.bool)
            samples = power_sums(fft2c(again.to(torch.complex64))[:, None], every)
            real = batch.shown.adjoint(batch.measured)
            measured = power_sums(fft2c(real.to(torch.complex64))[:, None], every)
        else:
            samples = power_sums(again, shown.roll(1, 0))
            measured = power_sums(batch.measured, shown, batch.sigma_y)
        if self._samples is None or self._measured is None:
            self._samples, self._measured = samples, measured
        elif samples.power.shape == self._samples.power.shape:
            self._samples, self._measured = self._samples + samples, self._measured + measured

    def found(self) -> float:
        if self._samples is None or self._measured is None:
            return math.nan
        ratio = log_power_ratio(self._samples, self._measured)[1]
        known = ratio[np.isfinite(ratio)]
        return float(np.sqrt((known**2).mean())) if len(known) else math.nan


class _Nearest:
    """Distances of the first samples to all slices of their size."""

    def __init__(self) -> None:
        self._images: Tensor | None = None
        self._least: Tensor | None = None

    def add(self, batch: Batch, images: Tensor) -> None:
        if self._images is None:
            self._images = images[:LOOKED_AT]
        if images.shape[1:] != self._images.shape[1:] or not bool(batch.measured.flatten(1).abs().amax(1).gt(0).all()):
            return
        least = measured_distances(self._images, batch.measured, batch.operator).amin(1)
        self._least = least if self._least is None else torch.minimum(self._least, least)

    def found(self) -> float:
        return math.nan if self._least is None else float(self._least.median())
