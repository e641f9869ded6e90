"""Dropout whose masks belong to the items of a step: no global generator, nothing to store, the same in any share.

with item_seeds(seeds[share]):
    loss = network(batch[share], ...)
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rsdmri.runtime import torch_generator

_thread = threading.local()


@contextmanager
def item_seeds(seeds: Sequence[int]) -> Iterator[None]:
    """In the body, on this thread, item ``k`` of every batch that passes a `Dropout` has the masks of ``seeds[k]``."""
    before = getattr(_thread, "seeds", None)
    _thread.seeds = seeds
    try:
        yield
    finally:
        _thread.seeds = before


class Dropout(nn.Module):
    """x m / (1 - p) in training, m Bernoulli(1 - p) from (seed of the item, number of the layer); else the identity.

    Args:
        share: probability p that a number is set to 0, in [0, 1).
        number: of the layer, so that layers differ.

    Reference: Srivastava et al. 2014.
    """

    def __init__(self, share: float, number: int = 0):
        super().__init__()
        self.share, self.number = share, number

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (batch, ...) with masks of its own for each item.

        Errors:
            ValueError: in training, outside `item_seeds` or with another number of seeds than items.
        """
        if not self.training or self.share == 0:
            return x
        seeds: Sequence[int] | None = getattr(_thread, "seeds", None)
        if seeds is None or len(seeds) != len(x):
            found = "none" if seeds is None else len(seeds)
            raise ValueError(f"dropout: expected {len(x)} seeds, one an item, got {found}; see `item_seeds`")
        kept = torch.stack([self._draw(seed, x) for seed in seeds]) >= self.share
        return torch.where(kept, x / (1 - self.share), 0)

    def _draw(self, seed: int, x: Tensor) -> Tensor:
        generator = torch_generator("dropout", seed, self.number, device=x.device)
        return torch.rand(x.shape[1:], generator=generator, device=x.device)
