"""What one training step sees: a batch of measurements, and the noise drawn for it."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rsdmri.diffusion.schedule import lognormal_sigma, unit_noise
from rsdmri.physics.sense import Sampling, Sense, sense


@dataclass(frozen=True)
class Batch:
    """A batch of measurements y = A x + n, in scaled units.

    With coil maps A is the SENSE operator and y k-space; without them A keeps the pixels of the mask (all of them, when
    images are taken as they are) and y are images.

    Attributes:
        measured: y, 0 where nothing was acquired: complex64 ``(batch, coil, y, x)`` with maps, else real or complex
            images ``(batch, y, x)``.
        maps: coil sensitivities, complex64 ``(batch, coil, y, x)``, or None.
        mask: acquired positions M, bool ``(batch, 1 or y, x)``.
        further_mask: positions M~ shown to the denoiser, a subset of ``mask``.
        sigma_y: standard deviation of the noise n in each real number of y, ``(batch,)``; 0 takes y at face value.
        conditions: what is known of the scans, ``(batch, 2)``, see `rsdmri.diffusion.conditions`; None: nothing.
    """

    measured: Tensor
    maps: Tensor | None
    mask: Tensor
    further_mask: Tensor
    sigma_y: Tensor
    conditions: Tensor | None = None

    def __len__(self) -> int:
        return self.measured.shape[0]

    def __getitem__(self, items: slice) -> "Batch":
        return self._each(lambda part: part[items])

    def to(self, device: torch.device) -> "Batch":
        """Copy to ``device``."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """``function`` of every tensor."""
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        return replace(self, **{name: function(part) for name, part in parts if part is not None})

    @property
    def image(self) -> Tensor:
        """Some tensor with the shape and type of the images x, ``(batch, y, x)``."""
        return self.measured if self.maps is None else self.measured[:, 0]

    @property
    def operator(self) -> Sense | Sampling:
        """A, batched."""
        return self._masked(self.mask)

    @property
    def shown(self) -> Sense | Sampling:
        """A~, batched."""
        return self._masked(self.further_mask)

    def _masked(self, mask: Tensor) -> Sense | Sampling:
        return Sampling(mask, tuple(self.measured.shape)) if self.maps is None else sense(self.maps, mask)


@dataclass(frozen=True)
class NoiseDraw:
    """Noise of one training step, drawn for the whole batch.

    Attributes:
        sigma: noise levels, ``(batch,)``.
        noise: standard noise of the shape of images ``(batch, y, x)`` or of measurements ``(batch, coil, y, x)``.
    """

    sigma: Tensor
    noise: Tensor

    def __getitem__(self, items: slice) -> "NoiseDraw":
        return NoiseDraw(self.sigma[items], self.noise[items])


def draw_noise(
    batch: Batch, generator: torch.Generator, mean: float = -1.2, std: float = 1.2, *, measured: bool = False
) -> NoiseDraw:
    """Draw the noise of one training step: s^2 = s_y^2 + s'^2 with ln s' ~ N(mean, std^2).

    The level s' of what is added follows the published law, so that the level of all noise is never below that of the
    measurement. ``measured`` draws noise for measurements instead of images.
    """
    added = lognormal_sigma(len(batch), generator, mean, std, batch.measured.device)
    return NoiseDraw(
        torch.hypot(added, batch.sigma_y), unit_noise(batch.measured if measured else batch.image, generator)
    )


def shown_noise(shown: Sense | Sampling, noise: Tensor) -> Tensor:
    """Noise as a denoiser sees it, ``(batch, y, x)``: A~^H A~ e for noise of images, A~^H M~ n for that of k-space."""
    return shown.normal(noise) if noise.ndim == len(shown.domain_shape) else shown.adjoint(noise)
