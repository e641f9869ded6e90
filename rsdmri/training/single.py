"""A stage that trains one network on a loss of its own, one optimiser step at a time."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from rsdmri.config import Config, PosteriorConfig, TeacherConfig
from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.dropout import item_seeds
from rsdmri.runtime import torch_generator
from rsdmri.training.ema import Averages
from rsdmri.training.shards import Shards
from rsdmri.training.stage import (
    BatchSource,
    Metrics,
    adam,
    apply_gradients,
    dropout_seeds,
    gradient_norm,
    learning_rate,
    load,
    load_moments,
    merge,
    moments,
    prefixed,
    step_key,
)
from rsdmri.training.validation import fixed_batches

Network = TypeVar("Network", bound=nn.Module)


Draws = Sequence[Any]  # what is random of each item, items on the first axis, or None


class SingleStage(ABC, Generic[Network]):
    """One network, its averages and its optimiser; what is drawn and what is lost is the subclasses'.

    Args:
        config: settings.
        settings: those of the stage.
        network: to train, on its device.
        batches: gives the batch of a key.
        shards: runs shares of a batch.
        held_out: gives the batches that `validate` looks at.
        tracked: keep the averages that snapshots are made of.
    """

    name: str

    def __init__(
        self,
        config: Config,
        settings: TeacherConfig | PosteriorConfig,
        network: Network,
        batches: BatchSource,
        shards: Shards,
        held_out: BatchSource | None = None,
        *,
        tracked: bool = False,
    ):
        self.config, self._training = config, settings
        self.batch = settings.batch
        shards.processes.check_batch(self.name, self.batch)
        self.anew: Callable[[int], int] = lambda index: 0
        self.network, self.batches, self.shards, self.held_out = network.train(), batches, shards, held_out
        self.averages = Averages(network, settings.average, self.batch, settings.ema_images, tracked=tracked)
        self.average = self.averages.result
        self.parameters: list[Tensor] = list(network.parameters())
        self.optimiser = adam(self.parameters, settings.learning_rate)

    @abstractmethod
    def _noise(self, batch: Batch, generator: torch.Generator) -> Draws:
        """All that is random in a step, for the whole batch."""

    @abstractmethod
    def _losses(self, network: Network, batch: Batch, draws: Draws) -> tuple[Tensor, ...]:
        """The loss of each item ``(batch,)``, then its `_terms`."""

    def _terms(self) -> list[str]:
        """Names of what `_losses` returns after the loss."""
        return []

    def key(self, index: int) -> tuple[object, ...]:
        """Key of everything random in step ``index``."""
        return step_key(self.config.seed, self.name, index, self.anew(index))

    def step(self, index: int, progress: float) -> Metrics:
        """Take optimiser step ``index``."""
        settings, processes = self._training, self.shards.processes
        with processes.together():
            loss, count = self._drawn(index, processes.share)
            gradients, values = self.shards.gradients(
                loss, self.parameters, count, of=self.batch, rounds=settings.accumulate
            )
        total, *parts = merge(processes, gradients, values, self.batch)
        rate = learning_rate(settings.learning_rate, index, progress, settings.warmup, settings.decay_from)
        norm = apply_gradients(self.optimiser, self.parameters, gradients, rate, settings.clip)
        self.averages.update(self.network, index + 1)
        return {"loss": total, **dict(zip(self._terms(), parts, strict=True)), "gradient": norm, "rate": rate}

    def item_norms(self, index: int) -> list[float]:
        """Gradient norm of each slice that step ``index`` draws, alone; inf where its loss is not finite."""
        processes, norms = self.shards.processes, [0.0] * self.batch
        with processes.together():
            loss, count = self._drawn(index, processes.share)
            norms[processes.share] = [gradient_norm(loss(slice(k, k + 1))[0], self.parameters) for k in range(count)]
        return processes.largest(*norms)

    @torch.no_grad()
    def validate(self) -> Metrics:
        """Mean loss of the averaged weights on fixed slices and noise; empty without slices, or if it is no number."""
        if self.held_out is None:
            return {}
        losses = []
        for batch, generator in fixed_batches(self.held_out, (self.config.seed, "validation"), self.batch):
            losses.append(self._losses(self.average, batch, self._noise(batch, generator))[0])
        found = float(torch.cat(losses).mean())
        return {"validation": found} if math.isfinite(found) else {}

    def _drawn(self, index: int, share: slice) -> tuple[Callable[[slice], tuple[Tensor, ...]], int]:
        """Losses of a part of the items ``share`` of the batch of step ``index``, and how many items these are."""
        key, count = self.key(index), self.batch
        batch = self.batches(count, *key, positions=range(count)[share])
        generator = torch_generator(*key, device=batch.measured.device)
        draws = _cut(self._noise(batch.among(share, count), generator), share)
        seeds = dropout_seeds(key, count)[share]

        def loss(part: slice) -> tuple[Tensor, ...]:
            with item_seeds(seeds[part]):
                return self._losses(self.network, batch[part], _cut(draws, part))

        return loss, len(batch)

    def state(self) -> dict[str, Tensor]:
        """Weights, averages and moments."""
        return {
            **prefixed("model", self.network),
            **self.averages.state(),
            **moments("adam", self.optimiser),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        load(self.network, "model", state)
        self.averages.load_state(state)
        load_moments("adam", self.optimiser, state)


def _cut(draws: Draws, part: slice) -> Draws:
    """The draws of the items ``part``."""
    return [None if draw is None else draw[part] for draw in draws]
