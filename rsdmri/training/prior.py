"""Phase II: the one-step generator, by distillation, by a discriminator (ambient-gan), or by both.

A step moves the generator and whatever pulls it, the fake score and the discriminator, on the same generated images.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.diffusion.batch import Batch, NoiseDraw, draw_noise
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.dropout import item_seeds
from rsdmri.diffusion.objectives import image_loss
from rsdmri.distillation.generator import Generator
from rsdmri.distillation.objectives import GeneratorLoss, draw_level, generator_loss
from rsdmri.runtime import torch_generator
from rsdmri.training.adversary import Adversary
from rsdmri.training.ema import Averages
from rsdmri.training.generated import Latent, draw_latent, generated, seen
from rsdmri.training.proximal import ProximalCheck
from rsdmri.training.shards import Shards
from rsdmri.training.stage import (
    BatchSource,
    Metrics,
    adam,
    apply_gradients,
    compiled,
    dropout_seeds,
    frozen_view,
    gradient_norm,
    learning_rate,
    load,
    load_moments,
    merge,
    moments,
    prefixed,
    step_key,
)


class PriorStage:
    """Phase II: distillation of the teacher into a one-step generator, with a fake score that follows it.

    For ``ambient-gan`` there is no teacher: the generator starts from the weights of ``teacher``, which are fresh, and
    neither it nor a fake score is evaluated.

    Args:
        config: settings.
        teacher: the trained denoiser, frozen.
        batches: gives the batch of a key.
        shards: runs shares of a batch.
        looked_at: gives the batches of the training set that `validate` compares samples with.
    """

    name = "prior"

    def __init__(
        self,
        config: Config,
        teacher: Denoiser,
        batches: BatchSource,
        shards: Shards,
        looked_at: BatchSource | None = None,
    ):
        self.config, self.settings = config, config.prior
        self.batch = self.settings.batch
        shards.processes.check_batch(self.name, self.batch)
        self.anew: Callable[[int], int] = lambda index: 0
        self.teacher = teacher.eval().requires_grad_(False)
        distils = self.settings.distils
        self.fake_score = copy.deepcopy(teacher).train().requires_grad_(True) if distils else self.teacher
        self.generator = self._generator(copy.deepcopy(teacher)).train().requires_grad_(True)
        self.averages = Averages(
            self.generator, self.settings.average, self.batch, self.settings.ema_images, tracked=config.snapshots > 0
        )
        self.average = self.averages.result
        self._frozen_fake = frozen_view(self.fake_score)
        self.batches, self.shards = batches, shards
        self._check = (
            None
            if looked_at is None
            else ProximalCheck(looked_at, config.seed, self.batch, self.settings.validation_images)
        )
        self._of_generator: list[Tensor] = list(self.generator.parameters())
        self._of_fake: list[Tensor] = list(self.fake_score.parameters()) if distils else []
        self.optimiser = adam(self._of_generator, self.settings.learning_rate, (0.0, 0.999))
        fake_weights: list[Tensor] = list(self.fake_score.parameters())
        self.fake_optimiser = adam(fake_weights, self.settings.fake_learning_rate, (0.0, 0.999))
        wanted = self.settings.adversarial > 0 or not distils
        self.adversary = Adversary(config, teacher.sigma_data) if wanted else None
        self._of_critics = self._of_fake + ([] if self.adversary is None else self.adversary.parameters)
        for denoiser in (self.teacher, self.fake_score, self._frozen_fake, self.generator.denoiser):
            compiled(denoiser, config.network.compile)

    def _generator(self, denoiser: Denoiser) -> Generator:
        return Generator(denoiser, self.settings.sigma_init, self.settings.mask_free)

    def key(self, index: int) -> tuple[object, ...]:
        """Key of everything random in step ``index``."""
        seed = self.config.seed if self.settings.seed is None else self.settings.seed
        return step_key(seed, self.name, index, self.anew(index))

    def step(self, index: int, progress: float) -> Metrics:
        """Take one step of the generator, the fake score and the discriminator, on the same generated images."""
        settings, processes = self.settings, self.shards.processes
        parameters = self._of_generator + self._of_critics
        with processes.together():
            loss, size = self._drawn(index, processes.share)
            gradients, values = self.shards.gradients(loss, parameters, size, of=self.batch, rounds=settings.accumulate)
        _, of_generator, of_fake, gap, spread, *of_adversary = merge(processes, gradients, values, self.batch)
        count, critics = len(self._of_generator), len(self._of_generator) + len(self._of_fake)
        rate = learning_rate(settings.learning_rate, index, progress, 0, settings.decay_from)
        fake_rate = learning_rate(settings.fake_learning_rate, index, progress, 0, settings.decay_from)
        norm = apply_gradients(self.optimiser, self._of_generator, gradients[:count], rate, float("inf"))
        if settings.distils:
            apply_gradients(self.fake_optimiser, self._of_fake, gradients[count:critics], fake_rate, settings.clip)
        against = (
            {} if self.adversary is None else self.adversary.step(gradients[critics:], of_adversary, index, progress)
        )
        self.averages.update(self.generator, index + 1)
        scores = {"fake_loss": of_fake, "score_gap": gap} if settings.distils else {}
        return {"loss": of_generator, **scores, "sample_std": spread, **against, "gradient": norm, "rate": rate}

    def item_norms(self, index: int) -> list[float]:
        """Gradient norm of each slice that step ``index`` draws, alone; inf where its loss is not finite.

        First those whose acquisitions the generator saw, then those of the fake score and the discriminator, 0 where
        the generator's images are none.
        """
        processes = self.shards.processes
        own, fakes = [0.0] * self.batch, [0.0] * self.batch
        with processes.together():
            loss, _ = self._drawn(index, processes.share)
            for k, item in enumerate(range(self.batch)[processes.share]):
                _, of_generator, of_fake, _, _, *of_adversary = loss(slice(k, k + 1))
                of_critics = of_fake if self.adversary is None else of_fake + of_adversary[1]
                own[item] = gradient_norm(self.settings.loss_scale * of_generator, self._of_generator)
                fakes[item] = gradient_norm(of_critics, self._of_critics) if math.isfinite(own[item]) else 0.0
        return processes.largest(*own, *fakes)

    def validate(self) -> Metrics:
        """How near samples of the averaged generator are to what was measured, see `ProximalCheck`.

        The losses of the two networks are no measure: they are relative to each other, and lowest where the generator
        has not moved yet.
        """
        return {} if self._check is None else self._check(self._sampled)

    def _sampled(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Images of the averaged generator for the acquisitions of ``batch``, as the scores see them."""
        return seen(self.config, generated(self.average, batch, draw_latent(self.config, batch, generator)))

    def _drawn(self, index: int, share: slice) -> tuple[Callable[[slice], tuple[Tensor, ...]], int]:
        """Losses of a part of the items ``share`` of the batch of step ``index``, and how many items these are."""
        settings, key, count = self.settings, self.key(index), self.batch
        mine = range(count)[share]
        both = self.batches(2 * count, *key, positions=[*mine, *(count + i for i in mine)])  # one draw: one size
        batch, fresh = both[: len(mine)], both[len(mine) :]
        whole = batch.among(share, count)
        generator = torch_generator(*key, device=batch.measured.device)
        latent = draw_latent(self.config, whole, generator)[share]
        measured, law = self.config.objective == "fourier-ambient", self.config.teacher
        level = draw_level(whole, generator, settings.t_max, measured=measured)[share]
        whole = fresh.among(share, count)
        draw = draw_noise(whole, generator, law.sigma_mean, law.sigma_std, measured=measured)[share]
        seeds = dropout_seeds(key, count)[share]
        noise = None if self.adversary is None else self.adversary.noise(batch, share, count, *key)

        def loss(part: slice) -> tuple[Tensor, ...]:
            with item_seeds(seeds[part]):
                own = None if noise is None else noise[part]
                return self._losses(batch[part], fresh[part], latent[part], level[part], draw[part], own)

        return loss, len(batch)

    def _losses(
        self, batch: Batch, fresh: Batch, latent: Latent, level: NoiseDraw, draw: NoiseDraw, noise: Tensor | None
    ) -> tuple[Tensor, ...]:
        images = generated(self.generator, batch, latent)
        visible = seen(self.config, images)
        found, fake = self._matched(visible, batch, fresh, level, draw)
        spread = real_numbers(images.detach()).flatten(1).std(dim=1)
        if self.adversary is None:
            return self.settings.loss_scale * found.loss + fake, found.loss, fake, found.gap, spread
        against = self.adversary.losses(visible, batch, fresh, noise)
        loss = found.loss + self.settings.adversarial * against[0] if self.settings.distils else against[0]
        return self.settings.loss_scale * loss + fake + against[1], loss, fake, found.gap, spread, *against

    def _matched(
        self, visible: Tensor, batch: Batch, fresh: Batch, level: NoiseDraw, draw: NoiseDraw
    ) -> tuple[GeneratorLoss, Tensor]:
        """Losses of the generator and of the fake score on generated images as they see them; 0 without a teacher."""
        if self.settings.objective == "ambient-gan":
            none = torch.zeros_like(level.sigma)
            return GeneratorLoss(none, none), none
        found = generator_loss(
            self.settings.objective, visible, self.teacher, self._frozen_fake, batch, level, self.settings.alpha
        )
        fresh = replace(fresh, conditions=batch.conditions)
        if self.config.teacher.equivariance > 0:  # all of a generated image is known, also what no mask acquires
            fresh = replace(fresh, mask=torch.ones_like(fresh.mask))
        if self.settings.fake_residual == "further":  # the published code's choice
            fresh = replace(fresh, mask=fresh.further_mask)
        return found, image_loss(self.fake_score, visible.detach(), fresh, draw)

    def state(self) -> dict[str, Tensor]:
        """Weights, averages and moments of the networks in training."""
        return {
            **prefixed("generator", self.generator),
            **self.averages.state(),
            **(prefixed("fake_score", self.fake_score) if self.settings.distils else {}),
            **moments("adam", self.optimiser),
            **moments("fake_adam", self.fake_optimiser),
            **({} if self.adversary is None else self.adversary.state()),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        load(self.generator, "generator", state)
        self.averages.load_state(state)
        if self.settings.distils:
            load(self.fake_score, "fake_score", state)
        load_moments("adam", self.optimiser, state)
        load_moments("fake_adam", self.fake_optimiser, state)
        if self.adversary is not None:
            self.adversary.load_state(state)


def real_numbers(image: Tensor) -> Tensor:
    """The real numbers of ``image``: its parts where it is complex."""
    return torch.view_as_real(image) if image.is_complex() else image
