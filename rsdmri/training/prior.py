"""Phase II: distillation, one optimiser step of the generator and one of the fake score at a time."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rsdmri.config import Config
from rsdmri.diffusion.acquisitions import coil_part
from rsdmri.diffusion.batch import Batch, NoiseDraw, draw_noise
from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.dropout import item_seeds
from rsdmri.diffusion.objectives import image_loss
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.distillation.generator import Generator
from rsdmri.distillation.objectives import draw_level, generator_loss
from rsdmri.physics.sense import Sampling
from rsdmri.runtime import torch_generator
from rsdmri.training.degraded import degradation, full_size
from rsdmri.training.ema import Averages
from rsdmri.training.shards import Shards
from rsdmri.training.stage import (
    BatchSource,
    Metrics,
    adam,
    apply_gradients,
    compiled,
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
from rsdmri.training.validation import energy_distance, fixed_batches


@dataclass(frozen=True)
class Latent:
    """Input of the generator: standard noise of images (batch, y, x) and, where it has a part there, of k-space."""

    noise: Tensor
    coils: Tensor | None

    def __getitem__(self, items: slice) -> "Latent":
        return Latent(self.noise[items], None if self.coils is None else self.coils[items])


class PriorStage:
    """Phase II: distillation of the teacher into a one-step generator, with a fake score that follows it.

    Args:
        config: settings.
        teacher: the trained denoiser, frozen.
        batches: gives the batch of a key.
        shards: runs shares of a batch.
        held_out: gives the batches that `validate` looks at.
    """

    name = "prior"

    def __init__(
        self,
        config: Config,
        teacher: Denoiser,
        batches: BatchSource,
        shards: Shards,
        held_out: BatchSource | None = None,
    ):
        self.config, self.settings = config, config.prior
        self.batch = self.settings.batch
        shards.processes.check_batch(self.name, self.batch)
        self.anew: Callable[[int], int] = lambda index: 0
        self.teacher = teacher.eval().requires_grad_(False)
        self.fake_score = copy.deepcopy(teacher).train().requires_grad_(True)
        self.generator = self._generator(copy.deepcopy(teacher)).train().requires_grad_(True)
        self.averages = Averages(
            self.generator, self.settings.average, self.batch, self.settings.ema_images, tracked=config.snapshots > 0
        )
        self.average = self.averages.result
        self._frozen_fake = _view(self.fake_score)
        self.batches, self.shards, self.held_out = batches, shards, held_out
        self._of_generator: list[Tensor] = list(self.generator.parameters())
        self._of_fake: list[Tensor] = list(self.fake_score.parameters())
        self.optimiser = adam(self._of_generator, self.settings.learning_rate, (0.0, 0.999))
        self.fake_optimiser = adam(self._of_fake, self.settings.fake_learning_rate, (0.0, 0.999))
        for denoiser in (self.teacher, self.fake_score, self._frozen_fake, self.generator.denoiser):
            compiled(denoiser, config.network.compile)

    def _generator(self, denoiser: Denoiser) -> Generator:
        return Generator(denoiser, self.settings.sigma_init, self.settings.mask_free)

    def key(self, index: int) -> tuple[object, ...]:
        """Key of everything random in step ``index``."""
        seed = self.config.seed if self.settings.seed is None else self.settings.seed
        return step_key(seed, self.name, index, self.anew(index))

    def step(self, index: int, progress: float) -> Metrics:
        """Take one step of the fake score and one of the generator, on the same generated images."""
        settings, processes = self.settings, self.shards.processes
        parameters = self._of_generator + self._of_fake
        with processes.together():
            loss, size = self._drawn(index, processes.share)
            gradients, values = self.shards.gradients(loss, parameters, size, of=self.batch, rounds=settings.accumulate)
        _, of_generator, of_fake, gap, spread = merge(processes, gradients, values, self.batch)
        count = len(self._of_generator)
        rate = learning_rate(settings.learning_rate, index, progress, 0, settings.decay_from)
        fake_rate = learning_rate(settings.fake_learning_rate, index, progress, 0, settings.decay_from)
        norm = apply_gradients(self.optimiser, self._of_generator, gradients[:count], rate, float("inf"))
        apply_gradients(self.fake_optimiser, self._of_fake, gradients[count:], fake_rate, settings.clip)
        self.averages.update(self.generator, index + 1)
        return {
            "loss": of_generator,
            "fake_loss": of_fake,
            "score_gap": gap,
            "sample_std": spread,
            "gradient": norm,
            "rate": rate,
        }

    def item_norms(self, index: int) -> list[float]:
        """Gradient norm of each slice that step ``index`` draws, alone; inf where its loss is not finite.

        First those whose acquisitions the generator saw, then those of the fake score, 0 where its images are none.
        """
        processes = self.shards.processes
        own, fakes = [0.0] * self.batch, [0.0] * self.batch
        with processes.together():
            loss, _ = self._drawn(index, processes.share)
            for k, item in enumerate(range(self.batch)[processes.share]):
                _, of_generator, of_fake, *_ = loss(slice(k, k + 1))
                own[item] = gradient_norm(self.settings.loss_scale * of_generator, self._of_generator)
                fakes[item] = gradient_norm(of_fake, self._of_fake) if math.isfinite(own[item]) else 0.0
        return processes.largest(*own, *fakes)

    @torch.no_grad()
    def validate(self) -> float | None:
        """Energy distance of A^H A x_g to A^H y over fixed slices and noise, x_g of the averaged generator.

        The losses of the two networks are no measure: they are relative to each other, and lowest where the generator
        has not moved yet. None without slices, for batches of one image, or where it is no number.
        """
        if self.held_out is None or self.batch < 2:
            return None
        found = []
        for batch, generator in fixed_batches(self.held_out, self.config.seed, self.batch):
            operator = batch.operator
            images = self._seen(self._generated(self.average, batch, self._latent(batch, generator)))
            found.append(energy_distance(operator.normal(images), operator.adjoint(batch.measured)))
        mean = sum(found) / len(found)
        return mean if math.isfinite(mean) else None

    def _latent(self, batch: Batch, generator: torch.Generator) -> Latent:
        """Input of the generator for the acquisitions of ``batch``."""
        like = full_size(self.config.corruption, batch.image)
        noise = unit_noise(like, generator)
        if self.config.objective != "fourier-ambient" or batch.maps is None:
            return Latent(noise, None)
        return Latent(noise, unit_noise(batch.measured, generator))

    def _generated(self, generator: Generator, batch: Batch, latent: Latent) -> Tensor:
        if batch.maps is None and latent.noise.shape != batch.image.shape:  # images larger than what is measured
            every = torch.ones(latent.noise.shape, dtype=torch.bool, device=latent.noise.device)
            return generator(latent.noise, Sampling(every, tuple(latent.noise.shape)), None, batch.conditions)
        shown = batch.shown
        coils = None if latent.coils is None else coil_part(shown, latent.coils)
        return generator(latent.noise, shown, coils, batch.conditions)

    def _seen(self, images: Tensor) -> Tensor:
        """``images`` as the scores see them."""
        return degradation(self.config.corruption, tuple(images.shape)).forward(images)

    def _drawn(self, index: int, share: slice) -> tuple[Callable[[slice], tuple[Tensor, ...]], int]:
        """Losses of a part of the items ``share`` of the batch of step ``index``, and how many items these are."""
        settings, key, count = self.settings, self.key(index), self.batch
        mine = range(count)[share]
        both = self.batches(2 * count, *key, positions=[*mine, *(count + i for i in mine)])  # one draw: one size
        batch, fresh = both[: len(mine)], both[len(mine) :]
        whole = batch.among(share, count)
        generator = torch_generator(*key, device=batch.measured.device)
        latent = self._latent(whole, generator)[share]
        measured, law = self.config.objective == "fourier-ambient", self.config.teacher
        level = draw_level(whole, generator, settings.t_max, measured=measured)[share]
        whole = fresh.among(share, count)
        draw = draw_noise(whole, generator, law.sigma_mean, law.sigma_std, measured=measured)[share]
        seeds = dropout_seeds(key, count)[share]

        def loss(part: slice) -> tuple[Tensor, ...]:
            with item_seeds(seeds[part]):
                return self._losses(batch[part], fresh[part], latent[part], level[part], draw[part])

        return loss, len(batch)

    def _losses(
        self, batch: Batch, fresh: Batch, latent: Latent, level: NoiseDraw, draw: NoiseDraw
    ) -> tuple[Tensor, ...]:
        images = self._generated(self.generator, batch, latent)
        seen = self._seen(images)
        fresh = replace(fresh, conditions=batch.conditions)
        found = generator_loss(
            self.settings.objective, seen, self.teacher, self._frozen_fake, batch, level, self.settings.alpha
        )
        if self.config.teacher.equivariance > 0:  # all of a generated image is known, also what no mask acquires
            fresh = replace(fresh, mask=torch.ones_like(fresh.mask))
        if self.settings.fake_residual == "further":  # the published code's choice
            fresh = replace(fresh, mask=fresh.further_mask)
        fake = image_loss(self.fake_score, seen.detach(), fresh, draw)
        spread = real_numbers(images.detach()).flatten(1).std(dim=1)
        return self.settings.loss_scale * found.loss + fake, found.loss, fake, found.gap, spread

    def state(self) -> dict[str, Tensor]:
        """Weights, averages and moments of both networks."""
        return {
            **prefixed("generator", self.generator),
            **self.averages.state(),
            **prefixed("fake_score", self.fake_score),
            **moments("adam", self.optimiser),
            **moments("fake_adam", self.fake_optimiser),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        load(self.generator, "generator", state)
        self.averages.load_state(state)
        load(self.fake_score, "fake_score", state)
        load_moments("adam", self.optimiser, state)
        load_moments("fake_adam", self.fake_optimiser, state)


def _view(module: Denoiser) -> Denoiser:
    """Copy whose parameters share the memory of ``module``'s but take no gradient."""
    view = copy.deepcopy(module).requires_grad_(False)
    for mine, theirs in zip(view.parameters(), module.parameters(), strict=True):
        mine.data = theirs.data
    return view


def real_numbers(image: Tensor) -> Tensor:
    """The real numbers of ``image``: its parts where it is complex."""
    return torch.view_as_real(image) if image.is_complex() else image
