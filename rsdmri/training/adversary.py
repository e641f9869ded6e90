"""The discriminator of a stage: what it adds to each step, its own step, and its part of the state."""

import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.diffusion.batch import Batch, shown_noise
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.distillation.discriminator import Discriminator, View, play
from rsdmri.runtime import torch_generator
from rsdmri.training.stage import (
    Metrics,
    adam,
    apply_gradients,
    frozen_view,
    learning_rate,
    load,
    load_moments,
    moments,
    prefixed,
)


def build_discriminator(config: Config, sigma_data: float) -> Discriminator:
    """The discriminator of a configuration, its weights still to be drawn.

    Twice the blocks of each level make as many as the backbone has on its way down and up.
    """
    network, parts = config.network, 2 if config.corruption.kind == "fourier" else 1  # complex images or magnitudes
    return Discriminator(sigma_data, parts, network.channels, 2 * network.blocks, network.conditions)


class Adversary:
    """Holds the discriminator of generated against measured scans, with its optimiser.

    Of each step it takes the scans that the generator did not see (``fresh``) for real. The generated images are
    measured with the coils they were made for and the further masks of those scans, so that both have one law, and with
    the noise of the measurements where that is known. Fresh further masks in every step show each scan differently.
    It computes in float32.

    Args:
        config: settings.
        sigma_data: standard deviation of the images per real number, where the networks are.

    Attributes:
        parameters: of the discriminator.
    """

    def __init__(self, config: Config, sigma_data: Tensor):
        self.config, self.settings = config, config.prior
        made = build_discriminator(config, float(sigma_data))
        made.initialise(torch_generator(config.seed, "discriminator"))
        self.discriminator = made.to(sigma_data.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._frozen = frozen_view(self.discriminator)
        self.parameters: list[Tensor] = list(self.discriminator.parameters())
        self.optimiser = adam(self.parameters, self.settings.discriminator_learning_rate, (0.0, 0.999))

    def noise(self, batch: Batch, share: slice, count: int, *key: object) -> Tensor | None:
        """Standard noise of the measurements ``batch``, the items ``share`` of ``count``; None where none is known."""
        if not bool(batch.sigma_y.any()):
            return None
        generator = torch_generator(*key, "measurement noise", device=batch.measured.device)
        return unit_noise(batch.among(share, count).measured, generator)[share]

    def losses(self, images: Tensor, batch: Batch, fresh: Batch, noise: Tensor | None) -> tuple[Tensor, ...]:
        """Losses of the generator and of the discriminator, and who was told apart (1 or 0), each ``(batch,)``.

        Args:
            images: generated ``(batch, y, x)``, as the scores see them.
            batch: acquisitions they were made for.
            fresh: other measurements.
            noise: as of `noise`.
        """
        operator = batch.shown.with_mask(fresh.further_mask)
        measured = operator.normal(images)
        if noise is not None:
            measured = measured + batch.sigma_y[:, None, None] * shown_noise(operator, noise)
        real = View(fresh.shown.adjoint(fresh.measured), fresh.further_mask, fresh.conditions)
        fake = View(measured, fresh.further_mask, batch.conditions)
        game = play(self.discriminator, self._frozen, real, fake, self.settings.r1)
        return game.generator, game.discriminator, (game.real > 0).float(), (game.fake < 0).float()

    def step(self, gradients: list[Tensor], means: list[float], index: int, progress: float) -> Metrics:
        """Step ``index`` of the discriminator; ``means`` of what `losses` returned become metrics."""
        settings = self.settings
        rate = learning_rate(settings.discriminator_learning_rate, index, progress, 0, settings.decay_from)
        norm = apply_gradients(self.optimiser, self.parameters, gradients, rate, settings.clip)
        names = ("adversarial_loss", "discriminator_loss", "real_accuracy", "fake_accuracy")
        return {**dict(zip(names, means, strict=True)), "discriminator_gradient": norm}

    def state(self) -> dict[str, Tensor]:
        """Weights and moments."""
        return {**prefixed("discriminator", self.discriminator), **moments("discriminator_adam", self.optimiser)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        load(self.discriminator, "discriminator", state)
        load_moments("discriminator_adam", self.optimiser, state)
