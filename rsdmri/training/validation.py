"""What stages measure at checkpoints: the same slices and noise each time, measurements only, training untouched."""

from collections.abc import Iterator

import torch
from torch import Tensor

from rsdmri.diffusion.batch import Batch
from rsdmri.runtime import torch_generator
from rsdmri.training.stage import BatchSource

SLICES = 16


def fixed_batches(
    batches: BatchSource, key: tuple[object, ...], batch: int, slices: int = SLICES
) -> Iterator[tuple[Batch, torch.Generator]]:
    """At most ``slices`` in batches of at most ``batch``, and the generator of their noise; the same in every call."""
    size = min(batch, slices)
    for number in range(slices // size):
        own = (*key, f"batch {number}")  # no step number: nothing to prefetch follows
        drawn = batches(size, *own)
        yield drawn, torch_generator(*own, device=drawn.measured.device)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x_i - y_j| - E|x_i - x_j| - E|y_i - y_j| over i /= j, |.| being the root mean square over pixels.

    Unbiased, so around 0 (below it, too) for images ``(n, y, x)`` of equal distributions, and above 0 for others. Pairs
    i = j are left out of all three, so that ``x_i`` and ``y_i`` may share an acquisition.
    Reference: Szekely and Rizzo 2013.

    Errors:
        ValueError: shapes differ, or fewer than two images.
    """
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(f"expected two equally many images of one shape, at least 2, got {x.shape} and {y.shape}")
    a, b = (torch.view_as_real(t).flatten(1).double() if t.is_complex() else t.flatten(1).double() for t in (x, y))
    apart = ~torch.eye(len(a), dtype=torch.bool, device=a.device)
    within = torch.cdist(a, a)[apart].mean() + torch.cdist(b, b)[apart].mean()
    return float((2 * torch.cdist(a, b)[apart].mean() - within) / x[0].numel() ** 0.5)
